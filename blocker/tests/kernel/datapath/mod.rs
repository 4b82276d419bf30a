//! The programs of the datapath, run on single packets by the kernel.

mod fuzz;
mod limits;
mod percent;
mod rules;
mod seen;
mod table;
mod tun;
mod verdicts;
mod wire;
