//! The CA: limits, authorizations, orders, certificates and their windows, on the simulation's clock.
//!
//! It shares nothing with the ledger: its own buckets, its own idea of what is exempt, its own public suffix look-up. What
//! it counts is the truth that the ledger is compared with. Lifetimes of orders and authorizations are Let's Encrypt's.
//! Absent: keys and bytes; the suites over sockets have those.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::time::{DAY_MS, HOUR_MS, MINUTE_MS};

/// A limit as published: `count` at once, refilled evenly over the period.
#[derive(Clone, Copy, Debug)]
struct Rate {
    count: i64,
    period_ms: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Limit {
    Orders,
    RegisteredDomain,
    ExactSet,
    FailedAuthorizations,
    ConsecutiveFailures,
}

impl Limit {
    /// Let's Encrypt's table (documentation of 2026-08-05).
    fn rate(self) -> Rate {
        let (count, period_ms) = match self {
            Self::Orders => (300, 3 * HOUR_MS),
            Self::RegisteredDomain => (50, 7 * DAY_MS),
            Self::ExactSet => (5, 7 * DAY_MS),
            Self::FailedAuthorizations => (5, HOUR_MS),
            Self::ConsecutiveFailures => (1152, 1152 * DAY_MS),
        };
        Rate { count, period_ms }
    }

    /// Others spend of it, too.
    pub fn is_global(self) -> bool {
        matches!(self, Self::RegisteredDomain | Self::ExactSet)
    }
}

/// What an order that replaces a certificate is exempt from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
pub enum Exemption {
    /// All limits, within the predecessor's window and not outside of it.
    InWindow,
    /// Only names that the predecessor has are not counted.
    CoveredNames,
}

/// What certificates are like that are ordered from now on.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Profile {
    pub lifetime_ms: i64,
    /// For how long a valid authorization serves further orders.
    pub reuse_ms: i64,
}

/// Why an order was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Unavailable,
    Limited { limit: Limit, subject: String, retry_after_ms: i64 },
    Replacement,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderStatus {
    Pending,
    Ready,
    Valid,
    Invalid,
}

#[derive(Debug)]
struct Order {
    names: BTreeSet<String>,
    /// Names that limits count.
    charged: BTreeSet<String>,
    pending: BTreeSet<String>,
    expires_ms: i64,
    status: OrderStatus,
}

pub type OrderNo = usize;
pub type CertificateNo = usize;

/// A certificate as its CA knows it.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub names: BTreeSet<String>,
    pub not_before_ms: i64,
    pub not_after_ms: i64,
    /// Set when the CA is about to revoke it.
    window: Option<(i64, i64)>,
    pub revoked: bool,
    replaced_by: Option<OrderNo>,
}

/// What the CA did.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Counts {
    pub orders: u64,
    pub orders_replacing: u64,
    pub certificates: u64,
    pub validations_failed: u64,
    pub authorizations_reused: u64,
    pub replacements_refused: u64,
    /// Answers of 429 that an account's own limit caused.
    pub limited_account: u64,
    /// Answers of 429 for limits that others spend of, too.
    pub limited_global: u64,
}

#[derive(Debug)]
pub struct Ca {
    pub profile: Profile,
    exemption: Exemption,
    pub is_down: bool,
    /// When a bucket is full again, in units of 1/count of a millisecond so that no interval is rounded.
    buckets: HashMap<(Limit, String), i128>,
    issued_sets: HashSet<String>,
    authorizations: HashMap<String, i64>,
    orders: Vec<Order>,
    certificates: Vec<Certificate>,
    pub counts: Counts,
}

/// How far back a certificate's begin lies, and how long an order may take.
const BACKDATE_MS: i64 = HOUR_MS;
const ORDER_LIFETIME_MS: i64 = 7 * DAY_MS;

impl Ca {
    pub fn new(profile: Profile, exemption: Exemption) -> Self {
        Self {
            profile,
            exemption,
            is_down: false,
            buckets: HashMap::new(),
            issued_sets: HashSet::new(),
            authorizations: HashMap::new(),
            orders: Vec::new(),
            certificates: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// newOrder.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn new_order(
        &mut self,
        names: &BTreeSet<String>,
        replaces: Option<CertificateNo>,
        now: i64,
    ) -> Result<OrderNo, Refusal> {
        if self.is_down {
            return Err(Refusal::Unavailable);
        }
        let charged = self.charged(names, replaces, now)?;
        let is_renewal = charged.is_empty() || self.issued_sets.contains(&set(names));
        if let Some(refusal) = self.worst_refusal(names, &charged, is_renewal, now) {
            if let Refusal::Limited { limit, .. } = &refusal {
                match limit.is_global() {
                    true => self.counts.limited_global += 1,
                    false => self.counts.limited_account += 1,
                }
            }
            return Err(refusal);
        }
        if !is_renewal {
            self.spend(Limit::Orders, "", now);
        }
        let is_valid = |name: &&String| self.authorizations.get(*name).is_some_and(|until| *until > now);
        let pending: BTreeSet<String> = names.iter().filter(|name| !is_valid(name)).cloned().collect();
        self.counts.authorizations_reused += wide(names.len() - pending.len());
        let status = if pending.is_empty() { OrderStatus::Ready } else { OrderStatus::Pending };
        let expires_ms = now + ORDER_LIFETIME_MS;
        self.orders.push(Order { names: names.clone(), charged, pending, expires_ms, status });
        let order = self.orders.len() - 1;
        if let Some(replaces) = replaces {
            self.certificates[replaces].replaced_by = Some(order);
            self.counts.orders_replacing += 1;
        }
        self.counts.orders += 1;
        Ok(order)
    }

    /// The names that limits count.
    fn charged(
        &mut self,
        names: &BTreeSet<String>,
        replaces: Option<CertificateNo>,
        now: i64,
    ) -> Result<BTreeSet<String>, Refusal> {
        let Some(replaces) = replaces else { return Ok(names.clone()) };
        let certificate = &self.certificates[replaces];
        let by = certificate.replaced_by.map(|order| self.status(order, now));
        if certificate.names.is_disjoint(names) || by.is_some_and(|status| status != OrderStatus::Invalid) {
            self.counts.replacements_refused += 1;
            return Err(Refusal::Replacement);
        }
        let (start, end) = self.window(replaces, now);
        Ok(match self.exemption {
            Exemption::CoveredNames => names.difference(&certificate.names).cloned().collect(),
            Exemption::InWindow if start <= now && now < end => BTreeSet::new(),
            Exemption::InWindow => names.clone(),
        })
    }

    /// Of all limits that refuse, the one that resets last.
    fn worst_refusal(
        &self,
        names: &BTreeSet<String>,
        charged: &BTreeSet<String>,
        is_renewal: bool,
        now: i64,
    ) -> Option<Refusal> {
        if charged.is_empty() {
            return None;
        }
        let mut checks = vec![(Limit::ExactSet, set(names))];
        if !is_renewal {
            checks.push((Limit::Orders, String::new()));
            checks.extend(registered(charged).into_iter().map(|domain| (Limit::RegisteredDomain, domain)));
        }
        for limit in [Limit::FailedAuthorizations, Limit::ConsecutiveFailures] {
            checks.extend(charged.iter().map(|name| (limit, name.clone())));
        }
        let refused = |(limit, subject): (Limit, String)| {
            let retry_after_ms = self.wait(limit, &subject, now);
            (retry_after_ms > 0).then_some(Refusal::Limited { limit, subject, retry_after_ms })
        };
        checks.into_iter().filter_map(refused).max_by_key(|refusal| match refusal {
            Refusal::Limited { retry_after_ms, .. } => *retry_after_ms,
            Refusal::Unavailable | Refusal::Replacement => 0,
        })
    }

    pub fn status(&self, order: OrderNo, now: i64) -> OrderStatus {
        let order = &self.orders[order];
        match order.status {
            OrderStatus::Pending | OrderStatus::Ready if order.expires_ms <= now => OrderStatus::Invalid,
            status @ (OrderStatus::Pending
            | OrderStatus::Ready
            | OrderStatus::Valid
            | OrderStatus::Invalid) => status,
        }
    }

    /// Names of an order that are not validated yet.
    pub fn pending(&self, order: OrderNo) -> Vec<String> {
        self.orders[order].pending.iter().cloned().collect()
    }

    /// The CA has looked at a name's challenge.
    pub fn validated(&mut self, order: OrderNo, name: &str, is_good: bool, now: i64) {
        let order = &mut self.orders[order];
        order.pending.remove(name);
        if is_good {
            self.authorizations.insert(name.to_owned(), now + self.profile.reuse_ms);
            self.buckets.remove(&(Limit::ConsecutiveFailures, name.to_owned()));
            if order.pending.is_empty() && order.status == OrderStatus::Pending {
                order.status = OrderStatus::Ready;
            }
            return;
        }
        order.status = OrderStatus::Invalid;
        self.counts.validations_failed += 1;
        self.spend(Limit::FailedAuthorizations, name, now);
        self.spend(Limit::ConsecutiveFailures, name, now);
    }

    /// Signs what is ready.
    pub fn finalize(&mut self, order: OrderNo, now: i64) -> Option<CertificateNo> {
        if self.status(order, now) != OrderStatus::Ready {
            return None;
        }
        let (names, charged) = (self.orders[order].names.clone(), self.orders[order].charged.clone());
        self.orders[order].status = OrderStatus::Valid;
        self.count_certificate(&names, &charged, now);
        Some(self.issue(names, now - BACKDATE_MS))
    }

    fn count_certificate(&mut self, names: &BTreeSet<String>, charged: &BTreeSet<String>, now: i64) {
        let set = set(names);
        if !charged.is_empty() {
            self.spend(Limit::ExactSet, &set, now);
            if !self.issued_sets.contains(&set) {
                for domain in registered(charged) {
                    self.spend(Limit::RegisteredDomain, &domain, now);
                }
            }
        }
        self.issued_sets.insert(set);
        self.counts.certificates += 1;
    }

    /// A certificate from before the simulation, of which no limit remembers anything.
    pub fn issue(&mut self, names: BTreeSet<String>, not_before_ms: i64) -> CertificateNo {
        self.issued_sets.insert(set(&names));
        let not_after_ms = not_before_ms + self.profile.lifetime_ms;
        let certificate = Certificate {
            names,
            not_before_ms,
            not_after_ms,
            window: None,
            revoked: false,
            replaced_by: None,
        };
        self.certificates.push(certificate);
        self.certificates.len() - 1
    }

    /// Somebody has our account's key.
    pub fn order_of_a_thief(&mut self, now: i64) {
        if self.wait(Limit::Orders, "", now) == 0 {
            self.spend(Limit::Orders, "", now);
        }
    }

    /// Somebody else obtains certificates for a name, as many as the limits let him.
    pub fn issue_to_others(&mut self, name: &str, certificates: u32, now: i64) {
        let names = BTreeSet::from([name.to_owned()]);
        for _ in 0..certificates {
            if self.worst_refusal(&names, &names, true, now).is_some()
                || registered(&names).iter().any(|d| self.wait(Limit::RegisteredDomain, d, now) > 0)
            {
                return;
            }
            self.spend(Limit::ExactSet, &set(&names), now);
            for domain in registered(&names) {
                self.spend(Limit::RegisteredDomain, &domain, now);
            }
        }
    }

    pub fn certificate(&self, number: CertificateNo) -> &Certificate {
        &self.certificates[number]
    }

    /// The window that it suggests (RFC 9773): around two thirds of the lifetime, half of a short one.
    pub fn window(&self, number: CertificateNo, now: i64) -> (i64, i64) {
        let certificate = &self.certificates[number];
        if certificate.revoked {
            return (now - HOUR_MS, now - 30 * MINUTE_MS);
        }
        let lifetime = certificate.not_after_ms - certificate.not_before_ms;
        let left = if lifetime < 10 * DAY_MS { lifetime / 2 } else { lifetime / 3 };
        let ideal = certificate.not_after_ms - left;
        certificate.window.unwrap_or((ideal - lifetime / 100, ideal + lifetime / 100))
    }

    /// Says that a certificate should be replaced at once: its window is over, as Boulder has it. So the replacing order is
    /// exempt only as one for the same names again.
    pub fn announce_revocation(&mut self, number: CertificateNo, now: i64) {
        self.certificates[number].window = Some((now - HOUR_MS, now - 30 * MINUTE_MS));
    }

    pub fn revoke(&mut self, number: CertificateNo) {
        self.certificates[number].revoked = true;
    }

    /// What is spent of a bucket and not refilled yet, a part of a unit counting whole.
    pub fn used(&self, limit: Limit, subject: &str, now: i64) -> u32 {
        let Rate { count, period_ms } = limit.rate();
        let ahead = self.ahead(limit, subject, now);
        let used = (ahead + i128::from(period_ms) - 1) / i128::from(period_ms);
        u32::try_from(used).unwrap_or_else(|_| u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Buckets that are not full.
    pub fn subjects(&self, limit: Limit) -> Vec<String> {
        let mut subjects: Vec<String> =
            self.buckets.keys().filter(|(of, _)| *of == limit).map(|(_, subject)| subject.clone()).collect();
        subjects.sort_unstable();
        subjects
    }

    fn ahead(&self, limit: Limit, subject: &str, now: i64) -> i128 {
        let full_at = self.buckets.get(&(limit, subject.to_owned())).copied().unwrap_or(0);
        (full_at - i128::from(now) * i128::from(limit.rate().count)).max(0)
    }

    /// Until one more is allowed; 0: now.
    fn wait(&self, limit: Limit, subject: &str, now: i64) -> i64 {
        let Rate { count, period_ms } = limit.rate();
        let room = i128::from(period_ms) * i128::from(count - 1);
        let wait = (self.ahead(limit, subject, now) - room).max(0);
        i64::try_from((wait + i128::from(count) - 1) / i128::from(count)).unwrap_or(i64::MAX)
    }

    fn spend(&mut self, limit: Limit, subject: &str, now: i64) {
        let Rate { count, period_ms } = limit.rate();
        let ahead = self.ahead(limit, subject, now);
        let full_at = i128::from(now) * i128::from(count) + ahead + i128::from(period_ms);
        self.buckets.insert((limit, subject.to_owned()), full_at);
    }
}

fn set(names: &BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}

fn registered(names: &BTreeSet<String>) -> BTreeSet<String> {
    let of = |name: &String| {
        let base = name.strip_prefix("*.").unwrap_or(name);
        psl::domain_str(base).unwrap_or(base).to_owned()
    };
    names.iter().map(of).collect()
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(all: &[&str]) -> BTreeSet<String> {
        all.iter().map(|name| (*name).to_owned()).collect()
    }

    fn ca(exemption: Exemption) -> Ca {
        Ca::new(Profile { lifetime_ms: 90 * DAY_MS, reuse_ms: 30 * DAY_MS }, exemption)
    }

    fn issued(ca: &mut Ca, all: &[&str], replaces: Option<CertificateNo>, now: i64) -> CertificateNo {
        let order = ca.new_order(&names(all), replaces, now).unwrap();
        for name in ca.pending(order) {
            ca.validated(order, &name, true, now);
        }
        ca.finalize(order, now).unwrap()
    }

    #[test]
    fn three_hundred_orders_at_once_then_one_each_36_seconds() {
        let mut ca = ca(Exemption::InWindow);
        for n in 0..300 {
            ca.new_order(&names(&[&format!("a{n}.com")]), None, 0).unwrap();
        }
        let refused = ca.new_order(&names(&["b.com"]), None, 0).unwrap_err();
        let limit = Refusal::Limited { limit: Limit::Orders, subject: String::new(), retry_after_ms: 36_000 };
        assert_eq!(refused, limit);
        assert_eq!(ca.used(Limit::Orders, "", 1), 300);
        ca.new_order(&names(&["b.com"]), None, 36_000).unwrap();
        assert!(ca.new_order(&names(&["c.com"]), None, 71_999).is_err());
        assert_eq!((ca.counts.limited_account, ca.counts.limited_global), (2, 0));
    }

    #[test]
    fn a_sixth_certificate_of_one_set_waits_and_names_its_limit() {
        let mut ca = ca(Exemption::InWindow);
        for _ in 0..5 {
            issued(&mut ca, &["a.com"], None, 0);
        }
        let refused = ca.new_order(&names(&["a.com"]), None, 0).unwrap_err();
        assert!(matches!(refused, Refusal::Limited { limit: Limit::ExactSet, .. }), "{refused:?}");
        assert_eq!(ca.used(Limit::RegisteredDomain, "a.com", 0), 1, "the same names again count once");
    }

    #[test]
    fn a_replacement_is_exempt_in_its_window_once() {
        let mut ca = ca(Exemption::InWindow);
        let first = issued(&mut ca, &["a.com"], None, 0);
        let (start, end) = ca.window(first, 0);
        assert!(start > 58 * DAY_MS && end < 62 * DAY_MS);
        let spent = ca.used(Limit::ExactSet, "a.com", start);
        issued(&mut ca, &["a.com", "b.com"], Some(first), start);
        assert_eq!(ca.used(Limit::RegisteredDomain, "b.com", start), 0);
        assert_eq!(ca.used(Limit::ExactSet, "a.com", start), spent);
        assert_eq!(ca.new_order(&names(&["a.com"]), Some(first), start), Err(Refusal::Replacement));
    }

    #[test]
    fn under_the_narrow_exemption_new_names_of_a_replacement_count() {
        let mut ca = ca(Exemption::CoveredNames);
        let first = issued(&mut ca, &["a.com"], None, 0);
        issued(&mut ca, &["a.com", "b.com"], Some(first), HOUR_MS);
        assert_eq!(ca.used(Limit::RegisteredDomain, "b.com", HOUR_MS), 1);
        assert_eq!(ca.used(Limit::RegisteredDomain, "a.com", HOUR_MS), 1);
    }
}
