//! The real `blockctl` reading target lists, against a daemon that is not.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::fake_daemon::{Daemon, blockctl};

fn rule(targets: &[String]) -> Value {
    json!({"id": "listed", "targets": targets, "mode": "drop", "direction": "both",
        "protocol": "any", "percent": 100, "established": "keep", "on_lift": "resume"})
}

fn added(targets: &[String]) -> Value {
    let nothing = json!({"found": 0, "killed": 0, "left": [], "elapsed_ms": 0.0});
    json!({"rule": rule(targets), "created": true, "teardown": nothing})
}

/// What was sent with the only request.
fn sent(daemon: &Daemon) -> Value {
    let asked = daemon.asked();
    assert_eq!(asked.len(), 1);
    serde_json::from_slice(&asked[0].body).unwrap()
}

#[test]
fn lists_and_targets_become_one_rule() {
    let daemon = Daemon::start().on("POST /v1/rules", &added(&["192.0.2.7".to_owned()]));
    let path = |name: &str| daemon.dir.path().join(name).display().to_string();
    let (plain, ndjson) = (path("a.netset"), path("b.json"));
    fs::write(
        &plain,
        "# a\n198.51.100.0/24\n198.51.100.7\n10.0.0.0/8\n198.51.100.7\n",
    )
    .unwrap();
    fs::write(
        &ndjson,
        "{\"cidr\":\"203.0.113.0/24\"}\n{\"type\":\"metadata\"}\n",
    )
    .unwrap();
    let arguments = [
        "add",
        "192.0.2.7",
        "--from-file",
        &plain,
        "--from-file",
        &ndjson,
    ];
    let ran = daemon.run(&arguments);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        ran.err,
        format!(
            "blockctl: {plain}: 5 lines, 2 targets, 1 duplicate, 1 covered by others\n\
             blockctl: {plain}: 1 target in private or special ranges: 10.0.0.0/8 (private, RFC 1918): if this network uses them, leave them out of the rule with `except` (--except), or `protect` them in the configuration\n\
             blockctl: {ndjson}: 2 lines, 1 target\n"
        )
    );
    let targets = [
        "192.0.2.7",
        "10.0.0.0/8",
        "198.51.100.0/24",
        "203.0.113.0/24",
    ];
    assert_eq!(sent(&daemon), json!({"targets": targets}));
    let ran = daemon.run(&["-q", "add", "--from-file", &ndjson]);
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (0, "listed\n", "")
    );
}

#[test]
fn a_list_may_come_from_standard_input_once() {
    let daemon = Daemon::start().on("POST /v1/rules", &added(&["192.0.2.7".to_owned()]));
    let mut child = blockctl(&daemon.socket())
        .args(["add", "--from-file", "-", "--skip-invalid"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"192.0.2.7\nx\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    let expected = "blockctl: standard input: 2 lines, 1 target, 1 skipped (first: line 2: ";
    assert!(told.starts_with(expected), "{told}");
    assert_eq!(sent(&daemon), json!({"targets": ["192.0.2.7"]}));

    let ran = daemon.run(&["add", "--from-file", "-", "--from-file", "-"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("only once"), "{ran:?}");
}

#[test]
fn a_bad_list_is_not_sent() {
    let daemon = Daemon::start();
    let list = daemon.dir.path().join("l");
    let name = list.display().to_string();
    for (text, expected) in [
        (
            "192.0.2.7\n\n10.0.0.1/8\n",
            format!("{name}:3: target \"10.0.0.1/8\" has bits set"),
        ),
        ("x\n", "leave them out with --skip-invalid".to_owned()),
        ("# no more\n", format!("{name}: the list has no target")),
    ] {
        fs::write(&list, text).unwrap();
        let ran = daemon.run(&["add", "--from-file", &name]);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
        assert!(ran.err.contains(&expected), "{expected}: {ran:?}");
    }
    let ran = daemon.run(&["add", "--from-file", "/nonexistent/l"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.err.contains("cannot read the target list /nonexistent"),
        "{ran:?}"
    );
    let ran = daemon.run(&["add", "192.0.2.7", "--skip-invalid"]);
    assert_eq!(ran.code, 2, "it would be ignored: {ran:?}");
    assert!(daemon.asked().is_empty());
}

#[test]
fn apply_reads_the_lists_that_rules_name() {
    let answer = json!({"added": [], "removed": [], "changed": [], "unchanged": 1, "dry_run": false,
        "teardown": {"found": 0, "killed": 0, "left": [], "elapsed_ms": 0.0}});
    let daemon = Daemon::start().on("PUT /v1/ruleset", &answer);
    let (list, file) = (
        daemon.dir.path().join("l.netset"),
        daemon.dir.path().join("rules.yaml"),
    );
    fs::write(
        &file,
        "rules:\n  - {id: a, targets: [192.0.2.7], targets_file: l.netset}\n",
    )
    .unwrap();
    let name = file.display().to_string();
    fs::write(&list, "198.51.100.0/24\nx\n").unwrap();
    let ran = daemon.run(&["apply", "-f", &name]);
    assert_eq!(ran.code, 2, "{ran:?}");
    let place = format!(
        "{name}: rules[0] (a): targets_file: {}:2: target \"x\"",
        list.display()
    );
    assert!(ran.err.contains(&place), "{ran:?}");
    assert!(daemon.asked().is_empty());

    let ran = daemon.run(&["apply", "-f", &name, "--skip-invalid"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("1 skipped"), "{ran:?}");
    let rules = json!({"rules": [{"id": "a", "targets": ["192.0.2.7", "198.51.100.0/24"]}]});
    assert_eq!(sent(&daemon), rules);
}

#[test]
fn a_hundred_thousand_targets_are_readable() {
    let mut list = String::new();
    let targets: Vec<String> = (0..100_000u32)
        .map(|i| std::net::Ipv4Addr::from((20 << 24) + 2 * i).to_string())
        .collect();
    for target in &targets {
        writeln!(list, "{target}").unwrap();
    }
    let mut view = rule(&targets);
    let more = json!({"owner": "api", "created": "2026-11-23T21:30:00Z",
        "counters": {"packets": 0, "bytes": 0, "replies": 0, "suppressed": 0}});
    view.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let daemon = Daemon::start()
        .on("POST /v1/rules", &added(&targets))
        .on("GET /v1/rules", &json!({"rules": [view]}))
        .on("GET /v1/rules/listed", &view);
    let path = daemon.dir.path().join("l");
    fs::write(&path, list).unwrap();
    let ran = daemon.run(&["add", "--from-file", &path.display().to_string()]);
    assert_eq!(
        ran.out,
        "blocked 20.0.0.0 and 99999 more (rule listed, drop, both directions, until lifted)\n"
    );
    assert_eq!(sent(&daemon)["targets"].as_array().unwrap().len(), 100_000);
    let ran = daemon.run(&["list"]);
    assert!(ran.out.contains("20.0.0.0 (+99999)"), "{}", ran.out);
    assert!(ran.out.len() < 500, "{}", ran.out);
    let ran = daemon.run(&["show", "listed"]);
    assert!(
        ran.out.contains("and 99,980 more: all of them by -o json"),
        "{}",
        ran.out
    );
    assert!(ran.out.lines().count() < 60, "{}", ran.out);
}
