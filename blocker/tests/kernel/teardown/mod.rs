//! The teardown of established flows: alone with a fake datapath, and with the real one.

mod datapath;
mod lift;
mod probes;
mod sockets;
mod spares;
mod tracked;
mod untracked;
