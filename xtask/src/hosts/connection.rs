//! TCP connections between namespaces, and how each end learns that its connection has ended.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;

use super::{Namespace, poll};

/// The time limit of steps that usually take a millisecond.
const PATIENCE: Duration = Duration::from_secs(10);

/// An established connection with both of its ends.
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

/// How and when an end learnt that its connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Death {
    /// The socket's error; `None` if the connection ended without an error.
    pub error: Option<Errno>,
    /// When the end was observed.
    pub at: Instant,
}

/// A listening socket in a namespace.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    /// The address and port of the socket.
    pub address: SocketAddr,
}

impl Listener {
    /// Listens on an address of the namespace. Port 0 chooses a free port.
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

    /// Connects to the listener from a namespace.
    ///
    /// # Errors
    /// The connection is refused, or not established in time.
    pub fn connect(&self, client: &Namespace) -> Result<Connection> {
        let (stream, _) = connect_timed(client, self.address, PATIENCE)?;
        let client = stream.with_context(|| format!("{} cannot be reached", self.address))?;
        let from = client.local_addr()?;
        let server = poll("the connection to be accepted", PATIENCE, || {
            // Other connections are not of this client.
            let (stream, peer) = self.listener.accept().ok()?;
            (peer == from).then_some(stream)
        })?;
        Ok(Connection {
            client: End::new(client)?,
            server: End::new(server)?,
        })
    }
}

/// Connects from a namespace, and returns the result and the time that the attempt took.
///
/// # Errors
/// The namespace cannot be entered. A failed connection is part of the result.
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

    /// Waits until both ends are dead, at most until the deadline, and returns whether they are.
    /// [`End::death`] tells how.
    ///
    /// # Errors
    /// The sockets cannot be polled.
    pub fn wait_dead(&mut self, deadline: Instant) -> Result<bool> {
        wait_dead(&mut [&mut self.client, &mut self.server], deadline)
    }

    /// Checks that a byte sent from each end arrives at the other, and is the next one there, so that
    /// no earlier data was left.
    ///
    /// # Errors
    /// The byte of an end, which the error names, does not arrive.
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

/// Waits until all of these ends are dead, at most until the deadline, and returns whether they are.
///
/// Sends nothing, so an end that is dead here learnt it from the network or from its own kernel.
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

    /// How the connection ended at this end, if that was observed.
    pub fn death(&self) -> Option<Death> {
        self.death
    }

    /// Polls for a millisecond whether the end is dead, and returns how it died.
    ///
    /// # Errors
    /// The socket cannot be polled.
    pub fn look(&mut self) -> Result<Option<Death>> {
        wait_dead(&mut [self], Instant::now() + Duration::from_millis(1))?;
        Ok(self.death)
    }

    /// The address and port of this end.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Writes bytes to the send buffer.
    ///
    /// # Errors
    /// The connection is dead, which is recorded as its death, or the buffer is full.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let result = self.stream.write_all(bytes);
        self.note(result)
    }

    /// Reads until `length` bytes have arrived, the other end has closed, or the time is over.
    ///
    /// # Errors
    /// The connection is dead, which is recorded as its death.
    pub fn receive(&mut self, length: usize, within: Duration) -> io::Result<Vec<u8>> {
        let deadline = Instant::now() + within;
        let mut bytes = vec![0; length];
        let mut got = 0;
        while got < length {
            match self.stream.read(&mut bytes[got..]) {
                Ok(0) => break, // the other end sent a FIN
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

    /// The state of the socket, by the name that `ss` uses.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn state(&self) -> io::Result<&'static str> {
        // The first byte of `struct tcp_info` is the state. The kernel copies as many bytes as are
        // asked for.
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

    /// Records an error as the death: a read or write clears the socket's pending error.
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
