//! Rules added, one by one for those who ask, many at once for the datapath.
//!
//! The cost of a change depends on the size of the ruleset, not of the change: everything is
//! compiled, saved and switched to as a whole. So rules that are asked for during another change
//! wait, and the next writer adds them all in one change. Each caller gets its own answer, and a
//! rule that does not fit fails alone.

use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::change::Change;
use super::requests::{facts, finished};
use super::writer::Writer;
use super::{Asking, Controller, Error, Who, lock, status};
use crate::rule::{Established, Owner, Rule, RuleSpec};
use crate::safety;
use crate::wire::{Account, AddResponse, Carved};

/// A rule that waits to be added, and where its answer goes.
pub(super) struct Waiting {
    spec: RuleSpec,
    asking: Asking,
    answer: oneshot::Sender<Result<AddResponse, Error>>,
}

/// A rule as it is asked for: every default explicit, and past the safety checks.
pub(super) struct Asked {
    pub(super) rule: Rule,
    /// Whether its id was given, not made up.
    pub(super) named: bool,
    pub(super) carved: Vec<Carved>,
}

/// A rule that may be added.
struct Ready {
    rule: Rule,
    created: bool,
    carved: Vec<Carved>,
    who: Who,
    answer: oneshot::Sender<Result<AddResponse, Error>>,
}

impl Controller {
    /// Adds a rule.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn add(&self, spec: RuleSpec, asking: Asking) -> Result<AddResponse, Error> {
        let this = self.clone();
        if asking.dry_run {
            return finished(async move { this.try_out(spec, &asking).await }).await;
        }
        let (answer, answered) = oneshot::channel();
        lock(&self.0.waiting).push(Waiting {
            spec,
            asking,
            answer,
        });
        tokio::spawn(async move {
            let mut writer = this.writer().await;
            let batch = std::mem::take(&mut *lock(&this.0.waiting));
            if batch.is_empty() {
                // Another call's turn has added this rule.
                return;
            }
            // On a thread that may block: the threads that serve requests must go on reading them,
            // else no rule could join the next batch. At most one such thread is in use, as it has
            // the writer.
            let runtime = Handle::current();
            let work = move || runtime.block_on(writer.add_batch(batch));
            match tokio::task::spawn_blocking(work).await {
                Ok(added) => this.finish(added),
                // The callers see that their channels are closed.
                Err(error) => tracing::error!("rules could not be added: {error}"),
            }
        });
        answered
            .await
            .map_err(|_| Error::Inside("a rule was left without an answer".to_owned()))?
    }

    /// Says what adding a rule would do.
    async fn try_out(&self, spec: RuleSpec, asking: &Asking) -> Result<AddResponse, Error> {
        let _writer = self.writer().await;
        let now = Timestamp::now();
        let Asked {
            rule,
            named,
            carved,
        } = self.review(spec, asking, now)?;
        let (rule, created) = self.meet(rule, named)?;
        let compiled = self.check(self.with([&rule], now), now)?;
        let mut killing = rule.clone();
        killing.established = Established::Kill;
        let listing = self.list_flows(killing, compiled).await?;
        Ok(AddResponse {
            rule,
            targets_total: None,
            created,
            carved,
            teardown: Account {
                found: listing.flows.len() as u64,
                notes: listing.notes,
                ..Account::default()
            },
            would_kill: Some(listing.flows),
        })
    }

    /// The rule that is asked for, without regard to the rules in force.
    fn review(&self, spec: RuleSpec, asking: &Asking, now: Timestamp) -> Result<Asked, Error> {
        self.reviewer(asking, now)(spec)
    }

    /// The rules that are asked for as one set, without regard to the rules in force.
    pub(super) fn review_all(
        &self,
        specs: Vec<RuleSpec>,
        asking: &Asking,
        now: Timestamp,
    ) -> Result<Vec<Asked>, Error> {
        let review = self.reviewer(asking, now);
        let of = specs.len();
        let reviewed = (1..).zip(specs).map(|(place, spec)| {
            review(spec).map_err(|error| match error {
                Error::Rule(source) => Error::RuleOf { place, of, source },
                error => error,
            })
        });
        reviewed.collect()
    }

    /// Makes every default of a rule explicit, and refuses what the caller may not want. The facts
    /// about the host are gathered once for all rules.
    fn reviewer<'a>(
        &'a self,
        asking: &'a Asking,
        now: Timestamp,
    ) -> impl Fn(RuleSpec) -> Result<Asked, Error> + use<'a> {
        let (defaults, protect) = {
            let live = self.live();
            (live.config.defaults, live.protect())
        };
        let facts = facts(asking);
        move |spec| {
            let named = spec.id.is_some();
            let mut rule = spec.resolve(|| self.fresh_id(), defaults, now)?;
            let carved = safety::review(&mut rule, &facts, &protect, asking.force)?;
            Ok(Asked {
                rule,
                named,
                carved,
            })
        }
    }

    /// The rule that is to be in force, considering those that are, and whether it is a new one.
    fn meet(&self, mut rule: Rule, named: bool) -> Result<(Rule, bool), Error> {
        let Some(old) = self.existing(&rule, named)? else {
            // An id that was made up may be taken since.
            if !named && self.live().ruleset().contains_key(&rule.id) {
                rule.id = self.fresh_id();
            }
            return Ok((rule, true));
        };
        if rule.unconfirmed.is_some() {
            return Err(Error::InForce { id: old.id });
        }
        // To ask for a rule again confirms it.
        let rule = Rule {
            expires: rule.expires,
            unconfirmed: None,
            comment: rule.comment.or(old.comment),
            ..old
        };
        Ok((rule, false))
    }

    /// Kills the flows of rules that are in force and answers their callers.
    fn finish(&self, added: Vec<(Ready, Account)>) {
        for (ready, account) in added {
            let this = self.clone();
            // A caller waits for the end of its own flows only.
            tokio::spawn(async move {
                let resets = if ready.rule.mode.ends_flows() {
                    this.kill_resets(vec![ready.rule.clone()]).await
                } else {
                    Account::default()
                };
                let _gone = ready.answer.send(Ok(AddResponse {
                    rule: ready.rule,
                    targets_total: None,
                    created: ready.created,
                    carved: ready.carved,
                    teardown: status::sum(account, resets),
                    would_kill: None,
                }));
            });
        }
    }
}

impl Writer {
    /// Adds rules. Returns those that are in force, and what was killed on the way; the callers of
    /// the others have their answer.
    async fn add_batch(&mut self, batch: Vec<Waiting>) -> Vec<(Ready, Account)> {
        self.lift_due().await;
        let now = Timestamp::now();
        let mut together: Vec<Ready> = Vec::new();
        let mut killed = Vec::new();
        for Waiting {
            spec,
            asking,
            answer,
        } in batch
        {
            let Asked {
                rule,
                named,
                carved,
            } = match self.review(spec, &asking, now) {
                Ok(asked) => asked,
                Err(error) => {
                    let _gone = answer.send(Err(error));
                    continue;
                }
            };
            // A rule that equals another of the batch in effect or id must find that one in force.
            // A rule that kills before it drops is added alone, so that the account is its own.
            let alone = rule.kills_first();
            let twin = |other: &Ready| other.rule.id == rule.id || other.rule.same_effect(&rule);
            if alone || together.iter().any(twin) {
                killed.extend(self.add_together(std::mem::take(&mut together), now).await);
            }
            match self.meet(rule, named) {
                Ok((rule, created)) => together.push(Ready {
                    rule,
                    created,
                    carved,
                    who: asking.who,
                    answer,
                }),
                Err(error) => {
                    let _gone = answer.send(Err(error));
                }
            }
            if alone {
                killed.extend(self.add_together(std::mem::take(&mut together), now).await);
            }
        }
        killed.extend(self.add_together(together, now).await);
        killed
    }

    /// Adds rules in one change; if they do not fit together, one by one. Returns as
    /// [`add_batch`](Self::add_batch).
    async fn add_together(&mut self, rules: Vec<Ready>, now: Timestamp) -> Vec<(Ready, Account)> {
        if rules.len() > 1
            && let Ok(account) = self.enforce(&rules, now).await
        {
            let killed = std::iter::once(account).chain(std::iter::repeat_with(Account::default));
            return rules.into_iter().zip(killed).collect();
        }
        let mut added = Vec::new();
        for ready in rules {
            match self.enforce(std::slice::from_ref(&ready), now).await {
                Ok(account) => added.push((ready, account)),
                Err(error) => {
                    let _gone = ready.answer.send(Err(error));
                }
            }
        }
        added
    }

    /// Puts rules in force as one change. A rule replaces the one of its id.
    async fn enforce(&mut self, rules: &[Ready], now: Timestamp) -> Result<Account, Error> {
        let wanted = self.with(rules.iter().map(|ready| &ready.rule), now);
        let change = Change {
            starting: rules.iter().map(|ready| ready.rule.clone()).collect(),
            ..Change::to(wanted)
        };
        let account = self.change(change, now).await?;
        for Ready {
            rule, created, who, ..
        } in rules
        {
            self.tell_added(*who, rule, &Owner::Api, *created);
        }
        Ok(account)
    }
}
