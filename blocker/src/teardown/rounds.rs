//! The order of events of a teardown, and its account.
//!
//! A flow is dead when its local end is (its socket destroyed, or a RST seen to go to it) and its
//! remote end is (a RST seen to go to it, or one seen to come from it). Whatever is not is probed
//! again, round by round; what is left then is accounted for with the reason.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use blocker_ebpf::FlowKey;

use super::flow::{State, TCP, Tuple};
use super::matching::Matcher;
use super::sockets::{self, HostSocket};
use super::survey::{self, Place, note_once};
use super::{Evidence, Listing, Progress, Settings, owners};
use crate::api::types::{Account, Left, LiveFlow};
use crate::rule::Rule;

/// How long the first look waits for the kernel's own RSTs: they pass the datapath within the
/// system call that destroys the socket, or a softirq later where they come from a container.
const KERNEL_RSTS: Duration = Duration::from_millis(3);
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
    let mut flows: Vec<(Tuple, LiveFlow)> = sockets
        .iter()
        .map(|(_, socket)| {
            let mut live = socket.tuple.live(socket.state.name());
            if let Some(holder) = holders.get(&socket.inode) {
                live.process = Some(holder.name.clone());
                live.pid = Some(holder.pid);
            }
            (socket.tuple, live)
        })
        .collect();
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
    let mut run = Run {
        matcher: &matcher,
        evidence,
        progress,
        places,
        notes,
        flows: Vec::new(),
        numbers: HashMap::new(),
        watched: Vec::new(),
        blind: None,
    };
    let listed = run.look();
    run.destroy(&listed);
    run.gather(KERNEL_RSTS);
    for wait in ROUNDS {
        if run.unfinished() {
            run.gather(wait);
        }
        let listed = run.look();
        if listed.is_empty() && !run.unfinished() {
            break;
        }
        run.destroy(&listed);
    }
    run.gather(KERNEL_RSTS);
    run.close(started)
}

/// What is known of a flow's local end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LocalEnd {
    /// A socket that was listed, and not yet destroyed.
    Alive,
    /// A socket that is destroyed, or was gone before.
    Dead,
    /// A socket that the kernel would not destroy, with the errno.
    Refused(i32),
}

/// A flow under teardown.
#[derive(Debug)]
struct Flow {
    tuple: Tuple,
    state: State,
    local: LocalEnd,
    /// Bits of [`blocker_ebpf::kill`] seen so far.
    seen: u32,
}

impl Flow {
    /// Whether the local end is dead.
    fn local_dead(&self) -> bool {
        match self.local {
            LocalEnd::Dead => true,
            LocalEnd::Alive => false,
            LocalEnd::Refused(_) => self.seen & blocker_ebpf::kill::LOCAL != 0,
        }
    }

    /// Whether the remote end is dead, or never was.
    ///
    /// A RST towards the local end comes from a remote that has no such connection any more, or
    /// is what the datapath made of a segment of the remote's, along with one for the remote.
    fn remote_dead(&self) -> bool {
        self.tuple.protocol != TCP || !self.state.remote_lives() || self.seen != 0
    }

    fn dead(&self) -> bool {
        self.local_dead() && self.remote_dead()
    }

    /// Why it is not.
    fn why(&self, blind: Option<&str>) -> String {
        match self.local {
            LocalEnd::Alive => {
                "its socket was still there, or there again, when the last list was read".to_owned()
            }
            LocalEnd::Refused(libc::EOPNOTSUPP) => {
                "the kernel lacks CONFIG_INET_DIAG_DESTROY and the remote did not answer a probe: it dies at its next segment".to_owned()
            }
            LocalEnd::Refused(errno) => {
                let e = std::io::Error::from_raw_os_error(errno);
                format!("its socket could not be destroyed ({e}): it dies at its next segment")
            }
            LocalEnd::Dead => match blind {
                Some(error) => format!(
                    "its socket here is dead; whether the remote got a RST is not known, since the datapath could not be read: {error}"
                ),
                None => "its socket here is dead, but no RST was seen to go to the remote, which did not answer a probe either: if it lives, its end dies at its next segment".to_owned(),
            },
        }
    }
}

/// A teardown in progress.
struct Run<'a> {
    matcher: &'a Matcher,
    evidence: &'a dyn Evidence,
    progress: &'a dyn Fn(Progress),
    places: Vec<Place>,
    notes: Vec<String>,
    flows: Vec<Flow>,
    /// Number of a flow by place and tuple.
    numbers: HashMap<(usize, Tuple), usize>,
    watched: Vec<FlowKey>,
    /// Why there is no evidence.
    blind: Option<String>,
}

impl Run<'_> {
    /// Lists sockets, takes in the flows that are new, and has them watched.
    fn look(&mut self) -> Vec<(usize, HostSocket)> {
        let listed = survey::sockets(&mut self.places, self.matcher, &mut self.notes);
        let mut new = Vec::new();
        for (place, socket) in &listed {
            let number = *self
                .numbers
                .entry((*place, socket.tuple))
                .or_insert_with(|| {
                    new.push(socket.tuple.key());
                    self.flows.push(Flow {
                        tuple: socket.tuple,
                        state: socket.state,
                        local: LocalEnd::Alive,
                        seen: 0,
                    });
                    self.flows.len() - 1
                });
            let flow = &mut self.flows[number];
            flow.state = socket.state;
            flow.local = LocalEnd::Alive;
        }
        self.watch(new);
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
            let results = match sockets::destroy(&mut place.diag, &here) {
                Ok(results) => results,
                Err(e) => {
                    note_once(
                        &mut self.notes,
                        format!("{}: {e}", place.namespace.path.display()),
                    );
                    vec![e.errno().unwrap_or(libc::EIO); here.len()]
                }
            };
            for (socket, errno) in here.iter().zip(results) {
                if let Some(&flow) = self.numbers.get(&(number, socket.tuple)) {
                    self.flows[flow].local = match errno {
                        0 | libc::ENOENT => LocalEnd::Dead,
                        errno => LocalEnd::Refused(errno),
                    };
                }
            }
        }
    }

    fn unfinished(&self) -> bool {
        self.flows.iter().any(|flow| !flow.dead())
    }

    /// Reads the evidence until every flow is dead or time is up.
    fn gather(&mut self, wait: Duration) {
        let until = Instant::now() + wait;
        loop {
            self.read_evidence();
            self.report();
            if self.blind.is_some() || !self.unfinished() || Instant::now() >= until {
                return;
            }
            std::thread::sleep(POLL);
        }
    }

    fn read_evidence(&mut self) {
        let waiting: Vec<usize> = (0..self.flows.len())
            .filter(|&number| !self.flows[number].dead())
            .collect();
        if waiting.is_empty() || self.blind.is_some() {
            return;
        }
        let keys: Vec<FlowKey> = waiting
            .iter()
            .map(|&number| self.flows[number].tuple.key())
            .collect();
        match self.evidence.seen(&keys) {
            Ok(bits) => {
                for (number, bits) in waiting.into_iter().zip(bits) {
                    self.flows[number].seen |= bits;
                }
            }
            Err(e) => {
                self.notes
                    .push(format!("what the datapath saw could not be read: {e}"));
                self.blind = Some(e.to_string());
            }
        }
    }

    fn report(&self) {
        (self.progress)(Progress {
            found: self.flows.len() as u64,
            killed: self.flows.iter().filter(|flow| flow.dead()).count() as u64,
        });
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
        let mut left: Vec<&Flow> = self.flows.iter().filter(|flow| !flow.dead()).collect();
        left.sort_by_key(|flow| flow.tuple);
        let left: Vec<Left> = left
            .into_iter()
            .map(|flow| Left {
                flow: flow.tuple.live(flow.state.name()),
                why: flow.why(self.blind.as_deref()),
            })
            .collect();
        let found = self.flows.len() as u64;
        Account {
            found,
            killed: found - left.len() as u64,
            left,
            elapsed_ms: started.elapsed().as_secs_f64() * 1e3,
            notes: self.notes,
        }
    }
}
