//! `cargo xtask soak`: a long run of changes, reloads, restarts and crashes under traffic.
//!
//! Two hosts in network namespaces. One sends from many addresses, and knows for each whether it must
//! pass, must not, or is being changed (`traffic`). The other runs the daemon (`conduct`): first with
//! restarts and crashes, then as one process, whose use of resources is compared (`report`).

mod conduct;
mod report;
mod traffic;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::{self, say, search_path};
use crate::demo::{clean_up_on_signals, programs as find_programs};
use crate::{build, hosts, setup};

const TASK: &str = "soak";

/// The length and the seed of a run.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct How {
    /// Length of the run
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
    /// Seed of all random choices; chosen and printed if absent
    #[arg(long)]
    seed: Option<u64>,
}

/// Sets up, builds and runs; prints a table and writes `target/soak.json`.
///
/// `programs` is the programs' directory if they are built already, as for the demonstration.
///
/// # Errors
/// The set-up fails, or the daemon fails a check.
pub(crate) fn run(how: How, programs: Option<PathBuf>) -> Result<()> {
    let directory = match programs {
        Some(directory) => directory,
        None => {
            setup::install(setup::Purpose::Test)?;
            build::dev()?
        }
    };
    if !command::is_root() {
        let own = std::env::current_exe().context("this program's own path is unknown")?;
        let own = own.to_str().context("this program's path is not UTF-8")?;
        let sudo = command::sudo().context("run this as root: network namespaces need it")?;
        let mut again = command::elevated(sudo.as_deref(), own);
        again.args([TASK, "--minutes", &how.minutes.to_string()]);
        if let Some(seed) = how.seed {
            again.args(["--seed", &seed.to_string()]);
        }
        again.arg("--programs").arg(&directory);
        again.env("PATH", search_path());
        say(TASK, &command::line(&again));
        let status = again.status().context("sudo cannot be started")?;
        std::process::exit(status.code().unwrap_or(1));
    }
    clean_up_on_signals()?;
    let seed = how.seed.unwrap_or_else(|| fastrand::u64(..));
    say(TASK, &format!("{} minutes, --seed {seed}", how.minutes));
    let time = Duration::from_secs(60) * how.minutes;
    let outcome = conduct::conduct(&find_programs(&directory)?, time, seed);
    hosts::clean_up();
    let report = outcome.with_context(|| format!("--seed {seed}"))?;
    anstream::print!("\n{}", report.table());
    let path = build::target_directory().join("soak.json");
    let text = serde_json::to_string_pretty(&report).context("serialising the report")?;
    std::fs::write(&path, text + "\n")
        .with_context(|| format!("{} cannot be written", path.display()))?;
    say(TASK, &format!("written to {}", path.display()));
    let faults = report.faults();
    if !faults.is_empty() {
        bail!("{} (--seed {seed})", faults.join("; "));
    }
    Ok(())
}
