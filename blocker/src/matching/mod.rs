//! The match of a rule: conditions on packets beyond the rule's targets. [`Decider`] finds the rule
//! that decides a packet.
//!
//! Pure. A [`Match`] has one field per condition; the default of every field is "any".
//! [`match_fields`] lists the fields. The list generates [`Match`], and the flat form (YAML, JSON)
//! of every struct that contains a match ([`with_match`]). Each field has a file with its type,
//! text and JSON Schema, its value in a compiled rule, its comparison with a packet, and its words.

mod decider;
mod direction;
mod error;
mod interfaces;
mod local;
mod packet;
mod percent;
mod ports;
mod protocol;
mod target;
pub(crate) mod text;
mod tried;

use schemars::JsonSchema;
use serde::ser::{SerializeMap as _, Serializer};

pub use decider::{Decider, Outcome, Trial};
pub use direction::Direction;
pub use error::RuleError;
pub(crate) use interfaces::check_interface;
pub use interfaces::interface_matches;
pub use packet::{Packet, PacketPorts};
pub use percent::Percent;
pub use ports::Ports;
pub(crate) use ports::merged;
pub use protocol::Protocol;
pub use target::Target;
pub use tried::{Fit, Holds, Miss, Tried, Unknown};

/// The fields of a match, in the order of YAML and JSON: each with its documentation, its type, and
/// the type that is deserialized where the field may be absent. Each field's default means "any".
///
/// [`Match`] is serialized without its empty lists. Its other fields are always written.
macro_rules! match_fields {
    ([$($callback:tt)+] $arguments:tt) => {
        $($callback)+! { $arguments
            /// The direction of packets, seen from this host.
            direction: $crate::matching::Direction = Option<$crate::matching::Direction>,
            /// The IP protocol.
            protocol: $crate::matching::Protocol = Option<$crate::matching::Protocol>,
            /// Ports: the local or the remote port must be one of them; empty: any.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            ports: Vec<$crate::matching::Ports> = Vec<$crate::matching::Ports>,
            /// Ports: the local port must be one of them; empty: any.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            local_ports: Vec<$crate::matching::Ports> = Vec<$crate::matching::Ports>,
            /// Ports: the remote port must be one of them; empty: any.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            remote_ports: Vec<$crate::matching::Ports> = Vec<$crate::matching::Ports>,
            /// Local addresses and prefixes (of this host, or behind it) to which the rule is
            /// limited; empty: any.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            local: Vec<$crate::matching::Target> = Vec<$crate::matching::Target>,
            /// Devices (names or globs) to which the rule is limited; empty: all attached ones.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            interfaces: Vec<String> = Vec<String>,
            /// The percentage of packets (of flows, for `reset`) that the rule takes.
            percent: $crate::matching::Percent = Option<$crate::matching::Percent>,
        }
    };
}

macro_rules! define_match {
    ({} $($(#[$meta:meta])* $field:ident: $type:ty = $asked:ty,)*) => {
        /// The conditions of a rule on packets, beyond its targets. An absent field means any.
        #[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, JsonSchema)]
        pub struct Match { $($(#[$meta])* pub $field: $type,)* }

        impl Match {
            /// Writes only the fields that are not "any", as a requested rule is written.
            pub(crate) fn serialize_narrowing<S: Serializer>(
                &self,
                serializer: S,
            ) -> Result<S::Ok, S::Error> {
                let any = Self::default();
                let mut map = serializer.serialize_map(None)?;
                $(if self.$field != any.$field {
                    map.serialize_entry(stringify!($field), &self.$field)?;
                })*
                map.end()
            }
        }
    };
}

match_fields!([define_match] {});

/// A deserialized field that may be absent.
pub(crate) trait Asked<T> {
    /// The field's value; "any" if it is absent.
    fn or_any(self) -> T;
}

impl<T: Default> Asked<T> for Option<T> {
    fn or_any(self) -> T {
        self.unwrap_or_default()
    }
}

impl<T> Asked<Self> for Vec<T> {
    fn or_any(self) -> Self {
        self
    }
}

/// Declares a struct with a [`Match`], whose field `@match { }` declares. In YAML and JSON, the
/// match's fields are among the struct's own.
///
/// `serde(flatten)` serializes the struct. It cannot deserialize the struct: it excludes
/// `deny_unknown_fields`, and errors lose their line and column. The struct is therefore read
/// `from` a form with all the fields, which the macro also declares. In the form, each field of the
/// match may be absent (`asked`) or is as [`Match`] writes it (`whole`).
macro_rules! with_match {
    ($($declaration:tt)*) => {
        $crate::matching::match_fields!(
            [$crate::matching::declare_with_match] { $($declaration)* }
        );
    };
}

macro_rules! declare_with_match {
    (
        {
            $(#[$meta:meta])*
            $vis:vis struct $name:ident from $style:ident $(#[$form_meta:meta])* $form:ident {
                $($(#[$bmeta:meta])* $bvis:vis $before:ident: $btype:ty,)*
                @match { $(#[$mmeta:meta])* $mvis:vis $matching:ident }
                $($(#[$ameta:meta])* $avis:vis $after:ident: $atype:ty,)*
            }
        }
        $($(#[$fmeta:meta])* $field:ident: $type:ty = $asked:ty,)*
    ) => {
        $(#[$meta])*
        $vis struct $name {
            $($(#[$bmeta])* $bvis $before: $btype,)*
            /// The conditions on packets.
            $(#[$mmeta])*
            $mvis $matching: $crate::matching::Match,
            $($(#[$ameta])* $avis $after: $atype,)*
        }

        $(#[$form_meta])*
        #[serde(deny_unknown_fields)]
        struct $form {
            $($(#[$bmeta])* $before: $btype,)*
            $($(#[$fmeta])* $field: $crate::matching::form!($style type $type, $asked),)*
            $($(#[$ameta])* $after: $atype,)*
        }

        impl From<$form> for $name {
            fn from(form: $form) -> Self {
                Self {
                    $($before: form.$before,)*
                    $matching: $crate::matching::Match {
                        $($field: $crate::matching::form!($style value form.$field),)*
                    },
                    $($after: form.$after,)*
                }
            }
        }
    };
}

/// The type of a match's field in a form, and the conversion of the form's value to the field.
macro_rules! form {
    (asked type $type:ty, $asked:ty) => {
        $asked
    };
    (whole type $type:ty, $asked:ty) => {
        $type
    };
    (asked value $value:expr) => {
        $crate::matching::Asked::or_any($value)
    };
    (whole value $value:expr) => {
        $value
    };
}

pub(crate) use {declare_with_match, form, match_fields, with_match};

impl Match {
    /// The match with its lists sorted and without duplicates, so that equal matches compare equal.
    ///
    /// # Errors
    /// If ports are given for a protocol without ports, or an interface is not valid.
    pub fn normalized(self) -> Result<Self, RuleError> {
        let has_ports =
            !(self.ports.is_empty() && self.local_ports.is_empty() && self.remote_ports.is_empty());
        if has_ports && !self.protocol.may_have_ports() {
            return Err(RuleError::PortsWithout(self.protocol));
        }
        for name in &self.interfaces {
            check_interface(name)?;
        }
        Ok(Self {
            ports: sorted(self.ports),
            local_ports: sorted(self.local_ports),
            remote_ports: sorted(self.remote_ports),
            local: sorted(self.local),
            interfaces: sorted(self.interfaces),
            ..self
        })
    }
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort_unstable();
    list.dedup();
    list
}
