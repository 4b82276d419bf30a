//! The source `crowdsec`: the decisions of a CrowdSec Local API, asked for at an interval.

mod lapi;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::super::content::Content;
use super::super::fetch::{Http, Validators, WebAddress, read_key};
use super::super::follower::{Follower, span};
use super::super::kept::Kept;
use super::super::{Decisions, FeedError, Host};
use super::Form;
use super::form::Reading;
use crate::rule::{Defaults, Lifetime, Mode};
use crate::yaml::Fault;
use lapi::Lapi;

/// How often all decisions are asked for, whatever changes were reported.
const ALL: Duration = Duration::from_secs(3600);
/// The shortest time between two writes of more than [`MANY`] decisions to the disk.
const SAVE: Duration = Duration::from_secs(60);
const MANY: usize = 1_000;
/// So many new decisions in one answer come from an import, and during one CrowdSec 1.4 leaves some
/// out of the changes that it reports: all decisions are asked for again.
const BULK: u64 = 100;

/// The decisions of a CrowdSec Local API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Crowdsec {
    /// The API's base address.
    pub url: WebAddress,
    /// The file with the bouncer's key, and nothing else.
    pub api_key_file: PathBuf,
    /// How often it is asked.
    pub interval: Lifetime,
    /// How long an answer may take.
    pub timeout: Lifetime,
    /// The CA certificates of the server, in PEM; `None`: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Which decisions are followed: those on addresses, on ranges, or both.
    pub scopes: Vec<Scope>,
    /// The mode for each type of decision; other types are ignored. Not empty.
    pub types: BTreeMap<String, Mode>,
}

/// What a decision applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// An address.
    Ip,
    /// A prefix.
    Range,
}

impl Scope {
    /// The API's word for it in requests.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Range => "range",
        }
    }
}

/// What is known of the decisions.
#[derive(Default)]
struct Known {
    lapi: Option<Lapi>,
    decisions: Decisions,
    /// When all decisions were received; `None`: they have to be asked for.
    all: Option<Instant>,
    saved: Option<Instant>,
    unsaved: bool,
}

impl Known {
    fn kept<H: Host>(&self, follower: &Follower<H>) -> Kept {
        Kept {
            content: Content::Decisions(self.decisions.clone()),
            source: follower.feed().source.key(),
            validators: Validators::default(),
            got: Timestamp::now(),
        }
    }

    async fn put<H: Host>(&mut self, follower: &Follower<H>) -> Result<(), FeedError> {
        let put = follower.put(self.kept(follower), false).await;
        if put.is_err() {
            // What is known is not what is in force.
            self.all = None;
        }
        put?;
        self.save(follower, true).await;
        Ok(())
    }

    /// Writes the decisions to the disk if they changed; many of them only now and then.
    async fn save<H: Host>(&mut self, follower: &Follower<H>, changed: bool) {
        self.unsaved |= changed;
        let few = self.decisions.len() <= MANY;
        let due = self.saved.is_none_or(|at| at.elapsed() >= SAVE);
        if self.unsaved && (few || due) {
            follower.save(self.kept(follower)).await;
            self.saved = Some(Instant::now());
            self.unsaved = false;
        }
    }
}

impl Crowdsec {
    pub(super) fn read(
        form: &mut Form,
        reading: &Reading<'_>,
        defaults: Defaults,
    ) -> Result<Self, Fault> {
        let key = reading.needed("api_key_file", form.api_key_file.take());
        Ok(Self {
            url: reading.address(form.url.take())?,
            api_key_file: reading.file(&key?, read_key)?,
            interval: reading.span("interval", form.interval.take(), "10s")?,
            timeout: reading.span("timeout", form.timeout.take(), "30s")?,
            ca: reading.certificates(form.ca.take())?,
            scopes: reading.several(
                form.scopes.take(),
                vec![Scope::Ip, Scope::Range],
                Vec::is_empty,
                "scopes is empty: the feed would block nothing",
            )?,
            types: reading.several(
                form.types.take(),
                BTreeMap::from([("ban".to_owned(), defaults.mode)]),
                BTreeMap::is_empty,
                "types is empty: the feed would block nothing; write types: {ban: drop}",
            )?,
        })
    }

    pub(super) async fn follow<H: Host>(self, mut follower: Follower<H>) {
        let mut known = Known::default();
        if let Some(Kept {
            content: Content::Decisions(decisions),
            ..
        }) = follower.kept()
        {
            known.decisions = decisions;
        }
        loop {
            let outcome = self.take(&follower, &mut known).await;
            if outcome.is_err() {
                // Changes that were lost with the answer are not reported again.
                known.all = None;
                known.lapi = None;
                // The API may be away for long: write what is unsaved at once.
                known.saved = None;
                known.save(&follower, false).await;
                // Decisions end in time, with or without the API.
                if known.decisions.prune(Timestamp::now()) > 0
                    && let Err(error) = known.put(&follower).await
                {
                    let feed = &follower.feed().name;
                    tracing::error!(%feed, "decisions that ended are not lifted: {error}");
                }
            }
            follower.note(outcome);
            follower.rest(self.interval).await;
        }
    }

    /// Asks for decisions and puts those that changed in force.
    async fn take<H: Host>(
        &self,
        follower: &Follower<H>,
        known: &mut Known,
    ) -> Result<(), FeedError> {
        let key = read_key(&self.api_key_file).map_err(FeedError::File)?;
        let lapi = match known.lapi.take() {
            Some(lapi) => lapi,
            None => {
                let most = follower.feed().max_bytes;
                let http = Http::new(&self.url, span(self.timeout), most, self.ca.as_deref())?;
                Lapi::new(http, &self.url, &self.scopes)?
            }
        };
        let all = known.all.is_none_or(|at| at.elapsed() >= ALL);
        let answer = lapi.stream(all, &key).await?;
        known.lapi = Some(lapi);
        let now = Timestamp::now();
        let mut decisions = if all {
            Decisions::default()
        } else {
            known.decisions.clone()
        };
        let changed = answer.apply(&mut decisions, &self.scopes, now);
        if let Some(unread) = changed.unread {
            let feed = &follower.feed().name;
            tracing::warn!(%feed, "a decision cannot be read, and is left out: {unread}");
        }
        if all {
            decisions.keep_terms(&known.decisions);
            known.all = Some(Instant::now());
        }
        if !all && changed.new >= BULK {
            known.all = None;
        }
        decisions.prune(now);
        let filled = follower.account(|account| account.filled);
        if decisions == known.decisions && filled == Some(true) {
            known.save(follower, false).await;
            return follower.review().await;
        }
        known.decisions = decisions;
        known.put(follower).await
    }
}
