//! Teardown of ten thousand connections, compared with `ss --kill` in one run. Prints the ratio, and
//! fails only if a connection survives; `cargo xtask bench` runs it optimised.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{Backlog, listen};
use xtask::hosts::{Daemon, Namespace, Pair};

use crate::fixed_evidence::{FixedEvidence, SETTINGS, kill, reset_of};

const CONNECTIONS: usize = 10_000;

/// Many connections.
///
/// The accepted ends belong to a thread with a file descriptor table of its own, so that both tables
/// stay below the usual limit.
struct Connections {
    _clients: Vec<TcpStream>,
    count_dead: mpsc::Sender<()>,
    dead: mpsc::Receiver<usize>,
    keeper: Option<JoinHandle<()>>,
}

impl Connections {
    /// Opens them to an address of one namespace, from an address of the other or the same.
    fn open(
        (servers, at): (&Namespace, IpAddr),
        (clients, from): (&Namespace, IpAddr),
    ) -> Result<Self> {
        let (count_dead, asked) = mpsc::channel::<()>();
        let (answer, dead) = mpsc::channel();
        let listener = servers.enter(|| TcpListener::bind((at, 0)))??;
        // With std's 128 a SYN is dropped now and then, and comes again a second later.
        listen(&listener, Backlog::MAXCONN)?;
        let to = listener.local_addr()?;
        let (unshared, ready) = mpsc::channel();
        let keeper = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_FILES).expect("a table of its own");
            unshared.send(()).expect("someone waits");
            let servers: Vec<TcpStream> = listener
                .incoming()
                .take(CONNECTIONS)
                .map(|server| server.expect("a connection"))
                .collect();
            for () in asked {
                let dead = servers.iter().filter(|server| is_dead(server)).count();
                answer.send(dead).expect("someone waits");
            }
        });
        ready.recv()?;
        let clients: Result<Vec<TcpStream>> =
            clients.enter(|| (0..CONNECTIONS).map(|_| connect_from(from, to)).collect())?;
        let connections = Self {
            _clients: clients?,
            count_dead,
            dead,
            keeper: Some(keeper),
        };
        // Answered once everything is accepted.
        ensure!(connections.dead()? == 0);
        Ok(connections)
    }

    /// The number of accepted ends that are dead. Reading a socket's error clears it.
    fn dead(&self) -> Result<usize> {
        self.count_dead.send(())?;
        Ok(self.dead.recv()?)
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        // Without anyone to ask, the thread ends.
        self.count_dead = mpsc::channel().0;
        if let Some(keeper) = self.keeper.take() {
            keeper.join().ok();
        }
    }
}

fn is_dead(server: &TcpStream) -> bool {
    let error = server.take_error().ok().flatten();
    error.and_then(|error| error.raw_os_error()) == Some(libc::ECONNABORTED)
}

fn connect_from(from: IpAddr, to: SocketAddr) -> Result<TcpStream> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
        sockopt::IpBindAddressNoPort,
    };
    use std::os::fd::AsRawFd;
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // Else each bind() looks for a port that nobody has, which takes ever longer.
    setsockopt(&fd, IpBindAddressNoPort, &true)?;
    bind(
        fd.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(from, 0)),
    )?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(TcpStream::from(fd))
}

/// Kills one set after another, by `ss` and by us, the best of two each: what else runs on the
/// machine slows both.
fn compare(
    what: &str,
    open: impl Fn() -> Result<Connections>,
    by_ss: impl Fn() -> Result<()>,
    ours: impl Fn() -> Result<()>,
) -> Result<()> {
    let timed = |act: &dyn Fn() -> Result<()>| {
        let set = open()?;
        let start = Instant::now();
        act()?;
        let elapsed = start.elapsed();
        ensure!(set.dead()? == CONNECTIONS);
        Ok(elapsed)
    };
    let (mut best_ss, mut best_ours) = (Duration::MAX, Duration::MAX);
    for _ in 0..2 {
        best_ss = best_ss.min(timed(&by_ss)?);
        best_ours = best_ours.min(timed(&ours)?);
    }
    let ratio = best_ours.as_secs_f64() / best_ss.as_secs_f64();
    println!("{what}, {CONNECTIONS} connections: ss {best_ss:?}, ours {best_ours:?}, {ratio:.2}");
    Ok(())
}

#[test]
fn ten_thousand_connections_die_as_by_ss() -> Result<()> {
    let limited = Command::new("prlimit")
        .args([&format!("--pid={}", std::process::id()), "--nofile=15000"])
        .status()?;
    ensure!(limited.success(), "15,000 descriptors are needed");

    // The teardown alone. On loopback there is no datapath to see anything.
    let host = Namespace::new("many")?;
    let remote = IpAddr::from([198, 18, 7, 7]);
    let text = remote.to_string();
    host.run(&["ip", "address", "add", &text, "dev", "lo"])?;
    let (rules, evidence) = (reset_of(remote)?, FixedEvidence::everything());
    compare(
        "teardown on loopback",
        || Connections::open((&host, IpAddr::from([127, 0, 0, 1])), (&host, remote)),
        || host.run(&["ss", "-K", "-Htn", "dst", &text]).map(drop),
        || {
            let account = host.enter(|| kill(&rules, &SETTINGS, &evidence, &|_| {}))?;
            ensure!(account.killed == CONNECTIONS as u64, "{account:?}");
            Ok(())
        },
    )?;

    // All of it, as a user has it: command, daemon, datapath, and RSTs on a wire.
    let pair = Pair::new()?;
    let daemon = Daemon::start(&pair.a, &crate::programs(), "")?;
    let text = Pair::B.to_string();
    compare(
        "blockctl add on a wire",
        || {
            daemon.blockctl(&["flush"])?.success()?;
            Connections::open((&pair.a, Pair::A), (&pair.b, Pair::B))
        },
        || pair.a.run(&["ss", "-K", "-Htn", "dst", &text]).map(drop),
        || {
            let answer = daemon.json(&["add", &text, "--mode", "reset"])?;
            let account = &answer["teardown"];
            ensure!(account["killed"] == CONNECTIONS, "{account:#}");
            println!("of which the teardown: {} ms", account["elapsed_ms"]);
            Ok(())
        },
    )
}
