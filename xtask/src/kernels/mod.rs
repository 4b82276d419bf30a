//! `cargo xtask test --kernel VERSION`: tests that need a kernel, on kernels that this machine does
//! not run.
//!
//! Each kernel is a Debian one ([`source`]), booted by QEMU from an initramfs that holds the tests,
//! the two programs and what they call ([`root`]). The guest runs the tests one after the
//! other and tells of them on its serial console ([`machine`]). Which tests run, and which a kernel
//! is too old for, is said in [`plan`] alone: a test cannot skip itself.
//!
//! Without KVM the guest is emulated, and loading the datapath takes it the better part of a minute;
//! so a few tests of each kind run, unless some are named.

mod machine;
pub(crate) mod plan;
mod root;
mod source;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
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
                results.push((number, *release, timed(*release, &directory, &plan)));
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
fn timed(release: Release, directory: &Path, plan: &Plan) -> (Result<String>, u64) {
    let start = Instant::now();
    let result = on(release, directory, plan);
    (result, start.elapsed().as_secs())
}

/// Runs the plan on one kernel, and says how many tests passed and what was left out.
fn on(release: Release, directory: &Path, plan: &Plan) -> Result<String> {
    let own = directory.join(release.name());
    let kernel = source::fetch(release, &own)?;
    let plan = plan.on(kernel.version);
    for (test, why) in &plan.left_out {
        println!("kernel {release}: {test} is left out: {why}");
    }
    let initramfs = root::pack(&directory.join("root.cpio"), &own, &kernel, &plan)?;
    let log = own.join("console.log");
    let account = machine::run(&kernel, &initramfs, &plan, &log)?;
    let passed = account.check(&plan, &kernel, &log)?;
    Ok(format!(
        "Linux {}, {passed} tests passed, {} left out",
        account.release,
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
