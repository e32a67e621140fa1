//! The only place of this crate that reads time.

use std::time::{Instant, SystemTime};

use portico_cert_store::UnixTime;

#[expect(clippy::disallowed_methods, reason = "the crate's one clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The time of day, for judging certificates and for naming what was done when.
#[expect(clippy::disallowed_methods, reason = "the crate's one clock")]
pub(crate) fn unix() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::since_unix_epoch(since)
}
