//! Expectations: of a text, of a connection.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor, value::MapAccessDeserializer};

use crate::matching::text::{text_serde, words};
use crate::rule::RuleError;

words! {
    /// The outcome of a connection attempt.
    Connect, "expect", "connects, refused, unreachable or times_out", {
        /// The connection is established.
        Connects = "connects",
        /// It is refused (RST).
        Refused = "refused",
        /// A host or a router reports it unreachable (ICMP).
        Unreachable = "unreachable",
        /// There is no answer within the time limit.
        TimesOut = "times_out",
    }
}

/// The most that is shown of an unexpected text, in characters.
const SHOWN: usize = 200;

/// What a text must be. At least one condition is given, and all must hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Text {
    equals: Option<String>,
    contains: Option<String>,
    lacks: Option<String>,
    matches: Option<Pattern>,
}

/// A regular expression. Two are equal if their texts are.
#[derive(Debug, Clone)]
struct Pattern(Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Regex::new(&text).map(Self).map_err(|error| {
            // The last line is the message; the lines before point to the position.
            let why = error.to_string();
            let why = why.lines().last().unwrap_or_default();
            let why = why.trim_start_matches("error: ");
            de::Error::custom(format!("{text:?} is not a valid regular expression: {why}"))
        })
    }
}

impl Text {
    /// How a text differs from what is expected; `None`: it does not. Trailing white space is ignored when
    /// the whole text is compared.
    #[must_use]
    pub fn unmet(&self, text: &str) -> Option<String> {
        let equals = self.equals.as_ref();
        let is = || format!("is {}", shown(text));
        if equals.is_some_and(|whole| whole.trim_end() != text.trim_end()) {
            return Some(is());
        }
        if let Some(part) = &self.lacks
            && text.contains(part.as_str())
        {
            return Some(format!("contains {part:?}"));
        }
        let contains = self.contains.as_ref();
        let lacking = contains.is_some_and(|part| !text.contains(part.as_str()));
        let matches = self.matches.as_ref();
        let unlike = matches.is_some_and(|pattern| !pattern.0.is_match(text));
        (lacking || unlike).then(is)
    }
}

/// A text in quotes, its beginning if it is long.
fn shown(text: &str) -> String {
    let text = text.trim_end();
    let beginning: String = text.chars().take(SHOWN).collect();
    if beginning.len() < text.len() {
        format!("{beginning:?}…")
    } else {
        format!("{text:?}")
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pattern = self.matches.as_ref().map(|pattern| pattern.0.as_str());
        let parts = [
            ("is", self.equals.as_deref()),
            ("contains", self.contains.as_deref()),
            ("lacks", self.lacks.as_deref()),
            ("matches", pattern),
        ];
        let given = parts
            .into_iter()
            .filter_map(|(verb, text)| Some((verb, text?)));
        for (place, (verb, text)) in given.enumerate() {
            let and = if place == 0 { "" } else { " and " };
            write!(f, "{and}{verb} {text:?}")?;
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Parts {
            equals: Option<String>,
            contains: Option<String>,
            lacks: Option<String>,
            matches: Option<Pattern>,
        }

        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text to contain, or some of equals, contains, lacks and matches")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text {
                    equals: None,
                    contains: Some(text.to_owned()),
                    lacks: None,
                    matches: None,
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Text, A::Error> {
                let parts = Parts::deserialize(MapAccessDeserializer::new(map))?;
                let text = Text {
                    equals: parts.equals,
                    contains: parts.contains,
                    lacks: parts.lacks,
                    matches: parts.matches,
                };
                if text.to_string().is_empty() {
                    return Err(de::Error::custom(
                        "found nothing to expect, expected some of equals, contains, lacks and matches",
                    ));
                }
                Ok(text)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for Text {
    fn schema_name() -> Cow<'static, str> {
        "Text".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "What a text must be: a text to contain, or all of the following that are given.",
            "oneOf": [
                { "type": "string" },
                {
                    "type": "object",
                    "minProperties": 1,
                    "additionalProperties": false,
                    "properties": {
                        "equals": { "type": "string", "description": "All of it, but for white space at its end." },
                        "contains": { "type": "string", "description": "Somewhere in it." },
                        "lacks": { "type": "string", "description": "Nowhere in it." },
                        "matches": { "type": "string", "format": "regex", "description": "A regular expression that matches somewhere; (?m) lets ^ and $ match at lines." },
                    },
                },
            ],
        })
    }
}
