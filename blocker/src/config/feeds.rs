//! Feeds: where lists of targets come from, how often they are looked at, and what a rule made of
//! one is like. What stands in them is [`crate::feeds`]' business.

mod form;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::rule::{Defaults, Lifetime, Mode, Owner, RuleId, RuleSpec, Target};

pub(super) use form::{Form, read};

/// A feed: a source of targets, and the rule that they become.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Feed {
    /// Its name.
    pub name: FeedName,
    /// Where the targets come from.
    #[serde(flatten)]
    pub source: Source,
    /// What becomes of targets in private and special ranges.
    pub private: Private,
    /// The most that is read, in bytes.
    pub max_bytes: u64,
    /// The rule's fields, but for id, targets and deadline.
    #[serde(flatten)]
    pub rule: RuleSpec,
}

/// Where a feed's targets come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Source {
    /// A file, looked at every second.
    File {
        /// Its path. Absolute, if the configuration's is.
        path: PathBuf,
        /// How a list must be.
        #[serde(flatten)]
        list: ListChecks,
    },
    /// A list on a server.
    Url {
        /// Where.
        url: WebAddress,
        /// How often it is asked for.
        interval: Lifetime,
        /// How long an answer may take.
        timeout: Lifetime,
        /// The certificates that vouch for the server, in PEM; `None`: the system's.
        #[serde(skip_serializing_if = "Option::is_none")]
        ca: Option<PathBuf>,
        /// How a list must be.
        #[serde(flatten)]
        list: ListChecks,
    },
    /// The decisions of a CrowdSec Local API.
    Crowdsec {
        /// The API's base.
        url: WebAddress,
        /// The file that holds the bouncer's key, and nothing else.
        api_key_file: PathBuf,
        /// How often it is asked.
        interval: Lifetime,
        /// How long an answer may take.
        timeout: Lifetime,
        /// The certificates that vouch for the server, in PEM; `None`: the system's.
        #[serde(skip_serializing_if = "Option::is_none")]
        ca: Option<PathBuf>,
        /// Which decisions: those on addresses, on ranges, or both.
        scopes: Vec<Scope>,
        /// What a decision's type does; others are ignored. Not empty.
        types: BTreeMap<String, Mode>,
    },
}

impl Source {
    /// The word for it in the configuration.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::Url { .. } => "url",
            Self::Crowdsec { .. } => "crowdsec",
        }
    }

    /// Where it comes from, without what is secret of it.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::File { path, .. } => path.display().to_string(),
            Self::Url { url, .. } | Self::Crowdsec { url, .. } => url.shown(),
        }
    }

    /// Where it comes from, exactly: two of the same give the same.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::File { path, .. } => path.display().to_string(),
            Self::Url { url, .. } | Self::Crowdsec { url, .. } => url.url().to_string(),
        }
    }

    /// Whether it gives decisions, which have deadlines, and not a list.
    #[must_use]
    pub const fn decides(&self) -> bool {
        matches!(self, Self::Crowdsec { .. })
    }
}

/// What a new list must be like to take the place of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ListChecks {
    /// What becomes of lines that cannot be read.
    pub invalid: Invalid,
    /// How many percent of the list before may be missing: 0 to 100.
    pub shrink: u8,
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
    /// What is wrong, in words.
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

    /// Who owns its rules.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner::Feed(self.0.clone())
    }

    /// The id of its rule; `part` tells its rules apart, if there are several.
    #[must_use]
    pub fn rule(&self, part: Option<&str>) -> Option<RuleId> {
        let id = match part {
            None => format!("feed-{}", self.0),
            Some(part) => format!("feed-{}.{part}", self.0),
        };
        id.parse().ok()
    }

    /// Whether a rule of this id would be its.
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

/// An address on the web: `http` or `https`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebAddress(reqwest::Url);

impl WebAddress {
    /// The whole address.
    #[must_use]
    pub const fn url(&self) -> &reqwest::Url {
        &self.0
    }

    /// What may be shown of it: no user, no password, no query.
    #[must_use]
    pub fn shown(&self) -> String {
        let mut url = self.0.clone();
        // Neither fails for a URL that has a host, as all of these.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.set_query(None);
        url.to_string()
    }

    /// Reads one.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        const EXPECTED: &str =
            "expected an http or https address, such as https://www.example.org/list.netset";
        match reqwest::Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(Self(url)),
            Ok(_) => Err(format!("url {text:?} is not valid: {EXPECTED}")),
            Err(error) => Err(format!("url {text:?} is not valid: {error}; {EXPECTED}")),
        }
    }
}

impl Serialize for WebAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}

/// What becomes of a feed's targets in private and special ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Private {
    /// They are left out, and counted.
    Skip,
    /// One of them refuses the whole list.
    Refuse,
    /// They are blocked as the others are.
    Block,
}

/// What becomes of a list's lines that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Invalid {
    /// One of them refuses the whole list.
    Refuse,
    /// They are left out, and counted.
    Skip,
}

/// What a CrowdSec decision is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// An address.
    Ip,
    /// A prefix.
    Range,
}

impl Scope {
    /// As the API has it in requests.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Range => "range",
        }
    }
}

impl Feed {
    /// The rule that targets of this feed become, in this mode if not in the feed's own.
    #[must_use]
    pub fn spec(&self, id: RuleId, targets: Vec<Target>, mode: Option<Mode>) -> RuleSpec {
        RuleSpec {
            id: Some(id),
            targets,
            mode: mode.or(self.rule.mode),
            ..self.rule.clone()
        }
    }

    /// Whether its rules can be made, whatever their targets.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(&self, defaults: Defaults) -> Result<(), String> {
        let modes: Vec<Option<Mode>> = match &self.source {
            Source::Crowdsec { types, .. } => types.values().map(|mode| Some(*mode)).collect(),
            _ => vec![None],
        };
        let id = self.name.rule(None).ok_or("its name is no rule's")?;
        // Any target does: a documentation address (RFC 5737).
        let target = Target::from(std::net::IpAddr::from([192, 0, 2, 1]));
        for mode in modes {
            self.spec(id.clone(), vec![target], mode)
                .resolve(|| id.clone(), defaults, jiff::Timestamp::MIN)
                .map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}
