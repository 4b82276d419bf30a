//! The tasks: one for each feed, which looks at its source, has what it finds put in force, and
//! keeps it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use reqwest::header::HeaderMap;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet, spawn_blocking};

use super::content::Content;
use super::fetch::{Answer, Http, Validators, read_key};
use super::file::{Look, Watched};
use super::kept::{self, Kept};
use super::lapi::Lapi;
use super::{Decisions, FeedError, list, pace};
use crate::config::feeds::{Feed, FeedName, Source};
use crate::controller::Controller;
use crate::lists::List;
use crate::rule::Lifetime;

/// How often a file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is asked what must not be blocked, where the feed itself did not change.
const REVIEW: Duration = Duration::from_secs(60);
/// How often all decisions are asked for, whatever was told of changes.
const ALL: Duration = Duration::from_secs(3600);
/// How often decisions are written to the disk at most, if there are many.
const SAVE: Duration = Duration::from_secs(60);
/// More are many.
const MANY: usize = 1_000;
/// So many new decisions at once come from a list that somebody imports, and while that is under way
/// CrowdSec 1.4 leaves some out of what it tells of changes: all are asked for again.
const BULK: u64 = 100;

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

    async fn watch_file(mut self) {
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

    async fn ask_for_list(mut self, interval: Lifetime) {
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

    async fn ask_for_decisions(mut self, interval: Lifetime) {
        let mut stream = StreamOf::default();
        if let Some(Kept {
            content: Content::Decisions(decisions),
            ..
        }) = self.controller.feed_kept(&self.feed)
        {
            stream.decisions = decisions;
        }
        loop {
            let outcome = self.get_decisions(&mut stream).await;
            if outcome.is_err() {
                // What was told to nobody must be told again.
                stream.all = None;
                stream.lapi = None;
                // It may be away for long.
                stream.saved = None;
                self.save_decisions(&mut stream, false).await;
                // Decisions end in time, whoever is away.
                if stream.decisions.prune(Timestamp::now()) > 0
                    && let Err(error) = self.put_decisions(&mut stream).await
                {
                    tracing::error!(feed = %self.feed.name, "decisions that ended are not lifted: {error}");
                }
            }
            self.note(outcome);
            self.rest(interval).await;
        }
    }

    async fn get_decisions(&self, stream: &mut StreamOf) -> Result<(), FeedError> {
        let Source::Crowdsec {
            url,
            api_key_file,
            timeout,
            ca,
            scopes,
            ..
        } = &self.feed.source
        else {
            return Ok(());
        };
        let key = read_key(api_key_file).map_err(FeedError::File)?;
        let lapi = match stream.lapi.take() {
            Some(lapi) => lapi,
            None => {
                let most = self.feed.max_bytes;
                let http = Http::new(url, span(*timeout), most, ca.as_deref())?;
                Lapi::new(http, url, scopes)?
            }
        };
        let all = stream.all.is_none_or(|at| at.elapsed() >= ALL);
        let answer = lapi.stream(all, &key).await?;
        stream.lapi = Some(lapi);
        let now = Timestamp::now();
        let mut decisions = if all {
            Decisions::default()
        } else {
            stream.decisions.clone()
        };
        let changed = answer.apply(&mut decisions, scopes, now);
        if let Some(unread) = changed.unread {
            tracing::warn!(feed = %self.feed.name, "a decision cannot be read, and is left out: {unread}");
        }
        if all {
            decisions.keep_terms(&stream.decisions);
            stream.all = Some(Instant::now());
        }
        if !all && changed.new >= BULK {
            stream.all = None;
        }
        decisions.prune(now);
        let filled = self
            .controller
            .feed_account(&self.feed, |account| account.filled);
        if decisions == stream.decisions && filled == Some(true) {
            self.save_decisions(stream, false).await;
            return self.review().await;
        }
        stream.decisions = decisions;
        self.put_decisions(stream).await
    }

    async fn put_decisions(&self, stream: &mut StreamOf) -> Result<(), FeedError> {
        let put = self.put(stream.kept(&self.feed), false).await;
        if put.is_err() {
            // Nobody may take it for what is in force.
            stream.all = None;
        }
        put?;
        self.save_decisions(stream, true).await;
        Ok(())
    }

    /// Writes decisions to the disk if they differ, but not all the time.
    async fn save_decisions(&self, stream: &mut StreamOf, changed: bool) {
        stream.unsaved |= changed;
        let often = stream.decisions.len() <= MANY;
        let due = stream.saved.is_none_or(|at| at.elapsed() >= SAVE);
        if stream.unsaved && (often || due) {
            self.save(stream.kept(&self.feed)).await;
            stream.saved = Some(Instant::now());
            stream.unsaved = false;
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

/// What is known of a stream of decisions.
#[derive(Default)]
struct StreamOf {
    lapi: Option<Lapi>,
    decisions: Decisions,
    /// When all decisions were had; `None`: they are to be asked for.
    all: Option<Instant>,
    saved: Option<Instant>,
    unsaved: bool,
}

impl StreamOf {
    fn kept(&self, feed: &Feed) -> Kept {
        Kept {
            content: Content::Decisions(self.decisions.clone()),
            source: feed.source.key(),
            validators: Validators::default(),
            got: Timestamp::now(),
        }
    }
}

/// Does what takes its time where nobody waits.
async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FeedError> + Send + 'static,
) -> Result<T, FeedError> {
    spawn_blocking(work)
        .await
        .map_err(|error| FeedError::Inside(error.to_string()))?
}

fn span(lifetime: Lifetime) -> Duration {
    lifetime.duration().unsigned_abs()
}
