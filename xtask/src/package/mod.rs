//! `cargo xtask package`: packages of the two programs.
//!
//! `[package.metadata.deb]` in `blocker/Cargo.toml` lists the Debian package's files. This module
//! makes those that are not in the tree (man pages, completions, the configuration, the changelog)
//! and calls cargo-deb. `rpm` packs the RPM, `fixed` builds static programs.

mod fixed;
mod rpm;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::build::{self, PROGRAMS, target_directory};
use crate::command::{self, line, run, say, workspace};
use crate::setup;

pub(crate) use fixed::build as fixed;

const TASK: &str = "package";

/// The packages of one build.
pub(crate) struct Built {
    pub(crate) deb: PathBuf,
    pub(crate) rpm: PathBuf,
}

/// Builds the packages, runs lintian on the Debian one, and checks that the RPM has the same files.
///
/// # Errors
/// Something does not build, lintian objects, or the packages differ.
pub(crate) fn check() -> Result<()> {
    let built = build()?;
    lintian(&built.deb)?;
    rpm::check(&built)
}

/// Builds the packages and returns their paths.
///
/// # Errors
/// Something does not build.
pub(crate) fn build() -> Result<Built> {
    setup::install(setup::Purpose::Package)?;
    stage(&build::release()?)?;
    Ok(Built {
        deb: deb(None)?,
        rpm: rpm::pack(None)?,
    })
}

/// Packs the programs that [`build()`] built again, as another release of the same version.
///
/// # Errors
/// cargo-deb or cargo-generate-rpm fails.
pub(crate) fn again(release: u32) -> Result<Built> {
    Ok(Built {
        deb: deb(Some(release))?,
        rpm: rpm::pack(Some(release))?,
    })
}

fn deb(release: Option<u32>) -> Result<PathBuf> {
    let mut command = Command::new(setup::CARGO_DEB.path()?);
    // The programs are built and stripped already.
    command
        .args(["deb", "--package", "blocker", "--no-build", "--no-strip"])
        .arg("--output")
        .arg(target_directory().join("package/"))
        .current_dir(workspace());
    if let Some(release) = release {
        let version = format!("{}-{release}", env!("CARGO_PKG_VERSION"));
        command.args(["--deb-version", &version]);
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
    // It prints only the path.
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

/// Makes the packaged files that are not in the tree.
fn stage(programs: &Path) -> Result<()> {
    // The manifest names this directory, whatever cargo's target directory is.
    let stage = workspace().join("target/package");
    for old in ["man", "completions"] {
        let old = stage.join(old);
        if old.exists() {
            fs::remove_dir_all(&old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
    for program in PROGRAMS {
        let mut command = Command::new(programs.join(program));
        run(TASK, command.arg("manual").arg(&stage))?;
    }
    let annotated = workspace().join("config/blocker.yaml");
    let annotated = fs::read_to_string(&annotated)
        .with_context(|| format!("reading {}", annotated.display()))?;
    write(&stage.join("blocker.yaml"), &with_group(&annotated)?)?;
    write(&stage.join("changelog"), &changelog()?)
}

/// The annotated configuration, with the group that the package creates.
fn with_group(annotated: &str) -> Result<String> {
    const COMMENTED: &str = "\n  #group: blocker\n";
    if !annotated.contains(COMMENTED) {
        bail!("config/blocker.yaml has no commented control.group any more");
    }
    Ok(annotated.replacen(COMMENTED, "\n  group: blocker\n", 1))
}

/// The Debian changelog, which refers to the users' one. Its date is that of the last commit, so
/// that builds are reproducible.
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
        let annotated = include_str!("../../../config/blocker.yaml");
        let packaged = super::with_group(annotated).unwrap();
        assert!(packaged.contains("\n  group: blocker\n"));
        assert_eq!(packaged.len(), annotated.len() - 1);
        assert!(super::with_group(&packaged).is_err());
    }
}
