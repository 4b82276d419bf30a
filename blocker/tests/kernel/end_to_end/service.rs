//! Notifications to the service manager, as `sd_notify(3)` defines them.

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use xtask::hosts::{Daemon, Killed, Pair};

use super::datagrams::{assert_tight, datagrams, wait_passing};
use crate::blocking_pair::PATIENCE;

/// Starts a daemon that notifies `manager`, and gives it with the directory of its socket.
fn start(pair: &Pair, daemon: &Daemon) -> Result<(Killed, UnixDatagram, tempfile::TempDir)> {
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
    let child = Killed(pair.a.enter(|| command.spawn())??);
    Ok((child, manager, files))
}

/// Waits for the daemon's `BARRIER=1`: its notifications count as received when the descriptor that this
/// gives is dropped.
fn wait_asked(manager: &UnixDatagram) -> Result<OwnedFd> {
    loop {
        let mut message = [0; 4096];
        let mut parts = [IoSliceMut::new(&mut message)];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let got = recvmsg::<()>(
            manager.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .context("the service manager was not asked")?;
        for passed in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = passed {
                // SAFETY: the kernel made it for this process just now.
                return Ok(unsafe { OwnedFd::from_raw_fd(descriptors[0]) });
            }
        }
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

/// A slow reload must not starve the watchdog: here the configuration file is a FIFO without a writer.
#[test]
fn the_watchdog_is_told_that_all_is_well_while_a_reload_takes_its_time() -> Result<()> {
    let pair = Pair::new()?;
    let daemon = Daemon::prepare(&pair.a, &crate::programs(), "")?;
    let (mut child, manager, _files) = start(&pair, &daemon)?;
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

/// systemd runs no `ExecStop=` for a service that is still starting, so the daemon cannot tell a stop from
/// a restart: it leaves the rules in force, and its exit code says so.
#[test]
fn who_is_stopped_before_the_service_manager_has_heard_leaves_all_in_force() -> Result<()> {
    let pair = Pair::new()?;
    let rule = format!(
        "on_stop: lift\nrules:\n  - {{id: dev01, targets: [{}], mode: drop}}\n",
        Pair::B
    );
    let daemon = Daemon::prepare(&pair.a, &crate::programs(), &rule)?;
    let (sink, source) = datagrams(&pair)?;
    for heard_first in [false, true] {
        let (mut child, manager, _files) = start(&pair, &daemon)?;
        let unheard = wait_asked(&manager)?;
        assert_tight(&sink, &source, PATIENCE, || {
            // What comes first to the daemon, neither the signal's sender knows nor the daemon.
            if heard_first {
                drop(unheard);
                child.signal(Signal::SIGTERM)?;
            } else {
                child.signal(Signal::SIGTERM)?;
                drop(unheard);
            }
            assert_eq!(
                child.0.wait()?.code(),
                Some(143),
                "heard first: {heard_first}"
            );
            Ok(())
        })?;
    }

    // The next one has been heard, and does as it is told.
    let (mut child, manager, _files) = start(&pair, &daemon)?;
    drop(wait_asked(&manager)?);
    wait_told(&manager, "WATCHDOG=1")?;
    child.signal(Signal::SIGTERM)?;
    assert!(child.0.wait()?.success());
    wait_passing(&sink, &source, PATIENCE)
}
