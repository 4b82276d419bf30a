//! What there is to kill: the network namespaces in reach, and the rules' sockets in each.
//!
//! Looks only; [`super::rounds`] acts.

use std::io;

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::flow::Tuple;
use super::matching::{Device, Matcher};
use super::netlink::{Conversation, NetlinkError};
use super::netns::{self, Namespace};
use super::routes::Routes;
use super::sockets::{self, HostSocket};
use super::{Namespaces, Settings};

/// The note on flows that a rule may name or not.
pub(crate) const UNSURE: &str =
    "flows whose interface no route tells were left alone, since the rule is limited to interfaces";

/// A network namespace with the sockets that a teardown needs in it.
pub(crate) struct Place {
    /// Which it is.
    pub(crate) namespace: Namespace,
    /// `sock_diag` there.
    pub(crate) diag: Conversation,
    /// Routing there.
    pub(crate) routes: Option<Routes>,
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
                            "{path}: {e}: rules with interfaces kill nothing there, and nothing is probed"
                        ));
                    })
                    .ok();
                Some(Self {
                    namespace,
                    diag,
                    routes,
                })
            }
            Err(e) => {
                notes.push(format!("{path}: {e}: its sockets were not looked at"));
                None
            }
        }
    }

    /// The rules' sockets there.
    fn list(
        &mut self,
        matcher: &Matcher,
        unsure: &mut bool,
    ) -> Result<Vec<HostSocket>, NetlinkError> {
        let routes = &mut self.routes;
        let device = |tuple: &Tuple, bound| match routes {
            Some(routes) => routes.device(tuple.remote, tuple.local, bound),
            None => Device::Unknown,
        };
        sockets::list(&mut self.diag, matcher, device, unsure)
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

/// Lists the rules' sockets everywhere, each with the number of its place.
///
/// The same note is made once, however often the list is read.
pub(crate) fn sockets(
    places: &mut [Place],
    matcher: &Matcher,
    notes: &mut Vec<String>,
) -> Vec<(usize, HostSocket)> {
    let mut found = Vec::new();
    let mut unsure = false;
    for (number, place) in places.iter_mut().enumerate() {
        match place.list(matcher, &mut unsure) {
            Ok(sockets) => found.extend(sockets.into_iter().map(|socket| (number, socket))),
            Err(e) => note_once(notes, format!("{}: {e}", place.namespace.path.display())),
        }
    }
    if unsure {
        note_once(notes, UNSURE.to_owned());
    }
    found
}

/// Adds a note unless it is there.
pub(crate) fn note_once(notes: &mut Vec<String>, note: String) {
    if !notes.contains(&note) {
        notes.push(note);
    }
}
