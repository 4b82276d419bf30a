//! HTTP requests, bounded in time and size, and conditional on the version that is known.

use std::error::Error as _;
use std::fs;
use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, ClientBuilder, StatusCode};
use serde::{Deserialize, Serialize};

use super::FeedError;

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How many redirects are followed.
const REDIRECTS: usize = 5;

/// An `http` or `https` address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebAddress(reqwest::Url);

impl WebAddress {
    /// The whole address.
    #[must_use]
    pub const fn url(&self) -> &reqwest::Url {
        &self.0
    }

    /// The address without user, password and query, which may be secrets.
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
    /// What is wrong with it, as text.
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

/// What a server said of the version that it sent (RFC 9110 8.8).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validators {
    /// `ETag`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// `Last-Modified`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_modified: Option<String>,
}

impl Validators {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name| {
            let value: &HeaderValue = headers.get(name)?;
            Some(value.to_str().ok()?.to_owned())
        };
        Self {
            etag: text(header::ETAG),
            last_modified: text(header::LAST_MODIFIED),
        }
    }

    /// The header that makes a request conditional on this version. Where both are known, the tag is
    /// used: it is exact.
    fn condition(&self) -> Option<(header::HeaderName, HeaderValue)> {
        let etag = self.etag.iter().map(|tag| (header::IF_NONE_MATCH, tag));
        let date = self.last_modified.iter();
        let date = date.map(|date| (header::IF_MODIFIED_SINCE, date));
        etag.chain(date)
            .find_map(|(name, value)| Some((name, HeaderValue::from_str(value).ok()?)))
    }
}

/// What a server answered.
pub(super) enum Answer {
    /// The version that is known is current.
    Unchanged,
    /// The body, and its version.
    Body(Vec<u8>, Validators),
}

/// A client.
pub(super) struct Http {
    client: Client,
    timeout: Duration,
    most: u64,
}

impl Http {
    /// A client that waits `timeout` for a whole answer and reads `most` bytes of it. Servers are
    /// verified by the certificates in `ca`, or else by the system's.
    pub(super) fn new(
        url: &WebAddress,
        timeout: Duration,
        most: u64,
        ca: Option<&Path>,
    ) -> Result<Self, FeedError> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // It fails if a provider is installed already, which does as well.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let failed = |error: reqwest::Error| FeedError::Request {
            from: url.shown(),
            why: because(error, timeout),
        };
        let client = match ca {
            Some(ca) => {
                let certificates = read_certificates(ca).map_err(FeedError::File)?;
                builder(timeout).tls_certs_only(certificates).build()
            }
            // A system without any certificate can still speak HTTP.
            None if url.url().scheme() == "http" => builder(timeout)
                .build()
                .or_else(|_| builder(timeout).tls_certs_only([]).build()),
            None => builder(timeout).build(),
        };
        Ok(Self {
            client: client.map_err(failed)?,
            timeout,
            most,
        })
    }

    /// Requests `url`, with `headers`, unless it is still the `known` version. Errors name `shown`.
    pub(super) async fn get(
        &self,
        url: &reqwest::Url,
        shown: &str,
        known: &Validators,
        headers: HeaderMap,
    ) -> Result<Answer, FeedError> {
        let failed = |error| FeedError::Request {
            from: shown.to_owned(),
            why: because(error, self.timeout),
        };
        let too_large = || FeedError::TooLarge {
            from: shown.to_owned(),
            most: self.most,
        };
        let mut request = self.client.get(url.clone()).headers(headers);
        let condition = known.condition();
        let conditional = condition.is_some();
        if let Some((name, value)) = condition {
            request = request.header(name, value);
        }
        let mut response = request.send().await.map_err(failed)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED if conditional => return Ok(Answer::Unchanged),
            status => {
                return Err(FeedError::Status {
                    from: shown.to_owned(),
                    status: status.to_string(),
                    hint: hint(status),
                });
            }
        }
        if response.content_length().is_some_and(|n| n > self.most) {
            return Err(too_large());
        }
        let validators = Validators::of(response.headers());
        let mut body = Vec::new();
        // The limit applies to the unpacked body.
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if (body.len() + chunk.len()) as u64 > self.most {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer::Body(body, validators))
    }
}

const fn hint(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ": is the key, or the address, right?",
        StatusCode::NOT_FOUND | StatusCode::GONE => ": is the address right?",
        StatusCode::TOO_MANY_REQUESTS => ": it is asked too often; raise interval",
        _ => "",
    }
}

fn builder(timeout: Duration) -> ClientBuilder {
    let policy = Policy::custom(|attempt| {
        let secure = |url: &reqwest::Url| url.scheme() == "https";
        if attempt.previous().len() > REDIRECTS {
            return attempt.error("it redirects too often");
        }
        match attempt.previous().last() {
            Some(from) if secure(from) && !secure(attempt.url()) => attempt
                .error("it redirects from https to http, where the answer is not authenticated"),
            _ => attempt.follow(),
        }
    });
    Client::builder()
        .user_agent(concat!("blocker/", env!("CARGO_PKG_VERSION")))
        .timeout(timeout)
        .connect_timeout(CONNECT.min(timeout))
        .redirect(policy)
        .referer(false)
        // An idle connection may have been closed by a server that restarted.
        .pool_max_idle_per_host(0)
}

/// Why a request failed, with all causes. The address is left out: it may hold a secret.
fn because(error: reqwest::Error, timeout: Duration) -> String {
    if error.is_timeout() {
        return format!("no whole answer within {} s", timeout.as_secs());
    }
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Reads a key file: one word.
///
/// # Errors
/// What is wrong with it, as text.
pub fn read_key(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let text = fs::read_to_string(path)
        .map_err(|error| format!("cannot read the key file {shown}: {error}"))?;
    let key = text.trim();
    if key.is_empty() {
        return Err(format!(
            "the key file {shown} is empty: write the key that `cscli bouncers add` printed into it"
        ));
    }
    if key.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(key.to_owned())
    } else {
        Err(format!(
            "the key file {shown} does not hold a key: expected one word of printable characters"
        ))
    }
}

/// Reads certificates in PEM.
///
/// # Errors
/// What is wrong with it, as text.
pub fn read_certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    let shown = path.display();
    let pem =
        fs::read(path).map_err(|error| format!("cannot read the CA file {shown}: {error}"))?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(format!(
            "the CA file {shown} has no certificate: expected PEM, -----BEGIN CERTIFICATE-----"
        )),
        Err(error) => Err(format!("the CA file {shown} is not valid: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_asks_before_the_date() {
        let both = Validators {
            etag: Some("\"5\"".to_owned()),
            last_modified: Some("Tue, 24 Nov 2026 00:00:00 GMT".to_owned()),
        };
        let (name, value) = both.condition().unwrap();
        assert_eq!(
            (name.as_str(), value.as_bytes()),
            ("if-none-match", &b"\"5\""[..])
        );
        let date = Validators { etag: None, ..both };
        assert_eq!(date.condition().unwrap().0.as_str(), "if-modified-since");
        assert!(Validators::default().condition().is_none());
    }

    #[test]
    fn a_key_is_one_word() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        for (text, good) in [
            ("abc/+=\n", true),
            ("", false),
            ("\n", false),
            ("a b", false),
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(read_key(&file).is_ok(), good, "{text:?}");
        }
        let error = read_key(&dir.path().join("none")).unwrap_err();
        assert!(error.contains("No such file"), "{error}");
    }
}
