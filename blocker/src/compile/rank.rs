//! The trial order of rules whose covering targets are equally specific: the narrower match first.

use crate::rule::Rule;

use super::RuleInput;

/// How narrow a rule's match is. A narrower match has a smaller rank and is tried earlier.
///
/// The criteria, in the order in which they decide:
///
/// 1. a rule for one protocol before a rule for any;
/// 2. the fewer ports, the earlier (the sizes of the three port sets added, "any" counting as
///    one more than all ports);
/// 3. a rule limited to interfaces before one that isn't;
/// 4. a rule limited to local addresses before one that isn't;
/// 5. a rule for one direction before a rule for both;
/// 6. the smaller percentage first: after a rule that takes everything, it would see no packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    any_protocol: bool,
    ports: u32,
    any_interface: bool,
    any_local: bool,
    both_directions: bool,
    percent: u8,
}

/// How narrow a rule's match is.
#[must_use]
pub fn rank(rule: &Rule) -> Rank {
    let matching = &rule.matching;
    Rank {
        any_protocol: matching.protocol.is_any(),
        ports: matching.port_breadth(),
        any_interface: matching.interfaces.is_empty(),
        any_local: matching.local.is_empty(),
        both_directions: matching.direction.is_any(),
        percent: matching.percent.get(),
    }
}

/// The numbers of the rules in their trial order where their targets are equally specific.
pub(super) fn trial_order(rules: &[RuleInput<'_>]) -> Vec<u16> {
    // `check_counts` has refused more than `abi::MAX_RULES` rules, so every number is a u16.
    let mut order: Vec<u16> = (0..=u16::MAX).take(rules.len()).collect();
    order.sort_by_cached_key(|number| {
        let rule = rules[usize::from(*number)].rule;
        (rank(rule), &rule.id)
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::tests::rule;

    /// Each pair: the first rule is tried before the second.
    #[test]
    fn the_narrower_match_goes_first() {
        for (narrow, wide) in [
            ("{protocol: tcp}", "{}"),
            ("{protocol: tcp}", "{ports: [80]}"),
            ("{ports: [80]}", "{}"),
            ("{ports: [80]}", "{ports: [80, 81]}"),
            ("{ports: [80, 80-81]}", "{ports: [80-82]}"),
            ("{ports: [0-65535]}", "{}"),
            (
                "{local_ports: [80], remote_ports: [1-9]}",
                "{local_ports: [80]}",
            ),
            ("{ports: [80]}", "{interfaces: [eth0]}"),
            ("{interfaces: [eth0]}", "{local: [10.9.0.1]}"),
            ("{local: [0.0.0.0/0]}", "{direction: egress}"),
            ("{direction: ingress}", "{percent: 1}"),
            ("{percent: 1}", "{percent: 2}"),
            ("{percent: 99}", "{}"),
        ] {
            let (a, b) = (
                rule("a", "10.0.0.0/8", narrow),
                rule("b", "10.0.0.0/8", wide),
            );
            assert!(rank(&a) < rank(&b), "{narrow} before {wide}");
        }
    }

    #[test]
    fn what_is_done_does_not_count() {
        let (a, b) = (
            rule("a", "10.0.0.0/8", "{mode: audit, comment: x}"),
            rule("b", "10.0.0.1", "{mode: reset}"),
        );
        assert_eq!(rank(&a), rank(&b));
    }
}
