//! Kernels, from Debian's archive: fetched once, into `target/kernels/`.
//!
//! By apt with lists, cache and configuration of its own, so that this machine's are left alone; its
//! signatures are checked as ever. Debian's `cloud` flavour is the smaller one, with all that the
//! tests need.

use std::fmt::{self, Display};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use super::TASK;
use crate::command::{self, find, line, say};

/// A version as features are compared with.
pub(crate) type Version = (u32, u32);

/// A kernel that Debian has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    V5_10,
    V6_1,
    V6_12,
    Newest,
}

impl Release {
    const ALL: [Self; 4] = [Self::V5_10, Self::V6_1, Self::V6_12, Self::Newest];

    /// As it is named on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
        }
    }

    /// The archive and the suite that have it.
    fn suite(self) -> (&'static str, &'static str) {
        match self {
            Self::V5_10 => ("http://deb.debian.org/debian-security", "bullseye-security"),
            Self::V6_1 => ("http://deb.debian.org/debian", "bookworm"),
            Self::V6_12 => ("http://deb.debian.org/debian", "bookworm-backports"),
            Self::Newest => ("http://deb.debian.org/debian", "trixie-backports"),
        }
    }
}

impl Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Release {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|release| release.name() == text);
        found.ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|release| release.name()).collect();
            format!("no such kernel; there are {}", names.join(", "))
        })
    }
}

/// A kernel that is here.
pub(crate) struct Kernel {
    /// As `uname -r` says it.
    pub(crate) release: String,
    pub(crate) version: Version,
    pub(crate) image: PathBuf,
    /// The directory of its modules.
    pub(crate) modules: PathBuf,
}

/// Signs the archive; of the package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Depends on the kernel that is current in its suite.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// Fetches a kernel, unless it is there.
///
/// # Errors
/// This machine is no Debian or of another architecture, the archive is out of reach, or has no such
/// kernel.
pub(crate) fn fetch(release: Release, directory: &Path) -> Result<Kernel> {
    let tree = directory.join("tree");
    if tree.is_dir() {
        return kernel(&tree);
    }
    if std::env::consts::ARCH != "x86_64" {
        bail!(
            "kernels are fetched for x86-64 only, this is {}",
            std::env::consts::ARCH
        );
    }
    if find("apt-get").is_none() || !Path::new(KEYRING).is_file() {
        bail!("kernels are Debian's: apt-get and {KEYRING} (debian-archive-keyring) are needed");
    }
    let apt = Apt::prepare(release, directory)?;
    apt.run("apt-get", &["-q", "update"])?;
    let packages = apt.packages()?;
    say(TASK, &format!("fetching {}", packages.join(" ")));
    let names: Vec<_> = packages.iter().map(String::as_str).collect();
    apt.run("apt-get", &[&["-q", "download"], &names[..]].concat())?;

    let unpacked = directory.join("unpacked");
    let _absent = fs::remove_dir_all(&unpacked);
    fs::create_dir_all(&unpacked)?;
    for entry in directory.read_dir()? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            command::run(
                TASK,
                Command::new("dpkg").arg("-x").arg(&path).arg(&unpacked),
            )?;
            fs::remove_file(&path)?;
        }
    }
    kernel(&unpacked)?;
    fs::rename(&unpacked, &tree).with_context(|| format!("{}", tree.display()))?;
    kernel(&tree)
}

/// Finds the parts of an unpacked kernel.
fn kernel(tree: &Path) -> Result<Kernel> {
    let missing = || {
        format!(
            "{} holds no kernel: remove it and try again",
            tree.display()
        )
    };
    let merged = tree.join("usr/lib/modules");
    let parent = if merged.is_dir() {
        merged
    } else {
        tree.join("lib/modules")
    };
    let mut modules = parent.read_dir().with_context(missing)?;
    let modules = modules.next().with_context(missing)??.path();
    let release = modules.file_name().and_then(|name| name.to_str());
    let release = release.with_context(missing)?.to_owned();
    let places = [
        tree.join("boot").join(format!("vmlinuz-{release}")),
        modules.join("vmlinuz"),
    ];
    let image = places.into_iter().find(|path| path.is_file());
    Ok(Kernel {
        version: version(&release).with_context(missing)?,
        image: image.with_context(missing)?,
        modules,
        release,
    })
}

/// The first two numbers of a release's name.
fn version(release: &str) -> Option<Version> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

/// apt with everything of its own in one directory.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    fn prepare(release: Release, directory: &Path) -> Result<Self> {
        let own = directory.join("apt");
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(own.join(part))?;
        }
        let (archive, suite) = release.suite();
        fs::write(
            own.join("sources.list"),
            format!("deb [signed-by={KEYRING}] {archive} {suite} main\n"),
        )?;
        fs::write(own.join("status"), "")?;
        let at = own.display();
        fs::write(
            own.join("apt.conf"),
            format!(
                "Dir::Etc::sourcelist \"{at}/sources.list\";\n\
                 Dir::Etc::sourceparts \"/dev/null\";\n\
                 Dir::State::lists \"{at}/lists\";\n\
                 Dir::State::status \"{at}/status\";\n\
                 Dir::Cache \"{at}/cache\";\n\
                 Acquire::Languages \"none\";\n\
                 Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
                 APT::Architecture \"amd64\";\n\
                 APT::Sandbox::User \"root\";\n"
            ),
        )?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(&self.directory)
            .env("APT_CONFIG", self.directory.join("apt/apt.conf"));
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        command::run(TASK, &mut self.command(program, arguments))
    }

    /// The packages that make up the current kernel: the one that [`PACKAGE`] depends on, and those
    /// that it was split into (since 6.19).
    fn packages(&self) -> Result<Vec<String>> {
        let mut packages = Vec::new();
        let mut open = vec![PACKAGE.to_owned()];
        while let Some(package) = open.pop() {
            let mut command = self.command("apt-cache", &["depends", &package]);
            let output = command.stdin(Stdio::null()).output()?;
            if !output.status.success() {
                bail!(
                    "`{}` failed: the archive has no such kernel",
                    line(&command)
                );
            }
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                let Some(name) = line.trim().strip_prefix("Depends: ") else {
                    continue;
                };
                let part = ["linux-image-", "linux-binary-", "linux-modules-"];
                if part.iter().any(|part| name.starts_with(part))
                    && !packages.contains(&name.to_owned())
                {
                    packages.push(name.to_owned());
                    open.push(name.to_owned());
                }
            }
        }
        Ok(packages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_has_a_version() {
        assert_eq!(version("5.10.0-46-cloud-amd64"), Some((5, 10)));
        assert_eq!(version("7.3.4+deb13-cloud-amd64"), Some((7, 3)));
        assert_eq!(version("next"), None);
    }

    #[test]
    fn an_unknown_kernel_is_refused_with_those_that_there_are() {
        assert_eq!("6.1".parse(), Ok(Release::V6_1));
        let error = "4.19".parse::<Release>().unwrap_err();
        assert!(error.contains("5.10, 6.1, 6.12, newest"), "{error}");
    }
}
