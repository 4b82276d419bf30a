//! Following feeds: a task for each, which looks at its source, puts what it finds in force and saves
//! it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet, spawn_blocking};

use super::account::Account;
use super::content::Content;
use super::feed::{Feed, FeedName};
use super::fetch::Validators;
use super::kept::{self, Kept};
use super::{FeedError, Host, pace};
use crate::lists::List;
use crate::rule::Lifetime;

/// The feeds of the configuration; a reload sends them again.
pub type Told = watch::Receiver<Arc<Vec<Feed>>>;

/// Follows all feeds, over reloads, until it is dropped.
pub async fn follow<H: Host>(host: H) {
    let mut told = host.feeds();
    let mut tasks = JoinSet::new();
    let mut running: BTreeMap<FeedName, (Feed, AbortHandle)> = BTreeMap::new();
    loop {
        let feeds = Arc::clone(&told.borrow_and_update());
        running.retain(|_, (feed, task)| {
            let stays = feeds.contains(feed) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        for feed in feeds.iter() {
            if !running.contains_key(&feed.name) {
                let follower = Follower {
                    host: host.clone(),
                    feed: feed.clone(),
                    told: told.clone(),
                    failures: 0,
                };
                let task = tasks.spawn(feed.source.clone().follow(follower));
                running.insert(feed.name.clone(), (feed.clone(), task));
            }
        }
        loop {
            tokio::select! {
                changed = told.changed() => match changed {
                    Ok(()) => break,
                    // The host is gone: the daemon is ending.
                    Err(_) => return,
                },
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!("the task of a feed panicked, a reload starts it again: {error}");
                    }
                }
            }
        }
    }
}

/// What follows one feed: what its source does with what it finds.
pub(super) struct Follower<H> {
    host: H,
    feed: Feed,
    told: Told,
    /// Consecutive looks that failed.
    failures: u32,
}

impl<H: Host> Follower<H> {
    pub(super) const fn feed(&self) -> &Feed {
        &self.feed
    }

    /// Puts content in force and saves it, if `save`.
    pub(super) async fn put(&self, kept: Kept, save: bool) -> Result<(), FeedError> {
        let is_configured = self
            .host
            .replace_content(self.feed.clone(), kept.clone())
            .await?;
        if is_configured && save {
            self.save(kept).await;
        }
        Ok(())
    }

    /// Puts a list in force and saves it.
    pub(super) async fn take(
        &self,
        list: List,
        source: String,
        validators: Validators,
    ) -> Result<(), FeedError> {
        tracing::debug!(feed = %self.feed.name, "{}", list.summary());
        let mut kept = Kept {
            content: Content::List(list.targets.into()),
            source,
            validators,
            got: Timestamp::now(),
        };
        if let Some(old) = self.kept()
            && old.content == kept.content
            && old.source == kept.source
        {
            kept.got = old.got;
        }
        self.put(kept, true).await
    }

    /// Writes content to the disk.
    pub(super) async fn save(&self, kept: Kept) {
        let (state_dir, name) = (self.host.state_dir(), self.feed.name.clone());
        let saved = spawn_blocking(move || kept::save(&state_dir, &name, &kept)).await;
        if let Ok(Err(error)) = saved {
            tracing::error!(feed = %self.feed.name, "it is in force, but not saved: {error}");
        }
    }

    /// Makes the rules again if the addresses that must not be blocked have changed.
    pub(super) async fn review(&self) -> Result<(), FeedError> {
        self.host.review(self.feed.clone()).await
    }

    /// The content in force.
    pub(super) fn kept(&self) -> Option<Kept> {
        self.host.kept(&self.feed)
    }

    /// The content in force, if it came from this source.
    pub(super) fn kept_of(&self, source: &str) -> Option<Kept> {
        self.kept().filter(|kept| kept.source == source)
    }

    /// Reads or changes the feed's account; `None`: the feed is no longer configured.
    pub(super) fn account<T>(&self, act: impl FnOnce(&mut Account) -> T) -> Option<T> {
        self.host.account(&self.feed, act)
    }

    /// Whether the last look failed.
    pub(super) const fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Waits for a reload; forever, if there can be none.
    pub(super) async fn reloaded(&mut self) {
        if self.told.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Notes how a look ended, and logs a change for the better or worse once.
    pub(super) fn note(&mut self, outcome: Result<(), FeedError>) {
        let outcome = outcome.map_err(|error| error.to_string());
        let name = &self.feed.name;
        let before = self.account(|account| {
            let before = account.error.clone();
            account.looked(outcome.clone(), Timestamp::now());
            before
        });
        match outcome {
            Ok(()) => {
                if self.failures > 0 {
                    tracing::info!(feed = %name, failures = self.failures, "the feed is current again");
                }
                self.failures = 0;
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                if before.flatten().as_ref() != Some(&error) {
                    tracing::warn!(feed = %name, "the feed fails; what it gave before, if anything, stays in force: {error}");
                }
            }
        }
    }

    /// The pause before the next look.
    pub(super) fn pause(&self, interval: Duration) -> Duration {
        pace::pause(interval, self.failures, pace::chance())
    }

    /// Notes when the next look is due.
    pub(super) fn tell_next(&self, next: Option<Instant>) {
        let left = next.map(|next| next.saturating_duration_since(Instant::now()));
        self.account(|account| {
            account.next = left.and_then(|left| Timestamp::now().checked_add(left).ok());
        });
    }

    /// Waits until the source is to be asked again: at once after a reload, if the last look failed.
    pub(super) async fn rest(&mut self, interval: Lifetime) {
        let until = Instant::now() + self.pause(span(interval));
        self.tell_next(Some(until));
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => return,
                () = self.reloaded() => if self.is_failing() {
                    return;
                },
            }
        }
    }
}

/// A configured time.
pub(super) fn span(lifetime: Lifetime) -> Duration {
    lifetime.duration().unsigned_abs()
}
