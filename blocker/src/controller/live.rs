//! What is in force: the rules, and the datapath that holds their compiled form.
//!
//! Every change is planned, compiled and enforced: a whole new ruleset is switched to, or nothing
//! happens. Compiling takes longest, and reads go on meanwhile: [`Writer::put`] locks what is in force
//! only before and after. Safety checks before a change and
//! teardown after it are not here.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

use super::writer::Writer;
use super::{Controller, Dataplane, Error, journal};
use crate::compile::{self, Fill, Limits, RuleInput, Snapshot};
use crate::config::{Config, HookChoice};
use crate::datapath::RuleCounters;
use crate::datapath::attach::Attached;
use crate::datapath::devices::Device;
use crate::rule::{Owner, Rule, RuleId};
use crate::ruleset::{self, Entry, Ruleset};

/// How much later the datapath's deadline is for a rule whose flows are to be killed at its end. The
/// daemon lifts such a rule at its deadline; the datapath ends it only if the daemon is dead or stuck.
const LIFT_MARGIN: SignedDuration = SignedDuration::from_millis(800);

/// The rules in force and the datapath.
pub(super) struct Live {
    pub(super) config: Config,
    pub(super) datapath: Box<dyn Dataplane>,
    ruleset: Ruleset,
    devices: Vec<Device>,
    /// Counter slots of rules that were in force before this daemon was, until its first change.
    counted: BTreeMap<RuleId, u32>,
    fill: Fill,
}

/// A rule that is to be in force.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) rule: Rule,
    pub(super) owner: Owner,
    /// When it was first put in force; of a rule that is in force already, that counts.
    pub(super) created: Timestamp,
}

/// All rules that are to be in force, by id.
pub(super) type WantedRules = BTreeMap<RuleId, Wanted>;

impl Wanted {
    /// A rule with its key among [`WantedRules`].
    pub(super) fn entry(rule: Rule, owner: &Owner, created: Timestamp) -> (RuleId, Self) {
        let owner = owner.clone();
        (
            rule.id.clone(),
            Self {
                rule,
                owner,
                created,
            },
        )
    }
}

/// A change that is not compiled yet.
pub(super) struct Plan {
    ruleset: Ruleset,
    /// Counter slots that new rules get.
    fresh: Vec<(u32, RuleId)>,
    /// The devices that each rule is limited to, in the ruleset's order.
    interfaces: Vec<Option<Vec<u32>>>,
    protect: Vec<IpNet>,
    generic_xdp: bool,
    limits: Limits,
}

/// A change that can be enforced if no other one was enforced since it was planned.
pub(super) struct Compiled {
    ruleset: Ruleset,
    fresh: Vec<(u32, RuleId)>,
    pub(super) snapshot: Snapshot,
}

impl Compiled {
    /// The slot of a rule's counters.
    pub(super) fn slot(&self, rule: &RuleId) -> Option<u32> {
        self.ruleset.get(rule).map(|entry| entry.counter)
    }
}

/// What to do about devices that came or went. Rules come first: a device must not be attached before
/// the rules that name it are compiled with its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    Hooks,
    RulesAndHooks,
}

impl Plan {
    pub(super) fn compile(self) -> Result<Compiled, Error> {
        let Self {
            ruleset,
            fresh,
            interfaces,
            protect,
            generic_xdp,
            limits,
        } = self;
        let inputs = ruleset.values().zip(interfaces);
        let rules: Vec<RuleInput<'_>> = inputs
            .map(|(entry, interfaces)| RuleInput {
                rule: &entry.rule,
                deadline: entry.deadline.unwrap_or(blocker_ebpf::NEVER),
                counter: entry.counter,
                interfaces,
            })
            .collect();
        let input = compile::Input {
            rules: &rules,
            protect: &protect,
            generic_xdp,
        };
        let snapshot = compile::compile(&input, &limits)?;
        Ok(Compiled {
            ruleset,
            fresh,
            snapshot,
        })
    }
}

impl Live {
    pub(super) fn new(config: Config, datapath: Box<dyn Dataplane>) -> Self {
        Self {
            config,
            counted: datapath.counted().into_iter().collect(),
            datapath,
            ruleset: Ruleset::new(),
            devices: Vec::new(),
            fill: Fill::default(),
        }
    }

    pub(super) const fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    /// How much of the datapath's maps the rules in force use.
    pub(super) const fn fill(&self) -> &Fill {
        &self.fill
    }

    /// The rules of all owners, as a basis for a change.
    pub(super) fn wanted(&self) -> WantedRules {
        let entries = self.ruleset.values();
        entries
            .map(|entry| Wanted::entry(entry.rule.clone(), &entry.owner, entry.created))
            .collect()
    }

    /// What it takes to make exactly these rules the ones in force. A rule that is in force keeps its
    /// counters and its creation time.
    pub(super) fn plan(&self, wanted: WantedRules, now: Timestamp) -> Result<Plan, Error> {
        // Read in this order, so that a delay in between makes deadlines early, not late. Waiting for
        // the writer and gathering facts may have taken long since `now`.
        let boot = boot_time();
        let wall = now.max(Timestamp::now());
        let mut free = self.free_slots(&wanted);
        let mut fresh = Vec::new();
        let mut ruleset = Ruleset::new();
        for Wanted {
            rule,
            owner,
            created,
        } in wanted.into_values()
        {
            let old = self.ruleset.get(&rule.id);
            let known = self.counted.get(&rule.id).copied();
            let counter = match old.map(|old| old.counter).or(known) {
                Some(counter) => counter,
                None => {
                    let slot = free.next().ok_or(Error::TooManyRules {
                        limit: self.config.limits.rules,
                    })?;
                    fresh.push((slot, rule.id.clone()));
                    slot
                }
            };
            let deadline = match old {
                // Setting the wall clock must not move a deadline that did not change.
                Some(old)
                    if old.rule.expires == rule.expires
                        && old.rule.lifts_by_reset() == rule.lifts_by_reset() =>
                {
                    old.deadline
                }
                _ => rule
                    .expires
                    .map(|expires| boot_deadline(&rule, expires, wall, boot)),
            };
            let created = old.map_or(created, |old| old.created);
            let entry = Entry {
                rule,
                owner,
                created,
                deadline,
                counter,
            };
            ruleset.insert(entry.rule.id.clone(), entry);
        }
        Ok(Plan {
            interfaces: ruleset
                .values()
                .map(|entry| self.indexes(&entry.rule))
                .collect(),
            ruleset,
            fresh,
            protect: self.protect(),
            generic_xdp: self.config.hook == HookChoice::XdpGeneric,
            limits: *self.datapath.limits(),
        })
    }

    /// Puts a plan in force, which must have been made since the last change, or changes nothing.
    pub(super) fn enforce(&mut self, compiled: Compiled) -> Result<(), Error> {
        let Compiled {
            ruleset,
            fresh,
            snapshot,
        } = compiled;
        for (slot, rule) in fresh {
            self.datapath.begin_counting(slot, &rule)?;
        }
        self.datapath.switch(&snapshot)?;
        let before = std::mem::replace(&mut self.ruleset, ruleset);
        self.fill = snapshot.fill(self.datapath.limits());
        let known = std::mem::take(&mut self.counted).into_iter();
        let known = known.chain(before.into_iter().map(|(id, entry)| (id, entry.counter)));
        let used: BTreeSet<u32> = self.ruleset.values().map(|entry| entry.counter).collect();
        for (_, slot) in known.filter(|(_, slot)| !used.contains(slot)) {
            // The rules are in force, so this is not an error of the change.
            if let Err(error) = self.datapath.end_counting(slot) {
                tracing::warn!("the counters of a rule that is gone stay: {error}");
            }
        }
        Ok(())
    }

    /// Takes note of the devices there are. Returns what to do if those that are covered changed.
    pub(super) fn meet(&mut self, devices: &[Device]) -> Option<Follow> {
        let covered =
            |device: &&Device| device.is_readable() && self.config.interfaces.covers(&device.name);
        let wanted: Vec<Device> = devices.iter().filter(covered).cloned().collect();
        if wanted == self.devices {
            return None;
        }
        self.devices = wanted;
        let mut rules = self.ruleset.values().map(|entry| &entry.rule);
        Some(if rules.any(|rule| !rule.matching.interfaces.is_empty()) {
            Follow::RulesAndHooks
        } else {
            Follow::Hooks
        })
    }

    /// Whether the datapath is attached to all devices noted last.
    fn is_everywhere(&self) -> bool {
        let attached = self.datapath.attached();
        let is_attached = |device: &Device| {
            let mut indexes = attached.iter().map(|attached| attached.device.index);
            indexes.any(|index| index == device.index)
        };
        self.devices.iter().all(is_attached)
    }

    /// Attaches to the devices noted last. Returns what failed.
    pub(super) fn attach(&mut self) -> Vec<Error> {
        let device = |attached: &Attached| (attached.device.index, attached.device.name.clone());
        let before: Vec<_> = self.datapath.attached().into_iter().map(device).collect();
        let errors = self.datapath.attach(&self.devices);
        journal::devices(&before, &self.datapath.attached());
        errors.into_iter().map(Error::from).collect()
    }

    /// The counter slots of those rules that are in force.
    pub(super) fn slots(&self, rules: &[Rule]) -> Vec<u32> {
        let entries = rules.iter().filter_map(|rule| self.ruleset.get(&rule.id));
        entries.map(|entry| entry.counter).collect()
    }

    /// A rule's counters.
    pub(super) fn counters(&self, entry: &Entry) -> Result<RuleCounters, Error> {
        Ok(self.datapath.rule_counters(entry.counter)?)
    }

    /// Prefixes that no rule may touch.
    pub(super) fn protect(&self) -> Vec<IpNet> {
        self.config
            .protect
            .iter()
            .map(|target| target.net())
            .collect()
    }

    fn indexes(&self, rule: &Rule) -> Option<Vec<u32>> {
        (!rule.matching.interfaces.is_empty()).then(|| {
            let named = self
                .devices
                .iter()
                .filter(|device| rule.covers_interface(&device.name));
            named.map(|device| device.index).collect()
        })
    }

    /// Slots for new rules: free ones first, then those of rules that this change removes, which are in
    /// use until the switch.
    fn free_slots(&self, wanted: &WantedRules) -> impl Iterator<Item = u32> + use<> {
        let limit = self.datapath.limits().rules;
        let entries = self.ruleset.iter();
        let leaving = entries.filter(|(id, _)| !wanted.contains_key(id));
        let leaving = leaving.map(|(_, entry)| entry.counter);
        let counted: BTreeSet<u32> = self.counted.values().copied().collect();
        let gone = self.counted.iter();
        let gone = gone.filter(|(id, _)| !wanted.contains_key(id));
        let leaving: Vec<u32> = gone.map(|(_, slot)| *slot).chain(leaving).collect();
        ruleset::free_counters(&self.ruleset)
            .take_while(move |slot| *slot < limit)
            .filter(move |slot| !counted.contains(slot))
            .chain(leaving)
    }
}

impl Controller {
    /// Compiles these rules, which shows whether they would fit. Changes nothing.
    pub(super) fn check(&self, wanted: WantedRules, now: Timestamp) -> Result<Compiled, Error> {
        let plan = self.live().plan(wanted, now)?;
        plan.compile()
    }
}

impl Writer {
    /// Makes exactly these rules the ones in force, or changes nothing.
    pub(super) fn put(&mut self, wanted: WantedRules, now: Timestamp) -> Result<(), Error> {
        let plan = self.live().plan(wanted, now)?;
        let compiled = plan.compile()?;
        self.live_mut().enforce(compiled)
    }

    /// Attaches to the devices that the configuration names; rules that name interfaces follow.
    pub(super) fn follow_devices(&mut self, devices: &[Device], now: Timestamp) -> Vec<Error> {
        let follow = {
            let mut live = self.live_mut();
            let follow = live.meet(devices);
            if follow.is_none() && live.is_everywhere() {
                return Vec::new();
            }
            follow
        };
        let wanted = (follow == Some(Follow::RulesAndHooks)).then(|| self.live().wanted());
        let put = wanted.map_or(Ok(()), |wanted| self.put(wanted, now));
        let attached = self.live_mut().attach();
        put.err().into_iter().chain(attached).collect()
    }
}

/// A rule's deadline as the datapath keeps it: nanoseconds of `CLOCK_BOOTTIME`, which is `boot` when the
/// wall clock is `wall`.
fn boot_deadline(rule: &Rule, expires: Timestamp, wall: Timestamp, boot: u64) -> u64 {
    let margin = if rule.lifts_by_reset() {
        LIFT_MARGIN
    } else {
        SignedDuration::ZERO
    };
    let left = expires.duration_since(wall).saturating_add(margin);
    let left = u64::try_from(left.as_nanos()).unwrap_or(0);
    boot.saturating_add(left)
}

/// `CLOCK_BOOTTIME`, nanoseconds.
pub(super) fn boot_time() -> u64 {
    let now =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    // It has been there since Linux 2.6.39.
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
