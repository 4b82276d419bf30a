//! `blockctl top` in a real terminal, tmux: what its screen shows, and that it is restored at the end.

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::hosts::{Namespace, Pair, poll};

use crate::blocking_pair::{BlockingPair, PATIENCE, udp};

/// A terminal of its own, with a shell in it; gone when dropped.
struct Terminal {
    socket: tempfile::TempDir,
}

impl Terminal {
    fn open(host: &Namespace, width: u16, height: u16) -> Result<Self> {
        let socket = tempfile::tempdir()?;
        let terminal = Self { socket };
        let (width, height) = (width.to_string(), height.to_string());
        let mut command = terminal.tmux();
        command
            .args([
                "-f",
                "/dev/null",
                "new-session",
                "-d",
                "-x",
                &width,
                "-y",
                &height,
            ])
            .args(["env", "PS1=$ ", "TERM=screen-256color", "sh"]);
        let status = host
            .enter(|| command.status())?
            .context("`tmux` cannot be started")?;
        ensure!(status.success(), "tmux failed");
        terminal.wait("$")?;
        Ok(terminal)
    }

    fn tmux(&self) -> Command {
        let mut command = Command::new("tmux");
        command
            .env_remove("TMUX")
            .env("LC_ALL", "C.UTF-8")
            .arg("-S")
            .arg(self.socket.path().join("tmux"))
            .stdin(Stdio::null());
        command
    }

    /// Types words, each as tmux names keys, and text as it is.
    fn keys(&self, keys: &[&str]) -> Result<()> {
        let status = self.tmux().arg("send-keys").args(keys).status()?;
        ensure!(status.success(), "tmux send-keys failed");
        Ok(())
    }

    /// What is on the screen; with `escapes`, colours too.
    fn screen(&self, escapes: bool) -> Result<String> {
        let mut command = self.tmux();
        command.args(["capture-pane", "-p"]);
        if escapes {
            command.arg("-e");
        }
        Ok(String::from_utf8(command.output()?.stdout)?)
    }

    /// The screen, once it shows something.
    fn wait(&self, what: &str) -> Result<String> {
        let seen = poll(&format!("{what:?} on the screen"), PATIENCE, || {
            self.screen(false)
                .ok()
                .filter(|screen| screen.contains(what))
        });
        seen.with_context(|| self.screen(false).unwrap_or_default())
    }

    /// Something of tmux's own, such as whether the other screen is shown.
    fn ask(&self, format: &str) -> Result<String> {
        let output = self
            .tmux()
            .args(["display-message", "-p", format])
            .output()?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// That the shell is back, its screen and its line as they were.
    fn assert_restored(&self, exit: u8) -> Result<()> {
        // What is typed while it ends is its own.
        poll("the shell", PATIENCE, || {
            (self.ask("#{pane_current_command}").ok()? == "sh").then_some(())
        })?;
        // The quotes keep what is typed apart from what is said.
        self.keys(&["echo \"ex\"it=$?", "Enter"])?;
        self.wait(&format!("exit={exit}"))?;
        assert_eq!(
            self.ask("#{alternate_on} #{cursor_flag}")?,
            "0 1",
            "screen and cursor"
        );
        // A raw terminal would not turn a carriage return into a newline, nor echo.
        self.keys(&["echo and\" on\"", "Enter"])?;
        self.wait("and on\n")?;
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Best effort: nothing outlives it but a socket in a directory that goes.
        let _ = self.tmux().arg("kill-server").status();
    }
}

/// The command, as a shell takes it, with a flag or a variable.
fn top(hosts: &BlockingPair, with: &str) -> String {
    let blockctl = env!("CARGO_BIN_EXE_blockctl");
    let (variable, flags) = if with.contains('=') {
        (with, "")
    } else {
        ("", with)
    };
    format!(
        "{variable} {blockctl} --socket {} {flags} top -i 200ms",
        hosts.daemon.socket().display()
    )
}

#[test]
fn every_way_to_quit_leaves_the_terminal_as_it_was() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    hosts.add(&[&Pair::B.to_string(), "--mode", "drop", "--id", "dev01"])?;
    let terminal = Terminal::open(&hosts.pair.a, 80, 24)?;
    for key in ["q", "Escape", "C-c"] {
        terminal.keys(&[&top(&hosts, ""), "Enter"])?;
        terminal.wait("s sort (pkt/s)")?;
        assert_eq!(terminal.ask("#{alternate_on}")?, "1");
        terminal.keys(&["s"])?;
        terminal.wait("s sort (bit/s)")?;
        terminal.keys(&[key])?;
        terminal.assert_restored(0)?;
        terminal.keys(&["clear", "Enter"])?;
    }
    Ok(())
}

#[test]
fn a_daemon_that_vanishes_ends_it_with_a_message() -> Result<()> {
    let mut hosts = BlockingPair::new("")?;
    let terminal = Terminal::open(&hosts.pair.a, 80, 24)?;
    terminal.keys(&[&top(&hosts, ""), "Enter"])?;
    terminal.wait("nothing is blocked")?;
    hosts.daemon.stop()?;
    terminal.wait("start the daemon")?;
    terminal.assert_restored(3)
}

#[test]
fn it_shows_rates_in_either_width_and_colours_only_if_wanted() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    hosts.add(&[&Pair::B.to_string(), "--mode", "drop", "--id", "dev01"])?;
    let socket = udp(&hosts.pair.b, Pair::B, Some((Pair::A, 9).into()))?;
    for (width, flags, coloured, wide) in [
        (80, "", true, false),
        (200, "", true, true),
        (80, "--color never", false, false),
        (200, "NO_COLOR=1", false, true),
    ] {
        let terminal = Terminal::open(&hosts.pair.a, width, 24)?;
        terminal.keys(&["clear; ", &top(&hosts, flags), "Enter"])?;
        terminal.wait("RULE")?;
        let screen = thread::scope(|scope| {
            let sending = scope.spawn(|| {
                for _ in 0..1_000 {
                    socket.send(&[0; 100])?;
                    thread::sleep(Duration::from_millis(1));
                }
                Ok::<_, std::io::Error>(())
            });
            // A bar in the rule's own line: it had packets.
            let screen = poll("a rate", PATIENCE, || {
                let screen = terminal.screen(false).ok()?;
                let line = screen.lines().find(|line| line.starts_with("dev01"))?;
                line.contains('█').then_some(screen.clone())
            });
            sending.join().expect("the sender ends")?;
            screen
        })?;
        assert_eq!(screen.contains("IN PKT/S"), wide, "{screen}");
        let painted = terminal.screen(true)?;
        let colour = painted.contains("[38;5;");
        assert_eq!(colour, coloured, "{painted:?}");
        terminal.keys(&["q"])?;
        terminal.assert_restored(0)?;
    }
    Ok(())
}

#[test]
fn without_a_terminal_it_says_so() -> Result<()> {
    let hosts = BlockingPair::new("")?;
    let output = hosts.daemon.blockctl(&["top"])?;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(
        output.stderr.contains("needs a terminal") && output.stderr.contains("blockctl stats"),
        "{output:?}"
    );
    Ok(())
}
