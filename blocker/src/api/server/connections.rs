//! The control socket's connections: how many are served at once, and which one ends when a new
//! client needs its slot.
//!
//! A semaphore, a header timeout and a 503 are not enough. Clients that stall within a body, or do not
//! read a long answer, would fill the semaphore for longer than others can wait; and out of file
//! descriptors, a new client can only be accepted after another connection is closed. So each
//! connection notes since when it waits for its client, and a new client takes the slot of the one
//! that has waited longest. A connection whose request is being worked on never ends that way.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::connect_info::ConnectInfo;
use axum::response::Response;
use hyper::Request;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::AbortHandle;

use super::access::Peer;
use super::body::Arrivals;

/// Connections at once.
const CONNECTIONS: usize = 256;
/// How long a client may take to send a request's header, the next one's included.
const HEADER: Duration = Duration::from_secs(30);
/// How long a client may leave an answer unread before its slot may be taken.
const UNREAD: Duration = Duration::from_secs(5);
/// Bytes that a Unix socket's buffer surely takes, whether or not the client reads.
const BUFFERED: usize = 64 << 10;
/// How long to wait when no connection can be accepted: after some were closed, and otherwise.
const RESPITE: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(100)];
/// How long fewer connections are served after that.
const FEWER: Duration = Duration::from_secs(60);

/// Serves until `shutdown` is ready, then answers the requests that have arrived.
pub(super) async fn serve(
    listener: UnixListener,
    router: Router,
    shutdown: impl Future<Output = ()>,
) {
    let mut slots = Slots::default();
    let arrivals = Arrivals::default();
    let graceful = GracefulShutdown::new();
    let service = TowerToHyperService::new(router);
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                let closed = slots.serve_fewer(&error);
                tokio::select! {
                    () = tokio::time::sleep(RESPITE[usize::from(!closed)]) => continue,
                    () = &mut shutdown => break,
                }
            }
        };
        let peer = Peer::of(&stream);
        let most = slots.most();
        if !slots.shrink_to(most - 1) {
            tracing::warn!(
                uid = peer.uid,
                pid = peer.pid,
                "control socket: a connection was refused: {most} are being served"
            );
            refuse(&stream, most);
            continue;
        }
        let waiting = Arc::new(Waiting::new());
        let answering = {
            let (waiting, arrivals, service) =
                (Arc::clone(&waiting), arrivals.clone(), service.clone());
            service_fn(move |request| answer(request, peer, &waiting, &arrivals, &service))
        };
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER)
            .serve_connection(TokioIo::new(stream), answering);
        let served = graceful.watch(served);
        let task = tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::debug!("control socket: a connection ended early: {error}");
            }
        });
        slots.taken.push((waiting, task.abort_handle()));
    }
    drop(listener);
    graceful.shutdown().await;
}

/// Answers a request, noting when the connection waits for its client.
fn answer(
    request: Request<Incoming>,
    peer: Peer,
    waiting: &Arc<Waiting>,
    arrivals: &Arrivals,
    service: &TowerToHyperService<Router>,
) -> impl Future<Output = Result<Response, Infallible>> + Send + use<> {
    let (mut parts, incoming) = request.into_parts();
    parts.extensions.insert(ConnectInfo(peer));
    let body = arrivals.body(incoming, Arrived(Arc::clone(waiting)));
    let answered = service.call(Request::from_parts(parts, body));
    let answering = Answering {
        waiting: Arc::clone(waiting),
        bytes: 0,
    };
    async move {
        let body = |body| Body::new(Answer { body, answering });
        Ok(answered.await?.map(body))
    }
}

/// Says that all slots are taken.
fn refuse(stream: &UnixStream, most: usize) {
    let detail = format!(
        "{most} connections are being served, as many as may be at once: try again, or close \
         some (`ss -xp` shows whose they are)"
    );
    let problem = super::failure::Failure::busy(detail).into_problem();
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let response = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // It fits into the empty buffer of a new socket; a client that is gone needs no answer.
    let _sent = stream.try_write(response.as_bytes());
}

/// From when on a connection may end for a new client; `None` while its request is worked on.
pub(super) struct Waiting(Mutex<Option<Instant>>);

impl Waiting {
    fn new() -> Self {
        Self(Mutex::new(Some(Instant::now())))
    }

    fn set(&self, from: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = from;
    }

    fn from(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dropped when a request has arrived, or will not.
pub(super) struct Arrived(Arc<Waiting>);

impl Drop for Arrived {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

/// Dropped when a request is answered, or will not be.
struct Answering {
    waiting: Arc<Waiting>,
    /// How long the answer is so far.
    bytes: usize,
}

impl Drop for Answering {
    fn drop(&mut self) {
        let unread = self.bytes > BUFFERED;
        let grace = if unread { UNREAD } else { Duration::ZERO };
        self.waiting.set(Some(Instant::now() + grace));
    }
}

/// The body of an answer. The next part is asked for when there is room for it, that is, when the client
/// has read enough of the parts before.
struct Answer {
    body: Body,
    answering: Answering,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let from = polled.is_ready().then(|| Instant::now() + UNREAD);
        self.answering.waiting.set(from);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.answering.bytes += frame.data_ref().map_or(0, Bytes::len);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The connections that are served.
#[derive(Default)]
struct Slots {
    taken: Vec<(Arc<Waiting>, AbortHandle)>,
    /// How many may be served, and until when, since the process had no descriptors for more.
    fewer: Option<(usize, Instant)>,
}

impl Slots {
    /// How many may be served at once now.
    fn most(&self) -> usize {
        let fewer = self.fewer.filter(|(_, until)| Instant::now() < *until);
        fewer.map_or(CONNECTIONS, |(most, _)| most)
    }

    /// Ends connections until no more than `count` are left, those first that have waited longest for
    /// their clients. Returns whether that succeeded.
    fn shrink_to(&mut self, count: usize) -> bool {
        self.taken.retain(|(_, task)| !task.is_finished());
        while self.taken.len() > count {
            let now = Instant::now();
            let waiting = self.taken.iter().enumerate();
            let from = waiting.filter_map(|(n, (waiting, _))| Some((waiting.from()?, n)));
            let Some((_, longest)) = from.filter(|(from, _)| *from <= now).min() else {
                return false;
            };
            self.taken.swap_remove(longest).1.abort();
            tracing::debug!("control socket: a connection was closed for a new one");
        }
        true
    }

    /// Halves how many connections are served, so that their requests find descriptors to use. Returns
    /// whether any were closed.
    fn serve_fewer(&mut self, why: &io::Error) -> bool {
        self.taken.retain(|(_, task)| !task.is_finished());
        let (known, before) = (self.most(), self.taken.len());
        let most = (before / 2).max(2).min(known);
        if most < known {
            tracing::warn!(
                "control socket: no connection can be accepted: {why}: {most} are served at once \
                 for {} s",
                FEWER.as_secs()
            );
        }
        self.fewer = Some((most, Instant::now() + FEWER));
        self.shrink_to(most);
        self.taken.len() < before
    }
}
