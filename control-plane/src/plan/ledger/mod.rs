//! Whether a CA's limits, and our own on one tenant, leave room for one more order, and when.
//!
//! - [`bucket`]: one limit's bucket.
//! - [`limits`]: which limits there are, by the CA's published table and the configuration.
//! - [`refusal`]: which of them a CA's refusal is about.
//!
//! An order **needs** room in several buckets ([`needs`]). What it takes is reserved before the CA is asked, in one
//! transaction with the note that it will be asked, and charged when we know that the CA has charged it: a new order when
//! its answer is here, a certificate when it is. A reservation counts like something that is spent at this very moment, so
//! what is under way is never forgotten, a request whose answer was lost included, and what fails is given back.

pub mod bucket;
pub mod limits;
pub mod refusal;

use std::collections::HashMap;

use portico_cert_store::{NamePattern, TenantId};

pub use bucket::{Bucket, Rate};
pub use limits::{Limits, LimitsConfig};
pub use portico_api::v1::BudgetLimit as LimitName;

/// One bucket among all that are kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BucketKey {
    pub limit: LimitName,
    /// The directory's URL: several issuers of one CA share what is global there. Empty for a tenant's.
    pub ca: String,
    /// The issuer's name, where the limit is one account's; else empty.
    pub account: String,
    /// Registered domain, hash of the set, name, or tenant; else empty.
    pub subject: String,
}

/// An issuer, as far as buckets go.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    pub ca: &'a str,
    pub account: &'a str,
}

impl BucketKey {
    pub fn new(limit: LimitName, at: At<'_>, subject: &str) -> Self {
        let (ca, account) = match limit {
            LimitName::TenantHour | LimitName::TenantDay => ("", ""),
            LimitName::RegisteredDomain | LimitName::ExactSet | LimitName::NewAccounts => (at.ca, ""),
            LimitName::Orders | LimitName::FailedAuthorizations | LimitName::ConsecutiveFailures => {
                (at.ca, at.account)
            }
        };
        Self { limit, ca: ca.to_owned(), account: account.to_owned(), subject: subject.to_owned() }
    }
}

/// What of its limits a CA does not apply to an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exemption<'a> {
    None,
    /// A certificate of the exact names was issued before: new orders and registered domains are not charged.
    SameNames,
    /// The CA takes it as the replacement of a certificate (RFC 9773 section 5) with these names. Of them nothing is charged.
    /// Any other name is counted like one that is new: not every CA exempts what the certificate before did not cover.
    Replaces {
        covered: &'a [String],
    },
}

impl<'a> Exemption<'a> {
    /// Of an order for `names`. `issued`: the CA has issued exactly these before. `covered`: the names of the certificate that
    /// it replaces within that one's suggested window.
    pub fn of(names: &[String], issued: bool, covered: Option<&'a [String]>) -> Self {
        match covered {
            Some(covered) if !issued || uncovered(names, covered).next().is_none() => {
                Self::Replaces { covered }
            }
            _ if issued => Self::SameNames,
            _ => Self::None,
        }
    }

    /// Whether nothing at all is charged for `names`.
    pub fn is_of_all(self, names: &[String]) -> bool {
        matches!(self, Self::Replaces { covered } if uncovered(names, covered).next().is_none())
    }
}

fn uncovered<'a>(names: &'a [String], covered: &[String]) -> impl Iterator<Item = &'a String> {
    names.iter().filter(|name| !covered.contains(name))
}

/// An order, as far as limits go.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    pub names: &'a [String],
    pub name_set: &'a str,
    pub exemption: Exemption<'a>,
    /// Each of its names has a certificate in its cell: neither the tenant's budget nor the reserve holds it back.
    pub keeps_alive: bool,
    /// Nobody would miss it today: half of each limit is left to the others.
    pub can_wait: bool,
    pub tenant: Option<TenantId>,
}

/// When what is reserved becomes spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charged {
    /// When the CA has made the order.
    AtOrder,
    AtCertificate,
    /// Never: there only has to be room.
    Never,
}

/// Room that an order needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    pub key: BucketKey,
    pub rate: Rate,
    /// Units that it must leave untouched.
    pub keep: u32,
    pub charged: Charged,
}

/// All buckets in which an order needs room, those without limit among them: a CA may have told of one all the same.
pub fn needs(order: &Order<'_>, at: At<'_>, limits: &Limits) -> Vec<Need> {
    let mut needs = Vec::new();
    let counted: Vec<&String> = match order.exemption {
        Exemption::Replaces { covered } => uncovered(order.names, covered).collect(),
        Exemption::None | Exemption::SameNames => order.names.iter().collect(),
    };
    if counted.is_empty() {
        return needs;
    }
    let mut need = |limit: LimitName, subject: &str, keep: u32, charged: Charged| {
        let rate = limits.rate(limit, subject);
        let keep = if order.can_wait { keep.max(rate.count / 2) } else { keep };
        needs.push(Need { key: BucketKey::new(limit, at, subject), rate, keep, charged });
    };
    need(LimitName::ExactSet, order.name_set, 0, Charged::AtCertificate);
    if order.exemption != Exemption::SameNames {
        let keep = if order.keeps_alive { 0 } else { limits.kept_from(order.tenant) };
        need(LimitName::Orders, "", keep, Charged::AtOrder);
        for domain in registered_domains(&counted) {
            need(LimitName::RegisteredDomain, &domain, 0, Charged::AtCertificate);
        }
    }
    // A further cell's certificate of the same names is an order like any other, to the tenant.
    if let Some(tenant) = order.tenant.filter(|_| !order.keeps_alive) {
        need(LimitName::TenantHour, &tenant.to_string(), 0, Charged::AtOrder);
        need(LimitName::TenantDay, &tenant.to_string(), 0, Charged::AtOrder);
    }
    for name in counted {
        need(LimitName::FailedAuthorizations, name, 0, Charged::Never);
        // The last one is never spent: a CA that pauses a name takes it up again only when somebody visits its page.
        let keep = 1.min(limits.consecutive_failures.count.saturating_sub(1));
        need(LimitName::ConsecutiveFailures, name, keep, Charged::Never);
    }
    needs
}

/// What is spent of one bucket, and what is reserved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    pub bucket: Bucket,
    pub reserved: u32,
}

/// A limit without room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRoom {
    pub limit: LimitName,
    pub subject: String,
    /// When there is room again.
    pub next_ms: i64,
}

/// Whether there is room for all needs in their buckets; else the limit that holds back longest.
///
/// # Errors
/// [`NoRoom`].
pub fn check(needs: &[Need], levels: &[Level], now_ms: i64) -> Result<(), NoRoom> {
    let wait = |(need, level): (&Need, &Level)| {
        let next_ms = level.bucket.room_at(need.rate, level.reserved, need.keep, now_ms);
        let no_room = || NoRoom { limit: need.key.limit, subject: need.key.subject.clone(), next_ms };
        (next_ms > now_ms).then(no_room)
    };
    needs.iter().zip(levels).filter_map(wait).max_by_key(|no_room| no_room.next_ms).map_or(Ok(()), Err)
}

/// Levels of one CA's buckets that are not empty, and of tenants'; the others are empty.
#[derive(Clone, Debug, Default)]
pub struct Levels(pub HashMap<BucketKey, Level>);

impl Levels {
    pub fn of(&self, key: &BucketKey) -> Level {
        self.0.get(key).copied().unwrap_or_default()
    }
}

/// The registered domains (public suffix and one label) that certificates of these names are counted by.
pub fn registered_domains<T: AsRef<str>>(names: &[T]) -> Vec<String> {
    let registered = |name: &T| {
        let pattern = NamePattern::parse(name.as_ref()).ok()?;
        Some(pattern.registered_domain().unwrap_or_else(|| pattern.base().as_str()).to_owned())
    };
    let mut found: Vec<String> = names.iter().filter_map(registered).collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use portico_api::v1::OrderBudget;

    use crate::clock::HOUR_MS;

    const AT: At<'static> = At { ca: "https://ca.test/dir", account: "le" };

    fn taken(order: &Order<'_>) -> Vec<&'static str> {
        let needs = needs(order, AT, &Limits::default());
        needs
            .iter()
            .filter(|need| need.charged != Charged::Never)
            .map(|need| need.key.limit.as_str())
            .collect()
    }

    #[test]
    fn an_order_takes_what_the_ca_charges_it_and_no_more() {
        let names = ["a.shop.test".to_owned(), "b.shop.test".to_owned(), "*.else.test".to_owned()];
        let tenant = Some(TenantId::generate());
        let new = Order {
            names: &names,
            name_set: "ab",
            exemption: Exemption::None,
            keeps_alive: false,
            can_wait: false,
            tenant,
        };
        let domains = ["registered_domain", "registered_domain"];
        let all = [&["exact_set", "orders"][..], &domains, &["tenant_1h", "tenant_24h"]].concat();
        assert_eq!(taken(&new), all);
        let regrouped = Order { keeps_alive: true, ..new };
        assert_eq!(taken(&regrouped), all[..4], "our own budgets hold no name back that is served");
        let same = Order { exemption: Exemption::SameNames, ..new };
        assert_eq!(taken(&same), ["exact_set", "tenant_1h", "tenant_24h"], "in a further cell");
        assert_eq!(taken(&Order { keeps_alive: true, ..same }), ["exact_set"]);
        let keep = |order| needs(order, AT, &Limits::default())[1].keep;
        assert_eq!((keep(&new), keep(&regrouped)), (30, 0), "the reserve is for names that are served");
        let waiting = needs(&Order { can_wait: true, ..new }, AT, &Limits::default());
        assert!(waiting.iter().all(|need| need.keep >= need.rate.count / 2), "{waiting:?}");
        assert_eq!(waiting[1].keep, 150);
        let replaces = Exemption::Replaces { covered: &names };
        assert_eq!(needs(&Order { exemption: replaces, ..new }, AT, &Limits::default()), []);
    }

    #[test]
    fn a_tenant_with_priority_uses_what_is_kept_for_it_and_has_its_own_budget() {
        let names = ["shop.test".to_owned()];
        let (paying, other) = (TenantId::generate(), TenantId::generate());
        let own = OrderBudget { per_hour: Some(0), per_day: Some(7), priority: true };
        let tenants = [(paying.to_string(), own)].into();
        let limits = Limits { priority_share: 0.2, tenant_1h: 5, tenants, ..Limits::default() };
        let of = |tenant| {
            let order = Order {
                names: &names,
                name_set: "x",
                exemption: Exemption::None,
                keeps_alive: false,
                can_wait: false,
                tenant,
            };
            let needs = needs(&order, AT, &limits);
            let orders = needs.iter().find(|need| need.key.limit == LimitName::Orders).unwrap().keep;
            let rate = |limit| needs.iter().find(|need| need.key.limit == limit).map(|need| need.rate);
            (orders, rate(LimitName::TenantHour), rate(LimitName::TenantDay))
        };
        // Of 300: a tenth for what is served, a fifth for who pays for it.
        assert_eq!(of(Some(paying)), (30, Some(Rate::per(0, HOUR_MS)), Some(Rate::per(7, 24 * HOUR_MS))));
        assert_eq!(of(Some(other)), (90, Some(Rate::per(5, HOUR_MS)), Some(Rate::per(0, 24 * HOUR_MS))));
        assert_eq!(of(None), (90, None, None), "of tenants who share one, not all pay");
    }

    #[test]
    fn a_replacement_pays_for_the_names_that_its_predecessor_did_not_have() {
        let names = ["a.shop.test", "b.shop.test", "www.else.test"].map(str::to_owned);
        let (some, of) = (&names[..2], Exemption::of);
        let all = ["www.else.test", "gone.test", "b.shop.test", "a.shop.test"].map(str::to_owned);
        assert_eq!(of(&names, false, None), Exemption::None);
        assert_eq!(of(&names, true, None), Exemption::SameNames);
        assert_eq!(of(&names, true, Some(some)), Exemption::SameNames, "that charges the set alone");
        let (part, whole) = (of(&names, false, Some(some)), of(&names, true, Some(&all)));
        assert_eq!((part.is_of_all(&names), whole.is_of_all(&names)), (false, true));
        let order = |exemption| Order {
            names: &names,
            name_set: "x",
            exemption,
            keeps_alive: true,
            can_wait: false,
            tenant: None,
        };
        assert_eq!(taken(&order(whole)), [""; 0]);
        assert_eq!(taken(&order(part)), ["exact_set", "orders", "registered_domain"]);
        let needs = needs(&order(part), AT, &Limits::default());
        let domains = needs.iter().filter(|need| need.key.limit == LimitName::RegisteredDomain);
        assert_eq!(domains.map(|need| need.key.subject.as_str()).collect::<Vec<_>>(), ["else.test"]);
    }

    #[test]
    fn accounts_of_one_ca_share_what_is_global_there() {
        let other = At { account: "second", ..AT };
        let same = |limit| BucketKey::new(limit, AT, "x") == BucketKey::new(limit, other, "x");
        for limit in LimitName::ALL {
            assert_eq!(same(limit), limit.is_global() || limit.is_of_tenant(), "{limit:?}");
        }
    }

    #[test]
    fn the_limit_that_holds_longest_is_named() {
        let rate = Rate::per(2, 2 * HOUR_MS);
        let need =
            |limit, keep| Need { key: BucketKey::new(limit, AT, ""), rate, keep, charged: Charged::AtOrder };
        let level = |spent: i64, reserved| Level {
            bucket: Bucket { arrival_ms: 1000 + spent * HOUR_MS, seen_ms: 1000 },
            reserved,
        };
        assert_eq!(check(&[need(LimitName::Orders, 0)], &[level(1, 0)], 1000), Ok(()));
        let held = [need(LimitName::Orders, 0), need(LimitName::ExactSet, 0)];
        let levels = [level(1, 1), level(3, 0)];
        let no_room =
            |limit, hours| NoRoom { limit, subject: String::new(), next_ms: 1000 + hours * HOUR_MS };
        assert_eq!(check(&held, &levels, 1000), Err(no_room(LimitName::ExactSet, 2)));
        assert_eq!(
            check(&held[..1], &levels, 1000),
            Err(no_room(LimitName::Orders, 1)),
            "what is under way counts"
        );
        assert_eq!(
            check(&[need(LimitName::Orders, 1)], &[level(1, 0)], 1000).unwrap_err().limit,
            LimitName::Orders
        );
    }
}
