//! Compiles a ruleset into a snapshot: the tables that the datapath reads, as plain memory.
//!
//! Pure: no maps, no clock, no interface names. [`compile`] returns a [`Snapshot`] that fits the
//! [`Limits`], or a [`CompileError`]. [`crate::datapath`] writes the snapshot into a bank.
//!
//! # The rules of an address
//!
//! For every address, the rules whose targets cover it are listed in the order in which the
//! datapath tries them; the first that matches the packet decides:
//!
//! 1. the rule whose most specific covering target is the longer prefix goes first;
//! 2. among equals, the narrower match ([`mod@rank`]);
//! 3. among equals, the smaller id.
//!
//! An `except` prefix removes its rule from the lists of all addresses inside it, even where a
//! target of the rule is more specific. It does not affect other rules. Inside a `protect` prefix
//! the list is empty, even where targets are more specific.
//!
//! # Algorithm
//!
//! Prefixes either nest or are disjoint, so one pass over the sorted prefixes, with a stack of the
//! open ones, cuts the address space into segments (`sweep`). The rules of a segment are a state.
//! It follows from the state of the enclosing prefix and from what the prefix adds, and is computed
//! once for each such pair (`states`). Equal lists are stored once (`lists`). IPv4 segments become
//! a range table (`v4`), IPv6 segments a static search tree (`v6`).
//!
//! [`crate::matching::Decider`] finds the rule of a list that decides a packet.

mod fill;
mod lists;
mod ports;
mod rank;
mod rules;
mod states;
mod sweep;
#[cfg(test)]
pub(crate) mod tests;
mod v4;
mod v6;

use std::net::IpAddr;

use blocker_ebpf as abi;
use ipnet::IpNet;

pub use fill::Fill;
pub use rank::{Rank, rank};
pub use v4::V4Table;
pub(crate) use v4::{is_named as is_named_v4, search as search_v4};
pub use v6::V6Table;
pub(crate) use v6::walk as walk_v6;

use crate::matching::Tried;
use crate::rule::{Rule, RuleId};
use sweep::{Claim, What};

/// A ruleset, ready to be compiled.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The rules. A rule's number in the snapshot is its index here.
    pub rules: &'a [RuleInput<'a>],
    /// Prefixes that no rule may touch.
    pub protect: &'a [IpNet],
    /// Whether XDP runs in the kernel's generic path. There XDP sees blocker's own replies on their
    /// way into the stack, and cannot read the mark that identifies them.
    pub generic_xdp: bool,
}

/// A rule, with its values that the daemon assigns.
#[derive(Debug, Clone)]
pub struct RuleInput<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// `CLOCK_BOOTTIME` nanoseconds after which it no longer matches, or [`abi::NEVER`].
    pub deadline: u64,
    /// Slot of its counters.
    pub counter: u32,
    /// Indexes of the devices that the rule's `interfaces` match now; `None`: every device.
    /// An empty list is valid: none of the devices exists now, and the rule matches nothing.
    pub interfaces: Option<Vec<u32>>,
}

/// The capacity of a bank. A ruleset that does not fit is refused as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Prefixes: targets, exceptions and local addresses of all rules, and protected prefixes.
    pub prefixes: u32,
    /// Rules; at most [`abi::MAX_RULES`].
    pub rules: u32,
    /// Slots for rule lists, the empty one (number 0) included.
    pub lists: u32,
    /// Port sets; at most [`abi::MAX_PORT_SETS`].
    pub port_sets: u32,
    /// Blocks of IPv4 ranges.
    pub range_blocks: u32,
    /// Leaves of the IPv6 tree: eight ranges each.
    pub v6_leaves: u32,
}

impl Limits {
    /// Limits of a bank with room for this many rules, and prefixes, of which `prefixes_v6` may be
    /// IPv6, as the configuration's `limits:` say. Rule lists have a bound of their own: rules that
    /// overlap in many different ways may exceed it, and are refused.
    #[must_use]
    pub fn sized(prefixes: u32, prefixes_v6: u32, rules: u32) -> Self {
        Self {
            prefixes,
            rules: rules.min(abi::MAX_RULES),
            lists: rules.saturating_mul(4).clamp(1_024, abi::MAX_LISTS),
            port_sets: 256,
            range_blocks: v4::range_blocks(prefixes),
            v6_leaves: v6::leaves(prefixes_v6.min(prefixes)),
        }
    }

    /// Nodes of the IPv6 tree, leaves included.
    #[must_use]
    pub fn v6_nodes(&self) -> u32 {
        v6::nodes(self.v6_leaves)
    }
}

/// A compiled ruleset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The rules; a rule's number is its index.
    pub rules: Vec<abi::Rule>,
    /// The rule lists; a list's number is its index. Number 0 is the empty list.
    pub lists: Vec<abi::RuleList>,
    /// The port sets that rules name.
    pub port_sets: Vec<abi::PortSet>,
    /// The interface sets that rules name: indexes of devices, sorted.
    pub interface_sets: Vec<Vec<u32>>,
    /// The local address sets that rules name: prefixes, sorted.
    pub local_sets: Vec<Vec<IpNet>>,
    /// The IPv4 range table.
    pub v4: V4Table,
    /// The IPv6 tree.
    pub v6: V6Table,
    /// How many of [`Limits::prefixes`] are used.
    pub prefixes: u64,
    /// How many IPv6 prefixes the tree is made from: all but local addresses.
    pub prefixes_v6: u64,
}

impl Snapshot {
    /// The numbers of the rules that apply to an address, in trial order, found as the datapath
    /// finds them.
    #[must_use]
    pub fn lookup(&self, address: IpAddr) -> &[u16] {
        let list = &self.lists[usize::from(self.list(address))];
        &list.rules[..usize::from(list.len)]
    }

    /// The number of an address's rule list; 0 for the empty one.
    #[must_use]
    pub fn list(&self, address: IpAddr) -> u16 {
        match address {
            IpAddr::V4(address) => self.v4.list(address),
            IpAddr::V6(address) => self.v6.list(address),
        }
    }

    /// The rules that apply to an address, in trial order, with the sets that they name.
    #[must_use]
    pub fn tried(&self, address: IpAddr) -> Vec<Tried> {
        let tried = |number: &u16| {
            let rule = self.rules[usize::from(*number)];
            let ports = |set: u16| {
                let set = self.port_sets.get(usize::from(set));
                set.map(|set| Box::new(*set))
            };
            let interfaces = self.interface_sets.get(usize::from(rule.interfaces));
            Tried {
                rule,
                ports: ports(rule.ports),
                local_ports: ports(rule.local_ports),
                remote_ports: ports(rule.remote_ports),
                interfaces: interfaces.cloned(),
                locals: self.local_sets.get(usize::from(rule.locals)).cloned(),
            }
        };
        self.lookup(address).iter().map(tried).collect()
    }
}

/// Why a ruleset does not compile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// Too many rules.
    #[error(
        "{found} rules are more than the {limit} allowed: raise limits.rules (at most {})",
        abi::MAX_RULES
    )]
    Rules {
        /// How many there are.
        found: u64,
        /// How many are allowed.
        limit: u32,
    },
    /// Too many prefixes.
    #[error(
        "{found} prefixes (targets, exceptions and local addresses of all rules, and protected ones) are more than the {limit} allowed: raise limits.prefixes"
    )]
    Prefixes {
        /// How many there are.
        found: u64,
        /// How many are allowed.
        limit: u32,
    },
    /// Too many rules on one address.
    #[error(
        "{address} is covered by {found} rules ({}), but at most {} can be tried on one address: merge some of them, or narrow their targets", some_of(.rules), abi::RULES_PER_LIST
    )]
    RulesOnAddress {
        /// One such address.
        address: IpAddr,
        /// How many rules cover it.
        found: usize,
        /// The first few of them, in trial order.
        rules: Vec<RuleId>,
    },
    /// Rules overlap in too many different ways.
    #[error(
        "the rules overlap in more than {limit} different ways (the first that does not fit is at {address}): let fewer rules overlap, or merge rules that do the same"
    )]
    Lists {
        /// An address of the first rule list that does not fit.
        address: IpAddr,
        /// How many different lists are allowed.
        limit: u32,
    },
    /// Too many different sets of ports.
    #[error(
        "rule {rule} needs one more set of ports than the {limit} different ones allowed: let rules share their port lists"
    )]
    PortSets {
        /// The first rule whose set does not fit.
        rule: RuleId,
        /// How many are allowed.
        limit: u32,
    },
    /// Too many different sets of interfaces.
    #[error(
        "rule {rule} needs one more set of interfaces than the {limit} different ones allowed: let rules share their interface lists"
    )]
    InterfaceSets {
        /// The first rule whose set does not fit.
        rule: RuleId,
        /// How many are allowed.
        limit: u32,
    },
    /// Too many different sets of local addresses.
    #[error(
        "rule {rule} needs one more set of local addresses than the {limit} different ones allowed: let rules share their lists of local addresses"
    )]
    LocalSets {
        /// The first rule whose set does not fit.
        rule: RuleId,
        /// How many are allowed.
        limit: u32,
    },
    /// The IPv4 ranges do not fit.
    #[error(
        "{ranges} IPv4 ranges do not fit the {limit} blocks that the datapath was loaded with: raise limits.prefixes and restart"
    )]
    RangeBlocks {
        /// How many ranges there are.
        ranges: usize,
        /// How many blocks there are.
        limit: u32,
    },
    /// The IPv6 ranges do not fit.
    #[error(
        "the IPv6 prefixes make {ranges} ranges (two for each prefix that stands alone), more than the {limit} that the datapath was loaded for: raise limits.prefixes_v6 and restart"
    )]
    V6Ranges {
        /// How many ranges there are.
        ranges: usize,
        /// How many ranges fit.
        limit: usize,
    },
}

/// How many rules an error names.
const NAMED: usize = 3;

fn some_of(rules: &[RuleId]) -> String {
    let names: Vec<&str> = rules.iter().map(RuleId::as_str).collect();
    format!("{}, …", names.join(", "))
}

/// Compiles a ruleset.
///
/// # Errors
/// A [`CompileError`] if the ruleset does not fit the limits; it names the exceeded limit.
pub fn compile(input: &Input<'_>, limits: &Limits) -> Result<Snapshot, CompileError> {
    let prefixes = check_counts(input, limits)?;
    let compiled = rules::compile(input, limits)?;

    let order = rank::trial_order(input.rules);
    let (claims_v4, claims_v6) = claims(input, &order);
    let prefixes_v6 = claims_v6.len() as u64;
    let mut lists = lists::Lists::new(input.rules, &order, limits.lists);
    let v4 = v4::compile(claims_v4, &mut lists, limits)?;
    let v6 = v6::compile(claims_v6, &mut lists, limits)?;

    Ok(Snapshot {
        rules: compiled.rules,
        lists: lists.into_lists(),
        port_sets: compiled.port_sets,
        interface_sets: compiled.interface_sets,
        local_sets: compiled.local_sets,
        v4,
        v6,
        prefixes,
        prefixes_v6,
    })
}

/// Checks the numbers of rules and of prefixes. Returns the number of prefixes.
fn check_counts(input: &Input<'_>, limits: &Limits) -> Result<u64, CompileError> {
    let allowed = limits.rules.min(abi::MAX_RULES);
    if input.rules.len() as u64 > u64::from(allowed) {
        return Err(CompileError::Rules {
            found: input.rules.len() as u64,
            limit: allowed,
        });
    }
    let of_rules = |RuleInput { rule, .. }: &RuleInput<'_>| {
        rule.targets.len() + rule.except.len() + rule.matching.local.len()
    };
    let prefixes = input.rules.iter().map(of_rules).sum::<usize>() + input.protect.len();
    if prefixes as u64 > u64::from(limits.prefixes) {
        return Err(CompileError::Prefixes {
            found: prefixes as u64,
            limit: limits.prefixes,
        });
    }
    Ok(prefixes as u64)
}

/// The claims of all targets, exceptions and protected prefixes, by address family.
fn claims(input: &Input<'_>, order: &[u16]) -> (Vec<Claim<u32>>, Vec<Claim<u128>>) {
    let mut v4 = Vec::new();
    let mut v6 = Vec::new();
    let mut claim = |net: IpNet, what, place| match net {
        IpNet::V4(net) => v4.push(Claim {
            start: u32::from(net.network()),
            length: net.prefix_len(),
            what,
            place,
        }),
        IpNet::V6(net) => v6.push(Claim {
            start: u128::from(net.network()),
            length: net.prefix_len(),
            what,
            place,
        }),
    };
    for net in input.protect {
        claim(*net, What::Protect, 0);
    }
    for (place, number) in (0..=u16::MAX).zip(order) {
        let rule = input.rules[usize::from(*number)].rule;
        for target in &rule.targets {
            claim(target.net(), What::Target, place);
        }
        for target in &rule.except {
            claim(target.net(), What::Except, place);
        }
    }
    (v4, v6)
}
