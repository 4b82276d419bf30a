//! The real fail2ban with our action: banned addresses are blocked, others are not.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use xtask::hosts::{Connection, Namespace, Pair, poll};

use crate::blocking_pair::{BlockingPair, PATIENCE, assert_died, connect_error, soon};

/// How long fail2ban may take to start or stop, or to see a line in a log.
const FAIL2BAN: Duration = Duration::from_secs(30);

const JAILS: &str = "\
[DEFAULT]
backend = polling
logpath = @DIR@/app.log
filter = app
maxretry = 3
findtime = 10m
bantime = 1h
ignoreip =
action = blockctl[blockctl=\"@BLOCKCTL@ --socket @SOCKET@\"]
enabled = true
[app]
[app-two]
logpath = @DIR@/other.log
[App_with-a-name.That-is-longer-than-an-id-has-room-for]
logpath = @DIR@/other.log
bantime = -1
";

/// A fail2ban with a configuration, a database and a log of its own. Killed when dropped.
struct Fail2ban {
    files: TempDir,
    host: Namespace,
    process: Option<Child>,
}

impl Fail2ban {
    /// Starts one whose jails ban through the daemon.
    fn start(hosts: &BlockingPair) -> Result<Self> {
        let files = tempfile::Builder::new().prefix("blocker-test-").tempdir()?;
        let dir = files.path();
        let action = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/fail2ban/action.d");
        for part in ["action.d", "filter.d"] {
            fs::create_dir(dir.join(part))?;
        }
        fs::copy(
            action.join("blockctl.conf"),
            dir.join("action.d/blockctl.conf"),
        )?;
        fs::write(
            dir.join("filter.d/app.conf"),
            "[Definition]\nfailregex = ^ login failure from <HOST>$\n",
        )?;
        let shown = dir.display();
        fs::write(
            dir.join("fail2ban.conf"),
            format!(
                "[DEFAULT]\nallowipv6 = auto\nloglevel = INFO\nlogtarget = {shown}/log\nsyslogsocket = auto\n\
                 socket = {shown}/socket\npidfile = {shown}/pid\ndbfile = {shown}/db\n\
                 dbpurgeage = 1d\ndbmaxmatches = 10\n[Definition]\n"
            ),
        )?;
        let jails = JAILS
            .replace("@DIR@", &shown.to_string())
            .replace("@BLOCKCTL@", env!("CARGO_BIN_EXE_blockctl"))
            .replace("@SOCKET@", &hosts.daemon.socket().display().to_string());
        fs::write(dir.join("jail.conf"), jails)?;
        for log in ["app.log", "other.log"] {
            File::create(dir.join(log))?;
        }
        let mut fail2ban = Self {
            files,
            // Where it runs is nothing to it: it has only files and sockets of files.
            host: Namespace::new("fail2ban")?,
            process: None,
        };
        fail2ban.run()?;
        Ok(fail2ban)
    }

    fn run(&mut self) -> Result<()> {
        let mut command = Command::new("fail2ban-server");
        command
            .args(["-xf", "-c"])
            .arg(self.files.path())
            .arg("start")
            .env_remove("SSH_CONNECTION")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        self.process = Some(self.host.spawn(&mut command)?);
        poll("fail2ban to be ready", FAIL2BAN, || {
            self.client(&["ping"]).is_ok().then_some(())
        })
        .with_context(|| self.log())?;
        poll("the jails to be there", FAIL2BAN, || {
            let jails = self.client(&["status"]).ok()?;
            jails.contains("Number of jail:\t3").then_some(())
        })
        .with_context(|| self.log())
    }

    /// Asks it something.
    fn client(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new("fail2ban-client");
        command.arg("-c").arg(self.files.path()).args(words);
        let output = command.output().context("fail2ban-client")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{words:?}: {said}");
        Ok(said)
    }

    /// Waits until it has ended.
    fn wait(&mut self) -> Result<()> {
        let process = self.process.as_mut().context("it does not run")?;
        poll("fail2ban to end", FAIL2BAN, || {
            process.try_wait().ok().flatten()
        })?;
        self.process = None;
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        let pid = self.process.as_ref().context("it does not run")?.id();
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL)?;
        self.wait()
    }

    /// Writes that a login failed, as often as it takes for a ban.
    fn fail_login(&self, address: &str) -> Result<()> {
        let mut log = File::options()
            .append(true)
            .open(self.files.path().join("app.log"))?;
        let now = jiff::Timestamp::now().as_second();
        for _ in 0..3 {
            writeln!(log, "{now} login failure from {address}")?;
        }
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.files.path().join("log")).unwrap_or_default()
    }

    /// No action of ours failed.
    fn check_log(&self) -> Result<()> {
        let log = self.log();
        // That it was killed is told by the socket that it left.
        let wrong = |line: &str| line.contains(" ERROR ") && !line.contains("fail2ban.asyncserver");
        if log.lines().any(wrong) {
            bail!("{log}");
        }
        Ok(())
    }
}

impl Drop for Fail2ban {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("-- log of fail2ban --\n{}--", self.log());
        }
        if self.process.is_some() {
            let _ = self.kill();
        }
    }
}

fn ids(hosts: &BlockingPair) -> Result<Vec<String>> {
    let list = hosts.daemon.blockctl(&["-q", "list"])?.success()?;
    Ok(list.stdout.lines().map(str::to_owned).collect())
}

fn wait_ids(hosts: &BlockingPair, wanted: &[&str]) -> Result<()> {
    poll(&format!("rules {wanted:?}"), FAIL2BAN, || {
        (ids(hosts).ok()? == wanted).then_some(())
    })
    .with_context(|| format!("there are {:?}", ids(hosts)))
}

fn show(hosts: &BlockingPair, id: &str) -> Result<Value> {
    hosts.daemon.json(&["show", id])
}

const B: &str = "f2b-app_10.171.170.104";
const B6: &str = "f2b-app_2001-db8--b";
const DEAD: [Errno; 2] = [Errno::ECONNRESET, Errno::ECONNABORTED];

#[test]
fn who_is_banned_is_cut_off_and_lifted_again() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let fail2ban = Fail2ban::start(&hosts)?;
    let (a, b) = (&hosts.pair.a, &hosts.pair.b);
    for (own, remote, id) in [(Pair::A, Pair::B, B), (Pair::A6, Pair::B6, B6)] {
        let mut old = Connection::open(b, a, own)?;
        old.check_alive()?;
        fail2ban.fail_login(&remote.to_string())?;
        wait_ids(&hosts, &[id])?;
        assert!(old.wait_dead(soon())?, "an established connection lives on");
        assert_died(&old.client, &DEAD);
        assert_died(&old.server, &DEAD);
        assert_eq!(
            connect_error(b, (own, 9).into())?,
            Some(Errno::ECONNREFUSED)
        );
        let rule = show(&hosts, id)?;
        assert_eq!(rule["comment"], "fail2ban app");
        // Longer than the ban, but not for ever.
        let left = rule["remaining_seconds"].as_u64().context("no deadline")?;
        assert!((3_600..=3_660).contains(&left), "{left}");

        fail2ban.client(&["set", "app", "unbanip", &remote.to_string()])?;
        wait_ids(&hosts, &[])?;
        Connection::open(b, a, own)?.check_alive()?;
    }
    fail2ban.check_log()
}

#[test]
fn bans_are_the_same_after_a_restart_and_go_with_their_jail() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let mut fail2ban = Fail2ban::start(&hosts)?;
    let long = "App_with-a-name.That-is-longer-than-an-id-has-room-for";
    fail2ban.client(&["set", "app", "banip", "10.171.170.104", "2001:db8::b"])?;
    fail2ban.client(&["set", "app-two", "banip", "198.51.100.7"])?;
    fail2ban.client(&[
        "set",
        long,
        "banip",
        "2001:db8:1111:2222:3333:4444:5555:6666",
    ])?;
    // Somebody else's, that look alike.
    let others = ["f2b-ap_198.51.100.1", "f2b-app_198.51.100.1_x"];
    for id in others {
        hosts.add(&["198.51.100.1", "--id", id])?;
    }
    let second = "f2b-app-two_198.51.100.7";
    let permanent = poll("the permanent ban", FAIL2BAN, || {
        let ids = ids(&hosts).ok()?;
        (ids.len() == 6).then(|| ids.into_iter().find(|id| id.starts_with("f2b-app-with-")))?
    })
    .with_context(|| format!("{:?}\n{}", ids(&hosts), fail2ban.log()))?;
    assert!(
        permanent.ends_with("_2001-db8-1111-2222-3333-4444-5555-6666"),
        "{permanent}"
    );
    let rule = show(&hosts, &permanent)?;
    assert_eq!(rule["expires"], Value::Null, "{rule}");
    let mut all = vec![B, B6, second, &permanent, others[0], others[1]];
    all.sort_unstable();
    wait_ids(&hosts, &all)?;

    // It dies: what it banned stays banned, and banning again is no error.
    fail2ban.kill()?;
    wait_ids(&hosts, &all)?;
    let created = show(&hosts, B)?["created"].clone();
    fail2ban.run()?;
    poll("the bans to be made again", FAIL2BAN, || {
        let status = fail2ban.client(&["status", "app"]).ok()?;
        status.contains("Currently banned:\t2").then_some(())
    })?;
    wait_ids(&hosts, &all)?;
    assert_eq!(show(&hosts, B)?["created"], created, "the very same rule");

    // A jail ends: its bans go, and nobody else's.
    fail2ban.client(&["stop", "app"])?;
    all.retain(|id| ![B, B6].contains(id));
    wait_ids(&hosts, &all)?;

    // It ends in order, and starts again.
    fail2ban.client(&["stop"])?;
    fail2ban.wait()?;
    let mut rest = others.to_vec();
    rest.sort_unstable();
    wait_ids(&hosts, &rest)?;
    fail2ban.check_log()?;
    fail2ban.run()?;
    all.extend([B, B6]);
    all.sort_unstable();
    wait_ids(&hosts, &all)?;
    assert_eq!(
        connect_error(&hosts.pair.b, (Pair::A, 9).into())?,
        Some(Errno::ECONNREFUSED)
    );
    fail2ban.check_log()
}

#[test]
fn a_daemon_that_is_away_is_told_and_does_not_lose_the_ban() -> Result<()> {
    let mut hosts = BlockingPair::new("")?;
    let fail2ban = Fail2ban::start(&hosts)?;
    hosts.daemon.stop()?;
    fail2ban.client(&["set", "app", "banip", "10.171.170.104"])?;
    poll("fail2ban to say so", FAIL2BAN, || {
        fail2ban.log().contains("blockctl: ").then_some(())
    })?;
    let BlockingPair { daemon, pair } = &mut hosts;
    daemon.run(&pair.a)?;
    fail2ban.client(&["set", "app", "unbanip", "10.171.170.104"])?;
    fail2ban.client(&["set", "app", "banip", "10.171.170.104"])?;
    poll("the ban", PATIENCE.max(FAIL2BAN), || {
        (ids(&hosts).ok()? == [B]).then_some(())
    })
    .with_context(|| fail2ban.log())
}
