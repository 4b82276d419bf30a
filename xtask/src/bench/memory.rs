//! Memory use, as the kernel reports it.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context, Result};

/// A process's resident set in bytes.
pub(super) fn resident(pid: u32) -> Result<u64> {
    Ok(kilobytes(&format!("/proc/{pid}/status"), &["VmRSS:"])? * 1024)
}

/// Bytes of the BPF maps that a process has open.
pub(super) fn maps(pid: u32) -> Result<u64> {
    let directory = format!("/proc/{pid}/fdinfo");
    let files = fs::read_dir(&directory).with_context(|| format!("{directory} cannot be read"))?;
    let mut maps = HashMap::new();
    for file in files {
        // The descriptor may have been closed meanwhile.
        let Ok(text) = fs::read_to_string(file?.path()) else {
            continue;
        };
        let field = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|number| number.trim().parse().ok())
        };
        if let Some((map, bytes)) = field("map_id:").zip(field("memlock:")) {
            maps.insert(map, bytes);
        }
    }
    Ok(maps.values().sum())
}

/// Bytes of the kernel's slabs and mappings. Other processes change them too, so a difference is
/// meaningful only for large sets on an idle machine.
pub(super) fn kernel() -> Result<u64> {
    Ok(kilobytes("/proc/meminfo", &["SUnreclaim:", "VmallocUsed:"])? * 1024)
}

/// The number of possible CPUs, which is a per-CPU map's number of values.
pub(super) fn possible_cpus() -> Result<usize> {
    let path = "/sys/devices/system/cpu/possible";
    let text = fs::read_to_string(path).with_context(|| format!("{path} cannot be read"))?;
    let last = text.trim().rsplit(['-', ',']).next();
    let last: Option<usize> = last.and_then(|last| last.parse().ok());
    Ok(last.with_context(|| format!("{path} reads {text:?}"))? + 1)
}

/// The sum of these lines of a file, in kB.
fn kilobytes(path: &str, names: &[&str]) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("{path} cannot be read"))?;
    let mut sum = 0;
    for name in names {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.split_whitespace().next());
        let number: Option<u64> = number.and_then(|number| number.parse().ok());
        sum += number.with_context(|| format!("{path} has no {name}"))?;
    }
    Ok(sum)
}
