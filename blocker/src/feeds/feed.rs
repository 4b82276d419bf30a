//! A feed as it is configured: its name, its source, and the rule that its targets become.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::source::Source;
use crate::rule::{Defaults, Mode, Owner, RuleId, RuleSpec, Target};

/// A feed: a source of targets, and the rule that they become.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Feed {
    /// Its name.
    pub name: FeedName,
    /// Where the targets come from.
    #[serde(flatten)]
    pub source: Source,
    /// What is done with targets in private and special ranges.
    pub private: Private,
    /// The most that is read, in bytes.
    pub max_bytes: u64,
    /// The rule's fields, except id, targets and deadline.
    #[serde(flatten)]
    pub rule: RuleSpec,
}

/// A feed's name: `[a-z0-9][a-z0-9-]{0,31}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct FeedName(String);

impl FeedName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it, as text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=32).contains(&text.len()) && text.bytes().all(good) && !text.starts_with('-') {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "feed name {text:?} is not valid: expected 1 to 32 of a-z, 0-9 and '-', not beginning with '-'"
            ))
        }
    }

    /// The owner of its rules.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner::Feed(self.0.clone())
    }

    /// The id of its rule; `part` distinguishes its rules where there are several.
    #[must_use]
    pub fn rule(&self, part: Option<&str>) -> Option<RuleId> {
        let id = match part {
            None => format!("feed-{}", self.0),
            Some(part) => format!("feed-{}.{part}", self.0),
        };
        id.parse().ok()
    }

    /// Whether a rule with this id would belong to the feed.
    #[must_use]
    pub fn has(&self, id: &RuleId) -> bool {
        let rest = id.as_str().strip_prefix("feed-");
        let rest = rest.and_then(|rest| rest.strip_prefix(&self.0));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

impl fmt::Display for FeedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What is done with a feed's targets in private and special ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Private {
    /// They are left out and counted.
    Skip,
    /// The whole list is refused.
    Refuse,
    /// They are blocked like any other target.
    Block,
}

impl Feed {
    /// The rule for targets of this feed. A `mode` takes precedence over the feed's own.
    #[must_use]
    pub fn spec(&self, id: RuleId, targets: Vec<Target>, mode: Option<Mode>) -> RuleSpec {
        RuleSpec {
            id: Some(id),
            targets,
            mode: mode.or(self.rule.mode),
            ..self.rule.clone()
        }
    }

    /// Checks that the feed's rules can be made, whatever their targets are.
    ///
    /// # Errors
    /// Why they cannot, as text.
    pub(super) fn check(&self, defaults: Defaults) -> Result<(), String> {
        let id = self.name.rule(None).ok_or("its name is no rule's")?;
        // Any target does: a documentation address (RFC 5737).
        let target = Target::from(std::net::IpAddr::from([192, 0, 2, 1]));
        let modes = match self.source.decision_modes() {
            Some(types) => types.values().copied().map(Some).collect(),
            None => vec![None],
        };
        for mode in modes {
            self.spec(id.clone(), vec![target], mode)
                .resolve(|| id.clone(), defaults, jiff::Timestamp::MIN)
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}
