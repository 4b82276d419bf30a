//! What the service manager is told, as `sd_notify(3)` has it.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

mod lab;
mod scene;

use lab::{Daemon, Pair, Programs};
use scene::PATIENCE;

/// A daemon that is killed when dropped.
struct Killed(Child);

impl Killed {
    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.0.id())?), signal)?)
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a message that has this line.
fn wait_told(manager: &UnixDatagram, line: &str) -> Result<()> {
    let mut message = [0; 4096];
    loop {
        let length = manager
            .recv(&mut message)
            .with_context(|| format!("the service manager was not told {line}"))?;
        let text = String::from_utf8_lossy(&message[..length]).into_owned();
        if text.lines().any(|told| told == line) {
            return Ok(());
        }
    }
}

/// The watchdog asks whether the daemon answers. A reload that takes its time is none of its business:
/// here the configuration file is one that nobody writes yet.
#[test]
fn the_watchdog_is_told_that_all_is_well_while_a_reload_takes_its_time() -> Result<()> {
    let pair = Pair::new()?;
    let daemon = Daemon::prepare(&pair.a, &Programs::under_test()?, "")?;
    let files = tempfile::tempdir()?;
    let path = files.path().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    // Also how long nothing may be told.
    manager.set_read_timeout(Some(PATIENCE))?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_blocker"));
    command.arg("run").arg("--config").arg(daemon.config_path());
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "300000");
    let mut child = Killed(pair.a.enter(|| command.spawn())??);
    wait_told(&manager, "READY=1")?;
    wait_told(&manager, "WATCHDOG=1")?;

    let config = fs::read(daemon.config_path())?;
    fs::remove_file(daemon.config_path())?;
    mkfifo(&daemon.config_path(), Mode::S_IRUSR | Mode::S_IWUSR)?;
    child.signal(Signal::SIGHUP)?;
    wait_told(&manager, "RELOADING=1")?;
    for _ in 0..5 {
        wait_told(&manager, "WATCHDOG=1")?;
    }
    // Now somebody does.
    fs::write(daemon.config_path(), config)?;
    wait_told(&manager, "READY=1")?;
    child.signal(Signal::SIGTERM)?;
    wait_told(&manager, "STOPPING=1")?;
    assert!(child.0.wait()?.success());
    Ok(())
}
