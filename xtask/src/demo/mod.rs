//! `cargo xtask demo`: ways to cut a host off, first with iptables, then with blocker.
//!
//! Uses real connections in network namespaces, which it removes even if it is interrupted.

mod play;
mod rows;
mod table;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::command::{self, say};
use crate::{build, hosts, setup};
pub(crate) use play::programs;
use rows::ROWS;

const TASK: &str = "demo";

/// Sets up, builds, and runs all rows.
///
/// `programs` is the programs' directory if they are built already: a user's process builds them
/// and passes it to a second process, which runs as root.
///
/// # Errors
/// The set-up or a row fails, or blocker breaks a promise.
pub(crate) fn demo(programs: Option<PathBuf>) -> Result<()> {
    let programs = match programs {
        Some(programs) => programs,
        None => {
            setup::install(setup::Purpose::Demo)?;
            build::dev()?
        }
    };
    if !command::is_root() {
        return again_as_root(&programs);
    }
    clean_up_on_signals()?;
    let result = play_all(&programs);
    // After a signal its thread does the same, and ends the process.
    hosts::clean_up();
    result
}

/// Runs the demonstration as root, which namespaces need, and exits with its status.
fn again_as_root(programs: &Path) -> Result<()> {
    let own = std::env::current_exe().context("this program's own path is unknown")?;
    let own = own.to_str().context("this program's path is not UTF-8")?;
    let sudo = command::sudo().context("run this as root: network namespaces need it")?;
    let mut again = command::elevated(sudo.as_deref(), own);
    again.arg(TASK).arg("--programs").arg(programs);
    say(TASK, &command::line(&again));
    let status = again.status().context("sudo cannot be started")?;
    std::process::exit(status.code().unwrap_or(1))
}

/// Removes the laboratory's namespaces when a signal ends the process.
///
/// # Errors
/// Signals cannot be watched.
pub(crate) fn clean_up_on_signals() -> Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).context("signals cannot be watched")?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            hosts::clean_up();
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

fn play_all(directory: &Path) -> Result<()> {
    let programs = programs(directory)?;
    anstream::println!("\n{}", table::heading().trim_end());
    let mut broken = 0;
    for (index, row) in ROWS.iter().enumerate() {
        let progress = format!("running {} of {}: {}", index + 1, ROWS.len(), row.title);
        let observed = {
            let _progress = Progress::show(&progress);
            play::play(row, &programs).with_context(|| row.title.to_owned())?
        };
        anstream::print!("{}", table::row(row, &observed));
        broken += table::broken(row, &observed).len();
    }
    println!();
    if broken > 0 {
        bail!("blocker broke {broken} of its promises");
    }
    say(TASK, "blocker kept every promise; nothing is left behind");
    Ok(())
}

/// A progress line, on a terminal only; removed when dropped.
struct Progress;

impl Progress {
    fn show(what: &str) -> Option<Self> {
        std::io::stderr().is_terminal().then(|| {
            eprint!("\r\x1b[K{what} …");
            let _ = std::io::stderr().flush();
            Self
        })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        eprint!("\r\x1b[K");
    }
}
