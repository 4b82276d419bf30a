//! Whether a compiled rule takes a packet, some of whose properties may be unknown. The answer is
//! that of `blocker-ebpf/src/matches.rs`. Each match field's file compares that field.

use blocker_ebpf::{self as abi, PortSet};
use ipnet::IpNet;

use super::{Match, Packet};

/// A compiled rule and the sets that it names. A set that is `None` admits anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// The rule.
    pub rule: abi::Rule,
    /// Ports: the local or the remote port must be one of them.
    pub ports: Option<Box<PortSet>>,
    /// Ports: the local port must be one of them.
    pub local_ports: Option<Box<PortSet>>,
    /// Ports: the remote port must be one of them.
    pub remote_ports: Option<Box<PortSet>>,
    /// Indexes of devices.
    pub interfaces: Option<Vec<u32>>,
    /// Prefixes: one of them must contain the local address.
    pub locals: Option<Vec<IpNet>>,
}

/// Whether a rule takes a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It takes every packet with the known properties.
    Takes,
    /// It takes its percentage of them, sampled by packet or by flow.
    Share,
    /// It takes some of them, depending on unknown properties of the packet.
    Depends(Unknown),
    /// It takes none of them.
    Not(Miss),
}

/// The unknown properties of a packet that decide whether a rule takes the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unknown {
    /// Its device.
    pub device: bool,
    /// Its local address.
    pub local: bool,
    /// Its protocol.
    pub protocol: bool,
    /// Its ports.
    pub ports: bool,
}

impl Unknown {
    /// Which of the packets a rule of this match takes.
    pub(crate) fn words(self, matching: &Match) -> String {
        let mut parts = Vec::new();
        if self.device {
            parts.push(matching.interface_words());
        }
        if self.local {
            parts.push(matching.local_words());
        }
        if self.protocol {
            parts.push(matching.protocol.words());
        }
        if self.ports {
            parts.push(matching.port_words());
        }
        if !matching.percent.is_all() {
            parts.push(matching.percent.words("them"));
        }
        format!("only {}", parts.join(", "))
    }
}

/// Why a rule does not take a packet: the first condition that fails, in the datapath's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    /// The packet goes in the other direction.
    Direction,
    /// The packet is of another protocol.
    Protocol,
    /// The packet's ports are not in the rule's sets, or its protocol has no ports.
    Ports,
    /// The packet is on another device.
    Interface,
    /// The packet has another local address.
    Local,
    /// The rule's deadline has passed.
    Deadline,
}

impl Miss {
    /// What keeps a rule of this match from taking the packet.
    pub(crate) fn words(self, matching: &Match) -> String {
        match self {
            Self::Direction => format!("only {}", matching.direction),
            Self::Protocol => format!("only {}", matching.protocol.words()),
            Self::Ports => format!("only {}", matching.port_words()),
            Self::Interface => format!("only {}", matching.interface_words()),
            Self::Local => format!("only {}", matching.local_words()),
            Self::Deadline => "its deadline is over".to_owned(),
        }
    }
}

/// Whether a condition holds for the packets with the known properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// For all of them.
    Always,
    /// For some of them.
    Sometimes,
    /// For none.
    Never,
}

impl Tried {
    /// Whether the rule takes a packet whose remote address its targets cover. `now` is in
    /// nanoseconds of `CLOCK_BOOTTIME`.
    #[must_use]
    pub fn fit(&self, packet: &Packet, now: u64) -> Fit {
        if !self.direction_fits(packet) {
            return Fit::Not(Miss::Direction);
        }
        let protocol = self.protocol_fits(packet);
        if protocol == Holds::Never {
            return Fit::Not(Miss::Protocol);
        }
        let ports = self.ports_fit(packet);
        if ports == Holds::Never {
            return Fit::Not(Miss::Ports);
        }
        let device = self.device_fits(packet);
        if device == Holds::Never {
            return Fit::Not(Miss::Interface);
        }
        let local = self.local_fits(packet);
        if local == Holds::Never {
            return Fit::Not(Miss::Local);
        }
        if self.rule.deadline != abi::NEVER && now > self.rule.deadline {
            return Fit::Not(Miss::Deadline);
        }
        let unknown = Unknown {
            device: device == Holds::Sometimes,
            local: local == Holds::Sometimes,
            protocol: protocol == Holds::Sometimes,
            ports: ports == Holds::Sometimes,
        };
        if unknown != Unknown::default() {
            return Fit::Depends(unknown);
        }
        if self.rule.percent == abi::ALWAYS {
            Fit::Takes
        } else {
            Fit::Share
        }
    }
}

impl From<bool> for Holds {
    fn from(holds: bool) -> Self {
        if holds { Self::Always } else { Self::Never }
    }
}

impl Holds {
    /// The value for packets of two kinds, each with its own value.
    pub(super) fn or(self, other: Self) -> Self {
        if self == other { self } else { Self::Sometimes }
    }
}

#[cfg(test)]
mod tests {
    use blocker_ebpf::Hook;
    use blocker_ebpf::headers::protocol::{ICMP, ICMPV6, TCP, UDP};

    use super::*;
    use crate::compile::tests::{LIMITS, rule};
    use crate::compile::{Input, RuleInput, compile};
    use crate::matching::PacketPorts;

    const NOW: u64 = 1_000;

    fn tried(fields: &str, deadline: u64, interfaces: Option<Vec<u32>>) -> Tried {
        let rule = rule("r", "10.0.0.1", fields);
        let rules = [RuleInput {
            rule: &rule,
            deadline,
            counter: 0,
            interfaces,
        }];
        let input = Input {
            rules: &rules,
            protect: &[],
            generic_xdp: false,
        };
        let snapshot = compile(&input, &LIMITS).unwrap();
        snapshot.tried("10.0.0.1".parse().unwrap()).remove(0)
    }

    fn packet(protocol: Option<u8>, local: Option<u16>, remote: Option<u16>) -> Packet {
        Packet {
            v6: false,
            hook: Hook::Ingress,
            device: Some(2),
            local: None,
            protocol,
            ports: PacketPorts::Sides { local, remote },
        }
    }

    fn fit(fields: &str, packet: &Packet) -> Fit {
        tried(fields, abi::NEVER, None).fit(packet, NOW)
    }

    const NOTHING: Unknown = Unknown {
        device: false,
        local: false,
        protocol: false,
        ports: false,
    };
    const PROTOCOL: Fit = Fit::Depends(Unknown {
        protocol: true,
        ..NOTHING
    });
    const PORTS: Fit = Fit::Depends(Unknown {
        ports: true,
        ..NOTHING
    });
    const BOTH: Fit = Fit::Depends(Unknown {
        protocol: true,
        ports: true,
        ..NOTHING
    });

    #[test]
    fn a_rule_may_depend_on_the_local_address() {
        let packet = packet(Some(TCP), None, None);
        let at = |local: &str| Packet {
            local: Some(local.parse().unwrap()),
            ..packet
        };
        let fields = "{local: [10.9.0.0/16, 10.8.0.1]}";
        for local in ["10.9.0.0", "10.9.255.255", "10.8.0.1"] {
            assert_eq!(fit(fields, &at(local)), Fit::Takes, "{local}");
        }
        for local in ["10.8.0.2", "10.10.0.0"] {
            assert_eq!(fit(fields, &at(local)), Fit::Not(Miss::Local), "{local}");
        }
        let open = Fit::Depends(Unknown {
            local: true,
            ..NOTHING
        });
        assert_eq!(fit(fields, &packet), open);
        assert_eq!(
            fit("{local: [\"fd00::/8\"]}", &packet),
            Fit::Not(Miss::Local)
        );
    }

    #[test]
    fn a_known_packet_is_taken_or_not() {
        let (tcp, udp, gre) = (Some(TCP), Some(UDP), Some(47));
        let misses = |miss| Fit::Not(miss);
        for (fields, protocol, local, remote, expected) in [
            ("{}", tcp, 80, 4_000, Fit::Takes),
            ("{direction: ingress}", tcp, 80, 4_000, Fit::Takes),
            (
                "{direction: egress}",
                tcp,
                80,
                4_000,
                misses(Miss::Direction),
            ),
            ("{protocol: tcp}", tcp, 80, 4_000, Fit::Takes),
            ("{protocol: udp}", tcp, 80, 4_000, misses(Miss::Protocol)),
            ("{protocol: icmp}", Some(ICMP), 0, 0, Fit::Takes),
            (
                "{protocol: icmp}",
                Some(ICMPV6),
                0,
                0,
                misses(Miss::Protocol),
            ),
            ("{ports: [80]}", tcp, 80, 4_000, Fit::Takes),
            ("{ports: [80]}", udp, 4_000, 80, Fit::Takes),
            ("{ports: [80]}", udp, 79, 81, misses(Miss::Ports)),
            ("{ports: [0-65535]}", gre, 0, 0, misses(Miss::Ports)),
            ("{local_ports: [80]}", tcp, 4_000, 80, misses(Miss::Ports)),
            ("{remote_ports: [80]}", tcp, 4_000, 80, Fit::Takes),
            ("{percent: 30}", tcp, 80, 4_000, Fit::Share),
        ] {
            let packet = packet(protocol, Some(local), Some(remote));
            assert_eq!(fit(fields, &packet), expected, "{fields} {packet:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        let tcp = Some(TCP);
        for (fields, protocol, local, remote, expected) in [
            ("{protocol: tcp}", None, None, None, PROTOCOL),
            ("{protocol: tcp}", None, Some(80), None, PROTOCOL),
            (
                "{protocol: 47}",
                None,
                Some(80),
                None,
                Fit::Not(Miss::Protocol),
            ),
            ("{protocol: 47}", None, None, None, PROTOCOL),
            ("{ports: [80]}", None, None, None, PORTS),
            ("{protocol: tcp, ports: [80]}", None, None, None, BOTH),
            ("{ports: [80]}", None, Some(80), None, Fit::Takes),
            ("{ports: [80]}", tcp, Some(81), None, PORTS),
            ("{ports: [80]}", tcp, None, Some(80), Fit::Takes),
            ("{local_ports: [80]}", tcp, None, Some(80), PORTS),
            (
                "{local_ports: [80]}",
                tcp,
                Some(81),
                None,
                Fit::Not(Miss::Ports),
            ),
            ("{ports: [0-65535]}", tcp, None, None, Fit::Takes),
            ("{ports: [0-65535]}", None, None, None, PORTS),
            (
                "{ports: [80], local_ports: [81]}",
                tcp,
                None,
                Some(5),
                Fit::Not(Miss::Ports),
            ),
            (
                "{ports: [80], local_ports: [80, 81]}",
                tcp,
                None,
                Some(5),
                PORTS,
            ),
            ("{percent: 30, ports: [80]}", tcp, None, None, PORTS),
        ] {
            let packet = packet(protocol, local, remote);
            assert_eq!(fit(fields, &packet), expected, "{fields} {packet:?}");
        }
    }

    #[test]
    fn a_port_of_either_side() {
        for (fields, expected) in [
            ("{ports: [80]}", Fit::Takes),
            ("{ports: [81]}", PORTS),
            ("{local_ports: [80]}", PORTS),
            ("{local_ports: [80], remote_ports: [80]}", PORTS),
            (
                "{local_ports: [81], remote_ports: [82]}",
                Fit::Not(Miss::Ports),
            ),
        ] {
            let packet = Packet {
                ports: PacketPorts::Either(80),
                ..packet(Some(UDP), None, None)
            };
            assert_eq!(fit(fields, &packet), expected, "{fields}");
        }
    }

    #[test]
    fn devices_and_deadlines_keep_a_rule_away() {
        let packet = packet(Some(TCP), Some(80), Some(80));
        for (deadline, interfaces, expected) in [
            (abi::NEVER, Some(vec![2, 3]), Fit::Takes),
            (abi::NEVER, Some(vec![3]), Fit::Not(Miss::Interface)),
            (abi::NEVER, Some(vec![]), Fit::Not(Miss::Interface)),
            (NOW, None, Fit::Takes),
            (NOW - 1, None, Fit::Not(Miss::Deadline)),
        ] {
            let tried = tried("{}", deadline, interfaces.clone());
            assert_eq!(
                tried.fit(&packet, NOW),
                expected,
                "{deadline} {interfaces:?}"
            );
        }
    }

    #[test]
    fn a_device_that_is_not_known_may_be_any() {
        let packet = Packet {
            device: None,
            ..packet(Some(TCP), Some(80), Some(80))
        };
        let open = Fit::Depends(Unknown {
            device: true,
            ..NOTHING
        });
        for (interfaces, expected) in [
            (None, Fit::Takes),
            (Some(vec![2]), open),
            (Some(vec![]), Fit::Not(Miss::Interface)),
        ] {
            let tried = tried("{}", abi::NEVER, interfaces);
            assert_eq!(tried.fit(&packet, NOW), expected, "{tried:?}");
        }
    }

    #[test]
    fn xdp_ends_what_needs_no_reply_and_no_sample() {
        for (fields, settles) in [
            ("{mode: drop}", true),
            ("{mode: drop, percent: 99}", false),
            ("{mode: reset}", false),
            ("{mode: reject}", false),
            ("{mode: audit}", false),
        ] {
            let tried = tried(fields, abi::NEVER, None);
            assert_eq!(tried.rule.settles_at_xdp(), settles, "{fields}");
        }
    }
}
