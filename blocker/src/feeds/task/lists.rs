//! Following lists, in files and on servers.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use reqwest::header::HeaderMap;
use tokio::task::spawn_blocking;

use super::super::content::Content;
use super::super::fetch::{Answer, Http, Validators};
use super::super::file::{Look, Watched};
use super::super::kept::Kept;
use super::super::{FeedError, list};
use super::{Follower, beside, span};
use crate::config::feeds::Source;
use crate::lists::List;
use crate::rule::Lifetime;

/// How often a file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is asked what must not be blocked, where the feed itself did not change.
const REVIEW: Duration = Duration::from_secs(60);

impl Follower {
    pub(super) async fn watch_file(mut self) {
        let mut watched = Watched::default();
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut retry: Option<Instant> = None;
        let mut was_read = false;
        let mut review = Instant::now() + REVIEW;
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                Ok(()) = self.told.changed() => retry = retry.map(|_| Instant::now()),
            }
            let Source::File { path, .. } = self.feed.source.clone() else {
                return;
            };
            let looked = spawn_blocking(move || Look::at(&path)).await;
            let look = looked.ok().and_then(Result::ok).flatten();
            let changed = watched.is_due(look);
            if changed || retry.is_some_and(|at| at <= Instant::now()) {
                let outcome = self.read_file().await;
                self.note(outcome);
                was_read = true;
                retry = (self.failures > 0).then(|| Instant::now() + self.pause(REVIEW));
                self.tell_next(retry);
            } else if was_read && retry.is_none() {
                self.controller.feed_account(&self.feed, |account| {
                    account.looked(Ok(()), Timestamp::now());
                });
                if review <= Instant::now() {
                    review = Instant::now() + REVIEW;
                    let outcome = self.review().await;
                    self.note(outcome);
                }
            }
        }
    }

    async fn read_file(&self) -> Result<(), FeedError> {
        let Source::File { path, list } = self.feed.source.clone() else {
            return Ok(());
        };
        let source = path.display().to_string();
        let before = self.kept_of(&source).map(|kept| kept.content.len());
        let most = self.feed.max_bytes;
        let load = move || list::load_file(&path, most, list, before);
        let list = beside(load).await?;
        self.take(list, source, Validators::default()).await
    }

    pub(super) async fn ask_for_list(mut self, interval: Lifetime) {
        loop {
            let outcome = self.get_list().await;
            self.note(outcome);
            self.rest(interval).await;
        }
    }

    async fn get_list(&self) -> Result<(), FeedError> {
        let Source::Url {
            url,
            timeout,
            ca,
            list: checks,
            ..
        } = self.feed.source.clone()
        else {
            return Ok(());
        };
        let (source, place) = (url.url().to_string(), url.shown());
        let kept = self.kept_of(&source);
        let known = kept.as_ref().map(|kept| kept.validators.clone());
        let known = known.unwrap_or_default();
        let http = Http::new(&url, span(timeout), self.feed.max_bytes, ca.as_deref())?;
        let asked = http.get(url.url(), &place, &known, HeaderMap::new());
        match asked.await? {
            Answer::Unchanged => self.review().await,
            Answer::Body(bytes, validators) => {
                let before = kept.map(|kept| kept.content.len());
                let read = move || list::sound(&place, &bytes, checks, before);
                let list = beside(read).await?;
                self.take(list, source, validators).await
            }
        }
    }

    /// Puts a list in force, and keeps it.
    async fn take(
        &self,
        list: List,
        source: String,
        validators: Validators,
    ) -> Result<(), FeedError> {
        tracing::debug!(feed = %self.feed.name, "{}", list.summary());
        let kept = Kept {
            content: Content::List(list.targets.into()),
            source,
            validators,
            got: Timestamp::now(),
        };
        let same = |old: &Kept| old.content == kept.content && old.source == kept.source;
        let kept = match self.controller.feed_kept(&self.feed) {
            Some(old) if same(&old) => Kept {
                got: old.got,
                ..kept
            },
            _ => kept,
        };
        self.put(kept, true).await
    }
}
