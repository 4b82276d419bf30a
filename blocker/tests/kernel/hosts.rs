//! [`xtask::hosts`] itself: the other tests rely on it to show what both ends of a connection see.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::errno::Errno;
use xtask::hosts::{Bridged, Capture, Connection, Namespace, Pair, Routed, connect_timed};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

#[test]
fn every_topology_carries_ipv4_and_ipv6() -> Result<()> {
    let pair = Pair::new()?;
    let routed = Routed::new()?;
    let bridged = Bridged::new()?;
    for (client, server, address) in [
        (&pair.b, &pair.a, Pair::A),
        (&pair.a, &pair.b, Pair::B6),
        (&routed.client, &routed.server, Routed::SERVER),
        (&routed.client, &routed.server, Routed::SERVER6),
        (&bridged.client, &bridged.server, Bridged::SERVER),
        (&bridged.client, &bridged.server, Bridged::SERVER6),
    ] {
        let mut connection = Connection::open(client, server, address)?;
        connection.check_alive()?;
        assert_eq!(connection.client.state()?, "ESTABLISHED", "{address}");
        assert_eq!(connection.client.death(), None, "{address}");
    }
    Ok(())
}

#[test]
fn a_reset_is_seen_by_the_idle_end() -> Result<()> {
    let pair = Pair::new()?;
    let mut connection = Connection::open(&pair.b, &pair.a, Pair::A)?;
    let port = connection.server.local()?.port().to_string();
    assert!(!connection.wait_dead(Instant::now() + Duration::from_millis(20))?);
    let start = Instant::now();
    pair.a
        .run(&["ss", "--kill", "--tcp", "--no-header", "sport", "=", &port])?;
    assert!(connection.wait_dead(soon())?);
    let errors = [&connection.server, &connection.client].map(|end| end.death().unwrap().error);
    assert_eq!(errors, [Some(Errno::ECONNABORTED), Some(Errno::ECONNRESET)]);
    let after = connection.client.death().unwrap().at - start;
    assert!(after < Duration::from_secs(1), "seen after {after:?}");
    assert_eq!(connection.client.state()?, "CLOSED");
    Ok(())
}

#[test]
fn a_refused_connection_is_told_from_a_silent_one() -> Result<()> {
    let pair = Pair::new()?;
    let closed = (Pair::A, 9).into();
    let (refused, after) = connect_timed(&pair.b, closed, Duration::from_secs(5))?;
    assert_eq!(
        refused.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
    assert!(after < Duration::from_secs(1), "refused after {after:?}");
    pair.a
        .run(&["iptables", "-w", "-A", "INPUT", "-j", "DROP"])?;
    let (silent, after) = connect_timed(&pair.b, closed, Duration::from_millis(300))?;
    assert_eq!(silent.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    assert!(
        after >= Duration::from_millis(300),
        "gave up after {after:?}"
    );
    Ok(())
}

#[test]
fn a_capture_holds_what_its_filter_names() -> Result<()> {
    let pair = Pair::new()?;
    let capture = Capture::start(&pair.a, "eth0", "tcp[tcpflags] & tcp-syn != 0")?;
    let mut connection = Connection::open(&pair.b, &pair.a, Pair::A)?;
    connection.check_alive()?;
    capture.wait_for(2, Duration::from_secs(5))?;
    let packets = capture.finish()?;
    assert_eq!(packets.len(), 2, "SYN and SYN-ACK");
    for (packet, source) in packets.iter().zip([Pair::B, Pair::A]) {
        let IpAddr::V4(source) = source else {
            unreachable!("the pair's first addresses are IPv4")
        };
        assert_eq!(packet[26..30], source.octets());
    }
    Ok(())
}

/// A new namespace has the IPv4 settings of the machine, on which Docker may have changed them.
#[test]
fn a_host_does_not_have_the_settings_of_the_machine() -> Result<()> {
    let host = Namespace::new("host")?;
    for name in ["ip_forward", "conf/all/rp_filter", "conf/default/rp_filter"] {
        let path = format!("/proc/sys/net/ipv4/{name}");
        assert_eq!(host.run(&["cat", &path])?.trim(), "0", "{name}");
    }
    Ok(())
}

#[test]
fn a_dropped_namespace_is_gone() -> Result<()> {
    let namespace = Namespace::new("short")?;
    let path = namespace.path();
    assert!(path.exists());
    drop(namespace);
    assert!(!Path::new(&path).exists());
    Ok(())
}
