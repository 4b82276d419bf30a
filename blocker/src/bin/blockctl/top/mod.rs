//! `top`: a terminal display of the rates of rules and blocked flows.
//!
//! | module | owns |
//! |---|---|
//! | [`model`] | rates, history and sort order; pure |
//! | [`view`] | drawing; pure |
//!
//! This file: requests, keys, and restoring the terminal.

mod model;
mod view;

use std::io::{IsTerminal as _, stdin, stdout};
use std::time::Duration;

use blocker::api::client::{Client, ClientError};
use blocker::wire::{FlowOrder, FlowView, FlowsRequest, Stats};
use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::DefaultTerminal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::args::TopArgs;
use crate::failure::Failure;
use crate::{input, output};
use model::Model;

/// The default interval of requests.
const INTERVAL: Duration = Duration::from_secs(1);

/// Shows rates until a key ends it.
pub(crate) async fn top(client: &Client, args: &TopArgs) -> Result<(), Failure> {
    let interval = match &args.interval {
        Some(text) => input::interval(text)?,
        None => INTERVAL,
    };
    if !stdout().is_terminal() || !stdin().is_terminal() {
        let flaw = "top needs a terminal for its input and its output: use blockctl stats";
        return Err(Failure::Input(vec![flaw.to_owned()]));
    }
    // An unreachable daemon is reported before the screen is cleared.
    let mut model = Model::default();
    model.take(client.stats().await?, flows(client).await?);

    let mut screen = Screen::open()?;
    let shown = show(client, &mut model, interval, &mut screen).await;
    drop(screen);
    shown
}

async fn show(
    client: &Client,
    model: &mut Model,
    interval: Duration,
    screen: &mut Screen,
) -> Result<(), Failure> {
    let lost = |error| Failure::Output(format!("the terminal cannot be used: {error}"));
    let mut keys = keys();
    let mut terminate = signal(SignalKind::terminate()).map_err(lost)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(lost)?;
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    let theme = view::Theme::new(output::coloured());
    loop {
        screen
            .0
            .draw(|frame| view::draw(frame, model, theme))
            .map_err(lost)?;
        tokio::select! {
            _ = ticks.tick() => {
                if !model.paused {
                    let stats = totals(client).await?;
                    model.take(stats, flows(client).await?);
                }
            }
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if !act(key, model) {
                        return Ok(());
                    }
                }
                // A resize: the display is drawn again.
                Some(_) => {}
                None => return Ok(()),
            },
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

/// The totals. After a broken connection a second request finds out whether the daemon still runs.
async fn totals(client: &Client) -> Result<Stats, ClientError> {
    match client.stats().await {
        Err(ClientError::Lost { .. }) => client.stats().await,
        answer => answer,
    }
}

/// The flows with the most packets: more than a screen shows, and few enough to be cheap.
async fn flows(client: &Client) -> Result<Vec<FlowView>, ClientError> {
    let request = FlowsRequest {
        sort: FlowOrder::Packets,
        limit: 200,
        ..FlowsRequest::default()
    };
    match client.flows(&request).await {
        Ok(answer) => Ok(answer.flows),
        // The next request of totals finds out whether the daemon still runs.
        Err(ClientError::Lost { .. }) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Handles a key; returns false to quit.
fn act(key: KeyEvent, model: &mut Model) -> bool {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('s') => model.sort = model.sort.next(),
        KeyCode::Char('p') | KeyCode::Char(' ') => model.paused = !model.paused,
        KeyCode::Down | KeyCode::Char('j') => model.scroll(1),
        KeyCode::Up | KeyCode::Char('k') => model.scroll(-1),
        KeyCode::PageDown => model.scroll(10),
        KeyCode::PageUp => model.scroll(-10),
        KeyCode::Home => model.scroll(isize::MIN),
        _ => {}
    }
    true
}

/// Events of the terminal. The thread that reads them ends with the process, since a blocking read of a
/// terminal cannot be interrupted.
fn keys() -> mpsc::UnboundedReceiver<Event> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        while let Ok(event) = crossterm::event::read() {
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The terminal in raw mode, on its alternate screen. Restored when dropped, and by a panic before the
/// message of the panic is printed.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> Result<Self, Failure> {
        ratatui::try_init().map(Self).map_err(|error| {
            ratatui::restore();
            Failure::Output(format!("the terminal cannot be used: {error}"))
        })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}
