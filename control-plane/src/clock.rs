//! The one place of this crate that reads the time.
//!
//! A [`Clock`] is the system's wall clock plus an offset that tests move; everything pure takes `now` as an argument.
//! Times are Unix milliseconds (`i64`, as the store keeps them) or [`UnixTime`] seconds (as certificates need them).

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use portico_cert_store::UnixTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub const SECOND_MS: i64 = 1000;
pub const MINUTE_MS: i64 = 60 * SECOND_MS;
pub const HOUR_MS: i64 = 60 * MINUTE_MS;
pub const DAY_MS: i64 = 24 * HOUR_MS;

/// When something is tried again that nobody tries again: the end of 9999, the last time that RFC 3339 can write.
pub const NEVER_MS: i64 = 253_402_300_799_000;

/// The wall clock; clones share one offset.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    offset_ms: Arc<AtomicI64>,
}

impl Clock {
    /// Unix milliseconds.
    pub fn now_ms(&self) -> i64 {
        system_ms().saturating_add(self.offset_ms.load(Ordering::Relaxed))
    }

    /// Unix seconds, as the checks of certificates take them.
    pub fn now(&self) -> UnixTime {
        unix_time(self.now_ms())
    }

    /// Moves this clock and its clones forward, for tests of what takes days.
    pub fn advance(&self, by: Duration) {
        self.offset_ms.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}

/// A monotonic reading, for durations and deadlines inside one process.
#[expect(clippy::disallowed_methods, reason = "this is the clock module")]
pub fn instant() -> Instant {
    Instant::now()
}

/// The system's wall clock, for what another machine's clock wrote into a header.
pub fn utc() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(system_ms()).unwrap_or(0))
}

#[expect(clippy::disallowed_methods, reason = "this is the clock module")]
fn system_ms() -> i64 {
    // A clock before 1970 reads as 1970: certificates then are "not yet valid", which is the truth of that machine.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Unix milliseconds as [`UnixTime`]; a time before 1970 becomes 1970.
pub fn unix_time(ms: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
}

/// Unix milliseconds of a certificate's time; the last that there is for one beyond.
pub(crate) fn unix_ms(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX / 1000).saturating_mul(1000)
}

/// Unix milliseconds in RFC 3339, UTC, whole milliseconds.
pub fn rfc3339(ms: i64) -> String {
    let nanoseconds = i128::from(ms) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned())
}

/// Unix milliseconds of an RFC 3339 text; `None` when it is not one.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_reads_back_from_its_text() {
        for ms in [0, 1_732_000_000_123, 253_402_300_799_000] {
            assert_eq!(parse_rfc3339(&rfc3339(ms)), Some(ms), "{}", rfc3339(ms));
        }
        assert_eq!(parse_rfc3339("2026-11-24T07:00:00+01:00"), parse_rfc3339("2026-11-24T06:00:00Z"));
        assert_eq!(parse_rfc3339("tomorrow"), None);
        assert_eq!(rfc3339(i64::MAX), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn clones_of_a_clock_move_together() {
        let clock = Clock::default();
        let (before, twin) = (clock.now_ms(), clock.clone());
        twin.advance(Duration::from_secs(86_400));
        assert!(clock.now_ms() >= before + 86_400_000);
    }
}
