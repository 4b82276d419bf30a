//! A device without a link-layer header: a pair of tun devices, which every kernel has. WireGuard and
//! the kernel's IP tunnels are of the same kind.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use xtask::hosts::{Connection, Listener, Namespace, Pair, connect_timed, poll};

use crate::blocking_pair::{BlockingPair, PATIENCE, connect_error, settle, soon, udp};

const A: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const B: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const A6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 1));
const B6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 2));

/// A tunnel between two hosts: `tun0` in each, what goes out of one comes in by the other.
struct Tunnel<'a>(&'a Pair);

impl<'a> Tunnel<'a> {
    fn dig(pair: &'a Pair) -> Result<Self> {
        let a = Arc::new(tun(&pair.a)?);
        let b = Arc::new(tun(&pair.b)?);
        for (host, addresses) in [
            (&pair.a, ["192.0.2.1/24", "2001:db8:7::1/64"]),
            (&pair.b, ["192.0.2.2/24", "2001:db8:7::2/64"]),
        ] {
            for address in addresses {
                host.run(&["ip", "address", "add", address, "dev", "tun0"])?;
            }
            host.run(&["ip", "link", "set", "tun0", "up"])?;
        }
        for (from, to) in [(&a, &b), (&b, &a)] {
            let (from, to) = (Arc::clone(from), Arc::clone(to));
            // Ends when its device is deleted: reading fails then.
            std::thread::spawn(move || carry(&from, &to));
        }
        Ok(Self(pair))
    }
}

impl Drop for Tunnel<'_> {
    fn drop(&mut self) {
        for host in [&self.0.a, &self.0.b] {
            // Gone already is as good.
            let _ = host.run(&["ip", "link", "delete", "tun0"]);
        }
    }
}

/// Makes `tun0`: it lives as long as the file is open.
fn tun(host: &Namespace) -> Result<File> {
    host.enter(|| {
        let mut options = File::options();
        let file = options.read(true).write(true).open("/dev/net/tun")?;
        // SAFETY: all its fields may be zero.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"tun0") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        Errno::result(done)?;
        Ok::<_, std::io::Error>(file)
    })?
    .context("a tun device cannot be made")
}

fn carry(mut from: &File, mut to: &File) {
    let mut packet = vec![0; 1 << 16];
    while let Ok(length) = from.read(&mut packet) {
        // A device that is down takes none, as any wire.
        let _ = to.write(&packet[..length]);
    }
}

/// Waits until the daemon has attached to the tunnel; gives what it says of it.
fn wait_attached(hosts: &BlockingPair) -> Result<serde_json::Value> {
    poll("tun0 to be attached", PATIENCE, || {
        let status = hosts.daemon.json(&["status"]).ok()?;
        let devices = status["interfaces"].as_array()?;
        devices
            .iter()
            .find(|device| device["name"] == "tun0")
            .cloned()
    })
}

#[test]
fn resets_reach_both_ends() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let pair = &hosts.pair;
    let _tunnel = Tunnel::dig(pair)?;
    let device = wait_attached(&hosts)?;
    let hooks: Vec<_> = device["hooks"]
        .as_array()
        .context("hooks")?
        .iter()
        .map(|hook| hook["hook"].as_str())
        .collect();
    assert_eq!(hooks, [Some("tc-ingress"), Some("tc-egress")], "{device}");
    for (a, b) in [(A, B), (A6, B6)] {
        let in_a = Listener::new(&pair.a, a, 0)?;
        let in_b = Listener::new(&pair.b, b, 0)?;
        let mut idle = in_a.connect(&pair.b)?;
        idle.check_alive()?;
        settle(&idle)?;
        let target = b.to_string();
        let added = hosts.add(&[&target, "--mode", "reset"])?;
        assert_eq!(added["teardown"]["killed"], 1, "{added}");
        assert!(idle.wait_dead(soon())?, "{idle:?}");
        for (host, listener) in [(&pair.a, &in_b), (&pair.b, &in_a)] {
            let error = connect_error(host, listener.address)?;
            assert_eq!(error, Some(Errno::ECONNREFUSED), "{a}, {}", host.name());
        }
        for (host, from, to) in [(&pair.a, a, b), (&pair.b, b, a)] {
            let socket = udp(host, from, Some((to, 5300).into()))?;
            socket.send(b"?")?;
            let error = socket
                .recv(&mut [0; 8])
                .expect_err("no answer")
                .raw_os_error();
            assert_eq!(error.map(Errno::from_raw), Some(Errno::ECONNREFUSED), "{a}");
        }
        hosts.del(&[&target])?;

        for from_b in [true, false] {
            let mut kept = in_a.connect(&pair.b)?;
            kept.check_alive()?;
            hosts.add(&[&target, "--mode", "reset", "--established", "keep"])?;
            match from_b {
                true => kept.client.send(b"?")?,
                false => kept.server.send(b"?")?,
            }
            assert!(kept.wait_dead(soon())?, "{a}, from B: {from_b}: {kept:?}");
            hosts.del(&[&target])?;
        }
        in_a.connect(&pair.b)?.check_alive()?;
    }
    Ok(())
}

#[test]
fn rejects_and_drops_work_as_on_any_device() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let pair = &hosts.pair;
    let _tunnel = Tunnel::dig(pair)?;
    wait_attached(&hosts)?;
    for (a, b) in [(A, B), (A6, B6)] {
        let target = b.to_string();
        let mut flow = Connection::open(&pair.b, &pair.a, a)?;
        hosts.add(&[&target, "--mode", "reject", "--id", "tell"])?;
        let prohibited = if a.is_ipv4() {
            Errno::EHOSTUNREACH
        } else {
            Errno::EACCES
        };
        for (host, to) in [(&pair.a, b), (&pair.b, a)] {
            assert_eq!(
                connect_error(host, (to, 9).into())?,
                Some(prohibited),
                "{a}"
            );
        }
        hosts.del(&["tell"])?;
        hosts.add(&[&target, "--mode", "drop", "--id", "silent"])?;
        flow.client.send(b"late")?;
        for (host, to) in [(&pair.a, b), (&pair.b, a)] {
            let (stream, _) = connect_timed(host, (to, 9).into(), Duration::from_millis(200))?;
            let error = stream.expect_err("blocked").kind();
            assert_eq!(error, std::io::ErrorKind::TimedOut, "{a}");
        }
        hosts.wait_packets("silent", 3)?;
        hosts.del(&["silent"])?;
        assert_eq!(flow.server.receive(4, PATIENCE)?, b"late");
    }
    Ok(())
}
