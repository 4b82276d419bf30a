//! The table of flows that rules decided: of our own, since it is what a known flow's packet costs most.
//!
//! A record is one cache line, the flow's key in it, so that a packet touches one line that is not in
//! its CPU's cache, where the kernel's LRU hash touches four. A flow may be in the slots of one set,
//! [`FLOW_WAYS`] side by side, and begins at one of them; with twice the slots that are asked for,
//! nearly all are where they begin. Where a set is full, the flow that was not seen longest gives way.
//!
//! All CPUs share the table. Additions are atomic. A new record is made under a lock of its set: an
//! entry of a hash map that only one CPU can make (`BPF_NOEXIST`), since the compare-and-swap that
//! kernels have since 5.12 (5ffa25502b5a) is not on all that run this. Whoever finds the set locked for
//! longer than that takes does not record, and says so; new flows are rare by their rate.
//!
//! A reader in user space takes a record as it is while its tag is the same before and after.

use aya_ebpf::bindings::BPF_NOEXIST;
use blocker_ebpf::{FLOW_V6, FLOW_WAYS, FlowHigh, FlowSlot, Hook};

use crate::maps;
use crate::seen::Decided;

/// How often a set is asked for: some times as long as another CPU takes to make a record.
const PATIENCE: u32 = 32;

/// A flow as one rule sees it, as the table has it.
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

/// What became of asking for a record.
pub enum Recorded {
    /// It was made.
    Created,
    /// It was there, and the packet was added.
    Found,
    /// Another CPU was making one in the same place.
    Not,
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
        key.hash = key.hash();
        key
    }

    /// Its hash.
    #[inline(always)]
    pub fn place(&self) -> u64 {
        self.hash
    }

    /// A product a word, which the processor makes side by side, and the end of MurmurHash3's
    /// finaliser.
    #[inline(always)]
    fn hash(&self) -> u64 {
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

    /// The number of a slot that it may be in; it begins at 0.
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
            // SAFETY: `get_ptr_mut` gave a valid pointer. Another CPU may write what is read here: a
            // flow that gives way just now takes this packet for its successor's.
            if unsafe { self.is_in(slot, number) } {
                // SAFETY: as above. Two CPUs may race for what is said of the last packet; either was.
                unsafe {
                    let record = &raw mut (*slot).record;
                    add(&raw mut (*record).packets, 1);
                    add(&raw mut (*record).bytes, u64::from(decided.length));
                    // Another CPU's tick may be further.
                    if now > (*record).last_seen {
                        (*record).last_seen = now;
                    }
                    (*record).ifindex = decided.ifindex;
                    (*record).verdict = decided.fate;
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
        if !(0..PATIENCE).any(|_| lock()) {
            return Recorded::Not;
        }
        let recorded = if self.add(decided, now) {
            Recorded::Found
        } else {
            self.write(decided, now)
        };
        let _held = maps::FLOW_LOCKS.remove(set);
        recorded
    }

    /// Writes the flow where there is none, or where the one is that was not seen longest.
    #[inline(always)]
    fn write(&self, decided: &Decided<'_>, now: u64) -> Recorded {
        let (mut chosen, mut oldest) = (self.slot(0), u64::MAX);
        for way in 0..FLOW_WAYS {
            let number = self.slot(way);
            let Some(slot) = maps::FLOWS.get(number) else {
                return Recorded::Not;
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
            return Recorded::Not;
        };
        // SAFETY: `get_ptr_mut` gave valid pointers, and who holds the lock alone makes records in
        // this set. The tag goes first and comes last, so that nobody takes half a record for one.
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
            (&raw mut (*record).verdict).write_volatile(decided.fate);
            (&raw mut (*record).hook).write_volatile(decided.hook as u8);
            (&raw mut (*slot).tag).write_volatile(self.tag());
        }
        Recorded::Created
    }
}

/// Adds to a number that other CPUs add to. `core` has no atomic additions for this target, since
/// they took a compare-and-swap to be had; the instruction itself is as old as BPF.
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

/// Odd, and without a pattern: the fractions of the square roots of the first primes.
const ODD: [u64; 6] = [
    0x6a09_e667_f3bc_c909,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1,
    0x9b05_688c_2b3e_6c1f,
];
