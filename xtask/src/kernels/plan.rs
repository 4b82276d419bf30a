//! Which tests run on which kernel.
//!
//! A test that is left out on a kernel is so for a feature that came after it; all that a kernel is
//! new enough for must pass there.

use std::time::Duration;

use anyhow::{Result, bail};

use super::source::Version;

/// The tests that run unless others are named: of each kind a few, since the verifier of an emulated
/// kernel takes most of a minute for the datapath, and nearly every test loads it.
const PLAN: &[&str] = &[
    "datapath::verdicts::reset_answers_to_both_ends",
    "datapath::rules::a_rule_ends_at_its_deadline_without_anybody",
    "datapath::table::the_ends_of_the_address_space_are_found",
    "teardown::sockets::idle_flows_die_at_both_ends_and_the_server_lives",
    "teardown::sockets::every_state_dies_but_time_wait",
    "teardown::probes::an_idle_remote_answers_each_probe_with_its_exact_numbers",
    "teardown::tracked::forwarded_flows_are_found_and_their_entries_deleted",
    "teardown::datapath::forwarded_flows_die_at_both_ends",
    "teardown::lift::forwarded_flows_that_nothing_tracks_die_at_the_end_of_the_rule_that_saw_them",
    "teardown::untracked::flows_of_this_host_die_and_forwarded_ones_at_their_next_segment",
    "end_to_end::reset::idle_flows_die_at_both_ends_and_new_ones_are_refused",
    "end_to_end::clsact::filters_stay_are_taken_over_and_are_unloaded",
    "end_to_end::clsact::a_qdisc_that_somebody_else_added_or_uses_stays",
    "end_to_end::l3::resets_reach_both_ends",
    "end_to_end::counters::they_are_what_tcpdump_saw_with_xdp_in_the_driver",
    "end_to_end::restart::counters_go_on_to_the_packet_when_a_daemon_takes_over",
    "end_to_end::stop::unload_removes_every_trace_of_a_killed_daemon",
];

/// What kernels got in the course of time, and tests ask for.
struct Feature {
    name: &'static str,
    since: Version,
}

/// Tests that need more than the oldest kernel has.
const NEEDS: &[(&str, Feature)] = &[(
    // Seen on 5.10: the socket stays in LAST-ACK, though the kernel says that it destroyed it.
    "teardown::sockets::every_state_dies_but_time_wait",
    Feature {
        name: "destroying a socket that its owner has closed",
        since: (6, 1),
    },
)];

/// How long a test may take in an emulated guest on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(900);

/// Modules of tests that are about a kernel without a kernel module: it is taken away for them.
const WITHOUT: &[(&str, &str)] = &[("teardown::untracked::", "nf_conntrack_netlink")];

/// The kernel module that is taken away for a test.
pub(super) fn without(test: &str) -> Option<&'static str> {
    let mut found = WITHOUT.iter().filter(|(part, _)| test.starts_with(part));
    found.next().map(|(_, module)| *module)
}

/// The tests that are to run on a kernel.
#[derive(Clone, Default)]
pub(super) struct Plan {
    pub(super) tests: Vec<String>,
    /// Tests that the kernel is too old for, and why.
    pub(super) left_out: Vec<(String, String)>,
}

impl Plan {
    /// Those of [`PLAN`], or those whose names contain one of `filter`, if there is one.
    ///
    /// # Errors
    /// As [`check`], or no test's name contains one.
    pub(super) fn new(there: &[String], filter: &[String]) -> Result<Self> {
        check(there)?;
        let meant = |name: &&String| match filter {
            [] => PLAN.contains(&name.as_str()),
            parts => parts.iter().any(|part| name.contains(part.as_str())),
        };
        let tests: Vec<_> = there.iter().filter(meant).cloned().collect();
        if tests.is_empty() {
            bail!("no test's name contains {}", filter.join(" or "));
        }
        Ok(Self {
            tests,
            left_out: Vec::new(),
        })
    }

    /// What of it runs on a kernel of that version.
    pub(super) fn on(&self, version: Version) -> Self {
        let mut plan = self.clone();
        for (test, feature) in NEEDS {
            if version < feature.since && plan.tests.iter().any(|name| name == test) {
                plan.tests.retain(|name| name != test);
                let (major, minor) = feature.since;
                let why = format!("{}, since Linux {major}.{minor}", feature.name);
                plan.left_out.push(((*test).to_owned(), why));
            }
        }
        plan
    }

    /// Splits it into so many parts, or into its tests if they are fewer.
    pub(super) fn parts(&self, count: usize) -> Vec<Self> {
        let mut parts = vec![Self::default(); count.min(self.tests.len())];
        let count = parts.len();
        for (number, test) in self.tests.iter().enumerate() {
            parts[number % count].tests.push(test.clone());
        }
        parts
    }

    /// How long it may take.
    pub(super) fn patience(&self) -> Duration {
        PATIENCE * u32::try_from(self.tests.len()).unwrap_or(u32::MAX)
    }
}

/// Checks that each test that is named here is there.
///
/// # Errors
/// One is not, so that it would pass by not running.
pub(crate) fn check(there: &[String]) -> Result<()> {
    let needs = NEEDS.iter().map(|(test, _)| test);
    for named in PLAN.iter().chain(needs) {
        if !there.iter().any(|test| test == named) {
            bail!("the plan for other kernels names {named}, which is no test");
        }
    }
    Ok(())
}
