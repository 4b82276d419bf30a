//! `--mode reset`: both ends of every flow with the peer die, idle or busy; new connections fail
//! at once; nothing that was sent during the block arrives after it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use nix::errno::Errno;
use serde_json::json;
use xtask::hosts::{Connection, Listener, Pair, connect_timed};

use crate::blocking_pair::{
    BlockingPair, FAMILIES, PATIENCE, assert_died, connect_error, receive_until_dead,
    send_until_dead, settle, soon,
};

/// What the blocking host's own end may die of: its socket is destroyed, or a RST arrives.
const HERE: &[Errno] = &[Errno::ECONNABORTED, Errno::ECONNRESET];
/// What the blocked peer's end dies of. Its next write after that gives EPIPE.
const THERE: &[Errno] = &[Errno::ECONNRESET, Errno::EPIPE];

#[test]
fn idle_flows_die_at_both_ends_and_new_ones_are_refused() -> Result<()> {
    for (a, b) in FAMILIES {
        let hosts = BlockingPair::new("")?;
        let pair = &hosts.pair;
        let in_a = Listener::new(&pair.a, a, 0)?;
        let in_b = Listener::new(&pair.b, b, 0)?;
        let mut inward = in_a.connect(&pair.b)?;
        let mut outward = in_b.connect(&pair.a)?;
        inward.check_alive()?;
        outward.check_alive()?;
        settle(&inward)?;
        settle(&outward)?;

        let added = hosts.add(&[&b.to_string(), "--mode", "reset", "--id", "dev01"])?;
        assert_eq!(added["teardown"]["found"], 2, "{added}");
        assert_eq!(added["teardown"]["killed"], 2, "{added}");
        assert_eq!(added["teardown"]["left"], json!([]), "{added}");
        assert!(inward.wait_dead(soon())?, "both ends of the inward flow");
        assert!(outward.wait_dead(soon())?, "both ends of the outward flow");
        for (here, there) in [
            (&inward.server, &inward.client),
            (&outward.client, &outward.server),
        ] {
            assert_died(here, HERE);
            assert_died(there, THERE);
        }

        for (host, listener) in [(&pair.a, &in_b), (&pair.b, &in_a)] {
            let (stream, after) = connect_timed(host, listener.address, PATIENCE)?;
            let error = stream.expect_err("a connect during the block").kind();
            assert_eq!(error, std::io::ErrorKind::ConnectionRefused);
            assert!(after < Duration::from_secs(1), "refused after {after:?}");
        }

        hosts.del(&["dev01"])?;
        // The listeners lived through it, and hold nothing of the block's time: the next that
        // they accept is the next that connects.
        in_a.connect(&pair.b)?.check_alive()?;
        in_b.connect(&pair.a)?.check_alive()?;
        for end in [&mut inward.server, &mut inward.client] {
            assert_eq!(end.receive(1, Duration::ZERO)?, b"", "of the dead flow");
        }
    }
    Ok(())
}

#[test]
fn a_flow_whose_remote_keeps_sending_dies_at_both_ends() -> Result<()> {
    for (a, b) in FAMILIES {
        dies_while_sending(a, b, Side::Remote, b"x", Duration::from_millis(1))?;
    }
    Ok(())
}

#[test]
fn a_flow_whose_local_end_keeps_sending_dies_at_both_ends() -> Result<()> {
    for (a, b) in FAMILIES {
        dies_while_sending(a, b, Side::Local, b"x", Duration::from_millis(1))?;
    }
    Ok(())
}

#[test]
fn bulk_transfers_die_at_both_ends() -> Result<()> {
    for (a, b) in FAMILIES {
        for side in [Side::Remote, Side::Local] {
            dies_while_sending(a, b, side, &[0; 1 << 16], Duration::ZERO)?;
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Local,
    Remote,
}

/// One end sends on and on, the other receives; a block is put, and lifted.
fn dies_while_sending(
    a: IpAddr,
    b: IpAddr,
    side: Side,
    bytes: &[u8],
    pause: Duration,
) -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let listener = Listener::new(&hosts.pair.a, a, 0)?;
    let Connection { client, server } = &mut listener.connect(&hosts.pair.b)?;
    let (sender, receiver) = match side {
        Side::Remote => (client, server),
        Side::Local => (server, client),
    };
    let deadline = soon();
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| send_until_dead(sender, bytes, pause, deadline));
        let received = scope.spawn(|| {
            let first = receiver.receive(1, PATIENCE).expect("it is alive at first");
            assert_eq!(first.len(), 1, "the transfer runs before the block");
            receive_until_dead(receiver, deadline)
        });
        let added = hosts.add(&[&b.to_string(), "--mode", "reset", "--id", "dev01"]);
        assert!(
            sent.join().expect("no panic").is_some(),
            "the sender lives on"
        );
        assert!(
            received.join().expect("no panic").is_some(),
            "the receiver lives on"
        );
        added
    })?;
    let (here, there) = match side {
        Side::Remote => (receiver, sender),
        Side::Local => (sender, receiver),
    };
    assert_died(here, &[HERE, &[Errno::EPIPE]].concat());
    assert_died(there, THERE);
    // What arrived before the block may still be read. A dead socket takes no more.
    for end in [&mut *here, &mut *there] {
        while !end.receive(1 << 16, Duration::ZERO)?.is_empty() {}
    }
    hosts.del(&["dev01"])?;
    for end in [here, there] {
        assert_eq!(end.receive(1, Duration::ZERO)?, b"", "of the dead flow");
    }
    listener.connect(&hosts.pair.b)?.check_alive()
}

#[test]
fn one_segment_kills_both_ends_of_a_flow_that_was_kept() -> Result<()> {
    for (a, b) in FAMILIES {
        for side in [Side::Remote, Side::Local] {
            let hosts = BlockingPair::new("")?;
            let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, a)?;
            flow.check_alive()?;
            let b = b.to_string();
            let added = hosts.add(&[&b, "--mode", "reset", "--established", "keep"])?;
            assert_eq!(added["teardown"]["found"], 0, "{added}");
            assert_eq!(flow.client.look()?, None);
            assert_eq!(flow.server.look()?, None);
            match side {
                Side::Remote => flow.client.send(b"request")?,
                Side::Local => flow.server.send(b"answer")?,
            }
            assert!(flow.wait_dead(soon())?, "{flow:?}");
            assert_died(&flow.client, THERE);
            assert_died(&flow.server, THERE);
            hosts.del(&[&b])?;
            for end in [&mut flow.client, &mut flow.server] {
                assert_eq!(end.receive(1, Duration::ZERO)?, b"", "sent in the block");
            }
        }
    }
    Ok(())
}

#[test]
fn what_others_have_with_this_host_goes_on() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let pair = &hosts.pair;
    // B has a second address, which is a remote of its own.
    let other: IpAddr = [10, 171, 170, 105].into();
    pair.b
        .run(&["ip", "address", "add", "10.171.170.105/32", "dev", "eth0"])?;
    pair.a
        .run(&["ip", "route", "add", "10.171.170.105", "dev", "eth0"])?;
    let in_a = Listener::new(&pair.a, Pair::A, 0)?;
    let beside = Listener::new(&pair.b, other, 0)?;
    let mut blocked = in_a.connect(&pair.b)?;
    let mut untouched = beside.connect(&pair.a)?;
    let mut six = Connection::open(&pair.b, &pair.a, Pair::A6)?;

    hosts.add(&[&Pair::B.to_string(), "--mode", "reset"])?;
    assert!(blocked.wait_dead(soon())?);
    untouched.check_alive()?;
    six.check_alive()?;
    beside.connect(&pair.a)?.check_alive()?;
    assert_eq!(
        connect_error(&pair.b, in_a.address)?,
        Some(Errno::ECONNREFUSED)
    );
    Ok(())
}

#[test]
fn rules_of_netfilter_do_not_stop_the_resets() -> Result<()> {
    for (a, b) in FAMILIES {
        for busy in [false, true] {
            let hosts = BlockingPair::new("")?;
            let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, a)?;
            flow.check_alive()?;
            let b = b.to_string();
            let iptables = if a.is_ipv4() { "iptables" } else { "ip6tables" };
            let drops = ["-w", "-A", "OUTPUT", "-p", "tcp", "-d", &b, "-j", "DROP"];
            hosts.pair.a.run(&[&[iptables], &drops[..]].concat())?;
            settle(&flow)?;
            if busy {
                flow.client.send(b"in flight, never acknowledged")?;
            }
            let added = hosts.add(&[&b, "--mode", "reset"])?;
            assert!(flow.wait_dead(soon())?, "busy: {busy}: {flow:?}");
            // A busy one may be dead before it is found.
            assert_eq!(
                added["teardown"]["left"],
                json!([]),
                "busy: {busy}: {added}"
            );
            assert!(busy || added["teardown"]["killed"] == 1, "{added}");
            assert_died(&flow.client, THERE);
        }
    }
    Ok(())
}
