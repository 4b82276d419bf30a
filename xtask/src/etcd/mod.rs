//! An etcd of three members with TLS: its certificates, its addresses, and the arguments of a member.
//! The caller that starts the members adds the destination and level of their logs.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

/// The number of members.
pub const MEMBERS: usize = 3;

/// The URLs at which clients reach the members. All members listen on one address.
pub fn endpoints(address: &str) -> Vec<String> {
    (0..MEMBERS)
        .map(|member| url(address, 2379, member))
        .collect()
}

fn url(address: &str, first: usize, member: usize) -> String {
    format!("https://{address}:{}", first + 100 * member)
}

/// The command that makes, in a directory, a certificate authority, a certificate for the members and
/// one for each user.
pub fn certificates(files: &Path, address: &str, users: &[String]) -> Result<Command> {
    let script = files.join("certificates.sh");
    fs::write(&script, include_str!("certificates.sh"))?;
    let mut command = Command::new("sh");
    command
        .arg(&script)
        .arg(address)
        .args(users)
        .current_dir(files);
    Ok(command)
}

/// Adds a member's arguments to a command. `state` is `new`, or `existing` to start a killed member.
pub fn member(command: &mut Command, files: &Path, address: &str, member: usize, state: &str) {
    let (client, peer) = (url(address, 2379, member), url(address, 2380, member));
    let cluster: Vec<String> = (0..MEMBERS)
        .map(|m| format!("m{m}={}", url(address, 2380, m)))
        .collect();
    let name = format!("m{member}");
    command
        .args(["--name", &name, "--logger", "zap"])
        .arg("--data-dir")
        .arg(files.join(&name))
        .args(["--listen-client-urls", &client])
        .args(["--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &cluster.join(",")])
        .args(["--initial-cluster-state", state])
        .args(["--client-cert-auth", "--peer-client-cert-auth"]);
    for flag in ["", "peer-"] {
        for (kind, file) in [
            ("trusted-ca", "ca.pem"),
            ("cert", "etcd.pem"),
            ("key", "etcd.key"),
        ] {
            command
                .arg(format!("--{flag}{kind}-file"))
                .arg(files.join(file));
        }
    }
}
