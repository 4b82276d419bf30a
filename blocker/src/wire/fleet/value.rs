//! The values in etcd: a rule for many hosts, or a question to them. Pure: time is an argument.
//!
//! A value has the deadline, because an etcd lease may live longer, and the time at which it was written
//! by the writer's clock, so that a host can compare clocks.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::selector::{Identity, Selector};
use crate::rule::{Defaults, Rule, RuleError, RuleId, RuleSpec};

/// Version of the format. A host refuses a value of another version.
pub const VERSION: u64 = 1;
/// The largest value that is written, in bytes: etcd takes requests of 1.5 MiB
/// (`--max-request-bytes`), key and all.
pub const LARGEST: usize = 1_400_000;

/// A rule for many hosts, `PREFIX/rules/ID`, or a question what it would do, `PREFIX/asks/ID`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Value {
    /// [`VERSION`].
    pub version: u64,
    /// The hosts.
    pub hosts: Selector,
    /// The rule. `expires` is its deadline. It has no `id`, which is in the key, and no time relative to
    /// when it is read.
    pub rule: RuleSpec,
    /// When it was written, by the writer's clock.
    pub written: Timestamp,
    /// Who wrote it, as the writer says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Whether it ends with its writer (`blockctl fleet during`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// Whether refusals are overridden where that is allowed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// Why a value is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The last part of the key is no id.
    #[error("the key's last part is no rule's id: {0}")]
    Key(RuleError),
    /// It is not JSON, or not in this format.
    #[error("the value is not valid: {0}")]
    Form(String),
    /// It has another version.
    #[error(
        "the value has version {0}, this host knows version {VERSION}: upgrade blocker here, or write it with an older blockctl"
    )]
    Version(u64),
    /// The rule is wrong.
    #[error("the rule is not valid: {0}")]
    Rule(#[from] RuleError),
    /// The rule has a field that a stored one must not have.
    #[error("the rule is not valid: `{0}` has no meaning in a stored rule")]
    Relative(&'static str),
    /// It ended before it was written.
    #[error("the rule ends at {expires}, before it was written at {written}")]
    Backwards {
        /// Its deadline.
        expires: Timestamp,
        /// When it was written.
        written: Timestamp,
    },
    /// It is too large for etcd.
    #[error(
        "the rule takes {0} bytes, and etcd takes {LARGEST} at most: spread its targets over several rules"
    )]
    Large(usize),
}

/// The part that is read first, in every version.
#[derive(Deserialize)]
struct Header {
    version: u64,
}

impl Value {
    /// Reads a value.
    ///
    /// # Errors
    /// What is wrong with it. A deadline that has passed is no error.
    pub fn parse(bytes: &[u8]) -> Result<Self, ValueError> {
        let form = |error: serde_json::Error| ValueError::Form(error.to_string());
        let Header { version } = serde_json::from_slice(bytes).map_err(form)?;
        if version != VERSION {
            return Err(ValueError::Version(version));
        }
        let value: Self = serde_json::from_slice(bytes).map_err(form)?;
        value.check()?;
        Ok(value)
    }

    /// Writes a value.
    ///
    /// # Errors
    /// What is wrong with it: only valid values are written.
    pub fn text(&self) -> Result<String, ValueError> {
        self.check()?;
        let text = serde_json::to_string(self).map_err(|e| ValueError::Form(e.to_string()))?;
        if text.len() > LARGEST {
            return Err(ValueError::Large(text.len()));
        }
        Ok(text)
    }

    fn check(&self) -> Result<(), ValueError> {
        for (there, what) in [
            (self.rule.id.is_some(), "id"),
            (self.rule.lifetime.is_some(), "for"),
            (self.rule.confirm_within.is_some(), "confirm_within"),
        ] {
            if there {
                return Err(ValueError::Relative(what));
            }
        }
        if let Some(expires) = self.rule.expires.filter(|expires| *expires <= self.written) {
            return Err(ValueError::Backwards {
                expires,
                written: self.written,
            });
        }
        self.rule(&placeholder()).map(drop)
    }

    /// The rule with every default explicit. It is the same on every host: `defaults` do not apply.
    ///
    /// # Errors
    /// What is wrong with it; a value that was read gives none.
    pub fn rule(&self, id: &RuleId) -> Result<Rule, ValueError> {
        let id = id.clone();
        let spec = self.rule.clone();
        // The deadline is checked by the caller, who has a clock.
        Ok(spec.resolve(|| id, Defaults::default(), Timestamp::MIN)?)
    }

    /// Whether the selector matches a host.
    #[must_use]
    pub fn is_for(&self, host: &Identity) -> bool {
        self.hosts.matches(host)
    }

    /// When the rule ends on a host that received it at `seen`, by the host's clock: at its deadline, and
    /// no later than its whole duration after `seen`, so that a slow clock does not lengthen it.
    #[must_use]
    pub fn until(&self, seen: Timestamp) -> Option<Timestamp> {
        let expires = self.rule.expires?;
        let whole = expires.duration_since(self.written);
        Some(
            seen.checked_add(whole)
                .map_or(expires, |end| end.min(expires)),
        )
    }
}

/// Reads the id from `tail`, the last part of a key `PREFIX/rules/ID`.
///
/// # Errors
/// It is not an id.
pub fn id(tail: &str) -> Result<RuleId, ValueError> {
    tail.parse().map_err(ValueError::Key)
}

fn placeholder() -> RuleId {
    "unnamed".parse().expect("\"unnamed\" follows the grammar")
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"{"version":1,"hosts":"role=web","written":"2026-06-01T00:00:00Z",
        "rule":{"targets":["10.0.0.1"],"mode":"reset","expires":"2026-06-01T00:05:00Z"}}"#;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_value_is_read_and_written_the_same() {
        let value = Value::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(
            Value::parse(value.text().unwrap().as_bytes()),
            Ok(value.clone())
        );
        let rule = value.rule(&id("dev01").unwrap()).unwrap();
        assert_eq!(rule.id.as_str(), "dev01");
        assert!(rule.kills());
        assert_eq!(rule.expires, Some(at("2026-06-01T00:05:00Z")));
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (from, to, said) in [
            ("{\"version\":1", "[", "not valid"),
            ("\"version\":1,", "", "missing field `version`"),
            (
                "\"version\":1",
                "\"version\":2,\"news\":1",
                "version 2, this host knows version 1",
            ),
            ("\"rule\"", "\"rulez\":1,\"rule\"", "unknown field `rulez`"),
            ("10.0.0.1", "10.0.0.256", "neither an address nor a prefix"),
            ("[\"10.0.0.1\"]", "[]", "at least one target"),
            ("role=web", "", "write * for every host"),
            (
                "\"mode\"",
                "\"for\":\"5m\",\"mode\"",
                "`for` has no meaning",
            ),
            ("\"mode\"", "\"id\":\"x\",\"mode\"", "`id` has no meaning"),
            (
                "\"mode\"",
                "\"confirm_within\":\"5m\",\"mode\"",
                "`confirm_within` has no meaning",
            ),
            (
                "\"mode\"",
                "\"targets_file\":\"/x\",\"mode\"",
                "targets_file",
            ),
            (
                "2026-06-01T00:05",
                "2026-06-01T00:00",
                "before it was written",
            ),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from}");
            let error = Value::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(said), "{said}: {error}");
        }
        assert!(id("Dev01").is_err() && id("").is_err());
    }

    #[test]
    fn a_value_that_etcd_would_not_take_is_not_written() {
        let mut value = Value::parse(GOOD.as_bytes()).unwrap();
        let targets = (0..100_000_u32).map(|n| std::net::Ipv4Addr::from(0x0a00_0000 + n));
        value.rule.targets = targets.map(|a| a.to_string().parse().unwrap()).collect();
        let error = value.text().unwrap_err().to_string();
        assert!(error.contains("spread its targets"), "{error}");
    }

    #[test]
    fn a_clock_that_is_behind_does_not_lengthen_a_rule() {
        let value = Value::parse(GOOD.as_bytes()).unwrap();
        let expires = at("2026-06-01T00:05:00Z");
        assert_eq!(value.until(at("2026-06-01T00:00:01Z")), Some(expires));
        assert_eq!(value.until(at("2026-06-01T00:04:00Z")), Some(expires));
        assert_eq!(
            value.until(at("2026-05-31T23:00:00Z")),
            Some(at("2026-05-31T23:05:00Z"))
        );
        assert_eq!(value.until(at("2026-06-01T09:00:00Z")), Some(expires));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(Value::parse(&bytes).is_err());
        }

        #[test]
        fn no_rule_outlives_its_deadline_or_its_life(life in 1_i64..1_000_000, seen in -1_000_000_i64..1_000_000) {
            let mut value = Value::parse(GOOD.as_bytes()).unwrap();
            value.rule.expires = Some(value.written + SignedDuration::from_secs(life));
            let seen = value.written + SignedDuration::from_secs(seen);
            let until = value.until(seen).unwrap();
            prop_assert!(until <= value.rule.expires.unwrap());
            prop_assert!(until.duration_since(seen) <= SignedDuration::from_secs(life));
        }
    }
}
