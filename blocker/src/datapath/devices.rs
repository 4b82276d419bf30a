//! The devices of this network namespace, and the notification of changes to them.

use std::io;

use futures_util::{Stream, StreamExt, TryStreamExt};
use netlink_packet_route::link::{LinkAttribute, LinkLayerType, LinkMessage};
use rtnetlink::MulticastGroup;

use super::Error;

/// The link-layer header of a device's packets, which decides the programs that can read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// Ethernet.
    Ethernet,
    /// No header: tun, WireGuard, IP tunnels, PPP.
    None,
    /// The loopback device, to which programs are never attached.
    Loopback,
    /// A header that the programs can't read, by its `ARPHRD_` number.
    Other(u16),
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its index. Unless asked for a number, the kernel counts up, and reuses indexes after 2^31.
    pub index: u32,
    /// Its name, which may change.
    pub name: String,
    /// The header that its packets begin with.
    pub kind: LinkKind,
}

impl Device {
    /// Whether the programs can read its packets.
    #[must_use]
    pub const fn is_readable(&self) -> bool {
        matches!(self.kind, LinkKind::Ethernet | LinkKind::None)
    }
}

/// Lists the devices of this network namespace.
///
/// # Errors
/// The error of netlink.
pub async fn list() -> Result<Vec<Device>, Error> {
    let error = |source: io::Error| Error::Devices { source };
    let (connection, handle, _) = rtnetlink::new_connection().map_err(error)?;
    let connection = tokio::spawn(connection);
    let links: Result<Vec<LinkMessage>, _> = handle.link().get().execute().try_collect().await;
    connection.abort();
    let mut devices: Vec<_> = links
        .map_err(|source| Error::Devices {
            source: io::Error::other(source),
        })?
        .iter()
        .filter_map(device)
        .collect();
    devices.sort_by_key(|device| device.index);
    Ok(devices)
}

/// A stream that yields whenever a device is added, removed or changed.
///
/// # Errors
/// The error of netlink. The stream ends only if the netlink connection ends.
pub fn changes() -> Result<impl Stream<Item = ()> + Send + Unpin, Error> {
    let (connection, _, messages) = rtnetlink::new_multicast_connection(&[MulticastGroup::Link])
        .map_err(|source| Error::Devices { source })?;
    tokio::spawn(connection);
    Ok(messages.map(drop))
}

fn device(link: &LinkMessage) -> Option<Device> {
    let name = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        })?;
    Some(Device {
        index: link.header.index,
        name,
        kind: kind(link.header.link_layer_type),
    })
}

/// Which types have no header: see `dev_is_mac_header_xmit` (`include/linux/if_arp.h`).
fn kind(layer: LinkLayerType) -> LinkKind {
    match layer {
        LinkLayerType::Ether => LinkKind::Ethernet,
        LinkLayerType::Loopback => LinkKind::Loopback,
        LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ip6gre
        | LinkLayerType::Void
        | LinkLayerType::None
        | LinkLayerType::Rawip
        | LinkLayerType::Ppp => LinkKind::None,
        other => LinkKind::Other(u16::from(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wireguard_and_tun_have_no_link_header() {
        assert_eq!(kind(LinkLayerType::from(65_534)), LinkKind::None);
    }

    #[test]
    fn what_the_programs_cannot_read_is_named_by_its_number() {
        assert_eq!(kind(LinkLayerType::from(32)), LinkKind::Other(32));
    }
}
