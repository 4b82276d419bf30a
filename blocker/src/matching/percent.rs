//! Match field: the share of packets, or of flows, that a rule takes.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use blocker_ebpf as abi;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::RuleError;

/// A whole number from 1 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(u8);

impl Percent {
    /// Every packet.
    pub const ALL: Self = Self(100);

    /// The number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The largest value of a uniform 32-bit sample that the rule takes: `n` is a share of
    /// `(n + 1) / 2^32`. 100 percent is [`abi::ALWAYS`].
    pub(crate) fn threshold(self) -> u32 {
        let share = (u64::from(self.0) << 32) / 100;
        u32::try_from(share - 1).unwrap_or(abi::ALWAYS)
    }

    /// The percentage in words: `30% of packets`.
    pub(crate) fn words(self, of: &str) -> String {
        format!("{self}% of {of}")
    }

    /// Whether every packet is taken.
    #[must_use]
    pub const fn is_all(self) -> bool {
        self.0 == 100
    }
}

impl Default for Percent {
    fn default() -> Self {
        Self::ALL
    }
}

impl TryFrom<u64> for Percent {
    type Error = RuleError;

    fn try_from(number: u64) -> Result<Self, RuleError> {
        match u8::try_from(number) {
            Ok(percent @ 1..=100) => Ok(Self(percent)),
            _ => Err(wrong(&number)),
        }
    }
}

impl FromStr for Percent {
    type Err = RuleError;

    /// Reads `30` and `30%`.
    fn from_str(text: &str) -> Result<Self, RuleError> {
        let digits = text.strip_suffix('%').unwrap_or(text);
        let number = digits.parse::<u64>().map_err(|_| wrong(&text))?;
        Self::try_from(number)
    }
}

fn wrong(found: &dyn fmt::Debug) -> RuleError {
    RuleError::Percent(format!("{found:?}"))
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.0)
    }
}

impl<'de> Deserialize<'de> for Percent {
    /// Accepts whole numbers from 1 to 100. Other numbers and text give [`RuleError::Percent`].
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Percent;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number from 1 to 100")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Percent, E> {
                Percent::try_from(number).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Percent, E> {
                u64::try_from(number)
                    .map_err(|_| E::custom(wrong(&number)))
                    .and_then(|number| self.visit_u64(number))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Percent, E> {
                Err(E::custom(wrong(&number)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Percent, E> {
                Err(E::custom(wrong(&text)))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Percent {
    fn schema_name() -> Cow<'static, str> {
        "Percent".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 1, "maximum": 100 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_is_a_share_of_2_to_the_32() {
        for (percent, share) in [(1, 0.01), (33, 0.33), (50, 0.5), (99, 0.99)] {
            let taken = (f64::from(Percent(percent).threshold()) + 1.0) / 4_294_967_296.0;
            assert!((taken - share).abs() < 1e-9, "{percent}: {taken}");
        }
        assert_eq!(Percent(50).threshold(), (1 << 31) - 1);
        assert_eq!(Percent(100).threshold(), abi::ALWAYS);
    }
}
