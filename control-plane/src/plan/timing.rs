//! When: back-off after failures and renewal before expiry.

use portico_cert_store::LineageId;

use crate::clock::{DAY_MS, MINUTE_MS, SECOND_MS};

/// The last 5 % of the time before a renewal is due are the spread: certificates issued together renew apart.
const SPREAD: f64 = 0.05;
/// A lifetime below this is short (Let's Encrypt's integration guide): there, days of trouble are a large part of it.
const SHORT_MS: i64 = 10 * DAY_MS;
const SHORT_SHARE: f64 = 0.5;
/// First waits of a step whose failure says nothing about the names (a lost answer, a CA in trouble): the order
/// machine tries those again soon and slows down as [`after_failures`] does.
const TRANSIENT_MS: [i64; 3] = [SECOND_MS, 5 * SECOND_MS, 20 * SECOND_MS];

/// The second word about a certificate's end comes when this share of the lifetime is left.
const VERY_SOON_SHARE: i64 = 10;

/// When a certificate ends that its tenant has to replace. Unix milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub not_before: i64,
    pub not_after: i64,
    /// When the next one is asked for.
    pub renew_at: i64,
}

/// All is said of an end.
pub const TOLD_OVER: u8 = 3;

/// What is to be said of an end by now: nothing (0), that it is near (1), very near (2), or past ([`TOLD_OVER`]).
pub fn told_by(ends: &Ends, now_ms: i64) -> u8 {
    (0..TOLD_OVER).find(|told| tell_at(ends, *told).is_some_and(|at| at > now_ms)).unwrap_or(TOLD_OVER)
}

/// When there is more to say to whom that much was told; `None`: never.
pub fn tell_at(ends: &Ends, told: u8) -> Option<i64> {
    let very_soon = ends.not_after - (ends.not_after - ends.not_before) / VERY_SOON_SHARE;
    match told {
        0 => Some(ends.renew_at.min(very_soon)),
        1 => Some(very_soon),
        2 => Some(ends.not_after),
        _ => None,
    }
}

/// Whether a certificate in use is kept before one that covers no name more (P9): it ends later, and is not due. One that is due
/// gives way to a shorter one: its CA may be about to revoke it, or lifetimes are shorter from now on.
pub fn is_better(live: &Ends, new_not_after: i64, now_ms: i64) -> bool {
    now_ms < live.renew_at && live.not_after > new_not_after
}

/// The wait after `failures` failures in a row of the same names: 1 minute, 10 minutes, 100 minutes, then a day (what
/// Let's Encrypt's integration guide asks of large users), each with up to a tenth added by `seed` so that what failed
/// together is not tried together.
pub fn after_failures(failures: u32, seed: u64) -> i64 {
    let base = match failures {
        0 | 1 => MINUTE_MS,
        2 => 10 * MINUTE_MS,
        3 => 100 * MINUTE_MS,
        _ => DAY_MS,
    };
    base + jitter(base / 10, seed)
}

/// The wait after `tries` failed tries of one step, where the failure is the CA's or the network's.
pub fn after_transient(tries: u32, seed: u64) -> i64 {
    let index = usize::try_from(tries.saturating_sub(1)).unwrap_or(usize::MAX);
    match TRANSIENT_MS.get(index) {
        Some(base) => base + jitter(base / 2, seed),
        None => after_failures(tries - 3, seed),
    }
}

/// When a certificate is due for renewal where its CA suggests no time: after `share` of its lifetime, at most half of one
/// that is shorter than ten days, less a spread of up to 5 % of the lifetime that is always the same for one lineage.
pub fn renew_at(not_before_ms: i64, not_after_ms: i64, share: f64, lineage: LineageId) -> i64 {
    #[expect(clippy::cast_precision_loss, reason = "53 bits hold 285,000 years in milliseconds")]
    let lifetime = (not_after_ms - not_before_ms).max(0) as f64;
    let share = if not_after_ms - not_before_ms < SHORT_MS { share.min(SHORT_SHARE) } else { share };
    let spread = SPREAD * unit(seed_of(lineage));
    #[expect(clippy::cast_possible_truncation, reason = "at most the lifetime, which was an i64")]
    let after = (lifetime * (share - spread)).max(0.0) as i64;
    not_before_ms + after
}

/// A seed that is the same for one lineage for ever.
pub fn seed_of(lineage: LineageId) -> u64 {
    mix(u64::try_from(lineage.ulid().0 & u128::from(u64::MAX)).unwrap_or(0))
}

/// From 0 to `most`, by `seed`.
pub(crate) fn jitter(most: i64, seed: u64) -> i64 {
    #[expect(clippy::cast_possible_truncation, reason = "below `most`, an i64")]
    #[expect(clippy::cast_precision_loss, reason = "a wait of at most days")]
    let jitter = (most as f64 * unit(mix(seed))) as i64;
    jitter
}

/// From 0 up to 1.
pub(super) fn unit(seed: u64) -> f64 {
    f64::from(u32::try_from(seed >> 32).unwrap_or(0)) / (f64::from(u32::MAX) + 1.0)
}

/// SplitMix64's finalizer: neighbouring seeds give unrelated numbers.
pub(super) fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::HOUR_MS;

    #[test]
    fn waits_grow_to_a_day_and_never_beyond_a_tenth_more() {
        for (failures, base) in
            [(1, MINUTE_MS), (2, 10 * MINUTE_MS), (3, 100 * MINUTE_MS), (4, DAY_MS), (1000, DAY_MS)]
        {
            for seed in 0..100 {
                let wait = after_failures(failures, seed);
                assert!(wait >= base && wait <= base + base / 10, "{failures} {wait}");
            }
        }
        let first: Vec<_> = (1..=4).map(|tries| after_transient(tries, 7)).collect();
        assert!(first.windows(2).all(|pair| pair[0] < pair[1]), "{first:?}");
        assert!(after_transient(1, 7) <= 1500);
        assert!(after_transient(u32::MAX, 7) <= DAY_MS + DAY_MS / 10);
    }

    #[test]
    fn certificates_issued_together_renew_apart() {
        let lifetime = 90 * DAY_MS;
        let mut due: Vec<_> =
            (0..1000).map(|_| renew_at(0, lifetime, 0.667, LineageId::generate())).collect();
        due.sort_unstable();
        let (first, last) = (due[0], due[999]);
        assert!(last <= lifetime * 667 / 1000 && first >= lifetime * 616 / 1000, "{first} {last}");
        // 4.5 days of spread in 10 parts: none holds more than twice its share.
        let part = lifetime / 200;
        let start = lifetime * 617 / 1000;
        for n in 0..10 {
            let held =
                due.iter().filter(|at| (start + n * part..start + (n + 1) * part).contains(*at)).count();
            assert!(held <= 200, "part {n} holds {held}");
        }
    }

    #[test]
    fn the_schedule_follows_the_lifetime() {
        let lineage = LineageId::generate();
        for (lifetime, latest) in
            [(90 * DAY_MS, 60), (64 * DAY_MS, 43), (45 * DAY_MS, 30), (160 * HOUR_MS, 3)]
        {
            let days = renew_at(0, lifetime, 0.667, lineage) / DAY_MS;
            assert!(days <= latest && days >= latest - 5, "{lifetime} {days}");
        }
        assert!(renew_at(0, 160 * HOUR_MS, 0.3, lineage) <= 48 * HOUR_MS, "an earlier share stays");
    }

    proptest! {
        #[test]
        fn a_renewal_falls_inside_the_lifetime(start in 0i64..1 << 41, life in 0i64..1 << 38, share in 0.1f64..0.95) {
            let at = renew_at(start, start + life, share, LineageId::generate());
            prop_assert!(at >= start && at <= start + life);
        }
    }

    #[test]
    fn an_end_is_told_three_times() {
        let ends = Ends { not_before: 0, not_after: 90 * DAY_MS, renew_at: 60 * DAY_MS };
        for (day, told) in [(0, 0), (59, 0), (60, 1), (80, 1), (81, 2), (89, 2), (90, 3), (900, 3)] {
            assert_eq!(told_by(&ends, day * DAY_MS), told, "day {day}");
        }
        let times = (0..=TOLD_OVER).map(|told| tell_at(&ends, told).map(|at| at / DAY_MS));
        assert_eq!(times.collect::<Vec<_>>(), [Some(60), Some(81), Some(90), None]);
        let late = Ends { renew_at: 85 * DAY_MS, ..ends };
        assert_eq!((tell_at(&late, 0), told_by(&late, 82 * DAY_MS)), (Some(81 * DAY_MS), 2));
    }
}
