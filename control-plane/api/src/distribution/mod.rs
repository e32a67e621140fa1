//! The distribution protocol: generated messages, and the few conversions that both sides need.
//!
//! The messages come from `proto/portico/distribution/v1.proto`; a test regenerates them and compares.

#[expect(
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    unused_qualifications,
    reason = "generated code"
)]
#[rustfmt::skip] // as the generator writes it; a test compares
mod generated;

pub use generated::*;

/// The protocol version that this release speaks. Neighbouring versions work together.
pub const PROTOCOL_VERSION: u32 = 1;

/// What this release knows of `Rule`. It rises when a field is added that no edge may leave out.
pub const RULE_LEVEL: u32 = 1;

/// The largest encoded snapshot chunk, bytes.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = 1 << 20;

/// The largest single resource, bytes; a larger one is a fault of the envelope.
pub const RESOURCE_BYTES_MAX: usize = 512 * 1024;

/// More than this share of names removed at once needs the sign-off flag, in percent ...
pub const REMOVAL_PERCENT_MAX: u64 = 5;
/// ... unless so few names go that no fleet-wide mistake can be behind it.
pub const REMOVAL_ALWAYS_ALLOWED: u64 = 32;

/// The URI SAN scheme of an edge's identity: `portico://edge/<edge id>`.
pub const EDGE_URI_PREFIX: &str = "portico://edge/";

impl From<portico_cert_store::Generation> for Generation {
    fn from(from: portico_cert_store::Generation) -> Self {
        Self { epoch: from.epoch, sequence: from.sequence }
    }
}

impl From<Generation> for portico_cert_store::Generation {
    fn from(from: Generation) -> Self {
        Self { epoch: from.epoch, sequence: from.sequence }
    }
}
