//! Leases: rules that are in force while the client that asked for them stays connected.
//!
//! The connection is the lease: when it closes, because the client is done or died, the rules are
//! lifted. If the daemon dies, the datapath ends them: their deadline is at most [`TERM`] away, and
//! only a running daemon with a connected client moves it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::change::Change;
use super::live::Wanted;
use super::requests::{Keep, finished};
use super::writer::Writer;
use super::{Asking, Controller, Error, Who, status};
use crate::rule::{Owner, Rule, RuleError, RuleId, RuleSpec};
use crate::ruleset::RulesetError;
use crate::wire::{Carved, Held, LeaseLine};

/// The longest time until the deadline of a lease's rules.
const TERM: SignedDuration = SignedDuration::from_secs(30);
/// How often the deadline is moved.
const RENEWAL: Duration = Duration::from_secs(10);
/// How often to check that the rules are still in force.
const LOOK: Duration = Duration::from_millis(200);
/// How often to tell the client that the rules are still in force.
const TELL: Duration = Duration::from_secs(1);

/// A lease's rules, and the deadlines that were asked for.
type Limits = BTreeMap<RuleId, Option<Timestamp>>;

/// A lease. Its rules are in force until it is dropped.
pub struct Lease {
    controller: Controller,
    owner: Owner,
    who: Who,
    renewal: JoinHandle<()>,
    /// The first line for the client, until it is sent.
    held: Option<Held>,
    look: Interval,
    told: Instant,
    ended: bool,
}

impl Controller {
    /// Puts rules in force for as long as the lease lives.
    ///
    /// # Errors
    /// See [`Error`]. A rule with an id that is in use is refused.
    pub async fn hold(&self, specs: Vec<RuleSpec>, asking: Asking) -> Result<Lease, Error> {
        let this = self.clone();
        finished(async move { this.hold_now(specs, &asking).await }).await
    }

    async fn hold_now(&self, specs: Vec<RuleSpec>, asking: &Asking) -> Result<Lease, Error> {
        let mut writer = self.writer().await;
        if self.0.events.is_closed() {
            return Err(Error::Inside("it is stopping".to_owned()));
        }
        writer.lift_due().await;
        let now = Timestamp::now();
        let id = self.fresh_id().to_string();
        let owner = Owner::Lease(id.clone());
        let (rules, carved) = self.leased(specs, asking, now)?;
        let limits: Limits = rules
            .iter()
            .map(|rule| (rule.id.clone(), rule.expires))
            .collect();
        let rules: Vec<Rule> = rules
            .into_iter()
            .map(|rule| Rule {
                expires: term(rule.expires, now),
                ..rule
            })
            .collect();
        let mut wanted = self.live().wanted();
        let leased = rules.iter().cloned();
        wanted.extend(leased.map(|rule| Wanted::entry(rule, &owner, now)));
        let change = Change {
            starting: rules.clone(),
            ..Change::to(wanted)
        };
        let account = writer.change(change, now).await?;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let renewing = self.clone().keep_renewing(owner.clone(), limits);
        // From here on dropping the lease lifts the rules, even if the client is gone already.
        let mut lease = Lease {
            controller: self.clone(),
            owner,
            who: asking.who,
            renewal: tokio::spawn(renewing),
            held: None,
            look,
            told: Instant::now(),
            ended: false,
        };
        for rule in &rules {
            self.tell_added(asking.who, rule, &lease.owner, true);
        }
        drop(writer);
        let resets = self.kill_resets(rules.clone()).await;
        lease.held = Some(Held {
            lease: id,
            rules,
            carved,
            teardown: status::sum(account, resets),
        });
        Ok(lease)
    }

    /// The rules that are asked for, if none is refused or in force already.
    fn leased(
        &self,
        specs: Vec<RuleSpec>,
        asking: &Asking,
        now: Timestamp,
    ) -> Result<(Vec<Rule>, Vec<Carved>), Error> {
        let of = specs.len();
        let mut rules: Vec<Rule> = Vec::with_capacity(of);
        let mut carved = Vec::new();
        for (place, asked) in (1..).zip(self.review_all(specs, asking, now)?) {
            let rule = asked.rule;
            if rule.unconfirmed.is_some() {
                let source = RuleError::Contradiction {
                    option: "confirm_within",
                    with: "a lease".to_owned(),
                    why: "it ends with whoever holds it",
                };
                return Err(Error::RuleOf { place, of, source });
            }
            if rules.iter().any(|other| other.id == rule.id) {
                return Err(RulesetError::Twice(rule.id).into());
            }
            if let Some(old) = self.live().ruleset().get(&rule.id) {
                return Err(Error::Taken {
                    id: rule.id,
                    owner: old.owner.clone(),
                });
            }
            carved.extend(asked.carved);
            rules.push(rule);
        }
        Ok((rules, carved))
    }

    /// Moves the deadline of a lease's rules at each [`RENEWAL`].
    async fn keep_renewing(self, owner: Owner, limits: Limits) {
        loop {
            tokio::time::sleep(RENEWAL).await;
            let this = self.clone();
            let (owner, limits) = (owner.clone(), limits.clone());
            // A task of its own: if the lease ends meanwhile, the renewal is finished first.
            let renewed = async move { this.writer().await.renew(&owner, &limits).await };
            let renewed = finished(renewed).await;
            if let Err(error) = renewed {
                tracing::error!("a lease cannot be renewed: {error}");
            }
        }
    }

    /// Lifts the rules of a lease that are still in force.
    async fn release(&self, owner: &Owner, who: Who) -> Result<(), Error> {
        let mut writer = self.writer().await;
        let left = self.rules_of(owner);
        if left.is_empty() || self.0.events.is_closed() {
            return Ok(());
        }
        let asking = Asking {
            who,
            ..Asking::default()
        };
        let keep = |rule: &Rule| {
            if left.contains(&rule.id) {
                Keep::Nothing
            } else {
                Keep::All
            }
        };
        writer.without(&asking, keep).await.map(drop)
    }

    fn rules_of(&self, owner: &Owner) -> Vec<RuleId> {
        let live = self.live();
        let rules = live.ruleset().values();
        let theirs = rules.filter(|entry| entry.owner == *owner);
        theirs.map(|entry| entry.rule.id.clone()).collect()
    }
}

impl Writer {
    /// Moves the deadline of a lease's rules.
    async fn renew(&mut self, owner: &Owner, limits: &Limits) -> Result<(), Error> {
        let now = Timestamp::now();
        let mut wanted = self.live().wanted();
        let mut moved = false;
        for (id, limit) in limits {
            let of_lease = wanted.get_mut(id).filter(|wanted| wanted.owner == *owner);
            if let Some(Wanted { rule, .. }) = of_lease {
                let expires = term(*limit, now);
                moved |= rule.expires != expires;
                rule.expires = expires;
            }
        }
        if moved {
            self.change(Change::to(wanted), now).await?;
        }
        Ok(())
    }
}

/// A rule's next deadline: [`TERM`] from now, but not after its own limit.
fn term(limit: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
    let term = now.checked_add(TERM).ok();
    match (limit, term) {
        (Some(limit), Some(term)) => Some(limit.min(term)),
        (limit, term) => limit.or(term),
    }
}

impl Lease {
    /// The next line for the client; `None` after the last.
    pub async fn next(&mut self) -> Option<Bytes> {
        if let Some(held) = self.held.take() {
            return Some(line(&LeaseLine::Held(held)));
        }
        while !self.ended {
            self.look.tick().await;
            if self.controller.0.events.is_closed()
                || self.controller.rules_of(&self.owner).is_empty()
            {
                self.ended = true;
                return Some(line(&LeaseLine::Ended));
            }
            if self.told.elapsed() >= TELL {
                self.told = Instant::now();
                return Some(line(&LeaseLine::Alive));
            }
        }
        None
    }
}

fn line(line: &LeaseLine) -> Bytes {
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewal.abort();
        let (controller, owner, who) = (self.controller.clone(), self.owner.clone(), self.who);
        // Without a runtime the daemon is ending, and the datapath's deadline ends the rules.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = controller.release(&owner, who).await {
                    tracing::error!("the rules of {owner} stay until their deadline: {error}");
                }
            });
        }
    }
}
