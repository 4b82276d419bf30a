//! The order of events of a teardown.
//!
//! It lists the flows, has the datapath watch them, and destroys sockets. Then, in each of several
//! rounds, it probes the flows that are not dead, waits for the evidence, and lists flows again.
//! Tracked connections are deleted last, since NAT needs them to carry RSTs to the ends behind it.
//! What is known of each flow is in the [`Ledger`].

use std::collections::HashSet;
use std::time::{Duration, Instant};

use blocker_ebpf::FlowKey;

use super::conntrack;
use super::flow::Tuple;
use super::ledger::Ledger;
use super::probe::Prober;
use super::segment::Probe;
use super::selection::{Rules, Selection};
use super::sockets::{self, HostSocket};
use super::survey::{self, OpenNamespace, note_once};
use super::tracked::{Connection, View};
use super::{Evidence, Listing, Progress, Settings, owners};
use crate::netlink::Conversation;
use crate::rule::Rule;
use crate::wire::{Account, LiveFlow};

/// How long to wait for the kernel's own RSTs. They pass the datapath within the system call that
/// destroys the socket, or in a softirq soon after it if the socket is a container's.
const KERNEL_RSTS: Duration = Duration::from_millis(3);
/// How long to wait for answers to the first probes, one a flow. Flows with a near end are dead by then
/// and need no more probes.
const FIRST_ANSWERS: Duration = Duration::from_millis(5);
/// How long to wait for answers in each round of probes: round trips within a site, a continent, and
/// across an ocean.
const ROUNDS: [Duration; 3] = [
    Duration::from_millis(40),
    Duration::from_millis(90),
    Duration::from_millis(160),
];
/// Most flows that one teardown has watched at once. The datapath has room for 65,536, and other
/// teardowns may run at the same time.
const TRANCHE: usize = 16_384;
/// Time between two readings of the evidence.
const POLL: Duration = Duration::from_millis(1);

/// See [`super::list`].
pub(crate) fn list(killing: &[Rule], rules: &dyn Rules, settings: &Settings) -> Listing {
    let selection = Selection::new(killing, rules);
    let mut notes = Vec::new();
    if selection.is_empty() {
        return Listing::default();
    }
    let mut namespaces = survey::open_namespaces(settings, &mut notes);
    let sockets = survey::sockets(&mut namespaces, &selection, &mut notes);
    let inodes: Vec<u32> = sockets.iter().map(|(_, socket)| socket.inode).collect();
    let (holders, note) = owners::of(&inodes);
    notes.extend(note);
    let mut flows: Vec<(Tuple, LiveFlow)> = Vec::new();
    for (_, socket) in &sockets {
        let mut live = socket.tuple.live(socket.state.name());
        if let Some(holder) = holders.get(&socket.inode) {
            live.process = Some(holder.name.clone());
            live.pid = Some(holder.pid);
        }
        flows.push((socket.tuple, live));
    }
    let own: HashSet<Tuple> = sockets.iter().map(|(_, socket)| socket.tuple).collect();
    let mut netfilter = survey::open_tracking(&mut notes);
    for (connection, views) in
        survey::tracked(&mut netfilter, &mut namespaces, &selection, &mut notes)
    {
        let known = views.iter().any(|view| own.contains(&view.tuple));
        if connection.lives() && !known {
            flows.push((views[0].tuple, views[0].tuple.live(connection.state_name())));
        }
    }
    flows.sort_by_key(|(tuple, _)| *tuple);
    Listing {
        flows: flows.into_iter().map(|(_, live)| live).collect(),
        notes,
    }
}

/// See [`super::kill`].
pub(crate) fn kill(
    killing: &[Rule],
    rules: &dyn Rules,
    recorded: &[FlowKey],
    settings: &Settings,
    evidence: &dyn Evidence,
    progress: &dyn Fn(Progress),
) -> Account {
    let started = Instant::now();
    let selection = Selection::new(killing, rules);
    if selection.is_empty() {
        return Account::default();
    }
    let mut notes = Vec::new();
    let namespaces = survey::open_namespaces(settings, &mut notes);
    let netfilter = survey::open_tracking(&mut notes);
    let mut run = Run {
        selection: &selection,
        mark: settings.mark,
        evidence,
        progress,
        namespaces,
        netfilter,
        prober: None,
        notes,
        ledger: Ledger::default(),
        watched: HashSet::new(),
        blind: None,
    };
    run.rounds(recorded);
    run.close(started)
}

/// A teardown in progress.
struct Run<'a> {
    selection: &'a Selection<'a>,
    mark: u32,
    evidence: &'a dyn Evidence,
    progress: &'a dyn Fn(Progress),
    namespaces: Vec<OpenNamespace>,
    netfilter: Option<Conversation>,
    prober: Option<Prober>,
    notes: Vec<String>,
    ledger: Ledger,
    watched: HashSet<FlowKey>,
    /// Why there is no evidence.
    blind: Option<String>,
}

impl Run<'_> {
    fn rounds(&mut self, recorded: &[FlowKey]) {
        let listed = self.look();
        // Before any flow is killed: a RST changes netfilter's state of its connection.
        let tracked = survey::tracked(
            &mut self.netfilter,
            &mut self.namespaces,
            self.selection,
            &mut self.notes,
        );
        for (connection, views) in &tracked {
            self.ledger.tracked(connection, views);
        }
        if recorded.len() > TRANCHE {
            note_once(
                &mut self.notes,
                format!(
                    "{} flows were blocked, {TRANCHE} of them were probed",
                    recorded.len()
                ),
            );
        }
        for tuple in recorded.iter().take(TRANCHE).map(Tuple::from) {
            self.ledger.recorded(tuple);
        }
        self.watch(self.ledger.keys_elsewhere());
        self.attack(&listed);
        self.gather(KERNEL_RSTS);
        let mut doubtful: Vec<Probe> = tracked
            .iter()
            .filter(|(connection, _)| connection.doubtful())
            .flat_map(|(connection, views)| {
                let end = views[0].remote_end;
                [connection.probe_to(end), connection.probe_to(end.other())]
            })
            .collect();
        if self.ledger.unfinished() {
            self.probe(&self.ledger.first_probes(), 1);
            self.gather(FIRST_ANSWERS);
        }
        for wait in ROUNDS {
            let mut probes = self.ledger.probes();
            probes.append(&mut doubtful);
            self.probe(&probes, 2);
            if self.ledger.unfinished() {
                self.gather(wait);
            }
            let listed = self.look();
            if listed.is_empty() && !self.ledger.unfinished() {
                break;
            }
            self.attack(&listed);
        }
        self.gather(KERNEL_RSTS);
        self.untrack(tracked);
    }

    /// Lists sockets and takes in the flows that are new.
    fn look(&mut self) -> Vec<(usize, HostSocket)> {
        self.selection.refresh();
        let listed = survey::sockets(&mut self.namespaces, self.selection, &mut self.notes);
        for (number, socket) in &listed {
            // Probes are sent from our namespace, where indexes of other namespaces mean nothing.
            let own = self.namespaces[*number].namespace.is_own();
            let device = if own { socket.bound() } else { 0 };
            self.ledger
                .socket(*number, socket.tuple, socket.state, device);
        }
        self.report();
        listed
    }

    /// Has flows watched and destroys their sockets, in tranches for which the datapath has room.
    fn attack(&mut self, listed: &[(usize, HostSocket)]) {
        for tranche in listed.chunks(TRANCHE) {
            if self.watched.len() + tranche.len() > TRANCHE {
                self.gather(KERNEL_RSTS);
                self.forget_done();
            }
            let keys = tranche
                .iter()
                .flat_map(|(number, socket)| self.ledger.keys_of(*number, socket.tuple))
                .collect();
            self.watch(keys);
            self.destroy(tranche);
        }
    }

    fn watch(&mut self, mut keys: Vec<FlowKey>) {
        keys.retain(|key| !self.watched.contains(key));
        if keys.is_empty() || self.blind.is_some() {
            return;
        }
        if let Err(e) = self.evidence.watch(&keys) {
            self.notes.push(format!(
                "the datapath could not be told to watch {} flows: {e}",
                keys.len()
            ));
            self.blind = Some(e.to_string());
        }
        self.watched.extend(keys);
    }

    /// Ends the watch of flows that are dead.
    fn forget_done(&mut self) {
        let done = self.ledger.done();
        let keys: Vec<FlowKey> = done.filter(|key| self.watched.remove(key)).collect();
        self.forget(&keys);
    }

    fn forget(&mut self, keys: &[FlowKey]) {
        if keys.is_empty() {
            return;
        }
        if let Err(e) = self.evidence.forget(keys) {
            note_once(
                &mut self.notes,
                format!("the datapath could not be told to forget flows: {e}"),
            );
        }
    }

    /// Destroys sockets, namespace by namespace.
    fn destroy(&mut self, listed: &[(usize, HostSocket)]) {
        for (number, open) in self.namespaces.iter_mut().enumerate() {
            let here: Vec<&HostSocket> = listed
                .iter()
                .filter(|(namespace, _)| *namespace == number)
                .map(|(_, socket)| socket)
                .collect();
            if here.is_empty() {
                continue;
            }
            let results = sockets::destroy(&mut open.diag, &here).unwrap_or_else(|e| {
                let path = open.namespace.path.display();
                note_once(&mut self.notes, format!("{path}: {e}"));
                vec![e.errno().unwrap_or(libc::EIO); here.len()]
            });
            for (socket, errno) in here.iter().zip(results) {
                self.ledger.destroyed(number, socket.tuple, errno);
            }
        }
    }

    /// Sends so many segments for each probe, from the namespace that the datapath is in.
    fn probe(&mut self, probes: &[Probe], segments: usize) {
        if probes.is_empty() {
            return;
        }
        if self.prober.is_none() {
            match Prober::open(self.mark) {
                Ok(prober) => self.prober = Some(prober),
                Err(e) => note_once(
                    &mut self.notes,
                    format!("no flow could be probed: {e} (needs CAP_NET_RAW)"),
                ),
            }
        }
        let Some(routes) = survey::own_routes(&mut self.namespaces) else {
            return;
        };
        if let Some(prober) = &self.prober
            && let Some(e) = prober.send(probes, segments, routes).error
        {
            note_once(
                &mut self.notes,
                format!("some probes could not be sent: {e}"),
            );
        }
    }

    /// Reads the evidence until no flow waits for it, or until the time is over.
    fn gather(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        loop {
            let awaited = self.ledger.awaited();
            if awaited.is_empty() || self.blind.is_some() {
                break;
            }
            self.read_evidence(awaited);
            if !self.ledger.awaiting() || Instant::now() >= until {
                break;
            }
            std::thread::sleep(POLL);
        }
        self.report();
    }

    fn read_evidence(&mut self, awaited: Vec<(usize, FlowKey)>) {
        let (numbers, keys): (Vec<usize>, Vec<FlowKey>) = awaited.into_iter().unzip();
        match self.evidence.seen(&keys) {
            Ok(bits) => {
                for (number, bits) in numbers.into_iter().zip(bits) {
                    self.ledger.saw(number, bits);
                }
            }
            Err(e) => {
                self.notes
                    .push(format!("what the datapath saw could not be read: {e}"));
                self.blind = Some(e.to_string());
            }
        }
    }

    /// Deletes netfilter's entries of the dead flows. The others keep theirs, since the RSTs that their
    /// next segment causes must pass NAT.
    fn untrack(&mut self, tracked: Vec<(Connection, Vec<View>)>) {
        let over: Vec<Connection> = tracked
            .into_iter()
            .filter(|(_, views)| views.iter().all(|view| self.ledger.over(&view.tuple)))
            .map(|(connection, _)| connection)
            .collect();
        if over.is_empty() {
            return;
        }
        let Some(netfilter) = &mut self.netfilter else {
            return;
        };
        let kept = match conntrack::delete(netfilter, &over) {
            Ok(results) => results
                .into_iter()
                .find(|errno| !matches!(errno, 0 | &libc::ENOENT))
                .map(std::io::Error::from_raw_os_error),
            Err(e) => Some(e.source),
        };
        if let Some(e) = kept {
            self.notes.push(format!(
                "netfilter's entries of the dead flows could not all be deleted: {e}"
            ));
        }
    }

    fn report(&self) {
        let (found, killed) = self.ledger.counts();
        (self.progress)(Progress { found, killed });
    }

    /// Ends the watch and writes the account.
    fn close(mut self, started: Instant) -> Account {
        let watched: Vec<FlowKey> = self.watched.drain().collect();
        self.forget(&watched);
        let (found, killed) = self.ledger.counts();
        Account {
            found,
            killed,
            left: self.ledger.left(self.blind.as_deref()),
            elapsed_ms: started.elapsed().as_secs_f64() * 1e3,
            notes: self.notes,
        }
    }
}
