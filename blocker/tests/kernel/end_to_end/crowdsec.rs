//! The real CrowdSec Local API: its decisions are in force for as long as they last, also while the
//! Local API is down.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use xtask::hosts::{Connection, Daemon, Namespace, Pair, connect_timed, poll};

use crate::blocking_pair::{assert_died, soon};

/// How long a decision may take from `cscli` to the datapath: an interval, and time for a busy machine.
const NOTICE: Duration = Duration::from_secs(40);

const CONFIG: &str = "\
common: {daemonize: false, log_media: stdout, log_level: info, working_dir: @DIR@}
config_paths:
  config_dir: @DIR@
  data_dir: @DIR@/data
  simulation_path: @DIR@/simulation.yaml
  hub_dir: @DIR@/hub
  index_path: @DIR@/hub/.index.json
  notification_dir: @DIR@/notify
  plugin_dir: @DIR@/plugins
db_config: {log_level: info, type: sqlite, db_path: @DIR@/data/crowdsec.db, use_wal: true}
api:
  client: {credentials_path: @DIR@/local_api_credentials.yaml}
  server: {log_level: info, listen_uri: 127.0.0.1:8080, profiles_path: @DIR@/profiles.yaml}
prometheus: {enabled: false}
";

/// A Local API with a configuration and a database of its own, on its host's loopback. Killed when
/// dropped.
struct Lapi<'a> {
    files: TempDir,
    host: &'a Namespace,
    process: Option<Child>,
}

impl<'a> Lapi<'a> {
    fn new(host: &'a Namespace) -> Result<Self> {
        let files = tempfile::Builder::new().prefix("blocker-test-").tempdir()?;
        let dir = files.path();
        for part in ["data", "hub", "notify", "plugins"] {
            fs::create_dir(dir.join(part))?;
        }
        let config = CONFIG.replace("@DIR@", &dir.display().to_string());
        for (file, text) in [
            ("config.yaml", config.as_str()),
            ("simulation.yaml", "simulation: off\n"),
            ("hub/.index.json", "{}\n"),
            (
                "profiles.yaml",
                "name: default\nfilters: [\"Alert.Remediation == true\"]\ndecisions: [{type: ban, duration: 4h}]\non_success: break\n",
            ),
        ] {
            fs::write(dir.join(file), text)?;
        }
        let lapi = Self {
            files,
            host,
            process: None,
        };
        lapi.cscli(&["machines", "add", "test", "--password", "test", "--force"])?;
        let key = lapi.cscli(&["bouncers", "add", "blocker", "-o", "raw"])?;
        fs::write(lapi.key(), key + "\n")?;
        Ok(lapi)
    }

    fn key(&self) -> PathBuf {
        self.files.path().join("key")
    }

    fn run(&mut self) -> Result<()> {
        let mut command = Command::new("crowdsec");
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.files.path().join("log"))?;
        command
            .arg("-c")
            .arg(self.files.path().join("config.yaml"))
            .arg("-no-cs")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.process = Some(self.host.spawn(&mut command)?);
        let loopback = ([127, 0, 0, 1], 8080).into();
        let connects = || connect_timed(self.host, loopback, NOTICE).ok();
        poll("the Local API to listen", NOTICE, || {
            connects()?.0.ok().map(drop)
        })
    }

    fn stop(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            kill(Pid::from_raw(process.id().cast_signed()), Signal::SIGKILL)?;
            process.wait()?;
        }
        Ok(())
    }

    fn cscli(&self, words: &[&str]) -> Result<String> {
        let config = self.files.path().join("config.yaml");
        let config = config.display().to_string();
        self.host
            .run(&[&["cscli", "-c", config.as_str()], words].concat())
    }

    fn decide(&self, on: [&str; 2], lasts: &str, kind: &str) -> Result<()> {
        let words = [
            "decisions",
            "add",
            on[0],
            on[1],
            "--duration",
            lasts,
            "--type",
            kind,
        ];
        self.cscli(&words).map(drop)
    }
}

impl Drop for Lapi<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.files.path().join("log")).unwrap_or_default();
            eprintln!("-- log of crowdsec --\n{log}--");
        }
        let _ = self.stop();
    }
}

fn config(lapi: &Lapi<'_>) -> String {
    format!(
        "feeds: [{{name: crowdsec, type: crowdsec, url: 'http://127.0.0.1:8080', interval: 1s, api_key_file: {}, types: {{ban: reset, captcha: audit}}}}]\n",
        lapi.key().display()
    )
}

fn feed(daemon: &Daemon) -> Result<Value> {
    Ok(daemon.json(&["status"])?["feeds"][0].clone())
}

/// Waits until the feed's status satisfies a condition.
fn wait(daemon: &Daemon, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    let waited = poll(what, NOTICE, || feed(daemon).ok().filter(&is));
    waited.with_context(|| format!("{:?}\n{}", feed(daemon), daemon.log()))
}

fn has(entries: u64) -> impl Fn(&Value) -> bool {
    move |feed| feed["entries"] == entries && feed["state"] == "current"
}

/// The feed's rules: mode and targets.
fn rules(daemon: &Daemon) -> Result<Vec<(String, Vec<String>)>> {
    let list = daemon.json(&["list"])?;
    let rules = list["rules"].as_array().context("rules")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut modes = Vec::new();
    for rule in rules {
        ensure!(rule["owner"] == "feed:crowdsec", "{rule}");
        ensure!(rule["expires"].is_string(), "no deadline: {rule}");
        let targets = rule["targets"].as_array().context("targets")?;
        modes.push((text(&rule["mode"]), targets.iter().map(text).collect()));
    }
    modes.sort_unstable();
    Ok(modes)
}

fn owned(rules: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
    let one = |(mode, targets): &(&str, &[&str])| {
        let targets = targets.iter().map(|text| (*text).to_owned()).collect();
        ((*mode).to_owned(), targets)
    };
    rules.iter().map(one).collect()
}

#[test]
fn decisions_are_in_force_as_long_as_they_are_decided() -> Result<()> {
    let pair = Pair::new()?;
    let mut lapi = Lapi::new(&pair.a)?;
    lapi.run()?;
    lapi.decide(["--ip", "198.51.100.7"], "20h", "ban")?;
    let mut daemon = Daemon::start(&pair.a, &crate::programs(), &config(&lapi))?;
    wait(&daemon, "what was decided before", has(1))?;

    // A decision kills the connections of whom it is on.
    for (own, remote) in [(Pair::A, Pair::B), (Pair::A6, Pair::B6)] {
        let remote = remote.to_string();
        let mut flow = Connection::open(&pair.b, &pair.a, own)?;
        flow.check_alive()?;
        lapi.decide(["--ip", &remote], "10m", "ban")?;
        wait(&daemon, "the ban", has(2))?;
        assert!(
            flow.wait_dead(soon())?,
            "an established connection lives on"
        );
        assert_died(&flow.client, &[Errno::ECONNRESET]);
        assert!(Connection::open(&pair.b, &pair.a, own).is_err());
        lapi.cscli(&["decisions", "delete", "--ip", &remote])?;
        wait(&daemon, "the pardon", has(1))?;
        Connection::open(&pair.b, &pair.a, own)?.check_alive()?;
    }

    // Types, ranges, and what nobody asked for.
    lapi.decide(["--range", "203.0.113.0/24"], "20h", "captcha")?;
    lapi.decide(["--ip", "198.51.100.8"], "20h", "throttle")?;
    lapi.cscli(&[
        "decisions",
        "add",
        "--scope",
        "Country",
        "--value",
        "ZZ",
        "--type",
        "ban",
    ])?;
    lapi.decide(["--ip", &Pair::B.to_string()], "10m", "ban")?;
    wait(&daemon, "all of them", has(3))?;
    let b = Pair::B.to_string();
    let all = owned(&[
        ("audit", &["203.0.113.0/24"]),
        ("reset", &[&b]),
        ("reset", &["198.51.100.7"]),
    ]);
    assert_eq!(rules(&daemon)?, all);

    // The Local API is away: all stays, also over a restart.
    lapi.stop()?;
    let away = |feed: &Value| {
        let error = feed["error"].as_str();
        feed["state"] == "stale" && error.is_some_and(|error| error.contains("Connection refused"))
    };
    wait(&daemon, "the Local API to be away", away)?;
    daemon.kill()?;
    daemon.run(&pair.a)?;
    assert_eq!(rules(&daemon)?, all);
    wait(&daemon, "the Local API to be away", away)?;
    assert!(Connection::open(&pair.b, &pair.a, Pair::A).is_err());

    // It is back, and something was decided meanwhile.
    lapi.run()?;
    lapi.cscli(&["decisions", "delete", "--ip", &b])?;
    lapi.decide(["--ip", "198.51.100.9"], "20h", "ban")?;
    let back = wait(&daemon, "the Local API to be back", |feed| {
        feed["state"] == "current" && feed["failures"].as_u64() > Some(0)
    })?;
    assert_eq!(back["error"], Value::Null);
    wait(&daemon, "what was decided meanwhile", has(3))?;
    Connection::open(&pair.b, &pair.a, Pair::A)?.check_alive()?;

    // A key that is none.
    fs::write(lapi.key(), "nonsense\n")?;
    let refused = wait(&daemon, "the refusal", |feed| feed["state"] == "stale")?;
    let error = refused["error"].as_str().context("no error")?;
    assert!(error.contains("403 Forbidden: is the key"), "{error}");
    assert_eq!(refused["entries"], 3);
    assert!(!daemon.log().contains("nonsense"), "{}", daemon.log());
    Ok(())
}

#[test]
fn a_decision_ends_in_time_whoever_is_dead() -> Result<()> {
    let pair = Pair::new()?;
    let mut lapi = Lapi::new(&pair.a)?;
    lapi.run()?;
    let daemon = Daemon::start(&pair.a, &crate::programs(), &config(&lapi))?;
    // Both end long before their rule's deadline, one while the Local API lives.
    lapi.decide(["--ip", &Pair::B.to_string()], "20s", "ban")?;
    wait(&daemon, "the ban", has(1))?;
    poll("the ban's end", NOTICE, || {
        Connection::open(&pair.b, &pair.a, Pair::A).ok()
    })?;
    lapi.decide(["--ip", &Pair::B.to_string()], "25s", "ban")?;
    wait(&daemon, "the ban", has(1))?;
    lapi.stop()?;
    wait(&daemon, "the Local API to be away", |feed| {
        feed["state"] == "stale"
    })?;
    assert!(Connection::open(&pair.b, &pair.a, Pair::A).is_err());
    // The daemon looks at least once a minute.
    poll("the ban's end", Duration::from_secs(90), || {
        Connection::open(&pair.b, &pair.a, Pair::A).ok()
    })?;
    let ended = feed(&daemon)?;
    assert_eq!(
        (&ended["entries"], &ended["state"]),
        (&0.into(), &"stale".into())
    );
    Ok(())
}

#[test]
fn thousands_of_decisions_are_a_few_rules() -> Result<()> {
    let pair = Pair::new()?;
    let mut lapi = Lapi::new(&pair.a)?;
    lapi.run()?;
    let daemon = Daemon::start(&pair.a, &crate::programs(), &config(&lapi))?;
    let mut csv = "duration,scope,value,type\n".to_owned();
    for n in 0..6_000 {
        // As many ends as there are decisions, most of a day long.
        let (hours, minutes) = (1 + n % 22, n % 60);
        let _ = writeln!(
            csv,
            "{hours}h{minutes}m,Ip,11.0.{}.{},ban",
            n / 250,
            n % 250 + 1
        );
    }
    let file = lapi.files.path().join("decisions.csv");
    fs::write(&file, csv)?;
    lapi.cscli(&["decisions", "import", "-i", &file.display().to_string()])?;
    let feed = wait(&daemon, "all decisions", has(6_000))?;
    let count = feed["rules"].as_u64().context("rules")?;
    assert!((2..=40).contains(&count), "{count}");
    let now = Timestamp::now();
    let list = daemon.json(&["list"])?;
    for rule in list["rules"].as_array().context("rules")? {
        let expires: Timestamp = rule["expires"].as_str().context("a deadline")?.parse()?;
        let left = expires.duration_since(now).as_secs();
        assert!((0..=25 * 3600).contains(&left), "{left}");
    }
    Ok(())
}
