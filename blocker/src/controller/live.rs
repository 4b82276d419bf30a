//! What is in force: the rules, and the datapath that holds their compiled form.
//!
//! Every change goes through [`Live::put`]: a whole new ruleset is compiled and switched to, or
//! nothing happens. What comes before (who may, what is wise) and after (teardown) is not here.

use std::collections::BTreeSet;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

use super::{Dataplane, Error, journal};
use crate::compile::{self, Fill, RuleInput};
use crate::config::Config;
use crate::datapath::RuleCounters;
use crate::datapath::devices::Device;
use crate::rule::{Owner, Rule, RuleId};
use crate::ruleset::{self, Entry, Ruleset};

/// How long the datapath goes on behind the deadline of a rule whose flows are to be killed
/// first. The daemon lifts such a rule at its deadline; only if it is dead or stuck does the
/// datapath's own deadline end it.
const LIFT_MARGIN: SignedDuration = SignedDuration::from_millis(800);

/// The rules in force and the datapath.
pub(super) struct Live {
    pub(super) config: Config,
    pub(super) datapath: Box<dyn Dataplane>,
    ruleset: Ruleset,
    devices: Vec<Device>,
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

impl Live {
    pub(super) fn new(config: Config, datapath: Box<dyn Dataplane>) -> Self {
        Self {
            config,
            datapath,
            ruleset: Ruleset::new(),
            devices: Vec::new(),
            fill: Fill::default(),
        }
    }

    pub(super) const fn ruleset(&self) -> &Ruleset {
        &self.ruleset
    }

    /// What the rules in force take of the room there is.
    pub(super) const fn fill(&self) -> &Fill {
        &self.fill
    }

    /// The rules of all owners, as they would be wanted if nothing changed.
    pub(super) fn wanted(&self) -> Vec<Wanted> {
        let wanted = |Entry {
                          rule,
                          owner,
                          created,
                          ..
                      }: &Entry| Wanted {
            rule: rule.clone(),
            owner: owner.clone(),
            created: *created,
        };
        self.ruleset.values().map(wanted).collect()
    }

    /// Makes exactly these rules, no two of one id, the ones in force. A rule that was there keeps
    /// its counters and the time it was made.
    pub(super) fn put(&mut self, wanted: Vec<Wanted>, now: Timestamp) -> Result<(), Error> {
        let mut free = self.free_slots(&wanted);
        let mut fresh = Vec::new();
        let mut ruleset = Ruleset::new();
        for Wanted {
            rule,
            owner,
            created,
        } in wanted
        {
            let old = self.ruleset.get(&rule.id);
            let counter = match old {
                Some(old) => old.counter,
                None => {
                    let slot = free.next().ok_or(Error::TooManyRules {
                        limit: self.config.limits.rules,
                    })?;
                    fresh.push(slot);
                    slot
                }
            };
            let deadline = match old {
                // A clock that was set must not move a deadline that did not change.
                Some(old)
                    if old.rule.expires == rule.expires
                        && old.rule.lifts_by_reset() == rule.lifts_by_reset() =>
                {
                    old.deadline
                }
                _ => rule
                    .expires
                    .map(|expires| boot_deadline(&rule, expires, now)),
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
        let snapshot = self.compile(&ruleset)?;
        for slot in fresh {
            self.datapath.clear_counters(slot)?;
        }
        self.datapath.switch(&snapshot)?;
        self.ruleset = ruleset;
        self.fill = snapshot.fill(self.datapath.limits());
        Ok(())
    }

    /// Whether these rules would fit, without doing anything.
    pub(super) fn check(&self, wanted: Vec<Wanted>) -> Result<(), Error> {
        let entry = |Wanted {
                         rule,
                         owner,
                         created,
                     }| {
            (
                rule.id.clone(),
                Entry {
                    rule,
                    owner,
                    created,
                    deadline: None,
                    counter: 0,
                },
            )
        };
        self.compile(&wanted.into_iter().map(entry).collect())
            .map(drop)
    }

    /// Attaches to the devices that the configuration names; rules that name interfaces follow.
    pub(super) fn follow(&mut self, devices: &[Device], now: Timestamp) -> Vec<Error> {
        let wanted: Vec<Device> = devices
            .iter()
            .filter(|device| device.is_readable() && self.config.interfaces.covers(&device.name))
            .cloned()
            .collect();
        if wanted == self.devices {
            return Vec::new();
        }
        self.devices = wanted;
        let mut errors: Vec<Error> = Vec::new();
        // The rules first: a device must not be attached before its rules know it.
        if self
            .ruleset
            .values()
            .any(|entry| !entry.rule.interfaces.is_empty())
            && let Err(error) = self.put(self.wanted(), now)
        {
            errors.push(error);
        }
        let before: Vec<(u32, String)> = self
            .datapath
            .attached()
            .into_iter()
            .map(|attached| (attached.device.index, attached.device.name.clone()))
            .collect();
        errors.extend(
            self.datapath
                .attach(&self.devices)
                .into_iter()
                .map(Error::from),
        );
        journal::devices(&before, &self.datapath.attached());
        errors
    }

    /// The counter slots of those rules that are in force.
    pub(super) fn slots(&self, rules: &[Rule]) -> Vec<u32> {
        let entries = rules.iter().filter_map(|rule| self.ruleset.get(&rule.id));
        entries.map(|entry| entry.counter).collect()
    }

    /// What a rule did.
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

    fn compile(&self, ruleset: &Ruleset) -> Result<compile::Snapshot, Error> {
        let protect = self.protect();
        let rules: Vec<RuleInput<'_>> = ruleset
            .values()
            .map(|entry| RuleInput {
                rule: &entry.rule,
                deadline: entry.deadline.unwrap_or(blocker_ebpf::NEVER),
                counter: entry.counter,
                interfaces: self.indexes(&entry.rule),
            })
            .collect();
        let input = compile::Input {
            rules: &rules,
            protect: &protect,
        };
        Ok(compile::compile(&input, self.datapath.limits())?)
    }

    fn indexes(&self, rule: &Rule) -> Option<Vec<u32>> {
        (!rule.interfaces.is_empty()).then(|| {
            let named = self
                .devices
                .iter()
                .filter(|device| rule.covers_interface(&device.name));
            named.map(|device| device.index).collect()
        })
    }

    /// Slots for new rules: those that nobody counts in, and only then those of rules that leave
    /// with this change, which count until the switch.
    fn free_slots(&self, wanted: &[Wanted]) -> impl Iterator<Item = u32> + use<> {
        let limit = self.datapath.limits().rules;
        let stay: BTreeSet<&RuleId> = wanted.iter().map(|wanted| &wanted.rule.id).collect();
        let entries = self.ruleset.values();
        let leaving = entries.filter(|entry| !stay.contains(&entry.rule.id));
        let leaving: Vec<u32> = leaving.map(|entry| entry.counter).collect();
        ruleset::free_counters(&self.ruleset)
            .take_while(move |slot| *slot < limit)
            .chain(leaving)
    }
}

/// A rule's deadline as the datapath keeps it: nanoseconds of `CLOCK_BOOTTIME`.
fn boot_deadline(rule: &Rule, expires: Timestamp, now: Timestamp) -> u64 {
    let margin = if rule.lifts_by_reset() {
        LIFT_MARGIN
    } else {
        SignedDuration::ZERO
    };
    let left = expires.duration_since(now).saturating_add(margin);
    let left = u64::try_from(left.as_nanos()).unwrap_or(0);
    boot_time().saturating_add(left)
}

/// `CLOCK_BOOTTIME`, nanoseconds.
pub(super) fn boot_time() -> u64 {
    let now =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    // It has been there since Linux 2.6.39.
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
