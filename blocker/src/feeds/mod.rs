//! Feeds: lists of targets that come from files and servers, and the decisions of a CrowdSec Local
//! API, kept in force as they change.
//!
//! A task for each feed looks at its source again and again; what it finds, if it is sound
//! ([`list`]), becomes all rules of the owner `feed:NAME` as one change ([`content`] makes them,
//! [`crate::controller`] puts them in force) and is kept on disk ([`kept`]). Whatever goes wrong,
//! the last good content stays in force, and status, log and metrics say so ([`account`]). What a
//! feed is, [`crate::config::feeds`] says.

pub mod account;
pub mod content;
mod decisions;
mod error;
mod fetch;
mod file;
pub mod kept;
mod lapi;
mod list;
mod pace;
mod task;

pub use decisions::Decisions;
pub use error::FeedError;
pub use fetch::{read_certificates, read_key};
pub use list::{load_file, warn_of_files};
pub use task::follow;

/// Does what takes its time where nobody waits.
pub(crate) async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FeedError> + Send + 'static,
) -> Result<T, FeedError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| FeedError::Inside(error.to_string()))?
}
