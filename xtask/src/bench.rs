//! `cargo xtask bench`: what a packet costs, beside programs that do nothing.
//!
//! The measuring is `blocker/benches/packet`, as root; this builds and runs it, and makes a table
//! of its JSON. Both are kept under `target/bench/`.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::command::{self, cargo, line, say, search_path};
use crate::{build, setup, test};

const TASK: &str = "bench";

/// What the benchmark prints.
#[derive(Deserialize)]
struct Report {
    kernel: String,
    processor: String,
    program: Vec<Cost>,
    wire: Vec<Cost>,
}

/// What a packet cost.
#[derive(Deserialize)]
struct Cost {
    program: String,
    packet: String,
    prefixes: u64,
    nanoseconds: f64,
}

/// Sets up, measures, prints the table.
///
/// # Errors
/// The set-up is impossible, or the benchmark does not build or run.
pub(crate) fn run() -> Result<()> {
    setup::install(setup::Purpose::Demo)?;
    let sudo = command::sudo().context("run this as root: programs are loaded into the kernel")?;
    let mut bench = cargo();
    bench
        .args([
            "bench",
            "--package",
            "blocker",
            "--features",
            "blocker/kernel-tests",
        ])
        .args(["--bench", "packet"])
        .env("PATH", search_path());
    if let Some(sudo) = &sudo {
        bench.env(test::runner_variable()?, sudo);
    }
    say(TASK, &line(&bench));
    let output = bench
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cargo cannot be started")?;
    if !output.status.success() {
        bail!("`{}` failed ({})", line(&bench), output.status);
    }
    let report: Report =
        serde_json::from_slice(&output.stdout).context("the benchmark printed no report")?;
    let table = table(&report);
    let directory = build::target_directory().join("bench");
    fs::create_dir_all(&directory)
        .and_then(|()| fs::write(directory.join("packet.json"), &output.stdout))
        .and_then(|()| fs::write(directory.join("packet.txt"), &table))
        .with_context(|| format!("{} cannot be written", directory.display()))?;
    print!("\n{table}");
    say(TASK, &format!("kept in {}", directory.display()));
    teardown(sudo)
}

/// Kills many connections beside `ss --kill`; the test prints how they compare.
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
        .args(["--test", "teardown_speed", "--", "--nocapture"])
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

fn table(report: &Report) -> String {
    let mut text = format!(
        "Linux {}, {}\nNanoseconds a packet; in brackets, how much more than an empty XDP program \
         that does the same.\n",
        report.kernel, report.processor
    );
    for (title, costs) in [
        (
            "One packet over and over (BPF_PROG_TEST_RUN)",
            &report.program,
        ),
        (
            "Random addresses on a veth, CPU time of the receiver",
            &report.wire,
        ),
    ] {
        let floor = |packet: &str| {
            let action = if packet == "blocked" {
                "drops at once"
            } else {
                "passes at once"
            };
            let mut empty = costs.iter().filter(|cost| cost.prefixes == 0);
            empty
                .find(|cost| cost.packet == action)
                .map_or(0.0, |cost| cost.nanoseconds)
        };
        let mut sizes: Vec<_> = costs
            .iter()
            .map(|cost| cost.prefixes)
            .filter(|n| *n > 0)
            .collect();
        sizes.sort_unstable();
        sizes.dedup();
        let mut names: Vec<(&str, &str)> = Vec::new();
        for cost in costs.iter().filter(|cost| cost.prefixes > 0) {
            let name = (cost.program.as_str(), cost.packet.as_str());
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.sort_by_key(|(program, packet)| (*packet, order(program)));

        let _ = write!(text, "\n{title}\n{:<28}{:>6}", "prefixes blocked", "empty");
        for size in &sizes {
            let _ = write!(text, "{:>14}", thousands(*size));
        }
        for (program, packet) in names {
            let floor = floor(packet);
            let _ = write!(
                text,
                "\n{:<28}{floor:>6.0}",
                format!("{packet}: {}", label(program))
            );
            for size in &sizes {
                let cost = costs.iter().find(|cost| {
                    (cost.program.as_str(), cost.packet.as_str(), cost.prefixes)
                        == (program, packet, *size)
                });
                let cell = cost.map_or_else(String::new, |cost| {
                    format!("{:.0} ({:+.0})", cost.nanoseconds, cost.nanoseconds - floor)
                });
                let _ = write!(text, "{cell:>14}");
            }
        }
        text.push('\n');
    }
    text
}

/// A program's place in a packet's way.
fn order(program: &str) -> usize {
    let way = ["blocker_xdp", "blocker_ingress", "blocker_egress"];
    way.iter()
        .position(|name| *name == program)
        .unwrap_or(way.len())
}

fn label(program: &str) -> &str {
    match program {
        "blocker_xdp" => "XDP",
        "blocker_ingress" => "TC ingress",
        "blocker_egress" => "TC egress",
        "blocker" => "XDP and TC ingress",
        other => other,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_sets_each_program_beside_the_empty_one() {
        let cost = |program: &str, packet: &str, prefixes, nanoseconds| Cost {
            program: program.to_owned(),
            packet: packet.to_owned(),
            prefixes,
            nanoseconds,
        };
        let report = Report {
            kernel: "6.12".to_owned(),
            processor: "a processor".to_owned(),
            program: vec![
                cost("empty XDP", "drops at once", 0, 6.0),
                cost("empty XDP", "passes at once", 0, 7.0),
                cost("blocker_ingress", "blocked", 1_000_000, 46.0),
                cost("blocker_xdp", "blocked", 1_000_000, 36.0),
                cost("blocker_xdp", "not blocked", 1_000_000, 17.0),
            ],
            wire: Vec::new(),
        };
        let table = table(&report);
        let lines: Vec<_> = table.lines().skip(4).take(4).collect();
        assert_eq!(
            lines,
            [
                "prefixes blocked             empty     1,000,000",
                "blocked: XDP                     6      36 (+30)",
                "blocked: TC ingress              6      46 (+40)",
                "not blocked: XDP                 7      17 (+10)",
            ]
        );
    }
}
