//! The one place of this crate that reads the time.
//!
//! A [`Clock`] is the system's wall clock plus an offset that tests move; everything pure takes `now` as an argument.
//! Times are Unix milliseconds (`i64`, as the store keeps them) or [`UnixTime`] seconds (as certificates need them).
//!
//! A wall clock jumps: time servers mend it, an operator sets it, a machine is suspended. What waits for a time would then wait
//! for as long as the jump, or not at all. So a clock that [`Clock::holds`] goes on steadily, by the monotonic one, until
//! [`crate::tasks::clock_jumps`] has moved what waits and lets it follow ([`Clock::follow`]).

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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

/// A smaller difference is no jump: time servers steer a clock by less, and no wait is short enough to suffer from it.
pub const JUMP_LEAST_MS: i64 = 10 * SECOND_MS;
/// Two clocks that are read together are read within this.
const TOGETHER: Duration = Duration::from_millis(500);

/// The wall clock; clones share one offset.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    offset_ms: Arc<AtomicI64>,
    /// How far tests have set the system's clock.
    set_ms: Arc<AtomicI64>,
    /// The last reading that is believed; `None`: each is.
    held: Arc<Mutex<Option<Reading>>>,
}

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
struct Reading {
    wall_ms: i64,
    at: Instant,
}

/// The system's clock went another way than time did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jump {
    /// Forward, or back where it is negative.
    pub by_ms: i64,
}

impl Reading {
    /// What the wall clock says if it has not jumped.
    fn expected_ms(&self, at: Instant) -> i64 {
        let passed = at.saturating_duration_since(self.at).as_millis();
        self.wall_ms.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX))
    }
}

impl Clock {
    /// Unix milliseconds.
    pub fn now_ms(&self) -> i64 {
        let now = self.read();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let believed = match &mut *held {
            None => now.wall_ms,
            Some(last) => {
                let expected = last.expected_ms(now.at);
                if (now.wall_ms - expected).abs() < JUMP_LEAST_MS {
                    *last = now;
                    now.wall_ms
                } else {
                    expected
                }
            }
        };
        believed.saturating_add(self.offset_ms.load(Ordering::Relaxed))
    }

    /// Unix seconds, as the checks of certificates take them.
    pub fn now(&self) -> UnixTime {
        unix_time(self.now_ms())
    }

    /// From now on jumps are not followed before they are [allowed](Self::follow).
    pub fn holds(&self) {
        let now = self.read();
        self.held.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(now);
    }

    /// A jump that has not been followed yet.
    pub fn jump(&self) -> Option<Jump> {
        let now = self.read();
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let by_ms = now.wall_ms - (*held)?.expected_ms(now.at);
        (by_ms.abs() >= JUMP_LEAST_MS).then_some(Jump { by_ms })
    }

    /// Goes by the wall clock as it is after this jump.
    pub fn follow(&self, jump: Jump) {
        let now = self.read();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = &mut *held {
            *last = Reading { wall_ms: last.expected_ms(now.at).saturating_add(jump.by_ms), at: now.at };
        }
    }

    /// Moves this clock and its clones forward, for tests of what takes days: time passes.
    pub fn advance(&self, by: Duration) {
        self.offset_ms.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    /// Sets the system's clock as this one and its clones see it, for tests of jumps: no time passes.
    pub fn set_system(&self, by_ms: i64) {
        self.set_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    /// Both clocks, read again where the process was stopped between the two.
    fn read(&self) -> Reading {
        loop {
            let at = instant();
            let wall_ms = system_ms().saturating_add(self.set_ms.load(Ordering::Relaxed));
            if at.elapsed() < TOGETHER {
                return Reading { wall_ms, at };
            }
        }
    }
}

/// Whether less than `interval_ms` has passed since `at_ms`; a time that is still to come was written before the clock was set
/// back, and says nothing.
pub fn is_within(interval_ms: i64, at_ms: i64, now_ms: i64) -> bool {
    (0..interval_ms).contains(&now_ms.saturating_sub(at_ms))
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
    fn a_held_clock_follows_a_jump_when_it_is_let_and_time_that_passes_at_once() {
        let clock = Clock::default();
        let raw = clock.clone();
        clock.set_system(DAY_MS);
        let start = raw.now_ms();
        assert_eq!(clock.jump(), None, "nobody holds it");
        clock.holds();
        assert_eq!(clock.jump(), None, "what was before is past");
        for by_ms in [3 * HOUR_MS, -DAY_MS, JUMP_LEAST_MS + SECOND_MS] {
            let before = clock.now_ms();
            raw.set_system(by_ms);
            assert!((0..SECOND_MS).contains(&(clock.now_ms() - before)), "it goes on steadily");
            clock.advance(Duration::from_secs(60));
            let jump = clock.jump().unwrap();
            assert!((jump.by_ms - by_ms).abs() < SECOND_MS, "{jump:?}");
            clock.follow(jump);
            assert_eq!(clock.jump(), None);
            assert!((clock.now_ms() - before - by_ms - MINUTE_MS).abs() < SECOND_MS);
        }
        raw.set_system(JUMP_LEAST_MS - SECOND_MS);
        assert_eq!(clock.jump(), None, "a little is steered by at once");
        let all = 3 * HOUR_MS - DAY_MS + 2 * JUMP_LEAST_MS + 3 * MINUTE_MS;
        assert!((clock.now_ms() - start - all).abs() < SECOND_MS);
    }

    #[test]
    fn clones_of_a_clock_move_together() {
        let clock = Clock::default();
        let (before, twin) = (clock.now_ms(), clock.clone());
        twin.advance(Duration::from_secs(86_400));
        assert!(clock.now_ms() >= before + 86_400_000);
    }
}
