//! Packets and rulesets by chance, and what must become of them.
//!
//! [`frames`] makes valid packets of every kind and then damages them; [`rulesets`] makes the rules
//! that they meet; [`headers`] reads a packet, and [`oracle`] says its fate, by the words of
//! `docs/packet-flow.md` and without any of the code under test: slow and obvious. Only which rules
//! cover an address is taken from the compiler, which has an oracle of its own.

#![allow(dead_code)] // each test uses a part of it

pub(crate) mod frames;
mod headers;
pub(crate) mod oracle;
pub(crate) mod rulesets;

use anyhow::{Context, Result};

/// A number from the environment.
pub(crate) fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{name} is no number: {text:?}")),
        Err(_) => Ok(default),
    }
}
