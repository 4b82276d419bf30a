//! Datagrams from B to A, and whether any arrives.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::hosts::{Pair, poll};

use crate::blocking_pair::udp;

/// Sixteen datagrams a millisecond: about ten thousand a second.
const BURST: u32 = 16;
const PAUSE: Duration = Duration::from_millis(1);

/// A datagram socket in A, and one in B that sends to it.
pub(crate) fn datagrams(pair: &Pair) -> Result<(UdpSocket, UdpSocket)> {
    between(pair, Pair::A, Pair::B)
}

/// As [`datagrams`], between these addresses.
pub(crate) fn between(pair: &Pair, a: IpAddr, b: IpAddr) -> Result<(UdpSocket, UdpSocket)> {
    let sink = udp(&pair.a, a, None)?;
    let source = udp(&pair.b, b, Some(sink.local_addr()?))?;
    sink.set_nonblocking(true)?;
    Ok((sink, source))
}

/// Whether a datagram can be received.
pub(crate) fn arrived(sink: &UdpSocket) -> Result<bool> {
    match sink.recv(&mut [0; 16]) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error).context("the datagram socket failed"),
    }
}

/// Waits until datagrams pass.
pub(crate) fn wait_passing(sink: &UdpSocket, source: &UdpSocket, within: Duration) -> Result<()> {
    poll("a datagram to pass", within, || {
        let _ = source.send(b"?");
        arrived(sink).ok()?.then_some(())
    })
}

/// Checks that no datagram arrives of those sent during some work. Gives how many were sent.
pub(crate) fn assert_tight(
    sink: &UdpSocket,
    source: &UdpSocket,
    within: Duration,
    work: impl FnOnce() -> Result<()>,
) -> Result<u64> {
    let over = AtomicBool::new(false);
    let deadline = Instant::now() + within;
    let sent = std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut sent = 0_u64;
            while sent < 100 || !over.load(Ordering::Relaxed) {
                for _ in 0..BURST {
                    sent += u64::from(source.send(b"leak?").is_ok());
                }
                // The work needs the CPUs, too.
                std::thread::sleep(PAUSE);
                if Instant::now() > deadline {
                    break;
                }
            }
            sent
        });
        let result = work();
        let late = Instant::now() > deadline;
        over.store(true, Ordering::Relaxed);
        let sent = sending.join().expect("no panic");
        ensure!(
            !late,
            "the work took more than {within:?}: the flood was over before it"
        );
        result.map(|()| sent)
    })?;
    ensure!(sent >= 100, "{sent} datagrams are too few to tell");
    assert!(!arrived(sink)?, "one of {sent} datagrams leaked");
    Ok(sent)
}
