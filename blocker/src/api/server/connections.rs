//! The control socket's connections: how many there are at once, how long each may take, and which
//! goes when another one wants its place.
//!
//! A client is bounded in what it can cost others, whether it stalls or floods: a request that does
//! not come is waited for so long; and where all places are taken, a newcomer gets that of whoever
//! is only connected, or does not read what it asked for. A request that has arrived is never cut
//! off for a newcomer.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::connect_info::ConnectInfo;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;

use super::access::Peer;
use super::body::Arrivals;

/// Connections at once.
pub(super) const CONNECTIONS: usize = 256;
/// How long a connection may take to send a request's header, the next one's included.
const HEADER: Duration = Duration::from_secs(30);
/// How long a client may leave unread what it was sent before a newcomer may get its place.
const UNREAD: Duration = Duration::from_secs(5);
/// How long to wait when no connection can be accepted, as when descriptors have run out: the first
/// where some were closed, which takes but a moment.
const RESPITE: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(100)];
/// How long fewer connections are served after that.
const FEWER: Duration = Duration::from_secs(60);

/// Serves until `shutdown` is ready, then answers the requests that have arrived.
pub(super) async fn serve(
    listener: UnixListener,
    router: Router,
    shutdown: impl Future<Output = ()>,
) {
    let table = Arc::new(Table::default());
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
                let closed = table.serve_fewer(&error);
                tokio::select! {
                    () = tokio::time::sleep(RESPITE[usize::from(closed == 0)]) => continue,
                    () = &mut shutdown => break,
                }
            }
        };
        let peer = Peer::of(&stream);
        let Some(place) = Place::take(&table) else {
            tracing::warn!(
                uid = peer.uid,
                pid = peer.pid,
                "control socket: a connection was refused: {} are being served",
                table.most()
            );
            refuse(&stream, table.most());
            continue;
        };
        let connection = Arc::clone(&place.connection);
        let answering = {
            let (connection, arrivals, service) =
                (Arc::clone(&connection), arrivals.clone(), service.clone());
            service_fn(move |request| answer(request, peer, &connection, &arrivals, &service))
        };
        let stream = Watched {
            stream,
            connection: Arc::clone(&connection),
        };
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER)
            .serve_connection(TokioIo::new(stream), answering);
        let served = graceful.watch(served);
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                served = served => if let Err(error) = served {
                    tracing::debug!("control socket: a connection ended early: {error}");
                },
                () = connection.gives_way.notified() => {
                    tracing::debug!("control socket: a connection gave way to another");
                }
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// Answers a request, and keeps note of how far it is.
fn answer(
    request: Request<Incoming>,
    peer: Peer,
    connection: &Arc<Connection>,
    arrivals: &Arrivals,
    service: &TowerToHyperService<Router>,
) -> impl Future<Output = Result<Response, Infallible>> + Send + use<> {
    let (mut parts, incoming) = request.into_parts();
    parts.extensions.insert(ConnectInfo(peer));
    let arrived = Arrived(Arc::clone(connection));
    let body = arrivals.body(incoming, arrived);
    let answered = service.call(Request::from_parts(parts, body));
    let answering = Answering(Arc::clone(connection));
    async move {
        let response = answered.await?;
        // Until the last of it was taken: it may be a stream.
        Ok(response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _answering = &answering;
                frame
            }))
        }))
    }
}

/// Says that there is no place.
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
    // What a socket's buffer has no room for, nobody reads.
    let _sent = stream.try_write(response.as_bytes());
}

/// How far a connection is.
#[derive(Debug, Clone, Copy)]
struct Stage {
    /// Whether a request has arrived and is not answered.
    answering: bool,
    /// When that began to be so, or not to be.
    since: Instant,
    /// Since when the client does not read.
    unread: Option<Instant>,
}

pub(super) struct Connection {
    stage: Mutex<Stage>,
    gives_way: Notify,
}

impl Connection {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, answering: bool) {
        *self.stage() = Stage {
            answering,
            since: Instant::now(),
            unread: None,
        };
    }

    /// Since when it could give way, if it could; those that only wait go first.
    fn could_give_way(&self) -> Option<(bool, Instant)> {
        let stage = *self.stage();
        match stage.unread {
            _ if !stage.answering => Some((false, stage.since)),
            Some(unread) if unread.elapsed() >= UNREAD => Some((true, unread)),
            _ => None,
        }
    }
}

/// That a request has arrived, once this is dropped.
pub(super) struct Arrived(Arc<Connection>);

impl Drop for Arrived {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

/// That a request is answered, once this is dropped.
struct Answering(Arc<Connection>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

#[derive(Default)]
struct Table {
    connections: Mutex<BTreeMap<u64, Arc<Connection>>>,
    last: AtomicU64,
    /// How many may be served only, and since when, where the process had no room for more.
    fewer: Mutex<Option<(usize, Instant)>>,
}

impl Table {
    fn connections(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Connection>>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How many may be served at once now.
    fn most(&self) -> usize {
        match *self.fewer() {
            Some((most, since)) if since.elapsed() < FEWER => most,
            _ => CONNECTIONS,
        }
    }

    fn fewer(&self) -> MutexGuard<'_, Option<(usize, Instant)>> {
        self.fewer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has half as many connections as there are served from now on, so that what they ask for finds
    /// the descriptors that it takes; says how many were closed.
    fn serve_fewer(&self, why: &std::io::Error) -> usize {
        let most = (self.connections().len() / 2).max(2);
        let known = self.most();
        *self.fewer() = Some((most.min(known), Instant::now()));
        if most < known {
            tracing::warn!(
                "control socket: no connection can be accepted: {why}: {most} are served at once \
                 for {} s",
                FEWER.as_secs()
            );
        }
        let mut closed = 0;
        while self.connections().len() > most && self.make_room() {
            closed += 1;
        }
        closed
    }

    /// Ends the connection that can be spared most; says whether there is one.
    fn make_room(&self) -> bool {
        let mut connections = self.connections();
        let spared = connections
            .iter()
            .filter_map(|(number, connection)| Some((connection.could_give_way()?, *number)))
            .min();
        let Some((_, number)) = spared else {
            return false;
        };
        if let Some(connection) = connections.remove(&number) {
            connection.gives_way.notify_one();
        }
        true
    }
}

/// One of the places; free again when dropped.
struct Place {
    table: Arc<Table>,
    number: u64,
    connection: Arc<Connection>,
}

impl Place {
    /// Takes a place, if need be somebody's who can be spared.
    fn take(table: &Arc<Table>) -> Option<Self> {
        let most = table.most();
        while table.connections().len() >= most {
            if !table.make_room() {
                return None;
            }
        }
        let number = table.last.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection {
            stage: Mutex::new(Stage {
                answering: false,
                since: Instant::now(),
                unread: None,
            }),
            gives_way: Notify::new(),
        });
        table.connections().insert(number, Arc::clone(&connection));
        Some(Self {
            table: Arc::clone(table),
            number,
            connection,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.table.connections().remove(&self.number);
    }
}

/// A stream that notes whether its client reads.
struct Watched {
    stream: UnixStream,
    connection: Arc<Connection>,
}

impl Watched {
    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        let mut stage = self.connection.stage();
        if written.is_ready() {
            stage.unread = None;
        } else {
            stage.unread.get_or_insert_with(Instant::now);
        }
        drop(stage);
        written
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
