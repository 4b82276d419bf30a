//! The properties of a packet that rules compare. Some of them may be unknown.
//!
//! The packet is complete and well formed: `docs/packet-flow.md` has the policy for other packets.

use std::net::IpAddr;

use blocker_ebpf::Hook;

/// What is known of a packet, except its remote address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Whether it is IPv6.
    pub v6: bool,
    /// The hook that sees the packet.
    pub hook: Hook,
    /// Index of the packet's device; `None`: not known.
    pub device: Option<u32>,
    /// The local address, of this host or of a host behind it; `None`: not known.
    pub local: Option<IpAddr>,
    /// Its IP protocol; `None`: not known.
    pub protocol: Option<u8>,
    /// Its ports.
    pub ports: PacketPorts,
}

/// What is known of a packet's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketPorts {
    /// Each side's port, where it is known.
    Sides {
        /// The local port.
        local: Option<u16>,
        /// The remote port.
        remote: Option<u16>,
    },
    /// The port of one side; which side is not known.
    Either(u16),
}

impl PacketPorts {
    /// Whether any port is known, which implies that the packet has ports.
    #[must_use]
    pub const fn is_known(self) -> bool {
        !matches!(
            self,
            Self::Sides {
                local: None,
                remote: None
            }
        )
    }
}
