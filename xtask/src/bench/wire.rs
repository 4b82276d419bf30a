//! A flooded veth: the cost of a packet for the thread that receives it.
//!
//! The receiver's NAPI thread runs on CPU 1, the generator on CPU 0, both with real-time priority. The
//! cost is the thread's CPU time, divided by the packets that it received. The generator sends more
//! than the receiver can take, so that the thread rarely sleeps; packets that find the veth's ring
//! full are lost before the receiver sees them, and are not counted.

use std::fs;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::addresses::Family;
use super::generator::{Generator, RECEIVER};
use crate::hosts::{Namespace, join, poll};

/// The sender's device.
const SENDER_DEVICE: &str = "eth0";

/// The most packets of a flood that arrive if the receiver did not run: twice the veth's ring.
const FEW: u64 = 1_000;

/// The number of wires so far.
static WIRES: AtomicU32 = AtomicU32::new(0);

/// The extent of a measurement.
#[derive(Clone, Copy)]
pub(super) struct Effort {
    /// The number of floods; the lower quartile counts. Other work on the machine only ever adds to
    /// a flood's cost, and meets a long flood more often than a short one.
    pub(super) rounds: usize,
    /// The least duration of a flood.
    pub(super) time: Duration,
}

/// The cost of a flood.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Cost {
    /// CPU time a packet, in nanoseconds: the lower quartile of the rounds.
    pub(super) nanoseconds: f64,
    /// The minimum and the maximum of the rounds.
    pub(super) spread: [f64; 2],
    /// Packets that the receiver received, in all rounds.
    pub(super) received: u64,
    /// Packets that the generator sent; those not received found the ring full.
    pub(super) sent: u64,
    /// Packets that reached the stack's IP layer.
    pub(super) reached_ip: u64,
    /// The share of the time that the receiver's thread was on its CPU.
    pub(super) busy: f64,
}

/// Two namespaces, joined by a veth whose receiver polls in a thread of its own.
pub(super) struct Wire {
    sender: Namespace,
    /// The namespace with the filter.
    pub(super) receiver: Namespace,
    /// The receiver's device.
    pub(super) device: String,
    /// Its index in the receiver's namespace.
    pub(super) ifindex: u32,
}

impl Wire {
    /// # Errors
    /// The process is not root, or the kernel lacks threaded NAPI (Linux 5.12).
    pub(super) fn new() -> Result<Self> {
        let sender = Namespace::new("sender")?;
        let receiver = Namespace::new("receiver")?;
        // The thread is named after the device, so the name must be unique.
        let number = WIRES.fetch_add(1, Ordering::Relaxed);
        let device = format!("r{}x{number}", std::process::id() % 100_000);
        join((&sender, SENDER_DEVICE), (&receiver, &device))?;
        let mac = RECEIVER.map(|byte| format!("{byte:02x}")).join(":");
        receiver.run(&["ip", "link", "set", &device, "address", &mac])?;
        // A veth polls, rather than receive in the sender's context, with GRO or an XDP program.
        receiver.run(&["ethtool", "-K", &device, "gro", "on"])?;
        receiver.run(&["ip", "-6", "route", "add", "blackhole", "2001:db8::/32"])?;
        // `ip netns exec` mounts the /sys that shows the namespace's devices.
        receiver.run(&[
            "ip",
            "netns",
            "exec",
            receiver.name(),
            "sh",
            "-c",
            &format!("echo 1 > /sys/class/net/{device}/threaded"),
        ])?;
        let ifindex = receiver
            .enter(|| nix::net::if_::if_nametoindex(device.as_str()))?
            .context("the device's index")?;
        Ok(Self {
            sender,
            receiver,
            device,
            ifindex,
        })
    }

    /// Prepares floods of packets from these sources.
    ///
    /// # Errors
    /// The generator cannot be loaded, or the receiver has no thread.
    pub(super) fn floods(&self, family: Family, sources: &[IpAddr]) -> Result<Floods<'_>> {
        let thread = self.napi_thread()?;
        take(thread, 1)?;
        let generator = self.sender.enter(|| {
            let ifindex = nix::net::if_::if_nametoindex(SENDER_DEVICE)?;
            Generator::new(family, sources, ifindex)
        })??;
        Ok(Floods {
            wire: self,
            family,
            generator,
            thread,
            rounds: Vec::new(),
        })
    }

    /// Waits until the receiver has received everything.
    fn settle(&self) -> Result<()> {
        let mut last = None;
        poll("the receiver to rest", Duration::from_secs(5), || {
            let now = self.received().ok();
            let rests = now.is_some() && now == last;
            last = now;
            rests.then_some(())
        })
    }

    /// The thread that polls the device.
    fn napi_thread(&self) -> Result<Pid> {
        let start = format!("napi/{}-", self.device);
        poll("the NAPI thread", Duration::from_secs(5), || {
            fs::read_dir("/proc").ok()?.find_map(|entry| {
                let entry = entry.ok()?;
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let name = fs::read_to_string(entry.path().join("comm")).ok()?;
                name.starts_with(&start).then(|| Pid::from_raw(pid))
            })
        })
    }

    /// Packets that the receiver has received.
    fn received(&self) -> Result<u64> {
        let text = self.read("net/dev")?;
        let line = text
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(&format!("{}:", self.device)));
        let packets = line.and_then(|counters| counters.split_whitespace().nth(1));
        packets
            .and_then(|packets| packets.parse().ok())
            .with_context(|| format!("/proc/net/dev does not count packets of {}", self.device))
    }

    /// Packets that reached the receiver's IP layer (RFC 4293, InReceives).
    fn reached_ip(&self, family: Family) -> Result<u64> {
        let found = match family {
            Family::V4 => {
                // A line of names, then one of numbers.
                let text = self.read("net/snmp")?;
                let mut lines = text.lines().filter(|line| line.starts_with("Ip: "));
                let names = lines.next().unwrap_or_default().split(' ');
                let numbers = lines.next().unwrap_or_default().split(' ');
                let mut pairs = names.zip(numbers);
                pairs
                    .find(|(name, _)| *name == "InReceives")
                    .and_then(|(_, number)| number.parse().ok())
            }
            Family::V6 => {
                let text = self.read("net/snmp6")?;
                let line = text
                    .lines()
                    .find_map(|line| line.strip_prefix("Ip6InReceives"));
                line.and_then(|number| number.trim().parse().ok())
            }
        };
        found.with_context(|| format!("the kernel does not count received {family} packets"))
    }

    /// A file under the receiver's `/proc/net`.
    fn read(&self, name: &str) -> Result<String> {
        let path = format!("/proc/thread-self/{name}");
        self.receiver
            .enter(|| fs::read_to_string(&path))?
            .with_context(|| format!("{path} cannot be read"))
    }
}

/// Floods on a wire.
pub(super) struct Floods<'a> {
    wire: &'a Wire,
    family: Family,
    generator: Generator,
    /// The receiver's.
    thread: Pid,
    /// The cost of each flood.
    rounds: Vec<Cost>,
}

impl Floods<'_> {
    /// The cost of each, flooded in turn, so that other work on the machine affects all alike.
    ///
    /// # Errors
    /// The generator fails, or hardly any packet arrives.
    pub(super) fn measure(mut all: Vec<Self>, effort: Effort) -> Result<Vec<Cost>> {
        for round in 0..=effort.rounds {
            for floods in &mut all {
                let cost = floods.wire.sender.enter(|| floods.one(effort.time))??;
                // The first is to warm up.
                if round > 0 {
                    floods.rounds.push(cost);
                }
            }
        }
        Ok(all.into_iter().map(Self::cost).collect())
    }

    /// One flood, from the sender's namespace. The kernel takes the CPU even from a real-time thread for
    /// up to 50 ms a second (`kernel/sched/deadline.c`, the fair server). If that stopped the receiver
    /// for a whole flood, hardly a packet arrives, and the flood is repeated.
    fn one(&self, time: Duration) -> Result<Cost> {
        const ATTEMPTS: usize = 5;
        take(Pid::from_raw(0), 0)?;
        for _ in 0..ATTEMPTS {
            let cost = self.once(time)?;
            if cost.received > FEW {
                return Ok(cost);
            }
        }
        bail!("{ATTEMPTS} times in turn no more than {FEW} packets of a flood arrived")
    }

    fn once(&self, time: Duration) -> Result<Cost> {
        let counters = || -> Result<_> {
            let wire = self.wire;
            Ok((
                wire.received()?,
                wire.reached_ip(self.family)?,
                cpu_time(self.thread)?,
            ))
        };
        let start = Instant::now();
        let before = counters()?;
        let sent = self.generator.flood(time)?;
        self.wire.settle()?;
        let after = counters()?;
        let received = after.0 - before.0;
        let time = (after.2 - before.2) as f64;
        let nanoseconds = time / received.max(1) as f64;
        Ok(Cost {
            nanoseconds,
            spread: [nanoseconds; 2],
            received,
            sent,
            reached_ip: after.1 - before.1,
            busy: time / start.elapsed().as_nanos() as f64,
        })
    }

    /// All floods together.
    fn cost(mut self) -> Cost {
        let rounds = &mut self.rounds;
        rounds.sort_by(|one, other| one.nanoseconds.total_cmp(&other.nanoseconds));
        let sum = |of: fn(&Cost) -> u64| rounds.iter().map(of).sum();
        Cost {
            nanoseconds: rounds[rounds.len() / 4].nanoseconds,
            spread: [rounds[0].nanoseconds, rounds[rounds.len() - 1].nanoseconds],
            received: sum(|cost| cost.received),
            sent: sum(|cost| cost.sent),
            reached_ip: sum(|cost| cost.reached_ip),
            busy: rounds.iter().map(|cost| cost.busy).sum::<f64>() / rounds.len() as f64,
        }
    }
}

/// Time that a thread spent on a CPU, in nanoseconds (`Documentation/scheduler/sched-stats.rst`).
fn cpu_time(thread: Pid) -> Result<u64> {
    let path = format!("/proc/{thread}/schedstat");
    let text = fs::read_to_string(&path).with_context(|| format!("{path} cannot be read"))?;
    let time = text.split(' ').next().and_then(|word| word.parse().ok());
    time.with_context(|| format!("{path} has no time"))
}

/// Binds a thread, 0 for the calling one, to a CPU with real-time priority.
fn take(thread: Pid, cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(thread, &cpus)
        .with_context(|| format!("thread {thread} cannot be put on CPU {cpu}"))?;
    let parameters = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the parameters outlive the call.
    let result =
        unsafe { libc::sched_setscheduler(thread.as_raw(), policy, &raw const parameters) };
    Errno::result(result).with_context(|| format!("SCHED_FIFO for thread {thread}"))?;
    Ok(())
}
