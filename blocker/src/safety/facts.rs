//! Gathers what [`super::review`] decides by: the host's addresses, gateways and resolvers, and
//! where the caller's SSH session comes from.
//!
//! The parsers are pure. What cannot be read is reported, and the rest is gathered all the same: it is
//! worse to be unable to block than to lack one safety check.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use super::HostFacts;

/// The files that facts are read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// The proc file system.
    pub proc: PathBuf,
    /// Files in the format of `resolv.conf(5)`. One that is not there names no resolver.
    pub resolv_conf: Vec<PathBuf>,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            proc: "/proc".into(),
            // Where the first names only systemd-resolved's stub on loopback, the second names
            // the resolvers behind it.
            resolv_conf: vec![
                "/etc/resolv.conf".into(),
                "/run/systemd/resolve/resolv.conf".into(),
            ],
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caller<'a> {
    /// Its process, in the daemon's pid namespace.
    pub pid: Option<i32>,
    /// Its `SSH_CONNECTION`, if it sent that.
    pub ssh_connection: Option<&'a str>,
}

/// Gathers the facts as they are in the daemon's network namespace. Returns messages on what could not
/// be read, too.
#[must_use]
pub fn gather(sources: &Sources, caller: Caller<'_>) -> (HostFacts, Vec<String>) {
    let mut problems = Vec::new();
    let mut read = |path: &Path| match fs::read_to_string(path) {
        Ok(text) => text,
        // No such file: no IPv6, no resolver.
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => {
            problems.push(format!("cannot read {}: {error}", path.display()));
            String::new()
        }
    };
    let mut gateways = gateways_v4(&read(&sources.proc.join("net/route")));
    gateways.extend(gateways_v6(&read(&sources.proc.join("net/ipv6_route"))));
    let mut resolvers: Vec<IpAddr> = Vec::new();
    for path in &sources.resolv_conf {
        resolvers.extend(nameservers(&read(path)));
    }
    resolvers.sort_unstable();
    resolvers.dedup();
    let own = own_addresses().unwrap_or_else(|error| {
        problems.push(format!("cannot list this host's addresses: {error}"));
        Vec::new()
    });
    let told = caller.ssh_connection.and_then(ssh_peer);
    let ssh_peer = told.or_else(|| ssh_peer_of(&sources.proc, caller.pid?));
    let facts = HostFacts {
        own,
        gateways,
        resolvers,
        ssh_peer,
    };
    (facts, problems)
}

/// The addresses of all devices but loopback's.
fn own_addresses() -> nix::Result<Vec<IpAddr>> {
    let mut own: Vec<IpAddr> = nix::ifaddrs::getifaddrs()?
        .filter_map(|device| device.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
        })
        .filter(|address| !address.is_loopback())
        .collect();
    own.sort_unstable();
    own.dedup();
    Ok(own)
}

/// `RTF_GATEWAY` of `linux/route.h`: the route goes through a gateway.
const RTF_GATEWAY: u32 = 2;

/// Default gateways by `/proc/net/route` (the kernel's `fib_route_seq_show`): addresses are 32
/// bits in network order, printed as a host integer in hexadecimal.
fn gateways_v4(text: &str) -> Vec<(IpAddr, String)> {
    let number = |field: Option<&&str>| u32::from_str_radix(field?, 16).ok();
    let gateway = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (destination, mask) = (number(fields.get(1))?, number(fields.get(7))?);
        let flags = number(fields.get(3))?;
        if destination != 0 || mask != 0 || flags & RTF_GATEWAY == 0 {
            return None;
        }
        let address = Ipv4Addr::from(number(fields.get(2))?.to_ne_bytes());
        Some((IpAddr::from(address), (*fields.first()?).to_owned()))
    };
    // The first line names the columns.
    text.lines().skip(1).filter_map(gateway).collect()
}

/// Default gateways by `/proc/net/ipv6_route` (the kernel's `rt6_info_route`): destination,
/// its length, source, its length, next hop, metric, references, use, flags, device.
fn gateways_v6(text: &str) -> Vec<(IpAddr, String)> {
    let gateway = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let address = |field: Option<&&str>| u128::from_str_radix(field?, 16).ok();
        let flags = u32::from_str_radix(fields.get(8)?, 16).ok()?;
        let length = u8::from_str_radix(fields.get(1)?, 16).ok()?;
        if address(fields.first())? != 0 || length != 0 || flags & RTF_GATEWAY == 0 {
            return None;
        }
        let next_hop = Ipv6Addr::from(address(fields.get(4))?);
        Some((IpAddr::from(next_hop), (*fields.get(9)?).to_owned()))
    };
    text.lines().filter_map(gateway).collect()
}

/// The resolvers that a `resolv.conf(5)` names, but those on loopback.
fn nameservers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then(|| address(words.next()?))?
        })
        .filter(|address| !address.is_loopback())
        .collect()
}

/// The first field of an `SSH_CONNECTION`: where the session comes from.
fn ssh_peer(connection: &str) -> Option<IpAddr> {
    address(connection.split_whitespace().next()?).filter(|peer| !peer.is_loopback())
}

/// An address, perhaps with a zone (`fe80::1%eth0`) or IPv4-mapped.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.split('%').next()?;
    bare.parse::<IpAddr>()
        .ok()
        .map(|address| address.to_canonical())
}

/// Most processes between a caller and its SSH session. More means a loop, by reused pids.
const ANCESTORS: usize = 64;

/// The peer of the SSH session that a process belongs to. It is taken from the process' environment
/// or, since sudo and su clear that, from the nearest ancestor's that has it.
fn ssh_peer_of(proc: &Path, pid: i32) -> Option<IpAddr> {
    let mut pid = pid;
    for _ in 0..ANCESTORS {
        if pid <= 1 {
            return None;
        }
        let dir = proc.join(pid.to_string());
        let environment = fs::read(dir.join("environ")).unwrap_or_default();
        if let Some(peer) = ssh_connection(&environment).and_then(ssh_peer) {
            return Some(peer);
        }
        pid = parent(&fs::read_to_string(dir.join("status")).ok()?)?;
    }
    None
}

/// `SSH_CONNECTION` in an environment, whose variables end with NUL.
fn ssh_connection(environment: &[u8]) -> Option<&str> {
    environment
        .split(|byte| *byte == 0)
        .filter_map(|variable| std::str::from_utf8(variable).ok())
        .find_map(|variable| variable.strip_prefix("SSH_CONNECTION="))
}

/// The parent's pid in a `/proc/PID/status`.
fn parent(status: &str) -> Option<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn default_gateways_are_found_among_the_routes() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
            wg0\t00000000\t00000000\t0001\t0\t0\t200\t00000000\t0\t0\t0\n\
            eth0\t0000000A\t0200A8C0\t0003\t0\t0\t0\t000000FF\t0\t0\t0\n\
            eth1\t00000000\tFE01020A\t0003\t0\t0\t300\t00000000\t0\t0\t0\n\
            torn\t0000";
        assert_eq!(
            gateways_v4(text),
            [
                (ip("192.168.0.1"), "eth0".to_owned()),
                (ip("10.2.1.254"), "eth1".to_owned())
            ]
        );
        assert!(gateways_v4("").is_empty());
    }

    #[test]
    fn default_gateways_are_found_among_the_ipv6_routes() {
        let zero = "0".repeat(32);
        let hop = "fe800000000000000000000000000001";
        let net = "20010db8000000000000000000000000";
        let text = format!(
            "{zero} 00 {zero} 00 {hop} 00000400 00000001 00000000 00000003     eth0\n\
             {net} 20 {zero} 00 {hop} 00000400 00000001 00000000 00000003     eth0\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n\
             {net} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth0\n"
        );
        assert_eq!(gateways_v6(&text), [(ip("fe80::1"), "eth0".to_owned())]);
    }

    #[test]
    fn resolvers_are_those_not_on_loopback() {
        let text = "# nameserver 1.1.1.1\n; nameserver 1.1.1.2\nsearch example.org\n\
            nameserver 9.9.9.9\nnameserver\t2620:fe::fe # quad9\nnameserver fe80::1%eth0\n\
            nameserver 127.0.0.53\nnameserver ::1\nnameserver\nnameserver x\noptions edns0\n";
        assert_eq!(
            nameservers(text),
            [ip("9.9.9.9"), ip("2620:fe::fe"), ip("fe80::1")]
        );
    }

    #[test]
    fn the_peer_of_an_ssh_session_is_its_first_address() {
        for (text, peer) in [
            ("192.0.2.7 50022 10.0.0.1 22", Some(ip("192.0.2.7"))),
            ("fe80::2%eth0 50022 fe80::1%eth0 22", Some(ip("fe80::2"))),
            (
                "::ffff:192.0.2.7 1 ::ffff:10.0.0.1 22",
                Some(ip("192.0.2.7")),
            ),
            ("127.0.0.1 1 127.0.0.1 22", None),
            ("UNKNOWN 65535 UNKNOWN 65535", None),
            ("", None),
        ] {
            assert_eq!(ssh_peer(text), peer, "{text:?}");
        }
    }

    /// A proc file system with these processes: pid, parent, environment.
    fn proc(processes: &[(i32, i32, &[u8])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (pid, parent, environment) in processes {
            let dir = root.path().join(pid.to_string());
            fs::create_dir(&dir).unwrap();
            let status = format!("Name:\tsh\nPid:\t{pid}\nPPid:\t{parent}\nTracerPid:\t0\n");
            fs::write(dir.join("status"), status).unwrap();
            fs::write(dir.join("environ"), environment).unwrap();
        }
        root
    }

    #[test]
    fn the_session_is_found_through_sudo() {
        let session = b"HOME=/\0SSH_CONNECTION=192.0.2.7 1 10.0.0.1 22\0LANG=\xff\0";
        let root = proc(&[
            (50, 40, b"SUDO_USER=a\0"),
            (40, 30, b""),
            (30, 20, session),
            (20, 1, b"XSSH_CONNECTION=192.0.2.9 1 10.0.0.1 22\0"),
        ]);
        let peer = |pid| ssh_peer_of(root.path(), pid);
        for pid in [50, 40, 30] {
            assert_eq!(peer(pid), Some(ip("192.0.2.7")));
        }
        for pid in [20, 99, 1, 0, -1] {
            assert_eq!(peer(pid), None);
        }
    }

    #[test]
    fn a_loop_of_parents_ends() {
        let root = proc(&[(50, 40, b""), (40, 50, b"")]);
        assert_eq!(ssh_peer_of(root.path(), 50), None);
    }

    #[test]
    fn what_the_caller_tells_goes_before_what_its_process_shows() {
        let root = proc(&[(50, 1, b"SSH_CONNECTION=192.0.2.7 1 10.0.0.1 22\0")]);
        let sources = Sources {
            proc: root.path().into(),
            resolv_conf: vec![root.path().join("resolv.conf"), root.path().into()],
        };
        fs::write(root.path().join("resolv.conf"), "nameserver 9.9.9.9\n").unwrap();
        let facts = |ssh_connection| {
            let caller = Caller {
                pid: Some(50),
                ssh_connection,
            };
            gather(&sources, caller)
        };
        assert_eq!(facts(None).0.ssh_peer, Some(ip("192.0.2.7")));
        let told = facts(Some("192.0.2.8 1 10.0.0.1 22"));
        assert_eq!(told.0.ssh_peer, Some(ip("192.0.2.8")));
        assert_eq!(facts(Some("")).0.ssh_peer, Some(ip("192.0.2.7")));
        assert_eq!(told.0.resolvers, [ip("9.9.9.9")]);
        assert!(told.0.own.iter().all(|address| !address.is_loopback()));
        // The second resolv.conf is a directory, which is reported; missing routes mean no gateway.
        assert_eq!(told.1.len(), 1, "{:?}", told.1);
    }
}
