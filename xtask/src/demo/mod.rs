//! `cargo xtask demo`: the problem's table, played with iptables and then with blocker.
//!
//! In network namespaces of its own, with real connections; leaves nothing behind, interrupted or
//! not.

mod play;
mod rows;
mod table;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::command::{self, cargo, run, say};
use crate::{build, lab, setup};
pub(crate) use play::programs;
use rows::ROWS;

const TASK: &str = "demo";

/// Sets up, builds, and plays all rows.
///
/// `programs` is where the programs are, if they are built already: so is it called as root by a
/// user's own call.
///
/// # Errors
/// The set-up is impossible, a row cannot be played, or blocker does not keep what it promises.
pub(crate) fn demo(programs: Option<PathBuf>) -> Result<()> {
    let programs = match programs {
        Some(programs) => programs,
        None => {
            setup::install(setup::Purpose::Demo)?;
            run(
                TASK,
                cargo().args(["build", "--package", "blocker", "--bins"]),
            )?;
            build::target_directory().join("debug")
        }
    };
    if !command::is_root() {
        return again_as_root(&programs);
    }
    clean_up_on_signals()?;
    let result = play_all(&programs);
    // If a signal came, its thread is at this, and ends the process.
    lab::clean_up();
    result
}

/// Namespaces take root: the building was done by the user. Ends as the other does, which said why.
fn again_as_root(programs: &Path) -> Result<()> {
    let own = std::env::current_exe().context("this program's own path is unknown")?;
    let own = own.to_str().context("this program's path is no text")?;
    let sudo = command::sudo().context("run this as root: network namespaces need it")?;
    let mut again = command::elevated(sudo.as_deref(), own);
    again.arg(TASK).arg("--programs").arg(programs);
    say(TASK, &command::line(&again));
    let status = again.status().context("sudo cannot be started")?;
    std::process::exit(status.code().unwrap_or(1))
}

/// Undoes what the laboratory made when a signal ends the process.
///
/// # Errors
/// Signals cannot be watched.
pub(crate) fn clean_up_on_signals() -> Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).context("signals cannot be watched")?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            lab::clean_up();
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
        let progress = format!("playing {} of {}: {}", index + 1, ROWS.len(), row.title);
        let observed = {
            let _progress = Progress::show(&progress);
            play::play(row, &programs).with_context(|| row.title.to_owned())?
        };
        anstream::print!("{}", table::row(row, &observed));
        broken += table::broken(row, &observed).len();
    }
    println!();
    if broken > 0 {
        bail!("blocker did not keep {broken} of its promises");
    }
    say(TASK, "blocker kept every promise; nothing is left behind");
    Ok(())
}

/// A line that is there while something is at work, on a terminal only.
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
