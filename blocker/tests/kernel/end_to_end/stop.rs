//! Which rules stay in force when the daemon stops, is killed, starts again, or is unloaded.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use xtask::hosts::{Connection, Daemon, Listener, Namespace, Pair, poll};

use super::datagrams::{arrived, assert_tight, datagrams, wait_passing};
use crate::blocking_pair::{BlockingPair, PATIENCE, connect_error, soon};

/// How long restarts may take.
const TIGHT: Duration = Duration::from_secs(64);

/// Programs that are attached to devices of a namespace, as `bpftool net` sees them.
fn attached(host: &Namespace) -> Result<Vec<Value>> {
    let said: Value = serde_json::from_str(&host.run(&["bpftool", "--json", "net", "show"])?)?;
    let hooks = ["xdp", "tc"]
        .iter()
        .filter_map(|hook| said[0][hook].as_array());
    Ok(hooks.flatten().cloned().collect())
}

/// Checks that nothing of blocker is left in a namespace.
fn assert_no_trace(host: &Namespace, daemon: &Daemon) -> Result<()> {
    assert_eq!(attached(host)?, Vec::<Value>::new());
    let disciplines = host.run(&["tc", "qdisc", "show"])?;
    assert!(!disciplines.contains("clsact"), "{disciplines}");
    assert!(
        !daemon.pins().exists(),
        "{} is left",
        daemon.pins().display()
    );
    Ok(())
}

#[test]
fn a_stop_lifts_everything() -> Result<()> {
    let mut hosts = BlockingPair::new("on_stop: lift\n")?;
    let (sink, source) = datagrams(&hosts.pair)?;
    hosts.add(&[&Pair::B.to_string(), "--mode", "drop"])?;
    assert!(!attached(&hosts.pair.a)?.is_empty());
    assert_tight(&sink, &source, TIGHT, || Ok(()))?;
    assert!(hosts.daemon.stop()?.success());
    wait_passing(&sink, &source, PATIENCE)?;
    assert_no_trace(&hosts.pair.a, &hosts.daemon)?;
    assert!(!hosts.daemon.socket().exists());
    Ok(())
}

#[test]
fn a_stop_keeps_what_the_configuration_says_and_a_start_takes_over() -> Result<()> {
    let BlockingPair { mut daemon, pair } = BlockingPair::new("on_stop: keep\n")?;
    let (sink, source) = datagrams(&pair)?;
    let mut flow = Connection::open(&pair.b, &pair.a, Pair::A)?;
    wait_passing(&sink, &source, PATIENCE)?;
    while arrived(&sink)? {}
    let b = Pair::B.to_string();
    daemon.json(&["add", &b, "--mode", "drop", "--id", "dev01"])?;
    while arrived(&sink)? {}
    flow.client.send(b"late")?;
    let before = attached(&pair.a)?;
    assert_tight(&sink, &source, TIGHT, || {
        assert!(daemon.stop()?.success());
        assert_eq!(attached(&pair.a)?.len(), before.len());
        assert_eq!(daemon.blockctl(&["list"])?.code, 3);
        daemon.run(&pair.a)?;
        // And once more, by a crash.
        daemon.kill()?;
        daemon.run(&pair.a)
    })?;
    assert_eq!(
        attached(&pair.a)?.len(),
        before.len(),
        "taken over, not added to"
    );
    let list = daemon.json(&["list"])?;
    assert_eq!(list["rules"][0]["id"], "dev01", "{list}");
    assert_eq!(list["rules"][0]["owner"], "api", "{list}");
    assert_eq!([flow.client.look()?, flow.server.look()?], [None, None]);
    daemon.json(&["del", "dev01"])?;
    wait_passing(&sink, &source, PATIENCE)?;
    // It is sent again as long after the last time as it was blocked.
    assert_eq!(flow.server.receive(4, TIGHT)?, b"late");
    Ok(())
}

#[test]
fn a_daemon_that_hands_over_keeps_the_rules_whatever_the_configuration_says() -> Result<()> {
    let BlockingPair { mut daemon, pair } = BlockingPair::new("on_stop: lift\n")?;
    let (sink, source) = datagrams(&pair)?;
    let b = Pair::B.to_string();
    daemon.json(&["add", &b, "--mode", "drop", "--id", "dev01"])?;
    assert_tight(&sink, &source, TIGHT, || {
        let pid = Pid::from_raw(daemon.pid().context("it runs")?.try_into()?);
        kill(pid, Signal::SIGUSR2)?;
        // As a service manager does, whatever came before.
        assert!(daemon.stop()?.success());
        daemon.run(&pair.a)
    })?;
    assert_eq!(daemon.json(&["list"])?["rules"][0]["id"], "dev01");
    assert!(daemon.stop()?.success());
    wait_passing(&sink, &source, PATIENCE)?;
    assert_no_trace(&pair.a, &daemon)
}

#[test]
fn a_killed_daemon_leaves_the_block_and_its_deadline() -> Result<()> {
    for (mode, on_lift) in [
        ("drop", "resume"),
        ("drop", "reset"),
        ("reset", "resume"),
        ("reset", "reset"),
    ] {
        let mut hosts = BlockingPair::new("")?;
        let (sink, source) = datagrams(&hosts.pair)?;
        let in_a = Listener::new(&hosts.pair.a, Pair::A, 0)?;
        let b = Pair::B.to_string();
        let words = ["--mode", mode, "--on-lift", on_lift, "--for", "2s"];
        let start = Instant::now();
        hosts.add(&[&[b.as_str()], &words[..]].concat())?;
        let added = Instant::now();
        hosts.daemon.kill()?;
        assert_tight(&sink, &source, TIGHT, || {
            // Well within the two seconds.
            poll("most of the time to pass", PATIENCE, || {
                (start.elapsed() > Duration::from_millis(1500)).then_some(())
            })
        })?;
        wait_passing(&sink, &source, PATIENCE)?;
        let (least, most) = (start.elapsed(), added.elapsed());
        let what = format!("{mode}, on lift {on_lift}: after {least:?} or {most:?}");
        assert!(least > Duration::from_millis(1900), "{what}");
        assert!(most < Duration::from_secs(3), "{what}");
        in_a.connect(&hosts.pair.b)?.check_alive()?;
        assert_eq!(hosts.daemon.blockctl(&["list"])?.code, 3);
    }
    Ok(())
}

#[test]
fn a_reset_goes_on_without_a_daemon() -> Result<()> {
    let mut hosts = BlockingPair::new("")?;
    let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?;
    let b = Pair::B.to_string();
    hosts.add(&[&b, "--mode", "reset", "--established", "keep"])?;
    hosts.daemon.kill()?;
    flow.server.send(b"?")?;
    assert!(flow.wait_dead(soon())?, "{flow:?}");
    let error = connect_error(&hosts.pair.b, (Pair::A, 9).into())?;
    assert_eq!(error, Some(nix::errno::Errno::ECONNREFUSED));
    Ok(())
}

#[test]
fn unload_removes_every_trace_of_a_killed_daemon() -> Result<()> {
    let mut hosts = BlockingPair::new("")?;
    let (sink, source) = datagrams(&hosts.pair)?;
    hosts.add(&[&Pair::B.to_string(), "--mode", "drop"])?;

    let refused = hosts.daemon.blocker(&hosts.pair.a, "unload")?;
    assert_eq!(refused.code, 1, "a daemon runs: {}", refused.stdout);
    let pid = hosts.daemon.pid().context("it runs")?.to_string();
    assert!(refused.stderr.contains(&pid), "{}", refused.stderr);

    hosts.daemon.kill()?;
    assert!(!attached(&hosts.pair.a)?.is_empty());
    assert_tight(&sink, &source, TIGHT, || Ok(()))?;
    hosts.daemon.blocker(&hosts.pair.a, "unload")?.success()?;
    wait_passing(&sink, &source, PATIENCE)?;
    assert_no_trace(&hosts.pair.a, &hosts.daemon)?;
    // What is gone already is no error.
    hosts.daemon.blocker(&hosts.pair.a, "unload")?.success()?;

    // The rules are kept all the same, and are back when the daemon is.
    hosts.daemon.run(&hosts.pair.a)?;
    assert_eq!(hosts.daemon.json(&["status"])?["rules"]["used"], 1);
    Ok(())
}

#[test]
fn rules_live_through_a_restart_with_the_time_that_they_have_left() -> Result<()> {
    let mut hosts = BlockingPair::new("")?;
    let b = Pair::B.to_string();
    let words = ["--mode", "reject", "--for", "300s", "--comment", "INC-1234"];
    let added = hosts.add(&[&[b.as_str(), "--id", "dev01"], &words[..]].concat())?;
    hosts.add(&["192.0.2.0/24", "--for", "1s", "--id", "short"])?;
    hosts.daemon.stop()?;
    poll("the second to pass", PATIENCE, || {
        let expires = added["rule"]["expires"]
            .as_str()?
            .parse::<jiff::Timestamp>()
            .ok()?;
        let left = expires.duration_since(jiff::Timestamp::now()).as_secs();
        (left < 298).then_some(())
    })?;
    hosts.daemon.run(&hosts.pair.a)?;
    let list = hosts.daemon.json(&["list"])?;
    assert_eq!(list["rules"].as_array().map(Vec::len), Some(1), "{list}");
    let rule = &list["rules"][0];
    for key in ["id", "mode", "targets", "comment", "expires", "on_lift"] {
        assert_eq!(rule[key], added["rule"][key], "{key}");
    }
    let left = rule["remaining_seconds"]
        .as_u64()
        .context("it has a deadline")?;
    assert!((200..299).contains(&left), "{left} s left");
    let kept = std::fs::read_to_string(hosts.daemon.state().join("rules.json"))?;
    assert!(kept.contains("dev01"), "{kept}");
    Ok(())
}

#[test]
fn a_second_daemon_on_the_same_pins_is_refused() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let config = std::fs::read_to_string(hosts.daemon.config_path())?;
    let socket = hosts.daemon.socket().display().to_string();
    let directory = tempfile::tempdir()?;
    let run = |config: &str| -> Result<(i32, String)> {
        let path = directory.path().join("second.yaml");
        std::fs::write(&path, config)?;
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_blocker"));
        command.arg("run").arg("--config").arg(&path);
        let output = hosts.pair.a.enter(|| command.output())??;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status.code().unwrap_or(-1), said))
    };
    let (code, said) = run(&config)?;
    assert_eq!(code, 1, "{said}");
    let pid = hosts.daemon.pid().context("it runs")?.to_string();
    assert!(said.contains("held by") && said.contains(&pid), "{said}");
    // With pins of its own it is the socket that is taken.
    let other = Path::new("/sys/fs/bpf").join(hosts.pair.b.name());
    let pins = hosts.daemon.pins().display().to_string();
    let (code, said) = run(&config.replace(&pins, &other.display().to_string()))?;
    std::fs::remove_dir(&other).ok();
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains(&socket) && said.contains("another daemon"),
        "{said}"
    );
    // Neither disturbed the first.
    assert_eq!(hosts.daemon.json(&["list"])?, json!({"rules": []}));
    Ok(())
}
