//! blocker blocks peers on a Linux host with eBPF and closes established connections at both ends.
//!
//! The way of a change: YAML, flags or HTTP become a [`rule`], rules make a [`ruleset`], which
//! [`compile`] turns into a snapshot, which [`datapath`] writes into the idle bank and makes live
//! by one word; [`teardown`] then kills the flows that were established. [`controller`] is the
//! sole owner of state and does these steps in order, or none of them.
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
