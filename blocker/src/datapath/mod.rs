//! The kernel side, as the controller sees it: load, switch snapshots, attach, count.
//!
//! Owns programs, maps, links and pins. Does not know why a rule is in force. Acts only when it is
//! called; its one thread waits for the grace period after a switch.

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

/// An operation of the datapath that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object cannot be parsed, or its maps cannot be created.
    #[error("the eBPF object cannot be loaded: {source}{}", hint(.lacking))]
    Object {
        /// aya's error.
        source: Box<EbpfError>,
        /// Whether the cause is a missing privilege.
        lacking: bool,
    },
    /// The kernel does not load a program.
    #[error("the kernel refuses the eBPF program {program}: {source}")]
    Load {
        /// The program's name.
        program: &'static str,
        /// The kernel's error, with the verifier's log.
        source: Box<ProgramError>,
    },
    /// The object has no program or map of a name, so it does not fit this daemon.
    #[error("the eBPF object has no {what}: the daemon was built with another object")]
    Missing {
        /// The name of the program or map.
        what: &'static str,
    },
    /// A map operation failed.
    #[error("map {map}: {source}")]
    Map {
        /// The map's name.
        map: &'static str,
        /// The kernel's error.
        source: MapError,
    },
    /// The map of the flows to kill when their rule ends can't be read.
    #[error("the established flows that rules blocked cannot be read: {source}")]
    Flows {
        /// The kernel's error.
        source: io::Error,
    },
    /// A map can't be mapped into memory.
    #[error("map {map} cannot be mapped into memory: {source}")]
    Memory {
        /// The map's name.
        map: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// No file descriptor is left to read the maps' memory through.
    #[error("the maps' memory cannot be accounted for: {source}")]
    Accounting {
        /// The kernel's error.
        source: io::Error,
    },
    /// The wait for a grace period failed.
    #[error("the kernel cannot say when running programs have ended: {source}")]
    Grace {
        /// The kernel's error.
        source: io::Error,
    },
    /// The number of CPUs is unknown.
    #[error("{file} cannot be read: {source}")]
    Cpus {
        /// The file that has the number.
        file: String,
        /// The error of reading the file.
        source: io::Error,
    },
    /// The kernel gives no random numbers.
    #[error("the kernel gives no random numbers: {source}")]
    Random {
        /// The kernel's error.
        source: getrandom::Error,
    },
    /// The ring buffer of the programs' diagnostics can't be opened.
    #[error("the datapath's diagnostics cannot be read: {detail}")]
    Diagnostics {
        /// aya's error.
        detail: Cow<'static, str>,
    },
    /// Devices can't be listed or followed.
    #[error("network devices cannot be listed: {source}")]
    Devices {
        /// The error of netlink.
        source: io::Error,
    },
    /// A program can't be attached.
    #[error("{hook} cannot be attached to {device}: {source}")]
    Attach {
        /// The device.
        device: String,
        /// The hook.
        hook: &'static str,
        /// The kernel's error.
        source: Box<ProgramError>,
    },
    /// The configuration asks for native XDP, and a device has none.
    #[error("{device}: {why}")]
    NoXdp {
        /// The device.
        device: String,
        /// The reason, and the hook that is used instead.
        why: String,
    },
    /// The clsact qdisc can't be added.
    #[error("the clsact qdisc cannot be added to {device}: {source}")]
    Clsact {
        /// The device.
        device: String,
        /// The kernel's error.
        source: Box<aya::programs::tc::TcError>,
    },
    /// A clsact qdisc that blocker added can't be removed.
    #[error("the clsact qdisc of the device with index {index} cannot be removed: {source}")]
    ClsactLeft {
        /// The device's index.
        index: u32,
        /// The kernel's error.
        source: io::Error,
    },
    /// A link of aya has no file descriptor to pin.
    #[error("an attached link cannot be held: {source}")]
    Link {
        /// aya's error.
        source: LinkError,
    },
    /// A link can't be pinned.
    #[error("{} cannot be pinned: {source}", .path.display())]
    Pin {
        /// The path of the pin.
        path: PathBuf,
        /// aya's error.
        source: aya::pin::PinError,
    },
    /// A pin can't be removed.
    #[error("a pin cannot be removed: {source}")]
    Unpin {
        /// The kernel's error.
        source: io::Error,
    },
    /// The pin directory, or an entry of it, can't be read, created, locked or removed.
    #[error("pins: {}: {source}", .path.display())]
    Pins {
        /// The directory or entry.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The pin directory is not on a BPF file system.
    #[error("pin_dir {} is not on a bpf file system: `mount -t bpf bpf /sys/fs/bpf`, or set pin_dir", .path.display())]
    NotBpffs {
        /// The pin directory.
        path: PathBuf,
    },
    /// Another process has locked the pin directory.
    #[error("pin_dir {} is held by {by}: stop it, or set another pin_dir", .path.display())]
    Held {
        /// The pin directory.
        path: PathBuf,
        /// The other process: its name and pid.
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
    /// Loads programs and maps. No program is attached yet, and no rule is live.
    ///
    /// # Errors
    /// If the kernel refuses a program or a map.
    pub fn load(settings: Settings, pin_dir: &Path, choice: HookChoice) -> Result<Self, Error> {
        Self::load_with(settings, pin_dir, choice, true)
    }

    /// As [`load`](Self::load), but uses no TCX if `tcx` is false.
    ///
    /// # Errors
    /// If the kernel refuses a program or a map.
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

    /// The settings that the datapath was loaded with.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes the reader of the programs' diagnostics; `None` if they are off or taken already.
    pub const fn take_diagnostics(&mut self) -> Option<Diagnostics> {
        self.diagnostics.take()
    }

    /// Makes a snapshot live as a whole.
    ///
    /// # Errors
    /// If the kernel refuses a part of the snapshot. The previous snapshot then stays live.
    pub fn switch(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        self.banks.switch(snapshot, self.counters.tags())
    }

    /// The number of a remote's rule list; 0 for the empty list. No two snapshots share a number.
    #[must_use]
    pub fn list(&self, remote: IpAddr) -> u64 {
        self.banks.list(remote)
    }

    /// The rules that the live bank tries on packets of a remote, in the order of the trial.
    ///
    /// # Errors
    /// If a map can't be read.
    pub fn lookup(&self, remote: IpAddr) -> Result<Vec<Tried>, Error> {
        self.banks.lookup(remote)
    }

    /// Attaches to exactly these devices, and returns the errors of those that failed.
    pub fn attach(&mut self, devices: &[Device]) -> Vec<Error> {
        let before: Vec<u32> = self.attachments.indexes().collect();
        let mut errors = self.attachments.set(&mut self.object, devices);
        // A later device with the same index must start with zeroed counters.
        for index in before {
            if self.attachments.indexes().all(|attached| attached != index) {
                errors.extend(self.counters.clear_device(index).err());
            }
        }
        errors
    }

    /// Removes stale pins, and zeroes the hook counters of devices that are not attached. Must be
    /// called after the first [`attach`](Self::attach), which takes over the pins that are in use.
    ///
    /// # Errors
    /// If a pin can't be removed or a counter can't be written.
    pub fn sweep(&mut self) -> Result<(), Error> {
        self.attachments.sweep()?;
        kept::sweep(&self.pin_dir)?;
        let attached: Vec<u32> = self.attachments.indexes().collect();
        self.counters.clear_devices_but(&attached)
    }

    /// Detaches every program, and removes the pins of counters and flows.
    pub fn detach(&mut self) -> Vec<Error> {
        let mut errors = self.attachments.detach_all();
        errors.extend(kept::remove(&self.pin_dir).err());
        errors
    }

    /// Leaves the programs attached when this process exits.
    pub fn leave(&mut self) {
        self.attachments.leave();
    }

    /// The attached devices and their hooks.
    pub fn attached(&self) -> impl Iterator<Item = &attach::Attached> {
        self.attachments.devices()
    }

    /// The counters of the rule that has a slot.
    ///
    /// # Errors
    /// If the counters can't be read.
    pub fn rule_counters(&self, slot: u32) -> Result<RuleCounters, Error> {
        self.counters.rule(slot)
    }

    /// The rules of an earlier daemon that had a slot when the maps were loaded, and the slots.
    #[must_use]
    pub fn counted(&self) -> &[(RuleId, u32)] {
        self.counters.counted()
    }

    /// Zeroes a counter slot and gives it to a new rule.
    ///
    /// # Errors
    /// If the counters can't be written.
    pub fn begin_counting(&mut self, slot: u32, rule: &RuleId) -> Result<(), Error> {
        self.counters.begin_rule(slot, rule)
    }

    /// Frees a counter slot.
    ///
    /// # Errors
    /// If the map of rule names can't be written.
    pub fn end_counting(&mut self, slot: u32) -> Result<(), Error> {
        self.counters.end_rule(slot)
    }

    /// The tag by which flow records and events name the rule that has a slot.
    #[must_use]
    pub fn tag(&self, slot: u32) -> u32 {
        self.counters.tags().of(slot)
    }

    /// The maps of flow records and events.
    #[must_use]
    pub fn seen(&self) -> Arc<Seen> {
        Arc::clone(&self.seen)
    }

    /// The counters of a hook on a device.
    ///
    /// # Errors
    /// If the counters can't be read.
    pub fn hook_counters(&self, hook: Hook, ifindex: u32) -> Result<HookTotals, Error> {
        self.counters.hook(hook, ifindex)
    }

    /// The map of flows under teardown.
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

    /// Removes flows from the map that [`recorded`](Self::recorded) reads.
    ///
    /// # Errors
    /// If the map can't be written.
    pub fn forget_recorded(&mut self, flows: &[FlowKey]) -> Result<(), Error> {
        self.recorded.forget(flows)
    }

    /// The object, so that tests can run its programs on packets.
    pub const fn object(&mut self) -> &mut Object {
        &mut self.object
    }

    /// The name of each map, and its kernel memory in bytes.
    #[must_use]
    pub fn maps(&self) -> Vec<(String, u64)> {
        self.object.maps()
    }
}
