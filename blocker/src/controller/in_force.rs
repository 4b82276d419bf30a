//! The rules in force for a teardown, read from the live bank as the datapath reads it.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use super::Controller;
use super::live::boot_time;
use crate::matching::Tried;
use crate::rule::{Rule, RuleId};
use crate::teardown::Rules;

/// The rules in force, some of them under teardown.
pub(super) struct InForce {
    controller: Controller,
    /// The rules under teardown, by the slots of their counters.
    killing: BTreeMap<u32, RuleId>,
}

impl InForce {
    pub(super) fn new(controller: &Controller, killing: &[Rule]) -> Self {
        let live = controller.live();
        let killing = killing.iter().filter(|rule| rule.kills());
        let entries = killing.filter_map(|rule| live.ruleset().get(&rule.id));
        Self {
            killing: entries
                .map(|entry| (entry.counter, entry.rule.id.clone()))
                .collect(),
            controller: controller.clone(),
        }
    }
}

impl Rules for InForce {
    fn list(&self, remote: IpAddr) -> io::Result<u64> {
        Ok(self.controller.live().datapath.list(remote))
    }

    fn tried(&self, remote: IpAddr) -> io::Result<Vec<(Tried, bool)>> {
        let live = self.controller.live();
        let tried = live.datapath.lookup(remote).map_err(io::Error::other)?;
        // Meanwhile, another change may have ended the rule or given its slot to another rule.
        let kills = |slot: u32| {
            let entry = self
                .killing
                .get(&slot)
                .and_then(|id| live.ruleset().get(id));
            entry.is_some_and(|entry| entry.counter == slot && entry.rule.mode.ends_flows())
        };
        let tried = tried.into_iter().map(|tried| {
            let kills = kills(tried.rule.counter);
            (tried, kills)
        });
        Ok(tried.collect())
    }

    fn now(&self) -> u64 {
        boot_time()
    }
}
