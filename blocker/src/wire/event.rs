//! `GET /v1/events`: a stream of events, one JSON object a line.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::commas;
use super::flow::Decision;
use super::schema::Moment;
use crate::matching::text::{text_serde, words};
use crate::rule::{Direction, Mode, Owner, Protocol, RuleError, RuleId, Target};

words! {
    /// Kinds of events.
    EventKind, "kind", "packet, rule, teardown, reload, device or lost", {
        /// A rule decided a packet.
        Packet = "packet",
        /// A rule was added, changed or lifted, or expired.
        Rule = "rule",
        /// Established flows were killed.
        Teardown = "teardown",
        /// The configuration was read again, or refused.
        Reload = "reload",
        /// Hooks of a device were attached or detached.
        Device = "device",
        /// Events were lost.
        Lost = "lost",
    }
}

/// Which events: the query of `GET /v1/events`. An absent field does not filter. An event that lacks a
/// field that is filtered by (a rule change has no remote) is left out. Lost events are always reported.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EventsRequest {
    /// Of these kinds.
    #[serde(with = "commas", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<EventKind>")]
    pub kind: Vec<EventKind>,
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
    /// Of packets with one of these decisions.
    #[serde(with = "commas", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<Decision>")]
    pub verdict: Vec<Decision>,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// When.
    #[schemars(with = "Moment")]
    pub time: Timestamp,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// A rule decided a packet.
    Packet(Packet),
    /// A rule changed.
    Rule(RuleChange),
    /// Established flows were killed.
    Teardown(Killed),
    /// The configuration was read again.
    Reload(Reloaded),
    /// A device changed.
    Device(DeviceChange),
    /// Events were lost.
    Lost(Lost),
}

impl What {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> EventKind {
        match self {
            Self::Packet(_) => EventKind::Packet,
            Self::Rule(_) => EventKind::Rule,
            Self::Teardown(_) => EventKind::Teardown,
            Self::Reload(_) => EventKind::Reload,
            Self::Device(_) => EventKind::Device,
            Self::Lost(_) => EventKind::Lost,
        }
    }
}

/// A packet that a rule decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Packet {
    /// The device.
    pub interface: String,
    /// `ingress` or `egress`.
    pub direction: Direction,
    /// `xdp`, `tc-ingress` or `tc-egress`.
    pub hook: String,
    /// As in [`super::FlowView::protocol`].
    pub protocol: String,
    /// The remote's address.
    pub remote: IpAddr,
    /// The remote's port; 0 where there is none.
    pub remote_port: u16,
    /// The local address.
    pub local: IpAddr,
    /// The local port; 0 where there is none.
    pub local_port: u16,
    /// Flags of a TCP segment: `fin`, `syn`, `rst`, `psh`, `ack`, `urg`, `ece`, `cwr`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tcp_flags: Vec<String>,
    /// Type of an ICMP or ICMPv6 message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// Whether it is a fragment.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fragment: bool,
    /// Its bytes, with link-layer header.
    pub length: u32,
    /// What was done with it.
    pub verdict: Decision,
    /// The rule; absent if it was removed before its name could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleId>,
}

words! {
    /// How a rule changed.
    RuleFate, "change", "added, changed, lifted or expired", {
        /// It is new.
        Added = "added",
        /// Its targets, its deadline or its effect changed.
        Changed = "changed",
        /// It was removed.
        Lifted = "lifted",
        /// Its deadline has passed.
        Expired = "expired",
    }
}

/// A rule that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleChange {
    /// How.
    pub change: RuleFate,
    /// The rule.
    pub rule: RuleId,
    /// Its owner.
    pub owner: Owner,
    /// Its mode.
    pub mode: Mode,
    /// Its first targets.
    pub targets: Vec<Target>,
    /// How many it has.
    pub targets_total: u64,
    /// Its deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Moment>")]
    pub expires: Option<Timestamp>,
    /// Its comment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Who asked for the change, if anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// Established flows that were killed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Killed {
    /// The rules that killed them.
    pub rules: Vec<RuleId>,
    /// Flows found.
    pub found: u64,
    /// Flows dead at both ends.
    pub killed: u64,
    /// Flows that are left.
    pub left: u64,
    /// Time taken, in milliseconds.
    pub elapsed_ms: f64,
}

/// The configuration, read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reloaded {
    /// Why it was refused; the previous one stays in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

words! {
    /// How a device changed.
    DeviceFate, "change", "attached or detached", {
        /// Its hooks are attached.
        Attached = "attached",
        /// They are no longer.
        Detached = "detached",
    }
}

/// A device that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceChange {
    /// How.
    pub change: DeviceFate,
    /// Its name.
    pub interface: String,
    /// Its index.
    pub index: u32,
    /// The hooks: `xdp native`, `tc-ingress tcx`, …
    pub hooks: Vec<String>,
}

words! {
    /// Where events are lost.
    LostAt, "place", "datapath or watcher", {
        /// In the datapath: more than `limits.events_per_second`, or than the daemon could read.
        Datapath = "datapath",
        /// In the daemon: this client was too slow.
        Watcher = "watcher",
    }
}

/// Events that were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lost {
    /// How many, before any filter.
    pub events: u64,
    /// Where.
    pub at: LostAt,
}
