//! What is known of each flow under teardown, and the account that is made of it.
//!
//! Pure. [`super::rounds`] lists, destroys and looks, and reports it here.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;

use blocker_ebpf::{FlowKey, kill};

use super::flow::{State, TCP, Tuple};
use super::segment::Probe;
use super::tracked::{Connection, View};
use crate::wire::Left;

/// What is known of a flow's local end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LocalEnd {
    /// A socket of this host that was listed, and not destroyed since.
    Alive,
    /// A socket that was destroyed, or did not exist any more.
    Dead,
    /// A socket that the kernel would not destroy, with the errno.
    Refused(i32),
    /// No socket that was listed: another host behind this one, or a container out of reach.
    Elsewhere,
}

/// A flow under teardown.
#[derive(Debug)]
pub(crate) struct Flow {
    tuple: Tuple,
    state: &'static str,
    /// Whether the remote has, or may have, something that must get a RST.
    remote_lives: bool,
    local: LocalEnd,
    /// The same flow as rules see it beyond a NAT of this host.
    aliases: Vec<Tuple>,
    to_remote: Probe,
    to_local: Option<Probe>,
    /// Bits of [`kill`] seen so far, for any of its tuples.
    seen: u32,
}

impl Flow {
    /// Whether its local end is dead.
    fn local_dead(&self) -> bool {
        match self.local {
            LocalEnd::Dead => true,
            LocalEnd::Alive => false,
            LocalEnd::Refused(_) | LocalEnd::Elsewhere => self.seen & kill::LOCAL != 0,
        }
    }

    /// Whether its remote end is dead, or never was.
    ///
    /// Where the local end is a socket of ours, a RST that went *to* it is proof, too. Either the
    /// remote's host sent it, because it has no such connection; or the datapath made it of a segment,
    /// together with one for the remote.
    fn remote_dead(&self) -> bool {
        let proof = match self.local {
            LocalEnd::Elsewhere => kill::REMOTE,
            _ => kill::REMOTE | kill::LOCAL,
        };
        !self.remote_lives || self.seen & proof != 0
    }

    fn dead(&self) -> bool {
        self.local_dead() && self.remote_dead()
    }

    fn keys(&self) -> impl Iterator<Item = FlowKey> {
        std::iter::once(&self.tuple)
            .chain(&self.aliases)
            .map(Tuple::key)
    }

    /// Why it is not dead.
    fn why(&self, blind: Option<&str>) -> String {
        if let (Some(error), LocalEnd::Dead | LocalEnd::Elsewhere) = (blind, self.local) {
            return format!(
                "whether its ends got a RST is not known, since the datapath could not be asked: {error}"
            );
        }
        match self.local {
            LocalEnd::Alive => {
                "its socket was there again when the list was last read".to_owned()
            }
            LocalEnd::Refused(libc::EOPNOTSUPP) => {
                "the kernel lacks CONFIG_INET_DIAG_DESTROY, and the remote did not answer a probe: it dies at its next segment"
                    .to_owned()
            }
            LocalEnd::Refused(errno) => {
                let e = io::Error::from_raw_os_error(errno);
                format!("its socket could not be destroyed ({e}): it dies at its next segment")
            }
            LocalEnd::Dead => {
                "its socket here is dead, but no RST was seen to go to the remote, and it answered no probe: if it lives, its end dies at its next segment"
                    .to_owned()
            }
            LocalEnd::Elsewhere => {
                let end = match (self.local_dead(), self.remote_dead()) {
                    (false, false) => "either end",
                    (false, true) => "the local end",
                    (true, _) => "the remote end",
                };
                format!(
                    "it is forwarded, and no RST was seen to go to {end} in answer to a probe: if it lives, it dies at its next segment"
                )
            }
        }
    }
}

/// All flows under teardown.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    flows: Vec<Flow>,
    /// Numbers of flows by the namespace and tuple of their socket.
    by_socket: HashMap<(usize, Tuple), usize>,
    /// Numbers of flows by tuple, for what netfilter tracks.
    by_tuple: HashMap<Tuple, usize>,
}

impl Ledger {
    /// Takes in a socket that was listed in a namespace.
    ///
    /// `device` is that of its probes, see [`Probe::device`].
    pub(crate) fn socket(&mut self, namespace: usize, tuple: Tuple, state: State, device: u32) {
        let flow = Flow {
            tuple,
            state: state.name(),
            remote_lives: tuple.protocol == TCP && state.remote_lives(),
            local: LocalEnd::Alive,
            aliases: Vec::new(),
            to_remote: Probe {
                from: SocketAddr::new(tuple.local, tuple.local_port),
                to: SocketAddr::new(tuple.remote, tuple.remote_port),
                device,
            },
            to_local: None,
            seen: 0,
        };
        if let Some(&number) = self.by_socket.get(&(namespace, tuple)) {
            // It was listed before, and exists still, or again.
            let known = &mut self.flows[number];
            known.state = flow.state;
            known.local = LocalEnd::Alive;
            return;
        }
        let number = self.flows.len();
        self.by_socket.insert((namespace, tuple), number);
        self.by_tuple.entry(tuple).or_insert(number);
        self.flows.push(flow);
    }

    /// Takes in a tracked connection that the rules name by these views.
    ///
    /// If its socket was listed, this adds to that flow how it looks on the other side of a NAT.
    pub(crate) fn tracked(&mut self, connection: &Connection, views: &[View]) {
        let Some(first) = views.first() else {
            return;
        };
        let known = views
            .iter()
            .find_map(|view| Some((view, *self.by_tuple.get(&view.tuple)?)));
        if let Some((view, number)) = known {
            let flow = &mut self.flows[number];
            flow.to_remote = connection.probe_to(view.remote_end);
            let new: Vec<Tuple> = views
                .iter()
                .map(|view| view.tuple)
                .filter(|tuple| *tuple != flow.tuple && !flow.aliases.contains(tuple))
                .collect();
            flow.aliases.extend(new);
            return;
        }
        if !connection.lives() {
            return;
        }
        let number = self.flows.len();
        for view in views {
            self.by_tuple.insert(view.tuple, number);
        }
        self.flows.push(Flow {
            tuple: first.tuple,
            state: connection.state_name(),
            remote_lives: true,
            local: LocalEnd::Elsewhere,
            aliases: views[1..].iter().map(|view| view.tuple).collect(),
            to_remote: connection.probe_to(first.remote_end),
            to_local: Some(connection.probe_to(first.remote_end.other())),
            seen: 0,
        });
    }

    /// Takes in a flow that the datapath blocked, unless it is known. Where its ends are, and whether
    /// they still exist, is not known.
    pub(crate) fn recorded(&mut self, tuple: Tuple) {
        if self.by_tuple.contains_key(&tuple) {
            return;
        }
        let (local, remote) = (
            SocketAddr::new(tuple.local, tuple.local_port),
            SocketAddr::new(tuple.remote, tuple.remote_port),
        );
        self.by_tuple.insert(tuple, self.flows.len());
        self.flows.push(Flow {
            tuple,
            state: "BLOCKED",
            remote_lives: true,
            local: LocalEnd::Elsewhere,
            aliases: Vec::new(),
            to_remote: Probe {
                from: local,
                to: remote,
                device: 0,
            },
            to_local: Some(Probe {
                from: remote,
                to: local,
                device: 0,
            }),
            seen: 0,
        });
    }

    /// The keys under which the datapath may see a listed socket's flow.
    pub(crate) fn keys_of(&self, namespace: usize, tuple: Tuple) -> Vec<FlowKey> {
        self.by_socket
            .get(&(namespace, tuple))
            .map(|&number| self.flows[number].keys().collect())
            .unwrap_or_default()
    }

    /// The keys of flows that have no socket of ours.
    pub(crate) fn keys_elsewhere(&self) -> Vec<FlowKey> {
        self.flows
            .iter()
            .filter(|flow| flow.local == LocalEnd::Elsewhere)
            .flat_map(Flow::keys)
            .collect()
    }

    /// Notes how the destruction of a socket went: the errno, 0 for done.
    pub(crate) fn destroyed(&mut self, namespace: usize, tuple: Tuple, errno: i32) {
        if let Some(&number) = self.by_socket.get(&(namespace, tuple)) {
            self.flows[number].local = match errno {
                0 | libc::ENOENT => LocalEnd::Dead,
                errno => LocalEnd::Refused(errno),
            };
        }
    }

    /// Whether any flow is not dead yet.
    pub(crate) fn unfinished(&self) -> bool {
        self.flows.iter().any(|flow| !flow.dead())
    }

    /// Flows found, and flows dead.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let dead = self.flows.iter().filter(|flow| flow.dead()).count();
        (self.flows.len() as u64, dead as u64)
    }

    /// The keys of flows of which the datapath may still see a RST, each with its flow's number: flows
    /// that are not dead, and whose own socket, if they have one, was destroyed or refused.
    pub(crate) fn awaited(&self) -> Vec<(usize, FlowKey)> {
        self.flows
            .iter()
            .enumerate()
            .filter(|(_, flow)| flow.local != LocalEnd::Alive && !flow.dead())
            .flat_map(|(number, flow)| flow.keys().map(move |key| (number, key)))
            .collect()
    }

    /// Whether there is any such flow.
    pub(crate) fn awaiting(&self) -> bool {
        self.flows
            .iter()
            .any(|flow| flow.local != LocalEnd::Alive && !flow.dead())
    }

    /// The keys of flows that are dead: they need be watched no longer.
    pub(crate) fn done(&self) -> impl Iterator<Item = FlowKey> {
        self.flows
            .iter()
            .filter(|flow| flow.dead())
            .flat_map(Flow::keys)
    }

    /// Notes what was seen of a flow.
    pub(crate) fn saw(&mut self, number: usize, bits: u32) {
        self.flows[number].seen |= bits;
    }

    /// One probe for each flow that is not dead yet, to the end that is probably nearer: the one behind
    /// this host. An answer of either end kills both.
    pub(crate) fn first_probes(&self) -> Vec<Probe> {
        let wanting = self.flows.iter().filter(|flow| !flow.dead());
        wanting
            .filter(|flow| flow.remote_lives)
            .map(|flow| flow.to_local.unwrap_or(flow.to_remote))
            .collect()
    }

    /// The probes for flows that are not dead yet.
    pub(crate) fn probes(&self) -> Vec<Probe> {
        let mut probes = Vec::new();
        for flow in self.flows.iter().filter(|flow| !flow.dead()) {
            // To both ends, since either may be gone, or may not answer.
            if flow.remote_lives {
                probes.push(flow.to_remote);
                probes.extend(flow.to_local);
            }
        }
        probes
    }

    /// Whether no flow with this tuple is alive.
    pub(crate) fn over(&self, tuple: &Tuple) -> bool {
        self.by_tuple
            .get(tuple)
            .is_none_or(|&number| self.flows[number].dead())
    }

    /// The flows that are not dead, with the reason; `blind` is why the datapath can't be asked.
    pub(crate) fn left(&self, blind: Option<&str>) -> Vec<Left> {
        let mut left: Vec<&Flow> = self.flows.iter().filter(|flow| !flow.dead()).collect();
        left.sort_by_key(|flow| flow.tuple);
        left.into_iter()
            .map(|flow| Left {
                flow: flow.tuple.live(flow.state),
                why: flow.why(blind),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::teardown::flow::UDP;

    fn tuple(protocol: u8) -> Tuple {
        Tuple {
            protocol,
            remote: "192.0.2.7".parse().unwrap(),
            remote_port: 80,
            local: "10.0.0.1".parse().unwrap(),
            local_port: 5000,
        }
    }

    #[test]
    fn a_flow_is_dead_when_both_its_ends_are() {
        use State::{Established, LastAck, SynReceived, SynSent};
        let table = [
            // protocol, state, errno of its destruction, seen, dead
            (TCP, Established, 0, 0, false),
            (TCP, Established, 0, kill::REMOTE, true),
            (TCP, Established, 0, kill::LOCAL, true),
            (TCP, Established, libc::ENOENT, kill::REMOTE, true),
            (TCP, Established, libc::EOPNOTSUPP, kill::REMOTE, false),
            (
                TCP,
                Established,
                libc::EOPNOTSUPP,
                kill::REMOTE | kill::LOCAL,
                true,
            ),
            (TCP, SynSent, 0, 0, true),
            (TCP, SynReceived, 0, 0, false),
            (TCP, LastAck, 0, 0, false),
            (UDP, Established, 0, 0, true),
            (UDP, Established, libc::EOPNOTSUPP, 0, false),
        ];
        for (protocol, state, errno, seen, dead) in table {
            let mut ledger = Ledger::default();
            ledger.socket(0, tuple(protocol), state, 0);
            assert!(ledger.unfinished(), "a listed socket is alive");
            ledger.destroyed(0, tuple(protocol), errno);
            ledger.saw(0, seen);
            assert_eq!(
                !ledger.unfinished(),
                dead,
                "{protocol} {state:?} {errno} {seen}"
            );
            assert_eq!(ledger.left(None).is_empty(), dead);
        }
    }

    #[test]
    fn a_socket_that_is_listed_again_is_alive_again() {
        let mut ledger = Ledger::default();
        ledger.socket(0, tuple(UDP), State::Established, 0);
        ledger.destroyed(0, tuple(UDP), 0);
        assert!(!ledger.unfinished());
        ledger.socket(0, tuple(UDP), State::Established, 0);
        assert!(ledger.unfinished());
        assert_eq!(ledger.counts(), (1, 0));
    }

    #[test]
    fn the_same_tuple_in_two_namespaces_is_two_flows() {
        let mut ledger = Ledger::default();
        ledger.socket(0, tuple(UDP), State::Established, 0);
        ledger.socket(1, tuple(UDP), State::Established, 0);
        ledger.destroyed(1, tuple(UDP), 0);
        assert_eq!(ledger.counts(), (2, 1));
    }

    #[test]
    fn what_could_not_be_confirmed_says_why() {
        let mut ledger = Ledger::default();
        ledger.socket(0, tuple(TCP), State::Established, 0);
        ledger.destroyed(0, tuple(TCP), 0);
        let why = |blind| ledger.left(blind)[0].why.clone();
        assert!(
            why(None).contains("no RST was seen to go to the remote"),
            "{}",
            why(None)
        );
        assert!(
            why(Some("map full")).contains("map full"),
            "{}",
            why(Some("map full"))
        );
    }
}
