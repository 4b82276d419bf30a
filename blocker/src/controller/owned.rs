//! The rules of a remote owner (the fleet), replaced as one change.
//!
//! Nobody is waiting who could correct a rule, so rules are independent: one that is refused here, or
//! for which there is no room, is reported, and the others are put in force together.

use std::path::Path;

use ipnet::IpNet;
use jiff::Timestamp;

use super::live::{Wanted, WantedRules};
use super::replace::Replacement;
use super::requests::{facts, finished};
use super::{Asking, Controller, Error, status};
use crate::config::Config;
use crate::fleet::board::Board;
use crate::fleet::form::Fleet;
use crate::fleet::{Host, Replaced, held};
use crate::rule::{Owner, Rule, RuleId, RuleSpec};
use crate::ruleset::Diff;
use crate::safety::{self, HostFacts};
use crate::wire::AddResponse;

/// A rule of such an owner.
#[derive(Debug, Clone)]
pub struct Owned {
    /// The rule.
    pub rule: Rule,
    /// Whether to override refusals that can be overridden.
    pub force: bool,
}

impl Host for Controller {
    async fn enforce(&self, told: Vec<held::Told>) -> Result<Replaced, String> {
        let rules = told.into_iter().map(|told| Owned {
            rule: told.rule,
            force: told.force,
        });
        let replaced = self.replace_owned(Owner::Fleet, rules.collect()).await;
        replaced.map_err(|error| error.to_string())
    }

    async fn flows(&self, rule: RuleSpec, force: bool) -> Result<u64, String> {
        match self.try_rule(rule, force).await {
            Ok(answer) => Ok(answer.would_kill.map_or(0, |flows| flows.len() as u64)),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Controller {
    /// Makes these rules all that an owner has.
    ///
    /// # Errors
    /// See [`Error`]. A refused rule is not an error.
    pub async fn replace_owned(&self, owner: Owner, rules: Vec<Owned>) -> Result<Replaced, Error> {
        let this = self.clone();
        finished(async move { this.replace_owned_now(&owner, rules).await }).await
    }

    async fn replace_owned_now(&self, owner: &Owner, rules: Vec<Owned>) -> Result<Replaced, Error> {
        let mut writer = self.writer().await;
        if self.0.events.is_closed() {
            return Err(Error::Inside("it is stopping".to_owned()));
        }
        writer.lift_due().await;
        let now = Timestamp::now();
        let facts = facts(&Asking::default());
        let protect = self.live().protect();
        let taken = |id: &RuleId| {
            let live = self.live();
            let entry = live.ruleset().get(id);
            entry
                .map(|entry| entry.owner.clone())
                .filter(|of| of != owner)
        };
        let (rules, mut refused) = admit(rules, taken, &facts, &protect, now);
        let mut accepted = rules;
        let (replacement, mut diff) = self.replacement(owner, accepted.clone(), now)?;
        let replaced = match writer.replace(replacement, None, now).await {
            Err(Error::Compile(_) | Error::TooManyRules { .. }) => {
                let (fitting, too_much) = self.fitting(owner, accepted, now);
                refused.extend(too_much);
                accepted = fitting;
                let replacement;
                (replacement, diff) = self.replacement(owner, accepted.clone(), now)?;
                writer.replace(replacement, None, now).await
            }
            done => done,
        };
        let (account, starting) = replaced?;
        drop(writer);
        let changed = diff.changed.iter();
        let changed = changed.filter(|(before, after)| !before.same_effect(after));
        let started = diff.added.iter().chain(changed.map(|(_, after)| after));
        let started = started.map(|rule| rule.id.clone()).collect();
        let this = self.clone();
        let teardown =
            tokio::spawn(async move { status::sum(account, this.kill_resets(starting).await) });
        Ok(Replaced {
            in_force: accepted.len(),
            started,
            refused,
            teardown,
        })
    }

    /// The replacement of all rules of an owner by these, and what it changes.
    pub(super) fn replacement(
        &self,
        owner: &Owner,
        rules: Vec<Rule>,
        now: Timestamp,
    ) -> Result<(Replacement, Diff), Error> {
        let live = self.live();
        let mut replacement = Replacement::new(&live);
        let diff = replacement.put(&live, owner, rules, now)?;
        Ok((replacement, diff))
    }

    /// Those of an owner's rules for which there is room: rules in force first, then the others in their
    /// order. And those for which there is none, and why.
    fn fitting(
        &self,
        owner: &Owner,
        rules: Vec<Rule>,
        now: Timestamp,
    ) -> (Vec<Rule>, Vec<(RuleId, String)>) {
        let there = |rule: &Rule| {
            let live = self.live();
            let entry = live.ruleset().get(&rule.id);
            entry.is_some_and(|entry| entry.rule.same_effect(rule))
        };
        let (mut fitting, new): (Vec<Rule>, Vec<Rule>) = rules.into_iter().partition(there);
        let mut refused = Vec::new();
        let mut wanted = self.live().wanted();
        wanted.retain(|_, wanted| wanted.owner != *owner);
        let entry = |rule: &Rule| Wanted::entry(rule.clone(), owner, now);
        wanted.extend(fitting.iter().map(entry));
        for rule in new {
            wanted.extend([entry(&rule)]);
            match self.check(wanted.clone(), now) {
                Ok(_) => fitting.push(rule),
                Err(error) => {
                    wanted.remove(&rule.id);
                    refused.push((rule.id, error.to_string()));
                }
            }
        }
        (fitting, refused)
    }

    /// Says what adding a rule would do on this host.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn try_rule(&self, spec: RuleSpec, force: bool) -> Result<AddResponse, Error> {
        let asking = Asking {
            force,
            dry_run: true,
            ..Asking::default()
        };
        self.add(spec, asking).await
    }

    /// The board on which the fleet's follower reports its state.
    #[must_use]
    pub fn fleet_board(&self) -> Board {
        self.0.fleet.clone()
    }

    /// The fleet that the configuration in force names, and the state directory.
    #[must_use]
    pub fn fleet_config(&self) -> (Option<Fleet>, std::path::PathBuf) {
        let live = self.live();
        (live.config.fleet.clone(), live.config.state_dir.clone())
    }
}

/// Sorts rules into those admitted, with what they must not block carved out, and those refused. A rule
/// that has expired is left out.
fn admit(
    rules: Vec<Owned>,
    taken: impl Fn(&RuleId) -> Option<Owner>,
    facts: &HostFacts,
    protect: &[IpNet],
    now: Timestamp,
) -> (Vec<Rule>, Vec<(RuleId, String)>) {
    let mut admitted: Vec<Rule> = Vec::new();
    let mut refused = Vec::new();
    for Owned { mut rule, force } in rules {
        if rule.expires.is_some_and(|expires| expires <= now) {
            continue;
        }
        if let Some(owner) = taken(&rule.id) {
            let id = rule.id.clone();
            refused.push((rule.id, Error::Taken { id, owner }.to_string()));
            continue;
        }
        match safety::review(&mut rule, facts, protect, force) {
            Ok(carved) => {
                for carved in carved {
                    tracing::info!(rule = %rule.id, target = %carved.target, "not blocked: {}", carved.why);
                }
                admitted.push(rule);
            }
            Err(refusal) => refused.push((rule.id, refusal.to_string())),
        }
    }
    (admitted, refused)
}

/// The fleet's rules, as saved before, that are in force until etcd answers.
pub(super) fn saved(
    fleet: &Fleet,
    config: &Config,
    wanted: &WantedRules,
    now: Timestamp,
) -> WantedRules {
    let directory: &Path = &config.state_dir;
    let told = held::kept(fleet, directory, now).unwrap_or_else(|error| {
        tracing::error!("{error}");
        Vec::new()
    });
    if told.is_empty() {
        return WantedRules::new();
    }
    let rules = told.into_iter().map(|told| Owned {
        rule: told.rule,
        force: told.force,
    });
    let taken = |id: &RuleId| {
        let other = wanted.get(id);
        other.map(|other| other.owner.clone())
    };
    let protect: Vec<IpNet> = config.protect.iter().map(|target| target.net()).collect();
    let facts = facts(&Asking::default());
    let (admitted, refused) = admit(rules.collect(), taken, &facts, &protect, now);
    for (rule, why) in refused {
        tracing::warn!(%rule, "a rule of the fleet is refused: {why}");
    }
    let wanted = |rule| Wanted::entry(rule, &Owner::Fleet, now);
    admitted.into_iter().map(wanted).collect()
}
