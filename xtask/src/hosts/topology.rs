//! Topologies: two hosts; a client, a router and a server; a client, a bridge and a server.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::Namespace;

/// Joins two namespaces by a veth pair and brings both of its ends up.
///
/// # Errors
/// A device of that name exists already.
pub fn join(a: (&Namespace, &str), b: (&Namespace, &str)) -> Result<()> {
    a.0.run(&[
        "ip",
        "link",
        "add",
        a.1,
        "type",
        "veth",
        "peer",
        "name",
        b.1,
        "netns",
        b.0.name(),
    ])?;
    for (namespace, device) in [a, b] {
        namespace.run(&["ip", "link", "set", device, "up"])?;
    }
    Ok(())
}

/// Two hosts on one link, each with one device, `eth0`. Their IPv4 addresses look like those of
/// different networks, but each host has an on-link route to the other's address.
#[derive(Debug)]
pub struct Pair {
    /// The host that blocks.
    pub a: Namespace,
    /// The host that is blocked.
    pub b: Namespace,
}

impl Pair {
    /// A's IPv4 address.
    pub const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 48, 22, 221));
    /// A's IPv6 address.
    pub const A6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xa));
    /// B's IPv4 address.
    pub const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 171, 170, 104));
    /// B's IPv6 address.
    pub const B6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xb));

    /// A second address of B, for rules a separate remote; see [`Pair::second_remote`].
    pub const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));

    /// Makes both hosts and joins them.
    ///
    /// # Errors
    /// As [`Namespace::new`].
    pub fn new() -> Result<Self> {
        let pair = Self {
            a: Namespace::new("a")?,
            b: Namespace::new("b")?,
        };
        join((&pair.a, "eth0"), (&pair.b, "eth0"))?;
        for (host, own, own6, peer) in [
            (&pair.a, Self::A, Self::A6, Self::B),
            (&pair.b, Self::B, Self::B6, Self::A),
        ] {
            let (own, peer) = (own.to_string(), format!("{peer}/32"));
            host.run(&["ip", "address", "add", &own, "peer", &peer, "dev", "eth0"])?;
            address(host, "eth0", &format!("{own6}/64"))?;
        }
        Ok(pair)
    }

    /// Gives B its second address, and A a route to that address.
    ///
    /// # Errors
    /// As [`Namespace::run`].
    pub fn second_remote(&self) -> Result<IpAddr> {
        let other = Self::OTHER.to_string();
        self.b
            .run(&["ip", "address", "add", &other, "dev", "eth0"])?;
        self.a.run(&["ip", "route", "add", &other, "dev", "eth0"])?;
        Ok(Self::OTHER)
    }
}

/// A client and a server in two networks, and the router between them.
#[derive(Debug)]
pub struct Routed {
    /// Has `eth0`.
    pub client: Namespace,
    /// Has `left`, towards the client, and `right`, towards the server.
    pub router: Namespace,
    /// Has `eth0`.
    pub server: Namespace,
}

impl Routed {
    /// The client's IPv4 address.
    pub const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 171, 170, 104));
    /// The client's IPv6 address.
    pub const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2));
    /// The server's IPv4 address.
    pub const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 48, 22, 221));
    /// The server's IPv6 address.
    pub const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2));

    /// Makes the three hosts, joins them and lets the router forward.
    ///
    /// # Errors
    /// As [`Namespace::new`].
    pub fn new() -> Result<Self> {
        let hosts = Self {
            client: Namespace::new("client")?,
            router: Namespace::new("router")?,
            server: Namespace::new("server")?,
        };
        join((&hosts.client, "eth0"), (&hosts.router, "left"))?;
        join((&hosts.server, "eth0"), (&hosts.router, "right"))?;
        address(&hosts.client, "eth0", "10.171.170.104/24")?;
        address(&hosts.client, "eth0", "2001:db8:1::2/64")?;
        address(&hosts.router, "left", "10.171.170.1/24")?;
        address(&hosts.router, "left", "2001:db8:1::1/64")?;
        address(&hosts.router, "right", "10.48.22.1/24")?;
        address(&hosts.router, "right", "2001:db8:2::1/64")?;
        address(&hosts.server, "eth0", "10.48.22.221/24")?;
        address(&hosts.server, "eth0", "2001:db8:2::2/64")?;
        for (host, v4, v6) in [
            (&hosts.client, "10.171.170.1", "2001:db8:1::1"),
            (&hosts.server, "10.48.22.1", "2001:db8:2::1"),
        ] {
            host.run(&["ip", "route", "add", "default", "via", v4])?;
            host.run(&["ip", "-6", "route", "add", "default", "via", v6])?;
        }
        hosts.router.sysctl("net/ipv4/ip_forward", "1")?;
        hosts.router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        Ok(hosts)
    }
}

/// A client and a server in one network, and a bridge without an address between them.
#[derive(Debug)]
pub struct Bridged {
    /// Has `eth0`.
    pub client: Namespace,
    /// Has `br0` with its ports `left`, towards the client, and `right`, towards the server.
    pub bridge: Namespace,
    /// Has `eth0`.
    pub server: Namespace,
}

impl Bridged {
    /// The client's IPv4 address.
    pub const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    /// The client's IPv6 address.
    pub const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 1));
    /// The server's IPv4 address.
    pub const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    /// The server's IPv6 address.
    pub const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 2));

    /// Makes the three hosts and joins them.
    ///
    /// # Errors
    /// As [`Namespace::new`].
    pub fn new() -> Result<Self> {
        let hosts = Self {
            client: Namespace::new("client")?,
            bridge: Namespace::new("bridge")?,
            server: Namespace::new("server")?,
        };
        join((&hosts.client, "eth0"), (&hosts.bridge, "left"))?;
        join((&hosts.server, "eth0"), (&hosts.bridge, "right"))?;
        let bridge = &hosts.bridge;
        bridge.run(&["ip", "link", "add", "br0", "type", "bridge"])?;
        bridge.run(&["ip", "link", "set", "br0", "up"])?;
        for port in ["left", "right"] {
            bridge.run(&["ip", "link", "set", port, "master", "br0"])?;
        }
        address(&hosts.client, "eth0", "192.0.2.1/24")?;
        address(&hosts.client, "eth0", "2001:db8:3::1/64")?;
        address(&hosts.server, "eth0", "192.0.2.2/24")?;
        address(&hosts.server, "eth0", "2001:db8:3::2/64")?;
        Ok(hosts)
    }
}

fn address(host: &Namespace, device: &str, address: &str) -> Result<()> {
    let mut words = vec!["ip", "address", "add", address, "dev", device];
    if address.contains(':') {
        // Without `nodad` the address is tentative until the kernel has noticed that the device is
        // up, which takes a second on a busy machine.
        words.push("nodad");
    }
    host.run(&words)?;
    Ok(())
}
