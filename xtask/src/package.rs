//! `cargo xtask package`: a Debian package of the two programs, with all that belongs to them.
//!
//! What is in it, `[package.metadata.deb]` in `blocker/Cargo.toml` says; this makes what is not in
//! the tree (man pages, completions, the configuration, the changelog) and calls cargo-deb.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::build::{self, target_directory};
use crate::command::{self, cargo, host, line, run, say, workspace};
use crate::setup;

const TASK: &str = "package";

/// Builds the package and has lintian look at it.
///
/// # Errors
/// Something does not build, or lintian objects.
pub(crate) fn deb() -> Result<()> {
    let package = build()?;
    lintian(&package)
}

/// Builds the package and gives its path.
///
/// # Errors
/// Something does not build.
pub(crate) fn build() -> Result<PathBuf> {
    setup::install(setup::Purpose::Package)?;
    build::release()?;
    stage()?;
    pack(None)
}

/// Packs what [`build()`] has made once more, as another version.
///
/// # Errors
/// cargo-deb fails.
pub(crate) fn again(version: &str) -> Result<PathBuf> {
    pack(Some(version))
}

fn pack(version: Option<&str>) -> Result<PathBuf> {
    let cargo_deb = setup::cargo_deb().context("cargo-deb is not there after the set-up")?;
    let mut command = Command::new(cargo_deb);
    // It was built already; cargo-deb would build without the environment that the set-up found.
    command
        .args([
            "deb",
            "--package",
            "blocker",
            "--no-build",
            "--strip",
            "--output",
        ])
        .arg(target_directory().join("package/"))
        .current_dir(workspace());
    if let Some(version) = version {
        command.args(["--deb-version", version]);
    }
    say(TASK, &line(&command));
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("`{}` cannot be started", line(&command)))?;
    ensure!(
        output.status.success(),
        "`{}` failed ({})",
        line(&command),
        output.status
    );
    // It prints the path, alone.
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let package = printed.lines().last().unwrap_or_default().trim().to_owned();
    let package = PathBuf::from(package);
    ensure!(
        package.is_file(),
        "cargo-deb does not say where the package is: {printed}"
    );
    say(TASK, &format!("{}", package.display()));
    Ok(package)
}

/// Links all libraries into the programs, so that they run on any distribution.
///
/// # Errors
/// Something does not build.
pub(crate) fn fixed() -> Result<()> {
    setup::install(setup::Purpose::Build)?;
    let host = host()?;
    // Named, the target's flags do not reach build scripts and procedural macros.
    let mut command = cargo();
    command
        .args([
            "build",
            "--release",
            "--package",
            "blocker",
            "--bins",
            build::FLEET,
        ])
        .args(["--target", &host])
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    run(TASK, &mut command)?;
    let programs = target_directory().join(host).join("release");
    for program in ["blocker", "blockctl"] {
        say(TASK, &format!("{}", programs.join(program).display()));
    }
    Ok(())
}

/// Makes what the package has and the tree has not.
fn stage() -> Result<()> {
    // The manifest names this directory, wherever cargo builds.
    let stage = workspace().join("target/package");
    for old in ["man", "completions"] {
        let old = stage.join(old);
        if old.exists() {
            fs::remove_dir_all(&old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
    for program in ["blocker", "blockctl"] {
        let mut command = Command::new(target_directory().join("release").join(program));
        run(TASK, command.arg("manual").arg(&stage))?;
    }
    let annotated = workspace().join("config/blocker.yaml");
    let annotated = fs::read_to_string(&annotated)
        .with_context(|| format!("reading {}", annotated.display()))?;
    write(&stage.join("blocker.yaml"), &with_group(&annotated)?)?;
    write(&stage.join("changelog"), &changelog()?)
}

/// The annotated configuration, for a host that has the group.
fn with_group(annotated: &str) -> Result<String> {
    const COMMENTED: &str = "\n  #group: blocker\n";
    if !annotated.contains(COMMENTED) {
        bail!("config/blocker.yaml has no commented control.group any more");
    }
    Ok(annotated.replacen(COMMENTED, "\n  group: blocker\n", 1))
}

/// The package's own changelog, in Debian's form: it points to the one for users. Its date is that
/// of the last commit, so that a package can be built again.
fn changelog() -> Result<String> {
    let mut log = Command::new("git");
    log.args(["log", "-1", "--format=%cD"])
        .current_dir(workspace());
    let output = log.output().context("`git log` cannot be started")?;
    ensure!(output.status.success(), "`{}` failed", line(&log));
    let date = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let version = env!("CARGO_PKG_VERSION");
    Ok(format!(
        "blocker ({version}-1) unstable; urgency=medium\n\n  * Release {version}: see \
         /usr/share/doc/blocker/changelog.gz.\n\n -- The blocker authors \
         <maintainers@blocker.invalid>  {date}\n"
    ))
}

fn lintian(package: &Path) -> Result<()> {
    let mut command = Command::new("lintian");
    command
        .args(["--fail-on", "error,warning", "--info", "--allow-root"])
        .arg(package)
        .env("PATH", command::search_path());
    run(TASK, &mut command)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_packages_configuration_names_the_group() {
        let annotated = include_str!("../../config/blocker.yaml");
        let packaged = super::with_group(annotated).unwrap();
        assert!(packaged.contains("\n  group: blocker\n"));
        assert_eq!(packaged.len(), annotated.len() - 1);
        assert!(super::with_group(&packaged).is_err());
    }
}
