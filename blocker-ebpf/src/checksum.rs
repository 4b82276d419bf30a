//! One's-complement sums (RFC 1071): of headers that are written, and of packets that come in.

use core::mem::offset_of;

use aya_ebpf::bindings::{__sk_buff, BPF_CSUM_LEVEL_QUERY};
use aya_ebpf::helpers::{bpf_csum_diff, bpf_csum_level, bpf_skb_load_bytes};
use aya_ebpf::programs::TcContext;
use blocker_ebpf::headers::{Icmp, Tcp, Udp};
use blocker_ebpf::{Plain, plain};

use crate::maps;
use crate::packet::{self, Fragment, Packet, Words};
use crate::source::{Source, opaque};

/// Whether an incoming packet's transport checksum is right, as far as it can be known here.
///
/// A reply to a corrupt segment would carry a sequence number that nobody sent. A device that
/// verified it says so; a sender on this machine (veth, tap) leaves only the pseudo-header's sum,
/// which the device would complete; a GSO packet was verified when its segments were merged.
#[inline(always)]
pub fn is_right(ctx: &TcContext, packet: &Packet) -> bool {
    let at = match packet.protocol {
        packet::TCP => offset_of!(Tcp, checksum),
        packet::UDP => offset_of!(Udp, checksum),
        packet::ICMP if !packet.v6 => offset_of!(Icmp, checksum),
        packet::ICMPV6 if packet.v6 => offset_of!(Icmp, checksum),
        _ => return true,
    } as u32;
    if packet.fragment != Fragment::Whole || ctx.is_gso() {
        return true;
    }
    // SAFETY: the context is valid; the query changes nothing.
    if unsafe { bpf_csum_level(ctx.skb.skb, u64::from(BPF_CSUM_LEVEL_QUERY)) } >= 0 {
        return true;
    }
    let length = packet.length.saturating_sub(packet.l4 - packet.l3);
    if at + 2 > length {
        return false;
    }
    let Some(field) = ctx.read::<u16>(packet.l4 + at) else {
        return false;
    };
    if packet.protocol == packet::UDP && field == 0 && !packet.v6 {
        return true;
    }
    if packet.protocol == packet::ICMP {
        // ICMP's covers no pseudo-header (RFC 792).
        return sum_packet(ctx, packet.l4, length, 0).is_some_and(|sum| fold(sum) == 0xffff);
    }
    let pseudo = Pseudo::new(
        &packet.source,
        &packet.destination,
        length,
        packet.protocol as u8,
    )
    .sum();
    fold(pseudo) == field
        || sum_packet(ctx, packet.l4, length, pseudo).is_some_and(|sum| fold(sum) == 0xffff)
}

/// The one's-complement sum of bytes of the packet, added to a seed.
#[inline(always)]
fn sum_packet(ctx: &TcContext, offset: u32, length: u32, seed: u32) -> Option<u32> {
    /// `bpf_csum_diff` took at most 512 bytes before Linux 6.13.
    const CHUNK: u32 = 512;
    /// More than a jumbo frame; a longer packet gets no reply.
    const CHUNKS: u32 = 20;
    let scratch = maps::SCRATCH.get_ptr_mut(0)?.cast::<u8>();
    let mut sum = seed;
    for chunk in 0..CHUNKS {
        let done = chunk * CHUNK;
        if done >= length {
            return Some(sum);
        }
        let take = (length - done).min(CHUNK);
        // The bytes that pad the last chunk to whole words must be zero.
        // SAFETY: `take` is at most 512, so four bytes from its last word are inside.
        unsafe { scratch.add((take & 0x3fc) as usize).cast::<u32>().write(0) };
        load(ctx.skb.skb, offset + done, scratch, take, CHUNK)?;
        sum = add(sum, scratch, (take + 3) & 0x3fc, CHUNK)?;
    }
    if length <= CHUNKS * CHUNK {
        Some(sum)
    } else {
        None
    }
}

/// Loads `length` bytes, at least 1 and at most `most`, in a way that the verifier can follow.
#[inline(always)]
pub fn load(skb: *mut __sk_buff, offset: u32, to: *mut u8, length: u32, most: u32) -> Option<()> {
    let length = between_one_and(length, most)?;
    // SAFETY: callers give a buffer of at least `most` bytes.
    let result = unsafe { bpf_skb_load_bytes(skb.cast(), offset, to.cast(), length) };
    (result == 0).then_some(())
}

/// The same number, if it is at least 1 and at most `most`, in a way that the verifier can follow.
///
/// Opaque, since the verifier must be shown even what the compiler knows of the number already. The
/// number less one is compared, in 64 bits: before Linux 6.8 the verifier learnt nothing from a
/// comparison with 0 (seen on 5.10 and 6.1), and the compiler turns one with 1 into one with 0.
#[inline(always)]
pub fn between_one_and(number: u32, most: u32) -> Option<u32> {
    let less = opaque((number as usize).wrapping_sub(1));
    if less >= most as usize {
        return None;
    }
    Some(less as u32 + 1)
}

/// The sum of `length` bytes, at most `most` and a multiple of 4, added to a seed.
#[inline(always)]
pub fn add(seed: u32, from: *mut u8, length: u32, most: u32) -> Option<u32> {
    let length = opaque(length as usize) as u32;
    if length > most {
        return None;
    }
    // SAFETY: callers give a buffer of at least `most` bytes.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, from.cast(), length, seed) };
    (sum >= 0).then_some(sum as u32)
}

/// A one's-complement sum folded to 16 bits, as it lies in memory.
#[inline(always)]
pub fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

plain! {
    /// The pseudo-header of RFC 8200 8.1. For IPv4 the mapped addresses give the same sum as RFC
    /// 9293 3.1's: the two `0xffff` that they add are zero in one's complement.
    pub struct Pseudo {
        pub source: Words,
        pub destination: Words,
        pub length: u32,
        pub protocol: u32,
    }
}

impl Pseudo {
    #[inline(always)]
    pub fn new(source: &Words, destination: &Words, length: u32, protocol: u8) -> Self {
        Self {
            source: *source,
            destination: *destination,
            length: length.to_be(),
            protocol: u32::from(protocol).to_be(),
        }
    }

    #[inline(always)]
    pub fn sum(&self) -> u32 {
        sum_of(self, 0)
    }
}

/// The one's-complement sum of a header, added to a seed.
#[inline(always)]
pub fn sum_of<T: Plain>(header: &T, seed: u32) -> u32 {
    const { assert!(size_of::<T>().is_multiple_of(4)) };
    let from = core::ptr::from_ref(header).cast_mut();
    // SAFETY: the header is on the stack, and initialised.
    unsafe {
        bpf_csum_diff(
            core::ptr::null_mut(),
            0,
            from.cast(),
            size_of::<T>() as u32,
            seed,
        ) as u32
    }
}
