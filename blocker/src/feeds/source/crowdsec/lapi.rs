//! The stream of decisions of CrowdSec's Local API.
//!
//! `GET /v1/decisions/stream` answers with all decisions in force if `startup=true`, else with those
//! that are new and those that ended since this bouncer asked last. Either list may be null. Of
//! several decisions of one type on one target the API reports the longest, and its end when none is
//! left.

use jiff::{SignedDuration, Timestamp};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use super::super::super::fetch::{Answer, Http, Validators, WebAddress};
use super::super::super::{Decisions, FeedError};
use super::Scope;
use crate::rule::Target;

/// An answer.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Stream {
    #[serde(default)]
    new: Option<Vec<Decision>>,
    #[serde(default)]
    deleted: Option<Vec<Decision>>,
}

#[derive(Debug, Deserialize)]
struct Decision {
    #[serde(rename = "type")]
    kind: String,
    scope: String,
    value: String,
    /// As Go writes durations.
    duration: String,
}

impl Decision {
    /// Its target, if it has one of these scopes. The host bits of a range are ignored.
    fn target(&self, scopes: &[Scope]) -> Option<Target> {
        let is = |scope: &Scope| scope.word().eq_ignore_ascii_case(&self.scope);
        if !scopes.iter().any(is) {
            return None;
        }
        let value = self.value.trim();
        let net = value.parse::<ipnet::IpNet>().map(Target::from);
        net.or_else(|_| value.parse()).ok()
    }
}

/// What an answer changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// Decisions added.
    pub(super) new: u64,
    /// Decisions removed.
    pub(super) ended: u64,
    /// The first decision that cannot be read.
    pub(super) unread: Option<String>,
}

impl Stream {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Applies the answer.
    pub(super) fn apply(
        &self,
        decisions: &mut Decisions,
        scopes: &[Scope],
        now: Timestamp,
    ) -> Changed {
        let mut changed = Changed::default();
        // Removals first: what ended and was decided again is in force.
        for decision in self.deleted.iter().flatten() {
            if let Some(target) = decision.target(scopes) {
                decisions.remove(&decision.kind, target);
                changed.ended += 1;
            }
        }
        for decision in self.new.iter().flatten() {
            let wanted = scopes
                .iter()
                .any(|scope| scope.word().eq_ignore_ascii_case(&decision.scope));
            match (decision.target(scopes), span(&decision.duration)) {
                (Some(target), Some(lasts)) if lasts > SignedDuration::ZERO => {
                    decisions.insert(&decision.kind, target, lasts, now);
                    changed.new += 1;
                }
                (Some(_), Some(_)) => {}
                _ if !wanted => {}
                _ => {
                    changed.unread.get_or_insert_with(|| {
                        format!(
                            "{} {} for {}",
                            decision.scope, decision.value, decision.duration
                        )
                    });
                }
            }
        }
        changed
    }
}

/// A duration as Go writes it: `3h59m58.5s`, `-1m0s`, `12.3ms`.
fn span(text: &str) -> Option<SignedDuration> {
    text.parse().ok()
}

/// A Local API.
pub(super) struct Lapi {
    http: Http,
    url: reqwest::Url,
    shown: String,
    scopes: Vec<Scope>,
}

impl Lapi {
    pub(super) fn new(http: Http, base: &WebAddress, scopes: &[Scope]) -> Result<Self, FeedError> {
        let mut url = base.url().clone();
        let shown = base.shown();
        url.path_segments_mut()
            .map_err(|()| FeedError::Inside(format!("{shown} cannot have a path")))?
            .pop_if_empty()
            .extend(["v1", "decisions", "stream"]);
        Ok(Self {
            http,
            url,
            shown,
            scopes: scopes.to_vec(),
        })
    }

    /// Asks for all decisions, or for those that changed since it was asked last.
    pub(super) async fn stream(&self, all: bool, key: &str) -> Result<Stream, FeedError> {
        let scopes: Vec<&str> = self.scopes.iter().map(|scope| scope.word()).collect();
        let mut url = self.url.clone();
        url.query_pairs_mut()
            .append_pair("startup", if all { "true" } else { "false" })
            .append_pair("scopes", &scopes.join(","));
        let mut value = HeaderValue::from_str(key)
            .map_err(|_| FeedError::File("the key is no header's value".to_owned()))?;
        value.set_sensitive(true);
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-api-key"), value)]);
        let none = Validators::default();
        let asked = self.http.get(&url, &self.shown, &none, headers);
        match asked.await? {
            Answer::Body(body, _) => Stream::parse(&body).map_err(|error| FeedError::Answer {
                from: self.shown.clone(),
                why: error.to_string(),
            }),
            Answer::Unchanged => Ok(Stream::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Scope; 2] = [Scope::Ip, Scope::Range];

    fn apply(decisions: &mut Decisions, text: &str, scopes: &[Scope]) -> Changed {
        let stream = Stream::parse(text.as_bytes()).unwrap();
        stream.apply(decisions, scopes, Timestamp::UNIX_EPOCH)
    }

    fn all(decisions: &Decisions) -> Vec<(String, i64)> {
        let text = |(kind, target, term): (&str, Target, crate::feeds::decisions::Term)| {
            (format!("{kind} {target}"), term.until.as_second())
        };
        decisions.iter().map(text).collect()
    }

    #[test]
    fn go_durations_are_read() {
        for (text, nanoseconds) in [
            ("3h59m49.5s", 14_389_500_000_000),
            ("4h0m0s", 14_400_000_000_000),
            ("-1m2.25s", -62_250_000_000),
            ("12.5ms", 12_500_000),
            ("-150.5µs", -150_500),
            ("100ns", 100),
            ("0s", 0),
            ("167h59m59.999999999s", 604_799_999_999_999),
        ] {
            let span = span(text).map(|span| span.as_nanos());
            assert_eq!(span, Some(nanoseconds), "{text}");
        }
        assert_eq!(span("soon"), None);
    }

    #[test]
    fn a_stream_adds_and_ends() {
        let mut decisions = Decisions::default();
        // As CrowdSec 1.4.6 answers.
        let changed = apply(
            &mut decisions,
            r#"{"deleted":null,"new":[
              {"duration":"3h59m58.5s","id":1,"origin":"cscli","scenario":"manual","scope":"Ip","type":"ban","value":"11.0.0.1"},
              {"duration":"1h0m0s","origin":"CAPI","scenario":"x","scope":"Range","type":"ban","value":"11.1.0.9/16"},
              {"duration":"1h0m0s","origin":"x","scenario":"x","scope":"Country","type":"ban","value":"ZZ"},
              {"duration":"1h0m0s","origin":"x","scenario":"x","scope":"Ip","type":"ban","value":"host.example"},
              {"duration":"10s","origin":"x","scenario":"x","scope":"Ip","type":"captcha","value":"2001:db8::1"}]}"#,
            &BOTH,
        );
        assert_eq!((changed.new, changed.ended), (3, 0));
        assert_eq!(
            changed.unread.as_deref(),
            Some("Ip host.example for 1h0m0s")
        );
        let mut expected = vec![
            ("ban 11.0.0.1".to_owned(), 14_398),
            ("ban 11.1.0.0/16".to_owned(), 3_600),
            ("captcha 2001:db8::1".to_owned(), 10),
        ];
        assert_eq!(all(&decisions), expected);
        let changed = apply(
            &mut decisions,
            r#"{"new":null,"deleted":[
              {"duration":"-5.5s","scope":"Ip","type":"ban","value":"11.0.0.1"},
              {"duration":"-5.5s","scope":"Ip","type":"ban","value":"11.0.0.99"}]}"#,
            &BOTH,
        );
        assert_eq!((changed.new, changed.ended), (0, 2));
        expected.remove(0);
        assert_eq!(all(&decisions), expected);
        let changed = apply(&mut decisions, r#"{"new":null,"deleted":null}"#, &BOTH);
        assert_eq!(changed, Changed::default());
    }

    #[test]
    fn only_the_scopes_that_are_asked_for_count() {
        let mut decisions = Decisions::default();
        let text = r#"{"new":[{"duration":"1h","scope":"Ip","type":"ban","value":"11.0.0.1"},
            {"duration":"1h","scope":"range","type":"ban","value":"11.1.0.0/16"}]}"#;
        apply(&mut decisions, text, &[Scope::Range]);
        assert_eq!(all(&decisions), [("ban 11.1.0.0/16".to_owned(), 3_600)]);
    }
}
