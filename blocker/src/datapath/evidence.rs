//! What the datapath noted of flows: the ends of a flow under teardown that a RST went to, and the
//! established flows to kill when their rule ends.

use std::io;
use std::os::fd::AsFd;
use std::sync::Mutex;

use aya::maps::{HashMap, IterableMap, MapData, MapError};
use blocker_ebpf::{FlowKey, maps};

use super::load::Object;
use super::{Error, batch};
use crate::teardown;

/// The map of flows under teardown.
pub struct Kills(Mutex<HashMap<MapData, FlowKey, u32>>);

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
        act: impl FnOnce(&mut HashMap<MapData, FlowKey, u32>) -> Result<T, MapError>,
    ) -> io::Result<T> {
        // A panic of another holder leaves the map intact: it is in the kernel.
        let mut map = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        act(&mut map).map_err(io::Error::other)
    }
}

/// No flow.
const NO_FLOW: FlowKey = FlowKey {
    remote: [0; 16],
    local: [0; 16],
    remote_port: 0,
    local_port: 0,
    protocol: 0,
};

/// The map of established flows that were blocked and are to be killed when their rule ends.
pub struct Recorded(HashMap<MapData, FlowKey, u32>);

impl Recorded {
    /// Takes the map from a loaded object.
    ///
    /// # Errors
    /// If it is missing.
    pub fn new(object: &mut Object) -> Result<Self, Error> {
        HashMap::try_from(object.map(maps::ESTABLISHED)?)
            .map(Self)
            .map_err(flows_error)
    }

    /// The flows that the rules of these tags ([`blocker_ebpf::tag`]) blocked.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn of(&self, tags: &[u32]) -> Result<Vec<FlowKey>, Error> {
        let mut ours = Vec::new();
        let map = IterableMap::map(&self.0).fd().as_fd();
        batch::each(map, (NO_FLOW, 0_u32), |flow, rule| {
            if tags.contains(rule) {
                ours.push(*flow);
            }
        })
        .map_err(|source| Error::Flows { source })?;
        Ok(ours)
    }

    /// Forgets flows.
    ///
    /// # Errors
    /// If the map can't be written. A flow that went meanwhile is no error.
    pub fn forget(&mut self, flows: &[FlowKey]) -> Result<(), Error> {
        flows.iter().try_for_each(|flow| match self.0.remove(flow) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(flows_error(error)),
        })
    }
}

const fn flows_error(source: MapError) -> Error {
    Error::Map {
        map: maps::ESTABLISHED,
        source,
    }
}

impl teardown::Evidence for Kills {
    fn watch(&self, flows: &[FlowKey]) -> io::Result<()> {
        self.locked(|map| flows.iter().try_for_each(|flow| map.insert(*flow, 0, 0)))
    }

    fn seen(&self, flows: &[FlowKey]) -> io::Result<Vec<u32>> {
        self.locked(|map| {
            flows
                .iter()
                .map(|flow| match map.get(flow, 0) {
                    Err(MapError::KeyNotFound) => Ok(0),
                    seen => seen,
                })
                .collect()
        })
    }

    fn forget(&self, flows: &[FlowKey]) -> io::Result<()> {
        self.locked(|map| {
            flows.iter().try_for_each(|flow| match map.remove(flow) {
                Err(MapError::KeyNotFound) => Ok(()),
                removed => removed,
            })
        })
    }
}
