//! What a rule is: its parts, how each is read from text, and how it is written back.
//!
//! Pure. A [`RuleSpec`] is what a person or a program asked for (YAML, JSON or flags, the same
//! fields everywhere); [`RuleSpec::resolve`] turns it into a [`Rule`], in which every default is
//! made explicit. Whether a rule is wise is [`crate::safety`]'s question, whether it fits the
//! datapath is [`crate::compile`]'s.

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
    /// A rule as it is asked for. Absent fields take the defaults that [`Defaults`] and the mode give.
    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(from = "RuleSpecForm")]
    pub struct RuleSpec from asked #[derive(Deserialize, JsonSchema)] RuleSpecForm {
        /// Its name; made up if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub id: Option<RuleId>,
        /// The remotes.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub targets: Vec<Target>,
        /// A file with more of them (see [`crate::lists`]). Whoever reads the text that the rule is
        /// written in reads the file as well, by [`crate::lists::List::take`], and then there is none: a
        /// rule that still names one is refused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub targets_file: Option<PathBuf>,
        /// Parts of the targets that the rule leaves alone.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub except: Vec<Target>,
        /// What is done.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub mode: Option<Mode>,
        @match {
            #[serde(flatten, serialize_with = "Match::serialize_narrowing")]
            #[schemars(with = "Match")]
            pub matching
        }
        /// What becomes of established flows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub established: Option<Established>,
        /// What becomes of blocked flows at the end.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub on_lift: Option<OnLift>,
        /// How long the rule lives.
        #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
        pub lifetime: Option<Lifetime>,
        /// When the rule ends.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<String>", extend("format" = "date-time"))]
        pub expires: Option<Timestamp>,
        /// How long the rule lives unless it is confirmed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub confirm_within: Option<Lifetime>,
        /// Why it is there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub comment: Option<String>,
    }
}

/// What the configuration's `defaults:` gives to rules that leave it out.
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
    /// `targets` and `except` are sorted and free of duplicates; equal rules mean the same. Copies share
    /// their targets.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
    #[serde(from = "RuleForm")]
    pub struct Rule from whole #[derive(Deserialize, JsonSchema)] RuleForm {
        /// Its name.
        pub id: RuleId,
        /// The remotes.
        pub targets: Targets,
        /// Parts of the targets that the rule leaves alone, carve-outs included.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub except: Vec<Target>,
        /// What is done.
        pub mode: Mode,
        @match {
            #[serde(flatten)]
            pub matching
        }
        /// What becomes of established flows.
        pub established: Established,
        /// What becomes of blocked flows at the end.
        pub on_lift: OnLift,
        /// When the rule ends (wall clock; the datapath keeps boot time).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<String>", extend("format" = "date-time"))]
        pub expires: Option<Timestamp>,
        /// That it is yet to be confirmed: `expires` is when it ends if it is not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub unconfirmed: Option<Unconfirmed>,
        /// Why it is there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub comment: Option<String>,
    }
}

/// What becomes of a rule once it is confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unconfirmed {
    /// When it ends then (wall clock).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub expires: Option<Timestamp>,
}

impl RuleSpec {
    /// Makes every default explicit and checks what only the whole rule can tell.
    ///
    /// `id` names the rule if the spec does not; `now` is the wall clock.
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
    /// Checks what [`RuleSpec::resolve`] checks, for a rule that came another way than through
    /// it. A deadline in the past is none of its business.
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

    /// Whether it kills them before it blocks: its mode would drop the RST that ends a flow.
    #[must_use]
    pub fn kills_first(&self) -> bool {
        self.kills() && !self.mode.ends_flows()
    }

    /// Whether its flows are killed when it ends. A `reset` rule leaves none to kill.
    #[must_use]
    pub fn lifts_by_reset(&self) -> bool {
        self.on_lift == OnLift::Reset && self.mode.blocks() && !self.mode.ends_flows()
    }

    /// Whether two rules do the same to packets: all but the id, the comment and the deadline.
    #[must_use]
    pub fn same_effect(&self, other: &Self) -> bool {
        self.same_action(other) && self.except == other.except && self.targets == other.targets
    }

    /// Whether two rules do the same to packets of a remote that both cover.
    #[must_use]
    pub fn same_action(&self, other: &Self) -> bool {
        // Fields are named one by one, so that the compiler finds this when one is added.
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
    /// The specification that resolves to the rule, whatever the defaults; to it as it is now, if it
    /// is yet to be confirmed.
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
