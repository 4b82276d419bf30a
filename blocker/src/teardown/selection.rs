//! Which flows a teardown kills: those of which the [`Decider`] says that a rule under teardown
//! decides their packets, in either direction.
//!
//! The compiled rules are asked, as the datapath does it, so a protected prefix, an exception, a
//! deadline that has passed and a more specific rule spare a flow here as there.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;

use blocker_ebpf::Hook;

use super::flow::{TCP, Tuple, UDP};
use crate::compile::Snapshot;
use crate::matching::{Decider, Holds, Packet, PacketPorts, Tried};
use crate::rule::{Protocol, Rule, Target};

/// Compiled rules: those in force, or those that would be.
pub trait Rules {
    /// The list of rules that are tried on packets of a remote: equal numbers, equal lists; 0 for
    /// the empty one.
    ///
    /// # Errors
    /// If the rules can't be read.
    fn list(&self, remote: IpAddr) -> io::Result<u64>;

    /// The rules of that list in their order, each with whether it is under teardown.
    ///
    /// # Errors
    /// If the rules can't be read.
    fn tried(&self, remote: IpAddr) -> io::Result<Vec<(Tried, bool)>>;

    /// The time by which deadlines are judged, nanoseconds of `CLOCK_BOOTTIME`.
    fn now(&self) -> u64;
}

/// Rules that are not in force: of a dry run, or of a test.
#[derive(Debug)]
pub struct Candidates {
    /// The rules.
    pub snapshot: Snapshot,
    /// The counter slots of those that are to kill.
    pub killing: Vec<u32>,
    /// When they would be in force, nanoseconds of `CLOCK_BOOTTIME`.
    pub now: u64,
}

impl Rules for Candidates {
    fn list(&self, remote: IpAddr) -> io::Result<u64> {
        Ok(self.snapshot.list(remote).into())
    }

    fn tried(&self, remote: IpAddr) -> io::Result<Vec<(Tried, bool)>> {
        let tried = self.snapshot.tried(remote).into_iter();
        Ok(tried
            .map(|tried| {
                let kills = self.killing.contains(&tried.rule.counter);
                (tried, kills)
            })
            .collect())
    }

    fn now(&self) -> u64 {
        self.now
    }
}

/// Most targets of rules under teardown that are kept, to filter by in the kernel.
pub(crate) const FEW: usize = 64;

/// What is asked about flows during one teardown.
pub struct Selection<'a> {
    rules: &'a dyn Rules,
    /// The targets of the rules under teardown, if they are few.
    few: Option<Vec<Target>>,
    families: Families,
    protocols: Vec<Protocol>,
    known: RefCell<HashMap<u64, Rc<Known>>>,
    /// Why rules could not be read.
    error: RefCell<Option<io::Error>>,
}

/// Of which IP versions there are targets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Families {
    pub(crate) v4: bool,
    pub(crate) v6: bool,
}

/// A list of rules.
#[derive(Default)]
struct Known {
    decider: Decider,
    kills: Vec<bool>,
}

impl<'a> Selection<'a> {
    /// Takes the rules under teardown (those of them that don't kill are ignored), and all rules
    /// in their compiled form.
    #[must_use]
    pub fn new(killing: &[Rule], rules: &'a dyn Rules) -> Self {
        let killing = || killing.iter().filter(|rule| rule.kills());
        let targets = || killing().flat_map(|rule| &rule.targets);
        let few = (targets().take(FEW + 1).count() <= FEW).then(|| {
            let mut few: Vec<Target> = targets().copied().collect();
            few.sort_unstable();
            few.dedup();
            few
        });
        let any = |v4| targets().any(|target| target.net().addr().is_ipv4() == v4);
        Self {
            rules,
            few,
            families: Families {
                v4: any(true),
                v6: any(false),
            },
            protocols: killing().map(|rule| rule.matching.protocol).collect(),
            known: RefCell::default(),
            error: RefCell::default(),
        }
    }

    /// Whether no rule kills.
    pub(crate) fn is_empty(&self) -> bool {
        self.protocols.is_empty()
    }

    /// The targets of the rules under teardown, each once, if they are few.
    pub(crate) fn few_targets(&self) -> Option<&[Target]> {
        self.few.as_deref()
    }

    /// Of which IP versions they have targets.
    pub(crate) const fn families(&self) -> Families {
        self.families
    }

    /// Whether flows of a protocol can be selected at all: TCP or UDP.
    pub(crate) fn wants(&self, protocol: u8) -> bool {
        self.protocols.iter().any(|wanted| match wanted {
            Protocol::Any => true,
            Protocol::Tcp => protocol == TCP,
            Protocol::Udp => protocol == UDP,
            Protocol::Icmp => false,
            Protocol::Number(number) => protocol == *number,
        })
    }

    /// Reads the rules anew from now on: they may have changed.
    pub(crate) fn refresh(&self) {
        self.known.borrow_mut().clear();
    }

    /// Why rules could not be read, once.
    pub(crate) fn take_error(&self) -> Option<io::Error> {
        self.error.borrow_mut().take()
    }

    /// Whether a rule under teardown is tried on packets of an address.
    pub(crate) fn names(&self, address: IpAddr) -> bool {
        self.known(address).kills.contains(&true)
    }

    /// Whether a rule under teardown decides packets of a flow, in either direction. `device` is
    /// that of the flow, asked only if it matters; where nothing tells it, the answer may be
    /// [`Holds::Sometimes`].
    #[must_use]
    pub fn selects(&self, tuple: &Tuple, device: impl FnOnce() -> Option<u32>) -> Holds {
        match self.ask(tuple, Some(tuple.local), None) {
            Holds::Sometimes => match device() {
                None => Holds::Sometimes,
                device => self.ask(tuple, Some(tuple.local), device),
            },
            certain => certain,
        }
    }

    /// As [`selects`](Self::selects), for a flow as no device sees it, since a NAT changes it: its
    /// local address is not known, and it is selected only if that can't matter.
    #[must_use]
    pub fn selects_hidden(&self, tuple: &Tuple, device: impl FnOnce() -> Option<u32>) -> bool {
        match self.ask(tuple, None, None) {
            Holds::Sometimes => self.ask(tuple, None, device()) == Holds::Always,
            certain => certain == Holds::Always,
        }
    }

    fn ask(&self, tuple: &Tuple, local: Option<IpAddr>, device: Option<u32>) -> Holds {
        let known = self.known(tuple.remote);
        if !known.kills.contains(&true) {
            return Holds::Never;
        }
        let now = self.rules.now();
        let either = [Hook::Ingress, Hook::Egress].map(|hook| {
            let packet = Packet {
                v6: tuple.remote.is_ipv6(),
                hook,
                device,
                local,
                protocol: Some(tuple.protocol),
                ports: PacketPorts::Sides {
                    local: Some(tuple.local_port),
                    remote: Some(tuple.remote_port),
                },
            };
            let kills = |number: usize| known.kills.get(number) == Some(&true);
            known.decider.decided_by(kills, &packet, now)
        });
        if either.contains(&Holds::Always) {
            Holds::Always
        } else if either.contains(&Holds::Sometimes) {
            Holds::Sometimes
        } else {
            Holds::Never
        }
    }

    /// The rules of a remote. Where they can't be read there are none: its flows are left alone.
    fn known(&self, remote: IpAddr) -> Rc<Known> {
        self.look_up(remote).unwrap_or_else(|error| {
            *self.error.borrow_mut() = Some(error);
            Rc::default()
        })
    }

    fn look_up(&self, remote: IpAddr) -> io::Result<Rc<Known>> {
        let list = self.rules.list(remote)?;
        if let Some(known) = self.known.borrow().get(&list) {
            return Ok(Rc::clone(known));
        }
        let (tried, kills) = self.rules.tried(remote)?.into_iter().unzip();
        let known = Rc::new(Known {
            decider: Decider::new(tried),
            kills,
        });
        self.known.borrow_mut().insert(list, Rc::clone(&known));
        Ok(known)
    }
}

#[cfg(test)]
mod tests;
