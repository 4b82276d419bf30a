//! Answers the control API. Decides nothing: reads a request, asks the controller, writes the
//! answer or an RFC 9457 problem.
//!
//! Who may is settled before anything of a request is looked at: root and members of the
//! configured group may all, others may read if the configuration lets them.

mod body;
mod connections;

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::connect_info::ConnectInfo;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, MatchedPath, Path as UrlPath, Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Extension, Json, Router};
use futures_util::stream;
use nix::unistd::{Group, User};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::openapi;
use super::types::{
    BODY_LIMIT, Code, EventsRequest, ExplainRequest, FlowsRequest, LeaseRequest, Problem,
    RulesetRequest, SSH_CONNECTION_HEADER,
};
use crate::config::{Control, ReadAccess};
use crate::controller::{Asking, Controller, Error, Who, beside};
use crate::metrics::Metrics;
use crate::rule::{RuleId, RuleSpec, Target};
use crate::ruleset::RulesetError;
use crate::service::Passed;

/// Why the control socket can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The path is taken by a daemon that answers.
    #[error("control socket {}: another daemon answers there: stop it, or set control.socket", .0.display())]
    InUse(PathBuf),
    /// The path is taken by something else.
    #[error("control socket {}: something that is no socket is in its place", .0.display())]
    NotASocket(PathBuf),
    /// The configured group is not there.
    #[error(
        "control.group: there is no group {0:?}: create it (`groupadd --system {0}`), or leave the key out"
    )]
    NoGroup(String),
    /// The socket can't be made.
    #[error("control socket {}: {source}", .path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The service manager made a socket elsewhere.
    #[error(
        "control.socket is {}, but the service manager listens on {}: make them the same (`systemctl edit blocker.socket`), or do without blocker.socket (`systemctl mask --now blocker.socket`)",
        .configured.display(), .passed.display()
    )]
    Elsewhere {
        /// What the configuration says.
        configured: PathBuf,
        /// Where the passed socket is.
        passed: PathBuf,
    },
}

/// The control socket. Its file goes when it is dropped, if the daemon made it.
pub struct Socket {
    listener: UnixListener,
    file: Option<SocketFile>,
}

struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Gone already is as good.
        let _removed = fs::remove_file(&self.0);
    }
}

/// Makes the control socket, with its directory, mode and group.
///
/// A socket file that nobody answers on is a dead daemon's, and replaced.
///
/// # Errors
/// See [`ServeError`].
pub fn bind(control: &Control) -> Result<Socket, ServeError> {
    let path = &control.socket;
    let error = |source| ServeError::Socket {
        path: path.clone(),
        source,
    };
    let group = control.group.as_deref().map(find_group).transpose()?;
    clear(path)?;
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        fs::create_dir_all(directory).map_err(error)?;
    }
    // Nobody may connect before mode and group are right.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = bound.map_err(error)?;
    let file = SocketFile(path.clone());
    if let Some(group) = group {
        chown(path, None, Some(group)).map_err(error)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(control.mode.bits())).map_err(error)?;
    Ok(Socket {
        listener,
        file: Some(file),
    })
}

/// Takes the control socket that the service manager made. Its mode and group are the service
/// manager's; where the configuration says otherwise, the log does.
///
/// # Errors
/// If it is not where the configuration says, or can't be served.
pub fn take(control: &Control, passed: Passed) -> Result<Socket, ServeError> {
    let path = &control.socket;
    let error = |source| ServeError::Socket {
        path: path.clone(),
        source,
    };
    let group = control.group.as_deref().map(find_group).transpose()?;
    if passed.path != *path {
        return Err(ServeError::Elsewhere {
            configured: path.clone(),
            passed: passed.path,
        });
    }
    let metadata = fs::symlink_metadata(path).map_err(error)?;
    let mode = metadata.mode() & 0o777;
    if mode != control.mode.bits() {
        let wanted = control.mode.bits();
        tracing::warn!(
            "control.mode is {wanted:04o}, but the service manager made the socket with mode {mode:04o}: blocker.socket decides"
        );
    }
    if let Some(group) = group.filter(|group| *group != metadata.gid()) {
        let its = metadata.gid();
        tracing::warn!(
            "control.group has gid {group}, but the service manager gave the socket to gid {its}: blocker.socket decides who can connect, control.group who may change rules"
        );
    }
    passed.listener.set_nonblocking(true).map_err(error)?;
    Ok(Socket {
        listener: UnixListener::from_std(passed.listener).map_err(error)?,
        file: None,
    })
}

fn find_group(name: &str) -> Result<u32, ServeError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) | Err(_) => Err(ServeError::NoGroup(name.to_owned())),
    }
}

fn clear(path: &Path) -> Result<(), ServeError> {
    let error = |source| ServeError::Socket {
        path: path.to_owned(),
        source,
    };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(error(source)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ServeError::NotASocket(path.to_owned()));
    }
    if StdUnixStream::connect(path).is_ok() {
        return Err(ServeError::InUse(path.to_owned()));
    }
    fs::remove_file(path).map_err(error)
}

/// Serves until `shutdown` is ready; requests under way are answered first.
pub async fn serve(
    socket: Socket,
    control: Control,
    controller: Controller,
    metrics: Metrics,
    shutdown: impl Future<Output = ()> + Send + 'static,
) {
    let Socket { listener, file } = socket;
    let app = router(controller, metrics, &control);
    connections::serve(listener, app, shutdown).await;
    drop(file);
}

/// Streams (of events, and leases) at once: fewer than connections, so that no number of them keeps
/// requests out.
const STREAMS: usize = 192;

/// Room for streams.
#[derive(Clone)]
struct Streams(Arc<Semaphore>);

impl Streams {
    fn enter(&self) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.0).try_acquire_owned().map_err(|_| {
            Failure::busy(format!(
                "{STREAMS} streams of events and leases are open, as many as may be at once: close \
                 some (`ss -xp` shows whose they are)"
            ))
        })
    }
}

/// What a stream of lines of JSON is.
const NDJSON: [(header::HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/x-ndjson")];

/// A question with a body, so it is a `POST`; it only reads.
const EXPLAIN: &str = "/v1/explain";

/// The API's routes.
fn router(controller: Controller, metrics: Metrics, control: &Control) -> Router {
    let may = Arc::new(May {
        group: control
            .group
            .as_deref()
            .and_then(|name| find_group(name).ok()),
        read: control.read,
    });
    Router::new()
        .route("/v1/rules", get(list).post(add).delete(delete_many))
        .route("/v1/rules/{id}", get(show).delete(delete))
        .route("/v1/rules/{id}/confirm", post(confirm))
        .route("/v1/ruleset", put(replace))
        .route("/v1/status", get(status))
        .route("/v1/stats", get(stats))
        .route("/v1/leases", post(hold))
        .route("/v1/flows", get(flows))
        .route("/v1/events", get(events))
        .route(EXPLAIN, post(explain))
        .with_state(controller)
        .route("/openapi.json", get(openapi))
        .route("/metrics", get(scrape).with_state(metrics.clone()))
        .fallback(no_such_endpoint)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(Extension(Streams(Arc::new(Semaphore::new(STREAMS)))))
        .layer(middleware::from_fn_with_state(may, admit))
        .layer(middleware::from_fn_with_state(metrics, count))
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy)]
struct Peer {
    uid: u32,
    gid: u32,
    pid: Option<i32>,
}

impl Peer {
    fn of(stream: &UnixStream) -> Self {
        // Where the kernel does not say who it is, it is nobody.
        stream.peer_cred().map_or(
            Self {
                uid: u32::MAX,
                gid: u32::MAX,
                pid: None,
            },
            |credentials| Self {
                uid: credentials.uid(),
                gid: credentials.gid(),
                pid: credentials.pid(),
            },
        )
    }
}

/// Who may do what.
struct May {
    group: Option<u32>,
    read: ReadAccess,
}

impl May {
    fn write(&self, peer: Peer) -> bool {
        peer.uid == 0
            || self
                .group
                .is_some_and(|group| peer.gid == group || is_member(peer.uid, group))
    }

    fn read(&self, peer: Peer) -> bool {
        self.read == ReadAccess::All || self.write(peer)
    }
}

/// Whether a user is a member of a group by the system's user database.
fn is_member(uid: u32, group: u32) -> bool {
    let Ok(Some(user)) = User::from_uid(uid.into()) else {
        return false;
    };
    let Ok(Some(group)) = Group::from_gid(group.into()) else {
        return false;
    };
    user.gid == group.gid || group.mem.contains(&user.name)
}

async fn admit(
    State(may): State<Arc<May>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let reads =
        matches!(*request.method(), Method::GET | Method::HEAD) || request.uri().path() == EXPLAIN;
    let admitted = if reads {
        may.read(peer)
    } else {
        may.write(peer)
    };
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    if admitted {
        let response = next.run(request).await;
        if let Some(Problem { detail, code, .. }) = response.extensions().get() {
            if *code == Code::Internal {
                tracing::error!(uid = peer.uid, pid = peer.pid, %method, path, "request failed: {detail}");
            } else if !reads {
                tracing::warn!(uid = peer.uid, pid = peer.pid, %method, path, "request refused: {detail}");
            }
        }
        return response;
    }
    tracing::warn!(uid = peer.uid, pid = peer.pid, %method, path, "request refused: the caller may not");
    let detail = format!(
        "user {} may not {} here: root and members of the configured group (control.group) may",
        peer.uid,
        if reads { "read" } else { "change rules" },
    );
    Failure::new(
        StatusCode::FORBIDDEN,
        Code::Forbidden,
        "not allowed",
        detail,
    )
    .into_response()
}

/// Counts what is answered, refusals too.
async fn count(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let endpoint = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let endpoint = endpoint.as_ref().map(MatchedPath::as_str);
    metrics.answered(&method, endpoint, response.status());
    response
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ChangeOptions {
    /// Does it though it may cut off the caller or the host.
    force: bool,
    /// Changes nothing, and says what would be.
    dry_run: bool,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LeaseOptions {
    /// Does it though it may cut off the caller or the host.
    force: bool,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DeleteOptions {
    /// Lifts this target only, from every rule that has exactly it.
    #[schemars(with = "Option<Target>")]
    target: Option<String>,
    /// The configuration's rules, too, until the next reload.
    all: bool,
}

type Answer<T> = Result<Json<T>, Failure>;
type Asked<T> = Result<Query<T>, QueryRejection>;
type Sent<T> = Result<Json<T>, JsonRejection>;

async fn list(State(controller): State<Controller>) -> Answer<impl Serialize> {
    Ok(Json(controller.list()?))
}

async fn show(
    State(controller): State<Controller>,
    UrlPath(id): UrlPath<String>,
) -> Answer<impl Serialize> {
    Ok(Json(controller.show(&known_id(&id)?)?))
}

async fn status(State(controller): State<Controller>) -> Answer<impl Serialize> {
    Ok(Json(beside(move || controller.status()).await?))
}

async fn stats(State(controller): State<Controller>) -> Answer<impl Serialize> {
    Ok(Json(beside(move || controller.stats()).await?))
}

async fn scrape(State(metrics): State<Metrics>, headers: HeaderMap) -> Result<Response, Failure> {
    let scrape = metrics.scrape(&headers).await?;
    let response = ([(header::CONTENT_TYPE, scrape.content_type)], scrape.body);
    Ok(response.into_response())
}

async fn openapi() -> Json<&'static Value> {
    Json(openapi::document())
}

async fn flows(
    State(controller): State<Controller>,
    request: Asked<FlowsRequest>,
) -> Answer<impl Serialize> {
    let Query(request) = request?;
    Ok(Json(controller.flows(request).await?))
}

/// Rules that hold as long as the caller's connection: what is dropped with it lifts them.
async fn hold(
    State(controller): State<Controller>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Extension(streams): Extension<Streams>,
    headers: HeaderMap,
    options: Asked<LeaseOptions>,
    request: Sent<LeaseRequest>,
) -> Result<Response, Failure> {
    let place = streams.enter()?;
    let Query(LeaseOptions { force }) = options?;
    let Json(LeaseRequest { rules }) = request?;
    let options = ChangeOptions {
        force,
        dry_run: false,
    };
    let lease = controller
        .hold(rules, asking(peer, &headers, &options))
        .await?;
    let lines = stream::unfold((lease, place), async |(mut lease, place)| {
        let line = lease.next().await?;
        Some((Ok::<_, Infallible>(line), (lease, place)))
    });
    Ok((NDJSON, Body::from_stream(lines)).into_response())
}

/// A stream without an end but the caller's or the daemon's.
async fn events(
    State(controller): State<Controller>,
    Extension(streams): Extension<Streams>,
    request: Asked<EventsRequest>,
) -> Result<Response, Failure> {
    let place = streams.enter()?;
    let Query(request) = request?;
    let watcher = controller.watch(request).ok_or_else(|| {
        let error = "the daemon is stopping: nothing more happens".to_owned();
        Failure::from(Error::Inside(error))
    })?;
    let lines = stream::unfold((watcher, place), async |(mut watcher, place)| {
        let lines = watcher.next().await?;
        Some((Ok::<_, Infallible>(lines), (watcher, place)))
    });
    Ok((NDJSON, Body::from_stream(lines)).into_response())
}

async fn explain(
    State(controller): State<Controller>,
    request: Sent<ExplainRequest>,
) -> Answer<impl Serialize> {
    let Json(request) = request?;
    Ok(Json(controller.explain(&request)?))
}

async fn add(
    State(controller): State<Controller>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    options: Asked<ChangeOptions>,
    spec: Sent<RuleSpec>,
) -> Answer<impl Serialize> {
    let Query(options) = options?;
    let Json(spec) = spec?;
    Ok(Json(
        controller
            .add(spec, asking(peer, &headers, &options))
            .await?,
    ))
}

async fn replace(
    State(controller): State<Controller>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    options: Asked<ChangeOptions>,
    ruleset: Sent<RulesetRequest>,
) -> Answer<impl Serialize> {
    let Query(options) = options?;
    let Json(RulesetRequest { rules }) = ruleset?;
    Ok(Json(
        controller
            .replace(rules, asking(peer, &headers, &options))
            .await?,
    ))
}

async fn delete(
    State(controller): State<Controller>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    UrlPath(id): UrlPath<String>,
) -> Answer<impl Serialize> {
    Ok(Json(
        controller
            .delete(
                known_id(&id)?,
                asking(peer, &headers, &ChangeOptions::default()),
            )
            .await?,
    ))
}

async fn confirm(
    State(controller): State<Controller>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    UrlPath(id): UrlPath<String>,
) -> Answer<impl Serialize> {
    let asking = asking(peer, &headers, &ChangeOptions::default());
    Ok(Json(controller.confirm(known_id(&id)?, asking).await?))
}

async fn delete_many(
    State(controller): State<Controller>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    options: Asked<DeleteOptions>,
) -> Answer<impl Serialize> {
    let Query(options) = options?;
    let asking = asking(peer, &headers, &ChangeOptions::default());
    let response = match options.target {
        Some(_) if options.all => {
            let detail = "'target' and 'all' exclude each other: give one of them".to_owned();
            return Err(Failure::invalid(detail));
        }
        Some(target) => {
            let target: Target = target
                .parse()
                .map_err(|error| Failure::from(Error::Rule(error)))?;
            controller.delete_target(target, asking).await?
        }
        None => controller.flush(options.all, asking).await?,
    };
    Ok(Json(response))
}

async fn no_such_endpoint(request: Request) -> Failure {
    let detail = format!("there is no {} here", request.uri().path());
    Failure::new(
        StatusCode::NOT_FOUND,
        Code::NoSuchEndpoint,
        "no such endpoint",
        detail,
    )
}

async fn no_such_method(request: Request) -> Failure {
    let detail = format!("{} is not for {}", request.method(), request.uri().path());
    Failure::new(
        StatusCode::METHOD_NOT_ALLOWED,
        Code::NoSuchEndpoint,
        "no such method",
        detail,
    )
}

/// An id that can't be one names no rule.
fn known_id(id: &str) -> Result<RuleId, Failure> {
    id.parse().map_err(|_| {
        Failure::from(Error::NoSuchRule {
            what: id.to_owned(),
        })
    })
}

fn asking(peer: Peer, headers: &HeaderMap, options: &ChangeOptions) -> Asking {
    Asking {
        who: Who {
            uid: Some(peer.uid),
            pid: peer.pid,
        },
        ssh_connection: headers
            .get(SSH_CONNECTION_HEADER)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned),
        force: options.force,
        dry_run: options.dry_run,
    }
}

/// A request that failed, as the caller gets it.
#[derive(Debug)]
struct Failure(Problem);

impl Failure {
    fn new(status: StatusCode, code: Code, title: &str, detail: String) -> Self {
        Self(Problem {
            kind: "about:blank".to_owned(),
            title: title.to_owned(),
            status: status.as_u16(),
            detail,
            code,
        })
    }

    fn invalid(detail: String) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            Code::InvalidInput,
            "invalid input",
            detail,
        )
    }

    fn busy(detail: String) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            Code::Busy,
            "too many at once",
            detail,
        )
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let detail = error.to_string();
        let (status, code, title) = match &error {
            Error::Rule(_)
            | Error::RuleOf { .. }
            | Error::Packet(_)
            | Error::Ruleset(RulesetError::Twice(_))
            | Error::Config(_) => (StatusCode::BAD_REQUEST, Code::InvalidInput, "invalid input"),
            Error::Compile(_) | Error::TooManyRules { .. } => (
                StatusCode::BAD_REQUEST,
                Code::LimitExceeded,
                "limit exceeded",
            ),
            Error::Refused(refusal) if refusal.overridable => (
                StatusCode::CONFLICT,
                Code::Refused,
                "refused to protect you",
            ),
            Error::Refused(_) => (StatusCode::CONFLICT, Code::Protected, "protected"),
            Error::Taken { .. } | Error::Ruleset(RulesetError::Taken { .. }) => {
                (StatusCode::CONFLICT, Code::Conflict, "id taken")
            }
            Error::InForce { .. } => (StatusCode::CONFLICT, Code::Conflict, "in force already"),
            Error::NoSuchRule { .. } => (StatusCode::NOT_FOUND, Code::NotFound, "no such rule"),
            Error::Datapath(_)
            | Error::State(_)
            | Error::NeedsRestart { .. }
            | Error::Inside(_) => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal, "failed"),
        };
        Self::new(status, code, title, detail)
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Self {
        let failure = Self::invalid(rejection.body_text());
        Self(Problem {
            status: rejection.status().as_u16(),
            ..failure.0
        })
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let media_type = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (status, media_type, Json(&self.0)).into_response();
        // For the log, where it is known who asked.
        response.extensions_mut().insert(self.0);
        response
    }
}

impl From<Infallible> for Failure {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
