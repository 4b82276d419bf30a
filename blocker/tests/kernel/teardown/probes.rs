//! Probes on the wire, without the datapath: their recipients, their route, and the answers.

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::errno::Errno;
use xtask::hosts::{Capture, Connection, Pair, poll};

use crate::fixed_evidence::{FixedEvidence, SETTINGS, kill, reset_of};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

/// Where the TCP header of a frame's packet begins, after an Ethernet header.
fn tcp_of(frame: &[u8]) -> &[u8] {
    let ethertype = u16::from_be_bytes([frame[12], frame[13]]);
    match ethertype {
        0x0800 => &frame[14 + usize::from(frame[14] & 0xf) * 4..],
        0x86dd => &frame[14 + 40..],
        other => panic!("EtherType {other:#x}"),
    }
}

fn seq(tcp: &[u8]) -> u32 {
    u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]])
}

fn ack(tcp: &[u8]) -> u32 {
    u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]])
}

const ACK_ALONE: u8 = 0x10;

#[test]
fn an_idle_remote_answers_each_probe_with_its_exact_numbers() -> Result<()> {
    for (own, remote, family) in [
        (Pair::A, Pair::B, "iptables"),
        (Pair::A6, Pair::B6, "ip6tables"),
    ] {
        let pair = Pair::new()?;
        let mut connection = Connection::open(&pair.b, &pair.a, own)?;
        connection.check_alive()?;
        // A firewall on A that lets nothing out to B, RSTs included: probes pass it by.
        pair.a.run(&[
            family,
            "-A",
            "OUTPUT",
            "-d",
            &remote.to_string(),
            "-j",
            "DROP",
        ])?;
        let capture = Capture::start(&pair.b, "eth0", "tcp or ip6 proto 6")?;
        let rules = reset_of(remote)?;
        let account = pair
            .a
            .enter(|| kill(&rules, &SETTINGS, &FixedEvidence::nothing(), &|_| {}))?;
        assert_eq!((account.found, account.killed), (1, 0), "{account:?}");
        // A first probe, then three rounds of two, an answer to each. B may have been about to
        // acknowledge the last byte it got, with the same numbers.
        let port = connection.client.local()?.port();
        let to_b = |tcp: &Vec<u8>| u16::from_be_bytes([tcp[2], tcp[3]]) == port;
        let (probes, answers) = poll("seven answers", Duration::from_secs(5), || {
            let frames = capture.packets().ok()?;
            let segments = frames.iter().map(|frame| tcp_of(frame).to_vec());
            let (probes, answers): (Vec<_>, Vec<_>) = segments.partition(to_b);
            (answers.len() >= 7).then_some((probes, answers))
        })?;
        assert_eq!(probes.len(), 7);
        for pair in probes[1..].chunks(2) {
            assert_eq!(seq(&pair[1]), seq(&pair[0]).wrapping_add(1 << 31));
            assert!(
                pair.iter()
                    .all(|tcp| tcp[13] == ACK_ALONE && tcp.len() >= 21)
            );
        }
        let exact = (seq(&answers[0]), ack(&answers[0]));
        for answer in &answers {
            assert_eq!(answer[13], ACK_ALONE);
            assert_eq!((seq(answer), ack(answer)), exact);
            assert!(probes.iter().all(|probe| seq(probe) != exact.1));
        }
        assert_eq!(connection.client.look()?, None, "nobody reset it");
    }
    Ok(())
}

#[test]
fn a_reset_that_the_hosts_own_rule_ate_is_made_up_for() -> Result<()> {
    let pair = Pair::new()?;
    let mut connection = Connection::open(&pair.b, &pair.a, Pair::A)?;
    // Of A's RSTs, that of the destroyed socket has ACK set and is eaten; the one that answers a
    // stray segment has not.
    let eats = "-A OUTPUT -p tcp --tcp-flags RST,ACK RST,ACK -j DROP";
    let words: Vec<&str> = ["iptables"].into_iter().chain(eats.split(' ')).collect();
    pair.a.run(&words)?;
    let rules = reset_of(Pair::B)?;
    let account = pair
        .a
        .enter(|| kill(&rules, &SETTINGS, &FixedEvidence::nothing(), &|_| {}))?;
    assert_eq!(account.found, 1, "{account:?}");
    assert!(connection.wait_dead(soon())?);
    assert_eq!(
        connection.client.death().unwrap().error,
        Some(Errno::ECONNRESET)
    );
    Ok(())
}

#[test]
fn a_neighbour_that_is_not_known_is_asked_for() -> Result<()> {
    let pair = Pair::new()?;
    let connection = Connection::open(&pair.b, &pair.a, Pair::A)?;
    // The first round's probes go through the kernel, where this eats them; meanwhile it learns
    // the neighbour's address, and the second round's pass by.
    let remote = Pair::B.to_string();
    pair.a
        .run(&["iptables", "-A", "OUTPUT", "-d", &remote, "-j", "DROP"])?;
    pair.a.run(&["ip", "neigh", "flush", "all"])?;
    let port = connection.client.local()?.port();
    let capture = Capture::start(&pair.b, "eth0", &format!("tcp dst port {port}"))?;
    let rules = reset_of(Pair::B)?;
    let account = pair
        .a
        .enter(|| kill(&rules, &SETTINGS, &FixedEvidence::nothing(), &|_| {}))?;
    assert_eq!(account.found, 1, "{account:?}");
    capture.wait_for(4, Duration::from_secs(5))?;
    Ok(())
}
