//! The programs: each finds the rule that decides a packet, does what the rule's mode says, counts
//! and records it.

use aya_ebpf::programs::{TcContext, XdpContext};
use aya_log_ebpf::debug;
use blocker_ebpf::headers::{Vlan, tcp};
use blocker_ebpf::{Hook, flag, mode, verdict as number};

use crate::buffer::Buffer;
use crate::packet::{self, Unreadable};
use crate::record::record;
use crate::reply::{self, Reply, Sent};
use crate::source::{self, Link, Source};
use crate::verdict::{self, Decided, count_hook, count_rule};
use crate::{flow, maps, matches};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
/// Both `TCX_NEXT` and `TC_ACT_UNSPEC`: other programs on the hook get the packet.
/// `TC_ACT_OK` would end the chain.
const NEXT: i32 = -1;
/// Both `TCX_DROP` and `TC_ACT_SHOT`.
const SHOT: i32 = 2;

/// The XDP program: settles what is dropped without a reply, leaves the rest to TC.
#[inline(always)]
pub fn xdp(ctx: &XdpContext) -> u32 {
    // SAFETY: the context is valid for the program's run.
    let ifindex = unsafe { (*ctx.ctx).ingress_ifindex };
    let named = match matches::find(ctx, Hook::Xdp, Link::Ethernet) {
        Ok(Some(named)) => named,
        Ok(None) => return pass(ifindex, false),
        Err(unreadable) => return pass(ifindex, unreadable == Unreadable::Malformed),
    };
    if let Some(rule) = matches::by_address(ctx, &named) {
        count_hook(Hook::Xdp, ifindex, |hook| hook.seen += 1);
        count_rule(rule, Hook::Xdp, ctx.len(), Sent::default());
        return XDP_DROP;
    }
    let Some(packet) = packet::current() else {
        return XDP_PASS;
    };
    let rule = match matches::decide(ctx, packet, &named, Hook::Xdp, ifindex) {
        Ok(Some(rule)) if rule.settles_at_xdp() && !packet.is_neighbour_discovery() => rule,
        Ok(_) => return pass(ifindex, false),
        Err(unreadable) => return pass(ifindex, unreadable == Unreadable::Malformed),
    };
    count_hook(Hook::Xdp, ifindex, |hook| hook.seen += 1);
    let length = ctx.len();
    count_rule(rule, Hook::Xdp, length, Sent::default());
    record(&Decided {
        rule,
        packet,
        hook: Hook::Xdp,
        ifindex,
        length,
        verdict: number::DROPPED,
    });
    XDP_DROP
}

/// Leaves a packet to TC.
#[inline(always)]
fn pass(ifindex: u32, malformed: bool) -> u32 {
    count_hook(Hook::Xdp, ifindex, |hook| {
        hook.seen += 1;
        hook.passed += 1;
        hook.malformed += u64::from(malformed);
    });
    XDP_PASS
}

/// A TC program.
#[inline(always)]
pub fn tc(ctx: &TcContext, hook: Hook, link: Link) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid for the program's run.
    let (mark, ifindex) = unsafe { ((*skb).mark, (*skb).ifindex) };
    if mark == maps::mark() {
        // A packet of ours. At ingress the mark is no longer needed. At egress it stays, for the
        // hooks of devices below this one (VLAN, bond); a mark is never on the wire.
        if hook == Hook::Ingress {
            ctx.skb.set_mark(0);
        }
        count_hook(hook, ifindex, |counters| counters.own += 1);
        return NEXT;
    }
    source::linearize(ctx);
    let Some(packet) = packet::current() else {
        return NEXT;
    };
    let found = match matches::find(ctx, hook, link) {
        Ok(Some(named)) => matches::decide(ctx, packet, &named, hook, ifindex),
        Ok(None) => Ok(None),
        Err(unreadable) => Err(unreadable),
    };
    let Ok(Some(rule)) = found else {
        let malformed = matches!(found, Err(Unreadable::Malformed));
        if malformed {
            debug!(
                ctx,
                "malformed packet of {} bytes on device {}",
                ctx.len(),
                ifindex
            );
        }
        count_hook(hook, ifindex, |counters| {
            counters.seen += 1;
            counters.passed += 1;
            counters.malformed += u64::from(malformed);
        });
        return NEXT;
    };
    let passes_reset = rule.flags & flag::PASS_RST != 0 && packet.has(tcp::RST);
    // Counted on a bridge's port, and met again on the bridge. A block would have ended it there.
    let audited = rule.mode == mode::AUDIT && ctx.tc_index() == Some(maps::audited());
    if passes_reset || audited || packet.is_neighbour_discovery() {
        if passes_reset {
            flow::note_reset(&flow::key(packet, hook), hook == Hook::Ingress);
        }
        count_hook(hook, ifindex, |counters| {
            counters.seen += 1;
            counters.passed += 1;
        });
        return NEXT;
    }
    let length = wire_length(ctx);
    let (action, sent) = match rule.mode {
        mode::AUDIT => {
            ctx.set_tc_index(maps::audited());
            (NEXT, Sent::default())
        }
        mode::RESET | mode::REJECT => {
            let reply = Reply {
                buffer: Buffer {
                    skb,
                    hook,
                    link,
                    ifindex,
                    l3: packet.l3,
                },
                packet,
                mode: rule.mode,
            };
            let sent = reply::answer(&reply);
            (if sent.onward { NEXT } else { SHOT }, sent)
        }
        _ => (SHOT, Sent::default()),
    };
    count_hook(hook, ifindex, |counters| counters.seen += 1);
    count_rule(rule, hook, length, sent);
    record(&Decided {
        rule,
        packet,
        hook,
        ifindex,
        length,
        verdict: verdict::of(rule, sent),
    });
    action
}

/// The packet's length with all of its tags: one that the kernel or the device keeps in the
/// buffer's metadata is on the wire, and XDP and captures count it.
#[inline(always)]
fn wire_length(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid for the program's run.
    let tags = unsafe { (*ctx.skb.skb).vlan_present };
    ctx.len() + size_of::<Vlan>() as u32 * tags
}
