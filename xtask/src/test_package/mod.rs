//! `cargo xtask test-package`: installs, upgrades and removes the packages in a booted system.
//!
//! A container with its own systemd shares the network of host A, which has a peer, B. While B is
//! blocked, none of its datagrams may arrive.

mod machine;
mod story;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::build::target_directory;
use crate::command::{self, cargo, run as run_command, say, workspace};
use crate::package::{self, Built};
use crate::{demo, hosts};
use story::Plot;

const TASK: &str = "test-package";

/// The packages to test.
#[derive(Args)]
pub(crate) struct How {
    /// Only upgrade to this tree's package, from the one that COMMIT of this repository builds
    #[arg(long, value_name = "COMMIT")]
    from: Option<String>,
    /// The packages, if they are built already
    #[arg(long, hide = true, value_delimiter = ',')]
    built: Vec<PathBuf>,
}

/// Builds packages and tests them.
///
/// # Errors
/// A package does not build, or fails a check.
pub(crate) fn run(how: How) -> Result<()> {
    let built = match (how.built, how.from) {
        (built, _) if !built.is_empty() => built,
        (_, Some(commit)) => {
            // First, since it builds in the same target directory.
            let old = build_other(&commit)?;
            package::build()?;
            vec![old, package::again(2)?.deb]
        }
        (_, None) => {
            let (first, next) = (package::build()?, package::again(2)?);
            vec![first.deb, first.rpm, next.deb, next.rpm]
        }
    };
    if !command::is_root() {
        return again_as_root(&built);
    }
    let plot = plot(built)?;
    demo::clean_up_on_signals()?;
    let result = story::tell(&plot);
    hosts::clean_up();
    result
}

fn plot(built: Vec<PathBuf>) -> Result<Plot> {
    let built: Result<[_; 4], _> = built.try_into();
    match built {
        Ok([deb, rpm, next_deb, next_rpm]) => Ok(Plot::Life {
            first: Built { deb, rpm },
            next: Built {
                deb: next_deb,
                rpm: next_rpm,
            },
        }),
        Err(built) => match <[_; 2]>::try_from(built) {
            Ok([old, new]) => Ok(Plot::Upgrade { old, new }),
            Err(built) => bail!("four packages or two are expected, not {}", built.len()),
        },
    }
}

/// Builds the package of a commit, in a work tree of its own but in this target directory, since
/// most dependencies are the same.
fn build_other(commit: &str) -> Result<PathBuf> {
    let here = target_directory().join("package");
    let (tree, kept) = (here.join("tree"), here.join("other"));
    fs::create_dir_all(&kept).with_context(|| format!("making {}", kept.display()))?;
    // An interrupted run may have left one.
    forget(&tree)?;
    let mut add = git(&["worktree", "add", "--quiet", "--detach"]);
    run_command(TASK, add.arg(&tree).arg(commit))?;
    let mut build = cargo();
    build
        .args(["xtask", "package"])
        .current_dir(&tree)
        .env("CARGO_TARGET_DIR", target_directory());
    let built = run_command(TASK, &mut build).and_then(|()| newest_deb(&here, &kept));
    forget(&tree)?;
    built
}

/// Moves the newest package from `here` to `kept`.
fn newest_deb(here: &Path, kept: &Path) -> Result<PathBuf> {
    let mut debs = Vec::new();
    for entry in fs::read_dir(here).with_context(|| format!("reading {}", here.display()))? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|end| end == "deb") {
            debs.push((entry.metadata()?.modified()?, entry));
        }
    }
    let newest = debs.into_iter().max_by_key(|(modified, _)| *modified);
    let (_, newest) = newest.context("it has built no Debian package")?;
    let package = kept.join(newest.file_name());
    fs::rename(newest.path(), &package).context("keeping the other package")?;
    Ok(package)
}

fn forget(tree: &Path) -> Result<()> {
    if tree.exists() {
        let mut remove = git(&["worktree", "remove", "--force"]);
        run_command(TASK, remove.arg(tree))?;
    }
    Ok(())
}

fn git(words: &[&str]) -> Command {
    let mut git = Command::new("git");
    git.args(words).current_dir(workspace());
    git
}

/// Runs the tests as root, which containers need, and exits with their status.
fn again_as_root(built: &[PathBuf]) -> Result<()> {
    let own = std::env::current_exe().context("this program's own path is unknown")?;
    let own = own.to_str().context("this program's path is not UTF-8")?;
    let sudo = command::sudo().context("run this as root: containers need it")?;
    let mut again = command::elevated(sudo.as_deref(), own);
    again.arg(TASK);
    for package in built {
        again.arg("--built").arg(package);
    }
    say(TASK, &command::line(&again));
    let status = again.status().context("sudo cannot be started")?;
    std::process::exit(status.code().unwrap_or(1))
}
