//! Requests that Schemathesis makes of `/openapi.json`: of what it allows, of what it forbids, and of
//! everything that is near the border.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::hosts::{Daemon, Killed, Namespace, poll};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const PORT: &str = "8080";

/// Takes connections to the control socket until it is dropped: Schemathesis speaks over TCP only.
fn relay(host: &Namespace, socket: &Path) -> Result<Killed> {
    let mut socat = Command::new("socat");
    socat
        .arg(format!("TCP-LISTEN:{PORT},bind=127.0.0.1,fork,reuseaddr"))
        .arg(format!("UNIX-CONNECT:{}", socket.display()))
        .stdin(Stdio::null());
    let child = host.enter(|| socat.spawn())?;
    let relay = Killed(child.context("socat cannot be started")?);
    poll("socat to listen", Duration::from_secs(10), || {
        host.enter(|| std::net::TcpStream::connect(format!("127.0.0.1:{PORT}")))
            .ok()?
            .ok()
    })?;
    Ok(relay)
}

#[test]
fn no_request_near_what_the_document_allows_is_answered_otherwise_than_it_says() -> Result<()> {
    let host = Namespace::new("host")?;
    let daemon = Daemon::start(&host, &crate::programs(), "")?;
    let pid = daemon.pid();
    let _relay = relay(&host, &daemon.socket())?;

    let program = Path::new(ROOT).join("target/python/bin/schemathesis");
    ensure!(
        program.is_file(),
        "{} is missing: run `cargo xtask setup`",
        program.display()
    );
    let directory = tempfile::tempdir()?;
    let mut schemathesis = Command::new(program);
    schemathesis
        .arg("run")
        .arg(format!("http://127.0.0.1:{PORT}/openapi.json"))
        // These answers have no end: events go on, and a lease lasts as long as its connection.
        .args([
            "--exclude-path",
            "/v1/events",
            "--exclude-path",
            "/v1/leases",
        ])
        // Of what a schema allows, much is refused for what it means: an address that is none, a rule
        // without targets. Every answer must be one that the document has, with a body of its schema.
        .args(["--exclude-checks", "positive_data_acceptance"])
        .args(["--phases", "coverage,fuzzing", "--max-examples", "30"])
        .args(["--generation-deterministic", "--continue-on-failure"])
        .args(["--request-timeout", "60", "--no-color"])
        .current_dir(&directory)
        .stdin(Stdio::null());
    let output = host.enter(|| schemathesis.output())?;
    let output = output.context("schemathesis cannot be started")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{printed}\n{}\n{}",
        String::from_utf8_lossy(&output.stderr),
        daemon.log()
    );
    ensure!(printed.contains("Tested: 12"), "{printed}");

    assert_eq!(daemon.pid(), pid, "the same process answers");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    daemon.json(&["flush", "--all"])?;
    Ok(())
}
