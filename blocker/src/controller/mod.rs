//! The sole owner of state: puts rules in force, kills the flows that they are to kill, lifts them, and
//! follows devices, deadlines and the configuration file.
//!
//! One change at a time, by the [`Writer`](writer::Writer). A change is checked for safety, compiled,
//! saved and switched to, in this order, or refused with nothing changed. Then established flows are
//! killed; reads go on meanwhile. A change that has begun is finished even if its client goes away.

mod add;
mod alive;
mod change;
mod dataplane;
mod error;
mod events;
mod explain;
mod feeds;
mod flows;
mod in_force;
mod journal;
mod lease;
mod lift;
mod live;
mod names;
mod owned;
mod replace;
mod requests;
mod status;
mod watch;
mod writer;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use jiff::Timestamp;

use crate::config::{Config, OnStop};
use crate::datapath::devices;
use crate::fleet::board::Board;
use crate::rule::{Owner, Rule};
use crate::state::{Store, Stored};
use crate::teardown::{self, Evidence, Progress};
use crate::wire::{Reload, TeardownTotals};
use events::Events;
use live::{Live, Wanted, WantedRules};
use names::{Names, Wall};
use writer::State;

pub use dataplane::{Dataplane, Observer};
pub use error::Error;
pub use events::Watcher;
pub use lease::Lease;
pub use owned::Owned;

/// Who asks for a change, and how.
#[derive(Debug, Clone, Default)]
pub struct Asking {
    /// The caller's process and its user.
    pub who: Who,
    /// `SSH_CONNECTION` as the client sent it.
    pub ssh_connection: Option<String>,
    /// Whether to override refusals that can be overridden.
    pub force: bool,
    /// Whether only to say what would happen.
    pub dry_run: bool,
}

/// The peer of a connection to the control socket, as far as the kernel knows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Who {
    /// The user.
    pub uid: Option<u32>,
    /// The process.
    pub pid: Option<i32>,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.uid {
            Some(uid) => write!(f, "uid {uid}")?,
            None => f.write_str("uid ?")?,
        }
        match self.pid {
            Some(pid) => write!(f, ", pid {pid}"),
            None => f.write_str(", pid ?"),
        }
    }
}

/// The controller. Cheap to clone; all clones share its state.
#[derive(Clone)]
pub struct Controller(Arc<Inner>);

struct Inner {
    state: State,
    /// Rules that the next writer adds.
    waiting: Mutex<Vec<add::Waiting>>,
    feeds: Mutex<feeds::Feeds>,
    kills: Arc<dyn Evidence>,
    seen: Arc<dyn Observer>,
    names: Names,
    wall: Wall,
    events: Events,
    mark: u32,
    config_path: PathBuf,
    started: Instant,
    started_at: Timestamp,
    last_reload: Mutex<Reload>,
    /// Progress of the teardown that is running.
    teardown: Mutex<Option<Progress>>,
    /// Totals of all teardowns since the start.
    killed: Mutex<TeardownTotals>,
    /// How following the fleet is going.
    fleet: Board,
    lacks: Vec<String>,
}

impl Controller {
    /// Puts the rules of the configuration and those saved before in force on a freshly loaded datapath,
    /// then attaches it.
    ///
    /// # Errors
    /// If the configuration's rules are wrong or do not fit, or nothing can be attached to.
    pub async fn start(
        config: Config,
        config_path: PathBuf,
        datapath: impl Dataplane + 'static,
    ) -> Result<Self, Error> {
        let now = Timestamp::now();
        let (store, loaded) = Store::open(&config.state_dir, now);
        if let Some(problem) = &loaded.problem {
            tracing::error!("{problem}");
        }
        let mark = datapath.mark();
        let kills = datapath.evidence();
        let seen = datapath.seen();
        let configured = config.rules(now)?.into_iter();
        let mut wanted: WantedRules = configured
            .map(|rule| Wanted::entry(rule, &Owner::Config, now))
            .collect();
        let mut held = feeds::take_up(&config, &[], now);
        wanted.extend(held.iter().flat_map(|held| held.wanted(now)));
        for Stored { rule, created } in loaded.rules {
            if wanted.contains_key(&rule.id) {
                tracing::warn!(rule = %rule.id, "a rule saved before has the id of a rule of the configuration or of a feed, and is dropped");
            } else {
                wanted.extend([Wanted::entry(rule, &Owner::Api, created)]);
            }
        }
        if let Some(fleet) = &config.fleet {
            let fleet = owned::saved(fleet, &config, &wanted, now);
            wanted.extend(fleet);
        }
        let live = Live::new(config, Box::new(datapath));
        let controller = Self(Arc::new(Inner {
            state: State::new(live, store),
            waiting: Mutex::default(),
            feeds: Mutex::new(feeds::Feeds::new(Vec::new())),
            kills,
            events: Events::new(Arc::clone(&seen)),
            seen,
            names: Names::default(),
            wall: Wall::default(),
            mark,
            config_path,
            started: Instant::now(),
            teardown: Mutex::new(None),
            last_reload: Mutex::new(Reload {
                at: now,
                in_force_since: now,
                error: None,
            }),
            killed: Mutex::default(),
            started_at: now,
            fleet: Board::default(),
            lacks: teardown::lacks(),
        }));
        let mut writer = controller.writer().await;
        if let Err(error) = writer.put(wanted.clone(), now) {
            // A mistake in somebody else's list must not keep this host's own rules out of force.
            wanted.retain(|_, wanted| !matches!(wanted.owner, Owner::Feed(_) | Owner::Fleet));
            writer.put(wanted.clone(), now)?;
            tracing::error!(
                "rules of feeds and of the fleet wait until their sources are heard from: {error}"
            );
            for held in &mut held {
                held.give_up(&error, now);
            }
        }
        writer.settle_feeds(held);
        let rules = wanted.len();
        let killing = wanted.into_values().map(|wanted| wanted.rule);
        let killing: Vec<Rule> = killing.filter(Rule::kills).collect();
        for error in writer.follow_devices(&devices::list().await?, now) {
            tracing::error!("{error}");
        }
        writer.live_mut().datapath.sweep()?;
        tracing::info!(rules, "rules in force");
        controller.learn_names();
        controller.tell_devices();
        tokio::spawn(controller.clone().pass_events_on());
        let expired = loaded
            .expired
            .into_iter()
            .map(|stored| stored.rule)
            .collect();
        writer.make_good(expired).await;
        drop(writer);
        controller.kill_resets(killing).await;
        Ok(controller)
    }

    /// Follows devices and deadlines; returns only if that fails.
    ///
    /// # Errors
    /// If devices can't be followed.
    pub async fn follow(&self) -> Result<(), Error> {
        let mut changes = devices::changes()?;
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut trouble = Trouble::default();
        loop {
            tokio::select! {
                change = changes.next() => {
                    if change.is_none() {
                        return Err(Error::Inside("the kernel's device messages ended".to_owned()));
                    }
                    trouble.note(&self.meet_devices().await);
                }
                _ = tick.tick() => {
                    if trouble.is_due() {
                        trouble.note(&self.meet_devices().await);
                    }
                    self.expire().await;
                }
            }
        }
    }

    /// Follows devices that came or went. Returns what failed.
    async fn meet_devices(&self) -> Vec<Error> {
        let mut writer = self.writer().await;
        let errors = match devices::list().await {
            Ok(devices) => writer.follow_devices(&devices, Timestamp::now()),
            Err(error) => vec![error.into()],
        };
        self.tell_devices();
        errors
    }

    /// Reads the configuration file again and puts its rules in force as one change.
    ///
    /// # Errors
    /// What is wrong with it; the configuration before stays in force.
    pub async fn reload(&self) -> Result<(), Error> {
        let result = self.reload_now().await;
        let error = result.as_ref().err().map(ToString::to_string);
        self.0.events.reloaded(error.as_deref());
        let mut last = lock(&self.0.last_reload);
        last.at = Timestamp::now();
        if error.is_none() {
            last.in_force_since = last.at;
        }
        last.error = error;
        drop(last);
        result
    }

    async fn reload_now(&self) -> Result<(), Error> {
        let config = Config::load(&self.0.config_path)?;
        let mut writer = self.writer().await;
        let now = Timestamp::now();
        let old = self.live().config.clone();
        let keys = needing_restart(&old, &config);
        if !keys.is_empty() {
            return Err(Error::NeedsRestart {
                keys: keys.join(", "),
            });
        }
        let rules = config.rules(now)?;
        let (mut replacement, diff) = self.replacement(&Owner::Config, rules, now)?;
        let held = feeds::take_up(&config, &self.held_feeds(), now);
        self.replace_feeds(&mut replacement, &held, now)?;
        let devices = devices::list().await?;
        replacement.change.config = Some(config);
        let (_, starting) = writer.replace(replacement, None, now).await?;
        for error in writer.follow_devices(&devices, now) {
            tracing::error!("{error}");
        }
        self.tell_devices();
        writer.settle_feeds(held);
        tracing::info!(
            added = diff.added.len(),
            removed = diff.removed.len(),
            changed = diff.changed.len(),
            unchanged = diff.unchanged.len(),
            "configuration reloaded"
        );
        // Teardown needs no turn, and changes should not wait for it.
        drop(writer);
        self.kill_resets(starting).await;
        Ok(())
    }

    /// Lifts all rules and detaches, or leaves them in force, as the configuration says.
    pub async fn stop(&self) {
        if self.live().config.on_stop == OnStop::Keep {
            return self.hand_over().await;
        }
        let mut writer = self.writer().await;
        let ending: Vec<Rule> = {
            let live = self.live();
            let rules = live.ruleset().values();
            rules.map(|entry| entry.rule.clone()).collect()
        };
        // The API's rules stay on disk for the next start; only the datapath forgets them.
        if let Err(error) = writer.end(&ending, Timestamp::now()).await {
            tracing::error!("{error}");
        }
        for error in writer.live_mut().datapath.detach() {
            tracing::error!("{error}");
        }
        self.tell_devices();
        self.0.events.close();
        tracing::info!("stopped: all rules are lifted");
    }

    /// Leaves all rules in force for the next daemon, whatever the configuration says.
    pub async fn hand_over(&self) {
        let mut writer = self.writer().await;
        writer.live_mut().datapath.leave();
        self.0.events.close();
        tracing::info!("stopped: the rules stay in force");
    }
}

/// What failed about devices, for example because descriptors had run out. It is retried, and does not
/// end the daemon.
#[derive(Default)]
struct Trouble {
    /// The errors that were logged, so that each is logged once.
    logged: Vec<String>,
    again: Option<Instant>,
}

impl Trouble {
    fn note(&mut self, errors: &[Error]) {
        /// Time until the next attempt.
        const RESPITE: Duration = Duration::from_secs(2);
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        for error in errors.iter().filter(|error| !self.logged.contains(error)) {
            tracing::error!("{error}; it is tried again every {} s", RESPITE.as_secs());
        }
        self.again = (!errors.is_empty()).then(|| Instant::now() + RESPITE);
        self.logged = errors;
    }

    fn is_due(&self) -> bool {
        self.again.is_some_and(|again| again <= Instant::now())
    }
}

/// Runs work that may wait for a lock or the kernel on a thread for that, so that those that serve
/// requests go on.
///
/// # Errors
/// Those of the work, or that it panicked.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::Inside(error.to_string()))?
}

/// The keys that differ and that only a restart can change.
fn needing_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let keys = [
        ("hook", old.hook == new.hook),
        ("control", old.control == new.control),
        ("metrics", old.metrics == new.metrics),
        ("state_dir", old.state_dir == new.state_dir),
        ("pin_dir", old.pin_dir == new.pin_dir),
        ("limits", old.limits == new.limits),
    ];
    keys.into_iter()
        .filter(|(_, same)| !same)
        .map(|(key, _)| key)
        .collect()
}

/// The rules that are saved on disk.
fn to_save(wanted: &WantedRules) -> Vec<(&Rule, Timestamp)> {
    let api = wanted.values().filter(|wanted| wanted.owner == Owner::Api);
    api.map(|wanted| (&wanted.rule, wanted.created)).collect()
}

/// State is changed by assigning whole values, so a poisoned lock guards a consistent value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
