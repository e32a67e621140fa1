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
pub mod memory;
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
use tracing_subscriber::filter::{LevelFilter, Targets};

/// Log lines to standard error; `RUST_LOG` chooses the level, as `info` or `info,portico_edge=debug`. Does nothing when the
/// program has a logger already.
pub fn start_logging() {
    use std::io::IsTerminal;

    use tracing_subscriber::{fmt, prelude::*};
    let filter = log_filter(std::env::var("RUST_LOG").ok().as_deref());
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let _ = tracing_subscriber::registry().with(lines).with(filter).try_init();
}

/// What is logged. Libraries of protocols warn of what strangers send, with its bytes and as often as it comes: only `chosen`
/// lets them.
fn log_filter(chosen: Option<&str>) -> Targets {
    const LIBRARIES: [&str; 5] = ["rustls", "quinn", "h2", "h3", "hyper"];
    let text = chosen.unwrap_or_default();
    let filter = chosen.and_then(|text| text.parse::<Targets>().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let most = filter.default_level().unwrap_or(LevelFilter::OFF).min(LevelFilter::ERROR);
    let silent = LIBRARIES.iter().filter(|library| !text.contains(**library));
    silent.fold(filter, |filter, library| filter.with_target(*library, most))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn libraries_do_not_log_what_strangers_send_unless_they_are_named() {
        for chosen in [None, Some("info"), Some("debug,portico_edge=trace")] {
            let filter = log_filter(chosen);
            for library in ["rustls::msgs::handshake", "quinn_proto::connection", "h2::proto", "hyper::proto"]
            {
                assert!(!filter.would_enable(library, &Level::WARN), "{chosen:?} {library}");
            }
            assert!(filter.would_enable(module_path!(), &Level::INFO), "{chosen:?}");
        }
        assert!(log_filter(Some("info,rustls=debug")).would_enable("rustls::msgs", &Level::DEBUG));
        assert!(!log_filter(Some("off")).would_enable("rustls::msgs", &Level::ERROR));
    }
}
