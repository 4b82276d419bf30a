//! A packet as a rule sees it, of which only a part may be known.
//!
//! It is whole and well formed; what becomes of others stands in `docs/packet-flow.md`.

use std::net::IpAddr;

use blocker_ebpf::Hook;

/// What is known of a packet, besides its remote's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Whether it is IPv6.
    pub v6: bool,
    /// The hook that it meets.
    pub hook: Hook,
    /// Index of the device that it is on; `None`: not known.
    pub device: Option<u32>,
    /// This host's address, or that of what is behind it; `None`: not known.
    pub local: Option<IpAddr>,
    /// Its IP protocol; `None`: not known.
    pub protocol: Option<u8>,
    /// Its ports.
    pub ports: PacketPorts,
}

/// What is known of a packet's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketPorts {
    /// Each side's, where it is known.
    Sides {
        /// This host's.
        local: Option<u16>,
        /// The remote's.
        remote: Option<u16>,
    },
    /// One side's, without knowing which.
    Either(u16),
}

impl PacketPorts {
    /// Whether anything is known of them, so that the packet must have ports.
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
