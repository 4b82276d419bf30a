//! The datapath's programs, and their verdicts.

use blocker_ebpf::{Hook, programs};

use super::packet::Packet;

pub(crate) const XDP_DROP: i32 = 1;
pub(crate) const XDP_PASS: i32 = 2;
/// `TCX_NEXT`: the next program on the hook gets the packet.
pub(crate) const NEXT: i32 = -1;
/// `TCX_DROP`.
pub(crate) const SHOT: i32 = 2;

/// One of the datapath's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    Xdp,
    Ingress,
    Egress,
    /// On a device without a link-layer header.
    IngressL3,
    /// On a device without a link-layer header.
    EgressL3,
}

impl Program {
    pub(crate) const ALL: [Self; 5] = [
        Self::Xdp,
        Self::Ingress,
        Self::Egress,
        Self::IngressL3,
        Self::EgressL3,
    ];

    pub(crate) fn is_egress(self) -> bool {
        matches!(self, Self::Egress | Self::EgressL3)
    }

    pub(crate) fn is_l3(self) -> bool {
        matches!(self, Self::IngressL3 | Self::EgressL3)
    }

    /// The packet as this program meets it: the other way on egress, bare without a link layer.
    pub(crate) fn meets(self, packet: &Packet) -> Packet {
        let mut packet = packet.clone();
        if self.is_l3() {
            packet = packet.bare();
        }
        if self.is_egress() {
            packet.outgoing()
        } else {
            packet
        }
    }

    pub(crate) fn pass(self) -> i32 {
        if self == Self::Xdp { XDP_PASS } else { NEXT }
    }

    pub(crate) fn drop(self) -> i32 {
        if self == Self::Xdp { XDP_DROP } else { SHOT }
    }

    /// Its name in the object.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Xdp => programs::XDP,
            Self::Ingress => programs::INGRESS,
            Self::Egress => programs::EGRESS,
            Self::IngressL3 => programs::INGRESS_L3,
            Self::EgressL3 => programs::EGRESS_L3,
        }
    }

    pub(crate) fn hook(self) -> Hook {
        match self {
            Self::Xdp => Hook::Xdp,
            Self::Ingress | Self::IngressL3 => Hook::Ingress,
            Self::Egress | Self::EgressL3 => Hook::Egress,
        }
    }
}
