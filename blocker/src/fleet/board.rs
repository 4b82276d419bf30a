//! How this host follows etcd, for `status` and metrics. The follower writes it, the controller reads
//! it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use jiff::Timestamp;

use super::form::Fleet;
use crate::wire::{FleetState, FleetStatus};

/// A shared status. Clones refer to the same one. Empty if no fleet is configured.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<Option<Posted>>>);

#[derive(Debug)]
struct Posted {
    status: FleetStatus,
    heard: Instant,
}

impl Board {
    /// Starts with a configured fleet, or with none.
    pub fn begin(&self, fleet: Option<&Fleet>) {
        *self.lock() = fleet.map(|fleet| Posted {
            status: FleetStatus {
                name: fleet.name.clone(),
                labels: fleet.labels.clone(),
                prefix: fleet.prefix.clone(),
                state: FleetState::Connecting,
                endpoint: None,
                revision: 0,
                heard: None,
                stale_seconds: 0.0,
                rules: 0,
                refused: Vec::new(),
                lifted_by_loss: false,
                skew_seconds: None,
                skewed: false,
                changes: 0,
                losses: 0,
                error: None,
                report_error: None,
            },
            heard: Instant::now(),
        });
    }

    /// Notes that etcd has just answered.
    pub fn hear(&self) {
        if let Some(posted) = &mut *self.lock() {
            posted.heard = Instant::now();
            posted.status.heard = Some(Timestamp::now());
        }
    }

    /// Changes the status.
    pub fn post(&self, change: impl FnOnce(&mut FleetStatus)) {
        if let Some(posted) = &mut *self.lock() {
            change(&mut posted.status);
        }
    }

    /// The status; `None`: no fleet is configured.
    #[must_use]
    pub fn read(&self) -> Option<FleetStatus> {
        let posted = self.lock();
        let posted = posted.as_ref()?;
        let mut status = posted.status.clone();
        status.stale_seconds = posted.heard.elapsed().as_secs_f64();
        Some(status)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Posted>> {
        // A panic elsewhere leaves the status whole: it is changed by assignments.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
