//! What a rule is: its parts, how each is read from text, and how it is written back.
//!
//! Pure. A [`RuleSpec`] is what a person or a program asked for (YAML, JSON or flags, the same
//! fields everywhere); [`RuleSpec::resolve`] turns it into a [`Rule`], in which every default is
//! made explicit. Whether a rule is wise is [`crate::safety`]'s question, whether it fits the
//! datapath is [`crate::compile`]'s.

mod error;
mod parts;
mod schema;
mod target;
mod targets;
#[cfg(test)]
mod tests;
pub(crate) mod text;
mod words;

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

pub use error::RuleError;
pub use parts::{Lifetime, Ports, Protocol, RuleId};
pub(crate) use schema::ID_PATTERN;
pub use target::Target;
pub use targets::Targets;
pub use words::{Direction, Established, Mode, OnLift, Owner};

/// A rule as it is asked for. Absent fields take the defaults that [`Defaults`] and the mode give.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleSpec {
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
    /// Which way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// Which protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Ports, one of which either side's must be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Ports>,
    /// Ports, one of which the local side's must be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub local_ports: Vec<Ports>,
    /// Ports, one of which the remote's must be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remote_ports: Vec<Ports>,
    /// Addresses and prefixes of this host's side (its own, or behind it) to which the rule is
    /// limited; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub local: Vec<Target>,
    /// Devices (names or globs) to which the rule is limited; empty: every attached one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
    /// How many of a hundred packets (flows, for `reset`) are taken.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "percentage"
    )]
    #[schemars(range(min = 1, max = 100))]
    pub percent: Option<u64>,
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

/// Reads a percentage, so that whatever is none is refused in the same words.
fn percentage<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    struct Percentage;

    impl de::Visitor<'_> for Percentage {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number from 1 to 100")
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
            match number {
                1..=100 => Ok(number),
                _ => Err(E::custom(RuleError::Percent(number))),
            }
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<u64, E> {
            u64::try_from(number).map_or_else(|_| wrong(&number), |number| self.visit_u64(number))
        }

        fn visit_f64<E: de::Error>(self, number: f64) -> Result<u64, E> {
            wrong(&number)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
            wrong(&text)
        }
    }

    fn wrong<E: de::Error>(found: &dyn fmt::Debug) -> Result<u64, E> {
        Err(E::custom(format!(
            "percent {found:?} is not valid: a whole number from 1 to 100"
        )))
    }

    deserializer.deserialize_any(Percentage).map(Some)
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

/// A rule with every default made explicit.
///
/// `targets` and `except` are sorted and free of duplicates; equal rules mean the same. Copies share
/// their targets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name.
    pub id: RuleId,
    /// The remotes.
    pub targets: Targets,
    /// Parts of the targets that the rule leaves alone, carve-outs included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<Target>,
    /// What is done.
    pub mode: Mode,
    /// Which way.
    pub direction: Direction,
    /// Which protocol.
    pub protocol: Protocol,
    /// Ports, one of which either side's must be; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Ports>,
    /// Ports, one of which the local side's must be; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub local_ports: Vec<Ports>,
    /// Ports, one of which the remote's must be; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remote_ports: Vec<Ports>,
    /// Addresses and prefixes of this host's side; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub local: Vec<Target>,
    /// Devices (names or globs); empty: every attached one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
    /// How many of a hundred packets (flows, for `reset`) are taken: 1 to 100.
    pub percent: u8,
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
        let percent = match self.percent.unwrap_or(100) {
            percent @ 1..=100 => u8::try_from(percent).unwrap_or(100),
            percent => return Err(RuleError::Percent(percent)),
        };
        let protocol = self.protocol.unwrap_or_default();
        let has_ports =
            !(self.ports.is_empty() && self.local_ports.is_empty() && self.remote_ports.is_empty());
        if has_ports && !matches!(protocol, Protocol::Any | Protocol::Tcp | Protocol::Udp) {
            return Err(RuleError::PortsWithout(protocol));
        }
        for name in &self.interfaces {
            check_interface(name)?;
        }
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
        let established = resolve_established(self.established, mode, percent)?;
        let on_lift = resolve_on_lift(self.on_lift, mode, percent)?;
        Ok(Rule {
            id: self.id.unwrap_or_else(id),
            targets: self.targets.into(),
            except: sorted(self.except),
            mode,
            direction: self.direction.unwrap_or(Direction::Both),
            protocol,
            ports: sorted(self.ports),
            local_ports: sorted(self.local_ports),
            remote_ports: sorted(self.remote_ports),
            local: sorted(self.local),
            interfaces: sorted(self.interfaces),
            percent,
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
        self.interfaces.is_empty() || self.interfaces.iter().any(matches)
    }

    /// Whether its flows are killed when it ends. A `reset` rule leaves none to kill.
    #[must_use]
    pub fn lifts_by_reset(&self) -> bool {
        self.on_lift == OnLift::Reset && matches!(self.mode, Mode::Drop | Mode::Reject)
    }

    /// Whether two rules do the same to packets: all but the id, the comment and the deadline.
    #[must_use]
    pub fn same_effect(&self, other: &Self) -> bool {
        // Named one by one, so that a field that is added cannot be forgotten here; and compared
        // in place, as a rule may have a million targets.
        let Self {
            id: _,
            targets,
            except,
            mode,
            direction,
            protocol,
            ports,
            local_ports,
            remote_ports,
            local,
            interfaces,
            percent,
            established,
            on_lift,
            expires: _,
            unconfirmed: _,
            comment: _,
        } = self;
        *mode == other.mode
            && *direction == other.direction
            && *protocol == other.protocol
            && *percent == other.percent
            && *established == other.established
            && *on_lift == other.on_lift
            && *ports == other.ports
            && *local_ports == other.local_ports
            && *remote_ports == other.remote_ports
            && *local == other.local
            && *interfaces == other.interfaces
            && *except == other.except
            && *targets == other.targets
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
            direction: Some(rule.direction),
            protocol: Some(rule.protocol),
            ports: rule.ports,
            local_ports: rule.local_ports,
            remote_ports: rule.remote_ports,
            local: rule.local,
            interfaces: rule.interfaces,
            percent: Some(rule.percent.into()),
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
    percent: u8,
) -> Result<Established, RuleError> {
    let kill = |with: String, why| RuleError::Contradiction {
        option: "established: kill",
        with,
        why,
    };
    match asked {
        Some(Established::Kill) if mode == Mode::Audit => {
            Err(kill("mode: audit".into(), "audit only counts"))
        }
        Some(Established::Kill) if percent < 100 => Err(kill(
            format!("percent: {percent}"),
            "a flow that only loses packets is to live",
        )),
        Some(asked) => Ok(asked),
        None if mode == Mode::Reset && percent == 100 => Ok(Established::Kill),
        None => Ok(Established::Keep),
    }
}

fn resolve_on_lift(asked: Option<OnLift>, mode: Mode, percent: u8) -> Result<OnLift, RuleError> {
    let reset = |with: String, why| RuleError::Contradiction {
        option: "on_lift: reset",
        with,
        why,
    };
    match asked {
        Some(OnLift::Reset) if mode == Mode::Audit => {
            Err(reset("mode: audit".into(), "audit only counts"))
        }
        Some(OnLift::Reset) if percent < 100 => Err(reset(
            format!("percent: {percent}"),
            "a flow that only loses packets is to live",
        )),
        asked => Ok(asked.unwrap_or(OnLift::Resume)),
    }
}

/// Whether a device has the name that a pattern is, or one that it matches as a glob.
#[must_use]
pub fn interface_matches(pattern: &str, device: &str) -> bool {
    pattern == device
        || globset::Glob::new(pattern).is_ok_and(|glob| glob.compile_matcher().is_match(device))
}

/// Device names follow `dev_valid_name` of the kernel's `net/core/dev.c`.
pub(crate) fn check_interface(name: &str) -> Result<(), RuleError> {
    let bad = name.is_empty()
        || name == "."
        || name == ".."
        || name
            .chars()
            .any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    let glob = name.contains(['*', '?', '[', '{']);
    if bad || (!glob && name.len() > 15) || (glob && globset::Glob::new(name).is_err()) {
        return Err(RuleError::Interface(name.to_owned()));
    }
    Ok(())
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort_unstable();
    list.dedup();
    list
}
