//! Following the decisions of a CrowdSec Local API.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::super::content::Content;
use super::super::fetch::{Http, Validators, read_key};
use super::super::kept::Kept;
use super::super::lapi::Lapi;
use super::super::{Decisions, FeedError};
use super::{Follower, span};
use crate::config::feeds::{Feed, Source};
use crate::rule::Lifetime;

/// How often all decisions are asked for, whatever was told of changes.
const ALL: Duration = Duration::from_secs(3600);
/// How often decisions are written to the disk at most, if there are many.
const SAVE: Duration = Duration::from_secs(60);
/// More are many.
const MANY: usize = 1_000;
/// So many new decisions at once come from a list that somebody imports, and while that is under way
/// CrowdSec 1.4 leaves some out of what it tells of changes: all are asked for again.
const BULK: u64 = 100;

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

impl Follower {
    pub(super) async fn ask_for_decisions(mut self, interval: Lifetime) {
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
}
