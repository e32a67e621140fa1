//! The limits of one CA for one account: its published table, what was agreed with it beside, and our own on tenants.

use std::collections::BTreeMap;

use portico_api::v1::OrderBudget;
use portico_cert_store::TenantId;
use serde::Deserialize;

use super::{LimitName, Rate};
use crate::clock::{DAY_MS, HOUR_MS};

/// What is kept for renewals that are not exempt and for revocation days when nothing else is said.
const RESERVE_SHARE: f64 = 0.1;
/// The most that can be kept: an account must have something left for new names.
const RESERVE_SHARE_MAX: f64 = 0.9;
/// Failures in a row after which a name is no longer ordered by itself: after the first day one try a day, so about a
/// month. Far below the CA's own pause, which only its web page lifts.
const PAUSE_AFTER: u32 = 30;

/// Limits in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    pub orders: Rate,
    pub registered_domain: Rate,
    pub exact_set: Rate,
    pub failed_authorizations: Rate,
    pub consecutive_failures: Rate,
    pub new_accounts: Rate,
    /// Registered domains for which the CA grants another limit.
    pub domains: BTreeMap<String, Rate>,
    /// Of `orders`, what new names leave to orders that keep names alive: 0 to 0.9.
    pub reserve_share: f64,
    /// Of `orders`, what new names of other tenants leave, besides, to those of tenants with priority.
    pub priority_share: f64,
    /// Failures in a row after which a name is ordered again only when somebody asks for it; 0: never.
    pub pause_after: u32,
    /// New orders of one tenant; ours to choose; 0: no limit.
    pub tenant_1h: u32,
    pub tenant_24h: u32,
    /// Tenants with whom something else is agreed, by their ids.
    pub tenants: BTreeMap<String, OrderBudget>,
}

impl Limits {
    /// Of a limit, for a registered domain or a tenant that may have one of its own.
    pub fn rate(&self, limit: LimitName, subject: &str) -> Rate {
        match limit {
            LimitName::Orders => self.orders,
            LimitName::RegisteredDomain => {
                self.domains.get(subject).copied().unwrap_or(self.registered_domain)
            }
            LimitName::ExactSet => self.exact_set,
            LimitName::FailedAuthorizations => self.failed_authorizations,
            LimitName::ConsecutiveFailures => self.consecutive_failures,
            LimitName::NewAccounts => self.new_accounts,
            LimitName::TenantHour => {
                let own = self.tenants.get(subject).and_then(|budget| budget.per_hour);
                Rate::per(own.unwrap_or(self.tenant_1h), HOUR_MS)
            }
            LimitName::TenantDay => {
                let own = self.tenants.get(subject).and_then(|budget| budget.per_day);
                Rate::per(own.unwrap_or(self.tenant_24h), DAY_MS)
            }
        }
    }

    /// New orders that new names leave untouched, whosever they are.
    pub fn reserve(&self) -> u32 {
        self.share(self.reserve_share)
    }

    /// New orders that new names of this tenant leave untouched; `None`: of several.
    pub fn kept_from(&self, tenant: Option<TenantId>) -> u32 {
        let own = tenant.and_then(|tenant| self.tenants.get(&tenant.to_string()));
        if own.is_some_and(|budget| budget.priority) {
            self.reserve()
        } else {
            self.share(self.reserve_share + self.priority_share)
        }
    }

    fn share(&self, share: f64) -> u32 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a u32")]
        let share = (f64::from(self.orders.count) * share) as u32;
        share
    }
}

/// Let's Encrypt's, 2026-08.
impl Default for Limits {
    fn default() -> Self {
        LimitsConfig::default().limits("")
    }
}

/// The table `[issuer.limits]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Absent: by the directory's address, Let's Encrypt's staging or, for every other, its production.
    preset: Option<Preset>,
    orders: Option<Rate>,
    registered_domain: Option<Rate>,
    exact_set: Option<Rate>,
    failed_authorizations: Option<Rate>,
    consecutive_failures: Option<Rate>,
    new_accounts: Option<Rate>,
    domains: BTreeMap<String, Rate>,
    reserve: Option<f64>,
    /// Absent: 0, nothing is kept for tenants with priority.
    priority_reserve: f64,
    pause_after: Option<u32>,
    /// Absent: a third of `orders` in 3 hours, rounded up, which in the long run is all that the account has: a tenant
    /// alone loses nothing by it, and many names at once leave two thirds to the others.
    tenant_1h: Option<u32>,
    tenant_24h: u32,
}

/// A published table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Preset {
    #[serde(rename = "letsencrypt")]
    LetsEncrypt,
    #[serde(rename = "letsencrypt-staging")]
    LetsEncryptStaging,
    /// No limit at all.
    #[serde(rename = "none")]
    None,
}

impl LimitsConfig {
    /// The faulty key, and what is wrong with its value.
    ///
    /// # Errors
    /// A reserve that leaves nothing, a name that is no registered domain.
    pub fn check(&self) -> Result<(), (String, String)> {
        let fault =
            |key: &str, message: String| Err((format!("limits.{key}"), format!("limits.{key} {message}")));
        if let Some(share) = self.reserve.filter(|share| !(0.0..=RESERVE_SHARE_MAX).contains(share)) {
            return fault(
                "reserve",
                format!("= {share} must be from 0 to {RESERVE_SHARE_MAX}, a share of the orders"),
            );
        }
        let kept = self.reserve.unwrap_or(RESERVE_SHARE) + self.priority_reserve;
        if self.priority_reserve < 0.0 || !(0.0..=RESERVE_SHARE_MAX).contains(&kept) {
            let message = format!(
                "= {} must be a share of the orders, with limits.reserve from 0 to {RESERVE_SHARE_MAX}",
                self.priority_reserve
            );
            return fault("priority_reserve", message);
        }
        for name in self.domains.keys() {
            let parsed = portico_cert_store::DomainName::parse(name);
            let registered = parsed.as_ref().ok().and_then(|parsed| parsed.registered_domain());
            if registered != Some(name.as_str()) {
                let found = registered.map(|found| format!("; write \"{found}\"")).unwrap_or_default();
                let message = format!(": \"{name}\" is no registered domain in lower case{found}");
                return fault("domains", message);
            }
        }
        Ok(())
    }

    /// With other orders of the account.
    #[must_use]
    pub fn with_orders(&self, orders: Rate) -> Self {
        Self { orders: Some(orders), ..self.clone() }
    }

    /// What holds for an issuer with this directory.
    pub fn limits(&self, directory: &str) -> Limits {
        let preset = self.preset.unwrap_or(
            if directory.contains("acme-staging") && directory.contains("letsencrypt.org") {
                Preset::LetsEncryptStaging
            } else {
                Preset::LetsEncrypt
            },
        );
        let table = published(preset);
        let orders = self.orders.unwrap_or(table.orders);
        Limits {
            orders,
            registered_domain: self.registered_domain.unwrap_or(table.registered_domain),
            exact_set: self.exact_set.unwrap_or(table.exact_set),
            failed_authorizations: self.failed_authorizations.unwrap_or(table.failed_authorizations),
            consecutive_failures: self.consecutive_failures.unwrap_or(table.consecutive_failures),
            new_accounts: self.new_accounts.unwrap_or(table.new_accounts),
            domains: self.domains.clone(),
            reserve_share: self.reserve.unwrap_or(RESERVE_SHARE),
            priority_share: self.priority_reserve,
            pause_after: self.pause_after.unwrap_or(PAUSE_AFTER),
            tenant_1h: self.tenant_1h.unwrap_or(orders.count_in(HOUR_MS)),
            tenant_24h: self.tenant_24h,
            tenants: BTreeMap::new(),
        }
    }
}

/// Let's Encrypt's documentation of 2026-08-05; staging's is much wider, so that tests do not meet it.
fn published(preset: Preset) -> Limits {
    let consecutive_failures = Rate::per(1152, 1152 * DAY_MS);
    let (orders, registered_domain, exact_set, failed_authorizations, new_accounts) = match preset {
        Preset::LetsEncrypt => (
            Rate::per(300, 3 * HOUR_MS),
            Rate::per(50, 7 * DAY_MS),
            Rate::per(5, 7 * DAY_MS),
            Rate::per(5, HOUR_MS),
            Rate::per(10, 3 * HOUR_MS),
        ),
        Preset::LetsEncryptStaging => (
            Rate::per(1500, 3 * HOUR_MS),
            // 30,000 a second, which nothing of ours can reach.
            Rate::NONE,
            Rate::per(30_000, 7 * DAY_MS),
            Rate::per(200, HOUR_MS),
            Rate::per(50, 3 * HOUR_MS),
        ),
        Preset::None => (Rate::NONE, Rate::NONE, Rate::NONE, Rate::NONE, Rate::NONE),
    };
    Limits {
        orders,
        registered_domain,
        exact_set,
        failed_authorizations,
        consecutive_failures: if preset == Preset::None { Rate::NONE } else { consecutive_failures },
        new_accounts,
        domains: BTreeMap::new(),
        reserve_share: RESERVE_SHARE,
        priority_share: 0.0,
        pause_after: PAUSE_AFTER,
        tenant_1h: 0,
        tenant_24h: 0,
        tenants: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> LimitsConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_small_limit_of_the_account_never_derives_no_limit_for_a_tenant() {
        let derived = |orders: &str| read(&format!("orders = \"{orders}\"")).limits("").tenant_1h;
        let orders = ["none", "1/3h", "2/3h", "3/3h", "4/3h", "300/3h"];
        assert_eq!(orders.map(derived), [0, 1, 1, 1, 2, 100]);
        let said = read("orders = \"1/3h\"\ntenant_1h = 0").limits("").tenant_1h;
        assert_eq!(said, 0, "an operator may still say so");
    }

    #[test]
    fn the_directory_chooses_the_published_table_and_each_line_can_be_overridden() {
        let plain = LimitsConfig::default();
        let production = plain.limits("https://acme-v02.api.letsencrypt.org/directory");
        assert_eq!(
            (production.orders, production.exact_set),
            (Rate::per(300, 3 * HOUR_MS), Rate::per(5, 7 * DAY_MS))
        );
        assert_eq!(production.consecutive_failures.interval_ms(), DAY_MS);
        assert_eq!(production.reserve(), 30);
        assert_eq!(plain.limits("https://acme-staging-v02.api.letsencrypt.org/directory").orders.count, 1500);
        assert_eq!(read("preset = \"none\"").limits("").orders, Rate::NONE);
        let paid = read(
            "orders = \"1000/1d\"\nreserve = 0.25\npause_after = 3\nexact_set = \"none\"\n[domains]\n\"shop.test\" = \"500/7d\"",
        );
        assert_eq!(paid.check(), Ok(()));
        let limits = paid.limits("");
        assert_eq!((limits.orders, limits.reserve()), (Rate::per(1000, DAY_MS), 250));
        assert_eq!(limits.tenant_1h, 42);
        assert!(!limits.exact_set.is_limited());
        assert_eq!(limits.rate(LimitName::RegisteredDomain, "shop.test").count, 500);
        assert_eq!(limits.rate(LimitName::RegisteredDomain, "else.test").count, 50);
        assert_eq!(limits.pause_after, 3);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, key, words) in [
            ("reserve = 1.0", "limits.reserve", "from 0 to 0.9"),
            ("[domains]\n\"www.shop.test\" = \"1/1h\"", "limits.domains", "write \"shop.test\""),
            ("[domains]\n\"co.uk\" = \"1/1h\"", "limits.domains", "no registered domain"),
        ] {
            let (found, message) = read(text).check().unwrap_err();
            assert!(found == key && message.contains(words), "{found}: {message}");
        }
        let error = toml::from_str::<LimitsConfig>("orders = \"300\"").unwrap_err().to_string();
        assert!(error.contains("COUNT/PERIOD"), "{error}");
    }
}
