//! Bounds of the control plane, each with its reason. Each is named by the test that hits it.

/// Orders that run at the same time: each waits for its CA most of the time, and the CA's own limits are far below what these
/// can do.
pub const ORDERS_IN_FLIGHT_MAX: usize = 32;
/// Of them, of one tenant: how long one takes is the tenant's name servers' and origins' to say too, and a slot is not taken
/// back from an order that runs.
pub const ORDERS_OF_TENANT_IN_FLIGHT_MAX: usize = 24;
/// Of them, such as are pressing, as long as others could run: a revocation of all must not stop what is new.
pub const PRESSING_ORDERS_IN_FLIGHT_MAX: usize = 24;

/// Chains and sealed keys of the certificates that one tenant has uploaded, in all its cells together, bytes: some 8,000 of them.
/// All are in every backup, and each edge of a cell holds those of the cell.
pub const UPLOADED_BYTES_OF_TENANT_MAX: u64 = 64 << 20;

/// What an operator notes of a tenant's consent, bytes: a sentence or two, kept for ever in the trail.
pub const CONSENT_NOTE_BYTES_MAX: usize = 1000;
