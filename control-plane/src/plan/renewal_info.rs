//! What to make of a CA's suggestion when to renew (RFC 9773): whether it can be followed, the moment within it, and when
//! to ask again.
//!
//! A suggestion is followed unless it is plainly wrong; then, as without one, the share of the lifetime decides. A window
//! in the past means now: so a CA tells of certificates that it is about to revoke.

use std::time::Duration;

use portico_cert_store::{CredentialId, LineageId};

use super::timing::{self, jitter, unit};
use crate::acme::renewal_info::Suggestion;
use crate::clock::{DAY_MS, HOUR_MS, MINUTE_MS};

/// Between two questions where the CA does not say: four a day.
const POLL_MS: i64 = 6 * HOUR_MS;
/// RFC 9773 section 4.3.1: less is taken as a minute, more as a day.
const POLL_MS_MIN: i64 = MINUTE_MS;
const POLL_MS_MAX: i64 = DAY_MS;
/// After a question that failed, by failures in a row; then as without one.
const FAILED_MS: [i64; 3] = [5 * MINUTE_MS, 30 * MINUTE_MS, 2 * HOUR_MS];
/// No later than after this share of the lifetime, whatever the CA suggests.
const SHARE_MAX: f64 = 0.9;
/// A window that moved by less is the same one.
const MOVED_MS_MIN: i64 = HOUR_MS;

/// The certificate that a suggestion is about. Unix milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    pub lineage: LineageId,
    pub credential: CredentialId,
    pub not_before: i64,
    pub not_after: i64,
    /// When we had it.
    pub created_at: i64,
}

/// A window that is followed. Unix milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub start: i64,
    pub end: i64,
}

impl Window {
    /// Whether it has begun and not ended: only then some CAs exempt the replacing order from limits.
    pub fn is_open(self, now: i64) -> bool {
        self.start <= now && now < self.end
    }

    /// Whether it is another window than `before`, and not the same one in slightly other words.
    pub fn has_moved_from(self, before: Self) -> bool {
        (self.start - before.start).abs() >= MOVED_MS_MIN || (self.end - before.end).abs() >= MOVED_MS_MIN
    }
}

/// The window of a suggestion, or why it cannot be followed.
///
/// # Errors
/// Words for people.
pub fn judge(suggestion: &Suggestion, of: &Subject) -> Result<Window, &'static str> {
    let window = Window { start: suggestion.start_ms, end: suggestion.end_ms };
    if window.end <= window.start {
        return Err("the CA's window ends before it begins");
    }
    if window.start >= of.not_after {
        return Err("the CA's window begins after the certificate's end");
    }
    if window.start < of.not_before.saturating_sub(DAY_MS) || window.end <= of.not_before {
        return Err("the CA's window begins before the certificate");
    }
    // Followed, it would have each certificate replaced at once, for ever.
    if window.end <= of.created_at {
        return Err("the CA's window was over before the certificate was issued");
    }
    Ok(window)
}

/// When to renew by a window: a moment within it that is always the same for one certificate, and not too close to its end.
pub fn renew_at(window: Window, of: &Subject) -> i64 {
    let seed = timing::seed_of(of.lineage) ^ low_bits(of.credential);
    let end = window.end.min(of.not_after);
    let point = window.start + share_of(end - window.start, unit(timing::mix(seed)));
    point.min(of.not_before + share_of(of.not_after - of.not_before, SHARE_MAX))
}

/// When to ask next after an answer that could be had.
pub fn next_poll(now: i64, retry_after: Option<Duration>, of: &Subject) -> i64 {
    let asked = retry_after.map(|wait| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
    let wait = asked.unwrap_or(POLL_MS).clamp(POLL_MS_MIN, POLL_MS_MAX);
    // Only later, never sooner: certificates of one hour drift apart.
    now + wait + jitter(wait / 10, low_bits(of.credential) ^ now.unsigned_abs())
}

/// When to ask again after `failures` questions in a row that failed.
pub fn next_after_failure(now: i64, failures: u32, retry_after: Option<Duration>, of: &Subject) -> i64 {
    let index = usize::try_from(failures.saturating_sub(1)).unwrap_or(usize::MAX);
    let wait = FAILED_MS.get(index).copied().unwrap_or(POLL_MS);
    let asked = retry_after.map_or(0, |wait| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
    let wait = wait.max(asked.min(POLL_MS_MAX));
    now + wait + jitter(wait / 10, low_bits(of.credential) ^ now.unsigned_abs())
}

fn low_bits(id: CredentialId) -> u64 {
    u64::try_from(id.ulid().0 & u128::from(u64::MAX)).unwrap_or(0)
}

fn share_of(length: i64, share: f64) -> i64 {
    #[expect(clippy::cast_precision_loss, reason = "53 bits hold 285,000 years in milliseconds")]
    #[expect(clippy::cast_possible_truncation, reason = "at most the length, which was an i64")]
    let part = (length as f64 * share) as i64;
    part
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    fn subject() -> Subject {
        Subject {
            lineage: LineageId::generate(),
            credential: CredentialId::generate(),
            not_before: NOW,
            not_after: NOW + 90 * DAY_MS,
            created_at: NOW + HOUR_MS,
        }
    }

    fn suggestion(start_ms: i64, end_ms: i64) -> Suggestion {
        Suggestion { start_ms, end_ms, explanation_url: None, retry_after: None }
    }

    #[test]
    fn nonsense_is_refused_and_a_window_in_the_past_is_not() {
        let of = subject();
        let judge = |start, end| judge(&suggestion(start, end), &of);
        let good = judge(NOW + 59 * DAY_MS, NOW + 61 * DAY_MS).unwrap();
        assert_eq!((good.start, good.end), (NOW + 59 * DAY_MS, NOW + 61 * DAY_MS));
        judge(NOW + DAY_MS, NOW + DAY_MS + 30 * MINUTE_MS).unwrap();
        for (start, end, why) in [
            (NOW + 61 * DAY_MS, NOW + 59 * DAY_MS, "ends before it begins"),
            (NOW + 61 * DAY_MS, NOW + 61 * DAY_MS, "ends before it begins"),
            (NOW + 91 * DAY_MS, NOW + 92 * DAY_MS, "after the certificate's end"),
            (NOW + 3650 * DAY_MS, NOW + 3651 * DAY_MS, "after the certificate's end"),
            (NOW - 3650 * DAY_MS, NOW + 3650 * DAY_MS, "before the certificate"),
            (NOW - 2 * DAY_MS, NOW - DAY_MS, "before the certificate"),
            (NOW - HOUR_MS, NOW + HOUR_MS, "over before"),
            (i64::MIN, i64::MAX, "before the certificate"),
        ] {
            let refusal = judge(start, end).unwrap_err();
            assert!(refusal.contains(why), "{start} {end}: {refusal}");
        }
    }

    #[test]
    fn the_moment_is_stable_and_certificates_are_spread_over_the_window() {
        let window = Window { start: NOW + 59 * DAY_MS, end: NOW + 61 * DAY_MS };
        let of = subject();
        assert_eq!(renew_at(window, &of), renew_at(window, &of));
        let mut parts = [0; 10];
        for _ in 0..1000 {
            let at = renew_at(window, &subject());
            assert!((window.start..window.end).contains(&at));
            parts[usize::try_from((at - window.start) * 10 / (window.end - window.start)).unwrap()] += 1;
        }
        assert!(parts.iter().all(|held| (50..200).contains(held)), "{parts:?}");
        let late = Window { start: NOW + 89 * DAY_MS, end: NOW + 900 * DAY_MS };
        assert_eq!(renew_at(late, &of), NOW + 81 * DAY_MS, "not after nine tenths of the lifetime");
    }

    #[test]
    fn the_cas_wish_when_to_ask_again_is_followed_within_bounds() {
        let of = subject();
        for (wish, least) in
            [(None, POLL_MS), (Some(0), MINUTE_MS), (Some(3600), HOUR_MS), (Some(90_000_000), DAY_MS)]
        {
            let next = next_poll(NOW, wish.map(Duration::from_secs), &of) - NOW;
            assert!(next >= least && next <= least + least / 10, "{wish:?} {next}");
        }
        let waits: Vec<i64> = (1..=5).map(|n| next_after_failure(NOW, n, None, &of) - NOW).collect();
        assert!(waits[0] < waits[1] && waits[1] < waits[2] && waits[2] < waits[3], "{waits:?}");
        assert!(waits[4] <= POLL_MS + POLL_MS / 10);
        assert!(next_after_failure(NOW, 1, Some(Duration::from_secs(7200)), &of) >= NOW + 2 * HOUR_MS);
    }

    #[test]
    fn a_window_in_slightly_other_words_has_not_moved() {
        let window = Window { start: NOW, end: NOW + DAY_MS };
        let by = |ms| Window { start: window.start + ms, end: window.end + ms };
        assert!(!by(MINUTE_MS).has_moved_from(window));
        assert!(by(-DAY_MS).has_moved_from(window));
    }

    proptest! {
        #[test]
        fn whatever_a_ca_suggests_the_renewal_falls_inside_the_lifetime(start in any::<i64>(), end in any::<i64>()) {
            let of = subject();
            if let Ok(window) = judge(&suggestion(start, end), &of) {
                let at = renew_at(window, &of);
                prop_assert!(at >= of.not_before - DAY_MS && at < of.not_after);
            }
        }
    }
}
