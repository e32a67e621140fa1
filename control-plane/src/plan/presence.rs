//! Whether a served name still leads here: from what was seen to what follows.
//!
//! A name that led here once and no longer does has left its tenant's site, as a rule without a word. It stays in its
//! group, each renewal fails for it, and its failures add up at the CA. So a watch looks at it, several times over a
//! time; only looks that are certain count, one that sees it here ends the series. Then it *has left*: its tenant is told, and
//! it is served on through a time of grace. After that it is *retired*: nothing is ordered for it, its group's certificate is
//! made without it, its key is destroyed. It comes back by itself when it leads here again, at any of these stages.
//!
//! What never led here is never a leaver: names that are proved and certified by DNS alone, before a site moves or for good.
//!
//! Deliberately absent: an end of ownership. The proof stands, and a rival needs its own.

use super::timing;
use crate::clock::DAY_MS;

/// What is known of a name. Times are Unix milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It was never seen here.
    Never {
        since: i64,
    },
    Here {
        since: i64,
    },
    /// Seen elsewhere `looks` times in a row, first at `since`.
    Away {
        since: i64,
        looks: u32,
    },
    /// Seen so often enough; the time of grace began at `at`.
    Left {
        since: i64,
        looks: u32,
        at: i64,
    },
    /// The time of grace is over.
    Retired {
        since: i64,
        looks: u32,
        left_at: i64,
        at: i64,
    },
}

/// What one look saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// It leads here, directly or by way of others.
    Here,
    /// It leads elsewhere, but its holder lets it be validated without leading here.
    Kept,
    /// It certainly leads elsewhere, or nowhere.
    Elsewhere,
    Unknown,
}

/// What has to be told and done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Left,
    Retired,
    Back { was_retired: bool },
}

/// The operator's times, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub look_every_ms: i64,
    /// Looks that must have seen it elsewhere…
    pub looks: u32,
    /// …over at least this time.
    pub away_ms: i64,
    pub grace_ms: i64,
    /// From retirement until a certificate without the name is ordered, where no renewal comes before.
    pub leave_within_ms: i64,
    /// Names that may be away at the same time, in percent of those that led here once; with more, something is wrong here.
    pub most_percent: u32,
}

/// So many may be away whatever the share: the customers of a small provider are few.
const AWAY_ALWAYS: u64 = 10;
/// A name that was retired so long ago is looked at once a day.
const LATE_MS: i64 = 30 * DAY_MS;

impl Rules {
    /// Whether so many names are away that the fault must be here: a wrong list of addresses, a resolver that lies.
    pub fn are_too_many(&self, away: u64, watched: u64) -> bool {
        away > AWAY_ALWAYS && away.saturating_mul(100) > watched.saturating_mul(self.most_percent.into())
    }
}

/// What follows from a look. While `held`, nothing goes on that has to be told or done; what is back is back all the same.
pub fn after(
    standing: Standing,
    seen: Sighting,
    now_ms: i64,
    rules: &Rules,
    held: bool,
) -> (Standing, Option<Change>) {
    match (standing, seen) {
        (same, Sighting::Unknown) => (same, None),
        (Standing::Here { since }, Sighting::Here | Sighting::Kept) => (Standing::Here { since }, None),
        (Standing::Never { .. } | Standing::Away { .. }, Sighting::Here) => {
            (Standing::Here { since: now_ms }, None)
        }
        (Standing::Never { since }, Sighting::Kept | Sighting::Elsewhere) => {
            (Standing::Never { since }, None)
        }
        (Standing::Away { .. }, Sighting::Kept) => (Standing::Here { since: now_ms }, None),
        (Standing::Left { .. }, Sighting::Here | Sighting::Kept) => {
            (Standing::Here { since: now_ms }, Some(Change::Back { was_retired: false }))
        }
        (Standing::Retired { .. }, Sighting::Here | Sighting::Kept) => {
            (Standing::Here { since: now_ms }, Some(Change::Back { was_retired: true }))
        }
        (Standing::Here { .. }, Sighting::Elsewhere) => (Standing::Away { since: now_ms, looks: 1 }, None),
        (Standing::Away { since, looks }, Sighting::Elsewhere) => {
            let looks = looks.saturating_add(1);
            if !held && looks >= rules.looks && now_ms - since >= rules.away_ms {
                (Standing::Left { since, looks, at: now_ms }, Some(Change::Left))
            } else {
                (Standing::Away { since, looks }, None)
            }
        }
        (Standing::Left { since, looks, at }, Sighting::Elsewhere) => {
            let looks = looks.saturating_add(1);
            if !held && now_ms - at >= rules.grace_ms {
                (Standing::Retired { since, looks, left_at: at, at: now_ms }, Some(Change::Retired))
            } else {
                (Standing::Left { since, looks, at }, None)
            }
        }
        (Standing::Retired { since, looks, left_at, at }, Sighting::Elsewhere) => {
            (Standing::Retired { since, looks: looks.saturating_add(1), left_at, at }, None)
        }
    }
}

/// When a name is looked at next; `seed` spreads names that were looked at together.
pub fn next_look(standing: Standing, now_ms: i64, rules: &Rules, seed: u64) -> i64 {
    let every = match standing {
        Standing::Retired { at, .. } if now_ms - at > LATE_MS => rules.look_every_ms.max(DAY_MS),
        Standing::Never { .. }
        | Standing::Here { .. }
        | Standing::Away { .. }
        | Standing::Left { .. }
        | Standing::Retired { .. } => rules.look_every_ms,
    };
    let usual = now_ms + every - timing::jitter(every / 10, seed);
    // What ends by itself is not overlooked for a whole period.
    let end = match standing {
        Standing::Away { since, looks } if looks.saturating_add(1) >= rules.looks => since + rules.away_ms,
        Standing::Left { at, .. } => at + rules.grace_ms,
        Standing::Never { .. } | Standing::Here { .. } | Standing::Away { .. } | Standing::Retired { .. } => {
            return usual;
        }
    };
    if end > now_ms { usual.min(end) } else { usual }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::HOUR_MS;

    const RULES: Rules = Rules {
        look_every_ms: 6 * HOUR_MS,
        looks: 4,
        away_ms: DAY_MS,
        grace_ms: 7 * DAY_MS,
        leave_within_ms: 6 * DAY_MS,
        most_percent: 10,
    };

    /// The changes that a history of looks brings, with the hour of each.
    fn history(looks: &[(i64, Sighting)]) -> Vec<(i64, Change)> {
        let mut standing = Standing::Never { since: 0 };
        let mut changes = Vec::new();
        for (hour, seen) in looks {
            let (next, change) = after(standing, *seen, hour * HOUR_MS, &RULES, false);
            standing = next;
            changes.extend(change.map(|change| (*hour, change)));
        }
        changes
    }

    fn every_six_hours(from: i64, to: i64, seen: Sighting) -> Vec<(i64, Sighting)> {
        (from..to).step_by(6).map(|hour| (hour, seen)).collect()
    }

    #[test]
    fn a_name_that_is_gone_leaves_after_a_day_and_is_retired_after_its_grace() {
        let mut looks = vec![(0, Sighting::Here)];
        looks.extend(every_six_hours(6, 400, Sighting::Elsewhere));
        assert_eq!(history(&looks), [(30, Change::Left), (30 + 7 * 24, Change::Retired)]);
        looks.push((401, Sighting::Here));
        assert_eq!(history(&looks)[2], (401, Change::Back { was_retired: true }));
    }

    #[test]
    fn a_name_that_never_led_here_does_not_leave() {
        let mut looks = every_six_hours(0, 4000, Sighting::Elsewhere);
        looks.push((4001, Sighting::Kept));
        looks.extend(every_six_hours(4002, 8000, Sighting::Elsewhere));
        assert_eq!(history(&looks), []);
    }

    #[test]
    fn what_is_not_known_counts_for_nothing() {
        let mut looks = vec![(0, Sighting::Here), (6, Sighting::Elsewhere)];
        looks.extend(every_six_hours(12, 4000, Sighting::Unknown));
        assert_eq!(history(&looks), [], "one look is not enough, whatever time has passed");
        looks.extend([(4000, Sighting::Elsewhere), (4001, Sighting::Elsewhere)]);
        assert_eq!(history(&looks), []);
        looks.push((4002, Sighting::Elsewhere));
        assert_eq!(history(&looks), [(4002, Change::Left)]);
    }

    #[test]
    fn one_look_that_sees_it_here_begins_anew() {
        let mut looks = vec![(0, Sighting::Here)];
        looks.extend(every_six_hours(6, 30, Sighting::Elsewhere));
        looks.push((30, Sighting::Here));
        looks.extend(every_six_hours(36, 60, Sighting::Elsewhere));
        assert_eq!(history(&looks), []);
    }

    #[test]
    fn a_name_that_is_back_within_its_grace_was_never_retired() {
        let mut looks = vec![(0, Sighting::Here)];
        looks.extend(every_six_hours(6, 150, Sighting::Elsewhere));
        looks.push((150, Sighting::Kept));
        assert_eq!(history(&looks), [(30, Change::Left), (150, Change::Back { was_retired: false })]);
    }

    #[test]
    fn while_too_many_are_away_nothing_goes_on_and_what_is_back_is_back() {
        assert!(!RULES.are_too_many(10, 10), "a few may always be");
        assert!(!RULES.are_too_many(100, 1000));
        assert!(RULES.are_too_many(101, 1000));
        let away = Standing::Away { since: 0, looks: 50 };
        let (still, change) = after(away, Sighting::Elsewhere, 90 * DAY_MS, &RULES, true);
        assert_eq!((still, change), (Standing::Away { since: 0, looks: 51 }, None));
        let left = Standing::Left { since: 0, looks: 50, at: 1 };
        let (still, change) = after(left, Sighting::Elsewhere, 90 * DAY_MS, &RULES, true);
        assert_eq!((still, change), (Standing::Left { since: 0, looks: 51, at: 1 }, None));
        let (_, change) = after(still, Sighting::Here, 90 * DAY_MS, &RULES, true);
        assert_eq!(change, Some(Change::Back { was_retired: false }));
    }

    proptest! {
        /// Whatever is seen: retired only after looks enough, a time enough and the whole grace, all without one look that saw
        /// it here; and only what was here before.
        #[test]
        fn nobody_is_retired_in_haste(
            seen in prop::collection::vec((1i64..40, 0u8..8), 1..120),
        ) {
            let (mut standing, mut now) = (Standing::Never { since: 0 }, 0);
            let (mut was_here, mut run): (bool, Vec<i64>) = (false, Vec::new());
            for (hours, kind) in seen {
                now += hours * HOUR_MS;
                let seen = match kind {
                    0 => Sighting::Here,
                    1 => Sighting::Unknown,
                    _ => Sighting::Elsewhere,
                };
                match seen {
                    Sighting::Here => { was_here = true; run.clear(); }
                    Sighting::Elsewhere => run.push(now),
                    Sighting::Kept | Sighting::Unknown => {}
                }
                let (next, change) = after(standing, seen, now, &RULES, false);
                standing = next;
                let span = run.first().map_or(0, |first| now - first);
                let enough = run.len() >= RULES.looks as usize;
                match change {
                    Some(Change::Left) => prop_assert!(was_here && enough && span >= RULES.away_ms),
                    Some(Change::Retired) => prop_assert!(was_here && enough && span >= RULES.away_ms + RULES.grace_ms),
                    Some(Change::Back { .. }) => prop_assert_eq!(seen, Sighting::Here),
                    None => {}
                }
                let most = match standing {
                    Standing::Retired { at, .. } if now - at > LATE_MS => DAY_MS,
                    Standing::Never { .. }
                    | Standing::Here { .. }
                    | Standing::Away { .. }
                    | Standing::Left { .. }
                    | Standing::Retired { .. } => RULES.look_every_ms,
                };
                let next = next_look(standing, now, &RULES, 7);
                prop_assert!(next > now && next <= now + most);
            }
        }
    }
}
