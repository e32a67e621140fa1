//! What the test CA and the DNS stub promise, over real sockets on loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod certbot;
mod dns_stub;
mod external_account;
mod faults;
mod issuance;
mod limits;
mod process;
mod renewal;
mod stage;
mod strictness;
mod web;
