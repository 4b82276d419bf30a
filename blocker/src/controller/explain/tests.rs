//! Verdicts, reasons and hooks, over compiled rules; no datapath.

use super::*;
use crate::compile::{Input, Limits, RuleInput, compile};
use crate::rule::sample::rule;

const NOW: u64 = 1_000;
const ETH0: u32 = 2;

fn packet(hook: Hook, protocol: Option<u8>, local: Option<u16>) -> Packet {
    Packet {
        v6: false,
        hook,
        device: Some(ETH0),
        local: None,
        protocol,
        ports: PacketPorts::Sides {
            local,
            remote: None,
        },
    }
}

/// What becomes of a packet of 10.0.0.1 under these rules, on a device with XDP.
fn explained(rules: &[Rule], packet: &Packet) -> Explanation {
    let inputs: Vec<_> = (0..)
        .zip(rules)
        .map(|(counter, rule)| RuleInput {
            rule,
            deadline: rule.expires.map_or(blocker_ebpf::NEVER, |_| NOW - 1),
            counter,
            interfaces: (!rule.matching.interfaces.is_empty()).then(|| vec![ETH0 + 1]),
        })
        .collect();
    let input = Input {
        rules: &inputs,
        protect: &[],
        generic_xdp: false,
    };
    let address = "10.0.0.1".parse().unwrap();
    let snapshot = compile(&input, &Limits::sized(1_000, 1_000, 100)).unwrap();
    let decider = Decider::new(snapshot.tried(address));
    let listed = |tried: &Tried| {
        let rule = &rules[tried.rule.counter as usize];
        Listed {
            target: covering(&rule.targets, address).unwrap(),
            rule,
        }
    };
    let listed: Vec<_> = decider.rules().iter().map(listed).collect();
    let trials = trials(&decider, &listed, packet, true, NOW);
    conclusion(trials, packet, "nothing")
}

/// A line for each rule.
fn lines(answer: &Explanation) -> Vec<String> {
    let line = |row: &TriedRule| {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        format!(
            "{} {} {:?} {} {}",
            row.id,
            row.target,
            row.outcome,
            text(&row.hook),
            text(&row.why)
        )
    };
    answer.rules.iter().map(line).collect()
}

#[test]
fn the_first_that_takes_it_decides_and_shadows_the_others() {
    let rules = [
        rule("wide", "10.0.0.0/8", "{mode: reset}"),
        rule("host", "10.0.0.1", "{mode: drop}"),
        rule("out", "10.0.0.1", "{mode: drop, direction: egress}"),
        rule("udp", "10.0.0.0/16", "{mode: drop, protocol: udp}"),
        rule("other", "10.0.0.0/16", "{mode: drop, interfaces: [eth1]}"),
        rule(
            "over",
            "10.0.0.1",
            "{mode: drop, protocol: tcp, expires: '2026-02-01T00:00:00Z'}",
        ),
    ];
    let answer = explained(&rules, &packet(Hook::Ingress, Some(TCP), Some(80)));
    assert_eq!(
        (answer.verdict, answer.rule, answer.hook.as_deref()),
        (Fate::Dropped, Some("host".parse().unwrap()), Some("xdp"))
    );
    let answer = explained(&rules, &packet(Hook::Ingress, Some(TCP), Some(80)));
    assert_eq!(
        lines(&answer),
        [
            "over 10.0.0.1 NoMatch - its deadline is over",
            "out 10.0.0.1 NoMatch - only egress",
            "host 10.0.0.1 Decides xdp -",
            "udp 10.0.0.0/16 NoMatch - only udp",
            "other 10.0.0.0/16 NoMatch - only on eth1",
            "wide 10.0.0.0/8 Shadowed - rule host decides before it",
        ]
    );
}

#[test]
fn going_out_nothing_is_settled_at_xdp() {
    let rules = [rule("r", "10.0.0.1", "{mode: drop}")];
    let answer = explained(&rules, &packet(Hook::Egress, None, None));
    assert_eq!(answer.hook.as_deref(), Some("tc-egress"));
    for (mode, verdict, notes) in [
        ("reset", Fate::Reset, 1),
        ("reject", Fate::Rejected, 0),
        ("audit", Fate::Audited, 0),
    ] {
        let rules = [rule("r", "10.0.0.1", &format!("{{mode: {mode}}}"))];
        let answer = explained(&rules, &packet(Hook::Ingress, None, None));
        assert_eq!(answer.verdict, verdict);
        assert_eq!(answer.hook.as_deref(), Some("tc-ingress"), "{mode}");
        assert_eq!(answer.notes.len(), notes, "{mode}");
    }
}

#[test]
fn what_is_not_known_leaves_the_verdict_open_unless_it_makes_no_difference() {
    let web = rule("web", "10.0.0.1", "{mode: drop, ports: [80, 8080-8085]}");
    let half = rule("half", "10.0.0.1", "{mode: drop, percent: 50}");
    let all = rule("all", "10.0.0.0/8", "{mode: drop}");
    let reset = rule("all", "10.0.0.0/8", "{mode: reset}");
    let anything = packet(Hook::Ingress, None, None);
    let answer = explained(std::slice::from_ref(&web), &anything);
    assert_eq!((answer.verdict, answer.rule.clone()), (Fate::Depends, None));
    assert_eq!(
        lines(&answer),
        ["web 10.0.0.1 Depends xdp only port 80,8080-8085"]
    );
    let answer = explained(&[web.clone(), half, reset], &anything);
    assert_eq!(answer.verdict, Fate::Depends);
    assert_eq!(
        lines(&answer)[1..],
        [
            "half 10.0.0.1 Share tc-ingress 50% of packets",
            "all 10.0.0.0/8 Decides tc-ingress -",
        ]
    );
    let answer = explained(&[web.clone(), all], &anything);
    assert_eq!((answer.verdict, answer.rule), (Fate::Dropped, None));
    let answer = explained(&[web], &packet(Hook::Ingress, Some(ICMP), None));
    assert_eq!(answer.verdict, Fate::Passed);
    assert_eq!(answer.why.as_deref(), Some("nothing"));
}

#[test]
fn one_address_is_asked_for() {
    let error = host("10.0.0.0/8".parse().unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "10.0.0.0/8 is a prefix, but one packet is explained: name one address of it, such as 10.0.0.1"
    );
}
