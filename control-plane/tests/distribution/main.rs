//! Distribution over real sockets: the control plane in this process, edges made of the generated client.

#![expect(clippy::unwrap_used, reason = "a test's set-up may fail loudly")]

mod edge;
mod joining;
mod own_sockets;
mod plane;
#[path = "../stage/postgres.rs"]
mod postgres;
mod replicas;
mod rotating;
mod scale;
mod strangers;
mod syncing;
mod urgent;
mod usage;
