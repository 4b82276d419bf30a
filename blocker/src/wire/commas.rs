//! Lists in a query: values separated by commas, so that a query needs no key twice.

use std::fmt::Display;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serializer, de};

pub fn serialize<T: Display, S: Serializer>(list: &[T], serializer: S) -> Result<S::Ok, S::Error> {
    let words: Vec<String> = list.iter().map(ToString::to_string).collect();
    serializer.serialize_str(&words.join(","))
}

pub fn deserialize<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    let words = text.split(',').filter(|word| !word.is_empty());
    words
        .map(|word| word.trim().parse().map_err(de::Error::custom))
        .collect()
}
