//! Rules and their parts: parsing and printing, defaults, and error texts.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn now() -> Timestamp {
    "2026-06-01T12:00:00Z".parse().unwrap()
}

fn yaml(text: &str) -> Result<RuleSpec, String> {
    serde_yaml::from_str(text).map_err(|error| error.to_string())
}

fn resolve(spec: RuleSpec) -> Result<Rule, RuleError> {
    spec.resolve(|| "made-up".parse().unwrap(), Defaults::default(), now())
}

/// A rule on one target with these fields (YAML).
fn rule(fields: &str) -> Result<Rule, RuleError> {
    let comma = if fields.is_empty() { "" } else { ", " };
    let text = format!("{{targets: [10.0.0.1]{comma}{fields}}}");
    resolve(yaml(&text).unwrap_or_else(|error| panic!("{error}")))
}

fn target(text: &str) -> Result<Target, RuleError> {
    text.parse()
}

#[test]
fn a_target_is_an_address_or_a_prefix() {
    for (text, shown, host) in [
        ("10.0.0.1", "10.0.0.1", true),
        ("10.0.0.1/32", "10.0.0.1", true),
        ("10.0.0.0/8", "10.0.0.0/8", false),
        ("0.0.0.0/0", "0.0.0.0/0", false),
        ("2001:DB8:0::1", "2001:db8::1", true),
        ("2001:db8::/32", "2001:db8::/32", false),
        ("::/0", "::/0", false),
        ("::", "::", true),
    ] {
        let target = target(text).unwrap();
        assert_eq!(target.to_string(), shown);
        assert_eq!(target.is_host(), host, "{text}");
        assert_eq!(shown.parse(), Ok(target));
    }
}

#[test]
fn what_is_no_target_is_refused_with_the_way_out() {
    for text in [
        "",
        " 10.0.0.1",
        "10.0.0",
        "10.0.0.256",
        "10.0.0.1/33",
        "10.0.0.1/",
        "010.0.0.1",
        "host",
        "::1/129",
        "fe80::1%eth0",
        "10.0.0.1-10.0.0.9",
    ] {
        assert_eq!(target(text), Err(RuleError::Target(text.into())));
    }
    assert_eq!(
        target("10.0.0.1/8").unwrap_err().to_string(),
        "target \"10.0.0.1/8\" has bits set behind its prefix length: write 10.0.0.0/8 for the whole prefix, or 10.0.0.1 for the one address"
    );
    for (text, v4) in [
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
    ] {
        let mapped = RuleError::Mapped {
            text: text.into(),
            v4: v4.into(),
        };
        assert_eq!(target(text), Err(mapped));
    }
}

#[test]
fn an_id_is_what_the_grammar_says() {
    let longest = "a".repeat(63);
    for id in ["a", "0", "dev01", "a.b_c-d", "1_000", "12.50", &longest] {
        assert_eq!(id.parse::<RuleId>().unwrap().as_str(), id);
    }
    for id in [
        "",
        "-a",
        ".a",
        "_a",
        "A",
        "ä",
        "a b",
        "a/b",
        &"a".repeat(64),
    ] {
        assert_eq!(id.parse::<RuleId>(), Err(RuleError::Id(id.into())));
    }
}

#[test]
fn a_port_is_a_number_or_a_range() {
    for (text, first, last) in [
        ("0", 0, 0),
        ("65535", 65535, 65535),
        ("1-2", 1, 2),
        ("7-7", 7, 7),
        ("1 - 2", 1, 2),
    ] {
        assert_eq!(text.parse(), Ok(Ports { first, last }));
    }
    for text in [
        "", "-", "1-", "-1", "65536", "+80", "http", "1-2-3", "0x50", "1.5",
    ] {
        assert_eq!(text.parse::<Ports>(), Err(RuleError::Port(text.into())));
    }
    let backwards = RuleError::PortOrder { first: 9, last: 8 };
    assert_eq!("9-8".parse::<Ports>(), Err(backwards));
}

#[test]
fn a_protocol_has_one_form_however_it_is_written() {
    for (text, protocol) in [
        ("any", Protocol::Any),
        ("tcp", Protocol::Tcp),
        ("6", Protocol::Tcp),
        ("06", Protocol::Tcp),
        ("udp", Protocol::Udp),
        ("17", Protocol::Udp),
        ("017", Protocol::Udp),
        ("icmp", Protocol::Icmp),
        ("1", Protocol::Number(1)),
        ("0", Protocol::Number(0)),
        ("255", Protocol::Number(255)),
    ] {
        assert_eq!(text.parse(), Ok(protocol), "{text}");
    }
    for text in ["", "TCP", "256", "-1", "+6", "sctp"] {
        assert_eq!(
            text.parse::<Protocol>(),
            Err(RuleError::Protocol(text.into()))
        );
    }
}

#[test]
fn a_lifetime_is_a_span_of_time() {
    for (text, seconds) in [
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5_400),
        ("1h 30m", 5_400),
        ("2d", 172_800),
        ("3650d", 3650 * 86_400),
        ("PT5M", 300),
    ] {
        let lifetime: Lifetime = text.parse().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(lifetime.duration().as_secs(), seconds, "{text}");
        assert_eq!(lifetime.to_string().parse(), Ok(lifetime));
    }
    for text in ["", "5", "0s", "-5m", "5m ago", "3651d", "1mo", "1y", "soon"] {
        assert_eq!(
            text.parse::<Lifetime>(),
            Err(RuleError::Duration(text.into()))
        );
    }
}

#[test]
fn every_word_is_read_as_it_is_written() {
    fn both_ways<T: FromStr<Err = RuleError> + fmt::Display + Copy + PartialEq + fmt::Debug>(
        all: &[T],
    ) {
        for value in all {
            assert_eq!(value.to_string().parse(), Ok(*value));
        }
    }
    both_ways(Mode::ALL);
    both_ways(Direction::ALL);
    both_ways(Established::ALL);
    both_ways(OnLift::ALL);
    assert_eq!(
        "block".parse::<Mode>().unwrap_err().to_string(),
        "mode \"block\" is not known: drop, reset, reject or audit"
    );
    assert_eq!("api".parse(), Ok(Owner::Api));
    assert_eq!("config".parse(), Ok(Owner::Config));
    assert!("feed".parse::<Owner>().is_err());
}

#[test]
fn a_plain_rule_gets_every_default() {
    let rule = rule("").unwrap();
    let expected = Rule {
        id: "made-up".parse().unwrap(),
        targets: vec!["10.0.0.1".parse().unwrap()].into(),
        except: vec![],
        mode: Mode::Drop,
        matching: Match {
            direction: Direction::Both,
            protocol: Protocol::Any,
            ports: vec![],
            local_ports: vec![],
            remote_ports: vec![],
            local: vec![],
            interfaces: vec![],
            percent: Percent::ALL,
        },
        established: Established::Keep,
        on_lift: OnLift::Resume,
        expires: None,
        unconfirmed: None,
        comment: None,
    };
    assert_eq!(rule, expected);
}

#[test]
fn established_flows_are_killed_where_the_mode_says_so() {
    for (fields, kills) in [
        ("mode: drop", false),
        ("mode: reject", false),
        ("mode: audit", false),
        ("mode: reset", true),
        ("mode: reset, percent: 99", false),
        ("mode: reset, established: keep", false),
        ("mode: drop, established: kill", true),
        ("mode: reject, established: kill", true),
    ] {
        assert_eq!(rule(fields).unwrap().kills(), kills, "{fields}");
    }
}

#[test]
fn a_deadline_is_a_date_or_a_time_from_now() {
    let expires = |fields| rule(fields).unwrap().expires.unwrap().to_string();
    assert_eq!(expires("for: 1h30m"), "2026-06-01T13:30:00Z");
    assert_eq!(
        expires("expires: 2026-06-01T15:00:00+02:00"),
        "2026-06-01T13:00:00Z"
    );
}

#[test]
fn what_contradicts_itself_is_refused() {
    for (fields, expected) in [
        ("percent: 0", ""),
        (
            "ports: [80], protocol: icmp",
            "ports match only tcp and udp, not protocol icmp: drop the ports, or set the protocol to tcp, udp or any",
        ),
        (
            "local_ports: [80], protocol: 47",
            "ports match only tcp and udp, not protocol 47",
        ),
        (
            "remote_ports: [80], protocol: 1",
            "ports match only tcp and udp, not protocol 1",
        ),
        (
            "for: 5m, expires: 2027-01-01T00:00:00Z",
            "'for' and 'expires' both set a deadline",
        ),
        (
            "expires: 2026-06-01T12:00:00Z",
            "expires 2026-06-01T12:00:00Z is in the past",
        ),
        (
            "mode: audit, established: kill",
            "established: kill makes no sense with mode: audit: audit only counts",
        ),
        (
            "percent: 50, established: kill",
            "established: kill makes no sense with percent: 50",
        ),
        (
            "mode: audit, on_lift: reset",
            "on_lift: reset makes no sense with mode: audit",
        ),
        (
            "percent: 50, on_lift: reset",
            "on_lift: reset makes no sense with percent: 50",
        ),
        ("interfaces: [eth0/1]", "interface \"eth0/1\" is not valid"),
        (
            "interfaces: [a234567890123456]",
            "interface \"a234567890123456\" is not valid",
        ),
        ("interfaces: ['a b']", "interface \"a b\" is not valid"),
        ("interfaces: ['']", "interface \"\" is not valid"),
        ("interfaces: ['eth[']", "interface \"eth[\" is not valid"),
        ("comment: \"a\\nb\"", "comment is not valid"),
    ] {
        if expected.is_empty() {
            let error = yaml(&format!("{{targets: [10.0.0.1], {fields}}}")).unwrap_err();
            assert!(error.contains("percent 0 is not valid"), "{error}");
            continue;
        }
        let error = rule(fields).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{fields}: {error}");
    }
    let long = format!("comment: {}", "x".repeat(257));
    assert_eq!(rule(&long), Err(RuleError::Comment));
    assert!(rule(&format!("comment: {}", "ä".repeat(256))).is_ok());
    let none = resolve(RuleSpec::default());
    assert_eq!(none, Err(RuleError::NoTargets));
    let error = resolve(yaml("{targets: [10.0.0.1], targets_file: a/b}").unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "targets_file \"a/b\" is for the configuration and for blockctl, who read it themselves: over the API, send its addresses and prefixes as targets"
    );
    assert_eq!(
        "101".parse::<Percent>(),
        Err(RuleError::Percent("101".to_owned()))
    );
}

#[test]
fn what_stands_twice_or_in_another_order_is_the_same_rule() {
    let one = resolve(
        yaml("{targets: [10.0.0.2, 10.0.0.1, 10.0.0.2/32], ports: [9, 8, 9], local: ['fd00::/8', 10.1.0.2, 10.1.0.2/32], interfaces: [b, a]}")
            .unwrap(),
    );
    let other = resolve(
        yaml("{targets: [10.0.0.1, 10.0.0.2], ports: [8, 9], local: [10.1.0.2, 'fd00::/8'], interfaces: [a, b, a]}").unwrap(),
    );
    assert_eq!(one, other);
}

#[test]
fn the_effect_is_all_but_name_comment_and_deadline() {
    let plain = rule("").unwrap();
    for same in ["id: other", "comment: x", "for: 5m"] {
        assert!(plain.same_effect(&rule(same).unwrap()), "{same}");
    }
    for other in [
        "mode: reset",
        "ports: [80]",
        "except: [10.0.0.1]",
        "local: [10.1.0.2]",
        "on_lift: reset",
        "established: kill",
    ] {
        assert!(!plain.same_effect(&rule(other).unwrap()), "{other}");
    }
}

#[test]
fn a_rule_covers_the_interfaces_that_it_names() {
    let everywhere = rule("").unwrap();
    assert!(everywhere.covers_interface("eth0"));
    let some = rule("interfaces: ['veth*', eth0]").unwrap();
    for (device, expected) in [
        ("veth9", true),
        ("eth0", true),
        ("eth1", false),
        ("", false),
    ] {
        assert_eq!(some.covers_interface(device), expected, "{device}");
    }
}

#[test]
fn yaml_and_json_read_alike() {
    let from_yaml = yaml(
        r#"{id: a, targets: [10.0.0.1, "2001:db8::/32"], ports: [80, 90-99], protocol: 47, percent: 5, for: 5m}"#,
    )
    .unwrap();
    let from_json: RuleSpec = serde_json::from_str(
        r#"{"id": "a", "targets": ["10.0.0.1", "2001:db8::/32"], "ports": [80, "90-99"], "protocol": 47, "percent": 5, "for": "5m"}"#,
    )
    .unwrap();
    assert_eq!(from_yaml, from_json);
}

#[test]
fn an_id_that_looks_like_a_number_stays_as_it_is_written() {
    for id in ["1_000", "12.50", "0x10", "007", "1e3", "true"] {
        let spec = yaml(&format!("{{id: {id}, targets: [10.0.0.1]}}")).unwrap();
        assert_eq!(spec.id.unwrap().as_str(), id);
    }
}

#[test]
fn json_of_the_wrong_kind_is_refused() {
    for (text, expected) in [
        (
            r#"{"targets": [5]}"#,
            "invalid type: integer `5`, expected text",
        ),
        (
            r#"{"targets": ["10.0.0.1"], "id": 5}"#,
            "invalid type: integer `5`, expected text",
        ),
        (
            r#"{"targets": ["10.0.0.1"], "percent": 0}"#,
            "percent 0 is not valid",
        ),
        (
            r#"{"targets": ["10.0.0.1"], "percent": -1}"#,
            "percent -1 is not valid",
        ),
        (
            r#"{"targets": ["10.0.0.1"], "percent": 1.5}"#,
            "percent 1.5 is not valid",
        ),
        (
            r#"{"targets": ["10.0.0.1"], "percent": "x"}"#,
            "percent \"x\" is not valid",
        ),
        (
            r#"{"targets": ["10.0.0.1"], "ports": [70000]}"#,
            "port \"70000\" is not valid",
        ),
        (
            r#"{"targets": ["10.0.0.1"], "protocol": 256}"#,
            "protocol \"256\" is not known",
        ),
        (
            r#"{"targets": ["10.0.0.1"], "prot": 6}"#,
            "unknown field `prot`",
        ),
    ] {
        let error = serde_json::from_str::<RuleSpec>(text)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

fn lifetime(seconds: i64) -> Lifetime {
    format!("{seconds}s").parse().unwrap()
}

fn any_target() -> impl Strategy<Value = Target> {
    let v4 = (any::<u32>(), 0..=32_u8)
        .prop_map(|(bits, length)| IpNet::from(ipnet::Ipv4Net::new_assert(bits.into(), length)));
    // IPv4-mapped prefixes are not valid targets.
    let v6 = (1_u128 << 64.., 0..=128_u8)
        .prop_map(|(bits, length)| IpNet::from(ipnet::Ipv6Net::new_assert(bits.into(), length)));
    prop_oneof![v4, v6].prop_map(Target::from)
}

fn any_ports() -> impl Strategy<Value = Ports> {
    (any::<u16>(), any::<u16>()).prop_map(|(a, b)| Ports {
        first: a.min(b),
        last: a.max(b),
    })
}

prop_compose! {
    fn any_spec()(
        id in proptest::option::of("[a-z0-9][a-z0-9._-]{0,62}"),
        targets in proptest::collection::vec(any_target(), 1..4),
        except in proptest::collection::vec(any_target(), 0..2),
        mode in proptest::option::of(select(Mode::ALL)),
        direction in select(Direction::ALL),
        protocol in any::<u8>(),
        ports in proptest::collection::vec(any_ports(), 0..3),
        local in proptest::collection::vec(any_target(), 0..2),
        interfaces in proptest::collection::vec("[a-z]{1,11}[*0-9]{0,3}", 0..3),
        percent in 1..=100_u64,
        seconds in proptest::option::of(1..100_000_000_i64),
        comment in proptest::option::of("[^\\p{C}]{0,40}"),
    ) -> RuleSpec {
        RuleSpec {
            id: id.map(|id| id.parse().unwrap()),
            targets,
            except,
            mode,
            matching: Match {
                direction,
                protocol: protocol.to_string().parse().unwrap(),
                ports,
                local,
                interfaces,
                percent: percent.try_into().unwrap(),
                ..Match::default()
            },
            lifetime: seconds.map(lifetime),
            comment,
            ..RuleSpec::default()
        }
    }
}

proptest! {
    #[test]
    fn a_spec_survives_json_and_yaml(spec in any_spec()) {
        let json = serde_json::to_string(&spec).unwrap();
        prop_assert_eq!(&serde_json::from_str::<RuleSpec>(&json).unwrap(), &spec);
        let text = serde_yaml::to_string(&spec).unwrap();
        prop_assert_eq!(&yaml(&text).unwrap(), &spec, "{}", text);
    }

    #[test]
    fn a_resolved_rule_resolves_to_itself(spec in any_spec()) {
        if let Ok(rule) = resolve(spec) {
            rule.check().unwrap();
            let other_defaults = Defaults { mode: Mode::Reset };
            let again = RuleSpec::from(rule.clone()).resolve(|| unreachable!(), other_defaults, now());
            prop_assert_eq!(again, Ok(rule.clone()));
            let json = serde_json::to_string(&rule).unwrap();
            prop_assert_eq!(serde_json::from_str::<Rule>(&json).unwrap(), rule);
        }
    }

    #[test]
    fn a_part_survives_its_text(target in any_target(), ports in any_ports(), number in any::<u8>(), seconds in 1..=315_360_000_i64) {
        prop_assert_eq!(target.to_string().parse(), Ok(target));
        prop_assert_eq!(ports.to_string().parse(), Ok(ports));
        let protocol: Protocol = number.to_string().parse().unwrap();
        prop_assert_eq!(protocol.to_string().parse(), Ok(protocol));
        let lifetime = lifetime(seconds);
        prop_assert_eq!(lifetime.to_string().parse(), Ok(lifetime));
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in "\\PC{0,20}|[0-9a-f:./-]{0,30}|[0-9 hmsd.-]{0,12}") {
        let _ = text.parse::<Target>();
        let _ = text.parse::<Ports>();
        let _ = text.parse::<RuleId>();
        let _ = text.parse::<Protocol>();
        let _ = text.parse::<Lifetime>();
        let _ = text.parse::<Mode>();
    }
}
