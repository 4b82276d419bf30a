//! The state of the daemon: `status` and `stats`.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::Moment;
use super::{Account, Counters, FleetStatus};
use crate::rule::{Mode, Owner, RuleId};

/// `GET /v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// The map ABI's version.
    pub abi: u32,
    /// The daemon's pid.
    pub pid: u32,
    /// The kernel's release.
    pub kernel: String,
    /// When the daemon started.
    #[schemars(with = "Moment")]
    pub started: Timestamp,
    /// Seconds since then.
    pub uptime_seconds: u64,
    /// The configuration file.
    pub config: String,
    /// When it was last loaded, and with what result.
    pub last_reload: Reload,
    /// The attached devices.
    pub interfaces: Vec<InterfaceStatus>,
    /// Rules in force.
    pub rules: Usage,
    /// Prefixes in force.
    pub prefixes: Usage,
    /// How many of them are IPv6.
    pub prefixes_v6: Usage,
    /// The maps in the kernel, by name: fill and memory.
    pub maps: Vec<MapStatus>,
    /// Kernel memory of the maps, in bytes.
    pub map_bytes: u64,
    /// Resident memory of the daemon, in bytes.
    pub resident_bytes: u64,
    /// What the kernel lacks, and the consequences.
    pub lacks: Vec<String>,
    /// The progress of the teardown that runs now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teardown: Option<Teardown>,
    /// The sum of all teardowns since the daemon's start.
    pub teardowns: TeardownTotals,
    /// How the fleet is followed, if one is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<FleetStatus>,
    /// The feeds of the configuration.
    #[serde(default)]
    pub feeds: Vec<FeedStatus>,
}

/// The state of a feed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FeedStatus {
    /// Its name; the owner of its rules is `feed:NAME`.
    pub name: String,
    /// `file`, `url` or `crowdsec`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its path, or its address without user, password and query.
    pub source: String,
    /// How current it is.
    pub state: FeedState,
    /// Targets in force.
    pub entries: u64,
    /// Rules in force.
    pub rules: u64,
    /// Targets that were left out, because they must not be blocked or lie in private ranges.
    pub left_out: u64,
    /// The first of them, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out_first: Option<String>,
    /// When the content in force was received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Moment>")]
    pub changed: Option<Timestamp>,
    /// When a look by this daemon last succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Moment>")]
    pub last_success: Option<Timestamp>,
    /// When the source was last looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Moment>")]
    pub last_attempt: Option<Timestamp>,
    /// When the next look is due. Files are looked at every second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Moment>")]
    pub next_attempt: Option<Timestamp>,
    /// Attempts that failed since the daemon's start.
    pub failures: u64,
    /// Why the last attempt failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How current a feed is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FeedState {
    /// It has no content yet.
    Waiting,
    /// The content that the daemon before saved is in force; the source was not looked at yet.
    Kept,
    /// The last attempt succeeded.
    Current,
    /// The last attempt failed; the content before is in force.
    Stale,
}

impl FeedState {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Kept => "kept",
            Self::Current => "current",
            Self::Stale => "stale",
        }
    }
}

/// A teardown under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Teardown {
    /// Flows found so far.
    pub found: u64,
    /// Flows dead at both ends so far.
    pub killed: u64,
}

/// The sum of teardowns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TeardownTotals {
    /// Flows found.
    pub found: u64,
    /// Flows that are dead at both ends.
    pub killed: u64,
    /// Flows that were left.
    pub left: u64,
}

impl TeardownTotals {
    /// Adds another teardown's account.
    pub fn add(&mut self, account: &Account) {
        self.found += account.found;
        self.killed += account.killed;
        self.left += account.left.len() as u64;
    }
}

/// How the configuration was last loaded.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Reload {
    /// When.
    #[schemars(with = "Moment")]
    pub at: Timestamp,
    /// When the configuration that is in force was loaded.
    #[schemars(with = "Moment")]
    pub in_force_since: Timestamp,
    /// Why it was refused, if it was; the previous configuration is in force then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The use of something limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Used.
    pub used: u64,
    /// Allowed.
    pub allowed: u64,
}

/// A device and its hooks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its hooks.
    pub hooks: Vec<HookStatus>,
    /// Hooks that are missing or not attached in the best way, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// An attached hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HookStatus {
    /// `xdp`, `tc-ingress` or `tc-egress`.
    pub hook: String,
    /// How: `native`, `generic`, `tcx` or `clsact`.
    pub mode: String,
    /// Packets that the hook saw on this device.
    pub seen: u64,
    /// Packets that no rule decided.
    pub passed: u64,
    /// Packets whose headers could not be read; they passed.
    pub malformed: u64,
    /// Packets of our own, replies and probes; they passed uncounted by rules.
    #[serde(default)]
    pub own: u64,
}

/// A map in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MapStatus {
    /// Its name: `v4_ranges`, `counters`, …
    pub name: String,
    /// Its memory, in bytes, as the kernel accounts for it.
    pub bytes: u64,
    /// Entries used and allowed of one bank, where they can be counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<Usage>,
}

/// `GET /v1/stats`: totals, for rates. It has no targets, so its size does not depend on theirs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    /// The wall clock when they were read.
    #[schemars(with = "Moment")]
    pub at: Timestamp,
    /// `CLOCK_BOOTTIME` when they were read, in nanoseconds, for rates.
    pub boot_ns: u64,
    /// The rules in force, by id.
    pub rules: Vec<RuleStats>,
    /// The attached devices.
    pub interfaces: Vec<InterfaceStatus>,
}

/// The counters of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleStats {
    /// Its id.
    pub id: RuleId,
    /// Who put it there.
    pub owner: Owner,
    /// What it does.
    pub mode: Mode,
    /// When it was added. A rule that was lifted and added again counts from 0.
    #[schemars(with = "Moment")]
    pub created: Timestamp,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Moment>")]
    pub expires: Option<Timestamp>,
    /// Ingress.
    pub ingress: Counters,
    /// Egress.
    pub egress: Counters,
}
