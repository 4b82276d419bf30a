//! Reports on rules, counters and the daemon itself.

use std::fs;

use blocker_ebpf::ABI_VERSION;
use jiff::Timestamp;

use super::live::{Live, boot_time};
use super::{Controller, Error, lock};
use crate::compile::Fill;
use crate::datapath::attach::{Attached, hook_name};
use crate::datapath::{RuleCounters, Totals};
use crate::rule::{Owner, RuleId};
use crate::ruleset::Entry;
use crate::wire::{
    Account, Counters, FleetStatus, HookStatus, InterfaceStatus, ListResponse, MapStatus,
    RuleStats, RuleView, Stats, Status, Teardown, Usage,
};

impl Controller {
    /// The rules in force, by id.
    ///
    /// # Errors
    /// If counters can't be read.
    pub fn list(&self) -> Result<ListResponse, Error> {
        let live = self.live();
        let rules = live
            .ruleset()
            .values()
            .map(|entry| view(&live, entry))
            .collect::<Result<_, _>>()?;
        Ok(ListResponse { rules })
    }

    /// One rule.
    ///
    /// # Errors
    /// If there is no such rule, or its counters can't be read.
    pub fn show(&self, id: &RuleId) -> Result<RuleView, Error> {
        let live = self.live();
        let entry = live.ruleset().get(id).ok_or_else(|| Error::NoSuchRule {
            what: id.to_string(),
        })?;
        view(&live, entry)
    }

    /// The daemon's state.
    ///
    /// # Errors
    /// If counters can't be read.
    pub fn status(&self) -> Result<Status, Error> {
        let live = self.live();
        let limits = live.config.limits;
        let fill = live.fill();
        let memory = live.datapath.maps().into_iter();
        let maps: Vec<MapStatus> = memory
            .map(|(name, bytes)| map_status(fill, &name, bytes))
            .collect();
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: ABI_VERSION,
            pid: std::process::id(),
            kernel: nix::sys::utsname::uname()
                .map(|name| name.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
            started: self.0.started_at,
            uptime_seconds: self.0.started.elapsed().as_secs(),
            config: self.0.config_path.display().to_string(),
            last_reload: lock(&self.0.last_reload).clone(),
            interfaces: interfaces(&live)?,
            rules: Usage {
                used: live.ruleset().len() as u64,
                allowed: u64::from(limits.rules),
            },
            prefixes: Usage {
                used: fill.prefixes,
                allowed: u64::from(limits.prefixes),
            },
            prefixes_v6: Usage {
                used: fill.prefixes_v6,
                allowed: u64::from(limits.prefixes_v6.min(limits.prefixes)),
            },
            map_bytes: maps.iter().map(|map| map.bytes).sum(),
            maps,
            resident_bytes: resident_bytes(),
            lacks: self.0.lacks.clone(),
            feeds: lock(&self.0.feeds).statuses(),
            teardown: lock(&self.0.teardown).map(|progress| Teardown {
                found: progress.found,
                killed: progress.killed,
            }),
            teardowns: *lock(&self.0.killed),
            fleet: self.0.fleet.read().map(|fleet| FleetStatus {
                // Counted here, because the fleet's follower does not see rules expire.
                rules: owned(&live, &Owner::Fleet),
                ..fleet
            }),
        })
    }

    /// The sums of the counters of rules and hooks.
    ///
    /// # Errors
    /// If counters can't be read.
    pub fn stats(&self) -> Result<Stats, Error> {
        let live = self.live();
        let rules = live.ruleset().values().map(|entry| {
            let RuleCounters { ingress, egress } = live.counters(entry)?;
            Ok::<_, Error>(RuleStats {
                id: entry.rule.id.clone(),
                owner: entry.owner.clone(),
                mode: entry.rule.mode,
                created: entry.created,
                expires: entry.rule.expires,
                ingress: ingress.into(),
                egress: egress.into(),
            })
        });
        Ok(Stats {
            at: Timestamp::now(),
            boot_ns: boot_time(),
            rules: rules.collect::<Result<_, _>>()?,
            interfaces: interfaces(&live)?,
        })
    }
}

impl From<Totals> for Counters {
    fn from(totals: Totals) -> Self {
        Self {
            packets: totals.packets,
            bytes: totals.bytes,
            replies: totals.replies,
            suppressed: totals.suppressed,
        }
    }
}

/// How many rules an owner has.
fn owned(live: &Live, owner: &Owner) -> u64 {
    let rules = live.ruleset().values();
    rules.filter(|entry| entry.owner == *owner).count() as u64
}

fn map_status(fill: &Fill, name: &str, bytes: u64) -> MapStatus {
    let entries = fill.entries.iter().find(|(map, ..)| *map == name);
    MapStatus {
        name: name.to_ascii_lowercase(),
        bytes,
        entries: entries.map(|&(_, used, allowed)| Usage { used, allowed }),
    }
}

fn view(live: &Live, entry: &Entry) -> Result<RuleView, Error> {
    let RuleCounters { ingress, egress } = live.counters(entry)?;
    let (ingress, egress) = (Counters::from(ingress), Counters::from(egress));
    let left = |expires: Timestamp| {
        u64::try_from(expires.duration_since(Timestamp::now()).as_secs()).unwrap_or(0)
    };
    let remaining = match entry.deadline {
        Some(deadline) if !entry.rule.lifts_by_reset() => {
            Some(deadline.saturating_sub(boot_time()) / 1_000_000_000)
        }
        _ => entry.rule.expires.map(left),
    };
    Ok(RuleView {
        rule: entry.rule.clone(),
        owner: entry.owner.clone(),
        created: entry.created,
        remaining_seconds: remaining,
        counters: ingress + egress,
        ingress,
        egress,
    })
}

fn interfaces(live: &Live) -> Result<Vec<InterfaceStatus>, Error> {
    let attached = live.datapath.attached().into_iter();
    attached.map(|attached| interface(live, attached)).collect()
}

fn interface(live: &Live, attached: &Attached) -> Result<InterfaceStatus, Error> {
    let device = &attached.device;
    let hooks = attached.hooks.iter().map(|hook| {
        let totals = live.datapath.hook_counters(hook.hook, device.index)?;
        Ok::<_, Error>(HookStatus {
            hook: hook_name(hook.hook).to_owned(),
            mode: hook.mode.to_owned(),
            seen: totals.seen,
            passed: totals.passed,
            malformed: totals.malformed,
            own: totals.own,
        })
    });
    Ok(InterfaceStatus {
        name: device.name.clone(),
        index: device.index,
        hooks: hooks.collect::<Result<_, _>>()?,
        notes: attached.notes.clone(),
    })
}

/// `VmRSS` of `/proc/self/status`.
fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: Option<u64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kib.unwrap_or(0) * 1024
}

/// The sum of two accounts.
pub(super) fn sum(one: Account, other: Account) -> Account {
    Account {
        found: one.found + other.found,
        killed: one.killed + other.killed,
        left: one.left.into_iter().chain(other.left).collect(),
        elapsed_ms: one.elapsed_ms + other.elapsed_ms,
        notes: one.notes.into_iter().chain(other.notes).collect(),
    }
}
