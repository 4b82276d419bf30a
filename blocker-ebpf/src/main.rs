//! The entry points of the datapath, and nothing else.
//!
//! Each names its hook and whether its device has an Ethernet header; [`hooks`] has the programs.
//! `docs/packet-flow.md` follows a packet through them.

#![no_std]
#![no_main]
// For `source::opaque` and `flow_table::add`. aya-ebpf needs the feature too.
#![feature(asm_experimental_arch)]

#[cfg(not(target_arch = "bpf"))]
compile_error!(
    "the datapath is built for bpfel-unknown-none only, by blocker's build script: `cargo build -p blocker`"
);

mod buffer;
mod checksum;
mod clock;
mod due;
mod flow;
mod flow_table;
mod hooks;
mod known;
mod maps;
mod matches;
mod packet;
mod rate;
mod record;
mod reply;
mod source;
mod table;
mod verdict;

use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use blocker_ebpf::Hook;

use crate::source::Link;

#[xdp]
fn blocker_xdp(ctx: XdpContext) -> u32 {
    hooks::xdp(&ctx)
}

#[classifier]
fn blocker_ingress(ctx: TcContext) -> i32 {
    hooks::tc(&ctx, Hook::Ingress, Link::Ethernet)
}

#[classifier]
fn blocker_egress(ctx: TcContext) -> i32 {
    hooks::tc(&ctx, Hook::Egress, Link::Ethernet)
}

#[classifier]
fn blocker_in_l3(ctx: TcContext) -> i32 {
    hooks::tc(&ctx, Hook::Ingress, Link::None)
}

#[classifier]
fn blocker_out_l3(ctx: TcContext) -> i32 {
    hooks::tc(&ctx, Hook::Egress, Link::None)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // No code here can panic: the verifier would refuse a loop without an end.
    loop {}
}

// The replies need helpers that the kernel gives to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
