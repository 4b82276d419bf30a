//! `cargo xtask bench`: the cost of a packet with blocker, compared with peers and with no filter.
//!
//! Three parts, all as root. `blocker/benches/packet` runs blocker's programs on one packet many
//! times. The comparison ([`wired`]) floods a veth that blocker or a peer filters. A test measures the
//! time to kill connections. Tables and a chart are written to `target/bench/`.

mod addresses;
mod chart;
mod filters;
mod generator;
mod memory;
mod programs;
mod report;
mod wire;
mod wired;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::command::{self, cargo, line, say, search_path};
use crate::{build, demo, hosts, setup, test};

const TASK: &str = "bench";

/// The measurements to make.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct What {
    /// Only the comparison with peers, with small sets and short rounds: some minutes
    #[arg(long)]
    quick: bool,
    /// Only the comparison, and in it only the ways to block whose name contains one of these
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Only the comparison, and in it only sets of these sizes
    #[arg(long, value_name = "NUMBER")]
    prefixes: Vec<usize>,
}

impl What {
    /// Whether it is the comparison alone.
    fn is_part(&self) -> bool {
        self.quick || !self.only.is_empty() || !self.prefixes.is_empty()
    }

    /// The equivalent arguments.
    fn arguments(&self) -> Vec<String> {
        let quick = self.quick.then(|| "--quick".to_owned());
        let only = self.only.iter().map(|name| format!("--only={name}"));
        let prefixes = self.prefixes.iter().map(|n| format!("--prefixes={n}"));
        quick.into_iter().chain(only).chain(prefixes).collect()
    }
}

/// Sets up, builds and measures; prints the tables and writes them.
///
/// # Errors
/// The set-up is impossible, or a part does not build or run.
pub(crate) fn run(what: &What) -> Result<()> {
    setup::install(setup::Purpose::Test)?;
    let sudo = command::sudo().context("run this as root: programs are loaded into the kernel")?;
    build::release()?;
    let directory = build::target_directory().join("bench");
    fs::create_dir_all(&directory)
        .with_context(|| format!("{} cannot be made", directory.display()))?;
    if !what.is_part() {
        programs::measure(sudo.as_deref(), &directory)?;
    }
    let comparison = compare_as_root(sudo.as_deref(), what)?;
    report::keep(&comparison, &directory)?;
    print!("\n{}", report::text(&comparison));
    say(TASK, &format!("kept in {}", directory.display()));
    if what.is_part() {
        Ok(())
    } else {
        teardown(sudo)
    }
}

/// Compares in a second process, as root, with mounts of its own.
fn compare_as_root(sudo: Option<&Path>, what: &What) -> Result<wired::Comparison> {
    let own = std::env::current_exe().context("this program's own path is unknown")?;
    let own = own.to_str().context("this program's path is no text")?;
    let mut again = command::elevated(sudo, own);
    again.args([TASK, "--programs"]);
    again.arg(build::target_directory().join("release"));
    again.args(what.arguments());
    again.env("PATH", search_path());
    say(TASK, &line(&again));
    let output = again
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("`{}` cannot be started", line(&again)))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", line(&again), output.status);
    }
    serde_json::from_slice(&output.stdout).context("the comparison printed no report")
}

/// The comparison itself; prints it as JSON.
///
/// # Errors
/// The process is not root, or the comparison fails.
pub(crate) fn compare(directory: &Path, what: &What) -> Result<()> {
    let programs = demo::programs(directory)?;
    wired::private_mounts()?;
    demo::clean_up_on_signals()?;
    let result = wired::compare(&programs, what);
    // After a signal its thread does the same, and ends the process.
    hosts::clean_up();
    println!("{}", serde_json::to_string_pretty(&result?)?);
    Ok(())
}

/// Compares killing many connections with `ss --kill`; the test prints the result.
fn teardown(sudo: Option<PathBuf>) -> Result<()> {
    let mut speed = cargo();
    speed
        .args([
            "test",
            "--release",
            "--package",
            "blocker",
            "--features",
            "blocker/kernel-tests",
        ])
        .args([
            "--test",
            "kernel",
            "--",
            "alone::teardown_speed",
            "--nocapture",
        ])
        .env("PATH", search_path());
    if let Some(sudo) = sudo {
        speed.env(test::runner_variable()?, sudo);
    }
    say(TASK, &line(&speed));
    let status = speed
        .stdin(Stdio::null())
        .status()
        .context("cargo cannot be started")?;
    if !status.success() {
        bail!("`{}` failed ({status})", line(&speed));
    }
    Ok(())
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
