//! What bounds a rule and its replies: percent, the rate of replies, marks, segmentation.

use std::time::{Duration, Instant};

use anyhow::Result;
use blocker::datapath::{HookTotals, Settings, Totals};
use blocker::teardown::Evidence;
use blocker_ebpf::{FlowKey, kill};

use crate::packets::packet::*;
use crate::packets::program::{NEXT, SHOT};
use crate::packets::{Bench, Packet, Program, SETTINGS, Sight, rule, tcp, udp};

const REMOTES: &str = "8.0.0.0/16 2001:db8:86dd::/48";
const TC: [Program; 4] = [
    Program::Ingress,
    Program::Egress,
    Program::IngressL3,
    Program::EgressL3,
];

#[test]
fn a_percentage_of_flows_is_reset_and_each_flow_always_or_never() -> Result<()> {
    Bench::with(SETTINGS, |bench| {
        bench.enforce(&[rule("half", REMOTES, "{mode: reset, percent: 50}")], &[])?;
        for v6 in [false, true] {
            let mut taken = 0;
            for port in 0..1_000 {
                let packet = tcp(ACK).payload(b"data").remote_port(20_000 + port);
                let packet = if v6 { packet.v6() } else { packet };
                let verdicts: Vec<bool> = TC
                    .iter()
                    .chain(&TC)
                    .map(|program| {
                        let seen = bench.run(*program, &program.meets(&packet))?;
                        Ok(seen.rule().is_some())
                    })
                    .collect::<Result<_>>()?;
                assert!(
                    verdicts.iter().all(|verdict| *verdict == verdicts[0]),
                    "port {port}: {verdicts:?}"
                );
                taken += u32::from(verdicts[0]);
            }
            // Binomial: 500 with a standard deviation of 16.
            assert!((400..600).contains(&taken), "{taken} of 1000 flows");
        }
        Ok(())
    })
}

#[test]
fn a_percentage_of_packets_is_dropped_by_tc_alone() -> Result<()> {
    Bench::with(SETTINGS, |bench| {
        for (percent, bounds) in [(1, 1..200), (50, 1_750..2_250), (99, 3_800..4_000)] {
            bench.enforce(
                &[rule(
                    "some",
                    REMOTES,
                    &format!("{{mode: drop, percent: {percent}}}"),
                )],
                &[],
            )?;
            for program in [Program::Ingress, Program::Egress] {
                let frame = program.meets(&udp(b"hello")).bytes();
                let before = bench.datapath.rule_counters(0)?;
                let mut dropped = 0;
                for _ in 0..4_000 {
                    dropped += u64::from(bench.verdict(program, &frame)? == SHOT);
                }
                assert!(
                    bounds.contains(&dropped),
                    "{percent} percent: {dropped} of 4000"
                );
                let after = bench.datapath.rule_counters(0)?;
                let counted = after.ingress.packets + after.egress.packets
                    - before.ingress.packets
                    - before.egress.packets;
                assert_eq!(counted, dropped);
            }
        }
        // A die that XDP cast would be cast again by TC.
        let seen = bench.run(Program::Xdp, &udp(b"hello"))?;
        assert_eq!((seen.verdict, seen.rule()), (Program::Xdp.pass(), None));
        Ok(())
    })
}

#[test]
fn over_the_rate_packets_are_dropped_without_a_reply() -> Result<()> {
    const RATE: u64 = 5;
    const PACKETS: u64 = 40;
    let settings = Settings {
        replies_per_second: RATE as u32,
        ..SETTINGS
    };
    Bench::with(settings, |bench| {
        for (mode, packet, replies_each) in [
            ("reset", tcp(SYN), 1),
            ("reset", tcp(ACK).payload(b"data"), 2),
            ("reset", udp(b"hello").v6(), 1),
            ("reject", tcp(SYN).v6(), 1),
        ] {
            bench.enforce(&[rule("r", REMOTES, &format!("{{mode: {mode}}}"))], &[])?;
            // Refills the bucket: it holds the tokens of a second.
            std::thread::sleep(Duration::from_secs(1));
            let start = Instant::now();
            let mut total = Totals::default();
            for _ in 0..PACKETS {
                let seen = bench.run(Program::Ingress, &packet)?;
                let counted = seen.counted.rules[0];
                let replies = (seen.sent.len() + usize::from(seen.verdict == NEXT)) as u64;
                assert_eq!(counted.replies, replies);
                assert_eq!(counted.packets, 1);
                assert_eq!(counted.suppressed, u64::from(replies == 0));
                total.replies += counted.replies;
                total.suppressed += counted.suppressed;
            }
            let answered = total.replies / replies_each;
            assert_eq!(answered + total.suppressed, PACKETS);
            // A second's worth at once, then as many as time allows.
            let most = RATE + (start.elapsed().as_secs_f64() * RATE as f64).ceil() as u64;
            assert!(
                (RATE..=most).contains(&answered),
                "{answered} answered, {RATE} to {most} allowed"
            );
        }
        Ok(())
    })
}

#[test]
fn what_no_reply_is_due_to_takes_no_token() -> Result<()> {
    let settings = Settings {
        replies_per_second: 1,
        ..SETTINGS
    };
    Bench::with(settings, |bench| {
        bench.enforce(&[rule("r", REMOTES, "{mode: reset}")], &[])?;
        for _ in 0..10 {
            let seen = bench.run(Program::Ingress, &udp(b"hello").fragment(3, true))?;
            assert_eq!(seen.counted.rules[0].suppressed, 0);
        }
        assert_eq!(bench.run(Program::Ingress, &tcp(SYN))?.sent.len(), 1);
        Ok(())
    })
}

#[test]
fn a_flow_under_teardown_is_answered_over_the_rate_and_its_resets_are_noted() -> Result<()> {
    let settings = Settings {
        replies_per_second: 0,
        ..SETTINGS
    };
    let mapped = |address: std::net::Ipv4Addr| address.to_ipv6_mapped().octets();
    let key = FlowKey {
        remote: mapped(REMOTE),
        local: mapped(LOCAL),
        remote_port: REMOTE_PORT,
        local_port: LOCAL_PORT,
        protocol: 6,
    };
    let key6 = FlowKey {
        remote: REMOTE6.octets(),
        local: LOCAL6.octets(),
        ..key
    };
    Bench::with(settings, |bench| {
        bench.enforce(&[rule("r", REMOTES, "{mode: reset}")], &[])?;
        let kills = bench.datapath.kills();
        for (packet, key) in [(tcp(ACK), key), (tcp(ACK).v6(), key6)] {
            let noted = || kills.seen(&[key]).map(|bits| bits[0]);
            let seen = bench.run(Program::Ingress, &packet)?;
            assert_eq!(
                seen.counted.rules[0].suppressed, 1,
                "not watched, no tokens"
            );
            for program in TC {
                kills.watch(&[key])?;
                let seen = bench.run(program, &program.meets(&packet))?;
                assert_eq!(seen.counted.rules[0].replies, 3, "{program:?}");
                assert_eq!(noted()?, kill::REMOTE | kill::LOCAL, "{program:?}");
                kills.forget(&[key])?;
            }
            // RSTs that pass are noted at the end that they go to.
            let rst = if packet.is_v6() {
                tcp(RST).v6()
            } else {
                tcp(RST)
            };
            for (program, end) in [
                (Program::Ingress, kill::LOCAL),
                (Program::Egress, kill::REMOTE),
            ] {
                kills.watch(&[key])?;
                assert_eq!(bench.run(program, &program.meets(&rst))?.verdict, NEXT);
                assert_eq!(noted()?, end, "{program:?}");
                kills.forget(&[key])?;
            }
        }
        Ok(())
    })
}

#[test]
fn our_own_mark_passes_and_no_other() -> Result<()> {
    let own = SETTINGS.mark;
    Bench::with(SETTINGS, |bench| {
        bench.enforce(&[rule("r", REMOTES, "{mode: drop}")], &[])?;
        for program in TC {
            let packet = program.meets(&tcp(ACK)).bytes();
            for mark in [own, 0, 1, own ^ 1, !own, own >> 16, u32::MAX] {
                let sight = Sight {
                    mark,
                    ..Sight::default()
                };
                let seen = bench.run_on(program, &packet, sight)?;
                let hook = seen.counted.hook;
                if mark == own {
                    assert_eq!((seen.verdict, seen.rule()), (NEXT, None), "{program:?}");
                    assert_eq!(
                        hook,
                        HookTotals {
                            own: 1,
                            ..HookTotals::default()
                        }
                    );
                    // Coming in, the mark has done its work.
                    assert_eq!(seen.mark, if program.is_egress() { own } else { 0 });
                    assert_eq!(seen.packet, packet);
                } else {
                    assert_eq!(
                        (seen.verdict, seen.rule()),
                        (SHOT, Some(0)),
                        "{program:?}, mark {mark:#x}"
                    );
                    assert_eq!(
                        hook,
                        HookTotals {
                            seen: 1,
                            ..HookTotals::default()
                        }
                    );
                    assert_eq!(seen.mark, mark);
                }
            }
        }
        Ok(())
    })
}

#[test]
fn only_a_rule_that_resets_lets_rsts_pass() -> Result<()> {
    Bench::with(SETTINGS, |bench| {
        for (fields, passes) in [
            ("{mode: reset}", true),
            ("{mode: drop, established: kill}", false),
            ("{mode: drop, on_lift: reset}", false),
            ("{mode: reject}", false),
        ] {
            bench.enforce(&[rule("r", REMOTES, fields)], &[])?;
            for program in Program::ALL {
                for packet in [tcp(RST), tcp(RST | ACK).v6()] {
                    let seen = bench.run(program, &program.meets(&packet))?;
                    // What needs a second look, XDP leaves to TC.
                    let left_to_tc = program == Program::Xdp && fields == "{mode: reject}";
                    let verdict = if passes || left_to_tc {
                        program.pass()
                    } else {
                        program.drop()
                    };
                    assert_eq!(seen.verdict, verdict, "{program:?}, {fields}: {packet:?}");
                    assert_eq!(seen.rule().is_none(), passes || left_to_tc);
                }
            }
        }
        Ok(())
    })
}

/// A packet that is to be segmented is as long as its buffer, whatever its IP header says, and
/// SEG.LEN is all of it.
#[test]
fn a_packet_that_is_to_be_segmented_is_answered_as_a_whole() -> Result<()> {
    let payload = [0x42; 3_000]; // a test run takes no more than a page with all its headers
    let length = u32::try_from(payload.len())?;
    let sight = Sight {
        gso_segs: 3,
        gso_size: 1_400,
        ..Sight::default()
    };
    let big: [fn(Packet) -> Packet; 2] = [
        |packet| packet,
        // BIG TCP leaves the length out.
        |packet| {
            if packet.is_v6() {
                packet.ip_byte(4, 0).ip_byte(5, 0)
            } else {
                packet.ip_byte(2, 0).ip_byte(3, 0)
            }
        },
    ];
    Bench::with(SETTINGS, |bench| {
        bench.enforce(&[rule("r", REMOTES, "{mode: reset}")], &[])?;
        for (flags, expected) in [(0, (RST | ACK, 0, SEQ + length)), (ACK, (RST, ACKED, 0))] {
            for v6 in [false, true] {
                for big in big {
                    let packet = tcp(flags).payload(&payload);
                    let packet = big(if v6 { packet.v6() } else { packet });
                    for program in [Program::Ingress, Program::Egress] {
                        let packet = program.meets(&packet);
                        let seen = bench.run_on(program, &packet.bytes(), sight)?;
                        let (flags, seq, ack) = expected;
                        let rst = packet.clone().outgoing().rst(flags, seq, ack).bytes();
                        let to_sender = if program.is_egress() {
                            seen.received
                        } else {
                            seen.sent
                        };
                        assert_eq!(to_sender, [rst], "{program:?}");
                    }
                }
            }
        }
        Ok(())
    })
}
