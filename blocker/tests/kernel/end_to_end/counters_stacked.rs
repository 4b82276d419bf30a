//! Counters where a packet passes two attached devices, such as a bridge and its port: it is counted
//! once, on the first device, and `audit` counts what a block would have matched.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, ensure};
use xtask::hosts::{Capture, Daemon, Namespace, Pair, join, poll};

use crate::blocking_pair::{BlockingPair, PATIENCE, udp};
use crate::traffic_counts;
use crate::traffic_counts::{Frame, Hooks, Sum};

const RULE: &str = "counted";
const A: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const B: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const DATAGRAMS: [usize; 5] = [0, 1, 99, 1000, 1400];

/// A and B, and a daemon in A, whose address is on a bridge of which its device is a port.
fn bridged(hook: &str) -> Result<BlockingPair> {
    let pair = Pair {
        a: Namespace::new("a")?,
        b: Namespace::new("b")?,
    };
    join((&pair.a, "eth0"), (&pair.b, "eth0"))?;
    for words in [
        "ip link add upper type bridge",
        "ip link set eth0 master upper",
        "ip link set upper up",
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        pair.a.run(&words)?;
    }
    for (host, address, device) in [(&pair.a, A, "upper"), (&pair.b, B, "eth0")] {
        let address = format!("{address}/24");
        host.run(&["ip", "address", "add", &address, "dev", device])?;
    }
    let config = format!("hook: {hook}\n");
    let daemon = Daemon::start(&pair.a, &crate::programs(), &config)?;
    Ok(BlockingPair { daemon, pair })
}

/// Sends the datagrams from one host to the other, and waits until the rule counted as many, at
/// least; gives what it counted of that direction.
fn send(
    hosts: &BlockingPair,
    from: (&Namespace, IpAddr),
    to: IpAddr,
    direction: usize,
) -> Result<Sum> {
    let socket = udp(from.0, from.1, None)?;
    for length in DATAGRAMS {
        let sent = socket.send_to(&vec![7; length], (to, 9))?;
        ensure!(sent == length, "sent {sent} of {length} bytes");
    }
    poll("all datagrams to be counted", PATIENCE, || {
        let counted = traffic_counts::rule(&hosts.daemon, RULE).ok()?[direction].decided;
        (counted.packets >= DATAGRAMS.len() as u64).then_some(counted)
    })
}

#[test]
fn a_bridge_and_its_port_count_once() -> Result<()> {
    for hook in ["auto", "tc"] {
        let hosts = bridged(hook)?;
        let pair = &hosts.pair;
        // Where datagrams end up that pass, so that no error is sent for them.
        let _sinks = [udp_at(&pair.a, A)?, udp_at(&pair.b, B)?];
        for mode in ["drop", "reset", "reject", "audit"] {
            let what = format!("hook {hook}, {mode}");
            let wire = Capture::start(&pair.b, "eth0", "udp and src host 192.0.2.2")?;
            hosts.add(&[&B.to_string(), "--mode", mode, "--id", RULE])?;
            let hooks = |device: &str| {
                Ok::<_, anyhow::Error>(traffic_counts::hooks(&hosts.daemon, device)?.0)
            };
            let before = [hooks("eth0")?, hooks("upper")?];
            let came = send(&hosts, (&pair.b, B), A, 0)?;
            let went = send(&hosts, (&pair.a, A), B, 1)?;

            let sent = wire.wait_for(DATAGRAMS.len(), PATIENCE)?;
            let sent: Vec<Frame> = sent.iter().map(|bytes| Frame::read(bytes)).collect();
            let sent: Sum = sent.iter().collect();
            assert_eq!(came, sent, "{what}: came");
            // The same datagrams, from a socket: what it sent, and the headers.
            assert_eq!(went, sent, "{what}: went");
            let after = [hooks("eth0")?, hooks("upper")?];
            let [port, bridge] = [0, 1].map(|at| after[at] - before[at]);
            let coming = |hooks: Hooks| hooks.xdp.decided() + hooks.ingress.decided();
            assert_eq!([coming(port), coming(bridge)], [sent.packets, 0], "{what}");
            let going = [port, bridge].map(|hooks| hooks.egress.decided());
            assert_eq!(going, [0, sent.packets], "{what}");
            // Nothing that was on its way still is counted later.
            let rule = traffic_counts::rule(&hosts.daemon, RULE)?.map(|rule| rule.decided);
            assert_eq!(rule, [came, went], "{what}");
            hosts.del(&[RULE])?;
        }
    }
    Ok(())
}

/// A random sample of its own on each device would match three of four packets at `percent: 50`, and
/// leave what `audit` matched on the port to the next rule on the bridge.
#[test]
fn a_bridge_and_its_port_cast_one_die() -> Result<()> {
    const SENT: u64 = 2_000;
    for hook in ["auto", "tc"] {
        let hosts = bridged(hook)?;
        let pair = &hosts.pair;
        let sinks = [udp_at(&pair.a, A)?, udp_at(&pair.b, B)?];
        let behind = ["192.0.2.0/24", "--id", "behind", "--mode"];
        for (mode, rest) in [("drop", "audit"), ("audit", "drop")] {
            hosts.add(&[
                &B.to_string(),
                "--id",
                RULE,
                "--mode",
                mode,
                "--percent",
                "50",
            ])?;
            hosts.add(&[&behind[..], &[rest]].concat())?;
            let senders = [(&pair.b, B, A, &sinks[0]), (&pair.a, A, B, &sinks[1])];
            for (direction, (from, source, to, sink)) in senders.into_iter().enumerate() {
                let what = format!("hook {hook}, {mode}, direction {direction}");
                let counted = |id| -> Result<u64> {
                    Ok(traffic_counts::rule(&hosts.daemon, id)?[direction]
                        .decided
                        .packets)
                };
                let socket = udp(from, source, None)?;
                let mut arrived = 0;
                for _ in 0..SENT {
                    socket.send_to(b"hello", (to, 9))?;
                    arrived += arrivals(sink)?;
                }
                let dropper = if mode == "drop" { RULE } else { "behind" };
                poll("all datagrams", PATIENCE, || {
                    arrived += arrivals(sink).ok()?;
                    (arrived + counted(dropper).ok()? >= SENT).then_some(())
                })?;
                // Each packet is decided once, by the one or the other.
                assert_eq!(counted(RULE)? + counted("behind")?, SENT, "{what}");
                assert_eq!(counted(dropper)? + arrived, SENT, "{what}");
                // Nine standard deviations around a half.
                assert!(
                    (800..1_200).contains(&arrived),
                    "{what}: {arrived} of {SENT}"
                );
            }
            hosts.del(&[RULE, "behind"])?;
        }
    }
    Ok(())
}

/// Takes what has arrived; how many datagrams that were.
fn arrivals(sink: &std::net::UdpSocket) -> Result<u64> {
    sink.set_nonblocking(true)?;
    let mut count = 0;
    loop {
        match sink.recv(&mut [0; 64]) {
            Ok(_) => count += 1,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(count),
            Err(error) => return Err(error.into()),
        }
    }
}

fn udp_at(host: &Namespace, address: IpAddr) -> Result<std::net::UdpSocket> {
    Ok(host.enter(|| std::net::UdpSocket::bind((address, 9)))??)
}
