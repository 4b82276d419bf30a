//! The file format: each key with its position, before keys are checked against each other.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_yaml::Spanned;

use super::expect::{Connect, Text};
use super::schema;
use super::values::{Endpoint, Line, Link, Statuses, Word};
use crate::rule::{Lifetime, RuleSpec};

/// An experiment for `blockctl run`: steps that are carried out in order. Every block is lifted at the
/// end, also after a failure.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "blocker runbook")]
pub(super) struct Document {
    /// Its name in reports. Default: the file name without its extension.
    pub(super) name: Option<String>,
    /// What it is for, and what it needs.
    pub(super) description: Option<String>,
    /// The time limit of the whole run. No block outlives it by more than 5s. Default: 1h.
    #[schemars(with = "Option<Lifetime>", extend("default" = "1h"))]
    pub(super) deadline: Option<Spanned<Lifetime>>,
    /// The steps.
    #[schemars(with = "Vec<StepDocument>", length(min = 1))]
    pub(super) steps: Spanned<Vec<Spanned<StepDocument>>>,
}

/// A step: an optional name, and one of block, wait, check and lift.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = schema::one_of(&["block", "wait", "check", "lift"])))]
pub(super) struct StepDocument {
    /// What the step is for, shown while it runs and in reports.
    pub(super) name: Option<String>,
    /// Puts a rule in force until it is lifted or the run ends.
    #[schemars(with = "Option<schema::Block>")]
    pub(super) block: Option<Spanned<RuleSpec>>,
    /// Waits: 500ms, 30s, 5m.
    pub(super) wait: Option<Lifetime>,
    /// Checks that something is as expected. If it is not, the run ends as failed.
    #[schemars(with = "Option<CheckDocument>")]
    pub(super) check: Option<Spanned<CheckDocument>>,
    /// Lifts the block with this id, or all.
    #[schemars(with = "Option<Word>")]
    pub(super) lift: Option<Spanned<Word>>,
}

/// A check: what is tried, and for how long.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = schema::one_of(&["http", "tcp", "command"])))]
pub(super) struct CheckDocument {
    /// Sends a GET request.
    pub(super) http: Option<HttpDocument>,
    /// Opens and closes a TCP connection.
    pub(super) tcp: Option<TcpDocument>,
    /// Runs a command.
    pub(super) command: Option<CommandDocument>,
    /// The time limit of one try. Default: 5s, for a command 1m.
    pub(super) timeout: Option<Lifetime>,
    /// How long to try again until the result is as expected. Default: one try.
    pub(super) within: Option<Lifetime>,
    /// The pause between two tries. Default: 500ms.
    pub(super) every: Option<Lifetime>,
}

/// A GET request and the expected answer.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpDocument {
    /// The URL: http:// or https://. Redirects are not followed.
    pub(super) url: Link,
    /// The expected status, or a list of accepted ones. Default: 200.
    #[serde(default)]
    pub(super) status: Statuses,
    /// The expected body.
    pub(super) body: Option<Text>,
    /// Headers of the request.
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
    /// Accepts any certificate. Default: only those that the system trusts.
    #[serde(default)]
    pub(super) insecure: bool,
}

/// A connection and the expected outcome.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TcpDocument {
    /// Host and port: `192.0.2.7:443`, `"[2001:db8::7]:443"`, `db.example.org:5432`.
    pub(super) to: Endpoint,
    /// The expected outcome. Default: connects.
    pub(super) expect: Option<Connect>,
}

/// A command and its expected result.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CommandDocument {
    /// A line for the shell (sh -c), or a list: the program and its arguments.
    ///
    /// BLOCKER_RUN_DIR is a directory that all commands of a run share, removed when the run ends;
    /// BLOCKER_SOCKET is the daemon's socket, for blockctl.
    pub(super) run: Line,
    /// The expected exit code. Default: 0.
    #[serde(default)]
    pub(super) exit: u8,
    /// The expected standard output.
    pub(super) output: Option<Text>,
}
