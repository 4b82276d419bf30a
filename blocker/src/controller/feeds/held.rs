//! A feed and what there is of it: found at the daemon's start, carried over at a reload.

use jiff::Timestamp;

use super::super::live::Wanted;
use super::super::requests::facts;
use super::super::{Asking, Error};
use crate::config::Config;
use crate::config::feeds::{Feed, Source};
use crate::feeds::account::Account;
use crate::feeds::content::{Content, Made, With};
use crate::feeds::kept::{self, Kept};
use crate::feeds::{FeedError, load_file};
use crate::rule::Rule;
use crate::safety::HostFacts;

/// A feed, and what it gave last.
#[derive(Clone)]
pub(in crate::controller) struct Held {
    pub(super) feed: Feed,
    pub(super) kept: Option<Kept>,
    /// What the rules were made with.
    pub(super) facts: HostFacts,
    pub(super) account: Account,
    /// The rules; `None`: those that are in force stay.
    pub(super) rules: Option<Vec<Rule>>,
    /// Whether the content is yet to be kept.
    pub(super) unsaved: bool,
}

/// The feeds of a configuration with what there is of them: what those before gave, what was kept,
/// what stands in files.
pub(in crate::controller) fn take_up(
    config: &Config,
    before: &[Held],
    now: Timestamp,
) -> Vec<Held> {
    if config.feeds.is_empty() {
        return Vec::new();
    }
    let facts = facts(&Asking::default());
    let take = |feed: &Feed| {
        let old = before.iter().find(|held| held.feed.name == feed.name);
        let old = old.filter(|held| held.feed.source.decides() == feed.source.decides());
        let same = old.is_some_and(|old| old.feed.source.key() == feed.source.key());
        let mut held = Held {
            feed: feed.clone(),
            kept: old.map_or_else(
                || kept::load(&config.state_dir, &feed.name),
                |old| old.kept.clone(),
            ),
            facts: facts.clone(),
            account: match old {
                Some(old) if same => old.account.clone(),
                // What was there is in force still.
                Some(old) => old.account.moved(),
                None => Account::default(),
            },
            rules: None,
            unsaved: false,
        };
        held.kept = held.kept.filter(|kept| kept.content.is_of(&feed.source));
        if let Some(Kept {
            content: Content::Decisions(decisions),
            ..
        }) = &mut held.kept
        {
            decisions.prune(now);
        }
        if !same {
            held.read_file(now);
        }
        held.make(config, now);
        held
    };
    config.feeds.iter().map(take).collect()
}

impl Held {
    /// Reads the list of a feed that is a file.
    fn read_file(&mut self, now: Timestamp) {
        let Source::File { path, list } = &self.feed.source else {
            return;
        };
        let source = self.feed.source.key();
        let known = self.kept.as_ref().filter(|kept| kept.source == source);
        let before = known.map(|kept| kept.content.len());
        let outcome = load_file(path, self.feed.max_bytes, *list, before).map(|list| {
            let content = Content::List(list.targets.into());
            known
                .is_none_or(|kept| kept.content != content)
                .then(|| Kept {
                    content,
                    source,
                    validators: Default::default(),
                    got: now,
                })
        });
        let outcome = outcome.map(|new| {
            if new.is_some() {
                self.kept = new;
                self.unsaved = true;
            }
        });
        self.looked(outcome, now);
    }

    /// Makes the rules of what there is.
    fn make(&mut self, config: &Config, now: Timestamp) {
        let Some(kept) = &self.kept else {
            self.rules = Some(Vec::new());
            return;
        };
        let protect: Vec<_> = config.protect.iter().map(|target| target.net()).collect();
        let with = With {
            defaults: config.defaults,
            facts: &self.facts,
            protect: &protect,
            now,
        };
        match Made::of(&self.feed, &kept.content, &with) {
            Ok(made) => {
                self.account.holds(&made, kept.got);
                self.rules = Some(made.rules);
            }
            Err(error) => self.looked(Err(error), now),
        }
    }

    fn looked(&mut self, outcome: Result<(), FeedError>, now: Timestamp) {
        let name = &self.feed.name;
        let outcome = outcome.map_err(|error| error.to_string());
        if let Err(error) = &outcome {
            tracing::warn!(feed = %name, "the feed fails; what it gave before, if anything, stays in force: {error}");
        }
        self.account.looked(outcome, now);
    }

    /// The rules as they are wanted at the daemon's start.
    pub(in crate::controller) fn wanted(&self, now: Timestamp) -> impl Iterator<Item = Wanted> {
        let owner = self.feed.name.owner();
        let rules = self.rules.iter().flatten().cloned();
        rules.map(move |rule| Wanted {
            rule,
            owner: owner.clone(),
            created: now,
        })
    }

    /// Says that its rules do not fit, and has none.
    pub(in crate::controller) fn give_up(&mut self, error: &Error, now: Timestamp) {
        let error = FeedError::Inside(format!("its rules are not in force: {error}"));
        self.account = Account {
            failures: self.account.failures,
            ..Account::default()
        };
        self.rules = None;
        self.kept = None;
        self.looked(Err(error), now);
    }
}
