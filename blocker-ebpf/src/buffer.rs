//! The buffer that a reply is made of: resized, rid of VLAN tags and of a checksum that the device
//! would complete, written to, and sent.

use core::mem::offset_of;

use aya_ebpf::bindings::{
    __sk_buff, BPF_F_INGRESS, BPF_F_INVALIDATE_HASH, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::{
    bpf_clone_redirect, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes,
    bpf_skb_store_bytes, bpf_skb_vlan_pop, bpf_skb_vlan_push,
};
use blocker_ebpf::headers::{Ethernet, Vlan};
use blocker_ebpf::{Hook, Plain};

use crate::maps;
use crate::source::{Link, MAX_OFFSET};

/// Length of an Ethernet header without tags.
const ETHERNET: u32 = size_of::<Ethernet>() as u32;
const TAG: u32 = size_of::<Vlan>() as u32;
/// Bytes that are cut from behind the link header, see [`Buffer::resize`].
const CUT: u32 = 256;
const _: () = assert!(CUT - LAST_CUT > MAX_OFFSET);
const LAST_CUT: u32 = 4;

/// Which end a reply is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The packet's sender.
    Sender,
    /// Its receiver.
    Receiver,
}

/// The buffer of the packet that is answered, and the hook and device that it was met at.
pub struct Buffer {
    pub skb: *mut __sk_buff,
    pub hook: Hook,
    pub link: Link,
    pub ifindex: u32,
    /// Offset of the packet's network header.
    pub l3: u32,
}

/// VLAN tags that were taken off a packet: EtherType and control information, network order.
#[derive(Clone, Copy)]
struct Tags {
    /// How many were inline.
    inline: u32,
    /// Whether one more, the outermost, was in the buffer's metadata.
    metadata: bool,
    outer: [u16; 2],
    /// The first inline one.
    second: [u16; 2],
}

impl Tags {
    /// Whether both `outer` and `second` are lost: of three tags only the innermost is left.
    #[inline(always)]
    fn both(&self) -> bool {
        self.metadata && self.inline == 2
    }
}

impl Buffer {
    /// Makes the buffer exactly `length` bytes behind the link header, to be written anew, with no
    /// checksum left for the device to complete.
    ///
    /// A buffer may say that the device is to complete the transport checksum (`CHECKSUM_PARTIAL`
    /// with an offset), which would spoil whatever reply stands at that offset. There is no helper
    /// to ask or to say otherwise; but the kernel gives the promise up when the data before the
    /// offset is pulled away (`skb_postpull_rcsum`). So the buffer is made `CUT` bytes too long,
    /// and they are cut from its front, behind the link header. In two cuts: before Linux 6.2 the
    /// kernel compared the offset before the cut (commit 54c3f1a81421). Changing the tail also ends GSO.
    ///
    /// Returns the offset of the network header, which moves where an inline VLAN tag becomes the
    /// one in the buffer's metadata.
    #[inline(always)]
    pub fn resize(&self, length: u32) -> Result<u32, i32> {
        let skb = self.skb;
        let l3 = match self.link {
            Link::Ethernet => ETHERNET,
            Link::None => 0,
        };
        let tags = self.take_tags()?;
        // SAFETY: the context is valid; lengths are bounded; no packet pointer is kept across.
        unsafe {
            check(bpf_skb_change_tail(skb, l3 + length + CUT, 0))?;
            check(bpf_skb_adjust_room(
                skb,
                -((CUT - LAST_CUT) as i32),
                BPF_ADJ_ROOM_MAC,
                0,
            ))?;
            check(bpf_skb_adjust_room(
                skb,
                -(LAST_CUT as i32),
                BPF_ADJ_ROOM_MAC,
                0,
            ))?;
        }
        Ok(l3 + TAG * self.put_tags(tags)?)
    }

    /// How many VLAN tags are in the packet's bytes.
    #[inline(always)]
    pub fn inline_tags(&self) -> u32 {
        match self.link {
            Link::Ethernet => self.l3.saturating_sub(ETHERNET) / TAG,
            Link::None => 0,
        }
    }

    /// Takes inline VLAN tags off, as `bpf_skb_adjust_room` accepts nothing but IP behind the link
    /// header. At most the innermost is left, in the buffer's metadata: popping the tag there moves
    /// the first inline one into the metadata (`skb_vlan_pop`).
    #[inline(always)]
    fn take_tags(&self) -> Result<Tags, i32> {
        let mut tags = Tags {
            inline: self.inline_tags(),
            metadata: false,
            outer: [0; 2],
            second: [0; 2],
        };
        if tags.inline == 0 {
            return Ok(tags);
        }
        self.load_tag(&mut tags.second)?;
        tags.outer = tags.second;
        // SAFETY: the context is valid for the program's run.
        unsafe {
            if (*self.skb).vlan_present != 0 {
                tags.metadata = true;
                tags.outer = [
                    (*self.skb).vlan_proto as u16,
                    ((*self.skb).vlan_tci as u16).to_be(),
                ];
            }
        }
        // SAFETY: as above; no packet pointer is kept across.
        check(unsafe { bpf_skb_vlan_pop(self.skb) })?;
        if tags.both() {
            // SAFETY: as above.
            check(unsafe { bpf_skb_vlan_pop(self.skb) })?;
        }
        Ok(tags)
    }

    /// Puts the tags back that were taken off, and returns how many are inline now.
    #[inline(always)]
    fn put_tags(&self, tags: Tags) -> Result<u32, i32> {
        if tags.inline == 0 {
            return Ok(0);
        }
        if tags.both() {
            self.push(tags.second)?;
        }
        self.push(tags.outer)?;
        Ok(if tags.metadata {
            tags.inline
        } else {
            tags.inline - 1
        })
    }

    #[inline(always)]
    fn load_tag(&self, tag: &mut [u16; 2]) -> Result<(), i32> {
        // SAFETY: four bytes on the stack.
        check(unsafe {
            bpf_skb_load_bytes(
                self.skb.cast(),
                offset_of!(Ethernet, ethertype) as u32,
                tag.as_mut_ptr().cast(),
                4,
            )
        })
    }

    #[inline(always)]
    fn push(&self, [ethertype, control]: [u16; 2]) -> Result<(), i32> {
        // SAFETY: the context is valid; no packet pointer is kept across.
        check(unsafe { bpf_skb_vlan_push(self.skb, ethertype, u16::from_be(control)) })
    }

    /// The link-layer addresses: destination, source.
    #[inline(always)]
    pub fn macs(&self) -> Result<[u16; 6], i32> {
        let mut macs = [0_u16; 6];
        if self.link == Link::Ethernet {
            // SAFETY: twelve bytes on the stack.
            check(unsafe { bpf_skb_load_bytes(self.skb.cast(), 0, macs.as_mut_ptr().cast(), 12) })?;
        }
        Ok(macs)
    }

    /// Writes them back, swapped for a reply to the sender.
    #[inline(always)]
    pub fn write_macs(&self, macs: [u16; 6], end: End) -> Result<(), i32> {
        if self.link == Link::None {
            return Ok(());
        }
        let [a, b, c, d, e, f] = macs;
        let macs = if end == End::Sender {
            [d, e, f, a, b, c]
        } else {
            macs
        };
        self.store(0, &macs)
    }

    /// Writes a header.
    #[inline(always)]
    pub fn store<T: Plain>(&self, offset: u32, header: &T) -> Result<(), i32> {
        let from = core::ptr::from_ref(header).cast();
        let size = size_of::<T>() as u32;
        // SAFETY: the header is on the stack, initialised, and without padding; see `Plain`.
        check(unsafe {
            bpf_skb_store_bytes(
                self.skb,
                offset,
                from,
                size,
                u64::from(BPF_F_INVALIDATE_HASH),
            )
        })
    }

    /// Sends a copy of the buffer, marked as ours. To the sender: out of the device that the packet
    /// came in by, or into the stack from the device that it was to leave by. To the receiver: the
    /// other way round.
    #[inline(always)]
    pub fn send(&self, end: End) -> Result<(), i32> {
        let inward = (self.hook == Hook::Egress) == (end == End::Sender);
        let flags = if inward { u64::from(BPF_F_INGRESS) } else { 0 };
        // SAFETY: the context is valid for the program's run.
        unsafe {
            let mark = (*self.skb).mark;
            (*self.skb).mark = maps::mark();
            let result = bpf_clone_redirect(self.skb, self.ifindex, flags);
            (*self.skb).mark = mark;
            check(result)
        }
    }
}

/// A helper's result.
#[inline(always)]
pub fn check(result: i64) -> Result<(), i32> {
    if result == 0 {
        Ok(())
    } else {
        Err(result as i32)
    }
}
