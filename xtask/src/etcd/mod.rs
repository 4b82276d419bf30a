//! What an etcd of three members with TLS is made of: its certificates, its addresses, the arguments
//! of a member. Whoever starts them adds where they log, and at what level.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

/// How many members there are.
pub const MEMBERS: usize = 3;

/// Where clients reach the members, of which all listen on one address.
pub fn endpoints(address: &str) -> Vec<String> {
    (0..MEMBERS)
        .map(|member| url(address, 2379, member))
        .collect()
}

fn url(address: &str, first: usize, member: usize) -> String {
    format!("https://{address}:{}", first + 100 * member)
}

/// The command that makes an authority, a certificate for the members and one for each user, in this
/// directory.
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

/// Gives a command the arguments of a member; `state` is `new`, or `existing` for one that was killed.
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
