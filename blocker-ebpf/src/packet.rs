//! From bytes to a [`Packet`]: link header, network header, transport header.
//!
//! Two steps, so that a packet that no rule names pays for the first only: [`network`] finds the
//! network header and the address that rules name; [`Packet::read`] reads the rest. Every read is
//! bounded by [`Source::read`]; what cannot be read is a [`Odd`], and `docs/packet-flow.md` says
//! what becomes of each. All integers here are in host order.

use core::cell::Cell;

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_boot_ns, bpf_skb_pull_data};
use aya_ebpf::programs::{TcContext, XdpContext};
use blocker_ebpf::{Hook, Tick};

use crate::maps;

pub const TCP: u16 = 6;
pub const UDP: u16 = 17;
pub const ICMP: u16 = 1;
pub const ICMPV6: u16 = 58;
/// The protocol of a packet whose extension headers go past our bound, or hide in a fragment.
pub const UNKNOWN: u16 = 0xffff;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

const ETH_IPV4: u16 = 0x0800;
const ETH_IPV6: u16 = 0x86dd;
const ETH_8021Q: u16 = 0x8100;
const ETH_8021AD: u16 = 0x88a8;

/// Inline VLAN tags that are looked behind: one of QinQ's two is usually in the metadata.
const MAX_TAGS: u32 = 2;
/// IPv6 extension headers that are walked.
const MAX_EXTENSIONS: u32 = 8;
/// No header is looked for behind this offset; it also bounds what a reply cuts away.
pub const MAX_OFFSET: u32 = 248;

/// The most that is read of a header at [`MAX_OFFSET`].
const MAX_HEADER: u32 = 20;
/// Enough for a tagged IPv6 packet's headers with options: where so much is linear, all is well.
const USUAL_HEADERS: u32 = 128;

/// What a device puts in front of the network header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Ethernet,
    None,
}

/// Where a packet's bytes are.
pub trait Source {
    /// Reads a `T` at an offset from the packet's first byte; `None` past its end.
    fn read<T: Bytes>(&self, offset: u32) -> Option<T>;
    /// The packet's length in bytes.
    fn len(&self) -> u32;
    /// The EtherType as the stack knows it, for devices without a link header.
    fn ethertype(&self) -> u16;
    /// Whether the packet is to be segmented later, so that its IP length may not be its own.
    fn is_gso(&self) -> bool;
    /// The buffer's `tc_index`: a field that is traffic control's alone, is 0 at first, and goes with
    /// the packet from one device to the next. XDP has no buffer.
    fn tc_index(&self) -> Option<u16>;
    /// Sets it.
    fn set_tc_index(&self, number: u16);
}

/// Types that any bytes are a value of.
///
/// # Safety
/// The type has no padding, no invalid value, and an alignment of at most 2: packet data begins
/// at an even address, and every header's length is even.
pub unsafe trait Bytes: Copy {}

/// A big-endian 16-bit field.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Be16(u16);
/// A big-endian 32-bit field, aligned to 2.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Be32([u16; 2]);

impl Be16 {
    #[inline(always)]
    pub fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

impl Be32 {
    #[inline(always)]
    pub fn get(self) -> u32 {
        (u32::from(u16::from_be(self.0[0])) << 16) | u32::from(u16::from_be(self.0[1]))
    }
}

// SAFETY: made of u8 and u16, without padding.
unsafe impl Bytes for u8 {}
// SAFETY: as above.
unsafe impl Bytes for Be16 {}
// SAFETY: as above.
unsafe impl Bytes for Be32 {}
// SAFETY: as above.
unsafe impl Bytes for [u8; 2] {}
// SAFETY: as above.
unsafe impl Bytes for [u16; 6] {}
// SAFETY: as above.
unsafe impl Bytes for [u16; 8] {}
// SAFETY: as above.
unsafe impl Bytes for Ipv4 {}
// SAFETY: as above.
unsafe impl Bytes for Tcp {}

#[repr(C)]
#[derive(Clone, Copy)]
struct Ipv4 {
    version_length: u8,
    tos: u8,
    length: Be16,
    id: Be16,
    fragment: Be16,
    ttl: u8,
    protocol: u8,
    checksum: Be16,
    source: Be32,
    destination: Be32,
}

impl Ipv4 {
    #[inline(always)]
    fn header_length(&self) -> u32 {
        u32::from(self.version_length & 15) * 4
    }

    /// Bytes from the header, which is at `offset`, to the packet's end.
    #[inline(always)]
    fn length_in<S: Source>(&self, source: &S, offset: u32) -> Result<u32, Odd> {
        let there = source.len().saturating_sub(offset);
        let length = u32::from(self.length.get());
        // A GSO packet's own length may be 0 (BIG TCP); the buffer's length counts then.
        let length = if source.is_gso() || length == 0 || length > there {
            there
        } else {
            length
        };
        if length < self.header_length() {
            return Err(Odd::Malformed);
        }
        Ok(length)
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Tcp {
    source: Be16,
    destination: Be16,
    seq: Be32,
    ack: Be32,
    offset: u8,
    flags: u8,
}

impl Source for XdpContext {
    #[inline(always)]
    fn read<T: Bytes>(&self, offset: u32) -> Option<T> {
        linear(opaque(self.data()), opaque(self.data_end()), offset)
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        (opaque(self.data_end()) - opaque(self.data())) as u32
    }

    #[inline(always)]
    fn ethertype(&self) -> u16 {
        0
    }

    #[inline(always)]
    fn is_gso(&self) -> bool {
        false
    }

    #[inline(always)]
    fn tc_index(&self) -> Option<u16> {
        None
    }

    #[inline(always)]
    fn set_tc_index(&self, _number: u16) {}
}

impl Source for TcContext {
    #[inline(always)]
    fn read<T: Bytes>(&self, offset: u32) -> Option<T> {
        linear(opaque(self.data()), opaque(self.data_end()), offset)
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        self.skb.len()
    }

    #[inline(always)]
    fn ethertype(&self) -> u16 {
        // SAFETY: the context is valid for the program's run.
        u16::from_be(unsafe { (*self.skb.skb).protocol } as u16)
    }

    #[inline(always)]
    fn is_gso(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).gso_segs != 0 }
    }

    #[inline(always)]
    fn tc_index(&self) -> Option<u16> {
        // SAFETY: as above.
        Some(unsafe { (*self.skb.skb).tc_index } as u16)
    }

    #[inline(always)]
    fn set_tc_index(&self, number: u16) {
        // SAFETY: as above; a program may write the field.
        unsafe { (*self.skb.skb).tc_index = u32::from(number) };
    }
}

/// Sees to it that a buffer's headers are in its linear part, which is all that [`Source::read`]
/// reads. Mostly they are; some drivers leave all but the link header in fragments.
#[inline(always)]
pub fn linearize(ctx: &TcContext) {
    let linear = (opaque(ctx.data_end()) - opaque(ctx.data())) as u32;
    if linear < USUAL_HEADERS && linear < ctx.len() {
        // SAFETY: the context is valid; no packet pointer is kept across. That it may fail for
        // want of memory is no matter: what can't be read is malformed then.
        unsafe { bpf_skb_pull_data(ctx.skb.skb, ctx.len().min(MAX_OFFSET + MAX_HEADER)) };
    }
}

#[inline(always)]
fn linear<T: Bytes>(data: usize, end: usize, offset: u32) -> Option<T> {
    if offset > 1024 {
        return None;
    }
    let at = data + offset as usize;
    if opaque(at + size_of::<T>()) > end {
        return None;
    }
    // SAFETY: the bytes from `at` are inside the packet, and any bytes are a `T`; see `Bytes`.
    Some(unsafe { (at as *const T).read() })
}

/// The same number, of which the compiler knows nothing. It else compares against a lowered
/// `data_end`, on which the verifier allows no arithmetic, or cuts pointers to the 32 bits that
/// the context's fields have on paper.
#[inline(always)]
pub fn opaque(number: usize) -> usize {
    let mut number = number;
    // SAFETY: no instruction at all.
    unsafe {
        core::arch::asm!("/* {0} */", inout(reg) number, options(pure, nomem, nostack, preserves_flags))
    };
    number
}

/// An IPv6 address, or an IPv4 address mapped into one: network order, in the halves of words
/// that packet data is aligned to.
pub type Words = [u16; 8];

/// Why a packet has no address that a rule could name. It passes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Odd {
    /// Neither IPv4 nor IPv6.
    NotIp,
    /// A header is cut short, or contradicts itself.
    Malformed,
}

/// The address that rules name, for the lookup.
#[derive(Clone, Copy)]
pub enum Address {
    /// Host order.
    V4(u32),
    V6(Words),
}

/// Where the network header is, and the remote's address in it.
pub struct Network {
    pub offset: u32,
    pub remote: Address,
}

/// Finds the network header, and in it the source (ingress) or destination (egress).
#[inline(always)]
pub fn network<S: Source>(source: &S, hook: Hook, link: Link) -> Result<Network, Odd> {
    let (ethertype, offset) = match link {
        Link::None => (source.ethertype(), 0),
        Link::Ethernet => {
            let mut offset = 12;
            let mut ethertype = read::<_, Be16>(source, offset)?.get();
            for _ in 0..MAX_TAGS {
                if ethertype != ETH_8021Q && ethertype != ETH_8021AD {
                    break;
                }
                offset += 4;
                ethertype = read::<_, Be16>(source, offset)?.get();
            }
            (ethertype, offset + 2)
        }
    };
    let at_source = hook != Hook::Egress;
    match ethertype {
        ETH_IPV4 => {
            let header = read::<_, Ipv4>(source, offset)?;
            if header.version_length >> 4 != 4 || header.version_length & 15 < 5 {
                return Err(Odd::Malformed);
            }
            let address = if at_source {
                header.source
            } else {
                header.destination
            };
            Ok(Network {
                offset,
                remote: Address::V4(address.get()),
            })
        }
        ETH_IPV6 => {
            if read::<_, u8>(source, offset)? >> 4 != 6 {
                return Err(Odd::Malformed);
            }
            // Both addresses, so that a header cut short is found here.
            let from = read::<_, [u16; 8]>(source, offset + 8)?;
            let to = read::<_, [u16; 8]>(source, offset + 24)?;
            Ok(Network {
                offset,
                remote: Address::V6(if at_source { from } else { to }),
            })
        }
        _ => Err(Odd::NotIp),
    }
}

/// Whether nothing behind the addresses can keep a rule from dropping a packet: it is none that is
/// malformed further on, nor neighbour discovery ([`Packet::is_neighbour_discovery`]), by whose hop
/// limit few others come.
#[inline(always)]
pub fn is_plain<S: Source>(source: &S, network: &Network) -> bool {
    match network.remote {
        Address::V4(_) => source
            .read::<Ipv4>(network.offset)
            .is_some_and(|header| header.length_in(source, network.offset).is_ok()),
        Address::V6(_) => source
            .read::<u8>(network.offset + 7)
            .is_some_and(|hop_limit| hop_limit != 255),
    }
}

#[inline(always)]
fn read<S: Source, T: Bytes>(source: &S, offset: u32) -> Result<T, Odd> {
    source.read(offset).ok_or(Odd::Malformed)
}

/// What a packet is of a fragmented whole.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// All of it.
    Whole = 0,
    /// The first part: the transport header is here, the length is not.
    First,
    /// A later part: no transport header.
    Later,
}

/// All that rules and replies need of a packet. Addresses are v4-mapped for IPv4.
///
/// Zero bytes are a packet of which nothing is known.
#[repr(C, align(8))]
pub struct Packet {
    // The addresses are first: `write_addresses` and `addresses` rely on it.
    pub source: Words,
    pub destination: Words,
    /// Offset of the network header.
    pub l3: u32,
    /// Offset of the transport header; meaningless if `!ports` and the protocol is unknown.
    pub l4: u32,
    /// Bytes from the network header to the packet's end.
    pub length: u32,
    /// Sequence number of a TCP segment.
    pub seq: u32,
    /// Acknowledgment number of a TCP segment.
    pub ack: u32,
    pub source_port: u16,
    pub destination_port: u16,
    /// IP protocol of the transport header, or [`UNKNOWN`].
    pub protocol: u16,
    pub fragment: Fragment,
    pub v6: bool,
    /// Whether the port fields were read.
    pub ports: bool,
    /// Whether a whole TCP header was read.
    pub tcp: bool,
    /// TCP flags.
    pub flags: u8,
    /// SEG.LEN of RFC 9293 without SYN and FIN: bytes of TCP payload.
    pub payload: u32,
    /// First byte behind the IP header for ICMP: its type.
    pub icmp_type: u8,
    /// IPv6 hop limit.
    pub hop_limit: u8,
    time: Time,
}

/// The time.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes no arguments and can't fail.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// When a packet came, once somebody asked; 0 before.
struct Time(Cell<u64>);

// SAFETY: a packet is one CPU's own; see `maps::packet`.
unsafe impl Sync for Time {}

impl Packet {
    /// Reads the rest of a packet whose address a rule names, over what was read before.
    #[inline(always)]
    pub fn read<S: Source>(&mut self, source: &S, network: &Network) -> Result<(), Odd> {
        self.clear();
        self.l3 = network.offset;
        self.protocol = UNKNOWN;
        self.v6 = matches!(network.remote, Address::V6(_));
        if self.v6 {
            self.read_v6(source)?
        } else {
            self.read_v4(source)?
        }
        self.read_transport(source);
        Ok(())
    }

    /// Forgets the packet before, but for the addresses, which are always written.
    ///
    /// Word by word: of plain assignments the compiler makes calls of `memset`, which for BPF is a
    /// loop over single bytes, and takes longer than all the rest.
    #[inline(always)]
    fn clear(&mut self) {
        const WORDS: usize = size_of::<Packet>() / 8;
        const ADDRESSES: usize = 2 * size_of::<Words>() / 8;
        let words = core::ptr::from_mut(self).cast::<u64>();
        for word in ADDRESSES..WORDS {
            // SAFETY: inside the packet, which is aligned to 8; zero bytes are a packet.
            unsafe { words.add(word).write_volatile(0) };
        }
    }

    /// Writes both addresses, by halves; plain assignments become calls of `memset` and `memmove`, as
    /// in [`Self::clear`].
    #[inline(always)]
    fn write_addresses(&mut self, from: [u64; 2], to: [u64; 2]) {
        let words = core::ptr::from_mut(self).cast::<u64>();
        for (place, half) in [from[0], from[1], to[0], to[1]].into_iter().enumerate() {
            // SAFETY: the addresses are the first 32 bytes of the packet, which is aligned to 8.
            unsafe { words.add(place).write_volatile(half) };
        }
    }

    /// The addresses as words of 32 bits, as they are in memory: source, destination.
    #[inline(always)]
    pub fn addresses(&self) -> [[u32; 4]; 2] {
        // SAFETY: as in `write_addresses`; any bytes are numbers.
        unsafe { core::ptr::from_ref(self).cast::<[[u32; 4]; 2]>().read() }
    }

    #[inline(always)]
    fn read_v4<S: Source>(&mut self, source: &S) -> Result<(), Odd> {
        let header = read::<_, Ipv4>(source, self.l3)?;
        self.length = header.length_in(source, self.l3)?;
        self.write_addresses(mapped(header.source), mapped(header.destination));
        self.l4 = self.l3 + header.header_length();
        self.protocol = u16::from(header.protocol);
        let fragment = header.fragment.get();
        if fragment & 0x1fff != 0 {
            self.fragment = Fragment::Later;
        } else if fragment & 0x2000 != 0 {
            self.fragment = Fragment::First;
        }
        Ok(())
    }

    #[inline(always)]
    fn read_v6<S: Source>(&mut self, source: &S) -> Result<(), Odd> {
        let there = source.len().saturating_sub(self.l3);
        let length = u32::from(read::<_, Be16>(source, self.l3 + 4)?.get());
        self.length = if source.is_gso() || length == 0 || length + 40 > there {
            there
        } else {
            length + 40
        };
        let (from, to) = (read(source, self.l3 + 8)?, read(source, self.l3 + 24)?);
        self.write_addresses(halves(&from), halves(&to));
        let [next, hop_limit] = read::<_, [u8; 2]>(source, self.l3 + 6)?;
        self.hop_limit = hop_limit;
        let mut next = next;
        let mut offset = self.l3 + 40;
        // RFC 8200 section 4. What is not an extension header ends the walk.
        for _ in 0..MAX_EXTENSIONS {
            let step = match next {
                // Hop-by-hop, routing, destination options, mobility, HIP, shim6.
                0 | 43 | 60 | 135 | 139 | 140 => {
                    let Some([following, length]) = source.read::<[u8; 2]>(offset) else {
                        return Ok(());
                    };
                    next = following;
                    (u32::from(length) + 1) * 8
                }
                // Authentication header: its length counts 4 bytes (RFC 4302).
                51 => {
                    let Some([following, length]) = source.read::<[u8; 2]>(offset) else {
                        return Ok(());
                    };
                    next = following;
                    (u32::from(length) + 2) * 4
                }
                44 => {
                    let (Some([following, _]), Some(field)) = (
                        source.read::<[u8; 2]>(offset),
                        source.read::<Be16>(offset + 2),
                    ) else {
                        return Ok(());
                    };
                    next = following;
                    let field = field.get();
                    if field & 0xfff8 != 0 {
                        self.fragment = Fragment::Later;
                    } else if field & 1 != 0 {
                        self.fragment = Fragment::First;
                    }
                    8
                }
                protocol => {
                    self.protocol = u16::from(protocol);
                    self.l4 = offset;
                    return Ok(());
                }
            };
            offset += step;
            if self.fragment == Fragment::Later || offset > MAX_OFFSET {
                // In a later fragment, `next` begins the fragmented part, which is elsewhere.
                if !is_extension(next) {
                    self.protocol = u16::from(next);
                }
                return Ok(());
            }
        }
        if !is_extension(next) {
            self.protocol = u16::from(next);
            self.l4 = offset;
        }
        Ok(())
    }

    /// All ones if so many bytes of the transport header are of the IP packet, 0 if it ends before
    /// that, as where Ethernet pads. Arithmetic, since the verifier would walk all that follows once
    /// more for a branch.
    #[inline(always)]
    fn holds(&self, bytes: u32) -> u32 {
        let end = self.l3 + self.length;
        let beyond = end.wrapping_sub(self.l4 + bytes) >> 31;
        (opaque(beyond as usize) as u32).wrapping_sub(1)
    }

    #[inline(always)]
    fn read_transport<S: Source>(&mut self, source: &S) {
        if self.fragment == Fragment::Later || self.l4 == 0 {
            return;
        }
        match self.protocol {
            TCP | UDP => {
                let (Some(from), Some(to)) = (
                    source.read::<Be16>(self.l4),
                    source.read::<Be16>(self.l4 + 2),
                ) else {
                    return;
                };
                let there = self.holds(4);
                self.source_port = from.get() & there as u16;
                self.destination_port = to.get() & there as u16;
                self.ports = there != 0;
                if self.protocol == TCP
                    && let Some(header) = source.read::<Tcp>(self.l4)
                {
                    let before = self.l4 - self.l3 + u32::from(header.offset >> 4) * 4;
                    if header.offset >> 4 >= 5 && before <= self.length {
                        self.tcp = true;
                        self.flags = header.flags;
                        self.seq = header.seq.get();
                        self.ack = header.ack.get();
                        self.payload = self.length - before;
                    }
                }
            }
            ICMP | ICMPV6 => {
                let there = self.holds(1);
                self.icmp_type = source.read::<u8>(self.l4).unwrap_or(0xff) | !there as u8;
            }
            _ => {}
        }
    }

    /// When it came, exactly: `CLOCK_BOOTTIME`. Reading the clock takes as long as all counting, so
    /// it is read once, and not at all for a packet that no deadline depends on.
    #[inline(always)]
    pub fn clock(&self) -> u64 {
        let time = self.time.0.get();
        if time != 0 {
            return time;
        }
        let now = now();
        self.time.0.set(now);
        now
    }

    /// When it came, to a tick of the kernel's timer (1 to 10 ms), and never in the future: the first
    /// packet of each tick on each CPU reads the clock for all others.
    #[inline(always)]
    pub fn time(&self) -> u64 {
        let time = self.time.0.get();
        if time != 0 {
            return time;
        }
        let Some(tick) = maps::TICK.get_ptr_mut(0) else {
            return self.clock();
        };
        // SAFETY: the value is this CPU's own, and no other program of ours interrupts this one. The
        // helper takes no arguments and can't fail.
        let (tick, jiffies) = unsafe { (&mut *tick, bpf_jiffies64()) };
        if tick.jiffies != jiffies {
            *tick = Tick {
                jiffies,
                time: now(),
            };
        }
        tick.time
    }

    /// Whether it is a TCP segment with all of the given flags.
    #[inline(always)]
    pub fn has(&self, flags: u8) -> bool {
        self.tcp && self.flags & flags == flags
    }

    /// Neighbour solicitation or advertisement: IPv6's ARP, which passes as ARP does. RFC 4861
    /// demands a hop limit of 255, so that it can't come from beyond the link.
    #[inline(always)]
    pub fn is_neighbour_discovery(&self) -> bool {
        self.v6
            && self.protocol == ICMPV6
            && self.hop_limit == 255
            && (self.icmp_type == 135 || self.icmp_type == 136)
    }
}

/// IPv6 extension headers (RFC 8200 section 4, and IANA's "IPv6 Extension Header Types").
#[inline(always)]
fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

/// An IPv4 address, v4-mapped: its halves, as they are in memory.
#[inline(always)]
fn mapped(address: Be32) -> [u64; 2] {
    let Be32([high, low]) = address;
    [
        0,
        0xffff << 16 | u64::from(high) << 32 | u64::from(low) << 48,
    ]
}

/// An IPv6 address: its halves, as they are in memory.
#[inline(always)]
fn halves(address: &Words) -> [u64; 2] {
    let word = |place: usize| u64::from(address[place]);
    let half = |first: usize| {
        word(first) | word(first + 1) << 16 | word(first + 2) << 32 | word(first + 3) << 48
    };
    [half(0), half(4)]
}
