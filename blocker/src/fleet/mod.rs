//! Rules for many hosts, through etcd.
//!
//! | module | owns |
//! |---|---|
//! | [`form`] | the key `fleet` of the configuration |
//! | [`held`] | the rules that etcd had last, which of them are this host's, the same on disk |
//! | [`board`] | how a host follows etcd, for `status` |
//! | [`Host`] | what enforces the rules |
//! | `link` | connections to etcd |
//! | `source` | following etcd: list, watch, lose, come back |
//! | `reporter` | reporting this host to etcd, at a bounded rate |
//! | `daemon` | the fleet in the daemon, over reloads |
//! | `client` | the client of `blockctl fleet` |
//!
//! The lower five are compiled with the Cargo feature `fleet`. What is stored in etcd is defined in
//! [`crate::wire::fleet`].
//!
//! ```text
//! PREFIX/rules/ID               a rule                      hosts read, operators write
//! PREFIX/asks/ID                a question, under a lease   hosts read, operators write
//! PREFIX/hosts/NAME/status      a report, under a lease     the host writes, operators read
//! PREFIX/hosts/NAME/answers/ID  an answer, under a lease    the host writes, operators read
//! ```

pub mod board;
#[cfg(feature = "fleet")]
pub mod client;
#[cfg(feature = "fleet")]
pub mod daemon;
pub mod form;
pub mod held;
mod host;
#[cfg(feature = "fleet")]
pub mod link;
#[cfg(feature = "fleet")]
mod reporter;
#[cfg(feature = "fleet")]
pub mod source;

pub use host::{Host, Replaced};

/// The keys under a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    prefix: String,
}

impl Keys {
    /// The keys under a prefix, which has no `/` at its end.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    /// The prefix of rules; a rule's id follows.
    #[must_use]
    pub fn rules(&self) -> String {
        format!("{}/rules/", self.prefix)
    }

    /// The prefix of questions.
    #[must_use]
    pub fn asks(&self) -> String {
        format!("{}/asks/", self.prefix)
    }

    /// The prefix of hosts.
    #[must_use]
    pub fn hosts(&self) -> String {
        format!("{}/hosts/", self.prefix)
    }

    /// A host's report.
    #[must_use]
    pub fn status(&self, host: &str) -> String {
        format!("{}/hosts/{host}/status", self.prefix)
    }

    /// A host's answer to a question.
    #[must_use]
    pub fn answer(&self, host: &str, ask: &str) -> String {
        format!("{}/hosts/{host}/answers/{ask}", self.prefix)
    }
}
