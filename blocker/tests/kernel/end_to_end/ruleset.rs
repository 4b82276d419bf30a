//! Whole rulesets: `apply` is a diff and one change; a ruleset over a limit is refused as a whole.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use nix::errno::Errno;
use serde_json::{Value, json};
use xtask::hosts::{Connection, Output, Pair};

use crate::blocking_pair::{BlockingPair, connect_error, settle, soon};

/// `blockctl apply` of a file of this text.
fn apply(hosts: &BlockingPair, text: &str, words: &[&str]) -> Result<Output> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("rules.yaml");
    fs::write(&path, text)?;
    let file = path.display().to_string();
    hosts
        .daemon
        .blockctl(&[&["-o", "json", "apply", "-f", &file], words].concat())
}

/// The ids of the rules in force.
fn ids(hosts: &BlockingPair) -> Result<Vec<String>> {
    let list = hosts.daemon.json(&["list"])?;
    let rules = list["rules"].as_array().context("a list of rules")?;
    let ids = rules.iter().filter_map(|rule| rule["id"].as_str());
    Ok(ids.map(str::to_owned).collect())
}

/// The ids in a part of what `apply` answers.
fn part(answer: &Value, name: &str) -> Vec<String> {
    let rules = answer[name].as_array().cloned().unwrap_or_default();
    let id = |rule: &Value| {
        let rule = if name == "changed" {
            &rule["after"]
        } else {
            rule
        };
        rule["id"].as_str().unwrap_or_default().to_owned()
    };
    rules.iter().map(id).collect()
}

#[test]
fn apply_changes_what_differs_and_says_what() -> Result<()> {
    let hosts = BlockingPair::new("rules: [{id: fixed, targets: [198.51.100.9]}]\n")?;
    hosts.add(&["198.51.100.1", "--id", "going"])?;
    hosts.add(&["198.51.100.2", "--id", "staying"])?;
    hosts.add(&["198.51.100.3", "--id", "changing"])?;
    let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?;
    let file = format!(
        "rules:\n\
         - {{id: staying, targets: [198.51.100.2]}}\n\
         - {{id: changing, targets: [198.51.100.3], mode: reject}}\n\
         - {{id: coming, targets: [{}], mode: reset}}\n",
        Pair::B
    );
    let dry = apply(&hosts, &file, &["--dry-run"])?.success()?.json()?;
    assert_eq!(dry["dry_run"], true);
    assert_eq!(ids(&hosts)?, ["changing", "fixed", "going", "staying"]);
    flow.check_alive()?;
    settle(&flow)?;

    let done = apply(&hosts, &file, &[])?.success()?.json()?;
    for answer in [&dry, &done] {
        assert_eq!(part(answer, "added"), ["coming"], "{answer}");
        assert_eq!(part(answer, "removed"), ["going"], "{answer}");
        assert_eq!(part(answer, "changed"), ["changing"], "{answer}");
        assert_eq!(answer["unchanged"], 1, "{answer}");
    }
    assert_eq!(done["teardown"]["killed"], 1, "{done}");
    assert_eq!(ids(&hosts)?, ["changing", "coming", "fixed", "staying"]);
    assert!(flow.wait_dead(soon())?);

    let again = apply(&hosts, &file, &[])?.success()?.json()?;
    assert_eq!(
        (&again["unchanged"], &again["added"]),
        (&json!(3), &json!([]))
    );
    apply(&hosts, "rules: []\n", &[])?.success()?;
    assert_eq!(ids(&hosts)?, ["fixed"]);
    Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?.check_alive()
}

#[test]
fn apply_of_a_target_more_leaves_the_flows_of_the_others_alone() -> Result<()> {
    let rule = |targets| format!("rules: [{{id: a, targets: [{targets}], on_lift: reset}}]\n");
    let (one, two) = (
        rule(format!("{}", Pair::B)),
        rule(format!("{}, 192.0.2.9", Pair::B)),
    );
    let hosts = BlockingPair::new("")?;
    let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?;
    for file in [&one, &two, &one] {
        apply(&hosts, file, &[])?.success()?;
        for end in [&flow.client, &flow.server] {
            assert_eq!(end.state()?, "ESTABLISHED", "{file}");
        }
    }
    apply(&hosts, "rules: []\n", &[])?.success()?;
    assert!(flow.wait_dead(soon())?, "{flow:?}");
    Ok(())
}

#[test]
fn apply_takes_all_or_nothing() -> Result<()> {
    let hosts = BlockingPair::new("rules: [{id: fixed, targets: [198.51.100.9]}]\n")?;
    let b = Pair::B.to_string();
    hosts.add(&[&b, "--mode", "reset", "--id", "mine"])?;
    for (bad, code) in [
        (
            "rules: [{targets: [198.51.100.1]}, {targets: [198.51.100.1/8]}]",
            2,
        ),
        (
            "rules: [{targets: [198.51.100.1]}, {targets: [198.51.100.2], mode: explode}]",
            2,
        ),
        ("rules: [{targets: [198.51.100.1]}, {targets: []}]", 2),
        (
            "rules: [{id: a, targets: [198.51.100.1]}, {id: a, targets: [198.51.100.2]}]",
            2,
        ),
        (
            "rules: [{targets: [198.51.100.1]}, {id: fixed, targets: [198.51.100.2]}]",
            2,
        ),
        (
            "rules: [{targets: [198.51.100.1]}, {targets: [127.0.0.1]}]",
            5,
        ),
        ("rules: [{targets: [198.51.100.1]}]\nmore: 1\n", 2),
        ("rules: [", 2),
    ] {
        let said = apply(&hosts, bad, &[])?;
        assert_eq!(said.code, code, "{bad}: {}{}", said.stdout, said.stderr);
        assert_eq!(ids(&hosts)?, ["fixed", "mine"], "{bad}");
        let refused = connect_error(&hosts.pair.b, (Pair::A, 9).into())?;
        assert_eq!(refused, Some(Errno::ECONNREFUSED), "{bad}");
    }
    Ok(())
}

#[test]
fn what_exceeds_a_limit_is_refused_whole() -> Result<()> {
    let hosts = BlockingPair::new("limits: {rules: 3, prefixes: 6}\n")?;
    let refused = |words: &[&str]| -> Result<()> {
        let said = hosts.daemon.blockctl(&[&["add"], words].concat())?;
        assert_eq!(said.code, 2, "{words:?}: {}{}", said.stdout, said.stderr);
        assert!(said.stderr.contains("limit"), "{}", said.stderr);
        Ok(())
    };
    let b = Pair::B.to_string();
    let many: Vec<String> = (0..6).map(|n| format!("198.51.100.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    refused(&[&many[..], &[&b]].concat())?;
    assert_eq!(ids(&hosts)?, Vec::<String>::new());
    Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?.check_alive()?;

    // To the brim it fits.
    hosts.add(&[&many[..4], &["--id", "a"]].concat())?;
    refused(&[&many[4..], &[&b]].concat())?;
    hosts.add(&[&b, "--mode", "reset", "--id", "b"])?;
    hosts.add(&["198.51.100.5", "--id", "c"])?;
    refused(&["198.51.100.5", "--mode", "audit"])?;
    let file: String = (0..4)
        .map(|n| format!("- {{targets: [192.0.2.{n}]}}\n"))
        .collect();
    let said = apply(&hosts, &format!("rules:\n{file}"), &[])?;
    assert_eq!(said.code, 2, "{}", said.stderr);
    assert_eq!(ids(&hosts)?, ["a", "b", "c"]);
    let status = hosts.daemon.json(&["status"])?;
    assert_eq!(status["rules"], json!({"used": 3, "allowed": 3}));
    assert_eq!(status["prefixes"], json!({"used": 6, "allowed": 6}));
    let refused = connect_error(&hosts.pair.b, (Pair::A, 9).into())?;
    assert_eq!(refused, Some(Errno::ECONNREFUSED));
    // What goes makes room.
    hosts.del(&["c"])?;
    hosts.add(&["198.51.100.7", "--id", "d"])?;
    Ok(())
}

#[test]
fn a_large_ruleset_is_one_change() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let mut targets: Vec<String> = (0..100_000_u32)
        .map(|n| format!("100.{}.{}.{}", 64 + (n >> 16), n >> 8 & 0xff, n & 0xff))
        .collect();
    targets.push(Pair::B.to_string());
    let file = json!({"rules": [{"id": "list", "mode": "reset", "targets": targets}]});
    let done = apply(&hosts, &file.to_string(), &["-q"])?;
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(hosts.daemon.json(&["status"])?["prefixes"]["used"], 100_001);
    let refused = connect_error(&hosts.pair.b, (Pair::A, 9).into())?;
    assert_eq!(refused, Some(Errno::ECONNREFUSED));
    hosts.del(&["list"])?;
    Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?.check_alive()
}

/// A target that rules of all writers name.
const SHARED: &str = "203.0.113.1";

/// The targets of every rule in force, by id.
fn targets(hosts: &BlockingPair) -> Result<BTreeMap<String, Vec<String>>> {
    let list = hosts.daemon.json(&["list"])?;
    let rules = list["rules"].as_array().context("a list of rules")?;
    let of = |rule: &Value| {
        let id = serde_json::from_value(rule["id"].clone())?;
        Ok((id, serde_json::from_value(rule["targets"].clone())?))
    };
    rules.iter().map(of).collect()
}

/// Checks that rulesets, rules and a deletion were applied one at a time, in any order.
fn assert_serial(rules: &BTreeMap<String, Vec<String>>) {
    let shared = |targets: &Vec<String>| targets.iter().any(|target| target == SHARED);
    let (base, added): (Vec<_>, Vec<_>) = rules.iter().partition(|(id, _)| id.starts_with("set"));
    let [(first, one), (second, two)] = base[..] else {
        panic!("not one ruleset: {rules:?}");
    };
    // The last ruleset is there whole, and alone.
    assert_eq!(first[..4], second[..4], "{rules:?}");
    // A deletion after it took the target out of both its rules; without one, whatever was added
    // after it has the target still.
    assert_eq!(shared(one), shared(two), "{rules:?}");
    if shared(one) {
        assert!(
            added.iter().all(|(_, targets)| shared(targets)),
            "{rules:?}"
        );
    }
    for (id, targets) in rules {
        let own = targets.iter().filter(|target| *target != SHARED).count();
        assert_eq!(own, 2, "{id} lost or gained: {rules:?}");
    }
}

#[test]
fn writers_at_once_end_in_a_state_that_one_after_the_other_could_have_made() -> Result<()> {
    let mut hosts = BlockingPair::new("on_stop: keep\n")?;
    let directory = tempfile::tempdir()?;
    let mut files = Vec::new();
    for set in 0..3 {
        let rules = [0, 1].map(|n| {
            let own = |host| format!("198.51.{set}.{}", 2 * n + host);
            json!({"id": format!("set{set}-{n}"), "targets": [own(0), own(1), SHARED]})
        });
        let path = directory.path().join(set.to_string());
        fs::write(&path, json!({ "rules": rules }).to_string())?;
        files.push(path.display().to_string());
    }
    let start = |hosts: &BlockingPair, words: &[&str]| -> Result<Child> {
        let mut command = hosts.daemon.blockctl_command();
        command.arg("-q").args(words);
        Ok(command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?)
    };
    for round in 0..12 {
        let mut writers = Vec::new();
        for (n, file) in files.iter().enumerate() {
            let own = [0, 1].map(|host| format!("192.0.{round}.{}", 2 * n + host));
            let id = format!("add{round}-{n}");
            let add = ["add", &own[0], &own[1], SHARED, "--id", &id];
            writers.push((start(&hosts, &add)?, &[0][..]));
            writers.push((start(&hosts, &["apply", "-f", file])?, &[0][..]));
            if n < 2 {
                // No such target is one of the orders, too.
                writers.push((start(&hosts, &["del", SHARED])?, &[0, 4][..]));
            }
        }
        for (writer, codes) in writers {
            let output = writer.wait_with_output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            let code = output.status.code().context("it ended by itself")?;
            assert!(codes.contains(&code), "{code}: {said}");
        }
        let rules = targets(&hosts)?;
        assert_serial(&rules);
        // The datapath holds what is listed.
        let used: usize = rules.values().map(Vec::len).sum();
        let status = hosts.daemon.json(&["status"])?;
        assert_eq!(status["prefixes"]["used"], used, "{rules:?}");
    }
    // As does the state file.
    let before = targets(&hosts)?;
    hosts.daemon.stop()?;
    hosts.daemon.run(&hosts.pair.a)?;
    assert_eq!(targets(&hosts)?, before);
    Ok(())
}
