//! Packets for the datapath's programs, and their outcome.
//!
//! [`packet`] builds a packet, field by field; [`bench`] runs a [`program`] on its bytes by
//! `BPF_PROG_TEST_RUN` and gathers all that it did: verdict, the packet afterwards, what was sent
//! and to where, counters. [`wire`] sees what is sent. Nothing here knows what blocker promises;
//! that is in the tests.

pub(crate) mod bench;
mod bytes;
pub(crate) mod packet;
pub(crate) mod program;
pub(crate) mod tun;
pub(crate) mod wire;

pub(crate) use bench::{Bench, Counted, SETTINGS, Seen, Sight, rule};
pub(crate) use packet::{Packet, echo, icmp, other, tcp, udp};
pub(crate) use program::Program;
