//! Teardown by the real daemon with its datapath, seen from both ends of real connections.
//!
//! Every flow is idle when the rule starts, so that only the teardown can kill it.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use serde_json::Value;
use xtask::hosts::{Bridged, Connection, Daemon, Listener, Namespace, Pair, Routed, poll};

fn daemon(host: &Namespace) -> Result<Daemon> {
    Daemon::start(host, &crate::programs(), "")
}

/// Adds a reset rule, and gives the teardown's account.
fn block(daemon: &Daemon, remote: IpAddr) -> Result<Value> {
    let answer = daemon.json(&["add", &remote.to_string(), "--mode", "reset"])?;
    Ok(answer["teardown"].clone())
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

/// Both ends of every connection are dead, and the account says so.
fn assert_dead(account: &Value, connections: &mut [Connection]) -> Result<()> {
    for connection in connections.iter_mut() {
        ensure!(connection.wait_dead(soon())?, "{account:#}");
        for end in [&connection.client, &connection.server] {
            let error = end.death().and_then(|death| death.error);
            ensure!(
                matches!(error, Some(Errno::ECONNRESET | Errno::ECONNABORTED)),
                "{error:?}"
            );
        }
    }
    let count = connections.len();
    ensure!(account["found"] == count, "{account:#}");
    ensure!(account["killed"] == count, "{account:#}");
    ensure!(account["left"] == Value::Array(Vec::new()), "{account:#}");
    Ok(())
}

fn iptables(host: &Namespace, family: &str, rule: &str) -> Result<()> {
    let words: Vec<&str> = [family].into_iter().chain(rule.split(' ')).collect();
    host.run(&words)?;
    Ok(())
}

/// A rule that makes netfilter track what is forwarded.
fn track(router: &Namespace) -> Result<()> {
    for family in ["iptables", "ip6tables"] {
        iptables(
            router,
            family,
            "-A FORWARD -m conntrack --ctstate INVALID -m comment --comment tracks",
        )?;
    }
    Ok(())
}

#[test]
fn idle_flows_of_this_host_die_and_others_live() -> Result<()> {
    let pair = Pair::new()?;
    let other = pair.second_remote()?;
    let daemon = daemon(&pair.a)?;
    for (own, remote) in [(Pair::A, Pair::B), (Pair::A6, Pair::B6)] {
        let server = Listener::new(&pair.a, own, 0)?;
        let mut flows = [
            server.connect(&pair.b)?,
            Connection::open(&pair.a, &pair.b, remote)?,
        ];
        let mut spared = Connection::open(&pair.a, &pair.b, other)?;
        let account = block(&daemon, remote)?;
        assert_dead(&account, &mut flows)?;
        spared.check_alive()?;
        daemon.blockctl(&["flush"])?.success()?;
        server.connect(&pair.b)?.check_alive()?;
    }
    Ok(())
}

#[test]
fn a_firewall_that_eats_this_hosts_resets_saves_no_flow() -> Result<()> {
    for (own, remote, family) in [
        (Pair::A, Pair::B, "iptables"),
        (Pair::A6, Pair::B6, "ip6tables"),
    ] {
        let pair = Pair::new()?;
        let daemon = daemon(&pair.a)?;
        let mut flows = [
            Connection::open(&pair.b, &pair.a, own)?,
            Connection::open(&pair.a, &pair.b, remote)?,
        ];
        // Blocks neighbour discovery too: within seconds B no longer knows A's link-layer address.
        iptables(&pair.a, family, &format!("-A OUTPUT -d {remote} -j REJECT"))?;
        iptables(&pair.a, family, &format!("-A INPUT -s {remote} -j REJECT"))?;
        let account = block(&daemon, remote)?;
        assert_dead(&account, &mut flows)?;
    }
    Ok(())
}

/// The link-local address of a host's `eth0`, once it may be used.
fn link_local(host: &Namespace) -> Result<std::net::Ipv6Addr> {
    let show = "ip -6 -br address show dev eth0 scope link -tentative";
    let words: Vec<&str> = show.split(' ').collect();
    poll("a link-local address", Duration::from_secs(10), || {
        let line = host.run(&words).ok()?;
        let net = line.split_whitespace().nth(2)?;
        net.split('/').next()?.parse().ok()
    })
}

#[test]
fn link_local_flows_die_by_kernel_or_by_probe() -> Result<()> {
    for firewall in [false, true] {
        let pair = Pair::new()?;
        let remote = link_local(&pair.b)?;
        link_local(&pair.a)?;
        let index = pair.a.enter(|| nix::net::if_::if_nametoindex("eth0"))??;
        let listener = pair.b.enter(|| TcpListener::bind("[::]:0"))??;
        let port = listener.local_addr()?.port();
        let dial = std::net::SocketAddrV6::new(remote, port, 0, index);
        let client = pair.a.enter(|| TcpStream::connect(dial))??;
        let (server, _) = listener.accept()?;
        if firewall {
            iptables(&pair.a, "ip6tables", "-A OUTPUT -p tcp -j DROP")?;
        }
        let daemon = daemon(&pair.a)?;
        let account = block(&daemon, remote.into())?;
        ensure!(
            account["found"] == 1 && account["killed"] == 1,
            "{firewall} {account:#}"
        );
        died(&client, "client")?;
        died(&server, "server")?;
    }
    Ok(())
}

#[test]
fn half_closed_flows_die_too() -> Result<()> {
    let pair = Pair::new()?;
    let daemon = daemon(&pair.a)?;
    let server = Listener::new(&pair.a, Pair::A, 0)?;
    let mut flows = [server.connect(&pair.b)?, server.connect(&pair.b)?];
    flows[0]
        .client
        .stream()
        .shutdown(std::net::Shutdown::Write)?;
    flows[1]
        .server
        .stream()
        .shutdown(std::net::Shutdown::Write)?;
    for (flow, states) in flows
        .iter()
        .zip([("FIN-WAIT-2", "CLOSE-WAIT"), ("CLOSE-WAIT", "FIN-WAIT-2")])
    {
        poll("the FIN to be acknowledged", Duration::from_secs(5), || {
            let now = (flow.client.state().ok()?, flow.server.state().ok()?);
            (now == states).then_some(())
        })?;
    }
    let account = block(&daemon, Pair::B)?;
    ensure!(
        account["found"] == 2 && account["killed"] == 2,
        "{account:#}"
    );
    for flow in &mut flows {
        ensure!(flow.wait_dead(soon())?, "{account:#}");
    }
    Ok(())
}

#[test]
fn a_connection_that_nobody_here_holds_any_more_dies_at_the_remote() -> Result<()> {
    let pair = Pair::new()?;
    let daemon = daemon(&pair.a)?;
    let server = Listener::new(&pair.a, Pair::A, 0)?;
    let Connection {
        mut client,
        server: closed,
    } = server.connect(&pair.b)?;
    drop(closed);
    poll("the client to see the FIN", Duration::from_secs(5), || {
        (client.state().ok()? == "CLOSE-WAIT").then_some(())
    })?;
    // What is left here is FIN-WAIT-2 without a socket, of which the kernel sends no RST.
    let account = block(&daemon, Pair::B)?;
    ensure!(
        account["found"] == 1 && account["killed"] == 1,
        "{account:#}"
    );
    poll("the client to die", Duration::from_secs(5), || {
        client.look().ok()?
    })?;
    let error = client.death().and_then(|death| death.error);
    // In CLOSE-WAIT a RST is reported so (`tcp_reset` of net/ipv4/tcp_input.c).
    ensure!(error == Some(Errno::EPIPE), "{error:?}");
    Ok(())
}

#[test]
fn a_connection_that_never_finished_its_handshake_dies() -> Result<()> {
    let pair = Pair::new()?;
    let daemon = daemon(&pair.a)?;
    let server = Listener::new(&pair.a, Pair::A, 0)?;
    // B's last segment of the handshake never leaves: B is ESTABLISHED, A in SYN-RECEIVED.
    iptables(
        &pair.b,
        "iptables",
        "-A OUTPUT -p tcp --tcp-flags SYN,ACK ACK -m comment --comment third -j DROP",
    )?;
    let address = server.address;
    let client = pair.b.enter(|| TcpStream::connect(address))??;
    let states = pair.a.run(&["ss", "-Htn", "state", "syn-recv"])?;
    ensure!(states.lines().count() == 1, "{states}");
    // What answers a probe may leave.
    pair.b.run(&["iptables", "-F", "OUTPUT"])?;
    let account = block(&daemon, Pair::B)?;
    ensure!(
        account["found"] == 1 && account["killed"] == 1,
        "{account:#}"
    );
    let error = poll("the client to learn of it", Duration::from_secs(5), || {
        client.take_error().ok()?
    })?;
    ensure!(error.raw_os_error() == Some(libc::ECONNRESET), "{error}");
    Ok(())
}

#[test]
fn forwarded_flows_die_at_both_ends() -> Result<()> {
    for (client, server) in [
        (Routed::CLIENT, Routed::SERVER),
        (Routed::CLIENT6, Routed::SERVER6),
    ] {
        let hosts = Routed::new()?;
        track(&hosts.router)?;
        let daemon = daemon(&hosts.router)?;
        for remote in [server, client] {
            let mut flows = [
                Connection::open(&hosts.client, &hosts.server, server)?,
                Connection::open(&hosts.server, &hosts.client, client)?,
            ];
            let account = block(&daemon, remote)?;
            assert_dead(&account, &mut flows).with_context(|| format!("{remote}"))?;
            daemon.blockctl(&["flush"])?.success()?;
        }
    }
    Ok(())
}

#[test]
fn a_drop_rule_that_is_to_kill_resets_first() -> Result<()> {
    let hosts = Routed::new()?;
    track(&hosts.router)?;
    let daemon = daemon(&hosts.router)?;
    let mut flows = [Connection::open(
        &hosts.client,
        &hosts.server,
        Routed::SERVER,
    )?];
    let remote = Routed::SERVER.to_string();
    let answer = daemon.json(&["add", &remote, "--mode", "drop", "--established", "kill"])?;
    assert_dead(&answer["teardown"], &mut flows)?;
    ensure!(answer["rule"]["mode"] == "drop", "{answer:#}");
    Ok(())
}

/// A connection through NAT: the server sees another client address than the client has.
fn through_nat(
    client: &Namespace,
    server: &Namespace,
    listen: SocketAddr,
    dial: SocketAddr,
) -> Result<(TcpStream, TcpStream)> {
    let listener = server.enter(|| TcpListener::bind(listen))??;
    let client = client.enter(|| TcpStream::connect(dial))??;
    let (server, _) = listener.accept()?;
    Ok((client, server))
}

fn died(stream: &TcpStream, who: &str) -> Result<()> {
    poll(&format!("the {who} to die"), Duration::from_secs(5), || {
        stream.take_error().ok()?
    })?;
    Ok(())
}

#[test]
fn flows_behind_a_masquerade_die_at_both_ends() -> Result<()> {
    let hosts = Routed::new()?;
    iptables(
        &hosts.router,
        "iptables",
        "-t nat -A POSTROUTING -o right -j MASQUERADE",
    )?;
    let daemon = daemon(&hosts.router)?;
    let server = SocketAddr::new(Routed::SERVER, 8080);
    let (client, server) = through_nat(&hosts.client, &hosts.server, server, server)?;
    let account = block(&daemon, Routed::SERVER)?;
    ensure!(
        account["found"] == 1 && account["killed"] == 1,
        "{account:#}"
    );
    died(&client, "client")?;
    died(&server, "server")
}

#[test]
fn flows_to_a_published_port_die_when_the_server_behind_it_is_blocked() -> Result<()> {
    let hosts = Routed::new()?;
    let published = hosts
        .router
        .run(&["ip", "-4", "-br", "address", "show", "dev", "left"])?;
    let published: IpAddr = published
        .split_whitespace()
        .nth(2)
        .and_then(|net| net.split('/').next())
        .context("the router has no address")?
        .parse()?;
    let server = SocketAddr::new(Routed::SERVER, 8080);
    iptables(
        &hosts.router,
        "iptables",
        &format!("-t nat -A PREROUTING -d {published} -p tcp --dport 80 -j DNAT --to {server}"),
    )?;
    let daemon = daemon(&hosts.router)?;
    let dial = SocketAddr::new(published, 80);
    let (client, server) = through_nat(&hosts.client, &hosts.server, server, dial)?;
    let account = block(&daemon, Routed::SERVER)?;
    ensure!(
        account["found"] == 1 && account["killed"] == 1,
        "{account:#}"
    );
    died(&client, "client")?;
    died(&server, "server")
}

#[test]
fn bridged_flows_that_netfilter_tracks_die_at_both_ends() -> Result<()> {
    let hosts = Bridged::new()?;
    hosts
        .bridge
        .sysctl("net/bridge/bridge-nf-call-iptables", "1")?;
    track(&hosts.bridge)?;
    hosts
        .bridge
        .run(&["ip", "address", "add", "192.0.2.100/24", "dev", "br0"])?;
    let daemon = daemon(&hosts.bridge)?;
    let mut flows = [Connection::open(
        &hosts.client,
        &hosts.server,
        Bridged::SERVER,
    )?];
    let account = block(&daemon, Bridged::SERVER)?;
    assert_dead(&account, &mut flows)
}

#[test]
fn a_container_behind_nat_is_cut_from_the_remote() -> Result<()> {
    // With `namespaces: all` the container's own socket is destroyed; without, it is forwarded.
    // The addresses are this test's own: the teardown reaches every namespace on this machine.
    for config in ["", "namespaces: all\n"] {
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let remote = IpAddr::from([198, 17, high, low]);
        let hosts = Routed::new()?;
        let address = remote.to_string();
        hosts
            .server
            .run(&["ip", "address", "add", &address, "dev", "eth0"])?;
        hosts
            .router
            .run(&["ip", "route", "add", &address, "dev", "right"])?;
        iptables(
            &hosts.router,
            "iptables",
            "-t nat -A POSTROUTING -o right -j MASQUERADE",
        )?;
        let daemon = Daemon::start(&hosts.router, &crate::programs(), config)?;
        let server = SocketAddr::new(remote, 8080);
        let (container, server) = through_nat(&hosts.client, &hosts.server, server, server)?;
        let account = block(&daemon, remote)?;
        // The server's own namespace is on this machine too, and its flow's remote is another.
        ensure!(
            account["found"] == 1 && account["killed"] == 1,
            "{config}{account:#}"
        );
        died(&container, "container")?;
        died(&server, "server")?;
    }
    Ok(())
}

#[test]
fn two_thousand_idle_forwarded_flows_die() -> Result<()> {
    const FLOWS: usize = 2_000;
    let hosts = Routed::new()?;
    track(&hosts.router)?;
    let daemon = daemon(&hosts.router)?;
    let listener = Listener::new(&hosts.server, Routed::SERVER, 0)?;
    let mut flows: Vec<Connection> = (0..FLOWS)
        .map(|_| listener.connect(&hosts.client))
        .collect::<Result<_>>()?;
    let account = block(&daemon, Routed::SERVER)?;
    println!("{FLOWS} forwarded flows: {} ms", account["elapsed_ms"]);
    assert_dead(&account, &mut flows)
}
