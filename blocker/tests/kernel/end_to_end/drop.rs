//! `--mode drop`: no replies. An established flow resumes when the rule ends, unless the rule kills it at
//! its start or at its end.

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::errno::Errno;
use serde_json::json;
use xtask::hosts::{Capture, Connection, Listener, Pair, connect_timed, poll};

use crate::blocking_pair::{BlockingPair, FAMILIES, PATIENCE, assert_died, settle, soon, udp};

/// What the blocking host's own end may die of: its socket is destroyed, or a RST arrives.
const HERE: &[Errno] = &[Errno::ECONNABORTED, Errno::ECONNRESET];

#[test]
fn nothing_passes_and_the_flow_resumes_afterwards() -> Result<()> {
    for (a, b) in FAMILIES {
        let hosts = BlockingPair::new("")?;
        let pair = &hosts.pair;
        let in_a = Listener::new(&pair.a, a, 0)?;
        let in_b = Listener::new(&pair.b, b, 0)?;
        let mut flow = in_a.connect(&pair.b)?;
        flow.check_alive()?;
        let added = hosts.add(&[&b.to_string(), "--mode", "drop", "--id", "dev01"])?;
        assert_eq!(added["teardown"]["found"], 0, "drop keeps flows: {added}");

        // Whoever A's packets are from, B sees none but those that find neighbours. Two of B's
        // own, to know that the capture sees all there is up to then.
        let from_a = "not arp and not (icmp6 and (ip6[40] >= 133 and ip6[40] <= 137))";
        let filter = format!("src host {a} and {from_a}");
        let wire = Capture::start(&pair.b, "eth0", &filter)?;
        let sent = Capture::start(&pair.b, "eth0", &format!("dst host {a} and tcp"))?;
        for (host, listener) in [(&pair.a, &in_b), (&pair.b, &in_a)] {
            let (stream, after) =
                connect_timed(host, listener.address, Duration::from_millis(300))?;
            let error = stream.expect_err("a connect during the block").kind();
            assert_eq!(error, std::io::ErrorKind::TimedOut);
            assert!(after >= Duration::from_millis(300), "gave up at {after:?}");
        }
        flow.client.send(b"from B")?;
        flow.server.send(b"from A")?;
        let datagram = udp(&pair.a, a, Some((b, 9).into()))?;
        datagram.send(b"?")?;
        hosts.wait_packets("dev01", 5)?; // two SYNs, two segments, one datagram
        sent.wait_for(2, PATIENCE)?;
        assert_eq!(wire.finish()?, Vec::<Vec<u8>>::new(), "A's packets in B");
        assert_eq!(hosts.counters("dev01")?["replies"], 0);
        assert_eq!([flow.client.look()?, flow.server.look()?], [None, None]);

        hosts.del(&["dev01"])?;
        assert_eq!(flow.server.receive(6, PATIENCE)?, b"from B");
        assert_eq!(flow.client.receive(6, PATIENCE)?, b"from A");
        flow.check_alive()?;
        in_b.connect(&pair.a)?.check_alive()?;
    }
    Ok(())
}

#[test]
fn established_kill_kills_both_ends() -> Result<()> {
    for (a, b) in FAMILIES {
        let hosts = BlockingPair::new("")?;
        let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, a)?;
        flow.check_alive()?;
        settle(&flow)?;
        let b = b.to_string();
        let added = hosts.add(&[&b, "--mode", "drop", "--established", "kill"])?;
        assert_eq!(added["teardown"]["killed"], 1, "{added}");
        assert_eq!(added["teardown"]["left"], json!([]), "{added}");
        assert!(flow.wait_dead(soon())?, "{flow:?}");
        assert_died(&flow.server, HERE);
        assert_died(&flow.client, &[Errno::ECONNRESET]);
        // And it is a silent block otherwise.
        let (stream, _) = connect_timed(&hosts.pair.b, (a, 9).into(), Duration::from_millis(200))?;
        assert_eq!(
            stream.expect_err("blocked").kind(),
            std::io::ErrorKind::TimedOut
        );
    }
    Ok(())
}

#[test]
fn on_lift_reset_answers_no_request_of_the_block() -> Result<()> {
    for (a, b) in FAMILIES {
        for from_b in [true, false] {
            let hosts = BlockingPair::new("")?;
            let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, a)?;
            flow.check_alive()?;
            let b = b.to_string();
            hosts.add(&[&b, "--mode", "drop", "--on-lift", "reset", "--id", "dev01"])?;
            let (sender, receiver) = match from_b {
                true => (&mut flow.client, &mut flow.server),
                false => (&mut flow.server, &mut flow.client),
            };
            sender.send(b"request")?;
            hosts.wait_packets("dev01", 1)?;
            assert_eq!([sender.look()?, receiver.look()?], [None, None]);

            let gone = hosts.del(&["dev01"])?;
            assert_eq!(gone["removed"], json!(["dev01"]), "{gone}");
            assert_eq!(gone["teardown"]["left"], json!([]), "{gone}");
            let got = receiver.receive(7, Duration::from_millis(1));
            assert!(!matches!(got.as_deref(), Ok(b"request")), "delivered");
            assert!(flow.wait_dead(soon())?, "from B: {from_b}: {flow:?}");
            for end in [&mut flow.client, &mut flow.server] {
                assert_eq!(end.receive(7, Duration::ZERO)?, b"", "from B: {from_b}");
            }
            Connection::open(&hosts.pair.b, &hosts.pair.a, a)?.check_alive()?;
        }
    }
    Ok(())
}

#[test]
fn on_lift_reset_holds_for_a_deadline_too() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?;
    flow.check_alive()?;
    let b = Pair::B.to_string();
    hosts.add(&[&b, "--on-lift", "reset", "--for", "1s", "--id", "dev01"])?;
    flow.client.send(b"request")?;
    hosts.wait_packets("dev01", 1)?;
    assert!(flow.wait_dead(soon())?, "{flow:?}");
    for end in [&mut flow.client, &mut flow.server] {
        assert_eq!(end.receive(7, Duration::ZERO)?, b"");
    }
    poll("the rule to be gone", PATIENCE, || {
        let list = hosts.daemon.json(&["list"]).ok()?;
        (list["rules"] == json!([])).then_some(())
    })?;
    Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?.check_alive()
}

#[test]
fn a_direction_and_ports_narrow_it() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let pair = &hosts.pair;
    let blocked = Listener::new(&pair.a, Pair::A, 0)?;
    let open = Listener::new(&pair.a, Pair::A, 0)?;
    let outward = Listener::new(&pair.b, Pair::B, blocked.address.port())?;
    let port = blocked.address.port().to_string();
    let b = Pair::B.to_string();
    hosts.add(&[&b, "--local-port", &port, "--protocol", "tcp"])?;
    let start = Instant::now();
    let (stream, _) = connect_timed(&pair.b, blocked.address, Duration::from_millis(200))?;
    assert_eq!(
        stream.expect_err("its local port is named").kind(),
        std::io::ErrorKind::TimedOut
    );
    assert!(start.elapsed() < PATIENCE);
    open.connect(&pair.b)?.check_alive()?;
    outward.connect(&pair.a)?.check_alive()?; // there the port is the remote's

    hosts.del(&[&b])?;
    hosts.add(&[&b, "--direction", "ingress", "--id", "in"])?;
    let datagram = udp(&pair.b, Pair::B, None)?;
    let from_a = udp(&pair.a, Pair::A, Some(datagram.local_addr()?))?;
    from_a.send(b"out")?;
    let mut bytes = [0; 8];
    let (length, from) = datagram.recv_from(&mut bytes)?;
    assert_eq!(&bytes[..length], b"out");
    datagram.send_to(b"in", from)?;
    hosts.wait_packets("in", 1)?;
    from_a.set_nonblocking(true)?;
    let error = from_a.recv(&mut bytes).expect_err("blocked").kind();
    assert_eq!(error, std::io::ErrorKind::WouldBlock);
    Ok(())
}
