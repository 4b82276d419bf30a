//! A flood from a blocked address while daemons stop and start: no packet of it is delivered.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::hosts::{Daemon, Pair};
use xtask::kernel_objects::KernelObjects;

use super::datagrams::{assert_tight, between};
use crate::blocking_pair::{BlockingPair, FAMILIES};

/// How long twenty starts may take.
const LONG: Duration = Duration::from_secs(600);

/// Floods A from B's addresses of both families during some work on the daemon; gives how many
/// packets were sent.
fn flooded(pair: &Pair, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let [v4, v6] = FAMILIES.map(|(a, b)| between(pair, a, b));
    let (v4, v6) = (v4?, v6?);
    let mut sent6 = 0;
    let sent4 = assert_tight(&v4.0, &v4.1, LONG, || {
        sent6 = assert_tight(&v6.0, &v6.1, LONG, work)?;
        Ok(())
    })?;
    Ok(sent4 + sent6)
}

fn blocked() -> Result<(BlockingPair, KernelObjects)> {
    let hosts = BlockingPair::new("on_stop: keep\n")?;
    let [b, b6] = [Pair::B, Pair::B6].map(|address| address.to_string());
    hosts.add(&[&b, &b6, "--mode", "drop", "--id", "dev01"])?;
    let footprint = KernelObjects::of(&hosts.daemon)?;
    Ok((hosts, footprint))
}

/// Checks that the rule is in force, and that the datapath has no more kernel objects than before.
fn check(daemon: &Daemon, footprint: &KernelObjects, what: &str) -> Result<()> {
    let list = daemon.json(&["list"])?;
    assert_eq!(list["rules"][0]["id"], "dev01", "{what}: {list}");
    footprint.check(daemon, what)
}

#[test]
fn nothing_passes_while_the_daemon_is_restarted_twenty_times() -> Result<()> {
    let (BlockingPair { mut daemon, pair }, footprint) = blocked()?;
    let sent = flooded(&pair, || {
        for round in 0..20 {
            assert!(daemon.stop()?.success());
            daemon.run(&pair.a)?;
            check(&daemon, &footprint, &format!("restart {round}"))?;
        }
        Ok(())
    })?;
    println!("{sent} packets sent, none delivered");
    Ok(())
}

#[test]
fn nothing_passes_while_the_daemon_is_killed_twenty_times() -> Result<()> {
    let (BlockingPair { mut daemon, pair }, footprint) = blocked()?;
    let sent = flooded(&pair, || {
        for round in 0..20 {
            daemon.kill()?;
            daemon.run(&pair.a)?;
            check(&daemon, &footprint, &format!("kill {round}"))?;
        }
        Ok(())
    })?;
    println!("{sent} packets sent, none delivered");
    Ok(())
}

/// What an older version leaves differs only in the name of the maps' directory, which is the version
/// of their layout: renaming it makes the previous daemon an older one.
#[test]
fn nothing_passes_while_a_version_with_other_maps_takes_over() -> Result<()> {
    let (BlockingPair { mut daemon, pair }, footprint) = blocked()?;
    let maps = daemon.pins().join("maps");
    let ours = fs::read_dir(&maps)?.next().context("maps are pinned")??;
    let other = maps.join("abi-0");
    let links = fs::read_dir(daemon.pins().join("links"))?.count();
    let sent = flooded(&pair, || {
        assert!(daemon.stop()?.success());
        fs::rename(ours.path(), &other)?;
        daemon.run(&pair.a)?;
        ensure!(!other.exists(), "what the version before kept is left");
        check(&daemon, &footprint, "upgrade")
    })?;
    println!("{sent} packets sent, none delivered");
    assert!(ours.path().exists());
    let now = fs::read_dir(daemon.pins().join("links"))?.count();
    assert_eq!(now, links, "taken over, not added to");
    let log = daemon.log();
    assert!(
        log.contains("abi-0") && log.contains("counting began anew"),
        "{log}"
    );
    // What was counted is of the new maps: the packets since.
    let counters = daemon.json(&["show", "dev01"])?["counters"].clone();
    let packets = counters["packets"].as_u64().context("packets")?;
    assert!(packets < sent, "{packets} of {sent}");
    Ok(())
}
