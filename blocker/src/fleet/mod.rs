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
//! | `reporter` | telling etcd of this host, at a bounded rate |
//! | `daemon` | all of it in the daemon, and over its reloads |
//! | `client` | what `blockctl fleet` asks of etcd |
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
    /// Those under a prefix, which has no `/` at its end.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    /// What the keys of rules begin with; a rule's id is behind it.
    #[must_use]
    pub fn rules(&self) -> String {
        format!("{}/rules/", self.prefix)
    }

    /// What the keys of questions begin with.
    #[must_use]
    pub fn asks(&self) -> String {
        format!("{}/asks/", self.prefix)
    }

    /// What all keys of hosts begin with.
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
