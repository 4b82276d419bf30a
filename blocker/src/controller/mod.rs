//! The sole owner of state: puts rules in force, kills what they kill, lifts them, follows
//! devices, deadlines and the configuration file.
//!
//! One writer at a time. A change is safe, compiled, kept on disk and switched to, in this order,
//! or refused with nothing changed; then established flows are killed, beside other callers'
//! reads. Clients may vanish: what they began is finished.

mod lift;
mod live;
mod status;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use jiff::Timestamp;

use crate::api::types::{
    Account, AddResponse, Carved, Changed, DeleteResponse, Reload, RulesetResponse,
};
use crate::compile::CompileError;
use crate::config::{Config, ConfigError, OnStop};
use crate::datapath::{self, Datapath, Kills, devices};
use crate::rule::{Owner, Rule, RuleError, RuleId, RuleSpec, Target};
use crate::ruleset::{self, Diff, RulesetError};
use crate::safety::facts::{self, Caller, Places};
use crate::safety::{self, HostFacts, Refusal};
use crate::state::{self, Stored};
use crate::teardown::{self, Progress};
use lift::Change;
use live::{Live, Wanted};

/// Why a request failed. Nothing was changed, unless a variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rule is wrong.
    #[error("{0}")]
    Rule(#[from] RuleError),
    /// A rule of a set is wrong.
    #[error("rule {place} of {of}: {source}")]
    RuleOf {
        /// Its place, from 1.
        place: usize,
        /// How many there are.
        of: usize,
        /// What is wrong.
        source: RuleError,
    },
    /// A rule is refused to protect the caller or the host.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// A ruleset does not fit.
    #[error("{0}")]
    Compile(#[from] CompileError),
    /// No counter slot is left.
    #[error(
        "more than {limit} rules: raise limits.rules and restart, or put more targets into a rule"
    )]
    TooManyRules {
        /// The limit.
        limit: u32,
    },
    /// A set of rules that can't be one owner's.
    #[error("{0}")]
    Ruleset(#[from] RulesetError),
    /// An id that another rule has.
    #[error(
        "id {id} is taken by a rule of {owner} that does something else: delete it first, change it with `apply`, or choose another id"
    )]
    Taken {
        /// The id.
        id: RuleId,
        /// Whose it is.
        owner: Owner,
    },
    /// No such rule.
    #[error("no rule {what}")]
    NoSuchRule {
        /// Its id, or the target it was looked for by.
        what: String,
    },
    /// The datapath.
    #[error("{0}")]
    Datapath(#[from] datapath::Error),
    /// The state file.
    #[error("{0}")]
    State(#[from] state::StateError),
    /// The configuration file.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// A changed configuration key that only a restart can change.
    #[error("{keys} changed: that needs a restart; nothing was reloaded")]
    NeedsRestart {
        /// The keys.
        keys: String,
    },
    /// A task of ours ended before its time.
    #[error("the daemon failed inside: {0}")]
    Inside(String),
}

/// Who asks, and how much they insist.
#[derive(Debug, Clone, Default)]
pub struct Asking {
    /// For the log: `uid 0, pid 4711`.
    pub who: String,
    /// The caller's process.
    pub pid: Option<i32>,
    /// `SSH_CONNECTION` as the client gave it.
    pub ssh_connection: Option<String>,
    /// Whether refusals that may be overridden are.
    pub force: bool,
    /// Whether only to say what would happen.
    pub dry_run: bool,
}

/// The controller. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Controller(Arc<Inner>);

struct Inner {
    /// Held through a whole change, so that changes do not interleave.
    writer: tokio::sync::Mutex<()>,
    live: Mutex<Live>,
    kills: Arc<Kills>,
    mark: u32,
    config_path: PathBuf,
    started: Instant,
    last_reload: Mutex<Reload>,
    /// How far the teardown that runs now has come.
    teardown: Mutex<Option<Progress>>,
    lacks: Vec<String>,
}

impl Controller {
    /// Puts the configuration's and the kept rules in force on a freshly loaded datapath, then
    /// attaches it.
    ///
    /// # Errors
    /// If the configuration's rules are wrong or do not fit, or nothing can be attached to.
    pub async fn start(
        config: Config,
        config_path: PathBuf,
        datapath: Datapath,
    ) -> Result<Self, Error> {
        let now = Timestamp::now();
        let kept = state::load(&config.state_dir, now);
        if let Some(problem) = &kept.problem {
            tracing::error!("kept rules: {problem}");
        }
        let mark = datapath.settings().mark;
        let kills = datapath.kills();
        let mut wanted: Vec<Wanted> = config
            .rules(now)?
            .into_iter()
            .map(|rule| Wanted {
                rule,
                owner: Owner::Config,
                created: now,
            })
            .collect();
        for Stored { rule, created } in kept.rules {
            if wanted.iter().any(|other| other.rule.id == rule.id) {
                tracing::warn!(rule = %rule.id, "a kept rule gives way to the configuration's of the same id");
            } else {
                wanted.push(Wanted {
                    rule,
                    owner: Owner::Api,
                    created,
                });
            }
        }
        let rules = wanted.len();
        let killing: Vec<Rule> = wanted
            .iter()
            .map(|wanted| wanted.rule.clone())
            .filter(Rule::kills)
            .collect();
        let mut live = Live::new(config, datapath);
        live.put(wanted, now)?;
        for error in live.follow(&devices::list().await?, now) {
            tracing::error!("{error}");
        }
        live.datapath.sweep()?;
        let lacks = teardown::lacks();
        let controller = Self(Arc::new(Inner {
            writer: tokio::sync::Mutex::new(()),
            live: Mutex::new(live),
            kills,
            mark,
            config_path,
            started: Instant::now(),
            teardown: Mutex::new(None),
            last_reload: Mutex::new(Reload {
                at: now,
                error: None,
            }),
            lacks,
        }));
        tracing::info!(rules, "rules in force");
        let expired = kept.expired.into_iter().map(|stored| stored.rule).collect();
        controller.make_good(expired).await;
        controller.kill_resets(killing).await;
        Ok(controller)
    }

    /// Follows devices and deadlines until it is dropped by its task's end.
    ///
    /// # Errors
    /// If devices can't be followed.
    pub async fn follow(&self) -> Result<(), Error> {
        let mut changes = devices::changes()?;
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = changes.next() => {
                    if change.is_none() {
                        return Err(Error::Inside("the kernel's device messages ended".to_owned()));
                    }
                    let _writer = self.0.writer.lock().await;
                    let devices = devices::list().await?;
                    for error in self.live().follow(&devices, Timestamp::now()) {
                        tracing::error!("{error}");
                    }
                }
                _ = tick.tick() => self.expire().await,
            }
        }
    }

    /// Adds a rule.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn add(&self, spec: RuleSpec, asking: Asking) -> Result<AddResponse, Error> {
        let this = self.clone();
        finished(async move { this.add_now(spec, &asking).await }).await
    }

    async fn add_now(&self, spec: RuleSpec, asking: &Asking) -> Result<AddResponse, Error> {
        let writer = self.0.writer.lock().await;
        let now = Timestamp::now();
        let named = spec.id.is_some();
        let (defaults, protect) = {
            let live = self.live();
            (live.config.defaults, live.protect())
        };
        let mut rule = spec.resolve(|| self.fresh_id(), defaults, now)?;
        let carved = safety::review(&mut rule, &facts(asking), &protect, asking.force)?;
        let existing = self.existing(&rule, named)?;
        let created = existing.is_none();
        if let Some(old) = existing {
            rule = Rule {
                expires: rule.expires,
                comment: rule.comment.or(old.comment),
                ..old
            };
        }
        if asking.dry_run {
            // On its own line: `with` takes the lock that the check holds.
            let wanted = self.with(&rule, now);
            self.live().check(wanted)?;
            let mut killing = rule.clone();
            killing.established = crate::rule::Established::Kill;
            let listing = self.list_flows(vec![killing]).await?;
            let teardown = Account {
                found: listing.flows.len() as u64,
                notes: listing.notes,
                ..Account::default()
            };
            return Ok(AddResponse {
                rule,
                created,
                carved,
                teardown,
                would_kill: Some(listing.flows),
            });
        }
        let wanted = self.with(&rule, now);
        let change = Change {
            starting: vec![rule.clone()],
            ..Change::to(wanted)
        };
        let account = self.change(change, now).await?;
        drop(writer);
        tracing::info!(
            who = asking.who, rule = %rule.id, mode = %rule.mode, targets = rule.targets.len(), created,
            expires = rule.expires.map(tracing::field::display), comment = rule.comment, "rule added"
        );
        let killed = self.kill_resets(vec![rule.clone()]).await;
        let teardown = status::sum(account, killed);
        Ok(AddResponse {
            rule,
            created,
            carved,
            teardown,
            would_kill: None,
        })
    }

    /// Deletes a rule.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&self, id: RuleId, asking: Asking) -> Result<DeleteResponse, Error> {
        let this = self.clone();
        finished(async move {
            let _writer = this.0.writer.lock().await;
            if this.live().ruleset().get(&id).is_none() {
                return Err(Error::NoSuchRule {
                    what: id.to_string(),
                });
            }
            this.without(&asking, |rule| {
                if rule.id == id {
                    Keep::Nothing
                } else {
                    Keep::All
                }
            })
            .await
        })
        .await
    }

    /// Deletes a target from every rule that has exactly it; a rule left with none is deleted.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_target(
        &self,
        target: Target,
        asking: Asking,
    ) -> Result<DeleteResponse, Error> {
        let this = self.clone();
        finished(async move {
            let _writer = this.0.writer.lock().await;
            if !this
                .live()
                .ruleset()
                .values()
                .any(|entry| entry.rule.targets.contains(&target))
            {
                return Err(Error::NoSuchRule {
                    what: format!("with the target {target}"),
                });
            }
            this.without(&asking, |rule| {
                if !rule.targets.contains(&target) {
                    return Keep::All;
                }
                let targets: Vec<Target> = rule
                    .targets
                    .iter()
                    .copied()
                    .filter(|other| *other != target)
                    .collect();
                if targets.is_empty() {
                    Keep::Nothing
                } else {
                    Keep::Only(targets)
                }
            })
            .await
        })
        .await
    }

    /// Deletes all rules of the API; with `all`, everybody's.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn flush(&self, all: bool, asking: Asking) -> Result<DeleteResponse, Error> {
        let this = self.clone();
        finished(async move {
            let _writer = this.0.writer.lock().await;
            let owned: Vec<RuleId> = {
                let live = this.live();
                let gone = live
                    .ruleset()
                    .values()
                    .filter(|entry| all || entry.owner == Owner::Api);
                gone.map(|entry| entry.rule.id.clone()).collect()
            };
            this.without(&asking, |rule| {
                if owned.contains(&rule.id) {
                    Keep::Nothing
                } else {
                    Keep::All
                }
            })
            .await
        })
        .await
    }

    /// Replaces all rules of the API by others, as one change.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn replace(
        &self,
        specs: Vec<RuleSpec>,
        asking: Asking,
    ) -> Result<RulesetResponse, Error> {
        let this = self.clone();
        finished(async move { this.replace_now(specs, &asking).await }).await
    }

    async fn replace_now(
        &self,
        specs: Vec<RuleSpec>,
        asking: &Asking,
    ) -> Result<RulesetResponse, Error> {
        let writer = self.0.writer.lock().await;
        let now = Timestamp::now();
        let (defaults, protect) = {
            let live = self.live();
            (live.config.defaults, live.protect())
        };
        let facts = facts(asking);
        let of = specs.len();
        let named: Vec<bool> = specs.iter().map(|spec| spec.id.is_some()).collect();
        let mut carved: Vec<Carved> = Vec::new();
        let mut rules: Vec<Rule> = Vec::with_capacity(of);
        for (place, spec) in (1..).zip(specs) {
            let mut rule = spec
                .resolve(|| self.fresh_id(), defaults, now)
                .map_err(|source| Error::RuleOf { place, of, source })?;
            carved.extend(safety::review(&mut rule, &facts, &protect, asking.force)?);
            rules.push(rule);
        }
        // A rule without an id is the one that is there already, if one does the same.
        for (rule, named) in rules.iter_mut().zip(named) {
            if !named && let Some(old) = self.same(rule) {
                rule.id = old.id;
            }
        }
        let diff = ruleset::diff(self.live().ruleset(), &Owner::Api, &rules)?;
        let mut response = RulesetResponse {
            added: diff.added.clone(),
            removed: diff.removed.clone(),
            changed: diff
                .changed
                .iter()
                .map(|(before, after)| Changed {
                    before: before.clone(),
                    after: after.clone(),
                })
                .collect(),
            unchanged: diff.unchanged.len() as u64,
            carved,
            teardown: Account::default(),
            dry_run: asking.dry_run,
        };
        let change = self.replacement(&diff, rules, &Owner::Api, now);
        if asking.dry_run {
            self.live().check(change.wanted)?;
            return Ok(response);
        }
        let starting = change.starting.clone();
        let account = self.change(change, now).await?;
        tracing::info!(
            who = asking.who,
            added = diff.added.len(),
            removed = diff.removed.len(),
            changed = diff.changed.len(),
            unchanged = diff.unchanged.len(),
            "ruleset replaced"
        );
        drop(writer);
        response.teardown = status::sum(account, self.kill_resets(starting).await);
        Ok(response)
    }

    /// The change that replaces all rules of an owner.
    fn replacement(&self, diff: &Diff, rules: Vec<Rule>, owner: &Owner, now: Timestamp) -> Change {
        let others = self
            .live()
            .wanted()
            .into_iter()
            .filter(|wanted| wanted.owner != *owner);
        let ours = rules.into_iter().map(|rule| Wanted {
            rule,
            owner: owner.clone(),
            created: now,
        });
        let different = |(before, after): &&(Rule, Rule)| !before.same_effect(after);
        let changed: Vec<&(Rule, Rule)> = diff.changed.iter().filter(different).collect();
        let ending = diff
            .removed
            .iter()
            .chain(changed.iter().map(|(before, _)| before));
        let starting = diff
            .added
            .iter()
            .chain(changed.iter().map(|(_, after)| after));
        Change {
            ending: ending.cloned().collect(),
            starting: starting.cloned().collect(),
            wanted: others.chain(ours).collect(),
        }
    }

    /// Reads the configuration file again and puts its rules in force as one change.
    ///
    /// # Errors
    /// What is wrong with it; the one before stays in force.
    pub async fn reload(&self) -> Result<(), Error> {
        let result = self.reload_now().await;
        let error = result.as_ref().err().map(ToString::to_string);
        *lock(&self.0.last_reload) = Reload {
            at: Timestamp::now(),
            error,
        };
        result
    }

    async fn reload_now(&self) -> Result<(), Error> {
        let config = Config::load(&self.0.config_path)?;
        let _writer = self.0.writer.lock().await;
        let now = Timestamp::now();
        let old = self.live().config.clone();
        let keys = needing_restart(&old, &config);
        if !keys.is_empty() {
            return Err(Error::NeedsRestart {
                keys: keys.join(", "),
            });
        }
        let rules = config.rules(now)?;
        let diff = ruleset::diff(self.live().ruleset(), &Owner::Config, &rules)?;
        let change = self.replacement(&diff, rules, &Owner::Config, now);
        let starting = change.starting.clone();
        let devices = devices::list().await?;
        self.live().config = config;
        if let Err(error) = self.change(change, now).await {
            self.live().config = old;
            return Err(error);
        }
        for error in self.live().follow(&devices, now) {
            tracing::error!("{error}");
        }
        tracing::info!(
            added = diff.added.len(),
            removed = diff.removed.len(),
            changed = diff.changed.len(),
            unchanged = diff.unchanged.len(),
            "configuration reloaded"
        );
        self.kill_resets(starting).await;
        Ok(())
    }

    /// Ends: lifts everything and detaches, or leaves all in force, as the configuration says.
    pub async fn stop(&self) {
        let _writer = self.0.writer.lock().await;
        if self.live().config.on_stop == OnStop::Keep {
            self.live().datapath.leave();
            tracing::info!("stopped: the rules stay in force");
            return;
        }
        let ending: Vec<Rule> = self
            .live()
            .wanted()
            .into_iter()
            .map(|wanted| wanted.rule)
            .collect();
        // What the API's rules are after a restart stays on disk; only the datapath forgets them.
        if let Err(error) = self.end(&ending, Timestamp::now()).await {
            tracing::error!("{error}");
        }
        for error in self.live().datapath.detach() {
            tracing::error!("{error}");
        }
        tracing::info!("stopped: all rules are lifted");
    }

    /// The rules in force and this one, in place of the one of its id.
    fn with(&self, rule: &Rule, now: Timestamp) -> Vec<Wanted> {
        let mut wanted = self.live().wanted();
        match wanted.iter_mut().find(|wanted| wanted.rule.id == rule.id) {
            Some(old) => old.rule = rule.clone(),
            None => wanted.push(Wanted {
                rule: rule.clone(),
                owner: Owner::Api,
                created: now,
            }),
        }
        wanted
    }

    /// The rule that is in force already for what is asked: of the same id, or doing the same.
    fn existing(&self, rule: &Rule, named: bool) -> Result<Option<Rule>, Error> {
        if !named {
            return Ok(self.same(rule));
        }
        match self.live().ruleset().get(&rule.id) {
            Some(old) if old.rule.same_effect(rule) => Ok(Some(old.rule.clone())),
            Some(old) => Err(Error::Taken {
                id: rule.id.clone(),
                owner: old.owner.clone(),
            }),
            None => Ok(None),
        }
    }

    /// A rule of the API that does the same.
    fn same(&self, rule: &Rule) -> Option<Rule> {
        let live = self.live();
        let mut api = live
            .ruleset()
            .values()
            .filter(|entry| entry.owner == Owner::Api);
        api.find(|entry| entry.rule.same_effect(rule))
            .map(|entry| entry.rule.clone())
    }

    /// Six hexadecimal digits that no rule is called yet.
    fn fresh_id(&self) -> RuleId {
        loop {
            // Only uniqueness is asked of it, which is checked; the clock does where randomness fails.
            let number = getrandom::u32().unwrap_or_else(|_| live::boot_time() as u32);
            let id: Option<RuleId> = format!("{:06x}", number & 0xff_ffff).parse().ok();
            if let Some(id) = id.filter(|id| self.live().ruleset().get(id).is_none()) {
                return id;
            }
        }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        lock(&self.0.live)
    }
}

/// The keys that differ and that a running daemon can't change.
fn needing_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let keys = [
        ("hook", old.hook == new.hook),
        ("control", old.control == new.control),
        ("state_dir", old.state_dir == new.state_dir),
        ("pin_dir", old.pin_dir == new.pin_dir),
        ("limits", old.limits == new.limits),
    ];
    keys.into_iter()
        .filter(|(_, same)| !same)
        .map(|(key, _)| key)
        .collect()
}

/// How much of a rule a deletion leaves.
enum Keep {
    All,
    Only(Vec<Target>),
    Nothing,
}

/// The rules that are kept on disk.
fn kept(wanted: &[Wanted]) -> Vec<(&Rule, Timestamp)> {
    let api = wanted.iter().filter(|wanted| wanted.owner == Owner::Api);
    api.map(|wanted| (&wanted.rule, wanted.created)).collect()
}

fn facts(asking: &Asking) -> HostFacts {
    let caller = Caller {
        pid: asking.pid,
        ssh_connection: asking.ssh_connection.as_deref(),
    };
    let (facts, problems) = facts::gather(&Places::default(), caller);
    for problem in problems {
        tracing::warn!("what must not be blocked is known in part only: {problem}");
    }
    facts
}

/// Runs to its end whatever becomes of whoever waits.
async fn finished<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(work)
        .await
        .map_err(|error| Error::Inside(error.to_string()))?
}

/// State is changed by assignment of whole values, so a panic elsewhere leaves none half made.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
