//! A client of the control socket: one typed method per endpoint.
//!
//! Owns the connection, the deadline of a request and the classification of errors. Does not know flags,
//! exit codes or rendering (`blockctl`), nor what an answer means.
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

mod error;
mod streams;

use std::future::Future;
use std::io;
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

pub use self::error::{Absence, ClientError};
pub use self::streams::{EventStream, Lease};
use crate::rule::{RuleId, RuleSpec, Target};
use crate::wire::{
    AddResponse, BODY_LIMIT, ConfirmResponse, DeleteResponse, EventsRequest, ExplainRequest,
    ExplainResponse, FlowsRequest, FlowsResponse, LeaseRequest, ListResponse, RETURN_MINIMAL,
    RuleView, RulesetRequest, RulesetResponse, SSH_CONNECTION_HEADER, Stats, Status,
};

/// How long a request may take in total. A teardown of ten thousands of flows takes seconds; a request
/// that takes longer than this hangs.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// How a change is to be made: the query of `POST /v1/rules` and `PUT /v1/ruleset`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    /// Overrides the refusals that protect the caller.
    pub force: bool,
    /// Says what would happen, and changes nothing.
    pub dry_run: bool,
    /// Asks for only the first few of the rule's targets in the answer to `POST /v1/rules`
    /// ([`AddResponse::targets_total`]).
    pub few_targets: bool,
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

/// A client of one daemon. Makes one connection per request, so the daemon may restart in between.
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

    /// As [`Client::new`], and checks that a daemon listens.
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
    /// A value that is invalid in a header is not from sshd, and is left out.
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

    /// `POST /v1/rules`: adds a rule, if it is not in force already.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn add(&self, spec: &RuleSpec, change: Change) -> Result<AddResponse, ClientError> {
        let path = format!("/v1/rules{}", change.query());
        let request = format!("POST {path}");
        let mut message = self.message(Method::POST, &path, Some(spec), &request)?;
        if change.few_targets {
            let preference = HeaderValue::from_static(RETURN_MINIMAL);
            message.headers_mut().insert("prefer", preference);
        }
        self.answer(message, &request).await
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
        // An id has no characters that need escaping.
        self.ask(Method::GET, &format!("/v1/rules/{id}"), NOTHING)
            .await
    }

    /// `POST /v1/rules/{id}/confirm`: confirms a rule, so that it does not end early.
    ///
    /// # Errors
    /// [`ClientError`]; an unknown id is a [`ClientError::Problem`] of code `not_found`.
    pub async fn confirm(&self, id: &RuleId) -> Result<ConfirmResponse, ClientError> {
        self.ask(Method::POST, &format!("/v1/rules/{id}/confirm"), NOTHING)
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

    /// `GET /v1/stats`: totals of rules and hooks.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn stats(&self) -> Result<Stats, ClientError> {
        self.ask(Method::GET, "/v1/stats", NOTHING).await
    }

    /// `GET /v1/flows`: the flows that rules decided.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn flows(&self, request: &FlowsRequest) -> Result<FlowsResponse, ClientError> {
        let path = query("/v1/flows", request)?;
        self.ask(Method::GET, &path, NOTHING).await
    }

    /// `GET /v1/events`: events from now on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn events(&self, request: &EventsRequest) -> Result<EventStream, ClientError> {
        let path = query("/v1/events", request)?;
        let request = format!("GET {path}");
        let message = self.message(Method::GET, &path, NOTHING, &request)?;
        self.within(&request, EventStream::open(self, message, &request))
            .await
    }

    /// `POST /v1/leases`: puts rules in force until the returned lease is dropped.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn hold(&self, rules: &LeaseRequest, force: bool) -> Result<Lease, ClientError> {
        let path = if force {
            "/v1/leases?force=true"
        } else {
            "/v1/leases"
        };
        let request = format!("POST {path}");
        let message = self.message(Method::POST, path, Some(rules), &request)?;
        self.within(&request, Lease::open(self, message, &request))
            .await
    }

    /// `POST /v1/explain`: what happens to a packet. Changes nothing.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn explain(&self, packet: &ExplainRequest) -> Result<ExplainResponse, ClientError> {
        self.ask(Method::POST, "/v1/explain", Some(packet)).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let request = format!("{method} {path}");
        let message = self.message(method, path, body, &request)?;
        self.answer(message, &request).await
    }

    async fn answer<T: DeserializeOwned>(
        &self,
        message: Request<Full<Bytes>>,
        request: &str,
    ) -> Result<T, ClientError> {
        let answer = self
            .within(request, self.exchange(message, request))
            .await?;
        answer.read(&self.path, request)
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
        let failed = |source| self.failed(request, source);
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
        // The answer arrives only while the connection is polled. The connection may end before the
        // answer is read, because the body is buffered.
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

    fn failed(&self, request: &str, source: hyper::Error) -> ClientError {
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
    }

    async fn stream(&self) -> Result<UnixStream, ClientError> {
        loop {
            match UnixStream::connect(&self.path).await {
                Ok(stream) => return Ok(stream),
                // connect(2) of a non-blocking Unix socket fails with EAGAIN while the listener's queue
                // is full. The request's deadline ends the retries.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(source) => {
                    return Err(ClientError::Unreachable {
                        why: Absence::of(&self.path, &source),
                        path: self.path.clone(),
                        source,
                    });
                }
            }
        }
    }
}

/// A path with a query.
fn query(path: &str, request: &impl Serialize) -> Result<String, ClientError> {
    let query = serde_urlencoded::to_string(request).map_err(|error| ClientError::Unwritable {
        request: format!("GET {path}"),
        why: error.to_string(),
    })?;
    Ok(format!("{path}?{query}"))
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept, bind, listen, socket,
    };

    use super::*;

    #[test]
    fn the_query_says_how() {
        let query = |force, dry_run| {
            let change = Change {
                force,
                dry_run,
                ..Change::default()
            };
            change.query()
        };
        assert_eq!(query(false, false), "");
        assert_eq!(query(true, false), "?force=true");
        assert_eq!(query(false, true), "?dry_run=true");
        assert_eq!(query(true, true), "?force=true&dry_run=true");
    }

    #[test]
    fn a_query_reads_as_what_was_asked() {
        let flows = FlowsRequest {
            rule: vec!["dev01".parse().unwrap(), "b.c".parse().unwrap()],
            remote: vec![
                "2001:db8::/32".parse().unwrap(),
                "10.0.0.1".parse().unwrap(),
            ],
            protocol: "icmp".parse().unwrap(),
            limit: 7,
            ..FlowsRequest::default()
        };
        let events = EventsRequest {
            kind: vec!["packet".parse().unwrap(), "lost".parse().unwrap()],
            verdict: vec!["reset".parse().unwrap()],
            protocol: "47".parse().unwrap(),
            ..EventsRequest::default()
        };
        let text = query("/v1/flows", &flows).unwrap();
        let read: FlowsRequest =
            serde_urlencoded::from_str(text.split_once('?').unwrap().1).unwrap();
        assert_eq!(read, flows, "{text}");
        let text = query("/v1/events", &events).unwrap();
        let read: EventsRequest =
            serde_urlencoded::from_str(text.split_once('?').unwrap().1).unwrap();
        assert_eq!(read, events, "{text}");
        let nothing: FlowsRequest = serde_urlencoded::from_str("").unwrap();
        assert_eq!(nothing, FlowsRequest::default());
    }

    #[tokio::test]
    async fn what_the_daemon_would_not_read_is_not_sent() {
        let rules = RulesetRequest {
            rules: vec![RuleSpec {
                comment: Some("x".repeat(BODY_LIMIT)),
                ..RuleSpec::default()
            }],
        };
        // No socket either: the size is looked at first.
        let client = Client::new("/nonexistent.sock");
        let error = client.replace(&rules, Change::default()).await.unwrap_err();
        assert!(matches!(error, ClientError::TooLarge { bytes } if bytes > BODY_LIMIT));
    }

    #[tokio::test]
    async fn connect_fails_where_nobody_is() {
        let error = Client::connect("/nonexistent.sock").await.unwrap_err();
        let ClientError::Unreachable { why, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(why, Absence::NoSocket);
    }

    #[tokio::test]
    async fn a_full_queue_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("full.sock");
        let listener = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::empty(),
            None,
        )
        .unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = UnixStream::connect(&path).await {
            waiting.push(stream);
        }
        let asking = tokio::spawn(Client::connect(path));
        tokio::task::yield_now().await;
        assert!(!asking.is_finished(), "it waits while the queue is full");
        let accepted = accept(listener.as_raw_fd()).unwrap();
        asking.await.unwrap().unwrap();
        nix::unistd::close(accepted).unwrap();
    }
}
