//! The tasks: one for each feed, which looks at its source, has what it finds put in force, and
//! keeps it.

mod decisions;
mod lists;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet, spawn_blocking};

use super::kept::{self, Kept};
use super::{FeedError, beside, pace};
use crate::config::feeds::{Feed, FeedName, Source};
use crate::controller::Controller;
use crate::rule::Lifetime;

/// The feeds of the configuration, told anew at each reload.
pub type Told = watch::Receiver<Arc<Vec<Feed>>>;

/// Follows all feeds, and what reloads make of them, until it is dropped.
pub async fn follow(controller: Controller) {
    let mut told = controller.feeds();
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
                    controller: controller.clone(),
                    feed: feed.clone(),
                    told: told.clone(),
                    failures: 0,
                };
                let task = tasks.spawn(follower.run());
                running.insert(feed.name.clone(), (feed.clone(), task));
            }
        }
        loop {
            tokio::select! {
                changed = told.changed() => match changed {
                    Ok(()) => break,
                    // The controller is gone, and the daemon with it.
                    Err(_) => return,
                },
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!("a feed's task failed inside, a reload starts it again: {error}");
                    }
                }
            }
        }
    }
}

/// What follows one feed.
struct Follower {
    controller: Controller,
    feed: Feed,
    told: Told,
    /// Looks in a row that failed.
    failures: u32,
}

impl Follower {
    async fn run(self) {
        match self.feed.source.clone() {
            Source::File { .. } => self.watch_file().await,
            Source::Url { interval, .. } => self.ask_for_list(interval).await,
            Source::Crowdsec { interval, .. } => self.ask_for_decisions(interval).await,
        }
    }

    /// Puts content in force and, if it is to be, on the disk.
    async fn put(&self, kept: Kept, save: bool) -> Result<(), FeedError> {
        let is_ours = self
            .controller
            .put_feed(self.feed.clone(), kept.clone())
            .await?;
        if is_ours && save {
            self.save(kept).await;
        }
        Ok(())
    }

    async fn save(&self, kept: Kept) {
        let (state_dir, name) = (self.controller.state_dir(), self.feed.name.clone());
        let saved = spawn_blocking(move || kept::save(&state_dir, &name, &kept)).await;
        if let Ok(Err(error)) = saved {
            tracing::error!(feed = %self.feed.name, "it is in force, but not kept: {error}");
        }
    }

    /// Makes the rules again if what must not be blocked is not what it was.
    async fn review(&self) -> Result<(), FeedError> {
        self.controller.review_feed(self.feed.clone()).await
    }

    fn kept_of(&self, source: &str) -> Option<Kept> {
        let kept = self.controller.feed_kept(&self.feed);
        kept.filter(|kept| kept.source == source)
    }

    /// Takes note of how a look ended, and tells it once.
    fn note(&mut self, outcome: Result<(), FeedError>) {
        let outcome = outcome.map_err(|error| error.to_string());
        let name = &self.feed.name;
        let before = self.controller.feed_account(&self.feed, |account| {
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

    fn pause(&self, interval: Duration) -> Duration {
        pace::pause(interval, self.failures, pace::chance())
    }

    fn tell_next(&self, next: Option<Instant>) {
        let left = next.map(|next| next.saturating_duration_since(Instant::now()));
        self.controller.feed_account(&self.feed, |account| {
            account.next = left.and_then(|left| Timestamp::now().checked_add(left).ok());
        });
    }

    /// Waits until the source is to be asked again. A reload makes one that failed be asked at once.
    async fn rest(&mut self, interval: Lifetime) {
        let until = Instant::now() + self.pause(span(interval));
        self.tell_next(Some(until));
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => return,
                Ok(()) = self.told.changed() => if self.failures > 0 {
                    return;
                },
            }
        }
    }
}

fn span(lifetime: Lifetime) -> Duration {
    lifetime.duration().unsigned_abs()
}
