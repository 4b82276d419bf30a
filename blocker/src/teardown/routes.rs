//! Where a network namespace would send a packet: device, next hop, and its link-layer address.
//!
//! Asked of the kernel's own routing (`RTM_GETROUTE`, so policy rules count), neighbour table
//! (`RTM_GETNEIGH`) and device list (`RTM_GETLINK`). Answers are cached for the duration of one
//! teardown. Sends no packets itself, but may make the kernel resolve a neighbour.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia,
};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::netlink::{Body, Conversation, NetlinkError};

// Message types of include/uapi/linux/rtnetlink.h, which the crate keeps to itself.
const RTM_GETLINK: u16 = 18;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const RTM_GETNSID: u16 = 90;

/// The way to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hop {
    /// Index of the device that a packet leaves by.
    pub(crate) device: u32,
    /// The next hop: the gateway, or the address itself.
    pub(crate) next: IpAddr,
    /// Whether the address is this host's own.
    pub(crate) local: bool,
}

/// A device, as far as sending on it needs to know it.
#[derive(Debug, Clone, Copy)]
struct Link {
    behind: Option<Behind>,
    /// Index of the bridge, or other device, that it is a port of.
    master: Option<u32>,
    /// Whether frames on it carry link-layer addresses (Ethernet).
    addressed: bool,
    loopback: bool,
}

/// The device behind a virtual one: the other end of a veth pair, the parent of a VLAN or macvlan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Behind {
    /// Its network namespace, by the id that the namespace of the virtual device has for it;
    /// absent: the same one.
    pub(crate) namespace: Option<i32>,
    /// Its index there.
    pub(crate) device: u32,
    /// Whether it sends and receives the packets of the virtual device. The other end of a veth
    /// pair hands them to its namespace.
    pub(crate) parent: bool,
}

/// How a packet for a hop is handed to its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carriage {
    /// With this destination address.
    To([u8; 6]),
    /// As it is: the device has no link-layer addresses.
    Bare,
    /// By the kernel only: the address is not known, or the packet does not leave this host.
    Unknown,
}

/// Routing of one network namespace, with the answers so far.
pub(crate) struct Routes {
    route: Conversation,
    hops: HashMap<(IpAddr, Option<IpAddr>, u32), Option<Hop>>,
    links: HashMap<u32, Link>,
    neighbours: Option<HashMap<(u32, IpAddr), [u8; 6]>>,
    resolving: HashSet<(u32, IpAddr)>,
}

impl Routes {
    /// Opens the socket in the calling thread's network namespace and reads the list of devices.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        let mut route = Conversation::open(NETLINK_ROUTE, "rtnetlink")?;
        let links = links(&mut route)?;
        Ok(Self {
            route,
            hops: HashMap::new(),
            links,
            neighbours: None,
            resolving: HashSet::new(),
        })
    }

    /// The device of a flow: the one that its socket is bound to, else the way to the remote.
    pub(crate) fn device(&mut self, remote: IpAddr, local: IpAddr, bound: u32) -> Option<u32> {
        if bound != 0 {
            return Some(bound);
        }
        self.hop(remote, Some(local), 0).map(|hop| hop.device)
    }

    /// The device behind a virtual device.
    pub(crate) fn behind(&self, device: u32) -> Option<Behind> {
        self.links.get(&device)?.behind
    }

    /// The bridge, or other device, that a device is a port of.
    pub(crate) fn master(&self, device: u32) -> Option<u32> {
        self.links.get(&device)?.master
    }

    /// The id that this network namespace has for another one, if it has any.
    pub(crate) fn namespace_id(&mut self, namespace: &File) -> Option<i32> {
        let mut request = NsidMessage::default();
        let descriptor = u32::try_from(namespace.as_raw_fd()).ok()?;
        request.attributes.push(NsidAttribute::Fd(descriptor));
        let body = Body {
            kind: RTM_GETNSID,
            flags: 0,
            parts: &[&request],
        };
        let answer = self
            .route
            .ask("asking for a namespace's id", &body, |_, payload| {
                NsidMessage::parse(payload).map_err(|e| io::Error::other(e.to_string()))
            })
            .ok()?;
        answer
            .attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                // -1 is NETNSA_NSID_NOT_ASSIGNED.
                NsidAttribute::Id(id) => (id >= 0).then_some(id),
                _ => None,
            })
    }

    /// The way to an address, for a packet from `source` (if it is this host's own) and out of
    /// device `bound` (0 for any).
    pub(crate) fn hop(&mut self, to: IpAddr, source: Option<IpAddr>, bound: u32) -> Option<Hop> {
        let key = (to, source, bound);
        if let Some(known) = self.hops.get(&key) {
            return *known;
        }
        // The kernel refuses a source that is not the namespace's own (EINVAL): ask without it.
        let hop = self.ask(to, source, bound).or_else(|| {
            source?;
            self.ask(to, None, bound)
        });
        self.hops.insert(key, hop);
        hop
    }

    fn ask(&mut self, to: IpAddr, source: Option<IpAddr>, bound: u32) -> Option<Hop> {
        let bits = if to.is_ipv4() { 32 } else { 128 };
        let mut request = RouteMessage::default();
        request.header.address_family = family(to);
        request.header.destination_prefix_length = bits;
        request
            .attributes
            .push(RouteAttribute::Destination(to.into()));
        if let Some(source) = source {
            request.header.source_prefix_length = bits;
            request
                .attributes
                .push(RouteAttribute::Source(source.into()));
        }
        if bound != 0 {
            request.attributes.push(RouteAttribute::Oif(bound));
        }
        let body = Body {
            kind: RTM_GETROUTE,
            flags: 0,
            parts: &[&request],
        };
        let answer = self
            .route
            .ask("asking for a route", &body, |_, payload| {
                RouteMessage::parse(payload).map_err(|e| io::Error::other(e.to_string()))
            })
            .ok()?;
        let mut device = None;
        let mut next = to;
        for attribute in answer.attributes {
            match attribute {
                RouteAttribute::Oif(index) => device = Some(index),
                RouteAttribute::Gateway(RouteAddress::Inet(v4))
                | RouteAttribute::Via(RouteVia::Inet(v4)) => next = IpAddr::V4(v4),
                RouteAttribute::Gateway(RouteAddress::Inet6(v6))
                | RouteAttribute::Via(RouteVia::Inet6(v6)) => next = IpAddr::V6(v6),
                _ => {}
            }
        }
        Some(Hop {
            device: device?,
            next,
            local: answer.header.kind == RouteType::Local,
        })
    }

    /// How a packet for a hop is handed to its device.
    pub(crate) fn carriage(&mut self, hop: &Hop) -> Carriage {
        match self.links.get(&hop.device) {
            _ if hop.local => Carriage::Unknown,
            None => Carriage::Unknown,
            Some(link) if link.loopback => Carriage::Unknown,
            Some(link) if !link.addressed => Carriage::Bare,
            Some(_) => {
                let key = (hop.device, hop.next);
                if self.neighbours.is_none() {
                    // Without the table every packet goes the slower way, through the kernel's
                    // own resolution.
                    self.neighbours = Some(neighbours(&mut self.route).unwrap_or_default());
                }
                let known = self.neighbours.as_ref().and_then(|table| table.get(&key));
                if let Some(mac) = known {
                    return Carriage::To(*mac);
                }
                if self.resolving.insert(key) {
                    self.resolve(hop);
                }
                Carriage::Unknown
            }
        }
    }

    /// Drops the cached neighbour table.
    pub(crate) fn forget_neighbours(&mut self) {
        self.neighbours = None;
    }

    /// Has the kernel look for a neighbour's link-layer address, as if there were a packet for it.
    ///
    /// The answer appears in the table some time later. An error is ignored: the packet then goes the
    /// slower way, as it would without asking.
    fn resolve(&mut self, hop: &Hop) {
        let mut request = NeighbourMessage::default();
        request.header.family = family(hop.next);
        request.header.ifindex = hop.device;
        request.header.flags = NeighbourFlags::Use;
        let address = match hop.next {
            IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
            IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
        };
        request
            .attributes
            .push(NeighbourAttribute::Destination(address));
        let body = Body {
            kind: RTM_NEWNEIGH,
            flags: NLM_F_CREATE | NLM_F_ACK,
            parts: &[&request],
        };
        let _ = self
            .route
            .ask("resolving a neighbour", &body, |_, _| Ok(()));
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn links(route: &mut Conversation) -> Result<HashMap<u32, Link>, NetlinkError> {
    let mut links = HashMap::new();
    let body = Body {
        kind: RTM_GETLINK,
        flags: 0,
        parts: &[&LinkMessage::default()],
    };
    route.dump("listing devices", &body, |_, payload| {
        let Ok(message) = LinkMessage::parse(payload) else {
            return;
        };
        let kind = message.header.link_layer_type;
        let link = Link {
            behind: behind(&message.attributes),
            master: (message.attributes.iter()).find_map(|attribute| match attribute {
                LinkAttribute::Controller(master) => Some(*master),
                _ => None,
            }),
            addressed: kind == LinkLayerType::Ether,
            loopback: kind == LinkLayerType::Loopback,
        };
        links.insert(message.header.index, link);
    })?;
    Ok(links)
}

fn behind(attributes: &[LinkAttribute]) -> Option<Behind> {
    let (mut device, mut namespace, mut parent) = (None, None, None);
    for attribute in attributes {
        match attribute {
            LinkAttribute::Link(index) => device = Some(*index),
            LinkAttribute::LinkNetNsId(id) => namespace = Some(*id),
            LinkAttribute::LinkInfo(infos) => {
                parent = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(InfoKind::Veth | InfoKind::Netkit) => Some(false),
                    LinkInfo::Kind(
                        InfoKind::Vlan
                        | InfoKind::MacVlan
                        | InfoKind::MacVtap
                        | InfoKind::IpVlan
                        | InfoKind::IpVtap,
                    ) => Some(true),
                    // What a tunnel sends has other addresses.
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(Behind {
        namespace,
        device: device?,
        parent: parent?,
    })
}

fn neighbours(route: &mut Conversation) -> Result<HashMap<(u32, IpAddr), [u8; 6]>, NetlinkError> {
    let mut table = HashMap::new();
    let body = Body {
        kind: RTM_GETNEIGH,
        flags: 0,
        parts: &[&NeighbourMessage::default()],
    };
    route.dump("listing neighbours", &body, |_, payload| {
        let Ok(message) = NeighbourMessage::parse(payload) else {
            return;
        };
        // A stale address is most probably right, and resolving it again would take a while.
        if matches!(
            message.header.state,
            NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None
        ) {
            return;
        }
        let mut address = None;
        let mut mac = None;
        for attribute in message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                    address = Some(IpAddr::V4(v4));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                    address = Some(IpAddr::V6(v6));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    mac = <[u8; 6]>::try_from(bytes).ok();
                }
                _ => {}
            }
        }
        if let (Some(address), Some(mac)) = (address, mac) {
            table.insert((message.header.ifindex, address), mac);
        }
    })?;
    Ok(table)
}
