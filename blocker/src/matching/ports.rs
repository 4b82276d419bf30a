//! Match fields: ports of either side, local ports, remote ports.

use std::fmt;
use std::str::FromStr;

use blocker_ebpf::headers::protocol::{TCP, UDP};
use blocker_ebpf::{self as abi, PortSet};

use super::text::{schemas, text_serde};
use super::{Holds, Match, Packet, PacketPorts, RuleError, Tried};

/// A port or an inclusive range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    /// The first port.
    pub first: u16,
    /// The last port, which is in the range.
    pub last: u16,
}

impl FromStr for Ports {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let port = |part: &str| {
            // `u16::from_str` accepts "+80", which is not a valid port here.
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            part.parse::<u16>()
                .ok()
                .filter(|_| digits)
                .ok_or_else(|| RuleError::Port(text.to_owned()))
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (port(first.trim())?, port(last.trim())?),
            None => (port(text)?, port(text)?),
        };
        if first > last {
            return Err(RuleError::PortOrder { first, last });
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

// Also accepts numbers, so that `ports: [80]` needs no quotes.
text_serde!(Ports, deserialize_any);

schemas! {
    Ports: {
        "description": "A port, or a range such as 8080-8085.",
        "oneOf": [
            { "type": "integer", "minimum": 0, "maximum": 65535 },
            { "type": "string", "pattern": "^[0-9]{1,5}( *- *[0-9]{1,5})?$" },
        ],
    };
}

impl Match {
    /// The sum of the sizes of the three port sets.
    pub(crate) fn port_breadth(&self) -> u32 {
        [&self.ports, &self.local_ports, &self.remote_ports]
            .map(|set| breadth(set))
            .iter()
            .sum()
    }

    /// The ports in words: `port 80,443, remote port 1-9`.
    pub(crate) fn port_words(&self) -> String {
        let sets: [(&str, &[Ports]); 3] = [
            ("port", &self.ports),
            ("local port", &self.local_ports),
            ("remote port", &self.remote_ports),
        ];
        let named = sets.into_iter().filter(|(_, ports)| !ports.is_empty());
        let named = named.map(|(name, ports)| {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            format!("{name} {}", ports.join(","))
        });
        named.collect::<Vec<_>>().join(", ")
    }
}

/// A list's ports as sorted ranges that neither overlap nor touch, so equal sets compare equal.
pub(crate) fn merged(list: &[Ports]) -> Vec<Ports> {
    let mut list = list.to_vec();
    list.sort_unstable();
    let mut ranges: Vec<Ports> = Vec::with_capacity(list.len());
    for next in list {
        match ranges.last_mut() {
            Some(open) if u32::from(next.first) <= u32::from(open.last) + 1 => {
                open.last = open.last.max(next.last);
            }
            _ => ranges.push(next),
        }
    }
    ranges
}

/// How many ports a set admits. An empty set admits any port, and counts one more than all.
fn breadth(set: &[Ports]) -> u32 {
    if set.is_empty() {
        return 65_537;
    }
    merged(set)
        .iter()
        .map(|range| u32::from(range.last) - u32::from(range.first) + 1)
        .sum()
}

impl Tried {
    /// Whether the packet's ports are in the rule's sets.
    pub(super) fn ports_fit(&self, packet: &Packet) -> Holds {
        if self.ports.is_none() && self.local_ports.is_none() && self.remote_ports.is_none() {
            return Holds::Always;
        }
        if packet
            .protocol
            .is_some_and(|protocol| !matches!(protocol, TCP | UDP))
        {
            return Holds::Never;
        }
        let fit = match packet.ports {
            PacketPorts::Sides { local, remote } => self.sides_fit(local, remote),
            PacketPorts::Either(port) => self
                .sides_fit(Some(port), None)
                .or(self.sides_fit(None, Some(port))),
        };
        // A packet of unknown protocol has ports if one is known. It also has ports if the rule
        // names TCP or UDP: `protocol_fits` says that the packet may be of another protocol.
        let has_ports = packet.protocol.is_some()
            || packet.ports.is_known()
            || self.rule.protocol != abi::ANY_PROTOCOL;
        if fit == Holds::Always && !has_ports {
            Holds::Sometimes
        } else {
            fit
        }
    }

    /// Whether the ports are in the rule's sets. A side that is unknown may have any port.
    fn sides_fit(&self, local: Option<u16>, remote: Option<u16>) -> Holds {
        let (locals, remotes) = (candidates(local), candidates(remote));
        let fit_locals = both(&locals, self.local_ports.as_deref());
        let fit_remotes = both(&remotes, self.remote_ports.as_deref());
        if is_empty(&fit_locals) || is_empty(&fit_remotes) {
            return Holds::Never;
        }
        // Every pair of ports has one in the set if all ports of one side are in the set.
        let local_hits = both(&fit_locals, self.ports.as_deref());
        let remote_hits = both(&fit_remotes, self.ports.as_deref());
        if is_empty(&local_hits) && is_empty(&remote_hits) {
            return Holds::Never;
        }
        let one_hits = local_hits == fit_locals || remote_hits == fit_remotes;
        if one_hits && fit_locals == locals && fit_remotes == remotes {
            Holds::Always
        } else {
            Holds::Sometimes
        }
    }
}

/// The bits of a [`PortSet`].
type Bits = [u64; 1_024];

/// The ports that a side may have: the known one, else all.
fn candidates(known: Option<u16>) -> Bits {
    let Some(port) = known else {
        return [u64::MAX; 1_024];
    };
    let mut bits = [0; 1_024];
    bits[usize::from(port / 64)] = 1 << (port % 64);
    bits
}

/// The ports that are also in a set; no set: all of them.
fn both(ports: &Bits, set: Option<&PortSet>) -> Bits {
    let mut bits = *ports;
    if let Some(set) = set {
        for (word, other) in bits.iter_mut().zip(&set.bits) {
            *word &= other;
        }
    }
    bits
}

fn is_empty(ports: &Bits) -> bool {
    ports.iter().all(|word| *word == 0)
}
