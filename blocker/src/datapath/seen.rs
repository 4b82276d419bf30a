//! What the datapath keeps of the packets that rules decided: their flows, and events while
//! somebody watches. The other side is `blocker-ebpf`'s `seen.rs`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::from_ref;
use std::sync::{Mutex, PoisonError};

use aya::maps::{HashMap, IterableMap, Map, MapData, PerCpuArray, RingBuf};
use blocker_ebpf::{Event, FlowId, FlowKey, FlowRecord, State, Tally, maps};

use super::load::Object;
use super::memory::Mapped;
use super::{Error, Plain, batch};

/// The maps of flows and events.
pub struct Seen {
    flows: HashMap<MapData, Plain<FlowId>, Plain<FlowRecord>>,
    recording: bool,
    tally: PerCpuArray<MapData, Plain<Tally>>,
    ring: Mutex<RingBuf<MapData>>,
    /// The same memory as the banks'; only the word that says whether anybody watches is written.
    state: Mutex<Mapped<State>>,
}

/// No flow.
const NO_FLOW: (FlowId, FlowRecord) = (
    FlowId {
        flow: FlowKey {
            remote: [0; 16],
            local: [0; 16],
            remote_port: 0,
            local_port: 0,
            protocol: 0,
        },
        rule: 0,
    },
    FlowRecord {
        packets: 0,
        bytes: 0,
        first_seen: 0,
        last_seen: 0,
        ifindex: 0,
        verdict: 0,
        hook: 0,
        reserved: 0,
    },
);

impl Seen {
    /// Takes the maps from a loaded object, and maps [`maps::STATE`], which the banks take later.
    /// `recording` is whether the object's programs record flows.
    ///
    /// # Errors
    /// If a map is missing or can't be mapped.
    pub fn new(object: &mut Object, recording: bool) -> Result<Self, Error> {
        let error = |map| move |source| Error::Map { map, source };
        let Map::Array(state) = object.peek(maps::STATE)? else {
            return Err(Error::Missing { what: maps::STATE });
        };
        let state = Mapped::new(state.fd(), 1).map_err(|source| Error::Memory {
            map: maps::STATE,
            source,
        })?;
        Ok(Self {
            flows: HashMap::try_from(object.map(maps::FLOWS)?).map_err(error(maps::FLOWS))?,
            recording,
            tally: PerCpuArray::try_from(object.map(maps::TALLY)?).map_err(error(maps::TALLY))?,
            ring: Mutex::new(
                RingBuf::try_from(object.map(maps::EVENTS)?).map_err(error(maps::EVENTS))?,
            ),
            state: Mutex::new(state),
        })
    }

    /// Whether flows are recorded.
    pub fn is_recording(&self) -> bool {
        self.recording
    }

    /// Shows every flow that rules decided, and gives how many there are.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn flows(&self, mut see: impl FnMut(&FlowId, &FlowRecord)) -> Result<u64, Error> {
        let map = IterableMap::map(&self.flows).fd().as_fd();
        batch::each(map, NO_FLOW, &mut see).map_err(|source| Error::Flows { source })
    }

    /// What was recorded and what was not, of all CPUs together.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn tally(&self) -> Result<Tally, Error> {
        let values = self.tally.get(&0, 0).map_err(|source| Error::Map {
            map: maps::TALLY,
            source,
        })?;
        let none = Tally {
            created: 0,
            not_recorded: 0,
            lost: 0,
        };
        Ok(values.iter().fold(none, |sum, Plain(tally)| Tally {
            created: sum.created + tally.created,
            not_recorded: sum.not_recorded + tally.not_recorded,
            lost: sum.lost + tally.lost,
        }))
    }

    /// Tells the datapath whether anybody watches. Events of before stay in the ring buffer.
    pub fn watch(&self, on: bool) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: inside the mapping; an aligned word, which programs read whole.
        unsafe { (&raw mut (*state.at(0)).watching).write_volatile(u32::from(on)) };
    }

    /// Something that is readable while there are events.
    ///
    /// # Errors
    /// If there are no more file descriptors.
    pub fn readiness(&self) -> io::Result<OwnedFd> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.as_fd().try_clone_to_owned()
    }

    /// Takes the events that are there, the oldest first.
    pub fn drain(&self, mut see: impl FnMut(&Event)) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(item) = ring.next() {
            if item.len() != size_of::<Event>() {
                continue;
            }
            // SAFETY: as many bytes as an event has, of which any are one; the read needs no
            // alignment.
            let event = unsafe { from_ref(&*item).cast::<Event>().read_unaligned() };
            see(&event);
        }
    }
}
