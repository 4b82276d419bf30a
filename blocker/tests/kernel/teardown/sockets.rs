//! Teardown of this host's own sockets, in real network namespaces, without the datapath: what
//! the kernel does to either end, and what the account says of it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use blocker::rule::Rule;
use blocker::teardown::Namespaces;
use blocker::teardown::{Evidence, Listing, Settings};
use blocker::wire::{Account, LiveFlow};
use blocker_ebpf::FlowKey;
use nix::errno::Errno;
use xtask::hosts::{Connection, Listener, Namespace, Pair, Routed, poll};

use crate::fixed_evidence::{FixedEvidence, SETTINGS, kill, list, reset, reset_of};

fn kill_in(host: &Namespace, rules: &[Rule], evidence: &dyn Evidence) -> Result<Account> {
    host.enter(|| kill(rules, &SETTINGS, evidence, &|_| {}))
}

fn list_in(host: &Namespace, rules: &[Rule]) -> Result<Listing> {
    host.enter(|| list(rules, &SETTINGS))
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

#[test]
fn idle_flows_die_at_both_ends_and_the_server_lives() -> Result<()> {
    let pair = Pair::new()?;
    for (own, remote) in [(Pair::A, Pair::B), (Pair::A6, Pair::B6)] {
        let server = Listener::new(&pair.a, own, 0)?;
        let mut inbound = [server.connect(&pair.b)?, server.connect(&pair.b)?];
        let mut outbound = Connection::open(&pair.a, &pair.b, remote)?;
        let evidence = FixedEvidence::everything();
        let account = kill_in(&pair.a, &reset_of(remote)?, &evidence)?;
        assert_eq!((account.found, account.killed), (3, 3), "{account:?}");
        assert_eq!(
            (account.left.len(), account.notes.len()),
            (0, 0),
            "{account:?}"
        );
        for connection in inbound.iter_mut().chain([&mut outbound]) {
            assert!(connection.wait_dead(soon())?);
        }
        let errors = inbound.iter().map(|c| {
            (
                c.server.death().unwrap().error,
                c.client.death().unwrap().error,
            )
        });
        for (here, there) in errors {
            assert_eq!(here, Some(Errno::ECONNABORTED));
            assert_eq!(there, Some(Errno::ECONNRESET));
        }
        assert!(evidence.watching() == 0, "all is forgotten");
        server.connect(&pair.b)?.check_alive()?;
    }
    Ok(())
}

#[test]
fn only_what_the_rule_names_dies() -> Result<()> {
    let pair = Pair::new()?;
    let server = Listener::new(&pair.a, Pair::A, 0)?;
    let port = server.address.port();
    let mut connection = server.connect(&pair.b)?;
    let remote = Pair::B;
    for rest in [
        r#""targets":["192.0.2.1"]"#.to_owned(),
        format!(r#""targets":["10.0.0.0/8"],"except":["{remote}"]"#),
        format!(r#""targets":["{remote}"],"protocol":"udp""#),
        format!(r#""targets":["{remote}"],"ports":[9]"#),
        format!(r#""targets":["{remote}"],"remote_ports":[{port}]"#),
        format!(r#""targets":["{remote}"],"local":["{remote}","::/0"]"#),
        format!(r#""targets":["{remote}"],"interfaces":["eth9"]"#),
        format!(r#""targets":["{remote}"],"percent":99"#),
        format!(r#""targets":["{remote}"],"established":"keep""#),
    ] {
        let account = kill_in(&pair.a, &reset(&rest)?, &FixedEvidence::everything())?;
        assert_eq!(account.found, 0, "{rest}: {account:?}");
        connection.check_alive().context(rest)?;
    }
    for rest in [
        format!(r#""targets":["{remote}"],"protocol":"tcp""#),
        r#""targets":["10.0.0.0/8"]"#.to_owned(),
        r#""targets":["0.0.0.0/0"]"#.to_owned(),
        format!(r#""targets":["{remote}"],"local_ports":[{port}]"#),
        format!(r#""targets":["{remote}"],"local":["{}"]"#, Pair::A),
        format!(r#""targets":["{remote}"],"interfaces":["eth*"]"#),
        format!(r#""targets":["{remote}"],"direction":"ingress""#),
    ] {
        let mut connection = server.connect(&pair.b)?;
        let account = kill_in(&pair.a, &reset(&rest)?, &FixedEvidence::everything())?;
        assert!(account.killed >= 1, "{rest}: {account:?}");
        assert!(connection.wait_dead(soon())?, "{rest}");
    }
    Ok(())
}

#[test]
fn a_rule_of_very_many_targets_kills_the_same() -> Result<()> {
    let pair = Pair::new()?;
    let mut named = Connection::open(&pair.b, &pair.a, Pair::A)?;
    let other = pair.second_remote()?;
    let mut other = Connection::open(&pair.a, &pair.b, other)?;
    let mut targets: Vec<String> = (0..10_000u32)
        .map(|n| format!("{:?}", Ipv4Addr::from(0xcb00_7100 + 2 * n).to_string()))
        .collect();
    targets.push(format!("{:?}", Pair::B.to_string()));
    let rules = reset(&format!(r#""targets":[{}]"#, targets.join(",")))?;
    let account = kill_in(&pair.a, &rules, &FixedEvidence::everything())?;
    assert_eq!((account.found, account.killed), (1, 1), "{account:?}");
    assert!(named.wait_dead(soon())?);
    other.check_alive()
}

#[test]
fn an_ipv6_socket_that_talks_ipv4_is_found_by_its_ipv4_address() -> Result<()> {
    let pair = Pair::new()?;
    let server = Listener::new(&pair.a, "::".parse()?, 0)?;
    let port = server.address.port();
    let address = SocketAddr::new(Pair::A, port);
    let mut client = pair.b.enter(|| TcpStream::connect(address))??;
    let listed = poll("the flow to be listed", Duration::from_secs(5), || {
        let listing = list_in(&pair.a, &reset_of(Pair::B).ok()?).ok()?;
        (listing.flows.len() == 1).then_some(listing)
    })?;
    assert_eq!(listed.flows[0].remote, Pair::B);
    assert_eq!(listed.flows[0].local, Pair::A);
    let account = kill_in(&pair.a, &reset_of(Pair::B)?, &FixedEvidence::everything())?;
    assert_eq!((account.found, account.killed), (1, 1), "{account:?}");
    let error = io::Read::read(&mut client, &mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    Ok(())
}

/// The states in which A's sockets towards B are, sorted.
fn states(pair: &Pair) -> Result<Vec<String>> {
    let output = pair.a.run(&["ss", "-Htan", "dst", &Pair::B.to_string()])?;
    let mut states: Vec<String> = output
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    states.sort();
    Ok(states)
}

#[test]
fn every_state_dies_but_time_wait() -> Result<()> {
    let pair = Pair::new()?;
    let server = Listener::new(&pair.a, Pair::A, 0)?;
    let _established = server.connect(&pair.b)?;
    let close_wait = server.connect(&pair.b)?;
    close_wait
        .client
        .stream()
        .shutdown(std::net::Shutdown::Write)?;
    let fin_wait = server.connect(&pair.b)?;
    fin_wait
        .server
        .stream()
        .shutdown(std::net::Shutdown::Write)?;
    let time_wait = server.connect(&pair.b)?;
    drop(time_wait.server);
    poll("B to see the end", Duration::from_secs(5), || {
        (time_wait.client.state().ok()? == "CLOSE-WAIT").then_some(())
    })?;
    drop(time_wait.client);
    let last_ack = server.connect(&pair.b)?;
    last_ack
        .client
        .stream()
        .shutdown(std::net::Shutdown::Write)?;
    poll("A to see the end", Duration::from_secs(5), || {
        (last_ack.server.state().ok()? == "CLOSE-WAIT").then_some(())
    })?;
    // From here on B hears nothing: A's SYN-ACK and FIN go unanswered.
    pair.b
        .run(&["iptables", "-A", "INPUT", "-p", "tcp", "-j", "DROP"])?;
    drop(last_ack.server);
    let address = server.address;
    let (_half_open, _syn_sent) = (
        nonblocking_connect(&pair.b, address)?,
        nonblocking_connect(&pair.a, SocketAddr::new(Pair::B, 9))?,
    );
    let expected = [
        "CLOSE-WAIT",
        "ESTAB",
        "FIN-WAIT-2",
        "LAST-ACK",
        "SYN-RECV",
        "SYN-SENT",
        "TIME-WAIT",
    ];
    let seen = poll("all the states", Duration::from_secs(5), || {
        states(&pair).ok().filter(|states| *states == expected)
    });
    seen.with_context(|| format!("{:?}", states(&pair)))?;
    // Nor does A hear B, whose next SYN would open anew what was killed: nothing is blocked here.
    pair.b
        .run(&["iptables", "-A", "OUTPUT", "-p", "tcp", "-j", "DROP"])?;
    let account = kill_in(&pair.a, &reset_of(Pair::B)?, &FixedEvidence::everything())?;
    assert_eq!((account.found, account.killed), (6, 6), "{account:?}");
    assert_eq!(states(&pair)?, ["TIME-WAIT"]);
    Ok(())
}

/// A socket that has sent its SYN; `TcpStream` would wait for the answer.
fn nonblocking_connect(host: &Namespace, to: SocketAddr) -> Result<std::os::fd::OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
    use std::os::fd::AsRawFd;
    host.enter(|| {
        let fd = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
            Err(Errno::EINPROGRESS) => Ok(fd),
            other => anyhow::bail!("connect() said {other:?}"),
        }
    })?
}

#[test]
fn the_owner_of_a_connected_udp_socket_is_told() -> Result<()> {
    let pair = Pair::new()?;
    let remote = SocketAddr::new(Pair::B, 9);
    let socket = pair.a.enter(|| {
        let socket = UdpSocket::bind((Pair::A, 0))?;
        socket.connect(remote)?;
        Ok::<_, io::Error>(socket)
    })??;
    let unconnected = pair.a.enter(|| UdpSocket::bind((Pair::A, 0)))??;
    let account = kill_in(&pair.a, &reset_of(Pair::B)?, &FixedEvidence::nothing())?;
    assert_eq!((account.found, account.killed), (1, 1), "{account:?}");
    let error = socket.recv(&mut [0]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED));
    assert_eq!(unconnected.take_error()?.map(|e| e.to_string()), None);
    Ok(())
}

#[test]
fn without_evidence_nothing_counts_as_dead_and_the_account_says_why() -> Result<()> {
    let pair = Pair::new()?;
    let mut connection = Connection::open(&pair.b, &pair.a, Pair::A)?;
    let account = kill_in(&pair.a, &reset_of(Pair::B)?, &FixedEvidence::nothing())?;
    assert!(connection.wait_dead(soon())?);
    assert_eq!((account.found, account.killed), (1, 0), "{account:?}");
    let [left] = &account.left[..] else {
        panic!("{account:?}");
    };
    assert_eq!(left.flow.state, "ESTABLISHED");
    assert!(left.why.contains("no RST was seen"), "{}", left.why);
    // Bounded: three rounds, 293 ms in all, and some for the work itself.
    assert!(account.elapsed_ms > 250.0 && account.elapsed_ms < 2000.0);
    Ok(())
}

/// A datapath that has no room.
struct Full;

impl Evidence for Full {
    fn watch(&self, _: &[FlowKey]) -> io::Result<()> {
        Err(io::Error::other("no room"))
    }

    fn seen(&self, _: &[FlowKey]) -> io::Result<Vec<u32>> {
        Err(io::Error::other("no room"))
    }

    fn forget(&self, _: &[FlowKey]) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_datapath_that_fails_stops_no_teardown_and_is_accounted_for() -> Result<()> {
    let pair = Pair::new()?;
    let mut connection = Connection::open(&pair.b, &pair.a, Pair::A)?;
    let account = kill_in(&pair.a, &reset_of(Pair::B)?, &Full)?;
    assert!(connection.wait_dead(soon())?);
    assert_eq!((account.found, account.killed), (1, 0), "{account:?}");
    assert!(account.left[0].why.contains("no room"), "{account:?}");
    assert!(account.notes[0].contains("no room"), "{account:?}");
    Ok(())
}

#[test]
fn a_listing_names_processes_and_changes_nothing() -> Result<()> {
    let pair = Pair::new()?;
    let mut connection = Connection::open(&pair.b, &pair.a, Pair::A)?;
    let listing = list_in(&pair.a, &reset_of(Pair::B)?)?;
    let local = connection.server.local()?;
    let remote = connection.client.local()?;
    let expected = LiveFlow {
        protocol: "tcp".into(),
        remote: remote.ip(),
        remote_port: remote.port(),
        local: local.ip(),
        local_port: local.port(),
        state: "ESTABLISHED".into(),
        process: Some(std::fs::read_to_string("/proc/self/comm")?.trim().into()),
        pid: Some(std::process::id().cast_signed()),
    };
    assert_eq!(listing.flows, [expected]);
    assert_eq!(listing.notes, [""; 0]);
    connection.check_alive()
}

/// Addresses of this test alone: other laboratories on this machine have the same ones.
fn own_addresses() -> [IpAddr; 2] {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    [18, 19].map(|net| IpAddr::from([198, net, high, low]))
}

const ALL: Settings = Settings {
    namespaces: Namespaces::All,
    ..SETTINGS
};

#[test]
fn with_all_namespaces_sockets_of_containers_die_too() -> Result<()> {
    let [remote, _] = own_addresses();
    let scene = Routed::new()?;
    let address = remote.to_string();
    scene
        .server
        .run(&["ip", "address", "add", &address, "dev", "eth0"])?;
    scene
        .router
        .run(&["ip", "route", "add", &address, "dev", "right"])?;
    let mut container = Connection::open(&scene.client, &scene.server, remote)?;
    let mut other = Connection::open(&scene.client, &scene.server, Routed::SERVER)?;
    let evidence = FixedEvidence::everything();
    let account = kill_in(&scene.router, &reset_of(remote)?, &evidence)?;
    assert_eq!(account.found, 0, "{account:?}");
    container.check_alive()?;

    // Its packets leave this host by `right`.
    for (device, found) in [("left", 0), ("eth0", 0), ("right", 1)] {
        let rules = reset(&format!(
            r#""targets":["{remote}"],"interfaces":["{device}"]"#
        ))?;
        let listing = scene.router.enter(|| list(&rules, &ALL))?;
        assert_eq!(listing.flows.len(), found, "{device}: {listing:?}");
    }
    let rules = reset_of(remote)?;
    let account = scene
        .router
        .enter(|| kill(&rules, &ALL, &evidence, &|_| {}))?;
    assert_eq!((account.found, account.killed), (1, 1), "{account:?}");
    assert!(container.wait_dead(soon())?);
    other.check_alive()
}

#[test]
fn with_all_namespaces_flows_that_no_device_here_sees_live() -> Result<()> {
    let [remote, own] = own_addresses();
    let address = remote.to_string();
    // A network of others, with the same address.
    let pair = Pair::new()?;
    for (host, address, peer) in [(&pair.a, own, remote), (&pair.b, remote, own)] {
        let (address, peer) = (address.to_string(), peer.to_string());
        host.run(&[
            "ip", "address", "add", &address, "peer", &peer, "dev", "eth0",
        ])?;
    }
    let mut unrelated = Connection::open(&pair.a, &pair.b, remote)?;
    // A container that talks to itself, by an address of its own.
    let scene = Routed::new()?;
    let client = &scene.client;
    client.run(&["ip", "address", "add", &address, "dev", "eth0"])?;
    let mut itself = Connection::open(client, client, remote)?;
    let rules = reset_of(remote)?;
    let evidence = FixedEvidence::everything();
    let account = scene
        .router
        .enter(|| kill(&rules, &ALL, &evidence, &|_| {}))?;
    let doubt = account.notes.iter().any(|note| note.contains("left alone"));
    assert!(account.found == 0 && !doubt, "{account:?}");
    unrelated.check_alive()?;
    itself.check_alive()
}

#[test]
fn progress_tells_of_what_was_found_and_killed() -> Result<()> {
    let pair = Pair::new()?;
    let _connection = Connection::open(&pair.b, &pair.a, Pair::A)?;
    let rules = reset_of(Pair::B)?;
    let evidence = FixedEvidence::everything();
    let reports = pair.a.enter(|| {
        let reports = Mutex::new(Vec::new());
        let progress = |progress| reports.lock().unwrap().push(progress);
        let _ = kill(&rules, &SETTINGS, &evidence, &progress);
        reports.into_inner().unwrap()
    })?;
    let pairs: Vec<_> = reports.iter().map(|p| (p.found, p.killed)).collect();
    assert_eq!(pairs.first(), Some(&(1, 0)));
    assert_eq!(pairs.last(), Some(&(1, 1)));
    Ok(())
}
