//! The end of rules: by deletion, by deadline, and what became of their flows.
//!
//! A rule with `on_lift: reset` does not simply go. It becomes a `reset` rule first, under which
//! its flows are killed at both ends; then it goes. Nothing that was sent during the block can be
//! delivered, since the connection that it was sent on is gone.

use jiff::Timestamp;

use super::live::{Wanted, boot_time, lifts_actively};
use super::{Asking, Controller, Error, Keep, kept, status};
use crate::api::types::{Account, DeleteResponse};
use crate::rule::{Established, Mode, Rule};
use crate::state;
use crate::teardown::{self, Listing};

impl Controller {
    /// Kills the established flows of those rules that do so, and gives the account.
    pub(super) async fn kill(&self, rules: Vec<Rule>) -> Account {
        if !rules.iter().any(Rule::kills) {
            return Account::default();
        }
        let settings = self.teardown_settings();
        let kills = std::sync::Arc::clone(&self.0.kills);
        let work = move || teardown::kill(&rules, &settings, &*kills, &|_| {});
        match tokio::task::spawn_blocking(work).await {
            Ok(account) => {
                if account.found > 0 || !account.left.is_empty() {
                    tracing::info!(
                        found = account.found,
                        killed = account.killed,
                        left = account.left.len(),
                        elapsed_ms = account.elapsed_ms,
                        "established flows killed"
                    );
                }
                account
            }
            Err(error) => Account {
                notes: vec![format!("the teardown failed inside: {error}")],
                ..Account::default()
            },
        }
    }

    /// Lists the flows that a teardown of these rules would kill.
    pub(super) async fn list_flows(&self, rules: Vec<Rule>) -> Result<Listing, Error> {
        let settings = self.teardown_settings();
        tokio::task::spawn_blocking(move || teardown::list(&rules, &settings))
            .await
            .map_err(|error| Error::Inside(error.to_string()))
    }

    fn teardown_settings(&self) -> teardown::Settings {
        teardown::Settings {
            namespaces: self.live().config.namespaces,
            mark: self.0.mark,
        }
    }

    /// Makes those rules that want it `reset` rules, and kills their flows. The writer's lock is
    /// held; the rules are to be removed next.
    pub(super) async fn settle_ending(
        &self,
        ending: &[Rule],
        now: Timestamp,
    ) -> Result<Account, Error> {
        let resetting: Vec<Rule> = ending
            .iter()
            .filter(|rule| lifts_actively(rule))
            .map(as_reset)
            .collect();
        if resetting.is_empty() {
            return Ok(Account::default());
        }
        {
            let mut live = self.live();
            let mut wanted = live.wanted();
            for rule in &resetting {
                match wanted.iter_mut().find(|wanted| wanted.rule.id == rule.id) {
                    Some(old) => old.rule = rule.clone(),
                    // One that ended while no daemon was there.
                    None => wanted.push(Wanted {
                        rule: rule.clone(),
                        owner: crate::rule::Owner::Api,
                    }),
                }
            }
            live.put(wanted, now)?;
        }
        Ok(self.kill(resetting).await)
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
        let mut ending = Vec::new();
        let mut left = Vec::new();
        for wanted in self.live().wanted() {
            match keep(&wanted.rule) {
                Keep::All => left.push(wanted),
                Keep::Nothing => {
                    response.removed.push(wanted.rule.id.clone());
                    ending.push(wanted.rule);
                }
                Keep::Only(targets) => {
                    response.narrowed.push(wanted.rule.id.clone());
                    let gone = wanted
                        .rule
                        .targets
                        .iter()
                        .copied()
                        .filter(|target| !targets.contains(target));
                    let gone = gone.collect();
                    let rule = Rule {
                        targets,
                        ..wanted.rule.clone()
                    };
                    ending.push(Rule {
                        targets: gone,
                        ..wanted.rule
                    });
                    left.push(Wanted {
                        rule,
                        owner: wanted.owner,
                    });
                }
            }
        }
        response.teardown = self.lift_parts(&ending, &left, now).await?;
        self.commit(left, now)?;
        tracing::info!(
            who = asking.who, removed = ?response.removed, narrowed = ?response.narrowed, "rules lifted"
        );
        Ok(response)
    }

    /// As [`settle_ending`](Self::settle_ending), where a part of a rule may stay.
    async fn lift_parts(
        &self,
        ending: &[Rule],
        left: &[Wanted],
        now: Timestamp,
    ) -> Result<Account, Error> {
        let (parts, wholes): (Vec<Rule>, Vec<Rule>) = ending
            .iter()
            .cloned()
            .partition(|rule| left.iter().any(|left| left.rule.id == rule.id));
        let account = self.settle_ending(&wholes, now).await?;
        let parts: Vec<Rule> = parts
            .iter()
            .filter(|rule| lifts_actively(rule))
            .map(as_reset)
            .collect();
        if parts.is_empty() {
            return Ok(account);
        }
        // The ending part is a rule of its own for a moment, beside what stays of it.
        let interim: Vec<Rule> = parts
            .into_iter()
            .map(|rule| Rule {
                id: self.fresh_id(),
                ..rule
            })
            .collect();
        {
            let mut live = self.live();
            let stay = left.iter().map(|left| Wanted {
                rule: left.rule.clone(),
                owner: left.owner.clone(),
            });
            let owner = crate::rule::Owner::Api;
            let end = interim.iter().map(|rule| Wanted {
                rule: rule.clone(),
                owner: owner.clone(),
            });
            live.put(stay.chain(end).collect(), now)?;
        }
        Ok(status::sum(account, self.kill(interim).await))
    }

    /// Lifts rules whose deadline has passed.
    pub(super) async fn expire(&self) {
        let due = |wall: Timestamp, boot: u64, live: &super::Live| -> Vec<Rule> {
            let due = live.ruleset().values().filter(|entry| {
                let by_boot = entry.deadline.is_some_and(|deadline| deadline <= boot);
                // The wall clock decides for those that are lifted before the datapath's deadline.
                by_boot
                    || lifts_actively(&entry.rule)
                        && entry.rule.expires.is_some_and(|expires| expires <= wall)
            });
            due.map(|entry| entry.rule.clone()).collect()
        };
        if due(Timestamp::now(), boot_time(), &self.live()).is_empty() {
            return;
        }
        let _writer = self.0.writer.lock().await;
        let now = Timestamp::now();
        let ended = due(now, boot_time(), &self.live());
        if let Err(error) = self.settle_ending(&ended, now).await {
            tracing::error!("{error}");
        }
        let mut left = self.live().wanted();
        left.retain(|wanted| !ended.iter().any(|rule| rule.id == wanted.rule.id));
        match self.commit(left, now) {
            Ok(()) => {
                for rule in ended {
                    tracing::info!(rule = %rule.id, "rule expired");
                }
            }
            Err(error) => {
                tracing::error!("expired rules cannot be removed, but no longer match: {error}")
            }
        }
    }

    /// Does what the end of rules asked for that ended while no daemon was there.
    pub(super) async fn make_good(&self, expired: Vec<Rule>) {
        let _writer = self.0.writer.lock().await;
        let now = Timestamp::now();
        for rule in &expired {
            tracing::info!(rule = %rule.id, "rule expired while no daemon was there");
        }
        let wanted = self.live().wanted();
        if let Err(error) = self.settle_ending(&expired, now).await {
            tracing::error!("{error}");
        }
        let rules = kept(&wanted);
        let state_dir = self.live().config.state_dir.clone();
        let saved = if expired.is_empty() {
            Ok(())
        } else {
            state::save(&state_dir, &rules)
        };
        if let Err(error) = saved {
            tracing::error!("{error}");
        }
        if expired.iter().any(lifts_actively)
            && let Err(error) = self.live().put(wanted, now)
        {
            tracing::error!("{error}");
        }
    }
}

/// The rule under which another one's flows are killed before it goes.
fn as_reset(rule: &Rule) -> Rule {
    Rule {
        mode: Mode::Reset,
        established: Established::Kill,
        expires: None,
        ..rule.clone()
    }
}
