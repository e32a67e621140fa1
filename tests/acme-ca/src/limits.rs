//! The published Let's Encrypt limits as token buckets (GCRA): a burst that refills continuously.
//!
//! Only the limits that shape a client's planning are here: orders and accounts, certificates per
//! registered domain and per exact set, failed authorizations, also in a row. Absent: requests per second
//! and address, and that a name which failed too often in a row stays paused.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;

use crate::clock::{Moment, parse_duration};
use crate::problem::{Kind, Problem};

/// Every limit that can answer 429.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum LimitName {
    /// New orders of one account.
    NewOrders,
    /// New certificates of one registered domain, over all accounts.
    CertificatesPerDomain,
    /// Certificates of one exact set of names, over all accounts.
    CertificatesPerExactSet,
    /// Failed authorizations of one account and one name.
    FailedAuthorizations,
    /// The same in a row: the first success empties the bucket.
    ConsecutiveFailures,
    /// New accounts of one IP address.
    NewAccounts,
}

/// A burst that refills evenly over its period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub count: u32,
    pub period: Duration,
}

/// An override from the command line: `new-orders=10/60s`.
#[derive(Clone, Copy, Debug)]
pub struct LimitOverride {
    pub name: LimitName,
    pub limit: Limit,
}

/// The limits in force with all their buckets.
#[derive(Debug)]
pub(crate) struct Limits {
    limits: BTreeMap<LimitName, Limit>,
    /// Theoretical arrival time by limit and subject; absent means a full bucket.
    buckets: HashMap<(LimitName, String), Moment>,
}

/// A refusal: which limit, for what, and how long until one more is allowed.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) name: LimitName,
    pub(crate) subject: String,
    pub(crate) limit: Limit,
    pub(crate) wait: Duration,
}

/// Buckets kept before those that are full again are swept out.
const BUCKETS_SWEEP_AT: usize = 100_000;

impl Limits {
    /// Let's Encrypt's table (documentation of 2026-08-05).
    pub(crate) fn letsencrypt() -> Self {
        let hours = |h: u64| Duration::from_secs(h * 3600);
        let limits = BTreeMap::from([
            (LimitName::NewOrders, Limit { count: 300, period: hours(3) }),
            (LimitName::CertificatesPerDomain, Limit { count: 50, period: hours(7 * 24) }),
            (LimitName::CertificatesPerExactSet, Limit { count: 5, period: hours(7 * 24) }),
            (LimitName::FailedAuthorizations, Limit { count: 5, period: hours(1) }),
            (LimitName::ConsecutiveFailures, Limit { count: 1152, period: hours(1152 * 24) }),
            (LimitName::NewAccounts, Limit { count: 10, period: hours(3) }),
        ]);
        Self { limits, buckets: HashMap::new() }
    }

    /// No limit at all.
    pub(crate) fn none() -> Self {
        Self { limits: BTreeMap::new(), buckets: HashMap::new() }
    }

    /// Multiplies every count, at least 1 remaining.
    #[must_use]
    pub(crate) fn scaled(mut self, factor: f64) -> Self {
        for limit in self.limits.values_mut() {
            let scaled = (f64::from(limit.count) * factor).round().clamp(1.0, f64::from(u32::MAX));
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "clamped to u32 above"
            )]
            let count = scaled as u32;
            limit.count = count;
        }
        self
    }

    /// Sets one limit.
    pub(crate) fn set(&mut self, change: LimitOverride) {
        self.limits.insert(change.name, change.limit);
    }

    /// Whether one more is allowed now; takes nothing.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) fn check(&self, name: LimitName, subject: &str, now: Moment) -> Result<(), Refusal> {
        let Some(limit) = self.limits.get(&name).copied() else { return Ok(()) };
        let arrival = self.arrival(name, subject, now);
        let after_this_one = arrival.plus(limit.interval());
        let wait = after_this_one.since(now).saturating_sub(limit.interval() * limit.count);
        if wait.is_zero() { Ok(()) } else { Err(Refusal { name, subject: subject.to_owned(), limit, wait }) }
    }

    /// Takes one, whether or not the bucket holds one.
    pub(crate) fn spend(&mut self, name: LimitName, subject: &str, now: Moment) {
        let Some(limit) = self.limits.get(&name).copied() else { return };
        let arrival = self.arrival(name, subject, now).plus(limit.interval());
        if self.buckets.len() >= BUCKETS_SWEEP_AT {
            self.buckets.retain(|_, arrival| *arrival > now);
        }
        self.buckets.insert((name, subject.to_owned()), arrival);
    }

    /// All that was spent of one bucket is forgotten.
    pub(crate) fn refill(&mut self, name: LimitName, subject: &str) {
        self.buckets.remove(&(name, subject.to_owned()));
    }

    /// Every bucket that is not full, with the time in which it refills.
    pub(crate) fn spent(&self, now: Moment) -> impl Iterator<Item = (LimitName, &str, Limit, Duration)> {
        self.buckets.iter().filter_map(move |((name, subject), arrival)| {
            let spent = arrival.since(now);
            (!spent.is_zero()).then(|| (*name, subject.as_str(), self.limits[name], spent))
        })
    }

    /// The limits in force, for the management listener.
    pub(crate) fn in_force(&self) -> impl Iterator<Item = (LimitName, Limit)> {
        self.limits.iter().map(|(name, limit)| (*name, *limit))
    }

    fn arrival(&self, name: LimitName, subject: &str, now: Moment) -> Moment {
        self.buckets.get(&(name, subject.to_owned())).copied().map_or(now, |arrival| arrival.max(now))
    }
}

impl Limit {
    /// Time in which one unit refills.
    pub(crate) fn interval(self) -> Duration {
        self.period / self.count.max(1)
    }
}

impl Refusal {
    /// The answer: of several limits the one that resets last is named.
    pub(crate) fn into_problem(self, now: Moment) -> Problem {
        let until = now.plus(self.wait).plus(Duration::from_millis(999)).rfc3339();
        let detail = format!(
            "limit {} reached for {}: {} in {} s; retry after {until}",
            self.name,
            self.subject,
            self.limit.count,
            self.limit.period.as_secs(),
        );
        Problem::new(Kind::RateLimited, detail).with_retry_after(self.wait)
    }
}

impl LimitName {
    /// The key in `GET /stats` and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NewOrders => "new-orders",
            Self::CertificatesPerDomain => "certificates-per-domain",
            Self::CertificatesPerExactSet => "certificates-per-exact-set",
            Self::FailedAuthorizations => "failed-authorizations",
            Self::ConsecutiveFailures => "consecutive-failures",
            Self::NewAccounts => "new-accounts",
        }
    }
}

impl fmt::Display for LimitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for LimitOverride {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "write NAME=COUNT/PERIOD, as in new-orders=10/60s";
        let (name, rest) = text.split_once('=').ok_or(form)?;
        let (count, period) = rest.split_once('/').ok_or(form)?;
        let name = LimitName::from_str(name, false).map_err(|_| {
            let known: Vec<_> = LimitName::value_variants().iter().map(|n| n.as_str()).collect();
            format!("no limit {name:?}; the limits are {}", known.join(", "))
        })?;
        let count: u32 = count.parse().ok().filter(|c| *c > 0).ok_or(form)?;
        let period = parse_duration(period)?;
        if period.is_zero() {
            return Err("the period must be longer than zero".to_owned());
        }
        Ok(Self { name, limit: Limit { count, period } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_bucket_gives_its_burst_then_refills_evenly() {
        let clock = Clock::default();
        let mut limits = Limits::letsencrypt();
        let start = clock.now();
        for _ in 0..300 {
            limits.check(LimitName::NewOrders, "a", start).unwrap();
            limits.spend(LimitName::NewOrders, "a", start);
        }
        let refusal = limits.check(LimitName::NewOrders, "a", start).unwrap_err();
        assert_eq!(refusal.wait, Duration::from_secs(36));
        limits.check(LimitName::NewOrders, "b", start).unwrap();
        let later = start.plus(Duration::from_secs(36));
        limits.check(LimitName::NewOrders, "a", later).unwrap();
        limits.spend(LimitName::NewOrders, "a", later);
        assert!(limits.check(LimitName::NewOrders, "a", later).is_err());
    }

    #[test]
    fn limits_scale_and_can_be_set() {
        let limits = Limits::letsencrypt().scaled(0.1);
        let counts: Vec<_> = limits.in_force().map(|(_, limit)| limit.count).collect();
        assert_eq!(counts, [30, 5, 1, 1, 115, 1]);
        let change: LimitOverride = "new-orders=10/60s".parse().unwrap();
        assert_eq!(change.limit, Limit { count: 10, period: Duration::from_secs(60) });
        for wrong in ["new-orders", "new-orders=0/60s", "orders=1/1s", "new-orders=1/0s", "new-orders=x/1s"] {
            assert!(wrong.parse::<LimitOverride>().is_err(), "{wrong}");
        }
    }
}
