//! A flood of small packets from many sources, generated in the kernel.
//!
//! A tiny XDP program is run on live frames (`BPF_F_TEST_XDP_ON_LIVE_FRAMES`): it takes the next
//! source address from an array, writes it into the frame and redirects the frame to the sender's
//! veth. A packet costs the sender some 100 ns, without a socket or an `sk_buff`, and the receiver's
//! driver gets the frame as from a wire.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::addresses::Family;
use crate::bpf::{Map, Program};

/// Length of a frame.
const LENGTH: usize = 64;
/// Frames in a batch: as many as a driver's NAPI poll takes.
const BATCH: u32 = 64;
/// Frames in a call: enough to make the allocation and freeing of the frames negligible.
const CALL: u32 = 1 << 18;
/// Length of the Ethernet header.
const ETHERNET: usize = 14;
/// The MAC address of the receiver's device.
pub(super) const RECEIVER: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The program and its frame.
pub(super) struct Generator {
    program: Program,
    frame: [u8; LENGTH],
    // The program holds references, too; these show what it needs.
    _maps: [Map; 2],
}

impl Generator {
    /// A flood from these sources through a device of this thread's network namespace. The number of
    /// sources is a power of two.
    ///
    /// # Errors
    /// The kernel refuses the maps or the program.
    pub(super) fn new(family: Family, sources: &[IpAddr], ifindex: u32) -> Result<Self> {
        let values: Vec<[u8; 16]> = sources.iter().map(|source| value(*source)).collect();
        let table = Map::array(&values).context("the array of source addresses")?;
        let counter = Map::array(&[[0; 16]]).context("the counter of packets")?;
        let mask = u32::try_from(values.len())? - 1;
        let code = code(family, ifindex, &counter, &table, mask);
        let program = Program::load(&code).context("the generator")?;
        Ok(Self {
            program,
            frame: frame(family),
            _maps: [counter, table],
        })
    }

    /// Floods for some time from the calling thread; returns the number of packets sent.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn flood(&self, time: Duration) -> Result<u64> {
        let end = Instant::now() + time;
        let mut sent = 0;
        while Instant::now() < end {
            self.program.emit(&self.frame, CALL, BATCH)?;
            sent += u64::from(CALL);
        }
        Ok(sent)
    }
}

/// UDP without options, to an unreachable destination: 0.0.0.1 is invalid, 2001:db8::1 has a
/// blackhole route. So the receiver's stack drops passed packets as early as possible.
fn frame(family: Family) -> [u8; LENGTH] {
    let mut frame = [0; LENGTH];
    frame[..6].copy_from_slice(&RECEIVER);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    let udp = match family {
        Family::V4 => {
            frame[12..14].copy_from_slice(&[0x08, 0x00]);
            frame[ETHERNET..][..20].copy_from_slice(&ipv4([0; 4], 0));
            ETHERNET + 20
        }
        Family::V6 => {
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            let ip = &mut frame[ETHERNET..][..40];
            ip[0] = 0x60;
            ip[5] = (LENGTH - ETHERNET - 40) as u8;
            ip[6] = 17;
            ip[7] = 64;
            ip[24..28].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
            ip[39] = 1;
            ETHERNET + 40
        }
    };
    frame[udp..udp + 4].copy_from_slice(&[0x9c, 0x40, 0x01, 0xbb]); // 40000 to 443
    frame[udp + 5] = (LENGTH - udp) as u8;
    frame
}

fn ipv4(source: [u8; 4], checksum: u16) -> [u8; 20] {
    let mut ip = [0; 20];
    ip[0] = 0x45;
    ip[3] = (LENGTH - ETHERNET) as u8;
    ip[8] = 64;
    ip[9] = 17;
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    ip[12..16].copy_from_slice(&source);
    ip[19] = 1;
    ip
}

/// The checksum of a header (RFC 1071).
fn sum(header: &[u8]) -> u16 {
    let words = header.chunks(2);
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A source's entry in the array: the address and, for IPv4, the header's checksum.
fn value(source: IpAddr) -> [u8; 16] {
    match source {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(v4) => {
            let mut value = [0; 16];
            value[..4].copy_from_slice(&v4.octets());
            let checksum = !sum(&ipv4(v4.octets(), 0));
            value[4..6].copy_from_slice(&checksum.to_be_bytes());
            value
        }
    }
}

// Opcodes as in Documentation/bpf/standardization/instruction-set.rst.
const LOAD_WORD: u8 = 0x61;
const LOAD_HALF: u8 = 0x69;
const LOAD_DOUBLE: u8 = 0x79;
const STORE_WORD: u8 = 0x63;
const STORE_HALF: u8 = 0x6b;
const STORE_DOUBLE: u8 = 0x7b;
const STORE_WORD_IMMEDIATE: u8 = 0x62;
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const ADD_IMMEDIATE: u8 = 0x07;
const AND_IMMEDIATE: u8 = 0x57;
const JUMP_IF_GREATER: u8 = 0x2d;
const JUMP_IF_ZERO: u8 = 0x15;
const CALL_HELPER: u8 = 0x85;
const EXIT: u8 = 0x95;
const LOAD_MAP: u8 = 0x18;
const PSEUDO_MAP_FD: u8 = 1;
const MAP_LOOKUP: u32 = 1;
const REDIRECT: u32 = 23;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: u32) -> u64 {
    u64::from(code)
        | (u64::from(to) << 8)
        | (u64::from(from) << 12)
        | (u64::from(offset.cast_unsigned()) << 16)
        | (u64::from(immediate) << 32)
}

/// Loads the frame's start into r7 and its end into r8; if the frame is short, skips `exit` further
/// instructions.
fn bounds(skip: i16) -> [u64; 5] {
    [
        instruction(LOAD_WORD, 7, 1, 0, 0), // xdp_md.data
        instruction(LOAD_WORD, 8, 1, 4, 0), // xdp_md.data_end
        instruction(MOVE, 1, 7, 0, 0),
        instruction(ADD_IMMEDIATE, 1, 0, 0, LENGTH as u32),
        instruction(JUMP_IF_GREATER, 1, 8, skip, 0),
    ]
}

/// The program.
fn code(family: Family, ifindex: u32, counter: &Map, table: &Map, mask: u32) -> Vec<u64> {
    /// The key's offset on the stack.
    const KEY: i16 = -4;

    // r0 = the value of the key on the stack; without one, skips `exit` instructions.
    let lookup = |map: &Map, exit: i16| {
        [
            instruction(MOVE, 2, 10, 0, 0),
            instruction(ADD_IMMEDIATE, 2, 0, 0, i32::from(KEY).cast_unsigned()),
            instruction(LOAD_MAP, 1, PSEUDO_MAP_FD, 0, map.number()),
            0, // its second half
            instruction(CALL_HELPER, 0, 0, 0, MAP_LOOKUP),
            instruction(JUMP_IF_ZERO, 0, 0, exit, 0),
        ]
    };
    // Copies a part of the value into the frame, which r7 points to.
    let copy = |load: u8, store: u8, from: i16, to: i16| {
        [
            instruction(load, 1, 0, from, 0),
            instruction(store, 7, 1, to, 0),
        ]
    };
    let write = match family {
        Family::V4 => [
            copy(LOAD_WORD, STORE_WORD, 0, ETHERNET as i16 + 12),
            copy(LOAD_HALF, STORE_HALF, 4, ETHERNET as i16 + 10),
        ],
        Family::V6 => [
            copy(LOAD_DOUBLE, STORE_DOUBLE, 0, ETHERNET as i16 + 8),
            copy(LOAD_DOUBLE, STORE_DOUBLE, 8, ETHERNET as i16 + 16),
        ],
    };
    let redirect = [
        instruction(MOVE_IMMEDIATE, 1, 0, 0, ifindex),
        instruction(MOVE_IMMEDIATE, 2, 0, 0, 0),
        instruction(CALL_HELPER, 0, 0, 0, REDIRECT),
        instruction(EXIT, 0, 0, 0, 0),
    ];
    let count = [
        instruction(LOAD_DOUBLE, 1, 0, 0, 0),
        instruction(MOVE, 2, 1, 0, 0),
        instruction(ADD_IMMEDIATE, 2, 0, 0, 1),
        instruction(STORE_DOUBLE, 0, 2, 0, 0),
        instruction(AND_IMMEDIATE, 1, 0, 0, mask),
        instruction(STORE_WORD, 10, 1, KEY, 0),
    ];
    let after_second = 4 + redirect.len() as i16;
    let after_first = count.len() as i16 + 6 + after_second;
    let after_bounds = 1 + 6 + after_first;
    let mut code = Vec::new();
    code.extend(bounds(after_bounds));
    code.push(instruction(STORE_WORD_IMMEDIATE, 10, 0, KEY, 0));
    code.extend(lookup(counter, after_first));
    code.extend(count);
    code.extend(lookup(table, after_second));
    code.extend(write.iter().flatten());
    code.extend(redirect);
    code.push(instruction(MOVE_IMMEDIATE, 0, 0, 0, XDP_DROP));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

/// An XDP program that drops everything: two instructions.
///
/// # Errors
/// The kernel refuses it.
pub(super) fn drop_all() -> Result<Program> {
    let code = [
        instruction(MOVE_IMMEDIATE, 0, 0, 0, XDP_DROP),
        instruction(EXIT, 0, 0, 0, 0),
    ];
    Program::load(&code).context("a program that drops everything")
}

/// An XDP program that reads the source address, and drops or passes the packet unless the address
/// begins with zeros. It touches what any filter has to touch of a packet, and nothing else.
///
/// # Errors
/// The kernel refuses it.
pub(super) fn read(family: Family, drop: bool) -> Result<Program> {
    let (action, other) = if drop {
        (XDP_DROP, XDP_PASS)
    } else {
        (XDP_PASS, XDP_DROP)
    };
    let source = match family {
        Family::V4 => ETHERNET + 12,
        Family::V6 => ETHERNET + 8,
    };
    let mut code = bounds(4).to_vec();
    code.extend([
        instruction(LOAD_WORD, 1, 7, source as i16, 0),
        instruction(MOVE_IMMEDIATE, 0, 0, 0, action),
        instruction(JUMP_IF_ZERO, 1, 0, 1, 0),
        instruction(EXIT, 0, 0, 0, 0),
        instruction(MOVE_IMMEDIATE, 0, 0, 0, other),
        instruction(EXIT, 0, 0, 0, 0),
    ]);
    Program::load(&code).context("a program that reads an address")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_header_with_its_source() {
        let source = [198, 51, 100, 7];
        let value = value(IpAddr::from(source));
        let checksum = u16::from_be_bytes([value[4], value[5]]);
        assert_eq!(sum(&ipv4(source, checksum)), 0xffff);
        assert_eq!(value[..4], source);
    }
}
