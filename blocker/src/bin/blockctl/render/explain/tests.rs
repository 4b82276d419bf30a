//! What is read in a hurry, at 80 columns.

use serde_json::{Value, json};

use super::*;

fn row(id: &str, target: &str, outcome: &str, hook: &str, why: &str) -> Value {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({"id": id, "target": target, "mode": "drop", "outcome": outcome, "hook": some(hook),
        "why": some(why)})
}

fn text(answer: &Value) -> String {
    let answer: ExplainResponse = serde_json::from_value(answer.clone()).unwrap();
    let view = View {
        width: Some(80),
        now: "2026-11-23T21:30:00Z".parse().unwrap(),
    };
    anstream::adapter::strip_str(&explained(&answer, view)).to_string()
}

fn decided(direction: &str, hook: &str) -> Value {
    json!({"direction": direction, "interfaces": ["eth0"], "verdict": "dropped", "rule": "dev01",
    "hook": hook, "rules": [
        row("udp", "10.1.2.3", "no_match", "", "only udp"),
        row("dev01", "10.1.0.0/16", "decides", hook, ""),
        row("wide", "10.0.0.0/8", "shadowed", "", "rule dev01 decides before it"),
    ]})
}

#[test]
fn one_rule_decides_both_ways() {
    let answers = json!([decided("ingress", "xdp"), decided("egress", "tc-egress")]);
    insta::assert_snapshot!(text(&json!({"address": "10.1.2.3", "answers": answers})), @"
    10.1.2.3: dropped by rule dev01 (10.1.0.0/16)
      ingress  at XDP on eth0
      egress   at TC on eth0

    RULE   TARGET       MODE  RESULT    AT       WHY
    udp    10.1.2.3     drop  no match           only udp
    dev01  10.1.0.0/16  drop  decides   XDP, TC
    wide   10.0.0.0/8   drop  shadowed           rule dev01 decides before it
    ");
}

#[test]
fn ways_differ() {
    let passed = json!({"direction": "egress", "interfaces": ["eth0"], "verdict": "passed",
        "why": "no rule that covers it takes such packets",
        "rules": [row("in", "10.1.2.3", "no_match", "", "only ingress")]});
    let dropped = json!({"direction": "ingress", "interfaces": ["eth0"], "verdict": "dropped",
        "rule": "in", "hook": "xdp",
        "rules": [row("in", "10.1.2.3", "decides", "xdp", "")]});
    let answer = json!({"address": "10.1.2.3", "answers": [dropped, passed]});
    insta::assert_snapshot!(text(&answer), @"
    10.1.2.3: ingress dropped, egress passed
      ingress  dropped by rule in (10.1.2.3), at XDP on eth0
      egress   passed: no rule that covers it takes such packets, on eth0

    ingress on eth0:
    RULE  TARGET    MODE  RESULT   AT
    in    10.1.2.3  drop  decides  XDP

    egress on eth0:
    RULE  TARGET    MODE  RESULT    WHY
    in    10.1.2.3  drop  no match  only ingress
    ");
}

#[test]
fn devices_differ() {
    let of = |device: &str, verdict: &str, rules: Value| {
        let why = (verdict == "passed").then_some("no rule that covers it takes such packets");
        json!({"direction": "ingress", "interfaces": [device], "verdict": verdict, "why": why,
            "rules": rules})
    };
    let taken = json!([row("in", "10.1.2.3", "decides", "xdp", "")]);
    let missed = json!([row("in", "10.1.2.3", "no_match", "", "only on eth0")]);
    let answer = json!({"address": "10.1.2.3",
        "answers": [of("eth0", "dropped", taken), of("eth1", "passed", missed)]});
    let text = text(&answer);
    let first = text.lines().next();
    assert_eq!(
        first,
        Some("10.1.2.3: ingress on eth0 dropped, ingress on eth1 passed")
    );
}

#[test]
fn it_depends() {
    let answer = json!({"address": "10.1.2.3", "answers": [
        {"direction": "ingress", "interfaces": ["eth0", "eth1"], "verdict": "depends", "rules": [
            row("web", "10.1.2.3", "depends", "xdp", "only port 80,443"),
            row("half", "10.1.0.0/16", "share", "tc-ingress", "50% of packets"),
        ], "notes": ["a TCP RST passes a reset rule: it ends the flow"]}]});
    insta::assert_snapshot!(text(&answer), @"
    10.1.2.3: depends: dropped by rule web (only port 80,443),
      else dropped by rule half (50% of packets),
      else passed
      ingress  on eth0, eth1
    note: a TCP RST passes a reset rule: it ends the flow

    RULE  TARGET       MODE  RESULT        AT   WHY
    web   10.1.2.3     drop  depends       XDP  only port 80,443
    half  10.1.0.0/16  drop  takes a part  TC   50% of packets
    ");
}

#[test]
fn nothing_decides() {
    let passed = |why: &str| {
        let of = |direction: &str| {
            json!({"direction": direction, "interfaces": ["eth0"],
            "verdict": "passed", "why": why, "rules": []})
        };
        json!([of("ingress"), of("egress")])
    };
    insta::assert_snapshot!(text(&json!({"address": "2001:db8::1", "answers": passed("no rule covers it")})), @"
    2001:db8::1: passed: no rule covers it
      ingress  on eth0
      egress   on eth0
    ");
    let spared = json!([{"rule": "wide", "target": "10.0.0.0/8", "except": "10.1.2.3"}]);
    insta::assert_snapshot!(text(&json!({"address": "10.1.2.3", "spared_by": spared,
        "answers": passed("rule wide excepts 10.1.2.3")})), @"
    10.1.2.3: passed: rule wide excepts 10.1.2.3
      ingress  on eth0
      egress   on eth0
    spared by rule wide: it targets 10.0.0.0/8 and excepts 10.1.2.3
    ");
    insta::assert_snapshot!(text(&json!({"address": "10.1.2.3", "answers": []})), @"10.1.2.3: passed: no interface is attached, nothing is enforced");
}
