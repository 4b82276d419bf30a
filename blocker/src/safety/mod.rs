//! What a rule may not touch: refusals, and carve-outs. Pure; [`facts`] gathers the facts that the
//! decisions depend on.
//!
//! | target | without force | with force |
//! |---|---|---|
//! | within loopback; equal to a `protect` prefix or within one | refused | refused |
//! | everything (`0.0.0.0/0`, `::/0`) | refused | accepted, with carve-outs |
//! | exactly the caller's SSH peer, a default gateway, a resolver, an own address | refused | accepted |
//! | wider, and covers one of these | accepted, all of them carved out | accepted; loopback, `protect`, own addresses and the caller's SSH peer carved out |
//!
//! Carved out means: put into the rule's exceptions, so that neither the datapath nor teardown
//! touches it. An address that a forced rule names itself is not carved out of the rule's other
//! targets: an exception would undo the target. Rules that only count (`audit`) do no harm: only
//! loopback is refused for them, since it is not attached and nothing would be counted.

mod cover;
pub mod facts;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::rule::{Mode, Rule, Target};
use crate::wire::Carved;
pub(crate) use cover::Disjoint;
use cover::{Sorted, around};

/// Facts about the host and the caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// The host's own addresses, loopback aside.
    pub own: Vec<IpAddr>,
    /// Default gateways and the devices they are reached by.
    pub gateways: Vec<(IpAddr, String)>,
    /// The configured resolvers.
    pub resolvers: Vec<IpAddr>,
    /// Where the caller's SSH session comes from.
    pub ssh_peer: Option<IpAddr>,
}

/// Why a rule is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused to block {target}: {why}{}", way_out(*overridable))]
pub struct Refusal {
    /// The target that is the reason.
    pub target: Target,
    /// Why it may not be blocked.
    pub why: String,
    /// Whether `force` overrides it.
    pub overridable: bool,
}

const fn way_out(overridable: bool) -> &'static str {
    if overridable {
        " (--force overrides this)"
    } else {
        " (--force does not override this)"
    }
}

/// A prefix that is not to be blocked.
struct Spared {
    net: IpNet,
    why: String,
    firmness: Firmness,
}

/// Whether `force` allows to block it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Firmness {
    /// No: it is never a target and always carved out.
    Always,
    /// As a target only: it is carved out of wider targets in any case.
    CarvedByForceToo,
    /// As a target, and within wider ones.
    Overridable,
}

/// Refuses a rule that would harm the host or the caller, or carves out of it what it must not block.
///
/// What was carved out is added to the rule's exceptions and returned.
///
/// # Errors
/// The [`Refusal`] of the first target that may not be blocked. The rule is unchanged then.
pub fn review(
    rule: &mut Rule,
    facts: &HostFacts,
    protect: &[IpNet],
    force: bool,
) -> Result<Vec<Carved>, Refusal> {
    let refusing = Refusing {
        force,
        ..Refusing::new(facts, protect, rule.mode)
    };
    for target in &rule.targets {
        if let Some(refusal) = refusing.refusal(*target) {
            return Err(refusal);
        }
    }
    let spared = refusing.spared;
    if !rule.mode.blocks() {
        return Ok(Vec::new());
    }
    let targets = Sorted::of(&rule.targets);
    let except = Sorted::of(&rule.except);
    let mut carved: Vec<Carved> = Vec::new();
    let mut known: HashSet<IpNet> = HashSet::new();
    for spared in &spared {
        if force && spared.firmness == Firmness::Overridable {
            continue;
        }
        let reached =
            targets.cover(spared.net) && !except.cover(spared.net) && !targets.name(spared.net);
        // An address may be there for several reasons; the first is the most important.
        if reached && !around(spared.net).any(|net| known.contains(&net)) {
            known.insert(spared.net);
            carved.push(Carved {
                target: spared.net.into(),
                why: spared.why.clone(),
            });
        }
    }
    rule.except.extend(carved.iter().map(|c| c.target));
    rule.except.sort_unstable();
    rule.except.dedup();
    Ok(carved)
}

/// Which targets are refused. Fast for many of them.
pub struct Refusing {
    spared: Vec<Spared>,
    covers: Disjoint,
    mode: Mode,
    force: bool,
}

impl Refusing {
    /// What is refused as the target of a rule of this mode, without force.
    #[must_use]
    pub fn new(facts: &HostFacts, protect: &[IpNet], mode: Mode) -> Self {
        let spared = spared(facts, protect);
        // Most of a million targets cover nothing that is spared, and are settled by one lookup.
        let covers = Disjoint::of(spared.iter().map(|spared| spared.net).chain(loopback()));
        Self {
            spared,
            covers,
            mode,
            force: false,
        }
    }

    /// Why a target is refused, if it is.
    #[must_use]
    pub fn refusal(&self, target: Target) -> Option<Refusal> {
        let net = target.net();
        let close = net.prefix_len() == 0 || self.covers.covers(net);
        close
            .then(|| refuse(target, self.mode, &self.spared, self.force).err())
            .flatten()
    }
}

/// Everything that is not to be blocked, the most important reason first.
fn spared(facts: &HostFacts, protect: &[IpNet]) -> Vec<Spared> {
    let mut spared = Vec::new();
    let mut spare = |net: IpNet, why: String, firmness| {
        spared.push(Spared {
            net: net.trunc(),
            why,
            firmness,
        });
    };
    for net in loopback() {
        spare(net, "it is loopback".into(), Firmness::Always);
    }
    for net in protect {
        let why = format!("the configuration protects {}", Target::from(*net));
        spare(*net, why, Firmness::Always);
    }
    if let Some(peer) = facts.ssh_peer {
        let why = "your own SSH session comes from it".into();
        spare(peer.into(), why, Firmness::CarvedByForceToo);
    }
    for own in &facts.own {
        let why = "it is this host's own address".into();
        spare((*own).into(), why, Firmness::CarvedByForceToo);
    }
    for (gateway, device) in &facts.gateways {
        let why = format!("it is the default gateway on {device}");
        spare((*gateway).into(), why, Firmness::Overridable);
    }
    for resolver in &facts.resolvers {
        let why = "it is a configured resolver".into();
        spare((*resolver).into(), why, Firmness::Overridable);
    }
    spared
}

fn refuse(target: Target, mode: Mode, spared: &[Spared], force: bool) -> Result<(), Refusal> {
    let refusal = |why: String, overridable| {
        Err(Refusal {
            target,
            why,
            overridable,
        })
    };
    let loopback = loopback().iter().any(|net| contains(*net, target.net()));
    if loopback {
        return refusal("it is loopback, which is never filtered".into(), false);
    }
    if !mode.blocks() {
        return Ok(());
    }
    let within = |spared: &&Spared| contains(spared.net, target.net());
    match spared.iter().find(within) {
        Some(Spared {
            why,
            firmness: Firmness::Always,
            ..
        }) => return refusal(why.clone(), false),
        Some(Spared { why, .. }) if !force => return refusal(why.clone(), true),
        _ => {}
    }
    if target.net().prefix_len() == 0 && !force {
        return refusal("it is everything at once".into(), true);
    }
    Ok(())
}

/// RFC 1122 3.2.1.3 (g), RFC 4291 2.5.3.
fn loopback() -> [IpNet; 2] {
    [
        Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8).into(),
        IpAddr::from(Ipv6Addr::LOCALHOST).into(),
    ]
}

/// Whether a prefix covers all of another.
fn contains(outer: IpNet, inner: IpNet) -> bool {
    outer.contains(&inner)
}

#[cfg(test)]
mod tests;
