//! The control API: HTTP/1.1 and JSON over a Unix socket, versioned under `/v1`.
//!
//! [`crate::wire`] has the messages, [`server`] and [`client`] the two sides, [`openapi`] the description.

pub mod client;
pub mod openapi;
pub mod server;
