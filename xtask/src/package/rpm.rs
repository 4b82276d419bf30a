//! The RPM. `[package.metadata.generate-rpm]` in `blocker/Cargo.toml` lists its files. Since the
//! Debian package has a list of its own, both packages are compared file by file.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Built, TASK};
use crate::build::target_directory;
use crate::command::{line, run, say, workspace};
use crate::setup;

/// Files that only a Debian package has.
const DEBIAN: [&str; 3] = [
    "/usr/share/doc/blocker/changelog.Debian",
    "/usr/share/doc/blocker/copyright",
    "/usr/share/lintian/",
];
/// The RPM's directory for what Debian's copyright file says.
const LICENSES: &str = "/usr/share/licenses/";

/// Packs the built and staged files.
///
/// # Errors
/// cargo-generate-rpm fails.
pub(super) fn pack(release: Option<u32>) -> Result<PathBuf> {
    let release = release.unwrap_or(1);
    let architecture = std::env::consts::ARCH;
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("blocker-{version}-{release}.{architecture}.rpm");
    let package = target_directory().join("package").join(name);
    let mut command = Command::new(setup::CARGO_GENERATE_RPM.path()?);
    command
        .args(["generate-rpm", "--package", "blocker"])
        // By the libraries that the programs link, on any distribution.
        .args(["--auto-req", "builtin"])
        .args(["--set-metadata", &format!("release = \"{release}\"")])
        .arg("--output")
        .arg(&package)
        .current_dir(workspace());
    run(TASK, &mut command)?;
    say(TASK, &format!("{}", package.display()));
    Ok(package)
}

/// Prints the package's requirements and scripts, and checks that it has the same files as the
/// Debian one.
///
/// # Errors
/// They differ, or one can't be read.
pub(super) fn check(built: &Built) -> Result<()> {
    for what in ["--requires", "--scripts"] {
        run(TASK, rpm(&built.rpm).arg(what))?;
    }
    let contents = ["--queryformat", "[%{FILEMODES:perms} %{FILENAMES}\\n]"];
    let rpm = text(rpm(&built.rpm).args(contents))?;
    let deb = text(Command::new("dpkg-deb").arg("--contents").arg(&built.deb))?;
    let (deb, rpm) = (of_deb(&deb), of_rpm(&rpm));
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        let lacking = these.iter().filter(|file| !those.contains(file));
        lacking.cloned().collect()
    };
    let (only_deb, only_rpm) = (only(&deb, &rpm), only(&rpm, &deb));
    ensure!(
        only_deb.is_empty() && only_rpm.is_empty(),
        "the assets in blocker/Cargo.toml differ; only in the Debian package: {only_deb:#?}, only in \
         the RPM: {only_rpm:#?}"
    );
    say(TASK, &format!("both packages have {} files", deb.len()));
    Ok(())
}

/// Mode and path of each file in `dpkg-deb --contents`, as the RPM has them.
fn of_deb(listing: &str) -> Vec<String> {
    let files = listing.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (mode, path) = (words.next()?, words.nth(4)?);
        let path = path.strip_prefix('.')?;
        let debian = DEBIAN.iter().any(|debian| path.starts_with(debian));
        // Debian's policy compresses some files, and has another directory for zsh.
        let path = path.strip_suffix(".gz").unwrap_or(path);
        let path = path.replace("/zsh/vendor-completions/", "/zsh/site-functions/");
        (!mode.starts_with('d') && !debian).then(|| format!("{mode} {path}"))
    });
    files.collect()
}

/// Mode and path of each file in rpm's listing.
fn of_rpm(listing: &str) -> Vec<String> {
    let files = listing.lines().filter(|line| {
        let path = line.split_whitespace().nth(1).unwrap_or_default();
        !line.starts_with('d') && !path.starts_with(LICENSES)
    });
    files.map(str::to_owned).collect()
}

/// An rpm query of a package.
fn rpm(package: &Path) -> Command {
    let mut command = Command::new("rpm");
    command.args(["--query", "--package"]).arg(package);
    command
}

fn text(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("`{}` cannot be started", line(command)))?;
    ensure!(
        output.status.success(),
        "`{}` failed: {}",
        line(command),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{of_deb, of_rpm};

    #[test]
    fn the_same_files_are_the_same_in_both_listings() {
        let deb = of_deb(
            "drwxr-xr-x 0/0         0 2026-11-28 12:00 ./usr/bin/
-rwxr-xr-x 0/0   9000000 2026-11-28 12:00 ./usr/bin/blocker
-rw-r--r-- 0/0      1000 2026-11-28 12:00 ./usr/share/man/man1/blocker.1.gz
-rw-r--r-- 0/0      1000 2026-11-28 12:00 ./usr/share/doc/blocker/changelog.Debian.gz
-rw-r--r-- 0/0      1000 2026-11-28 12:00 ./usr/share/zsh/vendor-completions/_blocker
",
        );
        let rpm = of_rpm(
            "-rwxr-xr-x /usr/bin/blocker
-rw-r--r-- /usr/share/licenses/blocker/LICENSE-MIT
-rw-r--r-- /usr/share/man/man1/blocker.1
-rw-r--r-- /usr/share/zsh/site-functions/_blocker
",
        );
        assert_eq!(deb.len(), 3);
        assert_eq!(deb, rpm);
        let other = of_rpm("-rw-r--r-- /usr/bin/blocker");
        assert!(!deb.contains(&other[0]), "a mode differs");
    }
}
