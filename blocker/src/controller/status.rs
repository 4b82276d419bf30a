//! What the controller tells of itself and its rules.

use std::fs;

use blocker_ebpf::ABI_VERSION;
use jiff::Timestamp;

use super::live::{Live, boot_time};
use super::{Controller, Error, lock};
use crate::api::types::{
    Account, Counters, HookStatus, InterfaceStatus, ListResponse, RuleView, Status, Teardown, Usage,
};
use crate::datapath::attach::{Attached, hook_name};
use crate::datapath::{RuleCounters, Totals};
use crate::rule::RuleId;
use crate::ruleset::Entry;

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

    /// How the daemon fares.
    ///
    /// # Errors
    /// If counters can't be read.
    pub fn status(&self) -> Result<Status, Error> {
        let live = self.live();
        let limits = live.config.limits;
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: ABI_VERSION,
            pid: std::process::id(),
            kernel: nix::sys::utsname::uname()
                .map(|name| name.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
            uptime_seconds: self.0.started.elapsed().as_secs(),
            config: self.0.config_path.display().to_string(),
            last_reload: lock(&self.0.last_reload).clone(),
            interfaces: live
                .datapath
                .attached()
                .into_iter()
                .map(|attached| interface(&live, attached))
                .collect::<Result<_, _>>()?,
            rules: Usage {
                used: live.ruleset().len() as u64,
                allowed: u64::from(limits.rules),
            },
            prefixes: Usage {
                used: live.prefixes(),
                allowed: u64::from(limits.prefixes),
            },
            map_bytes: live.datapath.map_bytes(),
            resident_bytes: resident_bytes(),
            lacks: self.0.lacks.clone(),
            teardown: lock(&self.0.teardown).map(|progress| Teardown {
                found: progress.found,
                killed: progress.killed,
            }),
        })
    }
}

fn view(live: &Live, entry: &Entry) -> Result<RuleView, Error> {
    let RuleCounters { ingress, egress } = live.counters(entry)?;
    let both = |of: fn(&Totals) -> u64| of(&ingress) + of(&egress);
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
        counters: Counters {
            packets: both(|totals| totals.packets),
            bytes: both(|totals| totals.bytes),
            replies: both(|totals| totals.replies),
            suppressed: both(|totals| totals.suppressed),
        },
    })
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

/// The account of two teardowns.
pub(super) fn sum(one: Account, other: Account) -> Account {
    Account {
        found: one.found + other.found,
        killed: one.killed + other.killed,
        left: one.left.into_iter().chain(other.left).collect(),
        elapsed_ms: one.elapsed_ms + other.elapsed_ms,
        notes: one.notes.into_iter().chain(other.notes).collect(),
    }
}
