//! A veth, flooded: what a packet costs the thread that receives it.
//!
//! The receiver's NAPI is a thread of its own on CPU 1, the generator runs on CPU 0, both above all
//! ordinary threads. The cost is the
//! time that the thread was on its CPU, by the packets that it took off the wire. The generator
//! sends more than the receiver can take, so that the thread rarely sleeps; what finds the veth's
//! ring full is lost before the receiver sees it, and not counted.

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
use crate::lab::{Namespace, join, poll};

/// The sender's device.
const SENDER_DEVICE: &str = "eth0";

/// So many packets of a flood arrive although the receiver did not run: twice the veth's ring, and some.
const FEW: u64 = 1_000;

/// How many there were so far.
static WIRES: AtomicU32 = AtomicU32::new(0);

/// How much is measured.
#[derive(Clone, Copy)]
pub(super) struct Effort {
    /// How many floods; their lower quartile counts. What the machine does beside makes a flood
    /// dearer, never cheaper, and the more often the longer one lasts.
    pub(super) rounds: usize,
    /// How long one lasts at least.
    pub(super) time: Duration,
}

/// What a flood cost.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Cost {
    /// CPU time a packet, in nanoseconds: the lower quartile of the rounds.
    pub(super) nanoseconds: f64,
    /// The least and the most of the rounds.
    pub(super) spread: [f64; 2],
    /// Packets that the receiver took off the wire, in all rounds.
    pub(super) received: u64,
    /// Packets that the generator made; the others found the ring full.
    pub(super) sent: u64,
    /// Packets that reached the stack's IP layer.
    pub(super) reached_ip: u64,
    /// What part of the time the receiver's thread was on its CPU.
    pub(super) busy: f64,
}

/// Two namespaces, joined; the receiver polls in a thread of its own.
pub(super) struct Wire {
    sender: Namespace,
    /// Where the filter works.
    pub(super) receiver: Namespace,
    /// The receiver's device.
    pub(super) device: String,
    /// Its index in the receiver's namespace.
    pub(super) ifindex: u32,
}

impl Wire {
    /// # Errors
    /// We are not root, or the kernel lacks threaded NAPI (5.12).
    pub(super) fn new() -> Result<Self> {
        let sender = Namespace::new("sender")?;
        let receiver = Namespace::new("receiver")?;
        // The thread is named after the device: a name of its own finds it.
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

    /// Floods of packets from these sources, none of them begun.
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

    /// Waits until the receiver has taken everything off the wire.
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

    /// Packets that the receiver has taken off the wire.
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
    /// What each flood cost.
    rounds: Vec<Cost>,
}

impl Floods<'_> {
    /// What each of these costs, flooded in turn, so that what the machine does beside meets them all.
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

    /// One flood, from the sender's namespace. The kernel takes the CPU from a thread above the ordinary
    /// ones, too, for up to a twentieth of a second (`kernel/sched/deadline.c`, the fair server), and of
    /// a flood that met the receiver so next to nothing arrives: it is made again.
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

/// Gives a thread, 0 for the calling one, a CPU on which no ordinary thread preempts it.
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
