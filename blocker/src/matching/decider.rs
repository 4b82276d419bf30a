//! Which rule of a remote's list decides a packet, and why the others don't.
//!
//! The datapath is the specification: a test compares the decider with the datapath's programs on
//! random rulesets and packets. `explain`, teardown and dry runs use the decider.

use blocker_ebpf::{self as abi, Hook};

use super::packet::Packet;
use super::tried::{Fit, Holds, Miss, Tried, Unknown};

/// The compiled rules that are tried on packets of one remote, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decider {
    rules: Vec<Tried>,
}

/// The trial of a rule on a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trial<'d> {
    /// The rule.
    pub tried: &'d Tried,
    /// The outcome of the trial.
    pub outcome: Outcome,
    /// The hook at which the rule decides, if it may decide.
    pub hook: Option<Hook>,
}

/// Whether a rule decides a packet, given the rules that are tried before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The rule decides every such packet that no earlier rule decides.
    Decides,
    /// The rule decides its percentage; the next rule is tried on the rest.
    Share,
    /// The rule decides some, depending on unknown properties; the next is tried on the rest.
    Depends(Unknown),
    /// The rule may take the packet, but the rule with this index in the list decides before.
    Shadowed(usize),
    /// The rule does not take the packet.
    Not(Miss),
}

impl Decider {
    /// A decider over the rules of one remote, in the order of the live bank or a snapshot.
    #[must_use]
    pub const fn new(rules: Vec<Tried>) -> Self {
        Self { rules }
    }

    /// The rules, in the order of their trial.
    #[must_use]
    pub fn rules(&self) -> &[Tried] {
        &self.rules
    }

    /// The trial of each rule on a packet. `xdp` says whether the device has XDP; `now` is in
    /// nanoseconds of `CLOCK_BOOTTIME`.
    #[must_use]
    pub fn trials(&self, packet: &Packet, xdp: bool, now: u64) -> Vec<Trial<'_>> {
        let mut xdp = xdp && packet.hook != Hook::Egress;
        let mut decider = None;
        let trial = |(number, tried): (usize, _)| {
            let outcome = match (Tried::fit(tried, packet, now), decider) {
                (Fit::Not(miss), _) => Outcome::Not(miss),
                (_, Some(first)) => Outcome::Shadowed(first),
                (Fit::Takes, None) => Outcome::Decides,
                (Fit::Share, None) => Outcome::Share,
                (Fit::Depends(unknown), None) => Outcome::Depends(unknown),
            };
            if outcome == Outcome::Decides {
                decider = Some(number);
            }
            let may_decide = !matches!(outcome, Outcome::Not(_) | Outcome::Shadowed(_));
            let hook = match packet.hook {
                Hook::Egress => Hook::Egress,
                _ if xdp && tried.rule.settles_at_xdp() => Hook::Xdp,
                _ => Hook::Ingress,
            };
            // XDP draws no random sample: TC decides such packets, by later rules, too.
            xdp &= outcome != Outcome::Share || tried.rule.flags & abi::flag::PER_FLOW != 0;
            Trial {
                tried,
                outcome,
                hook: may_decide.then_some(hook),
            }
        };
        self.rules.iter().enumerate().map(trial).collect()
    }

    /// Whether one of the `wanted` rules decides packets. `wanted` takes an index in the list.
    ///
    /// Other rules with a percentage are skipped: they leave a part of every flow's packets, or a
    /// part of the flows, to later rules.
    #[must_use]
    pub fn decided_by(&self, wanted: impl Fn(usize) -> bool, packet: &Packet, now: u64) -> Holds {
        let (mut by_wanted, mut by_others) = (false, false);
        let mut note = |wanted: bool| {
            by_wanted |= wanted;
            by_others |= !wanted;
        };
        let mut decided = false;
        for (number, tried) in self.rules.iter().enumerate() {
            if tried.rule.percent != abi::ALWAYS && !wanted(number) {
                continue;
            }
            match tried.fit(packet, now) {
                Fit::Not(_) => {}
                Fit::Depends(_) => note(wanted(number)),
                Fit::Takes | Fit::Share => {
                    note(wanted(number));
                    decided = true;
                    break;
                }
            }
        }
        if !decided {
            note(false);
        }
        match (by_wanted, by_others) {
            (true, true) => Holds::Sometimes,
            (wanted, _) => Holds::from(wanted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::tests::{LIMITS, inputs, rule};
    use crate::compile::{Input, compile};
    use crate::matching::PacketPorts;

    /// The decider of 10.0.0.1, under these rules limited to these devices.
    fn decider(fields: &[&str], devices: &[Option<Vec<u32>>]) -> Decider {
        let rules: Vec<_> = (0..)
            .zip(fields)
            .map(|(n, fields)| rule(&format!("r{n}"), "10.0.0.1", fields))
            .collect();
        let mut inputs = inputs(&rules);
        for (input, devices) in inputs.iter_mut().zip(devices) {
            input.interfaces.clone_from(devices);
        }
        let input = Input {
            rules: &inputs,
            protect: &[],
            generic_xdp: false,
        };
        let snapshot = compile(&input, &LIMITS).unwrap();
        Decider::new(snapshot.tried("10.0.0.1".parse().unwrap()))
    }

    const PACKET: Packet = Packet {
        v6: false,
        hook: Hook::Ingress,
        device: None,
        local: None,
        protocol: Some(6),
        ports: PacketPorts::Sides {
            local: Some(1),
            remote: Some(2),
        },
    };

    #[test]
    fn what_is_not_known_matters_only_where_rules_differ() {
        let limited = "{interfaces: [eth0], mode: reset}";
        let (reset, audit, half) = (
            "{mode: reset}",
            "{mode: audit}",
            "{interfaces: [eth0], mode: drop, percent: 50}",
        );
        let eth0 = [Some(vec![2]), None];
        for (fields, device, expected) in [
            ([limited, audit], None, Holds::Sometimes),
            ([limited, audit], Some(2), Holds::Always),
            ([limited, audit], Some(3), Holds::Never),
            ([limited, reset], None, Holds::Always),
            ([half, reset], None, Holds::Always),
            ([half, audit], None, Holds::Never),
        ] {
            let decider = decider(&fields, &eth0);
            let kills = |number: usize| decider.rules()[number].rule.mode == abi::mode::RESET;
            let packet = Packet { device, ..PACKET };
            let holds = decider.decided_by(kills, &packet, 0);
            assert_eq!(holds, expected, "{fields:?} on {device:?}");
        }
    }
}
