//! Enumerated fields of a rule, and its owner.

use std::fmt;
use std::str::FromStr;

use super::RuleError;
use crate::matching::text::{text_serde, words};

words! {
    /// What is done with a packet that a rule decides.
    Mode, "mode", "drop, reset, reject or audit", {
        /// Silently dropped.
        Drop = "drop",
        /// RST to both ends of TCP, else ICMP port unreachable. By default kills established flows.
        Reset = "reset",
        /// Dropped, and answered by ICMP administratively prohibited.
        Reject = "reject",
        /// Counted, and passed.
        Audit = "audit",
    }
}

impl Mode {
    /// Whether a packet that the rule decides is stopped.
    #[must_use]
    pub const fn blocks(self) -> bool {
        !matches!(self, Self::Audit)
    }

    /// Whether the datapath replies to the sender.
    #[must_use]
    pub const fn replies(self) -> bool {
        matches!(self, Self::Reset | Self::Reject)
    }

    /// Whether the mode ends the flows whose packets it decides. Such a mode kills established
    /// flows by default, passes RSTs, and leaves no flow to kill when the rule ends.
    #[must_use]
    pub const fn ends_flows(self) -> bool {
        matches!(self, Self::Reset)
    }
}

words! {
    /// What happens to flows that are established when the rule starts.
    Established, "established", "kill or keep", {
        /// The flows are killed at both ends.
        Kill = "kill",
        /// The flows are not killed; the rule applies to their packets.
        Keep = "keep",
    }
}

words! {
    /// What happens to blocked flows when the rule ends.
    OnLift, "on_lift", "resume or reset", {
        /// The flows may resume: retransmitted data is delivered.
        Resume = "resume",
        /// The flows are killed at both ends first: data sent during the block is not delivered.
        Reset = "reset",
    }
}

/// Who put a rule in force.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// The configuration file.
    Config,
    /// A request over the control API.
    Api,
    /// A lease over the control API, by its id: the rule is lifted when the client disconnects.
    Lease(String),
    /// The fleet's etcd.
    Fleet,
    /// A feed of the configuration, by its name.
    Feed(String),
}

impl FromStr for Owner {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        match text {
            "config" => Ok(Self::Config),
            "api" => Ok(Self::Api),
            "fleet" => Ok(Self::Fleet),
            _ => match text.split_once(':') {
                Some(("lease", id)) if !id.is_empty() => Ok(Self::Lease(id.to_owned())),
                Some(("feed", name)) if !name.is_empty() => Ok(Self::Feed(name.to_owned())),
                _ => Err(RuleError::Word {
                    what: "owner",
                    found: text.to_owned(),
                    expected: "config, api, fleet, lease:ID or feed:NAME",
                }),
            },
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config => f.pad("config"),
            Self::Api => f.pad("api"),
            Self::Fleet => f.pad("fleet"),
            Self::Lease(id) => f.pad(&format!("lease:{id}")),
            Self::Feed(name) => f.pad(&format!("feed:{name}")),
        }
    }
}

text_serde!(Owner);
