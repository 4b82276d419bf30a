//! Sending probes: past netfilter where the way is known, through the kernel's routing elsewhere.
//!
//! A packet socket hands a frame to its device, where the datapath's egress hook recognizes our mark;
//! neither a user's OUTPUT rule nor connection tracking sees it. This needs the next hop's link-layer
//! address. Where that is not known, or the probe is for this host itself, a raw socket sends it, and
//! the host's OUTPUT rules apply. [`super::ledger`] chooses which ends are probed.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6,
    SockaddrLike, sendto, setsockopt, socket, sockopt,
};

use super::routes::{Carriage, Routes};
use super::segment::{self, Numbers, Probe};

/// The sockets that probes leave by.
pub(crate) struct Prober {
    packet: OwnedFd,
    raw4: OwnedFd,
    raw6: OwnedFd,
}

/// What became of a set of probes.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// Packets handed to a device or to the kernel.
    pub(crate) packets: u64,
    /// Why a probe could not be sent: the last such error.
    pub(crate) error: Option<io::Error>,
}

impl Prober {
    /// Opens the sockets in the calling thread's network namespace. All that they send carries
    /// `mark`. Needs CAP_NET_RAW and, for the mark, CAP_NET_ADMIN.
    pub(crate) fn open(mark: u32) -> io::Result<Self> {
        let open = |family, kind, protocol| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let fd = socket(family, kind, flags, protocol)?;
            setsockopt(&fd, sockopt::Mark, &mark)?;
            Ok::<_, io::Error>(fd)
        };
        Ok(Self {
            // Without a protocol it receives nothing.
            packet: open(AddressFamily::Packet, SockType::Datagram, None)?,
            // IPPROTO_RAW implies IP_HDRINCL (raw(7)) and, in IPv6, IPV6_HDRINCL.
            raw4: open(AddressFamily::Inet, SockType::Raw, Some(SockProtocol::Raw))?,
            raw6: open(AddressFamily::Inet6, SockType::Raw, Some(SockProtocol::Raw))?,
        })
    }

    /// Sends one segment or two for each probe, along its route. Of two, at least one is outside the
    /// window.
    pub(crate) fn send(&self, probes: &[Probe], segments: usize, routes: &mut Routes) -> Sent {
        let mut sent = Sent::default();
        routes.forget_neighbours();
        let mut random = vec![0; probes.len() * 8];
        if let Err(e) = getrandom::fill(&mut random) {
            sent.error = Some(io::Error::other(e.to_string()));
            return sent;
        }
        for (probe, random) in probes.iter().zip(random.chunks_exact(8)) {
            let word = |at: usize| {
                u32::from_ne_bytes([random[at], random[at + 1], random[at + 2], random[at + 3]])
            };
            let numbers = Numbers {
                seq: word(0),
                ack: word(4),
            };
            for numbers in [numbers, numbers.opposite()].into_iter().take(segments) {
                match self.send_one(probe, numbers, routes) {
                    Ok(()) => sent.packets += 1,
                    Err(e) => sent.error = Some(e),
                }
            }
        }
        sent
    }

    fn send_one(&self, probe: &Probe, numbers: Numbers, routes: &mut Routes) -> io::Result<()> {
        let Some(packet) = segment::packet(probe, numbers) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let hop = routes.hop(probe.to.ip(), Some(probe.from.ip()), probe.device);
        let carriage = hop.map(|hop| (hop.device, routes.carriage(&hop)));
        let flags = MsgFlags::empty();
        match carriage {
            Some((device, Carriage::To(mac))) => {
                let to = link_address(device, probe.to.ip(), Some(mac));
                sendto(self.packet.as_raw_fd(), &packet, &to, flags)
            }
            Some((device, Carriage::Bare)) => {
                let to = link_address(device, probe.to.ip(), None);
                sendto(self.packet.as_raw_fd(), &packet, &to, flags)
            }
            // With port 0: a raw socket would take it for a protocol number.
            Some((_, Carriage::Unknown)) | None => match probe.to {
                SocketAddr::V4(to) => {
                    let to = SockaddrIn::from(SocketAddrV4::new(*to.ip(), 0));
                    sendto(self.raw4.as_raw_fd(), &packet, &to, flags)
                }
                SocketAddr::V6(to) => {
                    let to = SockaddrIn6::from(SocketAddrV6::new(*to.ip(), 0, 0, probe.device));
                    sendto(self.raw6.as_raw_fd(), &packet, &to, flags)
                }
            },
        }?;
        Ok(())
    }
}

/// The address by which a packet socket sends an IP packet on a device.
fn link_address(device: u32, to: IpAddr, mac: Option<[u8; 6]>) -> LinkAddr {
    let protocol = if to.is_ipv4() {
        libc::ETH_P_IP
    } else {
        libc::ETH_P_IPV6
    };
    let mut address = [0; 8];
    let mut length = 0;
    if let Some(mac) = mac {
        address[..6].copy_from_slice(&mac);
        length = 6;
    }
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (protocol as u16).to_be(),
        sll_ifindex: device.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: length,
        sll_addr: address,
    };
    let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `raw` is a whole sockaddr_ll of family AF_PACKET, and `size` its size.
    let address = unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(size)) };
    address.expect("a sockaddr_ll of family AF_PACKET and full size is a link address")
}
