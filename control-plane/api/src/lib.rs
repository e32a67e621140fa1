//! Everything that crosses a process boundary of Portico.
//!
//! - [`v1`]: the tenant API, JSON over HTTP, types shared by the server, the command line and callers in Rust.
//! - [`distribution`]: the stream from the control plane to its edges, and the frames of an edge's last-good files.
//! - [`rule`]: what a route's text means, read the same by both sides.
//! - [`strict`]: how texts from people are read, by both sides.
//!
//! Deliberately absent: behaviour. Nothing here stores or sends by itself.

pub mod distribution;
pub mod rule;
pub mod strict;
pub mod v1;
