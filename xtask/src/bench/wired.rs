//! The comparison on the wire: every filter with every size of set. Runs as root, in a process of its
//! own, and prints the results as JSON.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use super::addresses::{Family, Kind, Set};
use super::filters::{Filter, Loaded, verify};
use super::generator::{drop_all, read};
use super::wire::{Cost, Effort, Floods, Wire};
use super::{TASK, What, thousands};
use crate::bpf::Program;
use crate::command::say;
use crate::hosts::Programs;

/// The number of packets before a source repeats: 16 MB of addresses, more than a core's caches.
const SOURCES: usize = 1 << 20;
/// The number of single addresses to add, one by one.
const ADDITIONS: usize = 20;
/// Time limit of all additions; after it, those made so far count.
const PATIENCE: Duration = Duration::from_secs(10);

/// The results of the comparison.
#[derive(Serialize, Deserialize)]
pub(super) struct Comparison {
    /// The kernel's release.
    pub(super) kernel: String,
    /// The processor's name.
    pub(super) processor: String,
    /// Costs without a filter, by IP version and by the size of the sets of the same measurement.
    pub(super) floors: Vec<Floor>,
    /// Costs with a filter.
    pub(super) rows: Vec<Row>,
}

impl Comparison {
    /// The IP versions that it compares.
    pub(super) fn versions(&self) -> BTreeSet<u8> {
        self.floors.iter().map(|floor| floor.ip).collect()
    }

    /// The results for one IP version.
    pub(super) fn of(&self, ip: u8) -> (Vec<&Floor>, Vec<&Row>) {
        let floors = self.floors.iter().filter(|floor| floor.ip == ip);
        let rows = self.rows.iter().filter(|row| row.ip == ip);
        (floors.collect(), rows.collect())
    }
}

/// The least cost of a packet.
#[derive(Serialize, Deserialize)]
pub(super) struct Floor {
    /// 4 or 6.
    pub(super) ip: u8,
    /// The size of the other filters' sets in the same measurement.
    pub(super) prefixes: usize,
    /// With an XDP program that drops everything.
    pub(super) drop: Cost,
    /// With a program that reads each packet's source address, and drops the packet.
    pub(super) read_drop: Cost,
    /// Without a program, up to the IP layer, which drops it.
    pub(super) pass: Cost,
    /// With a program that reads each packet's source address, and passes the packet.
    pub(super) read_pass: Cost,
}

/// The cost of one filter with one set.
#[derive(Serialize, Deserialize)]
pub(super) struct Row {
    /// The filter.
    pub(super) filter: Filter,
    /// 4 or 6.
    pub(super) ip: u8,
    /// The number of blocked prefixes.
    pub(super) prefixes: usize,
    /// Packets from blocked addresses.
    pub(super) hit: Cost,
    /// Packets from others.
    pub(super) miss: Cost,
    /// Seconds from a file to all prefixes in force.
    pub(super) load_seconds: Option<f64>,
    /// Seconds to block one more, the median.
    pub(super) add_seconds: f64,
    /// Bytes of memory.
    pub(super) memory_bytes: Option<u64>,
}

/// Compares.
///
/// # Errors
/// The process is not root, a tool fails, or a filter does not filter.
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

/// Gives the calling thread, and threads that it starts, a mount namespace with an empty BPF file
/// system: its pins end with the process, and the host's pins are not visible.
///
/// # Errors
/// The process is not root.
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

/// One measurement: every filter with sets of one size.
#[derive(Clone, Copy)]
struct Group {
    family: Family,
    ip: u8,
    size: usize,
}

impl Group {
    /// Loads all filters, each on a wire of its own, and floods them in turn.
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

/// A wire whose receiver runs a program, as long as the second part lives.
fn floor(program: &Program) -> Result<(Wire, OwnedFd)> {
    let wire = Wire::new()?;
    let link = wire.receiver.enter(|| program.attach(wire.ifindex))??;
    Ok((wire, link))
}

/// The median time to block one more.
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
