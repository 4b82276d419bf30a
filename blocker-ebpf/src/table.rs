//! The prefix table: from an address to the number of its rule list.
//!
//! IPv4 is a range table after DXR (Zec, Rizzo, Mikuc, "DXR: towards a billion routing lookups
//! per second in software", SIGCOMM CCR 2012): an index by the top bits, then a binary search in
//! the bucket's sorted range starts. IPv6 is the kernel's longest-prefix trie. What the tables
//! hold is made by the daemon's `compile`; the same semantics stand there in plain Rust.

use aya_ebpf::maps::lpm_trie::Key;
use blocker_ebpf::{ENTRIES_PER_BLOCK, IndexEntry, RANGES_PER_BLOCK, Range};

use crate::maps;
use crate::packet::{Address, opaque};

/// The rule-list number of an address; 0 for none.
#[inline(always)]
pub fn lookup(address: &Address, bank: u32, v4_shift: u32, v6_prefixes: u32) -> u32 {
    match address {
        Address::V4(address) => v4(*address, bank, v4_shift).unwrap_or(0),
        Address::V6(_) if v6_prefixes == 0 => 0,
        Address::V6(address) => {
            let key = Key::new(128, *address);
            let list = if bank == 0 {
                maps::V6_0.get(&key)
            } else {
                maps::V6_1.get(&key)
            };
            list.copied().unwrap_or(0)
        }
    }
}

#[inline(always)]
fn v4(address: u32, bank: u32, shift: u32) -> Option<u32> {
    let slot = (address >> (shift & 31)) as usize;
    let block = maps::index_block(bank, (slot / ENTRIES_PER_BLOCK) as u32)?;
    // SAFETY: the remainder is inside the block.
    let entry = unsafe {
        block
            .cast::<IndexEntry>()
            .add(slot % ENTRIES_PER_BLOCK)
            .read()
    };
    if entry.count == 0 {
        return Some(u32::from(entry.value));
    }
    let first = entry.first as usize;
    let ranges = maps::range_block(bank, (first / RANGES_PER_BLOCK) as u32)?.cast::<Range>();
    // No bucket crosses a block; the mask only tells the verifier so.
    // SAFETY: the mask keeps every index inside the block.
    let at = |index: usize| unsafe { ranges.add(index & (RANGES_PER_BLOCK - 1)).read() };

    // Halve the bucket until one start is left. The steps depend on the count alone, and the
    // comparison is arithmetic (and opaque, lest it becomes a branch again), so that random
    // addresses mispredict no branch and the verifier has one way to walk.
    let low = i32::from(address as u16);
    let mut base = first;
    let mut count = u32::from(entry.count);
    for _ in 0..16 {
        if count <= 1 {
            break;
        }
        let half = count / 2;
        let not_after = (i32::from(at(base + half as usize).start) - low - 1) >> 31;
        base += half as usize & opaque(not_after as usize);
        count -= half;
    }
    let range = at(base);
    let value = if i32::from(range.start) <= low {
        range.value
    } else {
        entry.value
    };
    Some(u32::from(value))
}
