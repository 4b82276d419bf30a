//! The cost of blocker's programs, by `blocker/benches/packet`: one packet, many times.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::{TASK, thousands};
use crate::command::{cargo, line, say, search_path};
use crate::test;

/// The benchmark's output.
#[derive(Deserialize)]
struct Report {
    kernel: String,
    processor: String,
    program: Vec<Cost>,
    kept: Vec<Kept>,
}

/// The cost of a packet.
#[derive(Deserialize)]
struct Cost {
    program: String,
    packet: String,
    prefixes: u64,
    nanoseconds: f64,
}

/// The cost of a packet with its record.
#[derive(Deserialize)]
struct Kept {
    case: String,
    nanoseconds: f64,
    /// The cost of an empty program, measured in the same way.
    floor: f64,
}

/// Measures, prints the table, and writes it and the JSON.
///
/// # Errors
/// The benchmark does not build or run, or a file cannot be written.
pub(super) fn measure(sudo: Option<&Path>, directory: &Path) -> Result<()> {
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
    if let Some(sudo) = sudo {
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
    fs::write(directory.join("packet.json"), &output.stdout)
        .and_then(|()| fs::write(directory.join("packet.txt"), &table))
        .with_context(|| format!("{} cannot be written", directory.display()))?;
    print!("\n{table}");
    Ok(())
}

fn table(report: &Report) -> String {
    let mut text = format!(
        "Linux {}, {}\nOne packet over and over (BPF_PROG_TEST_RUN): nanoseconds; in brackets, how \
         much more than an empty XDP program that does the same.\n\n{:<28}{:>6}",
        report.kernel, report.processor, "prefixes blocked", "empty"
    );
    let costs = &report.program;
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
    let sizes = costs.iter().map(|cost| cost.prefixes);
    let sizes: BTreeSet<u64> = sizes.filter(|size| *size > 0).collect();
    let mut names: Vec<(&str, &str)> = Vec::new();
    for cost in costs.iter().filter(|cost| cost.prefixes > 0) {
        let name = (cost.program.as_str(), cost.packet.as_str());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.sort_by_key(|(program, packet)| (*packet, order(program)));
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
    text += "\n\nXDP with what is kept of a blocked packet: its flow's record, and an event while \
             somebody watches\n";
    for kept in &report.kept {
        let Kept {
            case,
            nanoseconds,
            floor,
        } = kept;
        let cell = format!("{nanoseconds:.0} ({:+.0})", nanoseconds - floor);
        let _ = write!(text, "\n{case:<36}{floor:>6.0}{cell:>14}");
    }
    text.push('\n');
    text
}

/// The order of a program in a packet's path.
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
        other => other,
    }
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
            kept: vec![Kept {
                case: "blocked, watched".to_owned(),
                nanoseconds: 80.0,
                floor: 6.0,
            }],
        };
        let table = table(&report);
        let lines: Vec<_> = table.lines().skip(3).take(4).collect();
        assert_eq!(
            lines,
            [
                "prefixes blocked             empty     1,000,000",
                "blocked: XDP                     6      36 (+30)",
                "blocked: TC ingress              6      46 (+40)",
                "not blocked: XDP                 7      17 (+10)",
            ]
        );
        assert_eq!(
            table.lines().last(),
            Some("blocked, watched                         6      80 (+74)")
        );
    }
}
