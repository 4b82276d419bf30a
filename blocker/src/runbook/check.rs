//! Checks: what is tried, and what is expected.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use url::Url;

use super::expect::{Connect, Text};
use super::values::Endpoint;

/// Tries something, once or repeatedly, and compares the result with what is expected.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// What is tried.
    pub probe: Probe,
    /// The time limit of one try.
    pub timeout: Duration,
    /// How long to try again; `None`: there is one try.
    pub within: Option<Duration>,
    /// The pause between two tries.
    pub every: Duration,
}

/// What is tried, and what is expected.
#[derive(Debug, Clone, PartialEq)]
pub enum Probe {
    /// An HTTP request.
    Http(Http),
    /// A TCP connection.
    Tcp(Tcp),
    /// A command.
    Command(Command),
}

/// A GET request and the expected answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    /// The URL.
    pub url: Url,
    /// The expected statuses. Not empty.
    pub status: Vec<u16>,
    /// The expected body.
    pub body: Option<Text>,
    /// Headers of the request.
    pub headers: BTreeMap<String, String>,
    /// Whether any certificate is accepted.
    pub insecure: bool,
}

/// A connection and the expected outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct Tcp {
    /// The other end.
    pub to: Endpoint,
    /// The expected outcome.
    pub expect: Connect,
}

/// A command and its expected result.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The program and its arguments. Not empty.
    pub words: Vec<String>,
    /// The line as it is written in the file, if it is for the shell.
    pub line: Option<String>,
    /// The expected exit code.
    pub exit: u8,
    /// The expected standard output.
    pub output: Option<Text>,
}

impl Probe {
    /// What is expected, in words.
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
    /// How an answer differs from what is expected; `None`: it does not.
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
    /// How a result differs from what is expected; `None`: it does not. `code` is the exit code, unless
    /// a signal ended the command.
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
