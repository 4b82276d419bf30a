//! One attempt of a check: a request, a connection, or a command.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use blocker::runbook::{Command, Connect, Http, Probe, Tcp};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use reqwest::redirect::Policy;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::failure::Failure;

/// The part of a body, or of a command's output, that is examined, in bytes.
const LOOKED_AT: u64 = 1 << 20;

/// The result of an attempt.
pub(super) enum Tried {
    /// What is expected.
    Met(String),
    /// Something else.
    Unmet(String),
    /// The attempt is not possible, now or later.
    Impossible(String),
}

/// The environment of a run's attempts.
pub(super) struct Surroundings {
    /// The directory that its commands share.
    directory: TempDir,
    /// The daemon's socket.
    socket: PathBuf,
}

impl Surroundings {
    pub(super) fn new(socket: &Path) -> Result<Self, Failure> {
        // Fails if a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::Builder::new().prefix("blockctl-run-").tempdir();
        let directory = directory.map_err(|error| {
            Failure::Output(format!("the run's directory cannot be made: {error}"))
        })?;
        Ok(Self {
            directory,
            socket: std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned()),
        })
    }
}

/// Makes one attempt, for at most `limit`.
pub(super) async fn once(probe: &Probe, limit: Duration, around: &Surroundings) -> Tried {
    match probe {
        Probe::Http(http) => get(http, limit).await,
        Probe::Tcp(tcp) => connect(tcp, limit).await,
        Probe::Command(command) => run(command, limit, around).await,
    }
}

async fn get(http: &Http, limit: Duration) -> Tried {
    // A new connection for each attempt, without a proxy: the check is about the path to the host.
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .timeout(limit)
        .tls_danger_accept_invalid_certs(http.insecure)
        .user_agent(concat!("blockctl/", env!("CARGO_PKG_VERSION")))
        .build();
    let client = match client {
        Ok(client) => client,
        Err(error) => return Tried::Impossible(root(&error)),
    };
    let mut request = client.get(http.url.clone());
    for (name, value) in &http.headers {
        request = request.header(name, value);
    }
    let answer = async {
        let mut answer = request.send().await?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() as u64 >= LOOKED_AT {
                break;
            }
        }
        Ok::<_, reqwest::Error>((answer.status().as_u16(), body))
    };
    match answer.await {
        Ok((status, body)) => match http.unmet(status, &String::from_utf8_lossy(&body)) {
            None => Tried::Met(format!("status {status}")),
            Some(unmet) => Tried::Unmet(unmet),
        },
        Err(error) if error.is_timeout() => Tried::Unmet(format!("no answer within {limit:.1?}")),
        Err(error) => Tried::Unmet(format!("no answer: {}", root(&error))),
    }
}

/// The root cause of an error: the errors above it only say what was tried.
fn root(error: &dyn Error) -> String {
    let mut bottom = error;
    while let Some(deeper) = bottom.source() {
        bottom = deeper;
    }
    bottom.to_string()
}

async fn connect(tcp: &Tcp, limit: Duration) -> Tried {
    let to = (tcp.to.host.as_str(), tcp.to.port);
    let (became, found) = match timeout(limit, TcpStream::connect(to)).await {
        Ok(Ok(_)) => (Some(Connect::Connects), "it connects".to_owned()),
        Ok(Err(error)) => (became(&error), error.to_string()),
        Err(_) => (
            Some(Connect::TimesOut),
            format!("no answer within {limit:.1?}"),
        ),
    };
    match became == Some(tcp.expect) {
        true => Tried::Met(found),
        false => Tried::Unmet(found),
    }
}

fn became(error: &io::Error) -> Option<Connect> {
    Some(match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Connect::Refused,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Connect::Unreachable,
        io::ErrorKind::TimedOut => Connect::TimesOut,
        _ => return None,
    })
}

async fn run(command: &Command, limit: Duration, around: &Surroundings) -> Tried {
    let begun = begin(command, around);
    let (mut running, mut out, mut err) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            let program = command.words.first().map_or("", String::as_str);
            return Tried::Impossible(format!("{program} cannot be started: {error}"));
        }
    };
    let status = match timeout(limit, running.child.wait()).await {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => return Tried::Unmet(format!("it cannot be waited for: {error}")),
        Err(_) => return Tried::Unmet(format!("no end within {limit:.1?}")),
    };
    running.group = None;
    let output = read(&mut out);
    match command.unmet(status.code(), &output) {
        None => Tried::Met(format!("exit code {}", status.code().unwrap_or_default())),
        Some(unmet) => {
            let said = read(&mut err);
            let said = said.trim_end().lines().last().unwrap_or_default();
            Tried::Unmet(match said {
                "" => unmet,
                said => format!("{unmet}; last line of its errors: {said}"),
            })
        }
    }
}

/// A command in progress. Dropping it kills the command and its process group.
struct Running {
    child: tokio::process::Child,
    group: Option<Pid>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // Fails if the group has ended meanwhile.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Starts a command that writes to files: reading a pipe to its end would wait for processes that the
/// command leaves running.
fn begin(command: &Command, around: &Surroundings) -> io::Result<(Running, File, File)> {
    let (out, err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let (program, arguments) = command
        .words
        .split_first()
        .ok_or(io::ErrorKind::InvalidInput)?;
    let child = tokio::process::Command::new(program)
        .args(arguments)
        .env("BLOCKER_RUN_DIR", around.directory.path())
        .env("BLOCKER_SOCKET", &around.socket)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    let group = group.map(Pid::from_raw);
    Ok((Running { child, group }, out, err))
}

/// The content of a file, truncated if it is long.
fn read(file: &mut File) -> String {
    let mut bytes = Vec::new();
    // A file that cannot be read counts as empty.
    let _ = file
        .rewind()
        .and_then(|()| file.take(LOOKED_AT).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}
