//! The real `blockctl` against a daemon that is not: what it sends, what it prints, how it exits.
//!
//! Needs no privileges. The stand-in answers what a test tells it to and keeps what it was asked;
//! that the real daemon answers so is the business of the tests that run it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::fake_daemon::{Daemon, Ran, blockctl, run};

fn rule(id: &str, targets: &[&str]) -> Value {
    json!({"id": id, "targets": targets, "mode": "reset", "direction": "both", "protocol": "any",
        "percent": 100, "established": "kill", "on_lift": "resume"})
}

fn view(id: &str, targets: &[&str]) -> Value {
    let mut view = rule(id, targets);
    let more = json!({"owner": "api", "created": "2026-11-23T21:30:00Z",
        "counters": {"packets": 12345, "bytes": 913_530, "replies": 0, "suppressed": 0},
        "ingress": {"packets": 12_000, "bytes": 900_000, "replies": 0, "suppressed": 0},
        "egress": {"packets": 345, "bytes": 13_530, "replies": 0, "suppressed": 0}});
    view.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    view
}

fn account(found: u64, left: &Value) -> Value {
    let killed = found - left.as_array().unwrap().len() as u64;
    json!({"found": found, "killed": killed, "left": left, "elapsed_ms": 1.25})
}

fn added(found: u64, left: &Value) -> Value {
    json!({"rule": rule("b7f3a2", &["10.48.22.221"]), "created": true, "teardown": account(found, left)})
}

fn lifted(removed: &[&str]) -> Value {
    json!({"removed": removed, "teardown": account(0, &json!([]))})
}

fn left_flow() -> Value {
    json!([{"protocol": "tcp", "remote": "10.48.22.221", "remote_port": 40112, "local": "10.48.22.7",
        "local_port": 80, "state": "ESTABLISHED", "why": "no probe was answered"}])
}

#[test]
fn add_sends_the_rule_and_tells_what_was_killed() {
    let daemon = Daemon::start().on("POST /v1/rules", &added(3, &json!([])));
    let ran = daemon.run(&[
        "add",
        "10.48.22.221",
        "10.0.0.0/8",
        "--mode=reset",
        "--remote-ports=80,443",
        "--for=5m",
        "--comment=INC-1234",
    ]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert_eq!(
        ran.out,
        "blocked 10.48.22.221 (rule b7f3a2, reset, both directions, until lifted)\n\
         killed 3 of 3 established flows in 1.2 ms\n"
    );
    let asked = daemon.asked();
    assert_eq!(asked[0].headers["content-type"], "application/json");
    assert_eq!(asked[0].headers["host"], "localhost");
    assert!(!asked[0].headers.contains_key("blocker-ssh-connection"));
    let body: Value = serde_json::from_slice(&asked[0].body).unwrap();
    assert_eq!(
        body,
        json!({"targets": ["10.48.22.221", "10.0.0.0/8"], "mode": "reset",
            "remote_ports": ["80", "443"], "for": "5m", "comment": "INC-1234"})
    );
}

#[test]
fn force_and_dry_run_go_into_the_query() {
    let mut dry = added(0, &json!([]));
    dry["would_kill"] = json!([]);
    let daemon = Daemon::start()
        .on("POST /v1/rules?force=true&dry_run=true", &dry)
        .on("POST /v1/rules?force=true", &added(0, &json!([])));
    let ran = daemon.run(&["add", "10.48.22.221", "--force", "--dry-run"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.starts_with("would block 10.48.22.221"), "{ran:?}");
    assert_eq!(daemon.run(&["add", "10.48.22.221", "--force"]).code, 0);
}

#[test]
fn flows_that_are_left_exit_6() {
    let daemon = Daemon::start().on("POST /v1/rules", &added(3, &left_flow()));
    let ran = daemon.run(&["add", "10.48.22.221"]);
    assert_eq!(ran.code, 6, "{ran:?}");
    assert!(ran.out.contains("killed 2 of 3"), "{ran:?}");
    assert!(ran.out.contains("no probe was answered"), "{ran:?}");
    assert_eq!(ran.err, "", "the account is the result");

    let ran = daemon.run(&["add", "10.48.22.221", "-q"]);
    assert_eq!((ran.code, ran.out.as_str()), (6, "b7f3a2\n"));
    assert_eq!(
        ran.err,
        "blockctl: not killed, 1 flow: tcp 10.48.22.221:40112 to 10.48.22.7:80: no probe was answered\n"
    );
}

#[test]
fn quiet_prints_the_id_and_nothing_else() {
    let daemon = Daemon::start()
        .on("POST /v1/rules", &added(3, &json!([])))
        .on("DELETE /v1/rules", &lifted(&["a"]))
        .on(
            "GET /v1/rules",
            &json!({"rules": [view("a", &["10.48.22.221"]), view("b", &["10.48.22.0/24"])]}),
        );
    let ran = daemon.run(&["-q", "list"]);
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (0, "a\nb\n", "")
    );
    let ran = daemon.run(&["-q", "add", "10.48.22.221"]);
    assert_eq!(
        (ran.code, ran.out.as_str(), ran.err.as_str()),
        (0, "b7f3a2\n", "")
    );
    let ran = daemon.run(&["flush", "--quiet"]);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", ""));
}

#[test]
fn invalid_input_is_told_whole_and_not_sent() {
    let daemon = Daemon::start();
    let ran = daemon.run(&[
        "add",
        "10.0.0.300",
        "192.0.2.7",
        "10.0.0.1/8",
        "--for",
        "soon",
    ]);
    assert_eq!((ran.code, ran.out.as_str()), (2, ""));
    for part in [
        "blockctl: TARGET: target \"10.0.0.300\" is neither",
        "blockctl: TARGET: target \"10.0.0.1/8\" has bits set",
        "blockctl: --for: duration \"soon\" is not valid",
    ] {
        assert!(ran.err.contains(part), "{part}: {}", ran.err);
    }
    for arguments in [
        &["add"] as &[&str],
        &["add", "10.0.0.1", "--mode", "explode"],
        &["add", "10.0.0.1", "--percent", "0"],
        &["show", "Not An Id"],
        &["del", "10.0.0.1/8"],
        &["del"],
        &["explode"],
        &["list", "-o", "xml"],
    ] {
        let ran = daemon.run(arguments);
        assert_eq!(ran.code, 2, "{arguments:?}: {ran:?}");
        assert!(ran.err.starts_with("blockctl: "), "{arguments:?}: {ran:?}");
        assert_eq!(ran.out, "", "{arguments:?}");
    }
    assert!(daemon.asked().is_empty(), "nothing was sent");
}

#[test]
fn every_problem_has_its_exit_code() {
    for (code, status, exit) in [
        ("invalid_input", 400, 2),
        ("limit_exceeded", 400, 2),
        ("conflict", 409, 2),
        ("refused", 409, 5),
        ("protected", 409, 5),
        ("not_found", 404, 4),
        ("no_such_endpoint", 404, 1),
        ("forbidden", 403, 1),
        ("internal", 500, 1),
    ] {
        let daemon = Daemon::start().refuse(
            "POST /v1/rules",
            status,
            code,
            "10.0.0.1 is special: because",
        );
        let ran = daemon.run(&["add", "10.0.0.1"]);
        assert_eq!((ran.code, ran.out.as_str()), (exit, ""), "{code}");
        let first = ran.err.lines().next();
        assert_eq!(first, Some("blockctl: 10.0.0.1 is special: because"));
        assert_eq!(
            ran.err.contains("--force"),
            code == "refused",
            "{code}: {}",
            ran.err
        );
    }
}

#[test]
fn the_callers_ssh_connection_goes_along() {
    let daemon = Daemon::start().on("POST /v1/rules", &added(0, &json!([])));
    let ran = run(blockctl(&daemon.socket())
        .env("SSH_CONNECTION", "198.51.100.7 50022 10.48.22.7 22")
        .args(["add", "10.48.22.221"]));
    assert_eq!(ran.code, 0, "{ran:?}");
    let asked = daemon.asked();
    assert_eq!(
        asked[0].headers["blocker-ssh-connection"],
        "198.51.100.7 50022 10.48.22.7 22"
    );
}

#[test]
fn json_and_yaml_are_the_apis_own() {
    let answer = json!({"rules": [view("dev01", &["10.0.0.1"]), view("b", &["2001:db8::/32"])]});
    let daemon = Daemon::start().on("GET /v1/rules", &answer);
    let ran = daemon.run(&["list", "-o", "json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap(), answer);
    assert!(
        ran.out.starts_with("{\n  \"rules\": [\n"),
        "indented: {}",
        ran.out
    );
    let ran = daemon.run(&["list", "--output=yaml"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(serde_yaml::from_str::<Value>(&ran.out).unwrap(), answer);
    assert!(ran.out.starts_with("rules:\n"), "{}", ran.out);
}

#[test]
fn show_one_or_none() {
    let daemon = Daemon::start()
        .on(
            "GET /v1/rules/dev01",
            &view("dev01", &["10.0.0.1", "10.0.0.2"]),
        )
        .refuse(
            "GET /v1/rules/dev02",
            404,
            "not_found",
            "there is no rule dev02",
        );
    let ran = daemon.run(&["show", "dev01"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.out
            .contains("targets       10.0.0.1\n              10.0.0.2\n"),
        "{}",
        ran.out
    );
    let ran = daemon.run(&["show", "dev02"]);
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (4, "blockctl: there is no rule dev02\n")
    );
}

#[test]
fn del_of_one_id_is_one_request() {
    let daemon = Daemon::start()
        .on("DELETE /v1/rules/dev01", &lifted(&["dev01"]))
        .refuse(
            "DELETE /v1/rules/dev02",
            404,
            "not_found",
            "there is no rule dev02",
        );
    let ran = daemon.run(&["del", "dev01"]);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "lifted rule dev01\n"),
        "{ran:?}"
    );
    assert_eq!(daemon.run(&["del", "dev02"]).code, 4);
    assert_eq!(
        daemon.lines(),
        ["DELETE /v1/rules/dev01", "DELETE /v1/rules/dev02"]
    );
}

#[test]
fn del_of_several_is_one_account() {
    let mut narrowed = lifted(&["b"]);
    narrowed["narrowed"] = json!(["c"]);
    narrowed["teardown"] = account(2, &json!([]));
    let daemon = Daemon::start()
        .on(
            "GET /v1/rules",
            &json!({"rules": [view("a", &["10.0.0.1"]), view("b", &["2001:db8::/32"]), view("c", &["2001:db8::/32", "10.0.0.9"])]}),
        )
        .on("DELETE /v1/rules/a", &lifted(&["a"]))
        .on("DELETE /v1/rules?target=2001:db8::/32", &narrowed);
    let ran = daemon.run(&["del", "a", "2001:db8::/32"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        ran.out,
        "lifted 2 rules: a, b\nnarrowed rule c: it stays in force with its other targets\nkilled 2 of 2 flows in 2.5 ms\n"
    );
    let ran = daemon.run(&["del", "a", "2001:db8::/32", "-o", "json"]);
    let answer: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(answer["removed"], json!(["a", "b"]));
}

#[test]
fn del_changes_nothing_if_one_is_unknown() {
    let daemon = Daemon::start().on(
        "GET /v1/rules",
        &json!({"rules": [view("a", &["10.0.0.1"])]}),
    );
    let ran = daemon.run(&["del", "a", "10.0.0.2", "typo"]);
    assert_eq!((ran.code, ran.out.as_str()), (4, ""));
    assert_eq!(
        ran.err,
        "blockctl: no rule has the id or the target 10.0.0.2: nothing was changed\n\
         blockctl: no rule has the id or the target typo: nothing was changed\n"
    );
    assert_eq!(daemon.lines(), ["GET /v1/rules"]);
}

#[test]
fn del_takes_an_address_for_a_target_unless_a_rule_is_named_so() {
    let none = "there is no such rule";
    let daemon = Daemon::start()
        .on("DELETE /v1/rules/10.0.0.1", &lifted(&["10.0.0.1"]))
        .refuse("DELETE /v1/rules/10.0.0.2", 404, "not_found", none)
        .on("DELETE /v1/rules?target=10.0.0.2", &lifted(&["b"]))
        .refuse("DELETE /v1/rules?target=10.0.0.0/8", 404, "not_found", none);
    let lifts = |target| daemon.run(&["del", target]).out;
    assert_eq!(lifts("10.0.0.1"), "lifted rule 10.0.0.1\n");
    assert_eq!(lifts("10.0.0.2"), "lifted rule b\n");
    assert_eq!(daemon.run(&["del", "10.0.0.0/8"]).code, 4);

    let rules =
        json!({"rules": [view("10.0.0.1", &["192.0.2.7"]), view("b", &["10.0.0.1", "10.0.0.2"])]});
    let daemon = Daemon::start()
        .on("GET /v1/rules", &rules)
        .on("DELETE /v1/rules/10.0.0.1", &lifted(&["10.0.0.1"]))
        .on("DELETE /v1/rules?target=10.0.0.2", &lifted(&["b"]));
    let ran = daemon.run(&["del", "10.0.0.1", "10.0.0.2"]);
    assert_eq!(ran.out, "lifted 2 rules: 10.0.0.1, b\n");
}

#[test]
fn del_goes_on_past_what_is_gone_and_stops_at_an_error() {
    let rules = json!({"rules": [view("a", &["10.0.0.1"]), view("b", &["10.0.0.2"]), view("c", &["10.0.0.3"])]});
    let daemon = Daemon::start()
        .on("GET /v1/rules", &rules)
        .refuse("DELETE /v1/rules/a", 404, "not_found", "there is no rule a")
        .on("DELETE /v1/rules/b", &lifted(&["b"]))
        .refuse("DELETE /v1/rules/c", 403, "forbidden", "you may not");
    let ran = daemon.run(&["del", "a", "b"]);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "lifted rule b\n"),
        "{ran:?}"
    );
    assert_eq!(ran.err, "blockctl: rule a was gone already\n");
    let ran = daemon.run(&["del", "b", "c"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
    assert_eq!(
        ran.err,
        "blockctl: you may not\nblockctl: done before that: b\n"
    );
}

#[test]
fn flush_all_or_the_apis_own() {
    let daemon = Daemon::start()
        .on("DELETE /v1/rules", &lifted(&[]))
        .on("DELETE /v1/rules?all=true", &lifted(&["a", "b"]));
    assert_eq!(daemon.run(&["flush"]).out, "no rules to lift\n");
    assert_eq!(
        daemon.run(&["flush", "--all"]).out,
        "lifted 2 rules: a, b\n"
    );
}

fn diff(dry_run: bool, left: &Value) -> Value {
    json!({"added": [rule("new", &["10.0.0.1"])], "removed": [], "changed": [], "unchanged": 2,
        "teardown": account(1, left), "dry_run": dry_run})
}

#[test]
fn apply_sends_a_file_and_prints_the_diff() {
    let daemon = Daemon::start()
        .on("PUT /v1/ruleset", &diff(false, &left_flow()))
        .on("PUT /v1/ruleset?dry_run=true", &diff(true, &json!([])));
    let file = daemon.dir.path().join("rules.yaml");
    std::fs::write(
        &file,
        "rules:\n  - {id: new, targets: [10.0.0.1], ports: [80]}\n",
    )
    .unwrap();
    let ran = daemon.run(&["apply", "-f", file.to_str().unwrap(), "--dry-run"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        ran.out,
        "+ new: 10.0.0.1 (reset, both directions, until lifted)\n\
         dry run: 1 added, 0 removed, 0 changed, 2 unchanged; nothing was changed\n"
    );
    let ran = daemon.run(&["apply", "-f", file.to_str().unwrap()]);
    assert_eq!(ran.code, 6, "a flow was left: {ran:?}");
    let body: Value = serde_json::from_slice(&daemon.asked()[1].body).unwrap();
    assert_eq!(
        body,
        json!({"rules": [{"id": "new", "targets": ["10.0.0.1"], "ports": ["80"]}]})
    );
}

#[test]
fn apply_reads_standard_input() {
    let daemon = Daemon::start().on("PUT /v1/ruleset?force=true", &diff(false, &json!([])));
    let mut child = blockctl(&daemon.socket())
        .args(["apply", "--force", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let input = br#"{"rules": [{"targets": ["2001:db8::1"]}]}"#;
    child.stdin.take().unwrap().write_all(input).unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 0, "{ran:?}");
    let body: Value = serde_json::from_slice(&daemon.asked()[0].body).unwrap();
    assert_eq!(body, json!({"rules": [{"targets": ["2001:db8::1"]}]}));
}

#[test]
fn apply_refuses_a_bad_file_without_asking() {
    let daemon = Daemon::start();
    let file = daemon.dir.path().join("rules.yaml");
    std::fs::write(&file, "rules:\n  - tragets: [10.0.0.1]\n").unwrap();
    let path = file.to_str().unwrap();
    let ran = daemon.run(&["apply", "-f", path]);
    assert_eq!(ran.code, 2, "{ran:?}");
    let start = format!("blockctl: {path}:2:5: unknown field `tragets`");
    assert!(ran.err.starts_with(&start), "{}", ran.err);
    let ran = daemon.run(&["apply", "-f", "/nonexistent/rules.yaml"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.err
            .contains("cannot read /nonexistent/rules.yaml: No such file"),
        "{}",
        ran.err
    );
    assert!(daemon.asked().is_empty(), "nothing was sent");
}

#[test]
fn nobody_there_exits_3_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let case = |path: &Path, what: &str, way_out: &str| {
        let ran = run(blockctl(path).arg("list"));
        assert_eq!((ran.code, ran.out.as_str()), (3, ""), "{ran:?}");
        assert!(ran.err.contains(what), "{what}: {}", ran.err);
        assert!(ran.err.contains(way_out), "{way_out}: {}", ran.err);
    };
    let start = "systemctl start blocker";
    case(&at("none.sock"), "there is no control socket at", start);

    drop(UnixListener::bind(at("stale.sock")).unwrap());
    case(&at("stale.sock"), "its daemon is gone", start);

    std::fs::write(at("file"), "").unwrap();
    case(&at("file"), "is not a socket", "--socket PATH");
}

#[test]
fn the_socket_flag_goes_before_the_environment() {
    let daemon = Daemon::start().on("GET /v1/rules", &json!({"rules": []}));
    let ran = run(blockctl(Path::new("/nonexistent.sock"))
        .arg("--socket")
        .arg(daemon.socket())
        .arg("list"));
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "no rules: nothing is blocked\n")
    );
}

/// Answers one connection on a socket by these bytes, once a request's head is read.
fn answer_once(path: &Path, bytes: &'static [u8]) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
        (&stream).write_all(bytes).unwrap();
    })
}

#[test]
fn somebody_else_there_exits_3() {
    let daemon = Daemon::start().raw("GET /v1/rules", 200, "text/html", "<html>".into());
    let ran = daemon.run(&["list"]);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.err.contains("not blocker's daemon"), "{}", ran.err);
    assert!(ran.err.contains("HTTP 200 OK and text/html"), "{}", ran.err);

    let path = daemon.dir.path().join("other.sock");
    let other = answer_once(&path, b"SSH-2.0-OpenSSH_9.2\r\n");
    let ran = run(blockctl(&path).arg("list"));
    other.join().unwrap();
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.err.contains("does not speak HTTP"), "{}", ran.err);
}

#[test]
fn a_broken_answer_exits_1_and_says_that_the_outcome_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let other = answer_once(
        &path,
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{",
    );
    let ran = run(blockctl(&path).args(["add", "10.0.0.1"]));
    other.join().unwrap();
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("closed the connection"), "{}", ran.err);
    assert!(
        ran.err.contains("is not known: see blockctl list"),
        "{}",
        ran.err
    );

    let daemon = Daemon::start().on("POST /v1/rules", &json!({"surprise": 1}));
    let ran = daemon.run(&["add", "10.0.0.1"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("of one version?"), "{}", ran.err);
}

/// Needs another user than root, whom no permission stops.
#[test]
fn permission_denied_names_the_group() {
    use std::os::unix::process::CommandExt as _;

    let daemon = Daemon::start();
    let world = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let root = nix::unistd::geteuid().is_root();
    // As nobody may not be able to reach the build directory, the program is lent to it.
    let program = daemon.dir.path().join("blockctl");
    std::fs::copy(env!("CARGO_BIN_EXE_blockctl"), &program).unwrap();
    let ask = || {
        let mut command = Command::new(&program);
        command
            .env("BLOCKER_SOCKET", daemon.socket())
            .arg("list")
            .current_dir("/");
        if root {
            command.uid(65_534).gid(65_534);
        }
        run(&mut command)
    };
    world(daemon.dir.path(), 0o755);
    world(&program, 0o755);
    // Root's own group is no advice; any other will do.
    let gid = if root {
        nix::unistd::Gid::from_raw(1)
    } else {
        nix::unistd::getegid()
    };
    std::os::unix::fs::chown(daemon.socket(), None, Some(gid.as_raw())).unwrap();
    let group = nix::unistd::Group::from_gid(gid)
        .unwrap()
        .map_or_else(|| gid.to_string(), |group| group.name);
    // The owner is stopped too where the test does not run as root.
    world(&daemon.socket(), 0o060);
    let ran = ask();
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        ran.err.contains(&format!("(group {group}, mode 0060)")),
        "{}",
        ran.err
    );
    assert!(
        ran.err.contains(&format!("usermod -aG {group} USER")),
        "{}",
        ran.err
    );
    world(&daemon.socket(), 0o000);
    let ran = ask();
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.err.contains("run as root"), "{}", ran.err);
    assert!(!ran.err.contains("usermod"), "{}", ran.err);
}

fn status() -> Value {
    json!({"version": "0.1.0", "abi": 1, "pid": 4711, "kernel": "6.18.0", "uptime_seconds": 60,
        "config": "/etc/blocker/blocker.yaml", "last_reload": {"at": "2026-11-23T21:30:00Z", "in_force_since": "2026-11-23T21:00:00Z", "error": "no"},
        "interfaces": [], "rules": {"used": 0, "allowed": 4096},
        "started": "2026-11-23T21:00:00Z", "teardowns": {"found": 0, "killed": 0, "left": 0},
        "prefixes": {"used": 0, "allowed": 1_000_000}, "prefixes_v6": {"used": 0, "allowed": 131_072},
        "maps": [], "map_bytes": 0, "resident_bytes": 0, "lacks": []})
}

#[test]
fn colours_are_for_terminals_and_those_who_ask() {
    let rules = json!({"rules": [view("a", &["10.0.0.1"])]});
    let daemon = Daemon::start()
        .on("GET /v1/status", &status())
        .on("GET /v1/rules", &rules);
    for command in ["status", "list"] {
        let coloured = |arguments: &[&str], no_color: bool| {
            let mut ctl = blockctl(&daemon.socket());
            ctl.arg(command).args(arguments);
            if no_color {
                ctl.env("NO_COLOR", "1");
            }
            let ran = run(&mut ctl);
            assert_eq!(ran.code, 0, "{ran:?}");
            ran.out.contains("\u{1b}[3") || ran.out.contains("\u{1b}[38")
        };
        assert!(!coloured(&[], false), "{command}: a pipe is no terminal");
        assert!(coloured(&["--color=always"], false), "{command}");
        assert!(
            coloured(&["--color=always"], true),
            "{command}: the flag wins"
        );
        assert!(!coloured(&["--color=never"], false), "{command}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let rules: Vec<_> = (0..4000)
        .map(|i| view(&format!("rule-{i}"), &["10.0.0.1"]))
        .collect();
    let daemon = Daemon::start().on("GET /v1/rules", &json!({"rules": rules}));
    let mut child = blockctl(&daemon.socket())
        .args(["list", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 16];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
}

#[test]
fn explain_sends_what_is_known_of_the_packet() {
    let answer = json!({"address": "10.1.2.3", "answers": [
        {"direction": "ingress", "interfaces": ["eth0"], "verdict": "dropped", "rule": "dev01",
         "hook": "xdp", "rules": [{"id": "dev01", "target": "10.1.0.0/16", "mode": "drop",
            "outcome": "decides", "hook": "xdp"}]}]});
    let daemon = Daemon::start().on("POST /v1/explain", &answer);
    let words = [
        "explain",
        "10.1.2.3",
        "--protocol=tcp",
        "--local-port=80",
        "--remote-port=40000",
        "--direction=ingress",
        "--interface=eth0",
    ];
    let ran = daemon.run(&words);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let first = ran.out.lines().next();
    assert_eq!(first, Some("10.1.2.3: dropped by rule dev01 (10.1.0.0/16)"));
    let ran = daemon.run(&[&words[..], &["-o", "json"]].concat());
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap(), answer);
    daemon.run(&["explain", "2001:db8::1", "--port", "80"]);
    let bodies: Vec<Value> = daemon
        .asked()
        .iter()
        .map(|asked| serde_json::from_slice(&asked.body).unwrap())
        .collect();
    let known = json!({"address": "10.1.2.3", "protocol": "tcp", "local_port": 80,
        "remote_port": 40000, "direction": "ingress", "interface": "eth0"});
    assert_eq!(
        bodies,
        [
            known.clone(),
            known,
            json!({"address": "2001:db8::1", "port": 80})
        ]
    );
}

#[test]
fn explain_wants_one_packet() {
    let daemon = Daemon::start();
    for (words, complaint) in [
        (&["10.0.0.0/8"][..], "such as 10.0.0.1"),
        (&["10.1.2.3/16"], "such as 10.1.2.3"),
        (&["::ffff:10.1.2.3"], "write 10.1.2.3"),
        (&["host"], "neither an address nor a prefix"),
        (&["10.1.2.3", "--port", "80-90"], "such as 80"),
        (
            &["10.1.2.3", "--port", "80", "--local-port", "80"],
            "cannot be used with",
        ),
        (&["10.1.2.3", "--protocol", "sctp"], "--protocol"),
        (&["10.1.2.3", "--direction", "up"], "--direction"),
    ] {
        let ran = daemon.run(&[&["explain"], words].concat());
        assert_eq!(ran.code, 2, "{words:?}: {ran:?}");
        assert!(ran.err.contains(complaint), "{words:?}: {}", ran.err);
    }
    assert!(daemon.asked().is_empty());
}

#[test]
fn completions_and_help_need_no_daemon() {
    let ctl = || blockctl(Path::new("/nonexistent.sock"));
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(ctl().args(["completions", shell]));
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{shell}");
        assert!(ran.out.contains("remote-port"), "{shell}");
    }
    let ran = run(ctl().arg("--help"));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert!(ran.out.contains("6  partly enforced"), "{}", ran.out);
    let ran = run(ctl().arg("--version"));
    assert_eq!(
        ran.out,
        concat!("blockctl ", env!("CARGO_PKG_VERSION"), "\n")
    );
}
