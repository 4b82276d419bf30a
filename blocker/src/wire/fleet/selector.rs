//! Which hosts a rule is for: names, labels, globs, lists. Pure.
//!
//! | written | matches |
//! |---|---|
//! | `*` | every host |
//! | `web1,web2`, `web*` | hosts with any of these names |
//! | `role=web` | hosts with that label |
//! | `role=web,role=db` | hosts with either: values of one label are alternatives |
//! | `role=web,zone=a*` | hosts with both: different labels must all match |
//! | `web*,!web3`, `role=web,zone!=b` | hosts that match the first, except those that match the second |
//!
//! A label that a host lacks is not matched by any pattern, `*` included, and so is never excluded.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use globset::{Glob, GlobMatcher};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest name, label or pattern, in bytes: a DNS name (RFC 1035, 2.3.4) fits.
const LONGEST: usize = 253;

/// A host's name and labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Which hosts.
#[derive(Debug, Clone)]
pub struct Selector {
    text: String,
    /// Patterns by key; [`NAME`] is the key of the name. For each key one pattern must match.
    wanted: BTreeMap<String, Vec<GlobMatcher>>,
    /// None of them may match.
    excluded: Vec<(String, GlobMatcher)>,
}

/// Why a selector is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// It is empty.
    #[error("an empty selector matches nothing: write * for every host, web1, web* or role=web")]
    Empty,
    /// Nothing stands between two commas, or at an end.
    #[error("selector {0:?} has nothing between two commas, or at an end: leave the comma out")]
    Gap(String),
    /// It only excludes hosts.
    #[error(
        "selector {0:?} says only which hosts are not meant: write *,{0} for every host but those"
    )]
    OnlyExcludes(String),
    /// A pattern is not valid.
    #[error(
        "{0:?} is not valid in a selector: letters, digits, '.', '_', '-', '/' and ':', and the globs *, ? and [a-c]"
    )]
    Pattern(String),
    /// The key of a label is not valid.
    #[error("{0:?} is no label: letters, digits, '.', '_', '-' and '/', without globs")]
    Key(String),
}

/// The key of the host's name.
const NAME: &str = "name";

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if text.trim().is_empty() {
            return Err(SelectorError::Empty);
        }
        let mut terms = Vec::new();
        let mut wanted: BTreeMap<String, Vec<GlobMatcher>> = BTreeMap::new();
        let mut excluded = Vec::new();
        for term in text.split(',').map(str::trim) {
            if term.is_empty() {
                return Err(SelectorError::Gap(text.to_owned()));
            }
            let (key, not, glob) = match term.split_once('=') {
                Some((key, glob)) => match key.strip_suffix('!') {
                    Some(key) => (key, true, glob),
                    None => (key, false, glob),
                },
                None => match term.strip_prefix('!') {
                    Some(glob) => (NAME, true, glob),
                    None => (NAME, false, term),
                },
            };
            label_key(key).map_err(|_| SelectorError::Key(key.to_owned()))?;
            let matcher = pattern(glob)?;
            if not {
                excluded.push((key.to_owned(), matcher));
            } else {
                wanted.entry(key.to_owned()).or_default().push(matcher);
            }
            terms.push(term);
        }
        let text = terms.join(",");
        if wanted.is_empty() {
            return Err(SelectorError::OnlyExcludes(text));
        }
        Ok(Self {
            text,
            wanted,
            excluded,
        })
    }
}

impl Selector {
    /// Whether a host matches.
    #[must_use]
    pub fn matches(&self, host: &Identity) -> bool {
        let value = |key: &str| match key {
            NAME => Some(&host.name),
            _ => host.labels.get(key),
        };
        let wanted = self.wanted.iter().all(|(key, globs)| {
            value(key).is_some_and(|value| globs.iter().any(|glob| glob.is_match(value)))
        });
        let excluded = self
            .excluded
            .iter()
            .any(|(key, glob)| value(key).is_some_and(|value| glob.is_match(value)));
        wanted && !excluded
    }
}

/// A glob of names or of a label's values.
fn pattern(text: &str) -> Result<GlobMatcher, SelectorError> {
    let bad = || SelectorError::Pattern(text.to_owned());
    let known = |b: u8| b.is_ascii_alphanumeric() || b"._-/:*?[]!^".contains(&b);
    if text.is_empty() || text.len() > LONGEST || text.starts_with('!') || !text.bytes().all(known)
    {
        return Err(bad());
    }
    Glob::new(text)
        .map(|glob| glob.compile_matcher())
        .map_err(|_| bad())
}

/// Whether a text may be the key of a label.
///
/// # Errors
/// What is wrong with it, and what is expected.
pub fn label_key(text: &str) -> Result<(), String> {
    word(text, b"._-/")
}

/// Whether a text may be the value of a label, or a host's name.
///
/// # Errors
/// What is wrong with it, and what is expected.
pub fn label_value(text: &str) -> Result<(), String> {
    word(text, b"._-")
}

fn word(text: &str, also: &[u8]) -> Result<(), String> {
    let first = text
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric());
    let known = |b: u8| b.is_ascii_alphanumeric() || also.contains(&b);
    if first && text.len() <= LONGEST && text.bytes().all(known) {
        return Ok(());
    }
    let also: Vec<_> = also.iter().map(|b| format!("'{}'", *b as char)).collect();
    Err(format!(
        "{text:?} is not valid: 1 to {LONGEST} letters, digits, {}, beginning with a letter or a digit",
        also.join(", ")
    ))
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Selector {}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host(name: &str, labels: &[(&str, &str)]) -> Identity {
        let labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        Identity {
            name: name.into(),
            labels: labels.collect(),
        }
    }

    #[test]
    fn a_selector_means_what_its_documentation_says() {
        let web1 = host("web1", &[("role", "web"), ("zone", "a1")]);
        let web3 = host("web3", &[("role", "web"), ("zone", "b1")]);
        let db1 = host("db1", &[("role", "db")]);
        for (selector, meant) in [
            ("*", [true, true, true]),
            ("web1", [true, false, false]),
            ("web1, db1", [true, false, true]),
            ("web*", [true, true, false]),
            ("name=web[12]", [true, false, false]),
            ("role=web", [true, true, false]),
            ("role=web,role=db", [true, true, true]),
            ("role=*,zone=a*", [true, false, false]),
            ("zone=*", [true, true, false]),
            ("web*,!web3", [true, false, false]),
            ("role=*,zone!=b*", [true, false, true]),
            ("db1,role=web", [false, false, false]),
            ("WEB1", [false, false, false]),
        ] {
            let parsed: Selector = selector.parse().unwrap();
            let found = [&web1, &web3, &db1].map(|host| parsed.matches(host));
            assert_eq!(found, meant, "{selector}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused_with_the_way_out() {
        for (text, said) in [
            ("", "write * for every host"),
            (" ", "write * for every host"),
            ("a,,b", "nothing between two commas"),
            ("a,", "nothing between two commas"),
            ("!a", "write *,!a"),
            ("role!=web", "write *,role!=web"),
            ("a b", "\"a b\" is not valid"),
            ("role=", "\"\" is not valid"),
            ("role={a}", "\"{a}\" is not valid"),
            ("r*le=web", "\"r*le\" is no label"),
            ("=web", "\"\" is no label"),
            ("web[", "\"web[\" is not valid"),
            ("!!a", "\"!a\" is not valid"),
            ("a;reboot", "is not valid"),
        ] {
            let error = text.parse::<Selector>().unwrap_err().to_string();
            assert!(error.contains(said), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_read_is_written_the_same(text in "[ -~]{0,24}") {
            if let Ok(selector) = text.parse::<Selector>() {
                let again: Selector = selector.to_string().parse().unwrap();
                prop_assert_eq!(&again, &selector);
                let json = serde_json::to_string(&selector).unwrap();
                prop_assert_eq!(&serde_json::from_str::<Selector>(&json).unwrap(), &selector);
            }
        }

        #[test]
        fn a_name_is_matched_by_itself_and_excluded_by_itself(name in "[a-z0-9][a-zA-Z0-9._-]{0,20}") {
            label_value(&name).unwrap();
            let host = host(&name, &[]);
            prop_assert!(name.parse::<Selector>().unwrap().matches(&host));
            let others: Selector = format!("*,!{name}").parse().unwrap();
            prop_assert!(!others.matches(&host));
        }

        #[test]
        fn narrowing_never_widens(
            name in "[a-c]{1,3}",
            zone in "[a-c]{1,2}",
            glob in "[a-c*?]{1,3}",
            other in "[a-c*?]{1,3}",
        ) {
            let host = host(&name, &[("zone", &zone)]);
            let wide: Selector = glob.parse().unwrap();
            for narrow in [format!("{glob},zone={other}"), format!("{glob},!{other}")] {
                let narrow: Selector = narrow.parse().unwrap();
                prop_assert!(!narrow.matches(&host) || wide.matches(&host));
            }
            let wider: Selector = format!("{glob},{other}").parse().unwrap();
            prop_assert!(wider.matches(&host) || !wide.matches(&host));
        }
    }
}
