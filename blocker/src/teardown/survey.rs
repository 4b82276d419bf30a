//! What there is to kill: the network namespaces in reach, the rules' sockets in each, and what
//! netfilter tracks in ours.
//!
//! Looks only; [`super::rounds`] acts.

use std::collections::{HashMap, HashSet};
use std::{fs, io};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::conntrack;
use super::netns::{self, Namespace};
use super::routes::Routes;
use super::selection::Selection;
use super::sockets::{self, HostSocket};
use super::tracked::{Connection, View};
use super::way::{self, Seen};
use super::{Namespaces, Settings};
use crate::matching::Holds;
use crate::netlink::Conversation;

/// The note on flows that a rule may name or not.
pub(crate) const UNSURE: &str =
    "flows whose interface no route tells were left alone, since the rule is limited to interfaces";

/// The note on flows that the rule may see or not.
const UNSEEN: &str = "flows in other network namespaces were left alone, since it could not be found out whether their packets pass a device of this one";

/// A network namespace with the sockets that a teardown needs in it.
pub(crate) struct Place {
    /// Which it is.
    pub(crate) namespace: Namespace,
    /// `sock_diag` there.
    pub(crate) diag: Conversation,
    /// Routing there.
    pub(crate) routes: Option<Routes>,
    /// The places of other network namespaces, by the ids that this one has for them.
    pub(crate) others: HashMap<i32, Option<usize>>,
    /// Whether nothing was found there when it was last looked at.
    quiet: bool,
}

impl Place {
    fn open(namespace: Namespace, notes: &mut Vec<String>) -> Option<Self> {
        let path = namespace.path.display().to_string();
        let opened = namespace.inside(|| {
            let diag = Conversation::open(NETLINK_SOCK_DIAG, "sock_diag").map_err(io::Error::other);
            Ok((diag?, Routes::open()))
        });
        match opened {
            Ok((diag, routes)) => {
                let routes = routes
                    .map_err(|e| {
                        notes.push(format!(
                            "{path}: {e}: flows there whose device matters are left alone, and no probes are sent from there"
                        ));
                    })
                    .ok();
                Some(Self {
                    namespace,
                    diag,
                    routes,
                    others: HashMap::new(),
                    quiet: false,
                })
            }
            Err(e) => {
                notes.push(format!("{path}: {e}: its sockets were not looked at"));
                None
            }
        }
    }
}

/// Opens every network namespace that the settings ask for; ours comes first.
pub(crate) fn places(settings: &Settings, notes: &mut Vec<String>) -> Vec<Place> {
    let namespaces = match settings.namespaces {
        Namespaces::Own => vec![Namespace::own()],
        Namespaces::All => netns::all(notes),
    };
    namespaces
        .into_iter()
        .filter_map(|namespace| Place::open(namespace, notes))
        .collect()
}

/// Lists the rules' sockets in those places that are not `quiet`, each with the number of its
/// place.
///
/// A place in which there are none is quiet from then on: a rule that is live lets none come up.
/// The same note is made once, however often the list is read.
pub(crate) fn sockets(
    places: &mut [Place],
    selection: &Selection<'_>,
    notes: &mut Vec<String>,
) -> Vec<(usize, HostSocket)> {
    let mut found = Vec::new();
    for (number, place) in places.iter_mut().enumerate() {
        if place.quiet {
            continue;
        }
        match sockets::list(&mut place.diag, selection) {
            Ok(sockets) => found.extend(sockets.into_iter().map(|socket| (number, socket))),
            Err(e) => note_once(notes, format!("{}: {e}", place.namespace.path.display())),
        }
    }
    let (mut unsure, mut unseen) = (false, false);
    found.retain(|(number, socket)| {
        let (tuple, bound) = (&socket.tuple, socket.bound());
        let seen = if places[*number].namespace.is_own() {
            None
        } else {
            Some(way::seen(places, *number, tuple, bound))
        };
        let answer = match seen {
            None => selection.selects(tuple, || {
                own_routes(places)?.device(tuple.remote, tuple.local, bound)
            }),
            Some(Seen::On(device)) => selection.selects(tuple, || device),
            Some(Seen::Nowhere) => Holds::Never,
            Some(Seen::Unknown) => {
                unseen = true;
                Holds::Never
            }
        };
        unsure |= answer == Holds::Sometimes;
        answer == Holds::Always
    });
    let busy: HashSet<usize> = found.iter().map(|(number, _)| *number).collect();
    for (number, place) in places.iter_mut().enumerate() {
        place.quiet |= !busy.contains(&number) && !place.namespace.is_own();
    }
    if unsure {
        note_once(notes, UNSURE.to_owned());
    }
    if unseen {
        note_once(notes, UNSEEN.to_owned());
    }
    note_error(selection, notes);
    found
}

/// Opens ctnetlink, or notes what follows from its absence.
pub(crate) fn open_tracking(notes: &mut Vec<String>) -> Option<Conversation> {
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
pub(crate) fn tracked(
    netfilter: &mut Option<Conversation>,
    places: &mut [Place],
    selection: &Selection<'_>,
    notes: &mut Vec<String>,
) -> Vec<(Connection, Vec<View>)> {
    let Some(netfilter) = netfilter else {
        return Vec::new();
    };
    let connections = match conntrack::list(netfilter, selection) {
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
            let device = || {
                let routes = routes.as_mut()?;
                routes.device(tuple.remote, tuple.local, 0)
            };
            if !view.on_the_wire {
                return selection.selects_hidden(tuple, device);
            }
            let answer = selection.selects(tuple, device);
            unsure |= answer == Holds::Sometimes;
            answer == Holds::Always
        });
        if !views.is_empty() {
            named.push((connection, views));
        }
    }
    if unsure {
        note_once(notes, UNSURE.to_owned());
    }
    note_error(selection, notes);
    named
}

/// Notes why rules could not be read.
fn note_error(selection: &Selection<'_>, notes: &mut Vec<String>) {
    if let Some(e) = selection.take_error() {
        note_once(
            notes,
            format!("the rules in force can't be read, so flows were left alone: {e}"),
        );
    }
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
pub(crate) fn own_routes(places: &mut [Place]) -> Option<&mut Routes> {
    places
        .iter_mut()
        .find(|place| place.namespace.is_own())
        .and_then(|place| place.routes.as_mut())
}

/// Adds a note unless it is there.
pub(crate) fn note_once(notes: &mut Vec<String>, note: String) {
    if !notes.contains(&note) {
        notes.push(note);
    }
}
