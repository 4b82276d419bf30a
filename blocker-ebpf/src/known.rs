//! Which flows this CPU may have a record of: a sketch that says "certainly none" for most others.
//!
//! To find that a flow has no record takes as long as all else that is done with a packet, since the
//! table of records is larger than a CPU's cache. In a flood of ever new flows that is most packets.
//! So each CPU remembers, in 128 KiB, of which flows it has touched the record: a Bloom filter (Bloom,
//! CACM 1970) whose two bits are in one word, in two generations. A full one becomes the old one, and
//! the one before that is forgotten, word by word as they are met: there is no moment at which all is
//! cleared, and nobody in user space has to do it.
//!
//! What is forgotten, or was recorded by another CPU, costs one token of the rate of new flows to be
//! learnt again. A flow that is taken for known costs one look in vain.

use blocker_ebpf::{KNOWN_BLOCKS, KNOWN_WORDS, KnownBlock};

use crate::maps;

/// Bits of one generation in a word: two of them, and the number of the younger one.
const BITS: u32 = 24;
const GENERATION: u64 = (1 << BITS) - 1;
/// Flows that a block learns before its generation is an old one, as a power of two: of its bits, 15
/// in 100 are set by then, and one unknown flow in twenty is taken for known, which costs a look at a
/// whole set of slots in vain.
const FLOWS_LOG2: u32 = 10;

/// Where a flow's bits are.
pub struct Place {
    block: *mut KnownBlock,
    word: usize,
    bits: u64,
}

impl Place {
    /// Of a flow, by its hash, on this CPU.
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
    pub fn is_known(&self) -> bool {
        let (_, young, old) = self.read();
        young & self.bits == self.bits || {
            let known = old & self.bits == self.bits;
            if known {
                // Still in use: the next generation has it too.
                self.learn();
            }
            known
        }
    }

    /// Remembers that the flow has a record.
    #[inline(always)]
    pub fn learn(&self) {
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

    /// The generation, and what the word has of it and of the one before.
    #[inline(always)]
    fn read(&self) -> (u64, u64, u64) {
        // SAFETY: as in `learn`.
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
