//! `cargo xtask test --kernel VERSION`: tests that need a kernel, on kernels that this machine does
//! not run.
//!
//! Each kernel is a Debian one ([`source`]), booted by QEMU from an initramfs that holds the tests, the
//! two programs and what they call ([`root`]). A guest runs its part of the tests one after the other
//! and reports on its serial console ([`machine`]). Only [`plan`] says which tests run, and which a kernel
//! is too old for: a test cannot skip itself.
//!
//! Guests are emulated, and need most of a minute to load the datapath; so a few tests of each kind run,
//! unless some are named.

mod machine;
pub(crate) mod plan;
mod root;
mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{self, ScopedJoinHandle, available_parallelism};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

pub(crate) use source::Release;

use crate::build::target_directory;
use crate::command::{cargo, line, say, search_path};
use crate::setup;
use crate::test::{TESTS, names};
use plan::Plan;

const TASK: &str = "kernels";

/// A program that cargo built.
struct Built {
    path: PathBuf,
    /// Whether it has the tests, or is one of the two programs.
    test: bool,
}

/// Boots each kernel and runs tests there: those of the plan, or those whose names contain one of
/// `filter`.
///
/// # Errors
/// The set-up is impossible, something does not build, a kernel does not boot, or a test fails or
/// does not run.
pub(crate) fn run(releases: &[Release], filter: &[String]) -> Result<()> {
    setup::install(setup::Purpose::Kernels)?;
    let directory = target_directory().join("kernels");
    let built = build()?;
    let plan = Plan::new(&list(&built)?, filter)?;
    fs::create_dir_all(&directory)?;
    root::prepare(&directory, &built)?;

    let mut failed = Vec::new();
    let mut lines = Vec::new();
    for release in releases {
        let start = Instant::now();
        let result = on(*release, &directory, &plan);
        let seconds = start.elapsed().as_secs();
        match result {
            Ok(said) => lines.push(format!("{release}: ok, {said}; {seconds} s")),
            Err(error) => {
                lines.push(format!("{release}: FAILED; {seconds} s: {error:#}"));
                failed.push(release.to_string());
            }
        }
    }
    println!();
    for line in lines {
        println!("kernel {line}");
    }
    if !failed.is_empty() {
        bail!("failed on Linux {}", failed.join(", "));
    }
    Ok(())
}

/// Runs the plan on one kernel, and says how many tests passed and what was left out. A guest keeps one
/// CPU busy, so there is one for each, with its part of the plan.
fn on(release: Release, directory: &Path, plan: &Plan) -> Result<String> {
    let own = directory.join(release.name());
    let kernel = source::fetch(release, &own)?;
    let plan = plan.on(kernel.version);
    for (test, why) in &plan.left_out {
        println!("kernel {release}: {test} is left out: {why}");
    }
    let common = directory.join("root.cpio");
    let parts = plan.parts(available_parallelism().map_or(1, usize::from));
    let passed = thread::scope(|scope| {
        let guest = |number: usize| {
            let own = own.join(format!("guest{number}"));
            let (common, kernel, part) = (&common, &kernel, &parts[number]);
            move || -> Result<usize> {
                let initramfs = root::pack(common, &own, kernel, part)?;
                let log = own.join("console.log");
                let account = machine::run(kernel, &initramfs, part, &log)?;
                account.check(part, kernel, &log)
            }
        };
        let guests = (0..parts.len()).map(|number| scope.spawn(guest(number)));
        let guests: Vec<_> = guests.collect();
        let results = guests.into_iter().map(ScopedJoinHandle::join);
        let results: Vec<_> = results
            .map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        results.into_iter().sum::<Result<usize>>()
    })?;
    Ok(format!(
        "Linux {}, {passed} tests passed, {} left out",
        kernel.release,
        plan.left_out.len()
    ))
}

/// Builds the two programs and the tests of them.
fn build() -> Result<Vec<Built>> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Option<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        kind: Vec<String>,
    }

    let mut command = cargo();
    command
        // As `cargo xtask test` builds, so that what one built the other takes.
        .args(["test", "--no-run", "--workspace"])
        .args(["--features", "blocker/kernel-tests"])
        .args(["--test", TESTS])
        .arg("--message-format=json-render-diagnostics")
        .env("PATH", search_path());
    say(TASK, &line(&command));
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("`{}` cannot be started", line(&command)))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", line(&command), output.status);
    }
    let mut built = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: Message = serde_json::from_str(line).context("cargo's message")?;
        if let (Some(path), Some(target)) = (message.executable, message.target) {
            let test = target.kind.iter().any(|kind| kind == "test");
            built.push(Built { path, test });
        }
    }
    Ok(built)
}

/// The names of the tests.
fn list(built: &[Built]) -> Result<Vec<String>> {
    let tests = built.iter().find(|built| built.test);
    let tests = tests.with_context(|| format!("cargo built no {TESTS}"))?;
    let output = Command::new(&tests.path)
        .args(["--list", "--format", "terse"])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} cannot be started", tests.path.display()))?;
    Ok(names(&String::from_utf8_lossy(&output.stdout)))
}
