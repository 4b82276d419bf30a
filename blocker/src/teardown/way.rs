//! Whether this host's devices see the flows of other network namespaces, and which ones do.
//!
//! The datapath is on the devices of one namespace. A flow of another one is followed from there, by
//! routes and from each virtual device to the one behind it, until it comes into our namespace or
//! ends elsewhere. A flow that can't be followed is left alone by the teardown.

use std::net::IpAddr;

use super::flow::Tuple;
use super::routes::{Behind, Hop};
use super::survey::{OpenNamespace, own_routes};

/// Most devices, or network namespaces, that a flow is followed through.
const FAR: usize = 8;

/// Where our devices see a flow's packets as those of its remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// On this device; absent: not known on which one.
    On(Option<u32>),
    /// On none: its packets don't come into our namespace, or end in it.
    Nowhere,
    /// Nothing tells.
    Unknown,
}

/// How a flow comes into a namespace.
struct Entry {
    behind: Behind,
    /// The next hop, as the namespace that it comes from has it.
    next: IpAddr,
}

/// Where our devices see a flow of the namespace with this number, whose socket is bound to a device there
/// (0 for none).
pub(crate) fn seen(
    namespaces: &mut [OpenNamespace],
    number: usize,
    tuple: &Tuple,
    bound: u32,
) -> Seen {
    follow(namespaces, number, tuple, bound).unwrap_or(Seen::Unknown)
}

fn follow(
    namespaces: &mut [OpenNamespace],
    mut number: usize,
    tuple: &Tuple,
    mut bound: u32,
) -> Option<Seen> {
    for _ in 0..FAR {
        let routes = namespaces[number].routes.as_mut()?;
        let hop = routes.hop(tuple.remote, Some(tuple.local), bound)?;
        let Hop {
            device,
            next,
            local,
        } = hop;
        if local {
            return Some(Seen::Nowhere);
        }
        let mut behind = routes.behind(device)?;
        for _ in 0..FAR {
            // Such as a VLAN on a device of the same namespace.
            if behind.namespace.is_none() && behind.parent {
                behind = routes.behind(behind.device)?;
            }
        }
        number = find(namespaces, number, behind.namespace?)?;
        bound = 0;
        if namespaces[number].namespace.is_own() {
            return arrival(namespaces, tuple, &Entry { behind, next });
        }
    }
    None
}

/// The number of the network namespace for which another one has this id.
fn find(namespaces: &mut [OpenNamespace], number: usize, id: i32) -> Option<usize> {
    if let Some(known) = namespaces[number].others.get(&id) {
        return *known;
    }
    let found = (0..namespaces.len()).find(|other| {
        let descriptor = namespaces[*other].namespace.descriptor().ok();
        let routes = namespaces[number].routes.as_mut();
        let known = routes.zip(descriptor);
        known.and_then(|(routes, descriptor)| routes.namespace_id(&descriptor)) == Some(id)
    });
    namespaces[number].others.insert(id, found);
    found
}

/// Where a flow is seen that comes into our namespace.
fn arrival(namespaces: &mut [OpenNamespace], tuple: &Tuple, entry: &Entry) -> Option<Seen> {
    let Behind { device, parent, .. } = entry.behind;
    if parent {
        return Some(Seen::On(Some(device)));
    }
    let routes = own_routes(namespaces)?;
    let master = routes.master(device);
    let link_local = matches!(entry.next, IpAddr::V6(next) if next.is_unicast_link_local());
    let on = if link_local {
        master.unwrap_or(device)
    } else {
        0
    };
    let routed = routes
        .hop(entry.next, None, on)
        .is_some_and(|hop| hop.local);
    if !routed && master.is_some() {
        // A bridge takes it on, by a port of which no route tells.
        return Some(Seen::On(None));
    }
    let hop = routes.hop(tuple.remote, None, 0);
    Some(match hop {
        Some(hop) if hop.local => Seen::Nowhere,
        hop => Seen::On(hop.map(|hop| hop.device)),
    })
}
