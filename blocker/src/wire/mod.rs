//! What travels over the control API and the fleet: requests, answers, events, reports. Field names are
//! a contract: scripts rely on them.

mod commas;
pub mod event;
mod explain;
pub mod fleet;
mod flow;
mod lease;
mod schema;
mod status;

use std::net::IpAddr;
use std::ops::Add;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use explain::{ExplainRequest, ExplainResponse, Explanation, Fate, Outcome, Spared, TriedRule};
pub use status::{
    FeedState, FeedStatus, HookStatus, InterfaceStatus, MapStatus, Reload, RuleStats, Stats,
    Status, Teardown, TeardownTotals, Usage,
};

pub use event::EventsRequest;
pub use fleet::{FleetRefusal, FleetState, FleetStatus};
pub use flow::{Decision, FLOWS_LIMIT, FlowOrder, FlowView, FlowsRequest, FlowsResponse};
pub use lease::{Held, LeaseLine, LeaseRequest};

use crate::rule::{Owner, Rule, RuleId, RuleSpec, Target};
use schema::Moment;

/// The largest request body that the daemon reads, in bytes.
pub const BODY_LIMIT: usize = 64 * 1024 * 1024;

/// The request header that carries the caller's `SSH_CONNECTION` (sshd(8): client address and
/// port, server address and port, separated by blanks), so that the daemon can protect the
/// caller's own SSH peer even where it cannot read the caller's environment.
pub const SSH_CONNECTION_HEADER: &str = "blocker-ssh-connection";

/// `POST /v1/rules`: one rule to add. Query: `force`, `dry_run`.
///
/// The answer is an [`AddResponse`]. Adding a rule that exists with the same effect is no error:
/// `created` is false, and a new deadline or comment is taken over.
pub type AddRequest = RuleSpec;

/// The preference (RFC 7240 4.2) of `POST /v1/rules` for an answer with only the first [`FEW_TARGETS`]
/// targets of the rule, and their number.
pub const RETURN_MINIMAL: &str = "return=minimal";

/// How many targets such an answer has.
pub const FEW_TARGETS: usize = 8;

/// The answer to `POST /v1/rules`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AddResponse {
    /// The rule as it now is.
    pub rule: Rule,
    /// How many targets the rule has, if `rule.targets` has only the first of them (`Prefer:
    /// return=minimal`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets_total: Option<u64>,
    /// Whether it is new.
    pub created: bool,
    /// Parts of the targets that were spared, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carved: Vec<Carved>,
    /// What became of the flows that were established.
    pub teardown: Account,
    /// With `dry_run`: the flows that would die. Nothing was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub would_kill: Option<Vec<LiveFlow>>,
}

impl AddResponse {
    /// Shortens the targets for [`RETURN_MINIMAL`]; returns whether that left any out.
    pub(super) fn cut(&mut self) -> bool {
        let targets = &mut self.rule.targets;
        let cut = targets.len() > FEW_TARGETS;
        if cut {
            self.targets_total = Some(targets.len() as u64);
            *targets = targets.iter().take(FEW_TARGETS).copied().collect();
        }
        cut
    }
}

/// An address or prefix that a rule's targets cover and the rule spares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Carved {
    /// What is spared.
    pub target: Target,
    /// Why: "your own SSH session comes from it", "it is the default gateway on eth0", …
    pub why: String,
}

/// A live flow and who owns it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LiveFlow {
    /// `tcp`, `udp`, …
    pub protocol: String,
    /// The remote's address.
    pub remote: IpAddr,
    /// The remote's port.
    pub remote_port: u16,
    /// The local address.
    pub local: IpAddr,
    /// The local port.
    pub local_port: u16,
    /// State of the socket or the tracked connection, such as `ESTABLISHED`.
    pub state: String,
    /// Name of a process that holds the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// Its pid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
}

/// The account of a teardown.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Account {
    /// Flows found.
    pub found: u64,
    /// Flows that are dead at both ends, as far as this host can know.
    pub killed: u64,
    /// Flows that are not, and why.
    pub left: Vec<Left>,
    /// Time taken, in milliseconds.
    pub elapsed_ms: f64,
    /// What could not be examined, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A flow that a teardown could not kill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Left {
    /// The flow.
    #[serde(flatten)]
    pub flow: LiveFlow,
    /// Why it is left.
    pub why: String,
}

/// `GET /v1/rules`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ListResponse {
    /// The rules, by id.
    pub rules: Vec<RuleView>,
}

/// A rule and its counters; `GET /v1/rules/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RuleView {
    /// The rule.
    #[serde(flatten)]
    pub rule: Rule,
    /// Who put it there.
    pub owner: Owner,
    /// When it was put there.
    #[schemars(with = "Moment")]
    pub created: Timestamp,
    /// Seconds until its deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_seconds: Option<u64>,
    /// Its counters, both directions.
    pub counters: Counters,
    /// Of that, ingress.
    #[serde(default)]
    pub ingress: Counters,
    /// Of that, egress.
    #[serde(default)]
    pub egress: Counters,
}

/// What a rule did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counters {
    /// Packets that it decided.
    pub packets: u64,
    /// Their bytes, with link-layer header.
    pub bytes: u64,
    /// Replies sent.
    pub replies: u64,
    /// Packets dropped without a reply because of the rate limit.
    pub suppressed: u64,
}

impl Add for Counters {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            replies: self.replies + other.replies,
            suppressed: self.suppressed + other.suppressed,
        }
    }
}

/// The answer to `POST /v1/rules/{id}/confirm`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ConfirmResponse {
    /// The rule as it now is.
    pub rule: Rule,
    /// Whether it was on trial.
    pub confirmed: bool,
}

/// `DELETE /v1/rules/{id}`, and `DELETE /v1/rules?target=ADDRESS` for every rule that has exactly
/// that target, and `DELETE /v1/rules` for all that the API owns (flush; `?all=true`: the
/// configuration's too, until the next reload).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeleteResponse {
    /// The rules that are gone.
    pub removed: Vec<RuleId>,
    /// Rules that lost the target and remain with their others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub narrowed: Vec<RuleId>,
    /// What became of the flows, for rules with `on_lift: reset`.
    pub teardown: Account,
}

/// `PUT /v1/ruleset`: replaces all rules of owner `api`, atomically. Query: `force`, `dry_run`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RulesetRequest {
    /// The new rules.
    pub rules: Vec<RuleSpec>,
}

/// The answer to `PUT /v1/ruleset`: what changed, or would change.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RulesetResponse {
    /// Rules that are new.
    pub added: Vec<Rule>,
    /// Rules that are gone.
    pub removed: Vec<Rule>,
    /// Rules that changed.
    pub changed: Vec<Changed>,
    /// How many did not change.
    pub unchanged: u64,
    /// Parts of targets that were spared, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carved: Vec<Carved>,
    /// What became of established flows.
    pub teardown: Account,
    /// Whether this was a dry run.
    pub dry_run: bool,
}

/// A rule that a ruleset changed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Changed {
    /// As it was.
    pub before: Rule,
    /// As it is.
    pub after: Rule,
}

/// An error: RFC 9457 problem details, with a stable `code`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// `about:blank`: `code` distinguishes problems.
    #[serde(rename = "type")]
    pub kind: String,
    /// What went wrong, in a few words.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What, where, why, and what to do.
    pub detail: String,
    /// For programs.
    pub code: Code,
}

/// Stable codes of [`Problem`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request could not be read, or a rule in it is wrong (400).
    InvalidInput,
    /// A limit would be exceeded (400).
    LimitExceeded,
    /// The rule is refused to protect the caller; `force` overrides it (409).
    Refused,
    /// The rule is refused, and `force` does not override it (409).
    Protected,
    /// An id is taken by a rule that does something else (409).
    Conflict,
    /// No such rule (404).
    NotFound,
    /// No such path or method (404, 405).
    NoSuchEndpoint,
    /// The caller has no permission (403).
    Forbidden,
    /// The kernel or the disk refused; nothing was changed (500).
    Internal,
    /// Too many requests are being served; nothing was changed (503).
    Busy,
}
