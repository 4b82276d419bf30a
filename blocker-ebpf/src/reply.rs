//! What is sent in answer to a packet: RSTs to both ends, or an ICMP error to the sender.
//!
//! A reply is made of the packet's own buffer, which keeps its device, VLAN tag and routing. Who
//! gets no reply follows RFC 9293 3.10.7.1, RFC 1122 3.2.2 and RFC 4443 2.4, as the kernel's
//! `nf_reject_ipv4.c` and `nf_reject_ipv6.c` do. All byte order is in this file's headers.

use aya_ebpf::bindings::{
    __sk_buff, BPF_CSUM_LEVEL_QUERY, BPF_F_INGRESS, BPF_F_INVALIDATE_HASH,
    bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::{
    bpf_clone_redirect, bpf_csum_diff, bpf_csum_level, bpf_ktime_get_boot_ns, bpf_skb_adjust_room,
    bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_skb_vlan_pop,
    bpf_skb_vlan_push,
};
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::warn;
use blocker_ebpf::{BURST_NANOSECONDS, Hook, mode};

use crate::maps::{self, Scratch};
use crate::packet::{self, Fragment, Link, MAX_OFFSET, Packet, Source, Words, opaque};
use crate::verdict;

/// What was sent for a packet.
#[derive(Clone, Copy, Default)]
pub struct Sent {
    /// Packets sent.
    pub replies: u32,
    /// Whether the rate limit kept a reply back.
    pub suppressed: bool,
    /// Whether the packet itself became the RST to its receiver, and is to go on.
    pub onward: bool,
}

const HOP_LIMIT: u8 = 64;
/// Length of an Ethernet header without tags.
const ETHERNET: u32 = 14;
/// Bytes that are cut from behind the link header, see [`resize`].
const CUT: u32 = 256;
const _: () = assert!(CUT - LAST_CUT > MAX_OFFSET);
const LAST_CUT: u32 = 4;
/// The most of a packet that an ICMP error quotes: 576 bytes in all (RFC 1812 4.3.2.3).
const QUOTE_V4: u32 = 576 - 28;
/// The most that an ICMPv6 error quotes: the least MTU (RFC 4443 2.4).
const QUOTE_V6: u32 = 1280 - 48;

/// Answers a packet that a rule of mode `reset` or `reject` takes.
///
/// Where no reply is due, or none can be made, nothing is sent and the packet is to be dropped.
///
/// A function of its own, not inlined: the stack of the hook's program has no room for headers.
#[inline(never)]
pub fn answer(reply: &Reply<'_>) -> Sent {
    let packet = reply.packet;
    let ctx = TcContext::new(reply.skb);
    let reset = reply.mode == mode::RESET && packet.protocol == packet::TCP;
    let due = if reset {
        resettable(packet)
    } else {
        reportable(packet)
    };
    if !due || !deliverable(&ctx, packet) {
        return Sent::default();
    }
    if reply.hook == Hook::Ingress && !checksum_holds(&ctx, packet) {
        return Sent::default();
    }
    if !within_rate(packet, reply.hook) {
        return Sent {
            suppressed: true,
            ..Sent::default()
        };
    }
    let sent = if reset { reply.reset() } else { reply.report() };
    sent.unwrap_or_else(|error| {
        warn!(
            &ctx,
            "no reply on device {}: error {}", reply.ifindex, error
        );
        Sent::default()
    })
}

/// A TCP segment whose sender may be told that the connection is gone.
#[inline(always)]
fn resettable(packet: &Packet) -> bool {
    // Of a first fragment SEG.LEN is not known, which only a segment without ACK needs.
    packet.tcp
        && packet.flags & packet::RST == 0
        && (packet.fragment == Fragment::Whole || packet.flags & packet::ACK != 0)
}

/// A packet that an ICMP error may be sent for: not an ICMP error itself, not a later fragment,
/// not a RST (its connection is gone already).
#[inline(always)]
fn reportable(packet: &Packet) -> bool {
    if packet.fragment == Fragment::Later || packet.l4 == 0 || packet.flags & packet::RST != 0 {
        return false;
    }
    match packet.protocol {
        // Requests and replies; the rest are errors, or nothing a peer asks.
        packet::ICMP if !packet.v6 => matches!(packet.icmp_type, 0 | 8 | 13..=18),
        packet::ICMPV6 if packet.v6 => packet.icmp_type == 128 || packet.icmp_type == 129,
        _ => true,
    }
}

/// Whether a reply has one sender to go to, and the packet was for one receiver.
#[inline(always)]
fn deliverable(ctx: &TcContext, packet: &Packet) -> bool {
    // PACKET_BROADCAST, PACKET_MULTICAST. SAFETY: the context is valid for the program's run.
    let kind = unsafe { (*ctx.skb.skb).pkt_type };
    kind != 1
        && kind != 2
        && packet.l4 <= MAX_OFFSET
        && unicast(&packet.source, packet.v6)
        && unicast(&packet.destination, packet.v6)
}

#[inline(always)]
fn unicast(address: &Words, v6: bool) -> bool {
    if v6 {
        // Multicast is ff00::/8; the unspecified address is all zeros.
        u16::from_be(address[0]) >> 8 != 0xff && *address != [0; 8]
    } else {
        // 0.0.0.0/8 is no sender (RFC 6890); 224.0.0.0/4 and above are groups or reserved.
        (1..224).contains(&(u16::from_be(address[6]) >> 8))
    }
}

/// Takes a token, if there is one. A flow under teardown needs none: the daemon bounds those.
#[inline(always)]
fn within_rate(packet: &Packet, hook: Hook) -> bool {
    let Some(bucket) = maps::BUCKET.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the value is this CPU's own, and no other program of ours interrupts this one.
    let bucket = unsafe { &mut *bucket };
    // SAFETY: the helper takes no arguments and can't fail.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let rate = maps::replies_per_second();
    let idle = now.saturating_sub(bucket.filled).min(BURST_NANOSECONDS);
    let fresh = idle * rate / 1_000_000_000;
    if fresh > 0 {
        bucket.tokens = (bucket.tokens + fresh).min(rate);
        bucket.filled = now;
    }
    if bucket.tokens > 0 {
        bucket.tokens -= 1;
        return true;
    }
    maps::KILLS.get_ptr(&verdict::flow(packet, hook)).is_some()
}

/// Whether an incoming packet's transport checksum is right, as far as it can be known here.
///
/// A reply to a corrupt segment would kill a flow by a number that nobody sent. A device that
/// verified it says so; a sender on this machine (veth, tap) leaves only the pseudo-header's sum,
/// which the device would complete; a GSO packet was verified when its segments were merged.
#[inline(always)]
fn checksum_holds(ctx: &TcContext, packet: &Packet) -> bool {
    let at = match packet.protocol {
        packet::TCP => 16,
        packet::UDP => 6,
        packet::ICMP if !packet.v6 => 2,
        packet::ICMPV6 if packet.v6 => 2,
        _ => return true,
    };
    if packet.fragment != Fragment::Whole || ctx.is_gso() {
        return true;
    }
    // SAFETY: the context is valid; the query changes nothing.
    if unsafe { bpf_csum_level(ctx.skb.skb, u64::from(BPF_CSUM_LEVEL_QUERY)) } >= 0 {
        return true;
    }
    let Some(field) = ctx.read::<[u8; 2]>(packet.l4 + at) else {
        return false;
    };
    let field = u16::from_ne_bytes(field);
    if packet.protocol == packet::UDP && field == 0 && !packet.v6 {
        return true;
    }
    let length = packet.length.saturating_sub(packet.l4 - packet.l3);
    if packet.protocol == packet::ICMP {
        // It covers no pseudo-header (RFC 792).
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
    /// More than a jumbo frame; what is longer gets no reply.
    const CHUNKS: u32 = 20;
    let scratch = maps::SCRATCH.get_ptr_mut(0)?.cast::<u8>();
    let mut sum = seed;
    for chunk in 0..CHUNKS {
        let done = chunk * CHUNK;
        if done >= length {
            return Some(sum);
        }
        let take = (length - done).min(CHUNK);
        // What pads the last chunk to whole words must be zero.
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
fn load(skb: *mut __sk_buff, offset: u32, to: *mut u8, length: u32, most: u32) -> Option<()> {
    // Opaque: what the compiler knows of the length already, the verifier must still be shown.
    let length = opaque(length as usize) as u32;
    if length == 0 || length > most {
        return None;
    }
    // SAFETY: callers give a buffer of at least `most` bytes.
    let result = unsafe { bpf_skb_load_bytes(skb.cast(), offset, to.cast(), length) };
    (result == 0).then_some(())
}

#[inline(always)]
fn add(seed: u32, from: *mut u8, length: u32, most: u32) -> Option<u32> {
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
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The pseudo-header of RFC 8200 8.1. For IPv4 the mapped addresses give the same sum as RFC
/// 9293 3.1's: the two `0xffff` that they add are zero in one's complement.
#[repr(C, align(4))]
struct Pseudo {
    source: Words,
    destination: Words,
    length: u32,
    protocol: u32,
}

impl Pseudo {
    #[inline(always)]
    fn new(source: &Words, destination: &Words, length: u32, protocol: u8) -> Self {
        Self {
            source: *source,
            destination: *destination,
            length: length.to_be(),
            protocol: u32::from(protocol).to_be(),
        }
    }

    #[inline(always)]
    fn sum(&self) -> u32 {
        sum_of(self, 0)
    }
}

/// The one's-complement sum of a header, added to a seed.
#[inline(always)]
fn sum_of<T>(header: &T, seed: u32) -> u32 {
    let from = core::ptr::from_ref(header).cast_mut();
    // SAFETY: the header is on the stack, initialised, and a multiple of 4 bytes long.
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

#[repr(C, align(4))]
struct Ipv4Header {
    version_length: u8,
    tos: u8,
    length: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    source: [u16; 2],
    destination: [u16; 2],
}

#[repr(C, align(4))]
struct Ipv6Header {
    version: [u8; 4],
    length: u16,
    next: u8,
    hop_limit: u8,
    source: Words,
    destination: Words,
}

#[repr(C, align(4))]
struct TcpHeader {
    source: u16,
    destination: u16,
    seq: u32,
    ack: u32,
    offset: u8,
    flags: u8,
    window: u16,
    checksum: u16,
    urgent: u16,
}

#[repr(C, align(4))]
struct IcmpHeader {
    kind: u8,
    code: u8,
    checksum: u16,
    unused: u32,
}

/// VLAN tags that were taken off a packet: EtherType and control information, network order.
#[derive(Clone, Copy)]
struct Tags {
    /// How many were inline.
    inline: u32,
    /// Whether one more, the outermost, was in the buffer's metadata.
    aside: bool,
    outer: [u16; 2],
    /// The first inline one.
    second: [u16; 2],
}

impl Tags {
    /// Whether both `outer` and `second` are lost: of three tags only the innermost is left.
    #[inline(always)]
    fn both(&self) -> bool {
        self.aside && self.inline == 2
    }
}

/// Which end a RST is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Whoever sent the packet.
    Sender,
    /// Whoever was to get it.
    Receiver,
}

/// A packet that is to be answered: what it is, where it was met, by which mode of rule.
pub struct Reply<'a> {
    pub skb: *mut __sk_buff,
    pub packet: &'a Packet,
    pub mode: u8,
    pub hook: Hook,
    pub link: Link,
    pub ifindex: u32,
}

impl Reply<'_> {
    /// RST to the sender, and for a segment of an established flow to its receiver.
    #[inline(always)]
    fn reset(&self) -> Result<Sent, i32> {
        let packet = self.packet;
        let macs = self.macs()?;
        let l3 = self.resize(self.ip_header() + 20)?;
        let acknowledges = packet.flags & packet::ACK != 0;
        // RFC 9293 3.5.2 group 1 and 3.10.7.1.
        let (seq, ack, flags) = if acknowledges {
            (packet.ack, 0, packet::RST)
        } else {
            let controls = u32::from(packet.flags & packet::SYN != 0)
                + u32::from(packet.flags & packet::FIN != 0);
            (
                0,
                packet
                    .seq
                    .wrapping_add(packet.payload)
                    .wrapping_add(controls),
                packet::RST | packet::ACK,
            )
        };
        self.write_rst(l3, End::Sender, seq, ack, flags)?;
        self.write_macs(macs, End::Sender)?;
        self.send(End::Sender)?;
        let mut sent = Sent {
            replies: 1,
            ..Sent::default()
        };
        let flow = verdict::flow(packet, self.hook);
        verdict::note(&flow, self.hook == Hook::Egress);
        if !acknowledges {
            return Ok(sent);
        }
        self.write_macs(macs, End::Receiver)?;
        let flags = packet::RST | packet::ACK;
        if packet.payload <= 1 && packet.flags & (packet::SYN | packet::FIN) == 0 {
            // It may be a keepalive, whose SEQ is one below what its receiver expects
            // (RFC 9293 3.8.4): a RST there would be dropped in silence.
            self.write_rst(
                l3,
                End::Receiver,
                packet.seq.wrapping_add(1),
                packet.ack,
                flags,
            )?;
            self.send(End::Receiver)?;
            sent.replies += 1;
        }
        self.write_rst(l3, End::Receiver, packet.seq, packet.ack, flags)?;
        sent.replies += 1;
        if self.inline_tags() == 0 {
            sent.onward = true;
        } else {
            // The stack's notes on a buffer whose tags were taken off and put on again differ from
            // kernel to kernel (`skb_vlan_push`, `mac_len`): a copy is read afresh.
            self.send(End::Receiver)?;
        }
        verdict::note(&flow, self.hook == Hook::Ingress);
        Ok(sent)
    }

    /// An ICMP or ICMPv6 destination unreachable to the sender.
    #[inline(always)]
    fn report(&self) -> Result<Sent, i32> {
        let packet = self.packet;
        let most = if packet.v6 { QUOTE_V6 } else { QUOTE_V4 };
        let quoted = packet.length.min(most);
        let scratch = maps::SCRATCH.get_ptr_mut(0).ok_or(0)?.cast::<u8>();
        // SAFETY: `quoted` is at most 1,232; the last word's four bytes are inside.
        unsafe {
            scratch
                .add((quoted & 0x7fc) as usize)
                .cast::<u32>()
                .write(0)
        };
        load(self.skb, packet.l3, scratch, quoted, QUOTE_V6).ok_or(0)?;
        let macs = self.macs()?;
        let ip = self.ip_header();
        let length = 8 + quoted;
        let l3 = self.resize(ip + length)?;

        let port_unreachable = self.mode == mode::RESET;
        let mut icmp = IcmpHeader {
            kind: 3,
            code: if port_unreachable { 3 } else { 13 },
            checksum: 0,
            unused: 0,
        };
        let mut sum = 0;
        if packet.v6 {
            icmp.kind = 1;
            icmp.code = if port_unreachable { 4 } else { 1 };
            sum = Pseudo::new(
                &packet.destination,
                &packet.source,
                length,
                packet::ICMPV6 as u8,
            )
            .sum();
        }
        sum = sum_of(&icmp, sum);
        sum = self.sum_quote(scratch, quoted, sum).ok_or(0)?;
        icmp.checksum = !fold(sum);

        let protocol = if packet.v6 {
            packet::ICMPV6
        } else {
            packet::ICMP
        };
        self.write_ip(l3, End::Sender, length, protocol as u8)?;
        self.store(l3 + ip, &icmp)?;
        self.store_quote(l3 + ip + 8, scratch, quoted)?;
        self.write_macs(macs, End::Sender)?;
        self.send(End::Sender)?;
        Ok(Sent {
            replies: 1,
            ..Sent::default()
        })
    }

    #[inline(always)]
    fn sum_quote(&self, scratch: *mut u8, quoted: u32, seed: u32) -> Option<u32> {
        const CHUNK: u32 = 512;
        let mut sum = seed;
        let mut done = 0;
        for _ in 0..QUOTE_V6.div_ceil(CHUNK) {
            let take = ((quoted.saturating_sub(done) + 3) & !3).min(CHUNK);
            if take == 0 {
                break;
            }
            // SAFETY: `done` is a multiple of 512 below 1,536, the scratch has 4,096 bytes.
            sum = add(
                sum,
                unsafe { scratch.add(done as usize) },
                take & 0x3fc,
                CHUNK,
            )?;
            done += CHUNK;
        }
        Some(sum)
    }

    #[inline(always)]
    fn store_quote(&self, offset: u32, scratch: *mut u8, quoted: u32) -> Result<(), i32> {
        let quoted = opaque(quoted as usize) as u32;
        if quoted == 0 || quoted > QUOTE_V6 {
            return Err(0);
        }
        // SAFETY: the scratch holds `quoted` bytes.
        check(unsafe { bpf_skb_store_bytes(self.skb, offset, scratch.cast(), quoted, 0) })
    }

    #[inline(always)]
    fn ip_header(&self) -> u32 {
        if self.packet.v6 { 40 } else { 20 }
    }

    /// Makes the buffer exactly `length` bytes behind the link header, to be written anew, with
    /// no checksum left to anybody else.
    ///
    /// A buffer may say that the device is to complete the transport checksum (`CHECKSUM_PARTIAL`
    /// with an offset), which would spoil whatever reply stands at that offset. There is no helper
    /// to ask or to say otherwise; but the kernel gives the promise up when the data before the
    /// offset is pulled away (`skb_postpull_rcsum`). So the buffer is made `CUT` bytes too long,
    /// and they are cut from its front, behind the link header. In two cuts: before Linux 6.2 the
    /// offset was looked at before the cut (commit 54c3f1a81421). Changing the tail also ends GSO.
    /// Gives the offset of the network header, which moves where an inline VLAN tag becomes the
    /// one in the buffer's metadata.
    #[inline(always)]
    fn resize(&self, length: u32) -> Result<u32, i32> {
        let skb = self.skb;
        let l3 = match self.link {
            Link::Ethernet => ETHERNET,
            Link::None => 0,
        };
        let tags = self.take_tags()?;
        // SAFETY: the context is valid; lengths are bounded; no packet pointer is kept across.
        unsafe {
            check(bpf_skb_change_tail(skb, l3 + length + CUT, 0))?;
            check(bpf_skb_adjust_room(
                skb,
                -((CUT - LAST_CUT) as i32),
                BPF_ADJ_ROOM_MAC,
                0,
            ))?;
            check(bpf_skb_adjust_room(
                skb,
                -(LAST_CUT as i32),
                BPF_ADJ_ROOM_MAC,
                0,
            ))?;
        }
        Ok(l3 + 4 * self.put_tags(tags)?)
    }

    /// VLAN tags that stand in the packet itself.
    #[inline(always)]
    fn inline_tags(&self) -> u32 {
        match self.link {
            Link::Ethernet => self.packet.l3.saturating_sub(ETHERNET) / 4,
            Link::None => 0,
        }
    }

    /// Takes inline VLAN tags off, as `bpf_skb_adjust_room` takes nothing but IP behind the link
    /// header. What is left of them is at most the innermost, in the buffer's metadata: popping
    /// the tag there moves the first inline one to its place (`skb_vlan_pop`).
    #[inline(always)]
    fn take_tags(&self) -> Result<Tags, i32> {
        let mut tags = Tags {
            inline: self.inline_tags(),
            aside: false,
            outer: [0; 2],
            second: [0; 2],
        };
        if tags.inline == 0 {
            return Ok(tags);
        }
        self.load_tag(&mut tags.second)?;
        tags.outer = tags.second;
        // SAFETY: the context is valid for the program's run.
        unsafe {
            if (*self.skb).vlan_present != 0 {
                tags.aside = true;
                tags.outer = [
                    (*self.skb).vlan_proto as u16,
                    ((*self.skb).vlan_tci as u16).to_be(),
                ];
            }
        }
        // SAFETY: as above; no packet pointer is kept across.
        check(unsafe { bpf_skb_vlan_pop(self.skb) })?;
        if tags.both() {
            // SAFETY: as above.
            check(unsafe { bpf_skb_vlan_pop(self.skb) })?;
        }
        Ok(tags)
    }

    /// Puts back the tags that were taken off, and says how many are inline now.
    #[inline(always)]
    fn put_tags(&self, tags: Tags) -> Result<u32, i32> {
        if tags.inline == 0 {
            return Ok(0);
        }
        if tags.both() {
            self.push(tags.second)?;
        }
        self.push(tags.outer)?;
        Ok(if tags.aside {
            tags.inline
        } else {
            tags.inline - 1
        })
    }

    #[inline(always)]
    fn load_tag(&self, tag: &mut [u16; 2]) -> Result<(), i32> {
        // SAFETY: four bytes on the stack.
        check(unsafe { bpf_skb_load_bytes(self.skb.cast(), 12, tag.as_mut_ptr().cast(), 4) })
    }

    #[inline(always)]
    fn push(&self, [ethertype, control]: [u16; 2]) -> Result<(), i32> {
        // SAFETY: the context is valid; no packet pointer is kept across.
        check(unsafe { bpf_skb_vlan_push(self.skb, ethertype, u16::from_be(control)) })
    }

    #[inline(always)]
    fn macs(&self) -> Result<[u16; 6], i32> {
        let mut macs = [0_u16; 6];
        if self.link == Link::Ethernet {
            // SAFETY: twelve bytes on the stack.
            check(unsafe { bpf_skb_load_bytes(self.skb.cast(), 0, macs.as_mut_ptr().cast(), 12) })?;
        }
        Ok(macs)
    }

    #[inline(always)]
    fn write_macs(&self, macs: [u16; 6], end: End) -> Result<(), i32> {
        if self.link == Link::None {
            return Ok(());
        }
        let [a, b, c, d, e, f] = macs;
        let macs = if end == End::Sender {
            [d, e, f, a, b, c]
        } else {
            macs
        };
        self.store(0, &macs)
    }

    /// The IP header in front of `length` bytes: from the packet's receiver to its sender, or on.
    #[inline(always)]
    fn write_ip(&self, l3: u32, end: End, length: u32, protocol: u8) -> Result<(), i32> {
        let packet = self.packet;
        let (source, destination) = addresses(packet, end);
        if packet.v6 {
            let header = Ipv6Header {
                version: [0x60, 0, 0, 0],
                length: (length as u16).to_be(),
                next: protocol,
                hop_limit: HOP_LIMIT,
                source: *source,
                destination: *destination,
            };
            self.store(l3, &header)
        } else {
            let mut header = Ipv4Header {
                version_length: 0x45,
                tos: 0,
                length: ((length + 20) as u16).to_be(),
                id: 0,
                fragment: 0x4000_u16.to_be(),
                ttl: HOP_LIMIT,
                protocol,
                checksum: 0,
                source: v4(source),
                destination: v4(destination),
            };
            header.checksum = !fold(sum_of(&header, 0));
            self.store(l3, &header)
        }
    }

    #[inline(always)]
    fn write_rst(&self, l3: u32, end: End, seq: u32, ack: u32, flags: u8) -> Result<(), i32> {
        let packet = self.packet;
        let (source, destination) = addresses(packet, end);
        let (from, to) = match end {
            End::Sender => (packet.destination_port, packet.source_port),
            End::Receiver => (packet.source_port, packet.destination_port),
        };
        let mut tcp = TcpHeader {
            source: from.to_be(),
            destination: to.to_be(),
            seq: seq.to_be(),
            ack: ack.to_be(),
            offset: 5 << 4,
            flags,
            window: 0,
            checksum: 0,
            urgent: 0,
        };
        let pseudo = Pseudo::new(source, destination, 20, packet::TCP as u8).sum();
        tcp.checksum = !fold(sum_of(&tcp, pseudo));
        self.write_ip(l3, end, 20, packet::TCP as u8)?;
        self.store(l3 + self.ip_header(), &tcp)
    }

    #[inline(always)]
    fn store<T>(&self, offset: u32, header: &T) -> Result<(), i32> {
        let from = core::ptr::from_ref(header).cast();
        let size = size_of::<T>() as u32;
        // SAFETY: the header is on the stack, initialised, without padding.
        check(unsafe {
            bpf_skb_store_bytes(
                self.skb,
                offset,
                from,
                size,
                u64::from(BPF_F_INVALIDATE_HASH),
            )
        })
    }

    /// Sends a copy of the buffer, marked as ours: back out of the device that it came in by, or
    /// into the stack by the device that it was to leave by; on is the other way round.
    #[inline(always)]
    fn send(&self, end: End) -> Result<(), i32> {
        let inward = (self.hook == Hook::Egress) == (end == End::Sender);
        let flags = if inward { u64::from(BPF_F_INGRESS) } else { 0 };
        // SAFETY: the context is valid for the program's run.
        unsafe {
            let mark = (*self.skb).mark;
            (*self.skb).mark = maps::mark();
            let result = bpf_clone_redirect(self.skb, self.ifindex, flags);
            (*self.skb).mark = mark;
            check(result)
        }
    }
}

#[inline(always)]
fn addresses(packet: &Packet, end: End) -> (&Words, &Words) {
    match end {
        End::Sender => (&packet.destination, &packet.source),
        End::Receiver => (&packet.source, &packet.destination),
    }
}

#[inline(always)]
fn v4(mapped: &Words) -> [u16; 2] {
    [mapped[6], mapped[7]]
}

#[inline(always)]
fn check(result: i64) -> Result<(), i32> {
    if result == 0 {
        Ok(())
    } else {
        Err(result as i32)
    }
}

const _: () = assert!(size_of::<Scratch>() >= 2 * QUOTE_V6 as usize);
