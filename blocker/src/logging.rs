//! Where the log goes and in what form: lines for people, JSON for collectors, or journald's own
//! fields.
//!
//! Which events are logged is not decided here.

use std::ffi::OsStr;
use std::io;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{FromEnvError, LevelFilter, ParseError};
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

/// Forms of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// journald where standard error goes there (as under systemd), else text.
    Auto,
    /// A line for people on standard error.
    Text,
    /// A JSON object a line on standard error.
    Json,
    /// To journald, each field as a field of its own: BLOCKER_UID, BLOCKER_RULE.
    Journald,
}

/// Why there can be no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `RUST_LOG` is wrong.
    #[error("RUST_LOG: {0}")]
    Filter(#[from] FromEnvError),
    /// A directive is wrong.
    #[error("the log's filter: {0}")]
    Directive(#[from] ParseError),
    /// journald was asked for and is not there.
    #[error("the log cannot go to journald: {0}: use --log-format text or json")]
    Journald(io::Error),
    /// There is one already.
    #[error("{0}")]
    Twice(#[from] TryInitError),
}

/// Starts the log of this process: from `level` on, unless `RUST_LOG` says otherwise.
///
/// # Errors
/// See [`LogError`].
pub fn start(level: LevelFilter, format: Format) -> Result<(), LogError> {
    let filter = EnvFilter::builder()
        .with_default_directive(level.into())
        .from_env()?
        // It warns of messages whose receiver is gone, which happens at every stop.
        .add_directive("netlink_proto=error".parse()?);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = layer().with_writer(io::stderr).with_target(false);
    let format = match format {
        Format::Auto if is_journal(std::env::var_os("JOURNAL_STREAM").as_deref(), stderr()) => {
            Format::Journald
        }
        Format::Auto => Format::Text,
        named => named,
    };
    match format {
        Format::Auto | Format::Text => {
            let lines = lines.with_ansi(io::stderr().is_terminal());
            registry.with(lines).try_init()?;
        }
        Format::Json => {
            let lines = lines.json().flatten_event(true);
            let lines = lines.with_current_span(false).with_span_list(false);
            registry.with(lines).try_init()?;
        }
        Format::Journald => {
            let journald = tracing_journald::layer().map_err(LogError::Journald)?;
            let journald = journald.with_syslog_identifier("blocker".to_owned());
            let journald = journald.with_field_prefix(Some("BLOCKER".to_owned()));
            registry.with(journald).try_init()?;
        }
    }
    Ok(())
}

/// The device and the inode of standard error.
fn stderr() -> Option<(u64, u64)> {
    let status = nix::sys::stat::fstat(io::stderr().as_fd()).ok()?;
    Some((status.st_dev, status.st_ino))
}

/// Whether a stream is the one that systemd connected to the journal: `JOURNAL_STREAM` names its
/// device and inode, which a stream that was redirected since does not have (systemd.exec(5)).
fn is_journal(journal: Option<&OsStr>, stream: Option<(u64, u64)>) -> bool {
    let named = journal.and_then(OsStr::to_str).and_then(|journal| {
        let (device, inode) = journal.split_once(':')?;
        Some((device.parse().ok()?, inode.parse().ok()?))
    });
    named.is_some() && named == stream
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        let journal = |value: &str, stream| is_journal(Some(OsStr::new(value)), stream);
        assert!(journal("8:4711", Some((8, 4711))));
        assert!(!journal("8:4711", Some((8, 4712))), "redirected to a file");
        assert!(!journal("9:4711", Some((8, 4711))));
        assert!(!journal("8:4711", None));
        for nonsense in ["", "8", "8:", ":4711", "8:4711:1", "a:b"] {
            assert!(!journal(nonsense, Some((8, 4711))), "{nonsense}");
        }
        assert!(!is_journal(None, Some((8, 4711))), "no systemd");
        assert!(!is_journal(None, None));
    }

    #[test]
    fn standard_error_is_something() {
        assert!(stderr().is_some());
    }
}
