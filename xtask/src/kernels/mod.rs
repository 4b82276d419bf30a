//! `cargo xtask test --kernel VERSION`: tests that need a kernel, on kernels that this machine does
//! not run.
//!
//! Each kernel is a Debian one ([`source`]), booted by QEMU from an initramfs that holds the test
//! binaries, the two programs and what they call ([`root`]). The guest runs the tests one after the
//! other and tells of them on its serial console ([`machine`]). Which tests run, and which a kernel
//! is too old for, is said in [`plan`] alone: a test cannot skip itself.
//!
//! Without KVM the guest is emulated, and loading the datapath takes it the better part of a minute;
//! so a few tests of each kind run, unless some are named.

mod machine;
mod plan;
mod root;
mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

pub(crate) use source::Release;

use crate::build::target_directory;
use crate::command::{cargo, line, say, search_path};
use crate::setup;
use plan::Job;

const TASK: &str = "kernels";

/// A program that cargo built.
struct Built {
    name: String,
    path: PathBuf,
    /// Whether it is an integration test, or one of the two programs.
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
    let (built, jobs) = if filter.is_empty() {
        let built = build(&plan::binaries())?;
        let jobs = plan::jobs(&built)?;
        (built, jobs)
    } else {
        let built = build(&["*"])?;
        let jobs = plan::named(&built, filter)?;
        (built, jobs)
    };
    fs::create_dir_all(&directory)?;
    root::prepare(&directory, &built, &jobs)?;

    // A guest under test keeps one CPU busy; the next kernel boots when one is done.
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let mut results: Vec<_> = std::thread::scope(|scope| {
        let work = || {
            let mut results = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(release) = releases.get(number) else {
                    return results;
                };
                results.push((number, *release, timed(*release, &directory, &jobs)));
            }
        };
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        let results = workers.into_iter().map(std::thread::ScopedJoinHandle::join);
        results
            .flat_map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    results.sort_by_key(|(number, ..)| *number);

    let mut failed = Vec::new();
    let mut lines = Vec::new();
    for (_, release, (result, seconds)) in results {
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

/// As [`on`], and the seconds that it took.
fn timed(release: Release, directory: &Path, jobs: &[Job]) -> (Result<String>, u64) {
    let start = Instant::now();
    let result = on(release, directory, jobs);
    (result, start.elapsed().as_secs())
}

/// Runs the jobs on one kernel, and says how many tests passed and what was left out.
fn on(release: Release, directory: &Path, jobs: &[Job]) -> Result<String> {
    let own = directory.join(release.name());
    let kernel = source::fetch(release, &own)?;
    let jobs: Vec<_> = jobs.iter().map(|job| job.on(kernel.version)).collect();
    let left_out: Vec<_> = jobs.iter().flat_map(|job| &job.left_out).collect();
    for (test, why) in &left_out {
        println!("kernel {release}: {test} is left out: {why}");
    }
    let initramfs = root::pack(&directory.join("root.cpio"), &own, &kernel, &jobs)?;
    let log = own.join("console.log");
    let account = machine::run(&kernel, &initramfs, &jobs, &log)?;
    let passed = account.check(&jobs, &kernel, &log)?;
    Ok(format!(
        "Linux {}, {passed} tests passed, {} left out",
        account.release,
        left_out.len()
    ))
}

/// Builds the two programs and these integration tests of them (`*` is every one).
fn build(tests: &[&str]) -> Result<Vec<Built>> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Option<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        kind: Vec<String>,
        name: String,
    }

    let mut command = cargo();
    command
        // As `cargo xtask test` builds, so that what one built the other takes.
        .args(["test", "--no-run", "--workspace"])
        .args(["--features", "blocker/kernel-tests"])
        .args(tests.iter().flat_map(|test| ["--test", test]))
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
            built.push(Built {
                name: target.name,
                path,
                test: target.kind.iter().any(|kind| kind == "test"),
            });
        }
    }
    Ok(built)
}
