//! What is kept of a packet that a rule decided, beside its counters: its flow, and an event for
//! whoever watches.
//!
//! All of it is after the verdict: a packet that passes pays for nothing here. Making a new record
//! takes some times as long as finding one, so a flood of ever new flows is recorded up to a rate, and
//! the rest is counted. Of most flows without a record a sketch says so, and nothing is looked for.

use blocker_ebpf::{Event, Hook, Rule, Tally, bucket, flag};

use crate::flows::{Key, Recorded};
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
    note_established(decided);
    let watched = maps::watching();
    if watched {
        // Events are in order by their times, so these are exact; the record has the same then.
        decided.packet.clock();
    }
    if maps::new_flows_per_second() > 0 {
        record(decided);
    }
    if watched {
        tell(decided);
    }
}

/// Notes the flow of a blocked segment, if the rule's flows are to be killed when it ends. One that
/// begins a connection is of none that could be killed.
#[inline(always)]
fn note_established(decided: &Decided<'_>) {
    let packet = decided.packet;
    if decided.rule.flags & flag::RECORD == 0
        || !packet.has(packet::ACK)
        || packet.flags & packet::RST != 0
    {
        return;
    }
    let flow = verdict::flow(packet, decided.hook);
    let known = maps::ESTABLISHED.get_ptr(flow).is_some_and(|rule| {
        // SAFETY: the pointer is to a live map value; the program holds the RCU read lock.
        unsafe { *rule == decided.rule.counter }
    });
    if !known {
        // A full table gives up its oldest flow; that is all that can happen.
        let _kept = maps::ESTABLISHED.insert(flow, decided.rule.counter, 0);
    }
}

/// Adds the packet to its flow's record.
#[inline(always)]
fn record(decided: &Decided<'_>) {
    let key = Key::of(decided);
    let Some(place) = Place::of(key.place()) else {
        return;
    };
    let now = decided.packet.time();
    if place.is_known() && key.add(decided, now) {
        return;
    }
    if !rate::take(bucket::FLOWS, maps::new_flows_per_second(), now) {
        return tally(|tally| tally.not_recorded += 1);
    }
    place.learn();
    match key.record(decided, now) {
        Recorded::Created => tally(|tally| tally.created += 1),
        // By another CPU.
        Recorded::Found => {}
        Recorded::Not => tally(|tally| tally.not_recorded += 1),
    }
}

/// Tells whoever watches of the packet.
#[inline(always)]
fn tell(decided: &Decided<'_>) {
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
    let flow = verdict::flow(packet, hook);
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
        verdict: fate,
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
