//! Attaching programs to devices. Pins keep the programs attached when the daemon exits.
//!
//! A link is pinned under `PIN_DIR/links/INDEX-HOOK` (generic XDP: `INDEX-xdp-generic`), so that it
//! outlives the daemon. A daemon that finds such a pin takes the link over by replacing its program,
//! which the kernel does atomically; the daemon must have filled its own maps before. Kernels before
//! 6.6 have no links for TC. There a clsact filter keeps the program attached, and the next daemon
//! finds the filter by its priority and handle.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::xdp::XdpLink;
use aya::programs::{LinkOrder, ProgramError, TcAttachType, XdpMode};
use blocker_ebpf::{Hook, programs};
use serde::{Deserialize, Serialize};

use super::Error;
use super::devices::{Device, LinkKind};
use super::load::Object;
use super::qdisc::Qdiscs;

/// Which hooks serve the devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookChoice {
    /// XDP and TC where the device's driver supports XDP, else TC alone.
    Auto,
    /// TC alone.
    Tc,
    /// As `Auto`, but a device whose driver lacks XDP is reported as an error.
    XdpNative,
    /// XDP in the kernel's generic path, and TC.
    XdpGeneric,
}

/// The programs that are attached, by device.
pub struct Attachments {
    links: PathBuf,
    qdiscs: Qdiscs,
    choice: HookChoice,
    tcx: bool,
    devices: BTreeMap<u32, Attached>,
}

/// A device and what is attached to it.
pub struct Attached {
    /// The device.
    pub device: Device,
    /// Its hooks.
    pub hooks: Vec<AttachedHook>,
    /// Notes: what is not attached, or not in the best mode, and why.
    pub notes: Vec<String>,
}

/// One hook of one device.
pub struct AttachedHook {
    /// The hook.
    pub hook: Hook,
    /// The way of attachment: `native`, `generic`, `tcx`, `clsact`.
    pub mode: &'static str,
    held: Held,
}

/// The kernel object that keeps a program at its hook.
enum Held {
    /// A pinned link, which outlives the daemon until the pin is removed.
    Pinned(PinnedLink),
    /// A clsact filter, which outlives the daemon until the filter is removed.
    Filter(SchedClassifierLink),
}

/// The modes of XDP.
const NATIVE: &str = "native";
const GENERIC: &str = "generic";

const HOOKS: [Hook; 3] = [Hook::Xdp, Hook::Ingress, Hook::Egress];

fn make(directory: &Path) -> Result<(), Error> {
    fs::create_dir_all(directory).map_err(|source| Error::Pins {
        path: directory.to_owned(),
        source,
    })
}

impl Attachments {
    /// Attaches nothing yet. Links will be pinned under `pin_dir/links`. If `tcx` is false, clsact
    /// filters are used even where the kernel has TCX.
    ///
    /// # Errors
    /// If the directory can't be created.
    pub fn new(pin_dir: &Path, choice: HookChoice, tcx: bool) -> Result<Self, Error> {
        let links = pin_dir.join("links");
        make(&links)?;
        Ok(Self {
            links,
            qdiscs: Qdiscs::new(pin_dir),
            choice,
            tcx,
            devices: BTreeMap::new(),
        })
    }

    /// The devices and what is attached to them, by index.
    pub fn devices(&self) -> impl Iterator<Item = &Attached> {
        self.devices.values()
    }

    /// The indexes of the devices to which programs are attached.
    pub fn indexes(&self) -> impl Iterator<Item = u32> {
        self.devices.keys().copied()
    }

    /// Attaches to the given devices that are new, and detaches from the devices that are not given.
    ///
    /// Returns the errors. A device that fails does not prevent the others from being attached.
    pub fn set(&mut self, object: &mut Object, wanted: &[Device]) -> Vec<Error> {
        let mut errors = Vec::new();
        let gone: Vec<u32> = self
            .devices
            .keys()
            .copied()
            .filter(|index| !wanted.iter().any(|device| device.index == *index))
            .collect();
        for index in gone {
            if let Some(attached) = self.devices.remove(&index) {
                errors.extend(self.release(index, attached.hooks));
            }
        }
        for device in wanted {
            if let Some(attached) = self.devices.get_mut(&device.index) {
                attached.device.name.clone_from(&device.name);
                continue;
            }
            match self.attach(object, device) {
                Ok(attached) => {
                    let xdp = attached.hooks.iter().any(|hook| hook.hook == Hook::Xdp);
                    if self.choice == HookChoice::XdpNative && !xdp {
                        errors.push(Error::NoXdp {
                            device: device.name.clone(),
                            why: attached.notes.join("; "),
                        });
                    }
                    self.devices.insert(device.index, attached);
                }
                Err(error) => errors.push(error),
            }
        }
        errors
    }

    /// Detaches every program.
    pub fn detach_all(&mut self) -> Vec<Error> {
        std::mem::take(&mut self.devices)
            .into_iter()
            .flat_map(|(index, attached)| self.release(index, attached.hooks))
            .collect()
    }

    /// Detaches a device's programs, and removes the qdisc that only they needed.
    fn release(&self, index: u32, hooks: Vec<AttachedHook>) -> Vec<Error> {
        let hooks = hooks.into_iter().map(AttachedHook::release);
        let mut errors: Vec<_> = hooks.filter_map(Result::err).collect();
        errors.extend(self.qdiscs.release(index).err());
        errors
    }

    /// Leaves everything attached when this process exits.
    pub fn leave(&mut self) {
        for hook in std::mem::take(&mut self.devices)
            .into_values()
            .flat_map(|attached| attached.hooks)
        {
            match hook.held {
                Held::Pinned(_) => {}
                // Dropping the link would remove the filter.
                Held::Filter(link) => std::mem::forget(link),
            }
        }
    }

    /// Removes the pins of links and the marks of qdiscs that are not of attached devices, such as
    /// those of devices that were removed while no daemon ran.
    ///
    /// # Errors
    /// If the pin directory can't be read or a pin can't be removed.
    pub fn sweep(&self) -> Result<(), Error> {
        let held: Vec<PathBuf> = self
            .devices
            .values()
            .flat_map(|attached| {
                attached
                    .hooks
                    .iter()
                    .map(|hook| self.pin(attached.device.index, hook.hook, hook.mode))
            })
            .collect();
        super::pins::remove_except(&self.links, &held)?;
        let attached: Vec<u32> = self.indexes().collect();
        self.qdiscs.sweep(&attached)
    }

    /// The path of a link's pin. Generic and native XDP have different paths, because the kernel
    /// neither reports nor changes the mode of a link.
    fn pin(&self, index: u32, hook: Hook, mode: &str) -> PathBuf {
        let generic = if mode == GENERIC { "-generic" } else { "" };
        self.links
            .join(format!("{index}-{}{generic}", hook_name(hook)))
    }

    fn attach(&self, object: &mut Object, device: &Device) -> Result<Attached, Error> {
        // The BPF file system may have been mounted anew, and is empty then.
        make(&self.links)?;
        let mut attached = Attached {
            device: device.clone(),
            hooks: Vec::new(),
            notes: Vec::new(),
        };
        for hook in HOOKS {
            let result = match hook {
                Hook::Xdp => self.attach_xdp(object, device, &mut attached.notes),
                Hook::Ingress | Hook::Egress => self.attach_tc(object, device, hook).map(Some),
            };
            match result {
                Ok(hook) => attached.hooks.extend(hook),
                Err(error) => {
                    // The other hooks alone would leave a direction unfiltered.
                    let failed = self.release(device.index, attached.hooks);
                    return Err(failed.into_iter().next().unwrap_or(error));
                }
            }
        }
        let has = |mode| attached.hooks.iter().any(|hook| hook.mode == mode);
        let (generic, clsact) = (has(GENERIC), has("clsact"));
        if generic {
            let note = "generic XDP: the configuration asks for it (hook: xdp-generic)";
            attached.notes.push(note.to_owned());
        }
        if clsact {
            let note = "TC by clsact filters: the kernel has no TCX, which came with Linux 6.6";
            attached.notes.push(note.to_owned());
        }
        Ok(attached)
    }

    fn attach_tc(
        &self,
        object: &mut Object,
        device: &Device,
        hook: Hook,
    ) -> Result<AttachedHook, Error> {
        let (at, program) = match (hook, device.kind) {
            (Hook::Egress, LinkKind::None) => (TcAttachType::Egress, programs::EGRESS_L3),
            (Hook::Egress, _) => (TcAttachType::Egress, programs::EGRESS),
            (_, LinkKind::None) => (TcAttachType::Ingress, programs::INGRESS_L3),
            (..) => (TcAttachType::Ingress, programs::INGRESS),
        };
        let error = |source| Error::attach(device, hook, source);
        let classifier = object.classifier(program)?;
        let pin = self.pin(device.index, hook, "tcx");
        if let Some(link) = taken_over(&pin, |link| {
            let link = SchedClassifierLink::try_from(link).ok()?;
            let id = classifier.attach_to_link(link).ok()?;
            classifier.take_link(id).ok()
        }) {
            return Ok(AttachedHook {
                hook,
                mode: "tcx",
                held: Held::Pinned(link),
            });
        }
        if self.tcx {
            let link = classifier
                .attach_with_options(
                    &device.name,
                    at,
                    TcAttachOptions::TcxOrder(LinkOrder::first()),
                )
                .and_then(|id| classifier.take_link(id));
            match link {
                Ok(link) => {
                    let link = FdLink::try_from(link).map_err(|source| Error::Link { source })?;
                    let held = Held::Pinned(
                        link.pin(&pin)
                            .map_err(|source| Error::Pin { path: pin, source })?,
                    );
                    return Ok(AttachedHook {
                        hook,
                        mode: "tcx",
                        held,
                    });
                }
                Err(source) if !lacks_tcx(&source) => return Err(error(source)),
                Err(_) => {}
            }
        }
        self.qdiscs.ensure(device)?;
        // An earlier run's filter is replaced in place, so that no packet passes unfiltered.
        let old = filter(&device.name, at)?;
        let id = match classifier.attach_to_link(old) {
            Ok(id) => id,
            Err(_not_there) => classifier
                .attach_with_options(&device.name, at, TcAttachOptions::Netlink(filter_options()))
                .map_err(error)?,
        };
        let link = classifier.take_link(id).map_err(error)?;
        Ok(AttachedHook {
            hook,
            mode: "clsact",
            held: Held::Filter(link),
        })
    }

    fn attach_xdp(
        &self,
        object: &mut Object,
        device: &Device,
        notes: &mut Vec<String>,
    ) -> Result<Option<AttachedHook>, Error> {
        let (mode, name) = match self.choice {
            HookChoice::Tc => {
                notes.push("no XDP: the configuration asks for none (hook: tc)".to_owned());
                return Ok(None);
            }
            HookChoice::Auto | HookChoice::XdpNative => (XdpMode::Driver, NATIVE),
            HookChoice::XdpGeneric => (XdpMode::Skb, GENERIC),
        };
        if device.kind != LinkKind::Ethernet {
            notes.push("no XDP: the device has no Ethernet header; TC serves".to_owned());
            return Ok(None);
        }
        let xdp = object.xdp()?;
        let pin = self.pin(device.index, Hook::Xdp, name);
        // A device runs XDP in one mode at a time, so a link of the other mode, from an earlier
        // configuration, is removed. Until XDP is attached again, TC programs enforce the rules.
        let other = if name == GENERIC { NATIVE } else { GENERIC };
        match fs::remove_file(self.pin(device.index, Hook::Xdp, other)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Unpin { source });
            }
            _ => {}
        }
        if let Some(link) = taken_over(&pin, |link| {
            let link = XdpLink::try_from(link).ok()?;
            let id = xdp.attach_to_link(link).ok()?;
            xdp.take_link(id).ok()
        }) {
            return Ok(Some(AttachedHook {
                hook: Hook::Xdp,
                mode: name,
                held: Held::Pinned(link),
            }));
        }
        let link = match xdp
            .attach_to_if_index(device.index, mode)
            .and_then(|id| xdp.take_link(id))
        {
            Ok(link) => link,
            Err(source) => {
                notes.push(format!("no {name} XDP: {}; TC serves", refusal(&source)));
                return Ok(None);
            }
        };
        let link = FdLink::try_from(link).map_err(|source| Error::Link { source })?;
        let held = Held::Pinned(
            link.pin(&pin)
                .map_err(|source| Error::Pin { path: pin, source })?,
        );
        Ok(Some(AttachedHook {
            hook: Hook::Xdp,
            mode: name,
            held,
        }))
    }
}

impl AttachedHook {
    fn release(self) -> Result<(), Error> {
        match self.held {
            Held::Pinned(link) => match link.unpin() {
                Ok(_detached_by_drop) => Ok(()),
                Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(source) => Err(Error::Unpin { source }),
            },
            Held::Filter(_removed_by_drop) => Ok(()),
        }
    }
}

/// Takes over a pinned link if it is usable. Otherwise (its device is gone, or the pin is not of a
/// link) removes the pin.
fn taken_over<L>(pin: &Path, update: impl FnOnce(FdLink) -> Option<L>) -> Option<PinnedLink> {
    let link = PinnedLink::from_pin(pin).ok()?;
    if update(FdLink::from(link)).is_some()
        && let Ok(link) = PinnedLink::from_pin(pin)
    {
        return Some(link);
    }
    if let Err(error) = fs::remove_file(pin) {
        tracing::warn!(pin = %pin.display(), %error, "a stale pin cannot be removed");
    }
    None
}

/// Whether the kernel has no TCX. Before Linux 6.6 its attach types are invalid arguments.
fn lacks_tcx(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(failed) if failed.io_error.raw_os_error() == Some(libc::EINVAL))
}

/// Priority and handle of blocker's clsact filters: the first priority, and a handle that other
/// programs are unlikely to choose.
const fn filter_options() -> NlOptions {
    NlOptions {
        priority: 1,
        handle: TcHandle::new(0, 0xb10c),
        classid: None,
    }
}

/// A link value for blocker's clsact filter on a device. Does not check that the filter exists.
fn filter(device: &str, at: TcAttachType) -> Result<SchedClassifierLink, Error> {
    let NlOptions {
        priority,
        handle,
        classid,
    } = filter_options();
    SchedClassifierLink::attached(device, at, priority, handle, classid)
        .map_err(|source| Error::Devices { source })
}

/// Removes blocker's clsact filters from a device, if there are any.
pub fn remove_filters(device: &str) {
    for at in [TcAttachType::Ingress, TcAttachType::Egress] {
        // Dropping a link removes its filter. A filter that does not exist is no error.
        drop(filter(device, at));
    }
}

/// The reason for which an XDP program could not be attached, in words.
fn refusal(error: &ProgramError) -> String {
    let ProgramError::SyscallError(failed) = error else {
        return error.to_string();
    };
    match failed.io_error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => "another program holds the slot".to_owned(),
        Some(libc::EOPNOTSUPP) => "the driver has none".to_owned(),
        _ => format!("the driver refused it ({})", failed.io_error),
    }
}

/// The name of a hook in `status` and in pins.
#[must_use]
pub const fn hook_name(hook: Hook) -> &'static str {
    match hook {
        Hook::Xdp => "xdp",
        Hook::Ingress => "tc-ingress",
        Hook::Egress => "tc-egress",
    }
}
