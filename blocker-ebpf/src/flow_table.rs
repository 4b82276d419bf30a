//! The table of flows that rules decided: a set-associative table in an array map, instead of the
//! kernel's LRU hash, whose lookup would cost more than all else that is done with a known flow's packet.
//!
//! A slot is one cache line with the flow's key and its record, so that a packet misses the cache once,
//! where the kernel's LRU hash misses four times. A flow may be in any of the [`FLOW_WAYS`] slots of one
//! set; its hash says which is tried first. The table has twice the slots that are configured, so nearly
//! every flow is in its first one. In a full set the flow that was seen least recently is evicted.
//!
//! All CPUs share the table. Additions are atomic. A new record is made under a lock of its set: an
//! entry of a hash map that only one CPU can make (`BPF_NOEXIST`), since compare-and-swap needs Linux
//! 5.12 (5ffa25502b5a). A CPU that finds the set locked for longer than that takes counts the packet as
//! not recorded; the rate of new flows makes this rare.
//!
//! A reader in user space copies a slot, and uses the copy if the tag is the same before and after.

use aya_ebpf::bindings::BPF_NOEXIST;
use blocker_ebpf::{FLOW_V6, FLOW_WAYS, FlowHigh, FlowSlot, Hook};

use crate::maps;
use crate::verdict::Decided;

/// How often the lock of a set is tried: several times as long as another CPU holds it.
const ATTEMPTS: u32 = 32;

/// A flow as one rule sees it, in the table's form.
pub struct Key {
    rule: u32,
    remote: u32,
    local: u32,
    remote_port: u16,
    local_port: u16,
    kind: u32,
    high: FlowHigh,
    hash: u64,
}

/// The result of recording a packet of a flow that may have no record.
pub enum Recorded {
    /// A record was made.
    Created,
    /// There was one, and the packet was added to it.
    Found,
    /// Not recorded: another CPU held the lock of the set.
    Locked,
}

impl Key {
    /// Of a packet.
    #[inline(always)]
    pub fn of(decided: &Decided<'_>) -> Self {
        let packet = decided.packet;
        let [source, destination] = packet.addresses();
        let (from, to) = (
            (source, packet.source_port),
            (destination, packet.destination_port),
        );
        let ((remote, remote_port), (local, local_port)) = match decided.hook {
            Hook::Egress => (to, from),
            Hook::Xdp | Hook::Ingress => (from, to),
        };
        let ([first, second, third, remote], [fourth, fifth, sixth, local]) = (remote, local);
        let mut key = Self {
            rule: decided.rule.counter,
            remote,
            local,
            remote_port,
            local_port,
            kind: u32::from(packet.protocol) | if packet.v6 { FLOW_V6 } else { 0 },
            high: FlowHigh {
                remote: [first, second, third],
                local: [fourth, fifth, sixth],
            },
            hash: 0,
        };
        key.hash = key.compute_hash();
        key
    }

    /// Its hash.
    #[inline(always)]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// One product for each word, which the processor computes in parallel, then the end of
    /// MurmurHash3's finaliser.
    #[inline(always)]
    fn compute_hash(&self) -> u64 {
        let pair = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        let ports = u32::from(self.remote_port) << 16 | u32::from(self.local_port);
        let mut sum = pair(self.remote, self.local).wrapping_mul(ODD[0])
            ^ pair(ports, self.rule).wrapping_mul(ODD[1])
            ^ u64::from(self.kind).wrapping_mul(ODD[2]);
        if self.is_v6() {
            let FlowHigh { remote, local } = self.high;
            sum ^= pair(remote[0], remote[1]).wrapping_mul(ODD[3])
                ^ pair(remote[2], local[2]).wrapping_mul(ODD[4])
                ^ pair(local[0], local[1]).wrapping_mul(ODD[5]);
        }
        let hash = (sum ^ sum >> 32).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash ^ hash >> 33
    }

    #[inline(always)]
    fn is_v6(&self) -> bool {
        self.kind & FLOW_V6 != 0
    }

    #[inline(always)]
    fn tag(&self) -> u32 {
        (self.hash >> 32) as u32 | 1
    }

    /// The number of its set's first slot.
    #[inline(always)]
    fn set(&self) -> u32 {
        self.hash as u32 & maps::flow_mask() & !(FLOW_WAYS - 1)
    }

    /// The number of a slot that it may be in; `way` 0 is tried first.
    #[inline(always)]
    fn slot(&self, way: u32) -> u32 {
        self.set() | (self.hash as u32 ^ way) & (FLOW_WAYS - 1)
    }

    /// Adds the packet to the flow's record, if there is one.
    #[inline(always)]
    pub fn add(&self, decided: &Decided<'_>, now: u64) -> bool {
        for way in 0..FLOW_WAYS {
            let number = self.slot(way);
            let Some(slot) = maps::FLOWS.get_ptr_mut(number) else {
                return false;
            };
            // SAFETY: `get_ptr_mut` gave a valid pointer. Another CPU may write the slot meanwhile: if
            // it evicts this flow just now, the packet is added to the flow that replaces it.
            if unsafe { self.is_in(slot, number) } {
                // SAFETY: as above. Two CPUs may race to describe the last packet; either may win.
                unsafe {
                    let record = &raw mut (*slot).record;
                    add(&raw mut (*record).packets, 1);
                    add(&raw mut (*record).bytes, u64::from(decided.length));
                    // Another CPU's tick may be later.
                    if now > (*record).last_seen {
                        (*record).last_seen = now;
                    }
                    (*record).ifindex = decided.ifindex;
                    (*record).verdict = decided.verdict;
                    (*record).hook = decided.hook as u8;
                }
                return true;
            }
        }
        false
    }

    /// Whether a slot has this flow.
    ///
    /// # Safety
    /// The slot must be one of the table, and this its number.
    #[inline(always)]
    unsafe fn is_in(&self, slot: *const FlowSlot, number: u32) -> bool {
        // SAFETY: the caller's promise.
        let same = unsafe {
            (*slot).tag == self.tag()
                && (*slot).remote == self.remote
                && (*slot).local == self.local
                && (*slot).remote_port == self.remote_port
                && (*slot).local_port == self.local_port
                && (*slot).kind == self.kind
                && (*slot).rule == self.rule
        };
        same && (!self.is_v6()
            || maps::FLOWS_HIGH
                .get(number)
                .is_some_and(|high| *high == self.high))
    }

    /// Makes the flow's record with this packet in it, or adds the packet if there is one.
    #[inline(always)]
    pub fn record(&self, decided: &Decided<'_>, now: u64) -> Recorded {
        let set = self.set();
        let lock = || {
            let inserted = maps::FLOW_LOCKS.insert(set, 0, u64::from(BPF_NOEXIST));
            inserted.is_ok()
        };
        if !(0..ATTEMPTS).any(|_| lock()) {
            return Recorded::Locked;
        }
        let recorded = if self.add(decided, now) {
            Recorded::Found
        } else {
            self.write(decided, now)
        };
        let _removed = maps::FLOW_LOCKS.remove(set);
        recorded
    }

    /// Writes the flow into an empty slot of its set, or in place of the least recently seen flow.
    #[inline(always)]
    fn write(&self, decided: &Decided<'_>, now: u64) -> Recorded {
        let (mut chosen, mut oldest) = (self.slot(0), u64::MAX);
        for way in 0..FLOW_WAYS {
            let number = self.slot(way);
            let Some(slot) = maps::FLOWS.get(number) else {
                return Recorded::Locked;
            };
            let seen = if slot.tag == 0 {
                0
            } else {
                slot.record.last_seen
            };
            if seen < oldest {
                (chosen, oldest) = (number, seen);
            }
        }
        let (Some(slot), Some(high)) = (
            maps::FLOWS.get_ptr_mut(chosen),
            maps::FLOWS_HIGH.get_ptr_mut(chosen),
        ) else {
            return Recorded::Locked;
        };
        // SAFETY: `get_ptr_mut` gave valid pointers, and only the holder of the lock makes records in
        // this set. The tag is cleared first and written last, so that no reader uses half a record.
        unsafe {
            (&raw mut (*slot).tag).write_volatile(0);
            if self.is_v6() {
                high.write(self.high);
            }
            (&raw mut (*slot).rule).write_volatile(self.rule);
            (&raw mut (*slot).remote).write_volatile(self.remote);
            (&raw mut (*slot).local).write_volatile(self.local);
            (&raw mut (*slot).remote_port).write_volatile(self.remote_port);
            (&raw mut (*slot).local_port).write_volatile(self.local_port);
            (&raw mut (*slot).kind).write_volatile(self.kind);
            let record = &raw mut (*slot).record;
            (&raw mut (*record).packets).write_volatile(1);
            (&raw mut (*record).bytes).write_volatile(u64::from(decided.length));
            (&raw mut (*record).first_seen).write_volatile(now);
            (&raw mut (*record).last_seen).write_volatile(now);
            (&raw mut (*record).ifindex).write_volatile(decided.ifindex);
            (&raw mut (*record).verdict).write_volatile(decided.verdict);
            (&raw mut (*record).hook).write_volatile(decided.hook as u8);
            (&raw mut (*slot).tag).write_volatile(self.tag());
        }
        Recorded::Created
    }
}

/// Adds atomically. `core` has no atomic additions for this target, since it wants compare-and-swap
/// with them; the instruction itself is as old as BPF.
///
/// # Safety
/// The pointer must be good for the write.
#[inline(always)]
unsafe fn add(number: *mut u64, more: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({number} + 0) += {more}",
            number = in(reg) number,
            more = in(reg) more,
            options(nostack),
        );
    }
}

/// Multipliers without a pattern: odd numbers near the fractions of the square roots of the first primes.
const ODD: [u64; 6] = [
    0x6a09_e667_f3bc_c909,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1,
    0x9b05_688c_2b3e_6c1f,
];
