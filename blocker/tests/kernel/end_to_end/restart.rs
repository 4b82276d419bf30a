//! Counters survive a restart of the daemon, to the packet.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use xtask::hosts::Pair;

use crate::blocking_pair::{BlockingPair, udp};

/// Sends datagrams from B to A during some work; gives how many A's device was given.
fn flooded(
    hosts: &mut BlockingPair,
    work: impl FnOnce(&mut BlockingPair) -> Result<()>,
) -> Result<u64> {
    let sink = udp(&hosts.pair.a, Pair::A, None)?;
    let source = udp(&hosts.pair.b, Pair::B, Some(sink.local_addr()?))?;
    let over = AtomicBool::new(false);
    let before = lost(hosts)?;
    let sent = std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut sent = 0_u64;
            while sent < 100 || !over.load(Ordering::Relaxed) {
                sent += u64::from(source.send(b"counted?").is_ok());
                std::thread::yield_now();
            }
            sent
        });
        let result = work(hosts);
        over.store(true, Ordering::Relaxed);
        let sent = sending.join().expect("no panic");
        result.map(|()| sent)
    })?;
    ensure!(sent >= 100, "{sent} datagrams are too few to tell");
    Ok(sent - (lost(hosts)? - before))
}

/// Packets that B's device dropped for lack of room.
fn lost(hosts: &BlockingPair) -> Result<u64> {
    let text = hosts
        .pair
        .b
        .run(&["ip", "-json", "-statistics", "link", "show"])?;
    let said: Value = serde_json::from_str(&text)?;
    let devices = said.as_array().context("a list of devices")?;
    let dropped = devices
        .iter()
        .map(|device| &device["stats64"]["tx"]["dropped"]);
    Ok(dropped.filter_map(Value::as_u64).sum())
}

fn restart(hosts: &mut BlockingPair) -> Result<()> {
    assert!(hosts.daemon.stop()?.success());
    hosts.daemon.run(&hosts.pair.a)
}

fn crash(hosts: &mut BlockingPair) -> Result<()> {
    hosts.daemon.kill()?;
    hosts.daemon.run(&hosts.pair.a)
}

#[test]
fn counters_go_on_to_the_packet_when_a_daemon_takes_over() -> Result<()> {
    let mut hosts = BlockingPair::new("on_stop: keep\n")?;
    let b = Pair::B.to_string();
    hosts.add(&["192.0.2.1", "--id", "another"])?;
    hosts.add(&[&b, "--mode", "drop", "--protocol", "udp", "--id", "dev01"])?;
    let arrived = flooded(&mut hosts, |hosts| {
        for round in 0..3 {
            hosts.wait_packets("dev01", 1)?;
            // What goes and comes beside it moves nobody's counters.
            hosts.del(&["another"])?;
            restart(hosts)?;
            hosts.add(&["192.0.2.1", "--id", "another"])?;
            crash(hosts)?;
            assert_eq!(hosts.counters("another")?["packets"], 0, "round {round}");
        }
        Ok(())
    })?;
    let counters = hosts.wait_packets("dev01", arrived)?;
    assert_eq!(counters["packets"], arrived);
    // Ethernet, IPv4, UDP and eight bytes.
    assert_eq!(counters["bytes"], arrived * (14 + 20 + 8 + 8));
    Ok(())
}

#[test]
fn what_hooks_saw_goes_on_too() -> Result<()> {
    let mut hosts = BlockingPair::new("on_stop: keep\nhook: tc\n")?;
    let b = Pair::B.to_string();
    hosts.add(&[&b, "--mode", "drop", "--protocol", "udp", "--id", "dev01"])?;
    let sent = flooded(&mut hosts, crash)?;
    hosts.wait_packets("dev01", sent)?;
    let status = hosts.daemon.json(&["status"])?;
    let hooks = status["interfaces"][0]["hooks"]
        .as_array()
        .context("hooks")?;
    let ingress = hooks.iter().find(|hook| hook["hook"] == "tc-ingress");
    let ingress = ingress.context("the hook is there")?;
    let (seen, passed) = (&ingress["seen"], &ingress["passed"]);
    let blocked = seen.as_u64().context("seen")? - passed.as_u64().context("passed")?;
    assert_eq!(blocked, sent, "{ingress}");
    Ok(())
}

#[test]
fn a_rule_that_left_while_no_daemon_was_there_leaves_nothing_behind() -> Result<()> {
    let mut hosts = BlockingPair::new("on_stop: keep\n")?;
    let b = Pair::B.to_string();
    hosts.add(&[&b, "--mode", "drop", "--id", "dev01"])?;
    flooded(&mut hosts, |_| Ok(()))?;
    hosts.wait_packets("dev01", 1)?;
    hosts.daemon.kill()?;
    std::fs::remove_file(hosts.daemon.state().join("rules.json"))?;
    hosts.daemon.run(&hosts.pair.a)?;
    assert_eq!(
        hosts.daemon.json(&["list"])?["rules"],
        serde_json::json!([])
    );
    hosts.add(&["192.0.2.1", "--id", "dev01"])?;
    assert_eq!(hosts.counters("dev01")?["packets"], 0);
    Ok(())
}

#[test]
fn what_does_not_fit_is_begun_anew_and_said() -> Result<()> {
    let mut hosts = BlockingPair::new("on_stop: keep\nlimits: {rules: 100}\n")?;
    let b = Pair::B.to_string();
    hosts.add(&[&b, "--mode", "drop", "--protocol", "udp", "--id", "dev01"])?;
    flooded(&mut hosts, |_| Ok(()))?;
    hosts.wait_packets("dev01", 1)?;
    hosts.daemon.stop()?;
    let path = hosts.daemon.config_path();
    let text = std::fs::read_to_string(&path)?.replace("rules: 100", "rules: 200");
    std::fs::write(&path, text)?;
    hosts.daemon.run(&hosts.pair.a)?;
    assert_eq!(hosts.counters("dev01")?["packets"], 0);
    let log = hosts.daemon.log();
    assert!(log.contains("counting begins anew"), "{log}");
    // And from here on it is kept again.
    let sent = flooded(&mut hosts, crash)?;
    assert_eq!(hosts.wait_packets("dev01", sent)?["packets"], sent);
    Ok(())
}

#[test]
fn a_daemon_that_cannot_start_leaves_no_pins() -> Result<()> {
    let mut hosts = BlockingPair::new("")?;
    hosts.daemon.stop()?;
    assert!(!hosts.daemon.pins().exists());
    let path = hosts.daemon.config_path();
    let text = std::fs::read_to_string(&path)?;
    std::fs::write(
        &path,
        format!("{text}\nlimits: {{prefixes: 1}}\nrules: [{{targets: [192.0.2.1, 192.0.2.3]}}]\n"),
    )?;
    let run = hosts.daemon.blocker(&hosts.pair.a, "run")?;
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(
        run.stderr.contains("more than the 1 allowed"),
        "{}",
        run.stderr
    );
    assert!(!hosts.daemon.pins().exists());
    Ok(())
}
