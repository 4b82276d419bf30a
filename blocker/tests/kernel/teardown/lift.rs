//! The end of rules with `on_lift: reset` where only the datapath knows the flows, and where the daemon
//! is stopped or dead. `end_to_end::drop` has the local flows.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::hosts::{Connection, Daemon, End, Pair, Routed, poll};

const PATIENCE: Duration = Duration::from_secs(10);

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// Waits until something is done.
fn wait(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let ask = || done().map(|done| done.then_some(())).transpose();
    poll(what, PATIENCE, ask)?
}

/// Both ends are dead, and neither got a byte.
fn assert_nothing_delivered(flow: &mut Connection) -> Result<()> {
    ensure!(flow.wait_dead(soon())?, "{flow:?}");
    for end in [&mut flow.client, &mut flow.server] {
        let got = end.receive(7, Duration::ZERO).unwrap_or_default();
        ensure!(got.is_empty(), "{got:?} was delivered");
    }
    Ok(())
}

fn packets(daemon: &Daemon, id: &str) -> Result<u64> {
    let rule = daemon.json(&["show", id])?;
    rule["counters"]["packets"].as_u64().context("no counter")
}

#[test]
fn forwarded_flows_that_nothing_tracks_die_at_the_end_of_the_rule_that_saw_them() -> Result<()> {
    for (client, server) in [
        (Routed::CLIENT, Routed::SERVER),
        (Routed::CLIENT6, Routed::SERVER6),
    ] {
        let hosts = Routed::new()?;
        let daemon = Daemon::start(&hosts.router, &crate::programs(), "")?;
        for remote in [server, client] {
            for by_client in [true, false] {
                let mut flow = Connection::open(&hosts.client, &hosts.server, server)?;
                let remote = remote.to_string();
                daemon.json(&["add", &remote, "--on-lift", "reset", "--id", "dev01"])?;
                let sender: &mut End = if by_client {
                    &mut flow.client
                } else {
                    &mut flow.server
                };
                sender.send(b"request")?;
                wait("the segment to be blocked", || {
                    Ok(packets(&daemon, "dev01")? > 0)
                })?;
                let answer = daemon.json(&["del", "dev01"])?;
                let account = &answer["teardown"];
                ensure!(
                    account["found"] == 1 && account["killed"] == 1,
                    "{account:#}"
                );
                assert_nothing_delivered(&mut flow)?;
                Connection::open(&hosts.client, &hosts.server, server)?.check_alive()?;
            }
        }
    }
    Ok(())
}

#[test]
fn what_nothing_tracks_is_said_and_dies_at_its_next_segment() -> Result<()> {
    let hosts = Routed::new()?;
    let daemon = Daemon::start(&hosts.router, &crate::programs(), "")?;
    for by_client in [true, false] {
        let mut flow = Connection::open(&hosts.client, &hosts.server, Routed::SERVER)?;
        let remote = Routed::SERVER.to_string();
        let answer = daemon.json(&["add", &remote, "--mode", "reset"])?;
        let notes = answer["teardown"]["notes"].to_string();
        ensure!(notes.contains("tracks no connections"), "{notes}");
        let sender: &mut End = if by_client {
            &mut flow.client
        } else {
            &mut flow.server
        };
        sender.send(b"request")?;
        assert_nothing_delivered(&mut flow)?;
        daemon.blockctl(&["flush"])?.success()?;
    }
    Ok(())
}

/// A target that is taken out of a rule ends for it alone.
#[test]
fn a_part_of_a_rule_ends_without_the_rest() -> Result<()> {
    let pair = Pair::new()?;
    let other = pair.second_remote()?;
    let daemon = Daemon::start(&pair.a, &crate::programs(), "")?;
    let mut ending = Connection::open(&pair.a, &pair.b, Pair::B)?;
    let mut staying = Connection::open(&pair.a, &pair.b, other)?;
    let b = Pair::B.to_string();
    daemon.json(&[
        "add",
        &b,
        "192.0.2.9",
        "--on-lift",
        "reset",
        "--id",
        "dev01",
    ])?;
    for flow in [&mut ending, &mut staying] {
        flow.client.send(b"request")?;
    }
    wait("both segments to be blocked", || {
        Ok(packets(&daemon, "dev01")? > 1)
    })?;
    let answer = daemon.json(&["del", &b])?;
    ensure!(answer["narrowed"] == json!(["dev01"]), "{answer:#}");
    assert_nothing_delivered(&mut ending)?;
    ensure!(staying.client.look()?.is_none() && staying.server.look()?.is_none());
    let rule = daemon.json(&["show", "dev01"])?;
    ensure!(rule["targets"] == json!(["192.0.2.9"]), "{rule:#}");
    daemon.json(&["del", "dev01"])?;
    assert_nothing_delivered(&mut staying)
}

#[test]
fn the_daemons_stop_ends_them_too() -> Result<()> {
    let pair = Pair::new()?;
    let mut daemon = Daemon::start(&pair.a, &crate::programs(), "")?;
    let mut flow = Connection::open(&pair.b, &pair.a, Pair::A)?;
    let b = Pair::B.to_string();
    daemon.json(&["add", &b, "--on-lift", "reset", "--id", "dev01"])?;
    flow.client.send(b"request")?;
    wait("the segment to be blocked", || {
        Ok(packets(&daemon, "dev01")? > 0)
    })?;
    ensure!(daemon.stop()?.success(), "{}", daemon.log());
    assert_nothing_delivered(&mut flow)?;
    Connection::open(&pair.b, &pair.a, Pair::A)?.check_alive()
}

#[test]
fn an_end_that_the_daemon_missed_is_made_good_at_its_next_start() -> Result<()> {
    let pair = Pair::new()?;
    let mut daemon = Daemon::start(&pair.a, &crate::programs(), "")?;
    let mut flow = Connection::open(&pair.b, &pair.a, Pair::A)?;
    let b = Pair::B.to_string();
    daemon.json(&["add", &b, "--on-lift", "reset", "--for", "1s"])?;
    daemon.kill()?;
    // Without the daemon the datapath lets go by itself.
    wait("new connections to work", || {
        Ok(Connection::open(&pair.b, &pair.a, Pair::A).is_ok())
    })?;
    ensure!(flow.client.look()?.is_none() && flow.server.look()?.is_none());
    daemon.run(&pair.a)?;
    ensure!(flow.wait_dead(soon())?, "{flow:?}\n{}", daemon.log());
    let list: Value = daemon.json(&["list"])?;
    ensure!(list["rules"] == json!([]), "{list:#}");
    // Once is enough: the next start finds nothing to make good.
    let mut next = Connection::open(&pair.b, &pair.a, Pair::A)?;
    daemon.stop()?;
    daemon.run(&pair.a)?;
    next.check_alive()
}
