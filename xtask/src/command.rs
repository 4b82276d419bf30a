//! Runs other programs: prints each command, and names it if it fails.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The workspace's root directory.
pub(crate) fn workspace() -> &'static Path {
    // The package xtask is a direct subdirectory.
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Prints what a task does.
pub(crate) fn say(task: &str, what: &str) {
    anstream::eprintln!("{task}: {what}");
}

/// The cargo that runs this task. It builds without incremental compilation, which takes time and
/// a third of `target/` for the sake of a next build; `CARGO_INCREMENTAL=1` turns it on.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    if env::var_os("CARGO_INCREMENTAL").is_none() {
        command.env("CARGO_INCREMENTAL", "0");
    }
    command
}

/// The compiler of this workspace.
pub(crate) fn rustc() -> PathBuf {
    env::var_os("RUSTC").map_or_else(|| "rustc".into(), PathBuf::from)
}

/// The host platform's triple.
///
/// # Errors
/// The compiler does not print it.
pub(crate) fn host() -> Result<String> {
    let output = Command::new(rustc())
        .arg("-vV")
        .current_dir(workspace())
        .output()
        .context("`rustc -vV` cannot be started")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` names no host")
}

/// Runs a command to its end, with this process's output and without input.
///
/// # Errors
/// It cannot be started, or it fails.
pub(crate) fn run(task: &str, command: &mut Command) -> Result<()> {
    say(task, &line(command));
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("`{}` cannot be started", line(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

/// A command as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let name = Path::new(command.get_program()).file_name();
    let name = name.unwrap_or_else(|| command.get_program());
    let words = std::iter::once(name).chain(command.get_args());
    let words: Vec<_> = words.map(|word| quoted(&word.to_string_lossy())).collect();
    words.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Finds a program on the PATH, or in the administrator's directories.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = search_path();
    let found = env::split_paths(&path).map(|directory| directory.join(program));
    found.into_iter().find(|path| path.is_file())
}

/// The PATH with the administrator's directories, which Debian omits for ordinary users.
pub(crate) fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    for directory in ["/usr/local/sbin", "/usr/sbin", "/sbin"] {
        if !env::split_paths(&path).any(|known| known == Path::new(directory)) {
            path.push(OsStr::new(":"));
            path.push(directory);
        }
    }
    path
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The path of `sudo`, or none for root. On a terminal sudo may ask for a password.
///
/// # Errors
/// This process is not root, and sudo is missing or refuses.
pub(crate) fn sudo() -> Result<Option<PathBuf>> {
    if is_root() {
        return Ok(None);
    }
    let sudo = find("sudo").context("not root, and sudo is missing")?;
    let mut check = Command::new(&sudo);
    if std::io::stdin().is_terminal() {
        check.arg("-v"); // asks for the password, once
    } else {
        check.args(["-n", "true"]);
    }
    let granted = check
        .status()
        .with_context(|| format!("`{}` cannot be started", line(&check)))?;
    if !granted.success() {
        bail!("not root, and sudo refuses");
    }
    Ok(Some(sudo))
}

/// A command that runs as root: directly, or by the [`sudo()`] given.
pub(crate) fn elevated(sudo: Option<&Path>, program: &str) -> Command {
    match sudo {
        None => Command::new(program),
        Some(sudo) => {
            let mut command = Command::new(sudo);
            command.arg(program);
            command
        }
    }
}
