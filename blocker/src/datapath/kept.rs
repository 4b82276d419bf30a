//! The maps that outlive the daemon: counters, the names of their rules, and flows.
//!
//! The maps are pinned under `PIN_DIR/maps/abi-N`. A daemon that finds them loads its programs with
//! them. So its programs and its predecessor's count in the same maps while both are attached, and no
//! count is lost. Pins of another size or program are removed at load, and pins of another ABI after
//! the first attachment; counting then starts at zero.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{MapData, MapType};
use blocker_ebpf::{self as abi, maps};

use super::Error;
use super::load::FLOWS;

/// A map that outlives the daemon, and the form that it must have to be reused.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    pub(super) name: &'static str,
    pub(super) kind: MapType,
    pub(super) key: usize,
    pub(super) value: usize,
    pub(super) entries: u32,
}

impl Kept {
    /// The maps of a datapath for so many rules and flows. The kernel allows no map of size 0.
    pub(super) fn all(rules: u32, flows: u32) -> [Self; 8] {
        let established = if flows == 0 { FLOWS } else { flows };
        let slots = flow_slots(flows);
        let array = |name, kind, value, entries| Self {
            name,
            kind,
            key: size_of::<u32>(),
            value,
            entries,
        };
        [
            array(
                maps::COUNTERS,
                MapType::PerCpuArray,
                size_of::<abi::Counters>(),
                rules * 2,
            ),
            array(
                maps::RULE_NAMES,
                MapType::Array,
                size_of::<abi::RuleName>(),
                rules,
            ),
            array(
                maps::HOOKS,
                MapType::PerCpuArray,
                size_of::<abi::HookCounters>(),
                abi::HOOK_DEVICES * 3,
            ),
            array(
                maps::TALLY,
                MapType::PerCpuArray,
                size_of::<abi::Tally>(),
                1,
            ),
            array(
                maps::FLOWS,
                MapType::Array,
                size_of::<abi::FlowSlot>(),
                slots,
            ),
            array(
                maps::FLOWS_HIGH,
                MapType::Array,
                size_of::<abi::FlowHigh>(),
                slots,
            ),
            // Pinned because two daemons' programs may write to one flow table during a takeover.
            Self {
                name: maps::FLOW_LOCKS,
                kind: MapType::Hash,
                key: size_of::<u32>(),
                value: size_of::<u8>(),
                entries: abi::FLOW_SETS_AT_ONCE,
            },
            Self {
                name: maps::ESTABLISHED,
                kind: MapType::LruHash,
                key: size_of::<abi::FlowKey>(),
                value: size_of::<u32>(),
                entries: established,
            },
        ]
    }

    /// Whether a map has this form.
    fn is(&self, map: &MapData) -> bool {
        map.info().is_ok_and(|info| {
            info.map_type().ok() == Some(self.kind)
                && info.key_size() as usize == self.key
                && info.value_size() as usize == self.value
                && info.max_entries() == self.entries
        })
    }
}

/// Slots of a flow table: a power of two, at least twice the flows, so that few sets are full.
pub(super) fn flow_slots(flows: u32) -> u32 {
    flows
        .saturating_mul(2)
        .max(abi::FLOW_WAYS)
        .next_power_of_two()
}

/// Where this ABI's maps are pinned.
fn directory(pin_dir: &Path) -> PathBuf {
    pin_dir
        .join("maps")
        .join(format!("abi-{}", abi::ABI_VERSION))
}

/// Creates the directory, removes unusable pins, and returns each map's path.
///
/// If one map is unusable, none is used: old counters without their names would go to other rules.
pub(super) fn prepare(pin_dir: &Path, kept: &[Kept]) -> Result<Vec<PathBuf>, Error> {
    let directory = directory(pin_dir);
    fs::create_dir_all(&directory).map_err(|source| Error::Pins {
        path: directory.clone(),
        source,
    })?;
    let places: Vec<PathBuf> = kept.iter().map(|kept| directory.join(kept.name)).collect();
    let usable =
        |(kept, place): (&Kept, &PathBuf)| MapData::from_pin(place).is_ok_and(|map| kept.is(&map));
    if !kept.iter().zip(&places).all(usable) {
        for place in places.iter().filter(|place| place.exists()) {
            tracing::warn!(pin = %place.display(), "counting begins anew: what was kept does not fit these limits, or is not ours");
            fs::remove_file(place).map_err(|source| Error::Pins {
                path: place.clone(),
                source,
            })?;
        }
    }
    Ok(places)
}

/// Removes the pins of other ABIs.
pub(super) fn sweep(pin_dir: &Path) -> Result<(), Error> {
    let ours = directory(pin_dir);
    let maps = pin_dir.join("maps");
    let error = |source| Error::Pins {
        path: maps.clone(),
        source,
    };
    for entry in fs::read_dir(&maps).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path != ours {
            tracing::warn!(pin = %path.display(), "counting began anew: these maps are of a version with another layout, and removed");
            remove_tree(&path)?;
        }
    }
    Ok(())
}

/// Removes the pins of all maps.
pub(super) fn remove(pin_dir: &Path) -> Result<(), Error> {
    remove_tree(&pin_dir.join("maps"))
}

/// Removes a directory with its entries. A directory that does not exist is no error.
fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Pins {
            path: path.to_owned(),
            source,
        }),
    }
}
