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
use super::plan::Job;
use super::source::Kernel;
use crate::command::{line, say};

/// How long a guest may take to boot and to power off, on a busy machine.
const BOOT: Duration = Duration::from_secs(240);
/// The last lines of the console that are shown where something failed.
const TAIL: usize = 60;

/// What a guest told.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// As its `uname -r` says it.
    pub(super) release: String,
    passed: BTreeSet<String>,
    failed: BTreeSet<String>,
    /// Binaries that ended well.
    ended: BTreeSet<String>,
    /// Whether it came to its end.
    done: bool,
}

impl Account {
    fn read(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["==", "kernel", release] => self.release = release.to_owned(),
            ["==", "done"] => self.done = true,
            ["==", "ended", binary, "0"] => {
                self.ended.insert(binary.to_owned());
            }
            ["test", name, "...", "ok"] => {
                self.passed.insert(name.to_owned());
            }
            ["test", name, "...", ..] => {
                self.failed.insert(name.to_owned());
            }
            _ => {}
        }
    }

    /// How many tests passed, if it is all that were to run, on the kernel that was to run.
    ///
    /// # Errors
    /// It is not: with what is missing, and where to read on.
    pub(super) fn check(&self, jobs: &[Job], kernel: &Kernel, log: &Path) -> Result<usize> {
        let mut wrong = Vec::new();
        if self.release != kernel.release {
            wrong.push(format!("{} did not boot", kernel.release));
        }
        for job in jobs.iter().filter(|job| !job.tests.is_empty()) {
            for test in &job.tests {
                if self.failed.contains(test) {
                    wrong.push(format!("{test} failed"));
                } else if !self.passed.contains(test) {
                    wrong.push(format!("{test} did not end"));
                }
            }
            if !self.ended.contains(&job.binary) && wrong.is_empty() {
                wrong.push(format!("{} failed", job.binary));
            }
        }
        if !self.done {
            wrong.push("the guest did not come to its end".to_owned());
        }
        if wrong.is_empty() {
            return Ok(self.passed.len());
        }
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        eprintln!("-- the end of {} --", log.display());
        for line in &lines[lines.len().saturating_sub(TAIL)..] {
            eprintln!("{line}");
        }
        eprintln!("--");
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
pub(super) fn run(kernel: &Kernel, initramfs: &Path, jobs: &[Job], log: &Path) -> Result<Account> {
    let mut qemu = Command::new("qemu-system-x86_64");
    // Emulated, also where there is a /dev/kvm: on a nested one guests hang or QEMU ends, and the
    // CPU that the verifier meets would be another on each machine.
    qemu.args([
        "-M",
        "q35,accel=tcg",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "3072",
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
    .arg("console=ttyS0 quiet panic=-1 rdinit=/init random.trust_cpu=on mitigations=off")
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
    let patience = BOOT + jobs.iter().map(Job::patience).sum::<Duration>();
    let deadline = Instant::now() + patience;
    let mut account = Account::default();
    loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                let line = String::from_utf8_lossy(&line);
                let line = line.trim_end();
                writeln!(log, "{line}")?;
                account.read(line);
                if line.starts_with("== ") || line.starts_with("test ") {
                    println!("kernel {}: {line}", kernel.release);
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

    fn check(console: &[&str]) -> Result<usize> {
        let mut account = Account::default();
        for line in console {
            account.read(line);
        }
        let job = Job {
            binary: "wire".to_owned(),
            tests: vec!["one".to_owned(), "two".to_owned()],
            left_out: Vec::new(),
        };
        account.check(&[job], &kernel(), Path::new("/nonexistent"))
    }

    #[test]
    fn all_must_pass_and_the_guest_come_to_its_end() {
        let all = [
            "== kernel 6.1.0",
            "test one ... ok",
            "test two ... ok",
            "== ended wire 0",
            "== done",
        ];
        assert_eq!(check(&all).unwrap(), 2);
        for missing in 0..all.len() {
            let mut console = all.to_vec();
            console.remove(missing);
            assert!(check(&console).is_err(), "without {}", all[missing]);
        }
    }

    #[test]
    fn a_test_that_failed_or_was_ignored_is_no_pass() {
        for said in ["FAILED", "ignored"] {
            let line = format!("test two ... {said}");
            let console = [
                "== kernel 6.1.0",
                "test one ... ok",
                &line,
                "== ended wire 0",
                "== done",
            ];
            let error = check(&console).unwrap_err().to_string();
            assert!(error.contains("two failed"), "{error}");
        }
    }
}
