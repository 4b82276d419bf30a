//! Errors of rules and their parts.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use jiff::Timestamp;

use super::Protocol;

/// What is wrong with a rule or a part of one. The text names the wrong part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Not an address or prefix.
    #[error(
        "target {0:?} is neither an address nor a prefix: write 192.0.2.7, 192.0.2.0/24, 2001:db8::1 or 2001:db8::/32"
    )]
    Target(String),
    /// A prefix with bits set after its length.
    #[error(
        "target {text:?} has bits set behind its prefix length: write {network} for the whole prefix, or {address} for the one address"
    )]
    HostBits {
        /// What was written.
        text: String,
        /// The prefix with these bits cleared.
        network: IpNet,
        /// The address itself.
        address: IpAddr,
    },
    /// An IPv4-mapped IPv6 address (RFC 4291, section 2.5.5.2).
    #[error(
        "target {text:?} is an IPv4-mapped address, which never appears on the wire: write {v4}"
    )]
    Mapped {
        /// What was written.
        text: String,
        /// The mapped IPv4 address or prefix.
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
    /// A range whose first port is above its last port.
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
    /// Not one of the words of an enumerated field.
    #[error("{what} {found:?} is not known: {expected}")]
    Word {
        /// What the word should name.
        what: &'static str,
        /// What was found.
        found: String,
        /// The words that are known.
        expected: &'static str,
    },
    /// Not a percentage.
    #[error("percent {0} is not valid: a whole number from 1 to 100")]
    Percent(String),
    /// Not a duration.
    #[error(
        "duration {0:?} is not valid: write 30s, 5m, 1h30m or 2d, more than nothing and at most 3650d"
    )]
    Duration(String),
    /// Both `for` and `expires`.
    #[error("'for' and 'expires' both set a deadline: give one of them")]
    TwoDeadlines,
    /// A deadline in the past.
    #[error("expires {0} is in the past")]
    Expired(Timestamp),
    /// No target.
    #[error("a rule needs at least one target")]
    NoTargets,
    /// A targets file that was not loaded.
    #[error(
        "targets_file {:?} is for the configuration and for blockctl, who read it themselves: over the API, send its addresses and prefixes as targets", .0.display()
    )]
    TargetsFile(PathBuf),
    /// Ports without a protocol that has them.
    #[error(
        "ports match only tcp and udp, not protocol {0}: drop the ports, or set the protocol to tcp, udp or any"
    )]
    PortsWithout(Protocol),
    /// An option that contradicts another field.
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
    /// A comment that is too long or has control characters.
    #[error("comment is not valid: at most 256 characters, none of them a control character")]
    Comment,
}
