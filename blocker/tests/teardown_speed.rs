//! Teardown of ten thousand connections beside `ss --kill` on the same set, in one run.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use blocker::teardown::kill;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{Backlog, listen};

mod lab;
mod teardown_stand_in;

use lab::Namespace;
use teardown_stand_in::{SETTINGS, Says, reset_of};

const CONNECTIONS: usize = 10_000;
const REMOTE: [u8; 4] = [198, 18, 7, 7];

/// Many connections from [`REMOTE`], both ends in one namespace.
///
/// The ends that were accepted live in a thread with a table of descriptors of its own: both
/// tables stay below the usual limit.
struct Connections {
    _clients: Vec<TcpStream>,
    count_dead: mpsc::Sender<()>,
    dead: mpsc::Receiver<usize>,
    keeper: Option<JoinHandle<()>>,
}

impl Connections {
    fn open(host: &Namespace) -> Result<Self> {
        let (count_dead, asked) = mpsc::channel::<()>();
        let (answer, dead) = mpsc::channel();
        let listener = host.enter(|| TcpListener::bind(("127.0.0.1", 0)))??;
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
        let clients: Result<Vec<TcpStream>> = host.enter(|| {
            (0..CONNECTIONS)
                .map(|_| connect_from(IpAddr::from(REMOTE), to))
                .collect()
        })?;
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

    /// How many of the accepted ends are dead. Asking takes their error with it.
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

#[test]
fn ten_thousand_connections_die_at_least_as_fast_as_by_ss() -> Result<()> {
    let limited = Command::new("prlimit")
        .args([&format!("--pid={}", std::process::id()), "--nofile=15000"])
        .status()?;
    ensure!(limited.success(), "15,000 descriptors are needed");
    let host = Namespace::new("many")?;
    let remote = IpAddr::from(REMOTE).to_string();
    host.run(&["ip", "address", "add", &remote, "dev", "lo"])?;
    // On loopback there is no datapath to see anything.
    let (rules, evidence) = (reset_of(IpAddr::from(REMOTE))?, Says::everything());
    let mut best = [Duration::MAX; 2];
    // Alternating, the best of two each: what else runs on the machine slows both.
    for _ in 0..2 {
        let set = Connections::open(&host)?;
        let start = Instant::now();
        host.run(&["ss", "-K", "-Htn", "dst", &remote])?;
        best[0] = best[0].min(start.elapsed());
        ensure!(set.dead()? == CONNECTIONS);
        drop(set);

        let set = Connections::open(&host)?;
        let start = Instant::now();
        let account = host.enter(|| kill(&rules, &SETTINGS, &evidence, &|_| {}))?;
        best[1] = best[1].min(start.elapsed());
        ensure!(account.killed == CONNECTIONS as u64, "{account:?}");
        ensure!(set.dead()? == CONNECTIONS);
    }
    let [by_ss, ours] = best;
    let ratio = ours.as_secs_f64() / by_ss.as_secs_f64();
    println!("{CONNECTIONS} connections: ss {by_ss:?}, teardown {ours:?}, ratio {ratio:.2}");
    ensure!(
        ratio < 1.0,
        "slower than `ss --kill`: {ours:?} against {by_ss:?}"
    );
    Ok(())
}
