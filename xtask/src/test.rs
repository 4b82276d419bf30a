//! `cargo xtask test`: everything that `cargo test` runs, and the tests that need root and a
//! kernel.
//!
//! All of it is built once, with the feature `kernel-tests`, by the user who calls; only the
//! integration tests run as root, by sudo where the user is not.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::command::{self, cargo, line, say, search_path};
use crate::setup;

const TASK: &str = "test";

/// Variables that reach tests that run as root.
const KEPT: &str = "RUST_BACKTRACE,BLOCKER_FUZZ_SEED,BLOCKER_FUZZ_PACKETS";

/// What `cargo test` counted, over all test binaries.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    filtered: u64,
}

/// Sets up and runs the tests whose names contain one of `filter`; all if it is empty.
///
/// # Errors
/// The set-up is impossible, something does not build, or a test fails.
pub(crate) fn run(filter: &[String]) -> Result<()> {
    setup::install(setup::Purpose::Test)?;
    let sudo = command::sudo().context("run this as root: tests of the kernel need it")?;
    let start = Instant::now();
    let mut tally = Tally::default();
    let mut failed = Vec::new();
    for (name, selection) in [
        ("unit tests", &["--lib", "--bins"][..]),
        ("examples in the documentation", &["--doc"]),
        ("tests that need root and a kernel", &["--test", "*"]),
    ] {
        let root = selection.contains(&"--test");
        if root && !has_integration_tests() {
            continue;
        }
        say(TASK, name);
        let mut command = cargo();
        command
            .args([
                "test",
                "--workspace",
                "--features",
                "blocker/kernel-tests",
                "--no-fail-fast",
            ])
            .args(selection)
            .arg("--")
            .args(filter)
            .env("PATH", search_path());
        if let (true, Some(sudo)) = (root, &sudo) {
            // sudo's own PATH has the administrator's directories; nothing else of the
            // environment is needed, but for what makes a panic readable, and fuzzing repeatable.
            command.env(
                runner_variable()?,
                format!("{} --preserve-env={KEPT}", sudo.display()),
            );
        }
        if !one(&mut command, &mut tally)? {
            failed.push(name);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    // The form of cargo's own lines, so that what reads those reads this.
    println!(
        "\ntest result: {verdict}. {} passed; {} failed; {} ignored; 0 measured; {} filtered out; \
         finished in {seconds:.2}s",
        tally.passed, tally.failed, tally.ignored, tally.filtered
    );
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    if tally.passed == 0 {
        bail!("no test's name contains {}", filter.join(" or "));
    }
    Ok(())
}

/// Runs one `cargo test`, shows what it says and adds up what it counts.
fn one(command: &mut Command, tally: &mut Tally) -> Result<bool> {
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
            tally.add(&text);
        }
    }
    let status = child.wait().context("cargo cannot be waited for")?;
    Ok(status.success())
}

impl Tally {
    /// Adds a line such as `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
    fn add(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result: ") else {
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
}

/// Cargo refuses `--test '*'` where there is none.
fn has_integration_tests() -> bool {
    let tests = command::workspace().join("blocker/tests");
    let Ok(entries) = tests.read_dir() else {
        return false;
    };
    let mut names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.any(|name| name.ends_with(".rs"))
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
        let mut tally = Tally::default();
        tally.add("test ruleset::tests::diff ... ok");
        tally.add(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; \
             finished in 0.02s",
        );
        tally.add(
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 4 filtered out; \
             finished in 1.00s",
        );
        let counts = (tally.passed, tally.failed, tally.ignored, tally.filtered);
        assert_eq!(counts, (13, 2, 1, 7));
    }
}
