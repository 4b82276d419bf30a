//! Builds the two programs: `cargo xtask build` as they are installed, other tasks as they need
//! them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{cargo, run, say, workspace};

const TASK: &str = "build";
/// The programs that are built and installed.
pub(crate) const PROGRAMS: [&str; 2] = ["blocker", "blockctl"];
/// The feature that the installed programs have.
pub(crate) const FLEET: &str = "--features=blocker/fleet";

/// Builds the programs as they are installed: release profile, stripped, and the debugging
/// information of `PROGRAM` in `PROGRAM.debug` in the same directory. Returns that directory.
///
/// # Errors
/// They do not build, or binutils are missing.
pub(crate) fn release() -> Result<PathBuf> {
    run(TASK, &mut cargo_build(&["--release", FLEET]))?;
    finish(target_directory().join("release"))
}

/// Builds the programs for a task of this workspace that runs them: dev profile, without the fleet
/// and so without protoc. Returns their directory.
///
/// # Errors
/// They do not build.
pub(crate) fn dev() -> Result<PathBuf> {
    run(TASK, &mut cargo_build(&[]))?;
    Ok(target_directory().join("debug"))
}

/// `cargo build` of both programs.
pub(crate) fn cargo_build(options: &[&str]) -> Command {
    let mut command = cargo();
    command.args(["build", "--package", "blocker", "--bins"]);
    command.args(options);
    command
}

/// Strips the programs in a directory, and says where they are.
///
/// # Errors
/// objcopy fails or is missing.
pub(crate) fn finish(directory: PathBuf) -> Result<PathBuf> {
    for name in PROGRAMS {
        strip(&directory, name)?;
        say(TASK, &format!("{}", directory.join(name).display()));
    }
    Ok(directory)
}

/// Moves a program's symbols and debugging information to `NAME.debug`, where debuggers and the
/// standard library's backtraces look for them by the program's debug link.
fn strip(directory: &Path, name: &str) -> Result<()> {
    let objcopy = |arguments: &[&str]| {
        let mut command = Command::new("objcopy");
        run(TASK, command.args(arguments).current_dir(directory))
    };
    let debug = format!("{name}.debug");
    let stripped = format!("{name}.stripped");
    objcopy(&["--only-keep-debug", name, &debug])?;
    let link = format!("--add-gnu-debuglink={debug}");
    objcopy(&["--strip-all", &link, name, &stripped])?;
    // A new file under the old name: cargo's own copy in `deps` is a hard link to the old file, and
    // the next build links it here again.
    fs::rename(directory.join(&stripped), directory.join(name))
        .with_context(|| format!("renaming {stripped} to {name}"))
}

/// Where cargo builds.
pub(crate) fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || workspace().join("target"),
        |target| workspace().join(target),
    )
}
