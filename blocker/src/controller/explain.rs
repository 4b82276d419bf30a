//! Explains what the datapath does with a packet, and why, from the rules in the live bank.
//!
//! [`crate::matching`] finds the rule that decides. This module adds names, reasons and devices to
//! its answers. It changes no state.

use std::collections::BTreeMap;
use std::net::IpAddr;

use blocker_ebpf::headers::protocol::{ICMP, ICMPV6, TCP, UDP};
use blocker_ebpf::{Hook, flag};

use super::live::{Live, boot_time};
use super::{Controller, Error};
use crate::datapath::attach::{Attached, hook_name};
use crate::matching::{self, Decider, Packet, PacketPorts, Tried};
use crate::rule::{Direction, Mode, Protocol, Rule, RuleError, RuleId, Target, interface_matches};
use crate::ruleset::Entry;
use crate::wire::{ExplainRequest, ExplainResponse, Explanation, Fate, Outcome, Spared, TriedRule};

impl Controller {
    /// Explains what the datapath does with a packet, some of whose fields may be unknown.
    ///
    /// # Errors
    /// If the request contradicts itself or names a device that is not attached, or if the live
    /// bank can't be read.
    pub fn explain(&self, request: &ExplainRequest) -> Result<ExplainResponse, Error> {
        let address = host(request.address)?;
        let local = local(request, address)?;
        let ports = ports(request)?;
        let protocol = protocol(request, address, ports)?;
        let live = self.live();
        let devices = devices(&live, request.interface.as_deref())?;
        let decider = Decider::new(live.datapath.lookup(address)?);
        let listed = listed(&live, &decider, address)?;
        let ids: Vec<&RuleId> = listed.iter().map(|listed| &listed.rule.id).collect();
        let spared_by = spared_by(&live, address, &ids);
        // The addresses of a protected prefix have an empty list. If the list is not empty, a newly
        // configured prefix has not reached the datapath yet, and protects nothing.
        let protected_by = live.config.protect.iter().copied();
        let protected_by = protected_by
            .filter(|prefix| listed.is_empty() && prefix.net().contains(&address))
            .max_by_key(|prefix| prefix.net().prefix_len());
        let nothing = nothing_decides(protected_by, &spared_by, listed.is_empty());
        let now = boot_time();
        let mut answers: Vec<Explanation> = Vec::new();
        for (direction, hook) in [
            (Direction::Ingress, Hook::Ingress),
            (Direction::Egress, Hook::Egress),
        ] {
            let asked = request.direction.unwrap_or(Direction::Both);
            if asked != Direction::Both && asked != direction {
                continue;
            }
            for device in &devices {
                let packet = Packet {
                    v6: address.is_ipv6(),
                    hook,
                    device: Some(device.device.index),
                    local,
                    protocol,
                    ports,
                };
                let xdp = device.hooks.iter().any(|hook| hook.hook == Hook::Xdp);
                let rules = trials(&decider, &listed, &packet, xdp, now);
                let name = device.device.name.clone();
                // The rest of an answer follows from its direction and rules.
                let alike = |answer: &&mut Explanation| {
                    answer.direction == direction && answer.rules == rules
                };
                match answers.iter_mut().find(alike) {
                    Some(answer) => answer.interfaces.push(name),
                    None => answers.push(Explanation {
                        direction,
                        interfaces: vec![name],
                        ..conclusion(rules, &packet, &nothing)
                    }),
                }
            }
        }
        Ok(ExplainResponse {
            address: request.address,
            protected_by,
            spared_by,
            answers,
        })
    }
}

/// A rule of the address's list, and its target that covers the address.
struct Listed<'l> {
    rule: &'l Rule,
    target: Target,
}

fn host(target: Target) -> Result<IpAddr, Error> {
    if target.is_host() {
        return Ok(target.net().addr());
    }
    Err(Error::Packet(format!(
        "{target} is a prefix, but one packet is explained: name one address of it, such as {}",
        target.net().hosts().next().unwrap_or(target.net().addr()),
    )))
}

/// The requested local address, if any. It must be of the remote's family.
fn local(request: &ExplainRequest, remote: IpAddr) -> Result<Option<IpAddr>, Error> {
    let local = request.local.map(host).transpose()?;
    match local {
        Some(local) if local.is_ipv6() != remote.is_ipv6() => Err(Error::Packet(format!(
            "{local} and {remote} can't be on one packet: name two addresses of one IP version"
        ))),
        local => Ok(local),
    }
}

fn ports(request: &ExplainRequest) -> Result<PacketPorts, Error> {
    let (local, remote) = (request.local_port, request.remote_port);
    match request.port {
        None => Ok(PacketPorts::Sides { local, remote }),
        Some(port) if local.is_none() && remote.is_none() => Ok(PacketPorts::Either(port)),
        Some(_) => Err(Error::Packet(
            "port is a port of either side, and excludes local_port and remote_port: give those alone"
                .to_owned(),
        )),
    }
}

fn protocol(
    request: &ExplainRequest,
    address: IpAddr,
    ports: PacketPorts,
) -> Result<Option<u8>, Error> {
    let protocol = request.protocol.unwrap_or_default();
    let number = match protocol {
        Protocol::Any => None,
        Protocol::Tcp => Some(TCP),
        Protocol::Udp => Some(UDP),
        Protocol::Icmp if address.is_ipv6() => Some(ICMPV6),
        Protocol::Icmp => Some(ICMP),
        Protocol::Number(number) => Some(number),
    };
    if ports.is_known() && number.is_some_and(|number| number != TCP && number != UDP) {
        return Err(RuleError::PortsWithout(protocol).into());
    }
    Ok(number)
}

fn devices<'l>(live: &'l Live, pattern: Option<&str>) -> Result<Vec<&'l Attached>, Error> {
    let mut devices = live.datapath.attached();
    let Some(pattern) = pattern else {
        return Ok(devices);
    };
    let names: Vec<&str> = devices
        .iter()
        .map(|attached| attached.device.name.as_str())
        .collect();
    let attached = match names.as_slice() {
        [] => "none is".to_owned(),
        names => format!("attached are {}", names.join(", ")),
    };
    devices.retain(|attached| interface_matches(pattern, &attached.device.name));
    if devices.is_empty() {
        return Err(Error::Packet(format!(
            "no interface {pattern:?} is attached, so no rule decides there: {attached}"
        )));
    }
    Ok(devices)
}

/// The rules that the datapath tries on an address. A compiled rule is identified by the slot of its
/// counters, which no two rules share.
fn listed<'l>(
    live: &'l Live,
    decider: &Decider,
    address: IpAddr,
) -> Result<Vec<Listed<'l>>, Error> {
    let rules = decider.rules();
    let slots: Vec<u32> = rules.iter().map(|tried| tried.rule.counter).collect();
    let named: BTreeMap<u32, &Entry> = live
        .ruleset()
        .values()
        .filter(|entry| slots.contains(&entry.counter))
        .map(|entry| (entry.counter, entry))
        .collect();
    let listed = |tried: &Tried| {
        let slot = tried.rule.counter;
        let rule = named.get(&slot).map(|entry| &entry.rule);
        let found = rule.and_then(|rule| Some((rule, covering(&rule.targets, address)?)));
        let (rule, target) = found.ok_or_else(|| {
            Error::Inside(format!(
                "the datapath tries a rule on {address} (counters {slot}) that is not in force"
            ))
        })?;
        Ok(Listed { rule, target })
    };
    rules.iter().map(listed).collect()
}

/// The most specific of these prefixes that cover an address.
fn covering(prefixes: &[Target], address: IpAddr) -> Option<Target> {
    let covering = prefixes
        .iter()
        .filter(|prefix| prefix.net().contains(&address));
    covering
        .max_by_key(|prefix| prefix.net().prefix_len())
        .copied()
}

fn spared_by(live: &Live, address: IpAddr, listed: &[&RuleId]) -> Vec<Spared> {
    let rules = live.ruleset().values().map(|entry| &entry.rule);
    rules
        .filter(|rule| !listed.contains(&&rule.id))
        .filter_map(|rule| {
            Some(Spared {
                except: covering(&rule.except, address)?,
                target: covering(&rule.targets, address)?,
                rule: rule.id.clone(),
            })
        })
        .collect()
}

fn nothing_decides(protected_by: Option<Target>, spared_by: &[Spared], unlisted: bool) -> String {
    match (protected_by, spared_by) {
        (Some(prefix), _) => format!("the configuration protects {prefix}"),
        (None, [spared, ..]) if unlisted => {
            format!("rule {} excepts {}", spared.rule, spared.except)
        }
        (None, _) if unlisted => "no rule covers it".to_owned(),
        (None, _) => "no rule that covers it takes such packets".to_owned(),
    }
}

/// The outcome of each listed rule's trial on a packet, on a device with or without XDP.
fn trials(
    decider: &Decider,
    listed: &[Listed<'_>],
    packet: &Packet,
    xdp: bool,
    now: u64,
) -> Vec<TriedRule> {
    let row = |(trial, Listed { rule, target }): (matching::Trial<'_>, &Listed<'_>)| {
        let (outcome, why) = match trial.outcome {
            matching::Outcome::Not(miss) => (Outcome::NoMatch, Some(miss.words(&rule.matching))),
            matching::Outcome::Shadowed(by) => (
                Outcome::Shadowed,
                Some(format!("rule {} decides before it", listed[by].rule.id)),
            ),
            matching::Outcome::Decides => (Outcome::Decides, None),
            matching::Outcome::Share => (Outcome::Share, Some(share(trial.tried, rule))),
            matching::Outcome::Depends(unknown) => {
                (Outcome::Depends, Some(unknown.words(&rule.matching)))
            }
        };
        TriedRule {
            id: rule.id.clone(),
            target: *target,
            mode: rule.mode,
            outcome,
            hook: trial.hook.map(|hook| hook_name(hook).to_owned()),
            why,
        }
    };
    let trials = decider.trials(packet, xdp, now).into_iter();
    trials.zip(listed).map(row).collect()
}

/// The explanation that follows from the trials. The caller sets direction and devices.
fn conclusion(rules: Vec<TriedRule>, packet: &Packet, nothing: &str) -> Explanation {
    let having_a_say: Vec<&TriedRule> = rules.iter().filter(|row| row.hook.is_some()).collect();
    let decided = having_a_say
        .iter()
        .any(|row| row.outcome == Outcome::Decides);
    let mut fates: Vec<Fate> = having_a_say.iter().map(|row| row.mode.into()).collect();
    if !decided {
        fates.push(Fate::Passed);
    }
    let verdict = if fates.iter().all(|fate| *fate == fates[0]) {
        fates[0]
    } else {
        Fate::Depends
    };
    let certain = match having_a_say.as_slice() {
        [only] if decided => Some(*only),
        _ => None,
    };
    Explanation {
        direction: Direction::Both,
        interfaces: Vec::new(),
        verdict,
        rule: certain.map(|row| row.id.clone()),
        hook: certain.and_then(|row| row.hook.clone()),
        why: (verdict == Fate::Passed).then(|| nothing.to_owned()),
        notes: notes(packet, &having_a_say),
        rules,
    }
}

fn share(tried: &Tried, rule: &Rule) -> String {
    let what = if tried.rule.flags & flag::PER_FLOW == 0 {
        "packets"
    } else {
        "flows"
    };
    rule.matching.percent.words(what)
}

/// Notes on packets that pass although a rule matches them.
fn notes(packet: &Packet, having_a_say: &[&TriedRule]) -> Vec<String> {
    let may_be = |number| packet.protocol.is_none_or(|protocol| protocol == number);
    let mut notes = Vec::new();
    if may_be(TCP) && having_a_say.iter().any(|row| row.mode == Mode::Reset) {
        notes.push("a TCP RST passes a reset rule: it ends the flow".to_owned());
    }
    let portless = !packet.ports.is_known();
    if packet.v6 && portless && may_be(ICMPV6) && !having_a_say.is_empty() {
        notes.push("neighbour discovery passes, as ARP does".to_owned());
    }
    notes
}

#[cfg(test)]
mod tests;
