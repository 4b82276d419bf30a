//! Why a look at a feed's source failed.

use std::error::Error;
use std::io;

/// Why a look failed. The content before stays in force.
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
    /// A file that the configuration names cannot be used.
    #[error("{0}")]
    File(String),
    /// A request failed.
    #[error("GET {from}: {why}")]
    Request {
        /// The address, without secrets.
        from: String,
        /// Why it failed.
        why: String,
    },
    /// A server answers with an error.
    #[error("GET {from}: the server answers {status}{hint}")]
    Status {
        /// The address.
        from: String,
        /// The status and its reason.
        status: String,
        /// What may help, after a colon; may be empty.
        hint: &'static str,
    },
    /// More than `max_bytes`.
    #[error("{from} is larger than {most} bytes: raise max_bytes to read it")]
    TooLarge {
        /// The source.
        from: String,
        /// `max_bytes`.
        most: u64,
    },
    /// A list cannot be read, or is empty.
    #[error("{0}")]
    List(String),
    /// A list has lost too many targets.
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
    /// A list has private targets, which the feed refuses.
    #[error("{0}; `private: skip` leaves them out")]
    Private(String),
    /// All targets are left out.
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
    #[error("{from}: the answer of the Local API cannot be read: {why}")]
    Answer {
        /// The address.
        from: String,
        /// Why not.
        why: String,
    },
    /// The controller refuses the rules.
    #[error("the rules cannot be put in force: {0}")]
    Refused(Box<dyn Error + Send + Sync>),
    /// A bug in the daemon.
    #[error("the daemon failed inside: {0}")]
    Inside(String),
}
