//! The key `fleet` of the configuration: which etcd a host takes rules from, its name and labels, and
//! what is done with its rules when etcd cannot be reached.
//!
//! No file is opened and no endpoint contacted here: certificates are read at each connection, so that
//! a renewed one is used without a reload.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

use crate::rule::Lifetime;
use crate::wire::fleet::selector::{Identity, label_key, label_value};
use crate::yaml::{absolute, absolute_if_any};

/// Rules through etcd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// URLs of etcd's members. Not empty.
    #[serde(deserialize_with = "endpoints")]
    pub endpoints: Vec<String>,
    /// The prefix of all keys, without a `/` at its end.
    #[serde(default = "default_prefix", deserialize_with = "prefix")]
    pub prefix: String,
    /// Certificates, for https endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// The user, if etcd does not take it from the certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The file with the user's password. Absolute.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "absolute_if_any"
    )]
    pub password_file: Option<PathBuf>,
    /// This host's name in the fleet.
    #[serde(default = "host_name", deserialize_with = "name")]
    pub name: String,
    /// Labels by which selectors may choose it.
    #[serde(default, deserialize_with = "labels")]
    pub labels: BTreeMap<String, String>,
    /// What is done with rules without a deadline after etcd has been lost for `loss_after`.
    #[serde(default)]
    pub on_loss: OnLoss,
    /// How long etcd may be lost before that.
    #[serde(default = "default_loss_after")]
    pub loss_after: Lifetime,
    /// The clock difference between this host and a writer of rules above which it is reported.
    #[serde(default = "default_max_skew")]
    pub max_skew: Lifetime,
}

/// Certificates, all in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The CA certificate of etcd. Absolute.
    #[serde(deserialize_with = "absolute")]
    pub ca: PathBuf,
    /// The client certificate. Absolute.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "absolute_if_any"
    )]
    pub cert: Option<PathBuf>,
    /// Its key. Absolute.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "absolute_if_any"
    )]
    pub key: Option<PathBuf>,
}

/// What is done with rules without a deadline when etcd is lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnLoss {
    /// They stay.
    #[default]
    Keep,
    /// They are lifted, and put back when etcd returns.
    Lift,
}

impl Fleet {
    /// The host's name and labels.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            name: self.name.clone(),
            labels: self.labels.clone(),
        }
    }

    /// Checks the keys against each other.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !cfg!(feature = "fleet") {
            return Err(
                "this blocker was built without the fleet: use the package's, or build it with `--features fleet`"
                    .to_owned(),
            );
        }
        let https = |endpoint: &String| endpoint.starts_with("https://");
        if let Some(endpoint) = self
            .endpoints
            .iter()
            .find(|e| https(e) != self.tls.is_some())
        {
            return Err(if self.tls.is_some() {
                format!(
                    "endpoint {endpoint:?} is not encrypted, but `tls` is set: write https://, or leave `tls` out"
                )
            } else {
                format!(
                    "endpoint {endpoint:?} needs `tls`: name at least the authority's certificate, as tls: {{ca: PATH}}"
                )
            });
        }
        if let Some(tls) = &self.tls
            && tls.cert.is_some() != tls.key.is_some()
        {
            return Err("`tls.cert` and `tls.key` go together: name both, or neither".to_owned());
        }
        if self.user.is_some() != self.password_file.is_some() {
            return Err(
                "`user` and `password_file` go together: name both, or neither (etcd then takes the user from the certificate)"
                    .to_owned(),
            );
        }
        if self.name.is_empty() {
            return Err(
                "this host's own name is not usable in a fleet: write `name`, of letters, digits, '.', '_' and '-'"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

fn default_prefix() -> String {
    "/blocker".to_owned()
}

fn default_loss_after() -> Lifetime {
    "1h".parse().expect("\"1h\" follows the grammar")
}

fn default_max_skew() -> Lifetime {
    "5s".parse().expect("\"5s\" follows the grammar")
}

/// The host name of the kernel; empty if it is not valid in a fleet.
fn host_name() -> String {
    let name = nix::sys::utsname::uname().ok();
    let name = name.map(|name| name.nodename().to_string_lossy().into_owned());
    name.filter(|name| label_value(name).is_ok())
        .unwrap_or_default()
}

fn endpoints<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let endpoints = Vec::<String>::deserialize(deserializer)?;
    if endpoints.is_empty() {
        return Err(de::Error::custom(
            "found an empty list, expected etcd's members, such as [\"https://etcd1.example:2379\"]",
        ));
    }
    for endpoint in &endpoints {
        let rest = endpoint
            .strip_prefix("https://")
            .or_else(|| endpoint.strip_prefix("http://"));
        let port = rest.and_then(|rest| rest.rsplit_once(':'));
        let valid = port.is_some_and(|(host, port)| {
            !host.is_empty()
                && !host.contains(['/', '@', ' '])
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if !valid {
            return Err(de::Error::custom(format!(
                "endpoint {endpoint:?} is not valid: expected a URL with a port, such as https://etcd1.example:2379"
            )));
        }
    }
    Ok(endpoints)
}

fn prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    let valid = text.starts_with('/')
        && text.len() > 1
        && text.len() <= 255
        && !text.ends_with('/')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
    valid.then_some(text.clone()).ok_or_else(|| {
        de::Error::custom(format!(
            "prefix {text:?} is not valid: expected letters, digits, '.', '_', '-' and '/', beginning with '/' and not ending with it, such as /blocker"
        ))
    })
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    label_value(&text).map_err(|error| de::Error::custom(format!("name {error}")))?;
    Ok(text)
}

fn labels<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let labels = BTreeMap::<String, String>::deserialize(deserializer)?;
    for (key, value) in &labels {
        label_key(key)
            .and_then(|()| label_value(value))
            .map_err(|error| de::Error::custom(format!("label {error}")))?;
        if key == "name" {
            return Err(de::Error::custom(
                "label \"name\" is the host's name: write `name` beside `labels`",
            ));
        }
    }
    Ok(labels)
}
