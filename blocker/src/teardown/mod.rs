//! Killing the flows that were established when a rule starts.
//!
//! The caller has made the rule live in mode `reset` before it calls [`kill`], whatever its mode is
//! to be: only so do probes kill, and do RSTs pass. Then this host's own sockets are destroyed (their peers get an exact RST from the kernel), and every flow
//! that this did not kill at both ends is probed: a forged segment with one byte of data outside
//! the window, to which RFC 9293 (3.10.7.4) has the endpoint answer with an ACK that carries its
//! exact sequence numbers; the datapath turns that ACK into RSTs for both ends. What the datapath
//! saw comes back through [`Evidence`], and the [`Account`] says what is dead, what is not, and
//! why.
//!
//! | file | owns |
//! |---|---|
//! | [`flow`] | a flow's tuple and state |
//! | [`selection`] | which flows are killed |
//! | [`bytecode`] | the filter that `sock_diag` runs |
//! | [`sockets`] | listing and destroying sockets |
//! | [`tracked`] | a tracked connection on either side of a NAT |
//! | [`conntrack`] | listing and deleting tracked connections |
//! | [`routes`] | device, next hop, link-layer address |
//! | [`segment`] | the bytes of a probe |
//! | [`probe`] | sending probes |
//! | [`netns`] | network namespaces |
//! | [`way`] | where our devices see flows of other namespaces |
//! | [`owners`] | which process holds a socket |
//! | [`survey`] | what there is to kill |
//! | [`ledger`] | what is known of each flow, and the account |
//! | [`rounds`] | the order of events |
//!
//! Everything here blocks; call it from a thread that may. Nothing is held between calls.

mod bytecode;
mod conntrack;
mod flow;
mod ledger;
mod netns;
mod owners;
mod probe;
mod rounds;
mod routes;
mod segment;
mod selection;
mod sockets;
mod survey;
mod tracked;
mod way;

use std::io;

use blocker_ebpf::FlowKey;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use serde::{Deserialize, Serialize};

use crate::matching::Holds;
use crate::netlink::Conversation;
use crate::rule::Rule;
use crate::wire::{Account, LiveFlow};
pub use flow::Tuple;
pub use selection::{Candidates, Rules, Selection};

/// Whose sockets teardown reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Namespaces {
    /// Those of the daemon's own network namespace.
    Own,
    /// Those of every network namespace on the host.
    All,
}

/// What a teardown needs to know beside its rules.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Whose sockets are killed.
    pub namespaces: Namespaces,
    /// The mark by which the datapath knows our own packets; never 0.
    pub mark: u32,
}

/// What the datapath saw of flows under teardown.
///
/// Keys are as a rule sees the flow ([`FlowKey`]); bits are those of
/// [`kill`](blocker_ebpf::kill): a RST passed towards the remote, towards the local end.
pub trait Evidence: Send + Sync {
    /// Watches flows from now on, with no bits to begin with.
    ///
    /// # Errors
    /// If the datapath can't: then nothing is confirmed, and the account says so.
    fn watch(&self, flows: &[FlowKey]) -> io::Result<()>;

    /// The bits of each flow, in the order of `flows`; 0 for one that is not watched.
    ///
    /// # Errors
    /// If the datapath can't be read.
    fn seen(&self, flows: &[FlowKey]) -> io::Result<Vec<u32>>;

    /// Stops watching flows.
    ///
    /// # Errors
    /// If the datapath can't.
    fn forget(&self, flows: &[FlowKey]) -> io::Result<()>;
}

/// How far a teardown has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Flows found so far.
    pub found: u64,
    /// Flows dead at both ends so far.
    pub killed: u64,
}

/// The flows that a teardown would kill.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing {
    /// The flows, with the name and pid of a process where one holds the socket.
    pub flows: Vec<LiveFlow>,
    /// What could not be looked at, and why.
    pub notes: Vec<String>,
}

/// Lists the flows that [`kill`] would kill. Changes nothing.
///
/// Reads the descriptors of every process for the names: for dry runs.
#[must_use]
pub fn list(killing: &[Rule], rules: &dyn Rules, settings: &Settings) -> Listing {
    rounds::list(killing, rules, settings)
}

/// Kills the established flows of those rules that kill ([`Rule::kills`]); the others are ignored.
/// What another rule decides is left alone.
///
/// `recorded` are flows that the datapath blocked. Those of them that nothing else tells of are
/// probed at both ends.
///
/// Takes some milliseconds, and up to about 300 ms more while flows remain whose remote has not
/// been seen to get a RST. `progress` is called from this thread, now and then.
#[must_use]
pub fn kill(
    killing: &[Rule],
    rules: &dyn Rules,
    recorded: &[FlowKey],
    settings: &Settings,
    evidence: &dyn Evidence,
    progress: &dyn Fn(Progress),
) -> Account {
    rounds::kill(killing, rules, recorded, settings, evidence, progress)
}

/// Those of the flows that the datapath recorded which [`kill`] may kill. It saw the device of each.
#[must_use]
pub fn recorded(killing: &[Rule], rules: &dyn Rules, mut flows: Vec<FlowKey>) -> Vec<FlowKey> {
    let selection = Selection::new(killing, rules);
    flows.retain(|flow| selection.selects(&Tuple::from(flow), || None) != Holds::Never);
    flows
}

/// What the kernel lacks for a teardown, and what follows from it; empty if nothing.
#[must_use]
pub fn lacks() -> Vec<String> {
    let mut lacks = Vec::new();
    let can_destroy = Conversation::open(NETLINK_SOCK_DIAG, "sock_diag")
        .and_then(|mut diag| sockets::can_destroy(&mut diag));
    match can_destroy {
        Ok(true) => {}
        Ok(false) => lacks.push(
            "CONFIG_INET_DIAG_DESTROY: established connections of this host can't be destroyed; they are probed instead, and one whose remote does not answer dies at its next segment"
                .to_owned(),
        ),
        Err(e) => lacks.push(format!(
            "CONFIG_INET_DIAG: established connections of this host can't be listed ({e}); they die at their next segment"
        )),
    }
    if let Err(e) = conntrack::open().and_then(|mut netfilter| conntrack::count(&mut netfilter)) {
        lacks.push(format!(
            "CONFIG_NF_CT_NETLINK: forwarded connections can't be listed ({e}); they die at their next segment"
        ));
    }
    lacks
}
