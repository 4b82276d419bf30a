//! What narrows a rule beyond its targets, its match, and which of several rules decides a packet
//! ([`Decider`]).
//!
//! Pure. A [`Match`] has one field for each thing that can narrow a rule; the default of every field
//! is "any". [`match_fields`] lists the fields, and everything that must enumerate them is made
//! from that list: [`Match`] itself, and the flat form (YAML, JSON) of every struct that holds one
//! ([`with_match`]). Each field has a file: its type, text and JSON Schema, its number in a compiled
//! rule, which packets fit, and how it reads in a sentence.

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
/// the type that it is read as where it may be absent. The default of each means "any".
///
/// A field whose type says "any" by being empty is not written then; others always are.
macro_rules! match_fields {
    ([$($callback:tt)+] $arguments:tt) => {
        $($callback)+! { $arguments
            /// Which way.
            direction: $crate::matching::Direction = Option<$crate::matching::Direction>,
            /// Which protocol.
            protocol: $crate::matching::Protocol = Option<$crate::matching::Protocol>,
            /// Ports, one of which either side's must be; empty: any.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            ports: Vec<$crate::matching::Ports> = Vec<$crate::matching::Ports>,
            /// Ports, one of which the local side's must be; empty: any.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            local_ports: Vec<$crate::matching::Ports> = Vec<$crate::matching::Ports>,
            /// Ports, one of which the remote's must be; empty: any.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            remote_ports: Vec<$crate::matching::Ports> = Vec<$crate::matching::Ports>,
            /// Addresses and prefixes of this host's side (its own, or behind it) to which the rule
            /// is limited; empty: any.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            local: Vec<$crate::matching::Target> = Vec<$crate::matching::Target>,
            /// Devices (names or globs) to which the rule is limited; empty: every attached one.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            interfaces: Vec<String> = Vec<String>,
            /// How many of a hundred packets (flows, for `reset`) are taken.
            percent: $crate::matching::Percent = Option<$crate::matching::Percent>,
        }
    };
}

macro_rules! define_match {
    ({} $($(#[$meta:meta])* $field:ident: $type:ty = $asked:ty,)*) => {
        /// What further narrows a rule. Absent means any.
        #[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, JsonSchema)]
        pub struct Match { $($(#[$meta])* pub $field: $type,)* }

        impl Match {
            /// Writes only the fields that narrow, as a rule that is asked for is written.
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

/// A field as it is read where it may be absent.
pub(crate) trait Asked<T> {
    /// The field; "any" if it is absent.
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

/// Declares a struct that holds a [`Match`], whose fields stand flat among the struct's own in YAML
/// and JSON; where the match stands, `@match { }` declares the field that holds it.
///
/// `serde(flatten)` serves for writing. For reading it does not: it excludes `deny_unknown_fields`,
/// and errors lose their line and column. The struct is therefore read `from` a form that has all the
/// fields, which this declares as well: each field of the match may be absent (`asked`) or is as
/// [`Match`] writes it (`whole`).
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
            /// What narrows it further.
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

/// The type of a match's field in a form, and the field from its value there.
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
    /// The same match in its one form, so that equal matches are equal values: lists sorted and free
    /// of duplicates.
    ///
    /// # Errors
    /// What is wrong with it.
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
