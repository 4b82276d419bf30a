//! The sources of feeds. A file for each: its keys in the configuration, and how it is followed.
//!
//! This module lists the sources and the keys of them all, and dispatches to them. A new source is
//! a file here, a variant of [`Source`] and [`Kind`], and its keys in [`Form`].

pub mod crowdsec;
pub mod file;
mod form;
pub mod url;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_yaml::{Location, Spanned};

pub(crate) use form::read;

use self::crowdsec::{Crowdsec, Scope};
use self::file::File;
use self::form::Reading;
use self::url::Url;
use super::feed::Private;
use super::follower::Follower;
use super::{FeedError, Host};
use crate::lists::{Invalid, List};
use crate::matching::with_match;
use crate::rule::{Defaults, Established, Lifetime, Mode, OnLift, RuleSpec, Target};
use crate::yaml::Fault;

/// Where a feed's targets come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Source {
    /// A file, looked at every second.
    File(File),
    /// A list on a server.
    Url(Url),
    /// The decisions of a CrowdSec Local API.
    Crowdsec(Crowdsec),
}

impl Source {
    /// The `type` that names it in the configuration.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::File(_) => Kind::File.word(),
            Self::Url(_) => Kind::Url.word(),
            Self::Crowdsec(_) => Kind::Crowdsec.word(),
        }
    }

    /// Its path or address, without user, password and query.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::File(file) => file.path.display().to_string(),
            Self::Url(Url { url, .. }) | Self::Crowdsec(Crowdsec { url, .. }) => url.shown(),
        }
    }

    /// Its whole path or address: equal for equal sources.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::File(file) => file.path.display().to_string(),
            Self::Url(Url { url, .. }) | Self::Crowdsec(Crowdsec { url, .. }) => {
                url.url().to_string()
            }
        }
    }

    /// The mode for each type of decision; `None`: the source gives a list.
    #[must_use]
    pub const fn decision_modes(&self) -> Option<&BTreeMap<String, Mode>> {
        match self {
            Self::Crowdsec(crowdsec) => Some(&crowdsec.types),
            Self::File(_) | Self::Url(_) => None,
        }
    }

    /// Reads the list of a local source, of `max_bytes` at most, in place of one with `before` targets.
    /// `None`: the source is on a server.
    #[must_use]
    pub fn load(&self, max_bytes: u64, before: Option<u64>) -> Option<Result<List, FeedError>> {
        match self {
            Self::File(file) => Some(file.load(max_bytes, before)),
            Self::Url(_) | Self::Crowdsec(_) => None,
        }
    }

    /// Follows the source until the task is aborted.
    pub(super) async fn follow<H: Host>(self, follower: Follower<H>) {
        match self {
            Self::File(file) => file.follow(follower).await,
            Self::Url(url) => url.follow(follower).await,
            Self::Crowdsec(crowdsec) => crowdsec.follow(follower).await,
        }
    }
}

/// The `type` of a source.
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

with_match! {
    /// A feed in the configuration file: the keys of every type.
    #[derive(Deserialize)]
    #[serde(from = "FlatForm")]
    pub(crate) struct Form from asked #[derive(Deserialize)] FlatForm {
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
        @match { matching }
        established: Option<Established>,
        on_lift: Option<OnLift>,
        comment: Option<String>,
    }
}

impl Form {
    /// Where each key stands that only some types have, and which types have it.
    fn keys(&self) -> [(&'static str, Option<Location>, &'static [Kind]); 11] {
        use Kind::{Crowdsec, File, Url};
        fn at<T>(value: &Option<Spanned<T>>) -> Option<Location> {
            value.as_ref().map(|value| value.referenced)
        }
        [
            ("path", at(&self.path), &[File]),
            ("url", at(&self.url), &[Url, Crowdsec]),
            ("api_key_file", at(&self.api_key_file), &[Crowdsec]),
            ("ca", at(&self.ca), &[Url, Crowdsec]),
            ("interval", at(&self.interval), &[Url, Crowdsec]),
            ("timeout", at(&self.timeout), &[Url, Crowdsec]),
            ("shrink", at(&self.shrink), &[File, Url]),
            ("invalid", at(&self.invalid), &[File, Url]),
            ("scopes", at(&self.scopes), &[Crowdsec]),
            ("types", at(&self.types), &[Crowdsec]),
            ("mode", at(&self.mode), &[File, Url]),
        ]
    }

    /// The source, and the feed's `mode` and `private` where they are left out.
    fn source(
        &mut self,
        reading: &Reading<'_>,
        defaults: Defaults,
    ) -> Result<(Source, Option<Mode>, Private), Fault> {
        let mode = Some(defaults.mode);
        Ok(match self.kind {
            Kind::File => (
                Source::File(File::read(self, reading)?),
                mode,
                Private::Skip,
            ),
            Kind::Url => (Source::Url(Url::read(self, reading)?), mode, Private::Skip),
            Kind::Crowdsec => {
                let source = Crowdsec::read(self, reading, defaults)?;
                (Source::Crowdsec(source), None, Private::Block)
            }
        })
    }

    /// The fields of a rule.
    fn rule(self, mode: Option<Mode>) -> RuleSpec {
        RuleSpec {
            except: self.except,
            mode: self.mode.map(|mode| mode.value).or(mode),
            matching: self.matching,
            established: self.established,
            on_lift: self.on_lift,
            comment: self.comment,
            ..RuleSpec::default()
        }
    }
}
