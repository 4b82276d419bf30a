//! What the datapath records of packets that rules decided: flows, events, and RSTs of a teardown.

#[cfg(doc)]
use crate::{Hook, Rule, UNKNOWN_PROTOCOL, maps, verdict};

/// Slots of a set in [`maps::FLOWS`]: those that a flow's record may be in.
pub const FLOW_WAYS: u32 = 8;
/// Sets that flows are recorded in at once: as many as there may be CPUs.
pub const FLOW_SETS_AT_ONCE: u32 = 1_024;
/// Set in [`FlowSlot::kind`] of an IPv6 flow.
pub const FLOW_V6: u32 = 1 << 31;

/// Blocks of [`maps::KNOWN`], on each CPU.
pub const KNOWN_BLOCKS: u32 = 32;
/// Words of a block: with its counter 4 KiB. A per-CPU value may not be larger than 32 KiB.
pub const KNOWN_WORDS: usize = 511;

plain! {
    /// A flow as a rule sees it. IPv4 addresses are v4-mapped (`::ffff:a.b.c.d`).
    pub struct FlowKey {
        /// The remote's address, network order.
        pub remote: [u8; 16],
        /// The local address, network order.
        pub local: [u8; 16],
        /// The remote's port.
        pub remote_port: u16,
        /// The local port.
        pub local_port: u16,
        /// IP protocol number.
        pub protocol: u32,
    }

    /// A flow as one rule saw it.
    pub struct FlowId {
        /// The flow.
        pub flow: FlowKey,
        /// [`Rule::counter`] of the rule.
        pub rule: u32,
    }

    /// The record of a flow that a rule decided.
    pub struct FlowRecord {
        /// Its packets. A GSO packet is one.
        pub packets: u64,
        /// Their bytes with link-layer header, as the hook saw them.
        pub bytes: u64,
        /// When the first of them came.
        pub first_seen: u64,
        /// When the last of them came.
        pub last_seen: u64,
        /// The device that the last one was on.
        pub ifindex: u32,
        /// The verdict on the last one: a number of [`verdict`].
        pub verdict: u8,
        /// The [`Hook`] that decided the last one.
        pub hook: u8,
        /// Fills the word.
        pub reserved: u16,
    }

    /// A flow and its record, in one cache line: all of an IPv4 flow, and of an IPv6 flow all but
    /// the upper 12 bytes of its addresses, which are in [`FlowHigh`].
    pub struct FlowSlot {
        /// A part of the flow's hash, never 0; 0 where there is no flow, or one is being written.
        pub tag: u32,
        /// [`Rule::counter`] of the rule.
        pub rule: u32,
        /// The last 4 bytes of the remote's address, as they are in memory.
        pub remote: u32,
        /// The last 4 bytes of the local address, likewise.
        pub local: u32,
        /// The remote's port.
        pub remote_port: u16,
        /// The local port.
        pub local_port: u16,
        /// IP protocol number, and [`FLOW_V6`].
        pub kind: u32,
        /// Its record.
        pub record: FlowRecord,
    }

    /// The upper 12 bytes of an IPv6 flow's addresses, as they are in memory. Not written for IPv4.
    pub struct FlowHigh {
        /// The remote's.
        pub remote: [u32; 3],
        /// The local one's.
        pub local: [u32; 3],
    }

    /// A block of a CPU's Bloom filter of the flows that have a record.
    pub struct KnownBlock {
        /// Flows that were added to it.
        pub learnt: u64,
        /// Two generations of bits, and the number of the younger one, each.
        pub words: [u64; KNOWN_WORDS],
    }

    /// A packet that a rule decided. IPv4 addresses are v4-mapped.
    pub struct Event {
        /// When.
        pub time: u64,
        /// [`Rule::counter`] of the rule.
        pub rule: u32,
        /// The device.
        pub ifindex: u32,
        /// Its bytes with link-layer header, as the hook saw them.
        pub length: u32,
        /// IP protocol number, or [`UNKNOWN_PROTOCOL`].
        pub protocol: u16,
        /// The remote's port; 0 where there is none, or it is out of reach.
        pub remote_port: u16,
        /// The local port, likewise.
        pub local_port: u16,
        /// Flags of a TCP segment.
        pub flags: u8,
        /// The [`Hook`] that decided it.
        pub hook: u8,
        /// A number of [`verdict`].
        pub verdict: u8,
        /// First byte of an ICMP message: its type.
        pub icmp_type: u8,
        /// Whether it is a part of a fragmented packet.
        pub fragment: u8,
        /// Fills the word.
        pub reserved: u8,
        /// The remote's address, network order.
        pub remote: [u8; 16],
        /// The local address, network order.
        pub local: [u8; 16],
    }
}

impl FlowSlot {
    /// The flow that the slot has, and its record.
    #[must_use]
    pub fn flow(&self, high: &FlowHigh) -> (FlowId, FlowRecord) {
        let address = |high: [u32; 3], low: u32| {
            let [first, second, third] = match self.kind & FLOW_V6 {
                0 => [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff])],
                _ => high,
            };
            let mut bytes = [0; 16];
            for (place, word) in [first, second, third, low].into_iter().enumerate() {
                bytes[place * 4..place * 4 + 4].copy_from_slice(&word.to_ne_bytes());
            }
            bytes
        };
        let flow = FlowKey {
            remote: address(high.remote, self.remote),
            local: address(high.local, self.local),
            remote_port: self.remote_port,
            local_port: self.local_port,
            protocol: self.kind & !FLOW_V6,
        };
        let rule = self.rule;
        (FlowId { flow, rule }, self.record)
    }
}

/// Bits of a [`maps::KILLS`] value.
pub mod kill {
    /// A RST for the flow passed towards the remote.
    pub const REMOTE: u32 = 1;
    /// A RST for the flow passed towards the local end.
    pub const LOCAL: u32 = 2;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Hook, verdict};

    #[test]
    fn a_slot_gives_back_its_flow() {
        let slot = FlowSlot {
            tag: 1,
            rule: 7,
            remote: u32::from_ne_bytes([192, 0, 2, 1]),
            local: u32::from_ne_bytes([198, 51, 100, 2]),
            remote_port: 443,
            local_port: 40_000,
            kind: 6,
            record: FlowRecord {
                packets: 1,
                bytes: 2,
                first_seen: 3,
                last_seen: 4,
                ifindex: 5,
                verdict: verdict::RESET,
                hook: Hook::Egress as u8,
                reserved: 0,
            },
        };
        let high = FlowHigh {
            remote: [u32::from_ne_bytes([0x20, 1, 0xd, 0xb8]), 0, 0],
            local: [u32::from_ne_bytes([0x20, 1, 0xd, 0xb9]), 0, 0],
        };
        let (id, record) = slot.flow(&high);
        assert_eq!(
            id.flow.remote[..12],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255]
        );
        assert_eq!(id.flow.remote[12..], [192, 0, 2, 1]);
        assert_eq!(id.flow.local[12..], [198, 51, 100, 2]);
        assert_eq!((id.flow.remote_port, id.flow.local_port), (443, 40_000));
        assert_eq!((id.flow.protocol, id.rule), (6, 7));
        assert_eq!((record.packets, record.bytes), (1, 2));
        assert_eq!((record.first_seen, record.last_seen), (3, 4));
        assert_eq!((record.ifindex, record.verdict, record.hook), (5, 1, 2));
        let kind = slot.kind | FLOW_V6;
        let (id, _) = FlowSlot { kind, ..slot }.flow(&high);
        assert_eq!(id.flow.remote[..4], [0x20, 1, 0xd, 0xb8]);
        assert_eq!(id.flow.local[..4], [0x20, 1, 0xd, 0xb9]);
        assert_eq!(id.flow.protocol, 6);
    }
}
