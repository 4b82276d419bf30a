//! A host whose kernel cannot list conntrack entries: no `nf_conntrack_netlink`.
//!
//! `cargo xtask test --kernel` takes the module away; elsewhere the kernel would load it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use xtask::hosts::{Connection, Daemon, Routed};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

/// Whether one of these lines contains a text.
fn says(lines: &Value, text: &str) -> bool {
    let lines = lines.as_array().into_iter().flatten();
    lines
        .filter_map(Value::as_str)
        .any(|line| line.contains(text))
}

#[test]
#[ignore = "needs a kernel without nf_conntrack_netlink: cargo xtask test --kernel"]
fn flows_of_this_host_die_and_forwarded_ones_at_their_next_segment() -> Result<()> {
    let hosts = Routed::new()?;
    let router = Daemon::start(&hosts.router, &crate::programs(), "")?;
    let status = router.json(&["status"])?;
    ensure!(says(&status["lacks"], "CONFIG_NF_CT_NETLINK"), "{status:#}");
    let block = |remote: IpAddr, found: u64| -> Result<()> {
        let answer = router.json(&["add", &remote.to_string(), "--mode", "reset"])?;
        let account = &answer["teardown"];
        ensure!(account["found"] == found, "{account:#}");
        ensure!(account["killed"] == found, "{account:#}");
        let note = "forwarded connections were not looked at";
        ensure!(says(&account["notes"], note), "{account:#}");
        Ok(())
    };
    let mut forwarded = Connection::open(&hosts.client, &hosts.server, Routed::SERVER)?;
    let mut own = Connection::open(&hosts.router, &hosts.client, Routed::CLIENT)?;
    block(Routed::SERVER, 0)?;
    ensure!(forwarded.client.look()?.is_none() && forwarded.server.look()?.is_none());
    forwarded.client.send(b"?")?;
    ensure!(forwarded.wait_dead(soon())?, "{forwarded:?}");
    block(Routed::CLIENT, 1)?;
    ensure!(own.wait_dead(soon())?, "{own:?}");
    Ok(())
}
