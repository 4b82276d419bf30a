//! Continuous datagrams from many addresses of B to A, and an oracle that knows which may arrive.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};

use crate::hosts::{Pair, poll};

/// Remotes whose rules change.
pub(super) const CHANGING: usize = 8;
/// The remote that the configuration blocks.
pub(super) const BLOCKED: usize = CHANGING;
/// The remote that no rule matches.
pub(super) const FREE: usize = CHANGING + 1;
const REMOTES: usize = CHANGING + 2;

/// Interval between two datagrams of a remote.
const PAUSE: Duration = Duration::from_millis(5);
/// Size of the receive buffer, for a busy machine.
const ROOM: usize = 16 << 20;
/// Time limit for a datagram to arrive once its remote is not blocked.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether a remote's datagrams may arrive.
#[derive(Debug, Clone, Copy)]
enum May {
    /// Datagrams that are sent after this time must not arrive.
    Not(u64),
    /// Datagrams arrive.
    Pass,
    /// A change is under way.
    Unknown,
}

/// The oracle: which datagrams may arrive, and which did.
pub(super) struct Oracle {
    start: Instant,
    may: Mutex<[May; REMOTES]>,
    sent: [AtomicU64; REMOTES],
    delivered: [AtomicU64; REMOTES],
    /// When the last datagram that arrived was sent, in nanoseconds since the start.
    last: [AtomicU64; REMOTES],
    leaked: AtomicU64,
    over: AtomicBool,
}

/// The running traffic.
pub(super) struct Traffic {
    pub(super) oracle: Arc<Oracle>,
    sending: JoinHandle<()>,
    receiving: JoinHandle<()>,
}

/// Numbers of datagrams.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub(super) struct Totals {
    pub(super) sent: u64,
    pub(super) delivered: u64,
}

/// The address of a remote.
pub(super) fn address(remote: usize) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, 10 + remote as u8).into()
}

impl Oracle {
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn may(&self) -> MutexGuard<'_, [May; REMOTES]> {
        self.may.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change of a remote's rules begins.
    pub(super) fn begins(&self, remote: usize) {
        self.may()[remote] = May::Unknown;
    }

    /// A remote is now blocked.
    pub(super) fn blocked(&self, remote: usize) {
        self.may()[remote] = May::Not(self.now());
    }

    /// A remote is no longer blocked; waits until a datagram arrives that is sent after this call.
    ///
    /// # Errors
    /// None arrives in time.
    pub(super) fn passes(&self, remote: usize) -> Result<()> {
        self.may()[remote] = May::Pass;
        let now = self.now();
        poll(&format!("{} to pass", address(remote)), PATIENCE, || {
            (self.last[remote].load(Ordering::Relaxed) > now).then_some(())
        })
    }

    fn arrived(&self, remote: usize, sent: u64) {
        self.delivered[remote].fetch_add(1, Ordering::Relaxed);
        self.last[remote].fetch_max(sent, Ordering::Relaxed);
        if let May::Not(since) = self.may()[remote]
            && sent >= since
        {
            self.leaked.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The number of datagrams that arrived but must not.
    pub(super) fn leaked(&self) -> u64 {
        self.leaked.load(Ordering::Relaxed)
    }

    /// Sums of some remotes.
    pub(super) fn totals(&self, remotes: std::ops::Range<usize>) -> Totals {
        let sum = |of: &[AtomicU64; REMOTES]| {
            let counts = of[remotes.clone()].iter();
            counts.map(|count| count.load(Ordering::Relaxed)).sum()
        };
        Totals {
            sent: sum(&self.sent),
            delivered: sum(&self.delivered),
        }
    }
}

impl Traffic {
    /// Gives B its addresses and starts to send. Nothing is blocked yet.
    pub(super) fn start(pair: &Pair) -> Result<Self> {
        let sink = pair.a.enter(|| UdpSocket::bind((Pair::A, 0)))??;
        sink.set_read_timeout(Some(Duration::from_millis(50)))?;
        setsockopt(&sink, sockopt::RcvBufForce, &ROOM).context("setting the receive buffer")?;
        let to: SocketAddr = sink.local_addr()?;
        let mut sources = Vec::new();
        for remote in 0..REMOTES {
            let address = address(remote);
            let text = format!("{address}/32");
            pair.b
                .run(&["ip", "address", "add", &text, "dev", "eth0"])?;
            pair.a.run(&["ip", "route", "add", &text, "dev", "eth0"])?;
            let source = pair.b.enter(|| UdpSocket::bind((address, 0)))??;
            source.connect(to)?;
            sources.push(source);
        }
        let oracle = Arc::new(Oracle {
            start: Instant::now(),
            may: Mutex::new([May::Pass; REMOTES]),
            sent: Default::default(),
            delivered: Default::default(),
            last: Default::default(),
            leaked: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let (sender, receiver) = (Arc::clone(&oracle), Arc::clone(&oracle));
        Ok(Self {
            oracle,
            sending: std::thread::spawn(move || send(&sender, &sources)),
            receiving: std::thread::spawn(move || receive(&receiver, &sink)),
        })
    }

    /// Stops sending, and waits for datagrams in flight.
    pub(super) fn stop(self) -> Result<()> {
        self.oracle.over.store(true, Ordering::Relaxed);
        if self.sending.join().is_err() || self.receiving.join().is_err() {
            bail!("the traffic failed inside");
        }
        Ok(())
    }
}

fn send(oracle: &Oracle, sources: &[UdpSocket]) {
    while !oracle.over.load(Ordering::Relaxed) {
        for (remote, source) in sources.iter().enumerate() {
            let sent = source.send(&oracle.now().to_ne_bytes());
            oracle.sent[remote].fetch_add(u64::from(sent.is_ok()), Ordering::Relaxed);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Receives until the traffic has stopped and nothing arrives any more.
fn receive(oracle: &Oracle, sink: &UdpSocket) {
    let mut bytes = [0; 8];
    loop {
        match sink.recv_from(&mut bytes) {
            Ok((_, SocketAddr::V4(from))) => {
                let remote = usize::from(from.ip().octets()[3]).wrapping_sub(10);
                if remote < REMOTES {
                    oracle.arrived(remote, u64::from_ne_bytes(bytes));
                }
            }
            Ok(_) => {}
            Err(_) if oracle.over.load(Ordering::Relaxed) => return,
            Err(_) => {}
        }
    }
}
