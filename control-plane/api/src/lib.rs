//! Everything that crosses a process boundary of Portico.
//!
//! - [`v1`]: the tenant API, JSON over HTTP, types shared by the server, the command line and callers in Rust.
//! - [`distribution`]: the stream from the control plane to its edges, and the frames of an edge's last-good files.
//!
//! Deliberately absent: behaviour. Nothing here decides, stores or sends by itself.

pub mod distribution;
pub mod v1;
