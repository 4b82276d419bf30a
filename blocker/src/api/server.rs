//! Answers the control API. Decides nothing: reads a request, asks the controller, writes the
//! answer or an RFC 9457 problem.

mod access;
mod body;
mod connections;
mod failure;
mod json;
mod socket;

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::connect_info::ConnectInfo;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, MatchedPath, Path as UrlPath, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Extension, Json, Router};
use futures_util::stream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::openapi;
use crate::config::Control;
use crate::controller::{Asking, Controller, Error, Who, blocking};
use crate::metrics::Metrics;
use crate::rule::{RuleId, RuleSpec, Target};
use crate::wire::{
    BODY_LIMIT, Code, EventsRequest, ExplainRequest, FlowsRequest, LeaseRequest, RETURN_MINIMAL,
    RulesetRequest, SSH_CONNECTION_HEADER,
};
use access::{May, Peer, admit};
use failure::Failure;
use json::Sent;
pub use socket::{ServeError, Socket, bind, take};

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

/// Streams (events and leases) at once: fewer than connections, so that slots for requests remain.
const STREAMS: usize = 192;

/// The slots for streams.
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

/// The media type of a stream of lines of JSON.
const NDJSON: [(header::HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/x-ndjson")];

/// It only reads, but is a `POST` since it has a body.
const EXPLAIN: &str = "/v1/explain";

/// The API's routes.
fn router(controller: Controller, metrics: Metrics, control: &Control) -> Router {
    let may = Arc::new(May::of(control));
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

/// Counts answers, refusals included.
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
    /// Overrides refusals that protect the caller and the host.
    force: bool,
    /// Changes nothing, and says what would change.
    dry_run: bool,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LeaseOptions {
    /// Overrides refusals that protect the caller and the host.
    force: bool,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DeleteOptions {
    /// Lifts this target only, from every rule that has exactly it.
    #[schemars(with = "Option<Target>")]
    target: Option<String>,
    /// Lifts the configuration's rules, too, until the next reload.
    all: bool,
}

type Answer<T> = Result<Json<T>, Failure>;
type Asked<T> = Result<Query<T>, QueryRejection>;
type Received<T> = Result<Sent<T>, JsonRejection>;

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
    Ok(Json(blocking(move || controller.status()).await?))
}

async fn stats(State(controller): State<Controller>) -> Answer<impl Serialize> {
    Ok(Json(blocking(move || controller.stats()).await?))
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

/// Puts rules in force until the connection ends: that drops the lease, which lifts them.
async fn hold(
    State(controller): State<Controller>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Extension(streams): Extension<Streams>,
    headers: HeaderMap,
    options: Asked<LeaseOptions>,
    request: Received<LeaseRequest>,
) -> Result<Response, Failure> {
    let place = streams.enter()?;
    let Query(LeaseOptions { force }) = options?;
    let Sent(LeaseRequest { rules }) = request?;
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

/// A stream that ends when the client or the daemon ends it.
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
    request: Received<ExplainRequest>,
) -> Answer<impl Serialize> {
    let Sent(request) = request?;
    Ok(Json(controller.explain(&request)?))
}

async fn add(
    State(controller): State<Controller>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    options: Asked<ChangeOptions>,
    spec: Received<RuleSpec>,
) -> Result<impl IntoResponse, Failure> {
    let Query(options) = options?;
    let Sent(spec) = spec?;
    let mut answer = controller
        .add(spec, asking(peer, &headers, &options))
        .await?;
    let mut applied = HeaderMap::new();
    if prefers_minimal(&headers) && answer.cut() {
        let preference = HeaderValue::from_static(RETURN_MINIMAL);
        applied.insert("preference-applied", preference);
    }
    Ok((applied, Json(answer)))
}

/// Whether a request has the preference [`RETURN_MINIMAL`] (RFC 7240 2: in one header or several, each
/// preference perhaps with parameters, its value perhaps quoted).
fn prefers_minimal(headers: &HeaderMap) -> bool {
    let values = headers.get_all("prefer").into_iter();
    let lines = values.filter_map(|value| value.to_str().ok());
    let mut preferences = lines.flat_map(|line| line.split(','));
    preferences.any(|preference| {
        let word = preference.split(';').next().unwrap_or_default();
        let word: String = word
            .chars()
            .filter(|c| !matches!(c, ' ' | '\t' | '"'))
            .collect();
        word.eq_ignore_ascii_case(RETURN_MINIMAL)
    })
}

async fn replace(
    State(controller): State<Controller>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    options: Asked<ChangeOptions>,
    ruleset: Received<RulesetRequest>,
) -> Answer<impl Serialize> {
    let Query(options) = options?;
    let Sent(RulesetRequest { rules }) = ruleset?;
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

/// A malformed id names no rule.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preference_is_found_however_it_is_written() {
        for (lines, expected) in [
            (&["return=minimal"][..], true),
            (&["Return = \"minimal\""], true),
            (&["respond-async, return=minimal; foo=bar"], true),
            (&["wait=10", "return=minimal"], true),
            (&["return=representation"], false),
            (&["return=minimally"], false),
            (&["handling=lenient; return=minimal"], false),
            (&[], false),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("prefer", HeaderValue::from_static(line));
            }
            assert_eq!(prefers_minimal(&headers), expected, "{lines:?}");
        }
    }
}
