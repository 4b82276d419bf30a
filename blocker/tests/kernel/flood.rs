//! Floods from both CPUs: frames that the kernel makes, and datagrams of sockets.
//!
//! Owns sending and the sender's count; the tests check what happens to the packets.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use xtask::bpf::Program;
use xtask::hosts::Namespace;

/// The CPUs that send. They receive too: veth processes a frame on the CPU that sent it.
pub(crate) const CPUS: [usize; 2] = [0, 1];

/// Frames in a batch: as many as a driver's NAPI poll takes.
const BATCH: u32 = 64;
/// Frames in a call: few enough to end a flood on time, enough to make the call's own cost small.
const CALL: u32 = 1 << 14;
/// Datagrams in a call.
const MESSAGES: usize = 256;

/// Floods a device of a host with copies of a frame from both CPUs at once, for some time; gives
/// how many frames were sent by all together.
///
/// # Errors
/// The kernel refuses (5.18 and later have live frames), or there is one CPU only.
pub(crate) fn frames(host: &Namespace, device: &str, frame: &[u8], time: Duration) -> Result<u64> {
    let ifindex = host.enter(|| nix::net::if_::if_nametoindex(device))??;
    // bpf_redirect(ifindex, 0), as in Documentation/bpf/standardization/instruction-set.rst.
    let program = Program::load(&[
        0xb7 | 1 << 8 | u64::from(ifindex) << 32,
        0xb7 | 2 << 8,
        0x85 | 23 << 32,
        0x95,
    ])?;
    on_each_cpu(host, |_| {
        let end = Instant::now() + time;
        let mut sent = 0;
        while Instant::now() < end {
            program.emit(frame, CALL, BATCH)?;
            sent += u64::from(CALL);
        }
        Ok(sent)
    })
}

/// Sends datagrams of one length from both CPUs at once, by a socket each, for some time; gives how
/// many the sockets sent, all together.
///
/// # Errors
/// A socket cannot be made, or does not send.
pub(crate) fn datagrams(
    host: &Namespace,
    from: IpAddr,
    to: SocketAddr,
    length: usize,
    time: Duration,
) -> Result<u64> {
    on_each_cpu(host, |_| {
        let socket = UdpSocket::bind((from, 0))?;
        socket.connect(to)?;
        let payload = vec![7_u8; length];
        let mut part = libc::iovec {
            iov_base: payload.as_ptr().cast_mut().cast(),
            iov_len: payload.len(),
        };
        // SAFETY: zeros are valid for this plain type.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_iov = &raw mut part;
        message.msg_hdr.msg_iovlen = 1;
        let mut messages = [message; MESSAGES];
        let end = Instant::now() + time;
        let mut sent = 0;
        while Instant::now() < end {
            // SAFETY: so many messages, whose one part is the payload, which is only read.
            let count = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    messages.as_mut_ptr(),
                    MESSAGES as u32,
                    0,
                )
            };
            sent += match u64::try_from(count) {
                Ok(count) => count,
                // Where nobody listens, an ICMP error comes back for what was sent before; the call
                // that tells of it has sent nothing.
                Err(_) => match std::io::Error::last_os_error() {
                    error if error.kind() == std::io::ErrorKind::ConnectionRefused => 0,
                    error => return Err(error.into()),
                },
            };
        }
        Ok(sent)
    })
}

/// Does something in a host on both CPUs at once, and adds up what they give.
fn on_each_cpu(host: &Namespace, act: impl Fn(usize) -> Result<u64> + Sync) -> Result<u64> {
    let act = &act;
    thread::scope(|scope| {
        let threads = CPUS.map(|cpu| {
            scope.spawn(move || {
                host.enter(|| {
                    let mut cpus = CpuSet::new();
                    cpus.set(cpu)?;
                    sched_setaffinity(Pid::from_raw(0), &cpus)
                        .with_context(|| format!("no CPU {cpu} to send from"))?;
                    act(cpu)
                })?
            })
        });
        let counts = threads.map(|thread| thread.join().expect("no panic"));
        counts.into_iter().sum()
    })
}

/// A UDP packet of a length, in its Ethernet frame. Without a UDP checksum, which IPv4 allows.
pub(crate) fn udp(macs: [[u8; 6]; 2], from: IpAddr, to: IpAddr, length: usize) -> Vec<u8> {
    let [source, destination] = macs;
    let mut frame = [destination, source].concat();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend([0x08, 0x00]);
            let mut header = [0; 20];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&((length - 14) as u16).to_be_bytes());
            header[8..10].copy_from_slice(&[64, 17]);
            header[12..16].copy_from_slice(&from.octets());
            header[16..20].copy_from_slice(&to.octets());
            let sum: u32 = header
                .chunks(2)
                .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
                .sum();
            let sum = (sum & 0xffff) + (sum >> 16);
            header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
            frame.extend(header);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(((length - 54) as u16).to_be_bytes());
            frame.extend([17, 64]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        _ => unreachable!("both are of one family"),
    }
    let rest = (length - frame.len()) as u16;
    frame.extend([0x9c, 0x40, 0x01, 0xbb]); // 40000 to 443
    frame.extend(rest.to_be_bytes());
    frame.resize(length, 0);
    frame
}
