//! What travels in the fleet: the values in etcd ([`value`]) and the hosts that they are for
//! ([`selector`]), the reports of hosts ([`report`]), and how a host follows etcd, for `status`.

pub mod report;
pub mod selector;
pub mod value;

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::Moment;

/// `status`: how a host follows the fleet's etcd.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FleetStatus {
    /// The host's name in the fleet.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The prefix of all keys.
    pub prefix: String,
    /// Whether the host follows etcd.
    pub state: FleetState,
    /// The member that is followed or was tried last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// etcd's revision up to which all changes are applied; 0: none yet.
    pub revision: i64,
    /// When etcd last answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Moment>")]
    pub heard: Option<Timestamp>,
    /// Seconds since then, or since the daemon began to connect. Later changes may be unknown here.
    pub stale_seconds: f64,
    /// The number of the fleet's rules in force here.
    pub rules: u64,
    /// The rules that are refused here, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<FleetRefusal>,
    /// Whether rules without a deadline are lifted because etcd has been lost for too long.
    pub lifted_by_loss: bool,
    /// How far this host's clock was ahead of a writer's at the last comparison, including the time that
    /// the value travelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skew_seconds: Option<f64>,
    /// Whether that is more than `max_skew`.
    pub skewed: bool,
    /// Changes of the fleet applied since the daemon's start.
    pub changes: u64,
    /// How many times etcd was lost since the daemon's start.
    pub losses: u64,
    /// Why etcd cannot be reached, or its rules not be enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why this host cannot report itself to the fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report_error: Option<String>,
}

/// Whether a host follows etcd.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FleetState {
    /// Etcd has not been reached yet.
    #[default]
    Connecting,
    /// The host follows etcd.
    Following,
    /// Etcd was reached before, and is lost.
    Lost,
}

/// A rule of the fleet that a host refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FleetRefusal {
    /// The last part of its key, which should be its id.
    pub rule: String,
    /// etcd's revision at which it was written.
    pub revision: i64,
    /// Why.
    pub why: String,
}
