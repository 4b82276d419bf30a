//! `cargo xtask test`: everything that `cargo test` runs, and the tests that need root and a
//! kernel.
//!
//! All of it is built once, with the feature `kernel-tests`, by the user who calls; only the tests of
//! the kernel run as root, by sudo where the user is not. They run beside each other, but for those
//! in the module `alone`, which follow one after the other.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread::available_parallelism;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::command::{self, cargo, line, say, search_path};
use crate::kernels::plan;
use crate::setup;

const TASK: &str = "test";
/// The tests that need root and a kernel.
pub(crate) const TESTS: &str = "kernel";
/// The module of those that need the machine to themselves.
const ALONE: &str = "alone::";
/// How many tests run at once on each CPU: most wait, for the network or a deadline.
const TESTS_PER_CPU: usize = 2;
/// How many of the slowest tests are named.
const SLOWEST: usize = 10;

/// Variables that reach tests that run as root.
const KEPT: &str = "RUST_BACKTRACE,BLOCKER_FUZZ_SEED,BLOCKER_FUZZ_PACKETS";

/// What all runs of test binaries came to.
#[derive(Default)]
struct Summary {
    passed: u64,
    failed: u64,
    ignored: u64,
    filtered: u64,
    /// Seconds and name of each test.
    times: Vec<(f64, String)>,
    /// The runs that failed.
    failures: Vec<&'static str>,
}

/// Sets up and runs the tests whose names contain one of `filter`; all if it is empty.
///
/// # Errors
/// The set-up is impossible, something does not build, or a test fails.
pub(crate) fn run(filter: &[String]) -> Result<()> {
    setup::install(setup::Purpose::Test)?;
    let sudo = command::sudo().context("run this as root: tests of the kernel need it")?;
    let start = Instant::now();
    let mut summary = Summary::default();

    let unit = ["--lib", "--bins", "--test", "plain", "--"];
    summary.run("unit tests", timed(cargo_test(&unit), "")?.args(filter))?;
    let doc = ["--doc", "--"];
    summary.run(
        "examples in the documentation",
        cargo_test(&doc).args(filter),
    )?;

    let kernel = ["--test", TESTS, "--"];
    // sudo's own PATH has the administrator's directories; nothing else of the environment is needed,
    // but for what makes a panic readable, and fuzzing repeatable.
    let sudo = sudo.map(|sudo| format!("{} --preserve-env={KEPT} ", sudo.display()));
    let as_root = |words: &[&str]| timed(cargo_test(words), sudo.as_deref().unwrap_or_default());
    let there = list(cargo_test(&kernel))?;
    plan::check(&there)?;
    let threads = TESTS_PER_CPU * available_parallelism().map_or(1, usize::from);
    let threads = threads.to_string();
    let words = [&kernel[..], &["--skip", ALONE, "--test-threads", &threads]].concat();
    summary.run("tests of the kernel", as_root(&words)?.args(filter))?;

    let meant = |name: &&String| filter.is_empty() || filter.iter().any(|part| name.contains(part));
    let alone = there
        .iter()
        .filter(|name| name.starts_with(ALONE))
        .filter(meant);
    let alone: Vec<_> = alone.collect();
    if !alone.is_empty() {
        let filtered = summary.filtered - alone.len() as u64;
        let words = [&kernel[..], &["--test-threads", "1", "--exact"]].concat();
        let name = "tests of the kernel that need the machine to themselves";
        summary.run(name, as_root(&words)?.args(alone))?;
        // The run before has counted the others.
        summary.filtered = filtered;
    }

    summary.print(start.elapsed().as_secs_f64());
    if !summary.failures.is_empty() {
        bail!("failed: {}", summary.failures.join(", "));
    }
    if summary.passed == 0 {
        bail!("no test's name contains {}", filter.join(" or "));
    }
    Ok(())
}

/// `cargo test` of what is built for all tests, with these further arguments.
fn cargo_test(words: &[&str]) -> Command {
    let mut command = cargo();
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(["--features", "blocker/kernel-tests"])
        .args(words)
        .env("PATH", search_path());
    command
}

/// Has test binaries run through another program (as root, say) and tell how long each test took.
fn timed(mut command: Command, runner: &str) -> Result<Command> {
    command
        .args(["-Zunstable-options", "--report-time"])
        // The test binary's own option is an unstable one. Cargo must not see the variable: it would
        // build everything anew.
        .env(runner_variable()?, format!("{runner}env RUSTC_BOOTSTRAP=1"));
    Ok(command)
}

/// The names of a binary's tests.
fn list(mut command: Command) -> Result<Vec<String>> {
    command.args(["--list", "--format", "terse"]);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cargo cannot be started")?;
    if !output.status.success() {
        bail!("`{}` failed ({})", line(&command), output.status);
    }
    Ok(names(&String::from_utf8_lossy(&output.stdout)))
}

/// The names in what a test binary lists.
pub(crate) fn names(list: &str) -> Vec<String> {
    let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
    names.map(ToOwned::to_owned).collect()
}

impl Summary {
    /// Runs one `cargo test`, shows what it says and adds up what it counts.
    fn run(&mut self, name: &'static str, command: &mut Command) -> Result<()> {
        say(TASK, name);
        say(TASK, &line(command));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("`{}` cannot be started", line(command)))?;
        if let Some(stdout) = child.stdout.take() {
            for text in BufReader::new(stdout).lines() {
                let text = text.context("cargo's output is not text")?;
                println!("{text}");
                self.add(&text);
            }
        }
        let status = child.wait().context("cargo cannot be waited for")?;
        if !status.success() {
            self.failures.push(name);
        }
        Ok(())
    }

    /// Adds a line such as `test rule::tests::text ... ok <0.012s>` or
    /// `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
    fn add(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result: ") else {
            self.times.extend(time(line));
            return;
        };
        let counts = counts.split_once(". ").map_or(counts, |(_, counts)| counts);
        for part in counts.split("; ") {
            let Some((number, what)) = part.split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<u64>() else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                "filtered out" => self.filtered += number,
                _ => {}
            }
        }
    }

    fn print(&mut self, seconds: f64) {
        self.times
            .sort_by(|(one, _), (other, _)| other.total_cmp(one));
        println!("\nthe slowest tests:");
        for (seconds, name) in self.times.iter().take(SLOWEST) {
            println!("{seconds:8.1} s  {name}");
        }
        let verdict = if self.failures.is_empty() {
            "ok"
        } else {
            "FAILED"
        };
        // The form of cargo's own lines, so that what reads those reads this.
        println!(
            "\ntest result: {verdict}. {} passed; {} failed; {} ignored; 0 measured; {} filtered \
             out; finished in {seconds:.2}s",
            self.passed, self.failed, self.ignored, self.filtered
        );
    }
}

/// The seconds and the name in a line that tells of a test's end.
fn time(line: &str) -> Option<(f64, String)> {
    let (name, end) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let (_, time) = end.strip_suffix("s>")?.rsplit_once('<')?;
    Some((time.parse().ok()?, name.to_owned()))
}

/// The name of the variable by which cargo runs test binaries through another program.
pub(crate) fn runner_variable() -> Result<String> {
    let host = command::host()?;
    let triple = host.to_uppercase().replace('-', "_");
    Ok(format!("CARGO_TARGET_{triple}_RUNNER"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_result_lines_add_up() {
        let mut summary = Summary::default();
        summary.add("test ruleset::tests::diff ... ok <0.250s>");
        summary.add(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; \
             finished in 0.02s",
        );
        summary.add(
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 4 filtered out; \
             finished in 1.00s",
        );
        let counts = (
            summary.passed,
            summary.failed,
            summary.ignored,
            summary.filtered,
        );
        assert_eq!(counts, (13, 2, 1, 7));
        assert_eq!(summary.times, [(0.25, "ruleset::tests::diff".to_owned())]);
    }
}
