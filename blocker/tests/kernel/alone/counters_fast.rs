//! Counters at a million packets a second and more, over both CPUs: none is lost, and none is
//! counted twice. Senders count what was sent and devices what arrived, as no capture keeps up. Rates
//! are printed, not asserted.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use xtask::hosts::{Daemon, Namespace, Pair, poll};

use crate::blocking_pair::{BlockingPair, FAMILIES, PATIENCE};
use crate::flood;
use crate::traffic_counts;
use crate::traffic_counts::{Hooks, Ruled, Sum};

const RULE: &str = "counted";
/// How long a flood lasts.
const TIME: Duration = Duration::from_millis(400);

/// What a device's driver counted, by name.
type Driver = BTreeMap<String, u64>;

/// All that is counted about a flood.
#[derive(Debug)]
struct Counts {
    /// The rule's: of ingress, of egress.
    rule: [Ruled; 2],
    hooks: Hooks,
    /// Packets that A's device received, by whichever way.
    arrived: u64,
    /// What each of its queues received.
    received: Driver,
    /// What B's device sent.
    sent: Driver,
}

/// A pair whose devices have a queue for each CPU, and a daemon in A.
fn hosts(config: &str) -> Result<BlockingPair> {
    let pair = Pair::new()?;
    for host in [&pair.a, &pair.b] {
        host.run(&["ethtool", "-L", "eth0", "rx", "2", "tx", "2"])?;
    }
    // Without it, or XDP, a veth takes no frames that the kernel made.
    pair.a.run(&["ethtool", "-K", "eth0", "gro", "on"])?;
    let daemon = Daemon::start(&pair.a, &crate::programs(), config)?;
    Ok(BlockingPair { daemon, pair })
}

/// Reads all counters while nothing passes: the hooks' counters are the same before and after the
/// drivers' are read.
fn counts(hosts: &BlockingPair) -> Result<Counts> {
    poll("a moment without packets", PATIENCE, || {
        let hooks = || Some(traffic_counts::hooks(&hosts.daemon, "eth0").ok()?.0);
        let before = hooks()?;
        let counts = Counts {
            rule: traffic_counts::rule(&hosts.daemon, RULE).ok()?,
            arrived: arrived(&hosts.pair.a).ok()?,
            received: driver(&hosts.pair.a).ok()?,
            sent: driver(&hosts.pair.b).ok()?,
            hooks: hooks()?,
        };
        (counts.hooks == before).then_some(counts)
    })
}

/// Packets that a host's device received. The queues leave out what a veth hands to the stack
/// without them, as it does with a packet that would gain nothing by GRO.
fn arrived(host: &Namespace) -> Result<u64> {
    let text = host.run(&["ip", "-json", "-statistics", "link", "show", "eth0"])?;
    let said: serde_json::Value = serde_json::from_str(&text)?;
    let packets = said[0]["stats64"]["rx"]["packets"].as_u64();
    packets.context("the device counts no packets")
}

/// `ethtool -S`.
fn driver(host: &Namespace) -> Result<Driver> {
    let text = host.run(&["ethtool", "-S", "eth0"])?;
    let counters = text.lines().filter_map(|line| {
        let (name, number) = line.trim().split_once(": ")?;
        Some((name.to_owned(), number.parse().ok()?))
    });
    Ok(counters.collect())
}

/// The sum over the queues of a counter, and of how many queues it isn't 0.
fn queues(before: &Driver, after: &Driver, name: &str) -> (u64, usize) {
    let grown = after.iter().filter_map(|(key, value)| {
        let of_queue = key.split_once("_queue_")?.1.split_once('_')?.1 == name;
        let grown = value - before.get(key).copied().unwrap_or_default();
        (of_queue && grown > 0).then_some(grown)
    });
    grown.fold((0, 0), |(sum, queues), grown| (sum + grown, queues + 1))
}

fn minus(after: Ruled, before: Ruled) -> Ruled {
    Ruled {
        decided: Sum {
            packets: after.decided.packets - before.decided.packets,
            bytes: after.decided.bytes - before.decided.bytes,
        },
        replies: after.replies - before.replies,
        suppressed: after.suppressed - before.suppressed,
    }
}

fn show(what: &str, sent: u64, counted: u64, time: Duration) {
    let rate = |packets: u64| packets as f64 / time.as_secs_f64() / 1e6;
    println!(
        "{what}: {:.2} million packets a second sent, {:.2} counted: {counted} of {sent}",
        rate(sent),
        rate(counted)
    );
}

/// Floods A from B, and checks each account against the next: what B sent, what A's device took off
/// the wire, what the hook saw, what the rule decided.
fn flood_in(
    hosts: &BlockingPair,
    what: &str,
    mode: &str,
    frame: &[u8],
    by_xdp: bool,
) -> Result<()> {
    let before = counts(hosts)?;
    let begun = Instant::now();
    let sent = flood::frames(&hosts.pair.b, "eth0", frame, TIME)?;
    let time = begun.elapsed();
    let after = poll("all that was sent to be dealt with", PATIENCE, || {
        let now = counts(hosts).ok()?;
        let (taken, _) = queues(&before.sent, &now.sent, "xdp_xmit");
        let (lost, _) = queues(&before.sent, &now.sent, "xdp_xmit_errors");
        let received = now.arrived - before.arrived;
        (taken + lost >= sent && received >= taken).then_some(now)
    })?;
    let [rule, _] = [0, 1].map(|at| minus(after.rule[at], before.rule[at]));
    let hooks = after.hooks - before.hooks;
    let (taken, senders) = queues(&before.sent, &after.sent, "xdp_xmit");
    let (lost, _) = queues(&before.sent, &after.sent, "xdp_xmit_errors");
    let (_, receivers) = queues(&before.received, &after.received, "xdp_packets");
    let received = after.arrived - before.arrived;
    show(what, sent, rule.decided.packets, time);

    assert_eq!([senders, receivers], [2, 2], "{what}: queues at work");
    assert_eq!(
        taken + lost,
        sent,
        "{what}: sent, and lost at the full ring"
    );
    let first = if by_xdp { hooks.xdp } else { hooks.ingress };
    assert_eq!(first.seen, received, "{what}: seen");
    // Neighbours may be looked for meanwhile: those packets are none of the flood.
    let others = received - taken;
    assert!(others < 20, "{what}: {others} packets of others");
    let decided = Sum {
        packets: taken,
        bytes: taken * frame.len() as u64,
    };
    assert_eq!(rule.decided, decided, "{what}: decided");
    assert_eq!(first.decided(), taken, "{what}: decided at one hook");
    let at_tc = if by_xdp { 0 } else { taken };
    assert_eq!(hooks.ingress.decided(), at_tc, "{what}: decided by TC");
    if matches!(mode, "reset" | "reject") {
        assert_eq!(rule.replies + rule.suppressed, taken, "{what}: replies");
        assert_eq!(
            rule.replies, hooks.egress.own,
            "{what}: replies on the wire"
        );
        assert!(rule.replies > 0 && rule.suppressed > 0, "{what}: {rule:?}");
    } else {
        assert_eq!([rule.replies, rule.suppressed], [0, 0], "{what}");
    }
    Ok(())
}

/// A frame from B to an address behind A, which does not route: what passes ends there.
fn frame(pair: &Pair, from: IpAddr, length: usize) -> Result<Vec<u8>> {
    let to: IpAddr = if from.is_ipv4() {
        "192.0.2.77".parse()?
    } else {
        "2001:db8:7::7".parse()?
    };
    let macs = [traffic_counts::mac(&pair.b)?, traffic_counts::mac(&pair.a)?];
    Ok(flood::udp(macs, from, to, length))
}

#[test]
fn a_flood_is_counted_to_the_packet_coming_in() -> Result<()> {
    for hook in ["auto", "tc"] {
        let hosts = hosts(&format!("hook: {hook}\n"))?;
        for (_, b) in FAMILIES {
            for mode in ["drop", "audit"] {
                hosts.add(&[&b.to_string(), "--mode", mode, "--id", RULE])?;
                for length in [64, 700] {
                    let frame = frame(&hosts.pair, b, length)?;
                    let what = format!("hook {hook}, {mode}, from {b}, {length} bytes");
                    let by_xdp = hook == "auto" && mode == "drop";
                    flood_in(&hosts, &what, mode, &frame, by_xdp)?;
                }
                hosts.del(&[RULE])?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_flood_that_is_answered_has_a_reply_or_a_suppressed_one_for_each_packet() -> Result<()> {
    for mode in ["reset", "reject"] {
        let hosts = hosts("")?;
        hosts.add(&[&Pair::B.to_string(), "--mode", mode, "--id", RULE])?;
        let frame = frame(&hosts.pair, Pair::B, 200)?;
        flood_in(&hosts, &format!("{mode}, from B"), mode, &frame, false)?;
    }
    Ok(())
}

#[test]
fn a_flood_is_counted_to_the_packet_going_out() -> Result<()> {
    let hosts = hosts("")?;
    for (a, b) in FAMILIES {
        for mode in ["drop", "audit"] {
            hosts.add(&[&b.to_string(), "--mode", mode, "--id", RULE])?;
            for length in [1, 900] {
                let before = counts(&hosts)?;
                let begun = Instant::now();
                let to = (b, 443).into();
                let sent = flood::datagrams(&hosts.pair.a, a, to, length, TIME)?;
                let time = begun.elapsed();
                let after = counts(&hosts)?;
                let what = format!("{mode}, to {b}, {length} bytes");
                let rule = minus(after.rule[1], before.rule[1]).decided;
                show(&what, sent, rule.packets, time);
                // Ethernet, IP and UDP in front.
                let headers = if b.is_ipv4() { 42 } else { 62 };
                let decided = Sum {
                    packets: sent,
                    bytes: sent * (headers + length as u64),
                };
                assert_eq!(rule, decided, "{what}");
                let hook = (after.hooks - before.hooks).egress;
                assert_eq!(hook.decided(), sent, "{what}: at the hook");
            }
            hosts.del(&[RULE])?;
        }
    }
    Ok(())
}
