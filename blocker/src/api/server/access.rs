//! Access control: root and members of the configured group may read and write; others may read if the
//! configuration allows it. Decided by the peer's credentials, before the request is parsed.

use std::sync::Arc;

use axum::extract::connect_info::ConnectInfo;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use nix::unistd::{Group, User};
use tokio::net::UnixStream;

use super::EXPLAIN;
use super::failure::Failure;
use super::socket::find_group;
use crate::config::{Control, ReadAccess};
use crate::wire::{Code, Problem};

/// The peer of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) uid: u32,
    gid: u32,
    pub(super) pid: Option<i32>,
}

impl Peer {
    pub(super) fn of(stream: &UnixStream) -> Self {
        // Without credentials the peer has no rights.
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

/// The access policy.
pub(super) struct May {
    group: Option<u32>,
    read: ReadAccess,
}

impl May {
    /// The policy of a configuration.
    pub(super) fn of(control: &Control) -> Self {
        let group = control.group.as_deref();
        Self {
            group: group.and_then(|name| find_group(name).ok()),
            read: control.read,
        }
    }

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

/// Whether the system's user database has a user in a group.
fn is_member(uid: u32, group: u32) -> bool {
    let Ok(Some(user)) = User::from_uid(uid.into()) else {
        return false;
    };
    let Ok(Some(group)) = Group::from_gid(group.into()) else {
        return false;
    };
    user.gid == group.gid || group.mem.contains(&user.name)
}

/// Lets a request in, or refuses it. Logs refusals, and failures of requests that change something.
pub(super) async fn admit(
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
