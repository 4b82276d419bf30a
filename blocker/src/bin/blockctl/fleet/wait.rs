//! Waits until hosts have reached a revision, and collects their results.
//!
//! Reads the hosts' reports in etcd. If etcd becomes unreachable, it connects again and reads the reports
//! that were written meanwhile.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, stderr};
use std::time::Duration;

use blocker::fleet::client::{FleetClient, News};
use blocker::fleet::form::Fleet;
use blocker::wire::fleet::report::{HostReport, Killed, Outcome};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout_at};

/// The pause before a new connection to etcd.
const AGAIN: Duration = Duration::from_millis(300);

/// What is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) enum For<'a> {
    /// A rule to be applied, by id.
    Rule(&'a str),
    /// Rules to be lifted.
    Gone,
}

/// The state of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// It refuses the rule.
    Refused,
    /// It did not report in time.
    Silent,
    /// Its report is gone: it stopped, or lost etcd.
    Gone,
    /// The rule is in force, and established flows are still being killed.
    Killing,
    /// The rule is in force.
    Applied,
    /// The rule is lifted.
    Lifted,
}

/// The result of a host.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct HostResult {
    pub(crate) host: String,
    pub(crate) state: State,
    /// Milliseconds from the write until its report arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) took_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) teardown: Option<Killed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
}

impl HostResult {
    const fn is_over(&self) -> bool {
        matches!(self.state, State::Refused | State::Applied | State::Lifted)
    }

    /// Whether the change is complete on this host.
    pub(crate) fn is_well(&self) -> bool {
        let left = self.teardown.is_some_and(|killed| killed.left > 0);
        matches!(self.state, State::Applied | State::Lifted) && !left
    }
}

/// The hosts that are waited for.
pub(super) struct Waiting<'a> {
    pub(super) what: For<'a>,
    /// etcd's revision.
    pub(super) revision: i64,
    /// When the change was written.
    pub(super) since: Instant,
    hosts: BTreeMap<String, HostResult>,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(
        what: For<'a>,
        revision: i64,
        since: Instant,
        hosts: impl IntoIterator<Item = String>,
    ) -> Self {
        let silent = |host: String| {
            let result = HostResult {
                host: host.clone(),
                state: State::Silent,
                took_ms: None,
                teardown: None,
                why: None,
            };
            (host, result)
        };
        Self {
            what,
            revision,
            since,
            hosts: hosts.into_iter().map(silent).collect(),
        }
    }

    fn over(&self) -> usize {
        self.hosts.values().filter(|host| host.is_over()).count()
    }

    fn hear(&mut self, report: &HostReport) {
        let Some(result) = self.hosts.get_mut(&report.host.name) else {
            return;
        };
        if result.is_over() {
            return;
        }
        let took = self.since.elapsed().as_secs_f64() * 1_000.0;
        match self.what {
            For::Gone if report.revision < self.revision => return,
            For::Gone => result.state = State::Lifted,
            For::Rule(id) => match report.outcome(id, self.revision) {
                None => return,
                Some(Outcome::Killing) => result.state = State::Killing,
                Some(Outcome::Refused(why)) => {
                    result.state = State::Refused;
                    result.why = Some(why);
                }
                Some(Outcome::Applied { teardown, .. }) => {
                    result.state = State::Applied;
                    result.teardown = teardown;
                }
            },
        }
        result.took_ms = result.took_ms.or(Some(took));
    }

    fn miss(&mut self, host: &str) {
        if let Some(result) = self.hosts.get_mut(host).filter(|host| !host.is_over()) {
            result.state = State::Gone;
        }
    }

    /// Waits until all hosts are done, or `until`. `shown`: with progress on a terminal.
    pub(super) async fn wait(&mut self, fleet: &Fleet, until: Instant, shown: bool) {
        let bar = if shown && stderr().is_terminal() {
            let style =
                ProgressStyle::with_template("{spinner} {msg} {wide_bar} {pos}/{len} hosts");
            let bar = ProgressBar::new(self.hosts.len() as u64).with_message(match self.what {
                For::Rule(_) => "waiting for",
                For::Gone => "lifting on",
            });
            bar.enable_steady_tick(Duration::from_millis(100));
            style.map_or(bar.clone(), |style| bar.with_style(style))
        } else {
            ProgressBar::hidden()
        };
        // Hosts that are not done in time keep their last state.
        let _in_time = timeout_at(until, self.follow(fleet, &bar)).await;
        bar.finish_and_clear();
    }

    async fn follow(&mut self, fleet: &Fleet, bar: &ProgressBar) {
        while self.over() < self.hosts.len() {
            if let Err(error) = self.look(fleet, bar).await {
                bar.set_message(format!("etcd is unreachable ({error}); waiting for"));
                sleep(AGAIN).await;
            }
        }
    }

    async fn look(
        &mut self,
        fleet: &Fleet,
        bar: &ProgressBar,
    ) -> Result<(), blocker::fleet::client::FleetError> {
        let client = FleetClient::connect(fleet).await?;
        let reports = client.hosts().await?;
        for report in &reports.all {
            self.hear(report);
        }
        let mut watch = client.watch(reports.revision, false).await?;
        loop {
            bar.set_position(self.over() as u64);
            if self.over() == self.hosts.len() {
                return Ok(());
            }
            for news in watch.next().await? {
                match news {
                    News::Host(report) => self.hear(&report),
                    News::HostGone(host) => self.miss(&host),
                    _ => {}
                }
            }
        }
    }

    /// The results, problems first.
    pub(super) fn results(self) -> Vec<HostResult> {
        let mut results: Vec<HostResult> = self.hosts.into_values().collect();
        results
            .sort_by(|a, b| (a.is_well(), a.state, &a.host).cmp(&(b.is_well(), b.state, &b.host)));
        results
    }
}
