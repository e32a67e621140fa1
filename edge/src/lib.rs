//! The data plane: TLS, HTTP/1.1, HTTP/2 and HTTP/3 for every name, one worker per core.
//!
//! Entry points: [`run`] is the whole process; [`worker`] is one core; [`connection`] one client; [`exchange`] one request.
//! Workers read the tables of [`live`] and never wait for who writes them. Only [`io`] knows what moves the bytes.

pub mod access_log;
pub mod admin;
pub mod cache;
pub mod challenge;
pub mod clock;
pub mod coding;
pub mod config;
pub mod connection;
pub mod control;
pub mod drain;
pub mod egress;
pub mod exchange;
pub mod handover;
pub mod heap;
pub mod http;
pub mod io;
pub mod limits;
pub mod listen;
pub mod live;
pub mod metrics;
pub mod privacy;
pub mod process;
pub mod proxy_protocol;
pub mod rate;
mod seats;
pub mod server;
pub mod service;
pub mod sources;
pub mod standalone;
pub mod tls;
pub mod traces;
pub mod upstream;
pub mod worker;

pub use server::{Args, run};

/// Log lines to standard error; `RUST_LOG` chooses the level, as `info` or `info,portico_edge=debug`. Does nothing when the
/// program has a logger already.
pub fn start_logging() {
    use std::io::IsTerminal;

    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::{fmt, prelude::*};
    let chosen = std::env::var("RUST_LOG").ok().and_then(|text| text.parse().ok());
    let filter = chosen.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let _ = tracing_subscriber::registry().with(lines).with(filter).try_init();
}
