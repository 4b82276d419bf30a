//! A device without a link-layer header: tun, whose other end is a file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// The wire's end of a tun device. The device goes when it is dropped.
pub(crate) struct Tun {
    file: File,
}

impl Tun {
    /// Makes a device in this network namespace.
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        let mut request = [0_u8; 40]; // struct ifreq: a name of 16 bytes, then flags
        request[..name.len()].copy_from_slice(name.as_bytes());
        let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as u16;
        request[16..18].copy_from_slice(&flags.to_ne_bytes());
        // SAFETY: the request is as long as the kernel reads.
        if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { file })
    }

    /// A packet from the wire.
    pub(crate) fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        self.file.write_all(packet)
    }

    /// So many packets to the wire, and whatever else is there with them.
    pub(crate) fn receive(&mut self, count: usize) -> io::Result<Vec<Vec<u8>>> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut packets = Vec::new();
        let mut packet = [0; 2_048];
        loop {
            match self.file.read(&mut packet) {
                Ok(length) => packets.push(packet[..length].to_vec()),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) if packets.len() >= count || Instant::now() > deadline => {
                    return Ok(packets);
                }
                Err(_) => std::thread::yield_now(),
            }
        }
    }
}
