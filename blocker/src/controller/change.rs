//! How a change is carried out, and what it kills on the way.
//!
//! A rule with `on_lift: reset` does not end at once. It becomes a `reset` rule first, under which
//! its flows are killed at both ends; then it is removed. So nothing that was sent during the block
//! is delivered: its connection is gone. A rule that drops and kills starts the same way, because
//! flows that are dropped already cannot be killed.

use std::panic::resume_unwind;
use std::thread;

use jiff::{SignedDuration, Timestamp};

use super::in_force::InForce;
use super::live::{Wanted, WantedRules};
use super::writer::Writer;
use super::{Error, kept, status};
use crate::rule::{Established, Mode, Owner, Rule};
use crate::teardown;
use crate::wire::Account;

impl Writer {
    /// Carries a change out: kills the flows of ending rules that ask for it, saves the wanted rules,
    /// kills the flows of starting rules that will drop, and puts the wanted rules in force. If that
    /// fails, the rules before are in force and on disk (but flows may have been killed).
    ///
    /// A rule is removed from disk only after its flows are killed. If the daemon dies meanwhile, the
    /// next one finds the rule and kills them, so nothing that was sent during the block is delivered.
    ///
    /// Flows of starting `reset` rules are left to [`kill`](super::Controller::kill), which needs no
    /// writer.
    pub(super) async fn change(
        &mut self,
        change: Change,
        now: Timestamp,
    ) -> Result<Account, Error> {
        let before = self.live().wanted();
        let differs = kept(&before) != kept(&change.wanted);
        let ends = change.ending.iter().any(Rule::lifts_by_reset);
        let result = self.carry_out(change, differs, now).await;
        self.learn_names();
        match &result {
            // Saving failed before anything was put in force, and the file is as it was.
            Err(Error::State(_)) if !ends => {}
            Err(_) => {
                if let Err(error) = self.put(before.clone(), now) {
                    tracing::error!("the rules before a failed change cannot be put back: {error}");
                }
                if differs && let Err(error) = self.store.save(kept(&before)) {
                    tracing::error!("{error}");
                }
            }
            Ok(_) => {}
        }
        result
    }

    /// `differs`: the wanted rules are not those on disk.
    async fn carry_out(
        &mut self,
        change: Change,
        differs: bool,
        now: Timestamp,
    ) -> Result<Account, Error> {
        let Change {
            ending,
            starting,
            wanted,
        } = change;
        let mut account = Account::default();
        if ending.iter().any(Rule::lifts_by_reset) {
            account = self.end(&ending, now).await?;
        }
        let killing: Vec<Rule> = starting
            .into_iter()
            .filter(|rule| rule.kills() && rule.mode != Mode::Reset)
            .collect();
        if killing.is_empty() {
            self.keep_and_put(&wanted, wanted.clone(), differs, now)?;
            return Ok(account);
        }
        let rules: Vec<Rule> = killing
            .iter()
            .map(|rule| as_reset(rule, rule.expires))
            .collect();
        let mut interim = wanted.clone();
        for rule in &rules {
            if let Some(wanted) = interim.get_mut(&rule.id) {
                wanted.rule = rule.clone();
            }
        }
        self.keep_and_put(&wanted, interim, differs, now)?;
        account = status::sum(account, self.kill(rules).await);
        self.put(wanted, now)?;
        Ok(account)
    }

    /// Makes exactly the rules of `next` the ones in force, after the wanted ones are saved if they
    /// differ from those on disk. Saving and compiling take equally long, so they run in parallel.
    fn keep_and_put(
        &mut self,
        wanted: &WantedRules,
        next: WantedRules,
        differs: bool,
        now: Timestamp,
    ) -> Result<(), Error> {
        if !differs {
            return self.put(next, now);
        }
        let plan = self.live().plan(next, now)?;
        let store = &mut *self.store;
        let (saved, compiled) = thread::scope(|scope| {
            let saving = scope.spawn(|| store.save(kept(wanted)));
            let compiled = plan.compile();
            let saved = saving.join();
            (saved.unwrap_or_else(|panic| resume_unwind(panic)), compiled)
        });
        saved?;
        self.live_mut().enforce(compiled?)
    }

    /// The rules before a change with the ending ones made `reset` rules, and those.
    fn resetting(
        &self,
        before: WantedRules,
        ending: &[Rule],
        now: Timestamp,
    ) -> (WantedRules, Vec<Rule>) {
        let expires = now.checked_add(LIFTING).ok();
        let mut interim = before;
        let mut rules = Vec::new();
        for ending in ending {
            let mut rule = as_reset(ending, expires);
            match interim.get_mut(&ending.id) {
                Some(whole) if whole.rule.targets == ending.targets => whole.rule = rule.clone(),
                part => {
                    // A part of a rule becomes a rule of its own meanwhile; so does a rule that
                    // ended while no daemon was running.
                    if let Some(part) = part {
                        part.rule.targets = part
                            .rule
                            .targets
                            .only(|target| !ending.targets.have(*target));
                        rule.id = self.fresh_id();
                    }
                    interim.extend([Wanted::entry(rule.clone(), &Owner::Api, now)]);
                }
            }
            rules.push(rule);
        }
        (interim, rules)
    }

    /// Kills the flows of those ending rules that ask for it. They are `reset` rules after that.
    pub(super) async fn end(&mut self, ending: &[Rule], now: Timestamp) -> Result<Account, Error> {
        let ending: Vec<Rule> = ending
            .iter()
            .filter(|rule| rule.lifts_by_reset())
            .cloned()
            .collect();
        let before = self.live().wanted();
        let (interim, rules) = self.resetting(before, &ending, now);
        let slots = self.live().slots(&ending);
        self.put(interim, now)?;
        let blocked = self.live().datapath.recorded(&slots)?;
        let recorded = teardown::recorded(&rules, &InForce::new(self, &rules), blocked);
        self.live_mut().datapath.forget_recorded(&recorded)?;
        Ok(self.kill_with(rules, recorded).await)
    }
}

/// Deadline of a rule under which the flows of an ending rule are killed, should the daemon die
/// meanwhile.
const LIFTING: SignedDuration = SignedDuration::from_secs(3);

/// A change of the rules in force.
pub(super) struct Change {
    /// Rules, or parts of rules, that end with it.
    pub(super) ending: Vec<Rule>,
    /// Rules that start with it.
    pub(super) starting: Vec<Rule>,
    /// All rules that are to be.
    pub(super) wanted: WantedRules,
}

impl Change {
    /// A change to these rules that neither ends nor starts one.
    pub(super) const fn to(wanted: WantedRules) -> Self {
        Self {
            ending: Vec::new(),
            starting: Vec::new(),
            wanted,
        }
    }
}

/// The rule under which another one's flows are killed.
fn as_reset(rule: &Rule, expires: Option<Timestamp>) -> Rule {
    Rule {
        mode: Mode::Reset,
        established: Established::Kill,
        expires,
        ..rule.clone()
    }
}
