//! The service that runbooks test: servers on one host, a real HAProxy that checks them on another.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::routing::get;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use xtask::hosts::{Namespace, Pair, poll};

/// How long the slow path of a server takes: the block has begun by then and still holds, so that the
/// answer is sent during the block.
const SLOW: Duration = Duration::from_secs(5);
/// How long HAProxy may take to start, and to find its servers up.
const START: Duration = Duration::from_secs(20);

/// HTTP servers: each says who it is, `/client/slow` after a while.
pub(crate) struct Servers(Runtime);

impl Servers {
    pub(crate) fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        Ok(Self(runtime))
    }

    /// Starts one in a host.
    pub(crate) fn start(&self, host: &Namespace, at: SocketAddr, name: &'static str) -> Result<()> {
        let listener = host
            .enter(|| std::net::TcpListener::bind(at))?
            .with_context(|| format!("{at} cannot be bound"))?;
        listener.set_nonblocking(true)?;
        let slow = move || async move {
            tokio::time::sleep(SLOW).await;
            format!("stale answer of {name}")
        };
        let router = Router::new()
            .route("/client/slow", get(slow))
            .fallback(move || async move { format!("answer of {name}") });
        self.0.spawn(async move {
            let listener = TcpListener::from_std(listener)?;
            axum::serve(listener, router).await
        });
        Ok(())
    }
}

/// A real HAProxy in A, with servers in B.
pub(crate) struct Balancer {
    process: Child,
    _servers: Servers,
    files: TempDir,
}

impl Balancer {
    /// With two of them: `client`, and `other` at B's second address. `fall`: after so many failed
    /// checks, two a second, a server is out of rotation.
    pub(crate) fn start(pair: &Pair, fall: u32) -> Result<Self> {
        let servers = Servers::new()?;
        let other = pair.second_remote()?;
        servers.start(&pair.b, (Pair::B, 8080).into(), "client")?;
        servers.start(&pair.b, (other, 8080).into(), "other")?;
        let backend = format!(
            "default-server inter 500ms fall {fall} rise 2
  use-server client if {{ path_beg /client/ }}
  server client {}:8080 check
  server other {other}:8080 check",
            Pair::B
        );
        Self::launch(pair, servers, &backend)
    }

    /// With one alone, at this port: without it there is no service.
    pub(crate) fn start_dependent(pair: &Pair, port: u16) -> Result<Self> {
        let servers = Servers::new()?;
        servers.start(&pair.b, (Pair::B, port).into(), "database")?;
        let backend = format!(
            "default-server inter 500ms fall 2 rise 2
  server database {}:{port} check",
            Pair::B
        );
        Self::launch(pair, servers, &backend)
    }

    /// Starts it, and waits until its servers are in rotation.
    fn launch(pair: &Pair, servers: Servers, backend: &str) -> Result<Self> {
        let files = tempfile::tempdir()?;
        let certificate = files.path().join("certificate.pem");
        let key = pair.a.run(&[
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=service",
            "-addext",
            &format!("subjectAltName=IP:{}", Pair::A),
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            "-",
            "-out",
            "-",
        ])?;
        fs::write(&certificate, key)?;
        let config = format!(
            "defaults
  mode http
  timeout connect 1s
  timeout check 1s
  timeout client 60s
  timeout server 60s
frontend service
  bind {a}:8080
  bind {a}:8443 ssl crt {certificate}
  default_backend service
frontend statistics
  bind {a}:8404
  stats enable
  stats uri /stats
backend service
  option httpchk GET /health
  {backend}
",
            a = Pair::A,
            certificate = certificate.display(),
        );
        let path = files.path().join("haproxy.cfg");
        fs::write(&path, config)?;
        let log = fs::File::create(files.path().join("log"))?;
        let mut command = Command::new("haproxy");
        command
            .args(["-db", "-f"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let process = pair.a.spawn(&mut command)?;
        let mut balancer = Self {
            process,
            _servers: servers,
            files,
        };
        let up = poll("the servers to be in rotation", START, || {
            let ended = balancer.process.try_wait().ok()?.is_some();
            let statistics = statistics(pair).unwrap_or_default();
            let is_server = |line: &&str| {
                let mut fields = line.split(',');
                let proxy = fields.next() == Some("service");
                proxy && !matches!(fields.next(), None | Some("FRONTEND" | "BACKEND"))
            };
            let mut servers = statistics.lines().filter(is_server).peekable();
            let up = servers.peek().is_some() && servers.all(|line| line.contains(",UP,"));
            (ended || up).then_some(!ended)
        });
        let said = fs::read_to_string(balancer.files.path().join("log")).unwrap_or_default();
        ensure!(
            up.with_context(|| said.clone())?,
            "haproxy ended; it said:\n{said}"
        );
        Ok(balancer)
    }

    /// The file of its certificate, which is one of an authority of its own.
    pub(crate) fn certificate(&self) -> Result<std::path::PathBuf> {
        let pem = fs::read_to_string(self.files.path().join("certificate.pem"))?;
        let begin = pem
            .find("-----BEGIN CERTIFICATE")
            .context("no certificate")?;
        let path = self.files.path().join("trusted.pem");
        fs::File::create(&path)?.write_all(&pem.as_bytes()[begin..])?;
        Ok(path)
    }
}

/// HAProxy's table of its servers.
fn statistics(pair: &Pair) -> Result<String> {
    let url = format!("http://{}:8404/stats;csv", Pair::A);
    pair.a
        .run(&["curl", "--silent", "--fail", "--max-time", "2", &url])
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
