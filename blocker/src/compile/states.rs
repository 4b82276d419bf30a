//! What applies inside a prefix: which rules, in which order, and which are excepted.
//!
//! A state follows from the state around the prefix and from what the prefix itself claims. Few
//! pairs of these occur, however many prefixes there are, so each is computed once.

use std::collections::HashMap;
use std::rc::Rc;

use super::sweep::What;

/// Names a state of a [`States`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct StateId(u32);

impl StateId {
    /// Nothing applies, nothing is excepted: the state outside of all prefixes.
    pub(super) const OUTSIDE: Self = Self(0);
    /// Nothing applies, nor does anything nested.
    pub(super) const PROTECTED: Self = Self(1);
}

/// Rules are named by their position in the trial order of [`mod@super::rank`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct State {
    /// The rules that apply, most specific prefix first, then by position.
    active: Rc<[u16]>,
    /// The rules that an exception excludes, here and in all nested prefixes. Sorted.
    excepted: Rc<[u16]>,
}

pub(super) type Step = (What, u16);

/// All states met so far.
pub(super) struct States {
    states: Vec<State>,
    ids: HashMap<State, StateId>,
    /// Steps by one claim: nearly all of them.
    single: HashMap<(StateId, Step), StateId>,
    /// The last step: neighbouring prefixes mostly take the same one.
    last: (StateId, Step, StateId),
    /// Steps by several claims on one prefix.
    several: HashMap<(StateId, Box<[Step]>), StateId>,
}

impl States {
    pub(super) fn new() -> Self {
        let outside = State::default();
        Self {
            // `PROTECTED` has the contents of `OUTSIDE`, but is never stepped from.
            states: vec![outside.clone(), State::default()],
            ids: HashMap::from([(outside, StateId::OUTSIDE)]),
            single: HashMap::new(),
            last: (StateId::PROTECTED, (What::Protect, 0), StateId::PROTECTED),
            several: HashMap::new(),
        }
    }

    /// The rules that apply, in trial order.
    pub(super) fn active(&self, id: StateId) -> &[u16] {
        &self.states[id.0 as usize].active
    }

    /// How many states there are; ids are smaller than that.
    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    /// An id as an index below [`Self::len`].
    pub(super) fn index(id: StateId) -> usize {
        id.0 as usize
    }

    /// The state inside a prefix with these claims, sorted, that lies directly in `around`.
    pub(super) fn inside(&mut self, around: StateId, claims: &[Step]) -> StateId {
        if around == StateId::PROTECTED || claims.iter().any(|(what, _)| *what == What::Protect) {
            return StateId::PROTECTED;
        }
        if let [claim] = claims {
            if self.last.0 == around && self.last.1 == *claim {
                return self.last.2;
            }
            let known = self.single.get(&(around, *claim)).copied();
            let id = known.unwrap_or_else(|| self.step(around, claims));
            if known.is_none() {
                self.single.insert((around, *claim), id);
            }
            self.last = (around, *claim, id);
            return id;
        }
        let key = (around, Box::from(claims));
        if let Some(id) = self.several.get(&key) {
            return *id;
        }
        let id = self.step(around, claims);
        self.several.insert(key, id);
        id
    }

    fn step(&mut self, around: StateId, claims: &[Step]) -> StateId {
        let around = &self.states[around.0 as usize];
        let of = |kind| {
            claims
                .iter()
                .filter(move |(what, _)| *what == kind)
                .map(|(_, place)| *place)
        };
        let mut excepted = Rc::clone(&around.excepted);
        if of(What::Except).any(|place| excepted.binary_search(&place).is_err()) {
            let mut all: Vec<u16> = excepted.iter().copied().chain(of(What::Except)).collect();
            all.sort_unstable();
            all.dedup();
            excepted = all.into();
        }
        let applies = |place: &u16| excepted.binary_search(place).is_err();
        // Claims are sorted, so the new rules are in order of place.
        let new: Vec<u16> = of(What::Target).filter(applies).collect();
        let old = around
            .active
            .iter()
            .copied()
            .filter(applies)
            .filter(|place| new.binary_search(place).is_err());
        let active: Vec<u16> = new.iter().copied().chain(old).collect();
        let state = State {
            active: active.into(),
            excepted,
        };
        if let Some(id) = self.ids.get(&state) {
            return *id;
        }
        let id = StateId(
            u32::try_from(self.states.len())
                .expect("there are fewer states than prefixes, whose number is a u32"),
        );
        self.states.push(state.clone());
        self.ids.insert(state, id);
        id
    }
}
