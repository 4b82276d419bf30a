//! Asks the daemon over its control socket: one typed method an endpoint.
//!
//! Owns the connection, the deadline of a request and the telling apart of what can go wrong
//! between here and the daemon. Does not know flags, exit codes or rendering (`blockctl`), nor what
//! an answer means.
//!
//! ```no_run
//! # async fn example() -> Result<(), blocker::api::client::ClientError> {
//! use blocker::api::client::{Change, Client};
//! use blocker::rule::RuleSpec;
//!
//! let client = Client::connect("/run/blocker/control.sock").await?;
//! let spec = RuleSpec { targets: vec!["192.0.2.7".parse().unwrap()], ..RuleSpec::default() };
//! let answer = client.add(&spec, Change::default()).await?;
//! println!("{} flows killed", answer.teardown.killed);
//! # Ok(()) }
//! ```

use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http_body_util::{BodyExt as _, Full};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::types::{
    AddResponse, DeleteResponse, ListResponse, Problem, RuleView, RulesetRequest, RulesetResponse,
    Status,
};
use crate::rule::{RuleId, RuleSpec, Target};

/// How long a request may take, all in all. A teardown of ten thousands of flows takes seconds;
/// what takes longer than this has hung.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// The largest request body that the daemon reads, in bytes.
pub const BODY_LIMIT: usize = 64 * 1024 * 1024;

/// The request header that carries the caller's `SSH_CONNECTION` (sshd(8): client address and
/// port, server address and port, separated by blanks), so that the daemon can protect the
/// caller's own SSH peer even where it cannot read the caller's environment.
pub const SSH_CONNECTION_HEADER: &str = "blocker-ssh-connection";

/// Why nobody could be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Absence {
    /// There is no such file.
    NoSocket,
    /// The socket's file is there, but nobody listens: its daemon is gone.
    Stale,
    /// The file is no socket.
    NotASocket,
    /// Permissions keep the caller out.
    Denied {
        /// What keeps the caller out: the socket, or a directory on the way to it.
        at: PathBuf,
        /// Its group, by number where it has no name.
        group: String,
        /// Its permission bits.
        mode: u32,
        /// Whether its group may do what the caller may not.
        group_may: bool,
    },
    /// Something else, which the source names.
    Other,
}

/// What went wrong between the caller and the daemon, or what the daemon objects to.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection was made; the daemon knows nothing of the request.
    #[error("{}", absence_text(path, why, source))]
    Unreachable {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        why: Absence,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something answers on the socket, but it is not blocker's daemon.
    #[error("what answers on {} is not blocker's daemon: {found}", path.display())]
    NotBlocker {
        /// The socket's path.
        path: PathBuf,
        /// What was found instead.
        found: String,
    },
    /// The request's body is larger than the daemon reads; it was not sent.
    #[error(
        "the request is {bytes} bytes long, and the daemon reads at most {BODY_LIMIT}: split the rules"
    )]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// The connection broke before the whole answer was there.
    #[error("the daemon closed the connection before it answered {request}: {source}")]
    Lost {
        /// Method and path.
        request: String,
        /// What broke.
        source: hyper::Error,
    },
    /// No answer in time.
    #[error("the daemon did not answer {request} within {} s", TIMEOUT.as_secs())]
    Timeout {
        /// Method and path.
        request: String,
    },
    /// The daemon's answer has another form than this client knows.
    #[error(
        "the daemon's answer to {request} cannot be read ({source}): are client and daemon of one version?"
    )]
    Garbled {
        /// Method and path.
        request: String,
        /// Where it departs.
        source: serde_json::Error,
    },
    /// The request could not be written down.
    #[error("the request {request} cannot be written: {why}")]
    Unwritable {
        /// Method and path.
        request: String,
        /// Why.
        why: String,
    },
    /// The daemon understood, and objects.
    #[error("{}", problem_text(.0))]
    Problem(Problem),
}

fn absence_text(path: &Path, why: &Absence, source: &io::Error) -> String {
    let path = path.display();
    match why {
        Absence::NoSocket => format!("there is no control socket at {path}"),
        Absence::Stale => format!("nobody listens on {path}: its daemon is gone"),
        Absence::NotASocket => format!("{path} is not a socket"),
        Absence::Denied {
            at, group, mode, ..
        } => {
            let at = at.display();
            format!(
                "cannot connect to {path}: permission denied by {at} (group {group}, mode {mode:04o})"
            )
        }
        Absence::Other => format!("cannot connect to {path}: {source}"),
    }
}

fn problem_text(problem: &Problem) -> &str {
    if problem.detail.is_empty() {
        &problem.title
    } else {
        &problem.detail
    }
}

/// How a change is to be made: the query of `POST /v1/rules` and `PUT /v1/ruleset`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Overrides the refusals that protect the caller.
    pub force: bool,
    /// Says what would happen, and changes nothing.
    pub dry_run: bool,
}

impl Change {
    fn query(self) -> &'static str {
        match (self.force, self.dry_run) {
            (false, false) => "",
            (true, false) => "?force=true",
            (false, true) => "?dry_run=true",
            (true, true) => "?force=true&dry_run=true",
        }
    }
}

/// A caller of one daemon. Makes one connection a request, so a daemon that restarts in between
/// does no harm.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
    ssh_connection: Option<HeaderValue>,
}

impl Client {
    /// A client of the daemon behind the socket at `path`. Nothing is connected yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            ssh_connection: None,
        }
    }

    /// As [`Client::new`], and makes sure that somebody listens.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub async fn connect(path: impl Into<PathBuf>) -> Result<Self, ClientError> {
        let client = Self::new(path);
        client.within("connect", client.stream()).await?;
        Ok(client)
    }

    /// Sends `SSH_CONNECTION`'s value along with every request (see [`SSH_CONNECTION_HEADER`]).
    ///
    /// A value that no header can carry is no value of sshd's either, and is left out.
    #[must_use]
    pub fn with_ssh_connection(mut self, value: &str) -> Self {
        self.ssh_connection = HeaderValue::from_str(value).ok();
        self
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `POST /v1/rules`: adds a rule, or finds it there already.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn add(&self, spec: &RuleSpec, change: Change) -> Result<AddResponse, ClientError> {
        let path = format!("/v1/rules{}", change.query());
        self.ask(Method::POST, &path, Some(spec)).await
    }

    /// `GET /v1/rules`: all rules, by id.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list(&self) -> Result<ListResponse, ClientError> {
        self.ask(Method::GET, "/v1/rules", NOTHING).await
    }

    /// `GET /v1/rules/{id}`: one rule.
    ///
    /// # Errors
    /// [`ClientError`]; an unknown id is a [`ClientError::Problem`] of code `not_found`.
    pub async fn rule(&self, id: &RuleId) -> Result<RuleView, ClientError> {
        // An id's grammar leaves nothing to escape.
        self.ask(Method::GET, &format!("/v1/rules/{id}"), NOTHING)
            .await
    }

    /// `DELETE /v1/rules/{id}`: lifts one rule.
    ///
    /// # Errors
    /// [`ClientError`]; an unknown id is a [`ClientError::Problem`] of code `not_found`.
    pub async fn delete(&self, id: &RuleId) -> Result<DeleteResponse, ClientError> {
        self.ask(Method::DELETE, &format!("/v1/rules/{id}"), NOTHING)
            .await
    }

    /// `DELETE /v1/rules?target=…`: takes exactly this target out of every rule that names it.
    ///
    /// # Errors
    /// [`ClientError`]; a target that no rule names is a [`ClientError::Problem`] of code
    /// `not_found`.
    pub async fn delete_target(&self, target: Target) -> Result<DeleteResponse, ClientError> {
        // ':' and '/' stand for themselves in a query (RFC 3986, 3.4).
        self.ask(
            Method::DELETE,
            &format!("/v1/rules?target={target}"),
            NOTHING,
        )
        .await
    }

    /// `DELETE /v1/rules`: lifts every rule that came over the API; with `all`, the
    /// configuration's too.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn flush(&self, all: bool) -> Result<DeleteResponse, ClientError> {
        let path = if all {
            "/v1/rules?all=true"
        } else {
            "/v1/rules"
        };
        self.ask(Method::DELETE, path, NOTHING).await
    }

    /// `PUT /v1/ruleset`: replaces all rules that came over the API by these, as one change.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn replace(
        &self,
        rules: &RulesetRequest,
        change: Change,
    ) -> Result<RulesetResponse, ClientError> {
        let path = format!("/v1/ruleset{}", change.query());
        self.ask(Method::PUT, &path, Some(rules)).await
    }

    /// `GET /v1/status`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.ask(Method::GET, "/v1/status", NOTHING).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let request = format!("{method} {path}");
        let message = self.message(method, path, body, &request)?;
        let answer = self
            .within(&request, self.exchange(message, &request))
            .await?;
        answer.read(&self.path, &request)
    }

    async fn within<T>(
        &self,
        request: &str,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        tokio::time::timeout(TIMEOUT, work)
            .await
            .unwrap_or_else(|_| {
                Err(ClientError::Timeout {
                    request: request.to_owned(),
                })
            })
    }

    fn message(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        request: &str,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let unwritable = |why: String| ClientError::Unwritable {
            request: request.to_owned(),
            why,
        };
        let mut builder = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(
                USER_AGENT,
                concat!("blocker-client/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(value) = &self.ssh_connection {
            builder = builder.header(SSH_CONNECTION_HEADER, value);
        }
        let bytes = match body {
            None => Bytes::new(),
            Some(body) => {
                builder = builder.header(CONTENT_TYPE, "application/json");
                Bytes::from(serde_json::to_vec(body).map_err(|e| unwritable(e.to_string()))?)
            }
        };
        if bytes.len() > BODY_LIMIT {
            return Err(ClientError::TooLarge { bytes: bytes.len() });
        }
        builder
            .body(Full::new(bytes))
            .map_err(|e| unwritable(e.to_string()))
    }

    async fn exchange(
        &self,
        message: Request<Full<Bytes>>,
        request: &str,
    ) -> Result<Answer, ClientError> {
        let failed = |source: hyper::Error| {
            if source.is_parse() {
                ClientError::NotBlocker {
                    path: self.path.clone(),
                    found: format!("it does not speak HTTP ({source})"),
                }
            } else {
                ClientError::Lost {
                    request: request.to_owned(),
                    source,
                }
            }
        };
        let stream = TokioIo::new(self.stream().await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
            .await
            .map_err(failed)?;
        let answer = async {
            let response = sender.send_request(message).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>((head, body))
        };
        // The connection must be polled for the answer to come; it may end before the answer is
        // read, as the body is buffered by then.
        let (head, body) = match select(Box::pin(answer), connection).await {
            Either::Left((answer, _)) => answer,
            Either::Right((_, answer)) => answer.await,
        }
        .map_err(failed)?;
        let content_type = head.headers.get(CONTENT_TYPE);
        Ok(Answer {
            status: head.status,
            content_type: content_type
                .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
                .unwrap_or_default(),
            body,
        })
    }

    async fn stream(&self) -> Result<UnixStream, ClientError> {
        loop {
            match UnixStream::connect(&self.path).await {
                Ok(stream) => return Ok(stream),
                // connect(2) of a non-blocking Unix socket fails so while the listener's queue is
                // full: many callers at once. The caller's deadline ends this.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(source) => {
                    return Err(ClientError::Unreachable {
                        why: absence(&self.path, &source),
                        path: self.path.clone(),
                        source,
                    });
                }
            }
        }
    }
}

/// A request without a body.
const NOTHING: Option<&()> = None;

struct Answer {
    status: StatusCode,
    content_type: String,
    body: Bytes,
}

impl Answer {
    fn read<T: DeserializeOwned>(&self, path: &Path, request: &str) -> Result<T, ClientError> {
        let garbled = |source| ClientError::Garbled {
            request: request.to_owned(),
            source,
        };
        let media_type = self.content_type.split(';').next().unwrap_or_default();
        match (self.status.is_success(), media_type.trim()) {
            (true, "application/json") => serde_json::from_slice(&self.body).map_err(garbled),
            (false, "application/problem+json") => {
                let problem = serde_json::from_slice(&self.body).map_err(garbled)?;
                Err(ClientError::Problem(problem))
            }
            (_, media_type) => {
                let what = match media_type {
                    "" => "a body of no named type",
                    named => named,
                };
                Err(ClientError::NotBlocker {
                    path: path.to_owned(),
                    found: format!("it answered {request} with HTTP {} and {what}", self.status),
                })
            }
        }
    }
}

/// What a failed connect(2) means here.
fn absence(path: &Path, error: &io::Error) -> Absence {
    let metadata = std::fs::metadata(path).ok();
    let is_socket = metadata.as_ref().is_some_and(|m| m.file_type().is_socket());
    match error.kind() {
        io::ErrorKind::NotFound => Absence::NoSocket,
        io::ErrorKind::PermissionDenied => denied(path),
        // The kernel refuses so for what is not a socket as well (`unix_find_bsd`).
        io::ErrorKind::ConnectionRefused if is_socket => Absence::Stale,
        io::ErrorKind::ConnectionRefused if metadata.is_some() => Absence::NotASocket,
        _ => Absence::Other,
    }
}

/// Who keeps the caller out: the last part of the path that can still be looked at. A directory
/// that may not be searched hides what is in it, but not itself.
fn denied(path: &Path) -> Absence {
    let mut visible = path
        .ancestors()
        .filter_map(|at| Some((at, std::fs::metadata(at).ok()?)));
    match visible.next() {
        Some((at, metadata)) => Absence::Denied {
            at: at.to_owned(),
            group: group_name(metadata.gid()),
            mode: metadata.mode() & 0o7777,
            // A directory is searched, a socket written to (unix(7)).
            group_may: metadata.mode() & if metadata.is_dir() { 0o010 } else { 0o020 } != 0,
        },
        None => Absence::Other,
    }
}

fn group_name(gid: u32) -> String {
    match nix::unistd::Group::from_gid(gid.into()) {
        Ok(Some(group)) => group.name,
        _ => gid.to_string(),
    }
}
