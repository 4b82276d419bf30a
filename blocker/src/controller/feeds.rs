//! Feeds in force: the content, the rules and the account of each.
//!
//! [`crate::feeds`] looks at the sources. Here rules are put in force at the daemon's start, at each
//! reload, and when a feed has new content: as one change each time.

mod held;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::replace::Replacement;
use super::requests::facts;
use super::writer::Writer;
use super::{Asking, Controller, Error, lock};
use crate::feeds::account::Account;
use crate::feeds::content::{Made, With};
use crate::feeds::feed::{Feed, FeedName};
use crate::feeds::kept::{self, Kept};
use crate::feeds::{FeedError, Host, Told, blocking};
use crate::wire::FeedStatus;
pub(super) use held::{Held, take_up};

/// All feeds, and the channel that sends them after a reload.
pub(super) struct Feeds {
    held: Vec<Held>,
    told: watch::Sender<Arc<Vec<Feed>>>,
}

impl Feeds {
    pub(super) fn new(held: Vec<Held>) -> Self {
        let feeds = held.iter().map(|held| held.feed.clone()).collect();
        Self {
            held,
            told: watch::Sender::new(Arc::new(feeds)),
        }
    }

    pub(super) fn statuses(&self) -> Vec<FeedStatus> {
        let held = self.held.iter();
        held.map(|held| held.account.status(&held.feed)).collect()
    }

    fn find(&self, feed: &Feed) -> Option<&Held> {
        self.held.iter().find(|held| held.feed == *feed)
    }
}

impl Host for Controller {
    fn feeds(&self) -> Told {
        lock(&self.0.feeds).told.subscribe()
    }

    fn state_dir(&self) -> PathBuf {
        self.live().config.state_dir.clone()
    }

    fn kept(&self, feed: &Feed) -> Option<Kept> {
        lock(&self.0.feeds).find(feed)?.kept.clone()
    }

    fn account<T>(&self, feed: &Feed, act: impl FnOnce(&mut Account) -> T) -> Option<T> {
        let mut feeds = lock(&self.0.feeds);
        let held = feeds.held.iter_mut().find(|held| held.feed == *feed)?;
        Some(act(&mut held.account))
    }

    async fn replace_content(&self, feed: Feed, kept: Kept) -> Result<bool, FeedError> {
        let (runtime, this) = (Handle::current(), self.clone());
        // On a thread of its own: a change that has begun is completed even if the feed's task is aborted.
        blocking(move || runtime.block_on(this.put_feed_now(&feed, kept))).await
    }

    async fn review(&self, feed: Feed) -> Result<(), FeedError> {
        let this = self.clone();
        let differs = move || {
            let facts = facts(&Asking::default());
            let feeds = lock(&this.0.feeds);
            let held = feeds.find(&feed).filter(|held| held.facts != facts);
            let kept = held.and_then(|held| held.kept.clone());
            Ok(kept.map(|kept| (feed, kept)))
        };
        match blocking(differs).await? {
            Some((feed, kept)) => self.replace_content(feed, kept).await.map(drop),
            None => Ok(()),
        }
    }
}

impl Controller {
    async fn put_feed_now(&self, feed: &Feed, kept: Kept) -> Result<bool, FeedError> {
        let mut writer = self.writer().await;
        if self.0.events.is_closed() || lock(&self.0.feeds).find(feed).is_none() {
            return Ok(false);
        }
        writer.lift_due().await;
        let now = Timestamp::now();
        let facts = facts(&Asking::default());
        let made = {
            let (defaults, protect) = {
                let live = self.live();
                (live.config.defaults, live.protect())
            };
            let with = With {
                defaults,
                facts: &facts,
                protect: &protect,
                now,
            };
            Made::of(feed, &kept.content, &with)?
        };
        let owner = feed.name.owner();
        let refused = |error: Error| FeedError::Refused(error.into());
        let (replacement, _) = self
            .replacement(&owner, made.rules.clone(), now)
            .map_err(refused)?;
        let replaced = writer.replace(replacement, None, now).await;
        let (_, starting) = replaced.map_err(refused)?;
        {
            let mut feeds = lock(&self.0.feeds);
            if let Some(held) = feeds.held.iter_mut().find(|held| held.feed == *feed) {
                held.account.holds(&made, kept.got);
                held.kept = Some(kept);
                held.facts = facts;
            }
        }
        drop(writer);
        self.kill_resets(starting).await;
        Ok(true)
    }

    /// Adds the rules of the feeds of a new configuration to a replacement. Feeds that are no longer
    /// configured have no rules.
    pub(super) fn replace_feeds(
        &self,
        replacement: &mut Replacement,
        held: &[Held],
        now: Timestamp,
    ) -> Result<(), Error> {
        let names: Vec<FeedName> = {
            let feeds = lock(&self.0.feeds);
            let gone = feeds.held.iter().map(|held| &held.feed.name);
            let gone = gone.filter(|name| held.iter().all(|held| held.feed.name != **name));
            gone.cloned().collect()
        };
        let gone = names.iter().map(|name| (name.owner(), Vec::new()));
        let made = held
            .iter()
            .filter_map(|held| Some((held.feed.name.owner(), held.rules.clone()?)));
        for (owner, rules) in gone.chain(made) {
            replacement.put(&self.live(), &owner, rules, now)?;
        }
        Ok(())
    }

    /// The feeds and their content.
    pub(super) fn held_feeds(&self) -> Vec<Held> {
        lock(&self.0.feeds).held.clone()
    }
}

impl Writer {
    /// Records feeds whose rules are in force, saves content that is not saved yet, and sends the feeds to
    /// their followers.
    pub(super) fn settle_feeds(&mut self, mut held: Vec<Held>) {
        let state_dir = self.state_dir();
        for held in &mut held {
            // They are in force now.
            held.rules = None;
            let name = &held.feed.name;
            if std::mem::take(&mut held.unsaved)
                && let Some(kept) = &held.kept
                && let Err(error) = kept::save(&state_dir, name, kept)
            {
                tracing::error!(feed = %name, "it is in force, but not saved: {error}");
            }
        }
        let feeds: Vec<Feed> = held.iter().map(|held| held.feed.clone()).collect();
        let names: Vec<FeedName> = feeds.iter().map(|feed| feed.name.clone()).collect();
        kept::sweep(&state_dir, &names);
        let mut all = lock(&self.0.feeds);
        all.held = held;
        all.told.send_replace(Arc::new(feeds));
    }
}
