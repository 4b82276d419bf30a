//! Reports this host to the fleet: one key under a lease, written after changes at a bounded rate, and
//! once a minute to show that it is current.
//!
//! A host that may not write there still enforces its rules, and says so in `status`.

use std::collections::VecDeque;
use std::time::Duration;

use etcd_client::{LeaseKeepAliveStream, LeaseKeeper, PutOptions};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, interval, sleep, sleep_until};

use super::Keys;
use super::board::Board;
use super::link::{Link, LinkError};
use crate::wire::fleet::report::HostReport;

/// Time to live of the lease, in seconds: how long the report of a dead host remains.
const TTL: i64 = 60;
/// How often the lease is renewed.
const RENEWAL: Duration = Duration::from_secs(20);
/// After so many renewals an unchanged report is written again.
const RENEWALS: usize = 3;
/// At most BURST reports are written WITHIN this time. The first few are written at once, so that a
/// single change is reported without delay.
const BURST: usize = 5;
const WITHIN: Duration = Duration::from_secs(5);
/// The pause after a failure, and after permission was denied.
const RETRY: Duration = Duration::from_secs(2);
const DENIED: Duration = Duration::from_secs(60);

/// A host's report, shared by those that change it and the task that writes it.
#[derive(Debug, Clone)]
pub(super) struct Reports(watch::Sender<HostReport>);

impl Reports {
    pub(super) fn new(report: HostReport) -> Self {
        Self(watch::Sender::new(report))
    }

    /// Changes the report; it is written soon.
    pub(super) fn change(&self, change: impl FnOnce(&mut HostReport)) {
        self.0.send_modify(change);
    }
}

/// Reports over a connection until it is dropped.
pub(super) async fn report(link: Link, keys: Keys, reports: Reports, board: Board) {
    let mut changed = reports.0.subscribe();
    loop {
        let Err(error) = lease(&link, &keys, &mut changed, &board).await;
        let pause = if error.is_denied() { DENIED } else { RETRY };
        let error = error.to_string();
        board.post(|status| {
            if status.report_error.as_ref() != Some(&error) {
                tracing::warn!("this host cannot report itself to the fleet: {error}");
            }
            status.report_error = Some(error);
        });
        sleep(pause).await;
    }
}

/// Reports under one lease until it is lost.
async fn lease(
    link: &Link,
    keys: &Keys,
    changed: &mut watch::Receiver<HostReport>,
    board: &Board,
) -> Result<std::convert::Infallible, LinkError> {
    let mut client = link.client.clone();
    let granted = client.lease_grant(TTL, None);
    let id = link.ask("asking for a lease", granted).await?.id();
    let kept = client.lease_keep_alive(id);
    let (mut keeper, mut answers) = link.ask("keeping a lease", kept).await?;
    let mut renewal = interval(RENEWAL);
    renewal.tick().await;
    let mut sent: VecDeque<Instant> = VecDeque::new();
    loop {
        // Later changes are in the next report.
        let mut report = changed.borrow_and_update().clone();
        report.at = Timestamp::now();
        let text = serde_json::to_vec(&report).unwrap_or_default();
        let options = PutOptions::new().with_lease(id);
        let key = keys.status(&report.host.name);
        let put = client.put(key, text, Some(options));
        link.ask("writing this host's report", put).await?;
        board.post(|status| status.report_error = None);
        sent.push_back(Instant::now());
        for _renewed in 0..RENEWALS {
            tokio::select! {
                _ = changed.changed() => break,
                _ = renewal.tick() => renew(link, &mut keeper, &mut answers).await?,
            }
        }
        if sent.len() == BURST
            && let Some(first) = sent.pop_front()
        {
            sleep_until(first + WITHIN).await;
        }
    }
}

/// Renews a lease; it must still exist.
pub(super) async fn renew(
    link: &Link,
    keeper: &mut LeaseKeeper,
    answers: &mut LeaseKeepAliveStream,
) -> Result<(), LinkError> {
    const WHAT: &str = "renewing a lease";
    link.ask(WHAT, keeper.keep_alive()).await?;
    let answer = link.ask(WHAT, answers.message()).await?;
    match answer {
        Some(answer) if answer.ttl() > 0 => Ok(()),
        _ => Err(LinkError::Ended {
            endpoint: link.endpoint.clone(),
            why: "the lease is over".to_owned(),
        }),
    }
}

/// Deletes the report at once instead of when its lease expires. Errors are ignored.
pub(super) async fn withdraw(link: &Link, keys: &Keys, host: &str) {
    let mut client = link.client.clone();
    let gone = client.delete(keys.status(host), None);
    let _gone = tokio::time::timeout(Duration::from_millis(500), gone).await;
}
