//! A pair of hosts with a daemon in A, and what the end-to-end tests do with connections between them.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use serde_json::Value;
use xtask::hosts::{Connection, Daemon, End, Namespace, Pair, connect_timed, poll};

/// How long a step may take that normally takes milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(8);

/// A's and B's addresses of either family.
pub(crate) const FAMILIES: [(IpAddr, IpAddr); 2] = [(Pair::A, Pair::B), (Pair::A6, Pair::B6)];

/// Two hosts, and a daemon in A.
pub(crate) struct BlockingPair {
    /// Ends before its namespace.
    pub(crate) daemon: Daemon,
    /// The hosts.
    pub(crate) pair: Pair,
}

impl BlockingPair {
    /// Makes the pair and starts a daemon in A, with these lines of configuration.
    pub(crate) fn new(config: &str) -> Result<Self> {
        let pair = Pair::new()?;
        let daemon = Daemon::start(&pair.a, &crate::programs(), config)?;
        Ok(Self { daemon, pair })
    }

    /// `blockctl add` of these words; gives its JSON.
    pub(crate) fn add(&self, words: &[&str]) -> Result<Value> {
        self.daemon.json(&[&["add"], words].concat())
    }

    /// `blockctl del` of these words; gives its JSON.
    pub(crate) fn del(&self, words: &[&str]) -> Result<Value> {
        self.daemon.json(&[&["del"], words].concat())
    }

    /// What `blockctl show` says of a rule's counters.
    pub(crate) fn counters(&self, id: &str) -> Result<Value> {
        Ok(self.daemon.json(&["show", id])?["counters"].clone())
    }

    /// Waits until `blockctl show` says that a rule took so many packets; gives its counters.
    pub(crate) fn wait_packets(&self, id: &str, count: u64) -> Result<Value> {
        poll(&format!("{count} packets of rule {id}"), PATIENCE, || {
            let counters = self.counters(id).ok()?;
            (counters["packets"].as_u64()? >= count).then_some(counters)
        })
    }
}

/// The deadline of a step that begins now.
pub(crate) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// What a connect from a host ends in: the error, or none if it is there.
pub(crate) fn connect_error(host: &Namespace, to: SocketAddr) -> Result<Option<Errno>> {
    let (stream, _) = connect_timed(host, to, PATIENCE)?;
    Ok(stream.err().map(|error| errno(&error)))
}

/// The number of an error; a time-out of the library's own has none, and counts as `ETIMEDOUT`.
pub(crate) fn errno(error: &io::Error) -> Errno {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number),
        None => Errno::ETIMEDOUT,
    }
}

/// Sends until the end is dead; gives how many times it sent, or none if it lives on.
pub(crate) fn send_until_dead(
    end: &mut End,
    bytes: &[u8],
    pause: Duration,
    deadline: Instant,
) -> Option<u64> {
    for sent in 0.. {
        // A full buffer is no death; any other error is noted as one.
        let _ = end.send(bytes);
        if end.death().is_some() {
            return Some(sent);
        }
        if Instant::now() > deadline {
            break;
        }
        std::thread::sleep(pause);
    }
    None
}

/// Receives until the end is dead; gives how many bytes arrived, or none if it lives on.
pub(crate) fn receive_until_dead(end: &mut End, deadline: Instant) -> Option<usize> {
    let mut received = 0;
    while Instant::now() < deadline {
        match end.receive(1 << 16, Duration::from_millis(50)) {
            Ok(bytes) => received += bytes.len(),
            Err(_) => return Some(received),
        }
        if matches!(end.look(), Ok(Some(_))) {
            return Some(received);
        }
    }
    None
}

/// A UDP socket of a host, connected to an address, that waits a while when it receives.
pub(crate) fn udp(host: &Namespace, from: IpAddr, to: Option<SocketAddr>) -> Result<UdpSocket> {
    let socket = host
        .enter(|| UdpSocket::bind((from, 0)))?
        .with_context(|| format!("{from} cannot be bound"))?;
    if let Some(to) = to {
        socket.connect(to)?;
    }
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Waits until a flow is idle: all that was sent, a FIN too, is acknowledged. An acknowledgement
/// may be delayed by 40 ms, and a rule that meets it kills the flow before teardown finds it.
pub(crate) fn settle(flow: &Connection) -> Result<()> {
    poll("the flow to be idle", PATIENCE, || {
        let idle = |end: &End| unacknowledged(end).is_ok_and(|bytes| bytes == 0);
        (idle(&flow.client) && idle(&flow.server)).then_some(())
    })
}

/// How much of what an end sent is not acknowledged (`SIOCOUTQ`, tcp(7)).
fn unacknowledged(end: &End) -> io::Result<i32> {
    let mut bytes = 0;
    let socket = end.stream().as_raw_fd();
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ, writes one int, which outlives the call.
    let done = unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut bytes) };
    Errno::result(done)?;
    Ok(bytes)
}

/// Checks the error that an end died of.
pub(crate) fn assert_died(end: &End, of: &[Errno]) {
    let death = end.death().expect("the end is dead");
    let error = death.error.expect("the end died of an error");
    assert!(of.contains(&error), "died of {error}, not of {of:?}");
}
