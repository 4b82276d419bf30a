//! Which process has a socket open: the inodes behind `/proc/*/fd`.
//!
//! This reads every descriptor of every process, so only dry runs do it.

use std::collections::HashMap;

use procfs::process::{FDTarget, all_processes};

/// A process that has a socket open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Its name (`comm`).
    pub(crate) name: String,
    /// Its pid.
    pub(crate) pid: i32,
}

/// The processes that have the sockets with these inodes open. Where several share one, that with the
/// lowest pid: usually the parent of a set of workers.
///
/// The second value says what could not be read.
pub(crate) fn of(inodes: &[u32]) -> (HashMap<u32, Holder>, Option<String>) {
    let mut holders: HashMap<u32, Holder> = HashMap::new();
    let processes = match all_processes() {
        Ok(processes) => processes,
        Err(e) => {
            return (
                holders,
                Some(format!("reading /proc for process names: {e}")),
            );
        }
    };
    let wanted: std::collections::HashSet<u64> = inodes
        .iter()
        .filter(|&&inode| inode != 0)
        .map(|&inode| u64::from(inode))
        .collect();
    let mut unreadable = 0u32;
    // Processes that end while /proc is read are passed over.
    for process in processes.flatten() {
        let descriptors = match process.fd() {
            Ok(descriptors) => descriptors,
            Err(procfs::ProcError::PermissionDenied(_)) => {
                unreadable += 1;
                continue;
            }
            Err(_) => continue,
        };
        let mut name = None;
        for descriptor in descriptors.flatten() {
            let FDTarget::Socket(inode) = descriptor.target else {
                continue;
            };
            let Some(key) = u32::try_from(inode)
                .ok()
                .filter(|_| wanted.contains(&inode))
            else {
                continue;
            };
            let name = name.get_or_insert_with(|| {
                process
                    .stat()
                    .map_or_else(|_| "?".to_owned(), |stat| stat.comm)
            });
            let holder = Holder {
                name: name.clone(),
                pid: process.pid,
            };
            holders
                .entry(key)
                .and_modify(|known| {
                    if holder.pid < known.pid {
                        *known = holder.clone();
                    }
                })
                .or_insert(holder);
        }
    }
    let note = (unreadable > 0).then(|| {
        format!(
            "{unreadable} processes would not show their sockets: flows of theirs are listed without a process name (CAP_SYS_PTRACE)"
        )
    });
    (holders, note)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn our_own_socket_is_ours() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&socket));
        let inode = std::fs::metadata(path).unwrap().ino();
        let inode = u32::try_from(inode).unwrap();
        let (holders, _) = of(&[inode, 0]);
        assert_eq!(
            holders[&inode].pid,
            i32::try_from(std::process::id()).unwrap()
        );
        assert!(!holders.contains_key(&0));
    }
}
