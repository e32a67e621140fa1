//! The only place of this crate that reads time.

use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "the crate's one clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
