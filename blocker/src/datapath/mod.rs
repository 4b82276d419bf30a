//! The kernel side, as the controller sees it: load, switch snapshots, attach, count.
//!
//! Owns programs, maps, links and pins. Knows nothing of why a rule is there, and does nothing
//! on its own: no thread, no timer (but the one that waits for a grace period).

mod accounting;
pub mod attach;
mod banks;
mod batch;
mod counters;
pub mod devices;
mod diagnostics;
mod evidence;
mod grace;
mod kept;
pub mod load;
mod memory;
pub mod pins;
mod qdisc;
mod seen;
mod tags;

use std::borrow::Cow;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use aya::programs::links::LinkError;
use blocker_ebpf::{FlowKey, Hook};

pub use counters::{HookTotals, RuleCounters, Totals};
pub use diagnostics::Diagnostics;
pub use evidence::Kills;
pub use load::{Object, Settings};
pub use seen::Seen;

use crate::compile::Snapshot;
use crate::matching::Tried;
use crate::rule::RuleId;
use attach::{Attachments, HookChoice};
use devices::Device;

/// What went wrong between us and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object could not be read or its maps not be made.
    #[error("the eBPF object cannot be loaded: {source}{}", hint(.lacking))]
    Object {
        /// What aya said.
        source: Box<EbpfError>,
        /// Whether a permission was lacking.
        lacking: bool,
    },
    /// A program was refused.
    #[error("the kernel refuses the eBPF program {program}: {source}")]
    Load {
        /// Its name.
        program: &'static str,
        /// What the kernel said, with the verifier's log.
        source: Box<ProgramError>,
    },
    /// The object lacks something: it is not ours.
    #[error("the eBPF object has no {what}: the daemon was built with another object")]
    Missing {
        /// What it lacks.
        what: &'static str,
    },
    /// A map operation failed.
    #[error("map {map}: {source}")]
    Map {
        /// Its name.
        map: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// The flows that are to be killed when their rule ends can't be read.
    #[error("the established flows that rules blocked cannot be read: {source}")]
    Flows {
        /// What the kernel said.
        source: io::Error,
    },
    /// A map can't be mapped into memory.
    #[error("map {map} cannot be mapped into memory: {source}")]
    Memory {
        /// Its name.
        map: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The maps can't be held for their memory to be told.
    #[error("the maps' memory cannot be accounted for: {source}")]
    Accounting {
        /// Why not.
        source: io::Error,
    },
    /// No grace period could be waited for.
    #[error("the kernel cannot say when running programs have ended: {source}")]
    Grace {
        /// What it said.
        source: io::Error,
    },
    /// The number of CPUs is unknown.
    #[error("{file} cannot be read: {source}")]
    Cpus {
        /// Where it stands.
        file: String,
        /// Why not.
        source: io::Error,
    },
    /// No randomness.
    #[error("the kernel gives no random numbers: {source}")]
    Random {
        /// Why not.
        source: getrandom::Error,
    },
    /// The diagnostics' ring buffer.
    #[error("the datapath's diagnostics cannot be read: {detail}")]
    Diagnostics {
        /// Why not.
        detail: Cow<'static, str>,
    },
    /// Devices can't be listed or followed.
    #[error("network devices cannot be listed: {source}")]
    Devices {
        /// What netlink said.
        source: io::Error,
    },
    /// A program can't be attached.
    #[error("{hook} cannot be attached to {device}: {source}")]
    Attach {
        /// The device.
        device: String,
        /// The hook.
        hook: &'static str,
        /// What the kernel said.
        source: Box<ProgramError>,
    },
    /// A device has no XDP, and the configuration asks for it.
    #[error("{device}: {why}")]
    NoXdp {
        /// The device.
        device: String,
        /// Why not, and what serves there.
        why: String,
    },
    /// The clsact qdisc can't be added.
    #[error("the clsact qdisc cannot be added to {device}: {source}")]
    Clsact {
        /// The device.
        device: String,
        /// What the kernel said.
        source: Box<aya::programs::tc::TcError>,
    },
    /// A clsact qdisc that blocker added can't be removed.
    #[error("the clsact qdisc of the device with index {index} cannot be removed: {source}")]
    ClsactLeft {
        /// The device.
        index: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A link is not what it should be.
    #[error("an attached link cannot be held: {source}")]
    Link {
        /// What aya said.
        source: LinkError,
    },
    /// A link can't be pinned.
    #[error("{} cannot be pinned: {source}", .path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: aya::pin::PinError,
    },
    /// A pin can't be removed.
    #[error("a pin cannot be removed: {source}")]
    Unpin {
        /// Why not.
        source: io::Error,
    },
    /// The pin directory.
    #[error("pins: {}: {source}", .path.display())]
    Pins {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The pin directory is on an ordinary file system.
    #[error("pin_dir {} is not on a bpf file system: `mount -t bpf bpf /sys/fs/bpf`, or set pin_dir", .path.display())]
    NotBpffs {
        /// Where.
        path: PathBuf,
    },
    /// Another process holds the pin directory.
    #[error("pin_dir {} is held by {by}: stop it, or set another pin_dir", .path.display())]
    Held {
        /// Where.
        path: PathBuf,
        /// By whom.
        by: String,
    },
}

fn hint(lacking: &bool) -> &'static str {
    if *lacking {
        " (it needs root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON)"
    } else {
        ""
    }
}

impl Error {
    fn object(source: EbpfError) -> Self {
        let text = format!("{source:?}");
        let lacking = text.contains("PermissionDenied") || text.contains("Operation not permitted");
        Self::Object {
            source: Box::new(source),
            lacking,
        }
    }

    fn attach(device: &Device, hook: Hook, source: ProgramError) -> Self {
        Self::Attach {
            device: device.name.clone(),
            hook: attach::hook_name(hook),
            source: Box::new(source),
        }
    }
}

/// The loaded datapath.
pub struct Datapath {
    object: Object,
    banks: banks::Banks,
    counters: counters::CounterMaps,
    attachments: Attachments,
    kills: Arc<Kills>,
    recorded: evidence::Recorded,
    seen: Arc<Seen>,
    diagnostics: Option<Diagnostics>,
    settings: Settings,
    pin_dir: PathBuf,
}

impl Datapath {
    /// Loads programs and maps. Nothing is attached, and no rule is live.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn load(settings: Settings, pin_dir: &Path, choice: HookChoice) -> Result<Self, Error> {
        Self::load_with(settings, pin_dir, choice, true)
    }

    /// As [`load`](Self::load); without `tcx`, as if the kernel had none.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn load_with(
        settings: Settings,
        pin_dir: &Path,
        choice: HookChoice,
        tcx: bool,
    ) -> Result<Self, Error> {
        let mut object = Object::load(&settings, pin_dir)?;
        Ok(Self {
            seen: Arc::new(Seen::new(&mut object, settings.flows)?),
            banks: banks::Banks::new(&mut object, settings.limits)?,
            counters: counters::CounterMaps::new(&mut object)?,
            attachments: Attachments::new(pin_dir, choice, tcx)?,
            kills: Arc::new(Kills::new(&mut object)?),
            recorded: evidence::Recorded::new(&mut object)?,
            diagnostics: object.diagnostics(&settings)?,
            object,
            settings,
            pin_dir: pin_dir.to_owned(),
        })
    }

    /// What it was loaded with.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The datapath's diagnostics, once.
    pub const fn take_diagnostics(&mut self) -> Option<Diagnostics> {
        self.diagnostics.take()
    }

    /// Makes a snapshot live, whole.
    ///
    /// # Errors
    /// If the kernel refuses a part of it; the one before it stays live then.
    pub fn switch(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        self.banks.switch(snapshot, self.counters.tags())
    }

    /// The number of the list of those rules, in every snapshot another one; 0 for the empty list.
    #[must_use]
    pub fn list(&self, remote: IpAddr) -> u64 {
        self.banks.list(remote)
    }

    /// The rules that are tried on packets of a remote, in their order, as the live bank has them.
    ///
    /// # Errors
    /// If a map can't be read.
    pub fn lookup(&self, remote: IpAddr) -> Result<Vec<Tried>, Error> {
        self.banks.lookup(remote)
    }

    /// Attaches to exactly these devices, and tells what could not be.
    pub fn attach(&mut self, devices: &[Device]) -> Vec<Error> {
        let before: Vec<u32> = self.attachments.indexes().collect();
        let mut errors = self.attachments.set(&mut self.object, devices);
        // Who gets the index next begins at zero.
        for index in before {
            if self.attachments.indexes().all(|attached| attached != index) {
                errors.extend(self.counters.clear_device(index).err());
            }
        }
        errors
    }

    /// Removes pins that are nobody's any more, and what was counted on devices that are gone. For
    /// after the first [`attach`](Self::attach).
    ///
    /// # Errors
    /// If a pin can't be removed.
    pub fn sweep(&mut self) -> Result<(), Error> {
        self.attachments.sweep()?;
        kept::sweep(&self.pin_dir)?;
        let attached: Vec<u32> = self.attachments.indexes().collect();
        self.counters.clear_devices_but(&attached)
    }

    /// Detaches everything, and keeps nothing of what was counted.
    pub fn detach(&mut self) -> Vec<Error> {
        let mut errors = self.attachments.detach_all();
        errors.extend(kept::remove(&self.pin_dir).err());
        errors
    }

    /// Leaves programs where they are, beyond this process's life.
    pub fn leave(&mut self) {
        self.attachments.leave();
    }

    /// The devices and their hooks.
    pub fn attached(&self) -> impl Iterator<Item = &attach::Attached> {
        self.attachments.devices()
    }

    /// What a rule did.
    ///
    /// # Errors
    /// If the counters can't be read.
    pub fn rule_counters(&self, slot: u32) -> Result<RuleCounters, Error> {
        self.counters.rule(slot)
    }

    /// The rules that a daemon before this one counted for, and their slots.
    #[must_use]
    pub fn counted(&self) -> &[(RuleId, u32)] {
        self.counters.counted()
    }

    /// Zeroes a slot for a new rule, and makes it the rule's.
    ///
    /// # Errors
    /// If the counters can't be written.
    pub fn begin_counting(&mut self, slot: u32, rule: &RuleId) -> Result<(), Error> {
        self.counters.begin_rule(slot, rule)
    }

    /// Makes a slot nobody's.
    ///
    /// # Errors
    /// If its name can't be written.
    pub fn end_counting(&mut self, slot: u32) -> Result<(), Error> {
        self.counters.end_rule(slot)
    }

    /// How the rule of a slot is named in what is recorded of it.
    #[must_use]
    pub fn tag(&self, slot: u32) -> u32 {
        self.counters.tags().of(slot)
    }

    /// Flows and events.
    #[must_use]
    pub fn seen(&self) -> Arc<Seen> {
        Arc::clone(&self.seen)
    }

    /// What a hook saw on a device.
    ///
    /// # Errors
    /// If the counters can't be read.
    pub fn hook_counters(&self, hook: Hook, ifindex: u32) -> Result<HookTotals, Error> {
        self.counters.hook(hook, ifindex)
    }

    /// What the datapath sees of flows under teardown.
    #[must_use]
    pub fn kills(&self) -> Arc<Kills> {
        Arc::clone(&self.kills)
    }

    /// The flows that rules with these counter slots blocked, and that are to be killed when those
    /// rules end.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn recorded(&self, slots: &[u32]) -> Result<Vec<FlowKey>, Error> {
        let tags: Vec<u32> = slots
            .iter()
            .map(|slot| self.counters.tags().of(*slot))
            .collect();
        self.recorded.of(&tags)
    }

    /// Forgets such flows.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn forget_recorded(&mut self, flows: &[FlowKey]) -> Result<(), Error> {
        self.recorded.forget(flows)
    }

    /// The object, for running its programs on packets of a test.
    pub const fn object(&mut self) -> &mut Object {
        &mut self.object
    }

    /// The maps, by name, and the kernel memory of each, in bytes.
    #[must_use]
    pub fn maps(&self) -> Vec<(String, u64)> {
        self.object.maps()
    }
}
