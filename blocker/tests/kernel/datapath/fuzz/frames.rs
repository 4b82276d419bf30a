//! Frames: valid packets of every kind, most of them damaged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;

use crate::packets::packet::*;
use crate::packets::{Program, Sight};

/// No frame is shorter than its Ethernet header, nor does a test run take one that is.
const SHORTEST: usize = 14;

/// A random element.
pub(crate) fn one<T: Clone>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())].clone()
}

/// True once in so many times.
pub(crate) fn once_in(rng: &mut Rng, times: u32) -> bool {
    rng.u32(..times) == 0
}

/// Two frames as this program may meet them, and what the kernel says of each: a packet, and the
/// same one damaged.
pub(crate) fn frames(rng: &mut Rng, program: Program, mark: u32) -> [(Vec<u8>, Sight); 2] {
    let packet = program.meets(&packet(rng));
    let whole = packet.bytes();
    let damaged = if once_in(rng, 25) {
        noise(rng)
    } else {
        let mut frame = whole.clone();
        for _ in 0..rng.u32(1..4) {
            damage(rng, &mut frame, packet.link_length());
        }
        frame.resize(frame.len().max(SHORTEST), 0);
        frame
    };
    [whole, damaged].map(|frame| {
        let sight = sight(rng, &frame, mark);
        (frame, sight)
    })
}

fn sight(rng: &mut Rng, frame: &[u8], mark: u32) -> Sight {
    let mut sight = Sight::default();
    if once_in(rng, 100) {
        sight.mark = one(rng, &[mark, mark ^ 1, 1]);
    }
    if once_in(rng, 40) && frame.len() > 200 {
        sight.gso_segs = 2;
        sight.gso_size = 100;
    }
    sight
}

/// Bytes that are no packet, at times behind an EtherType that says otherwise.
fn noise(rng: &mut Rng) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..rng.usize(SHORTEST..300)).map(|_| rng.u8(..)).collect();
    let ethertype: Option<[u8; 2]> = one(
        rng,
        &[
            None,
            Some([0x08, 0x00]),
            Some([0x86, 0xdd]),
            Some([0x81, 0x00]),
        ],
    );
    if let Some(ethertype) = ethertype {
        frame[12..14].copy_from_slice(&ethertype);
    }
    frame
}

fn damage(rng: &mut Rng, frame: &mut Vec<u8>, link: usize) {
    let at = rng.usize(..frame.len().max(1));
    match rng.u32(..9) {
        0 => frame.truncate(at),
        // Mostly where headers are.
        1 => frame.truncate(rng.usize(..80)),
        2 | 3 => {
            let at = link + rng.usize(..60);
            if let Some(byte) = frame.get_mut(at) {
                *byte = rng.u8(..);
            }
        }
        4 => {
            if let Some(byte) = frame.get_mut(at) {
                *byte ^= 1 << rng.u32(..8);
            }
        }
        // The first byte of the network header: version and length.
        5 => {
            if let Some(byte) = frame.get_mut(link) {
                *byte = one(rng, &[0x45, 0x40, 0x44, 0x46, 0x4f, 0x60, 0x6f, 0x55]);
            }
        }
        // The length of the packet: IPv4's, or IPv6's.
        6 => {
            let at = link + one(rng, &[2, 4]);
            let random = rng.u16(..);
            let lengths = [0, 1, 19, 20, 21, 24, 27, 28, 40, 60, 0xffff, random];
            let length = one(rng, &lengths);
            if let Some(bytes) = frame.get_mut(at..at + 2) {
                bytes.copy_from_slice(&length.to_be_bytes());
            }
        }
        7 => frame.extend((0..rng.usize(1..40)).map(|_| 0)),
        _ => {
            let from = at.min(frame.len());
            frame.splice(from..from, (0..rng.usize(1..8)).map(|n| n as u8));
        }
    }
}

/// A valid packet from a remote to this host.
fn packet(rng: &mut Rng) -> Packet {
    let mut packet = transport(rng);
    if rng.bool() {
        packet = v6(rng, packet);
    } else {
        packet = v4(rng, packet);
    }
    for _ in 0..one(rng, &[0, 0, 0, 0, 0, 1, 1, 2, 3]) {
        packet = packet.tag(one(rng, &[0x8100, 0x88a8]), rng.u16(..));
    }
    if once_in(rng, 20) {
        packet = packet.addressed(one(
            rng,
            &[[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [2, 9, 9, 9, 9, 9]],
        ));
    }
    if once_in(rng, 8) {
        packet = packet.trailer(rng.usize(1..30));
    }
    if once_in(rng, 12) {
        packet = packet.spoilt();
    }
    if once_in(rng, 6) {
        packet = packet.hop_limit(one(rng, &[0, 1, 254, 255]));
    }
    packet
}

fn transport(rng: &mut Rng) -> Packet {
    let payload: Vec<u8> = (0..one(rng, &[0, 0, 1, 2, 3, 18, 64, 555, 1_300]))
        .map(|n| n as u8)
        .collect();
    let port = |rng: &mut Rng| one(rng, &[0, 22, 79, 80, 81, 443, 1_000, 1_500, 2_001, 65_535]);
    match rng.u32(..10) {
        0..=3 => {
            let flags = one(
                rng,
                &[
                    SYN,
                    SYN | ACK,
                    ACK,
                    ACK,
                    PSH | ACK,
                    FIN | ACK,
                    FIN,
                    RST,
                    RST | ACK,
                    0,
                    0xff,
                ],
            );
            let mut packet = tcp(flags).payload(&payload);
            if once_in(rng, 3) {
                packet = packet.tcp_options(&vec![1; 4 * rng.usize(1..11)]);
            }
            if once_in(rng, 20) {
                packet = packet.transport_byte(12, rng.u8(..));
            }
            packet.remote_port(port(rng)).local_port(port(rng))
        }
        4..=6 => {
            let packet = udp(&payload).remote_port(port(rng)).local_port(port(rng));
            if once_in(rng, 10) {
                packet.unsummed()
            } else {
                packet
            }
        }
        7 | 8 => {
            let kind = one(
                rng,
                &[0, 3, 5, 8, 11, 13, 18, 19, 128, 129, 133, 135, 136, 137],
            );
            icmp(kind, 0, [0; 4]).payload(&payload)
        }
        _ => other(one(rng, &[2, 4, 41, 47, 50, 58, 1, 59, 89, 132, 253, 255])),
    }
}

fn v4(rng: &mut Rng, mut packet: Packet) -> Packet {
    if once_in(rng, 4) {
        packet = packet.options(&vec![1; 4 * rng.usize(1..11)]);
    }
    if once_in(rng, 6) {
        packet = packet.fragment(one(rng, &[0, 0, 1, 9, 8_191]), rng.bool());
    }
    packet.remote(address4(rng)).local(address4(rng))
}

fn v6(rng: &mut Rng, packet: Packet) -> Packet {
    let mut packet = packet.v6();
    let kinds = [0, 43, 51, 60, 135, 139, 140];
    for _ in 0..one(rng, &[0, 0, 0, 1, 2, 3, 7, 8, 9]) {
        let length = 8 * one(rng, &[1, 1, 1, 2, 3, 12, 40]);
        packet = packet.extension(one(rng, &kinds), length.max(8));
        if once_in(rng, 8) {
            packet = packet.fragment(one(rng, &[0, 0, 1, 8_191]), rng.bool());
        }
    }
    packet.remote(address6(rng)).local(address6(rng))
}

/// An address near those that rules name, or anywhere.
pub(crate) fn address4(rng: &mut Rng) -> IpAddr {
    let base = one(
        rng,
        &[
            0x0800_0000,
            0x0800_0000,
            0x0800_0100,
            0x0801_0000,
            0x0a00_0000,
        ],
    );
    let address = match rng.u32(..8) {
        0 => rng.u32(..),
        1 => one(
            rng,
            &[0, 1, 0xe000_0001, 0xf000_0000, u32::MAX, 0x7f00_0001],
        ),
        _ => base + rng.u32(..16),
    };
    Ipv4Addr::from(address).into()
}

/// As [`address4`].
pub(crate) fn address6(rng: &mut Rng) -> IpAddr {
    let base = u128::from(REMOTE6) & !0xff;
    let address = match rng.u32(..8) {
        0 => rng.u128(..),
        1 => one(
            rng,
            &[
                0,
                1,
                0xff02 << 112,
                0xfe80 << 112 | 1,
                u128::MAX,
                0xffff_0800_0001,
            ],
        ),
        2 => base + (1 << 64) + rng.u128(..16),
        _ => base + rng.u128(..16),
    };
    Ipv6Addr::from(address).into()
}
