//! A connection that netfilter tracks, and how rules and probes see it on either side of a NAT.
//!
//! Pure. [`super::conntrack`] reads and deletes such connections.

use std::net::{IpAddr, SocketAddr};

use netlink_packet_netfilter::conntrack::ConntrackAttribute;

use super::flow::{TCP, Tuple};
use super::segment::Probe;

/// One direction of a tracked connection, as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wire {
    /// The sender in this direction.
    pub(crate) source: (IpAddr, u16),
    /// The receiver in this direction.
    pub(crate) destination: (IpAddr, u16),
}

/// An end of a tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The end that opened it.
    Initiator,
    /// The end that accepted it.
    Responder,
}

impl End {
    /// The other one.
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Initiator => Self::Responder,
            Self::Responder => Self::Initiator,
        }
    }
}

/// A tracked connection as a rule may see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    /// The flow.
    pub(crate) tuple: Tuple,
    /// Which end the remote is.
    pub(crate) remote_end: End,
    /// Whether this host's devices see it so: a NAT changes packets between them.
    pub(crate) on_the_wire: bool,
}

/// A tracked connection.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    /// IP protocol number.
    pub(crate) protocol: u8,
    /// State number of TCP (`nf_conntrack_tcp.h`).
    pub(crate) state: Option<u8>,
    /// As its initiator sends.
    pub(crate) original: Wire,
    /// As its responder answers; with NAT not the mirror image.
    pub(crate) reply: Wire,
    /// What identifies the entry when it is deleted: its original tuple, id and zone.
    pub(crate) name: Vec<ConntrackAttribute>,
}

impl Connection {
    /// The connection as rules may see it: either end as the remote, on either side of a NAT.
    ///
    /// Devices see what the initiator sends as it comes in, and what the responder answers.
    pub(crate) fn views(&self) -> Vec<View> {
        let mut views: Vec<View> = Vec::with_capacity(4);
        let (original, reply) = (self.original, self.reply);
        for (remote, local, remote_end, on_the_wire) in [
            (original.source, original.destination, End::Initiator, true),
            (original.destination, original.source, End::Responder, false),
            (reply.source, reply.destination, End::Responder, true),
            (reply.destination, reply.source, End::Initiator, false),
        ] {
            let tuple = Tuple {
                protocol: self.protocol,
                remote: remote.0,
                remote_port: remote.1,
                local: local.0,
                local_port: local.1,
            };
            match views.iter_mut().find(|view| view.tuple == tuple) {
                Some(view) => view.on_the_wire |= on_the_wire,
                None => views.push(View {
                    tuple,
                    remote_end,
                    on_the_wire,
                }),
            }
        }
        views
    }

    /// A probe to one of its ends, in the name of the other as that end knows it.
    pub(crate) fn probe_to(&self, end: End) -> Probe {
        let socket = |(address, port): (IpAddr, u16)| SocketAddr::new(address, port);
        match end {
            End::Initiator => Probe {
                from: socket(self.original.destination),
                to: socket(self.original.source),
                device: 0,
            },
            End::Responder => Probe {
                from: socket(self.reply.destination),
                to: socket(self.reply.source),
                device: 0,
            },
        }
    }

    /// Whether its ends may have a connection: not in SYN-SENT, nor when it is over.
    pub(crate) fn lives(&self) -> bool {
        self.protocol == TCP && matches!(self.state, Some(2..=6))
    }

    /// Whether netfilter counts it as closed by a RST that its ends may not have accepted. A netfilter
    /// rule that answers with RSTs leaves such connections, of which one end may be alive.
    pub(crate) fn doubtful(&self) -> bool {
        self.protocol == TCP && self.state == Some(8)
    }

    /// The state's name.
    pub(crate) fn state_name(&self) -> &'static str {
        match self.state {
            Some(1 | 9) => "SYN-SENT",
            Some(2) => "SYN-RECEIVED",
            Some(3) => "ESTABLISHED",
            Some(4) => "FIN-WAIT",
            Some(5) => "CLOSE-WAIT",
            Some(6) => "LAST-ACK",
            Some(7) => "TIME-WAIT",
            Some(8) => "CLOSED",
            _ => "TRACKED",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(address: &str, port: u16) -> (IpAddr, u16) {
        (address.parse().unwrap(), port)
    }

    fn connection(original: [(IpAddr, u16); 2], reply: [(IpAddr, u16); 2]) -> Connection {
        let wire = |ends: [(IpAddr, u16); 2]| Wire {
            source: ends[0],
            destination: ends[1],
        };
        Connection {
            protocol: TCP,
            state: Some(3),
            original: wire(original),
            reply: wire(reply),
            name: Vec::new(),
        }
    }

    fn shown(connection: &Connection) -> Vec<String> {
        connection
            .views()
            .iter()
            .map(|view| {
                let v = view.tuple;
                let hidden = if view.on_the_wire { "" } else { " (hidden)" };
                format!(
                    "{}:{} {}:{}{hidden}",
                    v.remote, v.remote_port, v.local, v.local_port
                )
            })
            .collect()
    }

    #[test]
    fn without_nat_a_connection_has_two_views() {
        let (client, server) = (end("10.0.0.2", 5000), end("192.0.2.7", 80));
        assert_eq!(
            shown(&connection([client, server], [server, client])),
            ["10.0.0.2:5000 192.0.2.7:80", "192.0.2.7:80 10.0.0.2:5000"]
        );
    }

    #[test]
    fn behind_a_masquerade_the_remote_is_seen_with_either_local_address() {
        let (client, server) = (end("10.0.0.2", 5000), end("192.0.2.7", 80));
        let outside = end("198.51.100.1", 61_000);
        assert_eq!(
            shown(&connection([client, server], [server, outside])),
            [
                "10.0.0.2:5000 192.0.2.7:80",
                "192.0.2.7:80 10.0.0.2:5000 (hidden)",
                "192.0.2.7:80 198.51.100.1:61000",
                "198.51.100.1:61000 192.0.2.7:80 (hidden)"
            ]
        );
    }

    #[test]
    fn each_end_is_probed_in_the_name_that_it_knows() {
        let (client, server) = (end("10.0.0.2", 5000), end("192.0.2.7", 80));
        let outside = end("198.51.100.1", 61_000);
        let tracked = connection([client, server], [server, outside]);
        let remote = &tracked.views()[1];
        assert_eq!(remote.remote_end, End::Responder);
        let shown = |probe: Probe| format!("{} -> {}", probe.from, probe.to);
        assert_eq!(
            shown(tracked.probe_to(remote.remote_end)),
            "198.51.100.1:61000 -> 192.0.2.7:80"
        );
        assert_eq!(
            shown(tracked.probe_to(remote.remote_end.other())),
            "192.0.2.7:80 -> 10.0.0.2:5000"
        );
    }

    #[test]
    fn only_connections_whose_ends_may_live_are_killed() {
        let (client, server) = (end("10.0.0.2", 5000), end("192.0.2.7", 80));
        let mut tracked = connection([client, server], [server, client]);
        let lives: Vec<&str> = (0..=9)
            .filter_map(|state| {
                tracked.state = Some(state);
                tracked.lives().then(|| tracked.state_name())
            })
            .collect();
        assert_eq!(
            lives,
            [
                "SYN-RECEIVED",
                "ESTABLISHED",
                "FIN-WAIT",
                "CLOSE-WAIT",
                "LAST-ACK"
            ]
        );
    }
}
