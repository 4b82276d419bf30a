//! A feed with its content: loaded at the daemon's start, carried over at a reload.

use jiff::Timestamp;

use super::super::live::Wanted;
use super::super::requests::facts;
use super::super::{Asking, Error};
use crate::config::Config;
use crate::feeds::FeedError;
use crate::feeds::account::Account;
use crate::feeds::content::{Content, Made, With};
use crate::feeds::feed::Feed;
use crate::feeds::kept::{self, Kept};
use crate::lists::List;
use crate::rule::{Rule, RuleId};
use crate::safety::HostFacts;

/// A feed with its content.
#[derive(Clone)]
pub(in crate::controller) struct Held {
    pub(super) feed: Feed,
    pub(super) kept: Option<Kept>,
    /// The facts that the rules were made with.
    pub(super) facts: HostFacts,
    pub(super) account: Account,
    /// The rules to put in force; `None`: those in force stay.
    pub(super) rules: Option<Vec<Rule>>,
    /// Whether the content is still to be saved.
    pub(super) unsaved: bool,
}

/// The feeds of a configuration, with content from the feeds before, from the disk or from the files
/// that are their sources.
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
        let gives_decisions = |feed: &Feed| feed.source.decision_modes().is_some();
        let old = old.filter(|held| gives_decisions(&held.feed) == gives_decisions(feed));
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
                // The content before is still in force.
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
            held.read(config, now);
        }
        if held.rules.is_none() {
            held.make_kept(config, now);
        }
        held
    };
    config.feeds.iter().map(take).collect()
}

impl Held {
    /// Reads the list of a local source.
    fn read(&mut self, config: &Config, now: Timestamp) {
        let source = self.feed.source.key();
        let known = self.kept.as_ref().filter(|kept| kept.source == source);
        let before = known.map(|kept| kept.content.len());
        if let Some(list) = self.feed.source.load(self.feed.max_bytes, before) {
            let outcome = list.and_then(|list| self.take(list, source, config, now));
            self.looked(outcome, now);
        }
    }

    /// Takes over a list, and makes its rules, if it is another one.
    fn take(
        &mut self,
        list: List,
        source: String,
        config: &Config,
        now: Timestamp,
    ) -> Result<(), FeedError> {
        let known = self.kept.as_ref().filter(|kept| kept.source == source);
        let content = Content::List(list.targets.into());
        if known.is_some_and(|kept| kept.content == content) {
            return Ok(());
        }
        let kept = Kept {
            content,
            source,
            validators: Default::default(),
            got: now,
        };
        // Content that makes no rules must not replace content that does.
        self.make(&kept, config, now)?;
        self.kept = Some(kept);
        self.unsaved = true;
        Ok(())
    }

    /// Makes the rules of the content.
    fn make_kept(&mut self, config: &Config, now: Timestamp) {
        match self.kept.clone() {
            None => self.rules = Some(Vec::new()),
            Some(kept) => {
                if let Err(error) = self.make(&kept, config, now) {
                    self.looked(Err(error), now);
                }
            }
        }
    }

    fn make(&mut self, kept: &Kept, config: &Config, now: Timestamp) -> Result<(), FeedError> {
        let protect: Vec<_> = config.protect.iter().map(|target| target.net()).collect();
        let with = With {
            defaults: config.defaults,
            facts: &self.facts,
            protect: &protect,
            now,
        };
        let made = Made::of(&self.feed, &kept.content, &with)?;
        self.account.holds(&made, kept.got);
        self.rules = Some(made.rules);
        Ok(())
    }

    fn looked(&mut self, outcome: Result<(), FeedError>, now: Timestamp) {
        let name = &self.feed.name;
        let outcome = outcome.map_err(|error| error.to_string());
        if let Err(error) = &outcome {
            tracing::warn!(feed = %name, "the feed fails; what it gave before, if anything, stays in force: {error}");
        }
        self.account.looked(outcome, now);
    }

    /// The rules to put in force at the daemon's start.
    pub(in crate::controller) fn wanted(
        &self,
        now: Timestamp,
    ) -> impl Iterator<Item = (RuleId, Wanted)> {
        let owner = self.feed.name.owner();
        let rules = self.rules.iter().flatten().cloned();
        rules.map(move |rule| Wanted::entry(rule, &owner, now))
    }

    /// Gives up the rules because of an error, and notes it.
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_is_no_good_leaves_what_was_kept() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("l");
        let text = format!(
            "state_dir: {}\nfeeds: [{{name: l, type: file, path: l, shrink: 100}}]\n",
            dir.path().display()
        );
        let name = dir.path().join("c.yaml").display().to_string();
        let config = Config::parse(&text, &name).unwrap();
        let take_up = |before: &[Held]| take_up(&config, before, Timestamp::now()).remove(0);
        fs::write(&file, "198.51.100.1\n198.51.100.2\n").unwrap();
        let first = take_up(&[]);
        assert_eq!((first.account.entries, first.unsaved), (2, true));
        let kept = first.kept.clone().unwrap();
        kept::save(dir.path(), &first.feed.name, &kept).unwrap();
        // A list of everything at once (left out), an empty one, and one that cannot be read.
        for text in ["0.0.0.0/0\n", "", "nonsense\n"] {
            fs::write(&file, text).unwrap();
            let held = take_up(&[]);
            assert_eq!((held.account.entries, held.unsaved), (2, false), "{text}");
            assert_eq!(held.kept.as_ref(), Some(&kept));
            assert!(held.account.error.is_some(), "{text}");
            assert_eq!(held.rules.map(|rules| rules.len()), Some(1));
        }
        // At a reload the file is left to its follower.
        let carried = take_up(&[first]);
        assert_eq!((carried.account.entries, carried.account.error), (2, None));
    }
}
