//! What CAs, and the operator, still let us do.

use std::collections::{HashMap, HashSet};

use portico_api::v1::{BudgetBucket, IssuerBudget};
use portico_cert_store::{NamePattern, TenantId};

use super::App;
use crate::clock::rfc3339;
use crate::config::IssuerConfig;
use crate::plan::ledger::{
    At, BucketKey, Exemption, Level, LimitName, Limits, Order, needs, registered_domains,
};
use crate::plan::reconcile::name_set;
use crate::plan::report::Spent;
use crate::store::order::PlannedOrder;
use crate::store::{Connection, StoreError, domain, group, ledger, order, tenant};

/// Buckets that are listed beside the account's.
const BUCKETS_LISTED_MAX: usize = 100;
/// Names of a set that are told.
const NAMES_TOLD_MAX: usize = 3;

/// What the ledger has of an issuer now.
///
/// # Errors
/// The store's.
pub(crate) async fn spent(app: &App, issuer: &IssuerConfig) -> Result<Spent, StoreError> {
    let mut read = app.parts.store.read().await?;
    spent_as_of(&mut read, issuer, app.parts.clock.now_ms()).await
}

/// The same, of the caller's transaction.
///
/// # Errors
/// The store's.
pub(crate) async fn spent_as_of(
    connection: &mut Connection,
    issuer: &IssuerConfig,
    now_ms: i64,
) -> Result<Spent, StoreError> {
    let (ca, account) = (issuer.directory.clone(), issuer.name.clone());
    let levels = ledger::levels_at(connection, At { ca: &ca, account: &account }, now_ms).await?;
    let mut limits = issuer.limits();
    limits.tenants = tenant::order_budgets(connection, None).await?;
    Ok(Spent { levels, limits, ca, account })
}

/// Whose buckets are asked for.
#[derive(Clone, Debug)]
pub(crate) enum Scope {
    All,
    /// A tenant's own, and those of its names.
    Tenant(TenantId),
    Name(NamePattern),
}

/// The buckets of an issuer.
///
/// # Errors
/// The store's.
pub(crate) async fn of_issuer(
    app: &App,
    issuer: &IssuerConfig,
    scope: &Scope,
) -> Result<IssuerBudget, StoreError> {
    let now_ms = app.parts.clock.now_ms();
    let mut read = app.parts.store.read().await?;
    let spent = spent_as_of(&mut read, issuer, now_ms).await?;
    let planned = order::planned(&mut read, spent.at()).await?;
    let mut view =
        View { waiting: waiting(&planned, &spent, now_ms), spent: &spent, now_ms, sets: HashMap::new() };
    let (first, others) = match scope {
        Scope::All => {
            (vec![view.key(LimitName::Orders, ""), view.key(LimitName::NewAccounts, "")], view.in_use())
        }
        Scope::Tenant(tenant) => {
            let mine = of_tenant(&mut read, &mut view, *tenant).await?;
            let own = [LimitName::TenantHour, LimitName::TenantDay];
            (own.map(|limit| view.key(limit, &tenant.to_string())).to_vec(), mine)
        }
        Scope::Name(name) => (of_name(&mut read, &mut view, name).await?, Vec::new()),
    };
    let in_use = others.len();
    let others = view.fullest(others.into_iter().filter(|key| !first.contains(key)).collect());
    let mut buckets = Vec::new();
    for key in &[first, others].concat() {
        if !view.sets.contains_key(&key.subject)
            && key.limit == LimitName::ExactSet
            && let Some(names) = order::names_of_set(&mut read, &key.subject).await?
        {
            view.sets.insert(key.subject.clone(), names);
        }
        buckets.extend(view.bucket(key));
    }
    let buckets_in_use = u64::try_from(in_use).unwrap_or(u64::MAX);
    Ok(IssuerBudget {
        issuer: issuer.name.clone(),
        buckets,
        buckets_in_use,
        orders_needed: None,
        through_at: None,
    })
}

/// How many planned orders need each bucket.
fn waiting(planned: &[PlannedOrder], spent: &Spent, now_ms: i64) -> HashMap<BucketKey, u32> {
    let mut waiting: HashMap<BucketKey, u32> = HashMap::new();
    for order in planned {
        let replaces = order.replaces.as_ref().filter(|predecessor| predecessor.window.is_open(now_ms));
        let covered = replaces.map(|predecessor| predecessor.names.as_slice());
        let order = Order {
            names: &order.names,
            name_set: &order.name_set,
            exemption: Exemption::of(&order.names, order.issued, covered),
            keeps_alive: order.keeps_alive,
            can_wait: order.backup && !order.keeps_alive,
            tenant: order.tenant,
        };
        for need in needs(&order, spent.at(), &spent.limits) {
            *waiting.entry(need.key).or_default() += 1;
        }
    }
    waiting
}

/// One issuer's buckets, read at one moment.
struct View<'a> {
    spent: &'a Spent,
    waiting: HashMap<BucketKey, u32>,
    now_ms: i64,
    /// The names of sets that are told by their hash.
    sets: HashMap<String, Vec<String>>,
}

impl View<'_> {
    fn key(&self, limit: LimitName, subject: &str) -> BucketKey {
        BucketKey::new(limit, self.spent.at(), subject)
    }

    fn limits(&self) -> &Limits {
        &self.spent.limits
    }

    /// All of which something is spent or reserved.
    fn in_use(&self) -> Vec<BucketKey> {
        self.spent.levels.0.keys().cloned().collect()
    }

    /// The fullest, at most [`BUCKETS_LISTED_MAX`].
    fn fullest(&self, mut keys: Vec<BucketKey>) -> Vec<BucketKey> {
        let share = |key: &BucketKey| {
            let rate = self.limits().rate(key.limit, &key.subject);
            let level = self.spent.levels.of(key);
            let used = u64::from(level.bucket.used(rate, self.now_ms)) + u64::from(level.reserved);
            used * 10_000 / u64::from(rate.count.max(1))
        };
        keys.sort_by_cached_key(|key| (std::cmp::Reverse(share(key)), key.clone()));
        keys.truncate(BUCKETS_LISTED_MAX);
        keys
    }

    /// `None`: there is no such limit, and the CA has not told of one.
    fn bucket(&self, key: &BucketKey) -> Option<BudgetBucket> {
        let (rate, now) = (self.limits().rate(key.limit, &key.subject), self.now_ms);
        let Level { bucket, reserved } = self.spent.levels.of(key);
        let kept = if key.limit == LimitName::Orders { self.limits().kept_from(None) } else { 0 };
        let next_ms = bucket.room_at(rate, reserved, kept, now);
        if !rate.is_limited() && next_ms <= now {
            return None;
        }
        let used = bucket.used(rate, now);
        let waiting = self.waiting.get(key).copied().unwrap_or(0);
        let last_ms = bucket.room_at(rate, (reserved + waiting).saturating_sub(1), kept, now);
        let at = |ms: i64| (ms > now).then(|| rfc3339(ms));
        Some(BudgetBucket {
            limit: key.limit,
            subject: self.subject(key),
            shared_with_others: key.limit.is_global(),
            count: rate.count,
            period_seconds: u64::try_from(rate.period_ms / 1000).unwrap_or(0),
            used,
            reserved,
            kept,
            free: rate.count.saturating_sub(used).saturating_sub(reserved).saturating_sub(kept),
            next_at: at(next_ms),
            waiting: waiting.into(),
            waiting_through_at: at(last_ms).filter(|_| waiting > 0),
        })
    }

    fn subject(&self, key: &BucketKey) -> Option<String> {
        match key.limit {
            LimitName::Orders | LimitName::NewAccounts => None,
            LimitName::ExactSet => Some(match self.sets.get(&key.subject).map(Vec::as_slice) {
                Some(names) if names.len() > NAMES_TOLD_MAX => {
                    let more = names.len() - NAMES_TOLD_MAX;
                    format!("{} and {more} more", names[..NAMES_TOLD_MAX].join(" "))
                }
                Some(names) => names.join(" "),
                None => key.subject.clone(),
            }),
            LimitName::RegisteredDomain
            | LimitName::FailedAuthorizations
            | LimitName::ConsecutiveFailures
            | LimitName::TenantHour
            | LimitName::TenantDay => Some(key.subject.clone()),
        }
    }
}

/// Buckets in use that a tenant's names are counted by.
async fn of_tenant(
    connection: &mut Connection,
    view: &mut View<'_>,
    tenant: TenantId,
) -> Result<Vec<BucketKey>, StoreError> {
    let names = domain::served_names(connection, tenant).await?;
    let domains: HashSet<String> = registered_domains(&names).into_iter().collect();
    let names: HashSet<String> = names.into_iter().collect();
    for set in group::sets_of_tenant(connection, tenant).await? {
        view.sets.insert(name_set(set.iter().map(String::as_str)), set);
    }
    let is_mine = |key: &BucketKey| match key.limit {
        LimitName::RegisteredDomain => domains.contains(&key.subject),
        LimitName::FailedAuthorizations | LimitName::ConsecutiveFailures => names.contains(&key.subject),
        LimitName::ExactSet => view.sets.contains_key(&key.subject),
        LimitName::TenantHour | LimitName::TenantDay => key.subject == tenant.to_string(),
        LimitName::Orders | LimitName::NewAccounts => false,
    };
    Ok(view.in_use().into_iter().filter(is_mine).collect())
}

/// Buckets that a name is counted by, empty ones too.
async fn of_name(
    connection: &mut Connection,
    view: &mut View<'_>,
    name: &NamePattern,
) -> Result<Vec<BucketKey>, StoreError> {
    let text = name.to_string();
    let mut keys: Vec<BucketKey> = registered_domains(&[&text])
        .iter()
        .map(|domain| view.key(LimitName::RegisteredDomain, domain))
        .collect();
    let sets = group::sets_with(connection, &text).await?;
    let sets = if sets.is_empty() { vec![vec![text.clone()]] } else { sets };
    for set in sets {
        let hash = name_set(set.iter().map(String::as_str));
        keys.push(view.key(LimitName::ExactSet, &hash));
        view.sets.insert(hash, set);
    }
    for limit in [LimitName::FailedAuthorizations, LimitName::ConsecutiveFailures] {
        keys.push(view.key(limit, &text));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ledger::Levels;
    use crate::plan::renewal_info::Window;
    use crate::store::renewal_info::Predecessor;

    #[test]
    fn renewals_that_wait_are_forecast_as_the_ledger_will_count_them() {
        let (ca, account) = ("https://ca.test/dir".to_owned(), "le".to_owned());
        let spent = Spent { levels: Levels::default(), limits: Limits::default(), ca, account };
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let predecessor =
            |of: &[&str]| Some(Predecessor { names: names(of), window: Window { start: 500, end: 1500 } });
        let new = PlannedOrder {
            names: names(&["shop.test", "www.shop.test"]),
            name_set: "set".to_owned(),
            tenant: Some(TenantId::generate()),
            keeps_alive: false,
            backup: false,
            issued: false,
            replaces: None,
        };
        let served = PlannedOrder { keeps_alive: true, ..new.clone() };
        let replacing = |of: &[&str]| PlannedOrder { replaces: predecessor(of), ..served.clone() };
        let counted = |order: &PlannedOrder, now_ms| {
            let waiting = waiting(std::slice::from_ref(order), &spent, now_ms);
            [LimitName::Orders, LimitName::RegisteredDomain, LimitName::ExactSet, LimitName::TenantHour].map(
                |limit| waiting.iter().filter(|(key, _)| key.limit == limit).map(|(_, n)| *n).sum::<u32>(),
            )
        };
        assert_eq!(counted(&new, 1000), [1, 1, 1, 1]);
        assert_eq!(counted(&served, 1000), [1, 1, 1, 0], "a tenant's budget holds nothing that is served");
        assert_eq!(counted(&PlannedOrder { issued: true, ..served.clone() }, 1000), [0, 0, 1, 0]);
        assert_eq!(counted(&replacing(&["shop.test", "www.shop.test"]), 1000), [0; 4]);
        assert_eq!(counted(&replacing(&["shop.test", "www.shop.test"]), 1500), [1, 1, 1, 0], "too late");
        assert_eq!(counted(&replacing(&["shop.test"]), 1000), [1, 1, 1, 0], "a name more");
    }
}
