//! Whole compilations: cases by hand, and a slow, obvious oracle against random rulesets.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::rule::{Defaults, RuleSpec, Target};

pub(super) const LIMITS: Limits = Limits {
    prefixes: 3_000_000,
    rules: 4_096,
    lists: 65_535,
    port_sets: 1_024,
    index_blocks: 32,
    range_blocks: 100,
};

/// A rule on targets (separated by blanks), with the other fields as YAML.
pub(crate) fn rule(id: &str, targets: &str, fields: &str) -> Rule {
    let mut spec: serde_json::Value = serde_yaml::from_str(fields).unwrap();
    let fields = spec.as_object_mut().unwrap();
    fields.insert("targets".into(), targets.split(' ').collect());
    let spec: RuleSpec = serde_json::from_value(spec).unwrap();
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    spec.resolve(|| id.parse().unwrap(), Defaults::default(), now)
        .unwrap()
}

fn inputs(rules: &[Rule]) -> Vec<RuleInput<'_>> {
    rules
        .iter()
        .map(|rule| RuleInput {
            rule,
            deadline: abi::NEVER,
            counter: 0,
            interfaces: None,
        })
        .collect()
}

fn compiled(rules: &[Rule], protect: &[IpNet], limits: &Limits) -> Result<Snapshot, CompileError> {
    let rules = inputs(rules);
    let input = Input {
        rules: &rules,
        protect,
    };
    compile(&input, limits)
}

/// The ids of the rules on an address, in trial order.
fn on<'r>(rules: &'r [Rule], snapshot: &Snapshot, address: &str) -> Vec<&'r str> {
    snapshot
        .lookup(address.parse().unwrap())
        .iter()
        .map(|number| rules[usize::from(*number)].id.as_str())
        .collect()
}

#[test]
fn nothing_compiles_to_nothing() {
    let snapshot = compiled(&[], &[], &LIMITS).unwrap();
    assert_eq!(snapshot.lists.len(), 1);
    assert_eq!(snapshot.v4.index.len(), 65_536);
    assert!(snapshot.v4.ranges.is_empty());
    assert!(snapshot.v6.is_empty());
    assert!(snapshot.lookup("192.0.2.1".parse().unwrap()).is_empty());
    assert!(snapshot.lookup("2001:db8::1".parse().unwrap()).is_empty());
}

#[test]
fn the_more_specific_target_then_the_narrower_match_then_the_id_goes_first() {
    let rules = [
        rule("wide", "10.0.0.0/8 2001:db8::/32", "{protocol: tcp}"),
        rule("b", "10.0.0.1 2001:db8::1", "{}"),
        rule("a", "10.0.0.1 2001:db8::1", "{}"),
        rule("web", "10.0.0.1 2001:db8::1", "{ports: [80]}"),
        rule("all", "0.0.0.0/0 ::/0", "{percent: 1, protocol: udp}"),
    ];
    let snapshot = compiled(&rules, &[], &LIMITS).unwrap();
    for host in ["10.0.0.1", "2001:db8::1"] {
        assert_eq!(
            on(&rules, &snapshot, host),
            ["web", "a", "b", "wide", "all"]
        );
    }
    for other in ["10.0.0.0", "10.0.0.2", "10.255.255.255", "2001:db8::2"] {
        assert_eq!(on(&rules, &snapshot, other), ["wide", "all"]);
    }
    for outside in [
        "9.255.255.255",
        "11.0.0.0",
        "0.0.0.0",
        "255.255.255.255",
        "::",
        "2001:db9::",
    ] {
        assert_eq!(on(&rules, &snapshot, outside), ["all"]);
    }
}

#[test]
fn an_exception_wins_over_every_target_of_its_own_rule_and_no_other() {
    let rules = [
        rule(
            "a",
            "10.0.0.0/8 10.1.2.0/24 10.1.2.3 10.9.0.0/16 2001:db8::/32",
            "{except: [10.1.0.0/16, 10.9.0.0/16, 2001:db8:1::/48]}",
        ),
        rule("b", "10.1.2.0/24", "{protocol: tcp}"),
    ];
    let snapshot = compiled(&rules, &[], &LIMITS).unwrap();
    assert_eq!(on(&rules, &snapshot, "10.0.0.1"), ["a"]);
    assert_eq!(on(&rules, &snapshot, "10.1.2.3"), ["b"]);
    assert!(on(&rules, &snapshot, "10.1.0.0").is_empty());
    assert!(on(&rules, &snapshot, "10.9.0.0").is_empty());
    assert_eq!(on(&rules, &snapshot, "10.2.0.0"), ["a"]);
    assert_eq!(on(&rules, &snapshot, "2001:db8::1"), ["a"]);
    assert!(on(&rules, &snapshot, "2001:db8:1::1").is_empty());
    // The hole is in the trie, as an entry that names no list.
    let holes: Vec<_> = snapshot.v6.iter().filter(|entry| entry.2 == 0).collect();
    assert_eq!(holes, [&("2001:db8:1::".parse().unwrap(), 48, 0)]);
}

#[test]
fn protected_prefixes_pass_whatever_is_nested_in_them() {
    let rules = [rule(
        "a",
        "10.0.0.0/8 10.1.2.3 2001:db8::1 2001:db8::/32",
        "{}",
    )];
    let protect = [
        "10.1.0.0/16".parse().unwrap(),
        "2001:db8::/64".parse().unwrap(),
    ];
    let snapshot = compiled(&rules, &protect, &LIMITS).unwrap();
    for free in ["10.1.0.0", "10.1.2.3", "10.1.255.255", "2001:db8::1"] {
        assert!(on(&rules, &snapshot, free).is_empty(), "{free}");
    }
    for blocked in ["10.0.255.255", "10.2.0.0", "2001:db8:0:1::"] {
        assert_eq!(on(&rules, &snapshot, blocked), ["a"], "{blocked}");
    }
    assert_eq!(snapshot.prefixes, 6);
}

#[test]
fn equal_neighbours_and_equal_lists_are_kept_once() {
    let rules = [
        rule("a", "10.0.0.0/9 10.128.0.0/9 10.3.0.0/16 10.3.7.0/24", "{}"),
        rule(
            "b",
            "192.0.2.0/24 198.51.100.7 2001:db8::/48 2001:db8:0:1::/64",
            "{}",
        ),
    ];
    let snapshot = compiled(&rules, &[], &LIMITS).unwrap();
    assert_eq!(snapshot.lists.len(), 3);
    // 10.0.0.0/8 lies on bucket boundaries; the others have a start and an end inside one, the
    // network's own start at the first address of 192.0.2.0/24 included.
    let starts: Vec<u16> = snapshot.v4.ranges[0].iter().map(|r| r.start).collect();
    assert_eq!(starts, [0x0200, 0x0300, 0x6407, 0x6408]);
    assert_eq!(snapshot.v6, [("2001:db8::".parse().unwrap(), 48, 2)]);
}

#[test]
fn a_v6_prefix_covered_by_nested_ones_is_no_entry() {
    let rules = [
        rule("a", "2001:db8::/32", "{}"),
        rule("b", "2001:db8::/33 2001:db8:8000::/33", "{}"),
    ];
    let snapshot = compiled(&rules, &[], &LIMITS).unwrap();
    let lengths: Vec<u8> = snapshot.v6.iter().map(|entry| entry.1).collect();
    assert_eq!(lengths, [33, 33]);
    assert_eq!(on(&rules, &snapshot, "2001:db8::"), ["b", "a"]);
    assert_eq!(on(&rules, &snapshot, "2001:db8:ffff::"), ["b", "a"]);
}

/// `count` rules on the same targets.
fn pile(count: usize, targets: &str, fields: &str) -> Vec<Rule> {
    (0..count)
        .map(|n| rule(&format!("r{n:03}"), targets, fields))
        .collect()
}

#[test]
fn one_rule_too_many_on_an_address_is_refused_and_named() {
    for target in ["10.0.0.0/8", "2001:db8::/32"] {
        let full = pile(abi::RULES_PER_LIST, target, "{}");
        let snapshot = compiled(&full, &[], &LIMITS).unwrap();
        let first = target.split('/').next().unwrap();
        assert_eq!(on(&full, &snapshot, first).len(), abi::RULES_PER_LIST);

        let over = pile(abi::RULES_PER_LIST + 1, target, "{}");
        let error = compiled(&over, &[], &LIMITS).unwrap_err().to_string();
        let expected = format!("{first} is covered by 32 rules (r000, r001, r002, …)");
        assert!(error.starts_with(&expected), "{error}");
        // Where nobody can meet them all, there is nothing to refuse.
        let protect = [target.parse().unwrap()];
        compiled(&over, &protect, &LIMITS).unwrap();
    }
}

#[test]
fn what_exceeds_a_limit_is_refused_and_the_limit_named() {
    let rules = [
        rule(
            "a",
            "10.0.0.0/8 2001:db8::1",
            "{ports: [1], except: [10.0.0.1]}",
        ),
        rule("b", "10.0.0.0/16", "{ports: [2]}"),
    ];
    let fits = Limits {
        prefixes: 5,
        rules: 2,
        lists: 4,
        port_sets: 2,
        index_blocks: 2,
        range_blocks: 1,
    };
    let protect = ["10.9.9.9/32".parse().unwrap()];
    let with = |limits| compiled(&rules, &protect, &limits);
    assert_eq!(with(fits).unwrap().prefixes, 5);
    for (limits, expected) in [
        (
            Limits {
                prefixes: 4,
                ..fits
            },
            "5 prefixes (targets and exceptions of all rules, and protected ones) are more than the 4 allowed: raise limits.prefixes",
        ),
        (
            Limits { rules: 1, ..fits },
            "2 rules are more than the 1 allowed: raise limits.rules",
        ),
        (
            Limits { lists: 3, ..fits },
            "the rules overlap in more than 2 different ways (the first that does not fit is at 10.1.0.0)",
        ),
        (
            Limits {
                port_sets: 1,
                ..fits
            },
            "rule b needs one more set of ports than the 1 different ones allowed",
        ),
        (
            Limits {
                index_blocks: 1,
                ..fits
            },
            "the IPv4 index needs 2 blocks, but the datapath was loaded with 1",
        ),
        (
            Limits {
                range_blocks: 0,
                ..fits
            },
            "7 IPv4 ranges do not fit the 0 blocks",
        ),
    ] {
        let error = with(limits).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn the_index_widens_with_the_set_as_far_as_there_is_room() {
    let hosts = |count: u32| {
        let mut rule = rule("a", "10.0.0.1", "{}");
        // Every second address, so that no two make one range.
        rule.targets = (0..count)
            .map(|n| Target::from(IpAddr::from(Ipv4Addr::from(0x0a00_0000 + 2 * n))))
            .collect();
        rule
    };
    let shift = |count, index_blocks| {
        let limits = Limits {
            index_blocks,
            ..LIMITS
        };
        compiled(&[hosts(count)], &[], &limits).unwrap().v4.shift
    };
    assert_eq!(shift(32_768, 32), 16);
    assert_eq!(shift(32_769, 32), 12);
    assert_eq!(shift(32_769, 31), 13);
    assert_eq!(shift(32_769, 2), 16);
}

/// A bucket that is all range starts, next to others: blocks are left when a bucket would cross.
#[test]
fn full_buckets_go_to_blocks_of_their_own() {
    let pair = [rule("a", "10.0.0.1", "{}"), rule("b", "10.0.0.1", "{}")];
    let mut rules = pair.clone();
    for (n, rule) in rules.iter_mut().enumerate() {
        rule.targets = (0x0a00_0000..0x0a03_0000_u32)
            .filter(|address| *address as usize % 2 == n)
            .map(|address| Target::from(IpAddr::from(Ipv4Addr::from(address))))
            .collect();
    }
    let limits = Limits {
        index_blocks: 2,
        ..LIMITS
    };
    let snapshot = compiled(&rules, &[], &limits).unwrap();
    let lengths: Vec<usize> = snapshot.v4.ranges.iter().map(Vec::len).collect();
    // Buckets 10.0/16 to 10.2/16 have 65,535 inner starts each; the end of the last is the start
    // of the next bucket, no inner one.
    assert_eq!(lengths, [65_535; 3]);
    for address in (0x0a00_0000..0x0a03_0000_u32).step_by(997) {
        let expected = [(address % 2) as u16];
        assert_eq!(snapshot.lookup(Ipv4Addr::from(address).into()), expected);
    }
    let short = Limits {
        range_blocks: 2,
        ..limits
    };
    assert!(matches!(
        compiled(&rules, &[], &short),
        Err(CompileError::RangeBlocks { limit: 2, .. })
    ));
}

/// A million random hosts of one rule: the size that the limits' defaults promise. The time is
/// bounded generously, to catch what is quadratic, not what is slow.
#[test]
fn a_million_hosts_compile_and_fit_the_blocks_that_limits_promise() {
    let mut state = 1_u32;
    let mut many = rule("a", "10.0.0.1", "{}");
    many.targets = (0..1_000_000)
        .map(|_| {
            // A full-period linear congruential generator: no address comes twice.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Target::from(IpAddr::from(Ipv4Addr::from(state)))
        })
        .collect();
    many.targets.sort_unstable();
    let sample: Vec<Target> = many.targets.iter().copied().step_by(1_009).collect();
    let limits = Limits::sized(1_000_000, 4_096);
    let begun = Instant::now();
    let snapshot = compiled(&[many], &[], &limits).unwrap();
    let elapsed = begun.elapsed();
    assert_eq!(snapshot.prefixes, 1_000_000);
    assert_eq!(snapshot.v4.shift, 12);
    for target in sample {
        assert_eq!(snapshot.lookup(target.net().addr()), [0]);
    }
    assert!(elapsed < Duration::from_secs(60), "{elapsed:?}");
}

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
        "{percent: 5}",
    ]);
    (targets, except, fields).prop_map(|(targets, except, fields)| {
        let mut rule = rule("x", "10.0.0.1", fields);
        rule.targets = targets;
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
        turned.iter_mut().for_each(|rule| rule.targets.reverse());
        let (one, other) = (compiled(&rules, &[], &LIMITS).unwrap(), compiled(&turned, &[], &LIMITS).unwrap());
        for address in boundaries(&rules, &[]) {
            let address = address.to_string();
            prop_assert_eq!(on(&rules, &one, &address), on(&turned, &other, &address));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// As above, behind each width of the index: a rule on many hosts elsewhere widens it.
    #[test]
    fn a_wide_index_answers_as_a_narrow_one(
        mut rules in proptest::collection::vec(some_rule(), 6),
        protect in proptest::collection::vec(net(), 2),
        index_blocks in select(vec![2_u32, 4, 8, 16, 32]),
    ) {
        for (n, rule) in rules.iter_mut().enumerate() {
            rule.id = format!("r{n}").parse().unwrap();
        }
        let addresses = boundaries(&rules, &protect);
        let expected: Vec<_> = addresses.iter().map(|a| oracle(&rules, &protect, *a)).collect();
        let mut many = rule("many", "10.0.0.1", "{}");
        many.targets = (0..33_000_u32)
            .map(|n| Target::from(IpAddr::from(Ipv4Addr::from(0xac10_0000 + 2 * n))))
            .collect();
        rules.push(many);
        let limits = Limits { index_blocks, ..LIMITS };
        let snapshot = compiled(&rules, &protect, &limits).unwrap();
        // A protected prefix may swallow the many hosts, and then the narrow one suffices.
        let width = snapshot.v4.index.len() / abi::ENTRIES_PER_BLOCK;
        prop_assert!(width == index_blocks as usize || width == 2);
        for (address, expected) in addresses.into_iter().zip(expected) {
            prop_assert_eq!(snapshot.lookup(address), &expected[..], "at {}", address);
        }
    }
}
