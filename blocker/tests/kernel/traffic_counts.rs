//! Two counts of the same traffic: blocker's and tcpdump's. The tests compare them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::{AddAssign, Sub};

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::hosts::{Daemon, Namespace};

/// Packets and their bytes, with link-layer header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl<'a> FromIterator<&'a Frame> for Sum {
    fn from_iter<I: IntoIterator<Item = &'a Frame>>(frames: I) -> Self {
        let mut sum = Self::default();
        for frame in frames {
            sum.packets += 1;
            sum.bytes += frame.length;
        }
        sum
    }
}

/// What a rule counted in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ruled {
    pub(crate) decided: Sum,
    pub(crate) replies: u64,
    pub(crate) suppressed: u64,
}

/// What a rule counted: of what came from its remotes, and of what went to them.
///
/// # Errors
/// There is no such rule.
pub(crate) fn rule(daemon: &Daemon, id: &str) -> Result<[Ruled; 2]> {
    let view = daemon.json(&["show", id])?;
    let of = |part: &str| -> Result<Ruled> {
        let number = |name: &str| number(&view[part][name]).context(format!("{part}: {name}"));
        Ok(Ruled {
            decided: Sum {
                packets: number("packets")?,
                bytes: number("bytes")?,
            },
            replies: number("replies")?,
            suppressed: number("suppressed")?,
        })
    };
    Ok([of("ingress")?, of("egress")?])
}

/// What a hook counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Hook {
    pub(crate) seen: u64,
    pub(crate) passed: u64,
    pub(crate) malformed: u64,
    pub(crate) own: u64,
}

impl Hook {
    /// Packets that a rule decided there.
    pub(crate) fn decided(&self) -> u64 {
        self.seen - self.passed
    }
}

impl Sub for Hook {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            seen: self.seen - before.seen,
            passed: self.passed - before.passed,
            malformed: self.malformed - before.malformed,
            own: self.own - before.own,
        }
    }
}

impl AddAssign for Hook {
    fn add_assign(&mut self, other: Self) {
        self.seen += other.seen;
        self.passed += other.passed;
        self.malformed += other.malformed;
        self.own += other.own;
    }
}

/// What a device's hooks counted; one that is not there counted nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Hooks {
    pub(crate) xdp: Hook,
    pub(crate) ingress: Hook,
    pub(crate) egress: Hook,
}

impl Sub for Hooks {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            xdp: self.xdp - before.xdp,
            ingress: self.ingress - before.ingress,
            egress: self.egress - before.egress,
        }
    }
}

/// What `blockctl status` says of a device's hooks, and how each is attached, in their order.
///
/// # Errors
/// The device is not attached.
pub(crate) fn hooks(daemon: &Daemon, device: &str) -> Result<(Hooks, Vec<String>)> {
    let status = daemon.json(&["status"])?;
    let interfaces = status["interfaces"].as_array();
    let interface = interfaces
        .and_then(|all| all.iter().find(|interface| interface["name"] == device))
        .with_context(|| format!("no device {device}: {status}"))?;
    let mut hooks = Hooks::default();
    let mut modes = Vec::new();
    for hook in interface["hooks"].as_array().context("no hooks")? {
        let number = |name: &str| number(&hook[name]).context(format!("a hook's {name}"));
        let counted = Hook {
            seen: number("seen")?,
            passed: number("passed")?,
            malformed: number("malformed")?,
            own: number("own")?,
        };
        match hook["hook"].as_str() {
            Some("xdp") => hooks.xdp += counted,
            Some("tc-ingress") => hooks.ingress += counted,
            _ => hooks.egress += counted,
        }
        modes.push(hook["mode"].as_str().unwrap_or_default().to_owned());
    }
    modes.sort();
    Ok((hooks, modes))
}

/// The MAC address of a host's `eth0`.
///
/// # Errors
/// It has none.
pub(crate) fn mac(host: &Namespace) -> Result<[u8; 6]> {
    let text = host.run(&["ip", "-json", "link", "show", "eth0"])?;
    let said: Value = serde_json::from_str(&text)?;
    let address = said[0]["address"].as_str().context("no address")?;
    let mut mac = [0; 6];
    for (byte, word) in mac.iter_mut().zip(address.split(':')) {
        *byte = u8::from_str_radix(word, 16)?;
    }
    Ok(mac)
}

fn number(value: &Value) -> Option<u64> {
    value.as_u64()
}

/// What the tests need to know of a captured frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame {
    /// Its length, with the Ethernet header.
    pub(crate) length: u64,
    /// Its source MAC address.
    pub(crate) from: [u8; 6],
    /// Its IP source and destination, if it is an IP packet.
    pub(crate) addresses: Option<(IpAddr, IpAddr)>,
    /// A RST or a destination unreachable.
    pub(crate) kind: Kind,
}

/// The kinds of frames that the tests tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Reset,
    Unreachable,
    /// IPv6 neighbour discovery, which always passes.
    Neighbour,
    Other,
}

impl Frame {
    /// Reads a frame without VLAN tags.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let mut from = [0; 6];
        from.copy_from_slice(&bytes[6..12]);
        let ip = &bytes[14..];
        let (addresses, protocol, next) = match bytes[12..14] {
            [0x08, 0x00] => {
                let address = |at: usize| {
                    let octets = [ip[at], ip[at + 1], ip[at + 2], ip[at + 3]];
                    IpAddr::from(Ipv4Addr::from(octets))
                };
                let later = ip[6] & 0x1f != 0 || ip[7] != 0;
                let protocol = if later { 255 } else { ip[9] };
                (Some((address(12), address(16))), protocol, &ip[20..])
            }
            [0x86, 0xdd] => {
                let address = |at: usize| {
                    let mut octets = [0; 16];
                    octets.copy_from_slice(&ip[at..at + 16]);
                    IpAddr::from(Ipv6Addr::from(octets))
                };
                (Some((address(8), address(24))), ip[6], &ip[40..])
            }
            _ => (None, 255, ip),
        };
        let kind = match (protocol, next) {
            (6, tcp) if tcp[13] & 4 != 0 => Kind::Reset,
            (1, [3, ..]) | (58, [1, ..]) => Kind::Unreachable,
            (58, [135 | 136, ..]) => Kind::Neighbour,
            _ => Kind::Other,
        };
        Self {
            length: bytes.len() as u64,
            from,
            addresses,
            kind,
        }
    }

    /// Whether it is of a kind that blocker sends as a reply.
    pub(crate) fn is_reply(&self) -> bool {
        matches!(self.kind, Kind::Reset | Kind::Unreachable)
    }
}
