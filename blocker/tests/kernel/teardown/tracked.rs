//! Conntrack, without the datapath: which forwarded flows are found, under which addresses they are
//! probed, and which conntrack entries are deleted.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use blocker::rule::Rule;
use blocker::teardown::Evidence;
use blocker::wire::Account;
use blocker_ebpf::kill as bits;
use xtask::hosts::{Capture, Connection, Namespace, Routed, poll};

use crate::fixed_evidence::{FixedEvidence, SETTINGS, kill, list, reset, reset_of};

/// A rule that makes netfilter track what is forwarded.
fn track(router: &Namespace) -> Result<()> {
    for family in ["iptables", "ip6tables"] {
        let rule = "-A FORWARD -m conntrack --ctstate INVALID -m comment --comment tracks";
        let words: Vec<&str> = [family].into_iter().chain(rule.split(' ')).collect();
        router.run(&words)?;
    }
    Ok(())
}

fn entries(router: &Namespace, remote: IpAddr) -> Result<usize> {
    let family = if remote.is_ipv4() { "ipv4" } else { "ipv6" };
    let table = router.run(&["conntrack", "-L", "-f", family])?;
    let remote = remote.to_string();
    Ok(table.lines().filter(|line| line.contains(&remote)).count())
}

fn kill_on(router: &Namespace, rules: &[Rule], evidence: &dyn Evidence) -> Result<Account> {
    router.enter(|| kill(rules, &SETTINGS, evidence, &|_| {}))
}

#[test]
fn forwarded_flows_are_found_and_their_entries_deleted() -> Result<()> {
    for (client, server) in [
        (Routed::CLIENT, Routed::SERVER),
        (Routed::CLIENT6, Routed::SERVER6),
    ] {
        let hosts = Routed::new()?;
        track(&hosts.router)?;
        let mut connection = Connection::open(&hosts.client, &hosts.server, server)?;
        connection.check_alive()?;
        // Either end may be the remote.
        for remote in [client, server] {
            let rules = reset_of(remote)?;
            let listing = hosts.router.enter(|| list(&rules, &SETTINGS))?;
            let [flow] = &listing.flows[..] else {
                panic!("{remote}: {listing:?}");
            };
            let from = connection.client.local()?;
            assert_eq!(flow.remote, remote);
            assert_eq!(flow.state, "ESTABLISHED");
            let port = if remote == client {
                flow.remote_port
            } else {
                flow.local_port
            };
            assert_eq!(port, from.port());
        }
        assert_eq!(entries(&hosts.router, server)?, 1);
        let account = kill_on(
            &hosts.router,
            &reset_of(server)?,
            &FixedEvidence::everything(),
        )?;
        assert_eq!((account.found, account.killed), (1, 1), "{account:?}");
        assert_eq!(entries(&hosts.router, server)?, 0);
    }
    Ok(())
}

#[test]
fn what_is_not_dead_keeps_its_entry_and_is_accounted_for() -> Result<()> {
    let hosts = Routed::new()?;
    track(&hosts.router)?;
    let mut connection = Connection::open(&hosts.client, &hosts.server, Routed::SERVER)?;
    for (seen, lacking) in [
        (0, "either end"),
        (bits::REMOTE, "the local end"),
        (bits::LOCAL, "the remote end"),
    ] {
        let account = kill_on(
            &hosts.router,
            &reset_of(Routed::SERVER)?,
            &FixedEvidence::bits(seen),
        )?;
        assert_eq!((account.found, account.killed), (1, 0), "{account:?}");
        let expected = format!("no RST was seen to go to {lacking}");
        assert!(account.left[0].why.contains(&expected), "{account:?}");
        assert_eq!(entries(&hosts.router, Routed::SERVER)?, 1);
    }
    connection.check_alive()
}

#[test]
fn behind_a_masquerade_each_end_is_probed_by_the_addresses_that_it_knows() -> Result<()> {
    let hosts = Routed::new()?;
    hosts.router.run(&[
        "iptables",
        "-t",
        "nat",
        "-A",
        "POSTROUTING",
        "-o",
        "right",
        "-j",
        "MASQUERADE",
    ])?;
    // Not by the laboratory's own means: these wait for a client of the address that it has.
    let listener = hosts
        .server
        .enter(|| TcpListener::bind((Routed::SERVER, 0)))??;
    let address = listener.local_addr()?;
    let client = hosts.client.enter(|| TcpStream::connect(address))??;
    let (server, _) = listener.accept()?;
    let captures = [
        Capture::start(&hosts.client, "eth0", "tcp[13] = 16")?,
        Capture::start(&hosts.server, "eth0", "tcp[13] = 16")?,
    ];
    // The router's devices see the client's own address only on the client's side.
    for (local, found) in [("10.171.170.104", 0), ("10.48.22.1", 1)] {
        let of_local = format!(r#""targets":["{}"],"local":["{local}"]"#, Routed::SERVER);
        let rules = reset(&of_local)?;
        let listing = hosts.router.enter(|| list(&rules, &SETTINGS))?;
        assert_eq!(listing.flows.len(), found, "{local}: {listing:?}");
    }
    let account = kill_on(
        &hosts.router,
        &reset_of(Routed::SERVER)?,
        &FixedEvidence::nothing(),
    )?;
    assert_eq!(account.found, 1, "{account:?}");
    // What each end received: (source, destination), as it knows the connection.
    let ends = [
        (client.peer_addr()?, client.local_addr()?),
        (server.peer_addr()?, server.local_addr()?),
    ];
    for (capture, (from, to)) in captures.into_iter().zip(ends) {
        let probes = poll("six probes", Duration::from_secs(5), || {
            let frames = capture.packets().ok()?;
            let probes = frames
                .iter()
                .filter(|frame| addresses(frame) == (from, to))
                .count();
            (probes >= 6).then_some(probes)
        });
        probes.with_context(|| format!("{from} to {to}"))?;
    }
    Ok(())
}

/// Source and destination of an IPv4 frame without options.
fn addresses(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    let address = |at: usize, port: usize| {
        let octets: [u8; 4] = frame[at..at + 4].try_into().expect("four bytes");
        let port = u16::from_be_bytes([frame[port], frame[port + 1]]);
        (IpAddr::from(octets), port).into()
    };
    (address(26, 34), address(30, 36))
}

#[test]
fn udp_entries_go_too_and_others_stay() -> Result<()> {
    let hosts = Routed::new()?;
    track(&hosts.router)?;
    let send = |port: u16| {
        hosts.client.enter(|| {
            let socket = std::net::UdpSocket::bind((Routed::CLIENT, 0))?;
            socket.send_to(b"?", (Routed::SERVER, port))
        })
    };
    send(7)??;
    send(9)??;
    poll("both to be tracked", Duration::from_secs(5), || {
        (entries(&hosts.router, Routed::SERVER).ok()? == 2).then_some(())
    })?;
    let rules = reset(&format!(
        r#""targets":["{}"],"remote_ports":[7]"#,
        Routed::SERVER
    ))?;
    let account = kill_on(&hosts.router, &rules, &FixedEvidence::everything())?;
    assert_eq!(
        account.found, 0,
        "a datagram is no flow to kill: {account:?}"
    );
    assert_eq!(entries(&hosts.router, Routed::SERVER)?, 1);
    Ok(())
}

#[test]
fn a_router_that_tracks_nothing_is_noted() -> Result<()> {
    let hosts = Routed::new()?;
    let account = kill_on(
        &hosts.router,
        &reset_of(Routed::SERVER)?,
        &FixedEvidence::everything(),
    )?;
    assert_eq!(account.found, 0);
    assert!(
        account
            .notes
            .iter()
            .any(|note| note.contains("tracks no connections")),
        "{account:?}"
    );
    let account = kill_on(
        &hosts.client,
        &reset_of(Routed::SERVER)?,
        &FixedEvidence::everything(),
    )?;
    assert_eq!(account.notes, [""; 0], "the client forwards nothing");
    Ok(())
}

#[test]
fn one_flow_is_found_in_a_large_table() -> Result<()> {
    // Above the number from which the kernel filters.
    const OTHERS: u32 = 21_000;
    let hosts = Routed::new()?;
    track(&hosts.router)?;
    let mut connection = Connection::open(&hosts.client, &hosts.server, Routed::SERVER)?;
    let commands: String = (0..OTHERS)
        .map(|n| {
            let client = std::net::Ipv4Addr::from(0xc612_0000 + n);
            format!("-I -p udp -s {client} -d 198.51.100.1 --sport 7 --dport 7 -t 600\n")
        })
        .collect();
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), commands)?;
    let path = file.path().to_string_lossy().into_owned();
    hosts.router.run(&["conntrack", "-R", &path])?;
    for remote in [Routed::CLIENT, Routed::SERVER] {
        let rules = reset_of(remote)?;
        let listing = hosts.router.enter(|| list(&rules, &SETTINGS))?;
        assert_eq!(listing.flows.len(), 1, "{remote}: {listing:?}");
    }
    let rules = reset(r#""targets":["198.18.0.0/15"]"#)?;
    let account = kill_on(&hosts.router, &rules, &FixedEvidence::everything())?;
    assert_eq!(account.found, 0);
    assert_eq!(entries(&hosts.router, "198.51.100.1".parse()?)?, 0);
    connection.check_alive()
}
