//! The parts of a rule that have a grammar: ids, ports, protocols, lifetimes.

use std::fmt;
use std::str::FromStr;

use jiff::SignedDuration;

use super::RuleError;
use super::text::text_serde;

/// A rule's name: `[a-z0-9][a-z0-9._-]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(String);

impl RuleId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RuleId {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let mut bytes = text.bytes();
        let first = bytes
            .next()
            .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let rest =
            bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
        if first && rest && text.len() <= 63 {
            Ok(Self(text.to_owned()))
        } else {
            Err(RuleError::Id(text.to_owned()))
        }
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A port or an inclusive range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    /// The first port.
    pub first: u16,
    /// The last port, which is in the range.
    pub last: u16,
}

impl FromStr for Ports {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let port = |part: &str| {
            // u16's own parser takes "+80", which is a typing error here.
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            part.parse::<u16>()
                .ok()
                .filter(|_| digits)
                .ok_or_else(|| RuleError::Port(text.to_owned()))
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (port(first.trim())?, port(last.trim())?),
            None => (port(text)?, port(text)?),
        };
        if first > last {
            return Err(RuleError::PortOrder { first, last });
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// The protocol that a rule is narrowed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// Every protocol.
    #[default]
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP for IPv4, ICMPv6 for IPv6.
    Icmp,
    /// An IP protocol number (IANA "Assigned Internet Protocol Numbers").
    Number(u8),
}

impl FromStr for Protocol {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        Ok(match text {
            "any" => Self::Any,
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            "icmp" => Self::Icmp,
            number => match number.parse() {
                _ if !number.bytes().all(|b| b.is_ascii_digit()) => {
                    return Err(RuleError::Protocol(text.to_owned()));
                }
                // One form for what has a name: equal rules are to be equal.
                Ok(6) => Self::Tcp,
                Ok(17) => Self::Udp,
                Ok(n) => Self::Number(n),
                Err(_) => return Err(RuleError::Protocol(text.to_owned())),
            },
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.pad("any"),
            Self::Tcp => f.pad("tcp"),
            Self::Udp => f.pad("udp"),
            Self::Icmp => f.pad("icmp"),
            Self::Number(n) => f.pad(&n.to_string()),
        }
    }
}

/// A span of time until a deadline: `30s`, `5m`, `1h30m`, `2d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lifetime(SignedDuration);

impl Lifetime {
    const MOST: SignedDuration = SignedDuration::from_hours(3650 * 24);

    /// The span.
    #[must_use]
    pub const fn duration(self) -> SignedDuration {
        self.0
    }
}

impl FromStr for Lifetime {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let error = || RuleError::Duration(text.to_owned());
        // A day here is 24 hours: a deadline counts time, not calendars.
        let span: jiff::Span = text.parse().map_err(|_| error())?;
        let duration = span
            .to_duration(jiff::SpanRelativeTo::days_are_24_hours())
            .map_err(|_| error())?;
        if duration <= SignedDuration::ZERO || duration > Self::MOST {
            return Err(error());
        }
        Ok(Self(duration))
    }
}

impl fmt::Display for Lifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

text_serde!(RuleId);
// Numbers, too: `ports: [80]` and `protocol: 47` need no quotes.
text_serde!(Ports, deserialize_any);
text_serde!(Protocol, deserialize_any);
text_serde!(Lifetime);
