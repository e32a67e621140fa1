//! Whether a CA's limits, and our own on one tenant, leave room for one more order.
//!
//! The CA refills a bucket (300 new orders: one each 36 s). Ours is a window: at most the published number in any
//! period, counted over what we sent, answered or not. It is never above the CA's own count, and in the long run as fast.

/// A CA's published limits; 0: none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// New orders per account in 3 hours; renewals of the same set of names do not count.
    pub orders_3h: u32,
    /// Certificates per registered domain in 7 days; renewals of the same set do not count.
    pub registered_domain_7d: u32,
    /// Certificates per exact set of names in 7 days, renewals included.
    pub exact_set_7d: u32,
    /// New orders of one tenant in an hour, ours to choose; absent: a third of `orders_3h`, rounded up, which in the long run is all
    /// that the account has: a tenant alone loses nothing by it, and many names at once leave two thirds to the others.
    pub tenant_1h: Option<u32>,
    /// The same in a day; absent: none.
    pub tenant_24h: u32,
}

impl Limits {
    /// New orders of one tenant in an hour; 0: no limit, which is never derived from a limit that there is.
    pub fn tenant_1h(&self) -> u32 {
        self.tenant_1h.unwrap_or(self.orders_3h.div_ceil(3))
    }
}

pub const HOUR_MS: i64 = 3_600_000;
pub const DAY_MS: i64 = 24 * HOUR_MS;
pub const HOURS_3_MS: i64 = 3 * 3_600_000;
pub const DAYS_7_MS: i64 = 7 * 24 * 3_600_000;

/// Let's Encrypt's, 2026-08.
impl Default for Limits {
    fn default() -> Self {
        Self { orders_3h: 300, registered_domain_7d: 50, exact_set_7d: 5, tenant_1h: None, tenant_24h: 0 }
    }
}

/// What was sent within one limit's period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    pub count: u32,
    /// The first of them; it leaves the window first.
    pub oldest_ms: Option<i64>,
}

/// A limit without room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    pub limit: LimitName,
    /// When there is room again.
    pub next_ms: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitName {
    Orders,
    RegisteredDomain,
    ExactSet,
    TenantHour,
    TenantDay,
}

impl LimitName {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Orders => "new orders of one account in 3 hours",
            Self::RegisteredDomain => "certificates of one registered domain in 7 days",
            Self::ExactSet => "certificates of one exact set of names in 7 days",
            Self::TenantHour => "new orders of one tenant in an hour",
            Self::TenantDay => "new orders of one tenant in a day",
        }
    }

    /// Ours, not the CA's.
    pub fn is_of_tenant(self) -> bool {
        matches!(self, Self::TenantHour | Self::TenantDay)
    }
}

/// One order's spending, as it stands before it.
#[derive(Clone, Debug, Default)]
pub struct Book {
    pub account: Spent,
    pub exact_set: Spent,
    pub registered_domains: Vec<Spent>,
    /// Of the order's tenant; nothing for an order that keeps a served name alive, which waits for no budget of ours.
    pub tenant_1h: Spent,
    pub tenant_24h: Spent,
}

/// Whether one more order fits all limits; else the limit that holds it back longest.
///
/// # Errors
/// [`NoRoom`].
pub fn check(limits: &Limits, book: &Book, renewal: bool) -> Result<(), NoRoom> {
    let mut full = Vec::new();
    full.extend(wait(LimitName::ExactSet, limits.exact_set_7d, DAYS_7_MS, book.exact_set));
    if !renewal {
        full.extend(wait(LimitName::Orders, limits.orders_3h, HOURS_3_MS, book.account));
        full.extend(wait(LimitName::TenantHour, limits.tenant_1h(), HOUR_MS, book.tenant_1h));
        full.extend(wait(LimitName::TenantDay, limits.tenant_24h, DAY_MS, book.tenant_24h));
        for spent in &book.registered_domains {
            full.extend(wait(LimitName::RegisteredDomain, limits.registered_domain_7d, DAYS_7_MS, *spent));
        }
    }
    full.into_iter().max_by_key(|no_room| no_room.next_ms).map_or(Ok(()), Err)
}

fn wait(limit: LimitName, most: u32, period_ms: i64, spent: Spent) -> Option<NoRoom> {
    if most == 0 || spent.count < most {
        return None;
    }
    Some(NoRoom { limit, next_ms: spent.oldest_ms? + period_ms + 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_limit_of_the_account_never_derives_no_limit_for_a_tenant() {
        let derived = |orders_3h| Limits { orders_3h, ..Limits::default() }.tenant_1h();
        assert_eq!([0, 1, 2, 3, 4, 300].map(derived), [0, 1, 1, 1, 2, 100]);
        let chosen = Limits { orders_3h: 1, tenant_1h: Some(0), ..Limits::default() };
        assert_eq!(chosen.tenant_1h(), 0, "an operator may still say so");
    }

    #[test]
    fn the_limit_that_holds_longest_is_named() {
        let limits = Limits { orders_3h: 2, registered_domain_7d: 3, exact_set_7d: 1, ..Limits::default() };
        let mut book = Book::default();
        assert_eq!(check(&limits, &book, false), Ok(()));
        book.account = Spent { count: 2, oldest_ms: Some(1000) };
        let orders = NoRoom { limit: LimitName::Orders, next_ms: 1001 + HOURS_3_MS };
        assert_eq!(check(&limits, &book, false), Err(orders));
        book.exact_set = Spent { count: 1, oldest_ms: Some(5000) };
        let set = NoRoom { limit: LimitName::ExactSet, next_ms: 5001 + DAYS_7_MS };
        assert_eq!(check(&limits, &book, false), Err(set));
        assert_eq!(check(&limits, &book, true), Err(set), "a renewal is not exempt from the exact set's");
        book.exact_set = Spent::default();
        assert_eq!(check(&limits, &book, true), Ok(()), "a renewal is exempt from the account's");
        book.registered_domains = vec![Spent::default(), Spent { count: 9, oldest_ms: Some(9) }];
        assert_eq!(check(&limits, &book, false).unwrap_err().limit, LimitName::RegisteredDomain);
        let none = Limits { orders_3h: 0, registered_domain_7d: 0, exact_set_7d: 0, ..Limits::default() };
        assert_eq!(check(&none, &book, false), Ok(()));
        let limits = Limits { tenant_24h: 5, ..Limits::default() };
        let full = Spent { count: 100, oldest_ms: Some(9) };
        let book = Book { tenant_1h: full, tenant_24h: Spent { count: 4, ..full }, ..Book::default() };
        let hour = NoRoom { limit: LimitName::TenantHour, next_ms: 10 + HOUR_MS };
        assert_eq!(check(&limits, &book, false), Err(hour));
        let book = Book { tenant_24h: full, ..book };
        assert_eq!(check(&limits, &book, false).unwrap_err().limit, LimitName::TenantDay);
    }

    /// The CA's own bucket, as published: full at `count`, one more each period / count.
    struct Bucket {
        interval_ms: i64,
        burst_ms: i64,
        arrival_ms: i64,
    }

    impl Bucket {
        fn take(&mut self, now_ms: i64) -> bool {
            let arrival = self.arrival_ms.max(now_ms) + self.interval_ms;
            let fits = arrival - now_ms <= self.burst_ms;
            if fits {
                self.arrival_ms = arrival;
            }
            fits
        }
    }

    #[test]
    fn a_greedy_week_never_meets_the_cas_own_limit() {
        let limits = Limits { orders_3h: 300, ..Limits::default() };
        let mut bucket = Bucket { interval_ms: 36_000, burst_ms: 300 * 36_000, arrival_ms: 0 };
        let mut sent: std::collections::VecDeque<i64> = std::collections::VecDeque::new();
        let (mut now, mut total) = (0, 0);
        while now < DAYS_7_MS {
            while sent.front().is_some_and(|at| *at <= now - HOURS_3_MS) {
                sent.pop_front();
            }
            let count = u32::try_from(sent.len()).unwrap();
            let book = Book { account: Spent { count, oldest_ms: sent.front().copied() }, ..Book::default() };
            match check(&limits, &book, false) {
                Ok(()) => {
                    assert!(bucket.take(now), "the CA refuses order {total} at {now} ms");
                    sent.push_back(now);
                    total += 1;
                    now += 200;
                }
                Err(no_room) => now = no_room.next_ms,
            }
        }
        assert!(total >= 56 * 300, "100 an hour in the long run: {total}");
    }
}
