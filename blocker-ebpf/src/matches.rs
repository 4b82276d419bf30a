//! Which rule decides a packet: the list of rules that name its address, and the first of them
//! that matches the whole packet. `blocker`'s `compile` has the same in plain Rust, for packets of
//! which only a part is known.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use blocker_ebpf::{
    ALWAYS, ANY_INTERFACES, ANY_LOCALS, ANY_PORTS, ANY_PROTOCOL, Hook, ICMP_PROTOCOL, NEVER,
    RULES_PER_LIST, Rule, RuleList, UNKNOWN_PROTOCOL, direction, flag, mode,
};

use crate::packet::{self, Network, Packet, Unreadable};
use crate::source::{Link, Source};
use crate::{clock, flow, maps, table};

/// A packet whose address rules name.
pub struct Named {
    network: Network,
    bank: u32,
    /// These rules.
    list: &'static RuleList,
}

/// Finds the rules that name a packet's address; `None` if there are none.
#[inline(always)]
pub fn find<S: Source>(source: &S, hook: Hook, link: Link) -> Result<Option<Named>, Unreadable> {
    let (network, remote) = packet::network(source, hook, link)?;
    let Some((bank, about)) = maps::active_bank() else {
        return Ok(None);
    };
    let number = table::lookup(&remote, bank, about);
    if number == 0 {
        return Ok(None);
    }
    Ok(maps::list(bank, number).map(|list| Named {
        network,
        bank,
        list,
    }))
}

/// The rule that drops a packet by its address alone: the first of the list drops everything, and
/// neither records nor events are wanted.
#[inline(always)]
pub fn by_address<S: Source>(source: &S, named: &Named) -> Option<&'static Rule> {
    if maps::new_flows_per_second() > 0 || maps::watching() {
        return None;
    }
    let rule = maps::rule(named.bank, named.list.rules[0])?;
    let takes = rule.flags & flag::PLAIN != 0
        && (rule.deadline == NEVER || clock::now() <= rule.deadline)
        && packet::is_settled_by_address(source, &named.network);
    takes.then_some(rule)
}

/// Reads the rest of a packet, and finds the rule that decides it.
#[inline(always)]
pub fn decide<S: Source>(
    source: &S,
    packet: &mut Packet,
    named: &Named,
    hook: Hook,
    ifindex: u32,
) -> Result<Option<&'static Rule>, Unreadable> {
    let Named {
        network,
        bank,
        list,
    } = named;
    packet.read(source, network)?;
    let length = usize::from(list.len);
    for place in 0..RULES_PER_LIST {
        if place >= length {
            break;
        }
        let Some(rule) = maps::rule(*bank, list.rules[place]) else {
            break;
        };
        if matches(source, rule, packet, hook, ifindex, *bank) {
            return Ok(Some(rule));
        }
    }
    Ok(None)
}

/// Whether a rule takes a packet. The table has settled its address.
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
    let protocol_fits = if protocol == UNKNOWN_PROTOCOL {
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
    if rule.deadline != NEVER && packet.arrival.exact() > rule.deadline {
        return false;
    }
    if rule.percent == ALWAYS {
        return true;
    }
    if rule.flags & flag::PER_FLOW != 0 {
        return flow::hash(&flow::key(packet, hook)) <= rule.percent;
    }
    match source.tc_index() {
        // TC draws the packet's sample: XDP settles no such rule, nor one that is tried after it.
        None => true,
        // An audit rule took the packet on another device, so no other rule's share did.
        Some(index) if index == maps::audited() => rule.mode == mode::AUDIT,
        Some(index) => {
            flow::mix([sample(source, index), rule.counter, maps::mark()]) <= rule.percent
        }
    }
}

/// The packet's random sample, drawn on the first device that it meets and reused on the others:
/// independent samples on a bridge and its port would take three of four packets where a rule asks
/// for half.
#[inline(always)]
fn sample<S: Source>(source: &S, index: u16) -> u32 {
    if index != 0 {
        return u32::from(index);
    }
    // SAFETY: the helper takes no arguments and can't fail.
    let drawn = unsafe { bpf_get_prandom_u32() } as u16;
    // Neither "not drawn yet" nor "audited", which is an odd number.
    let drawn = if drawn == 0 || drawn == maps::audited() {
        maps::audited() ^ 2
    } else {
        drawn
    };
    source.set_tc_index(drawn);
    u32::from(drawn)
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
    maps::local_in(bank, rule.locals, packet.v6, flow::bytes(local))
}

#[inline(always)]
fn ports_fit(rule: &Rule, packet: &Packet, hook: Hook, bank: u32, unknown: bool) -> bool {
    if rule.ports & rule.local_ports & rule.remote_ports == ANY_PORTS {
        return true;
    }
    if !packet.ports {
        // Only TCP and UDP have ports; a packet of another protocol matches no port.
        return unknown
            && matches!(
                packet.protocol,
                packet::TCP | packet::UDP | UNKNOWN_PROTOCOL
            );
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
