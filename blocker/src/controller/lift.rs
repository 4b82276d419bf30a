//! How a change is carried out, what it kills on the way, and the end of rules by deadline.
//!
//! A rule with `on_lift: reset` does not simply go. It becomes a `reset` rule first, under which
//! its flows are killed at both ends; then it goes. Nothing that was sent during the block can be
//! delivered, since the connection that it was sent on is gone. A rule that drops and kills starts
//! the same way: what it drops can't be killed any more.

use std::collections::BTreeSet;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

use blocker_ebpf::FlowKey;
use jiff::{SignedDuration, Timestamp};

use super::events::rule_change;
use super::live::{Wanted, boot_time};
use super::requests::Keep;
use super::{Asking, Controller, Error, journal, kept, lock, status};
use crate::rule::{Established, Mode, Owner, Rule, RuleId};
use crate::teardown::{self, Listing};
use crate::wire::event::{RuleChange, RuleFate};
use crate::wire::{Account, DeleteResponse};

impl Controller {
    /// Kills the established flows of those rules that do so, and gives the account.
    pub(super) async fn kill(&self, rules: Vec<Rule>) -> Account {
        self.kill_with(rules, Vec::new()).await
    }

    /// As [`kill`](Self::kill), with flows that the datapath recorded.
    async fn kill_with(&self, mut rules: Vec<Rule>, recorded: Vec<FlowKey>) -> Account {
        if !rules.iter().any(Rule::kills) {
            return Account::default();
        }
        self.spare_protected(&mut rules);
        let ids = rules.iter().map(|rule| rule.id.clone()).collect();
        let beside = self.beside(&rules);
        let settings = self.teardown_settings();
        let inner = Arc::clone(&self.0);
        let work = move || {
            let progress = |progress| *lock(&inner.teardown) = Some(progress);
            let kills = &*inner.kills;
            let account =
                teardown::kill_with(&rules, &beside, &recorded, &settings, kills, &progress);
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

    /// Kills the established flows of those that are `reset` rules; others' were killed before
    /// they began to drop.
    pub(super) async fn kill_resets(&self, mut rules: Vec<Rule>) -> Account {
        rules.retain(|rule| rule.mode == Mode::Reset);
        self.kill(rules).await
    }

    /// Kills the flows of rules that end with the daemon and ask for it. The writer's lock is held.
    pub(super) async fn end(&self, ending: &[Rule], now: Timestamp) -> Result<Account, Error> {
        let ending: Vec<Rule> = ending
            .iter()
            .filter(|rule| rule.lifts_by_reset())
            .cloned()
            .collect();
        let before = self.live().wanted();
        let (interim, rules) = self.resetting(&before, &ending, now);
        let recorded = {
            let slots = self.live().slots(&ending);
            self.put(interim, now)?;
            let mut live = self.live();
            let recorded = teardown::towards(&ending, live.datapath.recorded(&slots)?);
            live.datapath.forget_recorded(&recorded)?;
            recorded
        };
        Ok(self.kill_with(rules, recorded).await)
    }

    /// Lists the flows that a teardown of these rules would kill.
    pub(super) async fn list_flows(&self, mut rules: Vec<Rule>) -> Result<Listing, Error> {
        self.spare_protected(&mut rules);
        let beside = self.beside(&rules);
        let settings = self.teardown_settings();
        super::beside(move || Ok(teardown::list_with(&rules, &beside, &settings))).await
    }

    /// Excepts protected prefixes, as the datapath does: rules of the configuration don't, nor do
    /// those that were there before a prefix was protected.
    fn spare_protected(&self, rules: &mut [Rule]) {
        let protect = self.live().config.protect.clone();
        for rule in rules {
            rule.except.extend(&protect);
        }
    }

    /// The other rules in force: what one of them decides, a teardown of these leaves alone.
    fn beside(&self, rules: &[Rule]) -> Vec<Rule> {
        let ids: BTreeSet<&RuleId> = rules.iter().map(|rule| &rule.id).collect();
        let live = self.live();
        let others = live.ruleset().values().map(|entry| &entry.rule);
        others
            .filter(|other| !ids.contains(&other.id))
            .cloned()
            .collect()
    }

    fn teardown_settings(&self) -> teardown::Settings {
        teardown::Settings {
            namespaces: self.live().config.namespaces,
            mark: self.0.mark,
        }
    }

    /// Carries a change out: kept on disk, the flows of ending rules killed if they ask for it, the
    /// flows of starting rules killed that drop from then on, and the wanted rules in force.
    /// The writer's lock is held. What fails leaves everything as it was (but what was killed).
    ///
    /// On disk a rule ends only once its flows are killed: a daemon that dies over that leaves it to
    /// the next one, and what was sent during the block is not delivered.
    ///
    /// Flows of starting `reset` rules are left to [`kill`](Self::kill), which needs no lock.
    pub(super) async fn change(&self, change: Change, now: Timestamp) -> Result<Account, Error> {
        let before = self.live().wanted();
        let differs = kept(&before) != kept(&change.wanted);
        let ends = change.ending.iter().any(Rule::lifts_by_reset);
        let result = self.carry_out(change, differs, now).await;
        self.learn_names();
        match &result {
            // What could not be written was not put in force, and the disk has what it had.
            Err(Error::State(_)) if !ends => {}
            Err(_) => {
                if let Err(error) = self.put(before.clone(), now) {
                    tracing::error!("the rules before a failed change cannot be put back: {error}");
                }
                if differs && let Err(error) = lock(&self.0.store).save(kept(&before)) {
                    tracing::error!("{error}");
                }
            }
            Ok(_) => {}
        }
        result
    }

    /// `differs`: what is wanted is not what the disk has.
    async fn carry_out(
        &self,
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
        for wanted in &mut interim {
            if let Some(rule) = rules.iter().find(|rule| rule.id == wanted.rule.id) {
                wanted.rule = rule.clone();
            }
        }
        self.keep_and_put(&wanted, interim, differs, now)?;
        account = status::sum(account, self.kill(rules).await);
        self.put(wanted, now)?;
        Ok(account)
    }

    /// Makes exactly the rules of `next` the ones in force, once the wanted ones are on disk if that
    /// `differs`. Each takes as long as the other, so both are prepared at once.
    fn keep_and_put(
        &self,
        wanted: &[Wanted],
        next: Vec<Wanted>,
        differs: bool,
        now: Timestamp,
    ) -> Result<(), Error> {
        if !differs {
            return self.put(next, now);
        }
        let plan = self.live().plan(next, now)?;
        let (saved, compiled) = thread::scope(|scope| {
            let saving = scope.spawn(|| lock(&self.0.store).save(kept(wanted)));
            let compiled = plan.compile();
            let saved = saving.join();
            (saved.unwrap_or_else(|panic| resume_unwind(panic)), compiled)
        });
        saved?;
        self.live().enforce(compiled?)
    }

    /// The rules before a change with the ending ones made `reset` rules, and those.
    fn resetting(
        &self,
        before: &[Wanted],
        ending: &[Rule],
        now: Timestamp,
    ) -> (Vec<Wanted>, Vec<Rule>) {
        let expires = now.checked_add(LIFTING).ok();
        let mut interim = before.to_vec();
        let mut rules = Vec::new();
        for ending in ending {
            let mut rule = as_reset(ending, expires);
            match interim
                .iter_mut()
                .find(|wanted| wanted.rule.id == ending.id)
            {
                Some(whole) if whole.rule.targets == ending.targets => whole.rule = rule.clone(),
                part => {
                    // A part of a rule, which for a moment is a rule of its own; or one that ended
                    // while no daemon was there.
                    if let Some(part) = part {
                        part.rule.targets = part
                            .rule
                            .targets
                            .only(|target| !ending.targets.have(*target));
                        rule.id = self.fresh_id();
                    }
                    interim.push(Wanted {
                        rule: rule.clone(),
                        owner: Owner::Api,
                        created: now,
                    });
                }
            }
            rules.push(rule);
        }
        (interim, rules)
    }

    /// Removes what `keep` does not keep. The writer's lock is held.
    pub(super) async fn without(
        &self,
        asking: &Asking,
        keep: impl Fn(&Rule) -> Keep,
    ) -> Result<DeleteResponse, Error> {
        let now = Timestamp::now();
        let mut response = DeleteResponse {
            removed: Vec::new(),
            narrowed: Vec::new(),
            teardown: Account::default(),
        };
        let mut change = Change::to(Vec::new());
        let mut news = Vec::new();
        let who = Some(asking.who);
        for wanted in self.live().wanted() {
            match keep(&wanted.rule) {
                Keep::All => change.wanted.push(wanted),
                Keep::Nothing => {
                    let (rule, owner) = (&wanted.rule, &wanted.owner);
                    news.push(rule_change(RuleFate::Lifted, rule, owner, who));
                    response.removed.push(wanted.rule.id.clone());
                    change.ending.push(wanted.rule);
                }
                Keep::Only(targets) => {
                    response.narrowed.push(wanted.rule.id.clone());
                    let gone = wanted.rule.targets.only(|target| !targets.have(*target));
                    change.ending.push(Rule {
                        targets: gone,
                        ..wanted.rule.clone()
                    });
                    let rule = Rule {
                        targets,
                        ..wanted.rule.clone()
                    };
                    news.push(rule_change(RuleFate::Changed, &rule, &wanted.owner, who));
                    change.wanted.push(Wanted { rule, ..wanted });
                }
            }
        }
        let ending = change.ending.clone();
        response.teardown = self.change(change, now).await?;
        journal::lifted(asking.who, &ending, &response.narrowed);
        self.0.events.rules(news);
        Ok(response)
    }

    /// Lifts rules whose deadline has passed.
    pub(super) async fn expire(&self) {
        // An enforcement holds what is in force for some milliseconds; who waits for it here, ten
        // times a second, must not be a thread that serves requests.
        let this = self.clone();
        let look = move || !this.due(Timestamp::now()).is_empty();
        match tokio::task::spawn_blocking(look).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::error!("rules whose deadline is over cannot be looked for: {error}");
                return;
            }
        }
        let _writer = self.0.writer.lock().await;
        self.lift_due().await;
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

    /// Lifts rules whose deadline has passed: those that it matters to must not find them there. The
    /// writer's lock is held.
    pub(super) async fn lift_due(&self) {
        let now = Timestamp::now();
        let ending = self.due(now);
        if ending.is_empty() {
            return;
        }
        let mut wanted = self.live().wanted();
        wanted.retain(|wanted| !ending.iter().any(|rule| rule.id == wanted.rule.id));
        let ended = ending.clone();
        let news = self.expired(&ending);
        match self
            .change(
                Change {
                    ending,
                    ..Change::to(wanted)
                },
                now,
            )
            .await
        {
            Ok(_) => {
                self.0.events.rules(news);
                journal::expired(&ended);
            }
            Err(error) => {
                tracing::error!("expired rules cannot be removed, but no longer match: {error}");
            }
        }
    }

    /// What is told of rules that expire.
    fn expired(&self, rules: &[Rule]) -> Vec<RuleChange> {
        let live = self.live();
        let entries = rules.iter().filter_map(|rule| live.ruleset().get(&rule.id));
        entries
            .map(|entry| rule_change(RuleFate::Expired, &entry.rule, &entry.owner, None))
            .collect()
    }

    /// Does what the end of rules asked for that ended while no daemon was there.
    pub(super) async fn make_good(&self, ending: Vec<Rule>) {
        if ending.is_empty() {
            return;
        }
        let _writer = self.0.writer.lock().await;
        tracing::info!(
            rules = ending.len(),
            "rules expired while no daemon was there"
        );
        journal::expired(&ending);
        let wanted = self.live().wanted();
        let staying = wanted.clone();
        let done = self
            .change(
                Change {
                    ending,
                    ..Change::to(wanted)
                },
                Timestamp::now(),
            )
            .await;
        // They are in the file still, and in no rule set that could differ from it.
        if let Err(error) = done
            .map(drop)
            .and_then(|()| Ok(lock(&self.0.store).save(kept(&staying))?))
        {
            tracing::error!("{error}");
        }
    }
}

/// How long the datapath keeps a rule under which flows are killed at the end of another, should
/// the daemon die over it.
const LIFTING: SignedDuration = SignedDuration::from_secs(3);

/// A change of the rules in force.
pub(super) struct Change {
    /// Rules, or parts of rules, that end with it.
    pub(super) ending: Vec<Rule>,
    /// Rules that start with it.
    pub(super) starting: Vec<Rule>,
    /// All rules that are to be.
    pub(super) wanted: Vec<Wanted>,
}

impl Change {
    /// A change to these rules that neither ends nor starts one.
    pub(super) const fn to(wanted: Vec<Wanted>) -> Self {
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
