//! Real TCP between namespaces, and what each end sees of its death.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;

use super::{Namespace, poll};

/// How long something may take that takes a millisecond when all is well.
const PATIENCE: Duration = Duration::from_secs(10);

/// An established connection, both of whose ends are ours.
#[derive(Debug)]
pub struct Connection {
    /// The end that connected.
    pub client: End,
    /// The end that accepted.
    pub server: End,
}

/// One end of a connection.
#[derive(Debug)]
pub struct End {
    stream: TcpStream,
    death: Option<Death>,
}

/// How and when an end learnt that its connection is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Death {
    /// What a read or write there fails with; none if it ended without an error.
    pub error: Option<Errno>,
    /// When it was seen.
    pub at: Instant,
}

/// A listening socket in a namespace.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Listener {
    /// Listens on an address of the namespace; port 0 takes a free one.
    ///
    /// # Errors
    /// The address is not the namespace's, or the port is taken.
    pub fn new(host: &Namespace, address: IpAddr, port: u16) -> Result<Self> {
        let listener = host
            .enter(|| TcpListener::bind((address, port)))?
            .with_context(|| format!("{address} port {port} cannot be listened on"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Connects to it from a namespace.
    ///
    /// # Errors
    /// The connection is refused, or not there in time.
    pub fn connect(&self, client: &Namespace) -> Result<Connection> {
        let (stream, _) = connect_timed(client, self.address, PATIENCE)?;
        let client = stream.with_context(|| format!("{} cannot be reached", self.address))?;
        let from = client.local_addr()?;
        let server = poll("the connection to be accepted", PATIENCE, || {
            // Anything else that arrives here is none of this connection's.
            let (stream, peer) = self.listener.accept().ok()?;
            (peer == from).then_some(stream)
        })?;
        Ok(Connection {
            client: End::new(client)?,
            server: End::new(server)?,
        })
    }
}

/// Connects from a namespace, and says how long that, or its failure, took.
///
/// # Errors
/// The namespace cannot be entered. What becomes of the connection is within the answer.
pub fn connect_timed(
    host: &Namespace,
    address: SocketAddr,
    within: Duration,
) -> Result<(io::Result<TcpStream>, Duration)> {
    host.enter(|| {
        let start = Instant::now();
        let stream = TcpStream::connect_timeout(&address, within);
        (stream, start.elapsed())
    })
}

impl Connection {
    /// Connects from one namespace to an address of another, on a free port.
    ///
    /// # Errors
    /// As [`Listener::new`] and [`Listener::connect`].
    pub fn open(client: &Namespace, server: &Namespace, address: IpAddr) -> Result<Self> {
        Listener::new(server, address, 0)?.connect(client)
    }

    /// Waits until both ends are dead, at most until the deadline. What each saw is in
    /// [`End::death`].
    ///
    /// # Errors
    /// The sockets cannot be polled.
    pub fn wait_dead(&mut self, deadline: Instant) -> Result<bool> {
        wait_dead(&mut [&mut self.client, &mut self.server], deadline)
    }

    /// Sends a byte each way and sees that it arrives: the connection lives, and holds nothing
    /// back.
    ///
    /// # Errors
    /// A byte did not arrive: says from which end, and what either end saw.
    pub fn check_alive(&mut self) -> Result<()> {
        pass(&mut self.client, &mut self.server).context("from the client")?;
        pass(&mut self.server, &mut self.client).context("from the server")
    }
}

/// Sends a byte from one end and waits for it at the other.
fn pass(from: &mut End, to: &mut End) -> Result<()> {
    from.send(b"?")?;
    let got = to.receive(1, PATIENCE)?;
    if got != b"?" {
        bail!("sent a byte, received {got:?}");
    }
    Ok(())
}

/// Waits until all of these ends are dead, at most until the deadline; says whether they are.
///
/// Sends nothing: an end that learns of its death here learnt it from the network.
///
/// # Errors
/// The sockets cannot be polled.
pub fn wait_dead(ends: &mut [&mut End], deadline: Instant) -> Result<bool> {
    loop {
        let mut waiting: Vec<_> = ends.iter_mut().filter(|end| end.death.is_none()).collect();
        if waiting.is_empty() {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let mut polled: Vec<_> = waiting
            .iter()
            .map(|end| libc::pollfd {
                fd: end.stream.as_raw_fd(),
                events: 0, // errors and hang-ups are always reported
                revents: 0,
            })
            .collect();
        let milliseconds = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1);
        let count = polled.len() as libc::nfds_t;
        // SAFETY: `polled` is an array of `count` pollfds, and outlives the call.
        let result = unsafe { libc::poll(polled.as_mut_ptr(), count, milliseconds) };
        match Errno::result(result) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("the sockets cannot be polled"),
        }
        let at = Instant::now();
        for (end, polled) in waiting.iter_mut().zip(&polled) {
            if polled.revents & (libc::POLLERR | libc::POLLHUP) != 0 {
                let error = end.stream.take_error()?;
                let error = error.and_then(|error| error.raw_os_error());
                end.death = Some(Death {
                    error: error.map(Errno::from_raw),
                    at,
                });
            }
        }
    }
}

impl End {
    fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            death: None,
        })
    }

    /// How it died, if that was seen yet.
    pub fn death(&self) -> Option<Death> {
        self.death
    }

    /// Looks once whether it is dead.
    ///
    /// # Errors
    /// The socket cannot be polled.
    pub fn look(&mut self) -> Result<Option<Death>> {
        wait_dead(&mut [self], Instant::now() + Duration::from_millis(1))?;
        Ok(self.death)
    }

    /// Its own address and port.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Puts bytes into its send buffer.
    ///
    /// # Errors
    /// The connection is dead (which is noted as its death), or the buffer is full.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let result = self.stream.write_all(bytes);
        self.note(result)
    }

    /// Takes what arrives, until it is `length` bytes or the time is over.
    ///
    /// # Errors
    /// The connection is dead (which is noted as its death).
    pub fn receive(&mut self, length: usize, within: Duration) -> io::Result<Vec<u8>> {
        let deadline = Instant::now() + within;
        let mut bytes = vec![0; length];
        let mut got = 0;
        while got < length {
            match self.stream.read(&mut bytes[got..]) {
                Ok(0) => break, // the other end closed in order
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() > deadline {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return self.note(Err(error)),
            }
        }
        bytes.truncate(got);
        Ok(bytes)
    }

    /// The state of the socket, in the names of `ss`.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn state(&self) -> io::Result<&'static str> {
        // `struct tcp_info` begins with the state, one byte; the kernel gives as much as is asked
        // for.
        let mut state = 0_u8;
        let mut length: libc::socklen_t = 1;
        // SAFETY: `state` is one byte, as `length` says, and both outlive the call.
        let result = unsafe {
            libc::getsockopt(
                self.stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                (&raw mut state).cast(),
                &raw mut length,
            )
        };
        Errno::result(result)?;
        // include/net/tcp_states.h
        Ok(match state {
            1 => "ESTABLISHED",
            2 => "SYN-SENT",
            3 => "SYN-RECV",
            4 => "FIN-WAIT-1",
            5 => "FIN-WAIT-2",
            6 => "TIME-WAIT",
            7 => "CLOSED",
            8 => "CLOSE-WAIT",
            9 => "LAST-ACK",
            10 => "LISTEN",
            11 => "CLOSING",
            _ => "UNKNOWN",
        })
    }

    /// The socket itself.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Reading or writing takes the socket's error with it: keeps it.
    fn note<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && error.kind() != io::ErrorKind::WouldBlock
            && self.death.is_none()
        {
            self.death = Some(Death {
                error: error.raw_os_error().map(Errno::from_raw),
                at: Instant::now(),
            });
        }
        result
    }
}
