//! A blocking socket of one netlink family: single requests, dumps, and batches.
//!
//! The kernel processes a request within the `send` that carries it (`netlink_unicast_kernel`), so
//! the answers are queued when `send` returns. The receive timeout only guards against a kernel that
//! does otherwise. The netlink crates encode and decode messages; this module only frames them. It
//! knows nothing of any family.

use std::io;

use netlink_packet_core::{
    Emitable, ErrorBuffer, ErrorMessage, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NLMSG_NOOP, NetlinkBuffer, NetlinkHeader, Parseable,
};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

/// A netlink operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} by {family}: {source}")]
pub(crate) struct NetlinkError {
    /// The operation.
    pub(crate) action: &'static str,
    /// The netlink family.
    pub(crate) family: &'static str,
    /// Why it failed.
    #[source]
    pub(crate) source: io::Error,
}

impl NetlinkError {
    /// The errno, if the kernel gave one.
    pub(crate) fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// Size of the receive buffer. A datagram of a dump has at most 32 KiB (`netlink_dump`).
const RECEIVE: usize = 64 * 1024;
/// Size of the socket's receive queue, which must hold the answers to one batch. The kernel charges
/// an error message of 36 bytes with the whole buffer that holds it, some 800 bytes.
const BACKLOG: usize = 8 << 20;
/// The most requests in one `send`. With 256, one `send` takes some milliseconds, and the cost of the
/// system call itself is negligible.
const BATCH: usize = 256;

/// A request's body: the header of the family, followed by attributes.
pub(crate) struct Body<'a> {
    /// Type of the message.
    pub(crate) kind: u16,
    /// Flags in addition to `NLM_F_REQUEST`.
    pub(crate) flags: u16,
    /// The parts of the body. Each part pads itself to four bytes.
    pub(crate) parts: &'a [&'a dyn Emitable],
}

/// A socket of one netlink family, in the network namespace in which it was opened.
pub(crate) struct Conversation {
    socket: Socket,
    family: &'static str,
    received: Vec<u8>,
    sequence: u32,
}

impl Conversation {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open(protocol: isize, family: &'static str) -> Result<Self, NetlinkError> {
        let error = |source| NetlinkError {
            action: "opening a socket",
            family,
            source,
        };
        let mut socket = Socket::new(protocol).map_err(error)?;
        socket.bind_auto().map_err(error)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(error)?;
        // Errors are matched by sequence number, so they need not carry the request. Kernels before
        // 4.3 lack the option and send the request too, which does no harm.
        let _ = socket.set_cap_ack(true);
        // Without CAP_NET_ADMIN the default size stays, and errors may be lost if all requests of a
        // batch fail. The next dump then shows the objects that were not deleted.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &BACKLOG);
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(5))
            .map_err(|errno| error(errno.into()))?;
        Ok(Self {
            socket,
            family,
            received: Vec::with_capacity(RECEIVE),
            sequence: 0,
        })
    }

    /// Reads a whole table, and calls `each` with the type and the payload of every message.
    pub(crate) fn dump(
        &mut self,
        action: &'static str,
        body: &Body<'_>,
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        let sequence = self.send_one(action, body, NLM_F_DUMP)?;
        loop {
            self.receive(0).map_err(|e| self.error(action, e))?;
            for message in Messages(&self.received) {
                let (header, payload) = message.map_err(|e| self.error(action, e))?;
                if header.sequence_number != sequence {
                    continue;
                }
                match header.message_type {
                    // Both may end a dump with an error, as a negative number.
                    NLMSG_DONE | NLMSG_ERROR => {
                        return match leading_errno(payload) {
                            0 => Ok(()),
                            errno => Err(self.error(action, io::Error::from_raw_os_error(errno))),
                        };
                    }
                    NLMSG_NOOP => {}
                    kind => each(kind, payload),
                }
            }
        }
    }

    /// Sends one request and calls `read` with its one answer.
    pub(crate) fn ask<T>(
        &mut self,
        action: &'static str,
        body: &Body<'_>,
        read: impl FnOnce(u16, &[u8]) -> io::Result<T>,
    ) -> Result<T, NetlinkError> {
        let sequence = self.send_one(action, body, 0)?;
        loop {
            self.receive(0).map_err(|e| self.error(action, e))?;
            for message in Messages(&self.received) {
                let (header, payload) = message.map_err(|e| self.error(action, e))?;
                if header.sequence_number != sequence {
                    continue;
                }
                let errno = leading_errno(payload);
                // An acknowledgment is an error message without an error.
                if header.message_type == NLMSG_ERROR && errno != 0 {
                    return Err(self.error(action, io::Error::from_raw_os_error(errno)));
                }
                return read(header.message_type, payload).map_err(|e| self.error(action, e));
            }
        }
    }

    /// Sends many requests, up to 256 per system call, and returns an errno for each.
    ///
    /// The errno is 0 where the kernel reported no error: the requests ask for no acknowledgments, so
    /// only errors are answered.
    pub(crate) fn batch<T>(
        &mut self,
        action: &'static str,
        requests: &[T],
        encode: impl Fn(&T) -> (u16, Vec<u8>),
    ) -> Result<Vec<i32>, NetlinkError> {
        let mut results = vec![0; requests.len()];
        let mut bytes = Vec::new();
        let mut first = 0;
        for chunk in requests.chunks(BATCH) {
            bytes.clear();
            let base = self.sequence.wrapping_add(1);
            for request in chunk {
                let (kind, body) = encode(request);
                self.sequence = self.sequence.wrapping_add(1);
                frame(
                    &mut bytes,
                    kind,
                    NLM_F_REQUEST,
                    self.sequence,
                    &[&Raw(body)],
                );
            }
            self.socket
                .send(&bytes, 0)
                .map_err(|e| self.error(action, e))?;
            loop {
                match self.receive(libc::MSG_DONTWAIT) {
                    Ok(()) => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    // The queue was full and errors were lost. Their requests count as done; the
                    // dump that the caller reads afterwards shows that they failed.
                    Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => continue,
                    Err(e) => return Err(self.error(action, e)),
                }
                for message in Messages(&self.received) {
                    let (header, payload) = message.map_err(|e| self.error(action, e))?;
                    let index = header.sequence_number.wrapping_sub(base) as usize;
                    if header.message_type == NLMSG_ERROR && index < chunk.len() {
                        results[first + index] = leading_errno(payload);
                    }
                }
            }
            first += chunk.len();
        }
        Ok(results)
    }

    fn send_one(
        &mut self,
        action: &'static str,
        body: &Body<'_>,
        flags: u16,
    ) -> Result<u32, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let flags = NLM_F_REQUEST | body.flags | flags;
        frame(&mut bytes, body.kind, flags, self.sequence, body.parts);
        self.socket
            .send(&bytes, 0)
            .map_err(|e| self.error(action, e))?;
        Ok(self.sequence)
    }

    fn receive(&mut self, flags: i32) -> io::Result<()> {
        self.received.clear();
        self.received.reserve(RECEIVE);
        let length = self.socket.recv(&mut self.received, flags)?;
        if length > self.received.len() {
            return Err(io::Error::other(
                "a datagram larger than the kernel's limit",
            ));
        }
        Ok(())
    }

    fn error(&self, action: &'static str, source: io::Error) -> NetlinkError {
        NetlinkError {
            action,
            family: self.family,
            source,
        }
    }
}

/// A body that is encoded already.
struct Raw(Vec<u8>);

impl Emitable for Raw {
    fn buffer_len(&self) -> usize {
        self.0.len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.0);
    }
}

/// Encodes the parts of a body, one after the other.
pub(crate) fn encode(parts: &[&dyn Emitable]) -> Vec<u8> {
    let mut bytes = Vec::new();
    append(&mut bytes, parts);
    bytes
}

fn append(bytes: &mut Vec<u8>, parts: &[&dyn Emitable]) {
    for part in parts {
        let start = bytes.len();
        bytes.resize(start + part.buffer_len(), 0);
        part.emit(&mut bytes[start..]);
    }
}

/// Appends one message with its header.
fn frame(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, parts: &[&dyn Emitable]) {
    let start = bytes.len();
    let header_length = NetlinkHeader::default().buffer_len();
    bytes.resize(start + header_length, 0);
    append(bytes, parts);
    let mut header = NetlinkHeader::default();
    // No message that is built here is as long as 4 GiB.
    header.length = u32::try_from(bytes.len() - start).unwrap_or(u32::MAX);
    header.message_type = kind;
    header.flags = flags;
    header.sequence_number = sequence;
    header.emit(&mut bytes[start..start + header_length]);
    // A message begins at a multiple of four bytes (NLMSG_ALIGN).
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The errno (positive) in an error or done message.
fn leading_errno(payload: &[u8]) -> i32 {
    let code = ErrorBuffer::new_checked(&payload)
        .ok()
        .and_then(|buffer| ErrorMessage::parse(&buffer).ok())
        .and_then(|message| message.code);
    code.map_or(0, |code| code.get().wrapping_neg())
}

/// The messages of one datagram.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = io::Result<(NetlinkHeader, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.0);
        let broken = |e| io::Error::new(io::ErrorKind::InvalidData, format!("{e}"));
        let buffer = match NetlinkBuffer::new_checked(rest) {
            Ok(buffer) => buffer,
            Err(e) => return Some(Err(broken(e))),
        };
        let header = match NetlinkHeader::parse(&buffer) {
            Ok(header) => header,
            Err(e) => return Some(Err(broken(e))),
        };
        let length = header.length as usize;
        self.0 = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        let payload = &rest[header.buffer_len()..length];
        Some(Ok((header, payload)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_framed_one_behind_the_other() {
        let mut bytes = Vec::new();
        frame(&mut bytes, 20, NLM_F_REQUEST, 7, &[&Raw(vec![1, 2, 3])]);
        frame(&mut bytes, 21, NLM_F_REQUEST, 8, &[&Raw(vec![4; 4])]);
        assert_eq!(bytes.len(), 20 + 20);
        let read: Vec<_> = Messages(&bytes)
            .map(|message| {
                let (header, payload) = message.unwrap();
                (
                    header.message_type,
                    header.sequence_number,
                    payload.to_vec(),
                )
            })
            .collect();
        assert_eq!(read, [(20, 7, vec![1, 2, 3]), (21, 8, vec![4; 4])]);
    }

    #[test]
    fn a_truncated_datagram_is_an_error_not_a_panic() {
        let mut bytes = Vec::new();
        frame(&mut bytes, 20, NLM_F_REQUEST, 7, &[&Raw(vec![0; 40])]);
        for length in 1..bytes.len() {
            let last = Messages(&bytes[..length]).last();
            assert!(last.is_some_and(|message| message.is_err()), "{length}");
        }
    }
}
