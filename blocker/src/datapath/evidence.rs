//! What the datapath saw of flows under teardown: to which ends it let a RST go.

use std::io;
use std::sync::Mutex;

use aya::maps::{HashMap, MapData, MapError};
use blocker_ebpf::{FlowKey, maps};

use super::load::Object;
use super::{Error, Plain};
use crate::teardown;

/// The map of flows under teardown.
pub struct Kills(Mutex<HashMap<MapData, Plain<FlowKey>, u32>>);

impl Kills {
    /// Takes the map from a loaded object.
    ///
    /// # Errors
    /// If it is missing.
    pub fn new(object: &mut Object) -> Result<Self, Error> {
        HashMap::try_from(object.map(maps::KILLS)?)
            .map(|map| Self(Mutex::new(map)))
            .map_err(|source| Error::Map {
                map: maps::KILLS,
                source,
            })
    }

    fn locked<T>(
        &self,
        act: impl FnOnce(&mut HashMap<MapData, Plain<FlowKey>, u32>) -> Result<T, MapError>,
    ) -> io::Result<T> {
        // A panic elsewhere leaves the map itself whole: it is in the kernel.
        let mut map = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        act(&mut map).map_err(io::Error::other)
    }
}

impl teardown::Evidence for Kills {
    fn watch(&self, flows: &[FlowKey]) -> io::Result<()> {
        self.locked(|map| {
            flows
                .iter()
                .try_for_each(|flow| map.insert(Plain(*flow), 0, 0))
        })
    }

    fn seen(&self, flows: &[FlowKey]) -> io::Result<Vec<u32>> {
        self.locked(|map| {
            flows
                .iter()
                .map(|flow| match map.get(&Plain(*flow), 0) {
                    Err(MapError::KeyNotFound) => Ok(0),
                    seen => seen,
                })
                .collect()
        })
    }

    fn forget(&self, flows: &[FlowKey]) -> io::Result<()> {
        self.locked(|map| {
            flows
                .iter()
                .try_for_each(|flow| match map.remove(&Plain(*flow)) {
                    Err(MapError::KeyNotFound) => Ok(()),
                    removed => removed,
                })
        })
    }
}
