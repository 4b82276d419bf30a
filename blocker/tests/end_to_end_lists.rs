//! Target lists: from a file to packets that are dropped, by configuration and by command.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::errno::Errno;
use serde_json::Value;

mod lab;
mod scene;

use lab::{Connection, Pair, poll};
use scene::{PATIENCE, Scene, connect_error};

/// A list's file beside the daemon's configuration.
fn write(scene: &Scene, name: &str, text: &str) -> Result<PathBuf> {
    let path = scene.daemon.config_path().with_file_name(name);
    fs::write(&path, text)?;
    Ok(path)
}

/// Reloads and waits until the daemon says what became of it; gives the error.
fn reload(scene: &Scene) -> Result<Option<String>> {
    let last = || -> Result<Value> { Ok(scene.daemon.json(&["status"])?["last_reload"].clone()) };
    let before = last()?["at"].clone();
    scene.daemon.reload()?;
    let reload = poll("the reload", PATIENCE, || {
        last().ok().filter(|reload| reload["at"] != before)
    })?;
    Ok(reload["error"].as_str().map(str::to_owned))
}

/// Whether the peer is blocked, in mode `reset`.
fn refused(scene: &Scene) -> Result<bool> {
    let error = connect_error(&scene.pair.b, (Pair::A, 9).into())?;
    let listed = scene.counters("listed")?["packets"].as_u64();
    Ok(error == Some(Errno::ECONNREFUSED) && listed > Some(0))
}

fn targets(scene: &Scene, id: &str) -> Result<Vec<String>> {
    let rule = scene.daemon.json(&["show", id])?;
    let targets = rule["targets"].as_array().context("targets")?;
    Ok(targets
        .iter()
        .filter_map(|target| target.as_str().map(str::to_owned))
        .collect())
}

#[test]
fn a_list_of_the_configuration_is_read_at_every_reload() -> Result<()> {
    let scene = Scene::new("")?;
    write(&scene, "l.netset", "# mine\n198.51.100.0/24\n")?;
    let config =
        "rules:\n  - {id: listed, targets_file: l.netset, targets: [203.0.113.9], mode: reset}\n";
    scene.daemon.write_config(config)?;
    assert_eq!(reload(&scene)?, None);
    assert_eq!(
        targets(&scene, "listed")?,
        ["198.51.100.0/24", "203.0.113.9"]
    );
    Connection::open(&scene.pair.b, &scene.pair.a, Pair::A)?.check_alive()?;

    let peer = format!("198.51.100.0/24\n{}/32 # the peer\n", Pair::B);
    let list = write(&scene, "l.netset", &peer)?;
    assert_eq!(reload(&scene)?, None);
    assert!(refused(&scene)?);
    let in_force = targets(&scene, "listed")?;

    fs::write(&list, "198.51.100.0/24\n198.51.100.7/24\n")?;
    let error = reload(&scene)?.context("a bad list was accepted")?;
    let place = format!("targets_file: {}:2: ", list.display());
    assert!(error.contains(&place), "{error}");
    // The laboratory's own lines are the first three.
    let rule = format!("{}:5:5", scene.daemon.config_path().display());
    assert!(error.contains(&rule), "{error}");
    assert_eq!(targets(&scene, "listed")?, in_force, "the old one holds");

    let check = scene.daemon.blocker(&scene.pair.a, "check")?;
    assert_eq!(check.code, 2, "{check:?}");
    assert!(check.stderr.contains(&place), "{check:?}");

    fs::remove_file(&list)?;
    let error = reload(&scene)?.context("a missing list was accepted")?;
    assert!(error.contains("cannot read the target list"), "{error}");
    assert_eq!(targets(&scene, "listed")?, in_force);
    Ok(())
}

#[test]
fn add_takes_a_list_in_json_and_skips_what_it_may() -> Result<()> {
    let scene = Scene::new("")?;
    let text = format!(
        "{{\"cidr\":\"{}/32\",\"sblid\":\"SBL1\"}}\n{{\"cidr\":\"198.51.100.300\"}}\n{{\"cidr\":\"198.51.100.0/24\"}}\n{{\"type\":\"metadata\",\"records\":3}}\n",
        Pair::B
    );
    let list = write(&scene, "drop_v4.json", &text)?;
    let name = list.display().to_string();

    let bad = scene.daemon.blockctl(&["add", "--from-file", &name])?;
    assert_eq!(bad.code, 2, "{bad:?}");
    let place = format!("{name}:2: ");
    assert!(bad.stderr.contains(&place), "{bad:?}");
    Connection::open(&scene.pair.b, &scene.pair.a, Pair::A)?.check_alive()?;

    let add = [
        "add",
        "--from-file",
        &name,
        "--skip-invalid",
        "--id",
        "listed",
        "--mode",
        "reset",
    ];
    let added = scene.daemon.blockctl(&add)?.success()?;
    let counts = format!("{name}: 4 lines, 2 targets, 1 skipped (first: line 2: ");
    assert!(added.stderr.contains(&counts), "{added:?}");
    assert!(refused(&scene)?);
    let own = Pair::B.to_string();
    let mut expected = ["198.51.100.0/24", own.as_str()];
    expected.sort_unstable_by_key(|text| text.parse::<blocker::rule::Target>().ok());
    assert_eq!(targets(&scene, "listed")?, expected);
    Ok(())
}

#[test]
fn of_many_targets_the_answer_names_as_few_as_are_asked_for() -> Result<()> {
    let scene = Scene::new("")?;
    let text: String = (0..100)
        .map(|n| format!("198.51.100.{}\n", 2 * n))
        .collect();
    let list = write(&scene, "more.txt", &text)?.display().to_string();
    let words = ["add", "--from-file", &list, "--id", "more"];
    let table = scene.daemon.blockctl(&words)?.success()?;
    let whole = targets(&scene, "more")?;
    assert_eq!(whole.len(), 100);
    let head = format!("blocked {} and 99 more (rule more", whole[0]);
    assert!(table.stdout.contains(&head), "{table:?}");

    // All of them where the rule is shown as it is.
    let exact = scene.daemon.json(&words)?;
    let shown = exact["rule"]["targets"].as_array().context("targets")?;
    assert_eq!(shown.len(), whole.len());
    assert_eq!(exact["targets_total"], Value::Null);
    Ok(())
}
