//! A block, from its start to its lift, and its part of the report.

use blocker::api::client::{Change, Client, Lease};
use blocker::rule::{RuleId, RuleSpec};
use blocker::wire::{Account, Carved, Held, LeaseRequest};
use jiff::Timestamp;
use serde::Serialize;

use crate::evidence::{AfterLift, AtEnd, Before, RuleFacts};
use crate::failure::Failure;
use crate::held;
use crate::render::{self, View};

/// A block of a run. It ends when its lease does.
pub(super) struct Block {
    id: RuleId,
    /// `None` after the lift.
    lease: Option<Lease>,
    held: Held,
    facts: Facts,
}

/// A block in the report.
#[derive(Debug, Serialize)]
pub(crate) struct Facts {
    /// The number of the step that started it, from 1.
    step: usize,
    lease: String,
    rule: RuleFacts,
    carved: Vec<Carved>,
    times: Times,
    before: Before,
    /// The account of established flows when the block started.
    teardown: Account,
    at_end: Option<AtEnd>,
    after_lift: Option<AfterLift>,
    /// Whether it was in force until its lift.
    held_throughout: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<String>,
}

#[derive(Debug, Serialize)]
struct Times {
    held: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost: Option<Timestamp>,
    lifted: Option<Timestamp>,
}

impl Block {
    /// Puts a rule in force.
    pub(super) async fn begin(
        client: &Client,
        step: usize,
        spec: &RuleSpec,
        expires: Timestamp,
        force: bool,
    ) -> Result<Self, Failure> {
        let spec = RuleSpec {
            expires: Some(expires),
            ..spec.clone()
        };
        let dry_run = Change {
            force,
            dry_run: true,
            ..Change::default()
        };
        let before = client.add(&spec, dry_run).await?;
        let request = LeaseRequest { rules: vec![spec] };
        let lease = client.hold(&request, force).await?;
        let held = lease.held().clone();
        let rule = held.rules.first().ok_or(Failure::Gone)?;
        Ok(Self {
            id: rule.id.clone(),
            facts: Facts {
                step: step + 1,
                lease: held.lease.clone(),
                rule: RuleFacts::new(rule),
                carved: held.carved.clone(),
                times: Times {
                    held: Timestamp::now(),
                    lost: None,
                    lifted: None,
                },
                before: Before {
                    flows: before.would_kill.unwrap_or_default(),
                },
                teardown: held.teardown.clone(),
                at_end: None,
                after_lift: None,
                held_throughout: true,
                lost: None,
            },
            lease: Some(lease),
            held,
        })
    }

    pub(super) const fn id(&self) -> &RuleId {
        &self.id
    }

    pub(super) const fn held(&self) -> &Held {
        &self.held
    }

    pub(super) const fn is_in_force(&self) -> bool {
        self.lease.is_some()
    }

    /// Why it ended before its lift, if it did.
    pub(super) fn lost(&self) -> Option<&str> {
        self.facts.lost.as_deref()
    }

    /// Waits until it ends without being lifted by this run; returns why. Cancel-safe.
    pub(super) async fn ended(&mut self) -> String {
        let why = match &mut self.lease {
            Some(lease) => held::ended(lease).await,
            None => "it was lifted".to_owned(),
        };
        self.lose(why.clone());
        self.trouble(&why)
    }

    /// Lifts it, and records its counters and flows.
    pub(super) async fn lift(&mut self, client: &Client) {
        let id = &self.id;
        let seen = client.rule(id).await.ok();
        let flows = held::flows(client, id).await;
        let lifted = held::lift(client, id).await;
        match (seen, &lifted) {
            (Some(view), _) => {
                let counters = view.counters;
                self.facts.at_end = Some(AtEnd { counters, flows });
            }
            (None, Err(error)) => self.lose(format!("it could not be lifted: {error}")),
            (None, Ok(_)) => self.lose("it was gone when it was to be lifted".to_owned()),
        }
        if let Ok(lifted) = lifted
            && !lifted.removed.is_empty()
        {
            self.facts.times.lifted = Some(Timestamp::now());
            self.facts.after_lift = Some(AfterLift {
                teardown: lifted.teardown,
                flows: held::flows(client, &self.id).await,
            });
        }
        self.lease = None;
    }

    /// Closes the connection, at which the daemon lifts the block.
    pub(super) fn abandon(&mut self) {
        self.lease = None;
        self.lose("the run was interrupted before its lift; the daemon lifts it".to_owned());
    }

    /// The summary: a line, and one more if flows were killed.
    pub(super) fn summary(&self, view: View) -> String {
        if let Some(why) = self.lost() {
            return format!("did not hold to its lift: {why}\n");
        }
        let Facts {
            times,
            at_end,
            after_lift,
            ..
        } = &self.facts;
        let counters = at_end.as_ref().map(|end| end.counters);
        let killed = after_lift.as_ref().map(|after| &after.teardown);
        render::over(Some(times.held), times.lifted, counters, killed, view)
    }

    pub(super) fn into_facts(self) -> Facts {
        self.facts
    }

    /// The message that it ended before its lift.
    pub(super) fn trouble(&self, why: &str) -> String {
        format!("the block {} did not hold to its lift: {why}", self.id)
    }

    fn lose(&mut self, why: String) {
        if self.facts.lost.is_none() {
            self.facts.times.lost = Some(Timestamp::now());
            self.facts.lost = Some(why);
            self.facts.held_throughout = false;
        }
    }
}

impl Facts {
    pub(super) const fn held_throughout(&self) -> bool {
        self.held_throughout
    }

    /// The problem of the block, if it has one.
    pub(super) fn trouble(&self) -> Option<String> {
        let id = &self.rule.id;
        if let Some(why) = &self.lost {
            return Some(format!("the block {id} did not hold to its lift: {why}"));
        }
        let after = self.after_lift.iter().map(|after| &after.teardown);
        let mut accounts = std::iter::once(&self.teardown).chain(after);
        let account = accounts.find(|account| !account.left.is_empty())?;
        Some(format!("{id}: {}", render::left(account)))
    }
}
