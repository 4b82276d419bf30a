//! What a packet costs blocker's programs, beside programs that do nothing, in one run.
//!
//! The kernel runs a program a million times on one packet (`BPF_PROG_TEST_RUN`), so that it has all
//! caches to itself; what is left is its instructions. What a flood costs, `cargo xtask bench`
//! measures on a veth.
//!
//! Prints JSON; `cargo xtask bench` makes a table of it. Absolute times are the machine's: compare
//! within a run only.

mod frame;
mod kept;
mod kernel;

use std::cell::Cell;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use blocker::compile::{Input, Limits, RuleInput, Snapshot, compile};
use blocker::config::HookChoice;
use blocker::datapath::{Datapath, Settings};
use blocker::rule::{Rule, RuleSpec};
use blocker_ebpf::programs;
use serde_json::{Value, json};

use frame::{Addresses, frame};
use kernel::{Action, Program};

/// How many prefixes are blocked.
const SIZES: [u32; 4] = [1, 10_000, 100_000, 1_000_000];
/// How often a program runs on its packet in one measurement.
const REPEAT: u32 = 1_000_000;
/// How many measurements there are; the fastest counts, since nothing makes a program faster than
/// it is.
const ROUNDS: usize = 5;

/// This host, as a packet's other address.
const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn main() -> Result<()> {
    let pins = Pins::new()?;
    let mut program = Vec::new();

    for (name, action) in [
        ("drops at once", Action::Drop),
        ("passes at once", Action::Pass),
    ] {
        let empty = Program::xdp(action)?;
        let source = Ipv4Addr::new(198, 51, 100, 1);
        let nanoseconds = best(|| empty.run(&frame(source, HERE), REPEAT))?;
        program.push(json!({
            "program": "empty XDP", "packet": name, "prefixes": 0, "nanoseconds": nanoseconds,
        }));
    }

    for size in SIZES {
        let addresses = Addresses::new(size);
        let settings = Settings::new(
            size.max(1_000),
            size.max(1_000),
            16,
            1_000,
            log::LevelFilter::Off,
        )?;
        let mut datapath = loaded(settings, &pins, &addresses)?;
        for (packet, remotes, xdp, tc) in [
            ("blocked", &addresses.blocked, 1, 2),
            ("not blocked", &addresses.outside, 2, u32::MAX),
        ] {
            let remote = remotes[remotes.len() / 2];
            let (from, to) = (frame(remote, HERE), frame(HERE, remote));
            for (name, frame, expected) in [
                (programs::XDP, &from, xdp),
                (programs::INGRESS, &from, tc),
                (programs::EGRESS, &to, tc),
            ] {
                let loaded = Program::of(&mut datapath, name)?;
                loaded.expect(frame, expected).context(name)?;
                let nanoseconds = best(|| loaded.run(frame, REPEAT))?;
                program.push(json!({
                    "program": name, "packet": packet, "prefixes": size,
                    "nanoseconds": nanoseconds,
                }));
            }
        }
    }
    let result = json!({
        "kernel": nix::sys::utsname::uname()?.release().to_string_lossy(),
        "processor": processor(),
        "program": program,
        "kept": kept::measure(&pins)?,
    });
    println!("{result:#}");
    Ok(())
}

/// The least of a few measurements.
fn best(mut measure: impl FnMut() -> Result<u32>) -> Result<u32> {
    let mut least = u32::MAX;
    for _ in 0..ROUNDS {
        least = least.min(measure()?);
    }
    Ok(least)
}

/// A datapath that drops what is from the blocked addresses, and has seen nothing yet.
fn loaded(settings: Settings, pins: &Pins, addresses: &Addresses) -> Result<Datapath> {
    let snapshot = snapshot(addresses, &settings.limits)?;
    let mut datapath = Datapath::load(settings, &pins.fresh()?, HookChoice::Auto)?;
    datapath.switch(&snapshot)?;
    Ok(datapath)
}

/// One rule that drops all the blocked addresses.
fn snapshot(addresses: &Addresses, limits: &Limits) -> Result<Snapshot> {
    let targets: Vec<Value> = addresses
        .blocked
        .iter()
        .map(|address| json!(address.to_string()))
        .collect();
    let spec: RuleSpec =
        serde_json::from_value(json!({"id": "bench", "targets": targets, "mode": "drop"}))?;
    let id = spec.id.clone().context("the rule has an id")?;
    let rule: Rule = spec.resolve(|| id, Default::default(), jiff::Timestamp::UNIX_EPOCH)?;
    let rules = [RuleInput {
        rule: &rule,
        deadline: blocker_ebpf::NEVER,
        counter: 0,
        interfaces: None,
    }];
    let input = Input {
        rules: &rules,
        protect: &[],
        generic_xdp: false,
    };
    Ok(compile(&input, limits)?)
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map(|rest| rest.trim_start_matches([' ', '\t', ':']));
    model.unwrap_or("unknown").to_owned()
}

/// Directories for pins, gone when dropped.
struct Pins {
    path: PathBuf,
    made: Cell<u32>,
}

impl Pins {
    fn new() -> Result<Self> {
        let name = format!("blocker-test-{}-bench", std::process::id());
        let path = PathBuf::from("/sys/fs/bpf").join(name);
        std::fs::create_dir_all(&path)
            .with_context(|| format!("{} cannot be made", path.display()))?;
        let made = Cell::new(0);
        Ok(Self { path, made })
    }

    /// A directory of its own for a datapath: in that of another one it finds what that one counted.
    fn fresh(&self) -> Result<PathBuf> {
        self.made.set(self.made.get() + 1);
        let path = self.path.join(self.made.get().to_string());
        std::fs::create_dir(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(path)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
