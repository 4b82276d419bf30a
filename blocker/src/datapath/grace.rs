//! Waits until every program run that began earlier has ended.
//!
//! Programs run under the RCU read lock, so such a wait is an RCU grace period. `bpf(2)` waits for
//! one after every update of a map-in-map (`maybe_wait_bpf_programs` in `kernel/bpf/syscall.c`, since
//! Linux 4.20), so this module updates an array of maps that has one element and no other use.
//! `membarrier(MEMBARRIER_CMD_GLOBAL)` waits too, but fails on kernels that run with `nohz_full`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use aya::maps::{Array, IterableMap, MapData};

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;

/// `union bpf_attr`, as far as `BPF_MAP_CREATE` reads it.
#[repr(C)]
struct CreateAttributes {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
}

/// `union bpf_attr`, as far as `BPF_MAP_UPDATE_ELEM` reads it.
#[repr(C)]
struct UpdateAttributes {
    map_fd: u64,
    key: u64,
    value: u64,
    flags: u64,
}

/// The map-in-map whose update waits for a grace period.
pub struct Grace {
    outer: OwnedFd,
    inner: Array<MapData, u32>,
}

impl Grace {
    /// Creates the outer map and its one inner map.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn new() -> io::Result<Self> {
        let inner = Array::<MapData, u32>::create(1, 0).map_err(io::Error::other)?;
        let attributes = CreateAttributes {
            map_type: BPF_MAP_TYPE_ARRAY_OF_MAPS,
            key_size: 4,
            value_size: 4,
            max_entries: 1,
            map_flags: 0,
            inner_map_fd: u32::try_from(raw(&inner)).map_err(io::Error::other)?,
        };
        let fd = bpf(BPF_MAP_CREATE, &attributes)?;
        // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
        let outer = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { outer, inner })
    }

    /// Returns when every program run that began before the call has ended.
    ///
    /// # Errors
    /// The kernel's error. Programs that began before the call may still run then.
    pub fn wait(&self) -> io::Result<()> {
        let key = 0_u32;
        let value = raw(&self.inner);
        let attributes = UpdateAttributes {
            map_fd: u64::try_from(self.outer.as_raw_fd()).map_err(io::Error::other)?,
            key: (&raw const key) as u64,
            value: (&raw const value) as u64,
            flags: 0,
        };
        bpf(BPF_MAP_UPDATE_ELEM, &attributes).map(drop)
    }
}

fn raw(map: &Array<MapData, u32>) -> RawFd {
    IterableMap::map(map).fd().as_fd().as_raw_fd()
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: the attributes are initialised and `size_of::<T>()` bytes long, and the memory that
    // they point to outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}
