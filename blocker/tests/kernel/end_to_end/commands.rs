//! What `blockctl` answers: exit codes, JSON that scripts may rely on, adding what is there
//! already, and requests by hand.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use xtask::hosts::{Connection, Listener, Pair};

use crate::blocking_pair::{BlockingPair, settle, soon};

/// The keys of a JSON object.
fn keys(value: &Value) -> BTreeSet<&str> {
    let object = value.as_object().expect("an object");
    object.keys().map(String::as_str).collect()
}

fn set<'a>(keys: &[&'a str]) -> BTreeSet<&'a str> {
    keys.iter().copied().collect()
}

/// A remote that receives no RST keeps its connection: this is reported, with exit code 6.
#[test]
fn what_is_left_of_a_teardown_is_told() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?;
    flow.check_alive()?;
    let [a, b] = [Pair::A, Pair::B].map(|address| address.to_string());
    // The kernel's RST is eaten here, and probes there.
    hosts
        .pair
        .a
        .run(&["iptables", "-A", "OUTPUT", "-d", &b, "-j", "DROP"])?;
    hosts
        .pair
        .b
        .run(&["iptables", "-A", "INPUT", "-s", &a, "-j", "DROP"])?;
    let said = hosts
        .daemon
        .blockctl(&["-o", "json", "add", &b, "--mode", "reset"])?;
    assert_eq!(said.code, 6, "{}{}", said.stdout, said.stderr);
    let answer: Value = serde_json::from_str(&said.stdout)?;
    let account = &answer["teardown"];
    assert_eq!(
        (&account["found"], &account["killed"]),
        (&json!(1), &json!(0)),
        "{account:#}"
    );
    assert_eq!(account["left"][0]["remote"], b, "{account:#}");
    assert!(account["left"][0]["why"].is_string(), "{account:#}");
    // The rule stands all the same: what the remote sends, it is told.
    assert_eq!(
        hosts.daemon.json(&["list"])?["rules"][0]["targets"],
        json!([b])
    );
    hosts.pair.b.run(&["iptables", "-F", "INPUT"])?;
    flow.client.send(b"request")?;
    assert!(flow.wait_dead(soon())?, "{flow:?}");
    Ok(())
}

#[test]
fn exit_codes_are_stable() -> Result<()> {
    let mut hosts = BlockingPair::new("")?;
    let code = |words: &[&str]| -> Result<i32> { Ok(hosts.daemon.blockctl(words)?.code) };
    assert_eq!(code(&["list"])?, 0);
    assert_eq!(code(&["--version"])?, 0);
    for invalid in [
        &["add"][..],
        &["add", "192.0.2.256"],
        &["add", "192.0.2.1/24"],
        &["add", "198.51.100.1", "--for", "soon"],
        &["add", "198.51.100.1", "--port", "80", "--protocol", "icmp"],
        &["add", "198.51.100.1", "--id", "Not An Id"],
        &["nonsense"],
        &["list", "--nonsense"],
    ] {
        assert_eq!(code(invalid)?, 2, "{invalid:?}");
    }
    for unknown in [
        &["del", "nobody"][..],
        &["del", "198.51.100.9"],
        &["show", "nobody"],
    ] {
        assert_eq!(code(unknown)?, 4, "{unknown:?}");
    }
    assert_eq!(code(&["add", "127.0.0.1"])?, 5);
    let nowhere = hosts
        .daemon
        .state()
        .join("nowhere.sock")
        .display()
        .to_string();
    let file = hosts.daemon.config_path().display().to_string();
    for wrong in [&nowhere, &file] {
        let said = hosts.daemon.blockctl(&["--socket", wrong, "list"])?;
        assert_eq!(said.code, 3, "{wrong}");
        assert!(said.stderr.contains(wrong), "{}", said.stderr);
    }
    // A known one beside an unknown one: nothing is changed.
    hosts.add(&["198.51.100.1", "--id", "known"])?;
    assert_eq!(hosts.daemon.blockctl(&["del", "known", "nobody"])?.code, 4);
    assert_eq!(hosts.daemon.json(&["list"])?["rules"][0]["id"], "known");
    // An id that another rule has.
    let taken = hosts
        .daemon
        .blockctl(&["add", "198.51.100.2", "--id", "known"])?;
    assert_eq!(taken.code, 2, "{}", taken.stderr);
    assert!(taken.stderr.contains("known"), "{}", taken.stderr);
    // The socket of a daemon that was killed.
    hosts.daemon.kill()?;
    let dead = hosts.daemon.blockctl(&["list"])?;
    assert_eq!(dead.code, 3, "{}", dead.stderr);
    assert!(
        dead.stderr.contains("systemctl start blocker"),
        "{}",
        dead.stderr
    );
    Ok(())
}

#[test]
fn json_has_the_shapes_that_scripts_rely_on() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let b = Pair::B.to_string();
    let mut flow = Connection::open(&hosts.pair.b, &hosts.pair.a, Pair::A)?;
    let add = [&*b, "--id", "dev01", "--mode", "reset", "--for", "5m"];
    let tried = hosts.add(&[&add[..], &["--dry-run"]].concat())?;
    let live = &tried["would_kill"][0];
    for (key, value) in [
        ("protocol", json!("tcp")),
        ("remote", json!(Pair::B)),
        ("remote_port", json!(flow.client.local()?.port())),
        ("local", json!(Pair::A)),
        ("local_port", json!(flow.server.local()?.port())),
        ("state", json!("ESTABLISHED")),
        ("pid", json!(std::process::id())),
    ] {
        assert_eq!(live[key], value, "{key}: {tried}");
    }
    assert!(live["process"].is_string(), "{tried}");
    assert_eq!(hosts.daemon.json(&["list"])?, json!({"rules": []}));
    flow.check_alive()?;
    settle(&flow)?;

    let added = hosts.add(&add)?;
    assert_eq!(keys(&added), set(&["rule", "created", "teardown"]));
    assert_eq!(added["created"], true);
    let account = &added["teardown"];
    assert_eq!([&account["found"], &account["killed"]], [1, 1], "{account}");
    assert_eq!(account["left"], json!([]));
    assert!(account["elapsed_ms"].as_f64().context("a number")? > 0.0);
    let rule = &added["rule"];
    for (key, value) in [
        ("id", json!("dev01")),
        ("targets", json!([b])),
        ("mode", json!("reset")),
        ("direction", json!("both")),
        ("protocol", json!("any")),
        ("percent", json!(100)),
        ("established", json!("kill")),
        ("on_lift", json!("resume")),
    ] {
        assert_eq!(rule[key], value, "{key}: {rule}");
    }
    assert!(rule["expires"].is_string(), "{rule}");

    let list = hosts.daemon.json(&["list"])?;
    let listed = &list["rules"][0];
    assert_eq!(listed["owner"], "api");
    let left = listed["remaining_seconds"].as_u64().context("a number")?;
    assert!((280..=300).contains(&left), "{left}");
    let counters = keys(&listed["counters"]);
    assert!(counters.is_superset(&set(&["packets", "bytes", "replies"])));
    assert_eq!(keys(&hosts.daemon.json(&["show", "dev01"])?), keys(listed));

    let status = hosts.daemon.json(&["status"])?;
    for key in [
        "version",
        "uptime_seconds",
        "interfaces",
        "rules",
        "prefixes",
        "lacks",
        "pid",
        "kernel",
    ] {
        assert!(!status[key].is_null(), "{key}: {status}");
    }
    assert_eq!(status["pid"].as_u64(), hosts.daemon.pid().map(u64::from));
    assert_eq!(status["rules"]["used"], 1);
    assert_eq!(status["interfaces"][0]["name"], "eth0");
    let hooks = status["interfaces"][0]["hooks"]
        .as_array()
        .context("hooks")?;
    let hooks: BTreeSet<_> = hooks
        .iter()
        .filter_map(|hook| hook["hook"].as_str())
        .collect();
    assert!(
        hooks.is_superset(&set(&["tc-ingress", "tc-egress"])),
        "{hooks:?}"
    );
    assert_eq!(status["lacks"], json!([]), "this kernel has it all");

    let gone = hosts.del(&["dev01"])?;
    assert_eq!(keys(&gone), set(&["removed", "teardown"]));
    assert_eq!(gone["removed"], json!(["dev01"]));

    // YAML is the same; a table is for people; quiet is the id alone.
    let yaml = hosts
        .daemon
        .blockctl(&["-o", "yaml", "add", "198.51.100.1", "--id", "x"])?;
    assert!(yaml.stdout.contains("id: x"), "{}", yaml.stdout);
    let table = hosts.daemon.blockctl(&["list"])?.success()?;
    assert!(table.stdout.contains("198.51.100.1"), "{}", table.stdout);
    let quiet = hosts
        .daemon
        .blockctl(&["-q", "add", "198.51.100.2", "--id", "y"])?;
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), ("y\n", ""));
    Ok(())
}

#[test]
fn adding_what_is_there_changes_only_its_deadline() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let b = Pair::B.to_string();
    let words = [&*b, "--mode", "reset", "--protocol", "tcp"];
    let first = hosts.add(&words)?;
    let id = first["rule"]["id"].as_str().context("an id")?;
    let again = hosts.add(&words)?;
    assert_eq!(
        (&again["created"], &again["rule"]["id"]),
        (&json!(false), &json!(id))
    );
    let named = hosts.add(&[&words[..], &["--id", id, "--for", "5m"]].concat())?;
    assert_eq!(named["created"], false);
    assert!(named["rule"]["expires"].is_string(), "{named}");
    let told = hosts
        .daemon
        .blockctl(&[&["add"], &words[..]].concat())?
        .success()?;
    assert!(told.stdout.contains("already"), "{}", told.stdout);
    assert_eq!(
        hosts.daemon.json(&["list"])?["rules"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
    // Another effect is another rule.
    assert_eq!(hosts.add(&[&b, "--mode", "drop"])?["created"], true);
    Ok(())
}

#[test]
fn eight_callers_at_once_lose_nothing() -> Result<()> {
    const CALLERS: usize = 8;
    const EACH: usize = 8;
    let hosts = BlockingPair::new("")?;
    let add = |words: &[&str]| -> Result<std::process::Child> {
        let mut command: Command = hosts.daemon.blockctl_command();
        command.args(["-o", "json", "add"]).args(words);
        Ok(command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?)
    };
    for round in 0..EACH {
        let mut callers = Vec::new();
        for caller in 0..CALLERS {
            let own = format!("198.51.{round}.{caller}");
            callers.push((add(&[&own, "--id", &format!("r{round}-{caller}")])?, false));
            callers.push((add(&[&format!("203.0.113.{round}")])?, true));
        }
        let mut created = 0;
        for (caller, shared) in callers {
            let output = caller.wait_with_output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            let answer: Value = serde_json::from_slice(&output.stdout)?;
            if shared {
                created += usize::from(answer["created"] == true);
            } else {
                assert_eq!(answer["created"], true, "{answer}");
            }
        }
        assert_eq!(created, 1, "all the same rule, made once");
    }
    let list = hosts.daemon.json(&["list"])?;
    let rules = list["rules"].as_array().context("rules")?;
    assert_eq!(rules.len(), (CALLERS + 1) * EACH);
    let status = hosts.daemon.json(&["status"])?;
    assert_eq!(status["prefixes"]["used"], rules.len());
    Ok(())
}

#[test]
fn a_flush_lifts_everything_and_leaves_the_configurations() -> Result<()> {
    let hosts = BlockingPair::new("rules: [{id: fixed, targets: [198.51.100.1]}]\n")?;
    let in_a = Listener::new(&hosts.pair.a, Pair::A, 0)?;
    hosts.add(&[&Pair::B.to_string(), "--id", "one"])?;
    hosts.add(&["198.51.100.2", "--id", "two"])?;
    let gone = hosts.daemon.json(&["flush"])?;
    assert_eq!(gone["removed"], json!(["one", "two"]));
    in_a.connect(&hosts.pair.b)?.check_alive()?;
    assert_eq!(hosts.daemon.json(&["list"])?["rules"][0]["id"], "fixed");
    assert_eq!(
        hosts.daemon.json(&["flush", "--all"])?["removed"],
        json!(["fixed"])
    );
    Ok(())
}

#[test]
fn a_target_is_taken_out_of_rules() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let b = Pair::B.to_string();
    let in_a = Listener::new(&hosts.pair.a, Pair::A, 0)?;
    hosts.add(&[&b, "198.51.100.1", "--mode", "reset", "--id", "two"])?;
    hosts.add(&[&b, "--mode", "drop", "--id", "one"])?;
    let gone = hosts.del(&[&b])?;
    assert_eq!(gone["removed"], json!(["one"]), "{gone}");
    assert_eq!(gone["narrowed"], json!(["two"]), "{gone}");
    in_a.connect(&hosts.pair.b)?.check_alive()?;
    let left = hosts.daemon.json(&["show", "two"])?;
    assert_eq!(left["targets"], json!(["198.51.100.1"]));
    Ok(())
}

/// One request by hand; gives the status and the body.
fn request(hosts: &BlockingPair, line: &str, body: &str) -> Result<(u16, Value)> {
    let mut stream = UnixStream::connect(hosts.daemon.socket())?;
    write!(
        stream,
        "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    let (head, body) = said.split_once("\r\n\r\n").context("a whole answer")?;
    let status = head.split(' ').nth(1).context("a status")?.parse()?;
    if status >= 400 {
        assert!(head.contains("application/problem+json"), "{head}");
    }
    Ok((status, serde_json::from_str(body)?))
}

#[test]
fn requests_by_hand_get_problems_with_stable_codes() -> Result<()> {
    let hosts = BlockingPair::new("limits: {rules: 1}\n")?;
    let rule = r#"{"id": "dev01", "targets": ["198.51.100.1"], "ports": [80]}"#;
    let (status, added) = request(&hosts, "POST /v1/rules", rule)?;
    assert_eq!((status, &added["created"]), (200, &json!(true)), "{added}");
    for (line, body, expected, code) in [
        ("GET /v1/rules/nobody", "", 404, "not_found"),
        ("DELETE /v1/rules/nobody", "", 404, "not_found"),
        ("GET /v1/nothing", "", 404, "no_such_endpoint"),
        ("POST /v1/status", "", 405, "no_such_endpoint"),
        ("POST /v1/rules", "{", 400, "invalid_input"),
        ("POST /v1/rules", r#"{"targets": []}"#, 400, "invalid_input"),
        ("POST /v1/rules?force=perhaps", rule, 400, "invalid_input"),
        (
            "POST /v1/rules",
            r#"{"targets": ["127.0.0.1"]}"#,
            409,
            "protected",
        ),
        (
            "POST /v1/rules",
            r#"{"targets": ["0.0.0.0/0"]}"#,
            409,
            "refused",
        ),
        (
            "POST /v1/rules",
            r#"{"targets": ["198.51.100.2"]}"#,
            400,
            "limit_exceeded",
        ),
        (
            "POST /v1/rules",
            r#"{"id": "dev01", "targets": ["198.51.100.2"]}"#,
            409,
            "conflict",
        ),
    ] {
        let (status, problem) = request(&hosts, line, body)?;
        assert_eq!(
            (status, &problem["code"]),
            (expected, &json!(code)),
            "{line} {body}: {problem}"
        );
        assert_eq!(problem["status"], expected);
        assert!(problem["detail"].is_string(), "{problem}");
    }
    assert_eq!(
        request(&hosts, "GET /v1/rules", "")?.1["rules"][0]["id"],
        "dev01"
    );
    assert_eq!(request(&hosts, "DELETE /v1/rules/dev01", "")?.0, 200);
    Ok(())
}
