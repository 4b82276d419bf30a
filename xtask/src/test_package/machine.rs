//! A Debian system, booted by systemd in a container, in which the packages are installed.
//!
//! It uses the host's kernel and a network namespace of the laboratory; its files are temporary.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::build::target_directory;
use crate::command::{line, run, say};
use crate::hosts::{Namespace, poll};

use super::TASK;

const RELEASE: &str = "bookworm";
/// Packages of the system. Debian's rpm installs the RPM, without its dependencies.
const PACKAGES: &str = "systemd,dbus,iproute2,procps,rpm";
/// Time limit of a boot, on a busy machine.
const BOOT: Duration = Duration::from_secs(60);

/// systemd does not mount the bpf file system in a container.
const BPFFS: &str = "[Unit]\nDefaultDependencies=no\nBefore=local-fs.target\n\
    [Service]\nType=oneshot\nRemainAfterExit=yes\n\
    ExecStart=/bin/mount -t bpf -o mode=0700 bpf /sys/fs/bpf\n\
    [Install]\nWantedBy=local-fs.target\n";

/// The result of a command in the machine.
pub(super) struct Ran {
    pub(super) code: i32,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// A booted machine. Dropping it switches it off and removes its files.
pub(super) struct Machine {
    root: PathBuf,
    network: PathBuf,
    container: Child,
    /// The process id of its init.
    init: u32,
}

impl Machine {
    /// Boots a new one whose network is `network`.
    ///
    /// # Errors
    /// The system cannot be made, or does not boot.
    pub(super) fn boot(network: &Namespace) -> Result<Self> {
        let pristine = pristine()?;
        let root = target_directory().join("package/machine");
        remove(&root)?;
        run(
            TASK,
            Command::new("cp")
                .arg("--archive")
                .arg(&pristine)
                .arg(&root),
        )?;
        let network = network.path();
        let mut machine = Self {
            container: container(&root, &network)?,
            root,
            network,
            init: 0,
        };
        machine.wait_up()?;
        Ok(machine)
    }

    /// Waits until systemd has started everything.
    fn wait_up(&mut self) -> Result<()> {
        let container = self.container.id();
        let children = format!("/proc/{container}/task/{container}/children");
        self.init = poll("the machine's first process", BOOT, || {
            let children = fs::read_to_string(&children).ok()?;
            let child = children.split_whitespace().next()?.parse().ok()?;
            let comm = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
            (comm.trim() == "systemd").then_some(child)
        })?;
        poll("the machine to be up", BOOT, || {
            let state = self.run(&["systemctl", "is-system-running"]).ok()?.stdout;
            ["running", "degraded"]
                .contains(&state.trim())
                .then_some(())
        })
        .with_context(|| format!("see {}", self.root.with_extension("console").display()))
    }

    /// Reboots it; its files stay.
    ///
    /// # Errors
    /// It does not shut down, or does not boot.
    pub(super) fn reboot(&mut self) -> Result<()> {
        // The connection to the service manager may break before the reply.
        self.run(&["systemctl", "poweroff"])?;
        poll("the machine to be off", BOOT, || {
            self.container.try_wait().ok().flatten()
        })?;
        self.container = container(&self.root, &self.network)?;
        self.wait_up()
    }

    /// The host's path of a file of the machine.
    pub(super) fn file(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Runs a command in the machine as root.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn run(&self, words: &[&str]) -> Result<Ran> {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init.to_string(), "--all", "--", "env"])
            .args(["--ignore-environment", "DEBIAN_FRONTEND=noninteractive"])
            .arg("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .args(words)
            .stdin(Stdio::null());
        let output = command.output().context("nsenter cannot be started")?;
        Ok(Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// As [`Machine::run`], but the command must succeed. Returns its output.
    ///
    /// # Errors
    /// It fails.
    pub(super) fn ok(&self, words: &[&str]) -> Result<String> {
        let ran = self.run(words)?;
        ensure!(
            ran.code == 0,
            "`{}` failed ({}): {}{}",
            words.join(" "),
            ran.code,
            ran.stdout,
            ran.stderr
        );
        Ok(ran.stdout)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.container.id()) {
            // It switches the machine off.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let ended = poll("the machine to be off", BOOT, || {
            self.container.try_wait().ok().flatten()
        });
        if let Err(error) = ended {
            say(TASK, &format!("{error:#}"));
            let _gone = self.container.kill();
            let _gone = self.container.wait();
        }
        if let Err(error) = remove(&self.root) {
            say(TASK, &format!("{error:#}"));
        }
    }
}

/// Starts the container; its console's output goes to a file next to its root directory.
fn container(root: &Path, network: &Path) -> Result<Child> {
    let console = OpenOptions::new()
        .create(true)
        .append(true)
        .open(root.with_extension("console"))?;
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM", "systemd-nspawn", "--quiet"])
        .args(["--register=no", "--keep-unit", "--capability=all"])
        .arg("--system-call-filter=bpf perf_event_open")
        .arg(format!("--network-namespace-path={}", network.display()))
        .arg("--directory")
        .arg(root)
        .arg("--boot")
        .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "1")
        .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console);
    say(TASK, &line(&command));
    command.spawn().context("setpriv cannot be started")
}

/// A pristine system, made once.
fn pristine() -> Result<PathBuf> {
    let name = format!("{RELEASE},{PACKAGES}");
    let root = target_directory().join("package").join(name);
    if root.exists() {
        return Ok(root);
    }
    // An incomplete one must not be used.
    let begun = root.with_extension("begun");
    remove(&begun)?;
    let mut command = Command::new("debootstrap");
    command
        .args(["--variant=minbase", &format!("--include={PACKAGES}")])
        .arg(RELEASE)
        .arg(&begun)
        .env("PATH", crate::command::search_path());
    run(TASK, &mut command)?;
    fs::write(begun.join("etc/machine-id"), "")?;
    fs::write(begun.join("etc/systemd/system/bpffs.service"), BPFFS)?;
    let mut enable = Command::new("systemctl");
    enable
        .arg("--root")
        .arg(&begun)
        .args(["enable", "bpffs.service"]);
    run(TASK, &mut enable)?;
    fs::rename(&begun, &root)?;
    Ok(root)
}

fn remove(root: &Path) -> Result<()> {
    if !root.exists() {
        return Ok(());
    }
    // Removing it would also empty what is mounted in it.
    let mounts = fs::read_to_string("/proc/mounts")?;
    if mounts.contains(&*root.to_string_lossy()) {
        bail!("{} has something mounted in it", root.display());
    }
    fs::remove_dir_all(root).with_context(|| format!("removing {}", root.display()))
}
