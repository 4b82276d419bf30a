//! The IPv4 range table: a direct index on an address's top bits, and sorted range starts.
//!
//! After DXR (Zec, Rizzo, Mikuc: "DXR: towards a billion routing lookups per second in
//! software", SIGCOMM CCR 2012). The index entry of an address's bucket says which list applies
//! at the bucket's start and where the starts of the ranges strictly inside the bucket lie; the
//! largest start that is not above the address's low bits gives the range.

use std::net::Ipv4Addr;

use blocker_ebpf as abi;

use super::lists::Lists;
use super::sweep::{Claim, Start, starts};
use super::{CompileError, Limits};

/// A range start is kept in 16 bits, so a bucket spans no more than these.
const NARROW: u32 = 16;
/// The widest index: 8 MiB, one bucket for every 4,096 addresses.
const WIDE: u32 = 20;
/// More ranges than this are searched faster behind a wide index, although the index then
/// misses the cache more often. Measured with random addresses: 10,000 prefixes take 8–17 ns
/// narrow and 10–25 wide, 100,000 take 30–36 and 14–31.
const MANY: usize = 65_536;

/// The compiled IPv4 table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct V4Table {
    /// How far to shift an address right to get the number of its bucket.
    pub shift: u32,
    /// The buckets.
    pub index: Vec<abi::IndexEntry>,
    /// The ranges, block by block, at most [`abi::RANGES_PER_BLOCK`] in each. An index entry's
    /// `first` counts as if every block but the last were full.
    pub ranges: Vec<Vec<abi::Range>>,
}

impl V4Table {
    /// The number of an address's list, found as the datapath finds it.
    #[must_use]
    pub fn list(&self, address: Ipv4Addr) -> u16 {
        let address = u32::from(address);
        let entry = self.index[(address >> self.shift) as usize];
        if entry.count == 0 {
            return entry.value;
        }
        let first = entry.first as usize;
        let block = &self.ranges[first / abi::RANGES_PER_BLOCK];
        let offset = first % abi::RANGES_PER_BLOCK;
        let starts = &block[offset..offset + usize::from(entry.count)];
        let low = low_bits(address);
        match starts.partition_point(|range| range.start <= low) {
            0 => entry.value,
            past => starts[past - 1].value,
        }
    }
}

/// Index blocks that a bank needs for this many prefixes.
pub(super) fn index_blocks(prefixes: u32) -> u32 {
    let ranges = 2 * prefixes as usize + 1;
    blocks_of_index(if ranges > MANY { WIDE } else { NARROW })
}

/// Range blocks that suffice for this many prefixes, however they lie.
///
/// Each prefix begins a range and ends one. Behind a wide index a bucket has at most 4,095 inner
/// starts, so that all blocks but the last hold at least 65,536 - 4,094. A narrow one is used for
/// at most [`MANY`] ranges, which fit one block.
pub(super) fn range_blocks(prefixes: u32) -> u32 {
    let least = abi::RANGES_PER_BLOCK as u64 - 4_094;
    let blocks = (2 * u64::from(prefixes) + 1).div_ceil(least) + 1;
    u32::try_from(blocks).unwrap_or(u32::MAX)
}

/// Blocks of an index of this width.
fn blocks_of_index(width: u32) -> u32 {
    (1_u32 << width).div_ceil(abi::ENTRIES_PER_BLOCK as u32)
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
    let shift = 32 - width(starts.len(), limits.index_blocks)?;
    let mut blocks = Blocks::new(limits.range_blocks);
    let mut index = Vec::with_capacity(1 << (32 - shift));
    let mut rest = &starts[..];
    let mut value = 0;
    for bucket in 0..1_u32 << (32 - shift) {
        if let [first, others @ ..] = rest
            && first.address == bucket << shift
        {
            value = first.value;
            rest = others;
        }
        let count = rest
            .iter()
            .take_while(|start| start.address >> shift == bucket)
            .count();
        let (inner, others) = rest.split_at(count);
        rest = others;
        let first = blocks.place(inner).ok_or(CompileError::RangeBlocks {
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
        shift,
        index,
        ranges: blocks.blocks,
    })
}

/// The width of the index, by the number of ranges and the room there is.
fn width(ranges: usize, blocks: u32) -> Result<u32, CompileError> {
    let fits = |width: &u32| blocks_of_index(*width) <= blocks;
    let widest = if ranges > MANY { WIDE } else { NARROW };
    (NARROW..=widest)
        .rev()
        .find(fits)
        .ok_or(CompileError::IndexBlocks {
            needed: blocks_of_index(NARROW),
            limit: blocks,
        })
}

/// Packs buckets into blocks: into the last one, or a new one where it does not fit (next-fit).
struct Blocks {
    blocks: Vec<Vec<abi::Range>>,
    limit: u32,
}

impl Blocks {
    const fn new(limit: u32) -> Self {
        Self {
            blocks: Vec::new(),
            limit,
        }
    }

    /// Where a bucket's ranges begin; `None` if there is no room. At most
    /// [`abi::RANGES_PER_BLOCK`] at once.
    fn place(&mut self, starts: &[Start<u32>]) -> Option<u32> {
        if starts.is_empty() {
            return Some(0);
        }
        let full = |block: &Vec<_>| block.len() + starts.len() > abi::RANGES_PER_BLOCK;
        if self.blocks.last().is_none_or(full) {
            if self.blocks.len() >= self.limit as usize {
                return None;
            }
            self.blocks.push(Vec::new());
        }
        let last = self.blocks.len() - 1;
        let block = &mut self.blocks[last];
        let first = last * abi::RANGES_PER_BLOCK + block.len();
        block.extend(starts.iter().map(|start| abi::Range {
            start: low_bits(start.address),
            value: start.value,
        }));
        u32::try_from(first).ok()
    }
}
