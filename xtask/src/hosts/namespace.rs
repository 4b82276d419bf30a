//! Network namespaces, and running code and commands in them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

use super::leftovers::{self, Leftover, NAMESPACES};

/// A named network namespace, which is deleted when this is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace that does not forward, with loopback up and IPv6 addresses usable at once.
    /// `label` is a part of its name, for people who read it.
    ///
    /// # Errors
    /// This process is not root, or `ip` is missing.
    pub fn new(label: &str) -> Result<Self> {
        let name = leftovers::unique(label);
        leftovers::made(Leftover::Namespace(name.clone()));
        let namespace = Self { name };
        let output = Command::new("ip")
            .args(["netns", "add", &namespace.name])
            .output()
            .context("`ip` (package iproute2) cannot be started")?;
        if !output.status.success() {
            bail!(
                "`ip netns add {}` failed: {}",
                namespace.name,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        // A new namespace inherits the IPv4 settings of the initial one (`devconf_inherit_init_net`).
        // There Docker may have turned on forwarding, and the distribution reverse path filtering.
        namespace.sysctl("net/ipv4/ip_forward", "0")?;
        for device in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0")?;
        }
        // Duplicate address detection would make an address unusable for a second or two.
        for device in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv6/conf/{device}/accept_dad"), "0")?;
        }
        namespace.run(&["ip", "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// The namespace's name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file by which the namespace is opened.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMESPACES).join(&self.name)
    }

    /// Runs a closure in the namespace, on a thread of its own. Sockets that the closure opens, and
    /// processes that it starts, stay in the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        let file =
            File::open(&path).with_context(|| format!("{} cannot be opened", path.display()))?;
        let result = std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET)?;
                Ok::<_, nix::Error>(act())
            });
            inside.join()
        });
        match result {
            Ok(entered) => entered.with_context(|| format!("{} cannot be entered", self.name)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Starts a process in the namespace. A guard must end it: it does not get the terminal's Ctrl-C.
    ///
    /// # Errors
    /// The process cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        use std::os::unix::process::CommandExt;
        command.process_group(0);
        let program = command.get_program().to_string_lossy().into_owned();
        self.enter(|| command.spawn())?
            .with_context(|| format!("`{program}` cannot be started"))
    }

    /// Runs a command in the namespace and returns its output.
    ///
    /// # Errors
    /// The command cannot be started, or fails. The error then has its standard error.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let (program, arguments) = words.split_first().ok_or_else(|| anyhow!("no command"))?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        let output = self
            .enter(|| command.output())?
            .with_context(|| format!("`{program}` cannot be started"))?;
        if !output.status.success() {
            bail!(
                "`{}` in {} failed: {}",
                words.join(" "),
                self.name,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Sets a sysctl of the network; `name` is its path under `/proc/sys`.
    ///
    /// # Errors
    /// The kernel has no sysctl of that name, or refuses the value.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(name);
        self.enter(|| fs::write(&path, value))?
            .with_context(|| format!("{} cannot be set to {value}", path.display()))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        leftovers::undo(&Leftover::Namespace(self.name.clone()));
    }
}
