//! What HTTP/3 promises, over real sockets, with an edge of two workers in a process of its own.

#![expect(unreachable_pub, reason = "modules of one test binary")]
#![expect(clippy::unwrap_used, reason = "a step of a test that fails is its failure")]

#[path = "../fleet/mod.rs"]
mod fleet;
mod harness;
mod hostile;
mod origin;
mod serving;
