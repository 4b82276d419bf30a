//! How a change is carried out, and what it kills on the way.
//!
//! A rule with `on_lift: reset` does not end at once. It becomes a `reset` rule first, under which
//! its flows are killed at both ends; then it is removed. So nothing that was sent during the block
//! is delivered: its connection is gone. A rule that drops and kills starts the same way, because
//! flows that are dropped already cannot be killed.

use std::panic::resume_unwind;
use std::{mem, thread};

use jiff::{SignedDuration, Timestamp};

use super::in_force::InForce;
use super::live::{Wanted, WantedRules};
use super::writer::Writer;
use super::{Error, status, to_save};
use crate::config::Config;
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
        mut change: Change,
        now: Timestamp,
    ) -> Result<Account, Error> {
        let before = self.live().wanted();
        let differs = to_save(&before) != to_save(&change.wanted);
        let ends = change.ending.iter().any(Rule::lifts_by_reset);
        let config = change.config.take();
        let config = config.map(|new| mem::replace(&mut self.live_mut().config, new));
        let result = self.carry_out(change, differs, now).await;
        self.learn_names();
        if result.is_err()
            && let Some(config) = config
        {
            // First of all, as what rules compile to depends on it.
            self.live_mut().config = config;
        }
        match &result {
            // Saving failed before anything was put in force, and the file is as it was.
            Err(Error::State(_)) if !ends => {}
            Err(_) => {
                if let Err(error) = self.put(before.clone(), now) {
                    tracing::error!("the rules before a failed change cannot be put back: {error}");
                }
                if differs && let Err(error) = self.store.save(to_save(&before)) {
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
            config: _,
        } = change;
        let mut account = Account::default();
        if ending.iter().any(Rule::lifts_by_reset) {
            account = self.end(&ending, now).await?;
        }
        let killing: Vec<Rule> = starting.into_iter().filter(Rule::kills_first).collect();
        let save = differs.then_some(&wanted);
        if killing.is_empty() {
            self.save_and_put(save, wanted.clone(), now)?;
            return Ok(account);
        }
        let resets = killing.iter().map(|rule| as_reset(rule, rule.expires));
        let rules = self.put_resets(&wanted, resets.collect(), save, now)?;
        account = status::sum(account, self.kill(rules).await);
        self.put(wanted, now)?;
        Ok(account)
    }

    /// Makes exactly the rules of `next` the ones in force, after saving `save` if there is something to
    /// save. Saving and compiling take equally long, so they run in parallel.
    fn save_and_put(
        &mut self,
        save: Option<&WantedRules>,
        next: WantedRules,
        now: Timestamp,
    ) -> Result<(), Error> {
        let Some(save) = save else {
            return self.put(next, now);
        };
        let plan = self.live().plan(next, now)?;
        let store = &mut *self.store;
        let (saved, compiled) = thread::scope(|scope| {
            let saving = scope.spawn(|| store.save(to_save(save)));
            let compiled = plan.compile();
            let saved = saving.join();
            (saved.unwrap_or_else(|panic| resume_unwind(panic)), compiled)
        });
        saved?;
        self.live_mut().enforce(compiled?)
    }

    /// Puts rules in force of which some, or some of whose targets, are `reset` rules meanwhile. Returns
    /// those, under which flows can be killed.
    fn put_resets(
        &mut self,
        rules: &WantedRules,
        resets: Vec<Rule>,
        save: Option<&WantedRules>,
        now: Timestamp,
    ) -> Result<Vec<Rule>, Error> {
        let (mut interim, mut apart) = (rules.clone(), resets.clone());
        for reset in &mut apart {
            if let Some(Wanted { rule, .. }) = interim.get_mut(&reset.id) {
                if rule.targets == reset.targets {
                    *rule = reset.clone();
                    continue;
                }
                rule.targets = rule.targets.only(|target| !reset.targets.have(*target));
                reset.id = self.fresh_id();
            }
            // A part of a rule becomes a rule of its own; so does a rule that ended while no daemon
            // was running.
            interim.extend([Wanted::entry(reset.clone(), &Owner::Api, now)]);
        }
        match self.save_and_put(save, interim, now) {
            // There is no room for more rules, so those of the parts reset as a whole.
            Err(Error::Compile(_) | Error::TooManyRules { .. }) if apart != resets => {
                let mut interim = rules.clone();
                for reset in &resets {
                    if let Some(Wanted { rule, .. }) = interim.get_mut(&reset.id) {
                        *rule = as_reset(rule, reset.expires);
                    }
                }
                self.save_and_put(save, interim, now).map(|()| resets)
            }
            put => put.map(|()| apart),
        }
    }

    /// Kills the flows of those ending rules that ask for it. They are `reset` rules after that.
    pub(super) async fn end(&mut self, ending: &[Rule], now: Timestamp) -> Result<Account, Error> {
        let ending = ending.iter().filter(|rule| rule.lifts_by_reset());
        let ending: Vec<Rule> = ending.cloned().collect();
        let expires = now.checked_add(LIFTING).ok();
        let resets = ending.iter().map(|rule| as_reset(rule, expires)).collect();
        let (before, slots) = {
            let live = self.live();
            (live.wanted(), live.slots(&ending))
        };
        let rules = self.put_resets(&before, resets, None, now)?;
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
    /// The configuration that is in force with it, if it is another.
    pub(super) config: Option<Config>,
}

impl Change {
    /// A change to these rules that neither ends nor starts one.
    pub(super) const fn to(wanted: WantedRules) -> Self {
        Self {
            ending: Vec::new(),
            starting: Vec::new(),
            wanted,
            config: None,
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
