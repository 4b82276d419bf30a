//! All tests that need root and a kernel: one binary, so that it links once.
//!
//! They run beside each other, in network namespaces of their own; what must not is in [`alone`].
//! Support modules hold what their names say, and no expectation: what must be true stands in the
//! tests.

mod alone;
mod blocking_pair;
mod datapath;
mod end_to_end;
mod fixed_evidence;
mod flood;
mod hosts;
mod packets;
mod teardown;
mod traffic_counts;

use xtask::hosts::Programs;

/// The programs under test, which cargo built.
fn programs() -> Programs {
    Programs {
        blocker: env!("CARGO_BIN_EXE_blocker").into(),
        blockctl: env!("CARGO_BIN_EXE_blockctl").into(),
    }
}
