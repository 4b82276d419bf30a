//! `GET /v1/flows`: the flows that rules decided.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::commas;
use super::schema::Moment;
use crate::matching::text::{text_serde, words};
use crate::rule::{Protocol, RuleError, RuleId, Target};

words! {
    /// What became of a packet that a rule decided.
    Decision, "verdict", "dropped, reset, rejected, audited or suppressed", {
        /// Dropped without a reply: by the rule's mode, or because no reply was due.
        Dropped = "dropped",
        /// Answered by RSTs, or by an ICMP port unreachable.
        Reset = "reset",
        /// Answered by an ICMP administratively prohibited.
        Rejected = "rejected",
        /// Counted, and passed.
        Audited = "audited",
        /// Dropped without the reply that was due, because of the rate limit.
        Suppressed = "suppressed",
    }
}

words! {
    /// What flows are sorted by: the largest or latest first.
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

/// The number of flows in an answer by default.
pub const FLOWS_LIMIT: u32 = 1_000;

/// Which flows: the query of `GET /v1/flows`. An absent field does not filter.
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
    /// The order.
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
    /// The flows, in the requested order.
    pub flows: Vec<FlowView>,
    /// How many more match, beyond the limit.
    pub truncated: u64,
    /// How many flow records of all rules were replaced by newer ones.
    pub evicted: u64,
    /// How many packets of all rules are in no flow record, because too many new flows came at once.
    pub not_recorded: u64,
}

/// A flow that a rule decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowView {
    /// The rule, which may have ended since; absent if its name is no longer known.
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
