//! Which flows this CPU may have a record of: a Bloom filter (Bloom, CACM 1970) on each CPU.
//!
//! A lookup that finds no record takes as long as all else that is done with a packet, since the table
//! of records is larger than a CPU's cache. In a flood of new flows most packets would need one. So each
//! CPU has a filter of 128 KiB of the flows whose records it has touched. A flow's two bits are in one
//! word. There are two generations: a full one becomes the old one, and the one before it is discarded,
//! word by word as words are used, so that the filter is never cleared as a whole.
//!
//! A flow that was discarded, or recorded by another CPU, costs one token of the rate of new flows to
//! be set again. A false positive costs one lookup that finds nothing.

use blocker_ebpf::{KNOWN_BLOCKS, KNOWN_WORDS, KnownBlock};

use crate::maps;

/// Bits of one generation in a word; a word has two generations, and the number of the younger one.
const BITS: u32 = 24;
const GENERATION: u64 = (1 << BITS) - 1;
/// Flows in a block's generation when it becomes the old one, as a power of two: 15 in 100 of its bits
/// are set by then, and one unknown flow in twenty is a false positive, whose lookup reads a whole set
/// of slots.
const FLOWS_LOG2: u32 = 10;

/// A flow's bits in this CPU's filter.
pub struct Bits {
    block: *mut KnownBlock,
    word: usize,
    bits: u64,
}

impl Bits {
    /// Of a flow, by its hash.
    #[inline(always)]
    pub fn of(hash: u64) -> Option<Self> {
        let block = maps::KNOWN.get_ptr_mut(hash as u32 % KNOWN_BLOCKS)?;
        let one_of = |bits: u64, choices: u64| (bits & 0xffff) * choices >> 16;
        Some(Self {
            block,
            word: one_of(hash >> 16, KNOWN_WORDS as u64) as usize,
            bits: 1 << one_of(hash >> 32, u64::from(BITS))
                | 1 << one_of(hash >> 48, u64::from(BITS)),
        })
    }

    /// Whether the flow may have a record.
    #[inline(always)]
    pub fn are_set(&self) -> bool {
        let (_, young, old) = self.read();
        young & self.bits == self.bits || {
            let set = old & self.bits == self.bits;
            if set {
                // The flow is still in use, so the young generation gets it too.
                self.set();
            }
            set
        }
    }

    /// Sets them, since the flow has a record.
    #[inline(always)]
    pub fn set(&self) {
        let (generation, young, old) = self.read();
        // SAFETY: the value is this CPU's own, and no other program of ours interrupts this one;
        // `one_of` keeps the word inside.
        unsafe {
            (*self.block).learnt += 1;
            (&raw mut (*self.block).words)
                .cast::<u64>()
                .add(self.word)
                .write(generation << (2 * BITS) | old << BITS | young | self.bits);
        }
    }

    /// The generation's number, and the word's bits of it and of the one before.
    #[inline(always)]
    fn read(&self) -> (u64, u64, u64) {
        // SAFETY: as in `set`.
        let (learnt, word) = unsafe {
            (
                (*self.block).learnt,
                (&raw const (*self.block).words)
                    .cast::<u64>()
                    .add(self.word)
                    .read(),
            )
        };
        let generation = learnt >> FLOWS_LOG2 & 0xffff;
        let young = word & GENERATION;
        match generation.wrapping_sub(word >> (2 * BITS)) & 0xffff {
            0 => (generation, young, word >> BITS & GENERATION),
            1 => (generation, 0, young),
            _ => (generation, 0, 0),
        }
    }
}
