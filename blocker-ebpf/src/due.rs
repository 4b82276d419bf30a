//! Whether a packet gets a reply: by RFC 9293 3.10.7.1, RFC 1122 3.2.2 and RFC 4443 2.4, as in the
//! kernel's `nf_reject_ipv4.c` and `nf_reject_ipv6.c`, and by the rate limit.

use aya_ebpf::programs::TcContext;
use blocker_ebpf::headers::{icmp, icmpv6, tcp};
use blocker_ebpf::{Hook, bucket};

use crate::packet::{self, Fragment, Packet, Words};
use crate::source::MAX_OFFSET;
use crate::{flow, maps, rate};

/// Whether a TCP segment's sender may be told that the connection is gone.
#[inline(always)]
pub fn resettable(packet: &Packet) -> bool {
    // Of a first fragment SEG.LEN is not known, which only a segment without ACK needs.
    packet.tcp
        && packet.flags & tcp::RST == 0
        && (packet.fragment == Fragment::Whole || packet.flags & tcp::ACK != 0)
}

/// Whether an ICMP error may be sent for a packet: not for an ICMP error, a later fragment, or a RST,
/// whose connection is gone already.
#[inline(always)]
pub fn reportable(packet: &Packet) -> bool {
    if packet.fragment == Fragment::Later || packet.l4 == 0 || packet.flags & tcp::RST != 0 {
        return false;
    }
    match packet.protocol {
        // Requests and replies; all other types are errors, or not from a peer.
        packet::ICMP if !packet.v6 => matches!(
            packet.icmp_type,
            icmp::ECHO_REPLY | icmp::ECHO | icmp::TIMESTAMP..=icmp::ADDRESS_MASK_REPLY
        ),
        packet::ICMPV6 if packet.v6 => {
            packet.icmp_type == icmpv6::ECHO || packet.icmp_type == icmpv6::ECHO_REPLY
        }
        _ => true,
    }
}

/// Whether the packet has one sender and one receiver: no broadcast, no multicast.
#[inline(always)]
pub fn deliverable(ctx: &TcContext, packet: &Packet) -> bool {
    // SAFETY: the context is valid for the program's run.
    let kind = unsafe { (*ctx.skb.skb).pkt_type };
    kind != PACKET_BROADCAST
        && kind != PACKET_MULTICAST
        && packet.l4 <= MAX_OFFSET
        && unicast(&packet.source, packet.v6)
        && unicast(&packet.destination, packet.v6)
}

/// Of `pkt_type`, from the kernel's `if_packet.h`.
const PACKET_BROADCAST: u32 = 1;
const PACKET_MULTICAST: u32 = 2;

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

/// Takes a token of the rate of replies, if there is one. A flow under teardown needs none: the daemon
/// bounds how many of those there are.
#[inline(always)]
pub fn within_rate(packet: &Packet, hook: Hook) -> bool {
    rate::take(
        bucket::REPLIES,
        maps::replies_per_second(),
        packet.arrival.coarse(),
    ) || flow::is_killed(&flow::key(packet, hook))
}
