//! Issuance over real sockets: the control plane in this process, a CA that validates, an edge made of the generated
//! client that answers challenges from what it was pushed.

#![expect(unreachable_pub, reason = "the modules of one test binary")]
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "set-up fails the test; figures are real time"
)]

mod adopting;
mod backups;
mod clock_jumps;
mod crash;
mod custody;
#[path = "../distribution/edge.rs"]
#[expect(dead_code, reason = "the distribution's tests use all of it, these a part")]
mod edge;
mod edge_keys;
mod failing;
mod issuers;
mod issuing;
mod lab;
mod leaving;
mod ledger;
mod mass;
mod pebble;
#[path = "../stage/postgres.rs"]
mod postgres;
mod reaching;
mod rekeying;
mod renewing;
mod replicas;
mod stand_in;
mod views;
mod writing;
