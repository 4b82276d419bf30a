//! What the fleet needs of the part that enforces its rules.

use tokio::task::JoinHandle;

use super::held::Told;
use crate::rule::{RuleId, RuleSpec};
use crate::wire::Account;

/// What enforces the fleet's rules on this host.
pub trait Host: Clone + Send + Sync + 'static {
    /// Replaces all rules of the fleet on this host by these, as one change.
    fn enforce(&self, told: Vec<Told>) -> impl Future<Output = Result<Replaced, String>> + Send;
    /// Counts the live flows that a rule would hit, or says why the rule would be refused.
    fn flows(
        &self,
        rule: RuleSpec,
        force: bool,
    ) -> impl Future<Output = Result<u64, String>> + Send;
}

/// The result of replacing rules.
pub struct Replaced {
    /// How many are in force.
    pub in_force: usize,
    /// Those that started.
    pub started: Vec<RuleId>,
    /// Those that were refused, and why.
    pub refused: Vec<(RuleId, String)>,
    /// The account of the established flows, once they are killed.
    pub teardown: JoinHandle<Account>,
}
