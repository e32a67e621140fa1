//! One edge before clients and origins that others wrote: a browser, the Python packages aioquic, websockets and grpcio, curl and
//! openssl, nghttp and h2load.
//!
//! `tests/run` installs them; a test whose program is missing says so and passes. The Python scripts stand beside this file.
//! Each one prints the name of every check that held, and the test compares the list, so that none is left out unseen.

#![expect(clippy::unwrap_used, reason = "set-up fails the test")]

mod chromium;
mod command;
mod curl;
mod edge;
mod grpc;
mod http3;
mod nghttp;
mod origin;
mod python;
mod websocket;
