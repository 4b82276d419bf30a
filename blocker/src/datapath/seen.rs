//! Reads what the datapath records of packets that rules decided: their flows, and events while a
//! client watches. `record.rs` of `blocker-ebpf` writes the records.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::from_ref;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Mutex, PoisonError};

use aya::maps::{MapData, PerCpuArray, RingBuf};
use blocker_ebpf::{Event, FLOW_V6, FlowHigh, FlowId, FlowRecord, FlowSlot, State, Tally, maps};

use super::load::Object;
use super::memory::Mapped;
use super::{Error, kept};

/// The upper 12 bytes of an IPv4 flow's addresses, which are not recorded.
const NO_HIGH: FlowHigh = FlowHigh {
    remote: [0; 3],
    local: [0; 3],
};

/// The flow table, which the datapath fills.
struct Flows {
    slots: Mapped<FlowSlot>,
    high: Mapped<FlowHigh>,
}

impl Flows {
    fn new(object: &Object, slots: u32) -> Result<Self, Error> {
        let slots = slots as usize;
        Ok(Self {
            slots: object.mapped(maps::FLOWS, slots)?,
            high: object.mapped(maps::FLOWS_HIGH, slots)?,
        })
    }

    /// The flow and record of a slot; `None` if the slot is empty. If the datapath gives the slot to
    /// another flow during the copy, the tag has changed after the copy, and the slot is read again.
    fn at(&self, place: usize) -> Option<(FlowId, FlowRecord)> {
        loop {
            let slot = self.slots.at(place);
            // SAFETY: inside the mapping. Programs may write to the slot at any time, by whole words,
            // and any bytes are a valid slot.
            let (before, copy) = unsafe {
                let before = (&raw const (*slot).tag).read_volatile();
                fence(Ordering::Acquire);
                (before, slot.read_volatile())
            };
            if before == 0 {
                return None;
            }
            // The datapath does not write this part for IPv4 flows.
            let high = match copy.kind & FLOW_V6 {
                0 => NO_HIGH,
                // SAFETY: as above.
                _ => unsafe { self.high.at(place).read_volatile() },
            };
            fence(Ordering::Acquire);
            // SAFETY: as above.
            if before == unsafe { (&raw const (*slot).tag).read_volatile() } {
                return Some(copy.flow(&high));
            }
        }
    }
}

/// The maps of flow records and events.
pub struct Seen {
    flows: Flows,
    recording: bool,
    tally: PerCpuArray<MapData, Tally>,
    ring: Mutex<RingBuf<MapData>>,
    /// The array that the banks' `state` also maps. Only its word `watching` is written here.
    state: Mutex<Mapped<State>>,
}

impl Seen {
    /// Takes the maps from a loaded object. `flows` is the number of flows for which the object was
    /// loaded.
    ///
    /// # Errors
    /// If a map is missing or can't be mapped.
    pub fn new(object: &mut Object, flows: u32) -> Result<Self, Error> {
        let error = |map| move |source| Error::Map { map, source };
        let state = object.mapped(maps::STATE, 1)?;
        Ok(Self {
            flows: Flows::new(object, kept::flow_slots(flows))?,
            recording: flows > 0,
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

    /// Calls `see` with every recorded flow, and returns the number of flows.
    pub fn flows(&self, mut see: impl FnMut(&FlowId, &FlowRecord)) -> u64 {
        let flows = (0..self.flows.slots.len()).filter_map(|place| self.flows.at(place));
        flows.fold(0, |count, (id, record)| {
            see(&id, &record);
            count + 1
        })
    }

    /// The counts of recorded flows, packets not recorded and events lost, summed over all CPUs.
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
        Ok(values.iter().fold(none, |sum, tally| Tally {
            created: sum.created + tally.created,
            not_recorded: sum.not_recorded + tally.not_recorded,
            lost: sum.lost + tally.lost,
        }))
    }

    /// Tells the datapath whether a client watches. Earlier events stay in the ring buffer.
    pub fn watch(&self, on: bool) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: inside the mapping; programs read this aligned word with one load.
        unsafe { (&raw mut (*state.at(0)).watching).write_volatile(u32::from(on)) };
    }

    /// A file descriptor that is readable while the ring buffer has events.
    ///
    /// # Errors
    /// If there are no more file descriptors.
    pub fn readiness(&self) -> io::Result<OwnedFd> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.as_fd().try_clone_to_owned()
    }

    /// Takes the events out of the ring buffer, the oldest first.
    pub fn drain(&self, mut see: impl FnMut(&Event)) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(item) = ring.next() {
            if item.len() != size_of::<Event>() {
                continue;
            }
            // SAFETY: the item is as long as an event, any bytes are a valid event, and
            // `read_unaligned` needs no alignment.
            let event = unsafe { from_ref(&*item).cast::<Event>().read_unaligned() };
            see(&event);
        }
    }
}
