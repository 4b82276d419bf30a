//! `cargo xtask package --static`: the programs as static executables, which run on any
//! distribution of the same architecture. They are tested in an otherwise empty root directory.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::TASK;
use crate::build::{self, PROGRAMS, target_directory};
use crate::command::{elevated, host, line, run, say, sudo};
use crate::setup;

/// `/etc/group` in that directory.
const GROUP: &str = "operators:x:4242:\n";
const CONFIG: &str = "control: {group: operators}\n";
/// The test: the daemon runs, `blockctl` blocks and lifts, and the C library resolves the group.
/// Its mounts and its network namespace end with it.
const PROOF: &str = r#"
mount -t proc proc "$1/proc"
mount -t sysfs sysfs "$1/sys"
mount -t bpf bpf "$1/sys/fs/bpf"
# getrandom(2) is looked for by dlsym(3), which finds nothing in a static program: the devices are
# the fallback, /dev/random to wait for the first seed.
for device in random urandom; do
    touch "$1/dev/$device"
    mount --bind "/dev/$device" "$1/dev/$device"
done
ip link set lo up
chroot=$(command -v chroot)
inside() { env -i "$chroot" "$1" "$2" "${@:3}"; }
inside "$1" /blocker check --config /blocker.yaml >/dev/null
inside "$1" /blockctl --version
# Not by the function, of which $! would be the shell's copy.
env -i "$chroot" "$1" /blocker run --config /blocker.yaml &
daemon=$!
until inside "$1" /blockctl list >/dev/null 2>&1; do
    kill -0 "$daemon"
    sleep 0.05
done
inside "$1" /blockctl add 192.0.2.1 --id proof
inside "$1" /blockctl list
stat --format='the socket has group %g and mode %a' "$1/run/blocker/control.sock"
test "$(stat --format=%g "$1/run/blocker/control.sock")" = 4242
inside "$1" /blockctl del proof
kill "$daemon"
wait "$daemon"
"#;

/// Builds the programs, and tests that they are self-contained.
///
/// # Errors
/// A program does not build, or is not self-contained.
pub(crate) fn build() -> Result<()> {
    setup::install(setup::Purpose::Build)?;
    let host = host()?;
    // With `--target`, RUSTFLAGS do not apply to build scripts and procedural macros.
    let mut command = build::cargo_build(&["--release", build::FLEET, "--target", &host]);
    command.env("RUSTFLAGS", "-C target-feature=+crt-static");
    run(TASK, &mut command)?;
    let programs = build::finish(target_directory().join(host).join("release"))?;
    for program in PROGRAMS {
        alone(&programs.join(program))?;
    }
    prove(&programs)?;
    say(
        TASK,
        "users, groups and host names are looked up in files and by DNS alone: the GNU C library \
         reaches no other service of nsswitch.conf (LDAP, SSSD, mDNS) from a static program",
    );
    Ok(())
}

/// Checks that a program has neither an interpreter nor a needed library.
fn alone(program: &Path) -> Result<()> {
    let mut readelf = Command::new("readelf");
    readelf
        .args(["--wide", "--program-headers", "--dynamic"])
        .arg(program);
    let output = readelf
        .output()
        .with_context(|| format!("`{}` cannot be started", line(&readelf)))?;
    ensure!(output.status.success(), "`{}` failed", line(&readelf));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        said.contains("LOAD"),
        "{} has nothing to load",
        program.display()
    );
    let asked = said
        .lines()
        .find(|line| line.contains("INTERP") || line.contains("(NEEDED)"));
    match asked {
        Some(asked) => anyhow::bail!("{} is not static: {}", program.display(), asked.trim()),
        None => Ok(()),
    }
}

/// Runs the programs in an otherwise empty root directory.
fn prove(programs: &Path) -> Result<()> {
    let root = tempfile::tempdir().context("making a directory")?;
    let at = |path: &str| root.path().join(path);
    for directory in ["proc", "sys", "dev", "etc", "run/blocker", "var/lib", "tmp"] {
        fs::create_dir_all(at(directory))?;
    }
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755))?;
    for program in PROGRAMS {
        fs::copy(programs.join(program), at(program))?;
    }
    fs::write(at("etc/group"), GROUP)?;
    fs::write(at("blocker.yaml"), CONFIG)?;
    let sudo = sudo().context("run this as root: the test uses chroot")?;
    let mut unshare = elevated(sudo.as_deref(), "unshare");
    unshare
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child"])
        .args(["bash", "-euc", PROOF, "bash"])
        .arg(root.path());
    say(
        TASK,
        "running the programs in an otherwise empty root directory",
    );
    let status = unshare.status().context("unshare cannot be started")?;
    ensure!(
        status.success(),
        "the static programs do not run by themselves ({status})"
    );
    Ok(())
}
