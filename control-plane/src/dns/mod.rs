//! DNS, from both sides.

pub mod responder;
