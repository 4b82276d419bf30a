//! Who may use the control socket: root, the configured group, and by configuration readers.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::unistd::{Group, User};
use xtask::hosts::{Daemon, Output, Pair};

/// Starts a daemon in A whose control socket has these further settings.
fn start(pair: &Pair, control: &str) -> Result<Daemon> {
    let mut daemon = Daemon::prepare(&pair.a, &crate::programs(), "")?;
    let path = daemon.config_path();
    let socket = daemon.socket().display().to_string();
    let config = fs::read_to_string(&path)?;
    fs::write(
        &path,
        config.replace(&socket, &format!("{socket}, {control}")),
    )?;
    // What is tested is the socket, not the directory that it happens to lie in.
    let directory = path.parent().context("a directory")?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    daemon.run(&pair.a)?;
    Ok(daemon)
}

/// `blockctl` by a user without any privilege; a copy of it where anybody may run it.
fn by(daemon: &Daemon, user: u32, group: u32, also: &str, words: &[&str]) -> Result<Output> {
    let directory = tempfile::tempdir()?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let blockctl = directory.path().join("blockctl");
    // By a process of its own: what this one has open for writing, a child that another test
    // starts meanwhile has too for a moment, and then it can't be executed (ETXTBSY).
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_blockctl"))
        .arg(&blockctl)
        .status()?;
    ensure!(copied.success(), "blockctl cannot be copied");
    let output = Command::new("setpriv")
        .arg(format!("--reuid={user}"))
        .arg(format!("--regid={group}"))
        .arg(also)
        .args(["--inh-caps=-all", "--bounding-set=-all"])
        .arg(&blockctl)
        .args(words)
        .env("BLOCKER_SOCKET", daemon.socket())
        .env_remove("SSH_CONNECTION")
        .current_dir("/")
        .output()?;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}

const ALONE: &str = "--clear-groups";
/// The overflow user, who owns nothing and is in no group (`/proc/sys/kernel/overflowuid`).
const NOBODY: u32 = 65534;

/// A user and its primary group, which every Debian and most other systems have.
fn member() -> Result<(u32, u32, String)> {
    let user = User::from_name("daemon")?.context("there is no user `daemon`")?;
    let group = Group::from_gid(user.gid)?.context("its group has no name")?;
    Ok((user.uid.as_raw(), user.gid.as_raw(), group.name))
}

#[test]
fn by_default_only_root_gets_in() -> Result<()> {
    let pair = Pair::new()?;
    let daemon = start(&pair, "read: none")?;
    assert_eq!(fs::metadata(daemon.socket())?.mode() & 0o777, 0o660);
    let refused = by(&daemon, NOBODY, NOBODY, ALONE, &["list"])?;
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(refused.stderr.contains("root"), "says who may: {refused:?}");
    daemon.blockctl(&["list"])?.success()?;
    Ok(())
}

#[test]
fn a_socket_that_lets_anybody_in_lets_nobody_else_change() -> Result<()> {
    let pair = Pair::new()?;
    for (read, list) in [("none", 1), ("all", 0)] {
        let daemon = start(&pair, &format!("mode: \"0666\", read: {read}"))?;
        let listed = by(&daemon, NOBODY, NOBODY, ALONE, &["list"])?;
        assert_eq!(listed.code, list, "read: {read}: {listed:?}");
        let explained = by(&daemon, NOBODY, NOBODY, ALONE, &["explain", "198.51.100.1"])?;
        assert_eq!(explained.code, list, "read: {read}: {explained:?}");
        for words in [&["add", "198.51.100.1"][..], &["flush"]] {
            let refused = by(&daemon, NOBODY, NOBODY, ALONE, words)?;
            assert_eq!(refused.code, 1, "{words:?}: {refused:?}");
            assert!(refused.stderr.contains("may not"), "{words:?}: {refused:?}");
        }
        let rules = &daemon.json(&["list"])?["rules"];
        assert_eq!(rules, &serde_json::json!([]));
    }
    Ok(())
}

#[test]
fn members_of_the_group_may_all() -> Result<()> {
    let pair = Pair::new()?;
    let (user, gid, group) = member()?;
    let daemon = start(&pair, &format!("group: {group}"))?;
    assert_eq!(fs::metadata(daemon.socket())?.gid(), gid);
    // As the process's own group, whoever it is.
    let added = by(
        &daemon,
        NOBODY,
        gid,
        ALONE,
        &["-q", "add", "198.51.100.1", "--id", "own"],
    )?;
    assert_eq!(added.code, 0, "{added:?}");
    // As a further one, by the user database.
    let further = format!("--groups={gid}");
    let gone = by(&daemon, user, NOBODY, &further, &["del", "own"])?;
    assert_eq!(gone.code, 0, "{gone:?}");
    let refused = by(&daemon, NOBODY, NOBODY, ALONE, &["list"])?;
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(refused.stderr.contains(&group), "says which: {refused:?}");
    Ok(())
}

#[test]
fn a_group_that_is_not_there_is_told() -> Result<()> {
    let pair = Pair::new()?;
    let error = start(&pair, "group: nobody-has-this-group").expect_err("no such group");
    let error = format!("{error:#}");
    assert!(error.contains("nobody-has-this-group"), "{error}");
    assert!(error.contains("groupadd"), "{error}");
    Ok(())
}
