//! `POST /v1/explain`: what is done with a packet, and which rules are tried on it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rule::{Direction, Mode, Protocol, RuleId, Target};

/// A packet, as far as it is known. An absent field may have any value.
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
    /// Its direction; absent: both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// Its device (name or glob); absent: all attached ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

/// The answer, from the tables of the datapath at that moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainResponse {
    /// The remote.
    pub address: Target,
    /// The protected prefix that the address is in, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected_by: Option<Target>,
    /// Rules that cover the address but have an exception for it, written or carved out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spared_by: Vec<Spared>,
    /// What is done with the packet, for each direction and each group of devices that treat it alike.
    /// Empty if no device is attached: nothing is enforced then.
    pub answers: Vec<Explanation>,
}

/// A rule with an exception for an address that its targets cover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Spared {
    /// The rule.
    pub rule: RuleId,
    /// Its target.
    pub target: Target,
    /// Its exception.
    pub except: Target,
}

/// What is done with a packet of one direction, on devices that treat it alike.
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
    /// The hook at which it decides: `xdp`, `tc-ingress` or `tc-egress`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// Why nothing decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The rules of the address, in the order in which they are tried.
    pub rules: Vec<TriedRule>,
    /// Packets that pass in spite of the rule.
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
    /// It depends on the packet.
    Depends,
}

impl From<Mode> for Fate {
    /// What becomes of a packet that a rule of this mode decides.
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Drop => Self::Dropped,
            Mode::Reset => Self::Reset,
            Mode::Reject => Self::Rejected,
            Mode::Audit => Self::Audited,
        }
    }
}

/// A rule that is tried on a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TriedRule {
    /// Its id.
    pub id: RuleId,
    /// The most specific of its targets that covers the address.
    pub target: Target,
    /// Its mode.
    pub mode: Mode,
    /// The outcome of trying it.
    pub outcome: Outcome,
    /// Where it would decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// Why, or for which share of packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The outcome of trying a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It decides every packet that reaches it.
    Decides,
    /// It decides a share, by its percentage; the rest is tried on the next.
    Share,
    /// It decides some packets, depending on unknown fields; the rest is tried on the next.
    Depends,
    /// It would match, but another rule decides before it.
    Shadowed,
    /// It does not match.
    NoMatch,
}
