//! Captures packets by tcpdump on a device of a namespace.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::leftovers::{self, Leftover};
use super::{Namespace, poll};

/// A running capture. It ends when dropped, or after 100,000 packets.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Child,
    directory: TempDir,
}

impl Capture {
    /// Starts to capture packets that match a `pcap-filter(7)`, and returns once tcpdump listens.
    ///
    /// # Errors
    /// tcpdump is missing, or ends at once. The error then has its standard error.
    pub fn start(host: &Namespace, device: &str, filter: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let said = directory.path().join("stderr");
        let mut command = Command::new("tcpdump");
        command
            // -Z: tcpdump stays root, so that it may write to the directory.
            .args(["-n", "-U", "--immediate-mode", "-c", "100000", "-Z", "root"])
            // In immediate mode each packet takes a slot of the snapshot length. With the defaults the
            // buffer has eight slots, and packets that find none are lost.
            .args(["-s", "70000", "-B", "8192"])
            .args(["-i", device, "-w"])
            .arg(directory.path().join("pcap"))
            .arg(filter)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&said)?);
        let tcpdump = host.spawn(&mut command)?;
        let pid = tcpdump.id().cast_signed();
        leftovers::made(Leftover::Process(pid));
        let mut capture = Self { tcpdump, directory };
        let read = || fs::read_to_string(&said).unwrap_or_default();
        let ready = poll("tcpdump to listen", Duration::from_secs(10), || {
            let ended = capture.tcpdump.try_wait().ok().flatten().is_some();
            (ended || read().contains("listening on")).then_some(!ended)
        })?;
        if !ready {
            bail!("tcpdump -i {device} '{filter}' ended: {}", read().trim());
        }
        Ok(capture)
    }

    /// Ends the capture and returns its packets, each with its link-layer header.
    ///
    /// # Errors
    /// tcpdump does not end, or its file cannot be read.
    pub fn finish(mut self) -> Result<Vec<Vec<u8>>> {
        let pid = Pid::from_raw(self.tcpdump.id().cast_signed());
        kill(pid, Signal::SIGINT).context("tcpdump cannot be told to end")?;
        poll("tcpdump to end", Duration::from_secs(10), || {
            self.tcpdump.try_wait().ok().flatten()
        })?;
        self.packets()
    }

    /// The packets so far.
    ///
    /// # Errors
    /// tcpdump's file cannot be read.
    pub fn packets(&self) -> Result<Vec<Vec<u8>>> {
        let path: PathBuf = self.directory.path().join("pcap");
        let bytes = fs::read(&path).with_context(|| format!("{} is lost", path.display()))?;
        Ok(records(&bytes))
    }

    /// Waits until at least `count` packets are captured, and returns them.
    ///
    /// # Errors
    /// Fewer packets are captured within the time.
    pub fn wait_for(&self, count: usize, within: Duration) -> Result<Vec<Vec<u8>>> {
        poll(&format!("{count} packets on the wire"), within, || {
            self.packets().ok().filter(|packets| packets.len() >= count)
        })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let pid = self.tcpdump.id().cast_signed();
        if let Ok(None) = self.tcpdump.try_wait() {
            leftovers::undo(&Leftover::Process(pid));
            let _ = self.tcpdump.wait();
        } else {
            leftovers::gone(&Leftover::Process(pid));
        }
    }
}

/// The complete packets of a pcap file (`pcap-savefile(5)`, in this host's byte order): a header of
/// 24 bytes, then for each packet 16 bytes, whose third word is the captured length, and its bytes.
fn records(file: &[u8]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut rest = file.get(24..).unwrap_or_default();
    while let Some((header, body)) = rest.split_first_chunk::<16>() {
        let [.., a, b, c, d, _, _, _, _] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let Some(packet) = body.get(..length) else {
            break; // the last record is not complete yet
        };
        packets.push(packet.to_vec());
        rest = &body[length..];
    }
    packets
}
