//! Tests that need the machine to themselves: they keep every CPU busy, or judge how long something
//! takes. `cargo xtask test` runs them one after the other, after all others.

mod counters_fast;
mod teardown_speed;
