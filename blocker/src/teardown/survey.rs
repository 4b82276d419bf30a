//! The flows there are to kill: the selected sockets of each network namespace in reach, and the
//! selected connections that netfilter tracks in ours. Changes nothing.

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

/// The note on flows that are selected on some devices only, where the device is not known.
pub(crate) const UNSURE: &str =
    "flows whose interface no route tells were left alone, since the rule is limited to interfaces";

/// The note on flows of other namespaces that could not be followed.
const UNSEEN: &str = "flows in other network namespaces were left alone, since it could not be found out whether their packets pass a device of this one";

/// A network namespace with the sockets that a teardown needs in it.
pub(crate) struct OpenNamespace {
    /// Which it is.
    pub(crate) namespace: Namespace,
    /// `sock_diag` there.
    pub(crate) diag: Conversation,
    /// Routing there.
    pub(crate) routes: Option<Routes>,
    /// The numbers of other network namespaces, by the ids that this one has for them.
    pub(crate) others: HashMap<i32, Option<usize>>,
    /// Whether nothing was found there when it was last looked at.
    quiet: bool,
}

impl OpenNamespace {
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
pub(crate) fn open_namespaces(settings: &Settings, notes: &mut Vec<String>) -> Vec<OpenNamespace> {
    let found = match settings.namespaces {
        Namespaces::Own => vec![Namespace::own()],
        Namespaces::All => netns::all(notes),
    };
    found
        .into_iter()
        .filter_map(|namespace| OpenNamespace::open(namespace, notes))
        .collect()
}

/// Lists the selected sockets of those namespaces that are not `quiet`, each with the number of its
/// namespace.
///
/// A namespace without any is not looked at again, since a live rule lets no new flow come up. Each note
/// is made once.
pub(crate) fn sockets(
    namespaces: &mut [OpenNamespace],
    selection: &Selection<'_>,
    notes: &mut Vec<String>,
) -> Vec<(usize, HostSocket)> {
    let mut found = Vec::new();
    for (number, open) in namespaces.iter_mut().enumerate() {
        if open.quiet {
            continue;
        }
        match sockets::list(&mut open.diag, selection) {
            Ok(sockets) => found.extend(sockets.into_iter().map(|socket| (number, socket))),
            Err(e) => note_once(notes, format!("{}: {e}", open.namespace.path.display())),
        }
    }
    let (mut unsure, mut unseen) = (false, false);
    found.retain(|(number, socket)| {
        let (tuple, bound) = (&socket.tuple, socket.bound());
        let seen = if namespaces[*number].namespace.is_own() {
            None
        } else {
            Some(way::seen(namespaces, *number, tuple, bound))
        };
        let answer = match seen {
            None => selection.selects(tuple, || {
                own_routes(namespaces)?.device(tuple.remote, tuple.local, bound)
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
    for (number, open) in namespaces.iter_mut().enumerate() {
        open.quiet |= !busy.contains(&number) && !open.namespace.is_own();
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

/// The selected connections that netfilter tracks, each with the views by which it is selected.
pub(crate) fn tracked(
    netfilter: &mut Option<Conversation>,
    namespaces: &mut [OpenNamespace],
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
    let mut routes = own_routes(namespaces);
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
pub(crate) fn own_routes(namespaces: &mut [OpenNamespace]) -> Option<&mut Routes> {
    namespaces
        .iter_mut()
        .find(|open| open.namespace.is_own())
        .and_then(|open| open.routes.as_mut())
}

/// Adds a note unless it is there.
pub(crate) fn note_once(notes: &mut Vec<String>, note: String) {
    if !notes.contains(&note) {
        notes.push(note);
    }
}
