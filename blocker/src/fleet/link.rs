//! Connections to etcd: certificates, time limits, and errors that say what was tried.
//!
//! A connection is to one member. The client library can spread requests over all members, but a watch
//! depends on one; with one connection for everything, a dead member is replaced as a whole.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error as EtcdError, Identity, TlsOptions};

use super::form::{Fleet, Tls};

/// The time limit of a connection attempt.
const CONNECT: Duration = Duration::from_secs(2);
/// The time limit of an answer.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// The largest answer, in bytes.
pub(super) const LARGEST: usize = 256 << 20;

/// Why a request to etcd failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A file that the configuration names cannot be read.
    #[error("cannot read {} ({what}): {source}", path.display())]
    File {
        /// What it is.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// etcd answered with an error, or the connection failed.
    #[error("{what} at {endpoint}: {}", reason(.source))]
    Etcd {
        /// What was tried.
        what: &'static str,
        /// With which member.
        endpoint: String,
        /// Why it failed.
        source: Box<EtcdError>,
    },
    /// There was no answer in time.
    #[error("{what} at {endpoint}: no answer within {} s", within.as_secs())]
    Silent {
        /// What was tried.
        what: &'static str,
        /// With which member.
        endpoint: String,
        /// The time limit.
        within: Duration,
    },
    /// The member ended a stream.
    #[error("{endpoint} ended the watch: {why}")]
    Ended {
        /// Which member.
        endpoint: String,
        /// Its reason.
        why: String,
    },
    /// Changes that were not received yet are compacted away: all rules must be listed again.
    #[error("etcd compacted its history up to revision {revision} before this host had read it")]
    Compacted {
        /// The oldest revision that is left.
        revision: i64,
    },
}

impl LinkError {
    /// Whether etcd denied permission.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        // gRPC's PERMISSION_DENIED and UNAUTHENTICATED.
        matches!(self.code(), Some(7 | 16))
    }

    /// The gRPC status code, if etcd gave one.
    fn code(&self) -> Option<i32> {
        match self {
            Self::Etcd { source, .. } => match &**source {
                EtcdError::GRpcStatus(status) => Some(i32::from(status.code())),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The error of etcd or the transport, with its causes.
fn reason(error: &EtcdError) -> String {
    let chain = |error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let more = error.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            cause = error.source();
        }
        text
    };
    match error {
        EtcdError::GRpcStatus(status) => {
            let mut text = status.message().to_owned();
            if let Some(source) = status.source() {
                let more = chain(source);
                if !text.contains(&more) {
                    text = format!("{text}: {more}");
                }
            }
            text
        }
        EtcdError::TransportError(error) => chain(error),
        EtcdError::IoError(error) => chain(error),
        other => other.to_string(),
    }
}

/// A connection to one member.
#[derive(Clone)]
pub struct Link {
    /// The member.
    pub endpoint: String,
    /// The library's client.
    pub client: Client,
}

impl Link {
    /// Connects to a member.
    ///
    /// # Errors
    /// A file cannot be read, or the connection fails.
    pub async fn open(fleet: &Fleet, endpoint: &str) -> Result<Self, LinkError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(tls) = &fleet.tls {
            options = options.with_tls(certificates(tls)?);
        }
        if let (Some(user), Some(path)) = (&fleet.user, &fleet.password_file) {
            let password = String::from_utf8_lossy(&read("password_file", path)?)
                .trim_end_matches(['\r', '\n'])
                .to_owned();
            options = options.with_user(user, password);
        }
        let connecting = Client::connect([endpoint], Some(options));
        let client = bounded("connecting", endpoint, ANSWER, connecting).await?;
        Ok(Self {
            endpoint: endpoint.to_owned(),
            client,
        })
    }

    /// Waits for an answer, within the time limit.
    ///
    /// # Errors
    /// There is no answer, or it is an error.
    pub async fn ask<T>(
        &self,
        what: &'static str,
        answer: impl Future<Output = Result<T, EtcdError>>,
    ) -> Result<T, LinkError> {
        bounded(what, &self.endpoint, ANSWER, answer).await
    }
}

async fn bounded<T>(
    what: &'static str,
    endpoint: &str,
    within: Duration,
    answer: impl Future<Output = Result<T, EtcdError>>,
) -> Result<T, LinkError> {
    let endpoint = endpoint.to_owned();
    match tokio::time::timeout(within, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(LinkError::Etcd {
            what,
            endpoint,
            source: Box::new(source),
        }),
        Err(_) => Err(LinkError::Silent {
            what,
            endpoint,
            within,
        }),
    }
}

fn certificates(tls: &Tls) -> Result<TlsOptions, LinkError> {
    let mut options =
        TlsOptions::new().ca_certificate(Certificate::from_pem(read("tls.ca", &tls.ca)?));
    if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
        let (cert, key) = (read("tls.cert", cert)?, read("tls.key", key)?);
        options = options.identity(Identity::from_pem(cert, key));
    }
    Ok(options)
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, LinkError> {
    std::fs::read(path).map_err(|source| LinkError::File {
        what,
        path: path.to_owned(),
        source,
    })
}
