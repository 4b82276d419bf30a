//! The comparison on the wire: every way to block, at every size. Runs as root, in a process of its
//! own, and prints what it found as JSON.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use super::addresses::{Family, Kind, Set};
use super::bpf::Program;
use super::filters::{Filter, Loaded, verify};
use super::generator::{drop_all, read};
use super::wire::{Cost, Effort, Floods, Wire};
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
    /// Costs without any filter, by IP version and size of the sets beside which it was measured.
    pub(super) floors: Vec<Floor>,
    /// Costs with one.
    pub(super) rows: Vec<Row>,
}

impl Comparison {
    /// The IP versions that it compares.
    pub(super) fn versions(&self) -> BTreeSet<u8> {
        self.floors.iter().map(|floor| floor.ip).collect()
    }

    /// What it has of one.
    pub(super) fn of(&self, ip: u8) -> (Vec<&Floor>, Vec<&Row>) {
        let floors = self.floors.iter().filter(|floor| floor.ip == ip);
        let rows = self.rows.iter().filter(|row| row.ip == ip);
        (floors.collect(), rows.collect())
    }
}

/// What a packet costs at least.
#[derive(Serialize, Deserialize)]
pub(super) struct Floor {
    /// 4 or 6.
    pub(super) ip: u8,
    /// How many prefixes the others blocked meanwhile.
    pub(super) prefixes: usize,
    /// With an XDP program that drops everything.
    pub(super) drop: Cost,
    /// With one that reads each packet's source address, and drops it.
    pub(super) read_drop: Cost,
    /// Without any program, up to the IP layer, which lets go of it.
    pub(super) pass: Cost,
    /// With one that reads each packet's source address, and passes it.
    pub(super) read_pass: Cost,
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
        let time = Duration::from_millis(30);
        (&[1, 10_000], Effort { rounds: 12, time })
    } else {
        let time = Duration::from_millis(50);
        (&[1, 10_000, 1_000_000], Effort { rounds: 40, time })
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
        for size in sizes {
            let filters: Vec<Filter> = Filter::ALL
                .into_iter()
                .filter(|filter| wanted(filter) && *size <= filter.most())
                .collect();
            let group = Group {
                family,
                ip,
                size: *size,
            };
            let (floor, rows) = group
                .compare(&filters, programs, effort)
                .with_context(|| format!("{} {family} prefixes", thousands(*size as u64)))?;
            comparison.floors.push(floor);
            comparison.rows.extend(rows);
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

/// What is compared at once: every way to block sets of one size.
#[derive(Clone, Copy)]
struct Group {
    family: Family,
    ip: u8,
    size: usize,
}

impl Group {
    /// Loads all of them, each on a wire of its own, and floods them in turn.
    fn compare(
        self,
        filters: &[Filter],
        programs: &Programs,
        effort: Effort,
    ) -> Result<(Floor, Vec<Row>)> {
        let bare = Wire::new()?;
        let [dropping, drop_reading, pass_reading] = [
            drop_all()?,
            read(self.family, true)?,
            read(self.family, false)?,
        ]
        .each_ref()
        .map(floor);
        let (dropping, drop_reading, pass_reading) = (dropping?, drop_reading?, pass_reading?);
        let wires = filters.iter().map(|_| Wire::new());
        let wires = wires.collect::<Result<Vec<_>>>()?;
        let sets = Kind::ALL.map(|kind| Set::new(self.family, kind, self.size));
        let mut loaded = Vec::new();
        for (filter, wire) in filters.iter().zip(&wires) {
            let set = &sets[filter.kind() as usize];
            let at_work = filter.load(wire, programs, set, self.size);
            loaded.push(at_work.with_context(|| filter.title())?);
        }

        let mut costs = Vec::new();
        for (hit, floors) in [
            (true, [&dropping.0, &drop_reading.0]),
            (false, [&bare, &pass_reading.0]),
        ] {
            let sources = sets.each_ref().map(|set| {
                let mut set = set.clone();
                if hit {
                    set.inside(SOURCES)
                } else {
                    set.outside(SOURCES)
                }
            });
            let kinds = floors.iter().map(|_| Kind::Hosts);
            let kinds = kinds.chain(filters.iter().map(|filter| filter.kind()));
            let floods = floors.iter().copied().chain(&wires).zip(kinds);
            let floods =
                floods.map(|(wire, kind)| wire.floods(self.family, &sources[kind as usize]));
            let found = Floods::measure(floods.collect::<Result<_>>()?, effort)?;
            let (least, found) = found.split_at(floors.len());
            for (filter, cost) in filters.iter().zip(found) {
                verify(*filter, hit, cost.received, cost.reached_ip)?;
            }
            costs.push((least.to_vec(), found.to_vec()));
        }
        let [(least, hits), (passing, misses)] = &costs[..] else {
            bail!("two kinds of floods were measured");
        };
        let floor = Floor {
            ip: self.ip,
            prefixes: self.size,
            drop: least[0],
            read_drop: least[1],
            pass: passing[0],
            read_pass: passing[1],
        };
        self.tell("floor", floor.drop, floor.pass);
        let reading = "a program that reads the address";
        self.tell(reading, floor.read_drop, floor.read_pass);

        let mut rows = Vec::new();
        for (number, (filter, at_work)) in filters.iter().zip(&loaded).enumerate() {
            let set = sets[filter.kind() as usize].clone();
            let row = Row {
                filter: *filter,
                ip: self.ip,
                prefixes: self.size,
                hit: hits[number],
                miss: misses[number],
                load_seconds: at_work.time.map(|time| time.as_secs_f64()),
                add_seconds: addition(at_work, set)
                    .with_context(|| filter.title())?
                    .as_secs_f64(),
                memory_bytes: at_work.memory,
            };
            self.tell(filter.title(), row.hit, row.miss);
            rows.push(row);
        }
        Ok((floor, rows))
    }

    fn tell(self, what: &str, hit: Cost, miss: Cost) {
        let (size, family) = (thousands(self.size as u64), self.family);
        say(
            TASK,
            &format!(
                "{what}, {size} {family}: {:.0} ns dropped, {:.0} ns passed",
                hit.nanoseconds, miss.nanoseconds
            ),
        );
    }
}

/// A wire at whose receiver a program runs, as long as the other part lives.
fn floor(program: &Program) -> Result<(Wire, OwnedFd)> {
    let wire = Wire::new()?;
    let link = wire.receiver.enter(|| program.attach(wire.ifindex))??;
    Ok((wire, link))
}

/// How long it takes to block one more.
fn addition(loaded: &Loaded<'_>, mut set: Set) -> Result<Duration> {
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
    Ok(additions[additions.len() / 2])
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map(|rest| rest.trim_start_matches([' ', '\t', ':']));
    model.unwrap_or("unknown").to_owned()
}
