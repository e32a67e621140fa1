//! Issuance over real sockets: the control plane in this process, a CA that validates, an edge made of the generated
//! client that answers challenges from what it was pushed.

#![expect(unreachable_pub, reason = "the modules of one test binary")]

mod crash;
#[path = "../distribution/edge.rs"]
#[expect(dead_code, reason = "the distribution's tests use all of it, these a part")]
mod edge;
mod failing;
mod issuing;
mod lab;
mod pebble;
mod stand_in;
