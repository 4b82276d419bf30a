//! A real etcd of three members, with TLS and RBAC as `docs/fleet.md` sets them up, and hosts around
//! it: namespaces on one bridge, each with a daemon that follows it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;
use xtask::etcd::{self, MEMBERS};
use xtask::hosts::{Daemon, Namespace, Output, Programs, join, poll};

/// Where etcd and the operator are.
pub(crate) const CENTRE: &str = "10.90.0.1";
/// Remotes to block, at the centre.
pub(crate) const REMOTES: [&str; 2] = ["10.90.0.250", "10.90.0.251"];
/// How long a normally fast step may take on a busy machine; covers an election and a daemon's pause
/// between attempts.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How many daemons start at once.
const AT_ONCE: usize = 2;

/// What is set up once in etcd, as an administrator would.
const ROLES: &str = include_str!("roles.sh");

/// The hosts.
pub(crate) struct Fleet {
    /// The hosts; their daemons end before their namespaces.
    pub(crate) hosts: Vec<Host>,
    members: Vec<Option<Child>>,
    pub(crate) centre: Namespace,
    files: TempDir,
    programs: Programs,
}

/// A host of the fleet.
pub(crate) struct Host {
    pub(crate) daemon: Daemon,
    pub(crate) namespace: Namespace,
    pub(crate) name: String,
}

/// A host that is told nothing special.
pub(crate) fn plain(_host: usize) -> &'static str {
    ""
}

impl Fleet {
    /// Makes etcd and so many hosts, `web1`, `web2`, …, of which the first `readonly` may not report
    /// themselves. `more` is what their section `fleet` has besides.
    pub(crate) fn new(
        hosts: usize,
        readonly: usize,
        more: fn(usize) -> &'static str,
    ) -> Result<Self> {
        let centre = Namespace::new("etcd")?;
        centre.run(&["ip", "link", "add", "br0", "type", "bridge"])?;
        centre.run(&["ip", "link", "set", "br0", "up"])?;
        for address in [CENTRE].iter().chain(&REMOTES) {
            let address = format!("{address}/16");
            centre.run(&["ip", "address", "add", &address, "dev", "br0"])?;
        }
        let files = tempfile::Builder::new()
            .prefix("blocker-fleet-")
            .tempdir()?;
        let mut fleet = Self {
            hosts: Vec::new(),
            members: (0..MEMBERS).map(|_| None).collect(),
            centre,
            files,
            programs: crate::programs(),
        };
        fleet.certificates(hosts)?;
        for member in 0..MEMBERS {
            fleet.start(member, "new")?;
        }
        poll("etcd to have a leader", PATIENCE, || {
            fleet.etcdctl("root", &["endpoint", "health"]).ok()
        })?;
        fleet.roles(hosts, readonly)?;
        fleet.operator()?;
        let made = (1..=hosts).map(|host| fleet.namespace(host));
        let namespaces = made.collect::<Result<Vec<_>>>()?;
        let mut hosts = (1..).zip(namespaces);
        // Each verifies and loads its programs first, which keeps a processor busy.
        loop {
            let some: Vec<(usize, Namespace)> = hosts.by_ref().take(AT_ONCE).collect();
            if some.is_empty() {
                break;
            }
            let started: Vec<Result<Host>> = std::thread::scope(|scope| {
                let start = |(host, namespace)| {
                    let fleet = &fleet;
                    scope.spawn(move || fleet.daemon(host, namespace, more(host)))
                };
                let threads: Vec<_> = some.into_iter().map(start).collect();
                let ended = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
                ended
                    .map(|host| host.expect("a start does not panic"))
                    .collect()
            });
            fleet
                .hosts
                .extend(started.into_iter().collect::<Result<Vec<_>>>()?);
        }
        fleet.wait_for("all hosts to follow", |fleet| {
            fleet.hosts.iter().all(|host| {
                host.state()
                    .is_ok_and(|state| state["state"] == "following")
            })
        })?;
        Ok(fleet)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// An authority, a certificate for etcd's members, one for each user.
    fn certificates(&self, hosts: usize) -> Result<()> {
        let users = (1..=hosts).map(|host| format!("web{host}"));
        let users: Vec<String> = ["root", "operator"]
            .map(String::from)
            .into_iter()
            .chain(users)
            .collect();
        let mut command = etcd::certificates(self.files.path(), CENTRE, &users)?;
        run(&mut command).map(drop)
    }

    fn roles(&self, hosts: usize, readonly: usize) -> Result<()> {
        let script = self.path("roles.sh");
        fs::write(&script, ROLES)?;
        let names = (1 + readonly..=hosts).map(|host| format!("web{host}"));
        let readonly = (1..=readonly).map(|host| format!("web{host}:readonly"));
        let mut command = Command::new("sh");
        command
            .arg(&script)
            .args(readonly.chain(names))
            .current_dir(self.files.path());
        command
            .env("ETCDCTL_API", "3")
            .env("ETCDCTL_ENDPOINTS", self.endpoints().join(","));
        for (name, file) in [
            ("CACERT", "ca.pem"),
            ("CERT", "root.pem"),
            ("KEY", "root.key"),
        ] {
            command.env(format!("ETCDCTL_{name}"), self.path(file));
        }
        self.centre.enter(|| run(&mut command))??;
        Ok(())
    }

    /// What `blockctl fleet` needs.
    fn operator(&self) -> Result<()> {
        let text = format!("fleet: {{{}, name: operator}}\n", self.section("operator"));
        Ok(fs::write(self.path("fleet.yaml"), text)?)
    }

    fn section(&self, user: &str) -> String {
        format!(
            "endpoints: {:?}, tls: {{ca: {}, cert: {}, key: {}}}",
            self.endpoints(),
            self.path("ca.pem").display(),
            self.path(&format!("{user}.pem")).display(),
            self.path(&format!("{user}.key")).display()
        )
    }

    fn endpoints(&self) -> Vec<String> {
        etcd::endpoints(CENTRE)
    }

    fn namespace(&self, host: usize) -> Result<Namespace> {
        let namespace = Namespace::new(&format!("w{host}"))?;
        let port = format!("port{host}");
        join((&namespace, "eth0"), (&self.centre, &port))?;
        self.centre
            .run(&["ip", "link", "set", &port, "master", "br0"])?;
        let address = format!("10.90.1.{host}/16");
        namespace.run(&["ip", "address", "add", &address, "dev", "eth0"])?;
        Ok(namespace)
    }

    fn daemon(&self, host: usize, namespace: Namespace, more: &str) -> Result<Host> {
        let name = format!("web{host}");
        let config = format!(
            "limits: {{prefixes: 1000, prefixes_v6: 1000, rules: 64, flows: 64}}\n\
             fleet: {{{}, name: {name}, labels: {{role: web}}{more}}}\n",
            self.section(&name)
        );
        Ok(Host {
            daemon: Daemon::start(&namespace, &self.programs, &config)?,
            namespace,
            name,
        })
    }

    /// Starts a member; `state` is `new`, or `existing` for one that was killed.
    pub(crate) fn start(&mut self, member: usize, state: &str) -> Result<()> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path(&format!("m{member}.log")))?;
        let mut command = Command::new("etcd");
        etcd::member(&mut command, self.files.path(), CENTRE, member, state);
        command
            .args(["--log-level", "warn"])
            // Nothing here outlives the machine; the gateway would pass for the member itself.
            .args(["--unsafe-no-fsync", "--enable-grpc-gateway=false"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.members[member] = Some(self.centre.spawn(&mut command)?);
        Ok(())
    }

    /// Kills a member, as by `kill -9`.
    pub(crate) fn kill(&mut self, member: usize) -> Result<()> {
        let mut child = self.members[member].take().context("the member runs")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// The member that leads.
    pub(crate) fn leader(&self) -> Result<usize> {
        let status = self.etcdctl("root", &["endpoint", "status", "-w", "json"])?;
        let status: Value = serde_json::from_str(&status)?;
        let leads = |m: &&Value| m["Status"]["leader"] == m["Status"]["header"]["member_id"];
        let leader = status.as_array().and_then(|all| all.iter().find(leads));
        let endpoint = leader
            .and_then(|m| m["Endpoint"].as_str())
            .context("a leader")?;
        self.endpoints()
            .iter()
            .position(|e| e == endpoint)
            .context("a member")
    }

    /// Runs `etcdctl` as a user of etcd's, against the members that run.
    pub(crate) fn etcdctl(&self, user: &str, arguments: &[&str]) -> Result<String> {
        let endpoints = self.endpoints().into_iter().zip(&self.members);
        let endpoints: Vec<String> = endpoints
            .filter(|(_, member)| member.is_some())
            .map(|(e, _)| e)
            .collect();
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &endpoints.join(","), "--command-timeout=10s"])
            .arg("--cacert")
            .arg(self.path("ca.pem"))
            .arg("--cert")
            .arg(self.path(&format!("{user}.pem")))
            .arg("--key")
            .arg(self.path(&format!("{user}.key")))
            .args(arguments);
        self.centre.enter(|| run(&mut command))?
    }

    /// `blockctl fleet` at the centre.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.blockctl);
        command
            .arg("fleet")
            .arg("--config")
            .arg(self.path("fleet.yaml"))
            .args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub(crate) fn fleet(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command(arguments);
        let output = self.centre.enter(|| command.output())??;
        Ok(Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs it with `-o json`; it must succeed.
    pub(crate) fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.fleet(&[&["-o", "json"], arguments].concat())?;
        output
            .success()
            .with_context(|| format!("blockctl fleet {}", arguments.join(" ")))?
            .json()
    }

    /// Waits until it is so.
    pub(crate) fn wait_for(
        &self,
        what: &str,
        mut so: impl FnMut(&Self) -> bool,
    ) -> Result<Duration> {
        let since = Instant::now();
        let waited = poll(what, PATIENCE, || so(self).then(|| since.elapsed()));
        waited.with_context(|| {
            let state = |host: &Host| format!("{}: {:?}", host.name, host.state().ok());
            self.hosts.iter().map(state).collect::<Vec<_>>().join("\n")
        })
    }

    /// Waits until every host has exactly these rules of the fleet's.
    pub(crate) fn wait_rules(&self, ids: &[&str]) -> Result<Duration> {
        self.wait_for(&format!("all hosts to have {ids:?}"), |fleet| {
            fleet
                .hosts
                .iter()
                .all(|host| host.rules().is_ok_and(|rules| rules == ids))
        })
    }
}

impl Host {
    /// What its daemon says of the fleet.
    pub(crate) fn state(&self) -> Result<Value> {
        Ok(self.daemon.json(&["status"])?["fleet"].clone())
    }

    /// The ids of the fleet's rules in force there.
    pub(crate) fn rules(&self) -> Result<Vec<String>> {
        let list = self.daemon.json(&["list"])?;
        let rules = list["rules"].as_array().context("rules")?;
        let fleets = rules.iter().filter(|rule| rule["owner"] == "fleet");
        Ok(fleets
            .filter_map(|rule| rule["id"].as_str().map(String::from))
            .collect())
    }

    /// Takes its cable out, or puts it back.
    pub(crate) fn cable(&self, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        self.namespace
            .run(&["ip", "link", "set", "eth0", state])
            .map(drop)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for member in 0..MEMBERS {
                let log = fs::read_to_string(self.path(&format!("m{member}.log")));
                eprintln!("-- log of etcd {member} --\n{}--", log.unwrap_or_default());
            }
        }
        // The daemons first: they say goodbye.
        self.hosts.clear();
        for child in self.members.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output =
        output.with_context(|| format!("{:?} cannot be started", command.get_program()))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a file is there: what tells that a command runs.
pub(crate) fn there(path: &Path) -> Option<()> {
    path.exists().then_some(())
}
