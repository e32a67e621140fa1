//! Bounds of the control plane, each with its reason. Each is named by the test that hits it.

/// Orders that run at the same time: each waits for its CA most of the time, and the CA's own limits are far below what these
/// can do.
pub const ORDERS_IN_FLIGHT_MAX: usize = 32;
/// Of them, of one tenant: how long one takes is the tenant's name servers' and origins' to say too, and a slot is not taken
/// back from an order that runs.
pub const ORDERS_OF_TENANT_IN_FLIGHT_MAX: usize = 24;
/// Of them, such as are pressing, as long as others could run: a revocation of all must not stop what is new.
pub const PRESSING_ORDERS_IN_FLIGHT_MAX: usize = 24;
