//! Follows etcd: lists the rules at a revision, watches from there, applies each of etcd's changes as one
//! change, and starts again when the watch ends.
//!
//! | event | action |
//! |---|---|
//! | a change of any number of keys | one change of the rules of owner `fleet` on this host |
//! | the member dies, cannot be reached, loses its leader or is silent | all rules are listed again from the next member; meanwhile each rule stays until its deadline |
//! | no member can be reached for `loss_after` | `on_loss` applies to rules without a deadline |
//! | etcd compacted its history | all rules are listed again at once |
//! | a value is not valid, or its rule is refused | the others are applied; `status` and the report name the refused one |
//!
//! The same code runs in the daemon and, without a datapath, in the simulation of a large fleet: what
//! enforces the rules is a [`Host`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{Event, EventType, GetOptions, PutOptions, WatchOptions, WatchStream};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::board::Board;
use super::form::{Fleet, OnLoss};
use super::held::{Came, Held};
use super::link::{LARGEST, Link, LinkError};
use super::reporter::{self, Reports};
use super::{Host, Keys, Replaced};
use crate::wire::fleet::report::{self, Answer, HostReport};
use crate::wire::fleet::selector::Identity;
use crate::wire::fleet::value::Value;
use crate::wire::{FleetRefusal, FleetState};

/// How often a progress notification is requested.
const ASK: Duration = Duration::from_secs(5);
/// The longest time without one, or any other message.
const SILENCE: Duration = Duration::from_secs(12);
/// The pauses between attempts: the first after a member failed, the first after all did, the longest.
const NEXT: Duration = Duration::from_millis(20);
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);
/// When refused rules are tried again.
const REFUSED: SignedDuration = SignedDuration::from_secs(30);
/// Questions older than this are ignored: nobody waits for the answer.
const STALE: Duration = Duration::from_secs(60);
/// How many questions are answered at once. Each one lists every flow of the host.
const QUESTIONS: usize = 2;
/// The ids of the two watches.
const RULES: i64 = 1;
const ASKS: i64 = 2;
/// How long an answer exists, in seconds.
const ANSWERED: i64 = 60;

/// Follows etcd for one host.
pub struct Follower<H> {
    fleet: Fleet,
    keys: Keys,
    me: Identity,
    host: H,
    board: Board,
    reports: Reports,
    /// Where the rules are saved, if anywhere.
    directory: Option<PathBuf>,
    held: Held,
    heard: Instant,
    /// Whether rules without a deadline are lifted.
    lifted: bool,
    /// Whether enforcing the rules failed and has to be tried again.
    behind: bool,
    /// When to apply the rules again without a change: a deadline passes, or a refused rule may be
    /// accepted by then.
    again: Option<Timestamp>,
    /// The connection, shared with [`Goodbye`].
    link: Arc<std::sync::Mutex<Option<Link>>>,
    questions: Arc<Semaphore>,
}

/// Ends a follower's presence in etcd.
#[derive(Clone)]
pub struct Goodbye {
    link: Arc<std::sync::Mutex<Option<Link>>>,
    keys: Keys,
    name: String,
}

impl Goodbye {
    /// Deletes the host's report.
    pub async fn say(self) {
        let link = self.link.lock().ok().and_then(|link| link.clone());
        if let Some(link) = link {
            reporter::withdraw(&link, &self.keys, &self.name).await;
        }
    }
}

impl<H: Host> Follower<H> {
    /// A follower that uses the rules saved in `directory`, if any, until it reaches etcd.
    pub fn new(fleet: Fleet, host: H, board: Board, directory: Option<PathBuf>) -> Self {
        board.begin(Some(&fleet));
        let now = Timestamp::now();
        let held = directory.as_ref().map(|directory| {
            Held::load(directory, &fleet.prefix, now).unwrap_or_else(|error| {
                tracing::error!("{error}");
                Held::default()
            })
        });
        Self {
            keys: Keys::new(&fleet.prefix),
            me: fleet.identity(),
            reports: Reports::new(HostReport::new(fleet.identity(), now)),
            fleet,
            host,
            board,
            directory,
            held: held.unwrap_or_default(),
            heard: Instant::now(),
            lifted: false,
            behind: false,
            again: None,
            link: Arc::default(),
            questions: Arc::new(Semaphore::new(QUESTIONS)),
        }
    }

    /// What withdraws the report after the follower has ended.
    #[must_use]
    pub fn goodbye(&self) -> Goodbye {
        Goodbye {
            link: Arc::clone(&self.link),
            keys: self.keys.clone(),
            name: self.me.name.clone(),
        }
    }

    /// Follows until it is dropped.
    pub async fn run(mut self) {
        if self.held.revision() > 0 {
            self.apply(false).await;
        }
        let members = self.fleet.endpoints.len();
        // Random, so that hosts spread over the members.
        let mut turn = usize::try_from(random(members as u64)).unwrap_or(0);
        let (mut failures, mut pause) = (0, FIRST);
        loop {
            let endpoint = self.fleet.endpoints[turn % members].clone();
            let since = Instant::now();
            let Err(error) = self.follow(&endpoint).await;
            if self.heard > since {
                (failures, pause) = (0, FIRST);
            }
            if matches!(error, LinkError::Compacted { .. }) {
                tracing::info!("{error}: all rules are listed again");
                continue;
            }
            self.lose(&error);
            turn += 1;
            failures += 1;
            let wait = if failures % members == 0 {
                let wait = pause;
                pause = LONGEST.min(pause * 2);
                wait
            } else {
                NEXT
            };
            let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            sleep(Duration::from_millis(millis / 2 + random(millis))).await;
            self.stand_alone().await;
        }
    }

    /// Follows one member until the connection fails.
    async fn follow(&mut self, endpoint: &str) -> Result<std::convert::Infallible, LinkError> {
        self.board
            .post(|status| status.endpoint = Some(endpoint.to_owned()));
        let link = Link::open(&self.fleet, endpoint).await?;
        self.list(&link).await?;
        self.board
            .post(|status| status.state = FleetState::Following);
        let mut watch = self.watch(&link).await?;
        tracing::info!(
            endpoint,
            revision = self.held.revision(),
            "following the fleet's etcd"
        );
        if let Ok(mut current) = self.link.lock() {
            *current = Some(link.clone());
        }
        let reporting = reporter::report(
            link.clone(),
            self.keys.clone(),
            self.reports.clone(),
            self.board.clone(),
        );
        let _reporting = EndsWithThis(tokio::spawn(reporting));
        let mut ask = interval(ASK);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = watch.message() => {
                    let what = "watching";
                    let message = link.ask(what, async { message }).await?;
                    let ended = |why: &str| LinkError::Ended {
                        endpoint: link.endpoint.clone(),
                        why: why.to_owned(),
                    };
                    let message = message.ok_or_else(|| ended("the connection closed"))?;
                    if message.compact_revision() > 0 {
                        return Err(LinkError::Compacted { revision: message.compact_revision() });
                    }
                    if message.canceled() && message.watch_id() == ASKS {
                        // Rules do not depend on the permission to read questions.
                        let why = message.cancel_reason();
                        tracing::warn!("questions of the fleet are not answered here: {why}");
                        continue;
                    }
                    if message.canceled() {
                        return Err(ended(message.cancel_reason()));
                    }
                    self.hear();
                    self.take(&link, message.events()).await;
                }
                _ = ask.tick() => {
                    if self.heard.elapsed() > SILENCE {
                        return Err(LinkError::Silent {
                            what: "watching",
                            endpoint: link.endpoint.clone(),
                            within: SILENCE,
                        });
                    }
                    link.ask("asking for a sign of life", watch.request_progress()).await?;
                    if self.behind || self.again.is_some_and(|again| again <= Timestamp::now()) {
                        self.apply(false).await;
                    }
                }
            }
        }
    }

    /// Lists all rules, and enforces those of this host.
    async fn list(&mut self, link: &Link) -> Result<(), LinkError> {
        let prefix = self.keys.rules();
        let mut kv = link.client.kv_client().max_decoding_message_size(LARGEST);
        let all = kv.get(prefix.clone(), Some(GetOptions::new().with_prefix()));
        let all = link.ask("listing rules", all).await?;
        let revision = all
            .header()
            .map_or(0, etcd_client::ResponseHeader::revision);
        let rules = all.kvs().iter().filter_map(|kv| {
            let tail = kv.key_str().ok()?.strip_prefix(&prefix)?;
            Some((tail, kv.mod_revision(), kv.value()))
        });
        self.held.list(revision, rules, Timestamp::now());
        self.hear();
        self.lifted = false;
        self.apply(true).await;
        Ok(())
    }

    /// Watches rules, from the revision that was listed, and questions.
    async fn watch(&self, link: &Link) -> Result<WatchStream, LinkError> {
        let options = |id| {
            let from = self.held.revision() + 1;
            let options = WatchOptions::new().with_prefix().with_watch_id(id);
            options.with_start_revision(from).with_progress_notify()
        };
        let mut watches = link
            .client
            .watch_client()
            .max_decoding_message_size(LARGEST);
        let watch = watches.watch(self.keys.rules(), Some(options(RULES)));
        let mut watch = link.ask("watching rules", watch).await?;
        let asks = watch.watch(self.keys.asks(), Some(options(ASKS)));
        link.ask("watching questions", asks).await?;
        Ok(watch)
    }

    /// Applies events, all of them as one change.
    async fn take(&mut self, link: &Link, events: &[Event]) {
        let (rules, asks) = (self.keys.rules(), self.keys.asks());
        let now = Timestamp::now();
        let mut changed = false;
        for event in events {
            let Some(kv) = event.kv() else { continue };
            let Ok(key) = kv.key_str() else { continue };
            if let Some(tail) = key.strip_prefix(&rules) {
                changed = true;
                match event.event_type() {
                    EventType::Put => {
                        self.held
                            .put(tail, kv.mod_revision(), kv.value(), Came::Fresh, now);
                    }
                    EventType::Delete => self.held.delete(tail, kv.mod_revision()),
                }
            } else if let (Some(ask), EventType::Put) =
                (key.strip_prefix(&asks), event.event_type())
            {
                self.answer(link, ask, kv.value(), now);
            }
        }
        if changed {
            self.apply(true).await;
        }
    }

    /// Enforces the rules. `news`: they may differ from those saved.
    async fn apply(&mut self, news: bool) {
        let revision = self.held.revision();
        let now = Timestamp::now();
        let (told, mut refused) = self.held.due(&self.me, now, self.lifted);
        self.again = told.iter().filter_map(|told| told.rule.expires).min();
        let written = |id: &str| {
            let of = told.iter().find(|told| told.rule.id.as_str() == id);
            of.map_or(revision, |told| told.revision)
        };
        match self.host.enforce(told.clone()).await {
            Ok(done) => {
                self.behind = false;
                if !done.refused.is_empty() {
                    let later = now.checked_add(REFUSED).unwrap_or(now);
                    self.again = Some(self.again.map_or(later, |again| again.min(later)));
                }
                refused.extend(done.refused.iter().map(|(id, why)| FleetRefusal {
                    rule: id.to_string(),
                    revision: written(id.as_str()),
                    why: why.clone(),
                }));
                self.tell(revision, done, &refused);
            }
            Err(error) => {
                // The rules before stay in force.
                self.behind = true;
                tracing::error!(
                    "the fleet's rules cannot be enforced, the previous ones stay in force: {error}"
                );
                self.board.post(|status| {
                    status.error = Some(format!("the rules cannot be enforced: {error}"));
                });
            }
        }
        if let Some(directory) = self.directory.clone().filter(|_| news) {
            let (held, prefix) = (self.held.clone(), self.fleet.prefix.clone());
            let saved = tokio::task::spawn_blocking(move || held.save(&directory, &prefix)).await;
            match saved {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!("{error}"),
                Err(error) => tracing::error!("the fleet's rules cannot be saved: {error}"),
            }
        }
    }

    /// Reports a change that is in force, and its teardown when that is finished.
    fn tell(&self, revision: i64, done: Replaced, refused: &[FleetRefusal]) {
        let now = Timestamp::now();
        let skew = self.held.skew();
        let skewed = skew.is_some_and(|skew| skew.abs() > self.fleet.max_skew.duration());
        let rules = done.in_force as u64;
        let mut known = Vec::new();
        self.board.post(|status| {
            known = std::mem::replace(&mut status.refused, refused.to_vec());
            if skewed && !status.skewed {
                tracing::warn!(
                    seconds = skew.map(|skew| skew.as_secs_f64()),
                    "this host's clock and the clock of who wrote a rule differ: deadlines follow this host's"
                );
            }
            status.revision = revision;
            status.rules = rules;
            status.skew_seconds = skew.map(|skew| skew.as_secs_f64());
            status.skewed = skewed;
            status.changes += 1;
            status.error = None;
            status.lifted_by_loss = self.lifted;
        });
        for new in refused.iter().filter(|refusal| !known.contains(refusal)) {
            let FleetRefusal { rule, why, .. } = new;
            tracing::warn!(rule, revision, "a rule of the fleet is refused: {why}");
        }
        let started: Vec<String> = done.started.iter().map(ToString::to_string).collect();
        self.reports.change(|report| {
            report.revision = revision;
            report.rules = rules;
            report.refuse(refused);
            report.skew_ms = skew.and_then(|skew| i64::try_from(skew.as_millis()).ok());
            report.skewed = skewed;
            if !started.is_empty() {
                report.change(revision, &started, now);
            }
        });
        if !started.is_empty() {
            let reports = self.reports.clone();
            tokio::spawn(async move {
                if let Ok(account) = done.teardown.await {
                    reports.change(|report| report.killed(revision, &account));
                }
            });
        }
    }

    /// Answers a question in the background, if it is for this host.
    fn answer(&self, link: &Link, ask: &str, bytes: &[u8], now: Timestamp) {
        let Ok(value) = Value::parse(bytes) else {
            return;
        };
        let age = now.duration_since(value.written);
        let stale = i64::try_from(STALE.as_secs()).is_ok_and(|most| age.as_secs().abs() > most);
        // Further questions are dropped: who asks sees which hosts answered.
        let Ok(permit) = Arc::clone(&self.questions).try_acquire_owned() else {
            return;
        };
        if stale || !value.is_for(&self.me) {
            return;
        }
        let key = self.keys.answer(&self.me.name, ask);
        let (host, link, name) = (self.host.clone(), link.clone(), self.me.name.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let found = host.flows(value.rule, value.force).await;
            let answer = Answer {
                version: report::VERSION,
                host: name,
                flows: found.as_ref().ok().copied(),
                refused: found.err(),
            };
            let text = serde_json::to_vec(&answer).unwrap_or_default();
            let mut client = link.client.clone();
            let answered = async {
                let lease = client.lease_grant(ANSWERED, None).await?.id();
                let options = PutOptions::new().with_lease(lease);
                client.put(key, text, Some(options)).await
            };
            if let Err(error) = link.ask("answering a question", answered).await {
                tracing::warn!("{error}");
            }
        });
    }

    fn hear(&mut self) {
        self.heard = Instant::now();
        self.board.hear();
    }

    /// Notes that the member is lost.
    fn lose(&self, error: &LinkError) {
        let mut lost = false;
        self.board.post(|status| {
            lost = status.state == FleetState::Following;
            if lost {
                status.state = FleetState::Lost;
                status.losses += 1;
            }
            if status.error.is_none() {
                tracing::warn!("the fleet's etcd cannot be reached: {error}");
            }
            status.error = Some(error.to_string());
        });
        if lost {
            self.reports.change(|report| report.losses += 1);
        }
    }

    /// Continues without etcd; applies `on_loss` after `loss_after`.
    async fn stand_alone(&mut self) {
        let after = Duration::try_from(self.fleet.loss_after.duration()).unwrap_or(Duration::MAX);
        let due = self.fleet.on_loss == OnLoss::Lift && self.heard.elapsed() >= after;
        if due && !self.lifted {
            tracing::warn!(
                "etcd is gone for {}: rules of the fleet without a deadline are lifted (on_loss)",
                self.fleet.loss_after
            );
            self.lifted = true;
            self.behind = true;
        }
        if self.behind {
            self.apply(false).await;
        }
    }
}

/// A task that is aborted when this is dropped.
struct EndsWithThis(tokio::task::JoinHandle<()>);

impl Drop for EndsWithThis {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A random number below a bound, for spreading; 0 if the kernel gives none.
fn random(below: u64) -> u64 {
    getrandom::u64().unwrap_or(0) % below.max(1)
}
