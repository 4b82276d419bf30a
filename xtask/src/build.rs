//! `cargo xtask build`: the two programs, as they are installed.

use anyhow::Result;

use crate::command::{cargo, run, say, workspace};
use crate::setup;

/// The feature that what is installed has.
pub(crate) const FLEET: &str = "--features=blocker/fleet";

/// Sets up and builds with the release profile.
pub(crate) fn release() -> Result<()> {
    setup::install(setup::Purpose::Build)?;
    run(
        "build",
        cargo().args([
            "build",
            "--release",
            "--package",
            "blocker",
            "--bins",
            FLEET,
        ]),
    )?;
    let programs = target_directory().join("release");
    say("build", &format!("{}", programs.join("blocker").display()));
    say("build", &format!("{}", programs.join("blockctl").display()));
    Ok(())
}

/// Where cargo builds.
pub(crate) fn target_directory() -> std::path::PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || workspace().join("target"),
        |target| workspace().join(target),
    )
}
