//! The guest's file system: an initramfs of the tests, the two programs, what they call and its
//! libraries, each at the place that it has on this machine.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::plan::{self, Plan};
use super::source::Kernel;
use super::{Built, TASK};
use crate::command::{self, find, line};

/// What tests, and the daemon, call. The kernel itself calls modprobe.
const PROGRAMS: [&str; 16] = [
    "ss",
    "ip",
    "tc",
    "iptables",
    "ip6tables",
    "nft",
    "tcpdump",
    "ethtool",
    "conntrack",
    "ping",
    "bpftool",
    "setpriv",
    "prlimit",
    "mount",
    "nsenter",
    "modprobe",
];
/// Files that programs read.
const FILES: [&str; 4] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/protocols",
    "/etc/services",
];
/// Kernel modules that tests have loaded, as parts of the tree.
const MODULES: [&str; 5] = ["net", "lib", "crypto", "arch", "drivers/net"];
/// Where the tests are, as `init.sh` knows.
const TESTS: &str = "/tests";

/// Makes what is the same for every kernel.
///
/// # Errors
/// A program is missing, or a file cannot be written.
pub(super) fn prepare(directory: &Path, built: &[Built]) -> Result<()> {
    let root = Tree::new(&directory.join("root"))?;
    for program in PROGRAMS {
        let path = find(program).with_context(|| format!("{program} is missing"))?;
        root.program(&path)?;
    }
    let busybox = find("busybox").context("busybox is missing (package busybox-static)")?;
    root.put(&busybox, Path::new("/usr/bin/busybox"))?;
    root.applets(&busybox)?;
    for file in FILES
        .map(Path::new)
        .into_iter()
        .filter(|file| file.is_file())
    {
        root.put(file, file)?;
    }
    // iptables opens its matches and targets as it needs them.
    for entry in fs::read_dir("/usr/lib")? {
        let extensions = entry?.path().join("xtables");
        if extensions.is_dir() {
            for extension in fs::read_dir(extensions)? {
                let path = extension?.path();
                root.put(&path, &path)?;
            }
        }
    }
    for built in built {
        // Tests know the programs under test by the path that cargo built them at.
        let to = match built.test {
            true => Path::new(TESTS),
            false => &built.path,
        };
        root.stripped(&built.path, to)?;
    }
    let init = root.at(Path::new("/init"))?;
    fs::write(&init, include_str!("init.sh"))?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    archive(&root.top, &directory.join("root.cpio"))
}

/// Makes the initramfs for a kernel: the common root, its modules, its plan.
///
/// # Errors
/// depmod is missing, or a file cannot be written.
pub(super) fn pack(common: &Path, own: &Path, kernel: &Kernel, plan: &Plan) -> Result<PathBuf> {
    let tree = Tree::new(&own.join("root"))?;
    let modules = Path::new("/usr/lib/modules").join(&kernel.release);
    for part in MODULES {
        let from = kernel.modules.join("kernel").join(part);
        if from.is_dir() {
            tree.put_all(&from, &modules.join("kernel").join(part))?;
        }
    }
    let mut depmod = Command::new(find("depmod").context("depmod is missing (package kmod)")?);
    // It misses lists of modules that are built in, which do not matter here.
    depmod
        .arg("-b")
        .arg(&tree.top)
        .arg(&kernel.release)
        .stderr(Stdio::null());
    command::run(TASK, &mut depmod)?;
    fs::write(tree.at(Path::new("/plan.sh"))?, script(plan))?;
    archive(&tree.top, &own.join("own.cpio"))?;

    // The kernel unpacks archives one after the other.
    let initramfs = own.join("initramfs");
    let mut whole = File::create(&initramfs)?;
    for part in [common, &own.join("own.cpio")] {
        io::copy(&mut File::open(part)?, &mut whole)?;
    }
    Ok(initramfs)
}

/// The shell script that runs the plan, by what `init.sh` has for it.
fn script(plan: &Plan) -> String {
    let seconds = plan::PATIENCE.as_secs();
    let mut script = String::new();
    for test in &plan.tests {
        let run = format!("run {test} {seconds}\n");
        script += &match plan::without(test) {
            Some(module) => format!("hide {module}\n{run}unhide\n"),
            None => run,
        };
    }
    script
}

/// A directory that is to be a root.
struct Tree {
    top: PathBuf,
}

impl Tree {
    fn new(top: &Path) -> Result<Self> {
        if top.exists() {
            fs::remove_dir_all(top).with_context(|| format!("{}", top.display()))?;
        }
        for directory in ["usr/bin", "usr/sbin", "usr/lib", "usr/lib64"] {
            fs::create_dir_all(top.join(directory))?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            symlink(Path::new("usr").join(name), top.join(name))?;
        }
        for directory in ["proc", "sys", "dev", "run", "tmp", "root", "etc", "var/lib"] {
            fs::create_dir_all(top.join(directory))?;
        }
        symlink("../run", top.join("var/run"))?;
        Ok(Self {
            top: top.to_owned(),
        })
    }

    /// The place of an absolute path; its directory is made.
    fn at(&self, path: &Path) -> Result<PathBuf> {
        let place = self.top.join(path.strip_prefix("/").unwrap_or(path));
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(place)
    }

    fn put(&self, from: &Path, to: &Path) -> Result<()> {
        let place = self.at(to)?;
        if !place.exists() {
            fs::copy(from, &place).with_context(|| format!("copying {}", from.display()))?;
        }
        Ok(())
    }

    fn put_all(&self, from: &Path, to: &Path) -> Result<()> {
        for entry in from.read_dir()? {
            let entry = entry?;
            let to = to.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                self.put_all(&entry.path(), &to)?;
            } else {
                self.put(&entry.path(), &to)?;
            }
        }
        Ok(())
    }

    /// A program and its libraries.
    fn program(&self, path: &Path) -> Result<()> {
        self.put(path, path)?;
        self.libraries(path)
    }

    /// A program without its debugging information, and its libraries.
    fn stripped(&self, from: &Path, to: &Path) -> Result<()> {
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(self.at(to)?).arg(from);
        let status = strip
            .status()
            .context("strip (package binutils) cannot be started")?;
        if !status.success() {
            bail!("`{}` failed ({status})", line(&strip));
        }
        self.libraries(from)
    }

    fn libraries(&self, program: &Path) -> Result<()> {
        let output = Command::new("ldd").arg(program).output().context("ldd")?;
        // `libc.so.6 => /lib/… (0x…)`, or the loader's path alone. A static program has none.
        for word in String::from_utf8_lossy(&output.stdout).split_whitespace() {
            if word.starts_with('/') && Path::new(word).is_file() {
                self.put(Path::new(word), Path::new(word))?;
            }
        }
        Ok(())
    }

    /// A link for everything that busybox can do and no program of the tree does.
    fn applets(&self, busybox: &Path) -> Result<()> {
        let output = Command::new(busybox)
            .arg("--list")
            .output()
            .context("busybox")?;
        for name in String::from_utf8_lossy(&output.stdout).lines() {
            let known = ["usr/bin", "usr/sbin"].map(|place| self.top.join(place).join(name));
            if !known.iter().any(|path| path.exists()) {
                symlink("busybox", &known[0])?;
            }
        }
        Ok(())
    }
}

/// Packs a directory as the kernel unpacks it.
fn archive(directory: &Path, to: &Path) -> Result<()> {
    let script = "find . | busybox cpio -o -H newc -R 0:0 2>/dev/null";
    let status = Command::new("sh")
        .args(["-c", script])
        .current_dir(directory)
        .stdout(File::create(to).with_context(|| format!("{}", to.display()))?)
        .status()?;
    if !status.success() {
        bail!("{} cannot be packed ({status})", directory.display());
    }
    Ok(())
}
