//! Match field: the IP protocol.

use std::fmt;
use std::str::FromStr;

use blocker_ebpf as abi;
use blocker_ebpf::headers::protocol::{ICMP, ICMPV6, TCP, UDP};

use super::text::{schemas, text_serde};
use super::{Holds, Packet, RuleError, Tried};

/// The protocol that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// Every protocol.
    #[default]
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP for IPv4, ICMPv6 for IPv6.
    Icmp,
    /// An IP protocol number (IANA "Assigned Internet Protocol Numbers").
    Number(u8),
}

impl FromStr for Protocol {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        Ok(match text {
            "any" => Self::Any,
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            "icmp" => Self::Icmp,
            number => match number.parse() {
                _ if !number.bytes().all(|b| b.is_ascii_digit()) => {
                    return Err(RuleError::Protocol(text.to_owned()));
                }
                // TCP and UDP have one form each, so that equal rules compare equal.
                Ok(6) => Self::Tcp,
                Ok(17) => Self::Udp,
                Ok(n) => Self::Number(n),
                Err(_) => return Err(RuleError::Protocol(text.to_owned())),
            },
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.pad("any"),
            Self::Tcp => f.pad("tcp"),
            Self::Udp => f.pad("udp"),
            Self::Icmp => f.pad("icmp"),
            Self::Number(n) => f.pad(&n.to_string()),
        }
    }
}

impl Protocol {
    /// Whether every protocol matches.
    pub(crate) const fn is_any(self) -> bool {
        matches!(self, Self::Any)
    }

    /// The protocol's number in a compiled rule. With ports, "any" means TCP and UDP: the datapath
    /// reads ports of no other protocol.
    pub(crate) fn number(self) -> u16 {
        match self {
            Self::Any => abi::ANY_PROTOCOL,
            Self::Tcp => u16::from(TCP),
            Self::Udp => u16::from(UDP),
            Self::Icmp => abi::ICMP_PROTOCOL,
            Self::Number(number) => u16::from(number),
        }
    }

    /// Whether its packets may have ports.
    pub(crate) const fn may_have_ports(self) -> bool {
        matches!(self, Self::Any | Self::Tcp | Self::Udp)
    }

    /// The protocol in words: `tcp`, `protocol 47`.
    pub(crate) fn words(self) -> String {
        match self {
            Self::Number(number) => format!("protocol {number}"),
            named => named.to_string(),
        }
    }
}

impl Tried {
    /// Whether the packet is of the rule's protocol.
    pub(super) fn protocol_fits(&self, packet: &Packet) -> Holds {
        let wanted = match self.rule.protocol {
            abi::ANY_PROTOCOL => return Holds::Always,
            abi::ICMP_PROTOCOL if packet.v6 => u16::from(ICMPV6),
            abi::ICMP_PROTOCOL => u16::from(ICMP),
            number => number,
        };
        let possible = match packet.protocol {
            Some(protocol) => return Holds::from(u16::from(protocol) == wanted),
            None if packet.ports.is_known() => [TCP, UDP].map(u16::from).contains(&wanted),
            None => true,
        };
        if possible {
            Holds::Sometimes
        } else {
            Holds::Never
        }
    }
}

// Also accepts numbers, so that `protocol: 47` needs no quotes.
text_serde!(Protocol, deserialize_any);

schemas! {
    Protocol: {
        "description": "any, tcp, udp, icmp or a number.",
        "oneOf": [
            { "type": "integer", "minimum": 0, "maximum": 255 },
            { "type": "string", "pattern": "^(any|tcp|udp|icmp|[0-9]{1,3})$" },
        ],
    };
}
