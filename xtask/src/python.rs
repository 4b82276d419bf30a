//! The tests' packages from PyPI, in a virtual environment under `target/`: the Chaos Toolkit runs
//! the shipped experiments, Schemathesis generates requests from `/openapi.json`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::command::{find, line, run, say, workspace};

const TASK: &str = "setup";

/// The packages that pip installs.
const VERSIONS: [&str; 3] = [
    "chaostoolkit==1.19.0",
    "chaostoolkit-lib==1.44.0",
    "schemathesis==4.32.5",
];

/// Debian's package that makes virtual environments.
pub(crate) const PACKAGE: &str = "python3-venv";

/// The environment's directory. The tests expect it there, whatever cargo's target directory is.
fn directory() -> PathBuf {
    workspace().join("target/python")
}

/// The file that lists the installed versions. It is written last.
fn stamp() -> PathBuf {
    directory().join("versions")
}

/// Whether the environment has these versions.
pub(crate) fn is_there() -> bool {
    let there = fs::read_to_string(stamp());
    there.is_ok_and(|there| there == VERSIONS.join("\n"))
}

/// Whether Python has the modules to make an environment.
pub(crate) fn can_be_made() -> bool {
    let Some(python) = find("python3") else {
        return false;
    };
    let mut look = Command::new(python);
    look.args(["-c", "import ensurepip, venv"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    look.status().is_ok_and(|status| status.success())
}

/// Makes the environment. Returns what was installed.
pub(crate) fn make() -> Result<String> {
    let directory = directory();
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv", "--clear"]).arg(&directory);
    run(TASK, &mut venv)?;
    let mut pip = Command::new(directory.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check"])
        .args(VERSIONS);
    let by_hand = line(&pip);
    run(TASK, &mut pip).with_context(|| {
        format!("the tests' packages could not be fetched from PyPI; with network access, run in {}: bin/{by_hand}", directory.display())
    })?;
    let stamp = stamp();
    fs::write(&stamp, VERSIONS.join("\n"))
        .with_context(|| format!("writing {}", stamp.display()))?;
    let versions = VERSIONS.join(", ");
    say(TASK, &format!("{versions}: in {}", directory.display()));
    Ok(versions)
}
