//! The IPv6 prefixes, for a longest-prefix-match trie that carries list numbers.

use std::net::Ipv6Addr;

use super::CompileError;
use super::lists::{Lists, Numbered};
use super::states::States;
use super::sweep::{Address, Claim, sweep};

/// An entry of the trie: prefix, length, list number.
type Entry = (Ipv6Addr, u8, u32);

/// The entries, sorted. A prefix that would change nothing is left out: one whose addresses are
/// all covered by nested ones, or whose list is that of the prefix around it.
pub(super) fn compile(
    claims: Vec<Claim<u128>>,
    lists: &mut Lists<'_>,
) -> Result<Vec<Entry>, CompileError> {
    let mut states = States::new();
    let swept = sweep(claims, &mut states);
    let mut numbered = Numbered::new(lists, &states);
    // The first address that a node has for itself, if any.
    let mut own = vec![None; swept.nodes.len()];
    for segment in &swept.segments {
        own[segment.node as usize].get_or_insert(segment.start);
    }
    // The list that the trie gives to an address of the node, unless a nested entry differs.
    let mut given: Vec<u16> = Vec::with_capacity(swept.nodes.len());
    let mut entries = Vec::new();
    for (node, own) in swept.nodes.iter().zip(own) {
        let around = given.get(node.around as usize).copied().unwrap_or(0);
        let list = match own {
            Some(address) => numbered.of(node.state, address.ip())?,
            None => around,
        };
        if list != around {
            entries.push((Ipv6Addr::from(node.start), node.length, u32::from(list)));
        }
        given.push(list);
    }
    Ok(entries)
}

/// The list of the longest prefix that covers an address.
pub(super) fn list(entries: &[Entry], address: Ipv6Addr) -> u32 {
    let bits = u128::from(address);
    (0..=128_u8)
        .rev()
        .find_map(|length| {
            let mask = !u128::MAX.checked_shr(u32::from(length)).unwrap_or(0);
            let key = (Ipv6Addr::from(bits & mask), length);
            entries
                .binary_search_by_key(&key, |(start, length, _)| (*start, *length))
                .ok()
        })
        .map_or(0, |found| entries[found].2)
}
