//! JSON Schema of a rule's parts that are text with a grammar.

use super::{Lifetime, RuleId};
use crate::matching::text::schemas;

/// What an id looks like.
pub(crate) const ID_PATTERN: &str = "^[a-z0-9][a-z0-9._-]{0,62}$";

schemas! {
    RuleId: { "type": "string", "pattern": ID_PATTERN };
    Lifetime: {
        "type": "string",
        "description": "A span of time: 500ms, 30s, 5m, 1h30m, 2d.",
        "pattern": "[0-9] *[a-zA-Zµ]",
    };
}
