//! From bytes to a [`Packet`]: link header, network header, transport header.
//!
//! Two steps, so that a packet that no rule names pays for the first only: [`network`] finds the
//! network header and the address that rules name; [`Packet::read`] reads the rest. What cannot be
//! read is [`Unreadable`]; `docs/packet-flow.md` says what is done with each malformed packet. All
//! integers here are in host order.

use core::mem::offset_of;

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use blocker_ebpf::headers::{
    self, Be16, Be32, Ethernet, Ipv4, Ipv6, Tcp, Vlan, ethertype, icmpv6, is_extension, protocol,
};
use blocker_ebpf::{Hook, Plain, UNKNOWN_PROTOCOL};

use crate::clock::Arrival;
use crate::source::{Link, MAX_OFFSET, Source, opaque};

// Protocols as packets and rules have them: wide enough for numbers that are no protocol's.
pub const TCP: u16 = protocol::TCP as u16;
pub const UDP: u16 = protocol::UDP as u16;
pub const ICMP: u16 = protocol::ICMP as u16;
pub const ICMPV6: u16 = protocol::ICMPV6 as u16;

/// VLAN tags in the packet's bytes that are skipped. Of QinQ's two, one is usually in the buffer's
/// metadata.
const MAX_TAGS: u32 = 2;
/// IPv6 extension headers that are walked.
const MAX_EXTENSIONS: u32 = 8;

#[map]
static PACKET: PerCpuArray<Packet> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's packet. In a map, not on the stack: the stack has little room, and the verifier
/// forgets here what it learnt while parsing, so that all ways through the headers meet again.
#[inline(always)]
pub fn current() -> Option<&'static mut Packet> {
    // SAFETY: the value is this CPU's own. Programs of ours nest only where a reply of ours meets
    // a hook of ours, which lets it pass by its mark before it asks for the packet.
    PACKET.get_ptr_mut(0).map(|packet| unsafe { &mut *packet })
}

/// An IPv6 address, or an IPv4 address mapped into one: network order, in the halves of words
/// that packet data is aligned to.
pub type Words = [u16; 8];

/// Why a packet has no address that a rule could name. It passes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
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

/// Where the network header is, and whose.
///
/// Without the address, which only the lookup needs: the stack has no room for it after that.
pub struct Network {
    pub offset: u32,
    pub v6: bool,
}

/// Finds the network header, and in it the source (ingress) or destination (egress).
#[inline(always)]
pub fn network<S: Source>(
    source: &S,
    hook: Hook,
    link: Link,
) -> Result<(Network, Address), Unreadable> {
    let (ethertype, offset) = match link {
        Link::None => (source.ethertype(), 0),
        Link::Ethernet => {
            let mut offset = size_of::<Ethernet>() as u32;
            let mut ethertype = read::<_, Ethernet>(source, 0)?.ethertype.get();
            for _ in 0..MAX_TAGS {
                if ethertype != ethertype::VLAN && ethertype != ethertype::SERVICE_VLAN {
                    break;
                }
                ethertype = read::<_, Vlan>(source, offset)?.ethertype.get();
                offset += size_of::<Vlan>() as u32;
            }
            (ethertype, offset)
        }
    };
    let at_source = hook != Hook::Egress;
    match ethertype {
        ethertype::IPV4 => {
            let header = read::<_, Ipv4>(source, offset)?;
            if header.version() != 4 || header.header_length() < size_of::<Ipv4>() as u32 {
                return Err(Unreadable::Malformed);
            }
            let address = if at_source {
                header.source
            } else {
                header.destination
            };
            Ok((Network { offset, v6: false }, Address::V4(address.get())))
        }
        ethertype::IPV6 => {
            if read::<_, u8>(source, offset)? >> 4 != 6 {
                return Err(Unreadable::Malformed);
            }
            // Both addresses, so that a header cut short is found here.
            let from = read(source, offset + offset_of!(Ipv6, source) as u32)?;
            let to = read(source, offset + offset_of!(Ipv6, destination) as u32)?;
            let address = Address::V6(if at_source { from } else { to });
            Ok((Network { offset, v6: true }, address))
        }
        _ => Err(Unreadable::NotIp),
    }
}

/// Whether a packet is known by its network header alone to be neither malformed further on nor
/// neighbour discovery ([`Packet::is_neighbour_discovery`]), so that a rule that drops everything
/// drops it. A hop limit of 255 is rare but for neighbour discovery.
#[inline(always)]
pub fn is_settled_by_address<S: Source>(source: &S, network: &Network) -> bool {
    if network.v6 {
        source
            .read::<Ipv6>(network.offset)
            .is_some_and(|header| header.hop_limit != HOP_LIMIT_OF_THE_LINK)
    } else {
        source
            .read::<Ipv4>(network.offset)
            .is_some_and(|header| length_v4(&header, source, network.offset).is_ok())
    }
}

/// The hop limit of what no router has forwarded (RFC 4861 section 3.1).
const HOP_LIMIT_OF_THE_LINK: u8 = 255;

/// Bytes from an IPv4 header, which is at `offset`, to the packet's end.
#[inline(always)]
fn length_v4<S: Source>(header: &Ipv4, source: &S, offset: u32) -> Result<u32, Unreadable> {
    let present = source.len().saturating_sub(offset);
    let length = u32::from(header.length.get());
    // A GSO packet's own length may be 0 (BIG TCP); the buffer's length counts then.
    let length = if source.is_gso() || length == 0 || length > present {
        present
    } else {
        length
    };
    if length < header.header_length() {
        return Err(Unreadable::Malformed);
    }
    Ok(length)
}

#[inline(always)]
fn read<S: Source, T: Plain>(source: &S, offset: u32) -> Result<T, Unreadable> {
    source.read(offset).ok_or(Unreadable::Malformed)
}

/// Which part of a fragmented packet this is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// The packet is not fragmented.
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
    /// Offset of the transport header; 0 if it is out of reach.
    pub l4: u32,
    /// Bytes from the network header to the packet's end.
    pub length: u32,
    /// Sequence number of a TCP segment.
    pub seq: u32,
    /// Acknowledgment number of a TCP segment.
    pub ack: u32,
    pub source_port: u16,
    pub destination_port: u16,
    /// IP protocol of the transport header, or [`UNKNOWN_PROTOCOL`].
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
    /// When it came.
    pub arrival: Arrival,
}

impl Packet {
    /// Reads the rest of a packet whose address a rule names, over what was read before.
    #[inline(always)]
    pub fn read<S: Source>(&mut self, source: &S, network: &Network) -> Result<(), Unreadable> {
        self.clear();
        self.l3 = network.offset;
        self.protocol = UNKNOWN_PROTOCOL;
        self.v6 = network.v6;
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
    /// Word by word: the compiler makes plain assignments into calls of `memset`, which for BPF is
    /// a loop over single bytes, and takes longer than all the rest.
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

    /// Writes both addresses, by halves, for the reason given at [`Self::clear`].
    #[inline(always)]
    fn write_addresses(&mut self, from: [u64; 2], to: [u64; 2]) {
        let words = core::ptr::from_mut(self).cast::<u64>();
        for (index, half) in [from[0], from[1], to[0], to[1]].into_iter().enumerate() {
            // SAFETY: the addresses are the first 32 bytes of the packet, which is aligned to 8.
            unsafe { words.add(index).write_volatile(half) };
        }
    }

    /// The addresses as words of 32 bits, as they are in memory: source, destination.
    #[inline(always)]
    pub fn addresses(&self) -> [[u32; 4]; 2] {
        // SAFETY: as in `write_addresses`; any bytes are numbers.
        unsafe { core::ptr::from_ref(self).cast::<[[u32; 4]; 2]>().read() }
    }

    #[inline(always)]
    fn read_v4<S: Source>(&mut self, source: &S) -> Result<(), Unreadable> {
        let header = read::<_, Ipv4>(source, self.l3)?;
        self.length = length_v4(&header, source, self.l3)?;
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
    fn read_v6<S: Source>(&mut self, source: &S) -> Result<(), Unreadable> {
        const HEADER: u32 = size_of::<Ipv6>() as u32;
        let present = source.len().saturating_sub(self.l3);
        // Field by field: read as one header, its addresses take stack that the TC programs lack, or the
        // verifier of Linux 5.10 takes too many steps.
        let length: Be16 = read(source, self.l3 + offset_of!(Ipv6, length) as u32)?;
        let length = u32::from(length.get());
        self.length = if source.is_gso() || length == 0 || length + HEADER > present {
            present
        } else {
            length + HEADER
        };
        let from = read(source, self.l3 + offset_of!(Ipv6, source) as u32)?;
        let to = read(source, self.l3 + offset_of!(Ipv6, destination) as u32)?;
        self.write_addresses(halves(&from), halves(&to));
        let [mut next, hop_limit] = read(source, self.l3 + offset_of!(Ipv6, next) as u32)?;
        self.hop_limit = hop_limit;
        let mut offset = self.l3 + HEADER;
        // RFC 8200 section 4. What is not an extension header ends the walk.
        for _ in 0..MAX_EXTENSIONS {
            let step = match next {
                protocol::HOP_BY_HOP
                | protocol::ROUTING
                | protocol::DESTINATION_OPTIONS
                | protocol::MOBILITY
                | protocol::HIP
                | protocol::SHIM6 => {
                    let Some(extension) = source.read::<headers::Extension>(offset) else {
                        return Ok(());
                    };
                    next = extension.next;
                    (u32::from(extension.length) + 1) * 8
                }
                // Its length counts words of 4 bytes (RFC 4302 2.2).
                protocol::AUTHENTICATION => {
                    let Some(extension) = source.read::<headers::Extension>(offset) else {
                        return Ok(());
                    };
                    next = extension.next;
                    (u32::from(extension.length) + 2) * 4
                }
                protocol::FRAGMENT => {
                    let Some(fragment) = source.read::<headers::Fragment>(offset) else {
                        return Ok(());
                    };
                    next = fragment.next;
                    let field = fragment.offset.get();
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
    /// that, as where Ethernet pads. Arithmetic, since a branch would make the verifier walk all
    /// that follows once more.
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
                // Both begin with the ports.
                let Some([from, to]) = source.read::<[Be16; 2]>(self.l4) else {
                    return;
                };
                let mask = self.holds(size_of::<[Be16; 2]>() as u32);
                self.source_port = from.get() & mask as u16;
                self.destination_port = to.get() & mask as u16;
                self.ports = mask != 0;
                if self.protocol == TCP
                    && let Some(header) = source.read::<Tcp>(self.l4)
                {
                    let before = self.l4 - self.l3 + header.header_length();
                    if header.header_length() >= size_of::<Tcp>() as u32 && before <= self.length {
                        self.tcp = true;
                        self.flags = header.flags;
                        self.seq = header.seq.get();
                        self.ack = header.ack.get();
                        self.payload = self.length - before;
                    }
                }
            }
            ICMP | ICMPV6 => {
                let mask = self.holds(1);
                self.icmp_type = source.read::<u8>(self.l4).unwrap_or(0xff) | !mask as u8;
            }
            _ => {}
        }
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
            && self.hop_limit == HOP_LIMIT_OF_THE_LINK
            && (self.icmp_type == icmpv6::NEIGHBOUR_SOLICITATION
                || self.icmp_type == icmpv6::NEIGHBOUR_ADVERTISEMENT)
    }
}

/// An IPv4 address, v4-mapped: its halves, as they are in memory.
#[inline(always)]
fn mapped(address: Be32) -> [u64; 2] {
    let [high, low] = address.raw;
    [
        0,
        0xffff << 16 | u64::from(high) << 32 | u64::from(low) << 48,
    ]
}

/// An IPv6 address: its halves, as they are in memory.
#[inline(always)]
fn halves(address: &Words) -> [u64; 2] {
    let word = |index: usize| u64::from(address[index]);
    let half = |first: usize| {
        word(first) | word(first + 1) << 16 | word(first + 2) << 32 | word(first + 3) << 48
    };
    [half(0), half(4)]
}
