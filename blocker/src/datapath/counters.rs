//! The counters of rules and hooks: per CPU in the kernel, summed over the CPUs here.

use aya::Pod;
use aya::maps::{Array, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use blocker_ebpf::{self as abi, Hook, hook_slot, maps};

use super::Error;
use super::load::Object;
use super::tags::Tags;
use crate::rule::RuleId;

/// A rule's counters by direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RuleCounters {
    /// Packets from the remotes.
    pub ingress: Totals,
    /// Packets to the remotes.
    pub egress: Totals,
}

/// A rule's counters in one direction, summed over all CPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets that the rule decided.
    pub packets: u64,
    /// The bytes of these packets, link-layer header included.
    pub bytes: u64,
    /// Replies sent.
    pub replies: u64,
    /// Packets that got no reply because of the rate limit.
    pub suppressed: u64,
}

/// Sets a value of a map on all CPUs.
fn set_all<T: Pod>(
    map: &mut PerCpuArray<MapData, T>,
    name: &'static str,
    place: u32,
    value: T,
    cpus: usize,
) -> Result<(), Error> {
    let values = PerCpuValues::try_from(vec![value; cpus]).map_err(|source| Error::Cpus {
        file: "possible CPUs".to_owned(),
        source,
    })?;
    map.set(place, values, 0)
        .map_err(|source| Error::Map { map: name, source })
}

const fn names_error(source: MapError) -> Error {
    Error::Map {
        map: maps::RULE_NAMES,
        source,
    }
}

/// The counters of a hook on a device, summed over all CPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HookTotals {
    /// Packets seen, without blocker's own.
    pub seen: u64,
    /// Packets that no rule decided at this hook.
    pub passed: u64,
    /// Packets whose headers could not be read; they pass.
    pub malformed: u64,
    /// Packets that blocker sent itself.
    pub own: u64,
}

/// The counter maps.
pub struct CounterMaps {
    rules: PerCpuArray<MapData, abi::Counters>,
    names: Array<MapData, abi::RuleName>,
    hooks: PerCpuArray<MapData, abi::HookCounters>,
    tags: Tags,
    /// The rules that had a slot when the maps were taken.
    counted: Vec<(RuleId, u32)>,
    cpus: usize,
}

impl CounterMaps {
    /// Takes the maps from a loaded object.
    ///
    /// # Errors
    /// If a map is missing.
    pub fn new(object: &mut Object) -> Result<Self, Error> {
        let mut counters = Self {
            rules: PerCpuArray::try_from(object.map(maps::COUNTERS)?).map_err(|source| {
                Error::Map {
                    map: maps::COUNTERS,
                    source,
                }
            })?,
            names: Array::try_from(object.map(maps::RULE_NAMES)?).map_err(names_error)?,
            tags: Tags::default(),
            counted: Vec::new(),
            hooks: PerCpuArray::try_from(object.map(maps::HOOKS)?).map_err(|source| {
                Error::Map {
                    map: maps::HOOKS,
                    source,
                }
            })?,
            cpus: nr_cpus().map_err(|(file, source)| Error::Cpus {
                file: file.to_owned(),
                source,
            })?,
        };
        for slot in 0..counters.names.len() {
            let name = counters.names.get(&slot, 0).map_err(names_error)?;
            counters.tags.set(slot, name.incarnation as u16);
            let id = name.id.split(|byte| *byte == 0).next().unwrap_or_default();
            let id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
            counters.counted.extend(id.map(|id| (id, slot)));
        }
        Ok(counters)
    }

    /// A rule's counters, by its slot.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn rule(&self, slot: u32) -> Result<RuleCounters, Error> {
        Ok(RuleCounters {
            ingress: self.totals(slot * 2)?,
            egress: self.totals(slot * 2 + 1)?,
        })
    }

    fn totals(&self, place: u32) -> Result<Totals, Error> {
        let values = self.rules.get(&place, 0).map_err(|source| Error::Map {
            map: maps::COUNTERS,
            source,
        })?;
        Ok(values.iter().fold(Totals::default(), |sum, value| Totals {
            packets: sum.packets + value.packets,
            bytes: sum.bytes + value.bytes,
            replies: sum.replies + value.replies,
            suppressed: sum.suppressed + value.suppressed,
        }))
    }

    /// The rules of an earlier daemon: those that had a slot when the maps were taken.
    pub fn counted(&self) -> &[(RuleId, u32)] {
        &self.counted
    }

    /// The tags by which flow records and events name rules.
    pub const fn tags(&self) -> &Tags {
        &self.tags
    }

    /// Zeroes a slot and gives it, with a new tag, to a rule. No live rule may use the slot.
    ///
    /// # Errors
    /// If a map can't be written.
    pub fn begin_rule(&mut self, slot: u32, rule: &RuleId) -> Result<(), Error> {
        self.clear_rule(slot)?;
        self.tags.renew(slot);
        let mut id = [0; 64];
        let text = rule.as_str().as_bytes();
        id[..text.len()].copy_from_slice(text);
        self.name(slot, id)
    }

    /// Frees a slot.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn end_rule(&mut self, slot: u32) -> Result<(), Error> {
        self.name(slot, [0; 64])
    }

    fn name(&mut self, slot: u32, id: [u8; 64]) -> Result<(), Error> {
        let incarnation = u32::from(self.tags.incarnation(slot));
        let name = abi::RuleName { id, incarnation };
        self.names.set(slot, name, 0).map_err(names_error)
    }

    fn clear_rule(&mut self, slot: u32) -> Result<(), Error> {
        let zero = abi::Counters {
            packets: 0,
            bytes: 0,
            replies: 0,
            suppressed: 0,
        };
        [slot * 2, slot * 2 + 1]
            .into_iter()
            .try_for_each(|place| set_all(&mut self.rules, maps::COUNTERS, place, zero, self.cpus))
    }

    /// Zeroes the hook counters of a device, unless devices with high indexes share them.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn clear_device(&mut self, ifindex: u32) -> Result<(), Error> {
        if ifindex >= abi::HOOK_DEVICES {
            return Ok(());
        }
        let zero = abi::HookCounters {
            seen: 0,
            passed: 0,
            malformed: 0,
            own: 0,
        };
        [Hook::Xdp, Hook::Ingress, Hook::Egress]
            .into_iter()
            .map(|hook| hook_slot(hook, ifindex))
            .try_for_each(|place| set_all(&mut self.hooks, maps::HOOKS, place, zero, self.cpus))
    }

    /// Zeroes the hook counters of all devices except those that are attached.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn clear_devices_but(&mut self, attached: &[u32]) -> Result<(), Error> {
        // Devices with higher indexes share slot 0, which is in use while one of them is attached.
        let shared = attached.iter().any(|index| *index >= abi::HOOK_DEVICES);
        (0..abi::HOOK_DEVICES)
            .filter(|index| !(attached.contains(index) || (*index == 0 && shared)))
            .try_for_each(|index| self.clear_device(index))
    }

    /// The counters of a hook on a device.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn hook(&self, hook: Hook, ifindex: u32) -> Result<HookTotals, Error> {
        let values = self
            .hooks
            .get(&hook_slot(hook, ifindex), 0)
            .map_err(|source| Error::Map {
                map: maps::HOOKS,
                source,
            })?;
        Ok(values
            .iter()
            .fold(HookTotals::default(), |sum, value| HookTotals {
                seen: sum.seen + value.seen,
                passed: sum.passed + value.passed,
                malformed: sum.malformed + value.malformed,
                own: sum.own + value.own,
            }))
    }
}
