//! Whole compilations, case by case.

mod oracle;

use std::net::{IpAddr, Ipv4Addr};

use super::*;
pub(crate) use crate::rule::sample::rule;
use crate::rule::{Target, Targets};

pub(crate) const LIMITS: Limits = Limits {
    prefixes: 3_000_000,
    rules: 4_096,
    lists: 65_535,
    port_sets: 1_024,
    range_blocks: 100,
    v6_leaves: 1_000,
};

/// Single addresses as targets.
fn hosts(addresses: impl Iterator<Item = u32>) -> Targets {
    let target = |address| IpAddr::from(Ipv4Addr::from(address)).into();
    addresses.map(target).collect()
}

/// The lists of the first leaf's ranges.
fn lists(snapshot: &Snapshot) -> [u16; abi::V6_FANOUT] {
    let leaf = snapshot.v6.nodes[0];
    let (high, low) = (leaf.high[0].to_le_bytes(), leaf.low[0].to_le_bytes());
    let pairs = high.chunks(2).chain(low.chunks(2));
    let lists: Vec<u16> = pairs
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .collect();
    lists.try_into().unwrap()
}

pub(crate) fn inputs(rules: &[Rule]) -> Vec<RuleInput<'_>> {
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
        generic_xdp: false,
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
    assert_eq!((snapshot.v6.levels, snapshot.v6.nodes.len()), (0, 0));
    assert!(snapshot.lookup("192.0.2.1".parse().unwrap()).is_empty());
    assert!(snapshot.lookup("2001:db8::1".parse().unwrap()).is_empty());
}

#[test]
fn where_no_rule_names_an_address_is_known_without_the_index() {
    let rules = [
        rule("host", "10.15.255.255", "{}"),
        rule("edge", "10.32.0.0/31 10.64.0.0/16 255.255.255.255", "{}"),
        rule(
            "wide",
            "192.0.0.0/8",
            "{except: [192.0.0.0/12, 192.16.0.0/13]}",
        ),
    ];
    let snapshot = compiled(&rules, &[], &LIMITS).unwrap();
    let named = (0..1u32 << 12).filter(|number| is_named_v4(&snapshot.v4.named, number << 20));
    let mut expected = vec![0x0a0, 0x0a2, 0x0a4];
    expected.extend(0xc01..=0xc0f);
    expected.push(0xfff);
    assert_eq!(named.collect::<Vec<_>>(), expected);
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
    // The hole is a range of the tree that names no list.
    assert_eq!(lists(&snapshot)[..5], [0, 1, 0, 1, 0]);
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
    // network's own start at the first address of 192.0.2.0/24 included. In each of their buckets
    // list 2 and none take turns.
    let words = [2, 0x0200, 0x0300, 2, 0x6407, 0x6408];
    assert_eq!(snapshot.v4.ranges, [words]);
    let bucket = |first: u32| snapshot.v4.index[first as usize];
    assert_eq!(bucket(0xc000).first, abi::ALTERNATES);
    assert_eq!(bucket(0xc633).first, abi::ALTERNATES | 3);
    assert_eq!(lists(&snapshot), [0, 2, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_v6_prefix_covered_by_nested_ones_is_no_range() {
    let rules = [
        rule("a", "2001:db8::/32", "{}"),
        rule("b", "2001:db8::/33 2001:db8:8000::/33", "{}"),
    ];
    let snapshot = compiled(&rules, &[], &LIMITS).unwrap();
    assert_eq!(lists(&snapshot), [0, 1, 0, 0, 0, 0, 0, 0]);
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

/// A mistake of this kind must be told, not paid for with memory: each of the nested prefixes
/// would have all rules in an order of its own.
#[test]
fn thousands_of_rules_on_everything_are_refused_at_once() {
    let everything: Target = "0.0.0.0/0".parse().unwrap();
    let template = rule("a", "0.0.0.0/0", "{}");
    let rules: Vec<Rule> = (0..4_096_u32)
        .map(|n| {
            let nested = (0..64_u32).flat_map(|m| {
                let net = (0x0a00_0000 + (n * 64 + m)) << 2;
                [30, 31].map(|length| {
                    let address = Ipv4Addr::from(net.rotate_left(m));
                    Target::from(IpNet::from(ipnet::Ipv4Net::new_assert(address, length)))
                })
            });
            Rule {
                id: format!("r{n:04}").parse().unwrap(),
                targets: std::iter::once(everything).chain(nested).collect(),
                ..template.clone()
            }
        })
        .collect();
    let error = compiled(&rules, &[], &LIMITS).unwrap_err().to_string();
    let expected = "0.0.0.0 is covered by 4096 rules (r0000, r0001, r0002, …)";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn what_exceeds_a_limit_is_refused_and_the_limit_named() {
    let rules = [
        rule(
            "a",
            "10.0.0.0/8 2001:db8::1",
            "{ports: [1], except: [10.0.0.1], local: [10.1.1.1]}",
        ),
        rule("b", "10.0.0.0/16", "{ports: [2]}"),
    ];
    let fits = Limits {
        prefixes: 6,
        rules: 2,
        lists: 4,
        port_sets: 2,
        range_blocks: 1,
        v6_leaves: 1,
    };
    let protect = ["10.9.9.9/32".parse().unwrap()];
    let with = |limits| compiled(&rules, &protect, &limits);
    assert_eq!(with(fits).unwrap().prefixes, 6);
    for (limits, expected) in [
        (
            Limits {
                prefixes: 5,
                ..fits
            },
            "6 prefixes (targets, exceptions and local addresses of all rules, and protected ones) are more than the 5 allowed: raise limits.prefixes",
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

/// A bucket that is all range starts, next to others: blocks are left when a bucket would cross.
#[test]
fn full_buckets_go_to_blocks_of_their_own() {
    // Three take turns, so that each start needs its list beside it.
    let mut rules = ["a", "b", "c"].map(|id| rule(id, "10.0.0.1", "{}"));
    for (n, rule) in rules.iter_mut().enumerate() {
        let ours = |address: &u32| *address as usize % 3 == n;
        rule.targets = hosts((0x0a00_0000..0x0a06_0000).filter(ours));
    }
    let limits = Limits { ..LIMITS };
    let snapshot = compiled(&rules, &[], &limits).unwrap();
    let lengths: Vec<usize> = snapshot.v4.ranges.iter().map(Vec::len).collect();
    // Buckets 10.0/16 to 10.5/16 have 65,535 inner starts each; the end of the last is the start
    // of the next bucket, no inner one. Four fit a block, with four words to spare.
    assert_eq!(lengths, [8 * 65_535, 4 * 65_535]);
    for address in (0x0a00_0000..0x0a06_0000_u32).step_by(997) {
        let expected = [(address % 3) as u16];
        assert_eq!(snapshot.lookup(Ipv4Addr::from(address).into()), expected);
    }
    let short = Limits {
        range_blocks: 1,
        ..limits
    };
    assert!(matches!(
        compiled(&rules, &[], &short),
        Err(CompileError::RangeBlocks { limit: 1, .. })
    ));
}

/// A million random hosts of one rule: the size that the limits' defaults promise. What is quadratic would
/// not end here.
#[test]
fn a_million_hosts_compile_and_fit_the_blocks_that_limits_promise() {
    let mut state = 1_u32;
    let mut many = rule("a", "10.0.0.1", "{}");
    many.targets = hosts((0..1_000_000).map(|_| {
        // A full-period linear congruential generator: no address comes twice.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state
    }));
    let sample: Vec<Target> = many.targets.iter().copied().step_by(1_009).collect();
    let limits = Limits::sized(1_000_000, 131_072, 4_096);
    let snapshot = compiled(&[many], &[], &limits).unwrap();
    assert_eq!(snapshot.prefixes, 1_000_000);
    for target in sample {
        assert_eq!(snapshot.lookup(target.net().addr()), [0]);
    }
}
