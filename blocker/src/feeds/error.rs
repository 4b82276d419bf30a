//! Why a feed has nothing new.

use std::error::Error;
use std::io;

/// Why what a feed gives cannot be had, or not be used. What was in force before stays.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// A file of the configuration is of no use.
    #[error("{0}")]
    File(String),
    /// A request failed.
    #[error("GET {from}: {why}")]
    Request {
        /// What was asked for, without what is secret of it.
        from: String,
        /// Why it failed.
        why: String,
    },
    /// A server says no.
    #[error("GET {from}: the server answers {status}{hint}")]
    Status {
        /// What was asked for.
        from: String,
        /// The status and its reason.
        status: String,
        /// What to do, after a colon; empty if nobody knows.
        hint: &'static str,
    },
    /// More than `max_bytes`.
    #[error("{from} is larger than {most} bytes: raise max_bytes, if it is to be")]
    TooLarge {
        /// The source.
        from: String,
        /// `max_bytes`.
        most: u64,
    },
    /// A list cannot be read, or is empty.
    #[error("{0}")]
    List(String),
    /// A list has lost too much.
    #[error(
        "{from} has {now} targets, and had {before}: more than {most}% are gone; if that is right, raise shrink"
    )]
    Shrunk {
        /// The source.
        from: String,
        /// Targets of the list before.
        before: u64,
        /// Targets now.
        now: u64,
        /// `shrink`.
        most: u8,
    },
    /// A list has targets that it must not have.
    #[error("{0}; `private: skip` leaves them out")]
    Private(String),
    /// Nothing is left to block.
    #[error(
        "{from}: nothing would be blocked: of {count} targets all are left out, such as {first}"
    )]
    NothingLeft {
        /// The source.
        from: String,
        /// How many.
        count: u64,
        /// The first, and why.
        first: String,
    },
    /// An answer of the Local API cannot be read.
    #[error("{from}: what the Local API answers cannot be read: {why}")]
    Answer {
        /// What was asked for.
        from: String,
        /// Why not.
        why: String,
    },
    /// It cannot be put in force.
    #[error("it cannot be put in force: {0}")]
    Refused(Box<dyn Error + Send + Sync>),
    /// The daemon failed inside.
    #[error("the daemon failed inside: {0}")]
    Inside(String),
}
