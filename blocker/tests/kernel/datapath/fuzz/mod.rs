//! A million random packets through each hook: no run fails, and verdicts, replies and counters are
//! those of the oracle.
//!
//! Packets and rulesets follow from a seed. `BLOCKER_FUZZ_SEED` sets another, `BLOCKER_FUZZ_PACKETS`
//! another number of packets; a failure names the seed, the frame and the ruleset.

mod deciders;
mod frames;
mod headers;
mod oracle;
mod rulesets;

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use blocker::compile::{self, Input, Snapshot};
use blocker::datapath::{Settings, Totals};
use fastrand::Rng;

use crate::packets::bench::{Bench, Counted, SETTINGS, Sight};
use crate::packets::program::Program;
use oracle::{Fate, Met};
use rulesets::Ruleset;

const SEED: u64 = 0x0b10_cce2;
const PACKETS: u32 = 1_000_000;
/// Packets between two comparisons of the counters.
const BATCH: u32 = 500;
/// Batches under one ruleset.
const BATCHES: u32 = 8;

/// A number from the environment.
fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{name} is no number: {text:?}")),
        Err(_) => Ok(default),
    }
}

/// What a batch is run with.
struct Batch<'a> {
    program: Program,
    device: u32,
    ruleset: &'a Ruleset,
    snapshot: &'a Snapshot,
}

impl Batch<'_> {
    fn fate(&self, frame: &[u8], sight: Sight) -> Fate {
        let met = Met {
            program: self.program,
            device: self.device,
            frame,
            sight,
            mark: SETTINGS.mark,
        };
        met.fate(self.ruleset, self.snapshot)
    }

    /// Runs frames, and compares each verdict, and in the end what was counted.
    fn run(&self, bench: &mut Bench, frames: &[(Vec<u8>, Sight)]) -> Result<Vec<Fate>> {
        let before = bench.counted(self.program)?;
        let mut expected = Counted {
            rules: vec![Totals::default(); self.ruleset.rules.len()],
            ..Counted::default()
        };
        let mut fates = Vec::with_capacity(frames.len());
        for (frame, sight) in frames {
            let fate = self.fate(frame, *sight);
            let verdict = bench.verdict_on(self.program, frame, *sight)?;
            if verdict != fate.verdict {
                bail!(
                    "the verdict is {verdict}: {}",
                    self.about(frame, *sight, fate)
                );
            }
            count(&mut expected, frame, fate);
            fates.push(fate);
        }
        let counted = bench.counted(self.program)?.since(&before);
        if counted == expected {
            return Ok(fates);
        }
        if let [(frame, sight)] = frames {
            bail!(
                "counted was {counted:?}: {}",
                self.about(frame, *sight, fates[0])
            );
        }
        for one in frames {
            self.run(bench, std::slice::from_ref(one))?;
        }
        bail!(
            "counted was {counted:?}, not {expected:?}, though each packet alone is counted right"
        )
    }

    fn about(&self, frame: &[u8], sight: Sight, fate: Fate) -> String {
        let mut text = format!("{fate:?} is expected of {:?} for {sight:?}\n", self.program);
        for byte in frame {
            let _ = write!(text, "{byte:02x}");
        }
        for (number, rule) in self.ruleset.rules.iter().enumerate() {
            let (over, interfaces) = (self.ruleset.over[number], &self.ruleset.interfaces[number]);
            let _ = write!(text, "\n{number}: over {over}, on {interfaces:?}, {rule:?}");
        }
        text
    }
}

/// What a packet adds to what is counted.
fn count(expected: &mut Counted, frame: &[u8], fate: Fate) {
    if fate.own {
        expected.hook.own += 1;
        return;
    }
    expected.hook.seen += 1;
    expected.hook.malformed += u64::from(fate.malformed);
    match fate.rule {
        None => expected.hook.passed += 1,
        Some(rule) => {
            expected.rules[rule].packets += 1;
            expected.rules[rule].bytes += frame.len() as u64;
            expected.rules[rule].replies += fate.replies;
        }
    }
}

/// Whether a test run of TC takes a frame: since Linux 6.18 not one whose EtherType says IP and
/// which is too short for that (`bpf_prog_test_run_skb`). Behind a VLAN tag it does.
fn is_taken(program: Program, frame: &[u8]) -> bool {
    let least = match (program, &frame[12..14]) {
        (Program::Xdp, _) => 14,
        (_, [0x08, 0x00]) => 14 + 20,
        (_, [0x86, 0xdd]) => 14 + 40,
        _ => 15,
    };
    frame.len() >= least
}

fn fuzz(program: Program, settings: Settings) -> Result<()> {
    let seed = number("BLOCKER_FUZZ_SEED", SEED)?;
    let packets = u32::try_from(number("BLOCKER_FUZZ_PACKETS", PACKETS.into())?)?;
    let fates = Bench::with(settings, |bench| run(bench, program, seed, packets))
        .with_context(|| format!("BLOCKER_FUZZ_SEED={seed}"))?;
    // That all kinds of fates were met, or nothing is shown.
    let share = |is: fn(&Fate) -> bool| {
        let count = fates.iter().filter(|fate| is(fate)).count();
        100.0 * count as f64 / fates.len() as f64
    };
    let shares = [
        ("taken", share(|fate| fate.rule.is_some()), 8.0),
        ("passed", share(|fate| fate.rule.is_none()), 10.0),
        ("malformed", share(|fate| fate.malformed), 1.0),
    ];
    let answered = [
        ("answered once", share(|fate| fate.replies == 1), 1.0),
        ("answered to both", share(|fate| fate.replies > 1), 0.5),
        ("our own", share(|fate| fate.own), 0.2),
    ];
    let expected = if program == Program::Xdp {
        &shares[..]
    } else {
        &[shares, answered].concat()
    };
    for (what, share, least) in expected {
        println!("{program:?}: {share:.1} percent {what}");
        assert!(share >= least, "{what}: {share} percent, too few to tell");
    }
    Ok(())
}

fn run(bench: &mut Bench, program: Program, seed: u64, packets: u32) -> Result<Vec<Fate>> {
    // A test run of XDP is on the loopback device.
    let device = if program == Program::Xdp {
        1
    } else {
        bench.ifindex
    };
    let mut rng = Rng::with_seed(seed);
    let mut fates = Vec::new();
    while fates.len() < packets as usize {
        let ruleset = Ruleset::random(&mut rng, &[1, bench.ifindex, 1_000_000]);
        let inputs = ruleset.inputs();
        let input = Input {
            rules: &inputs,
            protect: &ruleset.protect,
            generic_xdp: false,
        };
        let snapshot = compile::compile(&input, &SETTINGS.limits)?;
        bench.switch(&snapshot)?;
        let batch = Batch {
            program,
            device,
            ruleset: &ruleset,
            snapshot: &snapshot,
        };
        for _ in 0..BATCHES {
            let mut frames = Vec::new();
            while frames.len() < BATCH as usize {
                let some = frames::frames(&mut rng, program, SETTINGS.mark);
                frames.extend(
                    some.into_iter()
                        .filter(|(frame, _)| is_taken(program, frame)),
                );
            }
            fates.extend(batch.run(bench, &frames)?);
        }
    }
    Ok(fates)
}

#[test]
fn a_million_packets_at_xdp() -> Result<()> {
    fuzz(Program::Xdp, SETTINGS)
}

#[test]
fn a_million_packets_at_xdp_that_keeps_no_flows() -> Result<()> {
    let settings = Settings {
        flows: 0,
        ..SETTINGS
    };
    fuzz(Program::Xdp, settings)
}

#[test]
fn a_million_packets_at_tc_ingress() -> Result<()> {
    fuzz(Program::Ingress, SETTINGS)
}

#[test]
fn a_million_packets_at_tc_egress() -> Result<()> {
    fuzz(Program::Egress, SETTINGS)
}
