//! Which flows the rules under teardown decide: the whole match of a rule, against a tuple.
//!
//! Pure. As in the datapath, the most specific prefix comes first, then the narrower match, then
//! the id; what another rule decides is not these rules' to kill. A rule for one direction breaks
//! a flow as well as one for both. The device of a flow is asked for through a closure, and only
//! if a rule is limited to devices.

use std::cell::LazyCell;
use std::net::IpAddr;

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::flow::{TCP, Tuple, UDP};
use super::prefixes::Prefixes;
use crate::compile::rank;
use crate::rule::{Direction, Ports, Protocol, Rule, Target};

/// So many targets are compared with every target of the other rules, to leave out those that
/// don't matter.
const FEW: usize = 64;

/// A rule's match, but for its targets.
struct Narrow {
    /// Whether its flows are to be killed; else it only keeps them from others.
    kills: bool,
    direction: Direction,
    except: Prefixes,
    protocol: Protocol,
    ports: Vec<Ports>,
    local_ports: Vec<Ports>,
    remote_ports: Vec<Ports>,
    /// Local addresses; absent: every address.
    local: Option<Prefixes>,
    /// Names and globs of devices; absent: every device.
    interfaces: Option<GlobSet>,
}

/// The device that a flow takes, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Device {
    /// Its name.
    Named(String),
    /// Nothing on this host tells.
    Unknown,
}

/// What a matcher says of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Match {
    /// A rule names it.
    Yes,
    /// No rule does.
    No,
    /// A rule would, if only the flow's device were known.
    Unsure,
}

/// The rules under teardown, ready to be asked about flows.
pub(crate) struct Matcher {
    targets: Vec<Target>,
    prefixes: Prefixes,
    rules: Vec<Narrow>,
}

impl Matcher {
    /// Takes the rules that are to kill (those of them that don't are ignored), and the others
    /// that are in force beside them.
    pub(crate) fn new(rules: &[Rule], beside: &[Rule]) -> Self {
        let killing = rules.iter().filter(|rule| rule.kills());
        let mut targets: Vec<Target> = killing
            .clone()
            .flat_map(|rule| rule.targets.iter().copied())
            .collect();
        targets.sort_unstable();
        targets.dedup();
        // A rule of some percent leaves packets to the rules behind it.
        let deciding = beside.iter().filter(|rule| rule.percent == 100);
        let mut all: Vec<(&Rule, bool)> = killing
            .map(|rule| (rule, true))
            .chain(deciding.map(|rule| (rule, false)))
            .collect();
        all.sort_by_cached_key(|(rule, _)| (rank(rule), rule.id.clone()));
        let of_interest = |target: &&Target, kills: bool| {
            kills || targets.len() > FEW || targets.iter().any(|other| overlap(**target, *other))
        };
        let numbered = (0_u32..).zip(&all).flat_map(|(number, (rule, kills))| {
            let targets = rule
                .targets
                .iter()
                .filter(move |target| of_interest(target, *kills));
            targets.map(move |target| (target, number))
        });
        let prefixes = Prefixes::new(numbered);
        Self {
            targets,
            prefixes,
            rules: all
                .into_iter()
                .map(|(rule, kills)| Narrow::new(rule, kills))
                .collect(),
        }
    }

    /// Whether no rule kills.
    pub(crate) fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    /// Every target of a rule that kills, once.
    pub(crate) fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Whether flows of a protocol can be named at all.
    pub(crate) fn wants(&self, protocol: u8) -> bool {
        self.rules
            .iter()
            .any(|rule| rule.kills && rule.takes(protocol, true))
    }

    /// Whether an address is a remote of a rule that kills, its exceptions left out.
    pub(crate) fn names(&self, address: IpAddr) -> bool {
        self.candidates(address).any(|rule| rule.kills)
    }

    /// Whether a rule that kills decides a flow, in either direction; `device` is asked only if
    /// that matters.
    pub(crate) fn matches(&self, tuple: &Tuple, device: impl FnOnce() -> Device) -> Match {
        self.matches_if(tuple, true, device)
    }

    /// As [`Matcher::matches`]. Where the tuple is not the one `on_the_wire`, a rule for local
    /// addresses can't be asked: if one is tried, the tuple on the wire is to tell.
    pub(crate) fn matches_if(
        &self,
        tuple: &Tuple,
        on_the_wire: bool,
        device: impl FnOnce() -> Device,
    ) -> Match {
        let device = LazyCell::new(device);
        let mut unsure = false;
        for direction in [Direction::Ingress, Direction::Egress] {
            match self.decides(tuple, on_the_wire, direction, || LazyCell::force(&device)) {
                Match::Yes => return Match::Yes,
                Match::Unsure => unsure = true,
                Match::No => {}
            }
        }
        if unsure { Match::Unsure } else { Match::No }
    }

    /// Whether the first rule that takes a flow's packets of one direction kills.
    fn decides<'d>(
        &self,
        tuple: &Tuple,
        on_the_wire: bool,
        direction: Direction,
        device: impl Fn() -> &'d Device,
    ) -> Match {
        let candidates = self.candidates(tuple.remote);
        for rule in candidates.filter(|rule| rule.goes(direction) && rule.covers(tuple)) {
            if let Some(local) = &rule.local {
                if !on_the_wire {
                    return Match::No;
                }
                if !local.cover(tuple.local) {
                    continue;
                }
            }
            let takes = match &rule.interfaces {
                None => true,
                Some(globs) => match device() {
                    Device::Unknown => return Match::Unsure,
                    Device::Named(name) => globs.is_match(name),
                },
            };
            if takes {
                return if rule.kills { Match::Yes } else { Match::No };
            }
        }
        Match::No
    }

    fn candidates(&self, address: IpAddr) -> impl Iterator<Item = &Narrow> {
        self.prefixes
            .covering(address)
            .filter_map(|number| self.rules.get(number as usize))
            .filter(move |rule| !rule.except.cover(address))
    }
}

impl Narrow {
    fn new(rule: &Rule, kills: bool) -> Self {
        Self {
            kills,
            direction: rule.direction,
            except: Prefixes::new(rule.except.iter().map(|target| (target, 0))),
            protocol: rule.protocol,
            ports: rule.ports.clone(),
            local_ports: rule.local_ports.clone(),
            remote_ports: rule.remote_ports.clone(),
            local: (!rule.local.is_empty())
                .then(|| Prefixes::new(rule.local.iter().map(|target| (target, 0)))),
            interfaces: (!rule.interfaces.is_empty()).then(|| globs(&rule.interfaces)),
        }
    }

    fn goes(&self, direction: Direction) -> bool {
        self.direction == Direction::Both || self.direction == direction
    }

    fn takes(&self, protocol: u8, v4: bool) -> bool {
        match self.protocol {
            Protocol::Any => true,
            Protocol::Tcp => protocol == TCP,
            Protocol::Udp => protocol == UDP,
            // ICMP and ICMPv6.
            Protocol::Icmp => protocol == if v4 { 1 } else { 58 },
            Protocol::Number(number) => protocol == number,
        }
    }

    fn covers(&self, tuple: &Tuple) -> bool {
        let within = |ports: &[Ports], port: u16| {
            ports.is_empty() || ports.iter().any(|p| (p.first..=p.last).contains(&port))
        };
        let has_ports =
            !(self.ports.is_empty() && self.local_ports.is_empty() && self.remote_ports.is_empty());
        self.takes(tuple.protocol, tuple.remote.is_ipv4())
            && (!has_ports || matches!(tuple.protocol, TCP | UDP))
            && (within(&self.ports, tuple.local_port) || within(&self.ports, tuple.remote_port))
            && within(&self.local_ports, tuple.local_port)
            && within(&self.remote_ports, tuple.remote_port)
    }
}

/// Whether one prefix lies in the other.
fn overlap(one: Target, other: Target) -> bool {
    one.net().contains(&other.net()) || other.net().contains(&one.net())
}

/// Names and globs, both as globs. A rule's names were checked when it was resolved; one that is
/// no glob after all names no device.
fn globs(names: &[String]) -> GlobSet {
    let mut set = GlobSetBuilder::new();
    for glob in names.iter().filter_map(|name| Glob::new(name).ok()) {
        set.add(glob);
    }
    set.build().unwrap_or_else(|_| GlobSet::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::{Defaults, RuleSpec};

    fn rule(json: &str) -> Rule {
        let spec: RuleSpec = serde_json::from_str(json).unwrap();
        spec.resolve(
            || "r1".parse().unwrap(),
            Defaults::default(),
            jiff::Timestamp::UNIX_EPOCH,
        )
        .unwrap()
    }

    fn tuple(protocol: u8, remote: &str, remote_port: u16, local_port: u16) -> Tuple {
        let remote: IpAddr = remote.parse().unwrap();
        let local = if remote.is_ipv4() {
            "10.0.0.1"
        } else {
            "fd00::1"
        };
        Tuple {
            protocol,
            remote,
            remote_port,
            local: local.parse().unwrap(),
            local_port,
        }
    }

    fn no_device() -> Device {
        panic!("the device does not decide here")
    }

    #[test]
    fn a_flow_is_named_by_the_whole_match() {
        let table = [
            // rule, protocol, remote, remote port, local port, named
            (
                r#""targets":["192.0.2.0/24"]"#,
                TCP,
                "192.0.2.9",
                1,
                2,
                true,
            ),
            (
                r#""targets":["192.0.2.0/24"]"#,
                UDP,
                "192.0.2.9",
                1,
                2,
                true,
            ),
            (
                r#""targets":["192.0.2.0/24"]"#,
                TCP,
                "192.0.3.9",
                1,
                2,
                false,
            ),
            (r#""targets":["0.0.0.0/0"]"#, TCP, "192.0.3.9", 1, 2, true),
            (
                r#""targets":["0.0.0.0/0"]"#,
                TCP,
                "2001:db8::1",
                1,
                2,
                false,
            ),
            (r#""targets":["::/0"]"#, TCP, "2001:db8::1", 1, 2, true),
            (
                r#""targets":["2001:db8::1"]"#,
                TCP,
                "2001:db8::1",
                1,
                2,
                true,
            ),
            (
                r#""targets":["2001:db8::1"]"#,
                TCP,
                "2001:db8::2",
                1,
                2,
                false,
            ),
            (
                r#""targets":["192.0.2.0/24"],"except":["192.0.2.8/30"]"#,
                TCP,
                "192.0.2.9",
                1,
                2,
                false,
            ),
            (
                r#""targets":["192.0.2.9"],"protocol":"tcp""#,
                UDP,
                "192.0.2.9",
                1,
                2,
                false,
            ),
            (
                r#""targets":["192.0.2.9"],"ports":[80]"#,
                TCP,
                "192.0.2.9",
                80,
                2,
                true,
            ),
            (
                r#""targets":["192.0.2.9"],"ports":[80]"#,
                TCP,
                "192.0.2.9",
                1,
                80,
                true,
            ),
            (
                r#""targets":["192.0.2.9"],"ports":[80]"#,
                TCP,
                "192.0.2.9",
                1,
                2,
                false,
            ),
            (
                r#""targets":["192.0.2.9"],"local_ports":["80-90"]"#,
                TCP,
                "192.0.2.9",
                80,
                2,
                false,
            ),
            (
                r#""targets":["192.0.2.9"],"local_ports":["80-90"]"#,
                TCP,
                "192.0.2.9",
                1,
                90,
                true,
            ),
            (
                r#""targets":["192.0.2.9"],"remote_ports":[443]"#,
                TCP,
                "192.0.2.9",
                443,
                2,
                true,
            ),
            (
                r#""targets":["192.0.2.9"],"remote_ports":[443]"#,
                TCP,
                "192.0.2.9",
                2,
                443,
                false,
            ),
            (
                r#""targets":["192.0.2.9"],"direction":"ingress""#,
                TCP,
                "192.0.2.9",
                1,
                2,
                true,
            ),
            (
                r#""targets":["192.0.2.9"],"percent":50"#,
                TCP,
                "192.0.2.9",
                1,
                2,
                false,
            ),
            (
                r#""targets":["192.0.2.9"],"established":"keep""#,
                TCP,
                "192.0.2.9",
                1,
                2,
                false,
            ),
        ];
        for (rest, protocol, remote, remote_port, local_port, named) in table {
            let matcher = Matcher::new(&[rule(&format!(r#"{{"mode":"reset",{rest}}}"#))], &[]);
            let expected = if named { Match::Yes } else { Match::No };
            let tuple = tuple(protocol, remote, remote_port, local_port);
            assert_eq!(
                matcher.matches(&tuple, no_device),
                expected,
                "{rest} {tuple:?}"
            );
        }
    }

    #[test]
    fn a_rule_for_devices_asks_for_the_device() {
        let matcher = Matcher::new(
            &[rule(
                r#"{"mode":"reset","targets":["192.0.2.9"],"interfaces":["eth0","veth*"]}"#,
            )],
            &[],
        );
        let flow = tuple(TCP, "192.0.2.9", 1, 2);
        for (device, expected) in [
            (Device::Named("eth0".into()), Match::Yes),
            (Device::Named("eth01".into()), Match::No),
            (Device::Named("veth7".into()), Match::Yes),
            (Device::Unknown, Match::Unsure),
        ] {
            assert_eq!(
                matcher.matches(&flow, || device.clone()),
                expected,
                "{device:?}"
            );
        }
    }

    #[test]
    fn a_rule_for_local_addresses_names_their_flows_alone() {
        let killing = |local: &str| {
            rule(&format!(
                r#"{{"mode":"reset","targets":["192.0.2.9","2001:db8::1"],"local":[{local}]}}"#
            ))
        };
        for (local, v4, v6) in [
            (r#""10.0.0.1""#, Match::Yes, Match::No),
            (r#""10.0.0.0/8","fd00::/8""#, Match::Yes, Match::Yes),
            (r#""10.0.0.2""#, Match::No, Match::No),
            (r#""::/0""#, Match::No, Match::Yes),
            (r#""0.0.0.0/0""#, Match::Yes, Match::No),
        ] {
            let matcher = Matcher::new(&[killing(local)], &[]);
            for (remote, expected) in [("192.0.2.9", v4), ("2001:db8::1", v6)] {
                let tuple = tuple(TCP, remote, 1, 2);
                assert_eq!(matcher.matches(&tuple, no_device), expected, "{local}");
                // What is not on the wire no such rule decides.
                let hidden = matcher.matches_if(&tuple, false, no_device);
                assert_eq!(hidden, Match::No, "{local}");
            }
        }
    }

    #[test]
    fn a_tuple_that_is_not_on_the_wire_is_left_to_the_one_that_is() {
        let wide = rule(r#"{"mode":"reset","targets":["192.0.2.9"]}"#);
        let beside = rule(r#"{"mode":"audit","targets":["192.0.2.9"],"local":["10.0.0.1"]}"#);
        let flow = tuple(TCP, "192.0.2.9", 1, 2);
        let alone = Matcher::new(std::slice::from_ref(&wide), &[]);
        assert_eq!(alone.matches_if(&flow, false, no_device), Match::Yes);
        let matcher = Matcher::new(&[wide], &[beside]);
        assert_eq!(matcher.matches_if(&flow, false, no_device), Match::No);
        assert_eq!(matcher.matches(&flow, no_device), Match::No);
        let other = Tuple {
            local: "10.0.0.2".parse().unwrap(),
            ..flow
        };
        assert_eq!(matcher.matches(&other, no_device), Match::Yes);
    }

    #[test]
    fn one_rule_of_several_is_enough_and_an_exception_is_only_its_own_rules() {
        let matcher = Matcher::new(
            &[
                rule(r#"{"mode":"reset","targets":["192.0.2.0/24"],"except":["192.0.2.9"]}"#),
                rule(r#"{"mode":"reset","targets":["192.0.0.0/16"],"remote_ports":[443]}"#),
            ],
            &[],
        );
        assert_eq!(
            matcher.matches(&tuple(TCP, "192.0.2.9", 443, 2), no_device),
            Match::Yes
        );
        assert_eq!(
            matcher.matches(&tuple(TCP, "192.0.2.9", 80, 2), no_device),
            Match::No
        );
        assert_eq!(
            matcher.matches(&tuple(TCP, "192.0.2.8", 80, 2), no_device),
            Match::Yes
        );
    }

    #[test]
    fn what_another_rule_decides_is_left_alone() {
        let killing = rule(r#"{"mode":"reset","targets":["192.0.2.0/24"]}"#);
        for (beside, port, named) in [
            // More specific: it decides, whatever it does.
            (
                r#"{"mode":"audit","targets":["192.0.2.9"]}"#,
                443,
                Match::No,
            ),
            (r#"{"mode":"drop","targets":["192.0.2.9"]}"#, 443, Match::No),
            // In one direction only: the other is left to the rule that kills.
            (
                r#"{"mode":"audit","targets":["192.0.2.9"],"direction":"egress"}"#,
                443,
                Match::Yes,
            ),
            // As specific, but narrower, where it matches.
            (
                r#"{"mode":"drop","targets":["192.0.2.0/24"],"remote_ports":[443]}"#,
                443,
                Match::No,
            ),
            (
                r#"{"mode":"drop","targets":["192.0.2.0/24"],"remote_ports":[443]}"#,
                80,
                Match::Yes,
            ),
            // Less specific, elsewhere, excepted, or for some packets only.
            (
                r#"{"mode":"audit","targets":["192.0.0.0/16"]}"#,
                443,
                Match::Yes,
            ),
            (
                r#"{"mode":"audit","targets":["192.0.2.8"]}"#,
                443,
                Match::Yes,
            ),
            (
                r#"{"mode":"audit","targets":["192.0.2.8/30"],"except":["192.0.2.9"]}"#,
                443,
                Match::Yes,
            ),
            (
                r#"{"mode":"drop","targets":["192.0.2.9"],"percent":50}"#,
                443,
                Match::Yes,
            ),
        ] {
            let matcher = Matcher::new(std::slice::from_ref(&killing), &[rule(beside)]);
            assert_eq!(
                matcher.matches(&tuple(TCP, "192.0.2.9", port, 2), no_device),
                named,
                "{beside}"
            );
        }
    }
}
