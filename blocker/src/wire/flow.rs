//! `GET /v1/flows`: the flows that rules decided.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::commas;
use super::schema::Moment;
use crate::rule::text::{text_serde, words};
use crate::rule::{Protocol, RuleError, RuleId, Target};

words! {
    /// What became of a packet that a rule decided.
    Decision, "verdict", "dropped, reset, rejected, audited or suppressed", {
        /// Dropped in silence: by the rule's mode, or because no reply was due.
        Dropped = "dropped",
        /// Answered by RSTs, or by an ICMP port unreachable.
        Reset = "reset",
        /// Answered by an ICMP administratively prohibited.
        Rejected = "rejected",
        /// Counted, and passed.
        Audited = "audited",
        /// Dropped without the reply that was due: over the rate of replies.
        Suppressed = "suppressed",
    }
}

words! {
    /// What flows are sorted by, the largest first; of times, the latest.
    FlowOrder, "order", "packets, bytes, first_seen or last_seen", {
        /// Packets.
        Packets = "packets",
        /// Bytes.
        Bytes = "bytes",
        /// When the first packet came.
        FirstSeen = "first_seen",
        /// When the last packet came.
        LastSeen = "last_seen",
    }
}

/// How many flows are answered with unless it is said.
pub const FLOWS_LIMIT: u32 = 1_000;

/// Which flows: the query of `GET /v1/flows`. What is left out narrows nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FlowsRequest {
    /// Of these rules.
    #[serde(with = "commas", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<RuleId>")]
    pub rule: Vec<RuleId>,
    /// With a remote in one of these.
    #[serde(with = "commas", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Target>")]
    pub remote: Vec<Target>,
    /// Of this protocol.
    pub protocol: Protocol,
    /// What comes first.
    pub sort: FlowOrder,
    /// How many at most.
    pub limit: u32,
}

impl Default for FlowsRequest {
    fn default() -> Self {
        Self {
            rule: Vec::new(),
            remote: Vec::new(),
            protocol: Protocol::Any,
            sort: FlowOrder::LastSeen,
            limit: FLOWS_LIMIT,
        }
    }
}

/// The answer to `GET /v1/flows`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowsResponse {
    /// Whether flows are recorded at all: `limits.flows` is not 0.
    pub recording: bool,
    /// The flows that were asked for, in the order that was.
    pub flows: Vec<FlowView>,
    /// How many more there are, left out by the limit.
    pub truncated: u64,
    /// How many flows, of all rules, were forgotten to make room.
    pub evicted: u64,
    /// How many packets, of all rules, are in no flow: they came while too many new flows did.
    pub not_recorded: u64,
}

/// A flow that a rule decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowView {
    /// The rule, which may be gone since; left out if not even its name is known any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleId>,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, a number, or `unknown`: behind a fragment's beginning or too
    /// many headers.
    pub protocol: String,
    /// The remote's address.
    pub remote: IpAddr,
    /// The remote's port; 0 where there is none.
    pub remote_port: u16,
    /// The local address.
    pub local: IpAddr,
    /// The local port; 0 where there is none.
    pub local_port: u16,
    /// The device that its last packet was on.
    pub interface: String,
    /// The hook that decided its last packet: `xdp`, `tc-ingress` or `tc-egress`.
    pub hook: String,
    /// Packets.
    pub packets: u64,
    /// Their bytes, with link-layer header.
    pub bytes: u64,
    /// When the first of them came.
    #[schemars(with = "Moment")]
    pub first_seen: Timestamp,
    /// When the last of them came.
    #[schemars(with = "Moment")]
    pub last_seen: Timestamp,
    /// What became of the last of them.
    pub last_verdict: Decision,
}
