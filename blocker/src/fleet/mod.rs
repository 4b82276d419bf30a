//! Rules for many hosts, through etcd.
//!
//! | module | owns |
//! |---|---|
//! | [`selector`] | which hosts are meant; pure |
//! | [`value`] | what is stored, its version and deadline; pure |
//! | [`held`] | what etcd said last, what of it is this host's, the same on disk |
//! | [`report`] | what a host tells of itself; pure |
//! | [`board`] | how a host follows etcd, for `status` |
//! | `link` | connections to etcd |
//! | `source` | following etcd: list, watch, lose, come back |
//! | `reporter` | telling etcd of this host, at a bounded rate |
//! | `daemon` | all of it in the daemon, and over its reloads |
//! | `client` | what `blockctl fleet` asks of etcd |
//!
//! The lower five are there with the Cargo feature `fleet`. What a rule may touch on a host is
//! [`crate::safety`]'s to say, how it is enforced [`crate::controller`]'s.
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
pub mod held;
#[cfg(feature = "fleet")]
pub mod link;
pub mod report;
#[cfg(feature = "fleet")]
mod reporter;
pub mod selector;
#[cfg(feature = "fleet")]
pub mod source;
pub mod value;

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
