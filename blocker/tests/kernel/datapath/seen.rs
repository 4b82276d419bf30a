//! What the datapath records of packets that rules decide: their flows, and events while there is a
//! watcher.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use anyhow::Result;
use blocker::datapath::Settings;
use blocker::rule::Rule;
use blocker_ebpf::{Event, FlowId, FlowKey, FlowRecord, tag, verdict};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::packets::packet::*;
use crate::packets::{Bench, Packet, Program, SETTINGS, echo, other, rule, tcp, udp};

const REMOTES: &str = "8.0.0.0/16 2001:db8:86dd::/48";
const TC: [Program; 4] = [
    Program::Ingress,
    Program::Egress,
    Program::IngressL3,
    Program::EgressL3,
];

/// The longest tick of the kernel's timer, in nanoseconds: at `CONFIG_HZ=100`.
const TICK: u64 = 10_000_000;

type Flows = Vec<(FlowId, FlowRecord)>;

/// The flows of the rule of a tag.
fn flows(bench: &Bench, tag: u32) -> Flows {
    let mut all = Flows::new();
    let count = bench
        .datapath
        .seen()
        .flows(|id, record| all.push((*id, *record)));
    assert_eq!(count, all.len() as u64);
    all.retain(|(id, _)| id.rule == tag);
    all.sort_by_key(|(id, _)| id.flow.remote_port);
    all
}

/// Makes a rule live as if it had not been there before, and gives its tag.
fn anew(bench: &mut Bench, rules: &[Rule]) -> Result<u32> {
    bench.datapath.begin_counting(0, &"r0".parse()?)?;
    bench.enforce(rules, &[])?;
    Ok(bench.datapath.tag(0))
}

/// Packets of both families, their protocol, their ports (remote, local), their ICMP type.
fn kinds() -> Vec<(Packet, u32, (u16, u16), u8)> {
    let ports = (REMOTE_PORT, LOCAL_PORT);
    let v4 = [
        (tcp(SYN | PSH).payload(b"data"), 6, ports, 0),
        (udp(b"hello, you"), 17, ports, 0),
        (udp(b"hello, you").fragment(3, false), 17, (0, 0), 0),
        (echo(), 1, (0, 0), 8),
        (other(47), 47, (0, 0), 0),
    ];
    let v6 = v4.clone().map(|(packet, protocol, ports, icmp_type)| {
        let (protocol, icmp_type) = match protocol {
            1 => (58, 128),
            other => (other, icmp_type),
        };
        (packet.v6(), protocol, ports, icmp_type)
    });
    [v4, v6].concat()
}

/// Keeps this thread on one CPU: each CPU has its own record of known flows.
fn stay(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    Ok(())
}

/// The device that a test run is on.
fn device(bench: &Bench, program: Program) -> u32 {
    if program == Program::Xdp {
        1
    } else {
        bench.ifindex
    }
}

fn events(bench: &Bench) -> Vec<Event> {
    let mut events = Vec::new();
    bench.datapath.seen().drain(|event| events.push(*event));
    events
}

/// The flow of a packet that no one changed the addresses of.
fn key(packet: &Packet, protocol: u32, ports: (u16, u16)) -> FlowKey {
    let mapped = |address: Ipv4Addr| address.to_ipv6_mapped().octets();
    let (remote, local) = if packet.is_v6() {
        (REMOTE6.octets(), LOCAL6.octets())
    } else {
        (mapped(REMOTE), mapped(LOCAL))
    };
    FlowKey {
        remote,
        local,
        remote_port: ports.0,
        local_port: ports.1,
        protocol,
    }
}

/// What the hook sees a packet as long as.
fn length(program: Program, packet: &Packet) -> u64 {
    program.meets(packet).bytes().len() as u64
}

fn now() -> Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?;
    Ok(u64::try_from(std::time::Duration::from(now).as_nanos())?)
}

#[test]
fn a_flow_is_recorded_in_every_mode_at_every_hook_in_both_families() -> Result<()> {
    let modes = [
        ("drop", verdict::DROPPED),
        ("reset", verdict::RESET),
        ("reject", verdict::REJECTED),
        ("audit", verdict::AUDITED),
    ];
    Bench::with(SETTINGS, |bench| {
        for (mode, fate) in modes {
            for (packet, protocol, ports, _) in kinds() {
                for program in Program::ALL {
                    if program == Program::Xdp && mode != "drop" {
                        continue; // left to TC
                    }
                    let fate = match (protocol, ports, mode) {
                        // No reply is due to a later fragment.
                        (17, (0, 0), "reset" | "reject") => verdict::DROPPED,
                        _ => fate,
                    };
                    let rules = [rule("r", REMOTES, &format!("{{mode: {mode}}}"))];
                    let tag = anew(bench, &rules)?;
                    let before = now()?;
                    for _ in 0..3 {
                        bench.run(program, &program.meets(&packet))?;
                    }
                    let after = now()?;
                    let what = format!("{mode}, {program:?}: {packet:?}");
                    let flows = flows(bench, tag);
                    let [(id, record)] = &flows[..] else {
                        panic!("{what}: {flows:?}");
                    };
                    assert_eq!(id.flow, key(&packet, protocol, ports), "{what}");
                    assert!(
                        before <= record.first_seen + TICK
                            && record.first_seen <= record.last_seen
                            && record.last_seen <= after,
                        "{what}: {before} {record:?} {after}"
                    );
                    let expected = FlowRecord {
                        packets: 3,
                        bytes: 3 * length(program, &packet),
                        verdict: fate,
                        hook: program.hook() as u8,
                        ifindex: device(bench, program),
                        reserved: 0,
                        ..*record
                    };
                    assert_eq!(*record, expected, "{what}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn what_no_rule_decides_leaves_nothing() -> Result<()> {
    Bench::with(SETTINGS, |bench| {
        bench.enforce(
            &[
                rule("r", "9.9.9.9", "{mode: reset}"),
                rule("s", REMOTES, "{mode: reset}"),
            ],
            &[],
        )?;
        bench.datapath.seen().watch(true);
        // A RST passes, and a stranger does.
        for packet in [tcp(RST), tcp(ACK).remote(Ipv4Addr::new(7, 7, 7, 7))] {
            for program in TC {
                bench.run(program, &program.meets(&packet))?;
            }
        }
        assert_eq!(flows(bench, tag(0, 0)), []);
        assert_eq!(events(bench), []);
        Ok(())
    })
}

#[test]
fn the_last_packet_of_a_flow_is_told_and_both_directions_are_one_flow() -> Result<()> {
    let settings = Settings {
        replies_per_second: 1,
        ..SETTINGS
    };
    Bench::with(settings, |bench| {
        bench.enforce(&[rule("r", REMOTES, "{mode: reset}")], &[])?;
        let packet = udp(b"hello");
        for (program, fate) in [
            (Program::Ingress, verdict::RESET),
            (Program::Egress, verdict::SUPPRESSED),
        ] {
            bench.run(program, &program.meets(&packet))?;
            let flows = flows(bench, tag(0, 0));
            assert_eq!(flows.len(), 1, "{flows:?}");
            assert_eq!(flows[0].1.verdict, fate);
            assert_eq!(u32::from(flows[0].1.hook), program.hook() as u32);
        }
        // A segment that gets no reply is dropped.
        bench.run(Program::Ingress, &packet.fragment(3, false))?;
        let dropped = flows(bench, tag(0, 0));
        assert!(
            dropped
                .iter()
                .any(|(_, record)| record.verdict == verdict::DROPPED)
        );
        Ok(())
    })
}

#[test]
fn each_rule_has_a_record_of_its_own_and_a_slot_that_is_used_again_too() -> Result<()> {
    Bench::with(SETTINGS, |bench| {
        let packet = tcp(ACK);
        let first = [rule("a", REMOTES, "{mode: drop}")];
        bench.enforce(&first, &[])?;
        bench.run(Program::Ingress, &packet)?;
        bench.run(Program::Ingress, &packet)?;
        // Another rule gets the slot.
        bench.datapath.begin_counting(0, &"r0".parse()?)?;
        bench.enforce(&[rule("b", REMOTES, "{mode: audit}")], &[])?;
        let counted = bench.run(Program::Ingress, &packet)?.counted;
        assert_eq!(counted.rules[0].packets, 1, "the slot is the same");
        for (tag, packets) in [(tag(0, 0), 2), (tag(0, 1), 1)] {
            let flows = flows(bench, tag);
            assert_eq!(flows.len(), 1);
            assert_eq!(flows[0].1.packets, packets, "{tag:#x}");
        }
        assert_eq!(bench.datapath.tag(0), tag(0, 1));
        Ok(())
    })
}

#[test]
fn new_flows_over_the_rate_are_counted_and_known_ones_go_on() -> Result<()> {
    const RATE: u64 = 10;
    const FLOWS: u16 = 200;
    let settings = Settings {
        new_flows_per_second: RATE as u32,
        ..SETTINGS
    };
    Bench::with(settings, |bench| {
        bench.enforce(&[rule("r", REMOTES, "{mode: drop}")], &[])?;
        stay(0)?;
        let start = std::time::Instant::now();
        let known = tcp(ACK);
        bench.verdict(Program::Ingress, &known.bytes())?;
        for port in 0..FLOWS {
            let packet = tcp(ACK).remote_port(20_000 + port);
            bench.verdict(Program::Ingress, &packet.bytes())?;
        }
        for _ in 0..9 {
            bench.verdict(Program::Ingress, &known.bytes())?;
        }
        let most = RATE + (start.elapsed().as_secs_f64() * RATE as f64).ceil() as u64;
        let tally = bench.datapath.seen().tally()?;
        assert!((RATE..=most).contains(&tally.created), "{tally:?}");
        assert_eq!(tally.created + tally.not_recorded, u64::from(FLOWS) + 1);
        let flows = flows(bench, tag(0, 0));
        assert_eq!(flows.len() as u64, tally.created);
        let known = flows
            .iter()
            .find(|(id, _)| id.flow.remote_port == REMOTE_PORT);
        assert_eq!(known.expect("the first one is known").1.packets, 10);
        Ok(())
    })
}

#[test]
fn a_known_flow_is_counted_to_the_packet_while_a_flood_of_others_comes_and_goes() -> Result<()> {
    const EACH: u32 = 100;
    /// Enough flows to pass several generations of a CPU's record.
    const RECORDED: u64 = 40_000;
    let settings = Settings {
        flows: 262_144,
        // So few that every machine is faster.
        new_flows_per_second: 5_000,
        ..SETTINGS
    };
    Bench::with(settings, |bench| {
        bench.enforce(&[rule("r", REMOTES, "{mode: drop}")], &[])?;
        stay(0)?;
        let known = udp(b"known");
        let mut rounds = 0;
        let mut others = 0_u32;
        while bench.datapath.seen().tally()?.created < RECORDED {
            bench.verdict(Program::Ingress, &known.bytes())?;
            rounds += 1;
            for _ in 0..EACH {
                let [high, low, ..] = others.to_le_bytes();
                let port = u16::try_from(others >> 16)?;
                let other = tcp(ACK)
                    .remote(Ipv4Addr::new(8, 0, high, low))
                    .remote_port(port);
                bench.verdict(Program::Ingress, &other.bytes())?;
                others += 1;
            }
        }
        let tally = bench.datapath.seen().tally()?;
        assert!(tally.not_recorded > 1_000, "a flood: {tally:?}");
        let flows = flows(bench, tag(0, 0));
        let known = flows.iter().find(|(id, _)| id.flow.protocol == 17);
        assert_eq!(known.expect("it is known").1.packets, rounds);
        Ok(())
    })
}

#[test]
fn nothing_is_recorded_with_no_room_for_flows_but_what_is_to_be_killed() -> Result<()> {
    let settings = Settings {
        flows: 0,
        ..SETTINGS
    };
    Bench::with(settings, |bench| {
        bench.enforce(&[rule("r", REMOTES, "{mode: drop, on_lift: reset}")], &[])?;
        let run = bench.run(Program::Ingress, &tcp(ACK))?;
        assert_eq!(run.counted.rules[0].packets, 1);
        assert!(!bench.datapath.seen().is_recording());
        assert_eq!(flows(bench, tag(0, 0)), []);
        assert_eq!(bench.datapath.seen().tally()?.not_recorded, 0);
        assert_eq!(bench.datapath.recorded(&[0])?.len(), 1);
        Ok(())
    })
}

#[test]
fn a_table_has_room_for_nearly_all_flows_that_it_is_for() -> Result<()> {
    const FLOWS: u16 = 4_096;
    let settings = Settings {
        flows: u32::from(FLOWS),
        ..SETTINGS
    };
    Bench::with(settings, |bench| {
        bench.enforce(&[rule("r", REMOTES, "{mode: drop}")], &[])?;
        for round in 1..=2 {
            for port in 0..FLOWS {
                for packet in [udp(b"x"), udp(b"x").v6()] {
                    bench.verdict(Program::Ingress, &packet.remote_port(port / 2).bytes())?;
                }
            }
            let present = flows(bench, tag(0, 0));
            let whole = present
                .iter()
                .filter(|(_, record)| record.packets == 2 * round);
            // Of sets that hold 8, and 4 on average, 2 in 100 have more to hold (Poisson).
            assert!(whole.count() > usize::from(FLOWS) * 97 / 100, "{round}");
        }
        Ok(())
    })
}

#[test]
fn a_full_table_gives_up_old_flows_and_how_many_is_known() -> Result<()> {
    let settings = Settings {
        flows: 1_024,
        ..SETTINGS
    };
    const FLOWS: u64 = 5_000;
    Bench::with(settings, |bench| {
        bench.enforce(&[rule("r", REMOTES, "{mode: drop}")], &[])?;
        for port in 0..FLOWS {
            let packet = udp(b"x").remote_port(u16::try_from(port)?);
            bench.verdict(Program::Ingress, &packet.bytes())?;
        }
        let tally = bench.datapath.seen().tally()?;
        let present = flows(bench, tag(0, 0));
        assert_eq!((tally.created, tally.not_recorded), (FLOWS, 0));
        // There are twice the slots, for few sets to be full before there are as many flows.
        assert!(
            (1_024..=2_048).contains(&present.len()),
            "{}",
            present.len()
        );
        let newest = present
            .iter()
            .filter(|(id, _)| u64::from(id.flow.remote_port) >= FLOWS - 100);
        assert_eq!(newest.count(), 100, "old ones give way");
        Ok(())
    })
}

#[test]
fn an_event_tells_all_of_a_packet() -> Result<()> {
    Bench::with(SETTINGS, |bench| {
        for (packet, protocol, ports, icmp_type) in kinds() {
            for program in Program::ALL {
                let tag = anew(bench, &[rule("r", REMOTES, "{mode: drop}")])?;
                let what = format!("{program:?}: {packet:?}");
                let seen = bench.datapath.seen();
                bench.run(program, &program.meets(&packet))?;
                assert_eq!(events(bench), [], "nobody watches: {what}");
                seen.watch(true);
                let before = now()?;
                bench.run(program, &program.meets(&packet))?;
                let events_now = events(bench);
                let [event] = events_now[..] else {
                    panic!("{what}: {events_now:?}");
                };
                assert!((before..=now()?).contains(&event.time), "{what}");
                let flow = key(&packet, protocol, ports);
                let expected = Event {
                    time: event.time,
                    rule: tag,
                    ifindex: device(bench, program),
                    length: u32::try_from(length(program, &packet))?,
                    protocol: u16::try_from(protocol)?,
                    remote_port: ports.0,
                    local_port: ports.1,
                    flags: if protocol == 6 { SYN | PSH } else { 0 },
                    hook: program.hook() as u8,
                    verdict: verdict::DROPPED,
                    icmp_type,
                    fragment: u8::from(protocol == 17 && ports == (0, 0)),
                    reserved: 0,
                    remote: flow.remote,
                    local: flow.local,
                };
                assert_eq!(event, expected, "{what}");
                seen.watch(false);
                bench.run(program, &program.meets(&packet))?;
                assert_eq!(events(bench), [], "nobody watches any more: {what}");
            }
        }
        Ok(())
    })
}

#[test]
fn events_over_the_rate_and_those_that_find_no_room_are_counted() -> Result<()> {
    // More than the ring buffer holds, so that one of the two limits is met in each round.
    const PACKETS: u64 = 40_000;
    for (rate, more_than) in [(100, PACKETS / 2), (u32::MAX, 1)] {
        let settings = Settings {
            events_per_second: rate,
            ..SETTINGS
        };
        Bench::with(settings, |bench| {
            bench.enforce(&[rule("r", REMOTES, "{mode: audit}")], &[])?;
            bench.datapath.seen().watch(true);
            let frame = udp(b"hello").bytes();
            for _ in 0..PACKETS {
                bench.verdict(Program::Ingress, &frame)?;
            }
            let seen = events(bench).len() as u64;
            let lost = bench.datapath.seen().tally()?.lost;
            assert_eq!(seen + lost, PACKETS, "rate {rate}");
            assert!(
                seen >= 100 && lost >= more_than,
                "rate {rate}: {seen} seen, {lost} lost"
            );
            let flows = flows(bench, tag(0, 0));
            assert_eq!(flows[0].1.packets, PACKETS, "the record misses none");
            Ok(())
        })?;
    }
    Ok(())
}

/// Two CPUs on one flow at the same time, from its first packet on.
#[test]
fn no_packet_of_a_flow_is_missed_by_two_cpus_at_once() -> Result<()> {
    const ROUNDS: u64 = 20;
    const REPEAT: u32 = 20_000;
    Bench::with(SETTINGS, |bench| {
        bench.enforce(&[rule("r", REMOTES, "{mode: drop}")], &[])?;
        // aya's call needs the program for itself.
        let program = bench
            .datapath
            .object()
            .xdp()?
            .fd()?
            .as_fd()
            .try_clone_to_owned()?;
        let program = xtask::bpf::Program::from(program);
        for round in 0..ROUNDS {
            let packet = tcp(ACK).remote_port(u16::try_from(20_000 + round)?);
            let frame = packet.bytes();
            std::thread::scope(|scope| {
                let run = |cpu| {
                    let (program, frame) = (&program, &frame);
                    scope.spawn(move || -> Result<()> {
                        stay(cpu)?;
                        program.run(frame, REPEAT).map(drop)
                    })
                };
                let runs = [run(0), run(1)];
                runs.map(|run| run.join().expect("no panic"))
                    .into_iter()
                    .collect::<Result<Vec<()>>>()
            })?;
        }
        let flows = flows(bench, tag(0, 0));
        assert_eq!(flows.len() as u64, ROUNDS);
        let each = 2 * u64::from(REPEAT);
        for (id, record) in &flows {
            assert_eq!(record.packets, each, "{id:?}");
            assert_eq!(
                record.bytes,
                each * length(Program::Xdp, &tcp(ACK)),
                "{id:?}"
            );
        }
        let tally = bench.datapath.seen().tally()?;
        assert_eq!((tally.created, tally.not_recorded), (ROUNDS, 0));
        let counted = bench.datapath.rule_counters(0)?.ingress.packets;
        assert_eq!(counted, ROUNDS * each);
        Ok(())
    })
}
