//! Clients that stall and clients that flood do not keep the daemon from serving others.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::hosts::poll;

use crate::blocking_pair::{BlockingPair, PATIENCE};

/// As many as the daemon serves at once, and some more.
const MANY: usize = 300;
/// How long a request may take beside stalled clients; it takes milliseconds without them.
const SOON: Duration = Duration::from_secs(5);
/// How long others may be kept waiting by clients that don't read what they asked for.
const UNREAD: Duration = Duration::from_secs(20);

/// Connections to the daemon that send these bytes, and nothing more.
fn stalled(hosts: &BlockingPair, count: usize, said: &[u8]) -> Result<Vec<UnixStream>> {
    let connect = |_| {
        let mut stream = UnixStream::connect(hosts.daemon.socket())?;
        // Its place may be somebody else's already.
        let _ = stream.write_all(said);
        Ok(stream)
    };
    (0..count).map(connect).collect()
}

/// Checks that a change is made within [`SOON`].
fn assert_served(hosts: &BlockingPair, what: &str) -> Result<()> {
    let start = Instant::now();
    hosts
        .add(&["192.0.2.1", "--id", "served"])
        .with_context(|| what.to_owned())?;
    hosts.del(&["served"]).with_context(|| what.to_owned())?;
    let took = start.elapsed();
    ensure!(took < SOON, "{what}: served after {took:?}");
    Ok(())
}

fn descriptors(hosts: &BlockingPair) -> Result<usize> {
    let pid = hosts.daemon.pid().context("it runs")?;
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

#[test]
fn who_connects_and_stalls_keeps_nobody_out() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let before = descriptors(&hosts)?;
    for (what, said) in [
        ("nothing", &b""[..]),
        ("half a header", b"GET /v1/rules HTTP/1.1\r\nHost: local"),
        ("a header, and half a body", b"POST /v1/rules HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{\"targets\": ["),
        ("a chunk", b"PUT /v1/ruleset HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"rul"),
    ] {
        let clients = stalled(&hosts, MANY, said)?;
        assert_served(&hosts, what)?;
        let now = descriptors(&hosts)?;
        ensure!(now < before + MANY, "{what}: {now} descriptors");
        drop(clients);
    }
    poll("the descriptors to be closed", PATIENCE, || {
        (descriptors(&hosts).ok()? <= before + 4).then_some(())
    })
}

#[test]
fn who_does_not_read_keeps_nobody_out() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let directory = tempfile::tempdir()?;
    let list = directory.path().join("list");
    let many = (0..20_000_u32)
        .map(|n| format!("198.{}.{}.{}\n", 18 + (n >> 16), (n >> 8) & 0xff, n & 0xff));
    fs::write(&list, many.collect::<String>())?;
    let list = list.display().to_string();
    hosts
        .daemon
        .blockctl(&["add", "--from-file", &list, "--id", "large"])?
        .success()?;
    let ask = b"GET /v1/rules HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let _clients = stalled(&hosts, MANY, ask)?;
    poll("somebody else to be served", UNREAD, || {
        hosts
            .daemon
            .blockctl(&["show", "large"])
            .ok()?
            .success()
            .ok()
    })?;
    Ok(())
}

#[test]
fn a_flood_of_connections_keeps_nobody_out() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut held = std::collections::VecDeque::new();
            while !over.load(Ordering::Relaxed) {
                held.extend(UnixStream::connect(hosts.daemon.socket()).ok());
                if held.len() > MANY {
                    held.pop_front();
                }
                std::thread::yield_now();
            }
        });
        let served = (0..10).try_for_each(|n| assert_served(&hosts, &format!("request {n}")));
        over.store(true, Ordering::Relaxed);
        served
    })
}

#[test]
fn a_body_that_comes_to_a_standstill_is_told_so() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let mut client = UnixStream::connect(hosts.daemon.socket())?;
    client.set_read_timeout(Some(4 * PATIENCE))?;
    client.write_all(b"POST /v1/rules HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")?;
    let mut said = String::new();
    client.read_to_string(&mut said)?;
    ensure!(said.starts_with("HTTP/1.1 4"), "{said}");
    ensure!(
        said.contains("nothing of the request's body came for 5 s"),
        "{said}"
    );
    Ok(())
}

#[test]
fn streams_are_bounded_and_leave_room_for_requests() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let watch = b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut clients = stalled(&hosts, 200, watch)?;
    let mut refused = 0;
    for client in &mut clients {
        client.set_read_timeout(Some(PATIENCE))?;
        let mut start = [0; 12];
        client.read_exact(&mut start)?;
        match &start {
            b"HTTP/1.1 200" => {}
            b"HTTP/1.1 503" => refused += 1,
            other => anyhow::bail!("{}", String::from_utf8_lossy(other)),
        }
    }
    assert_eq!(refused, 200 - 192);
    assert_served(&hosts, "beside streams")?;
    let watch = hosts.daemon.blockctl(&["watch"])?;
    assert_eq!(watch.code, 1, "{watch:?}");
    assert!(watch.stderr.contains("192 streams"), "{}", watch.stderr);
    // Those who watch were not cut off.
    drop(clients);
    poll("the streams to be over", PATIENCE, || {
        let mut client = stalled(
            &hosts,
            1,
            b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n",
        )
        .ok()?;
        client[0].set_read_timeout(Some(PATIENCE)).ok()?;
        let mut start = [0; 12];
        client[0].read_exact(&mut start).ok()?;
        (start == *b"HTTP/1.1 200").then_some(())
    })
}

/// Sets how many descriptors the daemon may have.
fn limit_descriptors(hosts: &BlockingPair, count: u64) -> Result<()> {
    let pid = hosts.daemon.pid().context("it runs")?.cast_signed();
    let limit = libc::rlimit {
        rlim_cur: count,
        rlim_max: 1_024,
    };
    // SAFETY: the limit is initialised and outlives the call; the old one is not asked for.
    let done = unsafe {
        libc::prlimit(
            pid,
            libc::RLIMIT_NOFILE,
            &raw const limit,
            std::ptr::null_mut(),
        )
    };
    nix::errno::Errno::result(done).context("the limit cannot be set")?;
    Ok(())
}

#[test]
fn a_daemon_without_descriptors_lives_and_catches_up() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    limit_descriptors(&hosts, descriptors(&hosts)? as u64 + 10)?;
    let clients = stalled(&hosts, 100, b"GET /v1/rules HTTP/1.1\r\nHost: local")?;
    poll("descriptors to run out", PATIENCE, || {
        hosts
            .daemon
            .log()
            .contains("Too many open files")
            .then_some(())
    })?;
    // What wants descriptors now does without, and is done later.
    hosts.pair.a.run(&[
        "ip", "link", "add", "late0", "type", "veth", "peer", "name", "late1",
    ])?;
    hosts.pair.a.run(&["ip", "link", "set", "late0", "up"])?;
    assert_served(&hosts, "without descriptors")?;
    drop(clients);
    limit_descriptors(&hosts, 1_024)?;
    poll("the new device to be attached to", PATIENCE, || {
        let status = hosts.daemon.json(&["status"]).ok()?;
        let devices = status["interfaces"].as_array()?.clone();
        let mut names = devices.iter().filter_map(|device| device["name"].as_str());
        names.any(|name| name == "late0").then_some(())
    })?;
    assert_served(&hosts, "afterwards")
}
