//! Which flows a rule kills, and how rules end: by request or by deadline.

use std::sync::Arc;

use blocker_ebpf::FlowKey;
use jiff::Timestamp;

use super::change::Change;
use super::events::rule_change;
use super::in_force::InForce;
use super::live::{Compiled, boot_time};
use super::requests::Keep;
use super::writer::Writer;
use super::{Asking, Controller, Error, journal, lock, to_save};
use crate::rule::Rule;
use crate::teardown::{self, Candidates, Listing};
use crate::wire::event::{RuleChange, RuleFate};
use crate::wire::{Account, DeleteResponse};

impl Controller {
    /// Kills the established flows of those rules that kill. Returns the account.
    pub(super) async fn kill(&self, rules: Vec<Rule>) -> Account {
        self.kill_with(rules, Vec::new()).await
    }

    /// As [`kill`](Self::kill), with flows that the datapath recorded.
    pub(super) async fn kill_with(&self, rules: Vec<Rule>, recorded: Vec<FlowKey>) -> Account {
        if !rules.iter().any(Rule::kills) {
            return Account::default();
        }
        let ids = rules.iter().map(|rule| rule.id.clone()).collect();
        let in_force = InForce::new(self, &rules);
        let settings = self.teardown_settings();
        let inner = Arc::clone(&self.0);
        let work = move || {
            let progress = |progress| *lock(&inner.teardown) = Some(progress);
            let kills = &*inner.kills;
            let account = teardown::kill(&rules, &in_force, &recorded, &settings, kills, &progress);
            *lock(&inner.teardown) = None;
            account
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(account) => {
                lock(&self.0.killed).add(&account);
                journal::killed(&account);
                if account.found > 0 || !account.left.is_empty() {
                    self.0.events.killed(ids, &account);
                }
                account
            }
            Err(error) => Account {
                notes: vec![format!("the teardown failed inside: {error}")],
                ..Account::default()
            },
        }
    }

    /// Kills the established flows of `reset` rules. Those of other rules were killed before the rules
    /// began to drop.
    pub(super) async fn kill_resets(&self, mut rules: Vec<Rule>) -> Account {
        rules.retain(|rule| rule.mode.ends_flows());
        self.kill(rules).await
    }

    /// Lists the flows that a teardown of a rule would kill if these rules were in force.
    pub(super) async fn list_flows(
        &self,
        rule: Rule,
        compiled: Compiled,
    ) -> Result<Listing, Error> {
        let settings = self.teardown_settings();
        let candidates = Candidates {
            killing: compiled.slot(&rule.id).into_iter().collect(),
            snapshot: compiled.snapshot,
            now: boot_time(),
        };
        super::blocking(move || Ok(teardown::list(&[rule], &candidates, &settings))).await
    }

    fn teardown_settings(&self) -> teardown::Settings {
        teardown::Settings {
            namespaces: self.live().config.namespaces,
            mark: self.0.mark,
        }
    }

    /// Lifts rules whose deadline has passed.
    pub(super) async fn expire(&self) {
        // A change locks what is in force for some milliseconds while it switches. This waits for
        // that ten times a second, so it must not do so on a thread that serves requests.
        let this = self.clone();
        let look = move || !this.due(Timestamp::now()).is_empty();
        match tokio::task::spawn_blocking(look).await {
            Ok(true) => self.writer().await.lift_due().await,
            Ok(false) => {}
            Err(error) => {
                tracing::error!("rules whose deadline is over cannot be looked for: {error}");
            }
        }
    }

    /// The rules whose deadline has passed.
    fn due(&self, wall: Timestamp) -> Vec<Rule> {
        let boot = boot_time();
        let live = self.live();
        let due = live.ruleset().values().filter(|entry| {
            let by_boot = entry.deadline.is_some_and(|deadline| deadline <= boot);
            // The wall clock decides for those that are lifted before the datapath's deadline.
            by_boot
                || entry.rule.lifts_by_reset()
                    && entry.rule.expires.is_some_and(|expires| expires <= wall)
        });
        due.map(|entry| entry.rule.clone()).collect()
    }

    /// The events of rules that expire.
    fn expired(&self, rules: &[Rule]) -> Vec<RuleChange> {
        let live = self.live();
        let entries = rules.iter().filter_map(|rule| live.ruleset().get(&rule.id));
        entries
            .map(|entry| rule_change(RuleFate::Expired, &entry.rule, &entry.owner, None))
            .collect()
    }
}

impl Writer {
    /// Lifts the rules, or the targets, that `keep` does not keep.
    pub(super) async fn without(
        &mut self,
        asking: &Asking,
        keep: impl Fn(&Rule) -> Keep,
    ) -> Result<DeleteResponse, Error> {
        let now = Timestamp::now();
        let mut response = DeleteResponse {
            removed: Vec::new(),
            narrowed: Vec::new(),
            teardown: Account::default(),
        };
        let mut change = Change::to(self.live().wanted());
        let (mut ending, mut news) = (Vec::new(), Vec::new());
        let who = Some(asking.who);
        change.wanted.retain(|id, wanted| {
            let (rule, owner) = (&mut wanted.rule, &wanted.owner);
            match keep(rule) {
                Keep::All => true,
                Keep::Nothing => {
                    news.push(rule_change(RuleFate::Lifted, rule, owner, who));
                    response.removed.push(id.clone());
                    ending.push(rule.clone());
                    false
                }
                Keep::Only(targets) => {
                    response.narrowed.push(id.clone());
                    ending.push(Rule {
                        targets: rule.targets.only(|target| !targets.have(*target)),
                        ..rule.clone()
                    });
                    rule.targets = targets;
                    news.push(rule_change(RuleFate::Changed, rule, owner, who));
                    true
                }
            }
        });
        change.ending.clone_from(&ending);
        response.teardown = self.change(change, now).await?;
        journal::lifted(asking.who, &ending, &response.narrowed);
        self.0.events.rules(news);
        Ok(response)
    }

    /// Lifts rules whose deadline has passed, so that a change does not find them in force.
    pub(super) async fn lift_due(&mut self) {
        let now = Timestamp::now();
        let ending = self.due(now);
        if ending.is_empty() {
            return;
        }
        let mut wanted = self.live().wanted();
        for rule in &ending {
            wanted.remove(&rule.id);
        }
        let news = self.expired(&ending);
        let change = Change {
            ending: ending.clone(),
            ..Change::to(wanted)
        };
        match self.change(change, now).await {
            Ok(_) => {
                self.0.events.rules(news);
                journal::expired(&ending);
            }
            Err(error) => {
                tracing::error!("expired rules cannot be removed, but no longer match: {error}");
            }
        }
    }

    /// Carries out the end of rules that expired while no daemon was running.
    pub(super) async fn make_good(&mut self, ending: Vec<Rule>) {
        if ending.is_empty() {
            return;
        }
        tracing::info!(
            rules = ending.len(),
            "rules expired while no daemon was there"
        );
        journal::expired(&ending);
        let wanted = self.live().wanted();
        let change = Change {
            ending,
            ..Change::to(wanted.clone())
        };
        let done = self.change(change, Timestamp::now()).await;
        // They are still in the file: `change` saves only if the wanted rules differ from those in
        // force, which these never were.
        if let Err(error) = done
            .map(drop)
            .and_then(|()| Ok(self.store.save(to_save(&wanted))?))
        {
            tracing::error!("{error}");
        }
    }
}
