//! One boot: QEMU, its serial console, and what the guest told there.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::TASK;
use super::plan::Plan;
use super::source::Kernel;
use crate::command::{line, say};

/// `max` without cmpxchg16b: QEMU 7.2 leaves garbage in the flags after it, and an interrupt that comes
/// then ends in a double fault. Linux 6.12 allocates by it, and does without.
/// Without `erms` and `fsrm` the kernel copies by words, which is emulated faster than by bytes; without
/// feature 112 (`REP_GOOD`, in the kernel's arguments) it does so in a loop of its own.
const CPU: &str = "max,cx16=off,erms=off,fsrm=off";
/// Memory of a guest, in MiB: the initramfs, and maps as large as real ones.
const MEMORY: &str = "2048";
/// How long a guest may take to boot and to power off, on a busy machine.
const BOOT: Duration = Duration::from_secs(240);
/// The last lines of the console that are shown where something failed.
const TAIL: usize = 60;

/// What a guest told.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// As its `uname -r` says it.
    release: String,
    passed: BTreeSet<String>,
    failed: BTreeSet<String>,
    /// What a failed test said, while it is being told.
    output: Option<String>,
    /// Whether it came to its end.
    done: bool,
}

impl Account {
    /// Takes a line of the console; gives what is to be shown of it, if anything.
    fn read(&mut self, line: &str) -> Option<String> {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["==", "kernel", release] => self.release = release.to_owned(),
            ["==", "done"] => self.done = true,
            ["==", "passed", test, seconds] => {
                self.passed.insert(test.to_owned());
                return Some(format!("ok      {test} ({seconds} s)"));
            }
            ["==", "failed", test, seconds] => {
                self.failed.insert(test.to_owned());
                self.output = Some(format!("FAILED  {test} ({seconds} s), which said:"));
            }
            ["==", "said"] => return self.output.take(),
            _ => {
                if let Some(output) = &mut self.output {
                    output.push('\n');
                    output.push_str(line);
                }
            }
        }
        None
    }

    /// How many tests passed, if it is all that were to run, on the kernel that was to run.
    ///
    /// # Errors
    /// It is not: with what is missing, and where to read on.
    pub(super) fn check(&self, plan: &Plan, kernel: &Kernel, log: &Path) -> Result<usize> {
        let mut wrong = Vec::new();
        if self.release != kernel.release {
            wrong.push(format!("{} did not boot", kernel.release));
        }
        for test in &plan.tests {
            if self.failed.contains(test) {
                wrong.push(format!("{test} failed"));
            } else if !self.passed.contains(test) {
                wrong.push(format!("{test} did not end"));
            }
        }
        if !self.done {
            wrong.push("the guest did not come to its end".to_owned());
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            eprintln!("-- the end of {} --", log.display());
            for line in &lines[lines.len().saturating_sub(TAIL)..] {
                eprintln!("{line}");
            }
            eprintln!("--");
        }
        if wrong.is_empty() {
            return Ok(self.passed.len());
        }
        bail!(
            "{} (the whole console: {})",
            wrong.join("; "),
            log.display()
        );
    }
}

/// Boots a kernel, and reads its console until it powers off or its time is over.
///
/// # Errors
/// QEMU cannot be started, or the log not be written.
pub(super) fn run(kernel: &Kernel, initramfs: &Path, plan: &Plan, log: &Path) -> Result<Account> {
    let mut qemu = Command::new("qemu-system-x86_64");
    // Emulated, also where there is a /dev/kvm: on a nested one guests hang or QEMU ends, and the
    // CPU that the verifier meets would be another on each machine.
    qemu.args([
        "-M",
        "q35,accel=tcg",
        "-cpu",
        CPU,
        "-smp",
        "2",
        "-m",
        MEMORY,
    ])
    .args([
        "-nographic",
        "-nodefaults",
        "-no-reboot",
        "-serial",
        "stdio",
    ])
    .arg("-kernel")
    .arg(&kernel.image)
    .arg("-initrd")
    .arg(initramfs)
    .arg("-append")
    .arg("console=ttyS0 quiet panic=-1 rdinit=/init random.trust_cpu=on mitigations=off clearcpuid=112")
    .stdin(Stdio::null())
    .stdout(Stdio::piped())
    .stderr(Stdio::inherit());
    say(TASK, &line(&qemu));
    let mut log = File::create(log).with_context(|| format!("{}", log.display()))?;
    let child = qemu
        .spawn()
        .context("`qemu-system-x86_64` cannot be started")?;
    let mut machine = Machine(child);
    let console = machine.0.stdout.take().context("QEMU has no console")?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n') {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let patience = BOOT + plan.patience();
    let deadline = Instant::now() + patience;
    let mut account = Account::default();
    loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                let line = String::from_utf8_lossy(&line);
                let line = line.trim_end();
                writeln!(log, "{line}")?;
                if let Some(shown) = account.read(line) {
                    println!("kernel {}: {shown}", kernel.release);
                }
            }
            // It powered off, or crashed: `-no-reboot`.
            Err(RecvTimeoutError::Disconnected) => return Ok(account),
            Err(RecvTimeoutError::Timeout) => {
                say(
                    TASK,
                    &format!("{} took more than {patience:?}", kernel.release),
                );
                return Ok(account);
            }
        }
    }
}

/// A running QEMU: ended when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> Kernel {
        Kernel {
            release: "6.1.0".to_owned(),
            version: (6, 1),
            image: "vmlinuz".into(),
            modules: "modules".into(),
        }
    }

    const ALL: [&str; 4] = [
        "== kernel 6.1.0",
        "== passed wire::one 1.5",
        "== passed wire::two 2",
        "== done",
    ];

    fn check(console: &[&str]) -> Result<usize> {
        let mut account = Account::default();
        for line in console {
            account.read(line);
        }
        let plan = Plan {
            tests: vec!["wire::one".to_owned(), "wire::two".to_owned()],
            left_out: Vec::new(),
        };
        account.check(&plan, &kernel(), Path::new("/nonexistent"))
    }

    #[test]
    fn all_must_pass_and_the_guest_come_to_its_end() {
        assert_eq!(check(&ALL).unwrap(), 2);
        for missing in ALL {
            let console: Vec<_> = ALL.into_iter().filter(|line| *line != missing).collect();
            assert!(check(&console).is_err(), "without {missing}");
        }
    }

    #[test]
    fn a_test_that_failed_is_no_pass() {
        let mut console = ALL.to_vec();
        console[2] = "== failed wire::two 2";
        let error = check(&console).unwrap_err().to_string();
        assert!(error.contains("wire::two failed"), "{error}");
    }

    #[test]
    fn what_a_failed_test_said_is_shown_as_a_whole() {
        let mut account = Account::default();
        let console = ["== failed wire::two 2", "left: 1", "right: 2", "== said"];
        let shown: Vec<_> = console
            .iter()
            .filter_map(|line| account.read(line))
            .collect();
        let whole = "FAILED  wire::two (2 s), which said:\nleft: 1\nright: 2";
        assert_eq!(shown, [whole]);
        assert_eq!(account.read("noise"), None);
    }
}
