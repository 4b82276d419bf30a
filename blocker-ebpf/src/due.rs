//! Who gets a reply at all: by RFC 9293 3.10.7.1, RFC 1122 3.2.2 and RFC 4443 2.4, as the kernel's
//! `nf_reject_ipv4.c` and `nf_reject_ipv6.c` do it; and how many, by the rate limit.

use aya_ebpf::programs::TcContext;
use blocker_ebpf::{Hook, bucket};

use crate::packet::{self, Fragment, MAX_OFFSET, Packet, Words};
use crate::{maps, rate, verdict};

/// A TCP segment whose sender may be told that the connection is gone.
#[inline(always)]
pub fn resettable(packet: &Packet) -> bool {
    // Of a first fragment SEG.LEN is not known, which only a segment without ACK needs.
    packet.tcp
        && packet.flags & packet::RST == 0
        && (packet.fragment == Fragment::Whole || packet.flags & packet::ACK != 0)
}

/// A packet that an ICMP error may be sent for: not an ICMP error itself, not a later fragment,
/// not a RST (its connection is gone already).
#[inline(always)]
pub fn reportable(packet: &Packet) -> bool {
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
pub fn deliverable(ctx: &TcContext, packet: &Packet) -> bool {
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
pub fn within_rate(packet: &Packet, hook: Hook) -> bool {
    rate::take(bucket::REPLIES, maps::replies_per_second(), packet.time())
        || maps::KILLS.get_ptr(verdict::flow(packet, hook)).is_some()
}
