//! Rules for tests.

use super::{Defaults, Rule, RuleSpec};

/// A rule on targets (separated by spaces), with the other fields as YAML.
pub(crate) fn rule(id: &str, targets: &str, fields: &str) -> Rule {
    let mut spec: serde_json::Value = serde_yaml::from_str(fields).unwrap();
    let fields = spec.as_object_mut().unwrap();
    fields.insert("targets".into(), targets.split(' ').collect());
    let spec: RuleSpec = serde_json::from_value(spec).unwrap();
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    spec.resolve(|| id.parse().unwrap(), Defaults::default(), now)
        .unwrap()
}
