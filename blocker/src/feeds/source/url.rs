//! The source `url`: a list on a server, asked for at an interval.

use std::path::PathBuf;

use reqwest::header::HeaderMap;
use serde::Serialize;

use super::super::fetch::{Answer, Http, WebAddress};
use super::super::follower::{Follower, span};
use super::super::list::{self, ListChecks};
use super::super::{FeedError, Host, blocking};
use super::Form;
use super::form::Reading;
use crate::rule::Lifetime;
use crate::yaml::Fault;

/// A list on a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Url {
    /// Its address.
    pub url: WebAddress,
    /// How often it is asked for.
    pub interval: Lifetime,
    /// How long an answer may take.
    pub timeout: Lifetime,
    /// The CA certificates of the server, in PEM; `None`: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// What the list must be like.
    #[serde(flatten)]
    pub list: ListChecks,
}

impl Url {
    pub(super) fn read(form: &mut Form, reading: &Reading<'_>) -> Result<Self, Fault> {
        Ok(Self {
            url: reading.address(form.url.take())?,
            interval: reading.span("interval", form.interval.take(), "1h")?,
            timeout: reading.span("timeout", form.timeout.take(), "30s")?,
            ca: reading.certificates(form.ca.take())?,
            list: reading.list_checks(form)?,
        })
    }

    pub(super) async fn follow<H: Host>(self, mut follower: Follower<H>) {
        loop {
            let outcome = self.take(&follower).await;
            follower.note(outcome);
            follower.rest(self.interval).await;
        }
    }

    /// Asks for the list and puts it in force if it changed.
    async fn take<H: Host>(&self, follower: &Follower<H>) -> Result<(), FeedError> {
        let (key, shown) = (self.url.url().to_string(), self.url.shown());
        let kept = follower.kept_of(&key);
        let known = kept.as_ref().map(|kept| kept.validators.clone());
        let known = known.unwrap_or_default();
        let most = follower.feed().max_bytes;
        let http = Http::new(&self.url, span(self.timeout), most, self.ca.as_deref())?;
        let asked = http.get(self.url.url(), &shown, &known, HeaderMap::new());
        match asked.await? {
            Answer::Unchanged => follower.review().await,
            Answer::Body(bytes, validators) => {
                let before = kept.map(|kept| kept.content.len());
                let checks = self.list;
                let read = move || list::sound(&shown, &bytes, checks, before);
                let list = blocking(read).await?;
                follower.take(list, key, validators).await
            }
        }
    }
}
