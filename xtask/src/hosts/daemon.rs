//! A real `blocker` in a namespace, and the `blockctl` that talks to it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::leftovers::{self, Leftover};
use super::{Namespace, Pins, poll};

/// The time limit of a start, in which the kernel verifies and loads the programs.
const START: Duration = Duration::from_secs(60);
/// The time limit of a stop.
const STOP: Duration = Duration::from_secs(10);

/// The two programs under test.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The daemon.
    pub blocker: PathBuf,
    /// The command.
    pub blockctl: PathBuf,
}

/// The output and exit code of a program.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit code; -1 if a signal ended the program.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// This output, if the program succeeded.
    ///
    /// # Errors
    /// The program failed. The error has its output.
    pub fn success(self) -> Result<Self> {
        if self.code != 0 {
            bail!("exit code {}\n{}{}", self.code, self.stdout, self.stderr);
        }
        Ok(self)
    }

    /// The standard output as JSON.
    ///
    /// # Errors
    /// The standard output is not JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("no JSON: {}{}", self.stdout, self.stderr))
    }
}

/// A daemon with its own files and pins. Dropping it stops the daemon and removes files and pins; a
/// panic also prints the daemon's log.
#[derive(Debug)]
pub struct Daemon {
    programs: Programs,
    namespace: PathBuf,
    name: String,
    files: TempDir,
    pins: Pins,
    process: Option<Child>,
    /// The value of `--log-format`.
    pub log_format: &'static str,
}

impl Daemon {
    /// Starts a daemon in a namespace and returns once the daemon answers.
    ///
    /// `config` is YAML, which is appended to settings of the daemon's own files: `control`,
    /// `state_dir` and `pin_dir`.
    ///
    /// # Errors
    /// The daemon ends at once, or does not answer in time. The error has its log.
    pub fn start(host: &Namespace, programs: &Programs, config: &str) -> Result<Self> {
        let mut daemon = Self::prepare(host, programs, config)?;
        daemon.run(host)?;
        Ok(daemon)
    }

    /// As [`Daemon::start`], but does not start the daemon yet.
    ///
    /// # Errors
    /// The daemon's files cannot be written.
    pub fn prepare(host: &Namespace, programs: &Programs, config: &str) -> Result<Self> {
        let files = tempfile::Builder::new().prefix("blocker-test-").tempdir()?;
        leftovers::made(Leftover::Directory(files.path().to_owned()));
        let pins = Pins::new()?;
        let daemon = Self {
            programs: programs.clone(),
            namespace: host.path(),
            name: host.name().to_owned(),
            files,
            pins,
            process: None,
            log_format: "auto",
        };
        daemon.write_config(config)?;
        Ok(daemon)
    }

    /// Starts the daemon, also after it was stopped or killed, and returns once it answers.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn run(&mut self, host: &Namespace) -> Result<()> {
        debug_assert_eq!(
            self.namespace,
            host.path(),
            "a daemon stays where it was prepared"
        );
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())?;
        let mut command = Command::new(&self.programs.blocker);
        command
            .arg("run")
            .arg("--config")
            .arg(self.config_path())
            .args(["--log-format", self.log_format])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let process = host.spawn(&mut command)?;
        leftovers::made(Leftover::Process(process.id().cast_signed()));
        self.process = Some(process);
        let answers = poll("the daemon to answer", START, || {
            match self.process.as_mut().map(Child::try_wait) {
                Some(Ok(None)) => ask(&self.socket()).then_some(true),
                _ => Some(false),
            }
        });
        match answers {
            Ok(true) => Ok(()),
            Ok(false) => bail!("blocker ended at once; it said:\n{}", self.log()),
            Err(error) => Err(error.context(format!("blocker said:\n{}", self.log()))),
        }
    }

    /// Replaces the configuration file. The next start or reload reads it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_config(&self, config: &str) -> Result<()> {
        let own = format!(
            "control: {{socket: {}}}\nstate_dir: {}\npin_dir: {}\n",
            self.socket().display(),
            self.files.path().join("state").display(),
            self.pins().display()
        );
        fs::write(self.config_path(), own + config).context("the configuration cannot be written")
    }

    /// Runs `blockctl` against the daemon.
    ///
    /// # Errors
    /// `blockctl` cannot be started. Its failure is part of the result.
    pub fn blockctl(&self, arguments: &[&str]) -> Result<Output> {
        output(self.blockctl_command().args(arguments))
    }

    /// Runs `blockctl -o json` against the daemon, and returns its output.
    ///
    /// # Errors
    /// `blockctl` fails, or its output is not JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let output = output(self.blockctl_command().args(["-o", "json"]).args(arguments))?;
        output
            .success()
            .with_context(|| format!("blockctl {}", arguments.join(" ")))?
            .json()
    }

    /// The command `blockctl` with the daemon's socket. The caller adds arguments.
    pub fn blockctl_command(&self) -> Command {
        let mut command = Command::new(&self.programs.blockctl);
        command
            .env("BLOCKER_SOCKET", self.socket())
            .env_remove("SSH_CONNECTION") // the session that runs the tests is not protected
            .stdin(Stdio::null());
        command
    }

    /// Runs the daemon's program with another verb, such as `unload`, on this configuration.
    ///
    /// # Errors
    /// The program cannot be started. Its failure is part of the result.
    pub fn blocker(&self, host: &Namespace, verb: &str) -> Result<Output> {
        let mut command = Command::new(&self.programs.blocker);
        command.arg(verb).arg("--config").arg(self.config_path());
        host.enter(|| output(&mut command))?
    }

    /// Tells the daemon to read its configuration again.
    ///
    /// # Errors
    /// The daemon does not run.
    pub fn reload(&self) -> Result<()> {
        self.signal(Signal::SIGHUP)
    }

    /// Stops the daemon by SIGTERM, as systemd does, and waits for its end.
    ///
    /// # Errors
    /// The daemon does not run, or does not stop in time.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
            .with_context(|| format!("blocker said:\n{}", self.log()))
    }

    /// Kills the daemon by SIGKILL.
    ///
    /// # Errors
    /// The daemon does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait()?;
        Ok(())
    }

    /// The daemon's process id, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// The daemon's output so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The daemon's control socket.
    pub fn socket(&self) -> PathBuf {
        self.files.path().join("control.sock")
    }

    /// The daemon's state directory.
    pub fn state(&self) -> PathBuf {
        self.files.path().join("state")
    }

    /// The daemon's pin directory.
    pub fn pins(&self) -> &Path {
        self.pins.path()
    }

    /// The daemon's configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.files.path().join("blocker.yaml")
    }

    fn log_path(&self) -> PathBuf {
        self.files.path().join("log")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().context("the daemon does not run")?;
        kill(Pid::from_raw(pid.cast_signed()), signal)
            .with_context(|| format!("{signal} cannot be sent"))
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        let process = self.process.as_mut().context("the daemon does not run")?;
        let status = poll("the daemon to end", STOP, || {
            process.try_wait().ok().flatten()
        })?;
        leftovers::gone(&Leftover::Process(process.id().cast_signed()));
        self.process = None;
        Ok(status)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("-- log of blocker in {} --\n{}--", self.name, self.log());
        }
        if self.process.is_some() && self.stop().is_err() {
            let _ = self.kill();
        }
        leftovers::gone(&Leftover::Directory(self.files.path().to_owned()));
    }
}

/// Runs a command and waits for its end.
pub fn output(command: &mut Command) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("`{program}` cannot be started"))?;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Whether a daemon answers at a socket.
fn ask(socket: &Path) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(
            b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        )?;
        let mut start = [0; 12];
        stream.read_exact(&mut start)?;
        Ok(start == *b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}
