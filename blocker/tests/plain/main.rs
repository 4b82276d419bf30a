//! Tests that need no privileges: `blockctl` against a fake daemon, and parsers as their users meet
//! them.

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

mod blockctl;
mod fake_daemon;
mod lists;
mod parsers;
