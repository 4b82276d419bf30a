//! `/metrics` over TCP, for scrapers that cannot use a Unix socket. Nothing else is served there.
//!
//! Clients are not authenticated, so their cost is bounded: the number of connections, the time for a
//! request to arrive, and one scrape at a time.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use super::Metrics;

/// Connections that are served at once; others wait to be accepted.
const CONNECTIONS: usize = 32;
/// How long a connection may take to send a request, the next one included.
const REQUEST: Duration = Duration::from_secs(30);
/// How long to wait when no connection can be accepted, as when descriptors have run out.
const RESPITE: Duration = Duration::from_secs(1);

/// Listening on the configured address failed.
#[derive(Debug, thiserror::Error)]
#[error("metrics.listen {address}: {source}{}", hint(.source))]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// Why not.
    pub source: io::Error,
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => ": stop what listens there (`ss -ltnp`), or set another port",
        _ => "",
    }
}

/// A bound address.
pub struct Listener(TcpListener);

/// Listens on an address, which the host may get later. To be called within a runtime.
///
/// # Errors
/// If the port is taken.
pub fn bind(address: SocketAddr) -> Result<Listener, BindError> {
    let listener = listen(address).map_err(|source| BindError { address, source })?;
    if !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "metrics are served to whoever reaches this address: they name rules and devices; \
             127.0.0.1 keeps them on this host"
        );
    }
    Ok(Listener(listener))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // Connections of the last run in TIME_WAIT must not prevent a restart.
    socket.set_reuseaddr(true)?;
    // The daemon starts before the network, so the host may get the address later (ip(7), IP_FREEBIND,
    // which applies to IPv6, too).
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    socket.bind(address)?;
    socket.listen(CONNECTIONS as u32)
}

impl Listener {
    /// Serves until it is dropped.
    pub async fn serve(self, metrics: Metrics) -> Infallible {
        let router = Router::new()
            .route("/metrics", get(scrape))
            .fallback(elsewhere)
            .with_state(metrics);
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let place = Arc::clone(&room).acquire_owned().await;
            match self.0.accept().await {
                Ok((stream, _)) => {
                    let router = router.clone();
                    tokio::spawn(async move {
                        let _place = place;
                        serve(stream, router).await;
                    });
                }
                Err(error) => {
                    tracing::warn!("metrics: no connection can be accepted: {error}");
                    tokio::time::sleep(RESPITE).await;
                }
            }
        }
    }
}

async fn serve(stream: TcpStream, router: Router) {
    let service = TowerToHyperService::new(router);
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!("metrics: a connection ended early: {error}");
    }
}

async fn scrape(State(metrics): State<Metrics>, headers: HeaderMap) -> Response {
    match metrics.scrape(&headers).await {
        Ok(scrape) => ([(header::CONTENT_TYPE, scrape.content_type)], scrape.body).into_response(),
        Err(error) => {
            tracing::error!("metrics cannot be read: {error}");
            let text = format!("metrics cannot be read: {error}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

async fn elsewhere() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "only /metrics is here\n")
}
