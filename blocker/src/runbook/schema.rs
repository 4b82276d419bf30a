//! The JSON Schema of runbooks, for editors and validators.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value, json};

use super::document::Document;
use crate::rule::RuleSpec;

/// The schema (draft 2020-12).
#[must_use]
pub fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12();
    settings
        .into_generator()
        .into_root_schema_for::<Document>()
        .to_value()
}

/// Requires exactly one of these keys.
pub(super) fn one_of(keys: &[&str]) -> Value {
    keys.iter()
        .map(|key| json!({ "required": [key] }))
        .collect()
}

/// A rule in a step: without a deadline, which the run sets.
pub(super) struct Block;

impl JsonSchema for Block {
    fn schema_name() -> Cow<'static, str> {
        "Block".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = RuleSpec::json_schema(generator);
        if let Some(Value::Object(properties)) = schema.get_mut("properties") {
            for key in ["for", "expires", "confirm_within"] {
                properties.remove(key);
            }
            if let Some(file) = properties.get_mut("targets_file") {
                file["description"] =
                    "A file with more of them; a relative path starts at the runbook's directory."
                        .into();
            }
        }
        let description = "A rule, as in the configuration. The run gives it its deadline: it has none of its own.";
        schema.insert("description".to_owned(), description.into());
        schema.insert("anyOf".to_owned(), one_of(&["targets", "targets_file"]));
        schema
    }
}
