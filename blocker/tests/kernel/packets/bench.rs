//! The bench: the datapath with a ruleset, a veth pair for it to send on, and its programs run
//! on single packets by `BPF_PROG_TEST_RUN`.
//!
//! Nothing is attached. The programs run as if the packet were on the device `eth0`: what they
//! send by it is received by its peer, and what they put into the stack is received by itself.
//! The thread keeps to one CPU, so that all of this happens in order and nothing is waited for
//! but what comes.

use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::{TcAttachType, TestRun, TestRunOptions};
use blocker::compile::{self, Input, Limits, RuleInput, Snapshot};
use blocker::config::HookChoice;
use blocker::datapath::{Datapath, HookTotals, Settings, Totals};
use blocker::rule::{Defaults, Rule, RuleSpec};
use blocker_ebpf as abi;
use ipnet::IpNet;
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use xtask::hosts::{Namespace, Pins, poll};

use super::packet::{LOCAL_MAC, Packet};
use super::program::Program;
use super::wire::Tap;

/// The settings of a datapath under test: no limit on replies.
pub(crate) const SETTINGS: Settings = Settings {
    limits: Limits {
        prefixes: 4_096,
        rules: 64,
        lists: 1_024,
        port_sets: 64,
        range_blocks: 2,
        v6_leaves: 1_024,
    },
    replies_per_second: 1_000_000,
    flows: 4_096,
    new_flows_per_second: 1_000_000,
    events_per_second: 1_000_000,
    mark: 0x5eed_b10c,
    log: log::LevelFilter::Off,
};

/// A packet's metadata that the kernel gives to a program (`struct __sk_buff`).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sight {
    pub(crate) mark: u32,
    /// Segments that the packet is to be cut into; 0 for one that is not.
    pub(crate) gso_segs: u32,
    pub(crate) gso_size: u32,
}

/// Offsets in `struct __sk_buff` (`include/uapi/linux/bpf.h`).
mod sk_buff {
    pub(super) const MARK: usize = 8;
    pub(super) const IFINDEX: usize = 40;
    pub(super) const GSO_SEGS: usize = 164;
    pub(super) const GSO_SIZE: usize = 176;
    pub(super) const SIZE: usize = 192;
}

/// What was counted, as differences.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Of each rule, in the program's direction.
    pub(crate) rules: Vec<Totals>,
    pub(crate) hook: HookTotals,
}

/// All that came of one packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) verdict: i32,
    /// The packet as it was left.
    pub(crate) packet: Vec<u8>,
    /// Its mark afterwards.
    pub(crate) mark: u32,
    /// What was sent by the device.
    pub(crate) sent: Vec<Vec<u8>>,
    /// What came into the stack by the device.
    pub(crate) received: Vec<Vec<u8>>,
    pub(crate) counted: Counted,
}

/// What came of a frame that met an attached program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Crossed {
    /// What the peer received.
    pub(crate) sent: Vec<Vec<u8>>,
    /// What the device received: also the frame itself, if it came from the wire.
    pub(crate) received: Vec<Vec<u8>>,
    pub(crate) counted: Counted,
}

impl Seen {
    /// The number of the rule that took the packet.
    pub(crate) fn rule(&self) -> Option<usize> {
        self.counted.rules.iter().position(|rule| rule.packets > 0)
    }
}

/// A rule on targets (separated by blanks), with the other fields as YAML.
pub(crate) fn rule(id: &str, targets: &str, fields: &str) -> Rule {
    let resolve = || -> Result<Rule> {
        let mut spec: serde_json::Value = serde_yaml::from_str(fields)?;
        let fields = spec.as_object_mut().context("no mapping")?;
        fields.insert("targets".into(), targets.split(' ').collect());
        let spec: RuleSpec = serde_json::from_value(spec)?;
        let id = id.parse()?;
        Ok(spec.resolve(|| id, Defaults::default(), jiff::Timestamp::now())?)
    };
    resolve().unwrap_or_else(|error| panic!("rule {id}: {error}"))
}

pub(crate) struct Bench {
    pub(crate) datapath: Datapath,
    pub(crate) ifindex: u32,
    rules: u32,
    attached: bool,
    /// The number of the last collection.
    collections: u64,
    own: Tap,
    peer: Tap,
    _pins: Pins,
}

impl Bench {
    /// Sets the bench up in a network namespace of its own, and lets a test use it there.
    pub(crate) fn with<T: Send>(
        settings: Settings,
        test: impl FnOnce(&mut Self) -> Result<T> + Send,
    ) -> Result<T> {
        let namespace = Namespace::new("bench")?;
        // No frame on the wire but ours.
        for device in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv6/conf/{device}/disable_ipv6"), "1")?;
        }
        let mac = LOCAL_MAC.map(|byte| format!("{byte:02x}")).join(":");
        namespace.run(&[
            "ip", "link", "add", "eth0", "address", &mac, "type", "veth", "peer", "name", "peer",
        ])?;
        for device in ["eth0", "peer"] {
            namespace.run(&["ip", "link", "set", device, "up"])?;
        }
        namespace.enter(|| test(&mut Self::new(settings)?))?
    }

    fn new(settings: Settings) -> Result<Self> {
        let mut cpu = CpuSet::new();
        cpu.set(sched_getcpu()?)?;
        sched_setaffinity(Pid::from_raw(0), &cpu)?;
        let pins = Pins::new()?;
        let ifindex = nix::net::if_::if_nametoindex("eth0")?;
        let own = Tap::open(ifindex)?;
        let peer = Tap::open(nix::net::if_::if_nametoindex("peer")?)?;
        // A device that is up still drops what it is to send until its carrier was noticed
        // (`linkwatch_do_dev`), which a kernel thread does.
        for (from, to) in [(&own, &peer), (&peer, &own)] {
            poll("a frame to cross", Duration::from_secs(10), || {
                from.send_end(0).ok()?;
                to.receive_all(0).ok().filter(|frames| !frames.is_empty())
            })?;
        }
        Ok(Self {
            datapath: Datapath::load(settings, pins.path(), HookChoice::Auto)?,
            ifindex,
            rules: 0,
            attached: false,
            collections: 0,
            own,
            peer,
            _pins: pins,
        })
    }

    /// Makes a ruleset live. A rule's number is its place here.
    pub(crate) fn enforce(&mut self, rules: &[Rule], protect: &[&str]) -> Result<()> {
        let inputs: Vec<_> = (0..).zip(rules).map(|(n, rule)| input(n, rule)).collect();
        self.enforce_inputs(&inputs, protect)
    }

    /// Makes a ruleset live, with what rules themselves do not say.
    pub(crate) fn enforce_inputs(
        &mut self,
        rules: &[RuleInput<'_>],
        protect: &[&str],
    ) -> Result<()> {
        let protect: Vec<IpNet> = protect
            .iter()
            .map(|net| net.parse())
            .collect::<Result<_, _>>()?;
        let input = Input {
            rules,
            protect: &protect,
            generic_xdp: false,
        };
        let snapshot = compile::compile(&input, &self.datapath.settings().limits)?;
        self.switch(&snapshot)
    }

    /// Makes a snapshot live.
    pub(crate) fn switch(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.datapath.switch(snapshot)?;
        self.rules = u32::try_from(snapshot.rules.len())?;
        Ok(())
    }

    /// Runs a program on a packet.
    pub(crate) fn run(&mut self, program: Program, packet: &Packet) -> Result<Seen> {
        self.run_on(program, &packet.bytes(), Sight::default())
    }

    /// Runs a program on a frame that the kernel tells these things about.
    pub(crate) fn run_on(&mut self, program: Program, frame: &[u8], sight: Sight) -> Result<Seen> {
        let before = self.counted(program)?;
        let (verdict, packet, mark) = self.test_run(program, frame, sight)?;
        let crossed = self.collect(program, &before)?;
        Ok(Seen {
            verdict,
            packet,
            mark,
            sent: crossed.sent,
            received: crossed.received,
            counted: crossed.counted,
        })
    }

    /// Attaches the TC programs to the device, for [`Bench::cross`].
    pub(crate) fn attach(&mut self) -> Result<()> {
        for (program, way) in [
            (Program::Ingress, TcAttachType::Ingress),
            (Program::Egress, TcAttachType::Egress),
        ] {
            let classifier = self.datapath.object().classifier(program.name())?;
            classifier.attach("eth0", way)?;
        }
        self.attached = true;
        Ok(())
    }

    /// Lets a frame come to an attached program from the wire, or go to it from this host: as the
    /// kernel itself shows it to the program. The verdict shows in what was counted.
    pub(crate) fn cross(&mut self, program: Program, frame: &[u8]) -> Result<Crossed> {
        let before = self.counted(program)?;
        let from = if program.is_egress() {
            &self.own
        } else {
            &self.peer
        };
        match from.send(frame) {
            // So a sender is told of a packet that egress drops (NET_XMIT_DROP).
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            sent => sent?,
        }
        self.collect(program, &before)
    }

    fn collect(&mut self, program: Program, before: &Counted) -> Result<Crossed> {
        self.collections += 1;
        self.own.send_end(self.collections)?;
        self.peer.send_end(self.collections)?;
        let mut crossed = Crossed {
            sent: self.peer.collect(self.collections)?,
            received: self.own.collect(self.collections)?,
            counted: self.counted(program)?.since(before),
        };
        if self.attached && program != Program::Xdp {
            // The frame that ended the collection was seen too.
            crossed.counted.hook.seen -= 1;
            crossed.counted.hook.passed -= 1;
        }
        Ok(crossed)
    }

    /// Runs a program for its verdict alone.
    pub(crate) fn verdict(&mut self, program: Program, frame: &[u8]) -> Result<i32> {
        self.verdict_on(program, frame, Sight::default())
    }

    /// Runs a program for its verdict alone, on a frame that the kernel tells these things about.
    pub(crate) fn verdict_on(
        &mut self,
        program: Program,
        frame: &[u8],
        sight: Sight,
    ) -> Result<i32> {
        Ok(self.test_run(program, frame, sight)?.0)
    }

    fn test_run(
        &mut self,
        program: Program,
        frame: &[u8],
        sight: Sight,
    ) -> Result<(i32, Vec<u8>, u32)> {
        let mut context = [0; sk_buff::SIZE];
        for (offset, value) in [
            (sk_buff::MARK, sight.mark),
            (sk_buff::IFINDEX, self.ifindex),
            (sk_buff::GSO_SEGS, sight.gso_segs),
            (sk_buff::GSO_SIZE, sight.gso_size),
        ] {
            context[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let mut context_out = [0; sk_buff::SIZE];
        let mut out = vec![0; frame.len().max(2_048)];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        let object = self.datapath.object();
        let result = match program {
            Program::Xdp => object.xdp()?.test_run(options),
            _ => {
                options.ctx_in = Some(&context);
                options.ctx_out = Some(&mut context_out);
                object.classifier(program.name())?.test_run(options)
            }
        };
        let result = result.with_context(|| format!("{program:?} on {frame:02x?}"))?;
        out.truncate(result.data_size_out as usize);
        let mark = &context_out[sk_buff::MARK..sk_buff::MARK + 4];
        let mark = u32::from_ne_bytes(mark.try_into()?);
        Ok((result.return_value.cast_signed(), out, mark))
    }

    /// What was counted so far at a program's hook, and by the rules in its direction.
    pub(crate) fn counted(&self, program: Program) -> Result<Counted> {
        // A test run of XDP is on the loopback device, unless another has a program attached.
        let ifindex = if program == Program::Xdp {
            1
        } else {
            self.ifindex
        };
        let of_rule = |slot| -> Result<Totals> {
            let counters = self.datapath.rule_counters(slot)?;
            Ok(if program.is_egress() {
                counters.egress
            } else {
                counters.ingress
            })
        };
        Ok(Counted {
            rules: (0..self.rules).map(of_rule).collect::<Result<_>>()?,
            hook: self.datapath.hook_counters(program.hook(), ifindex)?,
        })
    }
}

/// A rule of the compiler's input: without deadline, on every device, counted in its own slot.
pub(crate) fn input(number: u32, rule: &Rule) -> RuleInput<'_> {
    RuleInput {
        rule,
        deadline: abi::NEVER,
        counter: number,
        interfaces: None,
    }
}

impl Counted {
    /// What was counted since something else was.
    pub(crate) fn since(self, before: &Self) -> Self {
        let after = self;
        let rule = |(after, before): (Totals, &Totals)| Totals {
            packets: after.packets - before.packets,
            bytes: after.bytes - before.bytes,
            replies: after.replies - before.replies,
            suppressed: after.suppressed - before.suppressed,
        };
        Counted {
            rules: after
                .rules
                .into_iter()
                .zip(&before.rules)
                .map(rule)
                .collect(),
            hook: HookTotals {
                seen: after.hook.seen - before.hook.seen,
                passed: after.hook.passed - before.hook.passed,
                malformed: after.hook.malformed - before.hook.malformed,
                own: after.hook.own - before.hook.own,
            },
        }
    }
}
