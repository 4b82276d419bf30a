//! Feeds from files and from a real web server: listed addresses are blocked, and stay blocked when the
//! source fails.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use xtask::hosts::{Connection, Daemon, Namespace, Pair, connect_timed, poll};

use crate::blocking_pair::{BlockingPair, assert_died, soon};

/// How long a feed may take to see a change: an interval, and time for a busy machine.
const NOTICE: Duration = Duration::from_secs(20);

/// A list of 25 unused addresses, and these lines.
fn list(more: &str) -> String {
    let nobody: String = (1..=25).map(|n| format!("198.51.100.{n}\n")).collect();
    nobody + more
}

fn feed(daemon: &Daemon, name: &str) -> Result<Value> {
    let status = daemon.json(&["status"])?;
    let feeds = status["feeds"].as_array().context("feeds")?;
    let feed = feeds.iter().find(|feed| feed["name"] == name);
    Ok(feed
        .with_context(|| format!("no feed {name}: {feeds:?}"))?
        .clone())
}

/// Waits until a feed's status satisfies a condition.
fn wait(daemon: &Daemon, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    let waited = poll(what, NOTICE, || feed(daemon, name).ok().filter(&is));
    waited.with_context(|| format!("{:?}\n{}", feed(daemon, name), daemon.log()))
}

fn has(entries: u64) -> impl Fn(&Value) -> bool {
    move |feed| feed["entries"] == entries && feed["state"] == "current"
}

fn failed(with: &str) -> impl Fn(&Value) -> bool {
    move |feed| {
        let error = feed["error"].as_str();
        feed["state"] == "stale" && error.is_some_and(|error| error.contains(with))
    }
}

/// Whether B is blocked: a connection to a listener fails.
fn is_blocked(pair: &Pair) -> bool {
    Connection::open(&pair.b, &pair.a, Pair::A).is_err()
}

/// Reloads and waits until the daemon says what became of it; gives the error.
fn reload(daemon: &Daemon) -> Result<Option<String>> {
    let last = || -> Result<Value> { Ok(daemon.json(&["status"])?["last_reload"].clone()) };
    let before = last()?["at"].clone();
    daemon.reload()?;
    let reload = poll("the reload", NOTICE, || {
        last().ok().filter(|reload| reload["at"] != before)
    })?;
    Ok(reload["error"].as_str().map(str::to_owned))
}

fn rules(daemon: &Daemon) -> Result<Vec<(String, String)>> {
    let list = daemon.json(&["list"])?;
    let rules = list["rules"].as_array().context("rules")?.iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(rules
        .map(|rule| (text(&rule["id"]), text(&rule["owner"])))
        .collect())
}

const FILE: &str = "feeds: [{name: own, type: file, path: own.txt, private: block, mode: reset}]\n";

#[test]
fn a_file_is_followed_however_it_changes() -> Result<()> {
    let pair = Pair::new()?;
    let mut daemon = Daemon::prepare(&pair.a, &crate::programs(), FILE)?;
    let path = daemon.config_path().with_file_name("own.txt");
    fs::write(&path, list(""))?;
    daemon.run(&pair.a)?;
    // In force from the start.
    assert_eq!(feed(&daemon, "own")?["entries"], 25);
    assert_eq!(rules(&daemon)?, [("feed-own".into(), "feed:own".into())]);
    let mut flow = Connection::open(&pair.b, &pair.a, Pair::A)?;
    flow.check_alive()?;

    // Written anew in place.
    fs::write(&path, list(&format!("{}\n", Pair::B)))?;
    wait(&daemon, "own", "the peer's block", has(26))?;
    assert!(
        flow.wait_dead(soon())?,
        "an established connection lives on"
    );
    assert_died(&flow.client, &[Errno::ECONNRESET]);
    assert!(is_blocked(&pair));

    // Replaced by another file.
    let new = path.with_extension("new");
    fs::write(&new, list("203.0.113.0/24\n203.0.113.9\n"))?;
    fs::rename(&new, &path)?;
    wait(&daemon, "own", "the peer's release", has(26))?;
    poll("the peer to be free", NOTICE, || {
        Connection::open(&pair.b, &pair.a, Pair::A).ok()
    })?
    .check_alive()?;

    // Nothing, most of it gone, none that can be read, no file: all stays.
    fs::write(&path, list(&format!("{}\n", Pair::B)))?;
    poll("the peer's block", NOTICE, || {
        is_blocked(&pair).then_some(())
    })?;
    for (text, error) in [
        ("", "the list has no target"),
        ("198.51.100.1\n", "more than 50% are gone"),
        ("198.51.100.1\nhello\n", "own.txt:2: "),
    ] {
        fs::write(&path, text)?;
        let feed = wait(&daemon, "own", error, failed(error))?;
        assert_eq!(feed["entries"], 26);
        assert!(is_blocked(&pair), "{error}");
    }
    fs::remove_file(&path)?;
    wait(&daemon, "own", "no file", failed("No such file"))?;
    let mut metrics = String::new();
    let mut socket = UnixStream::connect(daemon.socket())?;
    socket.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    socket.read_to_string(&mut metrics)?;
    assert!(
        metrics.contains("blocker_feed_stale{feed=\"own\"} 1"),
        "{metrics}"
    );
    assert!(metrics.contains("blocker_feed_entries{feed=\"own\"} 26"));

    // Nor does a restart change that.
    daemon.stop()?;
    daemon.run(&pair.a)?;
    let kept = feed(&daemon, "own")?;
    assert_eq!(
        (&kept["entries"], &kept["state"]),
        (&26.into(), &"stale".into())
    );
    assert!(is_blocked(&pair));

    // What is right after all is taken over.
    fs::write(&path, "198.51.100.1\n")?;
    wait(
        &daemon,
        "own",
        "the shrunk list",
        failed("more than 50% are gone"),
    )?;
    daemon.write_config(&FILE.replace("mode: reset", "mode: drop, shrink: 100"))?;
    assert_eq!(reload(&daemon)?, None);
    wait(&daemon, "own", "the short list", has(1))?;
    assert_eq!(daemon.json(&["show", "feed-own"])?["mode"], "drop");
    Connection::open(&pair.b, &pair.a, Pair::A)?.check_alive()?;

    // A feed that is gone takes its rules with it.
    daemon.write_config("")?;
    assert_eq!(reload(&daemon)?, None);
    assert_eq!(rules(&daemon)?, []);
    assert!(!daemon.state().join("feeds/own").exists());
    Ok(())
}

/// A web server in B, on both its addresses, whose directory is ours. Killed when dropped.
struct Nginx {
    files: TempDir,
    process: Option<Child>,
}

impl Nginx {
    /// While a file of this name is there, the server does so.
    const TROUBLES: &str = "\
        if (-f @DIR@/broken) { return 500; }
        if (-f @DIR@/slow) { set $limit_rate 1; }
";

    fn new() -> Result<Self> {
        let files = tempfile::Builder::new().prefix("blocker-test-").tempdir()?;
        let dir = files.path();
        fs::create_dir(dir.join("www"))?;
        certificates(dir)?;
        let config = "\
daemon off; master_process off; pid @DIR@/pid; error_log @DIR@/error.log;
events {}
http {
  access_log @DIR@/access.log;
  client_body_temp_path @DIR@/t1; proxy_temp_path @DIR@/t2; fastcgi_temp_path @DIR@/t3;
  uwsgi_temp_path @DIR@/t4; scgi_temp_path @DIR@/t5;
  server {
    listen 80; listen 443 ssl;
    ssl_certificate @DIR@/server.pem; ssl_certificate_key @DIR@/server.key;
    root @DIR@/www;
@TROUBLES@
    location /moved { return 302 https://$host/list; }
    location /downgraded { return 302 http://$host/list; }
  }
}
";
        let config = config.replace("@TROUBLES@", Self::TROUBLES);
        let config = config.replace("@DIR@", &dir.display().to_string());
        fs::write(dir.join("nginx.conf"), config)?;
        Ok(Self {
            files,
            process: None,
        })
    }

    fn run(&mut self, host: &Namespace) -> Result<()> {
        let mut command = Command::new("nginx");
        command
            .arg("-e")
            .arg(self.path("error.log"))
            .arg("-c")
            .arg(self.path("nginx.conf"))
            .stdin(Stdio::null());
        self.process = Some(host.spawn(&mut command)?);
        let listens = || {
            Some(
                connect_timed(host, (Pair::B, 443).into(), NOTICE)
                    .ok()?
                    .0
                    .is_ok(),
            )
        };
        poll("nginx to listen", NOTICE, || {
            listens().filter(|is| *is).map(drop)
        })
    }

    fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        kill(Pid::from_raw(process.id().cast_signed()), Signal::SIGKILL)?;
        process.wait()?;
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// Publishes a list, as publishers do: with a new file.
    fn publish(&self, text: &str) -> Result<()> {
        fs::write(self.path("www/new"), text)?;
        fs::rename(self.path("www/new"), self.path("www/list"))?;
        Ok(())
    }

    /// How many requests were answered so.
    fn answered(&self, status: u16) -> usize {
        let log = fs::read_to_string(self.path("access.log")).unwrap_or_default();
        log.matches(&format!("\" {status} ")).count()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["access.log", "error.log"] {
                let text = fs::read_to_string(self.path(log)).unwrap_or_default();
                eprintln!("-- {log} of nginx --\n{text}--");
            }
        }
        let _ = self.stop();
    }
}

/// A CA of our own, `ca.pem`, and a certificate of B's address, with their keys.
fn certificates(dir: &Path) -> Result<()> {
    let openssl = |words: &str| -> Result<()> {
        let output = Command::new("openssl")
            .args(words.split(' '))
            .current_dir(dir)
            .output()
            .context("openssl")?;
        ensure!(
            output.status.success(),
            "openssl {words}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    };
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.pem",
    )?;
    openssl(
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=feeds -keyout server.key -out server.csr",
    )?;
    fs::write(dir.join("san"), format!("subjectAltName=IP:{}\n", Pair::B))?;
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out server.pem",
    )
}

/// A feed of this list, asked for every second.
fn url_feed(path: &str, more: &str) -> String {
    format!(
        "feeds: [{{name: web, type: url, url: '{path}', interval: 1s, timeout: 2s, max_bytes: 4096{more}}}]\n"
    )
}

#[test]
fn a_server_is_asked_again_and_again_and_what_it_breaks_stays() -> Result<()> {
    let pair = Pair::new()?;
    let mut nginx = Nginx::new()?;
    nginx.publish(&list("203.0.113.0/24\n"))?;
    let base = format!("http://user:secret@{}", Pair::B);
    let config = url_feed(&format!("{base}/list?token=secret"), ", private: block");
    // Before the network is there, so to speak.
    let mut daemon = Daemon::start(&pair.a, &crate::programs(), &config)?;
    let waiting = wait(&daemon, "web", "the failure", |feed| {
        feed["error"].is_string()
    })?;
    assert_eq!(waiting["state"], "waiting");
    assert_eq!(waiting["source"], format!("http://{}/list", Pair::B));
    nginx.run(&pair.b)?;
    assert_eq!(reload(&daemon)?, None);
    let first = wait(&daemon, "web", "the list", has(26))?;

    poll("an answer 304", NOTICE, || {
        (nginx.answered(304) >= 2).then_some(())
    })?;
    assert_eq!(nginx.answered(200), 1, "sent once");
    assert_eq!(feed(&daemon, "web")?["changed"], first["changed"]);
    let created = daemon.json(&["show", "feed-web"])?["created"].clone();

    // Another list, by which another host is blocked. B serves it, so it can't be B.
    nginx.publish(&list("203.0.113.0/25\n203.0.113.128/25\n"))?;
    let second = wait(&daemon, "web", "the new list", has(27))?;
    assert_ne!(second["changed"], first["changed"]);
    assert_eq!(daemon.json(&["show", "feed-web"])?["created"], created);

    for trouble in ["broken", "slow"] {
        let error = match trouble {
            "broken" => "the server answers 500",
            _ => "no whole answer within 2 s",
        };
        nginx.publish(&list("203.0.113.1\n"))?;
        fs::write(nginx.path(trouble), "")?;
        let stale = wait(&daemon, "web", error, failed(error))?;
        assert_eq!(stale["entries"], 27);
        fs::remove_file(nginx.path(trouble))?;
        // A reload tries again at once what fails.
        assert_eq!(reload(&daemon)?, None);
        wait(&daemon, "web", "the server to be well", has(26))?;
        nginx.publish(&list("203.0.113.0/25\n203.0.113.128/25\n"))?;
        wait(&daemon, "web", "the list", has(27))?;
    }
    for (text, error) in [
        (
            list(&"# much ado about nothing\n".repeat(500)),
            "is larger than 4096 bytes",
        ),
        (list("<html>\n"), "list:26: "),
        ("# maintenance\n".to_owned(), "the list has no target"),
        ("198.51.100.1\n".to_owned(), "more than 50% are gone"),
    ] {
        nginx.publish(&text)?;
        assert_eq!(reload(&daemon)?, None);
        let stale = wait(&daemon, "web", error, failed(error))?;
        assert_eq!(stale["entries"], 27, "{error}");
    }
    fs::remove_file(nginx.path("www/list"))?;
    assert_eq!(reload(&daemon)?, None);
    wait(
        &daemon,
        "web",
        "the server to have none",
        failed("404 Not Found"),
    )?;
    nginx.stop()?;
    assert_eq!(reload(&daemon)?, None);
    wait(
        &daemon,
        "web",
        "the server to be away",
        failed("Connection refused"),
    )?;

    // Without the server: the last good list from the first moment.
    daemon.stop()?;
    daemon.run(&pair.a)?;
    let kept = feed(&daemon, "web")?;
    assert_eq!(kept["entries"], 27);
    assert!(["kept", "stale"].contains(&kept["state"].as_str().unwrap_or_default()));
    let targets = daemon.json(&["show", "feed-web"])?["targets"].clone();
    assert_eq!(targets.as_array().map(Vec::len), Some(27));
    // And what was kept is still what the server has, if it has.
    nginx.publish(&list("203.0.113.0/25\n203.0.113.128/25\n"))?;
    nginx.run(&pair.b)?;
    assert_eq!(reload(&daemon)?, None);
    wait(&daemon, "web", "the list", has(27))?;
    let log = daemon.log();
    assert!(!log.contains("secret"), "{log}");
    assert!(log.contains("the feed is current again"), "{log}");
    Ok(())
}

#[test]
fn only_who_is_vouched_for_is_believed() -> Result<()> {
    let pair = Pair::new()?;
    let mut nginx = Nginx::new()?;
    nginx.publish(&list(&format!("{}\n10.9.9.9\n", Pair::A)))?;
    nginx.run(&pair.b)?;
    let base = format!("https://{}", Pair::B);
    let ca = format!(", ca: {}", nginx.path("ca.pem").display());
    let config = url_feed(&format!("{base}/list"), "");
    let daemon = Daemon::start(&pair.a, &crate::programs(), &config)?;
    let error = |feed: &Value| feed["error"].is_string() && feed["state"] == "waiting";
    let unknown = wait(&daemon, "web", "the certificate's refusal", error)?;
    let text = unknown["error"].as_str().unwrap_or_default().to_lowercase();
    assert!(text.contains("certificate"), "{unknown}");

    daemon.write_config(&url_feed(&format!("{base}/list"), &ca))?;
    assert_eq!(reload(&daemon)?, None);
    let known = wait(&daemon, "web", "the list", has(25))?;
    // Our own address, and a private one.
    assert_eq!(known["left_out"], 2);

    for (path, is_followed) in [("/moved", true), ("/downgraded", false)] {
        daemon.write_config(&url_feed(&format!("{base}{path}"), &ca))?;
        assert_eq!(reload(&daemon)?, None);
        if is_followed {
            wait(&daemon, "web", "the redirected list", has(25))?;
        } else {
            wait(&daemon, "web", "the refusal", failed("from https to http"))?;
        }
    }
    // The configuration's own refusals.
    daemon.write_config(&url_feed(&base, ", ca: nothing.pem"))?;
    let error = reload(&daemon)?.context("a CA file that is not there was accepted")?;
    assert!(error.contains("cannot read the CA file"), "{error}");
    daemon.write_config(&url_feed(
        &format!("{base}/list"),
        &format!("{ca}, private: refuse"),
    ))?;
    assert_eq!(reload(&daemon)?, None);
    let refused = wait(&daemon, "web", "the refusal", failed("private, RFC 1918"))?;
    assert_eq!(refused["entries"], 25, "{refused}");
    Ok(())
}

#[test]
fn a_feed_that_does_not_fit_leaves_all_else_alone() -> Result<()> {
    let hosts = BlockingPair::new(&format!("limits: {{prefixes: 40}}\n{FILE}"))?;
    let daemon = &hosts.daemon;
    let path = daemon.config_path().with_file_name("own.txt");
    hosts.add(&["192.0.2.9", "--id", "mine"])?;
    fs::write(&path, list(""))?;
    wait(daemon, "own", "the list", has(25))?;
    let more: String = (1..=20).map(|n| format!("203.0.113.{n}\n")).collect();
    fs::write(&path, list(&more))?;
    let stale = wait(
        daemon,
        "own",
        "the refusal",
        failed("cannot be put in force"),
    )?;
    assert_eq!(stale["entries"], 25);
    let mut rules = rules(daemon)?;
    rules.sort_unstable();
    let ids: Vec<&str> = rules.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["feed-own", "mine"]);
    // Its rules are its own business.
    let taken = daemon.blockctl(&["add", "192.0.2.10", "--id", "feed-own"])?;
    assert_eq!(taken.code, 2, "{taken:?}");
    Ok(())
}
