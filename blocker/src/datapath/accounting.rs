//! The kernel memory that the maps use.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya::Ebpf;
use aya::maps::Map;

/// A file descriptor of each map of a loaded object, through which its memory is read.
pub struct Maps(Vec<(String, OwnedFd)>);

impl Maps {
    /// The maps of an object of which no map was taken yet, without the maps of its globals.
    ///
    /// # Errors
    /// If the process has no file descriptor left.
    pub fn of(ebpf: &Ebpf) -> io::Result<Self> {
        let mut maps = Vec::new();
        for (name, map) in ebpf.maps().filter(|(name, _)| !name.starts_with('.')) {
            let (Map::Array(map)
            | Map::HashMap(map)
            | Map::LpmTrie(map)
            | Map::LruHashMap(map)
            | Map::PerCpuLruHashMap(map)
            | Map::PerCpuArray(map)
            | Map::PerCpuHashMap(map)
            | Map::RingBuf(map)) = map
            else {
                continue;
            };
            maps.push((name.to_owned(), map.fd().as_fd().try_clone_to_owned()?));
        }
        maps.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(Self(maps))
    }

    /// The name of each map and its memory in bytes, as `bpf_map_show_fdinfo` reports it.
    pub fn memory(&self) -> Vec<(String, u64)> {
        let memory = |(name, fd): &(String, OwnedFd)| (name.clone(), memory_of(fd.as_raw_fd()));
        self.0.iter().map(memory).collect()
    }
}

fn memory_of(fd: i32) -> u64 {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.and_then(|bytes| bytes.trim().parse().ok())
        .unwrap_or(0)
}
