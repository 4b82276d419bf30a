//! A feed as it is written: every key that any type has, and which type has which.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_yaml::{Location, Spanned};

use super::super::ConfigError;
use super::super::error::Source as Text;
use super::{Feed, FeedName, Invalid, ListChecks, Private, Scope, Source, WebAddress};
use crate::rule::{
    Defaults, Direction, Established, Lifetime, Mode, OnLift, Ports, Protocol, RuleSpec, Target,
};

/// The shortest and the longest interval and time-out, in seconds.
const SECOND: i64 = 1;
const WEEK: i64 = 7 * 24 * 3600;

/// The file's form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Form {
    name: Spanned<String>,
    #[serde(rename = "type")]
    kind: Kind,
    path: Option<Spanned<PathBuf>>,
    url: Option<Spanned<String>>,
    api_key_file: Option<Spanned<PathBuf>>,
    ca: Option<Spanned<PathBuf>>,
    interval: Option<Spanned<Lifetime>>,
    timeout: Option<Spanned<Lifetime>>,
    max_bytes: Option<Spanned<u64>>,
    shrink: Option<Spanned<u64>>,
    invalid: Option<Spanned<Invalid>>,
    scopes: Option<Spanned<Vec<Scope>>>,
    types: Option<Spanned<BTreeMap<String, Mode>>>,
    private: Option<Private>,
    mode: Option<Spanned<Mode>>,
    #[serde(default)]
    except: Vec<Target>,
    direction: Option<Direction>,
    protocol: Option<Protocol>,
    #[serde(default)]
    ports: Vec<Ports>,
    #[serde(default)]
    local_ports: Vec<Ports>,
    #[serde(default)]
    remote_ports: Vec<Ports>,
    #[serde(default)]
    local: Vec<Target>,
    #[serde(default)]
    interfaces: Vec<String>,
    percent: Option<u64>,
    established: Option<Established>,
    on_lift: Option<OnLift>,
    comment: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    File,
    Url,
    Crowdsec,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Url => "url",
            Self::Crowdsec => "crowdsec",
        }
    }
}

/// The feeds that forms come to, and what is wrong with the first that is wrong.
pub(in crate::config) fn read(
    forms: Vec<Spanned<Form>>,
    defaults: Defaults,
    directory: &Path,
    text: Text<'_>,
) -> Result<Vec<Feed>, ConfigError> {
    let mut seen: HashMap<FeedName, u64> = HashMap::new();
    let mut feeds = Vec::with_capacity(forms.len());
    for form in forms {
        let place = form.referenced;
        let reading = Reading {
            directory,
            text,
            kind: form.value.kind,
            place,
        };
        let feed = reading.feed(form.value, defaults)?;
        if let Some(first) = seen.insert(feed.name.clone(), place.line()) {
            return Err(text.error(
                place,
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
struct Reading<'a> {
    directory: &'a Path,
    text: Text<'a>,
    kind: Kind,
    place: Location,
}

impl Reading<'_> {
    fn feed(&self, form: Form, defaults: Defaults) -> Result<Feed, ConfigError> {
        let name = FeedName::parse(&form.name.value)
            .map_err(|error| self.text.error(form.name.referenced, error))?;
        self.foreign(&form)?;
        let list = self.checks(&form)?;
        let max_bytes = match &form.max_bytes {
            Some(bytes) => self.number("max_bytes", bytes, 1..=1 << 30)?,
            None => 64 << 20,
        };
        let source = match form.kind {
            Kind::File => Source::File {
                path: self.directory.join(self.needed("path", form.path)?.value),
                list,
            },
            Kind::Url => Source::Url {
                url: self.address(&self.needed("url", form.url)?)?,
                interval: self.span("interval", form.interval, "1h")?,
                timeout: self.span("timeout", form.timeout, "30s")?,
                ca: self.certificates(form.ca)?,
                list,
            },
            Kind::Crowdsec => Source::Crowdsec {
                url: self.address(&self.needed("url", form.url)?)?,
                api_key_file: self.key(&self.needed("api_key_file", form.api_key_file)?)?,
                interval: self.span("interval", form.interval, "10s")?,
                timeout: self.span("timeout", form.timeout, "30s")?,
                ca: self.certificates(form.ca)?,
                scopes: self.several(form.scopes, "scopes", vec![Scope::Ip, Scope::Range])?,
                types: self.types(form.types, defaults)?,
            },
        };
        let private = form.private.unwrap_or(match form.kind {
            Kind::Crowdsec => Private::Block,
            Kind::File | Kind::Url => Private::Skip,
        });
        let feed = Feed {
            name,
            source,
            private,
            max_bytes,
            rule: RuleSpec {
                except: form.except,
                mode: match form.kind {
                    Kind::Crowdsec => None,
                    Kind::File | Kind::Url => {
                        Some(form.mode.map_or(defaults.mode, |mode| mode.value))
                    }
                },
                direction: form.direction,
                protocol: form.protocol,
                ports: form.ports,
                local_ports: form.local_ports,
                remote_ports: form.remote_ports,
                local: form.local,
                interfaces: form.interfaces,
                percent: form.percent,
                established: form.established,
                on_lift: form.on_lift,
                comment: form.comment,
                ..RuleSpec::default()
            },
        };
        feed.check(defaults)
            .map_err(|error| self.text.error(self.place, error))?;
        Ok(feed)
    }

    /// Refuses keys that only other types have.
    fn foreign(&self, form: &Form) -> Result<(), ConfigError> {
        use Kind::{Crowdsec, File, Url};
        fn at<T>(value: &Option<Spanned<T>>) -> Option<Location> {
            value.as_ref().map(|value| value.referenced)
        }
        let keys: [(&str, Option<Location>, &[Kind]); 11] = [
            ("path", at(&form.path), &[File]),
            ("url", at(&form.url), &[Url, Crowdsec]),
            ("api_key_file", at(&form.api_key_file), &[Crowdsec]),
            ("ca", at(&form.ca), &[Url, Crowdsec]),
            ("interval", at(&form.interval), &[Url, Crowdsec]),
            ("timeout", at(&form.timeout), &[Url, Crowdsec]),
            ("shrink", at(&form.shrink), &[File, Url]),
            ("invalid", at(&form.invalid), &[File, Url]),
            ("scopes", at(&form.scopes), &[Crowdsec]),
            ("types", at(&form.types), &[Crowdsec]),
            ("mode", at(&form.mode), &[File, Url]),
        ];
        for (key, place, kinds) in keys {
            let Some(place) = place.filter(|_| !kinds.contains(&self.kind)) else {
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
            return Err(self.text.error(place, message));
        }
        Ok(())
    }

    fn needed<T>(&self, key: &str, value: Option<T>) -> Result<T, ConfigError> {
        value.ok_or_else(|| {
            let kind = self.kind.word();
            let message = format!("the key {key:?} is missing here: a feed of type {kind} has it");
            self.text.error(self.place, message)
        })
    }

    fn checks(&self, form: &Form) -> Result<ListChecks, ConfigError> {
        Ok(ListChecks {
            invalid: form
                .invalid
                .as_ref()
                .map_or(Invalid::Refuse, |invalid| invalid.value),
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
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        if range.contains(&number.value) {
            return Ok(number.value);
        }
        let message = format!(
            "{key} {} is not valid: expected a whole number from {} to {}",
            number.value,
            range.start(),
            range.end()
        );
        Err(self.text.error(number.referenced, message))
    }

    fn address(&self, url: &Spanned<String>) -> Result<WebAddress, ConfigError> {
        WebAddress::parse(&url.value).map_err(|error| self.text.error(url.referenced, error))
    }

    fn span(
        &self,
        key: &str,
        value: Option<Spanned<Lifetime>>,
        default: &str,
    ) -> Result<Lifetime, ConfigError> {
        let (span, place) = match value {
            Some(value) => (value.value, value.referenced),
            None => {
                let default = default
                    .parse()
                    .map_err(|error| self.text.error(self.place, format!("{error}")))?;
                (default, self.place)
            }
        };
        if (SECOND..=WEEK).contains(&span.duration().as_secs()) {
            Ok(span)
        } else {
            let message = format!("{key} {span} is not valid: expected 1s to 7d");
            Err(self.text.error(place, message))
        }
    }

    fn key(&self, path: &Spanned<PathBuf>) -> Result<PathBuf, ConfigError> {
        let file = self.directory.join(&path.value);
        crate::feeds::read_key(&file).map_err(|error| self.text.error(path.referenced, error))?;
        Ok(file)
    }

    fn certificates(&self, path: Option<Spanned<PathBuf>>) -> Result<Option<PathBuf>, ConfigError> {
        let Some(path) = path else {
            return Ok(None);
        };
        let file = self.directory.join(&path.value);
        crate::feeds::read_certificates(&file)
            .map_err(|error| self.text.error(path.referenced, error))?;
        Ok(Some(file))
    }

    fn several<T>(
        &self,
        value: Option<Spanned<Vec<T>>>,
        key: &str,
        default: Vec<T>,
    ) -> Result<Vec<T>, ConfigError> {
        match value {
            None => Ok(default),
            Some(value) if value.value.is_empty() => Err(self.text.error(
                value.referenced,
                format!("{key} is empty: the feed would block nothing"),
            )),
            Some(value) => Ok(value.value),
        }
    }

    fn types(
        &self,
        value: Option<Spanned<BTreeMap<String, Mode>>>,
        defaults: Defaults,
    ) -> Result<BTreeMap<String, Mode>, ConfigError> {
        match value {
            None => Ok(BTreeMap::from([("ban".to_owned(), defaults.mode)])),
            Some(value) if value.value.is_empty() => Err(self.text.error(
                value.referenced,
                "types is empty: the feed would block nothing; write types: {ban: drop}",
            )),
            Some(value) => Ok(value.value),
        }
    }
}
