//! The comparison on the wire: every way to block, at every size. Runs as root, in a process of its
//! own, and prints what it found as JSON.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use super::addresses::{Family, Kind, Set};
use super::filters::{Filter, verify};
use super::generator::drop_all;
use super::wire::{Cost, Effort, Wire};
use super::{TASK, What, thousands};
use crate::command::say;
use crate::lab::Programs;

/// How many packets pass before a source comes again: 16 MB of addresses, more than a core caches.
const SOURCES: usize = 1 << 20;
/// How many single addresses are added, one by one.
const ADDITIONS: usize = 20;
/// How long additions may take all in all; after it, those that were made count.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the comparison found.
#[derive(Serialize, Deserialize)]
pub(super) struct Comparison {
    /// The kernel's release.
    pub(super) kernel: String,
    /// The processor's name.
    pub(super) processor: String,
    /// Costs without any filter, by IP version.
    pub(super) floors: Vec<Floor>,
    /// Costs with one.
    pub(super) rows: Vec<Row>,
}

/// What a packet costs at least.
#[derive(Serialize, Deserialize)]
pub(super) struct Floor {
    /// 4 or 6.
    pub(super) ip: u8,
    /// With an XDP program that drops everything.
    pub(super) drop: Cost,
    /// Without any program, up to the IP layer, which lets go of it.
    pub(super) pass: Cost,
}

/// What one way to block costs with one set.
#[derive(Serialize, Deserialize)]
pub(super) struct Row {
    /// The way.
    pub(super) filter: Filter,
    /// 4 or 6.
    pub(super) ip: u8,
    /// How many prefixes are blocked.
    pub(super) prefixes: usize,
    /// Packets from blocked addresses.
    pub(super) hit: Cost,
    /// Packets from others.
    pub(super) miss: Cost,
    /// Seconds from a file to all prefixes in force.
    pub(super) load_seconds: Option<f64>,
    /// Seconds to block one more, the median.
    pub(super) add_seconds: f64,
    /// Bytes that it all takes.
    pub(super) memory_bytes: Option<u64>,
}

/// Compares.
///
/// # Errors
/// We are not root, a tool fails, or a filter does not filter.
pub(super) fn compare(programs: &Programs, what: &What) -> Result<Comparison> {
    let (sizes, effort): (&[usize], _) = if what.quick {
        let time = Duration::from_millis(100);
        (&[1, 10_000], Effort { rounds: 3, time })
    } else {
        let time = Duration::from_millis(300);
        (&[1, 10_000, 1_000_000], Effort { rounds: 7, time })
    };
    let sizes = if what.prefixes.is_empty() {
        sizes
    } else {
        &what.prefixes
    };
    let wanted = |filter: &Filter| {
        let title = filter.title().to_lowercase();
        what.only.is_empty()
            || what
                .only
                .iter()
                .any(|name| title.contains(&name.to_lowercase()))
    };
    let mut comparison = Comparison {
        kernel: nix::sys::utsname::uname()?
            .release()
            .to_string_lossy()
            .into_owned(),
        processor: processor(),
        floors: Vec::new(),
        rows: Vec::new(),
    };
    for (family, ip) in [(Family::V4, 4), (Family::V6, 6)] {
        let floor = floor(family, ip, effort).with_context(|| format!("{family} floor"))?;
        comparison.floors.push(floor);
        for size in sizes {
            for kind in [Kind::Mixed, Kind::Hosts] {
                let mut set = Set::new(family, kind, *size);
                let of_kind = Filter::ALL
                    .into_iter()
                    .filter(|filter| filter.kind() == kind)
                    .filter(wanted);
                for filter in of_kind.filter(|filter| *size <= filter.most()) {
                    let title = format!("{}, {} {family}", filter.title(), thousands(*size as u64));
                    let row = row(filter, programs, &mut set, *size, effort);
                    let row = row.with_context(|| title.clone())?;
                    say(
                        TASK,
                        &format!(
                            "{title}: {:.0} ns dropped, {:.0} ns passed",
                            row.hit.nanoseconds, row.miss.nanoseconds
                        ),
                    );
                    comparison.rows.push(Row { ip, ..row });
                }
            }
        }
    }
    Ok(comparison)
}

/// Gives the calling thread, and those that it starts, mounts of its own, with an empty BPF file
/// system: what is pinned there is gone with the process, and the host's pins are out of reach.
///
/// # Errors
/// We are not root.
pub(super) fn private_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("the mounts cannot be made private")?;
    mount(
        Some("bpf"),
        "/sys/fs/bpf",
        Some("bpf"),
        MsFlags::empty(),
        none,
    )
    .context("a BPF file system cannot be mounted at /sys/fs/bpf")
}

fn floor(family: Family, ip: u8, effort: Effort) -> Result<Floor> {
    let sources = Set::new(family, Kind::Hosts, 1).outside(SOURCES);
    let wire = Wire::new()?;
    let pass = wire.measure(family, &sources, effort)?;
    let program = drop_all()?;
    let _link = wire.receiver.enter(|| program.attach(wire.ifindex))??;
    let drop = wire.measure(family, &sources, effort)?;
    say(
        TASK,
        &format!(
            "{family} floor: {:.0} ns dropped, {:.0} ns passed",
            drop.nanoseconds, pass.nanoseconds
        ),
    );
    Ok(Floor { ip, drop, pass })
}

fn row(
    filter: Filter,
    programs: &Programs,
    set: &mut Set,
    size: usize,
    effort: Effort,
) -> Result<Row> {
    let wire = Wire::new()?;
    let loaded = filter.load(&wire, programs, set, size)?;
    let family = set.family();
    let hit = wire.measure(family, &set.inside(SOURCES), effort)?;
    verify(filter, true, hit.received, hit.reached_ip)?;
    let miss = wire.measure(family, &set.outside(SOURCES), effort)?;
    verify(filter, false, miss.received, miss.reached_ip)?;
    let mut additions = Vec::new();
    let mut spent = Duration::ZERO;
    for address in set.outside(ADDITIONS) {
        let time = loaded.add(address)?;
        additions.push(time);
        loaded.make_room(address)?;
        spent += time;
        if spent > PATIENCE {
            break;
        }
    }
    additions.sort();
    Ok(Row {
        filter,
        ip: 0,
        prefixes: size,
        hit,
        miss,
        load_seconds: loaded.time.map(|time| time.as_secs_f64()),
        add_seconds: additions[additions.len() / 2].as_secs_f64(),
        memory_bytes: loaded.memory,
    })
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map(|rest| rest.trim_start_matches([' ', '\t', ':']));
    model.unwrap_or("unknown").to_owned()
}
