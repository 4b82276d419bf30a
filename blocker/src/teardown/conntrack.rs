//! Connections that netfilter tracks: listed and deleted through ctnetlink.
//!
//! This is how forwarded flows are found, which have no socket on this host. Netfilter tracks
//! connections only while one of its rules asks for tracking or NAT, and does not know a flow that has
//! been idle since before that.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, Nla, ParseableParametrized};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple,
    Tuple as Part,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::selection::Selection;
use super::tracked::{Connection, Wire};
use crate::netlink::{Body, Conversation, NetlinkError, encode};
use crate::rule::Target;

// include/uapi/linux/netfilter/nfnetlink_conntrack.h, as far as the crate keeps it to itself.
const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const GET_STATS: u16 = SUBSYSTEM | 5;
const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// `CTA_FILTER_FLAG(CTA_IP_SRC)` and its neighbour, of `nf_internals.h`.
const FILTER_SOURCE: u32 = 1 << 0;
const FILTER_DESTINATION: u32 = 1 << 1;

/// Above this many entries, a rule of few addresses is filtered for in the kernel.
///
/// A filtered dump walks the whole table but copies few entries, and an address needs four dumps.
/// Copying and reading one entry takes some 3 us.
const MANY_ENTRIES: u32 = 20_000;
/// Most addresses that are filtered for in the kernel.
const FEW_TARGETS: usize = 4;

/// Opens ctnetlink in the calling thread's network namespace.
pub(crate) fn open() -> Result<Conversation, NetlinkError> {
    Conversation::open(NETLINK_NETFILTER, "ctnetlink")
}

/// How many connections are tracked in the namespace.
pub(crate) fn count(netfilter: &mut Conversation) -> Result<u32, NetlinkError> {
    let header = header(NetfilterProtoFamily::Unspec);
    let body = Body {
        kind: GET_STATS,
        flags: 0,
        parts: &[&header],
    };
    netfilter.ask("counting tracked connections", &body, |kind, payload| {
        let message = NetfilterMessage::parse_with_param(payload, kind)
            .map_err(|e| io::Error::other(e.to_string()))?;
        let NetfilterMessageInner::Conntrack(ConntrackMessage::Other { attributes, .. }) =
            message.inner
        else {
            return Err(io::Error::other("an answer of another kind"));
        };
        attributes
            .iter()
            .find(|attribute| attribute.kind() == CTA_STATS_GLOBAL_ENTRIES)
            .and_then(|attribute| <[u8; 4]>::try_from(value(attribute)).ok())
            .map(u32::from_be_bytes)
            .ok_or_else(|| io::Error::other("an answer without the number"))
    })
}

fn value(attribute: &DefaultNla) -> Vec<u8> {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    value
}

fn header(family: NetfilterProtoFamily) -> NetfilterHeader {
    NetfilterHeader::new(family, 0, 0)
}

/// Lists the tracked connections that have a remote of the rules at either end.
///
/// Nothing if this network namespace tracks no connection at all. Only addresses are looked at:
/// the caller asks [`Selection::selects`] about each view.
pub(crate) fn list(
    netfilter: &mut Conversation,
    selection: &Selection<'_>,
) -> Result<Option<Vec<Connection>>, NetlinkError> {
    let entries = count(netfilter)?;
    if entries == 0 {
        return Ok(None);
    }
    let hosts: Option<Vec<IpAddr>> = selection
        .few_targets()
        .filter(|targets| targets.len() <= FEW_TARGETS)
        .and_then(|targets| {
            let host = |target: &Target| target.is_host().then(|| target.net().addr());
            targets.iter().map(host).collect()
        });
    let mut found: Vec<Connection> = Vec::new();
    if let Some(hosts) = hosts.filter(|_| entries > MANY_ENTRIES) {
        for host in hosts {
            for field in Field::ALL {
                // Kernels before 5.8 ignore the filter and send everything: no further dump is
                // needed.
                if !dump(netfilter, selection, Some((host, field)), &mut found)? {
                    return Ok(Some(deduplicated(found)));
                }
            }
        }
        return Ok(Some(deduplicated(found)));
    }
    dump(netfilter, selection, None, &mut found)?;
    Ok(Some(found))
}

fn deduplicated(mut found: Vec<Connection>) -> Vec<Connection> {
    let key = |c: &Connection| (c.protocol, c.original.source, c.original.destination);
    found.sort_by_key(key);
    // Entries of two zones may share a tuple: their names tell them apart.
    found.dedup_by(|a, b| a.name == b.name);
    found
}

/// The address of an entry that is filtered for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    OriginalSource,
    OriginalDestination,
    ReplySource,
    ReplyDestination,
}

impl Field {
    const ALL: [Self; 4] = [
        Self::OriginalSource,
        Self::OriginalDestination,
        Self::ReplySource,
        Self::ReplyDestination,
    ];

    fn address(self, connection: &Connection) -> IpAddr {
        match self {
            Self::OriginalSource => connection.original.source.0,
            Self::OriginalDestination => connection.original.destination.0,
            Self::ReplySource => connection.reply.source.0,
            Self::ReplyDestination => connection.reply.destination.0,
        }
    }

    /// The attributes that ask the kernel for entries with `host` in this field: a tuple, and
    /// which part of it counts. The crate would lose the latter's mark of a nested attribute.
    fn filter(self, host: IpAddr) -> (ConntrackAttribute, DefaultNla) {
        let (address, flag) = match self {
            Self::OriginalSource | Self::ReplySource => {
                (IPTuple::SourceAddress(host), FILTER_SOURCE)
            }
            Self::OriginalDestination | Self::ReplyDestination => {
                (IPTuple::DestinationAddress(host), FILTER_DESTINATION)
            }
        };
        let tuple = vec![Part::Ip(vec![address])];
        let (tuple, original, reply) = match self {
            Self::OriginalSource | Self::OriginalDestination => {
                (ConntrackAttribute::CtaTupleOrig(tuple), flag, 0)
            }
            Self::ReplySource | Self::ReplyDestination => {
                (ConntrackAttribute::CtaTupleReply(tuple), 0, flag)
            }
        };
        let flags = encode(&[
            &DefaultNla::new(CTA_FILTER_ORIG_FLAGS, original.to_ne_bytes().to_vec()),
            &DefaultNla::new(CTA_FILTER_REPLY_FLAGS, reply.to_ne_bytes().to_vec()),
        ]);
        (tuple, DefaultNla::new(CTA_FILTER | NLA_F_NESTED, flags))
    }
}

/// Reads the table. Gives whether every entry that the kernel sent passes the filter.
fn dump(
    netfilter: &mut Conversation,
    selection: &Selection<'_>,
    filter: Option<(IpAddr, Field)>,
    found: &mut Vec<Connection>,
) -> Result<bool, NetlinkError> {
    let family = match filter {
        Some((IpAddr::V4(_), _)) => NetfilterProtoFamily::IPv4,
        Some((IpAddr::V6(_), _)) => NetfilterProtoFamily::IPv6,
        None if !selection.families().v6 => NetfilterProtoFamily::IPv4,
        None => NetfilterProtoFamily::Unspec,
    };
    let (tuple, flags) = filter.map(|(host, field)| field.filter(host)).unzip();
    let attributes = tuple.into_iter().collect();
    let request = NetfilterMessage::new(header(family), ConntrackMessage::Get(attributes));
    let mut parts: Vec<&dyn Emitable> = vec![&request];
    parts.extend(flags.iter().map(|flags| flags as &dyn Emitable));
    let body = Body {
        kind: GET,
        flags: 0,
        parts: &parts,
    };
    let mut fits = true;
    netfilter.dump("listing tracked connections", &body, |kind, payload| {
        let Some(connection) = read(kind, payload) else {
            return;
        };
        fits &= filter.is_none_or(|(host, field)| field.address(&connection) == host);
        let ends = [connection.original, connection.reply];
        let named =
            |wire: &Wire| selection.names(wire.source.0) || selection.names(wire.destination.0);
        if ends.iter().any(named) {
            found.push(connection);
        }
    })?;
    Ok(fits)
}

fn read(kind: u16, payload: &[u8]) -> Option<Connection> {
    let message = NetfilterMessage::parse_with_param(payload, kind).ok()?;
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner else {
        return None;
    };
    let mut original = None;
    let mut reply = None;
    let mut state = None;
    let mut name = Vec::new();
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(ref parts) => {
                original = wire(parts);
                name.push(attribute);
            }
            ConntrackAttribute::CtaTupleReply(ref parts) => reply = wire(parts),
            ConntrackAttribute::CtaProtoInfo(infos) => state = tcp_state(&infos),
            ConntrackAttribute::Other(ref other) if matches!(other.kind(), CTA_ID | CTA_ZONE) => {
                name.push(attribute);
            }
            _ => {}
        }
    }
    let (protocol, original) = original?;
    let (_, reply) = reply?;
    Some(Connection {
        protocol,
        state,
        original,
        reply,
        name,
    })
}

fn wire(parts: &[Part]) -> Option<(u8, Wire)> {
    let mut source = None;
    let mut destination = None;
    let mut protocol = None;
    let mut ports = (0, 0);
    for part in parts {
        match part {
            Part::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(address) => source = Some(*address),
                        IPTuple::DestinationAddress(address) => destination = Some(*address),
                        _ => {}
                    }
                }
            }
            Part::Proto(attributes) => {
                for attribute in attributes {
                    match attribute {
                        ProtoTuple::Protocol(number) => protocol = Some(u8::from(*number)),
                        ProtoTuple::SourcePort(port) => ports.0 = *port,
                        ProtoTuple::DestinationPort(port) => ports.1 = *port,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let wire = Wire {
        source: (source?, ports.0),
        destination: (destination?, ports.1),
    };
    Some((protocol?, wire))
}

fn tcp_state(infos: &[ProtoInfo]) -> Option<u8> {
    infos.iter().find_map(|info| match info {
        ProtoInfo::TCP(attributes) => attributes.iter().find_map(|attribute| match attribute {
            ProtoInfoTCP::State(state) => Some(*state),
            _ => None,
        }),
        _ => None,
    })
}

/// Deletes entries; the answer has an errno for each. ENOENT: it was gone already.
pub(crate) fn delete(
    netfilter: &mut Conversation,
    connections: &[Connection],
) -> Result<Vec<i32>, NetlinkError> {
    netfilter.batch("deleting tracked connections", connections, |connection| {
        let family = if connection.original.source.0.is_ipv4() {
            NetfilterProtoFamily::IPv4
        } else {
            NetfilterProtoFamily::IPv6
        };
        let request = NetfilterMessage::new(
            header(family),
            ConntrackMessage::Delete(connection.name.clone()),
        );
        (DELETE, encode(&[&request]))
    })
}
