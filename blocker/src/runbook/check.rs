//! Checks: what is tried, and when it is as expected.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use url::Url;

use super::expect::{Connect, Text};
use super::values::Endpoint;

/// Looks whether something is as it should be, perhaps again and again.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// What is tried.
    pub probe: Probe,
    /// How long one try may take.
    pub timeout: Duration,
    /// How long it is tried again; `None`: there is one try.
    pub within: Option<Duration>,
    /// How long after a try the next one comes.
    pub every: Duration,
}

/// What is tried, and what must come of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Probe {
    /// A request to a server.
    Http(Http),
    /// A connection.
    Tcp(Tcp),
    /// A command.
    Command(Command),
}

/// A GET, and what its answer must be.
#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    /// Whom to ask, and for what.
    pub url: Url,
    /// The status is one of these. Not empty.
    pub status: Vec<u16>,
    /// What the body must be.
    pub body: Option<Text>,
    /// Headers of the request.
    pub headers: BTreeMap<String, String>,
    /// Whether any certificate will do.
    pub insecure: bool,
}

/// A connection, and what must become of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tcp {
    /// The other end.
    pub to: Endpoint,
    /// What must become of it.
    pub expect: Connect,
}

/// A command, and how it must end.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The program and its arguments. Not empty.
    pub words: Vec<String>,
    /// As it stands in the file, if it is a line for the shell.
    pub line: Option<String>,
    /// The exit code that it must have.
    pub exit: u8,
    /// What it must write to standard output.
    pub output: Option<Text>,
}

impl Probe {
    /// What must come of it, in words.
    #[must_use]
    pub fn expected(&self) -> String {
        let with = |first: String, text: &Option<Text>, what: &str| match text {
            Some(text) => format!("{first} and {what} that {text}"),
            None => first,
        };
        match self {
            Self::Http(http) => {
                let codes: Vec<String> = http.status.iter().map(ToString::to_string).collect();
                let status = format!("status {}", codes.join(" or "));
                with(status, &http.body, "a body")
            }
            Self::Tcp(tcp) => tcp.expect.to_string(),
            Self::Command(command) => {
                let exit = format!("exit code {}", command.exit);
                with(exit, &command.output, "output")
            }
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(http) => write!(f, "GET {}", http.url),
            Self::Tcp(tcp) => write!(f, "connect to {}", tcp.to),
            Self::Command(command) => match &command.line {
                Some(line) => f.write_str(line.trim()),
                None => f.write_str(&command.words.join(" ")),
            },
        }
    }
}

impl Http {
    /// What of an answer is not as expected; `None`: all is.
    #[must_use]
    pub fn unmet(&self, status: u16, body: &str) -> Option<String> {
        if !self.status.contains(&status) {
            return Some(format!("status {status}"));
        }
        let unmet = self.body.as_ref()?.unmet(body)?;
        Some(format!("status {status} and a body that {unmet}"))
    }
}

impl Command {
    /// What of an end is not as expected; `None`: all is. `code` is the exit code, if the command
    /// was not ended by a signal.
    #[must_use]
    pub fn unmet(&self, code: Option<i32>, output: &str) -> Option<String> {
        match code {
            Some(code) if code == i32::from(self.exit) => {
                let unmet = self.output.as_ref()?.unmet(output)?;
                Some(format!("exit code {code} and output that {unmet}"))
            }
            Some(code) => Some(format!("exit code {code}")),
            None => Some("an end by a signal".to_owned()),
        }
    }
}
