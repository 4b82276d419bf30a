//! Refusals and carve-outs, case by case.

use super::*;
use crate::rule::sample::rule;

fn facts() -> HostFacts {
    HostFacts {
        own: vec![
            "10.0.0.10".parse().unwrap(),
            "2001:db8::10".parse().unwrap(),
        ],
        gateways: vec![("10.0.0.1".parse().unwrap(), "eth0".into())],
        resolvers: vec!["10.0.0.2".parse().unwrap(), "9.9.9.9".parse().unwrap()],
        ssh_peer: Some("10.0.0.3".parse().unwrap()),
    }
}

const PROTECT: &str = "10.0.0.64/26";

/// What was carved, and the rule's exceptions after it.
fn reviewed(targets: &str, fields: &str, force: bool) -> Result<(Vec<String>, String), Refusal> {
    let mut rule = rule("a", targets, fields);
    let before = rule.clone();
    let protect = [PROTECT.parse().unwrap()];
    match review(&mut rule, &facts(), &protect, force) {
        Ok(carved) => {
            let except: Vec<String> = rule.except.iter().map(ToString::to_string).collect();
            let carved = carved
                .into_iter()
                .map(|c| format!("{}: {}", c.target, c.why))
                .collect();
            Ok((carved, except.join(" ")))
        }
        Err(refusal) => {
            assert_eq!(rule, before, "a refused rule is unchanged");
            Err(refusal)
        }
    }
}

#[test]
fn what_would_cut_off_the_host_or_the_caller_is_refused_and_force_overrides() {
    for (target, why) in [
        ("10.0.0.3", "your own SSH session comes from it"),
        ("10.0.0.1", "it is the default gateway on eth0"),
        ("10.0.0.2", "it is a configured resolver"),
        ("9.9.9.9", "it is a configured resolver"),
        ("10.0.0.10", "it is this host's own address"),
        ("2001:db8::10", "it is this host's own address"),
        ("0.0.0.0/0", "it is everything at once"),
        ("::/0", "it is everything at once"),
    ] {
        // Wherever in the rule it stands.
        let refusal = reviewed(&format!("1.1.1.1 {target}"), "{}", false).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            format!("refused to block {target}: {why} (--force overrides this)")
        );
        assert!(refusal.overridable);
        assert_eq!(refusal.target.to_string(), target);
        assert!(reviewed(target, "{}", true).is_ok());
    }
}

#[test]
fn loopback_and_protected_prefixes_are_refused_whatever_the_force() {
    for (target, why) in [
        ("127.0.0.1", "it is loopback, which is never filtered"),
        ("127.0.0.0/8", "it is loopback, which is never filtered"),
        ("127.5.0.0/16", "it is loopback, which is never filtered"),
        ("::1", "it is loopback, which is never filtered"),
        ("10.0.0.64/26", "the configuration protects 10.0.0.64/26"),
        ("10.0.0.64/27", "the configuration protects 10.0.0.64/26"),
        ("10.0.0.127", "the configuration protects 10.0.0.64/26"),
    ] {
        for force in [false, true] {
            let refusal = reviewed(target, "{}", force).unwrap_err();
            assert_eq!(
                refusal.to_string(),
                format!("refused to block {target}: {why} (--force does not override this)")
            );
        }
    }
}

#[test]
fn a_wider_prefix_is_accepted_without_what_it_is_to_spare() {
    let (carved, except) = reviewed("10.0.0.0/8", "{}", false).unwrap();
    assert_eq!(
        carved,
        [
            "10.0.0.64/26: the configuration protects 10.0.0.64/26",
            "10.0.0.3: your own SSH session comes from it",
            "10.0.0.10: it is this host's own address",
            "10.0.0.1: it is the default gateway on eth0",
            "10.0.0.2: it is a configured resolver",
        ]
    );
    assert_eq!(except, "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.10 10.0.0.64/26");
}

#[test]
fn a_forced_everything_leaves_the_caller_the_host_itself_and_what_is_protected() {
    let (_, except) = reviewed("0.0.0.0/0", "{}", true).unwrap();
    assert_eq!(except, "10.0.0.3 10.0.0.10 10.0.0.64/26 127.0.0.0/8");
    let (carved, _) = reviewed("::/0", "{}", true).unwrap();
    assert_eq!(
        carved,
        [
            "::1: it is loopback",
            "2001:db8::10: it is this host's own address"
        ]
    );
}

#[test]
fn what_a_forced_rule_names_itself_is_not_carved_out_again() {
    let (carved, except) = reviewed("10.0.0.0/29 10.0.0.3", "{}", true).unwrap();
    assert!(carved.is_empty(), "{carved:?}");
    assert_eq!(except, "");
}

#[test]
fn what_the_rule_spares_already_is_not_carved_out_again() {
    let fields = "{except: [10.0.0.0/30]}";
    let (carved, except) = reviewed("10.0.0.0/28", fields, false).unwrap();
    assert_eq!(carved, ["10.0.0.10: it is this host's own address"]);
    assert_eq!(except, "10.0.0.0/30 10.0.0.10");
}

#[test]
fn a_rule_that_touches_nothing_of_this_stays_as_it_is() {
    let (carved, except) = reviewed("192.0.2.0/24 2001:db8:1::/48", "{}", false).unwrap();
    assert!(carved.is_empty());
    assert_eq!(except, "");
}

#[test]
fn an_address_that_is_several_things_is_reported_once() {
    let mut facts = facts();
    facts.resolvers = vec!["10.0.0.1".parse().unwrap()];
    let mut rule = rule("a", "10.0.0.0/30", "{}");
    let carved = review(&mut rule, &facts, &[], false).unwrap();
    let targets: Vec<String> = carved.iter().map(|c| c.target.to_string()).collect();
    assert_eq!(targets, ["10.0.0.3", "10.0.0.1"]);
}

#[test]
fn audit_harms_nobody() {
    let audit = "{mode: audit}";
    for target in ["10.0.0.3", "0.0.0.0/0", "10.0.0.64/26", "10.0.0.0/8"] {
        assert_eq!(
            reviewed(target, audit, false),
            Ok((Vec::new(), String::new()))
        );
    }
    assert!(!reviewed("127.0.0.1", audit, true).unwrap_err().overridable);
}
