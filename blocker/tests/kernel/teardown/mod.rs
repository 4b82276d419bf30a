//! The teardown of established flows by itself, without a daemon.

mod datapath;
mod lift;
mod probes;
mod sockets;
mod spares;
mod tracked;
mod untracked;
