//! DNS, from both sides.

pub mod lookup;
pub(crate) mod pointing;
pub mod responder;
pub mod writer;
