//! Reading feeds from the configuration: what is common to all sources.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_yaml::{Location, Spanned};

use super::super::feed::{Feed, FeedName};
use super::super::fetch::{self, WebAddress};
use super::super::list::ListChecks;
use super::{Form, Kind};
use crate::lists::Invalid;
use crate::rule::{Defaults, Lifetime};
use crate::yaml::{self, Fault};

/// The shortest and the longest interval and time-out, in seconds.
const SECOND: i64 = 1;
const WEEK: i64 = 7 * 24 * 3600;

/// Reads feeds; relative paths in them start at `directory`.
///
/// # Errors
/// The first thing that is wrong, and where.
pub(crate) fn read(
    forms: Vec<Spanned<Form>>,
    defaults: Defaults,
    directory: &Path,
    text: yaml::Source<'_>,
) -> Result<Vec<Feed>, Fault> {
    let mut seen: HashMap<FeedName, u64> = HashMap::new();
    let mut feeds = Vec::with_capacity(forms.len());
    for form in forms {
        let at = form.referenced;
        let reading = Reading {
            directory,
            text,
            kind: form.value.kind,
            at,
        };
        let feed = reading.feed(form.value, defaults)?;
        if let Some(first) = seen.insert(feed.name.clone(), at.line()) {
            return Err(text.fault(
                at,
                format!(
                    "the name {} is taken by the feed at line {first}: every feed needs a name of its own",
                    feed.name
                ),
            ));
        }
        feeds.push(feed);
    }
    Ok(feeds)
}

/// What one feed is read with.
pub(super) struct Reading<'a> {
    directory: &'a Path,
    text: yaml::Source<'a>,
    kind: Kind,
    /// Where the feed stands.
    at: Location,
}

impl Reading<'_> {
    fn feed(&self, mut form: Form, defaults: Defaults) -> Result<Feed, Fault> {
        let name = FeedName::parse(&form.name.value)
            .map_err(|error| self.text.fault(form.name.referenced, error))?;
        self.refuse_foreign_keys(&form)?;
        let max_bytes = match &form.max_bytes {
            Some(bytes) => self.number("max_bytes", bytes, 1..=1 << 30)?,
            None => 64 << 20,
        };
        let (source, mode, private) = form.source(self, defaults)?;
        let feed = Feed {
            name,
            source,
            private: form.private.unwrap_or(private),
            max_bytes,
            rule: form.rule(mode),
        };
        feed.check(defaults)
            .map_err(|error| self.text.fault(self.at, error))?;
        Ok(feed)
    }

    fn refuse_foreign_keys(&self, form: &Form) -> Result<(), Fault> {
        for (key, at, kinds) in form.keys() {
            let Some(at) = at.filter(|_| !kinds.contains(&self.kind)) else {
                continue;
            };
            let whose: Vec<&str> = kinds.iter().map(|kind| kind.word()).collect();
            let hint = match key {
                "mode" => ": say it by type, as in types: {ban: drop}",
                _ => "",
            };
            let message = format!(
                "{key:?} is a key of feeds of type {}, and this one's type is {}{hint}",
                whose.join(" and "),
                self.kind.word()
            );
            return Err(self.text.fault(at, message));
        }
        Ok(())
    }

    /// The value of a key that the source needs.
    pub(super) fn needed<T>(&self, key: &str, value: Option<T>) -> Result<T, Fault> {
        value.ok_or_else(|| {
            let kind = self.kind.word();
            let message = format!("the key {key:?} is missing here: a feed of type {kind} has it");
            self.text.fault(self.at, message)
        })
    }

    /// The keys of every list.
    pub(super) fn list_checks(&self, form: &Form) -> Result<ListChecks, Fault> {
        let invalid = form.invalid.as_ref();
        Ok(ListChecks {
            invalid: invalid.map_or(Invalid::Refuse, |invalid| invalid.value),
            shrink: match &form.shrink {
                Some(shrink) => self.number("shrink", shrink, 0..=100)? as u8,
                None => 50,
            },
        })
    }

    fn number(
        &self,
        key: &str,
        number: &Spanned<u64>,
        range: RangeInclusive<u64>,
    ) -> Result<u64, Fault> {
        if range.contains(&number.value) {
            return Ok(number.value);
        }
        let message = format!(
            "{key} {} is not valid: expected a whole number from {} to {}",
            number.value,
            range.start(),
            range.end()
        );
        Err(self.text.fault(number.referenced, message))
    }

    /// `url`.
    pub(super) fn address(&self, url: Option<Spanned<String>>) -> Result<WebAddress, Fault> {
        let url = self.needed("url", url)?;
        WebAddress::parse(&url.value).map_err(|error| self.text.fault(url.referenced, error))
    }

    /// `interval` or `timeout`.
    pub(super) fn span(
        &self,
        key: &str,
        value: Option<Spanned<Lifetime>>,
        default: &str,
    ) -> Result<Lifetime, Fault> {
        let (span, at) = match value {
            Some(value) => (value.value, value.referenced),
            None => {
                let default = default
                    .parse()
                    .map_err(|error| self.text.fault(self.at, format!("{error}")))?;
                (default, self.at)
            }
        };
        if (SECOND..=WEEK).contains(&span.duration().as_secs()) {
            Ok(span)
        } else {
            let message = format!("{key} {span} is not valid: expected 1s to 7d");
            Err(self.text.fault(at, message))
        }
    }

    /// A path, relative to the configuration's directory.
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        self.directory.join(path)
    }

    /// A file of the configuration, which is tried with `check`.
    pub(super) fn file<T>(
        &self,
        path: &Spanned<PathBuf>,
        check: impl FnOnce(&Path) -> Result<T, String>,
    ) -> Result<PathBuf, Fault> {
        let file = self.path(&path.value);
        check(&file).map_err(|error| self.text.fault(path.referenced, error))?;
        Ok(file)
    }

    /// `ca`.
    pub(super) fn certificates(
        &self,
        path: Option<Spanned<PathBuf>>,
    ) -> Result<Option<PathBuf>, Fault> {
        path.map(|path| self.file(&path, fetch::read_certificates))
            .transpose()
    }

    /// A list or mapping that must not be empty.
    pub(super) fn several<T>(
        &self,
        value: Option<Spanned<T>>,
        default: T,
        is_empty: impl FnOnce(&T) -> bool,
        message: &str,
    ) -> Result<T, Fault> {
        match value {
            None => Ok(default),
            Some(value) if is_empty(&value.value) => {
                Err(self.text.fault(value.referenced, message))
            }
            Some(value) => Ok(value.value),
        }
    }
}
