//! Runs a row: three connections, a block, a lift. Records what each end saw and when.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;

use super::rows::{Block, Place, Row};
use crate::hosts::{
    Connection, Daemon, Listener, Namespace, Pair, Programs, Routed, connect_timed, wait_dead,
};

/// A's address, in both topologies.
pub(super) const A: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 48, 22, 221));
/// B's address, in both topologies.
pub(super) const B: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 171, 170, 104));

/// When the senders send, from the start of the block's command.
pub(super) const SEND: Duration = Duration::from_millis(100);
/// When the block is lifted, from the start of its command.
pub(super) const LIFT: Duration = Duration::from_millis(1000);
/// Timeout of a new connection.
pub(super) const CONNECT: Duration = Duration::from_millis(500);
/// How long to wait for stale data after the lift. The retransmission timer doubles from 200 ms, so
/// the next attempt comes at most as long after the lift as the block lasted.
pub(super) const WAIT: Duration = Duration::from_millis(2500);

const STALE: &[u8] = b"sent during the block";

/// What one row observed.
pub(super) struct Observed {
    /// The flows: idle, B sends, A sends.
    pub(super) flows: [Flow; 3],
    /// The outcome of a new connection from A.
    pub(super) from_a: Attempt,
    /// The outcome of a new connection from B.
    pub(super) from_b: Attempt,
    /// Blocker's report of the teardown.
    pub(super) account: Option<String>,
}

/// Who sends during the block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sender {
    /// Nobody.
    Nobody,
    /// The blocked host.
    B,
    /// The host on this side.
    A,
}

/// What was observed of one connection.
#[derive(Clone, Copy)]
pub(super) struct Flow {
    /// Who sent.
    pub(super) sender: Sender,
    /// What A's end saw before the lift.
    pub(super) a: Option<Seen>,
    /// What B's end saw before the lift.
    pub(super) b: Option<Seen>,
    /// What A's and B's end saw after the lift; times count from the lift.
    pub(super) later: [Option<Seen>; 2],
    /// The outcome of the data that was sent.
    pub(super) sent: Sent,
}

/// The error that an end saw, and when.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    /// The error; none for an orderly end.
    pub(super) error: Option<Errno>,
    /// Since the start of the block's command, or since the lift.
    pub(super) after: Duration,
}

/// The outcome of data that was sent during the block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// Nothing was sent.
    Nothing,
    /// It arrived during the block.
    DuringTheBlock,
    /// It arrived this long after the lift.
    AfterTheLift(Duration),
    /// It can no longer arrive: an end is dead.
    Never,
    /// It did not arrive within [`WAIT`].
    NotYet,
}

/// The outcome of an attempt to connect.
#[derive(Clone, Copy)]
pub(super) struct Attempt {
    /// The error; none if it connected.
    pub(super) error: Option<std::io::ErrorKind>,
    /// How long it took.
    pub(super) after: Duration,
}

/// The hosts of a topology.
enum Scene {
    Host(Pair),
    Router(Routed),
}

impl Scene {
    fn new(place: Place) -> Result<Self> {
        Ok(match place {
            Place::Host => Self::Host(Pair::new()?),
            Place::Router => Self::Router(Routed::new()?),
        })
    }

    fn a(&self) -> &Namespace {
        match self {
            Self::Host(pair) => &pair.a,
            Self::Router(routed) => &routed.server,
        }
    }

    fn b(&self) -> &Namespace {
        match self {
            Self::Host(pair) => &pair.b,
            Self::Router(routed) => &routed.client,
        }
    }

    /// The host that blocks.
    fn blocking(&self) -> &Namespace {
        match self {
            Self::Host(pair) => &pair.a,
            Self::Router(routed) => &routed.router,
        }
    }
}

/// Runs one row in its own namespaces.
pub(super) fn play(row: &Row, programs: &Programs) -> Result<Observed> {
    let scene = Scene::new(row.place)?;
    let (a, b, blocking) = (scene.a(), scene.b(), scene.blocking());
    run(blocking, row.before)?;
    let daemon = match &row.block {
        Block::Commands { .. } => None,
        Block::Blocker { .. } => Some(Daemon::start(blocking, programs, "")?),
    };

    let at_a = Listener::new(a, A, 0)?;
    let at_b = Listener::new(b, B, 0)?;
    let mut connections = Vec::new();
    for _ in 0..3 {
        let mut connection = at_a.connect(b)?;
        connection.check_alive()?;
        connections.push(connection);
    }

    let start = Instant::now();
    let account = match (&row.block, &daemon) {
        (Block::Commands { start, .. }, _) => {
            run(blocking, start)?;
            None
        }
        (Block::Blocker { options, .. }, Some(daemon)) => {
            let target = B.to_string();
            let words = [&["add", target.as_str()], *options].concat();
            Some(account(&daemon.json(&words)?))
        }
        (Block::Blocker { .. }, None) => None, // unreachable: started above
    };
    watch(&mut connections, start + SEND)?;
    // A dead end refuses the data; its error is recorded anyway.
    let _ = connections[1].client.send(STALE);
    let _ = connections[2].server.send(STALE);
    let (from_a, from_b) = std::thread::scope(|scope| -> Result<_> {
        let from_a = scope.spawn(|| attempt(a, &at_b));
        let from_b = scope.spawn(|| attempt(b, &at_a));
        watch(&mut connections, start + LIFT)?;
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Attempt>>| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        Ok((join(from_a)?, join(from_b)?))
    })?;
    let arrived = |connections: &mut [Connection]| {
        [
            false,
            got_stale(&mut connections[1].server),
            got_stale(&mut connections[2].client),
        ]
    };
    let early = arrived(&mut connections);

    let lift = Instant::now();
    match (&row.block, &daemon) {
        (Block::Commands { lift, .. }, _) => run(blocking, lift)?,
        (Block::Blocker { .. }, Some(daemon)) => {
            daemon.json(&["del", &B.to_string()])?;
        }
        (Block::Blocker { .. }, None) => {}
    }
    let mut late = [None; 3];
    loop {
        watch(&mut connections, Instant::now() + Duration::from_millis(1))?;
        for (late, now) in late.iter_mut().zip(arrived(&mut connections)) {
            if now && late.is_none() {
                *late = Some(lift.elapsed());
            }
        }
        let open = |index: usize| {
            let connection: &Connection = &connections[index];
            let alive = connection.client.death().is_none() && connection.server.death().is_none();
            alive && !early[index] && late[index].is_none()
        };
        if lift.elapsed() > WAIT || !(open(1) || open(2)) {
            break;
        }
    }

    let mut index = 0;
    let flows = [Sender::Nobody, Sender::B, Sender::A].map(|sender| {
        let flow = summarize(
            sender,
            &connections[index],
            start,
            lift,
            early[index],
            late[index],
        );
        index += 1;
        flow
    });
    if let Some(mut daemon) = daemon {
        daemon.stop()?;
    }
    Ok(Observed {
        flows,
        from_a,
        from_b,
        account,
    })
}

/// Runs commands, with B's address in place of the word `B`.
fn run(host: &Namespace, commands: &[&str]) -> Result<()> {
    let address = B.to_string();
    for command in commands {
        let words = command.split(' ');
        let words: Vec<_> = words
            .map(|word| if word == "B" { &address } else { word })
            .collect();
        host.run(&words)?;
    }
    Ok(())
}

/// Watches all connections until the deadline.
fn watch(connections: &mut [Connection], deadline: Instant) -> Result<()> {
    let mut ends: Vec<_> = connections
        .iter_mut()
        .flat_map(|connection| [&mut connection.client, &mut connection.server])
        .collect();
    wait_dead(&mut ends, deadline)?;
    // If all are dead, `wait_dead` returns early.
    std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
    Ok(())
}

fn attempt(host: &Namespace, listener: &Listener) -> Result<Attempt> {
    let (result, after) = connect_timed(host, listener.address, CONNECT)?;
    Ok(Attempt {
        error: result.err().map(|error| error.kind()),
        after,
    })
}

/// Whether the data that was sent during the block has arrived.
fn got_stale(end: &mut crate::hosts::End) -> bool {
    end.death().is_none()
        && end
            .receive(STALE.len(), Duration::ZERO)
            .is_ok_and(|bytes| bytes == STALE)
}

fn summarize(
    sender: Sender,
    connection: &Connection,
    start: Instant,
    lift: Instant,
    early: bool,
    late: Option<Duration>,
) -> Flow {
    // Connections go from B to A.
    let deaths = [connection.server.death(), connection.client.death()];
    let before = deaths.map(|death| {
        let death = death.filter(|death| death.at < lift)?;
        Some(Seen {
            error: death.error,
            after: death.at - start,
        })
    });
    let later = deaths.map(|death| {
        let death = death.filter(|death| death.at >= lift)?;
        Some(Seen {
            error: death.error,
            after: death.at - lift,
        })
    });
    let sent = match (sender, early, late) {
        (Sender::Nobody, _, _) => Sent::Nothing,
        (_, true, _) => Sent::DuringTheBlock,
        (_, _, Some(after)) => Sent::AfterTheLift(after),
        _ if deaths.iter().any(Option::is_some) => Sent::Never,
        _ => Sent::NotYet,
    };
    Flow {
        sender,
        a: before[0],
        b: before[1],
        later,
        sent,
    }
}

/// Summarises the teardown that `blockctl add` reports.
fn account(answer: &serde_json::Value) -> String {
    let teardown = &answer["teardown"];
    let left = teardown["left"].as_array().map_or(0, Vec::len);
    format!(
        "{} flows found, {} killed, {left} left, in {:.1} ms",
        teardown["found"],
        teardown["killed"],
        teardown["elapsed_ms"].as_f64().unwrap_or_default()
    )
}

/// The programs in a directory.
pub(crate) fn programs(directory: &std::path::Path) -> Result<Programs> {
    let programs = Programs {
        blocker: directory.join("blocker"),
        blockctl: directory.join("blockctl"),
    };
    for program in [&programs.blocker, &programs.blockctl] {
        program
            .metadata()
            .with_context(|| format!("{} was not built", program.display()))?;
    }
    Ok(programs)
}
