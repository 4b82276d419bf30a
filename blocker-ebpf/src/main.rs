//! The entry points of the datapath, and nothing else.
//!
//! Each names its hook and whether its device has an Ethernet header; [`verdict`] does the rest.
//! What a packet meets on its way is told in `docs/packet-flow.md`.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// For `packet::opaque` and `flows::add`. aya-ebpf needs the feature too.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(not(target_arch = "bpf"))]
compile_error!(
    "the datapath is built for bpfel-unknown-none only, by blocker's build script: `cargo build -p blocker`"
);

#[cfg(target_arch = "bpf")]
mod buffer;
#[cfg(target_arch = "bpf")]
mod checksum;
#[cfg(target_arch = "bpf")]
mod due;
#[cfg(target_arch = "bpf")]
mod flows;
#[cfg(target_arch = "bpf")]
mod known;
mod maps;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod rate;
#[cfg(target_arch = "bpf")]
mod reply;
#[cfg(target_arch = "bpf")]
mod seen;
#[cfg(target_arch = "bpf")]
mod table;
#[cfg(target_arch = "bpf")]
mod verdict;

#[cfg(target_arch = "bpf")]
mod entry {
    use aya_ebpf::macros::{classifier, xdp};
    use aya_ebpf::programs::{TcContext, XdpContext};
    use blocker_ebpf::Hook;

    use crate::packet::Link;
    use crate::verdict;

    #[xdp]
    pub fn blocker_xdp(ctx: XdpContext) -> u32 {
        verdict::xdp(&ctx)
    }

    #[classifier]
    pub fn blocker_ingress(ctx: TcContext) -> i32 {
        verdict::tc(&ctx, Hook::Ingress, Link::Ethernet)
    }

    #[classifier]
    pub fn blocker_egress(ctx: TcContext) -> i32 {
        verdict::tc(&ctx, Hook::Egress, Link::Ethernet)
    }

    #[classifier]
    pub fn blocker_in_l3(ctx: TcContext) -> i32 {
        verdict::tc(&ctx, Hook::Ingress, Link::None)
    }

    #[classifier]
    pub fn blocker_out_l3(ctx: TcContext) -> i32 {
        verdict::tc(&ctx, Hook::Egress, Link::None)
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
}
