//! A packet's headers, read as `docs/packet-flow.md` says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a packet is of a fragmented whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    First,
    Later,
}

/// A frame with an IP header that can be read.
#[derive(Debug, Clone)]
pub(super) struct Network<'a> {
    /// VLAN tags in the frame.
    pub(super) tags: usize,
    /// Everything from the IP header on, what Ethernet pads with included.
    pub(super) rest: &'a [u8],
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
}

/// The rest of a packet.
#[derive(Debug, Clone)]
pub(super) struct Transport<'a> {
    pub(super) part: Part,
    /// `None` where it is out of reach.
    pub(super) protocol: Option<u8>,
    /// From the transport header to the end of the IP packet; `None` where it is out of reach.
    pub(super) bytes: Option<&'a [u8]>,
    pub(super) hop_limit: u8,
}

/// Why a frame has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Odd {
    NotIp,
    Malformed,
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// Behind up to two VLAN tags: version and length are checked, the addresses are read.
pub(super) fn network(frame: &[u8]) -> Result<Network<'_>, Odd> {
    let mut at = 12;
    let mut tags = 0;
    let mut ethertype = word(frame, at).ok_or(Odd::Malformed)?;
    while tags < 2 && (ethertype == 0x8100 || ethertype == 0x88a8) {
        tags += 1;
        at += 4;
        ethertype = word(frame, at).ok_or(Odd::Malformed)?;
    }
    let rest = &frame[at + 2..];
    let (source, destination) = match ethertype {
        0x0800 => {
            let header: [u8; 20] = rest
                .get(..20)
                .and_then(|bytes| bytes.try_into().ok())
                .ok_or(Odd::Malformed)?;
            if header[0] >> 4 != 4 || header[0] & 15 < 5 {
                return Err(Odd::Malformed);
            }
            let [.., a, b, c, d, e, f, g, h] = header;
            let address = |octets: [u8; 4]| IpAddr::from(Ipv4Addr::from(octets));
            (address([a, b, c, d]), address([e, f, g, h]))
        }
        0x86dd => {
            let header = rest.get(..40).ok_or(Odd::Malformed)?;
            if header[0] >> 4 != 6 {
                return Err(Odd::Malformed);
            }
            let address = |bytes: &[u8]| {
                let octets: [u8; 16] = bytes.try_into().expect("sixteen bytes");
                IpAddr::from(Ipv6Addr::from(octets))
            };
            (address(&header[8..24]), address(&header[24..40]))
        }
        _ => return Err(Odd::NotIp),
    };
    Ok(Network {
        tags,
        rest,
        source,
        destination,
    })
}

/// What is behind the addresses. `gso`: the length is the buffer's.
pub(super) fn transport<'a>(network: &Network<'a>, gso: bool) -> Result<Transport<'a>, Odd> {
    match network.source {
        IpAddr::V4(_) => v4(network.rest, gso),
        IpAddr::V6(_) => Ok(v6(network.rest, gso, 14 + 4 * network.tags)),
    }
}

/// The IP packet within what is there: a length of 0, or one that is more, says nothing.
fn cut(rest: &[u8], length: usize, gso: bool) -> &[u8] {
    if gso || length > rest.len() {
        rest
    } else {
        &rest[..length]
    }
}

fn v4(rest: &[u8], gso: bool) -> Result<Transport<'_>, Odd> {
    let header = usize::from(rest[0] & 15) * 4;
    let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
    let packet = cut(rest, if length == 0 { rest.len() } else { length }, gso);
    if packet.len() < header {
        return Err(Odd::Malformed);
    }
    let fragment = u16::from_be_bytes([rest[6], rest[7]]);
    let part = match (fragment & 0x1fff, fragment & 0x2000) {
        (0, 0) => Part::Whole,
        (0, _) => Part::First,
        _ => Part::Later,
    };
    Ok(Transport {
        part,
        protocol: Some(rest[9]),
        bytes: (part != Part::Later).then(|| &packet[header..]),
        hop_limit: rest[8],
    })
}

/// Extension headers that are walked, and how far from the frame's first byte.
const MOST: usize = 8;
const FARTHEST: usize = 248;

fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

fn v6(rest: &[u8], gso: bool, link: usize) -> Transport<'_> {
    let payload = usize::from(u16::from_be_bytes([rest[4], rest[5]]));
    let length = if payload == 0 {
        rest.len()
    } else {
        40 + payload
    };
    let packet = cut(rest, length, gso);
    let mut read = Transport {
        part: Part::Whole,
        protocol: None,
        bytes: None,
        hop_limit: rest[7],
    };
    let mut next = rest[6];
    let mut at = 40;
    let mut walked = 0;
    while is_extension(next) {
        // One too many, or one that is cut short: what comes behind it is out of reach.
        let Some([following, units]) = rest.get(at..at + 2).filter(|_| walked < MOST) else {
            return read;
        };
        let (following, units) = (*following, usize::from(*units));
        at += match next {
            44 => {
                let Some(field) = word(rest, at + 2) else {
                    return read;
                };
                read.part = match (field >> 3, field & 1) {
                    (0, 0) => read.part,
                    (0, _) => Part::First,
                    _ => Part::Later,
                };
                8
            }
            51 => (units + 2) * 4,
            _ => (units + 1) * 8,
        };
        next = following;
        walked += 1;
        if read.part == Part::Later || link + at > FARTHEST {
            read.protocol = (!is_extension(next)).then_some(next);
            return read;
        }
    }
    read.protocol = Some(next);
    read.bytes = Some(packet.get(at..).unwrap_or_default());
    read
}
