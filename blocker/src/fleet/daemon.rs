//! The fleet in the daemon: followed as the configuration in force says, over its reloads.

use std::path::PathBuf;

use tokio::task::JoinHandle;

use super::held::{Held, Told};
use super::source::{Follower, Goodbye, Host};
use crate::config::Fleet;
use crate::controller::{Controller, Owned, Replaced};
use crate::rule::{Owner, RuleSpec};

impl Host for Controller {
    async fn enforce(&self, told: Vec<Told>) -> Result<Replaced, String> {
        let rules = told.into_iter().map(|told| Owned {
            rule: told.rule,
            force: told.force,
        });
        let replaced = self.replace_owned(Owner::Fleet, rules.collect()).await;
        replaced.map_err(|error| error.to_string())
    }

    async fn flows(&self, rule: RuleSpec, force: bool) -> Result<u64, String> {
        match self.try_rule(rule, force).await {
            Ok(answer) => Ok(answer.would_kill.map_or(0, |flows| flows.len() as u64)),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// What follows the fleet now.
pub struct Following {
    controller: Controller,
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
        // Nothing of it may come after what follows.
        let _ended = self.task.await;
        self.goodbye.say().await;
    }
}

impl Following {
    /// Begins to follow what the configuration in force names.
    pub async fn start(controller: Controller) -> Self {
        let mut following = Self {
            controller,
            running: None,
        };
        following.adapt().await;
        following
    }

    /// Follows the configuration that is in force since a reload. A fleet that it does not name any
    /// more has no rules here.
    pub async fn adapt(&mut self) {
        let (fleet, directory) = self.controller.fleet_config();
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
        let board = self.controller.fleet_board();
        let follower = Follower::new(
            fleet.clone(),
            self.controller.clone(),
            board,
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
        self.controller.fleet_board().begin(None);
        if let Err(error) = self
            .controller
            .replace_owned(Owner::Fleet, Vec::new())
            .await
        {
            tracing::error!("the rules of the fleet that is left stay in force: {error}");
        }
        if let Err(error) = Held::forget(directory) {
            tracing::error!("{error}");
        }
    }

    /// Ends. The rules stay, for the controller to lift or to leave.
    pub async fn stop(self) {
        if let Some(running) = self.running {
            running.end().await;
        }
    }
}
