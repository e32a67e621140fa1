//! A rate with a burst, metered in one atomic word: the generic cell rate algorithm (ITU-T I.371), which is a token bucket
//! that keeps a time instead of a number of tokens. Time alone refills it, so nothing has to be swept.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// So many a second, and so many at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// So many units ...
    units: u64,
    /// ... in so many nanoseconds.
    period: u64,
    /// Nanoseconds that one unit is paid for by.
    each: u64,
    /// Nanoseconds that a meter may be ahead of the time.
    ahead: u64,
}

/// What one party has used of a [`Rate`]; shared by all workers.
#[derive(Debug, Default)]
pub struct Meter {
    /// When all that was taken will have been paid for, in nanoseconds of [`crate::clock::uptime`].
    paid_at: AtomicU64,
}

impl Rate {
    /// Neither may be 0.
    pub fn new(per_second: u64, burst: u64) -> Self {
        Self::of(per_second, NANOSECONDS, burst)
    }

    /// One unit each so often.
    pub fn every(each: Duration, burst: u64) -> Self {
        Self::of(1, nanoseconds(each), burst)
    }

    fn of(units: u64, period: u64, burst: u64) -> Self {
        let rate = Self { units: units.max(1), period: period.max(1), each: 0, ahead: 0 };
        Self { each: rate.cost(1).max(1), ahead: rate.cost(burst.max(1)).max(1), ..rate }
    }

    fn cost(self, units: u64) -> u64 {
        let cost = u128::from(units) * u128::from(self.period) / u128::from(self.units);
        u64::try_from(cost).unwrap_or(u64::MAX)
    }
}

const NANOSECONDS: u64 = 1_000_000_000;

impl Meter {
    /// Takes one unit at `now`.
    ///
    /// # Errors
    /// How long until there is room for it; nothing was taken.
    pub fn take(&self, rate: Rate, now: Duration) -> Result<(), Duration> {
        let now = nanoseconds(now);
        let taken = self.paid_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_at| {
            let after = paid_at.max(now).saturating_add(rate.each);
            (after <= now.saturating_add(rate.ahead)).then_some(after)
        });
        taken.map(drop).map_err(|paid_at| {
            let room_at = paid_at.saturating_add(rate.each).saturating_sub(rate.ahead);
            Duration::from_nanos(room_at.saturating_sub(now))
        })
    }

    /// Takes `units` while what was taken before is within the burst, however many they are: so that what costs more than a
    /// whole burst is not shut out for ever, and is paid for afterwards.
    ///
    /// # Errors
    /// How long until then; nothing was taken.
    pub fn take_on_credit(&self, rate: Rate, units: u64, now: Duration) -> Result<(), Duration> {
        let now = nanoseconds(now);
        let most = now.saturating_add(rate.ahead);
        let cost = rate.cost(units);
        let taken = self.paid_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_at| {
            (paid_at <= most).then_some(paid_at.max(now).saturating_add(cost))
        });
        taken.map(drop).map_err(|paid_at| Duration::from_nanos(paid_at.saturating_sub(most)))
    }

    /// Takes `units` in any case, and says how long to wait until it is their turn.
    pub fn queue(&self, rate: Rate, units: u64, now: Duration) -> Duration {
        let now = nanoseconds(now);
        let cost = rate.cost(units);
        let after = |paid_at: u64| paid_at.max(now).saturating_add(cost);
        let before =
            self.paid_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_at| Some(after(paid_at)));
        let paid_at = before.unwrap_or_else(|paid_at| paid_at);
        Duration::from_nanos(paid_at.saturating_sub(now.saturating_add(rate.ahead)))
    }

    /// How long whoever queues at `now` would wait.
    pub fn wait(&self, rate: Rate, now: Duration) -> Duration {
        let ahead = nanoseconds(now).saturating_add(rate.ahead);
        Duration::from_nanos(self.paid_at.load(Ordering::Relaxed).saturating_sub(ahead))
    }

    /// Whether there is room for one unit at `now`; takes nothing.
    pub fn has_room(&self, rate: Rate, now: Duration) -> bool {
        let now = nanoseconds(now);
        let after = self.paid_at.load(Ordering::Relaxed).max(now).saturating_add(rate.each);
        after <= now.saturating_add(rate.ahead)
    }

    /// Gives `numerator / denominator` of one unit back.
    pub fn give_back(&self, rate: Rate, (numerator, denominator): (u64, u64)) {
        let back = rate.cost(numerator) / denominator;
        let _previous = self
            .paid_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_at| Some(paid_at.saturating_sub(back)));
    }

    /// Everything taken has been paid for: the meter says no more than a new one.
    pub fn is_settled(&self, now: Duration) -> bool {
        self.paid_at.load(Ordering::Relaxed) <= nanoseconds(now)
    }

    /// When it will be settled; a measure of how much it has to say.
    pub fn paid_at(&self) -> u64 {
        self.paid_at.load(Ordering::Relaxed)
    }

    /// For another party.
    pub fn reset(&self) {
        self.paid_at.store(0, Ordering::Relaxed);
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(5);

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let (meter, rate) = (Meter::default(), Rate::new(10, 3));
        for _ in 0..3 {
            assert_eq!(meter.take(rate, START), Ok(()));
        }
        assert_eq!(meter.take(rate, START), Err(Duration::from_millis(100)));
        assert!(!meter.has_room(rate, START));
        let later = START + Duration::from_millis(100);
        assert!(meter.has_room(rate, later));
        assert_eq!(meter.take(rate, later), Ok(()));
        assert_eq!(meter.take(rate, later), Err(Duration::from_millis(100)));
        // A long pause earns one burst and no more.
        let much_later = START + Duration::from_secs(1000);
        let taken = (0..100).filter(|_| meter.take(rate, much_later).is_ok()).count();
        assert_eq!(taken, 3);
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let (meter, rate) = (Meter::default(), Rate::new(10, 3));
        let mut taken = 0;
        while meter.take(rate, START).is_ok() {
            meter.give_back(rate, (3, 4));
            taken += 1;
            assert!(taken < 100, "for ever");
        }
        assert_eq!(taken, 9, "each costs a quarter, and a whole one has to fit");
    }

    #[test]
    fn what_is_taken_on_credit_is_paid_for_afterwards() {
        let (meter, rate) = (Meter::default(), Rate::new(10, 3));
        assert_eq!(meter.take_on_credit(rate, 40, START), Ok(()), "more than the burst");
        assert_eq!(meter.take_on_credit(rate, 1, START), Err(Duration::from_millis(3700)));
        assert!(meter.take(rate, START + Duration::from_millis(3700)).is_err());
        assert_eq!(meter.take(rate, START + Duration::from_millis(3800)), Ok(()));
        meter.give_back(rate, (40, 1));
        assert!(meter.is_settled(START + Duration::from_millis(100)));
    }

    #[test]
    fn a_queue_moves_at_the_rate() {
        let (meter, rate) = (Meter::default(), Rate::new(1000, 500));
        assert_eq!(meter.queue(rate, 400, START), Duration::ZERO);
        assert_eq!(meter.queue(rate, 400, START), Duration::ZERO, "it began within the burst");
        assert_eq!(meter.queue(rate, 1000, START), Duration::from_millis(300));
        assert_eq!(meter.wait(rate, START), Duration::from_millis(1300));
        assert_eq!(meter.wait(rate, START + Duration::from_secs(2)), Duration::ZERO);
        assert!(!meter.is_settled(START) && meter.is_settled(START + Duration::from_secs(2)));
    }

    #[test]
    fn more_than_one_unit_in_a_nanosecond_is_a_rate_too() {
        let (meter, rate) = (Meter::default(), Rate::new(4_000_000_000, 1));
        let mebibytes = 100;
        for _ in 0..mebibytes {
            meter.queue(rate, 1 << 20, START);
        }
        let wait = meter.wait(rate, START);
        assert_eq!(wait.as_millis(), 26, "104.9 MB at 4 GB/s");
    }

    #[test]
    fn threads_together_take_no_more_than_one_alone() {
        let (meter, rate) = (Meter::default(), Rate::new(1, 1000));
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..1000).filter(|_| meter.take(rate, START).is_ok()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().expect("it took")).sum()
        });
        assert_eq!(taken, 1000);
    }
}
