//! Tags of counter slots. Slots are reused, so the datapath's records name a rule by a tag: its slot,
//! and the number of rules that had the slot before (modulo 2^16).

/// The tags of all slots.
#[derive(Debug, Default)]
pub struct Tags(Vec<u16>);

impl Tags {
    /// The tag of the rule that has a slot now.
    #[must_use]
    pub fn of(&self, slot: u32) -> u32 {
        blocker_ebpf::tag(slot, self.incarnation(slot))
    }

    /// The number of rules that had a slot before its present rule, modulo 2^16.
    #[must_use]
    pub fn incarnation(&self, slot: u32) -> u16 {
        self.0.get(slot as usize).copied().unwrap_or(0)
    }

    /// Sets the number of rules that had a slot before.
    pub fn set(&mut self, slot: u32, incarnation: u16) {
        let place = slot as usize;
        if self.0.len() <= place {
            self.0.resize(place + 1, 0);
        }
        self.0[place] = incarnation;
    }

    /// Gives a slot a new tag, for another rule.
    pub fn renew(&mut self, slot: u32) {
        self.set(slot, self.incarnation(slot).wrapping_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_rules_of_a_slot_have_the_same_tag() {
        let mut tags = Tags::default();
        let first = tags.of(7);
        tags.renew(7);
        let second = tags.of(7);
        assert_ne!(first, second);
        assert_eq!(blocker_ebpf::slot(second), 7);
        assert_eq!(tags.of(6), blocker_ebpf::tag(6, 0));
        assert_eq!(tags.of(8), blocker_ebpf::tag(8, 0));
    }
}
