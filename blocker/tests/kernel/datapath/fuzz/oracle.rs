//! The fate of a packet, by the words of `docs/packet-flow.md`.

use std::net::IpAddr;

use blocker::compile::Snapshot;
use blocker::rule::{Direction, Mode, Ports, Protocol, Rule};
use blocker_ebpf::Hook;

use super::headers::{self, Network, Odd, Part, Transport};
use super::rulesets::Ruleset;
use crate::packets::{Program, Sight};

/// What is done with a packet, and what is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Fate {
    pub(crate) verdict: i32,
    /// The number of the rule that counts it.
    pub(crate) rule: Option<usize>,
    pub(crate) replies: u64,
    pub(crate) malformed: bool,
    /// It bears our mark.
    pub(crate) own: bool,
}

/// A frame that a program meets.
pub(crate) struct Met<'a> {
    pub(crate) program: Program,
    /// The device that it is on.
    pub(crate) device: u32,
    pub(crate) frame: &'a [u8],
    pub(crate) sight: Sight,
    pub(crate) mark: u32,
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

const TCP: u8 = 6;
const UDP: u8 = 17;

impl Met<'_> {
    /// Its fate under a ruleset, of which the compiler made a snapshot.
    pub(crate) fn fate(&self, ruleset: &Ruleset, snapshot: &Snapshot) -> Fate {
        let passes = Fate {
            verdict: self.program.pass(),
            ..Fate::default()
        };
        let malformed = Fate {
            malformed: true,
            ..passes
        };
        let xdp = self.program == Program::Xdp;
        if !xdp && self.sight.mark == self.mark {
            return Fate {
                own: true,
                ..passes
            };
        }
        let network = match headers::network(self.frame) {
            Ok(network) => network,
            Err(Odd::NotIp) => return passes,
            Err(Odd::Malformed) => return malformed,
        };
        let rules = snapshot.lookup(self.remote(&network));
        if rules.is_empty() {
            return passes;
        }
        let gso = !xdp && self.sight.gso_segs > 0;
        let Ok(transport) = headers::transport(&network, gso) else {
            return malformed;
        };
        let takes = |number: &usize| self.takes(ruleset, *number, &network, &transport);
        let Some(number) = rules.iter().map(|number| usize::from(*number)).find(takes) else {
            return passes;
        };
        let mode = ruleset.rules[number].mode;
        if xdp && mode != Mode::Drop || is_neighbour_discovery(&network, &transport) {
            return passes;
        }
        let segment = segment(&transport);
        if mode == Mode::Reset && segment.is_some_and(|segment| segment.flags & RST != 0) {
            return passes;
        }
        let taken = Fate {
            verdict: self.program.drop(),
            rule: Some(number),
            ..Fate::default()
        };
        match mode {
            Mode::Drop => taken,
            Mode::Audit => Fate {
                verdict: self.program.pass(),
                ..taken
            },
            Mode::Reset | Mode::Reject if !self.may_answer(&network, &transport, gso) => taken,
            Mode::Reset if transport.protocol == Some(TCP) => match segment {
                Some(segment) => self.reset(taken, &network, transport.part, segment),
                None => taken,
            },
            Mode::Reset | Mode::Reject => Fate {
                replies: u64::from(is_reportable(&network, &transport)),
                ..taken
            },
        }
    }

    fn remote(&self, network: &Network<'_>) -> IpAddr {
        if self.program.is_egress() {
            network.destination
        } else {
            network.source
        }
    }

    /// Whether a rule takes the packet.
    fn takes(
        &self,
        ruleset: &Ruleset,
        number: usize,
        network: &Network<'_>,
        transport: &Transport<'_>,
    ) -> bool {
        let rule = &ruleset.rules[number];
        let outward = self.program.is_egress();
        let local = if outward {
            network.source
        } else {
            network.destination
        };
        let direction = match rule.matching.direction {
            Direction::Both => true,
            Direction::Ingress => !outward,
            Direction::Egress => outward,
        };
        let interface = match &ruleset.interfaces[number] {
            None => true,
            Some(devices) => devices.contains(&self.device),
        };
        let at = |address: IpAddr| {
            rule.matching
                .local
                .iter()
                .any(|net| net.net().contains(&address))
        };
        direction
            && interface
            && !ruleset.over[number]
            && (rule.matching.local.is_empty() || at(local))
            && protocol_fits(rule, network.source.is_ipv6(), transport.protocol)
            && ports_fit(rule, self.program.hook(), transport)
    }

    /// Whether the packet may be answered at all.
    fn may_answer(&self, network: &Network<'_>, transport: &Transport<'_>, gso: bool) -> bool {
        // A link-layer broadcast or multicast.
        self.frame[0] & 1 == 0
            && is_unicast(network.source)
            && is_unicast(network.destination)
            && (self.program.is_egress()
                || gso
                || transport.part != Part::Whole
                || checksum_holds(network, transport))
    }

    /// A RST to the sender, and to the receiver of a connection that is there.
    fn reset(&self, taken: Fate, network: &Network<'_>, part: Part, segment: Segment) -> Fate {
        if segment.flags & ACK == 0 {
            return Fate {
                // Of a part, the length that is to be acknowledged is not known.
                replies: u64::from(part == Part::Whole),
                ..taken
            };
        }
        let keepalive = segment.payload <= 1 && segment.flags & (SYN | FIN) == 0;
        Fate {
            // The packet itself goes on as the RST, but for one with tags in it: a copy does.
            verdict: if network.tags == 0 {
                self.program.pass()
            } else {
                self.program.drop()
            },
            replies: 2 + u64::from(keepalive),
            ..taken
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    flags: u8,
    payload: usize,
}

/// A TCP segment whose whole header is there.
fn segment(transport: &Transport<'_>) -> Option<Segment> {
    let bytes = transport
        .bytes
        .filter(|_| transport.protocol == Some(TCP))?;
    let header = usize::from(bytes.get(12)? >> 4) * 4;
    (header >= 20 && header <= bytes.len()).then(|| Segment {
        flags: bytes[13],
        payload: bytes.len() - header,
    })
}

fn protocol_fits(rule: &Rule, v6: bool, protocol: Option<u8>) -> bool {
    let Some(protocol) = protocol else {
        return rule.matching.protocol == Protocol::Any || rule.mode != Mode::Audit;
    };
    match rule.matching.protocol {
        Protocol::Any => true,
        Protocol::Tcp => protocol == TCP,
        Protocol::Udp => protocol == UDP,
        Protocol::Icmp => protocol == if v6 { 58 } else { 1 },
        Protocol::Number(number) => protocol == number,
    }
}

fn ports_fit(rule: &Rule, hook: Hook, transport: &Transport<'_>) -> bool {
    let sets = [
        &rule.matching.ports,
        &rule.matching.local_ports,
        &rule.matching.remote_ports,
    ];
    if sets.iter().all(|set| set.is_empty()) {
        return true;
    }
    if !matches!(transport.protocol, None | Some(TCP | UDP)) {
        return false;
    }
    let Some([a, b, c, d]) = transport
        .bytes
        .filter(|_| transport.protocol.is_some())
        .and_then(|bytes| bytes.get(..4))
    else {
        return rule.mode != Mode::Audit;
    };
    let (source, destination) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
    let (local, remote) = if hook == Hook::Egress {
        (source, destination)
    } else {
        (destination, source)
    };
    let within = |set: &[Ports], port: u16| {
        set.is_empty()
            || set
                .iter()
                .any(|ports| (ports.first..=ports.last).contains(&port))
    };
    (within(&rule.matching.ports, local) || within(&rule.matching.ports, remote))
        && within(&rule.matching.local_ports, local)
        && within(&rule.matching.remote_ports, remote)
}

/// RFC 4861: solicitations and advertisements, which can't come from beyond the link.
fn is_neighbour_discovery(network: &Network<'_>, transport: &Transport<'_>) -> bool {
    let kind = transport.bytes.and_then(<[u8]>::first);
    network.source.is_ipv6()
        && transport.protocol == Some(58)
        && transport.hop_limit == 255
        && matches!(kind, Some(135 | 136))
}

fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => (1..224).contains(&address.octets()[0]),
        IpAddr::V6(address) => !address.is_multicast() && !address.is_unspecified(),
    }
}

/// What an ICMP error may be sent for.
fn is_reportable(network: &Network<'_>, transport: &Transport<'_>) -> bool {
    let Some(bytes) = transport.bytes else {
        return false; // a later fragment, or out of reach
    };
    if segment(transport).is_some_and(|segment| segment.flags & RST != 0) {
        return false;
    }
    match (transport.protocol, network.source) {
        (Some(1), IpAddr::V4(_)) => matches!(bytes.first(), Some(0 | 8 | 13..=18)),
        (Some(58), IpAddr::V6(_)) => matches!(bytes.first(), Some(128 | 129)),
        _ => true,
    }
}

/// Whether the transport's checksum is right, or what a sender on this machine leaves for the
/// device to complete: the sum of the pseudo-header.
fn checksum_holds(network: &Network<'_>, transport: &Transport<'_>) -> bool {
    let v6 = network.source.is_ipv6();
    let (Some(protocol), Some(bytes)) = (transport.protocol, transport.bytes) else {
        return true; // nothing is there to be checked; nobody is answered
    };
    let at = match (protocol, v6) {
        (TCP, _) => 16,
        (UDP, _) => 6,
        (1, false) | (58, true) => 2,
        _ => return true,
    };
    let Some(field) = bytes.get(at..at + 2) else {
        return false;
    };
    let field = u16::from_be_bytes([field[0], field[1]]);
    if protocol == UDP && !v6 && field == 0 {
        return true;
    }
    let mut pseudo = Vec::new();
    for address in [network.source, network.destination] {
        match address {
            IpAddr::V4(address) => pseudo.extend(address.octets()),
            IpAddr::V6(address) => pseudo.extend(address.octets()),
        }
    }
    pseudo.extend((bytes.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    if protocol == 1 {
        pseudo.clear(); // RFC 792
    } else if sum(&pseudo) == field {
        return true;
    }
    sum(&[&pseudo, bytes].concat()) == 0xffff
}

/// RFC 1071: the one's-complement sum of 16-bit words.
fn sum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}
