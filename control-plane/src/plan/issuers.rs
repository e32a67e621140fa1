//! Which issuer gets an order: the first that its tenant prefers, as long as that one works and may issue.
//!
//! An issuer is **away** when orders there failed for a while, one after the other, for reasons that are no name's, and none
//! was issued. Then new names, and what would run out, go to the next one; renewals with time left wait. After a pause one
//! order tries it: a certificate ends the absence, another failure doubles the pause. So each change of the issuer has a
//! certificate or a series of failures behind it, and a CA that comes and goes is left alone for longer and longer.
//!
//! What is known against an issuer for one name alone (CAA, the CA's policy, a limit that outlasts the certificate) is a
//! [`Restriction`] of that name and moves nothing else.

use std::collections::{BTreeMap, HashMap, HashSet};

use portico_cert_store::{OrderId, TenantId};
use serde::{Deserialize, Serialize};

use super::reconcile::{Coverage, Facts, Names};
use crate::acme::ChallengeMethod;
use crate::clock::{DAY_MS, HOUR_MS, MINUTE_MS};
use crate::store::group::LiveCredential;

/// Failures in a row, at least, before an issuer is away: one order's lost answers are no absence.
pub const FAILURES_MIN: u32 = 3;
/// So many in a row are one, however soon they come: more than can be under way at a time. Each is told, so a CA that fails
/// thousands of orders within minutes would hide what is wrong with it in as many messages.
pub const FAILURES_AT_ONCE: u32 = 64;
/// A failure that is longer ago than this began no series.
const SERIES_GAP_MS: i64 = DAY_MS;
/// A wait that a CA asks for and that is no absence, whatever the patience.
const ASKED_LITTLE_MS: i64 = MINUTE_MS;
/// The longest pause between two tries.
const PAUSE_MAX_MS: i64 = DAY_MS;
/// An order that is tried within this time tries its issuer.
const TRIAL_SOON_MS: i64 = MINUTE_MS;
/// A look at CAA is good for so long, as it is for CAs (Baseline Requirements 3.2.2.8).
pub const CAA_FRESH_MS: i64 = 8 * HOUR_MS;
/// A CA's policy about a name is asked for again after this.
pub const POLICY_FRESH_MS: i64 = 7 * DAY_MS;

/// The configured issuers.
#[derive(Clone, Debug, Default)]
pub struct Issuers {
    /// In the order of the configuration.
    pub all: Vec<IssuerFacts>,
    /// What tenants prefer that name issuers of their own.
    pub of_tenant: HashMap<TenantId, Vec<String>>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct IssuerFacts {
    pub name: String,
    pub by_default: bool,
    pub health: Health,
}

/// What the last orders at a CA tell of it. Times are Unix milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Health {
    #[default]
    Well,
    /// Not long enough to call it away.
    Failing { since: i64, last: i64, failures: u32 },
    /// Left alone until then; after that one order tries it. `pauses`: tries that failed.
    Away { since: i64, until: i64, pauses: u32, why: String },
}

/// When an issuer is away, and when it is tried again.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub after_ms: i64,
    pub back_after_ms: i64,
}

/// How an issuer stands at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Well,
    Away,
    /// One order may try it.
    Trial,
}

impl Health {
    /// After one more failure that is no name's. `asked_ms`: for how long the CA wants to be left alone, which is as good as a
    /// series of that length.
    #[must_use]
    pub fn failed(self, why: &str, asked_ms: i64, patience: Patience, now_ms: i64) -> Self {
        let away = |since: i64| {
            let until = now_ms + patience.back_after_ms.max(asked_ms);
            Self::Away { since, until, pauses: 0, why: why.to_owned() }
        };
        match self {
            Self::Well | Self::Failing { .. } if asked_ms > patience.after_ms.max(ASKED_LITTLE_MS) => {
                away(now_ms)
            }
            Self::Failing { since, last, failures } if now_ms - last <= SERIES_GAP_MS => {
                let failures = failures.saturating_add(1);
                let is_little = failures < FAILURES_MIN || now_ms - since < patience.after_ms;
                if is_little && failures < FAILURES_AT_ONCE {
                    return Self::Failing { since, last: now_ms, failures };
                }
                away(since)
            }
            Self::Well | Self::Failing { .. } => Self::Failing { since: now_ms, last: now_ms, failures: 1 },
            // Of orders that were under way when it went.
            Self::Away { until, .. } if now_ms < until => self,
            Self::Away { since, pauses, .. } => {
                let pauses = pauses.saturating_add(1);
                let pause = patience.back_after_ms.saturating_mul(1 << pauses.min(16)).min(PAUSE_MAX_MS);
                Self::Away { since, until: now_ms + pause, pauses, why: why.to_owned() }
            }
        }
    }

    /// The clock was set back by `by_ms`: what was written of times after `after_ms` is of earlier ones.
    #[must_use]
    pub fn set_back(self, by_ms: i64, after_ms: i64) -> Self {
        match self {
            Self::Failing { since, last, failures } if last > after_ms => {
                Self::Failing { since: since - by_ms, last: last - by_ms, failures }
            }
            Self::Away { since, until, pauses, why } if until > after_ms => {
                Self::Away { since: since - by_ms, until: until - by_ms, pauses, why }
            }
            other @ (Self::Well | Self::Failing { .. } | Self::Away { .. }) => other,
        }
    }

    pub fn standing(&self, now_ms: i64) -> Standing {
        match self {
            Self::Well | Self::Failing { .. } => Standing::Well,
            Self::Away { until, .. } if now_ms < *until => Standing::Away,
            Self::Away { .. } => Standing::Trial,
        }
    }
}

/// What is known against an issuer for one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restriction {
    pub kind: RestrictionKind,
    /// By which it may validate; empty: it may not issue at all.
    pub methods: Vec<ChallengeMethod>,
    /// For the tenant: what forbids it, with the record to set.
    pub why: String,
    /// Unix milliseconds; then it is looked at again.
    pub until: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestrictionKind {
    /// The name's CAA records.
    Caa,
    /// The CA will not have the name.
    Policy,
    /// It validates by no method that the name can show.
    Methods,
    /// Its limit outlasts the certificate.
    Limit,
}

/// By issuer.
pub type Restrictions = BTreeMap<String, Restriction>;

impl Restriction {
    pub fn forbids(&self, now_ms: i64) -> bool {
        self.methods.is_empty() && now_ms < self.until && !self.is_of_another_time(now_ms)
    }

    /// It was written by a clock that was ahead: no look is good for so long.
    fn is_of_another_time(&self, now_ms: i64) -> bool {
        let longest = match self.kind {
            RestrictionKind::Caa | RestrictionKind::Methods => CAA_FRESH_MS,
            RestrictionKind::Policy => POLICY_FRESH_MS,
            // A CA's own word.
            RestrictionKind::Limit => return false,
        };
        self.until - now_ms > longest
    }
}

/// Names that other issuers may issue for are kept apart: 0 for one without restrictions. It stays when a restriction ends, so
/// that groups do not change at each look.
pub fn part(restrictions: &Restrictions) -> u64 {
    let mut part = 0u64;
    for (issuer, restriction) in restrictions {
        if restriction.methods.is_empty() && restriction.kind != RestrictionKind::Limit {
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, issuer.as_bytes());
            part ^= digest.as_ref().first_chunk().map_or(1, |bytes| u64::from_le_bytes(*bytes));
        }
    }
    part
}

impl LiveCredential {
    /// From when on its renewal goes to whoever issues: a sixth of its lifetime is left, or its CA wanted it replaced a thirtieth
    /// of it ago, as before a revocation.
    pub fn urgent_at(&self) -> i64 {
        let window = self.window_end.map_or(i64::MAX, |end| end.saturating_add(self.patience_ms()));
        window.min(urgent_at(self.not_before, self.not_after))
    }

    /// Has its replacement go before others whose time is later, to whoever issues from `by` on.
    pub fn press(&mut self, by: i64) {
        let end = by.saturating_sub(self.patience_ms());
        self.window_end = Some(self.window_end.map_or(end, |before| before.min(end)));
    }

    /// So long after its window a certificate stays with its issuer.
    fn patience_ms(&self) -> i64 {
        (self.not_after - self.not_before) / 30
    }
}

/// When a sixth of a lifetime is left.
pub fn urgent_at(not_before: i64, not_after: i64) -> i64 {
    not_after - (not_after - not_before) / 6
}

/// What an order is for, as far as issuers go.
struct Wanted<'a> {
    tenant: Option<TenantId>,
    restrictions: Vec<&'a Restrictions>,
    /// It need not wait for an issuer that is away.
    may_leave: bool,
}

/// Chooses for orders of one turn.
pub(super) struct Chooser<'a> {
    facts: &'a Facts,
    /// Issuers that an order tries.
    tried: HashSet<&'a str>,
}

impl<'a> Chooser<'a> {
    pub(super) fn of(facts: &'a Facts) -> Self {
        let soon =
            facts.open_orders.iter().filter(|o| !o.lacks_key && o.next_at <= facts.now_ms + TRIAL_SOON_MS);
        Self { facts, tried: soon.map(|open| open.issuer.as_str()).collect() }
    }

    /// The issuer of an order for these names; `urgent_at`: when they cannot wait any longer, `None` for new names. `None`: there
    /// is no issuer at all.
    pub(super) fn choose(
        &mut self,
        tenant: Option<TenantId>,
        names: &Names,
        urgent_at: Option<i64>,
    ) -> Option<&'a str> {
        let chosen = self.best(&self.wanted(tenant, names, urgent_at))?;
        if chosen.health.standing(self.facts.now_ms) == Standing::Trial {
            self.tried.insert(&chosen.name);
        }
        Some(&chosen.name)
    }

    fn wanted(&self, tenant: Option<TenantId>, names: &Names, urgent_at: Option<i64>) -> Wanted<'a> {
        let states = names.values().filter_map(|domain| self.facts.names.get(domain));
        let restrictions = states.map(|state| &state.issuers).filter(|issuers| !issuers.is_empty());
        Wanted {
            tenant,
            restrictions: restrictions.collect(),
            may_leave: urgent_at.is_none_or(|at| at <= self.facts.now_ms),
        }
    }

    /// Of those that are preferred: the first that works and may; else the first that may, limits or not; else the first.
    fn best(&self, wanted: &Wanted<'a>) -> Option<&'a IssuerFacts> {
        let preferred = self.facts.issuers.preferred(wanted.tenant);
        let find = |fits: &dyn Fn(&IssuerFacts) -> bool| preferred.iter().copied().find(|one| fits(one));
        find(&|one| self.is_usable(one, wanted) && !self.is_busy(one, wanted))
            .or_else(|| find(&|one| self.forbids(one, wanted) != Some(Forbidden::ByName)))
            .or_else(|| preferred.first().copied())
    }

    fn is_usable(&self, issuer: &IssuerFacts, wanted: &Wanted<'_>) -> bool {
        let is_away = issuer.health.standing(self.facts.now_ms) == Standing::Away;
        self.forbids(issuer, wanted).is_none() && !(is_away && wanted.may_leave)
    }

    /// Somebody else tries whether it is back.
    fn is_busy(&self, issuer: &IssuerFacts, wanted: &Wanted<'_>) -> bool {
        let standing = issuer.health.standing(self.facts.now_ms);
        standing == Standing::Trial && wanted.may_leave && self.tried.contains(issuer.name.as_str())
    }

    fn forbids(&self, issuer: &IssuerFacts, wanted: &Wanted<'_>) -> Option<Forbidden> {
        let known = wanted.restrictions.iter().filter_map(|restrictions| restrictions.get(&issuer.name));
        let forbidding: Vec<_> = known.filter(|known| known.forbids(self.facts.now_ms)).collect();
        if forbidding.iter().any(|known| known.kind != RestrictionKind::Limit) {
            return Some(Forbidden::ByName);
        }
        (!forbidding.is_empty()).then_some(Forbidden::ByLimit)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forbidden {
    ByName,
    ByLimit,
}

impl Issuers {
    /// Those that a tenant's orders may go to, the best first. One that names only issuers that are configured no more has the
    /// fleet's.
    pub fn preferred(&self, tenant: Option<TenantId>) -> Vec<&IssuerFacts> {
        let named = tenant.and_then(|tenant| self.of_tenant.get(&tenant)).into_iter().flatten();
        let named: Vec<&IssuerFacts> = named.filter_map(|name| self.find(name)).collect();
        if named.is_empty() { self.all.iter().filter(|one| one.by_default).collect() } else { named }
    }

    fn find(&self, name: &str) -> Option<&IssuerFacts> {
        self.all.iter().find(|one| one.name == name)
    }
}

/// An order that is to go to another issuer than the one it was planned at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    pub order: OrderId,
    pub to: String,
}

/// Open orders that their issuer will not serve in time, or may not, where another would.
pub fn moves(facts: &Facts) -> Vec<Move> {
    if facts.issuers.all.len() < 2 {
        return Vec::new();
    }
    let groups: HashMap<_, _> = facts.groups.iter().map(|group| (group.id, group)).collect();
    let lineages: HashMap<_, _> = facts.lineages.iter().map(|lineage| (lineage.id, lineage)).collect();
    let coverage = Coverage::of(facts);
    let mut chooser = Chooser::of(facts);
    let mut moves = Vec::new();
    for open in &facts.open_orders {
        let Some(lineage) = lineages.get(&open.lineage) else { continue };
        let Some(group) = groups.get(&lineage.group) else { continue };
        let urgent_at = coverage.urgent_at(&lineage.cell, &group.names);
        let wanted = chooser.wanted(group.tenant, &group.names, urgent_at);
        let preferred = facts.issuers.preferred(group.tenant);
        let stays = preferred.iter().find(|one| one.name == open.issuer);
        if stays.is_some_and(|one| chooser.is_usable(one, &wanted)) {
            continue;
        }
        let chosen = chooser.choose(group.tenant, &group.names, urgent_at);
        if let Some(to) = chosen.filter(|to| *to != open.issuer) {
            moves.push(Move { order: open.id, to: to.to_owned() });
        }
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { after_ms: 1000, back_after_ms: 10_000 };

    #[test]
    fn an_issuer_is_away_after_a_series_and_back_only_by_a_try() {
        let mut health = Health::Well;
        for now in [0, 10, 20, 999] {
            health = health.failed("503", 0, PATIENCE, now);
            assert_eq!(health.standing(now), Standing::Well, "{now}");
        }
        health = health.failed("503", 0, PATIENCE, 1000);
        assert_eq!(health.standing(1000), Standing::Away);
        // What was under way fails too, which is no try.
        let same = health.clone().failed("503", 0, PATIENCE, 1001);
        assert_eq!(same, health);
        assert_eq!(health.standing(11_000), Standing::Trial);
        let mut pauses = Vec::new();
        let mut now = 11_000;
        for _ in 0..16 {
            health = health.failed("503", 0, PATIENCE, now);
            let Health::Away { until, .. } = health else { panic!("{health:?}") };
            pauses.push(until - now);
            now = until;
        }
        assert_eq!(pauses[..3], [20_000, 40_000, 80_000]);
        assert_eq!(pauses.last(), Some(&PAUSE_MAX_MS));
    }

    #[test]
    fn a_ca_that_asks_for_a_long_time_alone_is_away_at_once() {
        let little = Health::Well.failed("503", ASKED_LITTLE_MS, PATIENCE, 0);
        assert_eq!(little.standing(0), Standing::Well);
        let long = little.failed("503", 3_600_000, PATIENCE, 5);
        assert_eq!((long.standing(3_600_004), long.standing(3_600_005)), (Standing::Away, Standing::Trial));
    }

    #[test]
    fn failures_far_apart_are_no_series() {
        let mut health = Health::Well;
        for day in 0..10 {
            health = health.failed("x", 0, PATIENCE, day * (SERIES_GAP_MS + 1));
            assert!(matches!(health, Health::Failing { failures: 1, .. }), "{health:?}");
        }
    }

    #[test]
    fn a_renewal_is_urgent_by_its_lifetime_or_its_missed_window() {
        let live = |window_end| LiveCredential {
            id: portico_cert_store::CredentialId::generate(),
            issuer: String::new(),
            names: Vec::new(),
            issued_at: 0,
            not_before: 0,
            not_after: 90 * DAY_MS,
            renew_at: 60 * DAY_MS,
            window_end,
        };
        assert_eq!(live(None).urgent_at(), 75 * DAY_MS);
        assert_eq!(live(Some(61 * DAY_MS)).urgent_at(), 64 * DAY_MS);
        assert_eq!(live(Some(80 * DAY_MS)).urgent_at(), 75 * DAY_MS);
    }
}
