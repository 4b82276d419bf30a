//! Rulesets: rules whose targets nest and touch, with every kind of match.

use std::net::IpAddr;

use blocker::compile::RuleInput;
use blocker::rule::{Rule, Target};
use blocker_ebpf::NEVER;
use fastrand::Rng;
use ipnet::IpNet;

use super::frames::{address4, address6, once_in, one};
use crate::packets::bench::input;
use crate::packets::rule;

/// Rules, and what they do not say themselves.
#[derive(Debug)]
pub(crate) struct Ruleset {
    pub(crate) rules: Vec<Rule>,
    /// Of each rule: whether it is over already.
    pub(crate) over: Vec<bool>,
    /// Of each rule: the devices that it means, if not all.
    pub(crate) interfaces: Vec<Option<Vec<u32>>>,
    pub(crate) protect: Vec<IpNet>,
}

impl Ruleset {
    /// Some ruleset, for a host that has these devices.
    pub(crate) fn random(rng: &mut Rng, devices: &[u32]) -> Self {
        let rules: Vec<Rule> = (0..rng.usize(1..12)).map(|n| random(rng, n)).collect();
        let mut interfaces = || {
            let some = devices.iter().copied().filter(|_| rng.bool()).collect();
            once_in(rng, 6).then_some(some)
        };
        Self {
            interfaces: rules.iter().map(|_| interfaces()).collect(),
            over: rules.iter().map(|_| once_in(rng, 10)).collect(),
            protect: (0..one(rng, &[0, 0, 1, 2])).map(|_| near(rng)).collect(),
            rules,
        }
    }

    /// As the compiler takes them.
    pub(crate) fn inputs(&self) -> Vec<RuleInput<'_>> {
        let one = |(number, rule): (u32, _)| {
            let place = number as usize;
            RuleInput {
                deadline: if self.over[place] { 1 } else { NEVER },
                interfaces: self.interfaces[place].clone(),
                ..input(number, rule)
            }
        };
        (0..).zip(&self.rules).map(one).collect()
    }
}

/// A rule; in every other ruleset the first one takes all that the others leave.
fn random(rng: &mut Rng, number: usize) -> Rule {
    let modes = ["drop", "drop", "reset", "reset", "reject", "audit"];
    if number == 0 && rng.bool() {
        let fields = format!("{{mode: {}}}", one(rng, &modes));
        return rule("rest", "0.0.0.0/0 ::/0", &fields);
    }
    let directions = ["both", "both", "both", "ingress", "egress"];
    let with_ports = ["any", "any", "any", "tcp", "tcp", "udp"];
    let without = ["icmp", "47", "58", "0", "1", "255"];
    let ports = rng.bool();
    let protocols = if ports || rng.bool() {
        with_ports
    } else {
        without
    };
    let mut fields = format!(
        "mode: {}, direction: {}, protocol: {}",
        one(rng, &modes),
        one(rng, &directions),
        one(rng, &protocols)
    );
    for side in ["ports", "local_ports", "remote_ports"] {
        if ports && once_in(rng, 3) {
            let ports = ["80", "0, 22", "1000-2000", "443, 65535", "0-65535"];
            fields += &format!(", {side}: [{}]", one(rng, &ports));
        }
    }
    let mut rule = rule(
        &format!("r{number:02}"),
        "0.0.0.0/0",
        &format!("{{{fields}}}"),
    );
    rule.targets = (0..rng.usize(1..5)).map(|_| target(rng)).collect();
    rule.except = some(rng, 4);
    rule.matching.local = some(rng, 5);
    rule
}

/// Some prefixes, once in so many times.
fn some(rng: &mut Rng, times: u32) -> Vec<Target> {
    let count = if once_in(rng, times) {
        rng.u32(1..4)
    } else {
        0
    };
    (0..count).map(|_| near(rng).into()).collect()
}

fn target(rng: &mut Rng) -> Target {
    let wide = [
        "0.0.0.0/0",
        "::/0",
        "8.0.0.0/8",
        "2001:db8::/32",
        "128.0.0.0/1",
    ];
    if once_in(rng, 3) {
        return one(rng, &wide).parse().expect("a prefix");
    }
    near(rng).into()
}

/// A long prefix near the addresses of packets.
fn near(rng: &mut Rng) -> IpNet {
    let (address, length): (IpAddr, u8) = if rng.bool() {
        (address4(rng), rng.u8(20..33))
    } else {
        (address6(rng), rng.u8(48..129))
    };
    IpNet::new(address, length)
        .expect("a length of the family")
        .trunc()
}
