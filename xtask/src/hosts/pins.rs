//! A directory for pins, on the BPF file system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::daemon::output;
use super::leftovers::{self, BPF, Leftover};

/// A path for a pin directory. Its user creates the directory; dropping this removes the directory.
#[derive(Debug)]
pub struct Pins(PathBuf);

impl Pins {
    /// # Errors
    /// There is no BPF file system, and none can be mounted.
    pub fn new() -> Result<Self> {
        mount_bpf()?;
        let path = Path::new(BPF).join(leftovers::unique("pins"));
        leftovers::made(Leftover::Pins(path.clone()));
        Ok(Self(path))
    }

    /// The path of the directory, which may not exist yet.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        leftovers::undo(&Leftover::Pins(self.0.clone()));
    }
}

/// Mounts the BPF file system if it is not mounted. systemd mounts it, but a container may lack it.
fn mount_bpf() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc is not mounted")?;
    let mounted = mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(BPF));
    if mounted {
        return Ok(());
    }
    let result = output(Command::new("mount").args(["-t", "bpf", "bpf", BPF]))?;
    result
        .success()
        .with_context(|| format!("the BPF file system cannot be mounted at {BPF}"))?;
    Ok(())
}
