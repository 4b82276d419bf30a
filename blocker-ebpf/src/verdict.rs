//! What was done with a packet that a rule decided, and the counters of rules and hooks.
//!
//! A verdict is counted once: what XDP leaves to TC, TC counts for the rule.

use blocker_ebpf::{Counters, Hook, HookCounters, Rule, hook_slot, mode, slot, verdict};

use crate::maps;
use crate::packet::Packet;
use crate::reply::Sent;

/// A packet, the rule that decided it, and what was done with it.
pub struct Decided<'a> {
    pub rule: &'a Rule,
    pub packet: &'a Packet,
    pub hook: Hook,
    pub ifindex: u32,
    pub length: u32,
    /// A number of [`blocker_ebpf::verdict`].
    pub verdict: u8,
}

/// The verdict of a rule on a packet for which `sent` was sent.
#[inline(always)]
pub fn of(rule: &Rule, sent: Sent) -> u8 {
    match rule.mode {
        mode::AUDIT => verdict::AUDITED,
        _ if sent.suppressed => verdict::SUPPRESSED,
        mode::RESET if sent.replies > 0 => verdict::RESET,
        mode::REJECT if sent.replies > 0 => verdict::REJECTED,
        _ => verdict::DROPPED,
    }
}

/// Counts a packet at a hook of a device.
#[inline(always)]
pub fn count_hook(hook: Hook, ifindex: u32, add: impl FnOnce(&mut HookCounters)) {
    if let Some(counters) = maps::HOOKS.get_ptr_mut(hook_slot(hook, ifindex)) {
        // SAFETY: the value is this CPU's own, and no other program of ours interrupts this one.
        add(unsafe { &mut *counters });
    }
}

/// Counts a packet for the rule that decided it.
#[inline(always)]
pub fn count_rule(rule: &Rule, hook: Hook, length: u32, sent: Sent) {
    let index = slot(rule.counter) * 2 + u32::from(hook == Hook::Egress);
    if let Some(counters) = maps::COUNTERS.get_ptr_mut(index) {
        // SAFETY: as in `count_hook`.
        let counters: &mut Counters = unsafe { &mut *counters };
        counters.packets += 1;
        counters.bytes += u64::from(length);
        counters.replies += u64::from(sent.replies);
        counters.suppressed += u64::from(sent.suppressed);
    }
}
