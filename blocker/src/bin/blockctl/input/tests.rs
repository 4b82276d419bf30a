//! Every error of an input is found at once and names its place.

use super::*;

fn now() -> Timestamp {
    "2026-11-23T21:30:00Z".parse().unwrap()
}

fn add(targets: &[&str]) -> AddArgs {
    AddArgs {
        targets: texts(targets),
        ..AddArgs::default()
    }
}

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

#[test]
#[allow(clippy::needless_update, reason = "a new flag is tested by itself")]
fn every_flag_becomes_its_field() {
    let some = |text: &str| Some(text.to_owned());
    let args = AddArgs {
        id: some("dev01"),
        mode: some("reset"),
        matching: MatchArgs {
            direction: some("ingress"),
            protocol: some("tcp"),
            ports: texts(&["80"]),
            local_ports: texts(&["1-2", " 3"]),
            remote_ports: texts(&["443"]),
            local: texts(&["10.1.0.0/24", " fd00::/8"]),
            interfaces: texts(&["eth0"]),
            percent: some("100"),
            ..MatchArgs::default()
        },
        established: some("keep"),
        on_lift: some("reset"),
        lifetime: some("1h30m"),
        comment: some("INC-1234"),
        except: texts(&["10.0.0.1"]),
        ..add(&["10.0.0.0/8", "2001:db8::1"])
    };
    let json = serde_json::to_value(spec(&args, now()).unwrap().0).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "id": "dev01", "targets": ["10.0.0.0/8", "2001:db8::1"], "except": ["10.0.0.1"],
            "mode": "reset", "direction": "ingress", "protocol": "tcp", "ports": ["80"],
            "local_ports": ["1-2", "3"], "remote_ports": ["443"],
            "local": ["10.1.0.0/24", "fd00::/8"], "interfaces": ["eth0"],
            "established": "keep", "on_lift": "reset", "for": "1h 30m",
            "comment": "INC-1234",
        })
    );
    let part = AddArgs {
        matching: MatchArgs {
            percent: some("30%"),
            ..MatchArgs::default()
        },
        ..add(&["10.0.0.1"])
    };
    assert_eq!(
        serde_json::to_value(spec(&part, now()).unwrap().0).unwrap(),
        serde_json::json!({"targets": ["10.0.0.1"], "percent": 30})
    );
    let read: RuleSpec = serde_json::from_value(json).unwrap();
    assert_eq!(
        read.lifetime,
        Some("90m".parse().unwrap()),
        "the daemon reads what was meant"
    );
}

#[test]
fn all_flaws_are_reported_at_once() {
    let some = |text: &str| Some(text.to_owned());
    let args = AddArgs {
        id: some("Dev"),
        matching: MatchArgs {
            ports: texts(&["80", "99999"]),
            percent: some("many"),
            ..MatchArgs::default()
        },
        lifetime: some("soon"),
        expires: some("tomorrow"),
        ..add(&["10.0.0.300", "192.0.2.7", "10.0.0.1/8"])
    };
    let flaws = spec(&args, now()).unwrap_err();
    insta::assert_snapshot!(flaws.join("\n"), @r#"
    --id: id "Dev" is not valid: 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit
    TARGET: target "10.0.0.300" is neither an address nor a prefix: write 192.0.2.7, 192.0.2.0/24, 2001:db8::1 or 2001:db8::/32
    TARGET: target "10.0.0.1/8" has bits set behind its prefix length: write 10.0.0.0/8 for the whole prefix, or 10.0.0.1 for the one address
    --port: port "99999" is not valid: write a port from 0 to 65535, or a range such as 8080-8085
    --percent: percent "many" is not valid: a whole number from 1 to 100
    --for: duration "soon" is not valid: write 30s, 5m, 1h30m or 2d, more than nothing and at most 3650d
    --expires: time "tomorrow" is not valid: write RFC 3339 with its offset, such as 2026-01-31T18:00:00Z or 2026-01-31T19:00:00+01:00
    "#);
}

#[test]
fn the_whole_rule_is_checked_and_the_flag_named() {
    let case = |change: &dyn Fn(&mut AddArgs)| {
        let mut args = add(&["10.0.0.1"]);
        change(&mut args);
        spec(&args, now()).unwrap_err().join("\n")
    };
    let some = |text: &str| Some(text.to_owned());
    let all = [
        case(&|a| a.matching.percent = some("0")),
        case(&|a| a.matching.interfaces = texts(&["a/b"])),
        case(&|a| a.comment = some("a\nb")),
        case(&|a| a.expires = some("2020-01-01T00:00:00Z")),
        case(&|a| (a.lifetime, a.expires) = (some("5m"), some("2030-01-01T00:00:00Z"))),
        case(&|a| (a.matching.protocol, a.matching.ports) = (some("icmp"), texts(&["80"]))),
        case(&|a| (a.mode, a.established) = (some("audit"), some("kill"))),
    ];
    insta::assert_snapshot!(all.join("\n"), @r#"
    --percent: percent 0 is not valid: a whole number from 1 to 100
    --interface: interface "a/b" is not valid: a device name of 1 to 15 characters without '/' or blanks, or a glob such as veth*
    --comment: comment is not valid: at most 256 characters, none of them a control character
    --expires: expires 2020-01-01T00:00:00Z is in the past
    --for, --expires: 'for' and 'expires' both set a deadline: give one of them
    --port, --protocol: ports match only tcp and udp, not protocol icmp: drop the ports, or set the protocol to tcp, udp or any
    established: kill makes no sense with mode: audit: audit only counts
    "#);
}

#[test]
fn what_depends_on_the_daemons_default_mode_is_left_to_it() {
    let args = AddArgs {
        established: Some("kill".into()),
        ..add(&["10.0.0.1"])
    };
    assert!(spec(&args, now()).is_ok());
}

#[test]
fn arguments_of_del() {
    let read = |text: &str| named(&texts(&[text]));
    let (id, target) = ("10.0.0.1".parse().unwrap(), "10.0.0.1".parse().unwrap());
    assert_eq!(read("10.0.0.1"), Ok(vec![Named::Either(id, target)]));
    assert_eq!(
        read("10.0.0.0/8"),
        Ok(vec![Named::Target("10.0.0.0/8".parse().unwrap())])
    );
    assert_eq!(read("dev01"), Ok(vec![Named::Id("dev01".parse().unwrap())]));
    let flaws = named(&texts(&["10.0.0.1/8", "dev01", "Dev 1"])).unwrap_err();
    insta::assert_snapshot!(flaws.join("\n"), @r#"
    target "10.0.0.1/8" has bits set behind its prefix length: write 10.0.0.0/8 for the whole prefix, or 10.0.0.1 for the one address
    "Dev 1" is neither a rule's id nor an address or prefix: see `blockctl list`
    "#);
}

#[test]
fn a_ruleset_in_yaml_and_in_json_is_the_same() {
    let yaml = "# ours\nrules:\n  - id: a\n    targets: [10.0.0.1]\n    ports: [80, 8080-8085]\n    for: 5m\n";
    let json = r#" {"rules": [{"id": "a", "targets": ["10.0.0.1"], "ports": [80, "8080-8085"], "for": "5m"}]}"#;
    let (yaml, json) = (
        ruleset("a.yaml", yaml, Invalid::Refuse, now()).unwrap().0,
        ruleset("a.json", json, Invalid::Refuse, now()).unwrap().0,
    );
    assert_eq!(yaml.rules, json.rules);
    assert_eq!(yaml.rules[0].matching.ports.len(), 2);
    assert!(
        ruleset("-", "rules: []", Invalid::Refuse, now())
            .unwrap()
            .0
            .rules
            .is_empty()
    );
}

#[test]
fn errors_in_a_ruleset_say_where() {
    let case = |text: &str| {
        ruleset("f", text, Invalid::Refuse, now())
            .unwrap_err()
            .join("\n")
    };
    insta::assert_snapshot!(case("  \n"), @"f: is empty: write `rules: []` to lift every rule of the API");
    insta::assert_snapshot!(case("rules:\n  - targets: [10.0.0.300]\n"), @r#"f:2:15: target "10.0.0.300" is neither an address nor a prefix: write 192.0.2.7, 192.0.2.0/24, 2001:db8::1 or 2001:db8::/32"#);
    insta::assert_snapshot!(case("rules:\n  - tragets: [10.0.0.3]\n"), @"f:2:5: unknown field `tragets`, expected one of id, targets, targets_file, except, mode, direction, protocol, ports, local_ports, remote_ports, local, interfaces, percent, established, on_lift, for, expires, confirm_within, comment");
    insta::assert_snapshot!(case("{\"rules\": [{\"targets\": [\"10.0.0.300\"]}]}"), @r#"f:1:36: target "10.0.0.300" is neither an address nor a prefix: write 192.0.2.7, 192.0.2.0/24, 2001:db8::1 or 2001:db8::/32"#);
    insta::assert_snapshot!(case("rules:\n  - id: a\n    targets: []\n  - targets: [10.0.0.1]\n    percent: 0\n"), @"f:5:14: percent 0 is not valid: a whole number from 1 to 100");
    insta::assert_snapshot!(case("targets: [10.0.0.1]\n"), @"f:1:1: unknown field `targets`, expected one of rules");
}

#[test]
fn a_ruleset_may_be_large() {
    let mut yaml = "rules:\n  - targets:\n".to_owned();
    for i in 0..300_000_u32 {
        yaml += &format!("      - {}\n", std::net::Ipv4Addr::from(0x0a00_0000 + i));
    }
    let request = ruleset("large", &yaml, Invalid::Refuse, now()).unwrap().0;
    assert_eq!(request.rules[0].targets.len(), 300_000);
}
