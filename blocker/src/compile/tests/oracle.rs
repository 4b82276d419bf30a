//! Random rulesets against a slow, obvious oracle, at every address where something may change.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::select;

use super::{LIMITS, compiled, hosts, on, rule};
use crate::compile::rank;
use crate::rule::{Rule, Target};

/// The rules on an address by the words of the module's documentation.
fn oracle(rules: &[Rule], protect: &[IpNet], address: IpAddr) -> Vec<u16> {
    if protect.iter().any(|net| net.contains(&address)) {
        return Vec::new();
    }
    let covers = |target: &&Target| target.net().contains(&address);
    let mut found: Vec<(u8, u16)> = Vec::new();
    for (rule, number) in rules.iter().zip(0..) {
        if rule.except.iter().any(|target| covers(&target)) {
            continue;
        }
        let covering = rule.targets.iter().filter(covers);
        if let Some(longest) = covering.map(|target| target.net().prefix_len()).max() {
            found.push((longest, number));
        }
    }
    found.sort_by_key(|(length, number)| {
        let rule = &rules[usize::from(*number)];
        (Reverse(*length), rank(rule), rule.id.clone())
    });
    found.into_iter().map(|(_, number)| number).collect()
}

/// Prefixes of all lengths, close together, so that they nest, touch and repeat; around bucket
/// boundaries and at both ends of the address space.
fn net() -> impl Strategy<Value = IpNet> {
    let bases = [
        0,
        0x0a00_0000,
        0x0a00_fff0,
        0x0a0f_ff00,
        0xc0a8_0000,
        0xffff_ff00_u32,
    ];
    let v4 = (select(bases.to_vec()), 0..64_u32, 0..=32_u8).prop_map(|(base, offset, length)| {
        ipnet::Ipv4Net::new_assert(Ipv4Addr::from(base.wrapping_add(offset)), length)
            .trunc()
            .into()
    });
    let bases = [
        0,
        0x2001_0db8 << 96,
        (0x2001_0db8 << 96) + 0xfff0,
        u128::MAX - 0xff,
    ];
    let v6 = (select(bases.to_vec()), 0..64_u128, 0..=128_u8).prop_map(|(base, offset, length)| {
        ipnet::Ipv6Net::new_assert(Ipv6Addr::from(base.wrapping_add(offset)), length)
            .trunc()
            .into()
    });
    // Long prefixes, where most of the nesting happens, as often as all others together.
    let long = (0x0a00_ffe0..0x0a01_0020_u32, 26..=32_u8).prop_map(|(address, length)| {
        ipnet::Ipv4Net::new_assert(Ipv4Addr::from(address), length)
            .trunc()
            .into()
    });
    prop_oneof![1 => v4, 1 => v6, 2 => long]
}

fn target() -> impl Strategy<Value = Target> {
    net().prop_map(|net| {
        // An IPv4-mapped prefix is no target; the generator's `::/96` and longer are none.
        net.to_string().parse().unwrap()
    })
}

fn some_rule() -> impl Strategy<Value = Rule> {
    let targets = proptest::collection::vec(target(), 1..8);
    let except = proptest::collection::vec(target(), 0..3);
    let fields = select(vec![
        "{}",
        "{protocol: tcp}",
        "{ports: [80]}",
        "{local: [10.0.0.0/24]}",
        "{percent: 5}",
    ]);
    (targets, except, fields).prop_map(|(targets, except, fields)| {
        let mut rule = rule("x", "10.0.0.1", fields);
        rule.targets = targets.into();
        rule.except = except;
        rule
    })
}

/// The addresses where something may change, and their neighbours.
fn boundaries(rules: &[Rule], protect: &[IpNet]) -> Vec<IpAddr> {
    let of_rules = rules
        .iter()
        .flat_map(|rule| rule.targets.iter().chain(&rule.except))
        .map(|target| target.net());
    of_rules
        .chain(protect.iter().copied())
        .flat_map(|net| match net {
            IpNet::V4(net) => [u32::from(net.network()), u32::from(net.broadcast())]
                .into_iter()
                .flat_map(|edge| [edge.wrapping_sub(1), edge, edge.wrapping_add(1)])
                .map(|address| IpAddr::from(Ipv4Addr::from(address)))
                .collect::<Vec<_>>(),
            IpNet::V6(net) => [u128::from(net.network()), u128::from(net.broadcast())]
                .into_iter()
                .flat_map(|edge| [edge.wrapping_sub(1), edge, edge.wrapping_add(1)])
                .map(|address| IpAddr::from(Ipv6Addr::from(address)))
                .collect(),
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_lookup_is_what_the_words_say(
        mut rules in proptest::collection::vec(some_rule(), 0..10),
        protect in proptest::collection::vec(net(), 0..3),
        random in proptest::collection::vec(any::<u32>(), 20),
    ) {
        for (n, rule) in rules.iter_mut().enumerate() {
            rule.id = format!("r{}", 9 - n).parse().unwrap();
        }
        let snapshot = compiled(&rules, &protect, &LIMITS).unwrap();
        let random = random.into_iter().map(|a| IpAddr::from(Ipv4Addr::from(a)));
        for address in boundaries(&rules, &protect).into_iter().chain(random) {
            let expected = oracle(&rules, &protect, address);
            prop_assert_eq!(snapshot.lookup(address), &expected[..], "at {}", address);
        }
    }

    #[test]
    fn the_order_of_adding_does_not_matter(
        rules in proptest::collection::vec(some_rule(), 2..8),
        turn in 1..7_usize,
    ) {
        let mut rules = rules;
        for (n, rule) in rules.iter_mut().enumerate() {
            rule.id = format!("r{n}").parse().unwrap();
        }
        let mut turned = rules.clone();
        turned.rotate_left(turn % rules.len());
        turned.iter_mut().for_each(|rule| rule.except.reverse());
        let (one, other) = (compiled(&rules, &[], &LIMITS).unwrap(), compiled(&turned, &[], &LIMITS).unwrap());
        for address in boundaries(&rules, &[]) {
            let address = address.to_string();
            prop_assert_eq!(on(&rules, &one, &address), on(&turned, &other, &address));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// As above, beside a rule on many hosts elsewhere.
    #[test]
    fn many_hosts_elsewhere_change_nothing(
        mut rules in proptest::collection::vec(some_rule(), 6),
        protect in proptest::collection::vec(net(), 2),
    ) {
        for (n, rule) in rules.iter_mut().enumerate() {
            rule.id = format!("r{n}").parse().unwrap();
        }
        // A wide protected prefix would swallow the hosts.
        let protect: Vec<IpNet> = protect.into_iter().filter(|net| net.prefix_len() > 16).collect();
        let addresses = boundaries(&rules, &protect);
        let expected: Vec<_> = addresses.iter().map(|a| oracle(&rules, &protect, *a)).collect();
        let mut many = rule("many", "10.0.0.1", "{}");
        many.targets = hosts((0..33_000).map(|n| 0xac10_0000 + 2 * n));
        rules.push(many);
        let snapshot = compiled(&rules, &protect, &LIMITS).unwrap();
        for (address, expected) in addresses.into_iter().zip(expected) {
            prop_assert_eq!(snapshot.lookup(address), &expected[..], "at {}", address);
        }
    }
}
