//! The prefix table in the kernel against the same in plain Rust, at many random addresses.
//!
//! [`Snapshot::lookup`] is the oracle, itself tested against a slow and obvious one. All rules
//! drop every packet, so the first rule of an address's list must count it, and an address
//! without a list must pass. XDP serves; the table is the same code for every hook. What the
//! daemon reads of the live bank, to explain it, must be the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use blocker::compile::{self, Input, Limits, RuleInput, Snapshot};
use blocker::datapath::Settings;
use blocker::rule::Rule;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use crate::packets::bench::input;
use crate::packets::program::{XDP_DROP, XDP_PASS};
use crate::packets::{Bench, Program, SETTINGS, rule, udp};

/// Numbers that look random and are the same in every run (xorshift64*, Vigna 2016).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }

    /// Of 8.0.0.0/5, so that prefixes nest and addresses hit.
    fn v4(&mut self) -> Ipv4Addr {
        Ipv4Addr::from(0x0800_0000 | (self.next() >> 32) as u32 & 0x07ff_ffff)
    }

    /// Of 2001:db8::/32, with few different groups.
    fn v6(&mut self) -> Ipv6Addr {
        let group = |dice: &mut Self| dice.below(4) as u16;
        let last = self.next() as u16;
        Ipv6Addr::new(
            0x2001,
            0xdb8,
            group(self),
            group(self),
            0,
            0,
            group(self),
            last,
        )
    }

    fn net(&mut self, v6: bool) -> Result<IpNet> {
        Ok(if v6 {
            let length = [47, 48, 63, 64, 111, 112, 120, 127, 128][self.below(9) as usize];
            Ipv6Net::new(self.v6(), length)?.trunc().into()
        } else {
            // Mostly long ones, as real lists have.
            let length = 32 - self.below(4).min(self.below(20)) as u8 * self.below(6) as u8;
            Ipv4Net::new(self.v4(), length)?.trunc().into()
        })
    }
}

/// Rules on random prefixes, each with some exceptions.
fn rules(dice: &mut Dice, count: usize, prefixes: usize, v6: bool) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for number in 0..count {
        let mut nets = |count: usize, shortest: u8| -> Result<Vec<String>> {
            let mut nets = Vec::new();
            while nets.len() < count {
                let net = dice.net(v6)?;
                if net.prefix_len() >= shortest {
                    nets.push(net.to_string());
                }
            }
            Ok(nets)
        };
        let targets = nets(prefixes / count, 0)?.join(" ");
        let except = nets(prefixes / count / 20, if v6 { 64 } else { 20 })?;
        let fields = format!("{{mode: drop, except: {except:?}}}");
        rules.push(rule(&format!("r{number}"), &targets, &fields));
    }
    Ok(rules)
}

/// Addresses at the edges of prefixes, and beside them.
fn edges(net: &IpNet) -> Vec<IpAddr> {
    match net {
        IpNet::V4(net) => {
            let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
            [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
                .map(|address| Ipv4Addr::from(address).into())
                .to_vec()
        }
        IpNet::V6(net) => {
            let (first, last) = (u128::from(net.network()), u128::from(net.broadcast()));
            [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
                .map(|address| Ipv6Addr::from(address).into())
                .to_vec()
        }
    }
}

fn snapshot(rules: &[Rule], limits: &Limits) -> Result<Snapshot> {
    let inputs: Vec<RuleInput<'_>> = (0..).zip(rules).map(|(n, rule)| input(n, rule)).collect();
    let input = Input {
        rules: &inputs,
        protect: &[],
        generic_xdp: false,
    };
    Ok(compile::compile(&input, limits)?)
}

/// Looks every address up in the kernel; returns how many of them some rule took.
fn compare(bench: &mut Bench, rules: &[Rule], addresses: &[IpAddr]) -> Result<usize> {
    let limits = bench.datapath.settings().limits;
    let snapshot = snapshot(rules, &limits)?;
    let packets = |bench: &Bench, slot: usize| -> Result<u64> {
        Ok(bench
            .datapath
            .rule_counters(u32::try_from(slot)?)?
            .ingress
            .packets)
    };
    let mut counted = Vec::new();
    for slot in 0..rules.len() {
        counted.push(packets(bench, slot)?);
    }
    bench.datapath.switch(&snapshot)?;
    let mut hits = 0;
    for address in addresses {
        ensure!(
            bench.datapath.lookup(*address)? == snapshot.tried(*address),
            "{address} has other rules when the live bank is read from here"
        );
        let frame = match address {
            IpAddr::V4(_) => udp(b"").remote(*address),
            IpAddr::V6(_) => udp(b"").v6().remote(*address),
        };
        let verdict = bench.verdict(Program::Xdp, &frame.bytes())?;
        let Some(first) = snapshot.lookup(*address).first() else {
            ensure!(verdict == XDP_PASS, "{address} is on no list");
            continue;
        };
        let slot = usize::from(*first);
        counted[slot] += 1;
        hits += 1;
        ensure!(
            verdict == XDP_DROP && packets(bench, slot)? == counted[slot],
            "{address} is of rule {}",
            rules[slot].id
        );
    }
    for (slot, counted) in counted.iter().enumerate() {
        ensure!(
            packets(bench, slot)? == *counted,
            "a packet too many for {}",
            rules[slot].id
        );
    }
    Ok(hits)
}

/// Random addresses, and the edges of some of the rules' prefixes.
fn addresses(dice: &mut Dice, rules: &[Rule], v6: bool) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = (0..5_000)
        .map(|_| {
            if v6 {
                dice.v6().into()
            } else {
                dice.v4().into()
            }
        })
        .collect();
    addresses.extend((0..1_000).map(|_| IpAddr::V4((dice.next() as u32).into())));
    for _ in 0..1_500 {
        let rule = &rules[dice.below(rules.len() as u64) as usize];
        let nets = if dice.below(4) == 0 && !rule.except.is_empty() {
            &rule.except[..]
        } else {
            &rule.targets[..]
        };
        addresses.extend(edges(&nets[dice.below(nets.len() as u64) as usize].net()));
    }
    addresses
}

fn random(seed: u64, prefixes: usize, v6: bool) -> Result<()> {
    let settings = Settings {
        limits: Limits {
            lists: 65_535,
            ..Limits::sized(100_000, 100_000, 64)
        },
        ..SETTINGS
    };
    let mut dice = Dice(seed);
    Bench::with(settings, |bench| {
        // Two rulesets, one in each bank.
        for _ in 0..2 {
            let rules = rules(&mut dice, 12, prefixes, v6)?;
            let addresses = addresses(&mut dice, &rules, v6);
            let hits = compare(bench, &rules, &addresses)?;
            let all = addresses.len();
            ensure!(
                (all / 20..all).contains(&hits),
                "{hits} of {all} addresses hit"
            );
        }
        Ok(())
    })
}

#[test]
fn few_prefixes_give_the_rule_that_the_oracle_gives() -> Result<()> {
    random(0x0123_4567_89ab_cdef, 6_000, false)
}

#[test]
fn many_prefixes_give_the_rule_that_the_oracle_gives() -> Result<()> {
    random(0x0fed_cba9_8765_4321, 80_000, false)
}

#[test]
fn ipv6_gives_the_rule_that_the_oracle_gives() -> Result<()> {
    random(0x1234_5678_9abc_def0, 3_000, true)
}

#[test]
fn the_ends_of_the_address_space_are_found() -> Result<()> {
    let rules = [
        rule("first", "0.0.0.0 ::", "{mode: drop}"),
        rule(
            "last",
            "255.255.255.255 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "{mode: drop}",
        ),
        rule("bucket", "8.0.0.0/16 8.2.0.0 8.2.255.255", "{mode: drop}"),
        rule("halves", "128.0.0.0/1 8000::/1", "{mode: drop}"),
    ];
    let mut addresses = Vec::new();
    for rule in &rules {
        for target in &rule.targets {
            addresses.extend(edges(&target.net()));
        }
    }
    Bench::with(SETTINGS, |bench| {
        let hits = compare(bench, &rules, &addresses)?;
        assert!(hits > addresses.len() / 2, "{hits}");
        Ok(())
    })
}

/// A CPU's record of addresses without a list must not outlive the ruleset, nor match other addresses.
#[test]
fn what_is_remembered_of_an_address_ends_with_its_ruleset() -> Result<()> {
    let mut dice = Dice(0x0f1e_2d3c_4b5a_6978);
    let addresses: Vec<Ipv4Addr> = (0..600).map(|_| dice.v4()).collect();
    let rules = [0, 1].map(|half| {
        let targets = addresses.iter().skip(half).step_by(2);
        let targets: Vec<String> = targets.map(Ipv4Addr::to_string).collect();
        rule("half", &targets.join(" "), "{mode: drop}")
    });
    Bench::with(SETTINGS, |bench| {
        let mut here = CpuSet::new();
        here.set(sched_getcpu()?)?;
        sched_setaffinity(Pid::from_raw(0), &here)?;
        for round in 0..4 {
            let half = round % 2;
            bench.enforce(&rules[half..=half], &[])?;
            for place in 0..addresses.len() {
                // Itself twice, and one of before that another may have taken the place of.
                for place in [place, place, place / 2] {
                    let address = addresses[place];
                    let expected = if place % 2 == half {
                        XDP_DROP
                    } else {
                        XDP_PASS
                    };
                    let frame = udp(b"").remote(address).bytes();
                    let verdict = bench.verdict(Program::Xdp, &frame)?;
                    ensure!(verdict == expected, "round {round}: {address}: {verdict}");
                }
            }
        }
        Ok(())
    })
}
