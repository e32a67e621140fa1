//! The only place of this crate that reads time.

use std::time::Instant;

use rustls_pki_types::UnixTime;

#[expect(clippy::disallowed_methods, reason = "the crate's one clock")]
pub(crate) fn instant() -> Instant {
    Instant::now()
}

pub(crate) fn unix() -> UnixTime {
    UnixTime::now()
}

/// Milliseconds since `start`, with a microsecond's precision.
pub(crate) fn elapsed_ms(start: Instant) -> f64 {
    let elapsed = instant().saturating_duration_since(start);
    (elapsed.as_secs_f64() * 1e6).round() / 1e3
}
