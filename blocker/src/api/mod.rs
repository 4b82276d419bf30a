//! The control API: HTTP/1.1 and JSON over a Unix socket, versioned under `/v1`.
//!
//! [`crate::wire`] is what travels, [`server`] answers, [`client`] asks, [`openapi`] describes.

pub mod client;
pub mod openapi;
pub mod server;
