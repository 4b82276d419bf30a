//! What it costs to keep what a rule decided: the flow's record, and an event while somebody
//! watches.
//!
//! A packet over and over finds the same flow in all caches. So there are rows of packets that are
//! another flow each time, run one by one; these contain what it takes to start and stop a clock,
//! as does the row of the empty program beside which they stand.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blocker::datapath::{Datapath, Settings};
use blocker_ebpf::programs;
use serde_json::{Value, json};

use crate::frame::{Addresses, LENGTH, frame};
use crate::kernel::{Action, Program};
use crate::{HERE, Pins, REPEAT, best, loaded};

/// Flows in turn: as many as there is room for unless configured.
const FLOWS: usize = 65_536;
/// How long the reader of events rests.
const REST: Duration = Duration::from_millis(1);

/// Measures; a row each.
pub(crate) fn measure(pins: &Pins) -> Result<Vec<Value>> {
    let addresses = Addresses::new(1);
    let blocked = frame(addresses.blocked[0], HERE);
    let passing = frame(addresses.outside[0], HERE);
    let everything = Settings {
        flows: 2 * FLOWS as u32,
        new_flows_per_second: u32::MAX,
        events_per_second: u32::MAX,
        ..settings()?
    };
    let mut rows = Vec::new();
    let mut row = |case: &str, nanoseconds: u32, floor: u32| {
        rows.push(json!({"case": case, "nanoseconds": nanoseconds, "floor": floor}));
    };
    let drops = Program::xdp(Action::Drop)?;
    let passes = Program::xdp(Action::Pass)?;

    let drops_again = best(|| drops.run(&blocked, REPEAT))?;
    let passes_again = best(|| passes.run(&passing, REPEAT))?;
    let nothing = Settings {
        flows: 0,
        ..settings()?
    };
    let mut datapath = loaded(nothing, pins, &addresses)?;
    let xdp = Program::of(&mut datapath, programs::XDP)?;
    row(
        "blocked, no records",
        best(|| xdp.run(&blocked, REPEAT))?,
        drops_again,
    );
    let mut datapath = loaded(settings()?, pins, &addresses)?;
    let xdp = Program::of(&mut datapath, programs::XDP)?;
    row("blocked", best(|| xdp.run(&blocked, REPEAT))?, drops_again);
    row("passed", best(|| xdp.run(&passing, REPEAT))?, passes_again);
    let cost = watched(&datapath, || best(|| xdp.run(&blocked, REPEAT)))?;
    row("blocked, watched", cost, drops_again);
    let cost = watched_passing(&datapath, || best(|| xdp.run(&passing, REPEAT)))?;
    row("passed, watched", cost, passes_again);

    let frames = flows(addresses.blocked[0]);
    let drops_once = one_by_one(&drops, &frames)?;
    let new = best(|| {
        let mut datapath = loaded(settings()?, pins, &addresses)?;
        let cost = one_by_one(&Program::of(&mut datapath, programs::XDP)?, &frames)?;
        all_new(&datapath)?;
        Ok(cost)
    })?;
    row("blocked, new flows over their rate", new, drops_once);

    let mut datapath = loaded(everything, pins, &addresses)?;
    let xdp = Program::of(&mut datapath, programs::XDP)?;
    let new = one_by_one(&xdp, &frames)?;
    all_new(&datapath)?;
    row("blocked, new flows, all recorded", new, drops_once);
    let one = best(|| one_by_one(&xdp, &vec![blocked; FLOWS]))?;
    row("blocked, one by one", one, drops_once);
    let known = best(|| one_by_one(&xdp, &frames))?;
    row("blocked, 65,536 known flows in turn", known, drops_once);
    let told = watched(&datapath, || best(|| xdp.run(&blocked, REPEAT)))?;
    row("blocked, watched, at any rate", told, drops_again);
    Ok(rows)
}

fn settings() -> Result<Settings> {
    Ok(Settings::new(
        1_000,
        1_000,
        16,
        1_000,
        log::LevelFilter::Off,
    )?)
}

/// Packets of one remote, a flow each.
fn flows(remote: Ipv4Addr) -> Vec<[u8; LENGTH]> {
    let ports = 0..=u16::MAX;
    let of_port = |port: u16| {
        let mut frame = frame(remote, HERE);
        frame[34..36].copy_from_slice(&port.to_be_bytes());
        frame
    };
    ports.map(of_port).collect()
}

/// Checks that no flow was known before.
fn all_new(datapath: &Datapath) -> Result<()> {
    let tally = datapath.seen().tally()?;
    let new = tally.created + tally.not_recorded;
    ensure!(new == FLOWS as u64, "{new} of {FLOWS} flows were new");
    Ok(())
}

/// The mean of single runs.
fn one_by_one(program: &Program, frames: &[[u8; LENGTH]]) -> Result<u32> {
    let mut sum = 0_u64;
    for frame in frames {
        sum += u64::from(program.run(frame, 1)?);
    }
    Ok(u32::try_from(sum / frames.len() as u64)?)
}

/// Measures while somebody watches and reads.
fn watched(datapath: &Datapath, measure: impl FnOnce() -> Result<u32>) -> Result<u32> {
    let (nanoseconds, told) = while_watched(datapath, measure)?;
    told.then_some(nanoseconds)
        .context("nothing was told of what was blocked")
}

/// As [`watched`], of packets that nothing is told of.
fn watched_passing(datapath: &Datapath, measure: impl FnOnce() -> Result<u32>) -> Result<u32> {
    Ok(while_watched(datapath, measure)?.0)
}

fn while_watched(
    datapath: &Datapath,
    measure: impl FnOnce() -> Result<u32>,
) -> Result<(u32, bool)> {
    let seen = datapath.seen();
    let done = AtomicBool::new(false);
    seen.watch(true);
    let result = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut told = 0_u64;
            while !done.load(Ordering::Relaxed) {
                seen.drain(|_| told += 1);
                std::thread::sleep(REST);
            }
            told
        });
        let measured = measure();
        done.store(true, Ordering::Relaxed);
        (measured, reader.join())
    });
    seen.watch(false);
    let told = result
        .1
        .map_err(|_| anyhow::anyhow!("the reader panicked"))?;
    Ok((result.0?, told > 0))
}
