//! The parts of a rule that are one of a few words, and its owner.

use std::fmt;
use std::str::FromStr;

use super::RuleError;
use crate::matching::text::{text_serde, words};

words! {
    /// What is done with a packet that a rule decides.
    Mode, "mode", "drop, reset, reject or audit", {
        /// Silently dropped.
        Drop = "drop",
        /// RST to both ends of TCP, ICMP port unreachable for the rest; established flows die.
        Reset = "reset",
        /// ICMP administratively prohibited.
        Reject = "reject",
        /// Counted, and passed.
        Audit = "audit",
    }
}

impl Mode {
    /// Whether a packet that the rule decides goes no further.
    #[must_use]
    pub const fn blocks(self) -> bool {
        !matches!(self, Self::Audit)
    }

    /// Whether the sender is answered.
    #[must_use]
    pub const fn replies(self) -> bool {
        matches!(self, Self::Reset | Self::Reject)
    }

    /// Whether a flow that meets the rule ends. Such a mode kills established flows by default, lets
    /// a RST pass, and leaves no flow to kill when the rule ends.
    #[must_use]
    pub const fn ends_flows(self) -> bool {
        matches!(self, Self::Reset)
    }
}

words! {
    /// What becomes of the flows that were established when the rule starts.
    Established, "established", "kill or keep", {
        /// Killed at both ends.
        Kill = "kill",
        /// Kept; what they send meets the rule.
        Keep = "keep",
    }
}

words! {
    /// What becomes of the blocked flows when the rule ends.
    OnLift, "on_lift", "resume or reset", {
        /// They may resume, and what is retransmitted is delivered.
        Resume = "resume",
        /// They are killed at both ends first, so that nothing sent during the block is delivered.
        Reset = "reset",
    }
}

/// Who put a rule there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// The configuration file.
    Config,
    /// A request over the control API.
    Api,
    /// A lease over the control API, by its id: the rule holds as long as whoever asked for it is
    /// there.
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
