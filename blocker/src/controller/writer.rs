//! The right to change what is in force, as a value that exists once.
//!
//! [`Controller::live`] locks what is in force for reading. Only a [`Writer`] locks it for writing, and
//! only [`Controller::writer`] returns a [`Writer`]. It owns its lock, so it can move to another thread.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use super::live::Live;
use super::{Controller, lock};
use crate::state::Store;

/// What only a [`Writer`] changes.
pub(super) struct State {
    live: Mutex<Live>,
    /// Its lock is the lock of all changes: a writer owns it.
    store: Arc<AsyncMutex<Store>>,
}

impl State {
    pub(super) fn new(live: Live, store: Store) -> Self {
        Self {
            live: Mutex::new(live),
            store: Arc::new(AsyncMutex::new(store)),
        }
    }
}

/// Changes what is in force, and nobody else does until it is dropped. Reads as a [`Controller`].
pub(super) struct Writer {
    controller: Controller,
    /// The API's rules on disk.
    pub(super) store: OwnedMutexGuard<Store>,
}

impl Controller {
    /// Waits until no change is under way.
    pub(super) async fn writer(&self) -> Writer {
        Writer {
            controller: self.clone(),
            store: Arc::clone(&self.0.state.store).lock_owned().await,
        }
    }

    /// What is in force, to read.
    pub(super) fn live(&self) -> impl Deref<Target = Live> {
        lock(&self.0.state.live)
    }
}

impl Writer {
    /// What is in force, to change.
    pub(super) fn live_mut(&mut self) -> MutexGuard<'_, Live> {
        lock(&self.controller.0.state.live)
    }
}

impl Deref for Writer {
    type Target = Controller;

    fn deref(&self) -> &Controller {
        &self.controller
    }
}
