//! From a packet to a verdict, and the one exit that counts it.
//!
//! A verdict is reached in [`choose`]; nothing else looks at rules, but [`plain`], at one flag of the
//! first. Each hook turns it into its own action, and counts: per device and hook always, per rule
//! where a rule decided. What XDP leaves to TC (whatever needs a reply or a second look) it doesn't
//! count for the rule, so that a packet is counted once.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::programs::{TcContext, XdpContext};
use aya_log_ebpf::debug;
use blocker_ebpf::{
    ALWAYS, ANY_INTERFACES, ANY_LOCALS, ANY_PORTS, ANY_PROTOCOL, Counters, FlowKey, Hook,
    HookCounters, ICMP_PROTOCOL, NEVER, RULES_PER_LIST, Rule, RuleList, direction, flag, hook_slot,
    kill, mode, slot, verdict as fate,
};

use crate::packet::{self, Link, Network, Odd, Packet, Source, Words};
use crate::seen::{self, Decided};
use crate::{maps, reply, table};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
/// Both `TCX_NEXT` and `TC_ACT_UNSPEC`: whoever else is on the hook gets the packet.
/// `TC_ACT_OK` would end the chain.
const NEXT: i32 = -1;
/// Both `TCX_DROP` and `TC_ACT_SHOT`.
const SHOT: i32 = 2;

/// Length of a VLAN tag.
const TAG: u32 = 4;

/// What is done with a packet.
enum Verdict {
    /// No rule decides it.
    Pass,
    /// Its headers name no address.
    Odd(Odd),
    /// This rule decides it.
    Ruled(&'static Rule),
}

/// The XDP program: settles what is dropped without a reply, leaves the rest to TC.
#[inline(always)]
pub fn xdp(ctx: &XdpContext) -> u32 {
    // SAFETY: the context is valid for the program's run.
    let ifindex = unsafe { (*ctx.ctx).ingress_ifindex };
    let named = match find(ctx, Hook::Xdp, Link::Ethernet) {
        Ok(named) => named,
        Err(verdict) => return pass(ifindex, &verdict),
    };
    if let Some(rule) = plain(ctx, &named) {
        count_hook(Hook::Xdp, ifindex, |hook| hook.seen += 1);
        count_rule(rule, Hook::Xdp, ctx.len(), reply::Sent::default());
        return XDP_DROP;
    }
    let Some(packet) = maps::packet() else {
        return XDP_PASS;
    };
    let verdict = choose(ctx, packet, &named, Hook::Xdp, ifindex);
    if let Verdict::Ruled(rule) = verdict
        && settles(rule, packet)
    {
        count_hook(Hook::Xdp, ifindex, |hook| hook.seen += 1);
        let length = ctx.len();
        count_rule(rule, Hook::Xdp, length, reply::Sent::default());
        seen::keep(&Decided {
            rule,
            packet,
            hook: Hook::Xdp,
            ifindex,
            length,
            fate: fate::DROPPED,
        });
        return XDP_DROP;
    }
    pass(ifindex, &verdict)
}

/// Leaves a packet to TC.
#[inline(always)]
fn pass(ifindex: u32, verdict: &Verdict) -> u32 {
    count_hook(Hook::Xdp, ifindex, |hook| {
        hook.seen += 1;
        hook.passed += 1;
        hook.malformed += u64::from(matches!(verdict, Verdict::Odd(Odd::Malformed)));
    });
    XDP_PASS
}

/// The rule that drops a packet, where its addresses are all that it takes to know: the first one
/// drops whatever comes, and nobody wants to know more than how much.
#[inline(always)]
fn plain(ctx: &XdpContext, named: &Named) -> Option<&'static Rule> {
    if maps::new_flows_per_second() > 0 || maps::watching() {
        return None;
    }
    let rule = maps::rule(named.bank, named.list.rules[0])?;
    let takes = rule.flags & flag::PLAIN != 0
        && (rule.deadline == NEVER || packet::now() <= rule.deadline)
        && packet::is_plain(ctx, &named.network);
    takes.then_some(rule)
}

/// Whether XDP may end a packet: dropped without a reply, without a die that TC would cast again, and
/// surely not a reply of ours.
#[inline(always)]
fn settles(rule: &Rule, packet: &Packet) -> bool {
    rule.mode == mode::DROP
        && rule.percent == ALWAYS
        && rule.flags & flag::AT_TC == 0
        && !packet.is_neighbour_discovery()
        && !(rule.flags & flag::PASS_RST != 0 && packet.has(packet::RST))
}

/// A TC program.
#[inline(always)]
pub fn tc(ctx: &TcContext, hook: Hook, link: Link) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid for the program's run.
    let (mark, ifindex) = unsafe { ((*skb).mark, (*skb).ifindex) };
    if mark == maps::mark() {
        // Ours. Coming in, the mark has done its work; going out, devices below (VLAN, bond) must
        // know it too, and it stays in this host's memory: no mark is on any wire.
        if hook == Hook::Ingress {
            ctx.skb.set_mark(0);
        }
        count_hook(hook, ifindex, |counters| counters.own += 1);
        return NEXT;
    }
    packet::linearize(ctx);
    let Some(packet) = maps::packet() else {
        return NEXT;
    };
    let verdict = match find(ctx, hook, link) {
        Ok(named) => choose(ctx, packet, &named, hook, ifindex),
        Err(verdict) => verdict,
    };
    let Verdict::Ruled(rule) = verdict else {
        let malformed = matches!(verdict, Verdict::Odd(Odd::Malformed));
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
    let passes_reset = rule.flags & flag::PASS_RST != 0 && packet.has(packet::RST);
    // On a port, and now on its bridge. A block would have ended it there.
    let audited = rule.mode == mode::AUDIT && ctx.tc_index() == Some(maps::audited());
    if passes_reset || audited || packet.is_neighbour_discovery() {
        if passes_reset {
            note(&flow(packet, hook), hook == Hook::Ingress);
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
            (NEXT, reply::Sent::default())
        }
        mode::RESET | mode::REJECT => {
            let reply = reply::Reply {
                skb: ctx.skb.skb,
                packet,
                mode: rule.mode,
                hook,
                link,
                ifindex,
            };
            let sent = reply::answer(&reply);
            (if sent.onward { NEXT } else { SHOT }, sent)
        }
        _ => (SHOT, reply::Sent::default()),
    };
    count_hook(hook, ifindex, |counters| counters.seen += 1);
    count_rule(rule, hook, length, sent);
    seen::keep(&Decided {
        rule,
        packet,
        hook,
        ifindex,
        length,
        fate: fate(rule, sent),
    });
    action
}

/// What became of a packet that TC decided.
#[inline(always)]
fn fate(rule: &Rule, sent: reply::Sent) -> u8 {
    match rule.mode {
        mode::AUDIT => fate::AUDITED,
        _ if sent.suppressed => fate::SUPPRESSED,
        mode::RESET if sent.replies > 0 => fate::RESET,
        mode::REJECT if sent.replies > 0 => fate::REJECTED,
        _ => fate::DROPPED,
    }
}

/// The packet's length with all of its tags: one that the kernel or the device keeps in the
/// buffer's metadata is on the wire, and XDP and captures count it.
#[inline(always)]
fn wire_length(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid for the program's run.
    let tags = unsafe { (*ctx.skb.skb).vlan_present };
    ctx.len() + TAG * tags
}

/// A packet that rules name.
struct Named {
    network: Network,
    bank: u32,
    /// These rules.
    list: &'static RuleList,
}

/// Finds the rules that name a packet.
#[inline(always)]
fn find<S: Source>(source: &S, hook: Hook, link: Link) -> Result<Named, Verdict> {
    let network = packet::network(source, hook, link).map_err(Verdict::Odd)?;
    let (bank, about) = maps::active_bank().ok_or(Verdict::Pass)?;
    let number = table::lookup(&network.remote, bank, about);
    if number == 0 {
        return Err(Verdict::Pass);
    }
    let list = maps::list(bank, number).ok_or(Verdict::Pass)?;
    Ok(Named {
        network,
        bank,
        list,
    })
}

/// Finds among the rules that name a packet the one that decides it.
#[inline(always)]
fn choose<S: Source>(
    source: &S,
    packet: &mut Packet,
    named: &Named,
    hook: Hook,
    ifindex: u32,
) -> Verdict {
    let Named {
        network,
        bank,
        list,
    } = named;
    let bank = *bank;
    if let Err(odd) = packet.read(source, network) {
        return Verdict::Odd(odd);
    }
    let length = usize::from(list.len);
    for place in 0..RULES_PER_LIST {
        if place >= length {
            break;
        }
        let Some(rule) = maps::rule(bank, list.rules[place]) else {
            break;
        };
        if matches(source, rule, packet, hook, ifindex, bank) {
            return Verdict::Ruled(rule);
        }
    }
    Verdict::Pass
}

/// Whether a rule takes a packet. Its address is settled by the table.
#[inline(always)]
fn matches<S: Source>(
    source: &S,
    rule: &Rule,
    packet: &Packet,
    hook: Hook,
    ifindex: u32,
    bank: u32,
) -> bool {
    let bit = if hook == Hook::Egress {
        direction::EGRESS
    } else {
        direction::INGRESS
    };
    if rule.directions & bit == 0 {
        return false;
    }
    // Where the transport header is out of reach, a rule that blocks takes the packet (fail
    // closed), and one that only counts doesn't.
    let unknown = rule.mode != mode::AUDIT;
    let protocol = packet.protocol;
    let protocol_fits = if protocol == packet::UNKNOWN {
        rule.protocol == ANY_PROTOCOL || unknown
    } else {
        rule.protocol == ANY_PROTOCOL
            || rule.protocol == protocol
            || (rule.protocol == ICMP_PROTOCOL
                && protocol
                    == if packet.v6 {
                        packet::ICMPV6
                    } else {
                        packet::ICMP
                    })
    };
    if !protocol_fits || !ports_fit(rule, packet, hook, bank, unknown) {
        return false;
    }
    if rule.interfaces != ANY_INTERFACES && !maps::interface_in(bank, rule.interfaces, ifindex) {
        return false;
    }
    if rule.locals != ANY_LOCALS && !local_fits(rule, packet, hook, bank) {
        return false;
    }
    if rule.deadline != NEVER && packet.clock() > rule.deadline {
        return false;
    }
    if rule.percent == ALWAYS {
        return true;
    }
    if rule.flags & flag::PER_FLOW != 0 {
        return flow_hash(&flow(packet, hook)) <= rule.percent;
    }
    match source.tc_index() {
        // The die is cast once, by TC: XDP settles no such rule, nor may it one behind it.
        None => true,
        // Decided on another device, where the other rules' dice had spared it.
        Some(index) if index == maps::audited() => rule.mode == mode::AUDIT,
        Some(index) => mix([die(source, index), rule.counter, maps::mark()]) <= rule.percent,
    }
}

/// A packet's die: cast on the first device that it meets, and kept for those behind it, lest two
/// devices, one upon the other, take three of four packets where a half is asked for.
#[inline(always)]
fn die<S: Source>(source: &S, index: u16) -> u32 {
    if index != 0 {
        return u32::from(index);
    }
    // SAFETY: the helper takes no arguments and can't fail.
    let cast = unsafe { bpf_get_prandom_u32() } as u16;
    // Neither "none yet" nor "audited", which is odd.
    let cast = if cast == 0 || cast == maps::audited() {
        maps::audited() ^ 2
    } else {
        cast
    };
    source.set_tc_index(cast);
    u32::from(cast)
}

/// Whether the address of this host's side is one that a rule is limited to. Every packet that is
/// matched has addresses, a later fragment too.
#[inline(always)]
fn local_fits(rule: &Rule, packet: &Packet, hook: Hook, bank: u32) -> bool {
    let local = if hook == Hook::Egress {
        &packet.source
    } else {
        &packet.destination
    };
    maps::local_in(bank, rule.locals, packet.v6, bytes(local))
}

#[inline(always)]
fn ports_fit(rule: &Rule, packet: &Packet, hook: Hook, bank: u32, unknown: bool) -> bool {
    if rule.ports & rule.local_ports & rule.remote_ports == ANY_PORTS {
        return true;
    }
    if !packet.ports {
        // Only TCP and UDP have ports; of another protocol none fits.
        return unknown && matches!(packet.protocol, packet::TCP | packet::UDP | packet::UNKNOWN);
    }
    let (local, remote) = if hook == Hook::Egress {
        (packet.source_port, packet.destination_port)
    } else {
        (packet.destination_port, packet.source_port)
    };
    (rule.ports == ANY_PORTS
        || maps::port_in(bank, rule.ports, local)
        || maps::port_in(bank, rule.ports, remote))
        && (rule.local_ports == ANY_PORTS || maps::port_in(bank, rule.local_ports, local))
        && (rule.remote_ports == ANY_PORTS || maps::port_in(bank, rule.remote_ports, remote))
}

/// The flow of a packet as a rule sees it, the same for both directions.
#[inline(always)]
pub fn flow(packet: &Packet, hook: Hook) -> FlowKey {
    let (remote, local, remote_port, local_port) = if hook == Hook::Egress {
        (
            &packet.destination,
            &packet.source,
            packet.destination_port,
            packet.source_port,
        )
    } else {
        (
            &packet.source,
            &packet.destination,
            packet.source_port,
            packet.destination_port,
        )
    };
    FlowKey {
        remote: bytes(remote),
        local: bytes(local),
        remote_port,
        local_port,
        protocol: u32::from(packet.protocol),
    }
}

#[inline(always)]
fn bytes(words: &Words) -> [u8; 16] {
    // SAFETY: same size, and any bytes are bytes.
    unsafe { core::mem::transmute(*words) }
}

#[inline(always)]
fn flow_hash(flow: &FlowKey) -> u32 {
    // SAFETY: `FlowKey` is 40 bytes without padding.
    mix::<10>(unsafe { core::mem::transmute(*flow) })
}

/// A hash that any bit of the words changes: FNV-1a over them, then a finaliser.
#[inline(always)]
fn mix<const WORDS: usize>(words: [u32; WORDS]) -> u32 {
    let mut hash = 0x811c_9dc5_u32;
    for word in words {
        hash = (hash ^ word).wrapping_mul(0x0100_0193);
        hash ^= hash >> 15;
    }
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^ (hash >> 13)
}

/// Notes that a RST of a flow under teardown went to its local end, or to the remote.
#[inline(always)]
pub fn note(flow: &FlowKey, to_local: bool) {
    if let Some(seen) = maps::KILLS.get_ptr_mut(flow) {
        let bit = if to_local { kill::LOCAL } else { kill::REMOTE };
        // Two CPUs may race for the two bits; the loser's bit is set again by the next probe.
        // SAFETY: the pointer is to a live map value; the program holds the RCU read lock.
        unsafe { *seen |= bit };
    }
}

#[inline(always)]
fn count_hook(hook: Hook, ifindex: u32, add: impl FnOnce(&mut HookCounters)) {
    if let Some(counters) = maps::HOOKS.get_ptr_mut(hook_slot(hook, ifindex)) {
        // SAFETY: the value is this CPU's own, and no other program of ours interrupts this one.
        add(unsafe { &mut *counters });
    }
}

#[inline(always)]
fn count_rule(rule: &Rule, hook: Hook, length: u32, sent: reply::Sent) {
    let place = slot(rule.counter) * 2 + u32::from(hook == Hook::Egress);
    if let Some(counters) = maps::COUNTERS.get_ptr_mut(place) {
        // SAFETY: as in `count_hook`.
        let counters: &mut Counters = unsafe { &mut *counters };
        counters.packets += 1;
        counters.bytes += u64::from(length);
        counters.replies += u64::from(sent.replies);
        counters.suppressed += u64::from(sent.suppressed);
    }
}
