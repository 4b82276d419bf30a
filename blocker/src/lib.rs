//! blocker blocks peers on a Linux host with eBPF and closes established connections at both ends.
//!
//! The way of a change: YAML, flags or HTTP become a [`rule`], rules make a [`ruleset`], which
//! [`compile`] turns into a snapshot, which [`datapath`] writes into the idle bank and makes live
//! by one word; [`teardown`] then kills the flows that were established. [`controller`] is the
//! sole owner of state and does these steps in order, or none of them.
//!
//! | module | owns | doesn't |
//! |---|---|---|
//! | [`matching`] | what narrows a rule, and which rule decides a packet | know the ruleset or the host |
//! | [`rule`] | what a rule is, text both ways | know other rules or the host |
//! | [`lists`] | files of targets, in the forms that blocklists have | know what is done with them |
//! | [`config`] | the configuration file | act on it |
//! | [`wire`] | what travels: requests, answers and reports | decide or act |
//! | [`yaml`] | errors of YAML files: place, words, lines around | know what a file may say |
//! | [`runbook`] | the form of experiments for `blockctl run` | carry them out |
//! | [`feeds`] | where lists and decisions come from, and when | put them in force |
//! | [`ruleset`] | all rules, their diff | know the kernel |
//! | [`fleet`] | rules for many hosts, through etcd | enforce them |
//! | [`safety`] | what a rule may not touch | match packets |
//! | [`compile`] | ruleset → snapshot, pure | write maps |
//! | [`datapath`] | programs, maps, links, pins | know why a rule is there |
//! | [`teardown`] | killing established flows | decide which rules kill |
//! | [`state`] | API rules across restarts | decide what is in force |
//! | [`controller`] | the order of things, rollback | talk HTTP |
//! | [`api`] | HTTP, JSON, errors | decide |
//! | [`service`] | the service manager's protocols | know what the daemon does |
//! | [`logging`] | where the log goes, in what form | know what is logged |
//! | [`manual`] | man pages, completions | know what the commands are |
//! | [`netlink`] | conversations with the kernel: framing, dumps, batches | know any family |
//! | [`metrics`] | names and text of Prometheus' metrics | count |

pub mod api;
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
