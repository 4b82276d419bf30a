//! JSON Schemas of a rule's id and lifetime.

use super::{Lifetime, RuleId};
use crate::matching::text::schemas;

/// The pattern of a rule's id.
pub(crate) const ID_PATTERN: &str = "^[a-z0-9][a-z0-9._-]{0,62}$";

schemas! {
    RuleId: { "type": "string", "pattern": ID_PATTERN };
    Lifetime: {
        "type": "string",
        "description": "A span of time: 500ms, 30s, 5m, 1h30m, 2d.",
        "pattern": "[0-9] *[a-zA-Zµ]",
    };
}
