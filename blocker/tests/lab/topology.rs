//! The scenes: two hosts; a client, a router and a server; the same with a bridge between.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::Namespace;

/// Joins two namespaces by a veth pair and brings both of its ends up.
///
/// # Errors
/// A device of that name is there already.
pub(crate) fn join(a: (&Namespace, &str), b: (&Namespace, &str)) -> Result<()> {
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

/// Two hosts on one wire, each with one device, `eth0`. Their IPv4 addresses are of different
/// networks, and on-link all the same.
#[derive(Debug)]
pub(crate) struct Pair {
    /// The host that blocks.
    pub(crate) a: Namespace,
    /// The host that is blocked.
    pub(crate) b: Namespace,
}

impl Pair {
    /// A's addresses.
    pub(crate) const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 48, 22, 221));
    pub(crate) const A6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xa));
    /// B's addresses.
    pub(crate) const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 171, 170, 104));
    pub(crate) const B6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xb));

    /// A second address of B, which is a remote of its own; see [`Pair::second_remote`].
    pub(crate) const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));

    /// Makes both and joins them.
    ///
    /// # Errors
    /// As [`Namespace::new`].
    pub(crate) fn new() -> Result<Self> {
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

    /// Gives B its second address, and A the way there.
    ///
    /// # Errors
    /// As [`Namespace::run`].
    pub(crate) fn second_remote(&self) -> Result<IpAddr> {
        let other = Self::OTHER.to_string();
        self.b
            .run(&["ip", "address", "add", &other, "dev", "eth0"])?;
        self.a.run(&["ip", "route", "add", &other, "dev", "eth0"])?;
        Ok(Self::OTHER)
    }
}

/// A client and a server in two networks, and the router between them.
#[derive(Debug)]
pub(crate) struct Routed {
    /// Has `eth0`.
    pub(crate) client: Namespace,
    /// Has `left`, towards the client, and `right`, towards the server.
    pub(crate) router: Namespace,
    /// Has `eth0`.
    pub(crate) server: Namespace,
}

impl Routed {
    /// The client's addresses.
    pub(crate) const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 171, 170, 104));
    pub(crate) const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2));
    /// The server's addresses.
    pub(crate) const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 48, 22, 221));
    pub(crate) const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2));

    /// Makes the three, joins them and lets the router forward.
    ///
    /// # Errors
    /// As [`Namespace::new`].
    pub(crate) fn new() -> Result<Self> {
        let scene = Self {
            client: Namespace::new("client")?,
            router: Namespace::new("router")?,
            server: Namespace::new("server")?,
        };
        join((&scene.client, "eth0"), (&scene.router, "left"))?;
        join((&scene.server, "eth0"), (&scene.router, "right"))?;
        address(&scene.client, "eth0", "10.171.170.104/24")?;
        address(&scene.client, "eth0", "2001:db8:1::2/64")?;
        address(&scene.router, "left", "10.171.170.1/24")?;
        address(&scene.router, "left", "2001:db8:1::1/64")?;
        address(&scene.router, "right", "10.48.22.1/24")?;
        address(&scene.router, "right", "2001:db8:2::1/64")?;
        address(&scene.server, "eth0", "10.48.22.221/24")?;
        address(&scene.server, "eth0", "2001:db8:2::2/64")?;
        for (host, v4, v6) in [
            (&scene.client, "10.171.170.1", "2001:db8:1::1"),
            (&scene.server, "10.48.22.1", "2001:db8:2::1"),
        ] {
            host.run(&["ip", "route", "add", "default", "via", v4])?;
            host.run(&["ip", "-6", "route", "add", "default", "via", v6])?;
        }
        scene.router.sysctl("net/ipv4/ip_forward", "1")?;
        scene.router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        Ok(scene)
    }
}

/// A client and a server in one network, and a bridge without an address between them.
#[derive(Debug)]
pub(crate) struct Bridged {
    /// Has `eth0`.
    pub(crate) client: Namespace,
    /// Has `br0` with its ports `left`, towards the client, and `right`, towards the server.
    pub(crate) bridge: Namespace,
    /// Has `eth0`.
    pub(crate) server: Namespace,
}

impl Bridged {
    /// The client's addresses.
    pub(crate) const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    pub(crate) const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 1));
    /// The server's addresses.
    pub(crate) const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    pub(crate) const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 2));

    /// Makes the three and joins them.
    ///
    /// # Errors
    /// As [`Namespace::new`].
    pub(crate) fn new() -> Result<Self> {
        let scene = Self {
            client: Namespace::new("client")?,
            bridge: Namespace::new("bridge")?,
            server: Namespace::new("server")?,
        };
        join((&scene.client, "eth0"), (&scene.bridge, "left"))?;
        join((&scene.server, "eth0"), (&scene.bridge, "right"))?;
        let bridge = &scene.bridge;
        bridge.run(&["ip", "link", "add", "br0", "type", "bridge"])?;
        bridge.run(&["ip", "link", "set", "br0", "up"])?;
        for port in ["left", "right"] {
            bridge.run(&["ip", "link", "set", port, "master", "br0"])?;
        }
        address(&scene.client, "eth0", "192.0.2.1/24")?;
        address(&scene.client, "eth0", "2001:db8:3::1/64")?;
        address(&scene.server, "eth0", "192.0.2.2/24")?;
        address(&scene.server, "eth0", "2001:db8:3::2/64")?;
        Ok(scene)
    }
}

fn address(host: &Namespace, device: &str, address: &str) -> Result<()> {
    let mut words = vec!["ip", "address", "add", address, "dev", device];
    if address.contains(':') {
        // Else it is tentative until the kernel has noticed that the device is up, which on a busy
        // machine takes a second.
        words.push("nodad");
    }
    host.run(&words)?;
    Ok(())
}
