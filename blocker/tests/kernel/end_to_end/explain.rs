//! `blockctl explain`: which rule decides, where, what it shadows, and why nothing does.

use std::net::UdpSocket;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use xtask::hosts::Pair;

use crate::blocking_pair::BlockingPair;

const CONFIG: &str = "
protect: [198.51.100.7]
rules:
  - {id: wide, targets: [198.51.100.0/24, '2001:db8:99::/48'], except: [198.51.100.9], mode: reset}
  - {id: web, targets: [198.51.100.1], protocol: tcp, local_ports: [80, 8080-8085], mode: drop}
  - {id: out, targets: [198.51.100.2], direction: egress, mode: drop}
  - {id: elsewhere, targets: [198.51.100.3], interfaces: [eth9], mode: drop}
  - {id: half, targets: ['2001:db8:99::1'], percent: 50, mode: drop}
";

/// The answers of `blockctl explain` with these words: direction, verdict, rule and hook.
fn verdicts(hosts: &BlockingPair, words: &[&str]) -> Result<Vec<[String; 4]>> {
    let answer = hosts.daemon.json(&[&["explain"], words].concat())?;
    let answers = answer["answers"].as_array().context("no answers")?;
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let of = |answer: &Value| {
        assert_eq!(answer["interfaces"], json!(["eth0"]), "{answer}");
        ["direction", "verdict", "rule", "hook"].map(|key| text(&answer[key]))
    };
    Ok(answers.iter().map(of).collect())
}

/// The outcome of each rule's trial, in order, of a packet coming in.
fn outcomes(hosts: &BlockingPair, words: &[&str]) -> Result<Vec<String>> {
    let words = [&["explain"], words, &["--direction", "ingress"]].concat();
    let answer = hosts.daemon.json(&words)?;
    let rows = answer["answers"][0]["rules"].as_array().context("rules")?;
    let text = |row: &Value| {
        format!(
            "{} {} {}",
            row["id"].as_str().unwrap_or("-"),
            row["outcome"].as_str().unwrap_or("-"),
            row["why"].as_str().unwrap_or("-")
        )
    };
    Ok(rows.iter().map(text).collect())
}

#[test]
fn the_rule_that_decides_and_those_that_do_not_are_named() -> Result<()> {
    let hosts = BlockingPair::new(CONFIG)?;
    for (words, ingress, egress) in [
        (
            &["198.51.100.1", "--protocol=tcp", "--local-port=8081"][..],
            ["dropped", "web", "xdp"],
            ["dropped", "web", "tc-egress"],
        ),
        (
            &["198.51.100.1", "--protocol=tcp", "--local-port=81"],
            ["reset", "wide", "tc-ingress"],
            ["reset", "wide", "tc-egress"],
        ),
        (
            &["198.51.100.1", "--protocol=udp"],
            ["reset", "wide", "tc-ingress"],
            ["reset", "wide", "tc-egress"],
        ),
        (
            &["198.51.100.1"],
            ["depends", "-", "-"],
            ["depends", "-", "-"],
        ),
        (
            &["198.51.100.2"],
            ["reset", "wide", "tc-ingress"],
            ["dropped", "out", "tc-egress"],
        ),
        (
            &["2001:db8:99::1", "--interface=eth*"],
            ["depends", "-", "-"],
            ["depends", "-", "-"],
        ),
        (&["203.0.113.1"], ["passed", "-", "-"], ["passed", "-", "-"]),
    ] {
        let expected = [("ingress", ingress), ("egress", egress)]
            .map(|(way, [verdict, rule, hook])| [way, verdict, rule, hook].map(str::to_owned));
        assert_eq!(verdicts(&hosts, words)?, expected, "{words:?}");
    }
    assert_eq!(
        outcomes(
            &hosts,
            &["198.51.100.1", "--protocol=tcp", "--local-port=80"]
        )?,
        ["web decides -", "wide shadowed rule web decides before it"]
    );
    assert_eq!(
        outcomes(&hosts, &["198.51.100.1"])?,
        [
            "web depends only tcp, local port 80,8080-8085",
            "wide decides -"
        ]
    );
    assert_eq!(
        outcomes(&hosts, &["198.51.100.3"])?,
        ["elsewhere no_match only on eth9", "wide decides -"]
    );
    assert_eq!(
        outcomes(&hosts, &["2001:db8:99::1"])?,
        ["half share 50% of packets", "wide decides -"]
    );
    Ok(())
}

#[test]
fn why_nothing_decides_is_told() -> Result<()> {
    let hosts = BlockingPair::new(CONFIG)?;
    let explain = |address: &str| hosts.daemon.json(&["explain", address]);
    let protected = explain("198.51.100.7")?;
    assert_eq!(protected["protected_by"], "198.51.100.7");
    assert_eq!(protected["answers"][0]["verdict"], "passed");
    assert_eq!(
        protected["answers"][0]["why"],
        "the configuration protects 198.51.100.7"
    );
    let spared = explain("198.51.100.9")?;
    assert_eq!(
        spared["spared_by"],
        json!([{"rule": "wide", "target": "198.51.100.0/24", "except": "198.51.100.9"}])
    );
    assert_eq!(
        spared["answers"][0]["why"],
        "rule wide excepts 198.51.100.9"
    );
    assert_eq!(
        explain("203.0.113.1")?["answers"][0]["why"],
        "no rule covers it"
    );
    for (words, why) in [
        (
            &["198.51.100.1", "--interface=eth9"][..],
            "attached are eth0",
        ),
        (
            &["198.51.100.1", "--protocol=icmp", "--port=80"],
            "ports match only tcp and udp",
        ),
    ] {
        let refused = hosts.daemon.blockctl(&[&["explain"], words].concat())?;
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(refused.stderr.contains(why), "{refused:?}");
    }
    Ok(())
}

/// What is explained happens, after every change.
#[test]
fn it_is_told_of_what_is_in_force_now() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let b = Pair::B.to_string();
    let words = [
        &*b,
        "--protocol=udp",
        "--local-port=9",
        "--direction=ingress",
    ];
    let verdict =
        |hosts: &BlockingPair| Ok::<_, anyhow::Error>(verdicts(hosts, &words)?[0][1].clone());
    assert_eq!(verdict(&hosts)?, "passed");
    hosts.add(&[&b, "--id", "one", "--local-port", "9"])?;
    assert_eq!(verdict(&hosts)?, "dropped");
    hosts.pair.b.enter(|| -> Result<()> {
        let socket = UdpSocket::bind((Pair::B, 0))?;
        socket.send_to(b"hello", (Pair::A, 9))?;
        Ok(())
    })??;
    hosts.wait_packets("one", 1)?;
    hosts.add(&[
        &b,
        "--id",
        "two",
        "--local-port",
        "9",
        "--protocol",
        "udp",
        "--mode",
        "audit",
    ])?;
    assert_eq!(verdict(&hosts)?, "audited");
    hosts.del(&["one"])?;
    hosts.del(&["two"])?;
    assert_eq!(verdict(&hosts)?, "passed");
    let text = hosts.daemon.blockctl(&["explain", &b])?.success()?.stdout;
    assert_eq!(
        text,
        format!("{b}: passed: no rule covers it\n  ingress  on eth0\n  egress   on eth0\n")
    );
    Ok(())
}
