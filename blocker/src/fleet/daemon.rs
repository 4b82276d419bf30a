//! The fleet in the daemon, over reloads of the configuration.

use std::path::PathBuf;

use tokio::task::JoinHandle;

use super::Host;
use super::board::Board;
use super::form::Fleet;
use super::held::Held;
use super::source::{Follower, Goodbye};

/// Follows the fleet that the configuration in force names.
pub struct Following<H> {
    host: H,
    board: Board,
    running: Option<Running>,
}

struct Running {
    fleet: Fleet,
    directory: PathBuf,
    task: JoinHandle<()>,
    goodbye: Goodbye,
}

impl Running {
    async fn end(self) {
        self.task.abort();
        // The task must not write after the report is withdrawn.
        let _ended = self.task.await;
        self.goodbye.say().await;
    }
}

impl<H: Host> Following<H> {
    /// Begins to follow a configuration's fleet; state is saved in `directory`.
    pub async fn start(
        host: H,
        board: Board,
        (fleet, directory): (Option<Fleet>, PathBuf),
    ) -> Self {
        let mut following = Self {
            host,
            board,
            running: None,
        };
        following.adapt((fleet, directory)).await;
        following
    }

    /// Follows the fleet of the configuration since a reload. If it names none, the rules of the
    /// fleet before are lifted.
    pub async fn adapt(&mut self, (fleet, directory): (Option<Fleet>, PathBuf)) {
        if self.running.as_ref().map(|running| &running.fleet) == fleet.as_ref() {
            return;
        }
        if let Some(running) = self.running.take() {
            let directory = running.directory.clone();
            running.end().await;
            if fleet.is_none() {
                self.leave(&directory).await;
            }
        }
        let Some(fleet) = fleet else { return };
        let follower = Follower::new(
            fleet.clone(),
            self.host.clone(),
            self.board.clone(),
            Some(directory.clone()),
        );
        self.running = Some(Running {
            fleet,
            directory,
            goodbye: follower.goodbye(),
            task: tokio::spawn(follower.run()),
        });
    }

    async fn leave(&self, directory: &std::path::Path) {
        self.board.begin(None);
        if let Err(error) = self.host.enforce(Vec::new()).await {
            tracing::error!(
                "the rules of the fleet that is no longer configured cannot be lifted: {error}"
            );
        }
        if let Err(error) = Held::forget(directory) {
            tracing::error!("{error}");
        }
    }

    /// Stops following. The rules stay; the controller decides about them.
    pub async fn stop(self) {
        if let Some(running) = self.running {
            running.end().await;
        }
    }
}
