//! `cargo xtask fleet`: measures the load of a large fleet on etcd.
//!
//! A real etcd of three members, with TLS, in a network namespace, and many hosts in one process,
//! which follow it with the daemon's code but without a datapath.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::build::{FLEET, target_directory};
use crate::command::{self, cargo, line, run as run_command, say};
use crate::etcd::{self, MEMBERS};
use crate::hosts::{Namespace, poll};
use crate::setup;

const TASK: &str = "fleet";
/// The members' address.
const ADDRESS: &str = "127.0.0.1";
/// How long etcd may take to elect a leader on a busy machine.
const START: Duration = Duration::from_secs(60);

/// Columns of the table: name, field, digits.
const COLUMNS: [(&str, &str, usize); 13] = [
    ("hosts", "hosts", 0),
    ("rules before", "rules", 0),
    ("enforced: median, ms", "enforced_median_ms", 1),
    ("99 %", "enforced_p99_ms", 1),
    ("all", "enforced_max_ms", 1),
    ("all reported, ms", "reported_ms", 0),
    ("leader killed: all enforce again, s", "recovered_s", 1),
    ("etcd CPU, ms a rule", "cpu_rule_ms", 0),
    ("ms a second, idle", "cpu_idle_ms", 1),
    ("ms, leader killed", "cpu_recovery_ms", 0),
    ("etcd RSS, MiB", "rss_mib", 0),
    ("database, MiB", "db_mib", 1),
    ("all hosts' RSS, MiB", "client_rss_mib", 0),
];

/// Builds, then measures for each number of hosts.
///
/// # Errors
/// The set-up fails, the process is not root, or a part does not build or run.
pub(crate) fn run(hosts: &[usize], rules: usize) -> Result<()> {
    setup::install(setup::Purpose::Test)?;
    ensure!(
        command::is_root(),
        "run this as root: it makes a network namespace"
    );
    let mut build = cargo();
    build.args(["build", "--package", "blocker", "--example", "fleet", FLEET]);
    run_command(TASK, &mut build)?;
    let program = target_directory().join("debug/examples/fleet");
    let mut rows = Vec::new();
    for hosts in hosts {
        say(TASK, &format!("{hosts} hosts"));
        rows.push(measure(&program, *hosts, rules)?);
    }
    let heads: Vec<&str> = COLUMNS.iter().map(|(head, ..)| *head).collect();
    println!(
        "\n| {} |\n|{}",
        heads.join(" | "),
        "---|".repeat(heads.len())
    );
    for row in rows {
        let cell = |(_, field, digits): &(&str, &str, usize)| {
            format!("{:.digits$}", row[*field].as_f64().unwrap_or(f64::NAN))
        };
        let cells: Vec<String> = COLUMNS.iter().map(cell).collect();
        println!("| {} |", cells.join(" | "));
    }
    Ok(())
}

/// A running etcd; stopped when dropped.
struct Etcd {
    members: Vec<Child>,
    files: TempDir,
    namespace: Namespace,
}

impl Etcd {
    fn start() -> Result<Self> {
        let namespace = Namespace::new("fleet")?;
        let files = tempfile::Builder::new()
            .prefix("blocker-fleet-")
            .tempdir()?;
        let users = ["host".to_owned()];
        let mut certificates = etcd::certificates(files.path(), ADDRESS, &users)?;
        certificates.stdout(Stdio::null()).stderr(Stdio::null());
        run_command(TASK, &mut certificates)?;
        let mut etcd = Self {
            members: Vec::new(),
            files,
            namespace,
        };
        for member in 0..MEMBERS {
            etcd.member(member)?;
        }
        let endpoint = etcd::endpoints(ADDRESS).swap_remove(0);
        poll("etcd to have a leader", START, || {
            let mut health = Command::new("etcdctl");
            health
                .env("ETCDCTL_API", "3")
                .args(["endpoint", "health", "--endpoints", &endpoint]);
            for (flag, file) in [
                ("--cacert", "ca.pem"),
                ("--cert", "host.pem"),
                ("--key", "host.key"),
            ] {
                health.arg(flag).arg(etcd.path(file));
            }
            let output = etcd.namespace.enter(|| health.output()).ok()?.ok()?;
            output.status.success().then_some(())
        })?;
        let config = format!(
            "fleet: {{endpoints: {:?}, name: host, tls: {{ca: {}, cert: {}, key: {}}}}}\n",
            etcd::endpoints(ADDRESS),
            etcd.path("ca.pem").display(),
            etcd.path("host.pem").display(),
            etcd.path("host.key").display(),
        );
        fs::write(etcd.path("fleet.yaml"), config)?;
        Ok(etcd)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.files.path().join(name)
    }

    fn member(&mut self, member: usize) -> Result<()> {
        let mut command = many_files("etcd");
        etcd::member(&mut command, self.files.path(), ADDRESS, member, "new");
        command
            .args(["--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.members.push(self.namespace.spawn(&mut command)?);
        Ok(())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            // It may have been killed on purpose.
            let _ = member.kill();
            let _ = member.wait();
        }
    }
}

/// A command with the hard limit of open files: each host has a connection.
fn many_files(program: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n $(ulimit -Hn); exec \"$@\"", "sh", program]);
    command
}

fn measure(program: &Path, hosts: usize, rules: usize) -> Result<Value> {
    let etcd = Etcd::start()?;
    let pids: Vec<String> = etcd
        .members
        .iter()
        .map(|member| member.id().to_string())
        .collect();
    let program = program
        .to_str()
        .context("the program's path is not UTF-8")?;
    let mut command = many_files(program);
    command
        .args(["--hosts", &hosts.to_string(), "--rules", &rules.to_string()])
        .args(["--members", &pids.join(","), "--config"])
        .arg(etcd.path("fleet.yaml"))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = etcd.namespace.enter(|| command.output())??;
    ensure!(
        output.status.success(),
        "`{}` failed ({})",
        line(&command),
        output.status
    );
    serde_json::from_slice(&output.stdout).context("the simulation printed no figures")
}
