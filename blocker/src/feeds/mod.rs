//! Feeds: lists of targets from files and servers, and the decisions of a CrowdSec Local API, kept in
//! force as they change.
//!
//! | module | owns |
//! |---|---|
//! | [`source`] | a file for each source: its keys in the configuration, and how it is followed |
//! | [`feed`] | a feed: its name, its source, and the rule that its targets become |
//! | `list`, [`content`] | whether a list is sound; the rules that content becomes |
//! | [`kept`] | the last good content, on disk |
//! | [`account`] | how a feed fares, for `status`, log and metrics |
//!
//! A task for each feed looks at its source again and again. Sound content becomes all rules of the
//! owner `feed:NAME`, as one change that the [`Host`] carries out. If a look fails, the last good
//! content stays in force.

pub mod account;
pub mod content;
mod decisions;
mod error;
pub mod feed;
mod fetch;
mod follower;
pub mod kept;
mod list;
mod pace;
pub mod source;

use std::path::PathBuf;

pub use decisions::Decisions;
pub use error::FeedError;
pub use fetch::{Validators, WebAddress};
pub use follower::{Told, follow};
pub use list::ListChecks;

use account::Account;
use feed::Feed;
use kept::Kept;

/// What puts the rules of feeds in force.
pub trait Host: Clone + Send + Sync + 'static {
    /// The feeds of the configuration in force; a reload sends them again.
    fn feeds(&self) -> Told;
    /// Where state is saved.
    fn state_dir(&self) -> PathBuf;
    /// The content that a feed has in force.
    fn kept(&self, feed: &Feed) -> Option<Kept>;
    /// Reads or changes the account of a feed; `None`: it is no longer configured.
    fn account<T>(&self, feed: &Feed, act: impl FnOnce(&mut Account) -> T) -> Option<T>;
    /// Replaces all rules of a feed by those that content becomes, as one change. `false`: the feed is
    /// no longer configured, and nothing was changed.
    ///
    /// # Errors
    /// See [`FeedError`]; what was in force stays.
    fn replace_content(
        &self,
        feed: Feed,
        kept: Kept,
    ) -> impl Future<Output = Result<bool, FeedError>> + Send;
    /// Makes a feed's rules again if the addresses that must not be blocked have changed.
    ///
    /// # Errors
    /// As [`Host::replace_content`].
    fn review(&self, feed: Feed) -> impl Future<Output = Result<(), FeedError>> + Send;
}

/// Logs what is wrong with local sources. It is no error: they may be put right later.
pub fn warn_of_sources(feeds: &[Feed]) {
    for feed in feeds {
        if let Some(Err(error)) = feed.source.load(feed.max_bytes, None) {
            tracing::warn!("feed {}: {error}", feed.name);
        }
    }
}

/// Runs work that blocks on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FeedError> + Send + 'static,
) -> Result<T, FeedError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| FeedError::Inside(error.to_string()))?
}
