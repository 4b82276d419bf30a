//! The clsact qdiscs to which filters are attached where the kernel has no TCX. Adds them, and
//! removes those that blocker added once they have no filters.
//!
//! The kernel does not record which program added a qdisc. So a directory `PIN_DIR/qdiscs/INDEX`
//! marks a qdisc that blocker added. The mark outlives the daemon, as the filters do.

use std::fs;
use std::path::{Path, PathBuf};

use aya::programs::tc::{TcError, qdisc_add_clsact};
use netlink_packet_core::NLM_F_ACK;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::Error;
use super::devices::Device;
use crate::netlink::{Body, Conversation, NetlinkError};

// include/uapi/linux/rtnetlink.h
const RTM_DELQDISC: u16 = 37;
const RTM_GETTFILTER: u16 = 46;
/// The handle of a clsact qdisc. The handles of its two directions have the same major number.
const FIRST: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};
const CLSACT: &str = "clsact";

/// The directory of the marks, below the pin directory.
pub(super) const MARKS: &str = "qdiscs";

/// The marks of the clsact qdiscs that blocker added.
pub(super) struct Qdiscs {
    marks: PathBuf,
}

impl Qdiscs {
    pub(super) fn new(pin_dir: &Path) -> Self {
        Self {
            marks: pin_dir.join(MARKS),
        }
    }

    /// Adds a clsact qdisc to a device that has none.
    pub(super) fn ensure(&self, device: &Device) -> Result<(), Error> {
        match qdisc_add_clsact(&device.name) {
            Ok(()) => {
                let path = self.mark(device.index);
                fs::create_dir_all(&path).map_err(|source| Error::Pins { path, source })
            }
            // The device has a clsact qdisc: for the other direction, or of another program.
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {
                Ok(())
            }
            Err(source) => Err(Error::Clsact {
                device: device.name.clone(),
                source: Box::new(source),
            }),
        }
    }

    /// Removes the qdisc of a device if blocker added it and it has no filter. Must be called after
    /// blocker's own filters are removed. The kernel removes the qdisc of a device with the device.
    ///
    /// A filter that another program adds between the check and the removal is lost: the kernel has
    /// no atomic operation for both.
    pub(super) fn release(&self, index: u32) -> Result<(), Error> {
        let mark = self.mark(index);
        if !mark.is_dir() {
            return Ok(());
        }
        remove_unused(index).map_err(|error| Error::ClsactLeft {
            index,
            source: error.source,
        })?;
        fs::remove_dir(&mark).map_err(|source| Error::Pins { path: mark, source })
    }

    /// Removes the marks of devices that are not attached.
    pub(super) fn sweep(&self, attached: &[u32]) -> Result<(), Error> {
        let keep: Vec<PathBuf> = attached.iter().map(|index| self.mark(*index)).collect();
        super::pins::remove_except(&self.marks, &keep)
    }

    fn mark(&self, index: u32) -> PathBuf {
        self.marks.join(index.to_string())
    }
}

fn remove_unused(index: u32) -> Result<(), NetlinkError> {
    let mut route = Conversation::open(NETLINK_ROUTE, "rtnetlink")?;
    let mut filters = 0;
    for minor in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
        let request = message(index, TcHandle { minor, ..FIRST });
        let body = Body {
            kind: RTM_GETTFILTER,
            flags: 0,
            parts: &[&request],
        };
        route.dump("listing filters", &body, |_, _| filters += 1)?;
    }
    if filters > 0 {
        return Ok(());
    }
    let mut request = message(index, TcHandle::CLSACT);
    request.header.handle = FIRST;
    // An ingress qdisc has the same parent and handle. With a kind the kernel deletes only that kind.
    request
        .attributes
        .push(TcAttribute::Kind(CLSACT.to_owned()));
    let body = Body {
        kind: RTM_DELQDISC,
        flags: NLM_F_ACK,
        parts: &[&request],
    };
    match route.ask("removing a clsact qdisc", &body, |_, _| Ok(())) {
        // The device or its qdisc is gone, or the qdisc is of another kind: blocker's is removed.
        Err(error)
            if matches!(
                error.errno(),
                Some(libc::ENODEV | libc::ENOENT | libc::EINVAL)
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

fn message(index: u32, parent: TcHandle) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent;
    message
}
