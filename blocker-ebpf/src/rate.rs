//! Token buckets: how many replies, new flow records and events a CPU may make in a second.

use blocker_ebpf::BURST_NANOSECONDS;

use crate::maps;

/// Takes a token from a bucket that is filled with `rate` tokens a second, if there is one.
#[inline(always)]
pub fn take(bucket: u32, rate: u64, now: u64) -> bool {
    let Some(bucket) = maps::BUCKETS.get_ptr_mut(bucket) else {
        return false;
    };
    // SAFETY: the value is this CPU's own, and no other program of ours interrupts this one.
    let bucket = unsafe { &mut *bucket };
    let idle = now.saturating_sub(bucket.filled).min(BURST_NANOSECONDS);
    // Most packets of a flood arrive within one tick, and need no division.
    if idle > 0 {
        let fresh = idle * rate / 1_000_000_000;
        if fresh > 0 {
            bucket.tokens = (bucket.tokens + fresh).min(rate);
            bucket.filled = now;
        }
    }
    if bucket.tokens == 0 {
        return false;
    }
    bucket.tokens -= 1;
    true
}
