//! The packets: 64 bytes of Ethernet, IPv4 and TCP, and the addresses they come from.

use std::collections::HashSet;
use std::net::Ipv4Addr;

/// Length of a frame.
pub(crate) const LENGTH: usize = 64;
/// How many addresses there are that are not blocked.
const OUTSIDE: usize = 1_000;

/// A TCP segment with ACK set.
pub(crate) fn frame(source: Ipv4Addr, destination: Ipv4Addr) -> [u8; LENGTH] {
    let mut frame = [0; LENGTH];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let ip = &mut frame[14..34];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&[0, (LENGTH - 14) as u8]);
    ip[8] = 64;
    ip[9] = 6;
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..20].copy_from_slice(&destination.octets());
    let mut sum: u32 = ip
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    ip[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let tcp = &mut frame[34..54];
    tcp[0..4].copy_from_slice(&[0x9c, 0x40, 0x01, 0xbb]); // 40000 to 443
    tcp[12] = 5 << 4;
    tcp[13] = 0x10; // ACK
    frame
}

/// Random addresses that are blocked, and some that are not.
pub(crate) struct Addresses {
    /// Those of the rule.
    pub(crate) blocked: Vec<Ipv4Addr>,
    /// Others.
    pub(crate) outside: Vec<Ipv4Addr>,
}

impl Addresses {
    /// So many blocked ones: the same at every run.
    pub(crate) fn new(blocked: u32) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut seen = HashSet::new();
        let mut next = move || loop {
            // xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift
            // generators, scrambled").
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let bits = (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32;
            let address = Ipv4Addr::from_bits(bits);
            // Unicast, and not this network: what a stack would take from a wire.
            if (1..224).contains(&address.octets()[0])
                && address.octets()[0] != 127
                && seen.insert(bits)
            {
                return address;
            }
        };
        let blocked = (0..blocked).map(|_| next()).collect();
        let outside = (0..OUTSIDE).map(|_| next()).collect();
        Self { blocked, outside }
    }
}
