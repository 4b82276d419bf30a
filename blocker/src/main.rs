//! `blocker`: the daemon, and commands that need none.

use std::future::pending;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use blocker::api::server;
use blocker::config::Config;
use blocker::controller::Controller;
use blocker::datapath::pins::{self, PinDir};
use blocker::datapath::{Datapath, Diagnostics, Settings};
use blocker::feeds;
#[cfg(feature = "fleet")]
use blocker::fleet::daemon::Following;
use blocker::logging::{self, Format};
use blocker::manual;
use blocker::metrics::{self, Metrics};
use blocker::service;
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use futures_util::FutureExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// Blocks peers on this host with eBPF, and closes established connections at both ends.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the daemon in the foreground.
    ///
    /// SIGHUP reloads the configuration. SIGTERM and SIGINT stop the daemon and lift all rules, or
    /// keep them in force with `on_stop: keep`. SIGUSR2 stops the daemon and keeps them in force in
    /// any case, until the next daemon takes over.
    Run {
        /// The configuration file.
        #[arg(long, value_name = "FILE", default_value = "/etc/blocker/blocker.yaml")]
        config: PathBuf,
        /// The lowest level that is logged.
        #[arg(long, value_name = "LEVEL", default_value = "info")]
        log_level: Level,
        /// The format of the log.
        #[arg(long, value_name = "FORMAT", default_value = "auto")]
        log_format: Format,
        /// The lowest level of diagnostics of the datapath; off costs nothing.
        #[arg(long, value_name = "LEVEL", default_value = "off")]
        datapath_log_level: Level,
    },
    /// Validates a configuration file and prints the effective configuration, defaults included.
    Check {
        /// The configuration file.
        #[arg(long, value_name = "FILE", default_value = "/etc/blocker/blocker.yaml")]
        config: PathBuf,
    },
    /// Removes all programs, maps and links of the datapath from this host, without a daemon.
    Unload {
        /// The configuration file, for its pin_dir; if it can't be read, the default is used.
        #[arg(long, value_name = "FILE", default_value = "/etc/blocker/blocker.yaml")]
        config: PathBuf,
        /// The pin directory, instead of the configuration's.
        #[arg(long, value_name = "DIR")]
        pin_dir: Option<PathBuf>,
    },
    /// Writes man pages and completions into a directory, for packages.
    #[command(hide = true)]
    Manual {
        /// The directory.
        directory: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Level {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    const fn filter(self) -> log::LevelFilter {
        match self {
            Self::Off => log::LevelFilter::Off,
            Self::Error => log::LevelFilter::Error,
            Self::Warn => log::LevelFilter::Warn,
            Self::Info => log::LevelFilter::Info,
            Self::Debug => log::LevelFilter::Debug,
            Self::Trace => log::LevelFilter::Trace,
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run {
            config,
            log_level,
            log_format,
            datapath_log_level,
        } => match logging::start(tracing_level(log_level), log_format) {
            Ok(()) => match run(&config, datapath_log_level).await {
                Ok(Ending::WhileStarting) => return ExitCode::from(STOPPED_WHILE_STARTING),
                ended => ended.map(|_| ()),
            },
            Err(error) => Err(error.into()),
        },
        Command::Check { config } => return check(&config),
        Command::Unload { config, pin_dir } => unload(&config, pin_dir).await,
        Command::Manual { directory } => manual::write(Cli::command(), &directory)
            .with_context(|| format!("cannot write to {}", directory.display())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("blocker: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The exit status of a command that SIGTERM ended; blocker.service handles it.
const STOPPED_WHILE_STARTING: u8 = 128 + 15;
/// How long after the service manager has heard of the start a signal that it sent before may arrive.
const CROSSING: Duration = Duration::from_millis(100);

async fn run(path: &Path, datapath_log_level: Level) -> Result<Ending> {
    let config = Config::load(path)?;
    let limits = config.limits;
    let control = config.control.clone();
    let pin_dir = PinDir::open(&config.pin_dir)?;
    let socket = match service::passed_socket()? {
        Some(passed) => server::take(&control, passed)?,
        None => server::bind(&control)?,
    };
    let listener = match config.metrics.listen {
        Some(address) => Some(metrics::bind(address)?),
        None => None,
    };
    let settings = Settings {
        flows: limits.flows,
        events_per_second: limits.events_per_second,
        ..Settings::new(
            limits.prefixes,
            limits.prefixes_v6,
            limits.rules,
            limits.replies_per_second,
            datapath_log_level.filter(),
        )?
    };
    let loaded = Datapath::load(settings, pin_dir.path(), config.hook);
    let mut datapath = or_give_up(loaded, &pin_dir)?;
    let diagnostics = datapath.take_diagnostics();
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP cannot be handled")?;
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be handled")?;
    let mut hand_over = signal(SignalKind::user_defined2()).context("SIGUSR2 cannot be handled")?;

    let started = Controller::start(config, path.to_owned(), datapath).await;
    let controller = or_give_up(started, &pin_dir)?;
    let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
    let metrics = Metrics::new(controller.clone());
    let scraped = listener.map(|listener| tokio::spawn(listener.serve(metrics.clone())));
    let stopped = async {
        // The receiver stops on a dropped sender as on a message.
        let _stopped = stopping.await;
    };
    let serving = server::serve(socket, control, controller.clone(), metrics, stopped);
    let serving = tokio::spawn(serving);
    #[cfg(feature = "fleet")]
    let mut fleet = Following::start(
        controller.clone(),
        controller.fleet_board(),
        controller.fleet_config(),
    )
    .await;
    service::ready();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), config = %path.display(), "ready");

    // A service manager that stops or restarts a daemon before it is ready sends SIGTERM for both. Only
    // the service manager knows which it is, so the rules stay in force, and blocker.service lifts them
    // if need be. The signal may arrive shortly after the manager has heard of the start.
    let managed = service::heard().await;
    let result = if managed && timeout(CROSSING, terminate.recv()).await.is_ok() {
        Ok(Ending::WhileStarting)
    } else {
        // Runs as its own task: it is the writer now and then, and a reload that waits for the writer
        // must not stop it.
        let following = controller.clone();
        let mut follow = tokio::spawn(async move { following.follow().await });
        let feeding = tokio::spawn(feeds::follow(controller.clone()));
        let diagnose = diagnose(diagnostics);
        tokio::pin!(diagnose);
        // Runs as its own task: a slow reload must not starve the watchdog.
        let watched = controller.clone();
        let watchdog = tokio::spawn(async move {
            service::watchdog(|| watched.alive()).await;
        });
        let result = loop {
            tokio::select! {
                ended = &mut follow => break match ended {
                    Ok(ended) => ended.map_err(Into::into).map(|()| Ending::HandOver),
                    Err(error) => Err(error).context("following devices and deadlines failed inside"),
                },
                ended = &mut diagnose => break ended.map(|()| Ending::HandOver),
                _ = hangup.recv() => {
                    reload(&controller).await;
                    #[cfg(feature = "fleet")]
                    fleet.adapt(controller.fleet_config()).await;
                }
                _ = hand_over.recv() => break Ok(Ending::HandOver),
                _ = terminate.recv() => break Ok(Ending::AsConfigured),
                _ = interrupt.recv() => break Ok(Ending::AsConfigured),
            }
        };
        follow.abort();
        feeding.abort();
        watchdog.abort();
        result
    };
    service::stopping();
    #[cfg(feature = "fleet")]
    fleet.stop().await;
    drop(stop);
    if let Some(scraped) = scraped {
        scraped.abort();
    }
    // A service manager sends SIGTERM right after the signal that it was configured to send.
    let handed_over = hand_over.recv().now_or_never().is_some();
    match result {
        Ok(Ending::AsConfigured) if !handed_over => controller.stop().await,
        // A task that failed ends the daemon; the service manager starts the next one.
        Ok(_) | Err(_) => controller.hand_over().await,
    }
    // A client that keeps its connection open must not delay the end.
    let grace = Duration::from_secs(2);
    if let Ok(Err(error)) = timeout(grace, serving).await {
        tracing::error!("the control socket failed inside: {error}");
    }
    pin_dir.remove_if_empty();
    result
}

/// What happens to the rules when the daemon ends.
#[derive(Clone, Copy)]
enum Ending {
    /// As `on_stop` says.
    AsConfigured,
    /// They stay in force.
    HandOver,
    /// They stay in force, and the service manager decides.
    WhileStarting,
}

/// Removes the pins if the start failed.
fn or_give_up<T, E>(begun: Result<T, E>, pin_dir: &PinDir) -> Result<T, E> {
    if begun.is_err()
        && let Err(error) = pin_dir.give_up()
    {
        tracing::error!("{error}");
    }
    begun
}

async fn reload(controller: &Controller) {
    service::reloading();
    if let Err(error) = controller.reload().await {
        tracing::error!(
            "the configuration was not reloaded, the one before stays in force: {error}"
        );
    }
    service::ready();
}

/// Logs the diagnostics of the datapath.
async fn diagnose(diagnostics: Option<Diagnostics>) -> Result<()> {
    match diagnostics {
        Some(diagnostics) => diagnostics
            .follow()
            .await
            .context("the datapath's diagnostics ended"),
        None => pending().await,
    }
}

fn check(path: &Path) -> ExitCode {
    // Warnings about a valid configuration go to standard error.
    if let Err(error) = logging::start(tracing_level(Level::Warn), Format::Text) {
        eprintln!("blocker: {error}");
        return ExitCode::FAILURE;
    }
    let checked = Config::load(path).and_then(|config| {
        config.rules(jiff::Timestamp::now())?;
        feeds::warn_of_sources(&config.feeds);
        config.effective_yaml()
    });
    match checked {
        Ok(yaml) => {
            print!("{yaml}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("blocker: {error}");
            ExitCode::from(2)
        }
    }
}

async fn unload(path: &Path, pin_dir: Option<PathBuf>) -> Result<()> {
    let pin_dir = match pin_dir {
        Some(pin_dir) => pin_dir,
        None => Config::load(path).unwrap_or_default().pin_dir,
    };
    let removed = pins::unload(&pin_dir).await?;
    println!(
        "removed {removed} attached programs from {}",
        pin_dir.display()
    );
    Ok(())
}

const fn tracing_level(level: Level) -> tracing_subscriber::filter::LevelFilter {
    use tracing_subscriber::filter::LevelFilter;
    match level {
        Level::Off => LevelFilter::OFF,
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    }
}
