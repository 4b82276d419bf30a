//! `blockctl stats` of a daemon under traffic: rates of the right size, in every form.

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;
use xtask::hosts::Pair;

use crate::blocking_pair::{BlockingPair, udp};

/// Sends a datagram of 100 bytes every two milliseconds for a while; gives how many.
fn send(socket: &UdpSocket, during: Duration) -> u64 {
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < during {
        socket.send(&[0; 100]).expect("a datagram is sent");
        sent += 1;
        thread::sleep(Duration::from_millis(2));
    }
    sent
}

#[test]
fn rates_are_those_of_the_traffic() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    hosts.add(&[&Pair::B.to_string(), "--mode", "drop", "--id", "dev01"])?;
    let socket = udp(&hosts.pair.b, Pair::B, Some((Pair::A, 9).into()))?;
    let (lines, sent) = thread::scope(|scope| {
        let sending = scope.spawn(|| send(&socket, Duration::from_secs(3)));
        let asked = hosts
            .daemon
            .blockctl(&["-o", "json", "stats", "-i", "500ms", "-n", "8"]);
        (asked, sending.join().expect("the sender ends"))
    });
    let lines: Vec<Value> = lines?
        .success()?
        .stdout
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    assert_eq!(lines.len(), 8);
    let total = |of: &dyn Fn(&Value) -> f64| -> f64 {
        lines
            .iter()
            .map(|line| of(line) * line["seconds"].as_f64().unwrap_or(0.0))
            .sum()
    };
    // Each interval's rate by its length: together, what was sent since the first look.
    let packets = total(&|line| {
        line["rules"][0]["ingress"]["packets_per_second"]
            .as_f64()
            .unwrap_or(-1.0)
    });
    assert!(packets <= sent as f64 + 0.5, "{packets} of {sent}");
    assert!(packets >= sent as f64 * 0.5, "{packets} of {sent}");
    let bits = total(&|line| {
        line["rules"][0]["ingress"]["bits_per_second"]
            .as_f64()
            .unwrap_or(-1.0)
    });
    // 100 bytes of ours, 8 of UDP, 20 of IP, 14 of Ethernet.
    assert!(
        (bits - packets * 142.0 * 8.0).abs() < 1.0,
        "{bits} of {packets}"
    );
    let out = total(&|line| {
        line["rules"][0]["egress"]["packets_per_second"]
            .as_f64()
            .unwrap_or(-1.0)
    });
    assert_eq!(out, 0.0);
    let seen = total(&|line| {
        let hooks = line["hooks"].as_array().into_iter().flatten();
        let first = hooks.filter(|hook| hook["hook"] == "xdp" || hook["hook"] == "tc-ingress");
        first
            .filter_map(|hook| hook["seen_per_second"].as_f64())
            .fold(0.0, f64::max)
    });
    assert!(seen >= packets - 0.5, "{seen} of {packets}");
    Ok(())
}

#[test]
fn the_api_gives_totals_by_direction_that_add_up() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    hosts.add(&[&Pair::B.to_string(), "--mode", "audit", "--id", "dev01"])?;
    let there = udp(&hosts.pair.a, Pair::A, None)?;
    let socket = udp(&hosts.pair.b, Pair::B, Some(there.local_addr()?))?;
    socket.send(b"1")?;
    socket.send(b"2")?;
    there.send_to(b"3", socket.local_addr()?)?;
    hosts.wait_packets("dev01", 3)?;
    let rule = hosts.daemon.json(&["show", "dev01"])?;
    assert_eq!(rule["ingress"]["packets"], 2, "{rule}");
    assert_eq!(rule["egress"]["packets"], 1, "{rule}");
    for field in ["packets", "bytes", "replies", "suppressed"] {
        let of = |part: &str| rule[part][field].as_u64();
        assert_eq!(
            of("counters"),
            of("ingress").zip(of("egress")).map(|(i, e)| i + e)
        );
    }
    let table = hosts
        .daemon
        .blockctl(&["stats", "-i", "100ms", "-n", "1"])?
        .success()?;
    assert!(
        table.stdout.contains("dev01") && table.stdout.contains("tc-egress"),
        "{table:?}"
    );
    let wrong = hosts.daemon.blockctl(&["stats", "-i", "1ms"])?;
    assert_eq!(wrong.code, 2, "{wrong:?}");
    assert!(wrong.stderr.contains("100ms"), "{wrong:?}");
    Ok(())
}
