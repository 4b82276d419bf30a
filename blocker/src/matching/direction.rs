//! Match field: the direction.

use std::fmt;
use std::str::FromStr;

use blocker_ebpf::{self as abi, Hook};

use super::text::{text_serde, words};
use super::{Packet, RuleError, Tried};

words! {
    /// The direction of the packets that a rule matches, seen from this host.
    #[derive(Default)]
    Direction, "direction", "both, ingress or egress", {
        /// Either direction.
        #[default]
        Both = "both",
        /// From the remote.
        Ingress = "ingress",
        /// To the remote.
        Egress = "egress",
    }
}

impl Direction {
    /// Whether both directions match.
    pub(crate) const fn is_any(self) -> bool {
        matches!(self, Self::Both)
    }

    /// The direction in a compiled rule: one bit per direction.
    pub(crate) const fn bits(self) -> u8 {
        match self {
            Self::Both => abi::direction::INGRESS | abi::direction::EGRESS,
            Self::Ingress => abi::direction::INGRESS,
            Self::Egress => abi::direction::EGRESS,
        }
    }
}

impl Tried {
    /// Whether the rule matches packets of the packet's direction.
    pub(super) fn direction_fits(&self, packet: &Packet) -> bool {
        let bit = if packet.hook == Hook::Egress {
            abi::direction::EGRESS
        } else {
            abi::direction::INGRESS
        };
        self.rule.directions & bit != 0
    }
}
