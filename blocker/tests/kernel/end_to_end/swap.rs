//! Large rulesets replace each other under full traffic: every packet meets exactly one of them.
//!
//! A flood of datagrams comes from three addresses: one that every ruleset blocks, one that none
//! does, and one that a rule blocks which is the same in all of them. Each is counted exactly, at
//! the receiver and by the rule.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};
use xtask::hosts::{Pair, poll};

use crate::blocking_pair::{BlockingPair, PATIENCE, udp};

const SWAPS: usize = 100;
/// How many datagrams the sender may be ahead of the receiver.
const AHEAD: u64 = 8_192;
/// Prefixes of one ruleset, in addition to B's addresses.
const PREFIXES: u32 = 100_000;
/// B's address that every ruleset blocks, each by another rule.
const ALWAYS: IpAddr = Pair::B;
/// B's address that no ruleset names, though its neighbours are in both.
const NEVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 171, 171, 7));
/// B's address that one and the same rule blocks throughout.
const KEPT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 171, 171, 9));

/// A ruleset on so many hosts: every second address from a first one on.
fn ruleset(name: &str, first: Ipv4Addr) -> Value {
    let first = u32::from(first);
    let hosts = (0..PREFIXES).map(|n| Ipv4Addr::from(first + 2 * n).to_string());
    let beside = ["10.171.171.6".to_owned(), "10.171.171.8".to_owned()];
    let targets: Vec<String> = hosts.chain(beside).chain([ALWAYS.to_string()]).collect();
    json!({"rules": [
        {"id": name, "mode": "drop", "targets": targets},
        {"id": "kept", "mode": "drop", "targets": [KEPT.to_string()]},
    ]})
}

/// What the threads of the flood tell each other.
#[derive(Default)]
struct Flood {
    /// The senders are to stop.
    over: AtomicBool,
    /// The senders have stopped.
    sent: AtomicBool,
    /// Datagrams from [`NEVER`] that were received.
    passed: AtomicU64,
}

/// Sends datagrams as fast as it goes until the flood is over; gives how many. One that is to
/// arrive waits for the receiver when it is too far ahead.
fn send(source: &UdpSocket, flood: &Flood, arrives: bool) -> io::Result<u64> {
    yield_to_the_daemon()?;
    let mut sent = 0;
    while !flood.over.load(Ordering::Relaxed) {
        if arrives && sent - flood.passed.load(Ordering::Relaxed) > AHEAD {
            std::thread::yield_now();
            continue;
        }
        source.send(b"swap?")?;
        sent += 1;
    }
    Ok(sent)
}

/// Gives the calling thread the lowest priority: on few CPUs endless senders would starve the daemon. On
/// Linux the priority is the thread's own (`setpriority(2)`).
fn yield_to_the_daemon() -> io::Result<()> {
    // SAFETY: takes three integers.
    let done = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
    Errno::result(done)?;
    Ok(())
}

/// Receives until nothing has come for a while after the flood; gives how many were not to.
fn receive(sink: &UdpSocket, flood: &Flood) -> io::Result<u64> {
    let mut leaked = 0;
    loop {
        let over = flood.sent.load(Ordering::Relaxed);
        match sink.recv_from(&mut [0; 16]) {
            Ok((_, from)) if from.ip() == NEVER => {
                flood.passed.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => leaked += 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if over {
                    return Ok(leaked);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// A socket of A with room for all that the senders may be ahead.
fn sink(hosts: &BlockingPair) -> Result<UdpSocket> {
    let sink = udp(&hosts.pair.a, Pair::A, None)?;
    setsockopt(&sink, sockopt::RcvBufForce, &(32 << 20))?;
    sink.set_read_timeout(Some(Duration::from_millis(500)))?;
    Ok(sink)
}

/// A socket of B with the least send buffer. Datagrams count against it until A's IP takes or A's
/// datapath drops them, so that no queue on the way overflows.
fn source(hosts: &BlockingPair, from: IpAddr, to: SocketAddr) -> Result<UdpSocket> {
    let source = udp(&hosts.pair.b, from, Some(to))?;
    setsockopt(&source, sockopt::SndBuf, &1)?;
    Ok(source)
}

/// Makes a ruleset the API's, by `PUT /v1/ruleset`.
fn put(hosts: &BlockingPair, body: &str) -> Result<()> {
    let mut stream = UnixStream::connect(hosts.daemon.socket())?;
    let length = body.len();
    write!(
        stream,
        "PUT /v1/ruleset HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    Ok(())
}

fn swap_under_traffic(hook: &str, program: &str) -> Result<()> {
    let hosts = BlockingPair::new(&format!("hook: {hook}\n"))?;
    for address in [NEVER, KEPT] {
        let address = address.to_string();
        let add = ["ip", "address", "add", &address, "dev", "eth0"];
        hosts.pair.b.run(&add)?;
        let route = ["ip", "route", "add", &address, "dev", "eth0"];
        hosts.pair.a.run(&route)?;
    }
    let one = ruleset("one", Ipv4Addr::new(100, 64, 0, 0)).to_string();
    let two = ruleset("two", Ipv4Addr::new(100, 64, 0, 1)).to_string();
    put(&hosts, &one)?;

    let sink = sink(&hosts)?;
    let to: SocketAddr = sink.local_addr()?;
    let flood = Flood::default();
    let (sent, leaked) = std::thread::scope(|scope| {
        let senders = [ALWAYS, NEVER, KEPT].map(|from| {
            let source = source(&hosts, from, to);
            let flood = &flood;
            scope.spawn(move || -> Result<u64> { Ok(send(&source?, flood, from == NEVER)?) })
        });
        let receiver = scope.spawn(|| receive(&sink, &flood));
        let swapped =
            (0..SWAPS).try_for_each(|n| put(&hosts, if n % 2 == 0 { &two } else { &one }));
        flood.over.store(true, Ordering::Relaxed);
        let sent = senders.map(|sender| sender.join().expect("no panic"));
        flood.sent.store(true, Ordering::Relaxed);
        let leaked = receiver.join().expect("no panic")?;
        swapped.map(|()| (sent, leaked))
    })?;
    let [always, never, kept] = sent;
    let (always, never, kept) = (always?, never?, kept?);
    for sent in [always, never, kept] {
        ensure!(sent > 10_000, "{sent} datagrams are too few to tell");
    }
    assert_eq!(leaked, 0, "of {} blocked datagrams", always + kept);
    let passed = flood.passed.load(Ordering::Relaxed);
    assert_eq!(passed, never, "all that is not blocked arrives");

    // An unchanged rule keeps its counters over every swap; each packet is counted once.
    let counters = poll("the last packets to be counted", PATIENCE, || {
        let counters = hosts.counters("kept").ok()?;
        (counters["packets"].as_u64()? >= kept).then_some(counters)
    })?;
    assert_eq!(counters["packets"], kept, "{counters}");
    let status = hosts.daemon.json(&["status"])?;
    let hooks = status["interfaces"][0]["hooks"].as_array();
    let hooks = hooks.context("hooks of eth0")?;
    assert!(
        hooks.iter().any(|at| at["hook"] == program),
        "{program} has no part in this: {status}"
    );
    assert_eq!(status["prefixes"]["used"], PREFIXES + 4, "{status}");
    Ok(())
}

#[test]
fn a_swap_at_tc_is_whole_for_every_packet() -> Result<()> {
    swap_under_traffic("tc", "tc-ingress")
}

#[test]
fn a_swap_at_xdp_is_whole_for_every_packet() -> Result<()> {
    swap_under_traffic("xdp-generic", "xdp")
}
