//! What is kept of a packet that a rule decided, beside its counters: its flow, and an event for
//! whoever watches.
//!
//! All of it is after the verdict: a packet that passes pays for nothing here. Records of flows are
//! one map for all CPUs, and so exact only with atomic additions; making a new one takes ten times
//! as long as finding one, so a flood of ever new flows is recorded up to a rate, and the rest is
//! counted. Of most flows without a record a sketch says so, and nothing is looked for.

use aya_ebpf::bindings::BPF_NOEXIST;
use blocker_ebpf::{Event, FlowId, FlowRecord, Hook, Rule, Tally, bucket, flag};

use crate::known::Place;
use crate::packet::{self, Fragment, Packet};
use crate::{maps, rate, verdict};

/// A packet, and what a rule made of it.
pub struct Decided<'a> {
    pub rule: &'a Rule,
    pub packet: &'a Packet,
    pub hook: Hook,
    pub ifindex: u32,
    pub length: u32,
    /// A number of [`blocker_ebpf::verdict`].
    pub fate: u8,
}

/// Keeps what is to be kept of it.
///
/// A function of its own, not inlined: the stack of the hook's program has no room for its keys.
#[inline(never)]
pub fn keep(decided: &Decided<'_>) {
    let id = FlowId {
        flow: verdict::flow(decided.packet, decided.hook),
        rule: decided.rule.counter,
    };
    note_established(decided, &id);
    let watched = maps::watching();
    if watched {
        // Events are in order by their times, so these are exact; the record has the same then.
        decided.packet.clock();
    }
    if maps::new_flows_per_second() > 0 {
        record(decided, &id);
    }
    if watched {
        tell(decided, &id);
    }
}

/// Notes the flow of a blocked segment, if the rule's flows are to be killed when it ends. One that
/// begins a connection is of none that could be killed.
#[inline(always)]
fn note_established(decided: &Decided<'_>, id: &FlowId) {
    let packet = decided.packet;
    if decided.rule.flags & flag::RECORD == 0
        || !packet.has(packet::ACK)
        || packet.flags & packet::RST != 0
    {
        return;
    }
    let known = maps::ESTABLISHED.get_ptr(id.flow).is_some_and(|rule| {
        // SAFETY: the pointer is to a live map value; the program holds the RCU read lock.
        unsafe { *rule == id.rule }
    });
    if !known {
        // A full table gives up its oldest flow; that is all that can happen.
        let _kept = maps::ESTABLISHED.insert(id.flow, id.rule, 0);
    }
}

/// Adds the packet to its flow's record.
#[inline(always)]
fn record(decided: &Decided<'_>, id: &FlowId) {
    let Some(place) = Place::of(id) else {
        return;
    };
    let now = decided.packet.time();
    let known = place.is_known();
    if known && add_to(decided, id, now) {
        return;
    }
    if !rate::take(bucket::FLOWS, maps::new_flows_per_second(), now) {
        return tally(|tally| tally.not_recorded += 1);
    }
    place.learn();
    // Another CPU may have recorded it. One that was taken for known was looked for already.
    if !known && add_to(decided, id, now) {
        return;
    }
    let record = FlowRecord {
        packets: 1,
        bytes: u64::from(decided.length),
        first_seen: now,
        last_seen: now,
        ifindex: decided.ifindex,
        verdict: decided.fate,
        hook: decided.hook as u8,
        reserved: 0,
    };
    if maps::FLOWS
        .insert(id, record, u64::from(BPF_NOEXIST))
        .is_ok()
    {
        return tally(|tally| tally.created += 1);
    }
    // Another CPU was first, or the table is too small for what all CPUs do at once.
    if !add_to(decided, id, now) {
        tally(|tally| tally.not_recorded += 1);
    }
}

/// Adds the packet to its flow's record, if there is one.
#[inline(always)]
fn add_to(decided: &Decided<'_>, id: &FlowId, now: u64) -> bool {
    let Some(record) = maps::FLOWS.get_ptr_mut(id) else {
        return false;
    };
    // SAFETY: the pointer is to a live map value; the program holds the RCU read lock. Two CPUs may
    // race for what is said of the last packet; either was.
    unsafe {
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
    true
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

/// Tells whoever watches of the packet.
#[inline(always)]
fn tell(decided: &Decided<'_>, id: &FlowId) {
    let Decided {
        packet,
        hook,
        ifindex,
        length,
        fate,
        ..
    } = *decided;
    let time = packet.clock();
    if !rate::take(bucket::EVENTS, maps::events_per_second(), time) {
        return tally(|tally| tally.lost += 1);
    }
    let Some(mut entry) = maps::EVENTS.reserve::<Event>(0) else {
        return tally(|tally| tally.lost += 1);
    };
    entry.write(Event {
        time,
        rule: id.rule,
        ifindex,
        length,
        protocol: packet.protocol,
        remote_port: id.flow.remote_port,
        local_port: id.flow.local_port,
        flags: packet.flags,
        hook: hook as u8,
        verdict: fate,
        icmp_type: packet.icmp_type,
        fragment: u8::from(packet.fragment != Fragment::Whole),
        reserved: 0,
        remote: id.flow.remote,
        local: id.flow.local,
    });
    entry.submit(0);
}

#[inline(always)]
fn tally(add: impl FnOnce(&mut Tally)) {
    if let Some(tally) = maps::TALLY.get_ptr_mut(0) {
        // SAFETY: the value is this CPU's own, and no other program of ours interrupts this one.
        add(unsafe { &mut *tally });
    }
}
