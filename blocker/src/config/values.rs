//! The values of single keys: words, numbers in a range. Errors name what was found and what is
//! expected.

use std::fmt;
use std::net::SocketAddr;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::rule::{check_interface, interface_matches};

/// Which devices are attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interfaces {
    /// Every device except loopback, as devices appear and disappear.
    Auto,
    /// Devices with these names or globs, as they appear and disappear. Not empty.
    Named(Vec<DeviceName>),
}

impl Interfaces {
    /// Whether to attach to a device of this name. Loopback is never attached.
    #[must_use]
    pub fn covers(&self, device: &str) -> bool {
        let named = |pattern: &DeviceName| interface_matches(&pattern.0, device);
        device != "lo"
            && match self {
                Self::Auto => true,
                Self::Named(patterns) => patterns.iter().any(named),
            }
    }
}

impl Serialize for Interfaces {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Named(names) => names.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Interfaces {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const LIST: &str = "auto, or a list of device names and globs such as [eth0, \"veth*\"]";

        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Interfaces;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(LIST)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Interfaces, E> {
                match text {
                    "auto" => Ok(Interfaces::Auto),
                    _ => Err(E::custom(format!("found {text:?}, expected {LIST}"))),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Interfaces, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = list.next_element()? {
                    names.push(name);
                }
                if names.is_empty() {
                    return Err(de::Error::custom(format!(
                        "found an empty list, expected {LIST}"
                    )));
                }
                Ok(Interfaces::Named(names))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// The name of a device, or a glob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceName(String);

impl DeviceName {
    /// The name or glob.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for DeviceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        check_interface(&name).map_err(de::Error::custom)?;
        if name == "lo" {
            return Err(de::Error::custom(
                "lo is never attached: replies to this host's own packets would loop there",
            ));
        }
        Ok(Self(name))
    }
}

/// A key that takes one of a few words.
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name { $($(#[$vmeta])* $variant),* }
    };
}

choice! {
    /// What is done with the rules when the daemon stops.
    OnStop {
        /// They are lifted.
        Lift,
        /// They stay in force, without a daemon.
        Keep,
    }
}

choice! {
    /// Who may read over the control socket, besides root and its group.
    ReadAccess {
        /// Nobody.
        None,
        /// Everybody whom the permissions of the socket admit.
        All,
    }
}

/// Permissions of the control socket, in octal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketMode(u32);

impl SocketMode {
    /// The permission bits, as `chmod(2)` takes them.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl Default for SocketMode {
    fn default() -> Self {
        Self(0o660)
    }
}

impl Serialize for SocketMode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{:04o}", self.0))
    }
}

impl<'de> Deserialize<'de> for SocketMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
        u32::from_str_radix(&text, 8)
            .ok()
            .filter(|bits| digits && *bits <= 0o777)
            .map(Self)
            .ok_or_else(|| {
                de::Error::custom(format!(
                    "mode {text:?} is not valid: expected permissions in octal, such as \"0660\""
                ))
            })
    }
}

/// Reads an address and a port to listen on, or null, which is how "nowhere" is printed.
pub(super) fn listen<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    text.parse()
        .ok()
        .filter(|address: &SocketAddr| address.port() != 0)
        .map(Some)
        .ok_or_else(|| {
            de::Error::custom(format!(
                "listen {text:?} is not valid: expected an address and a port, such as 127.0.0.1:9921 or \"[::1]:9921\""
            ))
        })
}

/// Reads a whole number from `LEAST` to `MOST`, in decimal digits.
pub(super) fn whole<'de, const LEAST: u32, const MOST: u32, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse()
        .ok()
        .filter(|number| {
            text.bytes().all(|b| b.is_ascii_digit()) && (LEAST..=MOST).contains(number)
        })
        .ok_or_else(|| {
            de::Error::custom(format!(
                "found {text:?}, expected a whole number from {LEAST} to {MOST}"
            ))
        })
}
