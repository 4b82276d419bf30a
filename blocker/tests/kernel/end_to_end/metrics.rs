//! Metrics of a real daemon, scraped by a real Prometheus: its answers match the traffic, and every
//! expression of the alert rules and of the dashboard has data.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use xtask::hosts::{Daemon, Namespace, Pair, poll};

use crate::blocking_pair::{BlockingPair, PATIENCE, udp};

const LISTEN: &str = "127.0.0.1:9921";
const CONFIG: &str = "metrics: {listen: \"127.0.0.1:9921\"}\nfleet: {endpoints: [\"http://127.0.0.1:1\"], name: a}\n";

/// How long Prometheus may take to start, scrape and evaluate.
const SCRAPED: Duration = Duration::from_secs(60);

/// Where the project's own rules and dashboards are.
fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config")
}

/// Sends a request and gives the head and the body of the answer. HTTP/1.0: nothing is chunked,
/// and the connection ends with the answer.
fn exchange(
    mut stream: impl Read + Write,
    request: &str,
    headers: &str,
) -> Result<(String, String)> {
    write!(
        stream,
        "{request} HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer has no head")?;
    Ok((head.to_owned(), body.to_owned()))
}

fn over_tcp(
    host: &Namespace,
    address: &str,
    request: &str,
    headers: &str,
) -> Result<(String, String)> {
    let stream = host.enter(|| TcpStream::connect(address))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    exchange(stream, request, headers)
}

/// A Prometheus that scrapes a daemon; ends when dropped.
struct Prometheus<'a> {
    process: Child,
    host: &'a Namespace,
    _files: tempfile::TempDir,
}

impl<'a> Prometheus<'a> {
    const LISTEN: &'static str = "127.0.0.1:9090";

    fn start(host: &'a Namespace) -> Result<Self> {
        let files = tempfile::tempdir()?;
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{}]\n\
             scrape_configs: [{{job_name: blocker, static_configs: [{{targets: [{LISTEN:?}]}}]}}]\n",
            project().join("prometheus/blocker.rules.yml").display()
        );
        let path = files.path().join("prometheus.yml");
        fs::write(&path, config)?;
        let log = fs::File::create(files.path().join("log"))?;
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", path.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                files.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={}", Self::LISTEN))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let process = host.spawn(&mut command)?;
        Ok(Self {
            process,
            host,
            _files: files,
        })
    }

    /// What its API answers at a path.
    fn ask(&self, path: &str) -> Result<Value> {
        let (head, body) = over_tcp(self.host, Self::LISTEN, &format!("GET /api/v1/{path}"), "")?;
        ensure!(head.contains(" 200 "), "{path}: {head}\n{body}");
        let answer: Value = serde_json::from_str(&body)?;
        ensure!(answer["status"] == "success", "{path}: {answer}");
        Ok(answer["data"].clone())
    }

    /// The samples that an expression gives.
    fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let data = self.ask(&format!("query?query={}", escaped(expression)))?;
        let samples = data["result"].as_array();
        samples
            .cloned()
            .with_context(|| format!("{expression}: {data}"))
    }

    /// The samples that an expression gives, once it gives some.
    fn wait(&self, expression: &str) -> Result<Vec<Value>> {
        poll(&format!("data of {expression}"), SCRAPED, || {
            self.query(expression)
                .ok()
                .filter(|samples| !samples.is_empty())
        })
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        // Best effort: it ends with its namespace's processes at the latest.
        let _ = kill(
            Pid::from_raw(self.process.id().cast_signed()),
            Signal::SIGKILL,
        );
        let _ = self.process.wait();
    }
}

/// For a query (RFC 3986, 2.1).
fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn value(samples: &[Value]) -> Option<f64> {
    samples.first()?["value"][1].as_str()?.parse().ok()
}

/// The complaints of `promtool check metrics`.
fn lint(text: &str) -> Result<()> {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("`promtool` (package prometheus) cannot be started")?;
    let mut stdin = promtool.stdin.take().context("it has a standard input")?;
    stdin.write_all(text.as_bytes())?;
    drop(stdin);
    let output = promtool.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    if !output.status.success() || !said.is_empty() {
        bail!("{}\n{text}", String::from_utf8_lossy(&said));
    }
    Ok(())
}

/// Names of blocker's metrics in an expression.
fn metrics(expression: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expression.split(|c: char| !is_name(c));
    let ours = words.filter(|word| word.starts_with("blocker_") || word.starts_with("process_"));
    ours.map(str::to_owned).collect()
}

#[test]
fn prometheus_scrapes_and_answers() -> Result<()> {
    let feeds = "feeds: [{name: none, type: file, path: there-is-none.txt}]\n";
    let hosts = BlockingPair::new(&format!("{CONFIG}{feeds}"))?;
    let (host, socket) = (&hosts.pair.a, hosts.daemon.socket());
    // Rules with everything that a series may need: replies, some of them held back, a deadline.
    hosts.add(&[
        &Pair::B.to_string(),
        "--mode",
        "drop",
        "--id",
        "dev01",
        "--for",
        "1h",
    ])?;
    hosts.add(&["192.0.2.0/24", "--mode", "reset", "--id", "forever"])?;
    let prometheus = Prometheus::start(host)?;
    prometheus.wait(r#"blocker_rule_packets_total{rule="dev01"}"#)?;

    let datagram = udp(&hosts.pair.b, Pair::B, Some((Pair::A, 9).into()))?;
    for _ in 0..7 {
        datagram.send(b"?")?;
    }
    hosts.wait_packets("dev01", 7)?;
    let expression = r#"blocker_rule_packets_total{rule="dev01",direction="ingress"}"#;
    poll("7 packets in Prometheus", SCRAPED, || {
        (value(&prometheus.query(expression).ok()?) == Some(7.0)).then_some(())
    })?;
    let bytes =
        prometheus.query(r#"blocker_rule_bytes_total{rule="dev01",direction="ingress"}"#)?;
    assert_eq!(value(&bytes), Some(7.0 * 43.0), "{bytes:?}"); // Ethernet, IP, UDP and one byte

    // Every panel has data.
    let dashboard = fs::read_to_string(project().join("grafana/blocker.json"))?;
    let dashboard: Value = serde_json::from_str(&dashboard)?;
    let panels = dashboard["panels"].as_array().context("it has panels")?;
    let mut evaluated = 0;
    for target in panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array())
        .flatten()
    {
        let expression = target["expr"]
            .as_str()
            .context("a target has an expression")?;
        let expression = expression
            .replace("$instance", ".*")
            .replace("$rule", ".*")
            .replace("$__rate_interval", "1m");
        ensure!(
            !expression.contains('$'),
            "an unknown variable: {expression}"
        );
        prometheus.wait(&expression)?;
        evaluated += 1;
    }
    assert!(evaluated >= 20, "{evaluated}");

    // What alerts look at is there, and they are evaluated without an error.
    let groups = poll("the alert rules' evaluation", SCRAPED, || {
        let groups = prometheus.ask("rules").ok()?;
        let rules = groups["groups"][0]["rules"].as_array()?.clone();
        rules
            .iter()
            .all(|rule| rule["health"] == "ok")
            .then_some(rules)
    })?;
    assert!(groups.len() >= 8, "{groups:?}");
    for rule in &groups {
        let expression = rule["query"].as_str().context("a rule has a query")?;
        for metric in metrics(expression) {
            // There once a rule came fresh from an etcd, which no test here runs; that it is written
            // then, the unit tests show.
            if metric != "blocker_fleet_clock_skew_seconds" {
                prometheus.wait(&metric)?;
            }
        }
        prometheus.query(expression)?;
    }
    // And one goes off when there is a reason.
    hosts.daemon.write_config("interfaces: nonsense\n")?;
    hosts.daemon.reload()?;
    poll("the alert", SCRAPED, || {
        let alerts = prometheus.ask("alerts").ok()?;
        let alerts = alerts["alerts"].as_array()?;
        let is_it = |alert: &Value| alert["labels"]["alertname"] == "BlockerReloadFailed";
        alerts.iter().any(is_it).then_some(())
    })?;

    // The same from the control socket, in either format.
    let (head, text) = exchange(UnixStream::connect(&socket)?, "GET /metrics", "")?;
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    let labels = r#"rule="dev01",owner="api",mode="drop",direction="ingress""#;
    let line = format!("blocker_rule_packets_total{{{labels}}} 7\n");
    assert!(text.contains(&line), "{text}");
    lint(&text)?;
    let accept = "Accept: application/openmetrics-text;version=1.0.0\r\n";
    let (head, text) = exchange(UnixStream::connect(&socket)?, "GET /metrics", accept)?;
    assert!(
        head.contains("application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    assert!(text.ends_with("# EOF\n"), "{text}");
    let (_, text) = exchange(UnixStream::connect(&socket)?, "GET /metrics", "")?;
    assert!(
        text.contains(
            r#"blocker_api_requests_total{method="GET",endpoint="/metrics",code="200"} 2"#
        ),
        "{text}"
    );
    Ok(())
}

#[test]
fn tcp_serves_metrics_and_nothing_else() -> Result<()> {
    let pair = Pair::new()?;
    let daemon = Daemon::start(&pair.a, &crate::programs(), CONFIG)?;
    let ask = |request: &str| over_tcp(&pair.a, LISTEN, request, "");
    let (head, text) = ask("GET /metrics")?;
    assert!(
        head.contains(" 200 ") && head.contains("version=0.0.4"),
        "{head}"
    );
    lint(&text)?;
    let (head, text) = ask("HEAD /metrics")?;
    assert!(head.contains(" 200 ") && text.is_empty(), "{head}\n{text}");
    for (request, code) in [
        ("GET /v1/rules", " 404 "),
        ("GET /", " 404 "),
        ("DELETE /v1/rules", " 404 "),
        ("POST /metrics", " 405 "),
    ] {
        let (head, _) = ask(request)?;
        assert!(head.contains(code), "{request}: {head}");
    }
    // A connection that says nothing keeps nobody else from being answered.
    let silent: Vec<TcpStream> = pair.a.enter(|| {
        (0..8)
            .map(|_| TcpStream::connect(LISTEN))
            .collect::<Result<_, _>>()
    })??;
    assert!(ask("GET /metrics")?.0.contains(" 200 "));
    drop(silent);

    // The port is taken: the second says so, and what to do.
    let error = Daemon::start(&pair.a, &crate::programs(), CONFIG).expect_err("the port is taken");
    let error = format!("{error:#}");
    assert!(
        error.contains("metrics.listen 127.0.0.1:9921") && error.contains("ss -ltnp"),
        "{error}"
    );
    // It needs a restart to change.
    daemon.write_config("")?;
    daemon.reload()?;
    poll("the reload to be refused", PATIENCE, || {
        let status = daemon.json(&["status"]).ok()?;
        let error = status["last_reload"]["error"].as_str()?.to_owned();
        error.contains("metrics").then_some(())
    })?;
    Ok(())
}

#[test]
fn other_addresses_may_come_later_and_are_warned_of() -> Result<()> {
    let pair = Pair::new()?;
    for (address, prefix) in [
        ("10.77.0.1:9921", "10.77.0.1/32"),
        ("[2001:db8:77::1]:9921", "2001:db8:77::1/128"),
    ] {
        let config = format!("metrics: {{listen: {address:?}}}\n");
        let daemon = Daemon::start(&pair.a, &crate::programs(), &config)?;
        pair.a.run(&["ip", "address", "add", prefix, "dev", "lo"])?;
        let (head, _) = over_tcp(&pair.a, address, "GET /metrics", "")?;
        assert!(head.contains(" 200 "), "{head}");
        let log = daemon.log();
        assert!(log.contains("whoever reaches this address"), "{log}");
    }
    Ok(())
}

#[test]
fn the_alert_rules_do_as_their_own_tests_say() -> Result<()> {
    for words in [
        ["check", "rules", "blocker.rules.yml"],
        ["test", "rules", "blocker.rules.test.yml"],
    ] {
        let output = Command::new("promtool")
            .args(words)
            .current_dir(project().join("prometheus"))
            .output()
            .context("`promtool` (package prometheus) cannot be started")?;
        let said = [output.stdout, output.stderr].concat();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&said)
        );
    }
    Ok(())
}
