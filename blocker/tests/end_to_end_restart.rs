//! What outlives a daemon: counters, to the packet, while another one takes its place.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

mod lab;
mod scene;

use lab::Pair;
use scene::{Scene, udp};

/// Sends datagrams from B to A during some work; gives how many A's device was given.
fn flooded(scene: &mut Scene, work: impl FnOnce(&mut Scene) -> Result<()>) -> Result<u64> {
    let sink = udp(&scene.pair.a, Pair::A, None)?;
    let source = udp(&scene.pair.b, Pair::B, Some(sink.local_addr()?))?;
    let over = AtomicBool::new(false);
    let before = lost(scene)?;
    let sent = std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut sent = 0_u64;
            while sent < 100 || !over.load(Ordering::Relaxed) {
                sent += u64::from(source.send(b"counted?").is_ok());
                std::thread::yield_now();
            }
            sent
        });
        let result = work(scene);
        over.store(true, Ordering::Relaxed);
        let sent = sending.join().expect("no panic");
        result.map(|()| sent)
    })?;
    ensure!(sent >= 100, "{sent} datagrams are too few to tell");
    Ok(sent - (lost(scene)? - before))
}

/// Packets that B's device had no room for: the receiver never saw them.
fn lost(scene: &Scene) -> Result<u64> {
    let text = scene
        .pair
        .b
        .run(&["ip", "-json", "-statistics", "link", "show"])?;
    let said: Value = serde_json::from_str(&text)?;
    let devices = said.as_array().context("a list of devices")?;
    let dropped = devices
        .iter()
        .map(|device| &device["stats64"]["tx"]["dropped"]);
    Ok(dropped.filter_map(Value::as_u64).sum())
}

fn restart(scene: &mut Scene) -> Result<()> {
    assert!(scene.daemon.stop()?.success());
    scene.daemon.run(&scene.pair.a)
}

fn crash(scene: &mut Scene) -> Result<()> {
    scene.daemon.kill()?;
    scene.daemon.run(&scene.pair.a)
}

#[test]
fn counters_go_on_to_the_packet_when_a_daemon_takes_over() -> Result<()> {
    let mut scene = Scene::new("on_stop: keep\n")?;
    let b = Pair::B.to_string();
    scene.add(&["192.0.2.1", "--id", "another"])?;
    scene.add(&[&b, "--mode", "drop", "--protocol", "udp", "--id", "dev01"])?;
    let arrived = flooded(&mut scene, |scene| {
        for round in 0..3 {
            scene.wait_packets("dev01", 1)?;
            // What goes and comes beside it moves nobody's counters.
            scene.del(&["another"])?;
            restart(scene)?;
            scene.add(&["192.0.2.1", "--id", "another"])?;
            crash(scene)?;
            assert_eq!(scene.counters("another")?["packets"], 0, "round {round}");
        }
        Ok(())
    })?;
    let counters = scene.wait_packets("dev01", arrived)?;
    assert_eq!(counters["packets"], arrived);
    // Ethernet, IPv4, UDP and eight bytes.
    assert_eq!(counters["bytes"], arrived * (14 + 20 + 8 + 8));
    Ok(())
}

#[test]
fn what_hooks_saw_goes_on_too() -> Result<()> {
    let mut scene = Scene::new("on_stop: keep\nhook: tc\n")?;
    let b = Pair::B.to_string();
    scene.add(&[&b, "--mode", "drop", "--protocol", "udp", "--id", "dev01"])?;
    let sent = flooded(&mut scene, crash)?;
    scene.wait_packets("dev01", sent)?;
    let status = scene.daemon.json(&["status"])?;
    let hooks = status["interfaces"][0]["hooks"]
        .as_array()
        .context("hooks")?;
    let ingress = hooks.iter().find(|hook| hook["hook"] == "tc-ingress");
    let ingress = ingress.context("the hook is there")?;
    let (seen, passed) = (&ingress["seen"], &ingress["passed"]);
    let blocked = seen.as_u64().context("seen")? - passed.as_u64().context("passed")?;
    assert_eq!(blocked, sent, "{ingress}");
    Ok(())
}

#[test]
fn a_rule_that_left_while_no_daemon_was_there_leaves_nothing_behind() -> Result<()> {
    let mut scene = Scene::new("on_stop: keep\n")?;
    let b = Pair::B.to_string();
    scene.add(&[&b, "--mode", "drop", "--id", "dev01"])?;
    flooded(&mut scene, |_| Ok(()))?;
    scene.wait_packets("dev01", 1)?;
    scene.daemon.kill()?;
    std::fs::remove_file(scene.daemon.state().join("rules.json"))?;
    scene.daemon.run(&scene.pair.a)?;
    assert_eq!(
        scene.daemon.json(&["list"])?["rules"],
        serde_json::json!([])
    );
    scene.add(&["192.0.2.1", "--id", "dev01"])?;
    assert_eq!(scene.counters("dev01")?["packets"], 0);
    Ok(())
}

#[test]
fn what_does_not_fit_is_begun_anew_and_said() -> Result<()> {
    let mut scene = Scene::new("on_stop: keep\nlimits: {rules: 100}\n")?;
    let b = Pair::B.to_string();
    scene.add(&[&b, "--mode", "drop", "--protocol", "udp", "--id", "dev01"])?;
    flooded(&mut scene, |_| Ok(()))?;
    scene.wait_packets("dev01", 1)?;
    scene.daemon.stop()?;
    let path = scene.daemon.config_path();
    let text = std::fs::read_to_string(&path)?.replace("rules: 100", "rules: 200");
    std::fs::write(&path, text)?;
    scene.daemon.run(&scene.pair.a)?;
    assert_eq!(scene.counters("dev01")?["packets"], 0);
    let log = scene.daemon.log();
    assert!(log.contains("counting begins anew"), "{log}");
    // And from here on it is kept again.
    let sent = flooded(&mut scene, crash)?;
    assert_eq!(scene.wait_packets("dev01", sent)?["packets"], sent);
    Ok(())
}

#[test]
fn a_daemon_that_cannot_start_leaves_no_pins() -> Result<()> {
    let mut scene = Scene::new("")?;
    scene.daemon.stop()?;
    assert!(!scene.daemon.pins().exists());
    let path = scene.daemon.config_path();
    let text = std::fs::read_to_string(&path)?;
    std::fs::write(
        &path,
        format!("{text}\nlimits: {{prefixes: 1}}\nrules: [{{targets: [192.0.2.1, 192.0.2.3]}}]\n"),
    )?;
    let run = scene.daemon.blocker(&scene.pair.a, "run")?;
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(
        run.stderr.contains("more than the 1 allowed"),
        "{}",
        run.stderr
    );
    assert!(!scene.daemon.pins().exists());
    Ok(())
}
