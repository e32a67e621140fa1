//! edge
pub mod challenge;
pub mod clock;
pub mod config;
pub mod control;
pub mod http;
pub mod io;
pub mod limits;
pub mod live;
