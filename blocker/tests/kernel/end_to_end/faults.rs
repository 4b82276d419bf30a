//! The daemon loses a resource (disk space, descriptors, bpffs): requests that need it fail with a clear
//! error and change nothing, rules stay in force, and all works again once the resource is back.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use xtask::hosts::{Daemon, Pair, join, poll};
use xtask::kernel_objects::KernelObjects;

use super::datagrams::{arrived, assert_tight, datagrams, wait_passing};
use crate::blocking_pair::{BlockingPair, PATIENCE};

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
fn hosts(
    config: &str,
    mounted: impl FnOnce(&Daemon) -> Result<Mounted>,
) -> Result<(Mounted, BlockingPair)> {
    let pair = Pair::new()?;
    let mut daemon = Daemon::prepare(&pair.a, &crate::programs(), config)?;
    let mounted = mounted(&daemon)?;
    daemon.run(&pair.a)?;
    Ok((mounted, BlockingPair { daemon, pair }))
}

fn rules(hosts: &BlockingPair) -> Result<Value> {
    let list = hosts.daemon.json(&["list"])?;
    let ids = list["rules"].as_array().into_iter().flatten();
    Ok(ids.map(|rule| rule["id"].clone()).collect())
}

/// Checks that a change fails with this error and has no effect.
fn assert_refused(hosts: &BlockingPair, words: &[&str], code: i32, says: &str) -> Result<()> {
    let before = rules(hosts)?;
    let output = hosts.daemon.blockctl(words)?;
    assert_eq!(output.code, code, "{words:?}: {output:?}");
    assert!(output.stderr.contains(says), "{words:?}: {}", output.stderr);
    assert_eq!(rules(hosts)?, before, "{words:?}");
    Ok(())
}

#[test]
fn a_full_disk_fails_what_needs_it_and_nothing_is_half_done() -> Result<()> {
    let (mounted, mut hosts) = hosts("", |daemon| {
        Mounted::new("tmpfs", &daemon.state(), "size=64k")
    })?;
    let (sink, source) = datagrams(&hosts.pair)?;
    let b = Pair::B.to_string();
    hosts.add(&["192.0.2.1", "--id", "first", "--comment", "stays"])?;
    let room = mounted.0.join("room");
    fs::write(&room, vec![7; 60 * 1024]).or_else(|_| fs::write(&room, vec![7; 48 * 1024]))?;
    // The rest, to the last page.
    let rest = mounted.0.join("rest");
    let _full = fs::write(&rest, vec![7; 64 * 1024]);
    let full = "No space left on device";
    assert_refused(&hosts, &["add", &b, "--mode", "drop"], 1, full)?;
    wait_passing(&sink, &source, PATIENCE)?;
    assert_refused(&hosts, &["del", "first"], 1, full)?;
    let file = tempfile::NamedTempFile::new()?;
    fs::write(
        file.path(),
        format!("rules: [{{targets: [{b}]}}, {{targets: [192.0.2.2]}}]\n"),
    )?;
    let path = file.path().display().to_string();
    assert_refused(&hosts, &["apply", "-f", &path], 1, full)?;
    let list = tempfile::NamedTempFile::new()?;
    let many = (0..5_000_u32).map(|n| format!("198.18.{}.{}\n", n / 256, n % 256));
    fs::write(list.path(), many.collect::<String>())?;
    let list = list.path().display().to_string();
    fs::remove_file(&rest)?;
    assert_refused(
        &hosts,
        &["add", "--from-file", &list, "--id", "large"],
        1,
        full,
    )?;
    // What is on disk is what is in force.
    hosts.daemon.kill()?;
    hosts.daemon.run(&hosts.pair.a)?;
    assert_eq!(rules(&hosts)?, json!(["first"]));
    fs::remove_file(&room)?;
    fs::remove_file(&rest).ok();
    hosts.add(&[&b, "--mode", "drop", "--id", "second"])?;
    while arrived(&sink)? {}
    assert_tight(&sink, &source, LONG, || Ok(()))?;
    hosts.del(&["first"])?;
    assert_eq!(rules(&hosts)?, json!(["second"]));
    Ok(())
}

#[test]
fn a_state_directory_that_is_gone_is_made_again_and_a_read_only_one_is_told() -> Result<()> {
    let mut hosts = BlockingPair::new("")?;
    hosts.add(&["192.0.2.1", "--id", "first"])?;
    fs::remove_dir_all(hosts.daemon.state())?;
    hosts.add(&["192.0.2.2", "--id", "second"])?;
    hosts.daemon.kill()?;
    hosts.daemon.run(&hosts.pair.a)?;
    assert_eq!(rules(&hosts)?, json!(["first", "second"]));

    let state = hosts.daemon.state();
    let mounted = Mounted::new("tmpfs", &state, "size=1m")?;
    mounted.read_only(true)?;
    assert_refused(&hosts, &["add", "192.0.2.3"], 1, "Read-only file system")?;
    assert_refused(&hosts, &["del", "first"], 1, &state.display().to_string())?;
    mounted.read_only(false)?;
    hosts.add(&["192.0.2.3", "--id", "third"])?;
    Ok(())
}

/// Makes a device in A.
fn device(hosts: &BlockingPair, name: &str) -> Result<()> {
    let peer = format!("{name}-peer");
    hosts.pair.a.run(&[
        "ip", "link", "add", name, "type", "veth", "peer", "name", &peer,
    ])?;
    hosts.pair.a.run(&["ip", "link", "set", name, "up"])?;
    Ok(())
}

/// Waits until a device is attached to.
fn wait_attached(hosts: &BlockingPair, name: &str) -> Result<()> {
    poll(&format!("{name} to be attached to"), PATIENCE, || {
        let status = hosts.daemon.json(&["status"]).ok()?;
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
        let (mounted, mut hosts) = hosts("on_stop: keep\n", |daemon| {
            Mounted::new("bpf", daemon.pins(), "")
        })?;
        let (sink, source) = datagrams(&hosts.pair)?;
        let b = Pair::B.to_string();
        hosts.add(&[&b, "--mode", "drop", "--id", "first"])?;
        if read_only {
            mounted.read_only(true)?;
        } else {
            umount2(&mounted.0, MntFlags::MNT_DETACH)?;
        }
        assert_tight(&sink, &source, LONG, || {
            hosts.add(&["192.0.2.1", "--id", "second"])?;
            if read_only {
                device(&hosts, "late0")?;
                poll("the fault to be told", PATIENCE, || {
                    let log = hosts.daemon.log();
                    log.contains("Read-only file system").then_some(())
                })
                .with_context(|| hosts.daemon.log())?;
                mounted.read_only(false)?;
            } else {
                // It is mounted again, empty.
                std::mem::forget(Mounted::new("bpf", &mounted.0, "")?);
                device(&hosts, "late0")?;
            }
            wait_attached(&hosts, "late0")?;
            hosts.del(&["second"])?;
            Ok(())
        })?;
        assert!(hosts.daemon.stop()?.success());
        hosts.daemon.run(&hosts.pair.a)?;
        assert_eq!(rules(&hosts)?, json!(["first"]));
        while arrived(&sink)? {}
        assert_tight(&sink, &source, LONG, || Ok(()))?;
    }
    Ok(())
}

#[test]
fn what_exceeds_a_limit_is_refused_and_changes_nothing() -> Result<()> {
    let hosts = BlockingPair::new("limits: {rules: 40, prefixes: 100, flows: 16}\n")?;
    let (sink, source) = datagrams(&hosts.pair)?;
    let b = Pair::B.to_string();
    hosts.add(&[&b, "--mode", "drop", "--id", "first"])?;
    // Rules on one address, then rules, then prefixes.
    let mut file = String::from("rules:\n");
    for n in 0..31 {
        file += &format!("- {{id: pile-{n}, targets: [192.0.2.1], protocol: {n}}}\n");
    }
    file += &format!("- {{id: first, targets: [{b}]}}\n");
    let path = tempfile::NamedTempFile::new()?;
    fs::write(path.path(), file)?;
    let path = path.path().display().to_string();
    hosts.daemon.blockctl(&["apply", "-f", &path])?.success()?;
    assert_refused(
        &hosts,
        &["add", "192.0.2.0/24", "--protocol", "99"],
        2,
        "is covered by 32 rules",
    )?;
    for n in 0..8 {
        hosts.add(&[&format!("198.51.100.{n}"), "--id", &format!("more-{n}")])?;
    }
    assert_refused(&hosts, &["add", "198.51.100.99"], 2, "more than 40 rules")?;
    hosts.del(&["more-0"])?;
    let many: Vec<String> = (0..70).map(|n| format!("203.0.113.{n}")).collect();
    let mut words = vec!["add"];
    words.extend(many.iter().map(String::as_str));
    assert_refused(&hosts, &words, 2, "more than the 100 allowed")?;
    // More flows than are remembered: what is forgotten is blocked and counted all the same.
    let before = hosts.counters("first")?["packets"]
        .as_u64()
        .context("packets")?;
    for _ in 0..200 {
        let (_, other) = datagrams(&hosts.pair)?;
        other
            .send_to(b"flow", sink.local_addr()?)
            .or_else(|_| other.send(b"flow"))?;
    }
    hosts.wait_packets("first", before + 200)?;
    assert_tight(&sink, &source, LONG, || Ok(()))?;
    let flows = hosts.daemon.json(&["flows"])?;
    ensure!(
        !flows["flows"].as_array().context("flows")?.is_empty(),
        "{flows}"
    );
    Ok(())
}

#[test]
fn devices_that_come_and_go_under_load_leave_nothing_behind() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let (sink, source) = datagrams(&hosts.pair)?;
    let b = Pair::B.to_string();
    hosts.add(&[&b, "--mode", "drop", "--id", "first"])?;
    let footprint = KernelObjects::of(&hosts.daemon)?;
    assert_tight(&sink, &source, LONG, || {
        for round in 0..15 {
            let name = format!("fleeting{}", round % 3);
            device(&hosts, &name)?;
            // At times it is gone before it is attached to.
            if round % 2 == 0 {
                wait_attached(&hosts, &name)?;
            }
            hosts.add(&["192.0.2.1", "--id", "fleeting", "--interface", &name])?;
            hosts.pair.a.run(&["ip", "link", "del", &name])?;
            hosts.del(&["fleeting"])?;
        }
        Ok(())
    })?;
    footprint.check(&hosts.daemon, "after all of them")?;
    // The very device that the flood comes by, and back again.
    let attached = hosts.daemon.json(&["status"])?["interfaces"]
        .as_array()
        .map_or(0, Vec::len);
    assert_eq!(attached, 1);
    hosts.pair.a.run(&["ip", "link", "del", "eth0"])?;
    join((&hosts.pair.a, "eth0"), (&hosts.pair.b, "eth0"))?;
    wait_attached(&hosts, "eth0")?;
    for (host, own, peer) in [
        (&hosts.pair.a, Pair::A, Pair::B),
        (&hosts.pair.b, Pair::B, Pair::A),
    ] {
        let (own, peer) = (own.to_string(), format!("{peer}/32"));
        host.run(&["ip", "address", "add", &own, "peer", &peer, "dev", "eth0"])?;
    }
    while arrived(&sink)? {}
    assert_tight(&sink, &source, LONG, || Ok(()))?;
    footprint.check(&hosts.daemon, "after the device itself")
}
