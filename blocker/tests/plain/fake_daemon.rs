//! A daemon that is not: it answers on a Unix socket what a test tells it to, and keeps what it was
//! asked. And the real `blockctl`, run against it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A request as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// Method, path and query: `GET /v1/rules`.
    pub(crate) line: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

#[derive(Default)]
struct Script {
    /// Answers by request line.
    answers: HashMap<String, (u16, &'static str, String)>,
    asked: Vec<Asked>,
}

/// The stand-in. Stops when dropped.
pub(crate) struct Daemon {
    pub(crate) dir: TempDir,
    script: Arc<Mutex<Script>>,
    _runtime: tokio::runtime::Runtime,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = Arc::<Mutex<Script>>::default();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&script));
        let path = dir.path().join("control.sock");
        let listener = runtime
            .block_on(async { tokio::net::UnixListener::bind(path) })
            .unwrap();
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self {
            dir,
            script,
            _runtime: runtime,
        }
    }

    /// Answers a request line by JSON.
    pub(crate) fn on(self, line: &str, answer: &Value) -> Self {
        self.raw(line, 200, "application/json", answer.to_string())
    }

    /// Answers a request line by a problem.
    pub(crate) fn refuse(self, line: &str, status: u16, code: &str, detail: &str) -> Self {
        let problem = json!({"type": "about:blank", "title": "refused", "status": status,
            "detail": detail, "code": code});
        self.raw(
            line,
            status,
            "application/problem+json",
            problem.to_string(),
        )
    }

    pub(crate) fn raw(
        self,
        line: &str,
        status: u16,
        content_type: &'static str,
        body: String,
    ) -> Self {
        let mut script = self.script.lock().unwrap();
        script
            .answers
            .insert(line.to_owned(), (status, content_type, body));
        drop(script);
        self
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        run(blockctl(&self.socket()).args(arguments))
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.script.lock().unwrap().asked.clone()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.line).collect()
    }
}

async fn answer(State(script): State<Arc<Mutex<Script>>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let line = format!("{} {}", head.method, head.uri);
    let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
    let mut script = script.lock().unwrap();
    script.asked.push(Asked {
        line: line.clone(),
        headers: head.headers,
        body,
    });
    let (status, content_type, body) = script.answers.get(&line).cloned().unwrap_or_else(|| {
        let detail = format!("the test did not expect {line}");
        let problem = json!({"type": "about:blank", "title": "unexpected", "status": 500,
            "detail": detail, "code": "internal"});
        (500, "application/problem+json", problem.to_string())
    });
    Response::builder()
        .status(StatusCode::from_u16(status).unwrap())
        .header("content-type", content_type)
        .body(Body::from(body))
        .unwrap()
}

/// What a run of `blockctl` came to.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("not killed by a signal"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// `blockctl` with nothing inherited that it would obey.
pub(crate) fn blockctl(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockctl"));
    command
        .env_remove("SSH_CONNECTION")
        .env_remove("NO_COLOR")
        .env_remove("CLICOLOR_FORCE")
        .env("BLOCKER_SOCKET", socket)
        .stdin(Stdio::null());
    command
}

pub(crate) fn run(command: &mut Command) -> Ran {
    command.output().unwrap().into()
}
