//! A packet's bytes.
//!
//! Every checksum is right unless [`Packet::spoilt`]. The sums are RFC 1071's, straight from its
//! text: they share nothing with the datapath's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::packet::{ICMP, LOCAL_MAC, Packet};

impl Packet {
    pub(crate) fn is_v6(&self) -> bool {
        self.source.is_ipv6()
    }

    pub(crate) fn is_tagged(&self) -> bool {
        !self.tags.is_empty()
    }

    /// Whether [`Packet::bare`] works, in both directions. Behind what a test run takes for the
    /// Ethernet header it wants as many bytes as the IP header has (Linux 6.18).
    pub(crate) fn can_be_bare(&self) -> bool {
        let shows_its_protocol = |address: &IpAddr| match address {
            IpAddr::V4(address) => address.octets()[..2] == [8, 0],
            IpAddr::V6(address) => address.segments()[2] == 0x86dd,
        };
        let usual_mac = self.destination_mac == LOCAL_MAC && self.tags.is_empty();
        let even = self.options.is_empty() || self.options.len() % 8 == 4;
        let least = 14 + if self.is_v6() { 40 } else { 20 };
        usual_mac
            && even
            && self.ip().len() >= least
            && shows_its_protocol(&self.source)
            && shows_its_protocol(&self.destination)
    }

    /// The length of what stands before the IP header.
    pub(crate) fn link_length(&self) -> usize {
        if self.bare {
            0
        } else {
            14 + 4 * self.tags.len()
        }
    }

    /// The length of link-layer and IP header, with IPv4 options, without IPv6 extensions.
    pub(crate) fn headers_length(&self) -> usize {
        let ip = if self.is_v6() {
            40
        } else {
            20 + self.options.len()
        };
        self.link_length() + ip
    }

    /// Where the transport header begins, from the IP header on.
    pub(crate) fn transport_offset(&self) -> usize {
        self.ip().len() - self.transport.len()
    }

    /// The whole frame (or packet, on a device without a link-layer header).
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        if !self.bare {
            frame.extend(self.destination_mac);
            frame.extend(self.source_mac);
            for (ethertype, control) in &self.tags {
                frame.extend(ethertype.to_be_bytes());
                frame.extend(control.to_be_bytes());
            }
            let ethertype: u16 = if self.is_v6() { 0x86dd } else { 0x0800 };
            frame.extend(ethertype.to_be_bytes());
        }
        frame.extend(self.ip());
        frame.extend(vec![0; self.trailer]);
        frame
    }

    /// The IP packet.
    pub(crate) fn ip(&self) -> Vec<u8> {
        let mut packet = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.ipv4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.ipv6(source, destination),
            mixed => panic!("a packet has one family, not {mixed:?}"),
        };
        for (offset, byte) in &self.patches {
            packet[*offset] = *byte;
        }
        packet
    }

    fn ipv4(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
        let header_length = 20 + self.options.len();
        let transport = self.summed(&[&source.octets()[..], &destination.octets()].concat());
        let (offset, more) = self.fragment.unwrap_or((0, false));
        let field = offset | u16::from(more) << 13 | u16::from(self.dont_fragment) << 14;
        let mut header = vec![0x40 | (header_length / 4) as u8, 0];
        header.extend(((header_length + transport.len()) as u16).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(field.to_be_bytes());
        header.extend([self.hop_limit, self.protocol, 0, 0]);
        header.extend(source.octets());
        header.extend(destination.octets());
        header.extend(&self.options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum);
        header.extend(transport);
        header
    }

    fn ipv6(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let mut kinds: Vec<u8> = self.extensions.iter().map(|(kind, _)| *kind).collect();
        kinds.push(self.protocol);
        let mut body = Vec::new();
        for ((_, extension), next) in self.extensions.iter().zip(&kinds[1..]) {
            body.push(*next);
            body.extend(extension);
        }
        body.extend(self.summed(&[source.octets(), destination.octets()].concat()));
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((body.len() as u16).to_be_bytes());
        packet.extend([kinds[0], self.hop_limit]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(body);
        packet
    }

    /// The transport with its checksum, over the pseudo-header of RFC 9293 3.1 and RFC 8200 8.1,
    /// whose length and protocol fields add up to the same. ICMP for IPv4 has none.
    fn summed(&self, addresses: &[u8]) -> Vec<u8> {
        let mut transport = self.transport.clone();
        let Some(at) = self.checksum_at else {
            return transport;
        };
        transport[at..at + 2].fill(0);
        let mut covered = Vec::new();
        if self.protocol != ICMP {
            covered.extend(addresses);
            covered.extend((transport.len() as u32).to_be_bytes());
            covered.extend([0, 0, 0, self.protocol]);
        }
        covered.extend(&transport);
        let sum = checksum(&covered);
        transport[at..at + 2].copy_from_slice(&sum);
        if self.spoilt {
            transport[at] ^= 0x10;
        }
        transport
    }
}

/// RFC 1071: the complement of the one's-complement sum of 16-bit words.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    (!(sum as u16)).to_be_bytes()
}
