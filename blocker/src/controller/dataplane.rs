//! What the controller needs of a datapath. [`Datapath`] is the kernel's; the controller's tests have a
//! fake that fails on demand, which a kernel cannot be made to do.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use blocker_ebpf::{Event, FlowId, FlowKey, FlowRecord, Hook, Tally};

use crate::compile::{Limits, Snapshot};
use crate::datapath::attach::Attached;
use crate::datapath::devices::Device;
use crate::datapath::{Datapath, Error, HookTotals, RuleCounters, Seen};
use crate::matching::Tried;
use crate::rule::RuleId;
use crate::teardown::Evidence;

/// A datapath. Methods do what those of [`Datapath`] do.
#[expect(
    clippy::missing_errors_doc,
    reason = "the methods of `Datapath` say it"
)]
pub trait Dataplane: Send {
    /// What a snapshot may hold.
    fn limits(&self) -> &Limits;
    /// The mark of our own packets.
    fn mark(&self) -> u32;
    /// Packets that it sees of flows under teardown.
    fn evidence(&self) -> Arc<dyn Evidence>;
    /// Makes a whole snapshot live, or leaves the one before live.
    fn switch(&mut self, snapshot: &Snapshot) -> Result<(), Error>;
    /// The rules that are tried on packets of a remote, in their order.
    fn lookup(&self, remote: IpAddr) -> Result<Vec<Tried>, Error>;
    /// The number of their list.
    fn list(&self, remote: IpAddr) -> u64;
    /// The rules that a daemon before this one counted for, and their slots.
    fn counted(&self) -> Vec<(RuleId, u32)>;
    /// Zeroes a slot and gives it to a new rule.
    fn begin_counting(&mut self, slot: u32, rule: &RuleId) -> Result<(), Error>;
    /// Frees a slot.
    fn end_counting(&mut self, slot: u32) -> Result<(), Error>;
    /// What it records of packets that rules decided.
    fn seen(&self) -> Arc<dyn Observer>;
    /// The tag that names the rule of a slot in those records.
    fn tag(&self, slot: u32) -> u32;
    /// A rule's counters.
    fn rule_counters(&self, slot: u32) -> Result<RuleCounters, Error>;
    /// A hook's counters on a device.
    fn hook_counters(&self, hook: Hook, ifindex: u32) -> Result<HookTotals, Error>;
    /// The flows that rules with these counter slots blocked and that are to be killed.
    fn recorded(&self, slots: &[u32]) -> Result<Vec<FlowKey>, Error>;
    /// Forgets such flows.
    fn forget_recorded(&mut self, flows: &[FlowKey]) -> Result<(), Error>;
    /// Attaches to exactly these devices. Returns what failed.
    fn attach(&mut self, devices: &[Device]) -> Vec<Error>;
    /// The devices and their hooks.
    fn attached(&self) -> Vec<&Attached>;
    /// Removes pins that no program uses any more.
    fn sweep(&mut self) -> Result<(), Error>;
    /// Detaches everything.
    fn detach(&mut self) -> Vec<Error>;
    /// Leaves programs attached when this process ends.
    fn leave(&mut self);
    /// Its maps, by name, and the kernel memory of each, in bytes.
    fn maps(&self) -> Vec<(String, u64)>;
}

/// What a datapath records of packets that rules decided. Methods do what those of [`Seen`] do.
#[expect(clippy::missing_errors_doc, reason = "the methods of `Seen` say it")]
pub trait Observer: Send + Sync {
    /// Whether flows are recorded.
    fn is_recording(&self) -> bool;
    /// Shows every flow. Returns how many there are.
    fn flows(&self, see: &mut dyn FnMut(&FlowId, &FlowRecord)) -> u64;
    /// How many flows were recorded, and how many not.
    fn tally(&self) -> Result<Tally, Error>;
    /// Whether events are to be made.
    fn watch(&self, on: bool);
    /// A descriptor that is readable while there are events.
    fn readiness(&self) -> io::Result<OwnedFd>;
    /// Shows the events there are, and removes them.
    fn drain(&self, see: &mut dyn FnMut(&Event));
}

impl Observer for Seen {
    fn is_recording(&self) -> bool {
        Self::is_recording(self)
    }

    fn flows(&self, see: &mut dyn FnMut(&FlowId, &FlowRecord)) -> u64 {
        Self::flows(self, see)
    }

    fn tally(&self) -> Result<Tally, Error> {
        Self::tally(self)
    }

    fn watch(&self, on: bool) {
        Self::watch(self, on);
    }

    fn readiness(&self) -> io::Result<OwnedFd> {
        Self::readiness(self)
    }

    fn drain(&self, see: &mut dyn FnMut(&Event)) {
        Self::drain(self, see);
    }
}

impl Dataplane for Datapath {
    fn limits(&self) -> &Limits {
        &self.settings().limits
    }

    fn mark(&self) -> u32 {
        self.settings().mark
    }

    fn evidence(&self) -> Arc<dyn Evidence> {
        self.kills()
    }

    fn switch(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        Self::switch(self, snapshot)
    }

    fn lookup(&self, remote: IpAddr) -> Result<Vec<Tried>, Error> {
        Self::lookup(self, remote)
    }

    fn list(&self, remote: IpAddr) -> u64 {
        Self::list(self, remote)
    }

    fn counted(&self) -> Vec<(RuleId, u32)> {
        Self::counted(self).to_vec()
    }

    fn begin_counting(&mut self, slot: u32, rule: &RuleId) -> Result<(), Error> {
        Self::begin_counting(self, slot, rule)
    }

    fn end_counting(&mut self, slot: u32) -> Result<(), Error> {
        Self::end_counting(self, slot)
    }

    fn seen(&self) -> Arc<dyn Observer> {
        Self::seen(self)
    }

    fn tag(&self, slot: u32) -> u32 {
        Self::tag(self, slot)
    }

    fn rule_counters(&self, slot: u32) -> Result<RuleCounters, Error> {
        Self::rule_counters(self, slot)
    }

    fn hook_counters(&self, hook: Hook, ifindex: u32) -> Result<HookTotals, Error> {
        Self::hook_counters(self, hook, ifindex)
    }

    fn recorded(&self, slots: &[u32]) -> Result<Vec<FlowKey>, Error> {
        Self::recorded(self, slots)
    }

    fn forget_recorded(&mut self, flows: &[FlowKey]) -> Result<(), Error> {
        Self::forget_recorded(self, flows)
    }

    fn attach(&mut self, devices: &[Device]) -> Vec<Error> {
        Self::attach(self, devices)
    }

    fn attached(&self) -> Vec<&Attached> {
        Self::attached(self).collect()
    }

    fn sweep(&mut self) -> Result<(), Error> {
        Self::sweep(self)
    }

    fn detach(&mut self) -> Vec<Error> {
        Self::detach(self)
    }

    fn leave(&mut self) {
        Self::leave(self);
    }

    fn maps(&self) -> Vec<(String, u64)> {
        Self::maps(self)
    }
}
