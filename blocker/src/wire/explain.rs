//! `POST /v1/explain`: what becomes of a packet, and which rules have a say in it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rule::{Direction, Mode, Protocol, RuleId, Target};

/// A packet, as far as it is known. What is left out may be anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// The remote: one address.
    pub address: Target,
    /// This host's address, or that of what is behind it: one address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Target>,
    /// The port of either side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// This host's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_port: Option<u16>,
    /// The remote's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_port: Option<u16>,
    /// The protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Which way it goes; both are answered if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// The device (name or glob) that it is on; all attached ones are answered if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

/// The answer, from what the datapath holds at that moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainResponse {
    /// The remote.
    pub address: Target,
    /// The protected prefix that keeps every rule off the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected_by: Option<Target>,
    /// Rules that cover the address and spare it: by an exception of theirs, or carved out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spared_by: Vec<Spared>,
    /// What becomes of the packet: one for each direction, and for devices that differ. Empty if
    /// no device is attached: nothing is enforced then.
    pub answers: Vec<Explanation>,
}

/// A rule that leaves an address alone that its targets cover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Spared {
    /// The rule.
    pub rule: RuleId,
    /// Its target.
    pub target: Target,
    /// Its exception.
    pub except: Target,
}

/// What becomes of a packet that goes one way, on devices that treat it alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    /// `ingress` or `egress`.
    pub direction: Direction,
    /// The devices.
    pub interfaces: Vec<String>,
    /// What becomes of it.
    pub verdict: Fate,
    /// The rule that decides, if that is certain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleId>,
    /// Where it does: `xdp`, `tc-ingress` or `tc-egress`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// Why nothing decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The rules of the address, in the order in which they are tried.
    pub rules: Vec<TriedRule>,
    /// What passes all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// No rule takes it.
    Passed,
    /// Silently dropped.
    Dropped,
    /// Reset, towards both ends.
    Reset,
    /// Rejected by ICMP.
    Rejected,
    /// Counted, and passed.
    Audited,
    /// Not all such packets have the same fate.
    Depends,
}

/// A rule that is tried on a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TriedRule {
    /// Its id.
    pub id: RuleId,
    /// The most specific of its targets that covers the address.
    pub target: Target,
    /// What it does with what it takes.
    pub mode: Mode,
    /// What becomes of its trial.
    pub outcome: Outcome,
    /// Where it would decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// Why, or how much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What becomes of the trial of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It decides all that comes to it.
    Decides,
    /// It decides a part, by its percentage; the rest goes on to the next.
    Share,
    /// It decides some, by what is not known of the packet; the rest goes on to the next.
    Depends,
    /// It would take the packet, but another rule decides before it.
    Shadowed,
    /// It does not take the packet.
    NoMatch,
}
