//! Renewals before they are due, so that they are as many in each hour.
//!
//! Certificates that came together are due together, once in each lifetime, for ever: after an outage of the CA, a mass
//! replacement, the import of a fleet, a change of lifetimes. What comes in a heap meets the CA's limits in a heap, and a
//! day's trouble then hits all of it. So a heap that comes in sight is begun early, at the least rate that is over with it in
//! time; without one, hardly anything is.

use std::collections::HashSet;

use portico_cert_store::LineageId;

use crate::clock::{DAY_MS, HOUR_MS};

/// A renewal may be early by this part of the time from issue to when it is due. A CA that suggests windows takes no
/// replacement from its limits before they begin, but the exact names again: of those it allows five a week.
const EARLY_SHARE: i64 = 3;
/// What is due within this time is no heap: the spread of a batch is longer.
const LEVEL_MS: i64 = DAY_MS / 4;

/// A renewal of the same names that is not due yet. Unix milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Ahead {
    pub lineage: LineageId,
    pub issued_at: i64,
    pub due_at: i64,
}

impl Ahead {
    /// Whether it may be renewed already.
    pub fn is_of_age(&self, now_ms: i64) -> bool {
        self.due_at - (self.due_at - self.issued_at) / EARLY_SHARE <= now_ms
    }
}

/// Those to renew now. `in_last_hour`: orders that ended within the last hour, and those that are open.
pub fn early(mut ahead: Vec<Ahead>, in_last_hour: usize, now_ms: i64) -> HashSet<LineageId> {
    ahead.retain(|renewal| renewal.is_of_age(now_ms));
    ahead.sort_unstable_by_key(|renewal| (renewal.due_at, renewal.lineage));
    let mut an_hour = 0;
    for (nth, renewal) in (1i64..).zip(&ahead) {
        an_hour = an_hour.max(nth * HOUR_MS / (renewal.due_at - now_ms).max(LEVEL_MS));
    }
    let room = usize::try_from(an_hour).unwrap_or(usize::MAX).saturating_sub(in_last_hour);
    ahead.into_iter().take(room).map(|renewal| renewal.lineage).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Renewals that take as long as they are made every hour, of certificates that are due after `after`; orders of each hour.
    fn run(mut due: Vec<i64>, after: i64, hours: i64) -> Vec<usize> {
        let lineages: Vec<LineageId> = due.iter().map(|_| LineageId::generate()).collect();
        let mut counts = Vec::new();
        for hour in 0..hours {
            let now = hour * HOUR_MS;
            let mut renewed: HashSet<LineageId> = due
                .iter()
                .zip(&lineages)
                .filter(|(at, _)| **at <= now)
                .map(|(_, lineage)| *lineage)
                .collect();
            let ahead = due.iter().zip(&lineages).filter(|(at, _)| **at > now);
            let ahead = ahead
                .map(|(at, lineage)| Ahead { lineage: *lineage, issued_at: at - after, due_at: *at })
                .collect();
            renewed.extend(early(ahead, renewed.len(), now));
            for (at, lineage) in due.iter_mut().zip(&lineages) {
                if renewed.contains(lineage) {
                    *at = now + after;
                }
            }
            counts.push(renewed.len());
        }
        counts
    }

    #[test]
    fn a_heap_is_flat_when_it_is_due() {
        let after = 60 * DAY_MS;
        // Steadily 20 an hour, of which a fifth were replaced at once on day 30.
        let due =
            (0..60 * 24 * 20).map(|n| if n % 5 == 0 && n > 20 { 30 * DAY_MS } else { n * HOUR_MS / 20 });
        let due = due.collect();
        let counts = run(due, after, 90 * 24);
        let days: Vec<usize> = counts.chunks(24).map(|day| day.iter().sum()).collect();
        let (fewest, most) = (days.iter().min().unwrap(), days.iter().max().unwrap());
        assert!(*most < fewest * 2, "from {fewest} to {most} in a day: {days:?}");
    }

    #[test]
    fn without_a_heap_next_to_nothing_is_early() {
        let due = (0..60 * 24 * 20).map(|n| (n + 1) * HOUR_MS / 20).collect();
        let counts = run(due, 60 * DAY_MS, 60 * 24);
        let all: usize = counts.iter().sum();
        assert!(all < 60 * 24 * 20 * 102 / 100, "{all} renewals where 28,800 were due");
    }

    #[test]
    fn few_are_left_alone() {
        let lineage = LineageId::generate();
        let soon = Ahead { lineage, issued_at: 0, due_at: 60 * DAY_MS };
        assert!(early(vec![soon; 5], 0, 59 * DAY_MS).is_empty(), "less than one an hour");
        assert_eq!(early(vec![soon; 30], 0, 60 * DAY_MS - 1), HashSet::from([lineage]));
        assert!(early(vec![soon; 30], 0, 39 * DAY_MS).is_empty(), "too young");
    }

    proptest! {
        #[test]
        fn what_is_taken_has_come_of_age_and_is_not_more_than_the_rate(
            all in prop::collection::vec((0i64..100 * DAY_MS, 1i64..100 * DAY_MS), 0..300),
            done in 0usize..50,
            now in 0i64..200 * DAY_MS,
        ) {
            let ahead: Vec<Ahead> = all
                .iter()
                .map(|(issued_at, life)| Ahead { lineage: LineageId::generate(), issued_at: *issued_at, due_at: issued_at + life })
                .filter(|renewal| renewal.due_at > now)
                .collect();
            let taken = early(ahead.clone(), done, now);
            prop_assert!(taken.len() + done <= done.max(ahead.len() / 6));
            let latest = ahead.iter().filter(|one| taken.contains(&one.lineage)).map(|one| one.due_at).max();
            for renewal in ahead {
                if taken.contains(&renewal.lineage) {
                    prop_assert!(renewal.is_of_age(now));
                } else if let Some(latest) = latest {
                    prop_assert!(!renewal.is_of_age(now) || renewal.due_at >= latest, "one that is due sooner waits");
                }
            }
        }
    }
}
