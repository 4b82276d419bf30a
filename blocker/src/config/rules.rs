//! The configuration's rules: resolved, named, and free of duplicates.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde_yaml::Spanned;

use super::error::Source;
use super::{Config, ConfigError};
use crate::feeds::feed::Feed;
use crate::lists::{Invalid, List};
use crate::rule::{Defaults, Rule, RuleId, RuleSpec};

impl Config {
    /// The rules of the configuration that are in force at `now` (wall clock): all but those
    /// whose `expires` has passed.
    ///
    /// A rule without an id gets one derived from its effect, so that a reload finds the same rule and
    /// its counters continue.
    ///
    /// # Errors
    /// A rule is not valid. None for a configuration that was parsed.
    pub fn rules(&self, now: Timestamp) -> Result<Vec<Rule>, ConfigError> {
        let mut rules = resolved(&self.rules, self.defaults)?;
        rules.retain(|rule| !past(rule, now));
        Ok(rules)
    }

    /// The rules that [`Config::rules`] leaves out because they have expired.
    ///
    /// # Errors
    /// As [`Config::rules`].
    pub fn expired_rules(&self, now: Timestamp) -> Result<Vec<Rule>, ConfigError> {
        let mut rules = resolved(&self.rules, self.defaults)?;
        rules.retain(|rule| past(rule, now));
        Ok(rules)
    }
}

fn past(rule: &Rule, now: Timestamp) -> bool {
    rule.expires.is_some_and(|expires| expires <= now)
}

/// Every rule with its defaults made explicit, expired ones included.
pub(super) fn resolved(specs: &[RuleSpec], defaults: Defaults) -> Result<Vec<Rule>, ConfigError> {
    specs
        .iter()
        .enumerate()
        .map(|(index, spec)| {
            resolve(spec, defaults).map_err(|source| ConfigError::Rule {
                number: index + 1,
                source,
            })
        })
        .collect()
}

/// Puts the targets of the lists that rules name into the rules, and logs what is notable about them. A
/// line that is not valid makes the configuration invalid.
pub(super) fn read_lists(
    specs: &mut [Spanned<RuleSpec>],
    directory: &Path,
    source: Source<'_>,
) -> Result<(), ConfigError> {
    for spec in specs {
        let place = spec.referenced;
        let list = List::take(&mut spec.value, directory, Invalid::Refuse)
            .map_err(|error| source.error(place, format!("targets_file: {}", error.brief())))?;
        if let Some(list) = list {
            tracing::info!("target list {}", list.summary());
            if let Some(warning) = list.warning() {
                tracing::warn!("target list {warning}");
            }
        }
    }
    Ok(())
}

/// Checks each rule by [`RuleSpec::resolve`], and that ids are unique; errors name the position.
pub(super) fn check(
    specs: &[Spanned<RuleSpec>],
    defaults: Defaults,
    feeds: &[Feed],
    source: Source<'_>,
) -> Result<(), ConfigError> {
    let mut seen: HashMap<RuleId, u64> = HashMap::new();
    for spec in specs {
        let place = spec.referenced;
        if spec.value.lifetime.is_some() {
            return Err(source.error(
                place,
                "a rule of the configuration cannot end after a time ('for'), since every reload would start it again: write 'expires' with a date",
            ));
        }
        if spec.value.confirm_within.is_some() {
            return Err(source.error(
                place,
                "a rule of the configuration cannot be on trial ('confirm_within'): leave it out, or add the rule with blockctl",
            ));
        }
        let rule = resolve(&spec.value, defaults)
            .map_err(|error| source.error(place, error.to_string()))?;
        if let Some(feed) = feeds.iter().find(|feed| feed.name.has(&rule.id)) {
            let message = format!(
                "the id {} is the feed {}'s: choose another id",
                rule.id, feed.name
            );
            return Err(source.error(place, message));
        }
        let Some(first) = seen.insert(rule.id.clone(), place.line()) else {
            continue;
        };
        let message = if spec.value.id.is_some() {
            format!(
                "the id {} is taken by the rule at line {first}: every rule needs an id of its own",
                rule.id
            )
        } else {
            format!("the rule does the same as the one at line {first}: remove one of them")
        };
        return Err(source.error(place, message));
    }
    Ok(())
}

/// A deadline in the past is no error: the file may contain rules that have expired.
fn resolve(spec: &RuleSpec, defaults: Defaults) -> Result<Rule, crate::rule::RuleError> {
    let unnamed = spec.id.is_none();
    let placeholder = || {
        "config"
            .parse()
            .expect("\"config\" follows the rule for ids")
    };
    let mut rule = spec
        .clone()
        .resolve(placeholder, defaults, Timestamp::MIN)?;
    if unnamed {
        rule.id = id_of(&rule);
    }
    Ok(rule)
}

/// An id derived from the effect of a rule: not from the comment, the deadline or the order of targets.
fn id_of(rule: &Rule) -> RuleId {
    let bare = Rule {
        comment: None,
        expires: None,
        ..rule.clone()
    };
    let mut hash = Fnv1a::default();
    serde_json::to_writer(&mut hash, &bare)
        .expect("a rule has no part that JSON cannot say, and the hash takes every byte");
    format!("config-{:016x}", hash.0)
        .parse()
        .expect("a word, a hyphen and hexadecimal digits follow the rule for ids")
}

/// FNV-1a, 64 bits (draft-eastlake-fnv). Unlike the standard library's hash it does not change between
/// releases.
struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl io::Write for Fnv1a {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
