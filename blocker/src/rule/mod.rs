//! Rules: their parts, and how each part is parsed from text and written back.
//!
//! Pure. A [`RuleSpec`] is a rule as requested, with the same fields in YAML, JSON and flags.
//! [`RuleSpec::resolve`] turns it into a [`Rule`], in which every default is explicit.
//! [`crate::safety`] checks whether a rule would cut off the host or the caller;
//! [`crate::compile`] checks whether the rules fit the datapath.

mod parts;
#[cfg(test)]
pub(crate) mod sample;
mod schema;
mod targets;
#[cfg(test)]
mod tests;
mod words;

use std::path::PathBuf;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use crate::matching::check_interface;
pub use crate::matching::{Direction, Ports, Protocol, RuleError, Target, interface_matches};
use crate::matching::{Match, Percent, with_match};
pub use parts::{Lifetime, RuleId};
pub(crate) use schema::ID_PATTERN;
pub use targets::Targets;
pub use words::{Established, Mode, OnLift, Owner};

with_match! {
    /// A rule as requested. [`Defaults`] and the mode give the defaults of absent fields.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(from = "RuleSpecForm")]
    pub struct RuleSpec from asked #[derive(Deserialize, JsonSchema)] RuleSpecForm {
        /// The rule's id; generated if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub id: Option<RuleId>,
        /// The remotes: addresses and prefixes.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub targets: Vec<Target>,
        /// A file with more targets (see [`crate::lists`]). The program that parses the rule loads
        /// the file with [`crate::lists::List::take`], which clears this field. A rule that still
        /// names a file is refused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub targets_file: Option<PathBuf>,
        /// Addresses and prefixes to which the rule does not apply.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub except: Vec<Target>,
        /// What is done with the packets that the rule decides.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub mode: Option<Mode>,
        @match {
            #[serde(flatten, serialize_with = "Match::serialize_narrowing")]
            #[schemars(with = "Match")]
            pub matching
        }
        /// What happens to flows that are established when the rule starts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub established: Option<Established>,
        /// What happens to blocked flows when the rule ends.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub on_lift: Option<OnLift>,
        /// How long the rule is in force.
        #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
        pub lifetime: Option<Lifetime>,
        /// When the rule ends.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<String>", extend("format" = "date-time"))]
        pub expires: Option<Timestamp>,
        /// How long the rule is in force unless it is confirmed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub confirm_within: Option<Lifetime>,
        /// Why the rule exists.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub comment: Option<String>,
    }
}

/// The configuration's `defaults:`, for fields that a rule leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    /// The mode.
    pub mode: Mode,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { mode: Mode::Drop }
    }
}

with_match! {
    /// A rule with every default made explicit.
    ///
    /// `targets` and `except` are sorted and without duplicates, so equality does not depend on the
    /// order in which they were written. Clones share the targets.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
    #[serde(from = "RuleForm")]
    pub struct Rule from whole #[derive(Deserialize, JsonSchema)] RuleForm {
        /// The rule's id.
        pub id: RuleId,
        /// The remotes: addresses and prefixes.
        pub targets: Targets,
        /// Addresses and prefixes to which the rule does not apply, carve-outs included.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub except: Vec<Target>,
        /// What is done with the packets that the rule decides.
        pub mode: Mode,
        @match {
            #[serde(flatten)]
            pub matching
        }
        /// What happens to flows that are established when the rule starts.
        pub established: Established,
        /// What happens to blocked flows when the rule ends.
        pub on_lift: OnLift,
        /// When the rule ends (wall clock; the datapath compares `CLOCK_BOOTTIME`).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<String>", extend("format" = "date-time"))]
        pub expires: Option<Timestamp>,
        /// Present while the rule is unconfirmed: it ends at `expires` unless it is confirmed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub unconfirmed: Option<Unconfirmed>,
        /// Why the rule exists.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub comment: Option<String>,
    }
}

/// What changes in a rule when it is confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unconfirmed {
    /// When the rule ends after it is confirmed (wall clock); absent: no deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub expires: Option<Timestamp>,
}

impl RuleSpec {
    /// Makes every default explicit and checks the fields against each other.
    ///
    /// `id` generates an id if the spec has none; `now` is the wall clock.
    ///
    /// # Errors
    /// The first [`RuleError`] found.
    pub fn resolve(
        self,
        id: impl FnOnce() -> RuleId,
        defaults: Defaults,
        now: Timestamp,
    ) -> Result<Rule, RuleError> {
        if let Some(path) = self.targets_file {
            return Err(RuleError::TargetsFile(path));
        }
        if self.targets.is_empty() {
            return Err(RuleError::NoTargets);
        }
        let mode = self.mode.unwrap_or(defaults.mode);
        let matching = self.matching.normalized()?;
        if let Some(comment) = &self.comment
            && (comment.chars().count() > 256 || comment.chars().any(char::is_control))
        {
            return Err(RuleError::Comment);
        }
        let expires = match (self.lifetime, self.expires) {
            (Some(_), Some(_)) => return Err(RuleError::TwoDeadlines),
            (Some(lifetime), None) => Some(
                now.checked_add(lifetime.duration())
                    .map_err(|_| RuleError::Duration(lifetime.to_string()))?,
            ),
            (None, Some(expires)) if expires <= now => return Err(RuleError::Expired(expires)),
            (None, expires) => expires,
        };
        let (expires, unconfirmed) = match self.confirm_within {
            None => (expires, None),
            Some(within) => {
                let by = now
                    .checked_add(within.duration())
                    .map_err(|_| RuleError::Duration(within.to_string()))?;
                if let Some(expires) = expires.filter(|expires| *expires <= by) {
                    return Err(RuleError::Contradiction {
                        option: "confirm_within",
                        with: format!("a deadline at {expires}"),
                        why: "the rule ends before it is to be confirmed",
                    });
                }
                (Some(by), Some(Unconfirmed { expires }))
            }
        };
        let established = resolve_established(self.established, mode, matching.percent)?;
        let on_lift = resolve_on_lift(self.on_lift, mode, matching.percent)?;
        Ok(Rule {
            id: self.id.unwrap_or_else(id),
            targets: self.targets.into(),
            except: sorted(self.except),
            mode,
            matching,
            established,
            on_lift,
            expires,
            unconfirmed,
            comment: self.comment,
        })
    }
}

impl Rule {
    /// Makes the checks of [`RuleSpec::resolve`] on a rule that it did not make. Deadlines are not
    /// checked: they may be in the past.
    ///
    /// # Errors
    /// The first [`RuleError`] found.
    pub fn check(&self) -> Result<(), RuleError> {
        RuleSpec::from(self.clone())
            .resolve(|| self.id.clone(), Defaults::default(), Timestamp::MIN)
            .map(drop)
    }

    /// Whether flows that are established when the rule starts are killed.
    #[must_use]
    pub fn kills(&self) -> bool {
        self.established == Established::Kill
    }

    /// Whether the rule applies on a device, by the device's name.
    #[must_use]
    pub fn covers_interface(&self, device: &str) -> bool {
        let matches = |pattern: &String| interface_matches(pattern, device);
        self.matching.interfaces.is_empty() || self.matching.interfaces.iter().any(matches)
    }

    /// Whether the rule kills flows before it blocks: its mode would drop the RST that ends a flow.
    #[must_use]
    pub fn kills_first(&self) -> bool {
        self.kills() && !self.mode.ends_flows()
    }

    /// Whether the rule's flows are killed when it ends. A `reset` rule leaves none to kill.
    #[must_use]
    pub fn lifts_by_reset(&self) -> bool {
        self.on_lift == OnLift::Reset && self.mode.blocks() && !self.mode.ends_flows()
    }

    /// Whether two rules are equal except for the id, the comment and the deadlines.
    #[must_use]
    pub fn same_effect(&self, other: &Self) -> bool {
        self.same_action(other) && self.except == other.except && self.targets == other.targets
    }

    /// Whether two rules do the same to packets and flows of a remote that both cover.
    #[must_use]
    pub fn same_action(&self, other: &Self) -> bool {
        // Every field is named, so that a new field is a compile error here.
        let Self {
            id: _,
            targets: _,
            except: _,
            mode,
            matching,
            established,
            on_lift,
            expires: _,
            unconfirmed: _,
            comment: _,
        } = self;
        *mode == other.mode
            && *established == other.established
            && *on_lift == other.on_lift
            && *matching == other.matching
    }
}

impl From<Rule> for RuleSpec {
    /// The specification that resolves to the rule, whatever the defaults. `unconfirmed` is left
    /// out: the specification has only the present deadline.
    fn from(rule: Rule) -> Self {
        Self {
            id: Some(rule.id),
            targets: rule.targets.into(),
            targets_file: None,
            except: rule.except,
            mode: Some(rule.mode),
            matching: rule.matching,
            established: Some(rule.established),
            on_lift: Some(rule.on_lift),
            lifetime: None,
            expires: rule.expires,
            confirm_within: None,
            comment: rule.comment,
        }
    }
}

fn resolve_established(
    asked: Option<Established>,
    mode: Mode,
    percent: Percent,
) -> Result<Established, RuleError> {
    let kill = |with: String, why| RuleError::Contradiction {
        option: "established: kill",
        with,
        why,
    };
    match asked {
        Some(Established::Kill) if !mode.blocks() => {
            Err(kill("mode: audit".into(), "audit only counts"))
        }
        Some(Established::Kill) if !percent.is_all() => Err(kill(
            format!("percent: {percent}"),
            "a flow that only loses packets is to live",
        )),
        Some(asked) => Ok(asked),
        None if mode.ends_flows() && percent.is_all() => Ok(Established::Kill),
        None => Ok(Established::Keep),
    }
}

fn resolve_on_lift(
    asked: Option<OnLift>,
    mode: Mode,
    percent: Percent,
) -> Result<OnLift, RuleError> {
    let reset = |with: String, why| RuleError::Contradiction {
        option: "on_lift: reset",
        with,
        why,
    };
    match asked {
        Some(OnLift::Reset) if !mode.blocks() => {
            Err(reset("mode: audit".into(), "audit only counts"))
        }
        Some(OnLift::Reset) if !percent.is_all() => Err(reset(
            format!("percent: {percent}"),
            "a flow that only loses packets is to live",
        )),
        asked => Ok(asked.unwrap_or(OnLift::Resume)),
    }
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort_unstable();
    list.dedup();
    list
}
