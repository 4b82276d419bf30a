//! That what is explained is what the datapath does: the same rules and packets, read from the
//! live bank and judged here, and run through the programs.

use std::net::IpAddr;

use anyhow::{Context, Result};
use blocker::compile::{self, Fit, PacketPorts, RuleInput, settles_at_xdp};
use blocker::rule::Rule;
use blocker_ebpf::{Hook, NEVER};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

mod lab;
mod packets;

use packets::bench::input;
use packets::packet::*;
use packets::{Bench, Packet, Program, SETTINGS, echo, other, rule, tcp, udp};

/// Prefixes that nest around both families' remotes.
const TARGETS: [&str; 5] = [
    "0.0.0.0/0 ::/0",
    "8.0.0.0/16 2001:db8:86dd::/48",
    "8.0.0.0/30 2001:db8:86dd::/126",
    "8.0.0.1 2001:db8:86dd::1",
    "8.0.0.1 8.1.0.0/17 2001:db8:86dd:1::/64",
];

const FIELDS: [&str; 10] = [
    "protocol: any",
    "protocol: tcp",
    "protocol: udp",
    "protocol: icmp",
    "protocol: 47",
    "ports: [80, 1000-2000]",
    "local_ports: [80, 443], protocol: udp",
    "remote_ports: [1000-2000]",
    "local: [8.0.0.0/24, \"2001:db8:86dd::2\"]",
    "local: [8.0.0.3, \"2001:db8:86dd::/127\"]",
];

/// A packet, and what an asker would know of it.
#[derive(Debug, Clone)]
struct Known {
    packet: Packet,
    remote: IpAddr,
    protocol: u8,
    ports: PacketPorts,
}

fn known() -> impl Strategy<Value = Known> {
    let remotes: Vec<IpAddr> = [
        "8.0.0.1",
        "8.0.0.3",
        "8.0.0.4",
        "8.1.127.255",
        "8.1.128.0",
        "2001:db8:86dd::1",
        "2001:db8:86dd::3",
        "2001:db8:86dd::4",
        "2001:db8:86dd:1::1",
        "2001:db8:86de::1",
    ]
    .map(|address| address.parse().expect("an address"))
    .to_vec();
    let port = || select(vec![0_u16, 80, 443, 999, 1_000, 2_000, 2_001, 65_535]);
    (select(remotes), 0..5_u8, port(), port()).prop_map(|(remote, kind, local, from)| {
        let (packet, protocol) = match kind {
            0 => (tcp(SYN), 6),
            1 => (udp(b"hello"), 17),
            2 if remote.is_ipv6() => (echo(), 58),
            2 => (echo(), 1),
            3 => (other(47), 47),
            _ => (other(132), 132),
        };
        let has_ports = kind < 2;
        let packet = if remote.is_ipv6() {
            packet.v6()
        } else {
            packet
        };
        let mut packet = packet.remote(remote);
        if has_ports {
            packet = packet.local_port(local).remote_port(from);
        }
        let sides = |port: u16| has_ports.then_some(port);
        Known {
            packet,
            remote,
            protocol,
            ports: PacketPorts::Sides {
                local: sides(local),
                remote: sides(from),
            },
        }
    })
}

fn some_rule() -> impl Strategy<Value = (String, String)> {
    let modes = vec!["drop", "drop", "drop", "audit"];
    let directions = vec!["both", "both", "ingress", "egress"];
    (
        select(TARGETS.to_vec()),
        select(FIELDS.to_vec()),
        select(modes),
        select(directions),
    )
        .prop_map(|(targets, fields, mode, direction)| {
            let fields = format!("{{mode: {mode}, direction: {direction}, {fields}}}");
            (targets.to_owned(), fields)
        })
}

/// The rule that is said to take a packet, and whether XDP is said to end it.
fn judged(bench: &Bench, program: Program, known: &Known) -> Result<Option<(usize, bool)>> {
    let packet = compile::Packet {
        v6: known.remote.is_ipv6(),
        hook: program.hook(),
        // A test run of XDP is on the loopback device.
        ifindex: if program == Program::Xdp {
            1
        } else {
            bench.ifindex
        },
        local: Some(if known.remote.is_ipv6() {
            LOCAL6.into()
        } else {
            LOCAL.into()
        }),
        protocol: Some(known.protocol),
        ports: known.ports,
    };
    let tried = bench.datapath.lookup(known.remote)?;
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?;
    let now = u64::try_from(std::time::Duration::from(now).as_nanos())?;
    for tried in tried {
        match tried.fit(&packet, now) {
            Fit::Not(_) => {}
            Fit::Takes => {
                let number = usize::try_from(tried.rule.counter)?;
                return Ok(Some((number, settles_at_xdp(&tried.rule))));
            }
            open => anyhow::bail!("all of {known:?} is known, but the verdict is {open:?}"),
        }
    }
    Ok(None)
}

#[test]
fn what_is_explained_is_what_the_programs_do() -> Result<()> {
    let mut runner = TestRunner::default();
    let rules = proptest::collection::vec((some_rule(), 0..6_u8), 1..12);
    let protects = select(vec![vec![], vec!["8.0.0.3/32"], vec!["2001:db8:86dd::/64"]]);
    let packets = proptest::collection::vec(known(), 24);
    let case = (rules, protects, packets);
    let (mut taken, mut ended) = (0, 0);
    Bench::with(SETTINGS, |bench| {
        for _ in 0..40 {
            let tree = case.new_tree(&mut runner).map_err(anyhow::Error::msg)?;
            let (texts, protect, packets) = tree.current();
            let rules: Vec<Rule> = (0..)
                .zip(&texts)
                .map(|(n, ((targets, fields), _))| rule(&format!("r{n}"), targets, fields))
                .collect();
            let inputs: Vec<RuleInput<'_>> = (0..)
                .zip(&rules)
                .zip(&texts)
                .map(|((n, rule), (_, circumstance))| RuleInput {
                    interfaces: match circumstance {
                        0 => Some(vec![bench.ifindex]),
                        1 => Some(vec![1]),
                        _ => None,
                    },
                    deadline: if *circumstance == 2 { 1 } else { NEVER },
                    ..input(n, rule)
                })
                .collect();
            bench.enforce_inputs(&inputs, &protect)?;
            for (known, program) in packets
                .iter()
                .flat_map(|known| Program::ALL.map(|program| (known, program)))
            {
                if program.is_l3() && !known.packet.can_be_bare() {
                    continue;
                }
                let judged = judged(bench, program, known)?;
                // What XDP leaves to TC it doesn't count.
                let expected = judged
                    .filter(|(_, settled)| program.hook() != Hook::Xdp || *settled)
                    .map(|(number, _)| number);
                let seen = bench.run(program, &program.meets(&known.packet))?;
                assert_eq!(
                    seen.rule(),
                    expected,
                    "{program:?}: {known:?} under {texts:?}, protected {protect:?}"
                );
                taken += u32::from(expected.is_some());
                ended += u32::from(seen.verdict == program.drop());
            }
        }
        Ok(())
    })
    .context("the comparison")?;
    assert!(
        taken > 500 && ended > 300,
        "{taken} taken, {ended} ended: too few to mean anything"
    );
    Ok(())
}
