//! Bodies of requests as they arrive: how long that may take, and how many large ones are in memory at
//! once. [`BODY_LIMIT`](super::BODY_LIMIT) bounds their size.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::connections::Arrived;

/// How long to wait for the next part of a body.
const STALL: Duration = Duration::from_secs(5);
/// How long to wait for the whole body.
const WHOLE: Duration = Duration::from_secs(60);
/// A body of more bytes than this is large.
const LARGE: usize = 1024 * 1024;
/// Large bodies that are read at once; others wait.
const LARGE_AT_ONCE: usize = 4;

/// Why a body did not arrive.
#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error("nothing of the request's body came for {} s", STALL.as_secs())]
    Stalled,
    #[error("the request's body took more than {} s to come", WHOLE.as_secs())]
    Late,
    #[error("the request's body did not come whole: {0}")]
    Broken(#[from] hyper::Error),
}

/// Bounds the bodies that arrive at a socket.
#[derive(Debug, Clone)]
pub(super) struct Arrivals {
    large: Arc<Semaphore>,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self {
            large: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
        }
    }
}

/// A body that is arriving.
struct Arrival {
    incoming: Incoming,
    received: usize,
    until: Instant,
    large: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
    /// Dropped with the rest, when the body is complete or abandoned.
    _arrived: Arrived,
}

impl Arrivals {
    /// A body within these limits. `arrived` is dropped once it is complete or abandoned.
    pub(super) fn body(&self, incoming: Incoming, arrived: Arrived) -> Body {
        if incoming.is_end_stream() {
            return Body::empty();
        }
        let arrival = Arrival {
            incoming,
            received: 0,
            until: Instant::now() + WHOLE,
            large: Arc::clone(&self.large),
            permit: None,
            _arrived: arrived,
        };
        Body::from_stream(stream::try_unfold(arrival, Arrival::next))
    }
}

impl Arrival {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, Missing> {
        if self.received > LARGE && self.permit.is_none() {
            let permit = timeout_at(self.until, Arc::clone(&self.large).acquire_owned());
            // Fails only for a closed semaphore, which this one never is.
            self.permit = permit.await.map_err(|_| Missing::Late)?.ok();
        }
        loop {
            let frame = timeout_at(self.until, timeout(STALL, self.incoming.frame()));
            let frame = frame
                .await
                .map_err(|_| Missing::Late)?
                .map_err(|_| Missing::Stalled)?;
            let Some(frame) = frame.transpose()? else {
                return Ok(None);
            };
            // Trailers are ignored.
            if let Ok(bytes) = frame.into_data() {
                self.received += bytes.len();
                return Ok(Some((bytes, self)));
            }
        }
    }
}
