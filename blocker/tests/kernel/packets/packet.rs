//! A packet, field by field, and what a reply to it must be.
//!
//! A packet comes from the remote to this host, over IPv4 and Ethernet, unless told otherwise.
//! Its bytes are in `bytes.rs`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const URG: u8 = 0x20;
pub(crate) const ECE: u8 = 0x40;
pub(crate) const CWR: u8 = 0x80;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP: u8 = 1;
pub(super) const ICMPV6: u8 = 58;

/// The blocked peer. These addresses are chosen for [`Packet::bare`], which see.
pub(crate) const REMOTE: Ipv4Addr = Ipv4Addr::new(8, 0, 0, 1);
/// This host.
pub(crate) const LOCAL: Ipv4Addr = Ipv4Addr::new(8, 0, 0, 2);
/// The blocked peer.
pub(crate) const REMOTE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x86dd, 0, 0, 0, 0, 1);
/// This host.
pub(crate) const LOCAL6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x86dd, 0, 0, 0, 0, 2);
pub(crate) const REMOTE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
pub(crate) const LOCAL_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
pub(crate) const REMOTE_PORT: u16 = 40_000;
pub(crate) const LOCAL_PORT: u16 = 80;

/// Sequence number of every segment that is not told otherwise.
pub(crate) const SEQ: u32 = 1_000;
/// Acknowledgment number, likewise; 0 without ACK.
pub(crate) const ACKED: u32 = 2_000;

#[derive(Debug, Clone)]
pub(crate) struct Packet {
    pub(super) source_mac: [u8; 6],
    pub(super) destination_mac: [u8; 6],
    /// VLAN tags from the outermost: EtherType and tag control information.
    pub(super) tags: Vec<(u16, u16)>,
    pub(super) bare: bool,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) id: u16,
    pub(super) dont_fragment: bool,
    pub(super) hop_limit: u8,
    pub(super) fragment: Option<(u16, bool)>,
    pub(super) options: Vec<u8>,
    /// IPv6 extension headers: the kind, and the bytes behind its "next header".
    pub(super) extensions: Vec<(u8, Vec<u8>)>,
    pub(super) protocol: u8,
    /// Transport header and payload.
    pub(super) transport: Vec<u8>,
    pub(super) checksum_at: Option<usize>,
    pub(super) spoilt: bool,
    pub(super) patches: Vec<(usize, u8)>,
    pub(super) trailer: usize,
}

/// A TCP segment.
pub(crate) fn tcp(flags: u8) -> Packet {
    let mut header = ports(REMOTE_PORT, LOCAL_PORT);
    header.extend(SEQ.to_be_bytes());
    let acked = if flags & ACK == 0 { 0 } else { ACKED };
    header.extend(acked.to_be_bytes());
    header.extend([5 << 4, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    Packet::over_ip(TCP, header, Some(16))
}

/// A UDP datagram.
pub(crate) fn udp(payload: &[u8]) -> Packet {
    let mut header = ports(REMOTE_PORT, LOCAL_PORT);
    header.extend([0; 4]);
    Packet::over_ip(UDP, header, Some(6)).payload(payload)
}

/// An ICMP message with four bytes behind the checksum. [`Packet::v6`] translates its type.
pub(crate) fn icmp(kind: u8, code: u8, rest: [u8; 4]) -> Packet {
    let mut header = vec![kind, code, 0, 0];
    header.extend(rest);
    Packet::over_ip(ICMP, header, Some(2))
}

/// An echo request.
pub(crate) fn echo() -> Packet {
    icmp(8, 0, [0x12, 0x34, 0, 1]).payload(b"are you there?")
}

/// A packet of a protocol that has no ports.
pub(crate) fn other(protocol: u8) -> Packet {
    Packet::over_ip(protocol, b"whatever it carries".to_vec(), None)
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}

/// How the packet is changed: each gives it back, changed.
impl Packet {
    fn over_ip(protocol: u8, transport: Vec<u8>, checksum_at: Option<usize>) -> Self {
        Self {
            source_mac: REMOTE_MAC,
            destination_mac: LOCAL_MAC,
            tags: Vec::new(),
            bare: false,
            source: REMOTE.into(),
            destination: LOCAL.into(),
            id: 0x1dea,
            dont_fragment: false,
            hop_limit: 57,
            fragment: None,
            options: Vec::new(),
            extensions: Vec::new(),
            protocol,
            transport,
            checksum_at,
            spoilt: false,
            patches: Vec::new(),
            trailer: 0,
        }
    }

    /// Over IPv6, between the hosts' IPv6 addresses; ICMP becomes ICMPv6.
    pub(crate) fn v6(mut self) -> Self {
        self.source = REMOTE6.into();
        self.destination = LOCAL6.into();
        if self.protocol == ICMP {
            self.protocol = ICMPV6;
            self.transport[0] = match self.transport[0] {
                8 => 128,
                0 => 129,
                3 => 1,
                kind => kind,
            };
        }
        match self.fragment.take() {
            Some((offset, more)) => self.fragment(offset, more),
            None => self,
        }
    }

    pub(crate) fn payload(mut self, bytes: &[u8]) -> Self {
        self.transport.extend(bytes);
        if self.protocol == UDP {
            let length = (self.transport.len() as u16).to_be_bytes();
            self.transport[4..6].copy_from_slice(&length);
        }
        self
    }

    /// With TCP options behind the TCP header, which must be empty yet.
    pub(crate) fn tcp_options(mut self, options: &[u8]) -> Self {
        self.transport[12] = ((20 + options.len() as u8) / 4) << 4;
        self.transport.splice(20..20, options.iter().copied());
        self
    }

    pub(crate) fn seq(mut self, seq: u32) -> Self {
        self.transport[4..8].copy_from_slice(&seq.to_be_bytes());
        self
    }

    pub(crate) fn ack(mut self, ack: u32) -> Self {
        self.transport[8..12].copy_from_slice(&ack.to_be_bytes());
        self
    }

    pub(crate) fn remote_port(mut self, port: u16) -> Self {
        self.transport[..2].copy_from_slice(&port.to_be_bytes());
        self
    }

    pub(crate) fn local_port(mut self, port: u16) -> Self {
        self.transport[2..4].copy_from_slice(&port.to_be_bytes());
        self
    }

    pub(crate) fn remote(mut self, address: impl Into<IpAddr>) -> Self {
        self.source = address.into();
        self
    }

    pub(crate) fn local(mut self, address: impl Into<IpAddr>) -> Self {
        self.destination = address.into();
        self
    }

    /// To this link-layer address.
    pub(crate) fn addressed(mut self, mac: [u8; 6]) -> Self {
        self.destination_mac = mac;
        self
    }

    pub(crate) fn hop_limit(mut self, hops: u8) -> Self {
        self.hop_limit = hops;
        self
    }

    /// With one more VLAN tag, inside of those that are there.
    pub(crate) fn tag(mut self, ethertype: u16, control: u16) -> Self {
        self.tags.push((ethertype, control));
        self
    }

    /// With IPv4 options, a multiple of four bytes.
    pub(crate) fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// With one more IPv6 extension header of so many bytes, padding but for its length.
    pub(crate) fn extension(mut self, kind: u8, length: usize) -> Self {
        // All count units of 8 beyond the first, but the authentication header, which counts
        // units of 4 beyond the second (RFC 4302 2.2).
        let units = if kind == 51 {
            length / 4 - 2
        } else {
            length / 8 - 1
        };
        let mut body = vec![units as u8];
        body.resize(length - 1, 0);
        self.extensions.push((kind, body));
        self
    }

    /// The fragment that begins at this offset in units of 8 bytes; of IPv6 by a fragment header
    /// behind the other extension headers.
    pub(crate) fn fragment(mut self, offset: u16, more: bool) -> Self {
        if self.is_v6() {
            let field = (offset << 3 | u16::from(more)).to_be_bytes();
            self.extensions
                .push((44, vec![0, field[0], field[1], 0, 0, 0, 7]));
        } else {
            self.fragment = Some((offset, more));
        }
        self
    }

    /// Without a link-layer header, as on tun or WireGuard.
    pub(crate) fn without_link(mut self) -> Self {
        self.bare = true;
        self
    }

    /// Without a link-layer header, in a test run.
    ///
    /// A test run takes the first 14 bytes for an Ethernet header all the same, and what the
    /// stack knows as the packet's protocol from their last two. So that it is the right one, the
    /// source must begin with 8.0 (0x0800), or have 86dd as its third group. And what would be
    /// the lowest bit of the first byte would mean multicast: hence the IPv4 option (No Operation)
    /// which makes the first byte of an IPv4 packet even.
    pub(crate) fn bare(mut self) -> Self {
        self.bare = true;
        if !self.is_v6() && self.options.is_empty() {
            self.options = vec![1; 4];
        }
        self
    }

    /// With so many bytes behind the IP packet's end, as Ethernet pads short frames.
    pub(crate) fn trailer(mut self, bytes: usize) -> Self {
        self.trailer = bytes;
        self
    }

    /// With a wrong transport checksum.
    pub(crate) fn spoilt(mut self) -> Self {
        self.spoilt = true;
        self
    }

    /// Without a transport checksum (of UDP, 0 means none).
    pub(crate) fn unsummed(mut self) -> Self {
        self.checksum_at = None;
        self
    }

    /// With another byte at an offset of the transport header.
    pub(crate) fn transport_byte(mut self, offset: usize, byte: u8) -> Self {
        self.transport[offset] = byte;
        self
    }

    /// With only the first bytes of transport header and payload, or with others instead.
    pub(crate) fn transport(mut self, bytes: &[u8]) -> Self {
        self.transport = bytes.to_vec();
        self.checksum_at = None;
        self
    }

    /// With another byte at an offset of the IP header, all lengths and sums notwithstanding.
    pub(crate) fn ip_byte(mut self, offset: usize, byte: u8) -> Self {
        self.patches.push((offset, byte));
        self
    }

    /// The same packet the other way, from this host to the remote.
    pub(crate) fn outgoing(mut self) -> Self {
        std::mem::swap(&mut self.source_mac, &mut self.destination_mac);
        std::mem::swap(&mut self.source, &mut self.destination);
        if matches!(self.protocol, TCP | UDP) && self.transport.len() >= 4 {
            self.transport[..4].rotate_left(2);
        }
        self
    }
}

/// What a reply to the packet must be.
impl Packet {
    /// A RST in its own direction: from its sender to its receiver.
    pub(crate) fn rst(&self, flags: u8, seq: u32, ack: u32) -> Self {
        let mut segment = tcp(flags).seq(seq).ack(ack);
        segment.transport[..4].copy_from_slice(&self.transport[..4]);
        segment.transport[14..16].fill(0); // no window
        self.enclosing(segment)
    }

    /// A destination unreachable in its own direction that quotes another packet.
    pub(crate) fn unreachable(&self, code: u8, offending: &Self) -> Self {
        let (kind, most) = if self.is_v6() {
            (1, 1280 - 48) // RFC 4443 2.4 (c): the least IPv6 MTU
        } else {
            (3, 576 - 28) // RFC 1812 4.3.2.3
        };
        let quoted = offending.ip();
        let message = icmp(kind, code, [0; 4]).payload(&quoted[..quoted.len().min(most)]);
        let mut reply = self.enclosing(message);
        if self.is_v6() {
            reply.protocol = ICMPV6;
        }
        reply
    }

    /// Another's transport, in a fresh IP header between this one's hosts.
    fn enclosing(&self, inner: Self) -> Self {
        Self {
            source_mac: self.source_mac,
            destination_mac: self.destination_mac,
            tags: self.tags.clone(),
            bare: self.bare,
            source: self.source,
            destination: self.destination,
            id: 0,
            dont_fragment: true,
            hop_limit: 64,
            ..inner
        }
    }
}
