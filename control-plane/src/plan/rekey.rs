//! When the CA's limits let certificates be replaced before their time: by the same needs and buckets as the orders themselves.

use std::collections::HashMap;

use portico_cert_store::TenantId;

use super::ledger::{At, BucketKey, Charged, Exemption, Levels, LimitName, Limits, Order, needs};
use super::reconcile::name_set;
use super::renewal_info::Window;

/// A certificate that is to be replaced by one of the same names.
#[derive(Clone, Debug)]
pub struct Replacement<'a> {
    pub names: &'a [String],
    pub tenant: Option<TenantId>,
    /// In which its CA exempts an order from its limits.
    pub window: Option<Window>,
}

/// What the limits let through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forecast {
    pub orders: u64,
    /// Of them, such as can go now.
    pub at_once: u64,
    /// When the last one can go, Unix milliseconds.
    pub last_ms: i64,
    /// What holds the others: how many, and until when.
    pub held_by: Vec<(LimitName, u64, i64)>,
}

/// A lower bound, as each forecast here: what others spend of a limit at the CA, and time for validation, come on top.
pub fn forecast(
    wanted: &[Replacement<'_>],
    at: At<'_>,
    limits: &Limits,
    levels: &Levels,
    now_ms: i64,
) -> Forecast {
    let mut queued: HashMap<BucketKey, u32> = HashMap::new();
    let mut found = Forecast { last_ms: now_ms, ..Forecast::default() };
    let mut held: HashMap<LimitName, (u64, i64)> = HashMap::new();
    for one in wanted {
        let set = name_set(one.names.iter().map(String::as_str));
        let covered = one.window.filter(|window| window.is_open(now_ms)).map(|_| one.names);
        let order = Order {
            names: one.names,
            name_set: &set,
            exemption: Exemption::of(one.names, true, covered),
            keeps_alive: true,
            can_wait: false,
            tenant: one.tenant,
        };
        let mut latest: Option<(LimitName, i64)> = None;
        for need in needs(&order, at, limits) {
            let level = levels.of(&need.key);
            let before = queued.get(&need.key).copied().unwrap_or(0);
            let room = level.bucket.room_at(need.rate, level.reserved + before, need.keep, now_ms);
            if room > now_ms && latest.is_none_or(|(_, at)| room > at) {
                latest = Some((need.key.limit, room));
            }
            if need.charged != Charged::Never {
                *queued.entry(need.key).or_default() += 1;
            }
        }
        found.orders += 1;
        match latest {
            None => found.at_once += 1,
            Some((limit, at)) => {
                let held = held.entry(limit).or_default();
                *held = (held.0 + 1, held.1.max(at));
                found.last_ms = found.last_ms.max(at);
            }
        }
    }
    found.held_by = held.into_iter().map(|(limit, (orders, until))| (limit, orders, until)).collect();
    found.held_by.sort_by_key(|(limit, _, until)| (std::cmp::Reverse(*until), *limit));
    found
}

#[cfg(test)]
mod tests {
    use super::super::ledger::{Bucket, Level};
    use super::*;

    const AT: At<'static> = At { ca: "https://ca.test/dir", account: "le" };
    const NOW: i64 = 1_000_000;

    #[test]
    fn the_same_names_wait_for_their_set_alone_and_within_a_window_for_nothing() {
        let limits = Limits::default();
        let (shop, rose) = (["shop.test".to_owned()], ["rose.test".to_owned()]);
        let mut levels = Levels::default();
        let set = BucketKey::new(LimitName::ExactSet, AT, &name_set(["shop.test"].into_iter()));
        let interval = limits.exact_set.interval_ms();
        let bucket = Bucket { arrival_ms: NOW + 5 * interval, seen_ms: NOW };
        levels.0.insert(set, Level { bucket, reserved: 0 });
        // The account has nothing left: the same names are no new order.
        let orders = BucketKey::new(LimitName::Orders, AT, "");
        let bucket = Bucket { arrival_ms: NOW + 300 * limits.orders.interval_ms(), seen_ms: NOW };
        levels.0.insert(orders, Level { bucket, reserved: 0 });
        let wanted = |names, window| Replacement { names, tenant: None, window };
        let all = [wanted(&shop[..], None), wanted(&rose[..], None)];
        let found = forecast(&all, AT, &limits, &levels, NOW);
        assert_eq!((found.orders, found.at_once, found.last_ms), (2, 1, NOW + interval));
        assert_eq!(found.held_by, [(LimitName::ExactSet, 1, NOW + interval)]);
        let window = Some(Window { start: NOW - 1, end: NOW + 1 });
        let found = forecast(&[wanted(&shop[..], window)], AT, &limits, &levels, NOW);
        assert_eq!((found.at_once, found.held_by.len()), (1, 0));
        assert_eq!(forecast(&[], AT, &limits, &levels, NOW).orders, 0);
    }
}
