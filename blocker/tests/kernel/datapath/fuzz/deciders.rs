//! That the deciders in user space are the datapath: random rulesets and flows, whose packets run
//! through the programs, and are judged over the live bank as `explain` and a teardown judge them.
//!
//! Everything follows from a seed, as in the fuzz tests, and is set by the same variables.

use std::io;
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use blocker::compile::{self, Input};
use blocker::matching::{self, Decider, Holds, Outcome, PacketPorts, Percent, Tried};
use blocker::rule::{Established, Mode, Rule};
use blocker::teardown::{Rules, Selection, Tuple};
use blocker_ebpf::Hook;
use fastrand::Rng;

use super::frames::{address4, address6, once_in, one};
use super::number;
use super::rulesets::Ruleset;
use crate::packets::packet::*;
use crate::packets::{Bench, Packet, Program, SETTINGS, icmp, other, tcp, udp};

const SEED: u64 = 0x0dec_1de5;
const FLOWS: u64 = 20_000;
/// Flows under one ruleset, which run through a program between two readings of the counters.
const BATCH: usize = 500;
const HOOKS: [Program; 3] = [Program::Xdp, Program::Ingress, Program::Egress];

/// A flow, and a packet of it as it comes in.
#[derive(Debug, Clone)]
struct Flow {
    remote: IpAddr,
    local: IpAddr,
    protocol: u8,
    /// Local and remote.
    ports: Option<(u16, u16)>,
    packet: Packet,
}

impl Flow {
    fn random(rng: &mut Rng) -> Self {
        let v6 = rng.bool();
        let address = if v6 { address6 } else { address4 };
        let (remote, local) = (address(rng), address(rng));
        let port = |rng: &mut Rng| one(rng, &[0, 22, 79, 80, 443, 1_000, 1_500, 2_001, 65_535]);
        let (kind, ports) = (rng.u32(..8), (port(rng), port(rng)));
        let (packet, protocol) = match kind {
            0..=3 => (tcp(one(rng, &[SYN, ACK, PSH | ACK, FIN | ACK])), 6),
            4 | 5 => (udp(b"hello"), 17),
            6 => (icmp(8, 0, [0; 4]), if v6 { 58 } else { 1 }),
            _ => (other(47), 47),
        };
        let packet = if v6 { packet.v6() } else { packet };
        let mut packet = packet.remote(remote).local(local);
        if kind < 6 {
            packet = packet.local_port(ports.0).remote_port(ports.1);
        }
        Self {
            remote,
            local,
            protocol,
            ports: (kind < 6).then_some(ports),
            packet,
        }
    }

    /// All that there is to know of a packet of it.
    fn known(&self, hook: Hook, device: u32) -> matching::Packet {
        let (local, remote) = self.ports.unzip();
        matching::Packet {
            v6: self.remote.is_ipv6(),
            hook,
            device: Some(device),
            local: Some(self.local),
            protocol: Some(self.protocol),
            ports: PacketPorts::Sides { local, remote },
        }
    }
}

/// The same packet, of which less is known.
fn less(rng: &mut Rng, whole: &matching::Packet) -> matching::Packet {
    let mut packet = *whole;
    if rng.bool() {
        packet.device = None;
    }
    if rng.bool() {
        packet.local = None;
    }
    if let PacketPorts::Sides { local, remote } = &mut packet.ports {
        let known = [*local, *remote].into_iter().flatten().next();
        if rng.bool() {
            *local = None;
        }
        if rng.bool() {
            *remote = None;
        }
        if let Some(port) = known.filter(|_| once_in(rng, 6)) {
            packet.ports = PacketPorts::Either(port);
        }
    }
    if rng.bool() {
        packet.protocol = None;
    }
    packet
}

/// The bench under one ruleset.
struct Case<'a> {
    bench: &'a mut Bench,
    rules: &'a [Rule],
    /// Of each rule: whether it is under teardown.
    killing: &'a [bool],
    /// Whether rules take random samples, so that each packet is to be looked at alone.
    samples: bool,
    now: u64,
}

/// The live bank, as a teardown reads it.
impl Rules for Case<'_> {
    fn list(&self, remote: IpAddr) -> io::Result<u64> {
        Ok(self.bench.datapath.list(remote))
    }

    fn tried(&self, remote: IpAddr) -> io::Result<Vec<(Tried, bool)>> {
        let tried = self.bench.datapath.lookup(remote);
        let tried = tried.map_err(io::Error::other)?.into_iter();
        Ok(tried
            .map(|tried| {
                let kills = self.killing[tried.rule.counter as usize];
                (tried, kills)
            })
            .collect())
    }

    fn now(&self) -> u64 {
        self.now
    }
}

impl Case<'_> {
    /// A test run of XDP is on the loopback device.
    fn device(&self, program: Program) -> u32 {
        if program == Program::Xdp {
            1
        } else {
            self.bench.ifindex
        }
    }

    /// The rules that may decide a flow's packet at a hook, and whether it may be that none does:
    /// there is one answer, unless rules take samples.
    fn foretold(&self, flow: &Flow, program: Program) -> Result<(Vec<usize>, bool)> {
        let packet = flow.known(program.hook(), self.device(program));
        let decider = Decider::new(self.bench.datapath.lookup(flow.remote)?);
        let (mut rules, mut decided, mut left) = (Vec::new(), false, false);
        for trial in decider.trials(&packet, program == Program::Xdp, self.now) {
            let here = trial.hook == Some(program.hook());
            match trial.outcome {
                Outcome::Decides => decided = here,
                // What XDP leaves to TC it doesn't count.
                Outcome::Share => left |= !here,
                Outcome::Depends(unknown) => bail!("all is known, but {unknown:?}"),
                Outcome::Shadowed(_) | Outcome::Not(_) => {}
            }
            if here {
                rules.push(trial.tried.rule.counter as usize);
            }
        }
        Ok((rules, left || !decided))
    }

    /// Runs the flows' packets through a program: the rule that decides each is as foretold.
    fn run(&mut self, program: Program, flows: &[Flow]) -> Result<Vec<Option<usize>>> {
        let before = self.bench.counted(program)?;
        let mut expected = vec![0; self.rules.len()];
        let mut decided = Vec::with_capacity(flows.len());
        for flow in flows {
            let (rules, none) = self.foretold(flow, program)?;
            let before = self.samples.then(|| self.bench.counted(program));
            let verdict = self
                .bench
                .verdict(program, &program.meets(&flow.packet).bytes())?;
            let mut rule = rules.first().copied();
            if let Some(before) = before.transpose()? {
                let counted = self.bench.counted(program)?.since(&before).rules;
                rule = counted.iter().position(|rule| rule.packets > 0);
                ensure!(
                    rule.map_or(none, |rule| rules.contains(&rule)),
                    "{rule:?} decides, of {rules:?}: {program:?} {flow:?}"
                );
            }
            let as_ruled = match rule.map(|rule| self.rules[rule].mode) {
                Some(Mode::Drop) => verdict == program.drop(),
                Some(Mode::Audit) | None => verdict == program.pass(),
                // Those answer, and a RST may go on in the packet's place.
                Some(Mode::Reset | Mode::Reject) => true,
            };
            ensure!(as_ruled, "{verdict}, not {rule:?}: {program:?} {flow:?}");
            if let Some(rule) = rule {
                expected[rule] += 1;
            }
            decided.push(rule);
        }
        let counted = self.bench.counted(program)?.since(&before).rules;
        let counted: Vec<u64> = counted.iter().map(|rule| rule.packets).collect();
        if counted == expected {
            return Ok(decided);
        }
        if let [flow] = flows {
            bail!("{counted:?} was counted, not {expected:?}: {program:?} {flow:?}");
        }
        for flow in flows {
            self.run(program, std::slice::from_ref(flow))?;
        }
        bail!("{counted:?} was counted, not {expected:?}, though each flow alone is right")
    }

    /// What is said of a packet of which less is known leaves room for the rule that decides it.
    fn leaves_room(&self, flow: &Flow, less: &matching::Packet, rule: Option<usize>) -> Result<()> {
        let decider = Decider::new(self.bench.datapath.lookup(flow.remote)?);
        let mut certain = None;
        let mut possible = Vec::new();
        for trial in decider.trials(less, false, self.now) {
            let number = trial.tried.rule.counter as usize;
            if trial.outcome == Outcome::Decides {
                certain = Some(number);
            }
            possible.extend(trial.hook.map(|_| number));
        }
        let room = rule.map_or(certain.is_none(), |rule| possible.contains(&rule));
        ensure!(
            room,
            "{rule:?} decides {flow:?}, not {possible:?} of {less:?}"
        );
        Ok(())
    }

    /// A teardown kills the flows of which a rule under teardown decides a packet, either way.
    fn killed(&self, rng: &mut Rng, flow: &Flow, decided: [Option<usize>; 2]) -> Result<Holds> {
        let killing: Vec<Rule> = (self.rules.iter().zip(self.killing))
            .filter(|(_, kills)| **kills)
            .map(|(rule, _)| rule.clone())
            .collect();
        let selection = Selection::new(&killing, self);
        let (local_port, remote_port) = flow.ports.unwrap_or_default();
        let tuple = Tuple {
            protocol: flow.protocol,
            remote: flow.remote,
            remote_port,
            local: flow.local,
            local_port,
        };
        let answer = selection.selects(&tuple, || Some(self.bench.ifindex));
        // Of what a sample decided, it does not follow what the rules behind it would.
        let sampled = |rule: &Option<usize>| {
            rule.is_some_and(|rule| !self.rules[rule].matching.percent.is_all())
        };
        if !decided.iter().any(sampled) {
            let dies = decided.iter().flatten().any(|rule| self.killing[*rule]);
            ensure!(
                answer == if dies { Holds::Always } else { Holds::Never },
                "{answer:?} killed, but {decided:?} decide, of which kill {:?}: {flow:?}",
                self.killing
            );
        }
        let unknown = selection.selects(&tuple, || None);
        ensure!(
            unknown == answer || unknown == Holds::Sometimes,
            "{unknown:?} killed whatever its device, but {answer:?} on one: {flow:?}"
        );
        if once_in(rng, 50) {
            let hidden = selection.selects_hidden(&tuple, || Some(self.bench.ifindex));
            ensure!(!hidden || answer == Holds::Always, "hidden, {flow:?}");
        }
        Ok(answer)
    }
}

#[test]
fn explain_and_teardown_decide_as_the_programs_do() -> Result<()> {
    let seed = number("BLOCKER_FUZZ_SEED", SEED)?;
    let flows = number("BLOCKER_FUZZ_PACKETS", FLOWS)?;
    let mut rng = Rng::with_seed(seed);
    // Packets that a rule decided, by hook; flows that were spared, and killed.
    let (mut taken, mut killed) = ([0_u64; 3], [0_u64; 2]);
    Bench::with(SETTINGS, |bench| {
        let mut ran = 0;
        while ran < flows {
            let mut ruleset = Ruleset::random(&mut rng, &[1, bench.ifindex, 1_000_000]);
            let samples = once_in(&mut rng, 8);
            for rule in ruleset.rules.iter_mut().filter(|_| samples) {
                rule.matching.percent = Percent::try_from(one(&mut rng, &[50, 100, 100]))?;
            }
            let killing: Vec<bool> = ruleset.rules.iter().map(|_| rng.bool()).collect();
            for (rule, kills) in ruleset.rules.iter_mut().zip(&killing) {
                if *kills {
                    rule.matching.percent = Percent::ALL;
                    rule.established = Established::Kill;
                }
            }
            let inputs = ruleset.inputs();
            let input = Input {
                rules: &inputs,
                protect: &ruleset.protect,
                generic_xdp: false,
            };
            bench.switch(&compile::compile(&input, &SETTINGS.limits)?)?;
            let mut case = Case {
                bench,
                rules: &ruleset.rules,
                killing: &killing,
                samples,
                now: boot_time()?,
            };
            let flows: Vec<Flow> = (0..BATCH).map(|_| Flow::random(&mut rng)).collect();
            let about = || format!("BLOCKER_FUZZ_SEED={seed}: {ruleset:?}");
            let mut decided = Vec::new();
            for program in HOOKS {
                decided.push(case.run(program, &flows).with_context(about)?);
            }
            let bare = flows.iter().filter(|flow| flow.packet.can_be_bare());
            let bare: Vec<Flow> = bare.cloned().collect();
            for program in [Program::IngressL3, Program::EgressL3] {
                case.run(program, &bare).with_context(about)?;
            }
            for (number, flow) in flows.iter().enumerate() {
                let [xdp, ingress, egress] = [0, 1, 2].map(|hook: usize| decided[hook][number]);
                for (hook, rule) in [(Hook::Ingress, ingress), (Hook::Egress, egress)] {
                    let less = less(&mut rng, &flow.known(hook, case.bench.ifindex));
                    case.leaves_room(flow, &less, rule).with_context(about)?;
                }
                let answer = case.killed(&mut rng, flow, [ingress, egress]);
                killed[usize::from(answer.with_context(about)? == Holds::Always)] += 1;
                for (taken, rule) in taken.iter_mut().zip([xdp, ingress, egress]) {
                    *taken += u64::from(rule.is_some());
                }
            }
            ran += BATCH as u64;
        }
        Ok(())
    })?;
    println!(
        "of {flows} flows at each hook, rules decided {taken:?}; {killed:?} were spared, killed"
    );
    // All kinds were met, or nothing is shown.
    let least = flows / 20;
    assert!(taken.iter().chain(&killed).all(|count| *count > least));
    Ok(())
}

fn boot_time() -> Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?;
    Ok(u64::try_from(std::time::Duration::from(now).as_nanos())?)
}
