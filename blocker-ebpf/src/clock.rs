//! The time of a packet: `CLOCK_BOOTTIME`, read as seldom as its use allows.

use core::cell::Cell;

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_boot_ns};
use blocker_ebpf::Tick;

use crate::maps;

/// The time.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes no arguments and can't fail.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// When a packet came, as far as it was asked for; 0 before.
pub struct Arrival(Cell<u64>);

// SAFETY: it is part of a packet, which only one CPU uses; see `packet::current`.
unsafe impl Sync for Arrival {}

impl Arrival {
    /// The exact time. Reading the clock takes as long as all counting, so it is read once a
    /// packet, and only for a packet that a deadline or an event depends on.
    #[inline(always)]
    pub fn exact(&self) -> u64 {
        let time = self.0.get();
        if time != 0 {
            return time;
        }
        let now = now();
        self.0.set(now);
        now
    }

    /// The time to a tick of the kernel's timer (1 to 10 ms), never in the future: the first packet
    /// of each tick on each CPU reads the clock for all others.
    #[inline(always)]
    pub fn coarse(&self) -> u64 {
        let time = self.0.get();
        if time != 0 {
            return time;
        }
        let Some(tick) = maps::TICK.get_ptr_mut(0) else {
            return self.exact();
        };
        // SAFETY: the value is this CPU's own, and no other program of ours interrupts this one. The
        // helper takes no arguments and can't fail.
        let (tick, jiffies) = unsafe { (&mut *tick, bpf_jiffies64()) };
        if tick.jiffies != jiffies {
            *tick = Tick {
                jiffies,
                time: now(),
            };
        }
        tick.time
    }
}
