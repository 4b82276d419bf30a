//! This host's own sockets: listed by `sock_diag`, killed by `SOCK_DESTROY`.
//!
//! The kernel filters the list where it can ([`super::bytecode`]), and [`Selection`] decides. Both
//! functions act in the namespace in which the conversation was opened.

use netlink_packet_core::{DefaultNla, Emitable, Parseable};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags,
};
use netlink_packet_sock_diag::{SOCK_DESTROY, SOCK_DIAG_BY_FAMILY};

use super::bytecode;
use super::flow::{State, TCP, Tuple, UDP, on_the_wire};
use super::selection::Selection;
use crate::matching::Holds;
use crate::netlink::{Body, Conversation, NetlinkError, encode};

/// `INET_DIAG_REQ_BYTECODE` of `include/uapi/linux/inet_diag.h`.
const REQ_BYTECODE: u16 = 1;

/// A socket that belongs to a flow under teardown.
#[derive(Debug, Clone)]
pub(crate) struct HostSocket {
    /// The flow as a rule sees it.
    pub(crate) tuple: Tuple,
    /// Its state when it was listed.
    pub(crate) state: State,
    /// Its inode, 0 if no process holds it (SYN-RECEIVED, or closed by its owner).
    pub(crate) inode: u32,
    /// The kernel's name for it. Its cookie makes sure that no other socket is hit, such as the
    /// listener on the same port, if this one is gone by now.
    id: SocketId,
    family: u8,
}

impl HostSocket {
    /// Index of the device that it is bound to, 0 for none.
    pub(crate) const fn bound(&self) -> u32 {
        self.id.interface_id
    }
}

/// Lists the sockets of TCP flows, and connected UDP sockets, that are selected on some device.
pub(crate) fn list(
    diag: &mut Conversation,
    selection: &Selection<'_>,
) -> Result<Vec<HostSocket>, NetlinkError> {
    let mut found = Vec::new();
    let live = StateFlags::ESTABLISHED
        | StateFlags::SYN_SENT
        | StateFlags::SYN_RECV
        | StateFlags::FIN_WAIT1
        | StateFlags::FIN_WAIT2
        | StateFlags::CLOSE_WAIT
        | StateFlags::LAST_ACK
        | StateFlags::CLOSING;
    let connected = StateFlags::ESTABLISHED;
    for (protocol, states, action) in [
        (TCP, live, "listing TCP sockets"),
        (UDP, connected, "listing UDP sockets"),
    ] {
        if !selection.wants(protocol) {
            continue;
        }
        // An IPv6 socket may talk IPv4, so IPv4 targets are looked for among both.
        for family in [AF_INET, AF_INET6] {
            let ipv4_only = family == AF_INET;
            let filter = match selection.few_targets() {
                Some(targets) => bytecode::for_targets(targets, ipv4_only),
                None => (!ipv4_only || selection.families().v4).then_some(None),
            };
            let Some(filter) = filter else {
                continue;
            };
            let id = if family == AF_INET {
                SocketId::new_v4()
            } else {
                SocketId::new_v6()
            };
            let request = InetRequest {
                family,
                protocol,
                extensions: ExtensionFlags::empty(),
                states: states.clone(),
                socket_id: id,
            };
            let filter = filter.map(|code| DefaultNla::new(REQ_BYTECODE, code));
            let mut parts: Vec<&dyn Emitable> = vec![&request];
            if let Some(filter) = &filter {
                parts.push(filter);
            }
            let body = Body {
                kind: SOCK_DIAG_BY_FAMILY,
                flags: 0,
                parts: &parts,
            };
            diag.dump(action, &body, |_, payload| {
                let Some(socket) = read(payload, protocol) else {
                    return;
                };
                if selection.selects(&socket.tuple, || None) != Holds::Never {
                    found.push(socket);
                }
            })?;
        }
    }
    Ok(found)
}

/// Reads one socket; nothing for one that is no flow.
fn read(payload: &[u8], protocol: u8) -> Option<HostSocket> {
    let header = InetResponseHeader::parse(payload).ok()?;
    let state = State::from_diag(header.state).filter(|state| state.killable())?;
    let id = header.socket_id;
    // INET_DIAG_NOCOOKIE would let the kernel take any socket that fits, a listener included.
    if id.cookie == [0xff; 8] {
        return None;
    }
    Some(HostSocket {
        tuple: Tuple {
            protocol,
            remote: on_the_wire(id.destination_address),
            remote_port: id.destination_port,
            local: on_the_wire(id.source_address),
            local_port: id.source_port,
        },
        state,
        inode: header.inode,
        id,
        family: header.family,
    })
}

/// Destroys sockets; the answer has an errno for each, 0 for one that is dead.
///
/// The owner of a TCP socket gets ECONNABORTED and its peer an exact RST (`tcp_abort` of
/// `net/ipv4/tcp.c`); no RST leaves in SYN-SENT, SYN-RECEIVED without a socket, LAST-ACK and
/// CLOSING. A connected UDP socket's owner gets ECONNABORTED (`udp_abort`). ENOENT means that the
/// socket died by itself meanwhile, EOPNOTSUPP that the kernel lacks `CONFIG_INET_DIAG_DESTROY`.
pub(crate) fn destroy(
    diag: &mut Conversation,
    sockets: &[&HostSocket],
) -> Result<Vec<i32>, NetlinkError> {
    diag.batch("destroying sockets", sockets, |socket| {
        let request = InetRequest {
            family: socket.family,
            protocol: socket.tuple.protocol,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::empty(),
            socket_id: socket.id.clone(),
        };
        (SOCK_DESTROY, encode(&[&request]))
    })
}

/// Whether the kernel can destroy sockets: the answer to a request to destroy one that can't exist.
///
/// The tuple has port 0 on both sides, which no connection has.
pub(crate) fn can_destroy(diag: &mut Conversation) -> Result<bool, NetlinkError> {
    let request = InetRequest {
        family: AF_INET,
        protocol: TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::empty(),
        socket_id: SocketId {
            cookie: [1; 8],
            ..SocketId::new_v4()
        },
    };
    let results = diag.batch("asking for SOCK_DESTROY", &[request], |request| {
        (SOCK_DESTROY, encode(&[request]))
    })?;
    Ok(results != [libc::EOPNOTSUPP])
}
