//! The IPv4 range table: a direct index on an address's top 16 bits, and sorted range starts.
//!
//! After DXR (Zec, Rizzo, Mikuc: "DXR: towards a billion routing lookups per second in
//! software", SIGCOMM CCR 2012). The index entry of an address's bucket says which list applies
//! at the bucket's start and where the starts of the ranges strictly inside the bucket lie; the
//! largest start that is not above the address's low bits gives the range.
//!
//! Among many prefixes a lookup costs what it misses in the caches and the TLB, not the steps of its
//! search: with a wider index (17 to 20 bits) buckets are smaller, but each lookup takes longer. So the
//! index is as narrow as 16-bit starts allow, and list numbers are not stored where two lists alternate
//! (`docs/performance.md` has the figures).

use std::net::Ipv4Addr;

use blocker_ebpf as abi;

use super::lists::Lists;
use super::sweep::{Claim, Start, starts};
use super::{CompileError, Limits};

/// The compiled IPv4 table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V4Table {
    /// The buckets, one for each upper half of an address.
    pub index: Vec<abi::IndexEntry>,
    /// The words of the ranges, block by block, at most [`abi::WORDS_PER_BLOCK`] in each. An index
    /// entry's `first` counts as if every block but the last were full.
    pub ranges: Vec<Vec<u16>>,
    /// One bit per /12: whether any of its addresses has a list.
    pub named: [u64; abi::V4_NAMED_WORDS],
}

impl V4Table {
    /// The number of an address's list, found as the datapath finds it.
    #[must_use]
    pub fn list(&self, address: Ipv4Addr) -> u16 {
        let address = u32::from(address);
        if !is_named(&self.named, address) {
            return 0;
        }
        let entry = self.index[(address >> 16) as usize];
        let word =
            |place: usize| self.ranges[place / abi::WORDS_PER_BLOCK][place % abi::WORDS_PER_BLOCK];
        search(entry, address, word)
    }
}

/// Whether an address may have a list.
pub(crate) const fn is_named(named: &[u64; abi::V4_NAMED_WORDS], address: u32) -> bool {
    let (word, shift) = abi::v4_named(address);
    named[word] >> shift & 1 == 1
}

/// The number of an address's list, by its bucket and the words of the ranges.
pub(crate) fn search(entry: abi::IndexEntry, address: u32, word: impl Fn(usize) -> u16) -> u16 {
    let alternates = entry.first & abi::ALTERNATES != 0;
    let first = (entry.first & !abi::ALTERNATES) as usize;
    let start = |range: usize| {
        if alternates {
            word(first + 1 + range)
        } else {
            word(first + 2 * range)
        }
    };
    // How many starts are not above the address.
    let (mut place, mut end) = (0, usize::from(entry.count));
    while place < end {
        let middle = usize::midpoint(place, end);
        if start(middle) <= low_bits(address) {
            place = middle + 1;
        } else {
            end = middle;
        }
    }
    match (place, alternates) {
        (0, _) => entry.value,
        (place, true) if place % 2 == 0 => entry.value,
        (_, true) => word(first),
        (place, false) => word(first + 2 * place - 1),
    }
}

/// Range blocks that suffice for any set of this many prefixes.
///
/// Each prefix begins a range and ends one, and a range takes two words at most. A bucket that does
/// not fit a block begins the next one, so that each but the last holds at least what is left of a
/// block without the largest bucket there can be.
pub(super) fn range_blocks(prefixes: u32) -> u32 {
    let largest = 2 * (abi::BUCKETS as u64 - 1);
    let least = abi::WORDS_PER_BLOCK as u64 - largest + 1;
    let words = 2 * (2 * u64::from(prefixes) + 1);
    u32::try_from(words.div_ceil(least)).unwrap_or(u32::MAX)
}

fn low_bits(address: u32) -> u16 {
    (address & 0xffff) as u16
}

pub(super) fn compile(
    claims: Vec<Claim<u32>>,
    lists: &mut Lists<'_>,
    limits: &Limits,
) -> Result<V4Table, CompileError> {
    let starts = starts(claims, lists)?;
    let mut blocks = Blocks::new(limits.range_blocks);
    let mut index = Vec::with_capacity(abi::BUCKETS);
    let mut named = [0; abi::V4_NAMED_WORDS];
    let mut rest = &starts[..];
    let mut value = 0;
    for bucket in 0..abi::BUCKETS as u32 {
        if let [first, others @ ..] = rest
            && first.address == bucket << 16
        {
            value = first.value;
            rest = others;
        }
        let count = rest
            .iter()
            .take_while(|start| start.address >> 16 == bucket)
            .count();
        let (inner, others) = rest.split_at(count);
        rest = others;
        if value != 0 || count > 0 {
            let (word, shift) = abi::v4_named(bucket << 16);
            named[word] |= 1 << shift;
        }
        let first = blocks
            .place(value, inner)
            .ok_or(CompileError::RangeBlocks {
                ranges: starts.len(),
                limit: limits.range_blocks,
            })?;
        index.push(abi::IndexEntry {
            first,
            count: u16::try_from(count)
                .expect("a bucket spans at most 65,536 addresses, the first of which is not inner"),
            value,
        });
        value = inner.last().map_or(value, |start| start.value);
    }
    Ok(V4Table {
        index,
        ranges: blocks.blocks,
        named,
    })
}

/// Packs buckets into blocks: into the last one, or a new one where it does not fit (next-fit).
struct Blocks {
    blocks: Vec<Vec<u16>>,
    limit: u32,
}

impl Blocks {
    const fn new(limit: u32) -> Self {
        Self {
            blocks: Vec::new(),
            limit,
        }
    }

    /// Where the words of a bucket begin, with [`abi::ALTERNATES`] if they are of that kind; `None`
    /// if there is no room. `value` is the bucket's list up to the first of these starts.
    fn place(&mut self, value: u16, starts: &[Start<u32>]) -> Option<u32> {
        let Some(Start { value: other, .. }) = starts.first() else {
            return Some(0);
        };
        let turns = [*other, value].into_iter().cycle();
        let alternates = starts
            .iter()
            .zip(turns)
            .all(|(start, turn)| start.value == turn);
        let words = if alternates {
            1 + starts.len()
        } else {
            2 * starts.len()
        };
        let full = |block: &Vec<_>| block.len() + words > abi::WORDS_PER_BLOCK;
        if self.blocks.last().is_none_or(full) {
            if self.blocks.len() >= self.limit as usize {
                return None;
            }
            self.blocks.push(Vec::new());
        }
        let last = self.blocks.len() - 1;
        let block = &mut self.blocks[last];
        let first = u32::try_from(last * abi::WORDS_PER_BLOCK + block.len()).ok()?;
        if alternates {
            block.push(*other);
            block.extend(starts.iter().map(|start| low_bits(start.address)));
            return Some(first | abi::ALTERNATES);
        }
        block.extend(
            starts
                .iter()
                .flat_map(|start| [low_bits(start.address), start.value]),
        );
        Some(first)
    }
}
