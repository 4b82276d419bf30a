//! The log of a daemon: every change with who asked, what and why; in lines or in JSON.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use anyhow::{Result, ensure};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use xtask::hosts::{Daemon, Pair, poll};

use crate::blocking_pair::PATIENCE;

/// The lines of a log in JSON.
fn lines(daemon: &Daemon) -> Vec<Value> {
    let log = daemon.log();
    let lines = log.lines().map(serde_json::from_str);
    let lines: Result<Vec<Value>, _> = lines.collect();
    lines.unwrap_or_else(|error| panic!("{error}\n{log}"))
}

/// The only line with this message on this rule, once it is there.
fn line(daemon: &Daemon, message: &str, rule: &str) -> Result<Value> {
    let what = format!("{message:?} of {rule}");
    let mut found = poll(&what, PATIENCE, || {
        let mut lines = lines(daemon);
        lines.retain(|line| line["message"] == message && line["rule"] == rule);
        (!lines.is_empty()).then_some(lines)
    })?;
    assert_eq!(found.len(), 1, "{found:?}");
    Ok(found.remove(0))
}

#[test]
fn json_says_who_asked_what_and_why() -> Result<()> {
    let pair = Pair::new()?;
    let config = "rules: [{id: kept, targets: [192.0.2.1], comment: by config}]\n";
    let mut daemon = Daemon::prepare(&pair.a, &crate::programs(), config)?;
    daemon.log_format = "json";
    daemon.run(&pair.a)?;
    let uid = json!(nix::unistd::getuid().as_raw());

    daemon.json(&["add", "192.0.2.7", "--id", "a", "--comment", "INC-1"])?;
    let added = line(&daemon, "rule added", "a")?;
    assert_eq!(added["uid"], uid);
    assert!(added["pid"].as_i64().is_some_and(|pid| pid > 1), "{added}");
    assert_eq!(added["comment"], "INC-1");
    assert_eq!(
        (&added["mode"], &added["targets"]),
        (&json!("drop"), &json!(1))
    );
    assert_eq!(added["level"], "INFO");
    assert!(added["timestamp"].is_string());

    daemon.json(&["del", "a"])?;
    let lifted = line(&daemon, "rule lifted", "a")?;
    assert_eq!(
        (&lifted["uid"], &lifted["comment"]),
        (&uid, &json!("INC-1"))
    );

    daemon.json(&["add", "192.0.2.8", "--id", "b", "--for", "1s"])?;
    let expired = line(&daemon, "rule expired", "b")?;
    assert!(expired["expires"].is_string(), "{expired}");
    assert_eq!(expired["uid"], Value::Null, "nobody asked");

    daemon.json(&["add", "192.0.2.9", "--id", "c"])?;
    daemon.json(&["flush"])?;
    assert_eq!(line(&daemon, "rule lifted", "c")?["uid"], uid);

    // What is refused is logged, too.
    let refused = daemon.blockctl(&["add", "127.0.0.1", "--id", "d"])?;
    assert_eq!(refused.code, 5, "{refused:?}");
    let refused = poll("the refusal", PATIENCE, || {
        let told = |line: &Value| {
            let message = line["message"].as_str().unwrap_or_default();
            message.starts_with("request refused: ") && message.contains("127.0.0.1")
        };
        lines(&daemon).into_iter().find(told)
    })?;
    assert_eq!(
        (&refused["uid"], &refused["method"]),
        (&uid, &json!("POST"))
    );

    daemon.write_config("rules: [{id: other, targets: [192.0.2.2], comment: by reload}]\n")?;
    daemon.reload()?;
    assert_eq!(
        line(&daemon, "rule added", "other")?["comment"],
        "by reload"
    );
    assert_eq!(
        line(&daemon, "rule lifted", "kept")?["comment"],
        "by config"
    );

    let attached = lines(&daemon);
    let attached = attached
        .iter()
        .find(|line| line["message"] == "device attached");
    let attached = attached.expect("the device is told of");
    assert_eq!(attached["device"], "eth0");
    assert!(
        attached["hooks"]
            .as_str()
            .is_some_and(|hooks| hooks.contains("tc-egress")),
        "{attached}"
    );
    daemon.stop()?;
    Ok(())
}

#[test]
fn text_is_what_is_written_unless_asked_otherwise() -> Result<()> {
    let pair = Pair::new()?;
    let daemon = Daemon::start(&pair.a, &crate::programs(), "")?;
    daemon.json(&["add", "192.0.2.7", "--id", "a"])?;
    let log = poll("the line", PATIENCE, || {
        let log = daemon.log();
        log.contains("rule added").then_some(log)
    })?;
    let line = log
        .lines()
        .find(|line| line.contains("rule added"))
        .expect("it is there");
    let uid = format!("uid={}", nix::unistd::getuid());
    assert!(
        line.contains(" INFO ") && line.contains(&uid) && line.contains("rule=a"),
        "{line}"
    );
    assert!(!line.contains('\u{1b}'), "no colours in a file: {line}");
    Ok(())
}

/// The value of a field in a message of journald's native protocol
/// (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>): `NAME=value`, or the name, the value's length
/// as 64 bits little-endian, and the value.
fn field(message: &[u8], name: &str) -> Option<String> {
    let lines = message.split(|byte| *byte == b'\n');
    let short = lines
        .filter_map(|line| line.strip_prefix(format!("{name}=").as_bytes()))
        .next();
    let value = short.map(<[u8]>::to_vec).or_else(|| {
        let name = format!("\n{name}\n");
        let at = message
            .windows(name.len())
            .position(|window| window == name.as_bytes())?;
        let (length, rest) = message[at + name.len()..].split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        rest.get(..length).map(<[u8]>::to_vec)
    })?;
    String::from_utf8(value).ok()
}

/// In a mount namespace of this thread and its children, in which the test owns journald's socket.
fn as_journald() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let directory = "/run/systemd";
    fs::create_dir_all(directory)?;
    for words in [
        &["--make-rprivate", "/"][..],
        &["-t", "tmpfs", "tmpfs", directory],
    ] {
        ensure!(
            Command::new("mount").args(words).status()?.success(),
            "mount {words:?}"
        );
    }
    fs::create_dir(format!("{directory}/journal"))?;
    let journal = UnixDatagram::bind(format!("{directory}/journal/socket"))?;
    journal.set_read_timeout(Some(PATIENCE))?;

    let pair = Pair::new()?;
    let mut daemon = Daemon::prepare(&pair.a, &crate::programs(), "")?;
    daemon.log_format = "journald";
    daemon.run(&pair.a)?;
    daemon.json(&["add", "192.0.2.7", "--id", "a", "--comment", "INC-1"])?;
    let mut buffer = vec![0; 1 << 16];
    let message = loop {
        let length = journal.recv(&mut buffer)?;
        let message = &buffer[..length];
        if field(message, "MESSAGE").is_some_and(|text| text.trim() == "rule added") {
            break message;
        }
    };
    let uid = nix::unistd::getuid().to_string();
    for (name, value) in [
        ("SYSLOG_IDENTIFIER", "blocker"),
        ("BLOCKER_UID", uid.as_str()),
        ("BLOCKER_RULE", "a"),
        ("BLOCKER_MODE", "drop"),
        ("BLOCKER_COMMENT", "INC-1"),
    ] {
        assert_eq!(field(message, name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(daemon.log(), "", "nothing on standard error");
    Ok(())
}

#[test]
fn journald_gets_each_field_as_one_of_its_own() -> Result<()> {
    let thread = std::thread::spawn(as_journald);
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
