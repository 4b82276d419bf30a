//! The records of a packet that a rule decided, apart from its counters: its flow, and an event for
//! those who watch.
//!
//! All of it comes after the verdict, so a packet that passes costs nothing here. Making a new record
//! takes several times as long as finding one, so new flows are recorded up to a rate, and those over it
//! are counted. For most flows without a record a Bloom filter spares the lookup.

use blocker_ebpf::headers::tcp;
use blocker_ebpf::{Event, Tally, bucket, flag};

use crate::flow_table::{Key, Recorded};
use crate::known::Bits;
use crate::packet::Fragment;
use crate::verdict::Decided;
use crate::{flow, maps, rate};

/// Records a packet.
///
/// A function of its own, not inlined: the stack of the hook's program has no room for its keys.
#[inline(never)]
pub fn record(decided: &Decided<'_>) {
    note_established(decided);
    let watched = maps::watching();
    if watched {
        // Events are ordered by time, so theirs is exact, and the flow's record takes the same.
        decided.packet.arrival.exact();
    }
    if maps::new_flows_per_second() > 0 {
        record_flow(decided);
    }
    if watched {
        send_event(decided);
    }
}

/// Notes the flow of a blocked segment, if the rule's flows are to be killed when it ends. A segment
/// without ACK begins a connection, which is not established.
#[inline(always)]
fn note_established(decided: &Decided<'_>) {
    let packet = decided.packet;
    if decided.rule.flags & flag::RECORD == 0
        || !packet.has(tcp::ACK)
        || packet.flags & tcp::RST != 0
    {
        return;
    }
    let flow = flow::key(packet, decided.hook);
    let known = maps::ESTABLISHED.get_ptr(flow).is_some_and(|rule| {
        // SAFETY: the pointer is to a live map value; the program holds the RCU read lock.
        unsafe { *rule == decided.rule.counter }
    });
    if !known {
        // A full table evicts its least recently used flow, so insertion does not fail.
        let _inserted = maps::ESTABLISHED.insert(flow, decided.rule.counter, 0);
    }
}

/// Adds the packet to its flow's record.
#[inline(always)]
fn record_flow(decided: &Decided<'_>) {
    let key = Key::of(decided);
    let Some(known) = Bits::of(key.hash()) else {
        return;
    };
    let now = decided.packet.arrival.coarse();
    if known.are_set() && key.add(decided, now) {
        return;
    }
    if !rate::take(bucket::FLOWS, maps::new_flows_per_second(), now) {
        return tally(|tally| tally.not_recorded += 1);
    }
    known.set();
    match key.record(decided, now) {
        Recorded::Created => tally(|tally| tally.created += 1),
        // Another CPU made it.
        Recorded::Found => {}
        Recorded::Locked => tally(|tally| tally.not_recorded += 1),
    }
}

/// Sends an event to those who watch.
#[inline(always)]
fn send_event(decided: &Decided<'_>) {
    let Decided {
        packet,
        hook,
        ifindex,
        length,
        verdict,
        ..
    } = *decided;
    let time = packet.arrival.exact();
    if !rate::take(bucket::EVENTS, maps::events_per_second(), time) {
        return tally(|tally| tally.lost += 1);
    }
    let flow = flow::key(packet, hook);
    let Some(mut entry) = maps::EVENTS.reserve::<Event>(0) else {
        return tally(|tally| tally.lost += 1);
    };
    entry.write(Event {
        time,
        rule: decided.rule.counter,
        ifindex,
        length,
        protocol: packet.protocol,
        remote_port: flow.remote_port,
        local_port: flow.local_port,
        flags: packet.flags,
        hook: hook as u8,
        verdict,
        icmp_type: packet.icmp_type,
        fragment: u8::from(packet.fragment != Fragment::Whole),
        reserved: 0,
        remote: flow.remote,
        local: flow.local,
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
