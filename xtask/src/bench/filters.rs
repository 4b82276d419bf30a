//! The filters that are compared: blocker and its peers, each dropping packets from a set of prefixes.
//!
//! Each is loaded in the fastest way of its own tools. Its state in the kernel ends with the network
//! namespace, its pins with the mount namespace ([`super::wired`]).

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::addresses::{Family, Kind, Set};
use super::memory;
use super::wire::Wire;
use crate::bpf::Map;
use crate::hosts::{Daemon, Programs};

/// The name of the peers' sets.
const SET: &str = "blocked";
/// Room in the set for prefixes that are added one by one.
const ROOM: usize = 1_000;
/// `xdp-filter`'s map of IPv4 and of IPv6 addresses.
const XDP_FILTER_MAPS: &str = "/sys/fs/bpf/xdp-filter";
/// Entries of that map (`FILTER_MAP` in xdp-filter's `xdpfilt_prog.h`).
const XDP_FILTER_MOST: usize = 10_000;

/// A filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Filter {
    /// blocker with native XDP in front of TC.
    BlockerXdp,
    /// The same without flow records, which no peer has.
    BlockerBare,
    /// blocker with TC alone.
    BlockerTc,
    /// xdp-filter in native mode: hosts only.
    #[serde(rename = "xdp-filter")]
    XdpTools,
    /// An nftables set of hosts in an ingress chain.
    NftHash,
    /// An nftables set of prefixes in an ingress chain.
    NftInterval,
    /// An ipset of prefixes, matched by iptables in raw PREROUTING.
    Ipset,
}

impl Filter {
    /// All filters, blocker's first.
    pub(super) const ALL: [Self; 7] = [
        Self::BlockerXdp,
        Self::BlockerBare,
        Self::BlockerTc,
        Self::XdpTools,
        Self::NftHash,
        Self::NftInterval,
        Self::Ipset,
    ];

    /// Its title in a table.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::BlockerXdp => "blocker, XDP native",
            Self::BlockerBare => "blocker, XDP, no flow records",
            Self::BlockerTc => "blocker, TC alone",
            Self::XdpTools => "xdp-filter, native (hosts)",
            Self::NftHash => "nft ingress, hash set (hosts)",
            Self::NftInterval => "nft ingress, interval set",
            Self::Ipset => "iptables raw, ipset hash:net",
        }
    }

    /// Whether it is blocker.
    pub(super) fn is_blocker(self) -> bool {
        matches!(self, Self::BlockerXdp | Self::BlockerBare | Self::BlockerTc)
    }

    /// The kind of prefixes that it takes.
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::XdpTools | Self::NftHash => Kind::Hosts,
            _ => Kind::Mixed,
        }
    }

    /// The most prefixes that it takes.
    pub(super) fn most(self) -> usize {
        match self {
            Self::XdpTools => XDP_FILTER_MOST,
            _ => usize::MAX,
        }
    }

    /// Whether it drops behind the IP layer's counter.
    pub(super) fn is_behind_ip(self) -> bool {
        self == Self::Ipset
    }

    /// Makes it block a set at the receiver of a wire.
    ///
    /// # Errors
    /// One of its tools is missing or fails.
    pub(super) fn load<'a>(
        self,
        wire: &'a Wire,
        programs: &Programs,
        set: &Set,
        count: usize,
    ) -> Result<Loaded<'a>> {
        let files = tempfile::Builder::new()
            .prefix("blocker-bench-")
            .tempdir()?;
        let mut loaded = Loaded {
            filter: self,
            wire,
            family: set.family(),
            daemon: None,
            time: None,
            memory: None,
        };
        match self {
            Self::BlockerXdp | Self::BlockerBare | Self::BlockerTc => {
                loaded.blocker(programs, set, count, files.path())?;
            }
            Self::XdpTools => loaded.xdp_filter(set)?,
            Self::NftHash | Self::NftInterval => loaded.nft(set, count, files.path())?,
            Self::Ipset => loaded.ipset(set, count, files.path())?,
        }
        Ok(loaded)
    }
}

/// A loaded filter.
pub(super) struct Loaded<'a> {
    filter: Filter,
    wire: &'a Wire,
    family: Family,
    daemon: Option<Daemon>,
    /// Time from the file of prefixes to all of them in force, if it can be loaded at once.
    pub(super) time: Option<Duration>,
    /// Bytes that the set takes, if they can be measured.
    pub(super) memory: Option<u64>,
}

impl Loaded<'_> {
    /// Starts blocker and adds the set as the targets of a rule.
    fn blocker(
        &mut self,
        programs: &Programs,
        set: &Set,
        count: usize,
        files: &Path,
    ) -> Result<()> {
        let prefixes = (count + ROOM).max(1_000_000);
        let mut limits = format!("prefixes: {prefixes}");
        if self.family == Family::V6 {
            let _ = write!(limits, ", prefixes_v6: {prefixes}");
        }
        if self.filter == Filter::BlockerBare {
            limits.push_str(", flows: 0");
        }
        let hook = match self.filter {
            Filter::BlockerTc => "tc",
            _ => "xdp-native",
        };
        let config = format!(
            "interfaces: [{}]\nhook: {hook}\nlimits: {{{limits}}}\n",
            self.wire.device
        );
        let daemon = Daemon::start(&self.wire.receiver, programs, &config)?;
        let targets: Vec<String> = set.texts().collect();
        let path = files.join("targets.txt");
        fs::write(&path, targets.join("\n"))?;
        let path = path.to_str().context("a path that is no text")?;
        let start = Instant::now();
        let add = [
            "-q",
            "add",
            "--id",
            SET,
            "--mode",
            "drop",
            "--from-file",
            path,
        ];
        daemon.blockctl(&add)?.success()?;
        self.time = Some(start.elapsed());
        let pid = daemon.pid().context("the daemon does not run")?;
        self.memory = Some(memory::resident(pid)? + memory::maps(pid)?);
        self.daemon = Some(daemon);
        Ok(())
    }

    /// xdp-filter takes one address a call, which is too slow for many. So only the first is added by
    /// it; the others are copied into its map.
    fn xdp_filter(&mut self, set: &Set) -> Result<()> {
        let (features, name) = match self.family {
            Family::V4 => ("ipv4", "filter_ipv4"),
            Family::V6 => ("ipv6", "filter_ipv6"),
        };
        let device = self.wire.device.as_str();
        let load = ["xdp-filter", "load", device, "-m", "native", "-f", features];
        self.wire.receiver.run(&load)?;
        let mut hosts = set.first_addresses();
        let first = hosts.next().context("an empty set")?;
        self.add(first)?;
        let map = Map::pinned(&Path::new(XDP_FILTER_MAPS).join(name))?;
        // A 64-bit value for each possible CPU.
        let size = 8 * memory::possible_cpus()?;
        let mut value = map.lookup(&octets(first), size)?;
        // One entry stays free for additions, which are removed again.
        for host in hosts.take(XDP_FILTER_MOST - 2) {
            map.update(&octets(host), &mut value)?;
        }
        Ok(())
    }

    fn nft(&mut self, set: &Set, count: usize, files: &Path) -> Result<()> {
        let (kind, header) = match self.family {
            Family::V4 => ("ipv4_addr", "ip"),
            Family::V6 => ("ipv6_addr", "ip6"),
        };
        let shape = if self.filter == Filter::NftInterval {
            "flags interval".to_owned()
        } else {
            format!("size {}", count + ROOM)
        };
        let mut text = format!("table netdev bench {{\nset {SET} {{\ntype {kind}\n{shape}\n");
        text.push_str("elements = {\n");
        for prefix in set.texts() {
            let _ = writeln!(text, "{prefix},");
        }
        let _ = write!(
            text,
            "}}\n}}\nchain early {{\n\
             type filter hook ingress device \"{}\" priority filter\n\
             {header} saddr @{SET} drop\n}}\n}}\n",
            self.wire.device
        );
        let path = files.join("rules.nft");
        fs::write(&path, text)?;
        let path = path.to_str().context("a path that is no text")?;
        let before = memory::kernel()?;
        let start = Instant::now();
        self.wire.receiver.run(&["nft", "-f", path])?;
        self.time = Some(start.elapsed());
        self.memory = memory::kernel()?.checked_sub(before);
        Ok(())
    }

    fn ipset(&mut self, set: &Set, count: usize, files: &Path) -> Result<()> {
        let (family, iptables) = match self.family {
            Family::V4 => ("inet", "iptables"),
            Family::V6 => ("inet6", "ip6tables"),
        };
        let mut text = format!(
            "create {SET} hash:net family {family} maxelem {}\n",
            count + ROOM
        );
        for prefix in set.texts() {
            let _ = writeln!(text, "add {SET} {prefix}");
        }
        let path = files.join("ipset");
        fs::write(&path, text)?;
        let path = path.to_str().context("a path that is no text")?;
        let receiver = &self.wire.receiver;
        let start = Instant::now();
        receiver.run(&["ipset", "restore", "-file", path])?;
        let rule = [
            iptables,
            "-t",
            "raw",
            "-A",
            "PREROUTING",
            "-m",
            "set",
            "--match-set",
            SET,
            "src",
            "-j",
            "DROP",
        ];
        receiver.run(&rule)?;
        self.time = Some(start.elapsed());
        let header = receiver.run(&["ipset", "list", SET, "-terse"])?;
        let size = header
            .lines()
            .find_map(|line| line.strip_prefix("Size in memory: "));
        self.memory = size.and_then(|size| size.trim().parse().ok());
        Ok(())
    }

    /// Blocks one more address by the tool's own command; returns the time.
    ///
    /// # Errors
    /// The command fails.
    pub(super) fn add(&self, address: IpAddr) -> Result<Duration> {
        let address = address.to_string();
        let start = Instant::now();
        match self.filter {
            Filter::BlockerXdp | Filter::BlockerBare | Filter::BlockerTc => {
                let daemon = self.daemon.as_ref().context("the daemon is not there")?;
                daemon.blockctl(&["-q", "add", &address])?.success()?;
            }
            Filter::XdpTools => {
                let words = ["xdp-filter", "ip", &address, "-m", "src"];
                self.wire.receiver.run(&words)?;
            }
            Filter::NftHash | Filter::NftInterval => {
                let element = format!("{{ {address} }}");
                let words = ["nft", "add", "element", "netdev", "bench", SET, &element];
                self.wire.receiver.run(&words)?;
            }
            Filter::Ipset => {
                self.wire.receiver.run(&["ipset", "add", SET, &address])?;
            }
        }
        Ok(start.elapsed())
    }

    /// Removes the address of [`Loaded::add`] again, where the set has room for one only.
    ///
    /// # Errors
    /// The command fails.
    pub(super) fn make_room(&self, address: IpAddr) -> Result<()> {
        if self.filter == Filter::XdpTools {
            let words = ["xdp-filter", "ip", &address.to_string(), "-m", "src", "-r"];
            self.wire.receiver.run(&words)?;
        }
        Ok(())
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        if self.filter == Filter::XdpTools {
            let words = ["xdp-filter", "unload", &self.wire.device];
            // If it fails, the namespaces remove its pins and its program.
            let _ = self.wire.receiver.run(&words);
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Checks that a filter dropped the packets that it blocks and passed the others.
///
/// # Errors
/// It did not, so that its cost is meaningless.
pub(super) fn verify(filter: Filter, hit: bool, received: u64, reached_ip: u64) -> Result<()> {
    // Tolerates a few packets of the receiver (router solicitations).
    let slack = 1_000;
    let all = reached_ip + slack >= received;
    let none = reached_ip <= slack;
    let expected = if hit && !filter.is_behind_ip() {
        none
    } else {
        all
    };
    if !expected {
        bail!(
            "{}: of {received} packets that it was to {}, {reached_ip} reached the IP layer",
            filter.title(),
            if hit { "drop" } else { "pass" }
        );
    }
    Ok(())
}
