//! Errors of commands: their messages and exit codes.

use blocker::api::client::{Absence, ClientError};
use blocker::rule::RuleId;
use blocker::runbook::RunbookError;
use blocker::wire::Code;

use crate::input::Flaws;
use crate::render::printable;

/// The exit codes, which are a contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Usage or invalid input.
    Invalid = 2,
    /// The daemon is not reachable.
    Unreachable = 3,
    /// No such rule.
    Unknown = 4,
    /// Refused to protect the caller.
    Refused = 5,
    /// In force, but some established flows were not killed, or the block ended early.
    Partly = 6,
    /// The command of `during` could not be started.
    NotStarted = 127,
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Invalid input; no request was sent.
    Input(Flaws),
    /// Arguments that name no rule; nothing was changed.
    Unknown(Vec<String>),
    /// The request failed, or the daemon refused it.
    Client(ClientError),
    /// As `Client`, after some of several rules were lifted already.
    HalfWay {
        /// The rules that are gone or narrowed.
        done: Vec<RuleId>,
        /// What went wrong with the next one.
        error: ClientError,
    },
    /// An error of the fleet's etcd or hosts.
    #[cfg(feature = "fleet")]
    Fleet {
        /// What went wrong.
        message: String,
        /// The exit code.
        exit: Exit,
    },
    /// The daemon exited while its events were watched.
    Gone,
    /// A runbook cannot be read; nothing was done.
    Runbook(RunbookError),
    /// The command of `during` could not be started; the block is lifted.
    Command {
        /// The program.
        program: String,
        /// Why it could not be started.
        error: std::io::Error,
    },
    /// The result could not be written; the command itself is done.
    Output(String),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

#[cfg(feature = "fleet")]
impl From<blocker::fleet::client::FleetError> for Failure {
    fn from(error: blocker::fleet::client::FleetError) -> Self {
        use blocker::fleet::client::FleetError;
        use blocker::fleet::link::LinkError;
        let exit = match &error {
            FleetError::Unreachable(errors) => {
                let file = |error: &LinkError| matches!(error, LinkError::File { .. });
                if errors.iter().any(file) {
                    Exit::Failed
                } else {
                    Exit::Unreachable
                }
            }
            FleetError::Value(_) | FleetError::Taken(_) => Exit::Invalid,
            FleetError::Link(_) => Exit::Failed,
        };
        let mut message = match exit {
            Exit::Unreachable => format!("no member of the fleet's etcd is reachable:\n{error}"),
            _ => error.to_string(),
        };
        if let FleetError::Link(error) = &error
            && error.is_denied()
        {
            message += "\netcd denies this user the request: docs/fleet.md has the roles";
        }
        Self::Fleet { message, exit }
    }
}

impl From<Flaws> for Failure {
    fn from(flaws: Flaws) -> Self {
        Self::Input(flaws)
    }
}

impl Failure {
    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Input(_) | Self::Runbook(_) => Exit::Invalid,
            Self::Unknown(_) => Exit::Unknown,
            Self::Gone => Exit::Unreachable,
            #[cfg(feature = "fleet")]
            Self::Fleet { exit, .. } => *exit,
            Self::Client(error) => exit_of(error),
            // Every other code but 6 says that nothing was changed.
            Self::HalfWay { .. } | Self::Output(_) => Exit::Failed,
            Self::Command { .. } => Exit::NotStarted,
        }
    }

    /// The messages; further lines of a message are hints.
    pub(crate) fn messages(&self) -> Vec<String> {
        match self {
            Self::Input(flaws) => flaws.clone(),
            Self::Unknown(names) => names
                .iter()
                .map(|name| format!("no rule has the id or the target {name}: nothing was changed"))
                .collect(),
            Self::Client(error) => vec![message(error)],
            Self::Runbook(error) => vec![error.to_string()],
            Self::Command { program, error } => vec![format!(
                "{program} cannot be started: {error}: the block is lifted"
            )],
            Self::Gone => vec![
                "the daemon is gone: there are no more events\nif it was stopped, on_stop says whether its rules stay in force; if it was killed, they do"
                    .to_owned(),
            ],
            Self::HalfWay { done, error } => {
                let done: Vec<_> = done.iter().map(RuleId::as_str).collect();
                vec![
                    message(error),
                    format!("done before that: {}", done.join(", ")),
                ]
            }
            Self::Output(error) => vec![error.clone()],
            #[cfg(feature = "fleet")]
            Self::Fleet { message, .. } => vec![message.clone()],
        }
    }
}

fn exit_of(error: &ClientError) -> Exit {
    match error {
        ClientError::Unreachable { .. } | ClientError::NotBlocker { .. } => Exit::Unreachable,
        ClientError::TooLarge { .. } => Exit::Invalid,
        ClientError::Lost { .. }
        | ClientError::Timeout { .. }
        | ClientError::Garbled { .. }
        | ClientError::Unwritable { .. } => Exit::Failed,
        ClientError::Problem(problem) => match problem.code {
            Code::InvalidInput | Code::LimitExceeded | Code::Conflict => Exit::Invalid,
            Code::Refused | Code::Protected => Exit::Refused,
            Code::NotFound => Exit::Unknown,
            Code::NoSuchEndpoint | Code::Forbidden | Code::Internal | Code::Busy => Exit::Failed,
        },
    }
}

fn message(error: &ClientError) -> String {
    let text: Vec<_> = error.to_string().lines().map(printable).collect();
    let mut text = text.join("\n");
    if let Some(hint) = hint(error) {
        text.push('\n');
        text += &hint;
    }
    text
}

/// How to solve the problem, if the error itself does not say.
fn hint(error: &ClientError) -> Option<String> {
    const START: &str = "start the daemon: systemctl start blocker, or blocker run --config /etc/blocker/blocker.yaml\nif it listens elsewhere: --socket PATH, or BLOCKER_SOCKET";
    const NAME: &str = "name the daemon's control socket: --socket PATH, or BLOCKER_SOCKET";
    const LOOK: &str = "whether the change was made is not known: see blockctl list";
    Some(match error {
        ClientError::Unreachable { why, .. } => match why {
            Absence::NoSocket | Absence::Stale => START.to_owned(),
            Absence::NotASocket => NAME.to_owned(),
            Absence::Denied {
                group,
                group_may: true,
                ..
            } => format!(
                "run as root, or join group {group}: usermod -aG {group} USER, then log in again"
            ),
            Absence::Denied { .. } => "run as root".to_owned(),
            Absence::Other => return None,
        },
        ClientError::NotBlocker { .. } => NAME.to_owned(),
        ClientError::Lost { request, .. }
        | ClientError::Timeout { request }
        | ClientError::Garbled { request, .. }
            if !request.starts_with("GET")
                && !request.contains("dry_run=true")
                && request != "POST /v1/explain" =>
        {
            LOOK.to_owned()
        }
        ClientError::Problem(problem)
            if problem.code == Code::Refused && !problem.detail.contains("--force") =>
        {
            "--force overrides this".to_owned()
        }
        _ => return None,
    })
}
