//! Devices that appear, disappear and are renamed while the daemon runs, and devices whose XDP slot
//! another program uses.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use serde_json::Value;
use xtask::hosts::{Connection, Daemon, Listener, Namespace, Pair, connect_timed, join, poll};

use crate::blocking_pair::{BlockingPair, PATIENCE, connect_error, errno, soon};

/// The attached devices as `blockctl status` tells them, by name.
fn devices(hosts: &BlockingPair) -> Result<BTreeMap<String, Value>> {
    let status = hosts.daemon.json(&["status"])?;
    let devices = status["interfaces"].as_array().context("a list")?;
    let named = devices.iter().map(|device| {
        let name = device["name"].as_str().unwrap_or_default();
        (name.to_owned(), device.clone())
    });
    Ok(named.collect())
}

/// Waits until exactly these devices are attached.
fn wait_for(hosts: &BlockingPair, names: &[&str]) -> Result<()> {
    poll(&format!("devices {names:?}"), PATIENCE, || {
        let devices = devices(hosts).ok()?;
        devices
            .keys()
            .map(String::as_str)
            .eq(names.iter().copied())
            .then_some(())
    })
}

/// A further host, at the end of a further device of A.
struct Third {
    host: Namespace,
}

const A: &str = "192.0.2.1";
const C: &str = "192.0.2.2";

impl Third {
    fn join(pair: &Pair, device: &str) -> Result<Self> {
        let host = Namespace::new("c")?;
        join((&pair.a, device), (&host, "eth0"))?;
        pair.a
            .run(&["ip", "address", "add", "192.0.2.1/24", "dev", device])?;
        host.run(&["ip", "address", "add", "192.0.2.2/24", "dev", "eth0"])?;
        Ok(Self { host })
    }

    fn connect_error(&self) -> Result<Option<Errno>> {
        connect_error(&self.host, (A.parse::<std::net::IpAddr>()?, 9).into())
    }
}

#[test]
fn a_device_that_comes_is_attached_and_one_that_goes_is_forgotten() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let pair = &hosts.pair;
    hosts.add(&[C, "--mode", "reset", "--id", "dev01"])?;
    wait_for(&hosts, &["eth0"])?;
    for round in 1..=3 {
        let third = Third::join(pair, "wan0")?;
        wait_for(&hosts, &["eth0", "wan0"])?;
        let listener = Listener::new(&pair.a, A.parse()?, 0)?;
        let error = connect_error(&third.host, listener.address)?;
        assert_eq!(error, Some(Errno::ECONNREFUSED), "round {round}");
        assert!(hosts.counters("dev01")?["packets"].as_u64() >= Some(round));
        let seen = &devices(&hosts)?["wan0"]["hooks"];
        let seen = seen.as_array().context("hooks")?.iter();
        assert!(seen.map(|hook| hook["seen"].as_u64()).max() > Some(Some(0)));

        pair.a.run(&["ip", "link", "delete", "wan0"])?;
        wait_for(&hosts, &["eth0"])?;
        let eth0 = devices(&hosts)?["eth0"]["index"].to_string();
        let pins: Vec<String> = fs::read_dir(hosts.daemon.pins().join("links"))?
            .map(|pin| Ok(pin?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        assert!(!pins.is_empty());
        for pin in pins {
            assert!(pin.starts_with(&format!("{eth0}-")), "{pin} is left");
        }
    }
    // What was there all along is as it was.
    Connection::open(&pair.b, &pair.a, Pair::A)?.check_alive()
}

#[test]
fn a_device_that_went_and_came_while_no_daemon_was_there() -> Result<()> {
    let BlockingPair { mut daemon, pair } = BlockingPair::new("on_stop: keep\n")?;
    let gone = Third::join(&pair, "wan0")?;
    daemon.json(&["add", C, "--mode", "reset"])?;
    daemon.kill()?;
    pair.a.run(&["ip", "link", "delete", "wan0"])?;
    drop(gone);
    let third = Third::join(&pair, "wan1")?;
    daemon.run(&pair.a)?;
    let hosts = BlockingPair { daemon, pair };
    wait_for(&hosts, &["eth0", "wan1"])?;
    assert_eq!(third.connect_error()?, Some(Errno::ECONNREFUSED));
    let pins = fs::read_dir(hosts.daemon.pins().join("links"))?.count();
    let hooks: usize = devices(&hosts)?
        .values()
        .map(|device| device["hooks"].as_array().map_or(0, Vec::len))
        .sum();
    assert_eq!(pins, hooks, "pins of what is there, and no others");
    Ok(())
}

#[test]
fn a_rule_for_devices_follows_their_names() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let pair = &hosts.pair;
    let third = Third::join(pair, "wan0")?;
    wait_for(&hosts, &["eth0", "wan0"])?;
    let b = Pair::B.to_string();
    hosts.add(&[&b, C, "--mode", "drop", "--interface", "lan*"])?;
    let mut beside = Connection::open(&pair.b, &pair.a, Pair::A)?;
    let mut flow = Connection::open(&third.host, &pair.a, A.parse()?)?;
    flow.check_alive()?;

    pair.a.run(&["ip", "link", "set", "wan0", "name", "lan0"])?;
    wait_for(&hosts, &["eth0", "lan0"])?;
    flow.client.send(b"held back")?;
    let closed = (A.parse::<std::net::IpAddr>()?, 9).into();
    let (stream, _) = connect_timed(&third.host, closed, Duration::from_millis(200))?;
    assert_eq!(
        stream.expect_err("blocked").kind(),
        std::io::ErrorKind::TimedOut
    );
    beside.check_alive()?;

    pair.a.run(&["ip", "link", "set", "lan0", "name", "wan0"])?;
    wait_for(&hosts, &["eth0", "wan0"])?;
    assert_eq!(flow.server.receive(9, PATIENCE)?, b"held back");
    flow.check_alive()
}

#[test]
fn a_device_that_goes_down_and_up_stays_attached() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let pair = &hosts.pair;
    let third = Third::join(pair, "wan0")?;
    wait_for(&hosts, &["eth0", "wan0"])?;
    hosts.add(&[C, "--mode", "reset"])?;
    pair.a.run(&["ip", "link", "set", "wan0", "down"])?;
    pair.a.run(&["ip", "link", "set", "wan0", "up"])?;
    assert_eq!(third.connect_error()?, Some(Errno::ECONNREFUSED));
    wait_for(&hosts, &["eth0", "wan0"])
}

#[test]
fn somebody_elses_xdp_program_is_left_alone() -> Result<()> {
    let pair = Pair::new()?;
    // In a mount namespace of its own: its pins are keyed by the device's index, which other
    // namespaces' devices have, too. The program stays attached.
    let load = "mount -t bpf bpf /sys/fs/bpf && xdp-filter load --mode native eth0";
    pair.a.run(&["unshare", "--mount", "sh", "-c", load])?;
    let program = || -> Result<Value> {
        let said: Value = serde_json::from_str(&pair.a.run(&["bpftool", "-j", "net", "show"])?)?;
        Ok(said[0]["xdp"].clone())
    };
    let before = program()?;
    assert_eq!(before.as_array().map(Vec::len), Some(1), "{before}");

    let programs = crate::programs();
    let daemon = Daemon::start(&pair.a, &programs, "")?;
    let status = daemon.json(&["status"])?;
    let eth0 = &status["interfaces"][0];
    assert!(
        eth0["notes"].to_string().contains("another program"),
        "{status}"
    );
    assert!(!eth0["hooks"].to_string().contains("\"xdp\""), "{status}");
    // TC serves.
    let mut flow = Connection::open(&pair.b, &pair.a, Pair::A)?;
    let b = Pair::B.to_string();
    daemon.json(&["add", &b, "--id", "dev01"])?;
    flow.client.send(b"late")?;
    poll("the drop", PATIENCE, || {
        let rule = daemon.json(&["show", "dev01"]).ok()?;
        (rule["counters"]["packets"].as_u64()? > 0).then_some(())
    })?;
    daemon.json(&["del", "dev01"])?;
    assert_eq!(flow.server.receive(4, PATIENCE)?, b"late");
    daemon.json(&["add", &b, "--mode", "reset"])?;
    assert!(flow.wait_dead(soon())?);
    drop(daemon);
    assert_eq!(program()?, before, "attached as before");
    Ok(())
}

#[test]
fn status_says_how_xdp_is_attached_and_why_over_changes_of_the_configuration() -> Result<()> {
    let mut hosts = BlockingPair::new("hook: xdp-generic\non_stop: keep\n")?;
    let eth0 = |hosts: &BlockingPair| -> Result<(String, String)> {
        let status = hosts.daemon.json(&["status"])?;
        let eth0 = &status["interfaces"][0];
        let hooks = eth0["hooks"].as_array().into_iter().flatten();
        let xdp: Vec<&Value> = hooks.filter(|hook| hook["hook"] == "xdp").collect();
        let mode = xdp
            .first()
            .map_or("", |hook| hook["mode"].as_str().unwrap_or_default());
        let link = hosts.pair.a.run(&["ip", "link", "show", "dev", "eth0"])?;
        let really = if link.contains("xdpgeneric") {
            "generic"
        } else if link.contains(" xdp ") {
            "native"
        } else {
            ""
        };
        assert_eq!(mode, really, "{status}\n{link}");
        Ok((mode.to_owned(), eth0["notes"].to_string()))
    };
    let (mode, notes) = eth0(&hosts)?;
    assert_eq!(mode, "generic");
    assert!(notes.contains("hook: xdp-generic"), "{notes}");
    for (hook, expected, why) in [
        ("xdp-native", "native", "null"),
        ("tc", "", "hook: tc"),
        ("xdp-generic", "generic", "hook: xdp-generic"),
    ] {
        hosts.daemon.stop()?;
        hosts
            .daemon
            .write_config(&format!("hook: {hook}\non_stop: keep\n"))?;
        hosts.daemon.run(&hosts.pair.a)?;
        let (mode, notes) = eth0(&hosts)?;
        assert_eq!(mode, expected, "{hook}: {notes}");
        assert!(notes.contains(why), "{hook}: {notes}");
    }
    Ok(())
}

/// In the kernel's generic path, XDP meets the replies too.
#[test]
fn what_drops_the_peers_packets_spares_the_replies_of_another_rule() -> Result<()> {
    for hook in ["xdp-generic", "xdp-native", "tc"] {
        let hosts = BlockingPair::new(&format!("hook: {hook}\n"))?;
        let b = Pair::B.to_string();
        hosts.add(&[&b, "--id", "in", "--direction", "ingress", "--mode", "drop"])?;
        let within = Duration::from_millis(300);
        let (inward, _) = connect_timed(&hosts.pair.b, (Pair::A, 9).into(), within)?;
        let error = inward.err().map(|error| errno(&error));
        assert_eq!(error, Some(Errno::ETIMEDOUT), "{hook}: dropped");
        hosts.add(&[
            &b,
            "--id",
            "out",
            "--direction",
            "egress",
            "--mode",
            "reject",
        ])?;
        let error = connect_error(&hosts.pair.a, (Pair::B, 9).into())?;
        assert_eq!(error, Some(Errno::EHOSTUNREACH), "{hook}");
    }
    Ok(())
}

/// Devices with the highest indexes share their hooks' counters: what is counted there stays when one
/// of them goes.
#[test]
fn a_device_that_goes_takes_nothing_from_what_others_counted() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let add = |name: &str, index: &str| {
        let peer = format!("{name}p");
        let words = ["ip", "link", "add", name, "index", index, "type", "veth"];
        hosts
            .pair
            .a
            .run(&[&words[..], &["peer", "name", &peer]].concat())?;
        for device in [name, &peer] {
            hosts.pair.a.run(&["ip", "link", "set", device, "up"])?;
        }
        anyhow::Ok(())
    };
    add("stays", "5000")?;
    add("goes", "5001")?;
    let seen = || -> Result<u64> {
        let device = devices(&hosts)?.remove("stays").context("it is there")?;
        let hooks = device["hooks"].as_array().context("hooks")?.clone();
        Ok(hooks.iter().filter_map(|hook| hook["seen"].as_u64()).sum())
    };
    // Their own kernel's neighbour discovery is enough.
    poll("packets", PATIENCE, || seen().ok().filter(|seen| *seen > 0))?;
    let before = seen()?;
    hosts.pair.a.run(&["ip", "link", "delete", "goes"])?;
    wait_for(&hosts, &["eth0", "stays", "staysp"])?;
    assert!(seen()? >= before, "{before} packets were counted");
    Ok(())
}
