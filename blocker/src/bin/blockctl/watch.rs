//! `watch`: what happens, as it happens, until somebody has seen enough.

use std::time::Duration;

use blocker::api::client::{Client, ClientError, EventStream};
use blocker::wire::EventsRequest;

use crate::args::{Global, Output};
use crate::failure::Failure;
use crate::output;
use crate::render::Lines;

/// How much is gathered of what is here already before it is written, in bytes.
const WRITE: usize = 32 << 10;

/// How often it is looked whether anybody still reads, while nothing happens.
const LOOK: Duration = Duration::from_millis(200);

/// Shows events until Ctrl-C, or until nobody reads them any more.
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

/// The next events, as soon as there is one, in the form that was asked for.
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
                // Documents of a stream, each with its beginning (YAML 1.2, 9.2).
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
