//! Whole rulesets: `apply` is a diff and one change; what exceeds a limit is refused whole.

use std::fs;

use anyhow::{Context, Result};
use nix::errno::Errno;
use serde_json::{Value, json};

mod lab;
mod scene;

use lab::{Connection, Output, Pair};
use scene::{Scene, connect_error, soon};

/// `blockctl apply` of a file of this text.
fn apply(scene: &Scene, text: &str, words: &[&str]) -> Result<Output> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("rules.yaml");
    fs::write(&path, text)?;
    let file = path.display().to_string();
    scene
        .daemon
        .blockctl(&[&["-o", "json", "apply", "-f", &file], words].concat())
}

/// The ids of the rules in force.
fn ids(scene: &Scene) -> Result<Vec<String>> {
    let list = scene.daemon.json(&["list"])?;
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
    let scene = Scene::new("rules: [{id: fixed, targets: [198.51.100.9]}]\n")?;
    scene.add(&["198.51.100.1", "--id", "going"])?;
    scene.add(&["198.51.100.2", "--id", "staying"])?;
    scene.add(&["198.51.100.3", "--id", "changing"])?;
    let mut flow = Connection::open(&scene.pair.b, &scene.pair.a, Pair::A)?;
    let file = format!(
        "rules:\n\
         - {{id: staying, targets: [198.51.100.2]}}\n\
         - {{id: changing, targets: [198.51.100.3], mode: reject}}\n\
         - {{id: coming, targets: [{}], mode: reset}}\n",
        Pair::B
    );
    let dry = apply(&scene, &file, &["--dry-run"])?.success()?.json()?;
    assert_eq!(dry["dry_run"], true);
    assert_eq!(ids(&scene)?, ["changing", "fixed", "going", "staying"]);
    flow.check_alive()?;
    scene::settle(&flow)?;

    let done = apply(&scene, &file, &[])?.success()?.json()?;
    for answer in [&dry, &done] {
        assert_eq!(part(answer, "added"), ["coming"], "{answer}");
        assert_eq!(part(answer, "removed"), ["going"], "{answer}");
        assert_eq!(part(answer, "changed"), ["changing"], "{answer}");
        assert_eq!(answer["unchanged"], 1, "{answer}");
    }
    assert_eq!(done["teardown"]["killed"], 1, "{done}");
    assert_eq!(ids(&scene)?, ["changing", "coming", "fixed", "staying"]);
    assert!(flow.wait_dead(soon())?);

    let again = apply(&scene, &file, &[])?.success()?.json()?;
    assert_eq!(
        (&again["unchanged"], &again["added"]),
        (&json!(3), &json!([]))
    );
    apply(&scene, "rules: []\n", &[])?.success()?;
    assert_eq!(ids(&scene)?, ["fixed"]);
    Connection::open(&scene.pair.b, &scene.pair.a, Pair::A)?.check_alive()
}

#[test]
fn apply_takes_all_or_nothing() -> Result<()> {
    let scene = Scene::new("rules: [{id: fixed, targets: [198.51.100.9]}]\n")?;
    let b = Pair::B.to_string();
    scene.add(&[&b, "--mode", "reset", "--id", "mine"])?;
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
        let said = apply(&scene, bad, &[])?;
        assert_eq!(said.code, code, "{bad}: {}{}", said.stdout, said.stderr);
        assert_eq!(ids(&scene)?, ["fixed", "mine"], "{bad}");
        let refused = connect_error(&scene.pair.b, (Pair::A, 9).into())?;
        assert_eq!(refused, Some(Errno::ECONNREFUSED), "{bad}");
    }
    Ok(())
}

#[test]
fn what_exceeds_a_limit_is_refused_whole() -> Result<()> {
    let scene = Scene::new("limits: {rules: 3, prefixes: 6}\n")?;
    let refused = |words: &[&str]| -> Result<()> {
        let said = scene.daemon.blockctl(&[&["add"], words].concat())?;
        assert_eq!(said.code, 2, "{words:?}: {}{}", said.stdout, said.stderr);
        assert!(said.stderr.contains("limit"), "{}", said.stderr);
        Ok(())
    };
    let b = Pair::B.to_string();
    let many: Vec<String> = (0..6).map(|n| format!("198.51.100.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    refused(&[&many[..], &[&b]].concat())?;
    assert_eq!(ids(&scene)?, Vec::<String>::new());
    Connection::open(&scene.pair.b, &scene.pair.a, Pair::A)?.check_alive()?;

    // To the brim it fits.
    scene.add(&[&many[..4], &["--id", "a"]].concat())?;
    refused(&[&many[4..], &[&b]].concat())?;
    scene.add(&[&b, "--mode", "reset", "--id", "b"])?;
    scene.add(&["198.51.100.5", "--id", "c"])?;
    refused(&["198.51.100.5", "--mode", "audit"])?;
    let file: String = (0..4)
        .map(|n| format!("- {{targets: [192.0.2.{n}]}}\n"))
        .collect();
    let said = apply(&scene, &format!("rules:\n{file}"), &[])?;
    assert_eq!(said.code, 2, "{}", said.stderr);
    assert_eq!(ids(&scene)?, ["a", "b", "c"]);
    let status = scene.daemon.json(&["status"])?;
    assert_eq!(status["rules"], json!({"used": 3, "allowed": 3}));
    assert_eq!(status["prefixes"], json!({"used": 6, "allowed": 6}));
    let refused = connect_error(&scene.pair.b, (Pair::A, 9).into())?;
    assert_eq!(refused, Some(Errno::ECONNREFUSED));
    // What goes makes room.
    scene.del(&["c"])?;
    scene.add(&["198.51.100.7", "--id", "d"])?;
    Ok(())
}

#[test]
fn a_large_ruleset_is_one_change() -> Result<()> {
    let scene = Scene::new("")?;
    let mut targets: Vec<String> = (0..100_000_u32)
        .map(|n| format!("100.{}.{}.{}", 64 + (n >> 16), n >> 8 & 0xff, n & 0xff))
        .collect();
    targets.push(Pair::B.to_string());
    let file = json!({"rules": [{"id": "list", "mode": "reset", "targets": targets}]});
    let done = apply(&scene, &file.to_string(), &["-q"])?;
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(scene.daemon.json(&["status"])?["prefixes"]["used"], 100_001);
    let refused = connect_error(&scene.pair.b, (Pair::A, 9).into())?;
    assert_eq!(refused, Some(Errno::ECONNREFUSED));
    scene.del(&["list"])?;
    Connection::open(&scene.pair.b, &scene.pair.a, Pair::A)?.check_alive()
}
