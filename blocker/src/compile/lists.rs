//! The rule lists of a snapshot, equal ones stored once.

use std::collections::HashMap;
use std::net::IpAddr;

use blocker_ebpf as abi;

use super::states::{StateId, States};
use super::{CompileError, NAMED, RuleInput};

/// Gives states their list numbers.
pub(super) struct Lists<'a> {
    rules: &'a [RuleInput<'a>],
    /// Rule numbers by position in trial order.
    order: &'a [u16],
    limit: u32,
    lists: Vec<abi::RuleList>,
    numbers: HashMap<Box<[u16]>, u16>,
}

impl<'a> Lists<'a> {
    pub(super) fn new(rules: &'a [RuleInput<'a>], order: &'a [u16], limit: u32) -> Self {
        Self {
            rules,
            order,
            limit,
            lists: vec![list(&[])],
            numbers: HashMap::from([(Box::default(), 0)]),
        }
    }

    pub(super) fn into_lists(self) -> Vec<abi::RuleList> {
        self.lists
    }

    /// The number of the list of these rules (positions in trial order), which apply at `address`.
    fn number(&mut self, places: &[u16], address: IpAddr) -> Result<u16, CompileError> {
        if let Some(number) = self.numbers.get(places) {
            return Ok(*number);
        }
        let number_of = |place: &u16| self.order[usize::from(*place)];
        if places.len() > abi::RULES_PER_LIST {
            let name = |place| self.rules[usize::from(number_of(place))].rule.id.clone();
            return Err(CompileError::RulesOnAddress {
                address,
                found: places.len(),
                rules: places.iter().take(NAMED).map(name).collect(),
            });
        }
        let full = CompileError::Lists {
            address,
            limit: self.limit.min(abi::MAX_LISTS + 1).saturating_sub(1),
        };
        if self.lists.len() >= self.limit as usize {
            return Err(full);
        }
        let number = u16::try_from(self.lists.len()).map_err(|_| full)?;
        let rules: Vec<u16> = places.iter().map(number_of).collect();
        self.lists.push(list(&rules));
        self.numbers.insert(places.into(), number);
        Ok(number)
    }
}

/// At most [`abi::RULES_PER_LIST`] rules.
fn list(numbers: &[u16]) -> abi::RuleList {
    let mut rules = [0; abi::RULES_PER_LIST];
    rules[..numbers.len()].copy_from_slice(numbers);
    abi::RuleList {
        len: u16::try_from(numbers.len()).unwrap_or(0),
        rules,
    }
}

/// The list numbers of one family's states, each looked up once.
pub(super) struct Numbered<'l, 'a> {
    lists: &'l mut Lists<'a>,
    states: &'l States,
    known: Vec<Option<u16>>,
}

impl<'l, 'a> Numbered<'l, 'a> {
    pub(super) fn new(lists: &'l mut Lists<'a>, states: &'l States) -> Self {
        let known = vec![None; states.len()];
        Self {
            lists,
            states,
            known,
        }
    }

    /// The number of a state's list; `address` is one that it applies to.
    pub(super) fn of(&mut self, state: StateId, address: IpAddr) -> Result<u16, CompileError> {
        let known = &mut self.known[States::index(state)];
        if let Some(number) = known {
            return Ok(*number);
        }
        let number = self.lists.number(self.states.active(state), address)?;
        *known = Some(number);
        Ok(number)
    }
}
