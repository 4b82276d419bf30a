//! What devices receive, byte for byte: an `AF_PACKET` socket on each end of a veth pair.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A socket that sees every frame that a device receives, and can send by it.
pub(crate) struct Tap {
    socket: OwnedFd,
}

/// A frame of this EtherType (IEEE 802 Local Experimental) ends a collection.
const END: [u8; 2] = [0x88, 0xb5];

fn end(number: u64) -> [u8; 60] {
    let mut frame = [0xff; 60];
    frame[12..14].copy_from_slice(&END);
    frame[14..22].copy_from_slice(&number.to_be_bytes());
    frame
}

impl Tap {
    /// Opens one on a device of this network namespace.
    pub(crate) fn open(ifindex: u32) -> io::Result<Self> {
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: plain arguments; the result is checked.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                0, // nothing is received before it is bound
            )
        };
        check(fd)?;
        // SAFETY: the kernel just gave us this descriptor.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // A tag of 802.1Q is taken off before any tap sees the frame; this tells which it was.
        option(&socket, libc::PACKET_AUXDATA)?;
        option(&socket, libc::PACKET_IGNORE_OUTGOING)?;
        // SAFETY: zeros are valid for this plain type.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = ifindex as i32;
        // SAFETY: the address is initialised and as long as said.
        check(unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            )
        })?;
        let wait = libc::timeval {
            tv_sec: 10, // on one CPU what comes has come; this long only where all is lost
            tv_usec: 0,
        };
        // SAFETY: as above.
        check(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const wait).cast(),
                size_of_val(&wait) as u32,
            )
        })?;
        Ok(Self { socket })
    }

    /// Sends the frame that ends the peer's collection of this number.
    pub(crate) fn send_end(&self, number: u64) -> io::Result<()> {
        self.send(&end(number))
    }

    /// Sends a frame as it is, by the device and through its hooks.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer is as long as said.
        let sent = unsafe {
            libc::send(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
            )
        };
        check(sent as i32)
    }

    /// Everything received up to the frame that ends the collection of this number.
    pub(crate) fn collect(&self, number: u64) -> io::Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        loop {
            let frame = self.receive(0)?;
            if frame == end(number) {
                return Ok(frames);
            }
            if frame.get(12..14) != Some(&END) {
                frames.push(frame);
            }
        }
    }

    /// So many frames, and whatever else is there with them.
    pub(crate) fn receive_all(&self, count: usize) -> io::Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        while frames.len() < count {
            frames.push(self.receive(0)?);
        }
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(frame) => frames.push(frame),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(frames),
                Err(error) => return Err(error),
            }
        }
    }

    fn receive(&self, flags: i32) -> io::Result<Vec<u8>> {
        let mut frame = vec![0_u8; 70_000];
        let mut control = [0_u64; 16];
        let mut part = libc::iovec {
            iov_base: frame.as_mut_ptr().cast(),
            iov_len: frame.len(),
        };
        // SAFETY: zeros are valid for this plain type.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: the message points to buffers that live here, with their lengths.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, flags) };
        check(length as i32)?;
        frame.truncate(length as usize);
        if let Some((ethertype, tag)) = tag(&message) {
            let bytes = [ethertype.to_be_bytes(), tag.to_be_bytes()].concat();
            frame.splice(12..12, bytes);
        }
        Ok(frame)
    }
}

/// The VLAN tag that the kernel took off: EtherType and control information.
fn tag(message: &libc::msghdr) -> Option<(u16, u16)> {
    // SAFETY: the kernel filled the control buffer, which outlives the message.
    let header = unsafe { libc::CMSG_FIRSTHDR(message) };
    if header.is_null() {
        return None;
    }
    // SAFETY: not null, so inside the buffer. The only control message asked for is this one.
    let data: libc::tpacket_auxdata = unsafe {
        libc::CMSG_DATA(header)
            .cast::<libc::tpacket_auxdata>()
            .read_unaligned()
    };
    (data.tp_status & libc::TP_STATUS_VLAN_VALID != 0)
        .then_some((data.tp_vlan_tpid, data.tp_vlan_tci))
}

fn option(socket: &OwnedFd, name: i32) -> io::Result<()> {
    let on = 1_i32;
    // SAFETY: the value is as long as said.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            name,
            (&raw const on).cast(),
            size_of_val(&on) as u32,
        )
    })
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
