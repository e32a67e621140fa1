//! Clients that do what they should not: the attacks on HTTP servers that have names, one connection each.
//!
//! Frames are made by hand, so that no well-behaved library stands between an attack and the wire. An attack goes on until
//! the server ends it or its time is over; what is expected of the server is said by [`Attack::end`], and judged by the
//! tests of the edge and by the load test, which both run the same attacks.

mod attack;
mod client;
pub mod frame;
mod holding;
mod quic;
mod trust_all;

pub use attack::{Attack, End, Outcome};
pub use client::{Client, Target};
pub use quic::{Flight, QuicAttack, first_flight};
pub use trust_all::TrustAll;
