//! Compiles the match and the mode of each rule. `v4` and `v6` compile the targets.

use std::collections::HashMap;
use std::hash::Hash;

use blocker_ebpf as abi;
use ipnet::IpNet;

use super::ports::PortSets;
use super::{CompileError, Input, Limits};
use crate::matching::Ports;
use crate::rule::{Mode, Rule};

/// The rules, and the sets that they name.
pub(super) struct Compiled {
    pub(super) rules: Vec<abi::Rule>,
    pub(super) port_sets: Vec<abi::PortSet>,
    pub(super) interface_sets: Vec<Vec<u32>>,
    pub(super) local_sets: Vec<Vec<IpNet>>,
}

pub(super) fn compile(input: &Input<'_>, limits: &Limits) -> Result<Compiled, CompileError> {
    let inputs = input.rules;
    // Generic XDP cannot tell blocker's own replies from the peer's packets. Which drop rule a reply
    // will meet is not known at compile time, so any rule that replies moves all drops to TC.
    let drops_at_tc = input.generic_xdp && inputs.iter().any(|input| input.rule.mode.replies());
    let port_limit = limits.port_sets.min(abi::MAX_PORT_SETS);
    let mut ports = PortSets::new(port_limit);
    let mut interfaces = Sets::<u32>::default();
    let mut locals = Sets::<IpNet>::default();
    let mut rules = Vec::with_capacity(inputs.len());
    for input in inputs {
        let rule = input.rule;
        let matching = &rule.matching;
        let mut set = |list: &[Ports]| {
            ports.number(list).ok_or_else(|| CompileError::PortSets {
                rule: rule.id.clone(),
                limit: port_limit,
            })
        };
        let mut compiled = abi::Rule {
            deadline: input.deadline,
            percent: matching.percent.threshold(),
            counter: input.counter,
            protocol: matching.protocol.number(),
            ports: set(&matching.ports)?,
            local_ports: set(&matching.local_ports)?,
            remote_ports: set(&matching.remote_ports)?,
            interfaces: interfaces.number(input.interfaces.clone()).ok_or_else(|| {
                CompileError::InterfaceSets {
                    rule: rule.id.clone(),
                    limit: u32::from(abi::ANY_INTERFACES),
                }
            })?,
            locals: locals.number(matching.local_prefixes()).ok_or_else(|| {
                CompileError::LocalSets {
                    rule: rule.id.clone(),
                    limit: u32::from(abi::ANY_LOCALS),
                }
            })?,
            flags: flags(rule),
            mode: mode(rule.mode),
            directions: matching.direction.bits(),
        };
        if !drops_at_tc && compiled.mode == abi::mode::DROP && compiled.percent == abi::ALWAYS {
            compiled.flags |= abi::flag::AT_XDP;
        }
        if is_plain(&compiled) {
            compiled.flags |= abi::flag::PLAIN;
        }
        rules.push(compiled);
    }
    Ok(Compiled {
        rules,
        port_sets: ports.into_sets(),
        interface_sets: interfaces.sets,
        local_sets: locals.sets,
    })
}

fn mode(mode: Mode) -> u8 {
    match mode {
        Mode::Drop => abi::mode::DROP,
        Mode::Reset => abi::mode::RESET,
        Mode::Reject => abi::mode::REJECT,
        Mode::Audit => abi::mode::AUDIT,
    }
}

/// A rule whose mode ends flows passes RSTs, and takes a percentage by flow. A rule whose flows are
/// killed when it ends records them.
fn flags(rule: &Rule) -> u16 {
    let mut flags = 0;
    if rule.mode.ends_flows() {
        flags |= abi::flag::PASS_RST;
    }
    if rule.lifts_by_reset() {
        flags |= abi::flag::RECORD;
    }
    if rule.mode.ends_flows() && !rule.matching.percent.is_all() {
        flags |= abi::flag::PER_FLOW;
    }
    flags
}

/// Whether a rule drops every incoming packet: see [`abi::flag::PLAIN`].
fn is_plain(rule: &abi::Rule) -> bool {
    rule.flags == abi::flag::AT_XDP
        && rule.directions & abi::direction::INGRESS != 0
        && rule.protocol == abi::ANY_PROTOCOL
        && rule.ports & rule.local_ports & rule.remote_ports == abi::ANY_PORTS
        && rule.interfaces == abi::ANY_INTERFACES
        && rule.locals == abi::ANY_LOCALS
}

/// [`abi::ANY_INTERFACES`] and [`abi::ANY_LOCALS`], which are equal.
const ANY: u16 = abi::ANY_INTERFACES;
const _: () = assert!(ANY == abi::ANY_LOCALS);

/// The interface sets or the local address sets of a snapshot. Equal sets are stored once.
struct Sets<T> {
    sets: Vec<Vec<T>>,
    numbers: HashMap<Vec<T>, u16>,
}

impl<T> Default for Sets<T> {
    fn default() -> Self {
        Self {
            sets: Vec::new(),
            numbers: HashMap::new(),
        }
    }
}

impl<T: Clone + Ord + Hash> Sets<T> {
    /// The number of the set with these members, or [`ANY`] if `members` is `None`. The result is
    /// `None` if there is no number left.
    fn number(&mut self, members: Option<Vec<T>>) -> Option<u16> {
        let Some(mut members) = members else {
            return Some(ANY);
        };
        members.sort_unstable();
        members.dedup();
        if let Some(number) = self.numbers.get(&members) {
            return Some(*number);
        }
        let number = u16::try_from(self.sets.len())
            .ok()
            .filter(|number| *number != ANY)?;
        self.sets.push(members.clone());
        self.numbers.insert(members, number);
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::RuleInput;
    use crate::compile::tests::{LIMITS, inputs, rule};

    /// The flags of a rule that drops everything.
    const PLAIN: u16 = abi::flag::PLAIN | abi::flag::AT_XDP;

    fn compiled(fields: &str) -> abi::Rule {
        let rule = rule("a", "10.0.0.1", fields);
        let input = RuleInput {
            rule: &rule,
            deadline: 5,
            counter: 7,
            interfaces: None,
        };
        all(&[input], false)[0]
    }

    fn all(rules: &[RuleInput<'_>], generic_xdp: bool) -> Vec<abi::Rule> {
        let input = Input {
            generic_xdp,
            ..of(rules)
        };
        compile(&input, &LIMITS).unwrap().rules
    }

    fn of<'a>(rules: &'a [RuleInput<'a>]) -> Input<'a> {
        Input {
            rules,
            protect: &[],
            generic_xdp: false,
        }
    }

    #[test]
    fn generic_xdp_drops_nothing_while_a_rule_replies() {
        for (other, generic, left) in [
            ("{mode: reject}", true, true),
            ("{mode: reset}", true, true),
            ("{mode: drop}", true, false),
            ("{mode: audit}", true, false),
            ("{mode: reject}", false, false),
        ] {
            let rules = ["{mode: drop}", other].map(|fields| rule("r", "10.0.0.1", fields));
            let drop = all(&inputs(&rules), generic)[0];
            let flags = if left { 0 } else { PLAIN };
            assert_eq!(drop.flags, flags, "{other}, generic: {generic}");
            assert_eq!(drop.settles_at_xdp(), !left, "{other}, generic: {generic}");
        }
    }

    #[test]
    fn a_plain_rule_takes_everything() {
        assert_eq!(
            compiled("{}"),
            abi::Rule {
                deadline: 5,
                percent: abi::ALWAYS,
                counter: 7,
                protocol: abi::ANY_PROTOCOL,
                ports: abi::ANY_PORTS,
                local_ports: abi::ANY_PORTS,
                remote_ports: abi::ANY_PORTS,
                interfaces: abi::ANY_INTERFACES,
                locals: abi::ANY_LOCALS,
                flags: PLAIN,
                mode: abi::mode::DROP,
                directions: abi::direction::INGRESS | abi::direction::EGRESS,
            }
        );
    }

    #[test]
    fn each_word_has_its_number() {
        for (word, number) in [
            ("any", abi::ANY_PROTOCOL),
            ("tcp", 6),
            ("udp", 17),
            ("icmp", abi::ICMP_PROTOCOL),
            ("1", 1),
            ("0", 0),
            ("255", 255),
        ] {
            assert_eq!(compiled(&format!("{{protocol: {word}}}")).protocol, number);
        }
        for (word, number) in [("drop", 0), ("reset", 1), ("reject", 2), ("audit", 3)] {
            assert_eq!(compiled(&format!("{{mode: {word}}}")).mode, number);
        }
        for (word, bits) in [("ingress", 1), ("egress", 2), ("both", 3)] {
            assert_eq!(compiled(&format!("{{direction: {word}}}")).directions, bits);
        }
    }

    #[test]
    fn flags_follow_from_what_becomes_of_flows() {
        for (fields, flags) in [
            ("{mode: drop}", PLAIN),
            ("{mode: drop, established: kill}", PLAIN),
            ("{mode: reject, established: kill}", 0),
            (
                "{mode: drop, on_lift: reset}",
                abi::flag::RECORD | abi::flag::AT_XDP,
            ),
            ("{mode: drop, protocol: tcp}", abi::flag::AT_XDP),
            ("{mode: reject, on_lift: reset}", abi::flag::RECORD),
            ("{mode: reset, on_lift: reset}", abi::flag::PASS_RST),
            ("{mode: reset}", abi::flag::PASS_RST),
            ("{mode: reset, established: keep}", abi::flag::PASS_RST),
            (
                "{mode: reset, percent: 30}",
                abi::flag::PASS_RST | abi::flag::PER_FLOW,
            ),
            ("{mode: drop, percent: 30}", 0),
            ("{mode: audit}", 0),
        ] {
            assert_eq!(compiled(fields).flags, flags, "{fields}");
        }
    }

    #[test]
    fn xdp_settles_what_needs_no_reply_and_no_sample() {
        for (fields, settles) in [
            ("{mode: drop}", true),
            ("{mode: drop, percent: 99}", false),
            ("{mode: reset}", false),
            ("{mode: reject}", false),
            ("{mode: audit}", false),
        ] {
            assert_eq!(compiled(fields).settles_at_xdp(), settles, "{fields}");
        }
    }

    #[test]
    fn a_rule_is_plain_if_nothing_narrows_what_it_drops_of_what_comes_in() {
        for (fields, plain) in [
            ("{mode: drop}", true),
            ("{mode: drop, direction: ingress}", true),
            ("{mode: drop, direction: egress}", false),
            ("{mode: drop, protocol: tcp}", false),
            ("{mode: drop, ports: [80]}", false),
            ("{mode: drop, local_ports: [80]}", false),
            ("{mode: drop, remote_ports: [80]}", false),
            ("{mode: drop, local: [10.0.1.0/24]}", false),
            ("{mode: drop, percent: 99}", false),
            ("{mode: drop, on_lift: reset}", false),
            ("{mode: reject}", false),
            ("{mode: reset}", false),
            ("{mode: audit}", false),
        ] {
            let flags = compiled(fields).flags;
            assert_eq!(flags & abi::flag::PLAIN != 0, plain, "{fields}");
        }
    }

    #[test]
    fn equal_interface_sets_are_kept_once() {
        let rule = rule("a", "10.0.0.1", "{interfaces: [eth0]}");
        let input = |interfaces| RuleInput {
            rule: &rule,
            deadline: abi::NEVER,
            counter: 0,
            interfaces,
        };
        let inputs = [
            input(Some(vec![3, 2])),
            input(None),
            input(Some(vec![2, 3, 3])),
            input(Some(vec![])),
        ];
        let compiled = compile(&of(&inputs), &LIMITS).unwrap();
        assert_eq!(compiled.interface_sets, [vec![2, 3], vec![]]);
        let numbers: Vec<u16> = compiled.rules.iter().map(|r| r.interfaces).collect();
        assert_eq!(numbers, [0, abi::ANY_INTERFACES, 0, 1]);
    }

    #[test]
    fn equal_sets_of_local_addresses_are_kept_once() {
        let rules = [
            "{local: [10.0.1.0/24, 'fd00::/8']}",
            "{}",
            "{local: ['fd00::/8', 10.0.1.0/24, 10.0.1.0/24]}",
            "{local: [10.0.1.0/24]}",
        ]
        .map(|fields| rule("a", "10.0.0.1", fields));
        let inputs = inputs(&rules);
        let compiled = compile(&of(&inputs), &LIMITS).unwrap();
        let nets = |texts: &[&str]| -> Vec<IpNet> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        assert_eq!(
            compiled.local_sets,
            [nets(&["10.0.1.0/24", "fd00::/8"]), nets(&["10.0.1.0/24"])]
        );
        let numbers: Vec<u16> = compiled.rules.iter().map(|r| r.locals).collect();
        assert_eq!(numbers, [0, abi::ANY_LOCALS, 0, 1]);
    }

    #[test]
    fn rules_share_port_sets_and_the_one_too_many_is_named() {
        let rules = [
            rule("a", "10.0.0.1", "{ports: [80], local_ports: [443]}"),
            rule("b", "10.0.0.1", "{remote_ports: [80]}"),
            rule("c", "10.0.0.1", "{remote_ports: [22]}"),
        ];
        let inputs = inputs(&rules);
        let compiled = compile(&of(&inputs), &LIMITS).unwrap();
        assert_eq!(compiled.port_sets.len(), 3);
        assert_eq!(compiled.rules[0].ports, compiled.rules[1].remote_ports);
        assert_eq!(compiled.rules[1].ports, abi::ANY_PORTS);
        let two = Limits {
            port_sets: 2,
            ..LIMITS
        };
        let error = compile(&of(&inputs), &two).err().unwrap();
        assert!(error.to_string().starts_with("rule c needs"), "{error}");
    }
}
