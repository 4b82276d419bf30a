//! The values of single keys. Errors name what was found and what is expected.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use url::Url;

use super::Lift;
use crate::rule::RuleError;

/// A host, by name or address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The name or the address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is not a host and a port: write 192.0.2.7:443, \"[2001:db8::7]:443\" or db.example.org:5432"
            )
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|port| digits && *port > 0);
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host = match bracketed {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().ok().map(|_| inner),
            None => Some(host).filter(|host| {
                !host.is_empty()
                    && !host.contains(|c: char| c == ':' || c == '/' || c.is_whitespace())
            }),
        };
        match (host, port) {
            (Some(host), Some(port)) => Ok(Self {
                host: host.to_owned(),
                port,
            }),
            _ => Err(wrong()),
        }
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Endpoint {
    fn schema_name() -> Cow<'static, str> {
        "Endpoint".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):[0-9]+$",
        })
    }
}

/// A URL of HTTP.
pub(super) struct Link(pub(super) Url);

impl<'de> Deserialize<'de> for Link {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = |why: &str| {
            de::Error::custom(format!(
                "url {text:?} is not valid: {why}: write http://192.0.2.7:8080/health or https://…"
            ))
        };
        let url = Url::parse(&text).map_err(|error| wrong(&error.to_string()))?;
        match url.scheme() {
            "http" | "https" => Ok(Self(url)),
            other => Err(wrong(&format!("{other} is not HTTP"))),
        }
    }
}

impl JsonSchema for Link {
    fn schema_name() -> Cow<'static, str> {
        "Link".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "uri", "pattern": "^https?://." })
    }
}

/// HTTP statuses: one, or a list.
pub(super) struct Statuses(pub(super) Vec<u16>);

impl Default for Statuses {
    fn default() -> Self {
        Self(vec![200])
    }
}

impl<'de> Deserialize<'de> for Statuses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;

        fn status<E: de::Error>(number: u64) -> Result<u16, E> {
            let status = u16::try_from(number).ok();
            let status = status.filter(|status| (100..=599).contains(status));
            status.ok_or_else(|| {
                E::custom(format!("found {number}, expected a status from 100 to 599"))
            })
        }

        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Statuses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a status such as 200, or a list such as [502, 503]")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Statuses, E> {
                Ok(Statuses(vec![status(number)?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Statuses, A::Error> {
                let mut statuses = Vec::new();
                while let Some(number) = list.next_element()? {
                    statuses.push(status(number)?);
                }
                if statuses.is_empty() {
                    return Err(de::Error::custom(
                        "found an empty list, expected a status such as 200, or a list of some",
                    ));
                }
                Ok(Statuses(statuses))
            }
        }

        deserializer.deserialize_any(OneOrMany)
    }
}

impl JsonSchema for Statuses {
    fn schema_name() -> Cow<'static, str> {
        "Statuses".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let one = json_schema!({ "type": "integer", "minimum": 100, "maximum": 599 });
        json_schema!({ "oneOf": [one, { "type": "array", "items": one, "minItems": 1 }] })
    }
}

impl Serialize for Statuses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// A command: a line for the shell, or a program with arguments.
pub(super) enum Line {
    Shell(String),
    Words(Vec<String>),
}

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const EXPECTED: &str = "a line for the shell, or a list of the program and its arguments, such as [ping, -c1, 192.0.2.7]";

        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Line;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Line, E> {
                if text.trim().is_empty() {
                    return Err(E::custom(format!("found no command, expected {EXPECTED}")));
                }
                Ok(Line::Shell(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Line, A::Error> {
                let mut words = Vec::<String>::new();
                while let Some(word) = list.next_element()? {
                    words.push(word);
                }
                if words.first().is_none_or(String::is_empty) {
                    return Err(de::Error::custom(format!(
                        "found no program, expected {EXPECTED}"
                    )));
                }
                Ok(Line::Words(words))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for Line {
    fn schema_name() -> Cow<'static, str> {
        "Line".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "oneOf": [
                { "type": "string", "pattern": r"\S" },
                { "type": "array", "items": { "type": ["string", "number"] }, "minItems": 1 },
            ],
        })
    }
}

/// The value of `lift`.
pub(super) struct Word(pub(super) Lift);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "all" {
            return Ok(Self(Lift::All));
        }
        let id = text.parse();
        id.map(|id| Self(Lift::One(id)))
            .map_err(|error: RuleError| de::Error::custom(error))
    }
}

impl JsonSchema for Word {
    fn schema_name() -> Cow<'static, str> {
        "Lift".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": crate::rule::ID_PATTERN })
    }
}
