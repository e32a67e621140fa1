//! The edge's only reader of time. Everything else asks here, so that a clippy rule can hold the line.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustls_pki_types::UnixTime;

/// Monotonic time, for deadlines and durations.
#[expect(clippy::disallowed_methods, reason = "this module is where time is read")]
pub fn now() -> Instant {
    Instant::now()
}

/// Wall time since 1970, for certificate dates, suspensions and the log.
#[expect(clippy::disallowed_methods, reason = "this module is where time is read")]
pub fn unix_elapsed() -> Duration {
    // A clock before 1970 is read as 1970: certificates are then "not yet valid", which is the safe answer.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Wall time for certificate checks (seconds).
pub fn unix_time() -> UnixTime {
    UnixTime::since_unix_epoch(unix_elapsed())
}

/// Wall time in milliseconds, as suspensions and the distribution protocol count it.
pub fn unix_ms() -> i64 {
    i64::try_from(unix_elapsed().as_millis()).unwrap_or(i64::MAX)
}

/// Since this process first asked, for counts that live in one word.
pub fn uptime() -> Duration {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    now().duration_since(*BEGUN.get_or_init(now))
}
