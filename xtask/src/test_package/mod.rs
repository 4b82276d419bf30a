//! `cargo xtask test-package`: the packages, through their life in a booted system.
//!
//! A container with a systemd of its own shares the network of host A, which has a peer, B. What
//! "blocked" means is seen by B's datagrams: not one may arrive.

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
use crate::{demo, lab};
use story::Plot;

const TASK: &str = "test-package";

/// Which packages.
#[derive(Args)]
pub(crate) struct How {
    /// Only upgrade to this tree's package, from the one that COMMIT of this repository builds
    #[arg(long, value_name = "COMMIT")]
    from: Option<String>,
    /// The packages, if they are built already
    #[arg(long, hide = true, value_delimiter = ',')]
    built: Vec<PathBuf>,
}

/// Builds packages and takes them through their life.
///
/// # Errors
/// Something does not build, or a package does not do what it should.
pub(crate) fn run(how: How) -> Result<()> {
    let built = match (how.built, how.from) {
        (built, _) if !built.is_empty() => built,
        (_, Some(commit)) => {
            // First, since it builds where this tree is built.
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
    lab::clean_up();
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

/// Has a commit build its package, in a work tree of its own but in our target directory: most of
/// what the programs depend on is the same.
fn build_other(commit: &str) -> Result<PathBuf> {
    let here = target_directory().join("package");
    let (tree, kept) = (here.join("tree"), here.join("other"));
    fs::create_dir_all(&kept).with_context(|| format!("making {}", kept.display()))?;
    // One that was left by a run that did not end.
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

/// Takes what was packed last from `here` to `kept`.
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

/// Containers take root: the building was done by the user. Ends as the other does.
fn again_as_root(built: &[PathBuf]) -> Result<()> {
    let own = std::env::current_exe().context("this program's own path is unknown")?;
    let own = own.to_str().context("this program's path is no text")?;
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
