//! The file's form: what stands where, each key with its place, before anything is compared.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_yaml::Spanned;

use super::expect::{Connect, Text};
use super::schema;
use super::values::{Endpoint, Line, Link, Statuses, Word};
use crate::rule::{Lifetime, RuleSpec};

/// An experiment for `blockctl run`: steps that are done one after the other. Whatever happens,
/// every block is lifted at the end.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "blocker runbook")]
pub(super) struct Document {
    /// What it is called, in reports; by default the file's name without its ending.
    pub(super) name: Option<String>,
    /// What it is for, and what it takes.
    pub(super) description: Option<String>,
    /// How long the run may take, all in all. No block outlives it by more than 5s. Default: 1h.
    #[schemars(with = "Option<Lifetime>", extend("default" = "1h"))]
    pub(super) deadline: Option<Spanned<Lifetime>>,
    /// What is done.
    #[schemars(with = "Vec<StepDocument>", length(min = 1))]
    pub(super) steps: Spanned<Vec<Spanned<StepDocument>>>,
}

/// A step: a name, if you like, and one of block, wait, check and lift.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = schema::one_of(&["block", "wait", "check", "lift"])))]
pub(super) struct StepDocument {
    /// What the step is for: shown while it runs, and in reports.
    pub(super) name: Option<String>,
    /// Puts a rule in force, until it is lifted or the run is over.
    #[schemars(with = "Option<schema::Block>")]
    pub(super) block: Option<Spanned<RuleSpec>>,
    /// Lets time pass: 500ms, 30s, 5m.
    pub(super) wait: Option<Lifetime>,
    /// Looks whether something is as it should be. If it is not, the run ends, as failed.
    #[schemars(with = "Option<CheckDocument>")]
    pub(super) check: Option<Spanned<CheckDocument>>,
    /// Lifts the block of this id, or all.
    #[schemars(with = "Option<Word>")]
    pub(super) lift: Option<Spanned<Word>>,
}

/// A check: what is tried, and how long.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = schema::one_of(&["http", "tcp", "command"])))]
pub(super) struct CheckDocument {
    /// Asks an HTTP server (GET).
    pub(super) http: Option<HttpDocument>,
    /// Opens a TCP connection, and closes it.
    pub(super) tcp: Option<TcpDocument>,
    /// Runs a command.
    pub(super) command: Option<CommandDocument>,
    /// How long one try may take. Default: 5s, for a command 1m.
    pub(super) timeout: Option<Lifetime>,
    /// How long it is tried again until it is as expected. Without it, there is one try.
    pub(super) within: Option<Lifetime>,
    /// How long after a try the next one comes. Default: 500ms.
    pub(super) every: Option<Lifetime>,
}

/// A GET, and what its answer must be.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpDocument {
    /// Whom to ask, and for what: http:// or https://. Redirects are not followed.
    pub(super) url: Link,
    /// The status that the answer must have, or a list of those that it may. Default: 200.
    #[serde(default)]
    pub(super) status: Statuses,
    /// What the body must be.
    pub(super) body: Option<Text>,
    /// Headers of the request.
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
    /// Takes any certificate. Default: one that the system trusts.
    #[serde(default)]
    pub(super) insecure: bool,
}

/// A connection, and what must become of it.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TcpDocument {
    /// Host and port: `192.0.2.7:443`, `"[2001:db8::7]:443"`, `db.example.org:5432`.
    pub(super) to: Endpoint,
    /// What must become of it. Default: connects.
    pub(super) expect: Option<Connect>,
}

/// A command, and how it must end.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CommandDocument {
    /// A line for the shell (sh -c), or a list: the program and its arguments.
    ///
    /// BLOCKER_RUN_DIR is a directory that all commands of a run share, gone when it is over;
    /// BLOCKER_SOCKET is the daemon's socket, for blockctl.
    pub(super) run: Line,
    /// The exit code that it must have. Default: 0.
    #[serde(default)]
    pub(super) exit: u8,
    /// What it must write to standard output.
    pub(super) output: Option<Text>,
}
