//! DNS, from both sides.

pub mod lookup;
pub mod responder;
