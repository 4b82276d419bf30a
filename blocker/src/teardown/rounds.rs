//! The order of events of a teardown.
//!
//! Look, watch, destroy; then round by round: probe what is not dead, wait for the evidence, look
//! again. Tracked connections are deleted last, since their NAT must still carry the RSTs to
//! whoever is behind it. What is known of each flow is in the [`Ledger`].

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use blocker_ebpf::FlowKey;

use super::conntrack::{self, Connection, View};
use super::flow::Tuple;
use super::ledger::Ledger;
use super::matching::{Device, Match, Matcher};
use super::netlink::Conversation;
use super::probe::Prober;
use super::routes::Routes;
use super::segment::Probe;
use super::sockets::{self, HostSocket};
use super::survey::{self, Place, note_once};
use super::{Evidence, Listing, Progress, Settings, owners};
use crate::api::types::{Account, LiveFlow};
use crate::rule::Rule;

/// How long the first look waits for the kernel's own RSTs: they pass the datapath within the
/// system call that destroys the socket, or a softirq later where they come from a container.
const KERNEL_RSTS: Duration = Duration::from_millis(3);
/// How long the first probes, one a flow, wait for their answers: what is near is dead by then, and
/// needs no more of them.
const FIRST_ANSWERS: Duration = Duration::from_millis(5);
/// How long each round of probes waits for its answers: the round trips of a LAN, of a continent,
/// of an ocean.
const ROUNDS: [Duration; 3] = [
    Duration::from_millis(40),
    Duration::from_millis(90),
    Duration::from_millis(160),
];
/// How often the evidence is read meanwhile.
const POLL: Duration = Duration::from_millis(1);

/// See [`super::list`].
pub(crate) fn list(rules: &[Rule], settings: &Settings) -> Listing {
    let matcher = Matcher::new(rules);
    let mut notes = Vec::new();
    if matcher.is_empty() {
        return Listing::default();
    }
    let mut places = survey::places(settings, &mut notes);
    let sockets = survey::sockets(&mut places, &matcher, &mut notes);
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
    let mut netfilter = open_tracking(&mut notes);
    for (connection, views) in tracked(&mut netfilter, &mut places, &matcher, &mut notes) {
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
    rules: &[Rule],
    settings: &Settings,
    evidence: &dyn Evidence,
    progress: &dyn Fn(Progress),
) -> Account {
    let started = Instant::now();
    let matcher = Matcher::new(rules);
    if matcher.is_empty() {
        return Account::default();
    }
    let mut notes = Vec::new();
    let places = survey::places(settings, &mut notes);
    let netfilter = open_tracking(&mut notes);
    let mut run = Run {
        matcher: &matcher,
        mark: settings.mark,
        evidence,
        progress,
        places,
        netfilter,
        prober: None,
        notes,
        ledger: Ledger::default(),
        watched: Vec::new(),
        blind: None,
    };
    run.rounds();
    run.close(started)
}

/// Opens ctnetlink, or notes what follows from its absence.
fn open_tracking(notes: &mut Vec<String>) -> Option<Conversation> {
    match conntrack::open() {
        Ok(netfilter) => Some(netfilter),
        Err(e) => {
            notes.push(format!(
                "{e}: forwarded connections can't be listed, and die at their next segment"
            ));
            None
        }
    }
}

/// The tracked connections of the rules, each with the views by which they name it (never none).
fn tracked(
    netfilter: &mut Option<Conversation>,
    places: &mut [Place],
    matcher: &Matcher,
    notes: &mut Vec<String>,
) -> Vec<(Connection, Vec<View>)> {
    let Some(netfilter) = netfilter else {
        return Vec::new();
    };
    let connections = match conntrack::list(netfilter, matcher) {
        Ok(Some(connections)) => connections,
        Ok(None) => {
            if forwards() {
                note_once(
                    notes,
                    "this host forwards packets but tracks no connections: forwarded ones can't be listed, and die at their next segment"
                        .to_owned(),
                );
            }
            return Vec::new();
        }
        Err(e) => {
            note_once(
                notes,
                format!("{e}: forwarded connections were not looked at"),
            );
            return Vec::new();
        }
    };
    let mut routes = own_routes(places);
    let mut unsure = false;
    let mut named = Vec::new();
    for connection in connections {
        let mut views = connection.views();
        views.retain(|view| {
            let tuple = &view.tuple;
            let device = || match &mut routes {
                Some(routes) => routes.device(tuple.remote, tuple.local, 0),
                None => Device::Unknown,
            };
            let answer = matcher.matches(tuple, device);
            unsure |= answer == Match::Unsure;
            answer == Match::Yes
        });
        if !views.is_empty() {
            named.push((connection, views));
        }
    }
    if unsure {
        note_once(notes, survey::UNSURE.to_owned());
    }
    named
}

/// Whether this network namespace forwards packets.
fn forwards() -> bool {
    [
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/net/ipv6/conf/all/forwarding",
    ]
    .iter()
    .any(|path| fs::read_to_string(path).is_ok_and(|text| text.trim() != "0"))
}

/// Routing in the namespace that this program runs in, which is where the datapath is.
fn own_routes(places: &mut [Place]) -> Option<&mut Routes> {
    places
        .iter_mut()
        .find(|place| place.namespace.is_own())
        .and_then(|place| place.routes.as_mut())
}

/// A teardown in progress.
struct Run<'a> {
    matcher: &'a Matcher,
    mark: u32,
    evidence: &'a dyn Evidence,
    progress: &'a dyn Fn(Progress),
    places: Vec<Place>,
    netfilter: Option<Conversation>,
    prober: Option<Prober>,
    notes: Vec<String>,
    ledger: Ledger,
    watched: Vec<FlowKey>,
    /// Why there is no evidence.
    blind: Option<String>,
}

impl Run<'_> {
    fn rounds(&mut self) {
        let listed = self.look();
        // Before anything dies: what netfilter makes of a RST would hide the connection.
        let tracked = tracked(
            &mut self.netfilter,
            &mut self.places,
            self.matcher,
            &mut self.notes,
        );
        let keys: Vec<FlowKey> = tracked
            .iter()
            .flat_map(|(connection, views)| self.ledger.tracked(connection, views))
            .collect();
        self.watch(keys);
        self.destroy(&listed);
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
            self.destroy(&listed);
        }
        self.gather(KERNEL_RSTS);
        self.untrack(tracked);
    }

    /// Lists sockets, takes in the flows that are new, and has them watched.
    fn look(&mut self) -> Vec<(usize, HostSocket)> {
        let listed = survey::sockets(&mut self.places, self.matcher, &mut self.notes);
        let keys: Vec<FlowKey> = listed
            .iter()
            .filter_map(|(place, socket)| self.ledger.socket(*place, socket.tuple, socket.state))
            .collect();
        self.watch(keys);
        self.report();
        listed
    }

    fn watch(&mut self, keys: Vec<FlowKey>) {
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

    /// Destroys sockets, place by place.
    fn destroy(&mut self, listed: &[(usize, HostSocket)]) {
        for (number, place) in self.places.iter_mut().enumerate() {
            let here: Vec<&HostSocket> = listed
                .iter()
                .filter(|(place, _)| *place == number)
                .map(|(_, socket)| socket)
                .collect();
            if here.is_empty() {
                continue;
            }
            let results = sockets::destroy(&mut place.diag, &here).unwrap_or_else(|e| {
                let path = place.namespace.path.display();
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
        let Some(routes) = own_routes(&mut self.places) else {
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

    /// Reads the evidence until every flow is dead or time is up.
    fn gather(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        loop {
            self.read_evidence();
            self.report();
            if self.blind.is_some() || !self.ledger.unfinished() || Instant::now() >= until {
                return;
            }
            std::thread::sleep(POLL);
        }
    }

    fn read_evidence(&mut self) {
        if self.blind.is_some() {
            return;
        }
        let (numbers, keys): (Vec<usize>, Vec<FlowKey>) = self.ledger.awaited().into_iter().unzip();
        if keys.is_empty() {
            return;
        }
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

    /// Deletes what netfilter tracks of the rules' flows, but for those that are not dead: the
    /// RSTs that their next segment makes must find their way through NAT.
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
        if !self.watched.is_empty()
            && let Err(e) = self.evidence.forget(&self.watched)
        {
            self.notes.push(format!(
                "the datapath could not be told to forget {} flows: {e}",
                self.watched.len()
            ));
        }
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
