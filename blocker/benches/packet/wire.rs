//! A veth, flooded: what a packet costs the thread that receives it.
//!
//! Sender and receiver share a CPU. The sender has it for itself while it fills the veth's ring
//! (256 packets), then sleeps; the receiver then finds a full ring, as under a flood, and wakes
//! once for all of it. On two CPUs it would wake for every other packet, and its wake-ups would be
//! most of what is measured.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use blocker::datapath::Datapath;
use blocker::datapath::devices::{Device, LinkKind};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::HERE;
use crate::frame::{LENGTH, flood};
use crate::kernel::Program;
use crate::lab::{Namespace, join, poll};

/// How long a flood is measured, after a warm-up of a tenth of it.
const MEASURE: Duration = Duration::from_millis(800);
/// Packets that the ring takes (`VETH_RING_SIZE`, drivers/net/veth.c).
const BURST: usize = 256;
/// How long the receiver has for them.
const REST: Duration = Duration::from_micros(300);

/// Two namespaces, joined; the receiver polls in a thread of its own.
pub(crate) struct Wire {
    sender: Namespace,
    receiver: Namespace,
    device: String,
    ifindex: u32,
}

impl Wire {
    pub(crate) fn new() -> Result<Self> {
        let sender = Namespace::new("sender")?;
        let receiver = Namespace::new("receiver")?;
        // The thread is named after the device: a name of our own finds it.
        let device = format!("r{}", std::process::id() % 10_000_000);
        join((&sender, "eth0"), (&receiver, &device))?;
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

    /// Nanoseconds a packet, with a program on native XDP.
    pub(crate) fn with_program(&self, program: &Program, sources: &[Ipv4Addr]) -> Result<f64> {
        let _link = self.receiver.enter(|| program.attach(self.ifindex))??;
        self.measure(sources)
    }

    /// Nanoseconds a packet, with the datapath on all its hooks.
    pub(crate) fn with_datapath(
        &self,
        datapath: &mut Datapath,
        sources: &[Ipv4Addr],
    ) -> Result<f64> {
        let device = [Device {
            index: self.ifindex,
            name: self.device.clone(),
            kind: LinkKind::Ethernet,
        }];
        let errors = self.receiver.enter(|| datapath.attach(&device))?;
        if let Some(error) = errors.into_iter().next() {
            return Err(error).context("the datapath is not on all its hooks");
        }
        let result = self.measure(sources);
        datapath.attach(&[]);
        result
    }

    fn measure(&self, sources: &[Ipv4Addr]) -> Result<f64> {
        let receiver = self.napi_thread()?;
        pin(receiver)?;
        let packets = flood(sources, HERE);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| self.sender.enter(|| send(&packets, &stop))?);
            let wait = |time| {
                let until = Instant::now() + time;
                while Instant::now() < until && !sender.is_finished() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            };
            wait(MEASURE / 10);
            let before = (self.received(), cpu_time(receiver));
            wait(MEASURE);
            let after = (self.received(), cpu_time(receiver));
            stop.store(true, Ordering::Relaxed);
            match sender.join() {
                Ok(sent) => sent?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
            let packets = after.0? - before.0?;
            ensure!(packets > 10_000, "only {packets} packets arrived");
            Ok((after.1? - before.1?) as f64 / packets as f64)
        })
    }

    /// Makes the device's NAPI a thread (`threaded`, Linux 5.12), and finds it.
    fn napi_thread(&self) -> Result<Pid> {
        // `ip netns exec` mounts the /sys that shows the namespace's devices.
        let command = format!("echo 1 > /sys/class/net/{}/threaded", self.device);
        let output = std::process::Command::new("ip")
            .args(["netns", "exec", self.receiver.name(), "sh", "-c", &command])
            .output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr));
        }
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
        let text = self
            .receiver
            .run(&["ip", "-j", "-s", "link", "show", "dev", &self.device])?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        links[0]["stats64"]["rx"]["packets"]
            .as_u64()
            .context("`ip -s link` counts no packets")
    }
}

/// Time that a thread spent on a CPU, in nanoseconds (`Documentation/scheduler/sched-stats`).
fn cpu_time(thread: Pid) -> Result<u64> {
    let path = PathBuf::from(format!("/proc/{thread}/schedstat"));
    let text = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let time = text.split(' ').next().and_then(|word| word.parse().ok());
    time.with_context(|| format!("{} has no time", path.display()))
}

/// Puts a thread on the first CPU.
fn pin(thread: Pid) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(thread, &cpus).context("the thread cannot be pinned")
}

/// Lets no ordinary thread preempt the calling one.
fn take_precedence() -> Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameters outlive the call.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    nix::errno::Errno::result(result).context("SCHED_FIFO")?;
    Ok(())
}

/// Sends the packets over and over until it is told to stop.
fn send(packets: &[[u8; LENGTH]], stop: &AtomicBool) -> Result<()> {
    pin(Pid::from_raw(0))?;
    take_precedence()?;
    let socket = packet_socket()?;
    let mut vectors: Vec<libc::iovec> = packets
        .iter()
        .map(|packet| libc::iovec {
            iov_base: packet.as_ptr().cast_mut().cast(),
            iov_len: LENGTH,
        })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = vectors
        .iter_mut()
        .map(|vector| {
            // SAFETY: all zeros is a valid `mmsghdr`: no name, no data, no control data.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    while !stop.load(Ordering::Relaxed) {
        for batch in messages.chunks_mut(BURST) {
            let count = u32::try_from(batch.len())?;
            // SAFETY: `batch` is `count` messages, whose vectors and packets outlive the call.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), batch.as_mut_ptr(), count, 0) };
            // ENOBUFS: the wire is full, as it is to be.
            if sent < 0 && io::Error::last_os_error().raw_os_error() != Some(libc::ENOBUFS) {
                return Err(io::Error::last_os_error()).context("the sender");
            }
            std::thread::sleep(REST);
        }
    }
    Ok(())
}

/// A packet socket on `eth0` that sends past the queueing discipline, and receives nothing.
fn packet_socket() -> Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("a packet socket");
    }
    // SAFETY: it is new and ours.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let bypass: libc::c_int = 1;
    // SAFETY: the option's value is one int, and outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            (&raw const bypass).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    nix::errno::Errno::result(result).context("PACKET_QDISC_BYPASS")?;
    // SAFETY: all zeros is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = nix::net::if_::if_nametoindex("eth0")?.cast_signed();
    // SAFETY: a `sockaddr_ll` of its own size, which outlives the call.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    nix::errno::Errno::result(result).context("the packet socket cannot be bound to eth0")?;
    Ok(socket)
}
