//! Blocks of busy flows: half closed, many at once, sending while a `drop` rule begins or ends.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::errno::Errno;
use xtask::hosts::{Connection, End, Listener, Pair, poll, wait_dead};

use crate::blocking_pair::{
    BlockingPair, FAMILIES, PATIENCE, connect_error, receive_until_dead, send_until_dead, settle,
    soon,
};

#[test]
fn half_closed_flows_die() -> Result<()> {
    for (a, b) in FAMILIES {
        for by_b in [true, false] {
            let hosts = BlockingPair::new("")?;
            let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, a)?;
            flow.check_alive()?;
            let (closing, other) = match by_b {
                true => (&mut flow.client, &mut flow.server),
                false => (&mut flow.server, &mut flow.client),
            };
            closing.stream().shutdown(Shutdown::Write)?;
            poll("the FIN", PATIENCE, || {
                (other.state().ok()? == "CLOSE-WAIT").then_some(())
            })?;
            settle(&flow)?;
            let added = hosts.add(&[&b.to_string(), "--mode", "reset"])?;
            let states = [flow.client.state()?, flow.server.state()?];
            assert_eq!(
                added["teardown"]["killed"], 1,
                "by B: {by_b}: {states:?} {added}"
            );
            // A socket whose one half is closed shows its end by its state alone.
            for end in [&flow.client, &flow.server] {
                poll("the end of a half-closed flow", PATIENCE, || {
                    (end.state().ok()? == "CLOSED").then_some(())
                })?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_thousand_idle_flows_die_at_once() -> Result<()> {
    const FLOWS: usize = 1000;
    let hosts = BlockingPair::new("")?;
    let listener = Listener::new(&hosts.pair.a, Pair::A, 0)?;
    let mut flows = Vec::new();
    for _ in 0..FLOWS {
        flows.push(listener.connect(&hosts.pair.b)?);
    }
    let added = hosts.add(&[&Pair::B.to_string(), "--mode", "reset"])?;
    assert_eq!(added["teardown"]["found"], FLOWS, "{added}");
    assert_eq!(added["teardown"]["killed"], FLOWS, "{added}");
    let mut ends: Vec<&mut End> = flows
        .iter_mut()
        .flat_map(|flow| [&mut flow.client, &mut flow.server])
        .collect();
    assert!(wait_dead(&mut ends, soon())?);
    Ok(())
}

#[test]
fn a_silent_block_that_kills_kills_what_is_sending() -> Result<()> {
    for (a, b) in FAMILIES {
        for bytes in [1, 1 << 17] {
            for from_b in [true, false] {
                let hosts = BlockingPair::new("")?;
                let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, a)?;
                let (sender, receiver) = match from_b {
                    true => (&mut flow.client, &mut flow.server),
                    false => (&mut flow.server, &mut flow.client),
                };
                let deadline = soon();
                let payload = vec![7; bytes];
                let ends = std::thread::scope(|scope| {
                    let sending = scope.spawn(|| {
                        send_until_dead(sender, &payload, Duration::from_micros(100), deadline)
                    });
                    let receiving = scope.spawn(|| {
                        receiver.receive(1, PATIENCE).expect("alive at first");
                        receive_until_dead(receiver, deadline)
                    });
                    let added = hosts.add(&[&b.to_string(), "--established", "kill"]);
                    let sent = sending.join().expect("no panic");
                    let received = receiving.join().expect("no panic");
                    added.map(|added| (sent, received, added))
                })?;
                let what = format!("{bytes} bytes, from B: {from_b}, to {a}: {}", ends.2);
                assert!(ends.0.is_some(), "the sender lives on: {what}");
                assert!(ends.1.is_some(), "the receiver lives on: {what}");
            }
        }
    }
    Ok(())
}

#[test]
fn on_lift_reset_kills_what_was_sending_all_the_time() -> Result<()> {
    for (a, b) in FAMILIES {
        for from_b in [true, false] {
            for end_by_stop in [false, true] {
                let mut hosts = BlockingPair::new("")?;
                let listener = Listener::new(&hosts.pair.a, a, 0)?;
                let mut busy = listener.connect(&hosts.pair.b)?;
                let b = b.to_string();
                hosts.add(&[&b, "--on-lift", "reset", "--id", "dev01"])?;
                let (sender, receiver) = match from_b {
                    true => (&mut busy.client, &mut busy.server),
                    false => (&mut busy.server, &mut busy.client),
                };
                let deadline = Instant::now() + 2 * PATIENCE;
                std::thread::scope(|scope| {
                    let pause = Duration::from_millis(1);
                    let sending =
                        scope.spawn(move || send_until_dead(sender, b"stale", pause, deadline));
                    hosts.wait_packets("dev01", 1)?;
                    match end_by_stop {
                        true => drop(hosts.daemon.stop()?),
                        false => drop(hosts.del(&["dev01"])?),
                    }
                    let sent = sending.join().expect("no panic");
                    assert!(sent.is_some(), "the sender lives on, from B: {from_b}");
                    anyhow::Ok(())
                })?;
                let received = receive_until_dead(receiver, deadline);
                assert_eq!(received, Some(0), "from B: {from_b}, stop: {end_by_stop}");
                listener.connect(&hosts.pair.b)?.check_alive()?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_server_that_loses_its_peer_goes_on_serving() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let listener = Listener::new(&hosts.pair.a, Pair::A, 0)?;
    let b = Pair::B.to_string();
    for round in 0..5 {
        let mut flow = listener.connect(&hosts.pair.b)?;
        flow.check_alive()?;
        hosts.add(&[&b, "--mode", "reset"])?;
        assert!(flow.wait_dead(soon())?, "round {round}");
        let error = connect_error(&hosts.pair.b, listener.address)?;
        assert_eq!(error, Some(Errno::ECONNREFUSED), "round {round}");
        hosts.del(&[&b])?;
    }
    listener.connect(&hosts.pair.b)?.check_alive()
}
