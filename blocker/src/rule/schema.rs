//! JSON Schema of a rule's parts that are text with a grammar.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{Lifetime, Ports, Protocol, RuleId, Target};

/// What an id looks like.
pub(crate) const ID_PATTERN: &str = "^[a-z0-9][a-z0-9._-]{0,62}$";

macro_rules! schemas {
    ($($name:ident: $schema:tt;)+) => {$(
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )+};
}

schemas! {
    RuleId: { "type": "string", "pattern": ID_PATTERN };
    Target: {
        "type": "string",
        "description": "An address or a prefix, IPv4 or IPv6.",
        "pattern": "^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$",
    };
    Ports: {
        "description": "A port, or a range such as 8080-8085.",
        "oneOf": [
            { "type": "integer", "minimum": 0, "maximum": 65535 },
            { "type": "string", "pattern": "^[0-9]{1,5}( *- *[0-9]{1,5})?$" },
        ],
    };
    Protocol: {
        "description": "any, tcp, udp, icmp or a number.",
        "oneOf": [
            { "type": "integer", "minimum": 0, "maximum": 255 },
            { "type": "string", "pattern": "^(any|tcp|udp|icmp|[0-9]{1,3})$" },
        ],
    };
    Lifetime: {
        "type": "string",
        "description": "A span of time: 500ms, 30s, 5m, 1h30m, 2d.",
        "pattern": "[0-9] *[a-zA-Zµ]",
    };
}
