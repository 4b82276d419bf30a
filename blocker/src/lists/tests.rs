//! Lists in the published formats, and the errors of invalid lists.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn parsed(text: impl AsRef<[u8]>) -> List {
    List::parse("list", text.as_ref(), Invalid::Refuse).unwrap()
}

fn names(list: &List) -> Vec<String> {
    list.targets.iter().map(ToString::to_string).collect()
}

fn flaws(text: impl AsRef<[u8]>) -> Vec<String> {
    List::parse("l.netset", text.as_ref(), Invalid::Refuse)
        .unwrap_err()
        .messages()
}

#[test]
fn the_published_forms() {
    let firehol = "#\n# firehol_level1\n#\n1.10.16.0/20\n1.19.0.0/16\n2.56.255.7\n";
    let drop = "; Spamhaus DROP List\r\n1.10.16.0/20 ; SBL256894\r\n1.19.0.0/16;SBL434604\r\n\r\n2.56.255.7  # one\r\n";
    let ndjson = concat!(
        r#"{"cidr":"1.10.16.0/20","sblid":"SBL256894","rir":"apnic"}"#,
        "\n",
        r#"{"sblid":"SBL434604","cidr":"1.19.0.0\/16"}"#,
        "\n2.56.255.7\n",
        r#"{"type":"metadata","timestamp":1732406400,"size":64,"records":2}"#,
        "\n"
    );
    for (text, lines) in [(firehol, 6), (drop, 5), (ndjson, 4)] {
        let list = parsed(text);
        assert_eq!(names(&list), ["1.10.16.0/20", "1.19.0.0/16", "2.56.255.7"]);
        assert_eq!(list.lines, lines, "{text}");
        assert_eq!(
            (list.duplicates, list.covered, list.skipped.count),
            (0, 0, 0)
        );
        assert_eq!(list.special, Special::default());
    }
    let rest = parsed("\u{feff} 2001:db8::/32\n\t192.0.2.7 \n# caf\u{e9}");
    assert_eq!(names(&rest), ["192.0.2.7", "2001:db8::/32"]);
    assert_eq!(parsed(b"192.0.2.7 # caf\xe9\n").targets.len(), 1, "Latin-1");
}

#[test]
fn what_is_covered_goes_and_neighbours_stay() {
    let list = parsed(
        "10.0.0.128/25\n10.0.0.0/25\n192.0.2.7\n192.0.2.0/24\n192.0.2.7/32\n192.0.2.0/24\n2001:db8::1\n2001:db8::/32\n",
    );
    let kept = [
        "10.0.0.0/25",
        "10.0.0.128/25",
        "192.0.2.0/24",
        "2001:db8::/32",
    ];
    assert_eq!(names(&list), kept);
    assert_eq!((list.lines, list.duplicates, list.covered), (8, 2, 2));
    assert_eq!(
        names(&parsed(
            "0.0.0.0/0\n1.2.3.4\n255.255.255.255\n::/0\nff00::/8"
        )),
        ["0.0.0.0/0", "::/0"]
    );
}

#[test]
fn bad_lines_refuse_the_list_and_say_where_and_why() {
    assert_eq!(
        flaws("192.0.2.7\n\n10.0.0.1/8\n192.0.2.300 # far\n"),
        [
            "l.netset:3: target \"10.0.0.1/8\" has bits set behind its prefix length: write 10.0.0.0/8 for the whole prefix, or 10.0.0.1 for the one address",
            "l.netset:4: target \"192.0.2.300\" is neither an address nor a prefix: write 192.0.2.7, 192.0.2.0/24, 2001:db8::1 or 2001:db8::/32, in \"192.0.2.300 # far\"",
        ]
    );
    assert_eq!(
        flaws("{\"cidr\":\"10.0.0.0/8\"\n{\"sblid\":\"x\"}\n"),
        [
            "l.netset:1: column 20: EOF while parsing an object, in \"{\\\"cidr\\\":\\\"10.0.0.0/8\\\"\"",
            "l.netset:2: the object names no target: \"cidr\" is missing, in \"{\\\"sblid\\\":\\\"x\\\"}\"",
        ]
    );
    let many = flaws("x\n".repeat(1_000));
    assert_eq!(many.len(), 11);
    assert_eq!(many[10], "l.netset: 990 more bad lines");
}

#[test]
fn a_bad_line_is_told_clipped_and_harmless() {
    let mut line = b"\x1b[2J\xff".to_vec();
    line.resize(100_000, b'x');
    let message = flaws(line).join("\n");
    assert!(message.len() < 400, "{message}");
    assert!(!message.contains(char::is_control), "{message:?}");
}

#[test]
fn bad_lines_are_skipped_if_asked_to() {
    let list = List::parse("l", b"192.0.2.7\nx\n198.51.100.1\ny\n", Invalid::Skip).unwrap();
    assert_eq!(names(&list), ["192.0.2.7", "198.51.100.1"]);
    assert_eq!(list.skipped.count, 2);
    assert_eq!(list.skipped.first[1].number, 4);
    assert_eq!(list.skipped.first[1].text, "y");
}

#[test]
fn a_long_list_is_one_list() {
    let line = |number: u32| Ipv4Addr::from(0x3000_0000 + number * 2).to_string();
    for bad in [1, 2_500, 4_999, 9_999, 10_000] {
        let mut lines: Vec<String> = (0..10_000).rev().map(line).collect();
        lines[bad - 1] = "x".to_owned();
        lines.extend([
            line(7),
            "48.0.0.0/29".to_owned(),
            String::new(),
            "y".to_owned(),
        ]);
        let text = lines.join("\n");
        assert!(text.len() > MANY_BYTES, "{}", text.len());
        let list = List::parse("l", text.as_bytes(), Invalid::Skip).unwrap();
        assert_eq!(list.lines, 10_004);
        let numbers: Vec<u64> = list.skipped.first.iter().map(|line| line.number).collect();
        assert_eq!(numbers, [bad as u64, 10_004]);
        // The last four of the 10,000 are in 48.0.0.0/29.
        let covered = if bad > 9_996 { 3 } else { 4 };
        assert_eq!((list.duplicates, list.covered), (1, covered), "{bad}");
        assert_eq!(list.kept, 10_000 - covered);
        assert!(list.targets.is_sorted());
    }
    let many = flaws("x\n".repeat(100_000));
    assert_eq!(many[10], "l.netset: 99990 more bad lines");
    assert!(many[9].starts_with("l.netset:10: "), "{}", many[9]);
}

#[test]
fn a_list_without_a_target_is_refused() {
    let expected = "l.netset: the list has no target: nothing would be blocked";
    for text in ["", "\n", "# nothing\n; here\n", "{\"type\":\"metadata\"}\n"] {
        assert_eq!(flaws(text), [expected], "{text:?}");
    }
    let error = List::parse("l", b"x\n", Invalid::Skip).unwrap_err();
    assert_eq!(
        error.to_string(),
        "l: the list has no target beside 1 bad lines: nothing would be blocked"
    );
}

#[test]
fn private_and_special_ranges_are_named() {
    let list = parsed(
        "8.8.8.8\n10.1.0.0/16\n10.2.0.0/16\n172.15.0.1\n172.16.0.1\n192.168.0.0/15\n100.64.0.1\nfd00::/8\n2001:db8::1\n",
    );
    assert_eq!(list.special.count, 6);
    let first: Vec<_> = list
        .special
        .first
        .iter()
        .map(|(t, what)| format!("{t}: {what}"))
        .collect();
    assert_eq!(
        first,
        [
            "10.1.0.0/16: private, RFC 1918",
            "10.2.0.0/16: private, RFC 1918",
            "100.64.0.1: carrier-grade NAT, RFC 6598"
        ]
    );
    assert_eq!(parsed("0.0.0.0/0").special.count, 1, "it covers them all");
    assert_eq!(parsed("8.8.8.8\n2001:db8::1").special.count, 0);
}

#[test]
fn what_there_is_to_say() {
    let text = "10.0.0.0/8\n10.0.0.1\n10.0.0.0/8\nx\n8.8.8.8\n";
    let list = List::parse("l", text.as_bytes(), Invalid::Skip).unwrap();
    assert_eq!(
        list.summary(),
        "l: 5 lines, 2 targets, 1 duplicate, 1 covered by others, 1 skipped (first: line 4: target \"x\" is neither an address nor a prefix: write 192.0.2.7, 192.0.2.0/24, 2001:db8::1 or 2001:db8::/32)"
    );
    assert_eq!(
        list.warning().unwrap(),
        "l: 1 target in private or special ranges: 10.0.0.0/8 (private, RFC 1918): if this network uses them, leave them out of the rule with `except` (--except), or `protect` them in the configuration"
    );
    let list = parsed("8.8.8.8\n");
    assert_eq!(list.summary(), "list: 1 line, 1 target");
    assert_eq!(list.warning(), None);
}

/// Targets close together, so that some cover others.
fn any_target() -> impl Strategy<Value = Target> {
    let v4 = (any::<[bool; 3]>(), 0u8..=32).prop_map(|(bits, length)| {
        let [a, b, c] = bits.map(u32::from);
        let address = IpAddr::from(Ipv4Addr::from(a << 31 | b << 20 | c));
        Target::from(IpNet::new(address, length).unwrap())
    });
    let v6 = (any::<u128>(), 0u8..=128)
        .prop_map(|(bits, length)| {
            let address = IpAddr::from(Ipv6Addr::from(bits & (1 << 127 | 1 << 64 | 1)));
            Target::from(IpNet::new(address, length).unwrap())
        })
        // IPv4-mapped addresses are not valid targets.
        .prop_filter("it can be written", |target| {
            target.to_string().parse::<Target>().is_ok()
        });
    prop_oneof![v4, v6]
}

proptest! {
    #[test]
    fn a_list_reads_as_the_targets_that_were_written(
        written in vec((any_target(), 0usize..4), 1..40)
    ) {
        let line = |(target, form): &(Target, usize)| match form {
            0 => format!("{target}\n"),
            1 => format!("  {target} # x\r\n"),
            2 => format!("# {target}?\n{target};y\n"),
            _ => format!("{{\"cidr\":\"{target}\",\"n\":1}}\n"),
        };
        let read = parsed(written.iter().map(line).collect::<String>());
        let mut distinct: Vec<Target> = written.iter().map(|(target, _)| *target).collect();
        distinct.sort();
        distinct.dedup();
        let covers = |outer: &Target, inner: &Target| outer != inner && outer.net().contains(&inner.net());
        let kept: Vec<Target> = distinct
            .iter()
            .copied()
            .filter(|target| !distinct.iter().any(|other| covers(other, target)))
            .collect();
        prop_assert_eq!(&read.targets, &kept);
        prop_assert_eq!(read.duplicates, (written.len() - distinct.len()) as u64);
        prop_assert_eq!(read.covered, (distinct.len() - kept.len()) as u64);
        // The parsed targets, written one per line, parse to themselves.
        let plain: String = kept.iter().map(|target| format!("{target}\n")).collect();
        prop_assert_eq!(parsed(&plain).targets, kept);
    }

    #[test]
    fn nothing_makes_it_panic(bytes in vec(any::<u8>(), 0..200)) {
        for invalid in [Invalid::Refuse, Invalid::Skip] {
            if let Err(error) = List::parse("l", &bytes, invalid) {
                prop_assert!(!error.messages().is_empty());
            }
        }
    }
}
