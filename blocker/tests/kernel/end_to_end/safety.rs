//! What a rule may not touch: refused with exit code 5, or carved out of a wider target.

use anyhow::Result;
use nix::errno::Errno;
use serde_json::{Value, json};
use xtask::hosts::{Connection, Output, Pair};

use crate::blocking_pair::{BlockingPair, connect_error, soon};

/// `blockctl -o json add` of these words by somebody who came from B by SSH.
fn add_over_ssh(hosts: &BlockingPair, words: &[&str]) -> Result<Output> {
    let mut command = hosts.daemon.blockctl_command();
    command
        .env(
            "SSH_CONNECTION",
            format!("{} 50022 {} 22", Pair::B, Pair::A),
        )
        .args(["-o", "json", "add"])
        .args(words);
    let output = command.output()?;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}

/// Checks that a rule is refused with exit code 5 and these words, and that nothing changed.
fn assert_refused(hosts: &BlockingPair, words: &[&str], why: &str) -> Result<()> {
    let refused = hosts.daemon.blockctl(&[&["add"], words].concat())?;
    assert_eq!(
        refused.code, 5,
        "{words:?}: {}{}",
        refused.stdout, refused.stderr
    );
    assert!(
        refused.stderr.contains(why),
        "{words:?}: {}",
        refused.stderr
    );
    assert_eq!(
        hosts.daemon.json(&["list"])?,
        json!({"rules": []}),
        "{words:?}"
    );
    Ok(())
}

#[test]
fn loopback_and_protected_prefixes_are_never_blocked() -> Result<()> {
    let protected = format!("protect: [{}, \"2001:db8::/64\"]\n", Pair::B);
    let hosts = BlockingPair::new(&protected)?;
    for (target, why) in [
        ("127.0.0.1", "loopback"),
        ("127.1.0.0/16", "loopback"),
        ("::1", "loopback"),
        (&*Pair::B.to_string(), "protects"),
        (&*Pair::B6.to_string(), "protects"),
        ("2001:db8::/64", "protects"),
    ] {
        assert_refused(&hosts, &[target], why)?;
        assert_refused(&hosts, &[target, "--force"], why)?;
    }
    // Nor through a wider target: what is protected is carved out, and says so.
    let added = hosts.add(&["0.0.0.0/0", "::/0", "--mode", "reset", "--force"])?;
    let carved = added["carved"].to_string();
    for spared in [
        Pair::B.to_string(),
        "2001:db8::/64".into(),
        Pair::A.to_string(),
    ] {
        assert!(carved.contains(&spared), "{carved}");
    }
    for a in [Pair::A, Pair::A6] {
        Connection::open(&hosts.pair.b, &hosts.pair.a, a)?.check_alive()?;
    }
    Ok(())
}

#[test]
fn own_addresses_the_gateway_and_everything_need_force() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let b = Pair::B.to_string();
    hosts
        .pair
        .a
        .run(&["ip", "route", "add", "default", "via", &b])?;
    for (target, why) in [
        (&*Pair::A.to_string(), "own address"),
        (&*Pair::A6.to_string(), "own address"),
        (&*b, "default gateway on eth0"),
        ("0.0.0.0/0", "everything"),
        ("::/0", "everything"),
    ] {
        assert_refused(&hosts, &[target], why)?;
        assert_refused(&hosts, &["198.51.100.7", target], why)?;
    }
    // A dry run refuses as the real one does.
    assert_refused(&hosts, &[&b, "--dry-run"], "default gateway")?;
    // And so does a file.
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("rules.yaml");
    std::fs::write(
        &file,
        format!("rules: [{{targets: [198.51.100.7]}}, {{targets: [{b}]}}]"),
    )?;
    let refused = hosts
        .daemon
        .blockctl(&["apply", "-f", &file.display().to_string()])?;
    assert_eq!(refused.code, 5, "{}", refused.stderr);
    assert_eq!(hosts.daemon.json(&["list"])?, json!({"rules": []}));

    let added = hosts.add(&[&b, "--force", "--mode", "reset"])?;
    assert_eq!(added["created"], true);
    let error = connect_error(&hosts.pair.b, (Pair::A, 9).into())?;
    assert_eq!(error, Some(Errno::ECONNREFUSED));
    Ok(())
}

#[test]
fn the_callers_ssh_peer_is_refused_and_carved_out() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let pair = &hosts.pair;
    let b = Pair::B.to_string();
    let mut session = Connection::open(&pair.b, &pair.a, Pair::A)?;

    let refused = add_over_ssh(&hosts, &[&b])?;
    assert_eq!(refused.code, 5, "{refused:?}");
    assert!(refused.stderr.contains("SSH session"), "{refused:?}");
    assert!(refused.stderr.contains("--force"), "{refused:?}");

    // A wider target is taken, without it.
    for (target, force) in [("10.171.0.0/16", &[][..]), ("0.0.0.0/0", &["--force"])] {
        let words = [&[target, "--mode", "reset", "--id", "wide"], force].concat();
        let added: Value = add_over_ssh(&hosts, &words)?.success()?.json()?;
        let why = added["carved"].as_array().and_then(|carved| {
            let spared = carved.iter().find(|spared| spared["target"] == *b)?;
            spared["why"].as_str().map(str::to_owned)
        });
        assert_eq!(
            why.as_deref(),
            Some("your own SSH session comes from it"),
            "{added}"
        );
        session.check_alive()?;
        Connection::open(&pair.b, &pair.a, Pair::A)?.check_alive()?;
        hosts.del(&["wide"])?;
    }

    // A person is told, too.
    let mut command = hosts.daemon.blockctl_command();
    command
        .env("SSH_CONNECTION", format!("{b} 50022 {} 22", Pair::A))
        .args(["add", "10.171.0.0/16", "--id", "told"]);
    let told = String::from_utf8(command.output()?.stdout)?;
    assert!(told.contains(&b) && told.contains("SSH session"), "{told}");
    hosts.del(&["told"])?;

    // Who insists gets it.
    add_over_ssh(&hosts, &[&b, "--mode", "reset", "--force"])?.success()?;
    assert!(session.wait_dead(soon())?);
    Ok(())
}

#[test]
fn exceptions_are_left_alone() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let pair = &hosts.pair;
    let mut flow = Connection::open(&pair.b, &pair.a, Pair::A)?;
    let b = Pair::B.to_string();
    hosts.add(&["10.171.0.0/16", "--except", &b, "--mode", "reset"])?;
    flow.check_alive()?;
    Connection::open(&pair.b, &pair.a, Pair::A)?.check_alive()?;
    Ok(())
}
