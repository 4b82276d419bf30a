//! What the daemon needs is taken from it: each request that needs it fails with a clear error and
//! changes nothing, what is in force stays in force, and all is well again once it is back.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

mod footprint;
mod lab;
mod scene;
mod tight;

use footprint::Footprint;
use lab::{Daemon, Pair, Programs, poll};
use scene::{PATIENCE, Scene};
use tight::{arrived, assert_tight, datagrams, wait_passing};

const LONG: Duration = Duration::from_secs(300);

/// A file system, unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(kind: &str, at: &Path, options: &str) -> Result<Self> {
        fs::create_dir_all(at)?;
        mount(Some(kind), at, Some(kind), MsFlags::empty(), Some(options))
            .with_context(|| format!("{kind} cannot be mounted at {}", at.display()))?;
        Ok(Self(at.to_owned()))
    }

    fn read_only(&self, yes: bool) -> Result<()> {
        let flags = if yes {
            MsFlags::MS_RDONLY
        } else {
            MsFlags::empty()
        };
        mount(
            None::<&str>,
            &self.0,
            None::<&str>,
            MsFlags::MS_REMOUNT | flags,
            None::<&str>,
        )
        .context("it cannot be remounted")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A daemon whose files are on what `mounted` makes.
fn scene(
    config: &str,
    mounted: impl FnOnce(&Daemon) -> Result<Mounted>,
) -> Result<(Mounted, Scene)> {
    let pair = Pair::new()?;
    let mut daemon = Daemon::prepare(&pair.a, &Programs::under_test()?, config)?;
    let mounted = mounted(&daemon)?;
    daemon.run(&pair.a)?;
    Ok((mounted, Scene { daemon, pair }))
}

fn rules(scene: &Scene) -> Result<Value> {
    let list = scene.daemon.json(&["list"])?;
    let ids = list["rules"].as_array().into_iter().flatten();
    Ok(ids.map(|rule| rule["id"].clone()).collect())
}

/// That a change fails, saying this, and changes nothing.
fn assert_refused(scene: &Scene, words: &[&str], code: i32, says: &str) -> Result<()> {
    let before = rules(scene)?;
    let output = scene.daemon.blockctl(words)?;
    assert_eq!(output.code, code, "{words:?}: {output:?}");
    assert!(output.stderr.contains(says), "{words:?}: {}", output.stderr);
    assert_eq!(rules(scene)?, before, "{words:?}");
    Ok(())
}

#[test]
fn a_full_disk_fails_what_needs_it_and_nothing_is_half_done() -> Result<()> {
    let (mounted, mut scene) = scene("", |daemon| {
        Mounted::new("tmpfs", &daemon.state(), "size=64k")
    })?;
    let (sink, source) = datagrams(&scene.pair)?;
    let b = Pair::B.to_string();
    scene.add(&["192.0.2.1", "--id", "first", "--comment", "stays"])?;
    let room = mounted.0.join("room");
    fs::write(&room, vec![7; 60 * 1024]).or_else(|_| fs::write(&room, vec![7; 48 * 1024]))?;
    // The rest, to the last page.
    let rest = mounted.0.join("rest");
    let _full = fs::write(&rest, vec![7; 64 * 1024]);
    let full = "No space left on device";
    assert_refused(&scene, &["add", &b, "--mode", "drop"], 1, full)?;
    wait_passing(&sink, &source, PATIENCE)?;
    assert_refused(&scene, &["del", "first"], 1, full)?;
    let file = tempfile::NamedTempFile::new()?;
    fs::write(
        file.path(),
        format!("rules: [{{targets: [{b}]}}, {{targets: [192.0.2.2]}}]\n"),
    )?;
    let path = file.path().display().to_string();
    assert_refused(&scene, &["apply", "-f", &path], 1, full)?;
    let list = tempfile::NamedTempFile::new()?;
    let many = (0..5_000_u32).map(|n| format!("198.18.{}.{}\n", n / 256, n % 256));
    fs::write(list.path(), many.collect::<String>())?;
    let list = list.path().display().to_string();
    fs::remove_file(&rest)?;
    assert_refused(
        &scene,
        &["add", "--from-file", &list, "--id", "large"],
        1,
        full,
    )?;
    // What is on disk is what is in force.
    scene.daemon.kill()?;
    scene.daemon.run(&scene.pair.a)?;
    assert_eq!(rules(&scene)?, json!(["first"]));
    fs::remove_file(&room)?;
    fs::remove_file(&rest).ok();
    scene.add(&[&b, "--mode", "drop", "--id", "second"])?;
    while arrived(&sink)? {}
    assert_tight(&sink, &source, LONG, || Ok(()))?;
    scene.del(&["first"])?;
    assert_eq!(rules(&scene)?, json!(["second"]));
    Ok(())
}

#[test]
fn a_state_directory_that_is_gone_is_made_again_and_a_read_only_one_is_told() -> Result<()> {
    let mut scene = Scene::new("")?;
    scene.add(&["192.0.2.1", "--id", "first"])?;
    fs::remove_dir_all(scene.daemon.state())?;
    scene.add(&["192.0.2.2", "--id", "second"])?;
    scene.daemon.kill()?;
    scene.daemon.run(&scene.pair.a)?;
    assert_eq!(rules(&scene)?, json!(["first", "second"]));

    let state = scene.daemon.state();
    let mounted = Mounted::new("tmpfs", &state, "size=1m")?;
    mounted.read_only(true)?;
    assert_refused(&scene, &["add", "192.0.2.3"], 1, "Read-only file system")?;
    assert_refused(&scene, &["del", "first"], 1, &state.display().to_string())?;
    mounted.read_only(false)?;
    scene.add(&["192.0.2.3", "--id", "third"])?;
    Ok(())
}

/// Makes a device in A.
fn device(scene: &Scene, name: &str) -> Result<()> {
    let peer = format!("{name}-peer");
    scene.pair.a.run(&[
        "ip", "link", "add", name, "type", "veth", "peer", "name", &peer,
    ])?;
    scene.pair.a.run(&["ip", "link", "set", name, "up"])?;
    Ok(())
}

/// Waits until a device is attached to.
fn wait_attached(scene: &Scene, name: &str) -> Result<()> {
    poll(&format!("{name} to be attached to"), PATIENCE, || {
        let status = scene.daemon.json(&["status"]).ok()?;
        let device = status["interfaces"]
            .as_array()?
            .iter()
            .find(|device| device["name"] == name)?
            .clone();
        device["hooks"]
            .as_array()
            .is_some_and(|hooks| hooks.len() >= 2)
            .then_some(())
    })
}

#[test]
fn what_is_in_force_stays_so_without_bpffs_and_devices_are_attached_to_once_it_is_back()
-> Result<()> {
    for read_only in [true, false] {
        let (mounted, mut scene) = scene("on_stop: keep\n", |daemon| {
            Mounted::new("bpf", daemon.pins(), "")
        })?;
        let (sink, source) = datagrams(&scene.pair)?;
        let b = Pair::B.to_string();
        scene.add(&[&b, "--mode", "drop", "--id", "first"])?;
        if read_only {
            mounted.read_only(true)?;
        } else {
            umount2(&mounted.0, MntFlags::MNT_DETACH)?;
        }
        assert_tight(&sink, &source, LONG, || {
            scene.add(&["192.0.2.1", "--id", "second"])?;
            if read_only {
                device(&scene, "late0")?;
                poll("the fault to be told", PATIENCE, || {
                    let log = scene.daemon.log();
                    log.contains("Read-only file system").then_some(())
                })
                .with_context(|| scene.daemon.log())?;
                mounted.read_only(false)?;
            } else {
                // It is mounted again, empty.
                std::mem::forget(Mounted::new("bpf", &mounted.0, "")?);
                device(&scene, "late0")?;
            }
            wait_attached(&scene, "late0")?;
            scene.del(&["second"])?;
            Ok(())
        })?;
        assert!(scene.daemon.stop()?.success());
        scene.daemon.run(&scene.pair.a)?;
        assert_eq!(rules(&scene)?, json!(["first"]));
        while arrived(&sink)? {}
        assert_tight(&sink, &source, LONG, || Ok(()))?;
    }
    Ok(())
}

#[test]
fn what_exceeds_a_limit_is_refused_and_changes_nothing() -> Result<()> {
    let scene = Scene::new("limits: {rules: 40, prefixes: 100, flows: 16}\n")?;
    let (sink, source) = datagrams(&scene.pair)?;
    let b = Pair::B.to_string();
    scene.add(&[&b, "--mode", "drop", "--id", "first"])?;
    // Rules on one address, then rules, then prefixes.
    let mut file = String::from("rules:\n");
    for n in 0..31 {
        file += &format!("- {{id: pile-{n}, targets: [192.0.2.1], protocol: {n}}}\n");
    }
    file += &format!("- {{id: first, targets: [{b}]}}\n");
    let path = tempfile::NamedTempFile::new()?;
    fs::write(path.path(), file)?;
    let path = path.path().display().to_string();
    scene.daemon.blockctl(&["apply", "-f", &path])?.success()?;
    assert_refused(
        &scene,
        &["add", "192.0.2.0/24", "--protocol", "99"],
        2,
        "is covered by 32 rules",
    )?;
    for n in 0..8 {
        scene.add(&[&format!("198.51.100.{n}"), "--id", &format!("more-{n}")])?;
    }
    assert_refused(&scene, &["add", "198.51.100.99"], 2, "more than 40 rules")?;
    scene.del(&["more-0"])?;
    let many: Vec<String> = (0..70).map(|n| format!("203.0.113.{n}")).collect();
    let mut words = vec!["add"];
    words.extend(many.iter().map(String::as_str));
    assert_refused(&scene, &words, 2, "more than the 100 allowed")?;
    // More flows than are remembered: what is forgotten is blocked and counted all the same.
    let before = scene.counters("first")?["packets"]
        .as_u64()
        .context("packets")?;
    for _ in 0..200 {
        let (_, other) = datagrams(&scene.pair)?;
        other
            .send_to(b"flow", sink.local_addr()?)
            .or_else(|_| other.send(b"flow"))?;
    }
    scene.wait_packets("first", before + 200)?;
    assert_tight(&sink, &source, LONG, || Ok(()))?;
    let flows = scene.daemon.json(&["flows"])?;
    ensure!(
        !flows["flows"].as_array().context("flows")?.is_empty(),
        "{flows}"
    );
    Ok(())
}

#[test]
fn devices_that_come_and_go_under_load_leave_nothing_behind() -> Result<()> {
    let scene = Scene::new("")?;
    let (sink, source) = datagrams(&scene.pair)?;
    let b = Pair::B.to_string();
    scene.add(&[&b, "--mode", "drop", "--id", "first"])?;
    let footprint = Footprint::of(&scene.daemon)?;
    assert_tight(&sink, &source, LONG, || {
        for round in 0..15 {
            let name = format!("fleeting{}", round % 3);
            device(&scene, &name)?;
            // At times it is gone before it is attached to.
            if round % 2 == 0 {
                wait_attached(&scene, &name)?;
            }
            scene.add(&["192.0.2.1", "--id", "fleeting", "--interface", &name])?;
            scene.pair.a.run(&["ip", "link", "del", &name])?;
            scene.del(&["fleeting"])?;
        }
        Ok(())
    })?;
    footprint.check(&scene.daemon, "after all of them")?;
    // The very device that the flood comes by, and back again.
    let attached = scene.daemon.json(&["status"])?["interfaces"]
        .as_array()
        .map_or(0, Vec::len);
    assert_eq!(attached, 1);
    scene.pair.a.run(&["ip", "link", "del", "eth0"])?;
    lab::join((&scene.pair.a, "eth0"), (&scene.pair.b, "eth0"))?;
    wait_attached(&scene, "eth0")?;
    for (host, own, peer) in [
        (&scene.pair.a, Pair::A, Pair::B),
        (&scene.pair.b, Pair::B, Pair::A),
    ] {
        let (own, peer) = (own.to_string(), format!("{peer}/32"));
        host.run(&["ip", "address", "add", &own, "peer", &peer, "dev", "eth0"])?;
    }
    while arrived(&sink)? {}
    assert_tight(&sink, &source, LONG, || Ok(()))?;
    footprint.check(&scene.daemon, "after the device itself")
}
