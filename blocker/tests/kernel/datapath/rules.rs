//! Which rule takes a packet, or none: addresses, order, direction, protocol, ports, local
//! addresses, interfaces.
//!
//! All rules drop, so that every hook decides by itself; the rule that counts the packet is the
//! one that took it.

use anyhow::Result;
use blocker::compile::RuleInput;
use blocker::rule::Rule;
use blocker_ebpf::NEVER;

use crate::packets::bench::input;
use crate::packets::packet::*;
use crate::packets::program::NEXT;
use crate::packets::{Bench, Packet, Program, SETTINGS, echo, other, rule, tcp, udp};

const INWARD: [Program; 3] = [Program::Xdp, Program::Ingress, Program::IngressL3];
const OUTWARD: [Program; 2] = [Program::Egress, Program::EgressL3];

/// The id of the rule that takes a packet.
fn taker<'r>(
    bench: &mut Bench,
    program: Program,
    rules: &'r [Rule],
    packet: &Packet,
) -> Result<Option<&'r str>> {
    let seen = bench.run(program, &program.meets(packet))?;
    let taken = seen.rule();
    let verdict = if taken.is_some() {
        program.drop()
    } else {
        program.pass()
    };
    assert_eq!(seen.verdict, verdict, "{program:?}: {packet:?}");
    assert_eq!(seen.counted.hook.seen, 1);
    assert_eq!(seen.counted.hook.passed, u64::from(taken.is_none()));
    Ok(taken.map(|number| rules[number].id.as_str()))
}

type Table<'r> = [(Packet, Option<&'r str>)];

/// Checks which rule takes each packet, by each of these programs.
fn check(
    bench: &mut Bench,
    programs: &[Program],
    (rules, protect): (&[Rule], &[&str]),
    table: &Table<'_>,
) -> Result<()> {
    bench.enforce(rules, protect)?;
    for program in programs {
        for (packet, expected) in table {
            if program.is_l3() && !packet.can_be_bare() {
                continue;
            }
            let found = taker(bench, *program, rules, packet)?;
            assert_eq!(found, *expected, "{program:?}: {packet:?}");
        }
    }
    Ok(())
}

#[test]
fn the_most_specific_target_decides_but_for_exceptions_and_protected_prefixes() -> Result<()> {
    let from = |address: [u8; 4]| udp(b"hello").remote(address);
    let from6 = |last: u16| {
        udp(b"hello")
            .v6()
            .remote([0x2001, 0xdb8, 0x86dd, 0, 0, 0, 0, last])
    };
    let rules = [
        rule("all", "0.0.0.0/0 ::/0", "{mode: drop, protocol: tcp}"),
        rule(
            "wide",
            "8.0.0.0/16 2001:db8:86dd::/48",
            "{mode: drop, except: [8.0.2.0/24, '2001:db8:86dd::200/120']}",
        ),
        rule(
            "narrow",
            "8.0.1.0/24 2001:db8:86dd::100/120",
            "{mode: drop}",
        ),
        rule("host", "8.0.1.7 2001:db8:86dd::107", "{mode: drop}"),
        rule("twin", "8.0.1.7 2001:db8:86dd::107", "{mode: drop}"),
        rule(
            "web",
            "8.0.1.0/24 2001:db8:86dd::100/120",
            "{mode: drop, protocol: tcp, ports: [80]}",
        ),
    ];
    let protect = ["8.0.3.0/24", "8.0.1.9/32", "2001:db8:86dd::109/128"];
    let table = [
        (from([8, 0, 0, 0]), Some("wide")),
        (from([8, 0, 255, 255]), Some("wide")),
        (from([8, 1, 0, 0]), None),
        (from([7, 255, 255, 255]), None),
        (tcp(SYN).remote([8, 1, 0, 0]), Some("all")),
        (tcp(SYN).remote([0, 0, 0, 0]), Some("all")),
        (tcp(SYN).remote([255, 255, 255, 255]), Some("all")),
        (from([8, 0, 0, 255]), Some("wide")),
        (from([8, 0, 1, 0]), Some("narrow")),
        (from([8, 0, 1, 255]), Some("narrow")),
        (from([8, 0, 1, 6]), Some("narrow")),
        (from([8, 0, 1, 7]), Some("host")),
        (from([8, 0, 1, 8]), Some("narrow")),
        (tcp(SYN).remote([8, 0, 1, 7]), Some("host")),
        (tcp(SYN).remote([8, 0, 1, 8]), Some("web")),
        (tcp(SYN).remote([8, 0, 1, 8]).local_port(81), Some("narrow")),
        (from([8, 0, 1, 9]), None),
        (tcp(SYN).remote([8, 0, 1, 9]), None),
        (from([8, 0, 2, 0]), None),
        (tcp(SYN).remote([8, 0, 2, 255]), Some("all")),
        (tcp(SYN).remote([8, 0, 3, 1]), None),
        (from([8, 0, 4, 0]), Some("wide")),
        (from6(0xff), Some("wide")),
        (from6(0x100), Some("narrow")),
        (from6(0x107), Some("host")),
        (from6(0x109), None),
        (from6(0x1ff), Some("narrow")),
        (from6(0x200), None),
        (
            tcp(SYN)
                .v6()
                .remote([0x2001, 0xdb8, 0x86dd, 0, 0, 0, 0, 0x2ff]),
            Some("all"),
        ),
        (
            tcp(SYN)
                .v6()
                .remote([0x2001, 0xdb8, 0x86dd, 0, 0, 0, 0, 0x180]),
            Some("web"),
        ),
        (
            tcp(SYN).v6().remote([0x2001, 0xdb8, 0x86de, 0, 0, 0, 0, 0]),
            Some("all"),
        ),
        (
            udp(b"").v6().remote([0x2001, 0xdb8, 0x86de, 0, 0, 0, 0, 0]),
            None,
        ),
    ];
    Bench::with(SETTINGS, |bench| {
        check(bench, &Program::ALL, (&rules, &protect), &table)
    })
}

#[test]
fn what_no_rule_names_passes() -> Result<()> {
    let rules = [rule("remote", "8.0.0.1 2001:db8:86dd::1", "{mode: drop}")];
    let other6 = [0x2001, 0xdb8, 0x86dd, 0, 0, 0, 0, 3];
    // Only the remote's side names a packet: not this host's.
    let table = [
        (tcp(SYN).remote([8, 0, 0, 3]), None),
        (tcp(SYN).remote([8, 0, 0, 3]).local([8, 0, 0, 1]), None),
        (tcp(SYN).v6().remote(other6), None),
        (tcp(SYN).v6().remote(other6).local(REMOTE6), None),
        (tcp(SYN), Some("remote")),
        (tcp(SYN).v6(), Some("remote")),
    ];
    let nobody = [(tcp(SYN), None), (tcp(SYN).v6(), None)];
    Bench::with(SETTINGS, |bench| {
        check(bench, &Program::ALL, (&[], &[]), &nobody)?;
        check(bench, &Program::ALL, (&rules, &[]), &table)?;
        check(bench, &Program::ALL, (&[], &[]), &nobody)
    })
}

#[test]
fn directions_are_this_hosts() -> Result<()> {
    Bench::with(SETTINGS, |bench| {
        for (direction, inward, outward) in [
            ("ingress", Some("r"), None),
            ("egress", None, Some("r")),
            ("both", Some("r"), Some("r")),
        ] {
            let fields = format!("{{mode: drop, direction: {direction}}}");
            let rules = [rule("r", "8.0.0.1 2001:db8:86dd::1", &fields)];
            for (programs, taker) in [(&INWARD[..], inward), (&OUTWARD[..], outward)] {
                let table = [(tcp(ACK), taker), (udp(b"hello").v6(), taker)];
                check(bench, programs, (&rules, &[]), &table)?;
            }
        }
        Ok(())
    })
}

#[test]
fn protocols_are_told_apart() -> Result<()> {
    let both = "8.0.0.1 2001:db8:86dd::1";
    let rules = [
        rule("tcp", both, "{mode: drop, protocol: tcp}"),
        rule("udp", both, "{mode: drop, protocol: udp}"),
        rule("icmp", both, "{mode: drop, protocol: icmp}"),
        rule("gre", both, "{mode: drop, protocol: 47}"),
        rule("reserved", both, "{mode: drop, protocol: 255}"),
    ];
    let mut table = Vec::new();
    for (packet, expected) in [
        (tcp(SYN), Some("tcp")),
        (udp(b"hello"), Some("udp")),
        (echo(), Some("icmp")),
        (other(47), Some("gre")),
        (other(255), Some("reserved")),
        (other(132), None),
        (udp(&[0; 40]).fragment(5, true), Some("udp")),
    ] {
        table.push((packet.clone(), expected));
        table.push((packet.v6(), expected));
    }
    // ICMP is the family's own.
    table.push((other(58), None));
    table.push((
        other(1).transport(&[8; 20]).remote(REMOTE6).local(LOCAL6),
        None,
    ));
    // Extension headers are walked; where they are too many, or hide it, any protocol may be there.
    table.push((
        udp(b"hello").v6().extension(0, 8).extension(60, 8),
        Some("udp"),
    ));
    table.push((
        (0..8).fold(udp(b"hello").v6(), |p, _| p.extension(60, 8)),
        Some("udp"),
    ));
    table.push((
        (0..9).fold(udp(b"hello").v6(), |p, _| p.extension(60, 8)),
        Some("gre"),
    ));
    Bench::with(SETTINGS, |bench| {
        check(bench, &Program::ALL, (&rules, &[]), &table)
    })
}

#[test]
fn ports_are_the_remotes_the_local_or_either() -> Result<()> {
    let at = |remote, local| tcp(SYN).remote_port(remote).local_port(local);
    let datagram = |remote, local| udp(b"hello").remote_port(remote).local_port(local);
    let either = rule(
        "either",
        "8.0.0.1 2001:db8:86dd::1",
        "{mode: drop, ports: [0, 80, 8080-8085, 65535]}",
    );
    let local = rule(
        "local",
        "8.0.0.1 2001:db8:86dd::1",
        "{mode: drop, local_ports: [22, 1000-2000]}",
    );
    let remote = rule(
        "remote",
        "8.0.0.1 2001:db8:86dd::1",
        "{mode: drop, remote_ports: [0-100, 443]}",
    );
    let all = rule(
        "all",
        "8.0.0.1 2001:db8:86dd::1",
        "{mode: drop, protocol: tcp, ports: [80], local_ports: [80, 81], remote_ports: [1-65535]}",
    );
    let table = [
        (&either, at(5, 80), true),
        (&either, at(80, 5), true),
        (&either, at(5, 5), false),
        (&either, at(0, 5), true),
        (&either, at(1, 5), false),
        (&either, at(5, 65_535), true),
        (&either, at(5, 65_534), false),
        (&either, at(5, 8_079), false),
        (&either, at(5, 8_080), true),
        (&either, at(8_083, 5), true),
        (&either, at(5, 8_085), true),
        (&either, at(5, 8_086), false),
        (&either, datagram(5, 80), true),
        (&either, datagram(5, 79), false),
        (&local, at(5, 22), true),
        // What Ethernet pads with is no port.
        (&local, udp(b"").transport(&[0, 5]).trailer(20), true),
        (&local, at(22, 5), false),
        (&local, at(5, 999), false),
        (&local, at(5, 1_000), true),
        (&local, at(5, 2_000), true),
        (&local, at(5, 2_001), false),
        (&remote, at(443, 5), true),
        (&remote, at(5, 443), true),
        (&remote, at(101, 443), false),
        (&remote, datagram(100, 443), true),
        (&all, at(5, 80), true),
        (&all, at(80, 81), true),
        (&all, at(80, 82), false),
        (&all, at(0, 80), false),
        (&all, at(5, 81), false),
        // Of a protocol without ports none fits.
        (&either, echo(), false),
        (&either, other(47), false),
        (&either, other(132), false),
        // Of a fragment ports are not known: a rule that blocks takes it.
        (&either, datagram(5, 5).fragment(3, true), true),
        (&all, at(5, 5).fragment(3, false), true),
        (&all, datagram(5, 5).fragment(3, false), false),
        (&either, echo().fragment(3, false), false),
        (&either, datagram(5, 5).fragment(0, true), false),
        (&either, datagram(5, 80).fragment(0, true), true),
    ];
    Bench::with(SETTINGS, |bench| {
        for rule in [&either, &local, &remote, &all] {
            let rows = table.iter().filter(|(of, ..)| of.id == rule.id);
            let taker = |taken: bool| taken.then_some(rule.id.as_str());
            let rows: Vec<_> = rows
                .flat_map(|(_, packet, taken)| {
                    [packet.clone(), packet.clone().v6()].map(|packet| (packet, taker(*taken)))
                })
                .collect();
            check(
                bench,
                &Program::ALL,
                (std::slice::from_ref(rule), &[]),
                &rows,
            )?;
        }
        Ok(())
    })
}

#[test]
fn audit_takes_no_packet_whose_ports_are_not_known() -> Result<()> {
    let fields = "{mode: audit, protocol: udp, ports: [80]}";
    let rules = [rule("r", "8.0.0.1 2001:db8:86dd::1", fields)];
    let hidden = (0..9).fold(udp(b"hello").v6(), |p, _| p.extension(60, 8));
    Bench::with(SETTINGS, |bench| {
        bench.enforce(&rules, &[])?;
        for (packet, taken) in [
            (udp(b"hello"), true),
            (udp(b"hello").v6(), true),
            (udp(&[0; 40]).fragment(3, true), false),
            (udp(&[0; 40]).v6().fragment(3, true), false),
            (hidden, false),
        ] {
            for program in [Program::Ingress, Program::Egress] {
                let seen = bench.run(program, &program.meets(&packet))?;
                assert_eq!(seen.verdict, NEXT, "{packet:?}");
                assert_eq!(seen.rule().is_some(), taken, "{program:?}: {packet:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn local_addresses_are_the_source_outward_and_the_destination_inward() -> Result<()> {
    const ANYONE: &str = "8.0.0.0/8 2001:db8:86dd::/48";
    let here = |last: u8| udp(b"hello").local([1, 2, 0, last]);
    let here6 = |last: u16| {
        udp(b"hello")
            .v6()
            .local([0x2001, 0xdb8, 0xbeef, 0, 0, 0, 0, last])
    };
    let own = rule(
        "own",
        ANYONE,
        "{mode: drop, local: [1.2.0.7, '2001:db8:beef::7']}",
    );
    let net = rule(
        "net",
        ANYONE,
        "{mode: drop, local: [1.2.0.64/26, '2001:db8:beef::40/122', 192.0.2.0/24]}",
    );
    let v4 = rule("v4", ANYONE, "{mode: drop, local: [0.0.0.0/0]}");
    let v6 = rule("v6", ANYONE, "{mode: drop, local: ['::/0']}");
    let tcp_only = rule(
        "web",
        ANYONE,
        "{mode: drop, protocol: tcp, local: [1.2.0.7]}",
    );
    let rest = rule("rest", ANYONE, "{mode: drop}");
    let alone = std::slice::from_ref;
    Bench::with(SETTINGS, |bench| {
        let mut expect = |rules: &[Rule], table: &[(Packet, Option<&str>)]| {
            check(bench, &Program::ALL, (rules, &[]), table)
        };
        // Another bank each time, so that neither holds what the other did.
        for _ in 0..2 {
            expect(
                alone(&own),
                &[
                    (here(7), Some("own")),
                    (here(6), None),
                    (here(8), None),
                    (here6(7), Some("own")),
                    (here6(6), None),
                    (here(7).fragment(3, true), Some("own")),
                    (here(8).fragment(3, false), None),
                    (here6(7).fragment(3, false), Some("own")),
                    (here6(8).fragment(3, false), None),
                    // The remote is none of the local addresses.
                    (here(8).remote([8, 2, 0, 7]), None),
                ],
            )?;
            expect(
                alone(&net),
                &[
                    (here(63), None),
                    (here(64), Some("net")),
                    (here(127), Some("net")),
                    (here(128), None),
                    (here6(0x3f), None),
                    (here6(0x40), Some("net")),
                    (here6(0x7f), Some("net")),
                    (here6(0x80), None),
                    (here(7), None),
                ],
            )?;
            expect(alone(&v4), &[(here(1), Some("v4")), (here6(1), None)])?;
            expect(alone(&v6), &[(here(1), None), (here6(1), Some("v6"))])?;
            expect(
                &[rest.clone(), net.clone(), own.clone(), tcp_only.clone()],
                &[
                    (here(7), Some("own")),
                    (tcp(SYN).local([1, 2, 0, 7]), Some("web")),
                    (here(64), Some("net")),
                    (here(1), Some("rest")),
                    (here6(7), Some("own")),
                    (here6(1), Some("rest")),
                ],
            )?;
        }
        Ok(())
    })
}

#[test]
fn interfaces_are_those_that_the_rule_means() -> Result<()> {
    let rule = rule("r", "8.0.0.1 2001:db8:86dd::1", "{mode: drop}");
    Bench::with(SETTINGS, |bench| {
        let (eth0, lo) = (bench.ifindex, 1); // a test run of XDP is on the loopback device
        for (interfaces, xdp, tc) in [
            (None, true, true),
            (Some(vec![]), false, false),
            (Some(vec![eth0]), false, true),
            (Some(vec![lo]), true, false),
            (Some(vec![1_000_000, lo, eth0]), true, true),
            (Some(vec![1_000_000]), false, false),
        ] {
            let rules = [RuleInput {
                interfaces: interfaces.clone(),
                ..input(0, &rule)
            }];
            bench.enforce_inputs(&rules, &[])?;
            for program in Program::ALL {
                let seen = bench.run(program, &program.meets(&tcp(SYN)))?;
                let taken = if program == Program::Xdp { xdp } else { tc };
                assert_eq!(seen.rule().is_some(), taken, "{program:?}: {interfaces:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_rule_ends_at_its_deadline_without_anybody() -> Result<()> {
    let rule = rule("r", "8.0.0.1 2001:db8:86dd::1", "{mode: reset}");
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?;
    let now = u64::try_from(std::time::Duration::from(now).as_nanos())?;
    Bench::with(SETTINGS, |bench| {
        for (deadline, taken) in [
            (1, false),
            (now, false),
            (now + 3_600_000_000_000, true),
            (NEVER, true),
        ] {
            let rules = [RuleInput {
                deadline,
                ..input(0, &rule)
            }];
            bench.enforce_inputs(&rules, &[])?;
            for program in [Program::Ingress, Program::Egress] {
                let seen = bench.run(program, &program.meets(&tcp(SYN)))?;
                assert_eq!(seen.rule().is_some(), taken, "{program:?}: {deadline}");
            }
        }
        Ok(())
    })
}
