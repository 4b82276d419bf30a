//! Requests of clients: rules deleted, confirmed, replaced. A request that has begun is finished even
//! if the client goes away.

use jiff::Timestamp;

use super::change::Change;
use super::events::rule_change;
use super::live::{Wanted, WantedRules, boot_time};
use super::{Asking, Controller, Error, journal, status};
use crate::rule::{Owner, Rule, RuleId, RuleSpec, Target, Targets, Unconfirmed};
use crate::safety::HostFacts;
use crate::safety::facts::{self, Caller, Sources};
use crate::wire::event::RuleFate;
use crate::wire::{Account, Carved, Changed, ConfirmResponse, DeleteResponse, RulesetResponse};

impl Controller {
    /// Deletes a rule.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&self, id: RuleId, asking: Asking) -> Result<DeleteResponse, Error> {
        let this = self.clone();
        finished(async move {
            let mut writer = this.writer().await;
            if this.live().ruleset().get(&id).is_none() {
                return Err(Error::NoSuchRule {
                    what: id.to_string(),
                });
            }
            writer
                .without(&asking, |rule| {
                    if rule.id == id {
                        Keep::Nothing
                    } else {
                        Keep::All
                    }
                })
                .await
        })
        .await
    }

    /// Confirms a rule on trial. The rule then ends at the deadline that was asked for, if any.
    ///
    /// # Errors
    /// See [`Error`]. A rule that was not confirmed in time does not exist any more.
    pub async fn confirm(&self, id: RuleId, asking: Asking) -> Result<ConfirmResponse, Error> {
        let this = self.clone();
        finished(async move { this.confirm_now(&id, &asking).await }).await
    }

    async fn confirm_now(&self, id: &RuleId, asking: &Asking) -> Result<ConfirmResponse, Error> {
        let mut writer = self.writer().await;
        writer.lift_due().await;
        let now = Timestamp::now();
        let mut wanted = self.live().wanted();
        let found = wanted.get_mut(id).ok_or_else(|| Error::NoSuchRule {
            what: id.to_string(),
        })?;
        let confirmed = if let Some(Unconfirmed { expires }) = found.rule.unconfirmed.take() {
            found.rule.expires = expires;
            true
        } else {
            false
        };
        let (rule, owner) = (found.rule.clone(), found.owner.clone());
        if confirmed {
            writer.change(Change::to(wanted), now).await?;
            journal::confirmed(asking.who, &rule);
            let news = rule_change(RuleFate::Changed, &rule, &owner, Some(asking.who));
            self.0.events.rules(vec![news]);
        }
        Ok(ConfirmResponse { rule, confirmed })
    }

    /// Deletes a target from every rule that lists it. A rule that has no target left is deleted.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_target(
        &self,
        target: Target,
        asking: Asking,
    ) -> Result<DeleteResponse, Error> {
        let this = self.clone();
        finished(async move {
            let mut writer = this.writer().await;
            if !this
                .live()
                .ruleset()
                .values()
                .any(|entry| entry.rule.targets.have(target))
            {
                return Err(Error::NoSuchRule {
                    what: format!("with the target {target}"),
                });
            }
            writer
                .without(&asking, |rule| {
                    if !rule.targets.have(target) {
                        return Keep::All;
                    }
                    let targets = rule.targets.only(|other| *other != target);
                    if targets.is_empty() {
                        Keep::Nothing
                    } else {
                        Keep::Only(targets)
                    }
                })
                .await
        })
        .await
    }

    /// Deletes all rules of the API; with `all`, the rules of every owner.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn flush(&self, all: bool, asking: Asking) -> Result<DeleteResponse, Error> {
        let this = self.clone();
        finished(async move {
            let mut writer = this.writer().await;
            let owned: Vec<RuleId> = {
                let live = this.live();
                let gone = live
                    .ruleset()
                    .values()
                    .filter(|entry| all || entry.owner == Owner::Api);
                gone.map(|entry| entry.rule.id.clone()).collect()
            };
            writer
                .without(&asking, |rule| {
                    if owned.contains(&rule.id) {
                        Keep::Nothing
                    } else {
                        Keep::All
                    }
                })
                .await
        })
        .await
    }

    /// Replaces all rules of the API by others, as one change.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn replace(
        &self,
        specs: Vec<RuleSpec>,
        asking: Asking,
    ) -> Result<RulesetResponse, Error> {
        let this = self.clone();
        finished(async move { this.replace_now(specs, &asking).await }).await
    }

    async fn replace_now(
        &self,
        specs: Vec<RuleSpec>,
        asking: &Asking,
    ) -> Result<RulesetResponse, Error> {
        let mut writer = self.writer().await;
        let now = Timestamp::now();
        let mut carved: Vec<Carved> = Vec::new();
        let mut rules: Vec<Rule> = Vec::with_capacity(specs.len());
        for asked in self.review_all(specs, asking, now)? {
            let mut rule = asked.rule;
            // A rule without an id gets the id of a rule in force that has the same effect.
            if !asked.named
                && let Some(old) = self.same(&rule)
            {
                rule.id = old.id;
            }
            carved.extend(asked.carved);
            rules.push(rule);
        }
        let (replacement, diff) = self.replacement(&Owner::Api, rules, now)?;
        let mut response = RulesetResponse {
            changed: diff
                .changed
                .into_iter()
                .map(|(before, after)| Changed { before, after })
                .collect(),
            added: diff.added,
            removed: diff.removed,
            unchanged: diff.unchanged.len() as u64,
            carved,
            teardown: Account::default(),
            dry_run: asking.dry_run,
        };
        if asking.dry_run {
            self.check(replacement.change.wanted, now)?;
            return Ok(response);
        }
        let (account, starting) = writer.replace(replacement, Some(asking.who), now).await?;
        tracing::info!(
            uid = asking.who.uid,
            pid = asking.who.pid,
            added = response.added.len(),
            removed = response.removed.len(),
            changed = response.changed.len(),
            unchanged = response.unchanged,
            "ruleset replaced"
        );
        drop(writer);
        response.teardown = status::sum(account, self.kill_resets(starting).await);
        Ok(response)
    }

    /// The rules in force, with `rules` added or put in place of those with the same id.
    pub(super) fn with<'r>(
        &self,
        rules: impl IntoIterator<Item = &'r Rule>,
        now: Timestamp,
    ) -> WantedRules {
        let mut wanted = self.live().wanted();
        for rule in rules {
            match wanted.get_mut(&rule.id) {
                Some(old) => old.rule = rule.clone(),
                None => wanted.extend([Wanted::entry(rule.clone(), &Owner::Api, now)]),
            }
        }
        wanted
    }

    /// The rule in force that has the same effect as `rule` and, if `named`, the same id.
    pub(super) fn existing(&self, rule: &Rule, named: bool) -> Result<Option<Rule>, Error> {
        if !named {
            return Ok(self.same(rule));
        }
        match self.live().ruleset().get(&rule.id) {
            Some(old) if old.rule.same_effect(rule) => Ok(Some(old.rule.clone())),
            Some(old) => Err(Error::Taken {
                id: rule.id.clone(),
                owner: old.owner.clone(),
            }),
            None => Ok(None),
        }
    }

    /// A rule of the API in force that has the same effect.
    fn same(&self, rule: &Rule) -> Option<Rule> {
        let live = self.live();
        let mut api = live
            .ruleset()
            .values()
            .filter(|entry| entry.owner == Owner::Api);
        api.find(|entry| entry.rule.same_effect(rule))
            .map(|entry| entry.rule.clone())
    }

    /// An id of six hexadecimal digits that no rule in force has.
    pub(super) fn fresh_id(&self) -> RuleId {
        loop {
            // The id need only be unique, which is checked, so the clock may replace a random number.
            let number = getrandom::u32().unwrap_or_else(|_| boot_time() as u32);
            let id: Option<RuleId> = format!("{:06x}", number & 0xff_ffff).parse().ok();
            if let Some(id) = id.filter(|id| self.live().ruleset().get(id).is_none()) {
                return id;
            }
        }
    }
}

/// The part of a rule that is left after a deletion.
pub(super) enum Keep {
    All,
    Only(Targets),
    Nothing,
}

pub(super) fn facts(asking: &Asking) -> HostFacts {
    let caller = Caller {
        pid: asking.who.pid,
        ssh_connection: asking.ssh_connection.as_deref(),
    };
    let (facts, problems) = facts::gather(&Sources::default(), caller);
    for problem in problems {
        tracing::warn!("what must not be blocked is known in part only: {problem}");
    }
    facts
}

/// Runs work as its own task, so that it is finished even if the caller goes away.
pub(super) async fn finished<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(work)
        .await
        .map_err(|error| Error::Inside(error.to_string()))?
}
