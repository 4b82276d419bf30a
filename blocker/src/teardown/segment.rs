//! The bytes of a probe: an IP packet with one TCP segment in it.
//!
//! Pure. A probe has ACK set, one byte of data, and a sequence number outside the window, so that
//! its receiver must answer with an ACK that carries its own exact numbers (RFC 9293 3.10.7.4,
//! first check). It has data because a receiver may limit how often it answers bare ACKs
//! (`tcp_oow_rate_limited` of `net/ipv4/tcp_input.c`; RFC 5961 section 7 allows such a limit).

use std::net::{IpAddr, SocketAddr};

/// A forged segment's two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probe {
    /// The end in whose name it is sent.
    pub(crate) from: SocketAddr,
    /// The end that is to answer.
    pub(crate) to: SocketAddr,
    /// Index of the device that it must leave by, 0 for any. Link-local addresses need one.
    pub(crate) device: u32,
}

/// The numbers of a probe. Both are random, so that nobody can predict our probes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbers {
    /// Sequence number.
    pub(crate) seq: u32,
    /// Acknowledgment number.
    pub(crate) ack: u32,
}

impl Numbers {
    /// The numbers of a second probe: a window is at most 2^30 bytes (RFC 7323 2.3), so of two
    /// sequence numbers half the space apart at most one is inside.
    pub(crate) const fn opposite(self) -> Self {
        Self {
            seq: self.seq.wrapping_add(1 << 31),
            ack: self.ack,
        }
    }
}

const TCP_HEADER: usize = 20;
const DATA: usize = 1;
const ACK: u8 = 0x10;
const HOP_LIMIT: u8 = 64;
/// Any but 0, which some would read as a closed window.
const WINDOW: u16 = 1024;

/// A probe as an IP packet with every checksum complete; nothing if its ends' families differ.
pub(crate) fn packet(probe: &Probe, numbers: Numbers) -> Option<Vec<u8>> {
    let length = u16::try_from(TCP_HEADER + DATA).ok()?;
    let mut bytes = Vec::with_capacity(64);
    match (probe.from.ip(), probe.to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // RFC 791 3.1. DF, and so an id of 0 is right (RFC 6864 4.1).
            bytes.extend([0x45, 0]);
            bytes.extend((20 + length).to_be_bytes());
            bytes.extend([0, 0, 0x40, 0, HOP_LIMIT, super::flow::TCP, 0, 0]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
            let sum = checksum(&[&bytes]);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            // RFC 8200 section 3.
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(length.to_be_bytes());
            bytes.extend([super::flow::TCP, HOP_LIMIT]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        _ => return None,
    }
    let tcp = bytes.len();
    bytes.extend(probe.from.port().to_be_bytes());
    bytes.extend(probe.to.port().to_be_bytes());
    bytes.extend(numbers.seq.to_be_bytes());
    bytes.extend(numbers.ack.to_be_bytes());
    bytes.extend([(TCP_HEADER as u8 / 4) << 4, ACK]);
    bytes.extend(WINDOW.to_be_bytes());
    bytes.extend([0, 0, 0, 0]);
    bytes.push(0);
    // The pseudo-header: addresses, protocol, length (RFC 9293 3.1, RFC 8200 8.1; the two differ
    // in layout, not in sum).
    let addresses = match probe.from {
        SocketAddr::V4(_) => 12..20,
        SocketAddr::V6(_) => 8..40,
    };
    let pseudo = [[0, super::flow::TCP], length.to_be_bytes()].concat();
    let sum = checksum(&[&bytes[addresses], &pseudo, &bytes[tcp..]]);
    bytes[tcp + 16..tcp + 18].copy_from_slice(&sum.to_be_bytes());
    Some(bytes)
}

/// The Internet checksum (RFC 1071) of parts that each begin at an even offset.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| {
        part.chunks(2)
            .map(|pair| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
    });
    let sum: u32 = words.map(u32::from).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !(folded as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(from: &str, to: &str) -> Probe {
        Probe {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            device: 0,
        }
    }

    const NUMBERS: Numbers = Numbers {
        seq: 0x9000_0001,
        ack: 0x1234_5678,
    };

    #[test]
    fn an_ipv4_probe_byte_for_byte() {
        // The checksums were computed by another program, after RFC 1071.
        let bytes = packet(&probe("192.0.2.1:4660", "198.51.100.2:80"), NUMBERS).unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "450000290000400040064e98c0000201c6336402\
             12340050900000011234567850100400b46a000000"
        );
    }

    #[test]
    fn an_ipv6_probe_byte_for_byte() {
        let bytes = packet(&probe("[2001:db8::1]:4660", "[2001:db8::2]:80"), NUMBERS).unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "600000000015064020010db800000000000000000000000120010db8000000000000000000000002\
             12340050900000011234567850100400452d000000"
        );
    }

    #[test]
    fn of_two_probes_one_is_outside_any_window() {
        let window = 1u32 << 30;
        for seq in [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            let first = Numbers { seq, ack: 0 };
            let second = first.opposite();
            for start in [0, 0x3fff_ffff, 0x7000_0000, 0x8000_0000, 0xc000_0001] {
                let inside = |n: Numbers| n.seq.wrapping_sub(start) < window;
                assert!(!(inside(first) && inside(second)), "{seq} {start}");
            }
        }
    }

    #[test]
    fn ends_of_two_families_make_no_packet() {
        assert!(packet(&probe("192.0.2.1:1", "[2001:db8::2]:2"), NUMBERS).is_none());
    }
}
