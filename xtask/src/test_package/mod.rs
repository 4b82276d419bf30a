//! `cargo xtask test-package`: the Debian package, through its life in a booted system.
//!
//! A container with a systemd of its own shares the network of host A, which has a peer, B. What
//! "blocked" means is seen by B's datagrams: not one may arrive.

mod machine;
mod story;
mod wire;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::command::{self, say};
use crate::{demo, lab, package};

const TASK: &str = "test-package";

/// The packages, if they are built already.
#[derive(Args)]
pub(crate) struct Packages {
    /// The package that is installed
    #[arg(long, hide = true, requires = "newer")]
    package: Option<PathBuf>,
    /// The one that it is upgraded to
    #[arg(long, hide = true)]
    newer: Option<PathBuf>,
}

/// Builds two versions of the package and takes the first through its life.
///
/// # Errors
/// Something does not build, or the package does not do what it should.
pub(crate) fn run(packages: Packages) -> Result<()> {
    let (package, newer) = match (packages.package, packages.newer) {
        (Some(package), Some(newer)) => (package, newer),
        _ => {
            let package = package::build()?;
            let newer = concat!(env!("CARGO_PKG_VERSION"), "-2");
            (package, package::again(newer)?)
        }
    };
    if !command::is_root() {
        return again_as_root(&package, &newer);
    }
    demo::clean_up_on_signals()?;
    let result = story::tell(&package, &newer);
    lab::clean_up();
    result
}

/// Containers take root: the building was done by the user. Ends as the other does.
fn again_as_root(package: &Path, newer: &Path) -> Result<()> {
    let own = std::env::current_exe().context("this program's own path is unknown")?;
    let own = own.to_str().context("this program's path is no text")?;
    let sudo = command::sudo().context("run this as root: containers need it")?;
    let mut again = command::elevated(sudo.as_deref(), own);
    again.arg(TASK).arg("--package").arg(package);
    again.arg("--newer").arg(newer);
    say(TASK, &command::line(&again));
    let status = again.status().context("sudo cannot be started")?;
    std::process::exit(status.code().unwrap_or(1))
}
