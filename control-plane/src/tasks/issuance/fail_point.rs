//! Named places at the boundaries of the order machine's steps where a test can kill the process.
//!
//! In a build without feature `failpoints` (and outside of this crate's tests) [`reach`] is nothing. With it, the process
//! whose environment names a point in `PORTICO_FAIL_POINT` aborts there, with no destructor run, as `kill -9` would.

/// Every point, in the order in which an undisturbed issuance passes them.
#[cfg(any(test, feature = "failpoints"))]
pub const ALL: &[&str] = &[
    "account.intended",
    "account.registered",
    "account.recorded",
    "order.planned",
    "order.counted",
    "order.created",
    "order.created_recorded",
    "order.challenges_placed",
    "order.challenged_recorded",
    "order.challenges_ready",
    "order.validated",
    "order.ready_recorded",
    "order.finalized",
    "order.finalizing_recorded",
    "order.certificate_fetched",
    "order.published",
];

/// Passes on, or ends the process.
#[cfg(any(test, feature = "failpoints"))]
pub(crate) fn reach(point: &'static str) {
    debug_assert!(ALL.contains(&point), "{point} is not in the list");
    if std::env::var("PORTICO_FAIL_POINT").is_ok_and(|wanted| wanted == point) {
        std::process::abort();
    }
}

/// Nothing.
#[cfg(not(any(test, feature = "failpoints")))]
pub(crate) fn reach(_: &'static str) {}
