//! Flows and rules, without a kernel.

use super::*;
use crate::compile::{Input, Limits, RuleInput, compile};
use crate::rule::{Defaults, RuleSpec};

const NOW: u64 = 1_000;
const ETH0: u32 = 2;
const VETH7: u32 = 7;

fn rule(json: &str) -> Rule {
    let spec: RuleSpec = serde_json::from_str(json).unwrap();
    spec.resolve(
        || "r1".parse().unwrap(),
        Defaults::default(),
        jiff::Timestamp::UNIX_EPOCH,
    )
    .unwrap()
}

/// The rules in force: those under teardown, others, protected prefixes, and when they end.
struct Force<'a> {
    killing: &'a [Rule],
    others: &'a [Rule],
    protect: &'a [&'a str],
    deadline: u64,
}

impl<'a> Force<'a> {
    const fn of(killing: &'a [Rule], others: &'a [Rule]) -> Self {
        Self {
            killing,
            others,
            protect: &[],
            deadline: blocker_ebpf::NEVER,
        }
    }

    fn ask<T>(&self, ask: impl FnOnce(&Selection<'_>) -> T) -> T {
        let devices = |rule: &Rule| {
            let named = [("eth0", ETH0), ("veth7", VETH7)].into_iter();
            let named = named.filter(|(name, _)| rule.covers_interface(name));
            (!rule.matching.interfaces.is_empty()).then(|| named.map(|(_, index)| index).collect())
        };
        let rules = self.killing.iter().chain(self.others);
        let inputs: Vec<_> = (0..)
            .zip(rules)
            .map(|(counter, rule)| RuleInput {
                rule,
                deadline: self.deadline,
                counter,
                interfaces: devices(rule),
            })
            .collect();
        let protect: Vec<_> = self
            .protect
            .iter()
            .map(|net| net.parse().unwrap())
            .collect();
        let input = Input {
            rules: &inputs,
            protect: &protect,
            generic_xdp: false,
        };
        let candidates = Candidates {
            snapshot: compile(&input, &Limits::sized(100, 100, 10)).unwrap(),
            killing: (0..)
                .zip(self.killing)
                .map(|(counter, _)| counter)
                .collect(),
            now: NOW,
        };
        ask(&Selection::new(self.killing, &candidates))
    }

    fn selects(&self, tuple: &Tuple, device: impl FnOnce() -> Option<u32>) -> Holds {
        self.ask(|selection| {
            let killing = self.killing.iter().any(Rule::kills);
            assert_eq!(selection.is_empty(), !killing);
            if killing {
                selection.selects(tuple, device)
            } else {
                Holds::Never
            }
        })
    }

    fn selects_hidden(&self, tuple: &Tuple) -> bool {
        self.ask(|selection| selection.selects_hidden(tuple, no_device))
    }
}

fn tuple(protocol: u8, remote: &str, remote_port: u16, local_port: u16) -> Tuple {
    let remote: IpAddr = remote.parse().unwrap();
    let local = if remote.is_ipv4() {
        "10.0.0.1"
    } else {
        "fd00::1"
    };
    Tuple {
        protocol,
        remote,
        remote_port,
        local: local.parse().unwrap(),
        local_port,
    }
}

fn no_device() -> Option<u32> {
    panic!("the device does not decide here")
}

#[test]
fn a_flow_is_named_by_the_whole_match() {
    let table = [
        // rule, protocol, remote, remote port, local port, named
        (
            r#""targets":["192.0.2.0/24"]"#,
            TCP,
            "192.0.2.9",
            1,
            2,
            true,
        ),
        (
            r#""targets":["192.0.2.0/24"]"#,
            UDP,
            "192.0.2.9",
            1,
            2,
            true,
        ),
        (
            r#""targets":["192.0.2.0/24"]"#,
            TCP,
            "192.0.3.9",
            1,
            2,
            false,
        ),
        (r#""targets":["0.0.0.0/0"]"#, TCP, "192.0.3.9", 1, 2, true),
        (
            r#""targets":["0.0.0.0/0"]"#,
            TCP,
            "2001:db8::1",
            1,
            2,
            false,
        ),
        (r#""targets":["::/0"]"#, TCP, "2001:db8::1", 1, 2, true),
        (
            r#""targets":["2001:db8::1"]"#,
            TCP,
            "2001:db8::1",
            1,
            2,
            true,
        ),
        (
            r#""targets":["2001:db8::1"]"#,
            TCP,
            "2001:db8::2",
            1,
            2,
            false,
        ),
        (
            r#""targets":["192.0.2.0/24"],"except":["192.0.2.8/30"]"#,
            TCP,
            "192.0.2.9",
            1,
            2,
            false,
        ),
        (
            r#""targets":["192.0.2.9"],"protocol":"tcp""#,
            UDP,
            "192.0.2.9",
            1,
            2,
            false,
        ),
        (
            r#""targets":["192.0.2.9"],"ports":[80]"#,
            TCP,
            "192.0.2.9",
            80,
            2,
            true,
        ),
        (
            r#""targets":["192.0.2.9"],"ports":[80]"#,
            TCP,
            "192.0.2.9",
            1,
            80,
            true,
        ),
        (
            r#""targets":["192.0.2.9"],"ports":[80]"#,
            TCP,
            "192.0.2.9",
            1,
            2,
            false,
        ),
        (
            r#""targets":["192.0.2.9"],"local_ports":["80-90"]"#,
            TCP,
            "192.0.2.9",
            80,
            2,
            false,
        ),
        (
            r#""targets":["192.0.2.9"],"local_ports":["80-90"]"#,
            TCP,
            "192.0.2.9",
            1,
            90,
            true,
        ),
        (
            r#""targets":["192.0.2.9"],"remote_ports":[443]"#,
            TCP,
            "192.0.2.9",
            443,
            2,
            true,
        ),
        (
            r#""targets":["192.0.2.9"],"remote_ports":[443]"#,
            TCP,
            "192.0.2.9",
            2,
            443,
            false,
        ),
        (
            r#""targets":["192.0.2.9"],"direction":"ingress""#,
            TCP,
            "192.0.2.9",
            1,
            2,
            true,
        ),
        (
            r#""targets":["192.0.2.9"],"percent":50"#,
            TCP,
            "192.0.2.9",
            1,
            2,
            false,
        ),
        (
            r#""targets":["192.0.2.9"],"established":"keep""#,
            TCP,
            "192.0.2.9",
            1,
            2,
            false,
        ),
    ];
    for (rest, protocol, remote, remote_port, local_port, named) in table {
        let rules = [rule(&format!(r#"{{"mode":"reset",{rest}}}"#))];
        let expected = if named { Holds::Always } else { Holds::Never };
        let tuple = tuple(protocol, remote, remote_port, local_port);
        let selected = Force::of(&rules, &[]).selects(&tuple, no_device);
        assert_eq!(selected, expected, "{rest} {tuple:?}");
    }
}

#[test]
fn a_rule_for_devices_asks_for_the_device() {
    let rules = [rule(
        r#"{"mode":"reset","targets":["192.0.2.9"],"interfaces":["eth0","veth*"]}"#,
    )];
    let flow = tuple(TCP, "192.0.2.9", 1, 2);
    for (device, expected) in [
        (Some(ETH0), Holds::Always),
        (Some(ETH0 + 1), Holds::Never),
        (Some(VETH7), Holds::Always),
        (None, Holds::Sometimes),
    ] {
        let selected = Force::of(&rules, &[]).selects(&flow, || device);
        assert_eq!(selected, expected, "{device:?}");
    }
}

#[test]
fn a_rule_for_local_addresses_names_their_flows_alone() {
    let killing = |local: &str| {
        rule(&format!(
            r#"{{"mode":"reset","targets":["192.0.2.9","2001:db8::1"],"local":[{local}]}}"#
        ))
    };
    for (local, v4, v6) in [
        (r#""10.0.0.1""#, Holds::Always, Holds::Never),
        (r#""10.0.0.0/8","fd00::/8""#, Holds::Always, Holds::Always),
        (r#""10.0.0.2""#, Holds::Never, Holds::Never),
        (r#""::/0""#, Holds::Never, Holds::Always),
        (r#""0.0.0.0/0""#, Holds::Always, Holds::Never),
    ] {
        let rules = [killing(local)];
        let force = Force::of(&rules, &[]);
        for (remote, expected) in [("192.0.2.9", v4), ("2001:db8::1", v6)] {
            let tuple = tuple(TCP, remote, 1, 2);
            assert_eq!(force.selects(&tuple, no_device), expected, "{local}");
            // A NAT hides the local address: no such rule is certain to decide.
            let hidden = force.ask(|selection| selection.selects_hidden(&tuple, || None));
            assert!(!hidden, "{local}");
        }
    }
}

#[test]
fn a_tuple_that_is_not_on_the_wire_is_left_to_the_one_that_is() {
    let wide = rule(r#"{"mode":"reset","targets":["192.0.2.9"]}"#);
    let beside = rule(r#"{"mode":"audit","targets":["192.0.2.9"],"local":["10.0.0.1"]}"#);
    let flow = tuple(TCP, "192.0.2.9", 1, 2);
    let (wide, beside) = ([wide], [beside]);
    assert!(Force::of(&wide, &[]).selects_hidden(&flow));
    let force = Force::of(&wide, &beside);
    assert!(!force.ask(|selection| selection.selects_hidden(&flow, || None)));
    assert_eq!(force.selects(&flow, no_device), Holds::Never);
    let other = Tuple {
        local: "10.0.0.2".parse().unwrap(),
        ..flow
    };
    assert_eq!(force.selects(&other, no_device), Holds::Always);
}

#[test]
fn one_rule_of_several_is_enough_and_an_exception_is_only_its_own_rules() {
    let rules = [
        rule(r#"{"mode":"reset","targets":["192.0.2.0/24"],"except":["192.0.2.9"]}"#),
        rule(r#"{"mode":"reset","targets":["192.0.0.0/16"],"remote_ports":[443]}"#),
    ];
    let force = Force::of(&rules, &[]);
    for (remote, port, expected) in [
        ("192.0.2.9", 443, Holds::Always),
        ("192.0.2.9", 80, Holds::Never),
        ("192.0.2.8", 80, Holds::Always),
    ] {
        let selected = force.selects(&tuple(TCP, remote, port, 2), no_device);
        assert_eq!(selected, expected, "{remote} {port}");
    }
}

#[test]
fn what_is_protected_and_what_has_ended_is_left_alone() {
    let rules = [rule(r#"{"mode":"reset","targets":["192.0.2.0/24"]}"#)];
    let flow = tuple(TCP, "192.0.2.9", 1, 2);
    for (protect, deadline, expected) in [
        (&["192.0.2.8/30"][..], NOW, Holds::Never),
        (&["192.0.2.12/30"], NOW, Holds::Always),
        (&[], NOW - 1, Holds::Never),
    ] {
        let force = Force {
            protect,
            deadline,
            ..Force::of(&rules, &[])
        };
        let selected = force.selects(&flow, no_device);
        assert_eq!(selected, expected, "{protect:?} {deadline}");
    }
}

#[test]
fn what_another_rule_decides_is_left_alone() {
    let killing = rule(r#"{"mode":"reset","targets":["192.0.2.0/24"]}"#);
    for (beside, port, named) in [
        // More specific: it decides, whatever it does.
        (
            r#"{"mode":"audit","targets":["192.0.2.9"]}"#,
            443,
            Holds::Never,
        ),
        (
            r#"{"mode":"drop","targets":["192.0.2.9"]}"#,
            443,
            Holds::Never,
        ),
        // In one direction only: the other is left to the rule that kills.
        (
            r#"{"mode":"audit","targets":["192.0.2.9"],"direction":"egress"}"#,
            443,
            Holds::Always,
        ),
        // As specific, but narrower, where it matches.
        (
            r#"{"mode":"drop","targets":["192.0.2.0/24"],"remote_ports":[443]}"#,
            443,
            Holds::Never,
        ),
        (
            r#"{"mode":"drop","targets":["192.0.2.0/24"],"remote_ports":[443]}"#,
            80,
            Holds::Always,
        ),
        // Less specific, elsewhere, excepted, or for some packets only.
        (
            r#"{"mode":"audit","targets":["192.0.0.0/16"]}"#,
            443,
            Holds::Always,
        ),
        (
            r#"{"mode":"audit","targets":["192.0.2.8"]}"#,
            443,
            Holds::Always,
        ),
        (
            r#"{"mode":"audit","targets":["192.0.2.8/30"],"except":["192.0.2.9"]}"#,
            443,
            Holds::Always,
        ),
        (
            r#"{"mode":"drop","targets":["192.0.2.9"],"percent":50}"#,
            443,
            Holds::Always,
        ),
    ] {
        let (killing, others) = ([killing.clone()], [rule(beside)]);
        let force = Force::of(&killing, &others);
        let selected = force.selects(&tuple(TCP, "192.0.2.9", port, 2), no_device);
        assert_eq!(selected, named, "{beside}");
    }
}
