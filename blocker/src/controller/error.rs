//! Why what was asked of the controller failed.

use crate::compile::CompileError;
use crate::config::ConfigError;
use crate::datapath;
use crate::rule::{Owner, RuleError, RuleId};
use crate::ruleset::RulesetError;
use crate::safety::Refusal;
use crate::state;

/// Why a request failed. Nothing was changed, unless a variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A rule is wrong.
    #[error("{0}")]
    Rule(#[from] RuleError),
    /// A rule of a set is wrong.
    #[error("rule {place} of {of}: {source}")]
    RuleOf {
        /// Its position, from 1.
        place: usize,
        /// How many there are.
        of: usize,
        /// What is wrong.
        source: RuleError,
    },
    /// A rule is refused to protect the caller or the host.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// A ruleset does not fit.
    #[error("{0}")]
    Compile(#[from] CompileError),
    /// No counter slot is left.
    #[error(
        "more than {limit} rules: raise limits.rules and restart, or put more targets into a rule"
    )]
    TooManyRules {
        /// The limit.
        limit: u32,
    },
    /// A set of rules that can't be one owner's.
    #[error("{0}")]
    Ruleset(#[from] RulesetError),
    /// The id of another rule.
    #[error(
        "id {id} is taken by a rule of {owner} that does something else: delete it first, change it with `apply`, or choose another id"
    )]
    Taken {
        /// The id.
        id: RuleId,
        /// Whose it is.
        owner: Owner,
    },
    /// A rule that is in force already and can't be made to depend on a confirmation.
    #[error(
        "rule {id} does this already: there is nothing to go back to unless it is confirmed; leave out confirm_within"
    )]
    InForce {
        /// The rule.
        id: RuleId,
    },
    /// No such rule.
    #[error("no rule {what}")]
    NoSuchRule {
        /// Its id, or a target of it.
        what: String,
    },
    /// A packet that can't be explained.
    #[error("{0}")]
    Packet(String),
    /// The datapath.
    #[error("{0}")]
    Datapath(#[from] datapath::Error),
    /// The state file.
    #[error("{0}")]
    State(#[from] state::StateError),
    /// The configuration file.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// A changed configuration key that only a restart can change.
    #[error("{keys} changed: that needs a restart; nothing was reloaded")]
    NeedsRestart {
        /// The keys.
        keys: String,
    },
    /// An internal task ended early.
    #[error("the daemon failed inside: {0}")]
    Inside(String),
}
