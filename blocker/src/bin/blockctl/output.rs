//! Writes results to standard output and messages to standard error, with colours if they are enabled.

use std::io::{self, Write as _};

use serde::Serialize;

use crate::args::{Color, Output};
use crate::failure::Failure;
use crate::render::{BAD, WARN, styled};

/// Decides once for the whole process whether colours are shown.
pub(crate) fn set_color(color: Color) {
    match color {
        Color::Auto => anstream::ColorChoice::Auto,
        Color::Always => anstream::ColorChoice::Always,
        Color::Never => anstream::ColorChoice::Never,
    }
    .write_global();
    // Tables are always coloured, and anstream removes the colours. Without this call crossterm would
    // obey NO_COLOR even if --color always overrides it.
    crossterm::style::force_color_output(true);
}

/// Whether standard output gets colours; for `auto` that depends on the terminal and the environment.
pub(crate) fn coloured() -> bool {
    anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never
}

/// The terminal's width in characters; `None` if standard output is not a terminal.
pub(crate) fn width() -> Option<u16> {
    comfy_table::Table::new().width().filter(|width| *width > 0)
}

/// The API's answer as JSON or YAML, always indented, whether or not standard output is a terminal.
pub(crate) fn exact<T: Serialize>(answer: &T, form: Output) -> Result<String, Failure> {
    let cannot = |error: String| Failure::Output(format!("cannot write the result: {error}"));
    if form == Output::Yaml {
        serde_yaml::to_string(answer).map_err(|e| cannot(e.to_string()))
    } else {
        let mut text = serde_json::to_string_pretty(answer).map_err(|e| cannot(e.to_string()))?;
        text.push('\n');
        Ok(text)
    }
}

/// An answer as JSON in one line, for streams of them.
pub(crate) fn line<T: Serialize>(answer: &T) -> Result<String, Failure> {
    serde_json::to_string(answer)
        .map(|text| text + "\n")
        .map_err(|error| Failure::Output(format!("cannot write the result: {error}")))
}

/// Writes a result. Returns false if the reader has closed the pipe (`| head`), which is not an error.
pub(crate) fn print(text: &str) -> Result<bool, Failure> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Output(format!(
            "cannot write to standard output: {error}"
        ))),
    }
}

/// Whether the other end of standard output is still open. Detects a closed pipe before a write.
pub(crate) fn is_read() -> bool {
    let mut stdout = libc::pollfd {
        fd: libc::STDOUT_FILENO,
        events: 0,
        revents: 0,
    };
    // SAFETY: one `pollfd`, which outlives the call; a timeout of 0 returns at once.
    let found = unsafe { libc::poll(&raw mut stdout, 1, 0) };
    found <= 0 || stdout.revents & libc::POLLERR == 0
}

/// Prints an error. Further lines are indented.
pub(crate) fn error(message: &str) {
    say(&styled(BAD, "blockctl: "), message);
}

/// Prints a note about progress.
pub(crate) fn note(message: &str) {
    say("blockctl: ", message);
}

/// Prints a warning.
pub(crate) fn warning(message: &str) {
    say(&styled(WARN, "blockctl: "), message);
}

fn say(label: &str, message: &str) {
    let message = message.trim_end().replace('\n', "\n  ");
    // If standard error is closed, only the exit code remains.
    let _ = writeln!(anstream::stderr(), "{label}{message}");
}

#[cfg(test)]
mod tests {
    use blocker::rule::RuleSpec;

    use super::*;

    #[test]
    fn yaml_keeps_text_that_looks_like_something_else() {
        for comment in [
            "no",
            "~",
            "1e3",
            "0x10",
            "2026-11-23",
            "# a: b",
            "- x",
            " y ",
            "\"'",
            "ü 漢",
        ] {
            let spec = RuleSpec {
                id: Some("1e3".parse().unwrap()),
                targets: vec!["2001:db8::/32".parse().unwrap()],
                comment: Some(comment.to_owned()),
                ..RuleSpec::default()
            };
            let yaml = exact(&spec, Output::Yaml).unwrap();
            let read: RuleSpec = serde_yaml::from_str(&yaml).unwrap();
            assert_eq!(read, spec, "{yaml}");
            let read: serde_json::Value = serde_yaml::from_str(&yaml).unwrap();
            assert_eq!(read, serde_json::to_value(&spec).unwrap(), "{yaml}");
        }
    }
}
