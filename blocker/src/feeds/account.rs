//! How a feed fares: what `status` and metrics say of it.

use jiff::Timestamp;

use super::content::Made;
use super::feed::Feed;
use crate::wire::{FeedState, FeedStatus};

/// How a feed fares.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// Whether there is content in force that its source gave to this daemon or one before it.
    pub filled: bool,
    /// When the content was had.
    pub got: Option<Timestamp>,
    /// When the source was last seen to be sound.
    pub succeeded: Option<Timestamp>,
    /// When it was last looked at.
    pub looked: Option<Timestamp>,
    /// When it will be.
    pub next: Option<Timestamp>,
    /// Looks that failed.
    pub failures: u64,
    /// Why the last one did.
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
    /// Takes note of what is in force.
    pub fn holds(&mut self, made: &Made, got: Timestamp) {
        self.filled = true;
        self.got = Some(got);
        self.entries = made.entries;
        self.rules = made.rules.len() as u64;
        self.left_out = made.left_out.count;
        self.left_out_first.clone_from(&made.left_out.first);
    }

    /// The account of the same content, whose source is now another.
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

    /// Takes note of a look.
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

    /// What `status` says.
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
