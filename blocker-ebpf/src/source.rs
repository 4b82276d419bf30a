//! Where a packet's bytes are read from: an XDP frame, or the linear part of a TC buffer.

use aya_ebpf::helpers::bpf_skb_pull_data;
use aya_ebpf::programs::{TcContext, XdpContext};
use blocker_ebpf::Plain;

/// Headers are not looked for beyond this offset; it also bounds what a reply cuts away.
pub const MAX_OFFSET: u32 = 248;
/// The most that is read of a header at [`MAX_OFFSET`].
const MAX_HEADER: u32 = 20;
/// Enough for the headers of a tagged IPv6 packet with options.
const USUAL_HEADERS: u32 = 128;

/// What a device puts in front of the network header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Ethernet,
    None,
}

/// A packet as a hook's context gives it.
pub trait Source {
    /// Reads a `T` at an offset from the packet's first byte; `None` past its end.
    fn read<T: Plain>(&self, offset: u32) -> Option<T>;
    /// The packet's length in bytes.
    fn len(&self) -> u32;
    /// The EtherType as the stack knows it, for devices without a link header.
    fn ethertype(&self) -> u16;
    /// Whether the packet is yet to be segmented, so that its IP length may not be its own.
    fn is_gso(&self) -> bool;
    /// The buffer's `tc_index`: a field that only traffic control uses, is 0 at first, and goes
    /// with the packet from one device to the next. `None` at XDP, which has no buffer.
    fn tc_index(&self) -> Option<u16>;
    /// Sets it.
    fn set_tc_index(&self, number: u16);
}

impl Source for XdpContext {
    #[inline(always)]
    fn read<T: Plain>(&self, offset: u32) -> Option<T> {
        linear(opaque(self.data()), opaque(self.data_end()), offset)
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        (opaque(self.data_end()) - opaque(self.data())) as u32
    }

    #[inline(always)]
    fn ethertype(&self) -> u16 {
        0
    }

    #[inline(always)]
    fn is_gso(&self) -> bool {
        false
    }

    #[inline(always)]
    fn tc_index(&self) -> Option<u16> {
        None
    }

    #[inline(always)]
    fn set_tc_index(&self, _number: u16) {}
}

impl Source for TcContext {
    #[inline(always)]
    fn read<T: Plain>(&self, offset: u32) -> Option<T> {
        linear(opaque(self.data()), opaque(self.data_end()), offset)
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        self.skb.len()
    }

    #[inline(always)]
    fn ethertype(&self) -> u16 {
        // SAFETY: the context is valid for the program's run.
        u16::from_be(unsafe { (*self.skb.skb).protocol } as u16)
    }

    #[inline(always)]
    fn is_gso(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.skb.skb).gso_segs != 0 }
    }

    #[inline(always)]
    fn tc_index(&self) -> Option<u16> {
        // SAFETY: as above.
        Some(unsafe { (*self.skb.skb).tc_index } as u16)
    }

    #[inline(always)]
    fn set_tc_index(&self, number: u16) {
        // SAFETY: as above; a program may write the field.
        unsafe { (*self.skb.skb).tc_index = u32::from(number) };
    }
}

/// Pulls a buffer's headers into its linear part, the only one that [`Source::read`] reads. They
/// usually are there; some drivers leave all but the link header in fragments.
#[inline(always)]
pub fn linearize(ctx: &TcContext) {
    let linear = (opaque(ctx.data_end()) - opaque(ctx.data())) as u32;
    if linear < USUAL_HEADERS && linear < ctx.len() {
        // SAFETY: the context is valid; no packet pointer is used across the call. If the kernel
        // lacks the memory for it, the headers that can't be read are malformed.
        unsafe { bpf_skb_pull_data(ctx.skb.skb, ctx.len().min(MAX_OFFSET + MAX_HEADER)) };
    }
}

#[inline(always)]
fn linear<T: Plain>(data: usize, end: usize, offset: u32) -> Option<T> {
    const { assert!(align_of::<T>() <= 2, "packet data is aligned to 2") };
    if offset > 1024 {
        return None;
    }
    let at = data + offset as usize;
    if opaque(at + size_of::<T>()) > end {
        return None;
    }
    // SAFETY: the bytes from `at` are inside the packet, and any bytes are a `T`; see `Plain`.
    Some(unsafe { (at as *const T).read() })
}

/// The same number, of which the compiler knows nothing. Otherwise it compares against a lowered
/// `data_end`, on which the verifier allows no arithmetic, or cuts pointers to the 32 bits that
/// the context's fields have on paper.
#[inline(always)]
pub fn opaque(number: usize) -> usize {
    let mut number = number;
    // SAFETY: no instruction at all.
    unsafe {
        core::arch::asm!("/* {0} */", inout(reg) number, options(pure, nomem, nostack, preserves_flags))
    };
    number
}
