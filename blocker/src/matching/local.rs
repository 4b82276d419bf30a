//! Match field: local addresses.

use ipnet::IpNet;

use super::{Holds, Match, Packet, Tried};

impl Match {
    /// The local prefixes that the match is limited to; `None`: every local address matches.
    pub(crate) fn local_prefixes(&self) -> Option<Vec<IpNet>> {
        let prefixes = || self.local.iter().map(|target| target.net()).collect();
        (!self.local.is_empty()).then(prefixes)
    }

    /// The local addresses in words: `local address 10.0.0.1`.
    pub(crate) fn local_words(&self) -> String {
        let names: Vec<String> = self.local.iter().map(ToString::to_string).collect();
        format!("local address {}", names.join(","))
    }
}

impl Tried {
    /// Whether the packet's local address is in the rule's prefixes.
    pub(super) fn local_fits(&self, packet: &Packet) -> Holds {
        let Some(prefixes) = &self.locals else {
            return Holds::Always;
        };
        let of_family = |net: &&IpNet| net.addr().is_ipv6() == packet.v6;
        let mut prefixes = prefixes.iter().filter(of_family).peekable();
        match packet.local {
            Some(local) => Holds::from(prefixes.any(|net| net.contains(&local))),
            None if prefixes.peek().is_none() => Holds::Never,
            None => Holds::Sometimes,
        }
    }
}
