//! What is sent in answer to a packet: RSTs to both ends, or an ICMP error to the sender.
//!
//! A reply is made of the packet's own buffer, which keeps its device, VLAN tag and routing. Who
//! gets one is [`due`]'s question, the buffer [`buffer`](crate::buffer)'s. All byte order is in
//! this file's headers.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_skb_store_bytes;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::warn;
use blocker_ebpf::{Hook, mode};

use crate::buffer::check;
use crate::checksum::{self, Pseudo, add, between_one_and, fold, load, sum_of};
use crate::maps::{self, Scratch};
use crate::packet::{self, Link, Packet, Words};
use crate::{due, verdict};

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
    let is_due = if reset {
        due::resettable(packet)
    } else {
        due::reportable(packet)
    };
    if !is_due || !due::deliverable(&ctx, packet) {
        return Sent::default();
    }
    if reply.hook == Hook::Ingress && !checksum::holds(&ctx, packet) {
        return Sent::default();
    }
    if !due::within_rate(packet, reply.hook) {
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

/// Which end a RST is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
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
        let quoted = between_one_and(quoted, QUOTE_V6).ok_or(0)?;
        // SAFETY: the scratch holds `quoted` bytes.
        check(unsafe { bpf_skb_store_bytes(self.skb, offset, scratch.cast(), quoted, 0) })
    }

    #[inline(always)]
    fn ip_header(&self) -> u32 {
        if self.packet.v6 { 40 } else { 20 }
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

const _: () = assert!(size_of::<Scratch>() >= 2 * QUOTE_V6 as usize);
