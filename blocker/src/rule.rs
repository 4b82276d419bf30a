//! What a rule is: its parts, how each is read from text, and how it is written back.
//!
//! Pure. A [`RuleSpec`] is what a person or a program asked for (YAML, JSON or flags, the same
//! fields everywhere); [`RuleSpec::resolve`] turns it into a [`Rule`], in which every default is
//! made explicit. Whether a rule is wise is [`crate::safety`]'s question, whether it fits the
//! datapath is [`crate::compile`]'s.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What is wrong with a rule or a part of one, in words that name the culprit and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Not an address or prefix.
    #[error(
        "target {0:?} is neither an address nor a prefix: write 192.0.2.7, 192.0.2.0/24, 2001:db8::1 or 2001:db8::/32"
    )]
    Target(String),
    /// A prefix with bits set behind its length.
    #[error(
        "target {text:?} has bits set behind its prefix length: write {network} for the whole prefix, or {address} for the one address"
    )]
    HostBits {
        /// What was written.
        text: String,
        /// The prefix that it lies in.
        network: IpNet,
        /// The address itself.
        address: IpAddr,
    },
    /// An IPv4 address in IPv6 clothes.
    #[error(
        "target {text:?} is an IPv4-mapped address, which never appears on the wire: write {v4}"
    )]
    Mapped {
        /// What was written.
        text: String,
        /// The IPv4 address or prefix meant.
        v4: String,
    },
    /// Not an id.
    #[error(
        "id {0:?} is not valid: 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit"
    )]
    Id(String),
    /// Not a port or a range.
    #[error("port {0:?} is not valid: write a port from 0 to 65535, or a range such as 8080-8085")]
    Port(String),
    /// A range that runs backwards.
    #[error("port range {first}-{last} runs backwards: write {last}-{first}")]
    PortOrder {
        /// Its first port.
        first: u16,
        /// Its last port.
        last: u16,
    },
    /// Not a protocol.
    #[error("protocol {0:?} is not known: any, tcp, udp, icmp, or a number from 0 to 255")]
    Protocol(String),
    /// One of a few words was expected.
    #[error("{what} {found:?} is not known: {expected}")]
    Word {
        /// What the word was to name.
        what: &'static str,
        /// What was found.
        found: String,
        /// The words that are known.
        expected: &'static str,
    },
    /// Not a percentage.
    #[error("percent {0} is not valid: a whole number from 1 to 100")]
    Percent(u64),
    /// Not a duration.
    #[error(
        "duration {0:?} is not valid: write 30s, 5m, 1h30m or 2d, more than nothing and at most 3650d"
    )]
    Duration(String),
    /// A deadline twice.
    #[error("'for' and 'expires' both set a deadline: give one of them")]
    TwoDeadlines,
    /// A deadline in the past.
    #[error("expires {0} is in the past")]
    Expired(Timestamp),
    /// Nothing to block.
    #[error("a rule needs at least one target")]
    NoTargets,
    /// Ports without a protocol that has them.
    #[error(
        "ports match only tcp and udp, not protocol {0}: drop the ports, or set the protocol to tcp, udp or any"
    )]
    PortsWithout(Protocol),
    /// An option that the mode gives no meaning to.
    #[error("{option} makes no sense with {with}: {why}")]
    Contradiction {
        /// The option.
        option: &'static str,
        /// What it contradicts.
        with: String,
        /// Why.
        why: &'static str,
    },
    /// Not an interface name or glob.
    #[error(
        "interface {0:?} is not valid: a device name of 1 to 15 characters without '/' or blanks, or a glob such as veth*"
    )]
    Interface(String),
    /// A comment that would break a table or a log line.
    #[error("comment is not valid: at most 256 characters, none of them a control character")]
    Comment,
}

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

/// An address or prefix that names remotes. Written without `/32` or `/128`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target(IpNet);

impl Target {
    /// The prefix.
    #[must_use]
    pub const fn net(self) -> IpNet {
        self.0
    }

    /// Whether it names exactly one address.
    #[must_use]
    pub fn is_host(self) -> bool {
        self.0.prefix_len() == self.0.max_prefix_len()
    }
}

impl From<IpNet> for Target {
    /// Bits behind the prefix length are cleared.
    fn from(net: IpNet) -> Self {
        Self(net.trunc())
    }
}

impl From<IpAddr> for Target {
    fn from(address: IpAddr) -> Self {
        Self(IpNet::from(address))
    }
}

impl FromStr for Target {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let net = match text.parse::<IpNet>() {
            Ok(net) => net,
            Err(_) => text
                .parse::<IpAddr>()
                .map(IpNet::from)
                .map_err(|_| RuleError::Target(text.to_owned()))?,
        };
        if let IpNet::V6(v6) = net
            && let Some(v4) = v6.addr().to_ipv4_mapped()
            && v6.prefix_len() >= 96
        {
            let v4 = match v6.prefix_len() {
                128 => v4.to_string(),
                length => format!("{v4}/{}", length - 96),
            };
            return Err(RuleError::Mapped {
                text: text.to_owned(),
                v4,
            });
        }
        if net.addr() != net.network() {
            return Err(RuleError::HostBits {
                text: text.to_owned(),
                network: net.trunc(),
                address: net.addr(),
            });
        }
        Ok(Self(net))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() {
            f.pad(&self.0.addr().to_string())
        } else {
            f.pad(&self.0.to_string())
        }
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
            "tcp" | "6" => Self::Tcp,
            "udp" | "17" => Self::Udp,
            "icmp" => Self::Icmp,
            number => match number.parse() {
                Ok(n) if number.bytes().all(|b| b.is_ascii_digit()) => Self::Number(n),
                _ => return Err(RuleError::Protocol(text.to_owned())),
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

/// An enum of words: text both ways, serde both ways, and one error that lists the words.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident, $what:literal, $expected:literal, { $($(#[$vmeta:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vmeta])* $variant),* }

        impl $name {
            /// Every value, in the order in which they are documented.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The word that names it in YAML, JSON and flags.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }

        impl FromStr for $name {
            type Err = RuleError;
            fn from_str(text: &str) -> Result<Self, RuleError> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(RuleError::Word { what: $what, found: text.to_owned(), expected: $expected }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(self.word()) }
        }

        text_serde!($name);
    };
}

/// Serde by `Display` and `FromStr`, from text alone: an id written `1_000` or `12.50` is not to
/// become `1000` or `12.5` on its way through a number.
macro_rules! text_serde {
    ($name:ident) => {
        text_serde!($name, deserialize_str);
    };
    ($name:ident, $deserialize:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.$deserialize(TextVisitor(std::marker::PhantomData))
            }
        }
    };
}

struct TextVisitor<T>(std::marker::PhantomData<T>);

impl<T: FromStr<Err = RuleError>> de::Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

text_serde!(RuleId);
text_serde!(Target);
// Numbers, too: `ports: [80]` and `protocol: 47` need no quotes.
text_serde!(Ports, deserialize_any);
text_serde!(Protocol, deserialize_any);

words! {
    /// What is done with a packet that a rule decides.
    Mode, "mode", "drop, reset, reject or audit", {
        /// Silently dropped.
        Drop = "drop",
        /// RST to both ends of TCP, ICMP port unreachable for the rest; established flows die.
        Reset = "reset",
        /// ICMP administratively prohibited.
        Reject = "reject",
        /// Counted, and passed.
        Audit = "audit",
    }
}

words! {
    /// Which way a packet must go, seen from this host.
    Direction, "direction", "both, ingress or egress", {
        /// Either way.
        Both = "both",
        /// From the remote.
        Ingress = "ingress",
        /// To the remote.
        Egress = "egress",
    }
}

words! {
    /// What becomes of the flows that were established when the rule starts.
    Established, "established", "kill or keep", {
        /// Killed at both ends.
        Kill = "kill",
        /// Kept; what they send meets the rule.
        Keep = "keep",
    }
}

words! {
    /// What becomes of the blocked flows when the rule ends.
    OnLift, "on_lift", "resume or reset", {
        /// They may resume, and what is retransmitted is delivered.
        Resume = "resume",
        /// They are killed at both ends first, so that nothing sent during the block is delivered.
        Reset = "reset",
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

text_serde!(Lifetime);

/// Who put a rule there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// The configuration file.
    Config,
    /// A request over the control API.
    Api,
}

impl FromStr for Owner {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        match text {
            "config" => Ok(Self::Config),
            "api" => Ok(Self::Api),
            _ => Err(RuleError::Word {
                what: "owner",
                found: text.to_owned(),
                expected: "config or api",
            }),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Config => "config",
            Self::Api => "api",
        })
    }
}

text_serde!(Owner);

/// A rule as it is asked for. Absent fields take the defaults that [`Defaults`] and the mode give.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSpec {
    /// Its name; made up if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<RuleId>,
    /// The remotes.
    pub targets: Vec<Target>,
    /// Parts of the targets that the rule leaves alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<Target>,
    /// What is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Which way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// Which protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Ports, one of which either side's must be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Ports>,
    /// Ports, one of which the local side's must be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub local_ports: Vec<Ports>,
    /// Ports, one of which the remote's must be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remote_ports: Vec<Ports>,
    /// Devices (names or globs) to which the rule is limited; empty: every attached one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
    /// How many of a hundred packets (flows, for `reset`) are taken.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "percentage"
    )]
    pub percent: Option<u64>,
    /// What becomes of established flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub established: Option<Established>,
    /// What becomes of blocked flows at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_lift: Option<OnLift>,
    /// How long the rule lives.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub lifetime: Option<Lifetime>,
    /// When the rule ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Why it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// Reads a percentage, so that whatever is none is refused in the same words.
fn percentage<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    struct Percentage;

    impl de::Visitor<'_> for Percentage {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number from 1 to 100")
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
            match number {
                1..=100 => Ok(number),
                _ => Err(E::custom(RuleError::Percent(number))),
            }
        }

        fn visit_i64<E: de::Error>(self, number: i64) -> Result<u64, E> {
            u64::try_from(number).map_or_else(|_| wrong(&number), |number| self.visit_u64(number))
        }

        fn visit_f64<E: de::Error>(self, number: f64) -> Result<u64, E> {
            wrong(&number)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
            wrong(&text)
        }
    }

    fn wrong<E: de::Error>(found: &dyn fmt::Debug) -> Result<u64, E> {
        Err(E::custom(format!(
            "percent {found:?} is not valid: a whole number from 1 to 100"
        )))
    }

    deserializer.deserialize_any(Percentage).map(Some)
}

/// What the configuration's `defaults:` gives to rules that leave it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    /// The mode.
    pub mode: Mode,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { mode: Mode::Drop }
    }
}

/// A rule with every default made explicit.
///
/// `targets` and `except` are sorted and free of duplicates; equal rules mean the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name.
    pub id: RuleId,
    /// The remotes.
    pub targets: Vec<Target>,
    /// Parts of the targets that the rule leaves alone, carve-outs included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<Target>,
    /// What is done.
    pub mode: Mode,
    /// Which way.
    pub direction: Direction,
    /// Which protocol.
    pub protocol: Protocol,
    /// Ports, one of which either side's must be; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Ports>,
    /// Ports, one of which the local side's must be; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub local_ports: Vec<Ports>,
    /// Ports, one of which the remote's must be; empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remote_ports: Vec<Ports>,
    /// Devices (names or globs); empty: every attached one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
    /// How many of a hundred packets (flows, for `reset`) are taken: 1 to 100.
    pub percent: u8,
    /// What becomes of established flows.
    pub established: Established,
    /// What becomes of blocked flows at the end.
    pub on_lift: OnLift,
    /// When the rule ends (wall clock; the datapath keeps boot time).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Why it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

impl RuleSpec {
    /// Makes every default explicit and checks what only the whole rule can tell.
    ///
    /// `id` names the rule if the spec does not; `now` is the wall clock.
    ///
    /// # Errors
    /// The first [`RuleError`] found.
    pub fn resolve(
        self,
        id: impl FnOnce() -> RuleId,
        defaults: Defaults,
        now: Timestamp,
    ) -> Result<Rule, RuleError> {
        if self.targets.is_empty() {
            return Err(RuleError::NoTargets);
        }
        let mode = self.mode.unwrap_or(defaults.mode);
        let percent = match self.percent.unwrap_or(100) {
            percent @ 1..=100 => u8::try_from(percent).unwrap_or(100),
            percent => return Err(RuleError::Percent(percent)),
        };
        let protocol = self.protocol.unwrap_or_default();
        let has_ports =
            !(self.ports.is_empty() && self.local_ports.is_empty() && self.remote_ports.is_empty());
        if has_ports && !matches!(protocol, Protocol::Any | Protocol::Tcp | Protocol::Udp) {
            return Err(RuleError::PortsWithout(protocol));
        }
        for name in &self.interfaces {
            check_interface(name)?;
        }
        if let Some(comment) = &self.comment
            && (comment.chars().count() > 256 || comment.chars().any(char::is_control))
        {
            return Err(RuleError::Comment);
        }
        let expires = match (self.lifetime, self.expires) {
            (Some(_), Some(_)) => return Err(RuleError::TwoDeadlines),
            (Some(lifetime), None) => Some(
                now.checked_add(lifetime.duration())
                    .map_err(|_| RuleError::Duration(lifetime.to_string()))?,
            ),
            (None, Some(expires)) if expires <= now => return Err(RuleError::Expired(expires)),
            (None, expires) => expires,
        };
        let established = resolve_established(self.established, mode, percent)?;
        let on_lift = resolve_on_lift(self.on_lift, mode, percent)?;
        Ok(Rule {
            id: self.id.unwrap_or_else(id),
            targets: sorted(self.targets),
            except: sorted(self.except),
            mode,
            direction: self.direction.unwrap_or(Direction::Both),
            protocol,
            ports: sorted(self.ports),
            local_ports: sorted(self.local_ports),
            remote_ports: sorted(self.remote_ports),
            interfaces: sorted(self.interfaces),
            percent,
            established,
            on_lift,
            expires,
            comment: self.comment,
        })
    }
}

impl Rule {
    /// Checks what [`RuleSpec::resolve`] checks, for a rule that came another way than through
    /// it. A deadline in the past is none of its business.
    ///
    /// # Errors
    /// The first [`RuleError`] found.
    pub fn check(&self) -> Result<(), RuleError> {
        RuleSpec::from(self.clone())
            .resolve(|| self.id.clone(), Defaults::default(), Timestamp::MIN)
            .map(drop)
    }

    /// Whether flows that are established when the rule starts are killed.
    #[must_use]
    pub fn kills(&self) -> bool {
        self.established == Established::Kill
    }

    /// Whether two rules do the same to packets: all but the id, the comment and the deadline.
    #[must_use]
    pub fn same_effect(&self, other: &Self) -> bool {
        let bare = |rule: &Self| Self {
            id: self.id.clone(),
            comment: None,
            expires: None,
            ..rule.clone()
        };
        bare(self) == bare(other)
    }
}

impl From<Rule> for RuleSpec {
    /// The specification that resolves to the rule, whatever the defaults.
    fn from(rule: Rule) -> Self {
        Self {
            id: Some(rule.id),
            targets: rule.targets,
            except: rule.except,
            mode: Some(rule.mode),
            direction: Some(rule.direction),
            protocol: Some(rule.protocol),
            ports: rule.ports,
            local_ports: rule.local_ports,
            remote_ports: rule.remote_ports,
            interfaces: rule.interfaces,
            percent: Some(rule.percent.into()),
            established: Some(rule.established),
            on_lift: Some(rule.on_lift),
            lifetime: None,
            expires: rule.expires,
            comment: rule.comment,
        }
    }
}

fn resolve_established(
    asked: Option<Established>,
    mode: Mode,
    percent: u8,
) -> Result<Established, RuleError> {
    let kill = |with: String, why| RuleError::Contradiction {
        option: "established: kill",
        with,
        why,
    };
    match asked {
        Some(Established::Kill) if mode == Mode::Audit => {
            Err(kill("mode: audit".into(), "audit only counts"))
        }
        Some(Established::Kill) if percent < 100 => Err(kill(
            format!("percent: {percent}"),
            "a flow that only loses packets is to live",
        )),
        Some(asked) => Ok(asked),
        None if mode == Mode::Reset && percent == 100 => Ok(Established::Kill),
        None => Ok(Established::Keep),
    }
}

fn resolve_on_lift(asked: Option<OnLift>, mode: Mode, percent: u8) -> Result<OnLift, RuleError> {
    let reset = |with: String, why| RuleError::Contradiction {
        option: "on_lift: reset",
        with,
        why,
    };
    match asked {
        Some(OnLift::Reset) if mode == Mode::Audit => {
            Err(reset("mode: audit".into(), "audit only counts"))
        }
        Some(OnLift::Reset) if percent < 100 => Err(reset(
            format!("percent: {percent}"),
            "a flow that only loses packets is to live",
        )),
        asked => Ok(asked.unwrap_or(OnLift::Resume)),
    }
}

/// Device names follow `dev_valid_name` of the kernel's `net/core/dev.c`.
pub(crate) fn check_interface(name: &str) -> Result<(), RuleError> {
    let bad = name.is_empty()
        || name == "."
        || name == ".."
        || name
            .chars()
            .any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    let glob = name.contains(['*', '?', '[', '{']);
    if bad || (!glob && name.len() > 15) || (glob && globset::Glob::new(name).is_err()) {
        return Err(RuleError::Interface(name.to_owned()));
    }
    Ok(())
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort_unstable();
    list.dedup();
    list
}
