//! A flow's 5-tuple as a rule sees it, and the state of its socket.
//!
//! Pure. [`super::sockets`] and [`super::conntrack`] find flows; [`super::rounds`] kills them.

use std::net::{IpAddr, Ipv6Addr};

use blocker_ebpf::FlowKey;
pub(crate) use blocker_ebpf::headers::protocol::{TCP, UDP};

use crate::wire::LiveFlow;

/// One 5-tuple as a rule sees it. IPv4 addresses are plain, never v4-mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// IP protocol number.
    pub protocol: u8,
    /// The remote's address.
    pub remote: IpAddr,
    /// The remote's port, 0 where the protocol has none.
    pub remote_port: u16,
    /// The address of the local side.
    pub local: IpAddr,
    /// The port of the local side, 0 where the protocol has none.
    pub local_port: u16,
}

impl Tuple {
    /// The key under which the datapath notes the RSTs of this flow.
    pub(crate) fn key(&self) -> FlowKey {
        FlowKey {
            remote: mapped(self.remote),
            local: mapped(self.local),
            remote_port: self.remote_port,
            local_port: self.local_port,
            protocol: u32::from(self.protocol),
        }
    }

    /// As it is shown to people.
    pub(crate) fn live(&self, state: &str) -> LiveFlow {
        LiveFlow {
            protocol: protocol_name(self.protocol),
            remote: self.remote,
            remote_port: self.remote_port,
            local: self.local,
            local_port: self.local_port,
            state: state.to_owned(),
            process: None,
            pid: None,
        }
    }
}

impl From<&FlowKey> for Tuple {
    /// The key is that of a TCP flow: the datapath records no others.
    fn from(key: &FlowKey) -> Self {
        Self {
            protocol: TCP,
            remote: unmapped(Ipv6Addr::from(key.remote)),
            remote_port: key.remote_port,
            local: unmapped(Ipv6Addr::from(key.local)),
            local_port: key.local_port,
        }
    }
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// An address as it is on the wire: v4-mapped ones (an IPv6 socket that talks IPv4) unwrapped.
pub(crate) fn on_the_wire(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => unmapped(v6),
        v4 @ IpAddr::V4(_) => v4,
    }
}

fn unmapped(address: Ipv6Addr) -> IpAddr {
    address
        .to_ipv4_mapped()
        .map_or(IpAddr::V6(address), IpAddr::V4)
}

/// `tcp`, `udp`, or the number.
fn protocol_name(protocol: u8) -> String {
    match protocol {
        TCP => "tcp".to_owned(),
        UDP => "udp".to_owned(),
        number => number.to_string(),
    }
}

/// States of a TCP socket, after `include/net/tcp_states.h`; UDP borrows the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Established,
    SynSent,
    SynReceived,
    FinWait1,
    FinWait2,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
}

impl State {
    /// From a state number of `sock_diag`.
    pub(crate) const fn from_diag(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Established,
            2 => Self::SynSent,
            // 12 is TCP_NEW_SYN_RECV: a request that has no socket of its own yet.
            3 | 12 => Self::SynReceived,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 => Self::Close,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            _ => return None,
        })
    }

    /// Its name in RFC 9293.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Established => "ESTABLISHED",
            Self::SynSent => "SYN-SENT",
            Self::SynReceived => "SYN-RECEIVED",
            Self::FinWait1 => "FIN-WAIT-1",
            Self::FinWait2 => "FIN-WAIT-2",
            Self::TimeWait => "TIME-WAIT",
            Self::Close => "CLOSED",
            Self::CloseWait => "CLOSE-WAIT",
            Self::LastAck => "LAST-ACK",
            Self::Listen => "LISTEN",
            Self::Closing => "CLOSING",
        }
    }

    /// Whether a socket in it belongs to a flow that can be killed.
    ///
    /// LISTEN is a server, not a flow. In TIME-WAIT the flow is over.
    pub(crate) const fn killable(self) -> bool {
        !matches!(self, Self::Listen | Self::TimeWait | Self::Close)
    }

    /// Whether the remote has, or may have, a connection that must be reset too.
    ///
    /// In SYN-SENT it has none: its SYN-ACK, if one comes, meets the rule.
    pub(crate) const fn remote_lives(self) -> bool {
        !matches!(self, Self::SynSent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_v4_mapped_with_ports_in_host_order() {
        let tuple = Tuple {
            protocol: TCP,
            remote: "192.0.2.7".parse().unwrap(),
            remote_port: 443,
            local: "10.0.0.1".parse().unwrap(),
            local_port: 50_000,
        };
        let key = tuple.key();
        assert_eq!(
            key.remote,
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7]
        );
        assert_eq!(key.local[12..], [10, 0, 0, 1]);
        assert_eq!((key.remote_port, key.local_port), (443, 50_000));
        assert_eq!(key.protocol, 6);
    }

    #[test]
    fn a_mapped_address_is_ipv4_on_the_wire() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(
            on_the_wire(address("::ffff:192.0.2.7")),
            address("192.0.2.7")
        );
        assert_eq!(on_the_wire(address("2001:db8::1")), address("2001:db8::1"));
    }

    #[test]
    fn a_server_is_never_killable() {
        let killable: Vec<_> = (0..=13)
            .filter_map(State::from_diag)
            .filter(|state| state.killable())
            .map(State::name)
            .collect();
        assert_eq!(
            killable,
            [
                "ESTABLISHED",
                "SYN-SENT",
                "SYN-RECEIVED",
                "FIN-WAIT-1",
                "FIN-WAIT-2",
                "CLOSE-WAIT",
                "LAST-ACK",
                "CLOSING",
                "SYN-RECEIVED"
            ]
        );
    }
}
