//! blocker blocks peers on a Linux host with eBPF and closes established connections at both ends.
//!
//! A change passes through these modules: YAML, flags or HTTP become a [`rule`]; a [`ruleset`] holds
//! the rules; [`compile`] turns it into a snapshot; [`datapath`] writes the snapshot to the idle bank
//! and makes it live by a store of one word; [`teardown`] kills established flows. [`controller`]
//! owns all state. If a change fails, it puts the rules before the change back in force.
//!
//! `docs/architecture.md` lists the modules, what each owns, and what it may import.

pub mod api;
#[cfg(test)]
mod architecture;
pub mod compile;
pub mod config;
pub mod controller;
pub mod datapath;
pub mod feeds;
pub mod fleet;
pub mod lists;
pub mod logging;
pub mod manual;
pub mod matching;
pub mod metrics;
mod netlink;
pub mod rule;
pub mod ruleset;
pub mod runbook;
pub mod safety;
pub mod service;
pub mod state;
pub mod teardown;
pub mod wire;
pub mod yaml;
