//! `blockctl watch`: events go to many watchers at once, complete or with the number lost, and blocked
//! flows can be listed afterwards.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use xtask::hosts::{Daemon, Killed, Pair, connect_timed, poll};

use crate::blocking_pair::{BlockingPair, FAMILIES, PATIENCE, udp};

/// `blockctl watch` in the background, its output in a file. Killed when dropped.
struct Watching {
    process: Killed,
    output: PathBuf,
    _files: tempfile::TempDir,
}

impl Watching {
    /// Starts it, and returns once it is told of what happens.
    fn start(daemon: &Daemon, words: &[&str]) -> Result<Self> {
        let files = tempfile::tempdir()?;
        let output = files.path().join("output");
        let mut command: Command = daemon.blockctl_command();
        command.arg("watch").args(words);
        let process = command
            .stdout(File::create(&output)?)
            .stderr(File::create(files.path().join("errors"))?)
            .spawn()?;
        let watching = Self {
            process: Killed(process),
            output,
            _files: files,
        };
        watching.wait("the watcher's first line", |text| !text.is_empty())?;
        Ok(watching)
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(self.output.with_file_name("errors")).unwrap_or_default()
    }

    fn wait(&self, what: &str, found: impl Fn(&str) -> bool) -> Result<String> {
        let text = poll(what, PATIENCE, || {
            let text = self.text();
            found(&text).then_some(text)
        });
        text.with_context(|| format!("{}{}", self.text(), self.errors()))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    fn end(&mut self) -> Result<ExitStatus> {
        poll("the watcher's end", PATIENCE, || {
            self.process.0.try_wait().ok().flatten()
        })
    }
}

/// The events of a watcher that writes JSON, read beside it.
struct Events(BufReader<std::process::ChildStdout>);

impl Events {
    fn next(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("no event: {line:?}"))
    }
}

/// `blockctl -o json watch`, and its events as they come. The first is one that a change of rules
/// made, so that nothing of what follows is missed.
fn watch_json(hosts: &BlockingPair, words: &[&str]) -> Result<(Killed, Events)> {
    let mut command = hosts.daemon.blockctl_command();
    command.args(["-o", "json", "watch"]).args(words);
    let mut process = command.stdout(Stdio::piped()).spawn()?;
    let stdout = process.stdout.take().context("its output is a pipe")?;
    Ok((Killed(process), Events(BufReader::new(stdout))))
}

/// A UDP socket of B, and where A would receive.
fn sender(hosts: &BlockingPair, v6: bool) -> Result<(UdpSocket, SocketAddr)> {
    let (a, b) = FAMILIES[usize::from(v6)];
    let to = SocketAddr::new(a, 9_999);
    Ok((udp(&hosts.pair.b, b, Some(to))?, to))
}

#[test]
fn a_line_a_packet_and_every_change_until_ctrl_c() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let mut watching = Watching::start(&hosts.daemon, &[])?;
    let targets = [Pair::B.to_string(), Pair::B6.to_string()];
    hosts.add(&[
        &targets[0],
        &targets[1],
        "--id",
        "dev01",
        "--comment",
        "INC-1",
    ])?;
    for v6 in [false, true] {
        let (socket, _) = sender(&hosts, v6)?;
        socket.send(b"hello")?;
    }
    hosts.daemon.json(&[
        "add",
        &targets[0],
        "--id",
        "short",
        "--for",
        "1s",
        "--port",
        "7",
    ])?;
    hosts.del(&["dev01"])?;
    let bridge = ["ip", "link", "add", "other0", "type", "bridge"];
    hosts.pair.a.run(&bridge)?;
    hosts.daemon.reload()?;
    let text = watching.wait("all that happened", |text| {
        [
            "rule dev01 added: drop 10.171.170.104 (+1), owner api, by uid 0, pid ",
            "(INC-1)",
            "rule dev01 lifted: drop 10.171.170.104 (+1), owner api, by uid 0, pid ",
            "rule short expired: drop 10.171.170.104, owner api\n",
            "device other0 attached: ",
            "configuration reloaded\n",
        ]
        .iter()
        .all(|part| text.contains(part))
    })?;
    for (remote, local) in [
        ("10.171.170.104:", "10.48.22.221:9999"),
        ("[2001:db8::b]:", "[2001:db8::a]:9999"),
    ] {
        let is_it = |line: &&str| line.contains(remote) && line.contains(local);
        let line = text.lines().find(is_it).context("no line")?;
        let words: Vec<&str> = line.split_whitespace().collect();
        ensure!(words[1..4] == ["eth0", "in", "udp"], "{line}");
        ensure!(words[6..] == ["dropped", "dev01"], "{line}");
    }
    watching.signal(Signal::SIGINT)?;
    ensure!(watching.end()?.code() == Some(0), "{}", watching.errors());
    ensure!(watching.errors().is_empty(), "{}", watching.errors());
    Ok(())
}

#[test]
fn a_watcher_is_told_that_the_daemon_went() -> Result<()> {
    let mut hosts = BlockingPair::new("")?;
    let mut stopped = Watching::start(&hosts.daemon, &[])?;
    let begun = Instant::now();
    ensure!(hosts.daemon.stop()?.success(), "{}", hosts.daemon.log());
    ensure!(
        begun.elapsed() < Duration::from_millis(1_900),
        "no watcher holds up the end"
    );
    ensure!(stopped.end()?.code() == Some(3));
    ensure!(
        stopped.errors().contains("the daemon is gone"),
        "{}",
        stopped.errors()
    );
    let host = &hosts.pair.a;
    hosts.daemon.run(host)?;
    let mut killed = Watching::start(&hosts.daemon, &[])?;
    hosts.daemon.kill()?;
    ensure!(killed.end()?.code() == Some(3));
    let output = hosts.daemon.blockctl(&["watch"])?;
    ensure!(output.code == 3, "{output:?}");
    Ok(())
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    // Whether something happens afterwards or not.
    for happens in [true, false] {
        let mut command = hosts.daemon.blockctl_command();
        command
            .arg("watch")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = command.spawn()?;
        let mut head = BufReader::new(process.stdout.take().context("a pipe")?);
        head.read_line(&mut String::new())?;
        drop(head);
        if happens {
            hosts.add(&[&Pair::B.to_string()])?;
        }
        let status = poll("the end of a watcher without a reader", PATIENCE, || {
            process.try_wait().ok().flatten()
        })?;
        let mut errors = String::new();
        let stderr = process.stderr.take().context("a pipe")?;
        BufReader::new(stderr).read_to_string(&mut errors)?;
        ensure!(
            status.code() == Some(0) && errors.is_empty(),
            "{status}: {errors}"
        );
    }
    Ok(())
}

#[test]
fn only_what_was_asked_for_is_told() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let b = Pair::B.to_string();
    let other = hosts.pair.second_remote()?.to_string();
    hosts.add(&[&b, "--id", "b"])?;
    hosts.add(&[&other, "--id", "other", "--mode", "audit"])?;
    let filters: [&[&str]; 5] = [
        &["--rule", "other"],
        &["--remote", "192.0.2.0/24"],
        &["--verdict", "audited"],
        &["--kind", "packet", "--rule", "other", "--protocol", "udp"],
        &["--protocol", "tcp"],
    ];
    let watching: Vec<Watching> = filters
        .iter()
        .map(|words| Watching::start(&hosts.daemon, words))
        .collect::<Result<_>>()?;
    let from = |address: std::net::IpAddr| -> Result<()> {
        let to = SocketAddr::new(Pair::A, 9_999);
        udp(&hosts.pair.b, address, Some(to))?.send(b"hello")?;
        Ok(())
    };
    from(Pair::B)?;
    from(Pair::OTHER)?;
    for (words, watching) in filters.iter().zip(&watching).take(4) {
        let text = watching.wait("the other remote's packet", |text| {
            text.contains("192.0.2.9")
        })?;
        let packets = text.lines().skip(1);
        ensure!(packets.clone().count() > 0, "{words:?}: {text}");
        for line in packets {
            ensure!(line.contains(" 192.0.2.9"), "{words:?}: {text}");
        }
    }
    let to = SocketAddr::new(Pair::A, 9_999);
    let (stream, _) = connect_timed(&hosts.pair.b, to, Duration::from_millis(50))?;
    ensure!(stream.is_err(), "the rule drops it");
    let text = watching[4].wait("a segment", |text| text.contains("SYN"))?;
    ensure!(!text.contains("udp"), "{text}");
    Ok(())
}

/// Three watchers, one of them stopped, under traffic: the others keep up or are told what they
/// lost, the stopped one is told when it goes on, and the daemon's memory stays bounded.
#[test]
fn a_stopped_watcher_holds_up_nobody() -> Result<()> {
    const PACKETS: u64 = 60_000;
    let hosts = BlockingPair::new("limits: {events_per_second: 1000000}\n")?;
    hosts.add(&[&Pair::B.to_string(), "--id", "dev01"])?;
    let (socket, _) = sender(&hosts, false)?;
    let (_one, mut first) = watch_json(&hosts, &[])?;
    let (_two, mut second) = watch_json(&hosts, &["--kind", "packet"])?;
    let (stopped, mut third) = watch_json(&hosts, &[])?;
    // All of them watch once all of them are told of one packet.
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _full = socket.send(b"begin");
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let told = [&mut first, &mut second, &mut third].map(Events::next);
        done.store(true, Ordering::Relaxed);
        told.into_iter().collect::<Result<Vec<Value>>>()
    })?;
    stopped.signal(Signal::SIGSTOP)?;
    let before = hosts.daemon.json(&["status"])?["resident_bytes"]
        .as_u64()
        .context("its memory")?;

    // What is lost is told after what was read beside it, so a few ends are waited for.
    let counted = |events: &mut Events| -> Result<(u64, u64)> {
        let (mut packets, mut lost, mut ends) = (0, 0, 0);
        while packets + lost < PACKETS && ends < 100 {
            let event = events.next()?;
            match event["kind"].as_str() {
                Some("packet") if event["length"] == 42 + 3 => ends += 1,
                Some("packet") => packets += 1,
                Some("lost") => lost += event["events"].as_u64().context("how many")?,
                _ => {}
            }
        }
        Ok((packets, lost))
    };
    let packets =
        |id| -> Result<u64> { hosts.counters(id)?["packets"].as_u64().context("a counter") };
    let counter = packets("dev01")?;
    let (quick, filtered) = std::thread::scope(|scope| -> Result<_> {
        let quick = scope.spawn(|| counted(&mut first));
        let filtered = scope.spawn(|| counted(&mut second));
        for _ in 0..PACKETS {
            socket.send(b"hello")?;
        }
        poll("all packets to be blocked", 4 * PATIENCE, || {
            (packets("dev01").ok()? >= counter + PACKETS).then_some(())
        })?;
        // The end: packets whose length is their own, until both have seen enough.
        while !(quick.is_finished() && filtered.is_finished()) {
            socket.send(b"end")?;
            std::thread::sleep(Duration::from_millis(20));
        }
        let panicked = |_| anyhow::anyhow!("a reader panicked");
        Ok((
            quick.join().map_err(panicked)??,
            filtered.join().map_err(panicked)??,
        ))
    })?;
    for (seen, lost) in [quick, filtered] {
        ensure!(
            seen > 0 && seen + lost >= PACKETS,
            "{seen} seen, {lost} lost of {PACKETS}"
        );
    }
    let after = hosts.daemon.json(&["status"])?["resident_bytes"]
        .as_u64()
        .context("its memory")?;
    ensure!(
        after.saturating_sub(before) < 48 << 20,
        "from {before} to {after} bytes"
    );
    stopped.signal(Signal::SIGCONT)?;
    let late = poll("the stopped watcher to be told", PATIENCE, || {
        let event = third.next().ok()?;
        (event["kind"] == "lost" && event["at"] == "watcher").then_some(event)
    })?;
    ensure!(late["events"].as_u64() > Some(0), "{late}");
    Ok(())
}

#[test]
fn what_was_blocked_can_be_listed_filtered_and_sorted() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let targets = [Pair::B.to_string(), Pair::B6.to_string()];
    let other = hosts.pair.second_remote()?;
    hosts.add(&[&targets[0], &targets[1], "--id", "b"])?;
    hosts.add(&[&other.to_string(), "--id", "other", "--mode", "audit"])?;
    let to = SocketAddr::new(Pair::A, 9_999);
    let mut ports = Vec::new();
    for (address, to, count) in [
        (Pair::B, to, 3),
        (Pair::B6, SocketAddr::new(Pair::A6, 9_999), 2),
        (other, to, 1),
    ] {
        let socket = udp(&hosts.pair.b, address, Some(to))?;
        for number in 0..count {
            if number == 2 {
                // Flows are timed by the kernel's tick: 10 ms at the most.
                std::thread::sleep(Duration::from_millis(11));
            }
            socket.send(b"hello")?;
        }
        ports.push(socket.local_addr()?.port());
    }
    hosts.wait_packets("b", 5)?;
    hosts.wait_packets("other", 1)?;
    let flows = |words: &[&str]| hosts.daemon.json(&[&["flows"], words].concat());
    // Each time by the most packets: what the kernels themselves have to say is at the end.
    let of = |words: &[&str]| -> Result<Vec<Value>> {
        let answer = flows(&[&["--sort", "packets", "--protocol", "udp"], words].concat())?;
        Ok(answer["flows"].as_array().context("a list")?.clone())
    };
    let all = of(&[])?;
    let remotes: Vec<&Value> = all.iter().map(|flow| &flow["remote"]).collect();
    assert_eq!(
        remotes,
        [&json!(targets[0]), &json!(targets[1]), &json!(other)]
    );
    let first = &all[0];
    for (key, value) in [
        ("rule", json!("b")),
        ("protocol", json!("udp")),
        ("remote_port", json!(ports[0])),
        ("local", json!(Pair::A)),
        ("local_port", json!(9_999)),
        ("packets", json!(3)),
        ("bytes", json!(3 * (14 + 20 + 8 + 5))),
        ("interface", json!("eth0")),
        ("last_verdict", json!("dropped")),
    ] {
        assert_eq!(first[key], value, "{key} of {first:#}");
    }
    ensure!(
        first["first_seen"].as_str() < first["last_seen"].as_str(),
        "{first:#}"
    );
    assert_eq!(all[1]["bytes"], 2 * (14 + 40 + 8 + 5));
    assert_eq!(all[2]["last_verdict"], "audited");
    assert_eq!(of(&["--rule", "other"])?, [all[2].clone()]);
    assert_eq!(of(&["--remote", "2001:db8::/32"])?, [all[1].clone()]);
    assert_eq!(
        of(&["--rule", "b", "--remote", "192.0.2.0/24"])?,
        [Value::Null; 0]
    );
    let cut = flows(&["--protocol", "udp", "--sort", "packets", "--limit", "1"])?;
    assert_eq!((&cut["flows"][0], &cut["truncated"]), (first, &json!(2)));
    assert_eq!(
        (&cut["evicted"], &cut["not_recorded"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(of(&["--rule", "none"])?, [Value::Null; 0]);
    // A rule that is gone is remembered by its flows, and its successor begins anew.
    hosts.del(&["b"])?;
    hosts.add(&[&targets[0], "--id", "next"])?;
    let socket = udp(&hosts.pair.b, Pair::B, Some(to))?;
    socket.send(b"hello")?;
    hosts.wait_packets("next", 1)?;
    assert_eq!(of(&["--rule", "b"])?.len(), 2);
    let next = of(&["--rule", "next"])?;
    assert_eq!((next.len(), &next[0]["packets"]), (1, &json!(1)));
    let table = hosts
        .daemon
        .blockctl(&["flows", "--rule", "next"])?
        .success()?;
    ensure!(table.stdout.starts_with("PROTO"), "{table:?}");
    let invalid = hosts
        .daemon
        .blockctl(&["flows", "--remote", "10.0.0.1/8", "--rule", "A"])?;
    ensure!(
        invalid.code == 2 && invalid.stderr.contains("--rule"),
        "{invalid:?}"
    );
    Ok(())
}
