//! Reads a whole hash map, many entries per system call (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6).
//!
//! A walk by `BPF_MAP_GET_NEXT_KEY` starts over when its current key was deleted, so it may never end
//! in a map that keeps evicting entries. A batch walks the map's buckets once, so it ends.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// The part of `union bpf_attr` that batch commands read.
#[repr(C)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The number of entries that the first call asks for.
const ENTRIES: u32 = 4_096;

/// Calls `see` with every entry of a hash map, and returns the number of entries. Entries that are
/// inserted or deleted during the walk may be missed.
///
/// `K` and `V` must be ABI types (any bytes are a valid value) of the map's key and value sizes.
///
/// # Errors
/// The kernel's error.
pub fn each<K: Copy, V: Copy>(
    map: BorrowedFd<'_>,
    empty: (K, V),
    mut see: impl FnMut(&K, &V),
) -> io::Result<u64> {
    let mut keys = vec![empty.0; ENTRIES as usize];
    let mut values = vec![empty.1; ENTRIES as usize];
    let (mut from, mut to) = (0_u32, 0_u32);
    let mut begun = false;
    let mut seen = 0;
    loop {
        let room = u32::try_from(keys.len()).map_err(io::Error::other)?;
        let mut attributes = Attributes {
            in_batch: if begun { (&raw mut from) as u64 } else { 0 },
            out_batch: (&raw mut to) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room,
            map_fd: u32::try_from(map.as_raw_fd()).map_err(io::Error::other)?,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the attributes are initialised and as long as their size says. Keys and values have
        // room for `count` entries of the map's sizes. A hash map's batch position is a u32.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_LOOKUP_BATCH,
                &raw mut attributes,
                size_of::<Attributes>(),
            )
        };
        let error = (result < 0).then(io::Error::last_os_error);
        match error.as_ref().and_then(io::Error::raw_os_error) {
            // A single bucket has more entries than the buffer.
            Some(libc::ENOSPC) if room < 1 << 24 => {
                keys.resize(keys.len() * 2, empty.0);
                values.resize(values.len() * 2, empty.1);
                continue;
            }
            None | Some(libc::ENOENT) => {}
            Some(_) => return Err(io::Error::last_os_error()),
        }
        let count = attributes.count.min(room) as usize;
        for (key, value) in keys.iter().zip(&values).take(count) {
            see(key, value);
        }
        seen += count as u64;
        if error.is_some() {
            return Ok(seen);
        }
        from = to;
        begun = true;
    }
}
