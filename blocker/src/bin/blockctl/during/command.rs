//! The command of `during`.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use blocker::rule::RuleId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep_until};

use crate::failure::Failure;
use crate::signals::Signals;

/// How long the command has to end after Ctrl-C, which the terminal sends it too, before SIGINT is passed
/// on.
const BY_ITSELF: Duration = Duration::from_secs(2);
/// How long the command has to end after a signal was passed on, before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// How a command ended.
pub(crate) enum Ended {
    Code(u8),
    Signal(i32),
}

/// A command under way.
pub(crate) struct Running {
    child: Child,
    /// The signal that it is sent next, and when.
    due: Option<(Instant, Signal)>,
}

/// Starts a command, with the rule's id in `BLOCKER_RULE`.
pub(crate) fn start(command: &[OsString], rule: &RuleId) -> Result<Running, Failure> {
    let (program, arguments) = command.split_first().ok_or(Failure::Gone)?;
    let child = Command::new(program)
        .args(arguments)
        .env("BLOCKER_RULE", rule.as_str())
        .spawn()
        .map_err(|error| Failure::Command {
            program: program.to_string_lossy().into_owned(),
            error,
        })?;
    Ok(Running { child, due: None })
}

impl Running {
    /// Waits for the end, and passes signals on meanwhile. Cancel-safe.
    pub(crate) async fn end(&mut self, signals: &mut Signals) -> Ended {
        loop {
            let due = self.due;
            let due_at = due.map_or_else(|| Instant::now() + GRACE, |(at, _)| at);
            tokio::select! {
                status = self.child.wait() => return status.map_or(Ended::Code(1), ended),
                signal = signals.next() => {
                    if signal == Signal::SIGINT {
                        self.due = Some((Instant::now() + BY_ITSELF, signal));
                    } else {
                        self.send(signal);
                    }
                }
                () = sleep_until(due_at), if due.is_some() => {
                    if let Some((_, signal)) = due {
                        self.send(signal);
                    }
                }
            }
        }
    }

    fn send(&mut self, signal: Signal) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid {
            // Fails if the command has ended, which the caller is waiting for.
            let _ = kill(Pid::from_raw(pid), signal);
        }
        self.due = Some((Instant::now() + GRACE, Signal::SIGKILL));
    }
}

fn ended(status: ExitStatus) -> Ended {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ended::Code(u8::try_from(code).unwrap_or(1)),
        (None, signal) => Ended::Signal(signal.unwrap_or(0)),
    }
}
