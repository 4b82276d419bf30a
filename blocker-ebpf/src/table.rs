//! The prefix table: from an address to the number of its rule list.
//!
//! IPv4 is a range table after DXR (Zec, Rizzo, Mikuc, "DXR: towards a billion routing lookups
//! per second in software", SIGCOMM CCR 2012): an index by the top bits, then a binary search in
//! the bucket's sorted range starts. IPv6 is a static tree over the sorted starts of ranges, eight
//! to a node of two cache lines: its cost does not depend on the prefixes. The daemon's `compile`
//! makes the tables, and has the same lookups in plain Rust.

use blocker_ebpf::{
    ALTERNATES, BUCKETS, Bank, IndexEntry, V6_FANOUT, V6_LEVELS, WORDS_PER_BLOCK, v4_named, v6_list,
};

use crate::maps;
use crate::packet::{Address, Words};
use crate::source::opaque;

/// The rule-list number of an address; 0 for none.
#[inline(always)]
pub fn lookup(address: &Address, bank: u32, about: &Bank) -> u32 {
    match address {
        Address::V4(address) => cached_v4(*address, bank, about).unwrap_or(0),
        Address::V6(_) if about.v6_levels == 0 => 0,
        Address::V6(address) => v6(address, bank, about).unwrap_or(0),
    }
}

/// Walks from the root to a leaf: in each node three halvings find the last child whose bound is
/// less than the address.
#[inline(always)]
fn v6(address: &Words, bank: u32, about: &Bank) -> Option<u32> {
    let (high, low) = halves(address);
    let mut place = 0;
    let mut list = 0;
    for level in (0..V6_LEVELS).rev() {
        if level as u32 >= about.v6_levels {
            continue;
        }
        let node = maps::v6_node(bank, *about.v6_first.get(level)? + place)?.cast::<u64>();
        // SAFETY: the mask keeps the index inside the node's 16 words.
        let word = |place: usize| unsafe { node.add(place & (2 * V6_FANOUT - 1)).read() };
        let mut child = 0;
        for step in [2, 1, 0] {
            let middle = child + (1 << step);
            let below = borrow(word(V6_FANOUT + middle), low, 0);
            let below = borrow(word(middle), high, below);
            // Opaque, lest the compiler makes a mask of 0 or -1 of it: the verifier (seen on Linux
            // 6.18) takes an AND of such a mask with a constant for a branch, and walks both ways.
            child += opaque(below as usize) << step;
        }
        if level == 0 {
            let (place, shift) = v6_list(child);
            list = (word(place) >> shift) as u16;
        }
        place = place * V6_FANOUT as u32 + child as u32;
    }
    Some(u32::from(list))
}

/// What `a - b - borrowed` borrows: 1 if `a` is less, 0 if not. Arithmetic, since no processor could
/// predict the branch.
#[inline(always)]
fn borrow(a: u64, b: u64, borrowed: u64) -> u64 {
    let difference = a.wrapping_sub(b).wrapping_sub(borrowed);
    ((!a & b) | (!(a ^ b) & difference)) >> 63
}

/// An address as two numbers, host order.
#[inline(always)]
fn halves(address: &Words) -> (u64, u64) {
    let word = |place: usize| u64::from(u16::from_be(address[place]));
    let half = |first: usize| {
        word(first) << 48 | word(first + 1) << 32 | word(first + 2) << 16 | word(first + 3)
    };
    (half(0), half(4))
}

/// 1 if a list may name an address, 0 if none does.
#[inline(always)]
fn is_named(address: u32, about: &Bank) -> Option<usize> {
    let (word, shift) = v4_named(address);
    let word = about.v4_named.get(word)?;
    Some(opaque((word >> shift & 1) as usize))
}

/// As [`v4`], through a cache of addresses that no list names, on each CPU: a packet meets two hooks
/// and more, and the next packet of its flow the same ones.
#[inline(always)]
fn cached_v4(address: u32, bank: u32, about: &Bank) -> Option<u32> {
    let entry = u64::from(address) << 32 | about.generation & 0xffff_ffff;
    let last = maps::unnamed(address)?;
    // SAFETY: the word is this CPU's own, and read and written whole.
    if unsafe { last.read() } == entry {
        return Some(0);
    }
    let number = v4(address, bank, about)?;
    if number == 0 {
        // SAFETY: as above.
        unsafe { last.write(entry) };
    }
    Some(number)
}

#[inline(always)]
fn v4(address: u32, bank: u32, about: &Bank) -> Option<u32> {
    let index = maps::index(bank)?.cast::<IndexEntry>();
    // Most traffic of a host with few rules is of many addresses that no rule names. The index is as
    // large as half a CPU's cache, so reading an entry for each would cost more than all else that is
    // done with its packet. All of them read one entry, whose value is not used. By products, since a
    // branch makes the verifier walk all that follows several times.
    let named = is_named(address, about)?;
    // The mask is for the verifier of Linux 5.10, which loses the bounds of products.
    let bucket = (address >> 16) as usize * named & (BUCKETS - 1);
    // SAFETY: an index has an entry for each upper half of an address.
    let entry = unsafe { index.add(bucket).read() };
    let mut count = u32::from(entry.count) * named as u32;
    if count == 0 {
        return Some(u32::from(entry.value) * named as u32);
    }
    // 1 where two lists alternate, and only starts are stored.
    let alternates = (entry.first >> 31) as usize;
    let first = (entry.first & !ALTERNATES) as usize;
    let words = maps::range_block(bank, (first / WORDS_PER_BLOCK) as u32)?.cast::<u16>();
    // No bucket crosses a block; the mask is for the verifier.
    // SAFETY: the mask keeps every index inside the block.
    let at = |index: usize| unsafe { words.add(index & (WORDS_PER_BLOCK - 1)).read() };
    let start = |range: usize| i32::from(at(first + alternates + (range << (1 - alternates))));

    // Halve the bucket until one start is left. The steps depend on the count alone, and the
    // comparison is arithmetic (and opaque, lest it becomes a branch again), so that random
    // addresses mispredict no branch and the verifier has one way to walk.
    let low = i32::from(address as u16);
    let mut base = 0;
    for _ in 0..16 {
        if count <= 1 {
            break;
        }
        let half = count / 2;
        let not_after = (start(base + half as usize) - low - 1) >> 31;
        base += half as usize & opaque(not_after as usize);
        count -= half;
    }
    // How many starts are not above the address.
    let position = base + opaque(((start(base) - low - 1) >> 31 & 1) as usize);
    let value = if alternates == 1 {
        if position & 1 == 0 {
            entry.value
        } else {
            at(first)
        }
    } else if position == 0 {
        entry.value
    } else {
        at(first + position * 2 - 1)
    };
    Some(u32::from(value))
}
