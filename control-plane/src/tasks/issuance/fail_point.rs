//! Named places at the boundaries of the order machine's steps where a test can end the process.
//!
//! Nothing in the product arms one: no configuration, argument or environment variable does. They are in every build, so
//! that the tests run the very code that is shipped.

use std::sync::OnceLock;

/// Every point, in the order in which an undisturbed issuance passes them; the two of keys only where an edge makes them.
pub const ALL: &[&str] = &[
    "account.intended",
    "account.registered",
    "account.recorded",
    "order.planned",
    "order.key_made",
    "order.key_recorded",
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

static ARMED: OnceLock<String> = OnceLock::new();

/// From now on this process aborts at `point`, with no destructor run, as `kill -9` would. Only the first call counts.
pub fn arm(point: String) {
    ARMED.get_or_init(|| point);
}

/// Passes on, or ends the process.
pub(crate) fn reach(point: &'static str) {
    debug_assert!(ALL.contains(&point), "{point} is not in the list");
    if ARMED.get().is_some_and(|armed| armed == point) {
        std::process::abort();
    }
}
