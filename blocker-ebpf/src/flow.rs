//! The flow that a packet belongs to, as rules see it: remote and local, whatever the direction.

use blocker_ebpf::{FlowKey, Hook, kill};

use crate::maps;
use crate::packet::{Packet, Words};

/// The flow of a packet, the same for both directions.
#[inline(always)]
pub fn key(packet: &Packet, hook: Hook) -> FlowKey {
    let (remote, local, remote_port, local_port) = if hook == Hook::Egress {
        (
            &packet.destination,
            &packet.source,
            packet.destination_port,
            packet.source_port,
        )
    } else {
        (
            &packet.source,
            &packet.destination,
            packet.source_port,
            packet.destination_port,
        )
    };
    FlowKey {
        remote: bytes(remote),
        local: bytes(local),
        remote_port,
        local_port,
        protocol: u32::from(packet.protocol),
    }
}

/// An address as the ABI has it.
#[inline(always)]
pub fn bytes(words: &Words) -> [u8; 16] {
    // SAFETY: same size, and any bytes are bytes.
    unsafe { core::mem::transmute(*words) }
}

/// A hash of a flow.
#[inline(always)]
pub fn hash(flow: &FlowKey) -> u32 {
    // SAFETY: `FlowKey` is 40 bytes without padding.
    mix::<10>(unsafe { core::mem::transmute(*flow) })
}

/// A hash that every bit of the words changes: FNV-1a over them, then a finaliser.
#[inline(always)]
pub fn mix<const WORDS: usize>(words: [u32; WORDS]) -> u32 {
    let mut hash = 0x811c_9dc5_u32;
    for word in words {
        hash = (hash ^ word).wrapping_mul(0x0100_0193);
        hash ^= hash >> 15;
    }
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^ (hash >> 13)
}

/// Whether a teardown watches the flow.
#[inline(always)]
pub fn is_killed(flow: &FlowKey) -> bool {
    maps::KILLS.get_ptr(flow).is_some()
}

/// Notes that a RST of a flow under teardown went to its local end, or to the remote.
#[inline(always)]
pub fn note_reset(flow: &FlowKey, to_local: bool) {
    if let Some(seen) = maps::KILLS.get_ptr_mut(flow) {
        let bit = if to_local { kill::LOCAL } else { kill::REMOTE };
        // Two CPUs may race for the two bits; a bit that is lost is set again by the next probe.
        // SAFETY: the pointer is to a live map value; the program holds the RCU read lock.
        unsafe { *seen |= bit };
    }
}
