//! DNS, from both sides.

pub mod lookup;
pub(crate) mod pointing;
pub mod responder;
pub mod views;
pub mod writer;

/// A name and those above it, down to its last label; an absolute name without its dot.
fn upwards(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(name), |name| name.split_once('.').map(|(_, above)| above))
}
