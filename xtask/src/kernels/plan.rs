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
    (
        "datapath_packets",
        &["drop_is_silent_on_every_hook", "reset_answers_to_both_ends"],
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
        "teardown_tracked",
        &["forwarded_flows_are_found_and_their_entries_deleted"],
    ),
    ("teardown_datapath", &["forwarded_flows_die_at_both_ends"]),
    (
        "end_to_end_reset",
        &["idle_flows_die_at_both_ends_and_new_ones_are_refused"],
    ),
    (
        "end_to_end_drop",
        &["nothing_passes_and_the_flow_resumes_afterwards"],
    ),
    ("end_to_end_clsact", &["filters_drop_reset_and_let_go"]),
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
const NEEDS: &[(&str, Feature)] = &[
    (
        // The clsact qdisc that the filters were on stays, empty: it may be somebody else's.
        "unload_removes_every_trace_of_a_killed_daemon",
        Feature {
            name: "TCX, which leaves no qdisc behind",
            since: (6, 6),
        },
    ),
    (
        // Seen on 5.10: the socket stays in LAST-ACK, though the kernel says that it destroyed it.
        "every_state_dies_but_time_wait",
        Feature {
            name: "destroying a socket that its owner has closed",
            since: (6, 12),
        },
    ),
];

/// How long a test may take in an emulated guest on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

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
