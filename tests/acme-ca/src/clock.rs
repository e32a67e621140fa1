//! The CA's clock: real time plus an offset that only grows. Lifetimes, certificates and limits read
//! this clock; socket deadlines use tokio's timers and are not moved.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A clock that can be moved forward, never back.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    offset_ms: AtomicU64,
}

impl Clock {
    /// The time now, the offset included.
    #[expect(clippy::disallowed_methods, reason = "this is the crate's clock module")]
    pub(crate) fn now(&self) -> Moment {
        let real = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Moment(whole_ms(real).saturating_add(self.offset_ms.load(Ordering::Relaxed)))
    }

    /// Moves the clock forward.
    pub(crate) fn advance(&self, by: Duration) {
        self.offset_ms.fetch_add(whole_ms(by), Ordering::Relaxed);
    }
}

/// A point in time: milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    /// This moment plus `by`.
    #[must_use]
    pub(crate) fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(whole_ms(by)))
    }

    /// This moment less `by`, at the earliest 1970.
    #[must_use]
    pub(crate) fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(whole_ms(by)))
    }

    /// How long this moment lies after `earlier`; zero when it does not.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// As a calendar date. A moment past the year 9999 becomes 1970: no clock is moved that far.
    pub(crate) fn date(self) -> OffsetDateTime {
        let seconds = i64::try_from(self.0 / 1000).unwrap_or_default();
        OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// RFC 3339 in UTC, whole seconds.
    pub(crate) fn rfc3339(self) -> String {
        self.date().format(&Rfc3339).unwrap_or_else(|_| "1970-01-01T00:00:00Z".to_owned())
    }
}

/// Reads `90d`, `160h`, `30m`, `45s` or a bare number of seconds.
///
/// # Errors
/// A text that says what was expected.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    let unit_seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(format!("unknown unit {unit:?}: write 45s, 30m, 160h or 90d")),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number and a unit, as in 160h".to_owned())?;
    let seconds = number.checked_mul(unit_seconds).filter(|s| *s <= SECONDS_MAX);
    seconds.map(Duration::from_secs).ok_or_else(|| format!("longer than {} days", SECONDS_MAX / 86_400))
}

/// One hundred years: longer lifetimes are slips of the keyboard.
const SECONDS_MAX: u64 = 100 * 365 * 86_400;

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        assert_eq!(parse_duration("90d").unwrap(), Duration::from_secs(90 * 86_400));
        assert_eq!(parse_duration("160h").unwrap(), Duration::from_secs(160 * 3600));
        assert_eq!(parse_duration("7").unwrap(), Duration::from_secs(7));
        for wrong in ["", "d", "3w", "-1s", "99999999999999999999s", "40000d"] {
            assert!(parse_duration(wrong).is_err(), "{wrong} was taken");
        }
    }

    #[test]
    fn the_clock_only_moves_forward() {
        let clock = Clock::default();
        let before = clock.now();
        clock.advance(Duration::from_secs(3600));
        assert!(clock.now().since(before) >= Duration::from_secs(3600));
        assert_eq!(before.since(clock.now()), Duration::ZERO);
    }
}
