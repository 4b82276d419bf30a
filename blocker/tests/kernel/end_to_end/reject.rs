//! `--mode reject` tells the sender by ICMP; `--mode reset` does so where there is no RST;
//! `--mode audit` counts and passes.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use nix::errno::Errno;
use xtask::hosts::{Capture, Connection, Listener, Namespace, Pair, poll};

use crate::blocking_pair::{BlockingPair, FAMILIES, PATIENCE, connect_error, errno, udp};

/// What ICMP "administratively prohibited" makes of a connect: code 13 of IPv4
/// (`icmp_err_convert` in net/ipv4/icmp.c), code 1 of ICMPv6 (`tab_unreach` in net/ipv6/icmp.c).
const fn prohibited(address: IpAddr) -> Errno {
    if address.is_ipv4() {
        Errno::EHOSTUNREACH
    } else {
        Errno::EACCES
    }
}

/// Sends datagrams until the kernel reports an ICMP error on the socket.
fn udp_error(host: &Namespace, from: IpAddr, to: IpAddr) -> Result<Errno> {
    let socket = udp(host, from, Some((to, 5300).into()))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    poll("an ICMP error", PATIENCE, || {
        let error = socket
            .send(b"?")
            .and_then(|_| socket.recv(&mut [0; 8]))
            .err();
        error
            .map(|error| errno(&error))
            .filter(|error| *error != Errno::EAGAIN)
    })
}

#[test]
fn reject_fails_connects_and_datagrams_from_either_side() -> Result<()> {
    for (a, b) in FAMILIES {
        let hosts = BlockingPair::new("")?;
        let pair = &hosts.pair;
        let in_a = Listener::new(&pair.a, a, 0)?;
        let in_b = Listener::new(&pair.b, b, 0)?;
        let mut flow = in_a.connect(&pair.b)?;
        flow.check_alive()?;
        let added = hosts.add(&[&b.to_string(), "--mode", "reject", "--id", "dev01"])?;
        assert_eq!(added["teardown"]["found"], 0, "reject keeps flows: {added}");
        for (host, listener) in [(&pair.a, &in_b), (&pair.b, &in_a)] {
            let error = connect_error(host, listener.address)?;
            assert_eq!(error, Some(prohibited(a)), "in {}", host.name());
        }
        assert_eq!(udp_error(&pair.a, a, b)?, prohibited(a));
        assert_eq!(udp_error(&pair.b, b, a)?, prohibited(a));
        // An ICMP error is no more than a hint to an established flow.
        flow.client.send(b"request")?;
        hosts.wait_packets("dev01", 5)?;
        hosts.del(&["dev01"])?;
        assert_eq!(flow.server.receive(7, PATIENCE)?, b"request");
        flow.check_alive()?;
    }
    Ok(())
}

#[test]
fn reset_refuses_datagrams_from_either_side() -> Result<()> {
    for (a, b) in FAMILIES {
        let hosts = BlockingPair::new("")?;
        let pair = &hosts.pair;
        // Somebody listens: it is the rule that refuses, not the host.
        let _in_a = pair.a.enter(|| std::net::UdpSocket::bind((a, 5300)))??;
        let _in_b = pair.b.enter(|| std::net::UdpSocket::bind((b, 5300)))??;
        hosts.add(&[&b.to_string(), "--mode", "reset", "--id", "dev01"])?;
        assert_eq!(udp_error(&pair.a, a, b)?, Errno::ECONNREFUSED);
        assert_eq!(udp_error(&pair.b, b, a)?, Errno::ECONNREFUSED);
        let counters = hosts.counters("dev01")?;
        assert_eq!(counters["packets"], counters["replies"], "{counters}");
    }
    Ok(())
}

#[test]
fn reset_answers_a_syn_by_one_rst_and_a_ping_by_an_error() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let pair = &hosts.pair;
    let (a, b) = (Pair::A.to_string(), Pair::B.to_string());
    let resets = Capture::start(&pair.a, "eth0", "tcp[tcpflags] & tcp-rst != 0")?;
    // Type 3, code 3: port unreachable.
    let errors = Capture::start(&pair.a, "eth0", "icmp[0] == 3 and icmp[1] == 3")?;
    hosts.add(&[&b, "--mode", "reset", "--id", "dev01"])?;
    assert_eq!(
        connect_error(&pair.b, (Pair::A, 9).into())?,
        Some(Errno::ECONNREFUSED)
    );
    let ping = pair.b.run(&["ping", "-c", "1", "-W", "2", &a]);
    ping.expect_err("a ping during the block");
    errors.wait_for(1, PATIENCE)?;
    resets.wait_for(1, PATIENCE)?;
    assert_eq!(errors.finish()?.len(), 1, "errors for one ping");
    assert_eq!(resets.finish()?.len(), 1, "RSTs for one SYN");
    let counters = hosts.counters("dev01")?;
    assert_eq!([&counters["packets"], &counters["replies"]], [2, 2]);
    Ok(())
}

#[test]
fn audit_passes_and_counts_exactly() -> Result<()> {
    const COUNT: u64 = 137;
    for (a, b) in FAMILIES {
        let hosts = BlockingPair::new("")?;
        let pair = &hosts.pair;
        let mut flow = Connection::open(&pair.b, &pair.a, a)?;
        flow.check_alive()?;
        let sink = udp(&pair.a, a, None)?;
        let source = udp(&pair.b, b, Some(sink.local_addr()?))?;
        let rule = ["--mode", "audit", "--protocol", "udp", "--id", "dev01"];
        let added = hosts.add(&[&[b.to_string().as_str()], &rule[..]].concat())?;
        assert_eq!(added["teardown"]["found"], 0, "audit keeps flows: {added}");
        for _ in 0..COUNT {
            source.send(&[7; 100])?;
            assert_eq!(sink.recv(&mut [0; 128])?, 100);
        }
        let counters = hosts.counters("dev01")?;
        let headers = 14 + if a.is_ipv4() { 20 } else { 40 } + 8;
        assert_eq!(counters["packets"], COUNT, "{counters}");
        assert_eq!(counters["bytes"], COUNT * (headers + 100), "{counters}");
        assert_eq!(counters["replies"], 0, "{counters}");
        // Back, too, and TCP is none of its business.
        sink.send_to(&[7; 100], source.local_addr()?)?;
        assert_eq!(source.recv(&mut [0; 128])?, 100);
        flow.check_alive()?;
        assert_eq!(hosts.counters("dev01")?["packets"], COUNT + 1);
    }
    Ok(())
}
