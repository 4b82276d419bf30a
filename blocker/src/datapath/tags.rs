//! Which rule is meant by a counter slot: slots are few and used again, so what the datapath
//! records bears a tag, of the slot and of how many rules had it before.

/// The tags of all slots.
#[derive(Debug, Default)]
pub struct Tags(Vec<u16>);

impl Tags {
    /// The tag of the rule that has a slot now.
    #[must_use]
    pub fn of(&self, slot: u32) -> u32 {
        let incarnation = self.0.get(slot as usize).copied().unwrap_or(0);
        blocker_ebpf::tag(slot, incarnation)
    }

    /// Gives a slot to another rule.
    pub fn renew(&mut self, slot: u32) {
        let place = slot as usize;
        if self.0.len() <= place {
            self.0.resize(place + 1, 0);
        }
        self.0[place] = self.0[place].wrapping_add(1);
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
