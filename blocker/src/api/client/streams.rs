//! Streams: answers that last until one side ends them.

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::CONTENT_TYPE;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

use super::{Answer, Client, ClientError};
use crate::wire::event::Event;
use crate::wire::{Held, LeaseLine};

/// Lines of JSON, as they arrive.
struct Lines {
    body: Incoming,
    /// Bytes of lines that were read but not returned.
    read: BytesMut,
    request: String,
    connection: JoinHandle<()>,
    /// Ends the connection when dropped.
    _sender: SendRequest<Full<Bytes>>,
}

impl Lines {
    async fn open(
        client: &Client,
        message: Request<Full<Bytes>>,
        request: &str,
    ) -> Result<Self, ClientError> {
        let failed = |source| client.failed(request, source);
        let stream = TokioIo::new(client.stream().await?);
        let (mut sender, connection) = handshake(stream).await.map_err(failed)?;
        let connection = tokio::spawn(async {
            // An error is reported to the reader of the body.
            let _ended = connection.await;
        });
        let response = sender.send_request(message).await.map_err(failed)?;
        let (head, body) = response.into_parts();
        let content_type = head.headers.get(CONTENT_TYPE);
        let content_type = content_type
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .unwrap_or_default();
        if !head.status.is_success() || content_type != "application/x-ndjson" {
            let body = body.collect().await.map_err(failed)?.to_bytes();
            let answer = Answer {
                status: head.status,
                content_type,
                body,
            };
            let found = answer.read::<serde_json::Value>(&client.path, request)?;
            return Err(ClientError::NotBlocker {
                path: client.path.clone(),
                found: format!("it answered {request} with {found}"),
            });
        }
        Ok(Self {
            body,
            read: BytesMut::new(),
            request: request.to_owned(),
            connection,
            _sender: sender,
        })
    }

    /// The next line, without its end; `None` after the last.
    async fn line(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            if let Some(line) = self.line_read() {
                return Ok(Some(line));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
                Some(Err(source)) => {
                    return Err(ClientError::Lost {
                        request: self.request.clone(),
                        source,
                    });
                }
                None => return Ok(None),
            }
        }
    }

    /// The next line, if it has arrived.
    fn line_read(&mut self) -> Option<Bytes> {
        let end = self.read.iter().position(|byte| *byte == b'\n')?;
        let line = self.read.split_to(end).freeze();
        self.read.advance(1);
        Some(line)
    }

    fn parse<T: DeserializeOwned>(&self, line: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(line).map_err(|source| ClientError::Garbled {
            request: self.request.clone(),
            source,
        })
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Events, from the time of the request on.
pub struct EventStream(Lines);

impl EventStream {
    pub(super) async fn open(
        client: &Client,
        message: Request<Full<Bytes>>,
        request: &str,
    ) -> Result<Self, ClientError> {
        Lines::open(client, message, request).await.map(Self)
    }

    /// The next event, as its line of JSON without the newline. `None` once the daemon stops.
    ///
    /// # Errors
    /// [`ClientError::Lost`] if the connection broke.
    pub async fn line(&mut self) -> Result<Option<Bytes>, ClientError> {
        self.0.line().await
    }

    /// The next event, if it has arrived.
    pub fn line_read(&mut self) -> Option<Bytes> {
        self.0.line_read()
    }

    /// Reads a line.
    ///
    /// # Errors
    /// [`ClientError::Garbled`] if it is not in the form that this client knows.
    pub fn event(&self, line: &[u8]) -> Result<Event, ClientError> {
        self.0.parse(line)
    }
}

/// Rules that are in force until this is dropped.
pub struct Lease {
    lines: Lines,
    held: Held,
}

impl Lease {
    pub(super) async fn open(
        client: &Client,
        message: Request<Full<Bytes>>,
        request: &str,
    ) -> Result<Self, ClientError> {
        let mut lines = Lines::open(client, message, request).await?;
        let first = match lines.line().await? {
            Some(first) => lines.parse(&first)?,
            None => LeaseLine::Ended,
        };
        match first {
            LeaseLine::Held(held) => Ok(Self { lines, held }),
            other => Err(ClientError::NotBlocker {
                path: client.path.clone(),
                found: format!("it answered {request} with {other:?}"),
            }),
        }
    }

    /// The rules, as the daemon put them in force.
    #[must_use]
    pub const fn held(&self) -> &Held {
        &self.held
    }

    /// Waits until the rules are no longer in force: somebody lifted them, their deadline passed, or
    /// the daemon stops.
    ///
    /// # Errors
    /// [`ClientError::Lost`] if the connection broke: the daemon is gone, and the datapath ends the
    /// rules within half a minute.
    pub async fn ended(&mut self) -> Result<(), ClientError> {
        while let Some(line) = self.lines.line().await? {
            if self.lines.parse::<LeaseLine>(&line)? == LeaseLine::Ended {
                break;
            }
        }
        Ok(())
    }
}
