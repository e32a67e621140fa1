//! One limit's bucket, by the generic cell rate algorithm: all that is kept of the past is one theoretical arrival time.
//!
//! A bucket of `count` in `period` refills evenly, one each `period / count`. What was spent is how far the arrival time lies
//! ahead of now. Ours is never emptier than the CA's of the same history: each unit is charged when we have the answer,
//! which is not before the CA has charged it, and the interval is rounded up. Time that the clock loses does not pass: a
//! clock that is set back frees nothing, and does not hold a bucket for longer than its own refill either.

use std::str::FromStr;

use crate::clock::{DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS};

/// So many in so long, all of them at once if nothing was spent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct Rate {
    /// 0: no limit.
    pub count: u32,
    pub period_ms: i64,
}

/// The longest period that can be written, milliseconds: ten years.
const PERIOD_MS_MAX: i64 = 3650 * DAY_MS;

impl Rate {
    /// No limit.
    pub const NONE: Self = Self { count: 0, period_ms: DAY_MS };

    pub const fn per(count: u32, period_ms: i64) -> Self {
        Self { count, period_ms }
    }

    pub fn is_limited(self) -> bool {
        self.count > 0
    }

    /// In which one unit refills, rounded up; 0 without limit.
    pub fn interval_ms(self) -> i64 {
        if self.count == 0 {
            0
        } else {
            self.period_ms.div_euclid(i64::from(self.count))
                + i64::from(self.period_ms.rem_euclid(i64::from(self.count)) > 0)
        }
    }

    /// How many refill in `ms`, rounded up; 0 without limit.
    pub fn count_in(self, ms: i64) -> u32 {
        let count = (i64::from(self.count).saturating_mul(ms) + self.period_ms - 1) / self.period_ms;
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn burst_ms(self) -> i64 {
        self.interval_ms() * i64::from(self.count)
    }
}

/// How full a bucket is. The default is an empty one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// When it is empty again if nothing more is spent, Unix milliseconds.
    pub arrival_ms: i64,
    /// The clock when this was written.
    pub seen_ms: i64,
}

impl Bucket {
    /// As it stands at `now`. Where the clock was set back since it was written, no time has passed.
    #[must_use]
    pub fn at(self, now_ms: i64) -> Self {
        let lost = (self.seen_ms - now_ms).max(0);
        Self { arrival_ms: (self.arrival_ms - lost).max(now_ms), seen_ms: now_ms }
    }

    /// With one unit more spent, whether there is room or not.
    #[must_use]
    pub fn charged(self, interval_ms: i64, now_ms: i64) -> Self {
        let now = self.at(now_ms);
        Self { arrival_ms: now.arrival_ms + interval_ms, ..now }
    }

    /// Without room for one more before `until`, as the CA says: it counts what others spend, too.
    #[must_use]
    pub fn without_room_until(self, rate: Rate, until_ms: i64, now_ms: i64) -> Self {
        let now = self.at(now_ms);
        let arrival = until_ms + rate.burst_ms() - rate.interval_ms();
        Self { arrival_ms: now.arrival_ms.max(arrival), ..now }
    }

    /// When there is room for one more after `before` others, with `keep` left untouched; `now` or before: there is.
    pub fn room_at(self, rate: Rate, before: u32, keep: u32, now_ms: i64) -> i64 {
        let units = i64::from(before) + 1 + i64::from(keep) - i64::from(rate.count);
        let units = if rate.is_limited() { units } else { 0 };
        self.at(now_ms).arrival_ms.saturating_add(units.saturating_mul(rate.interval_ms()))
    }

    /// What is spent and not refilled yet, a part of a unit counting whole; 0 without limit.
    pub fn used(self, rate: Rate, now_ms: i64) -> u32 {
        let interval = rate.interval_ms();
        if interval == 0 {
            return 0;
        }
        let backlog = self.at(now_ms).arrival_ms - now_ms;
        u32::try_from((backlog + interval - 1) / interval).unwrap_or(u32::MAX)
    }
}

impl TryFrom<String> for Rate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Rate {
    type Err = String;

    /// `300/3h`; the units are s, m, h and d. `none` is no limit.
    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            format!("`{text}` is no limit: write COUNT/PERIOD, such as \"300/3h\" or \"50/7d\", or \"none\"")
        };
        if text == "none" {
            return Ok(Self::NONE);
        }
        let (count, period) = text.split_once('/').ok_or_else(form)?;
        let unit = period.chars().last().filter(char::is_ascii).ok_or_else(form)?;
        let unit_ms = match unit {
            's' => SECOND_MS,
            'm' => MINUTE_MS,
            'h' => HOUR_MS,
            'd' => DAY_MS,
            _ => return Err(form()),
        };
        let count: u32 = count.parse().ok().filter(|count| *count > 0).ok_or_else(form)?;
        let units: u32 =
            period[..period.len() - 1].parse().ok().filter(|units| *units > 0).ok_or_else(form)?;
        let period_ms = i64::from(units) * unit_ms;
        if period_ms > PERIOD_MS_MAX || i64::from(count) > period_ms {
            return Err(format!("`{text}`: at most ten years, and at most one each millisecond"));
        }
        Ok(Self { count, period_ms })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ORDERS: Rate = Rate::per(300, 3 * HOUR_MS);

    #[test]
    fn a_bucket_gives_its_burst_then_one_each_interval() {
        let mut bucket = Bucket::default();
        for spent in 0..300 {
            assert!(bucket.room_at(ORDERS, 0, 0, 1000) <= 1000, "{spent}");
            bucket = bucket.charged(ORDERS.interval_ms(), 1000);
        }
        assert_eq!(bucket.used(ORDERS, 1000), 300);
        assert_eq!(bucket.room_at(ORDERS, 0, 0, 1000), 37_000);
        assert_eq!(bucket.room_at(ORDERS, 9, 0, 1000), 361_000, "the tenth in the queue");
        assert_eq!(bucket.room_at(ORDERS, 0, 30, 1000), 1000 + 31 * 36_000, "with a reserve");
        assert_eq!(bucket.used(ORDERS, 37_000), 299);
        assert_eq!(bucket.used(ORDERS, 1000 + 3 * HOUR_MS), 0);
    }

    #[test]
    fn a_clock_that_is_set_back_neither_frees_nor_holds_for_longer() {
        let rate = Rate::per(2, 2 * HOUR_MS);
        let year = 365 * DAY_MS;
        let spend = |bucket: Bucket, now| bucket.charged(rate.interval_ms(), now);
        let full = spend(spend(Bucket::default(), year), year);
        let back = full.at(1000);
        assert_eq!(back.used(rate, 1000), 2);
        assert_eq!(back.room_at(rate, 0, 0, 1000), 1000 + HOUR_MS, "an hour, not a year");
    }

    #[test]
    fn the_cas_retry_after_is_the_truth_also_where_no_limit_is_known() {
        let rate = Rate::per(50, 7 * DAY_MS);
        let told = Bucket::default().without_room_until(rate, 5000, 1000);
        assert_eq!(told.room_at(rate, 0, 0, 1000), 5000);
        assert_eq!(told.room_at(rate, 1, 0, 1000), 5000 + rate.interval_ms());
        assert_eq!(
            Bucket::default().without_room_until(Rate::NONE, 5000, 1000).room_at(Rate::NONE, 7, 3, 1000),
            5000
        );
        let sooner = told.without_room_until(rate, 2000, 1000);
        assert_eq!(sooner, told, "what we know to be spent stays spent");
    }

    #[test]
    fn rates_are_read_as_people_write_them() {
        assert_eq!("300/3h".parse(), Ok(ORDERS));
        assert_eq!("none".parse(), Ok(Rate::NONE));
        assert_eq!(
            "30000/1s".parse::<Rate>().unwrap_err(),
            "`30000/1s`: at most ten years, and at most one each millisecond"
        );
        for wrong in ["", "300", "300/", "0/3h", "300/0h", "300/3", "300/3w", "-1/3h", "3/3\u{e4}", "1/4000d"]
        {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
        assert_eq!(Rate::per(7, 60_000).interval_ms(), 8572);
        assert_eq!(Rate::per(4, 3 * HOUR_MS).count_in(HOUR_MS), 2);
    }

    /// A CA's own bucket, written another way: tokens that refill, in nanoseconds, with a clock that never errs.
    struct Tokens {
        missing_ns: i128,
        at_ms: i64,
        rate: Rate,
    }

    impl Tokens {
        fn interval_ns(&self) -> i128 {
            i128::from(self.rate.period_ms) * 1_000_000 / i128::from(self.rate.count)
        }

        fn refill(&mut self, now_ms: i64) {
            self.missing_ns = (self.missing_ns - i128::from(now_ms - self.at_ms) * 1_000_000).max(0);
            self.at_ms = now_ms;
        }

        fn take(&mut self, now_ms: i64) -> bool {
            self.refill(now_ms);
            let has_room =
                self.missing_ns + self.interval_ns() <= self.interval_ns() * i128::from(self.rate.count);
            if has_room {
                self.missing_ns += self.interval_ns();
            }
            has_room
        }

        /// The CA's `Retry-After`.
        fn wait_ms(&self) -> i64 {
            let over =
                self.missing_ns + self.interval_ns() - self.interval_ns() * i128::from(self.rate.count);
            i64::try_from(over.max(0).div_euclid(1_000_000) + 1).unwrap()
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// We ask as often as our own bucket lets us, at most so often; each answer is so long in coming.
        Ask {
            most: u32,
            there_ms: i64,
            back_ms: i64,
        },
        Pass {
            ms: i64,
        },
        ClockBack {
            ms: i64,
        },
        /// All that is in memory is gone.
        Restart,
        /// Somebody else spends of the CA's bucket.
        Others {
            count: u32,
        },
    }

    fn steps(others: bool) -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (1u32..40, 0i64..20_000, 0i64..20_000)
                .prop_map(|(most, there_ms, back_ms)| Step::Ask { most, there_ms, back_ms }),
            4 => (0i64..6 * HOUR_MS).prop_map(|ms| Step::Pass { ms }),
            2 => (0i64..30 * DAY_MS).prop_map(|ms| Step::ClockBack { ms }),
            1 => Just(Step::Restart),
            1 => (0u32..30).prop_map(move |count| Step::Others { count: if others { count } else { 0 } }),
        ];
        prop::collection::vec(step, 1..60)
    }

    fn rates() -> impl Strategy<Value = Rate> {
        (1u32..60, 1i64..8 * DAY_MS)
            .prop_map(|(count, period_ms)| Rate::per(count, period_ms.max(i64::from(count))))
    }

    /// Runs a history; answers how often the CA refused, and checks after each answer that we count no less than it does.
    fn run(rate: Rate, steps: &[Step]) -> Result<(u32, u32), TestCaseError> {
        let mut ca = Tokens { missing_ns: 0, at_ms: 0, rate };
        let (mut ours, mut truth, mut behind) = (Bucket::default(), 1_000_000_000_000_i64, 0_i64);
        ca.at_ms = truth;
        let (mut refused, mut events) = (0, 0);
        for step in steps {
            match *step {
                Step::Ask { most, there_ms, back_ms } => {
                    for _ in 0..most {
                        let now = truth - behind;
                        if ours.room_at(rate, 0, 0, now) > now {
                            ours = ours.at(now);
                            break;
                        }
                        truth += there_ms;
                        let taken = ca.take(truth);
                        let wait = ca.wait_ms();
                        truth += back_ms;
                        let now = truth - behind;
                        if taken {
                            ours = ours.charged(rate.interval_ms(), now);
                        } else {
                            refused += 1;
                            ours = ours.without_room_until(rate, now + wait, now);
                        }
                    }
                }
                Step::Pass { ms } => truth += ms,
                Step::ClockBack { ms } => behind += ms,
                Step::Restart => {
                    ours = Bucket { arrival_ms: ours.arrival_ms, seen_ms: ours.seen_ms };
                }
                Step::Others { count } => {
                    let taken = (0..count).filter(|_| ca.take(truth)).count();
                    events += u32::from(taken > 0);
                }
            }
            ca.refill(truth);
            if events == 0 {
                let ours_ms = ours.at(truth - behind).arrival_ms - (truth - behind);
                prop_assert!(
                    i128::from(ours_ms) * 1_000_000 >= ca.missing_ns,
                    "{ours:?} {} at {truth}",
                    ca.missing_ns
                );
            }
        }
        Ok((refused, events))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Over any history of requests, slow answers, restarts and clocks that are set back.
        #[test]
        fn we_never_count_less_than_the_ca_and_it_never_refuses(rate in rates(), steps in steps(false)) {
            let (refused, _) = run(rate, &steps)?;
            prop_assert_eq!(refused, 0);
        }

        #[test]
        fn what_others_spend_is_learnt_by_one_refusal_for_each_time(rate in rates(), steps in steps(true)) {
            let (refused, events) = run(rate, &steps)?;
            prop_assert!(refused <= events, "{} refusals for {} events", refused, events);
        }

        /// With a clock that errs and others aside, what the CA would grant is not held back: with answers at once, both
        /// have room at the same moment.
        #[test]
        fn we_are_as_fast_as_the_ca(count in 1u32..60, interval in 1i64..HOUR_MS, pauses in prop::collection::vec(0i64..DAY_MS, 1..60)) {
            let rate = Rate::per(count, interval * i64::from(count));
            let mut ca = Tokens { missing_ns: 0, at_ms: 0, rate };
            let (mut ours, mut now) = (Bucket::default(), 0);
            for pause in pauses {
                now += pause;
                loop {
                    let room = ours.room_at(rate, 0, 0, now) <= now;
                    prop_assert_eq!(room, ca.take(now));
                    if !room {
                        break;
                    }
                    ours = ours.charged(rate.interval_ms(), now);
                }
            }
        }
    }
}
