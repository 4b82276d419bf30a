//! Killing the flows that were established when a rule starts.
//!
//! Before the caller calls [`kill`], it makes the rule live in mode `reset`, whatever mode the rule is
//! to have: in that mode RSTs pass, and the datapath turns answers to probes into RSTs. [`kill`] first
//! destroys this host's own sockets, for which the kernel sends their peers an exact RST. Then it
//! probes every flow that is not dead at both ends, with a forged segment that has one byte of data
//! outside the window. RFC 9293 (3.10.7.4) makes the endpoint answer with an ACK that carries its
//! exact sequence numbers, and the datapath turns that ACK into RSTs for both ends. [`Evidence`] tells
//! what the datapath saw; the [`Account`] says which flows are dead, which are not, and why.
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
//! Everything here blocks, so call it from a thread that may block. No state is kept between calls.

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

/// What a teardown needs to know besides its rules.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Whose sockets are killed.
    pub namespaces: Namespaces,
    /// The mark by which the datapath recognizes our own packets; never 0.
    pub mark: u32,
}

/// What the datapath saw of flows under teardown.
///
/// Keys name a flow as a rule sees it ([`FlowKey`]). Bits are those of [`kill`](blocker_ebpf::kill): a
/// RST went to the remote, or to the local end.
pub trait Evidence: Send + Sync {
    /// Watches flows from now on. They have no bits at first.
    ///
    /// # Errors
    /// If the datapath can't watch them. Then no flow is known to be dead, and the account says so.
    fn watch(&self, flows: &[FlowKey]) -> io::Result<()>;

    /// The bits of each flow, in the order of `flows`; 0 for one that is not watched.
    ///
    /// # Errors
    /// If the datapath can't be read.
    fn seen(&self, flows: &[FlowKey]) -> io::Result<Vec<u32>>;

    /// Stops watching flows.
    ///
    /// # Errors
    /// If the datapath can't be told.
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
/// `recorded` are flows that the datapath blocked. Both ends of those that are not listed otherwise
/// are probed.
///
/// Takes some milliseconds, and up to about 300 ms more while the datapath has not seen a RST for every
/// flow's remote. `progress` is called from this thread, several times.
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

/// Selects, of flows that the datapath recorded, those that [`kill`] may kill. Their devices are not
/// recorded, but the datapath saw them.
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
