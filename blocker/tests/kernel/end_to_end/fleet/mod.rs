//! A fleet that follows a real etcd: which host enforces what, also after the loss of etcd, of a host or
//! of the client.

mod cluster;

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use serde_json::Value;
use xtask::hosts::poll;

use crate::blocking_pair::connect_error;
use cluster::{Fleet, Host, PATIENCE, REMOTES, plain};

/// How long a rule lives that ends by itself in these tests.
const SHORT: &str = "12s";

fn blocked(host: &Host, to: SocketAddr) -> Result<bool> {
    Ok(connect_error(&host.namespace, to)? == Some(Errno::ECONNREFUSED))
}

/// Servers at the remotes, which refuse nobody by themselves.
fn servers(fleet: &Fleet) -> Result<Vec<(TcpListener, SocketAddr)>> {
    let listen = |remote: &&str| {
        let listener = fleet.centre.enter(|| TcpListener::bind((*remote, 0)))??;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    REMOTES.iter().map(listen).collect()
}

/// Milliseconds from when a rule was written until it was in force on each host, by the hosts' reports
/// and the one clock of this machine; sorted.
fn in_force(fleet: &Fleet, id: &str) -> Result<Vec<f64>> {
    let list = fleet.json(&["list"])?;
    let rule = list
        .as_array()
        .and_then(|rules| rules.iter().find(|rule| rule["id"] == id));
    let time = |value: &Value| -> Result<jiff::Timestamp> {
        Ok(value.as_str().context("a time")?.parse()?)
    };
    let written = time(&rule.context("the rule")?["value"]["written"])?;
    let mut times = Vec::new();
    for host in fleet.json(&["status"])?.as_array().context("hosts")? {
        let changes = host["changes"].as_array().context("changes")?;
        let named = |change: &&Value| {
            change["rules"]
                .as_array()
                .is_some_and(|ids| ids.iter().any(|i| i == id))
        };
        let change = changes.iter().rev().find(named).context("the change")?;
        times.push(time(&change["at"])?.duration_since(written).as_secs_f64() * 1_000.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

#[test]
fn twenty_hosts_enforce_lift_and_outlive_etcd() -> Result<()> {
    let mut fleet = Fleet::new(20, 0, plain)?;
    let servers = servers(&fleet)?;
    let (one, other) = (servers[0].1, servers[1].1);

    // From `fleet add` to enforced on all.
    let mut all = Vec::new();
    for round in 0..5 {
        let id = format!("round{round}");
        let add = [
            "add", REMOTES[0], "--hosts", "role=web", "--mode", "reset", "--for", "5m", "--id",
            &id, "--wait",
        ];
        let added = fleet.json(&add)?;
        ensure!(
            added["hosts"]
                .as_array()
                .is_some_and(|hosts| hosts.len() == 20),
            "{added}"
        );
        for host in &fleet.hosts {
            ensure!(
                blocked(host, one)? && !blocked(host, other)?,
                "{}",
                host.name
            );
        }
        all.extend(in_force(&fleet, &id)?);
        let lifted = fleet.fleet(&["del", &id, "--wait"])?.success()?;
        ensure!(
            lifted.stdout.contains("20 of 20 hosts"),
            "{}",
            lifted.stdout
        );
        ensure!(!blocked(&fleet.hosts[7], one)?);
    }
    all.sort_by(f64::total_cmp);
    println!(
        "from `fleet add` to in force, 20 hosts, 5 times: median {:.1} ms, maximum {:.1} ms",
        all[all.len() / 2],
        all[all.len() - 1]
    );

    // The leader dies in the middle of adds and lifts: every one that was accepted is everywhere, and
    // whoever asks finds another member.
    fleet
        .fleet(&[
            "add",
            REMOTES[1],
            "--hosts",
            "*",
            "--mode",
            "reset",
            "--forever",
            "--id",
            "stays",
        ])?
        .success()?;
    let leader = fleet.leader()?;
    let mut expected = vec!["stays".to_owned()];
    for step in 0..6 {
        if step == 2 {
            fleet.kill(leader)?;
        }
        let id = format!("step{step}");
        let target = format!("192.0.2.{step}");
        poll("the write to be accepted", PATIENCE, || {
            let add = fleet
                .fleet(&["add", &target, "--hosts", "*", "--for", "10m", "--id", &id])
                .ok()?;
            (add.code == 0).then_some(())
        })?;
        if step % 2 == 0 {
            expected.push(id);
        } else {
            poll("the lift to be accepted", PATIENCE, || {
                let del = fleet.fleet(&["del", &id]).ok()?;
                // One whose answer was lost was carried out all the same.
                (del.code == 0 || del.code == 4).then_some(())
            })?;
        }
    }
    expected.sort_unstable();
    let ids: Vec<&str> = expected.iter().map(String::as_str).collect();
    let took = fleet.wait_rules(&ids)?;
    println!(
        "leader killed amid six adds and three lifts: all hosts had all of it {took:?} after the last"
    );

    // Quorum is lost: nobody keeps a rule past its deadline, and what has none stays.
    let add = [
        "add", REMOTES[0], "--hosts", "*", "--mode", "reset", "--for", SHORT, "--id", "short",
        "--wait",
    ];
    fleet.fleet(&add)?.success()?;
    let deadline = fleet.hosts[0].daemon.json(&["show", "short"])?["expires"].clone();
    let deadline: jiff::Timestamp = deadline.as_str().context("a deadline")?.parse()?;
    let another = fleet.leader()?;
    fleet.kill(another)?;
    let refused = fleet.fleet(&["add", "192.0.2.99", "--hosts", "*", "--for", "5m"])?;
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    for host in &fleet.hosts {
        ensure!(blocked(host, one)?, "{} keeps it without etcd", host.name);
    }
    poll("the deadline", PATIENCE, || {
        (jiff::Timestamp::now() >= deadline).then_some(())
    })?;
    for host in &fleet.hosts {
        ensure!(
            !blocked(host, one)?,
            "{} keeps a rule past its deadline",
            host.name
        );
        ensure!(
            blocked(host, other)?,
            "{} lost the rule without a deadline",
            host.name
        );
    }
    fleet.wait_for("hosts to notice", |fleet| {
        fleet
            .hosts
            .iter()
            .all(|host| host.state().is_ok_and(|state| state["state"] == "lost"))
    })?;

    // It is back: what is changed then is everywhere, and what was is still.
    fleet.start(another, "existing")?;
    fleet.start(leader, "existing")?;
    let since = Instant::now();
    poll("a write to be accepted", PATIENCE, || {
        let add = fleet
            .fleet(&[
                "add", REMOTES[0], "--hosts", "*", "--mode", "reset", "--for", "10m", "--id",
                "again",
            ])
            .ok()?;
        (add.code == 0).then_some(())
    })?;
    expected.insert(0, "again".to_owned());
    let ids: Vec<&str> = expected.iter().map(String::as_str).collect();
    fleet.wait_rules(&ids)?;
    println!(
        "quorum restored: all hosts had a new rule {:?} after the members were started",
        since.elapsed()
    );
    for host in &fleet.hosts {
        ensure!(
            blocked(host, one)? && blocked(host, other)?,
            "{}",
            host.name
        );
    }
    Ok(())
}

#[test]
fn what_is_wrong_with_one_value_one_host_or_one_user_is_told_and_harms_no_other() -> Result<()> {
    let fleet = Fleet::new(3, 1, plain)?;
    let (readonly, cut) = (&fleet.hosts[0], &fleet.hosts[1]);
    let state = readonly.state()?;
    ensure!(
        state["report_error"]
            .as_str()
            .is_some_and(|e| e.contains("permission denied")),
        "{state}"
    );
    let there = fleet.json(&["status"])?;
    assert_eq!(there.as_array().map(Vec::len), Some(2), "{there}");

    // A host may read, and write below its own name, and nothing else.
    for (key, may) in [
        ("/blocker/hosts/web2/x", true),
        ("/blocker/hosts/web3/x", false),
        ("/blocker/rules/x", false),
    ] {
        let put = fleet.etcdctl("web2", &["put", key, "x"]);
        assert_eq!(put.is_ok(), may, "{key}: {put:?}");
    }

    // A bad value, and a rule that one host must not have.
    fleet.etcdctl(
        "operator",
        &["put", "/blocker/rules/bad", "{\"version\":7}"],
    )?;
    let partly = fleet.fleet(&[
        "add",
        "10.90.1.3",
        "--hosts",
        "web*",
        "--for",
        "5m",
        "--id",
        "own",
        "--wait",
    ])?;
    assert_eq!(partly.code, 6, "{}", partly.stdout);
    ensure!(
        partly.stdout.contains("this host's own address"),
        "{}",
        partly.stdout
    );
    fleet.wait_for("the rule on all but one", |fleet| {
        let has = |host: &Host| host.rules().is_ok_and(|rules| rules == ["own"]);
        fleet.hosts.iter().map(has).collect::<Vec<_>>() == [true, true, false]
    })?;
    for host in &fleet.hosts {
        let refused = host.state()?["refused"].clone();
        ensure!(refused.to_string().contains("version 7"), "{refused}");
    }
    let dry = fleet.fleet(&[
        "add",
        "10.90.1.3",
        "--hosts",
        "*",
        "--for",
        "5m",
        "--dry-run",
    ])?;
    ensure!(
        dry.stdout.contains("this host's own address") && dry.code == 0,
        "{}{}",
        dry.stdout,
        dry.stderr
    );
    for (words, code) in [
        (vec!["add", "192.0.2.1", "--hosts", "*"], 2),
        (vec!["add", "192.0.2.1", "--hosts", "db*", "--for", "5m"], 2),
        (
            vec![
                "add",
                "192.0.2.1",
                "--hosts",
                "*",
                "--for",
                "5m",
                "--max-hosts",
                "1",
            ],
            5,
        ),
        (
            vec![
                "add",
                "192.0.2.1",
                "--hosts",
                "*",
                "--for",
                "5m",
                "--id",
                "own",
            ],
            2,
        ),
        (vec!["del", "nobody"], 4),
    ] {
        let output = fleet.fleet(&words)?;
        assert_eq!(
            output.code, code,
            "{words:?}: {}{}",
            output.stdout, output.stderr
        );
    }

    // A clock that is not the writer's.
    let now = jiff::Timestamp::now();
    let (written, expires) = (
        now - jiff::SignedDuration::from_hours(1),
        now + jiff::SignedDuration::from_mins(5),
    );
    let value = format!(
        r#"{{"version":1,"hosts":"web3","written":"{written}","rule":{{"targets":["192.0.2.50"],"expires":"{expires}"}}}}"#
    );
    fleet.etcdctl("operator", &["put", "/blocker/rules/clock", &value])?;
    fleet.wait_for("the clocks to be found different", |fleet| {
        fleet.hosts[2]
            .state()
            .is_ok_and(|state| state["skewed"] == true && state["rules"] == 1)
    })?;
    fleet.wait_for("the operator to be told", |fleet| {
        fleet
            .fleet(&["status"])
            .is_ok_and(|status| status.stdout.contains("web3: its clock is off by 36"))
    })?;
    fleet.fleet(&["del", "clock", "--wait"])?.success()?;

    // A live flow is told of before, and dead after.
    let servers = servers(&fleet)?;
    let (listener, server) = &servers[1];
    let mut flow = cut.namespace.enter(|| TcpStream::connect(server))??;
    let (_other_end, _) = listener.accept()?;
    let rule = [
        "add",
        REMOTES[1],
        "--hosts",
        "web2,web3",
        "--mode",
        "reset",
        "--for",
        "5m",
        "--id",
        "flow",
    ];
    let dry = fleet.json(&[&rule[..], &["--dry-run"]].concat())?;
    assert_eq!(
        (
            &dry["hosts"]["web2"]["flows"],
            &dry["hosts"]["web3"]["flows"]
        ),
        (&1.into(), &0.into()),
        "{dry}"
    );
    let added = fleet.json(&[&rule[..], &["--wait"]].concat())?;
    let web2 = added["hosts"]
        .as_array()
        .and_then(|hosts| hosts.iter().find(|host| host["host"] == "web2"));
    assert_eq!(
        web2.map(|host| &host["teardown"]["killed"]),
        Some(&1.into()),
        "{added}"
    );
    flow.set_read_timeout(Some(PATIENCE))?;
    let died = flow.read(&mut [0; 1]).map_err(|error| error.kind());
    // The kernel aborts a socket of its own host.
    assert_eq!(died, Err(ErrorKind::ConnectionAborted));
    fleet.fleet(&["del", "flow", "--wait"])?.success()?;

    // A host is cut off, and etcd's history is compacted away meanwhile.
    cut.cable(false)?;
    fleet.etcdctl("operator", &["del", "/blocker/rules/bad"])?;
    fleet.fleet(&["del", "own"])?.success()?;
    let add = [
        "add",
        "192.0.2.7",
        "--hosts",
        "*",
        "--forever",
        "--id",
        "news",
    ];
    fleet.fleet(&add)?.success()?;
    let get = fleet.etcdctl("root", &["get", "/blocker/rules/news", "-w", "json"])?;
    let revision = serde_json::from_str::<Value>(&get)?["header"]["revision"].clone();
    fleet.etcdctl("root", &["compact", &revision.to_string()])?;
    fleet.wait_for("the host to notice", |_| {
        cut.state().is_ok_and(|state| state["state"] == "lost")
    })?;
    assert_eq!(cut.rules()?, ["own"], "it keeps what it has");
    cut.cable(true)?;
    fleet.wait_rules(&["news"])?;
    ensure!(cut.state()?.get("refused").is_none(), "{}", cut.state()?);
    Ok(())
}

/// The first is to lift, and soon; the second keeps.
fn on_loss(host: usize) -> &'static str {
    if host == 1 {
        ", on_loss: lift, loss_after: 3s"
    } else {
        ""
    }
}

#[test]
fn whoever_dies_leaves_no_rule_behind_its_time() -> Result<()> {
    let mut fleet = Fleet::new(2, 0, on_loss)?;
    let files = tempfile::tempdir()?;
    let begun = files.path().join("begun");
    let script = format!("touch '{}'; sleep 60", begun.display());
    let during = [
        "during", REMOTES[0], "--hosts", "*", "--for", "40s", "--id", "held", "--", "sh", "-c",
        &script,
    ];

    // The caller is killed: the lease ends it, long before the deadline.
    let mut caller = fleet.centre.spawn(&mut fleet.command(&during))?;
    poll("the command to run", PATIENCE, || cluster::there(&begun))?;
    fleet.wait_rules(&["held"])?;
    caller.kill()?;
    caller.wait()?;
    let took = fleet.wait_rules(&[])?;
    println!("caller of `fleet during` killed: lifted everywhere after {took:?}");

    // A command that ends, and one that cannot be started.
    let ends = [
        "during", REMOTES[0], "--hosts", "*", "--for", "1m", "--", "sh", "-c", "exit 7",
    ];
    assert_eq!(fleet.fleet(&ends)?.code, 7);
    let nothing = [
        "during",
        REMOTES[0],
        "--hosts",
        "*",
        "--for",
        "1m",
        "--",
        "/no/such/program",
    ];
    assert_eq!(fleet.fleet(&nothing)?.code, 127);
    for host in &fleet.hosts {
        assert_eq!(host.rules()?, Vec::<String>::new());
    }

    // The caller and all of etcd are killed: the deadline ends it. What has none goes by `on_loss`.
    fleet
        .fleet(&[
            "add",
            "192.0.2.1",
            "--hosts",
            "*",
            "--forever",
            "--id",
            "ever",
            "--wait",
        ])?
        .success()?;
    fs::remove_file(&begun)?;
    let during = [
        "during", REMOTES[0], "--hosts", "*", "--for", SHORT, "--id", "held", "--", "sh", "-c",
        &script,
    ];
    let mut caller = fleet.centre.spawn(&mut fleet.command(&during))?;
    poll("the command to run", PATIENCE, || cluster::there(&begun))?;
    let expires = fleet.hosts[0].daemon.json(&["show", "held"])?["expires"].clone();
    let expires: jiff::Timestamp = expires.as_str().context("a deadline")?.parse()?;
    caller.kill()?;
    caller.wait()?;
    for member in 0..3 {
        fleet.kill(member)?;
    }
    // A restart meanwhile changes nothing: what was heard last is kept.
    let held = "held".to_owned();
    let Host {
        daemon, namespace, ..
    } = &mut fleet.hosts[1];
    daemon.kill()?;
    daemon.run(namespace)?;
    assert_eq!(
        fleet.hosts[1].rules()?.first().map(String::as_str),
        Some("ever")
    );
    fleet.wait_for("the rule to end by its deadline", |fleet| {
        let without = |host: &Host| host.rules().is_ok_and(|rules| !rules.contains(&held));
        fleet.hosts.iter().all(without)
    })?;
    let late = jiff::Timestamp::now().duration_since(expires);
    ensure!(
        (0.0..5.0).contains(&late.as_secs_f64()),
        "{late} after the deadline"
    );
    fleet.wait_for("the rule without a deadline to end by loss", |fleet| {
        let rules = |host: usize| fleet.hosts[host].rules().ok();
        rules(0).is_some_and(|rules| rules.is_empty())
            && rules(1).is_some_and(|rules| rules == ["ever"])
    })?;
    assert_eq!(fleet.hosts[0].state()?["lifted_by_loss"], true);
    let refused = fleet.fleet(&["status"])?;
    assert_eq!(refused.code, 3, "{}", refused.stderr);

    // It is back, and with it what was lifted by loss.
    for member in 0..3 {
        fleet.start(member, "existing")?;
    }
    fleet.wait_rules(&["ever"])?;
    // A reload without a fleet leaves nothing of it.
    fleet.hosts[0]
        .daemon
        .write_config("limits: {prefixes: 1000, prefixes_v6: 1000, rules: 64, flows: 64}\n")?;
    fleet.hosts[0].daemon.reload()?;
    fleet.wait_for("the fleet to be left", |fleet| {
        fleet.hosts[0].rules().is_ok_and(|rules| rules.is_empty())
            && fleet.hosts[0].state().is_ok_and(|state| state.is_null())
    })?;
    ensure!(
        poll("the report to be gone", Duration::from_secs(5), || {
            let hosts = fleet.json(&["status"]).ok()?;
            (hosts.as_array()?.len() == 1).then_some(())
        })
        .is_ok()
    );
    Ok(())
}
