//! Which tests run on which kernel.
//!
//! A test that is left out on a kernel is so for a feature that came after it; all that a kernel is
//! new enough for must pass there.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Built;
use super::source::Version;

/// The tests that run unless others are named: of each kind a few, since the verifier of an emulated
/// kernel takes most of a minute for the datapath, and nearly every test loads it.
const PLAN: &[(&str, &[&str])] = &[
    ("datapath_packets", &["reset_answers_to_both_ends"]),
    (
        "datapath_rules",
        &["a_rule_ends_at_its_deadline_without_anybody"],
    ),
    (
        "datapath_table",
        &["the_ends_of_the_address_space_are_found"],
    ),
    (
        "teardown_sockets",
        &[
            "idle_flows_die_at_both_ends_and_the_server_lives",
            "every_state_dies_but_time_wait",
        ],
    ),
    (
        "teardown_probes",
        &["an_idle_remote_answers_each_probe_with_its_exact_numbers"],
    ),
    (
        "teardown_tracked",
        &["forwarded_flows_are_found_and_their_entries_deleted"],
    ),
    ("teardown_datapath", &["forwarded_flows_die_at_both_ends"]),
    (
        "teardown_lift",
        &["forwarded_flows_that_nothing_tracks_die_at_the_end_of_the_rule_that_saw_them"],
    ),
    (
        "teardown_untracked",
        &["flows_of_this_host_die_and_forwarded_ones_at_their_next_segment"],
    ),
    (
        "end_to_end_reset",
        &["idle_flows_die_at_both_ends_and_new_ones_are_refused"],
    ),
    (
        "end_to_end_clsact",
        &[
            "filters_stay_are_taken_over_and_are_unloaded",
            "a_qdisc_that_somebody_else_added_or_uses_stays",
        ],
    ),
    ("end_to_end_l3", &["resets_reach_both_ends"]),
    (
        "end_to_end_counters",
        &["they_are_what_tcpdump_saw_with_xdp_in_the_driver"],
    ),
    (
        "end_to_end_restart",
        &["counters_go_on_to_the_packet_when_a_daemon_takes_over"],
    ),
    (
        "end_to_end_stop",
        &["unload_removes_every_trace_of_a_killed_daemon"],
    ),
];

/// What kernels got in the course of time, and tests ask for.
struct Feature {
    name: &'static str,
    since: Version,
}

/// Tests that need more than the oldest kernel has.
const NEEDS: &[(&str, Feature)] = &[(
    // Seen on 5.10: the socket stays in LAST-ACK, though the kernel says that it destroyed it.
    "every_state_dies_but_time_wait",
    Feature {
        name: "destroying a socket that its owner has closed",
        since: (6, 1),
    },
)];

/// How long a test may take in an emulated guest on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(900);

/// Binaries that are about a kernel without a module: it is taken away for them.
const WITHOUT: &[(&str, &str)] = &[("teardown_untracked", "nf_conntrack_netlink")];

/// The module that is taken away for a binary's tests.
pub(super) fn without(binary: &str) -> Option<&'static str> {
    let mut found = WITHOUT.iter().filter(|(name, _)| *name == binary);
    found.next().map(|(_, module)| *module)
}

/// The binaries of the plan.
pub(super) fn binaries() -> Vec<&'static str> {
    PLAN.iter().map(|(binary, _)| *binary).collect()
}

/// The tests of one binary.
#[derive(Clone)]
pub(super) struct Job {
    pub(super) binary: String,
    pub(super) tests: Vec<String>,
    /// Tests that the kernel is too old for, and why.
    pub(super) left_out: Vec<(String, String)>,
}

impl Job {
    /// What of it runs on a kernel of that version.
    pub(super) fn on(&self, version: Version) -> Self {
        let mut job = self.clone();
        for (test, feature) in NEEDS {
            if version < feature.since && job.tests.iter().any(|name| name == test) {
                job.tests.retain(|name| name != test);
                let (major, minor) = feature.since;
                let why = format!("{}, since Linux {major}.{minor}", feature.name);
                job.left_out.push(((*test).to_owned(), why));
            }
        }
        job
    }

    /// How long it may take.
    pub(super) fn patience(&self) -> Duration {
        PATIENCE * u32::try_from(self.tests.len()).unwrap_or(u32::MAX)
    }

    /// Its tests as they are named in what is told of them.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.tests
            .iter()
            .map(|test| format!("{}::{test}", self.binary))
    }
}

/// The tests of the plan.
///
/// # Errors
/// One of them is not there, so that it would pass by not running.
pub(super) fn jobs(built: &[Built]) -> Result<Vec<Job>> {
    let job = |(binary, tests): &(&str, &[&str])| {
        let there = list(
            built
                .iter()
                .find(|built| built.test && built.name == *binary)
                .with_context(|| {
                    format!("the plan names {binary}, which is no integration test")
                })?,
        )?;
        for test in *tests {
            if !there.iter().any(|name| name == test) {
                bail!("the plan names {test} of {binary}, which is no test");
            }
        }
        Ok(Job {
            binary: (*binary).to_owned(),
            tests: tests.iter().map(ToString::to_string).collect(),
            left_out: Vec::new(),
        })
    };
    PLAN.iter().map(job).collect()
}

/// The tests whose names, or whose binaries' names, contain one of these.
///
/// # Errors
/// There are none.
pub(super) fn named(built: &[Built], filter: &[String]) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    for built in built.iter().filter(|built| built.test) {
        let meant = |name: &str| filter.iter().any(|part| name.contains(part.as_str()));
        let mut tests = list(built)?;
        tests.retain(|test| meant(test) || meant(&built.name));
        if !tests.is_empty() {
            jobs.push(Job {
                binary: built.name.clone(),
                tests,
                left_out: Vec::new(),
            });
        }
    }
    if jobs.is_empty() {
        bail!("no test's name contains {}", filter.join(" or "));
    }
    Ok(jobs)
}

/// The names of a binary's tests.
fn list(built: &Built) -> Result<Vec<String>> {
    let output = Command::new(&built.path)
        .args(["--list", "--format", "terse"])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} cannot be started", built.path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    Ok(names.map(ToOwned::to_owned).collect())
}
