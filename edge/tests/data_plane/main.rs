//! What the data plane promises, over real sockets, on io_uring and on epoll.

#![allow(
    unreachable_pub,
    missing_debug_implementations,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::large_futures,
    reason = "a test binary: nobody uses its types, and a failed unwrap is a failed test"
)]

#[path = "../fleet/mod.rs"]
mod fleet;

mod access_log;
mod attacks;
mod authority;
mod cache;
mod certificate_compression;
mod client;
mod client_ca;
mod client_certificates;
mod compression;
mod drain;
mod early_answers;
mod early_data;
mod egress;
mod endings;
mod error_pages;
mod exchange;
mod flood;
mod full;
mod goaway;
mod grpc;
mod handover;
mod handshake;
mod harness;
mod http2_bounds;
mod http2_origin;
mod http3_client;
mod ipv6;
mod key_exchange;
mod limits;
mod memory;
mod metrics;
mod origin;
mod origin_bounds;
mod origin_certificates;
mod origin_failures;
mod origin_framing;
mod panics;
mod pools;
mod process;
mod proxy;
mod proxy_protocol;
mod quic_load;
mod quiet;
mod raw_http2;
mod refusals;
mod resources;
mod restart;
mod rotation;
mod routes;
mod service_manager;
mod site_load;
mod smuggling;
mod sources;
mod stalled;
mod suspension;
mod tenants;
mod tickets;
#[cfg(feature = "otlp")]
mod traces;
mod trailers;
mod trusted;
mod uploads;
mod upstreams;
mod websocket;
