//! What is sent in answer to a packet: RSTs to both ends, or an ICMP error to the sender.
//!
//! A reply is made of the packet's own buffer, which keeps its device, VLAN tag and routing.
//! [`due`] decides whether there is one; [`buffer`](crate::buffer) writes and sends it.

use aya_ebpf::helpers::bpf_skb_store_bytes;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::warn;
use blocker_ebpf::headers::{Be16, Be32, Icmp, Ipv4, Ipv6, Tcp, icmp, icmpv6, protocol, tcp};
use blocker_ebpf::{Hook, mode};

use crate::buffer::{Buffer, End, check};
use crate::checksum::{self, Pseudo, add, between_one_and, fold, load, sum_of};
use crate::maps::{self, Scratch};
use crate::packet::{self, Packet, Words};
use crate::{due, flow};

/// What was sent for a packet.
#[derive(Clone, Copy, Default)]
pub struct Sent {
    /// Packets sent.
    pub replies: u32,
    /// Whether the rate limit suppressed a reply.
    pub suppressed: bool,
    /// Whether the packet itself became the RST to its receiver, and is to go on.
    pub onward: bool,
}

const HOP_LIMIT: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;
/// The most of a packet that an ICMP error quotes: 576 bytes in all (RFC 1812 4.3.2.3).
const QUOTE_V4: u32 = 576 - (size_of::<Ipv4>() + size_of::<Icmp>()) as u32;
/// The most that an ICMPv6 error quotes: the least MTU (RFC 4443 2.4).
const QUOTE_V6: u32 = 1280 - (size_of::<Ipv6>() + size_of::<Icmp>()) as u32;

/// Answers a packet that a rule of mode `reset` or `reject` takes.
///
/// Where no reply is due, or it can't be made, nothing is sent, and the caller drops the packet.
///
/// A function of its own, not inlined: the stack of the hook's program has no room for headers.
#[inline(never)]
pub fn answer(reply: &Reply<'_>) -> Sent {
    let packet = reply.packet;
    let ctx = TcContext::new(reply.buffer.skb);
    let reset = reply.mode == mode::RESET && packet.protocol == packet::TCP;
    let is_due = if reset {
        due::resettable(packet)
    } else {
        due::reportable(packet)
    };
    if !is_due || !due::deliverable(&ctx, packet) {
        return Sent::default();
    }
    if reply.buffer.hook == Hook::Ingress && !checksum::is_right(&ctx, packet) {
        return Sent::default();
    }
    if !due::within_rate(packet, reply.buffer.hook) {
        return Sent {
            suppressed: true,
            ..Sent::default()
        };
    }
    let sent = if reset { reply.reset() } else { reply.report() };
    sent.unwrap_or_else(|error| {
        warn!(
            &ctx,
            "no reply on device {}: error {}", reply.buffer.ifindex, error
        );
        Sent::default()
    })
}

/// A header on the stack, aligned so that it is written by words.
#[repr(align(4))]
struct Aligned<T>(T);

/// A packet that is to be answered, its buffer, and the mode of the rule that decided it.
pub struct Reply<'a> {
    pub buffer: Buffer,
    pub packet: &'a Packet,
    pub mode: u8,
}

impl Reply<'_> {
    /// RST to the sender, and for a segment of an established flow to its receiver.
    #[inline(always)]
    fn reset(&self) -> Result<Sent, i32> {
        let packet = self.packet;
        let macs = self.buffer.macs()?;
        let l3 = self
            .buffer
            .resize(self.ip_header() + size_of::<Tcp>() as u32)?;
        let acknowledges = packet.flags & tcp::ACK != 0;
        // RFC 9293 3.5.2 group 1 and 3.10.7.1.
        let (seq, ack, flags) = if acknowledges {
            (packet.ack, 0, tcp::RST)
        } else {
            let controls =
                u32::from(packet.flags & tcp::SYN != 0) + u32::from(packet.flags & tcp::FIN != 0);
            (
                0,
                packet
                    .seq
                    .wrapping_add(packet.payload)
                    .wrapping_add(controls),
                tcp::RST | tcp::ACK,
            )
        };
        self.write_rst(l3, End::Sender, seq, ack, flags)?;
        self.buffer.write_macs(macs, End::Sender)?;
        self.buffer.send(End::Sender)?;
        let mut sent = Sent {
            replies: 1,
            ..Sent::default()
        };
        let hook = self.buffer.hook;
        let flow = flow::key(packet, hook);
        flow::note_reset(&flow, hook == Hook::Egress);
        if !acknowledges {
            return Ok(sent);
        }
        self.buffer.write_macs(macs, End::Receiver)?;
        let flags = tcp::RST | tcp::ACK;
        if packet.payload <= 1 && packet.flags & (tcp::SYN | tcp::FIN) == 0 {
            // It may be a keepalive, whose SEQ is one below what its receiver expects
            // (RFC 9293 3.8.4): a RST there would be dropped in silence.
            self.write_rst(
                l3,
                End::Receiver,
                packet.seq.wrapping_add(1),
                packet.ack,
                flags,
            )?;
            self.buffer.send(End::Receiver)?;
            sent.replies += 1;
        }
        self.write_rst(l3, End::Receiver, packet.seq, packet.ack, flags)?;
        sent.replies += 1;
        if self.buffer.inline_tags() == 0 {
            sent.onward = true;
        } else {
            // The metadata of a buffer whose tags were taken off and put back differs between
            // kernels (`skb_vlan_push`, `mac_len`): of a copy, the stack computes it anew.
            self.buffer.send(End::Receiver)?;
        }
        flow::note_reset(&flow, hook == Hook::Ingress);
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
        load(self.buffer.skb, packet.l3, scratch, quoted, QUOTE_V6).ok_or(0)?;
        let macs = self.buffer.macs()?;
        let ip = self.ip_header();
        let length = size_of::<Icmp>() as u32 + quoted;
        let l3 = self.buffer.resize(ip + length)?;

        let port_unreachable = self.mode == mode::RESET;
        let (kind, code, protocol, seed) = if packet.v6 {
            let code = if port_unreachable {
                icmpv6::PORT
            } else {
                icmpv6::PROHIBITED
            };
            let (from, to) = addresses(packet, End::Sender);
            let pseudo = Pseudo::new(from, to, length, protocol::ICMPV6);
            (icmpv6::UNREACHABLE, code, protocol::ICMPV6, pseudo.sum())
        } else {
            let code = if port_unreachable {
                icmp::PORT
            } else {
                icmp::PROHIBITED
            };
            (icmp::UNREACHABLE, code, protocol::ICMP, 0)
        };
        let mut icmp = Aligned(Icmp {
            kind,
            code,
            checksum: 0,
            unused: Be32::new(0),
        });
        let sum = sum_of(&icmp.0, seed);
        icmp.0.checksum = !fold(self.sum_quote(scratch, quoted, sum).ok_or(0)?);

        self.write_ip(l3, End::Sender, length, protocol)?;
        self.buffer.store(l3 + ip, &icmp.0)?;
        self.store_quote(l3 + ip + size_of::<Icmp>() as u32, scratch, quoted)?;
        self.buffer.write_macs(macs, End::Sender)?;
        self.buffer.send(End::Sender)?;
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
        check(unsafe { bpf_skb_store_bytes(self.buffer.skb, offset, scratch.cast(), quoted, 0) })
    }

    #[inline(always)]
    fn ip_header(&self) -> u32 {
        (if self.packet.v6 {
            size_of::<Ipv6>()
        } else {
            size_of::<Ipv4>()
        }) as u32
    }

    /// Writes the IP header of `length` bytes to an end of the flow.
    #[inline(always)]
    fn write_ip(&self, l3: u32, end: End, length: u32, protocol: u8) -> Result<(), i32> {
        let packet = self.packet;
        let (source, destination) = addresses(packet, end);
        if packet.v6 {
            let header = Aligned(Ipv6 {
                version: [6 << 4, 0, 0, 0],
                length: Be16::new(length as u16),
                next: protocol,
                hop_limit: HOP_LIMIT,
                source: *source,
                destination: *destination,
            });
            self.buffer.store(l3, &header.0)
        } else {
            let mut header = Aligned(Ipv4 {
                version_length: 4 << 4 | 5,
                tos: 0,
                length: Be16::new((length + self.ip_header()) as u16),
                id: Be16::new(0),
                fragment: Be16::new(DONT_FRAGMENT),
                ttl: HOP_LIMIT,
                protocol,
                checksum: 0,
                source: v4(source),
                destination: v4(destination),
            });
            header.0.checksum = !fold(sum_of(&header.0, 0));
            self.buffer.store(l3, &header.0)
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
        const LENGTH: u32 = size_of::<Tcp>() as u32;
        let mut tcp = Aligned(Tcp {
            source: Be16::new(from),
            destination: Be16::new(to),
            seq: Be32::new(seq),
            ack: Be32::new(ack),
            offset: 5 << 4,
            flags,
            window: Be16::new(0),
            checksum: 0,
            urgent: Be16::new(0),
        });
        let pseudo = Pseudo::new(source, destination, LENGTH, protocol::TCP).sum();
        tcp.0.checksum = !fold(sum_of(&tcp.0, pseudo));
        self.write_ip(l3, end, LENGTH, protocol::TCP)?;
        self.buffer.store(l3 + self.ip_header(), &tcp.0)
    }
}

/// Source and destination of a packet to an end of the flow.
#[inline(always)]
fn addresses(packet: &Packet, end: End) -> (&Words, &Words) {
    match end {
        End::Sender => (&packet.destination, &packet.source),
        End::Receiver => (&packet.source, &packet.destination),
    }
}

#[inline(always)]
fn v4(mapped: &Words) -> Be32 {
    Be32 {
        raw: [mapped[6], mapped[7]],
    }
}

const _: () = assert!(size_of::<Scratch>() >= 2 * QUOTE_V6 as usize);
