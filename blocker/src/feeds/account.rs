//! The state of a feed, for `status` and metrics.

use jiff::Timestamp;

use super::content::Made;
use super::feed::Feed;
use crate::wire::{FeedState, FeedStatus};

/// The state of a feed.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// Whether content is in force, received by this daemon or the one before.
    pub filled: bool,
    /// When the content was received.
    pub got: Option<Timestamp>,
    /// When a look last succeeded.
    pub succeeded: Option<Timestamp>,
    /// When the source was last looked at.
    pub looked: Option<Timestamp>,
    /// When the next look is due.
    pub next: Option<Timestamp>,
    /// The number of looks that failed.
    pub failures: u64,
    /// Why the last look failed.
    pub error: Option<String>,
    /// Targets in force.
    pub entries: u64,
    /// Rules in force.
    pub rules: u64,
    /// Targets left out.
    pub left_out: u64,
    /// The first of them, and why.
    pub left_out_first: Option<String>,
}

impl Account {
    /// Notes what is in force.
    pub fn holds(&mut self, made: &Made, got: Timestamp) {
        self.filled = true;
        self.got = Some(got);
        self.entries = made.entries;
        self.rules = made.rules.len() as u64;
        self.left_out = made.left_out.count;
        self.left_out_first.clone_from(&made.left_out.first);
    }

    /// The account of the same content after the source was changed.
    #[must_use]
    pub fn moved(&self) -> Self {
        Self {
            succeeded: None,
            looked: None,
            next: None,
            error: None,
            ..self.clone()
        }
    }

    /// Notes a look.
    pub fn looked(&mut self, outcome: Result<(), String>, now: Timestamp) {
        self.looked = Some(now);
        match outcome {
            Ok(()) => {
                self.succeeded = Some(now);
                self.error = None;
            }
            Err(error) => {
                self.failures += 1;
                self.error = Some(error);
            }
        }
    }

    /// For `status`.
    #[must_use]
    pub fn status(&self, feed: &Feed) -> FeedStatus {
        FeedStatus {
            name: feed.name.to_string(),
            kind: feed.source.kind().to_owned(),
            source: feed.source.shown(),
            state: match (self.filled, &self.error, self.succeeded) {
                (false, ..) => FeedState::Waiting,
                (true, Some(_), _) => FeedState::Stale,
                (true, None, Some(_)) => FeedState::Current,
                (true, None, None) => FeedState::Kept,
            },
            entries: self.entries,
            rules: self.rules,
            left_out: self.left_out,
            left_out_first: self.left_out_first.clone(),
            changed: self.got,
            last_success: self.succeeded,
            last_attempt: self.looked,
            next_attempt: self.next,
            failures: self.failures,
            error: self.error.clone(),
        }
    }
}
