//! `watch`: prints events until Ctrl-C, or until the reader closes the pipe.

use std::time::Duration;

use blocker::api::client::{Client, ClientError, EventStream};
use blocker::wire::EventsRequest;

use crate::args::{Global, Output};
use crate::failure::Failure;
use crate::output;
use crate::render::Lines;

/// Events that have arrived are gathered up to this size before they are written, in bytes.
const WRITE: usize = 32 << 10;

/// How often to check whether the pipe is closed, while there are no events.
const LOOK: Duration = Duration::from_millis(200);

/// Prints events until Ctrl-C, or until the reader closes the pipe.
pub(crate) async fn watch(
    client: &Client,
    request: &EventsRequest,
    global: &Global,
    width: Option<u16>,
) -> Result<(), Failure> {
    let mut stream = client.events(request).await?;
    let mut lines = Lines::new(width);
    let form = (!global.quiet).then_some(global.output);
    if form == Some(Output::Table) && !output::print(&lines.head())? {
        return Ok(());
    }
    let follow = async {
        loop {
            let text = next(&mut stream, &mut lines, form).await?;
            if !output::print(&text)? {
                return Ok(());
            }
        }
    };
    let unread = async {
        let mut look = tokio::time::interval(LOOK);
        while output::is_read() {
            look.tick().await;
        }
    };
    tokio::select! {
        done = follow => done,
        () = unread => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// Waits for an event; returns it, with all that have arrived, in the requested format.
async fn next(
    stream: &mut EventStream,
    lines: &mut Lines,
    form: Option<Output>,
) -> Result<String, Failure> {
    let mut text = String::new();
    let mut line = match stream.line().await {
        Ok(Some(line)) => Some(line),
        Ok(None) | Err(ClientError::Lost { .. }) => return Err(Failure::Gone),
        Err(error) => return Err(error.into()),
    };
    while let Some(json) = line.take() {
        match form {
            None => {}
            Some(Output::Table) => text += &lines.line(&stream.event(&json)?),
            Some(Output::Json) => {
                text += &String::from_utf8_lossy(&json);
                text.push('\n');
            }
            Some(Output::Yaml) => {
                // Each document of a stream starts with a marker (YAML 1.2, 9.2).
                text += "---\n";
                text += &output::exact(&stream.event(&json)?, Output::Yaml)?;
            }
        }
        if text.len() < WRITE {
            line = stream.line_read();
        }
    }
    Ok(text)
}
