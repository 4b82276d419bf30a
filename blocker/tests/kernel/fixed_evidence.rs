//! A fake datapath with fixed evidence, and rules to tear down: for tests of the teardown alone.

use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use blocker::compile::{Input, Limits, RuleInput, compile};
use blocker::rule::{Defaults, Rule, RuleSpec};
use blocker::teardown::Namespaces;
use blocker::teardown::{self, Candidates, Evidence, Listing, Progress, Settings};
use blocker::wire::Account;
use blocker_ebpf::{FlowKey, NEVER, kill as bits};

/// Settings of a teardown in the caller's network namespace.
pub(crate) const SETTINGS: Settings = Settings {
    namespaces: Namespaces::Own,
    mark: 0x5eed,
};

/// A datapath that reports the same bits for every flow.
pub(crate) struct FixedEvidence {
    bits: u32,
    watched: Mutex<Vec<FlowKey>>,
}

impl FixedEvidence {
    /// Reports these bits.
    pub(crate) const fn bits(bits: u32) -> Self {
        Self {
            bits,
            watched: Mutex::new(Vec::new()),
        }
    }

    /// Reports a RST to both ends.
    pub(crate) const fn everything() -> Self {
        Self::bits(bits::REMOTE | bits::LOCAL)
    }

    /// Reports no RST.
    pub(crate) const fn nothing() -> Self {
        Self::bits(0)
    }

    /// The number of flows that are watched: `watch` without a later `forget`.
    pub(crate) fn watching(&self) -> usize {
        self.locked(|watched| watched.len())
    }

    fn locked<T>(&self, act: impl FnOnce(&mut Vec<FlowKey>) -> T) -> T {
        act(&mut self.watched.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Evidence for FixedEvidence {
    fn watch(&self, flows: &[FlowKey]) -> io::Result<()> {
        self.locked(|watched| watched.extend(flows));
        Ok(())
    }

    fn seen(&self, flows: &[FlowKey]) -> io::Result<Vec<u32>> {
        Ok(vec![self.bits; flows.len()])
    }

    fn forget(&self, flows: &[FlowKey]) -> io::Result<()> {
        let gone: std::collections::HashSet<&FlowKey> = flows.iter().collect();
        self.locked(|watched| watched.retain(|key| !gone.contains(key)));
        Ok(())
    }
}

/// Kills the flows of rules that are the only ones, in the caller's network namespace.
pub(crate) fn kill(
    rules: &[Rule],
    settings: &Settings,
    evidence: &dyn Evidence,
    progress: &dyn Fn(Progress),
) -> Account {
    let in_force = compiled(rules);
    teardown::kill(rules, &in_force, &[], settings, evidence, progress)
}

/// Lists the flows that [`kill`] would kill.
pub(crate) fn list(rules: &[Rule], settings: &Settings) -> Listing {
    teardown::list(rules, &compiled(rules), settings)
}

/// Rules compiled for the devices of the caller's network namespace.
fn compiled(rules: &[Rule]) -> Candidates {
    let devices = nix::net::if_::if_nameindex().expect("a list of devices");
    let devices: Vec<(u32, String)> = devices
        .iter()
        .map(|device| (device.index(), device.name().to_string_lossy().into_owned()))
        .collect();
    let covered = |rule: &Rule| {
        let covered = devices
            .iter()
            .filter(|(_, name)| rule.covers_interface(name));
        covered.map(|(index, _)| *index).collect()
    };
    let inputs: Vec<_> = (0..)
        .zip(rules)
        .map(|(counter, rule)| RuleInput {
            rule,
            deadline: NEVER,
            counter,
            interfaces: (!rule.matching.interfaces.is_empty()).then(|| covered(rule)),
        })
        .collect();
    let input = Input {
        rules: &inputs,
        protect: &[],
        generic_xdp: false,
    };
    let snapshot = compile(&input, &Limits::sized(20_000, 20_000, 64));
    Candidates {
        snapshot: snapshot.expect("rules that compile"),
        killing: inputs.iter().map(|input| input.counter).collect(),
        now: 0,
    }
}

/// A reset rule; `rest` is the JSON of all but its mode.
pub(crate) fn reset(rest: &str) -> Result<Vec<Rule>> {
    let spec: RuleSpec = serde_json::from_str(&format!(r#"{{"mode":"reset",{rest}}}"#))?;
    let id = "test".parse()?;
    let now = jiff::Timestamp::now();
    Ok(vec![spec.resolve(|| id, Defaults::default(), now)?])
}

/// A reset rule for one remote.
pub(crate) fn reset_of(remote: IpAddr) -> Result<Vec<Rule>> {
    reset(&format!(r#""targets":["{remote}"]"#))
}
