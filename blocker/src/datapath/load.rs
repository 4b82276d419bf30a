//! Loads the eBPF object into the kernel, with its globals and map sizes set.

use std::path::Path;

use aya::maps::Map;
use aya::programs::{ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use blocker_ebpf::{globals, maps, programs};

use super::Error;
use super::accounting::Maps;
use super::diagnostics::Diagnostics;
use super::kept::{self, Kept};
use super::memory::Mapped;
use crate::compile::Limits;

/// The eBPF object, built from `blocker-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("BLOCKER_DATAPATH"));

/// What the datapath is loaded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The limits of a snapshot, which give the maps' sizes.
    pub limits: Limits,
    /// Maximum rate of replies, per second and CPU.
    pub replies_per_second: u32,
    /// Capacity of two maps: the records of flows that rules decided, and the flows to kill when
    /// their rule ends. With 0, no flow is recorded and the second map has [`FLOWS`] entries.
    pub flows: u32,
    /// Maximum rate of new flow records, per second and CPU.
    pub new_flows_per_second: u32,
    /// Maximum rate of events while a client watches, per second and CPU.
    pub events_per_second: u32,
    /// The mark of blocker's own packets; not 0.
    pub mark: u32,
    /// Level of the datapath's diagnostics; `Off` removes them from the programs.
    pub log: log::LevelFilter,
}

/// Default of [`Settings::flows`].
pub const FLOWS: u32 = 65_536;
/// Default of [`Settings::new_flows_per_second`]. A new record costs half a microsecond more than a
/// known one, so this rate adds 5 ns per packet to a flood of a million new flows per second.
pub const NEW_FLOWS: u32 = 10_000;
/// Default of [`Settings::events_per_second`].
pub const EVENTS: u32 = 10_000;
/// Size of the ring buffer of events, in bytes: some 14,000 events, more than one CPU sends in a
/// second at the default rate. Must be a power of two and a multiple of the page size.
const EVENT_BYTES: u32 = 1 << 20;
/// The most flows that may be under teardown at once.
pub const WATCHED_FLOWS: u32 = 65_536;

impl Settings {
    /// Settings for `rules` rules and `prefixes` prefixes, `prefixes_v6` of them IPv6.
    ///
    /// # Errors
    /// If the kernel gives no random number.
    pub fn new(
        prefixes: u32,
        prefixes_v6: u32,
        rules: u32,
        replies_per_second: u32,
        log: log::LevelFilter,
    ) -> Result<Self, Error> {
        let mark = loop {
            let mark = getrandom::u32().map_err(|source| Error::Random { source })?;
            if mark != 0 {
                break mark;
            }
        };
        Ok(Self {
            limits: Limits::sized(prefixes, prefixes_v6, rules),
            replies_per_second,
            flows: FLOWS,
            new_flows_per_second: NEW_FLOWS,
            events_per_second: EVENTS,
            mark,
            log,
        })
    }
}

/// The loaded object. Dropping it unloads the programs that are not attached.
pub struct Object {
    ebpf: Ebpf,
    maps: Maps,
}

impl Object {
    /// Loads every program and sizes every map. The maps that outlive the daemon are reused from the
    /// pin directory, or created and pinned there.
    ///
    /// # Errors
    /// The kernel's error; with the verifier's log if the verifier rejects a program.
    pub fn load(settings: &Settings, pin_dir: &Path) -> Result<Self, Error> {
        let limits = &settings.limits;
        let new_flows_per_second = match settings.flows {
            0 => 0,
            _ => settings.new_flows_per_second,
        };
        let kept = Kept::all(limits.rules, settings.flows);
        let flow_mask = kept::flow_slots(settings.flows) - 1;
        let places = kept::prepare(pin_dir, &kept)?;
        let level = match settings.log {
            log::LevelFilter::Off => 0_u8,
            level => level as u8,
        };
        let v6_nodes = limits.v6_nodes();
        let mut loader = EbpfLoader::new();
        loader
            .verifier_log_level(VerifierLogLevel::DEBUG)
            .override_global(globals::MARK, &settings.mark, true)
            .override_global(
                globals::REPLIES_PER_SECOND,
                &settings.replies_per_second,
                true,
            )
            .override_global(globals::NEW_FLOWS_PER_SECOND, &new_flows_per_second, true)
            .override_global(globals::FLOW_MASK, &flow_mask, true)
            .override_global(
                globals::EVENTS_PER_SECOND,
                &settings.events_per_second,
                true,
            )
            .override_global(globals::RANGE_BLOCKS, &limits.range_blocks, true)
            .override_global(globals::V6_NODES_PER_BANK, &v6_nodes, true)
            .override_global(globals::LISTS_PER_BANK, &limits.lists, true)
            .override_global(globals::RULES_PER_BANK, &limits.rules, true)
            .override_global(globals::PORT_SETS_PER_BANK, &limits.port_sets, true)
            .override_global(globals::LOG_LEVEL, &level, true)
            .map_max_entries(maps::V4_RANGES, limits.range_blocks * 2)
            .map_max_entries(maps::V6_NODES, v6_nodes * 2)
            .map_max_entries(maps::LISTS, limits.lists * 2)
            .map_max_entries(maps::RULES, limits.rules * 2)
            .map_max_entries(maps::PORT_SETS, limits.port_sets * 2)
            .map_max_entries(maps::INTERFACES, limits.rules.saturating_mul(8))
            // For both banks. The map allocates an entry only when it is inserted.
            .map_max_entries(maps::LOCALS, limits.prefixes.saturating_mul(2))
            .map_max_entries(maps::EVENTS, EVENT_BYTES)
            .map_max_entries(maps::KILLS, WATCHED_FLOWS);
        for (kept, place) in kept.iter().zip(&places) {
            loader
                .map_max_entries(kept.name, kept.entries)
                .map_pin_path(kept.name, place.as_path());
        }
        let mut ebpf = loader.load(OBJECT).map_err(Error::object)?;
        for name in programs::ALL {
            let program = ebpf
                .program_mut(name)
                .ok_or(Error::Missing { what: name })?;
            let loaded: Result<(), ProgramError> = match program {
                aya::programs::Program::Xdp(program) => program.load(),
                aya::programs::Program::SchedClassifier(program) => program.load(),
                _ => return Err(Error::Missing { what: name }),
            };
            loaded.map_err(|source| Error::Load {
                program: name,
                source: Box::new(source),
            })?;
        }
        let maps = Maps::of(&ebpf).map_err(|source| Error::Accounting { source })?;
        Ok(Self { ebpf, maps })
    }

    /// Takes a map out of the object.
    ///
    /// # Errors
    /// If the object has no such map, or the map was taken already.
    pub fn map(&mut self, name: &'static str) -> Result<Map, Error> {
        self.ebpf
            .take_map(name)
            .ok_or(Error::Missing { what: name })
    }

    /// The name of each map, and its kernel memory in bytes. Maps that were taken are included.
    pub fn maps(&self) -> Vec<(String, u64)> {
        self.maps.memory()
    }

    /// Maps an array's values into this process. The array itself stays in the object.
    ///
    /// # Errors
    /// If there is no such array, or `mmap` fails.
    pub fn mapped<T: Copy>(&self, name: &'static str, values: usize) -> Result<Mapped<T>, Error> {
        let Some(Map::Array(map)) = self.ebpf.map(name) else {
            return Err(Error::Missing { what: name });
        };
        Mapped::new(map.fd(), values).map_err(|source| Error::Memory { map: name, source })
    }

    /// A TC program.
    ///
    /// # Errors
    /// If the object has no TC program of that name.
    pub fn classifier(&mut self, name: &'static str) -> Result<&mut SchedClassifier, Error> {
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or(Error::Missing { what: name })?;
        program
            .try_into()
            .map_err(|_| Error::Missing { what: name })
    }

    /// The XDP program.
    ///
    /// # Errors
    /// If the object has no XDP program.
    pub fn xdp(&mut self) -> Result<&mut Xdp, Error> {
        let program = self.ebpf.program_mut(programs::XDP).ok_or(Error::Missing {
            what: programs::XDP,
        })?;
        program.try_into().map_err(|_| Error::Missing {
            what: programs::XDP,
        })
    }

    /// The reader of the programs' diagnostics; `None` if diagnostics are off.
    ///
    /// # Errors
    /// If the ring buffer can't be opened.
    pub fn diagnostics(&mut self, settings: &Settings) -> Result<Option<Diagnostics>, Error> {
        if settings.log == log::LevelFilter::Off {
            return Ok(None);
        }
        Diagnostics::open(&mut self.ebpf).map(Some)
    }
}
