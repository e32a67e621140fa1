//! Reconcilers: each reads the wanted and the actual state, acts, records; woken by changes, and by time as the truth.

pub mod clock_jumps;
pub mod issuance;
pub mod origin_identities;
pub mod prove;
pub(crate) mod terms;
pub mod uploads;
pub mod webhooks;
