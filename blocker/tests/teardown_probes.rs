//! Probes on the wire, without the datapath: who gets them, by which way, and what they draw.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use blocker::config::Namespaces;
use blocker::rule::{Defaults, Rule, RuleSpec};
use blocker::teardown::{Evidence, Settings, kill};
use blocker_ebpf::FlowKey;
use nix::errno::Errno;

mod lab;

use lab::{Capture, Connection, Pair};

const SETTINGS: Settings = Settings {
    namespaces: Namespaces::Own,
    mark: 0x5eed,
};

/// A datapath that never sees a RST, so that everything is probed.
struct SeesNothing;

impl Evidence for SeesNothing {
    fn watch(&self, _: &[FlowKey]) -> io::Result<()> {
        Ok(())
    }

    fn seen(&self, flows: &[FlowKey]) -> io::Result<Vec<u32>> {
        Ok(vec![0; flows.len()])
    }

    fn forget(&self, _: &[FlowKey]) -> io::Result<()> {
        Ok(())
    }
}

fn reset_of(remote: IpAddr) -> Result<Vec<Rule>> {
    let json = format!(r#"{{"mode":"reset","targets":["{remote}"]}}"#);
    let spec: RuleSpec = serde_json::from_str(&json)?;
    let id = || "test".parse().expect("an id");
    Ok(vec![spec.resolve(
        id,
        Defaults::default(),
        jiff::Timestamp::now(),
    )?])
}

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
            .enter(|| kill(&rules, &SETTINGS, &SeesNothing, &|_| {}))?;
        assert_eq!((account.found, account.killed), (1, 0), "{account:?}");
        // A first probe, then three rounds of two, an answer to each.
        let frames = capture.wait_for(14, Duration::from_secs(5))?;
        let port = connection.client.local()?.port();
        let (probes, answers): (Vec<_>, Vec<_>) = frames
            .iter()
            .map(|frame| tcp_of(frame))
            .partition(|tcp| u16::from_be_bytes([tcp[2], tcp[3]]) == port);
        assert_eq!((probes.len(), answers.len()), (7, 7));
        for pair in probes[1..].chunks(2) {
            assert_eq!(seq(pair[1]), seq(pair[0]).wrapping_add(1 << 31));
            assert!(
                pair.iter()
                    .all(|tcp| tcp[13] == ACK_ALONE && tcp.len() >= 21)
            );
        }
        let exact = (seq(answers[0]), ack(answers[0]));
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
        .enter(|| kill(&rules, &SETTINGS, &SeesNothing, &|_| {}))?;
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
        .enter(|| kill(&rules, &SETTINGS, &SeesNothing, &|_| {}))?;
    assert_eq!(account.found, 1, "{account:?}");
    capture.wait_for(4, Duration::from_secs(5))?;
    Ok(())
}
