//! Leases: rules that are in force as long as the connection that asked for them is open.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Account, Carved};
use crate::rule::{Rule, RuleSpec};

/// `POST /v1/leases`: rules to hold. Query: `force`.
///
/// The answer is a stream of [`LeaseLine`]s, one JSON object a line, as long as the rules are in force.
/// They are lifted when the connection closes, also by the death of the client.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LeaseRequest {
    /// The rules, all of which are new.
    pub rules: Vec<RuleSpec>,
}

/// A line of the answer to `POST /v1/leases`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LeaseLine {
    /// The first: the rules are in force.
    Held(Held),
    /// They are still in force. One a second.
    Alive,
    /// The last: none of them is in force any more. Somebody lifted them, or their deadline passed,
    /// or the daemon stops.
    Ended,
}

/// Rules that are held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Held {
    /// The lease: the rules' owner is `lease:ID`.
    pub lease: String,
    /// The rules as they are. Their deadline is the lease's, which the daemon moves as long as the
    /// connection lasts, up to the one that was asked for.
    pub rules: Vec<Rule>,
    /// Parts of the targets that were spared, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carved: Vec<Carved>,
    /// What became of the flows that were established.
    pub teardown: Account,
}
