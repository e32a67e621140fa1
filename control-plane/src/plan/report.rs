//! The plan for people: groups, orders, when the CA's limits let them through, what hangs on one key. A pure function of
//! the same facts that issuance acts by; what-if is a second call with other [`Terms`].
//!
//! The time is a lower bound: each order waits for the slowest of the account's limit, its registered domain's and its
//! tenant's, as the ledger has them. Deliberately absent: the time that validation takes, failures, and what others will
//! use of a domain's limit at the CA.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use portico_api::v1;
use portico_cert_store::{CellId, NamePattern, OrderNeed, Plan, PlannedGroup, TenantId};

use super::cells::{ANY_NAME, borne};
use super::ledger::{At, Bucket, BucketKey, Levels, LimitName, Limits, Rate, registered_domains};
use super::reconcile::{Coverage, Facts, fair, name_set, plans};
use crate::clock::{DAY_MS, HOUR_MS};
use crate::store::condition::ConditionRow;
use crate::store::domain::DomainRow;
use crate::store::group::NameState;

/// What is planned under.
#[derive(Clone, Debug)]
pub struct Terms {
    pub names_per_certificate_max: usize,
    pub limits: Limits,
    /// What is spent, and of which CA and account.
    pub spent: Arc<Spent>,
    /// In place of each tenant's own; domains that are to be alone stay so.
    pub sharing: Option<v1::Sharing>,
    /// In place of each name's own, so many cells: those that it has, and further ones.
    pub cells: Option<usize>,
}

/// What the ledger has of one issuer.
#[derive(Clone, Debug)]
pub struct Spent {
    pub levels: Levels,
    /// Those that `levels` were spent under.
    pub limits: Limits,
    pub ca: String,
    pub account: String,
}

impl Spent {
    pub fn at(&self) -> At<'_> {
        At { ca: &self.ca, account: &self.account }
    }

    /// The bucket of a limit under another rate, with as much spent.
    fn bucket(&self, limit: LimitName, subject: &str, rate: Rate, now_ms: i64) -> Bucket {
        let bucket = self.levels.of(&BucketKey::new(limit, self.at(), subject)).bucket.at(now_ms);
        let before = self.limits.rate(limit, subject);
        if before == rate || !before.is_limited() {
            return bucket;
        }
        let spent = i64::from(bucket.used(before, now_ms));
        Bucket { arrival_ms: now_ms + spent * rate.interval_ms(), ..bucket }
    }
}

/// What a report tells beside what the facts of issuance say.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// What each tenant is called.
    pub tenants: HashMap<TenantId, String>,
    /// Claims without a proof.
    pub unproved: u64,
    /// Groups to list, the largest first.
    pub groups_listed: usize,
    pub explain: Option<Asked>,
}

/// A name whose place is to be told, with what the store has of it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub name: NamePattern,
    /// Tenants that claim it and have not proved it.
    pub unproved: Vec<TenantId>,
    /// What keeps the served claim from being ordered now.
    pub hindrance: Option<String>,
}

impl Asked {
    /// From the claims of the name, the conditions of the served one and what issuance knows of it.
    pub fn of(name: NamePattern, claims: &[DomainRow], conditions: &[ConditionRow], facts: &Facts) -> Self {
        let served = claims.iter().find(|claim| claim.served);
        Self {
            name,
            unproved: claims.iter().filter(|claim| !claim.served).map(|claim| claim.tenant_id).collect(),
            hindrance: served.and_then(|claim| hindrance(facts, facts.names.get(&claim.id)?, conditions)),
        }
    }
}

/// What keeps a proved name from being ordered now, as the end of "as long as".
fn hindrance(facts: &Facts, state: &NameState, conditions: &[ConditionRow]) -> Option<String> {
    if let Some(error) = state.error.as_ref().filter(|_| state.next_at >= crate::clock::NEVER_MS) {
        return Some(format!(
            "the CA could not validate it ({error}), too often to be tried again by itself; mend it, then `portico domain \
             retry` it"
        ));
    }
    if let Some(error) = state.error.as_ref().filter(|_| state.next_at > facts.now_ms) {
        return Some(format!(
            "the CA could not validate it ({error}); it is tried again at {}",
            crate::clock::rfc3339(state.next_at)
        ));
    }
    if !state.methods.is_empty() {
        return None;
    }
    let lacking = |kind| {
        let row = conditions.iter().find(|row| row.observed.kind == kind)?;
        (row.observed.status != v1::ConditionStatus::True).then_some(row.observed.message.as_str())
    };
    if let Some(message) = lacking(v1::ConditionKind::ChallengeReachable) {
        return Some(format!("its pre-flight has not passed: {message}"));
    }
    let caa =
        lacking(v1::ConditionKind::CaaPermits).map(|message| format!("its CAA records say no: {message}"));
    Some(caa.unwrap_or_else(|| "its pre-flight has not been made".to_owned()))
}

impl Question {
    fn called(&self, tenant: TenantId) -> String {
        self.tenants.get(&tenant).cloned().unwrap_or_else(|| tenant.to_string())
    }
}

/// Names of one group that it lists.
const NAMES_LISTED_MAX: usize = 4;
/// Sets of several cells that are listed.
const CELLS_LISTED_MAX: usize = 100;
/// The most names of a certificate under any known profile.
const NAMES_MAX: usize = 100;
/// Three times the smallest datagram that a client may begin with (RFC 9000 sections 8.1 and 14.1).
const QUIC_BUDGET_BYTES: usize = 3 * 1200;
/// A P-256 leaf of a public CA with two SCTs and no name, and its intermediate: about 1 kB each.
const CHAIN_BYTES: usize = 2_000;
/// ServerHello with X25519, EncryptedExtensions, CertificateVerify, Finished and record headers.
const REST_OF_FLIGHT_BYTES: usize = 320;
/// Tag and length of a dNSName (RFC 5280 section 4.2.1.6).
const NAME_OVERHEAD_BYTES: usize = 2;

/// The report. A name that is asked about and that nobody brings has no explanation.
pub fn report(facts: &Facts, terms: &Terms, question: &Question) -> v1::PlanReport {
    let shared = facts_under(facts, terms);
    let plans = plans(&shared, terms.names_per_certificate_max);
    let schedule = Schedule::of(&shared, &plans, terms);
    let groups: Vec<&PlannedGroup> = plans.iter().flat_map(|(_, plan)| &plan.groups).collect();
    let bytes = |group: &&PlannedGroup| handshake_bytes(&group.names);
    let most = |of: fn(&PlannedGroup) -> usize| wide(groups.iter().map(|group| of(group)).max().unwrap_or(0));
    v1::PlanReport {
        names: wide(groups.iter().map(|group| group.names.len()).sum()),
        waiting: wide(plans.iter().map(|(_, plan)| plan.waiting.len()).sum()),
        unproved: question.unproved,
        groups: wide(groups.len()),
        orders_now: wide(schedule.slots.len()),
        changes_at_renewal: wide(groups.iter().filter(|group| group.order == OrderNeed::AtRenewal).count()),
        limits: v1::PlanLimits {
            names_per_certificate_max: wide(terms.names_per_certificate_max),
            orders_3h: terms.limits.orders.count_in(3 * HOUR_MS),
            orders_left: orders_left(facts, terms),
            registered_domain_7d: terms.limits.registered_domain.count_in(7 * DAY_MS),
            tenant_1h: terms.limits.tenant_1h,
        },
        eta: schedule.eta(),
        held_by: schedule.held_by(),
        levers: levers(facts, terms, &schedule),
        names_per_key_max: most(|group| group.names.len()),
        tenants_per_key_max: most(|group| group.tenants.len()),
        handshake_bytes_max: wide(groups.iter().map(bytes).max().unwrap_or(0)),
        handshake_bytes_budget: wide(QUIC_BUDGET_BYTES),
        groups_over_budget: wide(groups.iter().filter(|group| bytes(group) > QUIC_BUDGET_BYTES).count()),
        cells: fan_outs(&plans, &terms.limits),
        largest: largest(groups, question),
        explanation: question.explain.as_ref().and_then(|asked| explanation(&plans, asked, question)),
    }
}

/// How many orders names without a certificate need, and when the last of them can go, milliseconds from now.
pub fn outlook(facts: &Facts, terms: &Terms) -> (u64, i64) {
    let schedule = Schedule::of(facts, &plans(facts, terms.names_per_certificate_max), terms);
    (wide(schedule.slots.len()), schedule.last_ms())
}

fn facts_under<'a>(facts: &'a Facts, terms: &Terms) -> Cow<'a, Facts> {
    if terms.sharing.is_none() && terms.cells.is_none() {
        return Cow::Borrowed(facts);
    }
    let mut facts = facts.clone();
    if let Some(sharing) = terms.sharing {
        for domain in facts.domains.iter_mut().filter(|domain| !domain.spec.alone) {
            domain.sharing = sharing;
            domain.shared_group = None;
        }
    }
    if let Some(cells) = terms.cells {
        for domain in &mut facts.domains {
            in_cells(&mut domain.cells, cells);
        }
        for group in &mut facts.groups {
            in_cells(&mut group.cells, cells);
        }
    }
    Cow::Owned(facts)
}

/// Leaves out the last ones, or adds some that nobody has.
fn in_cells(cells: &mut Vec<CellId>, count: usize) {
    cells.truncate(count);
    let further = (1..).filter_map(|n| CellId::parse(&format!("further-{n}")).ok());
    for cell in further {
        if cells.len() >= count {
            break;
        }
        if !cells.contains(&cell) {
            cells.push(cell);
        }
    }
    cells.sort();
}

/// What is to be in several cells, and whether the limits bear it.
fn fan_outs(plans: &[(&[CellId], Plan)], limits: &Limits) -> Vec<v1::PlanCells> {
    let borne = borne(limits, &[ANY_NAME.to_owned()]);
    let several = plans.iter().filter(|(cells, plan)| cells.len() > 1 && !plan.groups.is_empty());
    let shown = |(cells, plan): &(&[CellId], Plan)| {
        let (wanted, most) = (cells.len(), borne.cells);
        let text = if wanted > most {
            format!(
                "refused: {wanted} certificates of exactly the same names, one for each cell, and {}; the first {most} cells get \
                 theirs, the others none; have more edges in one cell",
                borne.why()
            )
        } else if borne.held_by.is_some() {
            format!(
                "{wanted} certificates of exactly the same names, and {}; {} more keys of them can be replaced in that time \
                 outside of the windows that the CA suggests",
                borne.why(),
                most - wanted
            )
        } else {
            format!("{wanted} certificates of exactly the same names, which no limit of the CA counts")
        };
        v1::PlanCells {
            cells: cells.iter().map(ToString::to_string).collect(),
            groups: wide(plan.groups.len()),
            names: wide(plan.groups.iter().map(|group| group.names.len()).sum()),
            cells_max: wide(most),
            is_borne: wanted <= most,
            text,
        }
    };
    several.take(CELLS_LISTED_MAX).map(shown).collect()
}

/// Which of the reasons holds; `None`: nobody brings the name, and no wildcard covers it.
fn explanation(plans: &[(&[CellId], Plan)], asked: &Asked, question: &Question) -> Option<String> {
    let name = &asked.name;
    let called = |tenant| question.called(tenant);
    let place = |name: &NamePattern| {
        let plan = plans.iter().map(|(_, plan)| plan).find(|plan| plan.group_of(name).is_some())?;
        let hangs = plan.group_of(name).map(on_one_key).unwrap_or_default();
        Some(format!("{}; {hangs}", plan.explain_name(name, &called)))
    };
    if let Some(text) = place(name) {
        return Some(match &asked.hindrance {
            Some(hindrance) => format!("{text}; it is not ordered as long as {hindrance}"),
            None => text,
        });
    }
    if plans.iter().any(|(_, plan)| plan.waiting.iter().any(|waiting| waiting.name == *name)) {
        let hindrance = asked.hindrance.as_deref().unwrap_or("its pre-flight has not been made");
        return Some(format!("{name} is in no group yet: control of it is proved, but {hindrance}"));
    }
    let wildcard = covering(name).and_then(|wildcard| Some((place(&wildcard)?, wildcard)));
    let covered = wildcard.map(|(text, wildcard)| {
        format!("the wildcard {wildcard} covers it, with no order of its own: {text}")
    });
    let claimants: Vec<String> = asked.unproved.iter().map(|tenant| called(*tenant)).collect();
    match (claimants.is_empty(), covered) {
        (true, covered) => covered.map(|covered| format!("nobody brings {name} itself; {covered}")),
        (false, covered) => {
            let covered = covered.map(|covered| format!("; meanwhile {covered}")).unwrap_or_default();
            Some(format!(
                "{name} is in no group: tenant {} claims it and has not proved control of it; `portico domain show \
                 {name}` has the record to set{covered}",
                claimants.join(", ")
            ))
        }
    }
}

/// What one lost key or one revocation of a group takes with it, and what a handshake with it costs.
fn on_one_key(group: &PlannedGroup) -> String {
    format!(
        "one key for {} names of {} tenants, about {} bytes of QUIC's {QUIC_BUDGET_BYTES}",
        group.names.len(),
        group.tenants.len(),
        handshake_bytes(&group.names)
    )
}

/// The wildcard that serves a name.
fn covering(name: &NamePattern) -> Option<NamePattern> {
    let NamePattern::Exact(name) = name else { return None };
    let (_, parent) = name.as_str().split_once('.')?;
    NamePattern::parse(&format!("*.{parent}")).ok()
}

fn largest(mut groups: Vec<&PlannedGroup>, question: &Question) -> Vec<v1::PlanGroup> {
    groups.sort_by_key(|group| std::cmp::Reverse(group.names.len()));
    let shown = |group: &PlannedGroup| v1::PlanGroup {
        id: group.id.map(|id| id.to_string()),
        names: group.names.iter().take(NAMES_LISTED_MAX).map(ToString::to_string).collect(),
        names_count: wide(group.names.len()),
        tenants: wide(group.tenants.len()),
        basis: group.basis.in_words(&|tenant| question.called(tenant)),
        handshake_bytes: wide(handshake_bytes(&group.names)),
    };
    groups.into_iter().take(question.groups_listed).map(shown).collect()
}

/// The server's first flight with a certificate for these names, estimated.
fn handshake_bytes(names: &[NamePattern]) -> usize {
    let of = |name: &NamePattern| NAME_OVERHEAD_BYTES + name.to_string().len();
    CHAIN_BYTES + REST_OF_FLIGHT_BYTES + names.iter().map(of).sum::<usize>()
}

/// Of the account's, the reserve among them.
fn orders_left(facts: &Facts, terms: &Terms) -> u32 {
    let rate = terms.limits.orders;
    let bucket = terms.spent.bucket(LimitName::Orders, "", rate, facts.now_ms);
    rate.count.saturating_sub(bucket.used(rate, facts.now_ms))
}

/// When each order that is needed now can go.
struct Schedule {
    slots: Vec<Slot>,
}

/// An order that is needed now.
struct Needed<'a> {
    group: &'a PlannedGroup,
    /// Names without a certificate that wait for it.
    names: usize,
    /// The same names have one, or get one before, in another cell.
    is_further: bool,
}

struct Slot {
    /// Names without a certificate that wait for it.
    names: usize,
    at_ms: i64,
    /// What it waits for; `None`: nothing.
    limit: Option<LimitName>,
}

impl Schedule {
    fn of(facts: &Facts, plans: &[(&[CellId], Plan)], terms: &Terms) -> Self {
        let coverage = Coverage::of(facts);
        let most = borne(&terms.limits, &[ANY_NAME.to_owned()]).cells;
        let mut queues: HashMap<Option<TenantId>, Vec<Needed<'_>>> = HashMap::new();
        for (cells, plan) in plans {
            for group in &plan.groups {
                let lacking = |cell: &CellId| {
                    group.domains.iter().filter(|d| coverage.renew_at(cell, **d).is_none()).count()
                };
                let mut is_further = cells.iter().any(|cell| lacking(cell) == 0);
                for names in cells.iter().take(most).map(lacking).filter(|names| *names > 0) {
                    let tenant = group.tenants.first().copied().filter(|_| group.tenants.len() == 1);
                    queues.entry(tenant).or_default().push(Needed { group, names, is_further });
                    is_further = true;
                }
            }
        }
        let mut queues: Vec<_> = queues.into_iter().collect();
        queues.sort_unstable_by_key(|(tenant, _)| *tenant);
        let had = |tenant: &Option<TenantId>| {
            facts.spent.get(tenant).map_or(0, |spent| usize::try_from(*spent).unwrap_or(0))
        };
        let orders = fair(queues.into_iter().map(|(tenant, queue)| (had(&tenant), queue)).collect());
        let limits = &terms.limits;
        let mut queued: HashMap<(LimitName, String), (Bucket, u32)> = HashMap::new();
        let mut wait = |limit: LimitName, subject: String, keep: u32| {
            let rate = limits.rate(limit, &subject);
            let (bucket, before) = queued.entry((limit, subject)).or_insert_with_key(|(limit, subject)| {
                (terms.spent.bucket(*limit, subject, rate, facts.now_ms), 0)
            });
            let at = bucket.room_at(rate, *before, keep, facts.now_ms);
            *before += 1;
            ((at - facts.now_ms).max(0), limit)
        };
        let slot = |Needed { group, names, is_further }: Needed<'_>| {
            let names_of: Vec<String> = group.names.iter().map(ToString::to_string).collect();
            let set = name_set(names_of.iter().map(String::as_str));
            let mut waits = vec![wait(LimitName::ExactSet, set, 0)];
            let alone = if let [tenant] = group.tenants[..] { Some(tenant) } else { None };
            if let Some(tenant) = alone {
                waits.push(wait(LimitName::TenantHour, tenant.to_string(), 0));
                waits.push(wait(LimitName::TenantDay, tenant.to_string(), 0));
            }
            // A CA counts the same names in a further cell by their set alone.
            if !is_further {
                waits.push(wait(LimitName::Orders, String::new(), limits.kept_from(alone)));
                for domain in registered_domains(&names_of) {
                    waits.push(wait(LimitName::RegisteredDomain, domain, 0));
                }
            }
            let (at_ms, limit) =
                waits.into_iter().max_by_key(|(wait, _)| *wait).unwrap_or((0, LimitName::Orders));
            Slot { names, at_ms, limit: Some(limit).filter(|_| at_ms > 0) }
        };
        let mut slots: Vec<Slot> = orders.into_iter().map(slot).collect();
        slots.sort_by_key(|slot| slot.at_ms);
        Self { slots }
    }

    fn last_ms(&self) -> i64 {
        self.slots.last().map_or(0, |slot| slot.at_ms)
    }

    /// The tail is what hurts, so it is told apart from the middle.
    fn eta(&self) -> Vec<v1::PlanEta> {
        let all: usize = self.slots.iter().map(|slot| slot.names).sum();
        let after = |percent: u8| {
            let wanted = (all * usize::from(percent)).div_ceil(100);
            let mut covered = 0;
            let slot = self.slots.iter().find(|slot| {
                covered += slot.names;
                covered >= wanted
            });
            v1::PlanEta { percent, seconds: seconds(slot.map_or(0, |slot| slot.at_ms)) }
        };
        if all == 0 { Vec::new() } else { [50, 90, 99, 100].map(after).to_vec() }
    }

    fn held_by(&self) -> Vec<v1::PlanHold> {
        let kinds = [
            LimitName::Orders,
            LimitName::RegisteredDomain,
            LimitName::ExactSet,
            LimitName::TenantHour,
            LimitName::TenantDay,
        ];
        let hold = |kind: LimitName| {
            let held: Vec<&Slot> = self.slots.iter().filter(|slot| slot.limit == Some(kind)).collect();
            let last = held.last()?;
            Some(v1::PlanHold {
                limit: kind.text().to_owned(),
                orders: wide(held.len()),
                names: wide(held.iter().map(|slot| slot.names).sum()),
                seconds: seconds(last.at_ms),
            })
        };
        let mut holds: Vec<v1::PlanHold> = kinds.into_iter().filter_map(hold).collect();
        holds.sort_by_key(|hold| std::cmp::Reverse(hold.seconds));
        holds
    }
}

/// What would let the last name have its certificate sooner, or need fewer orders; none where nothing waits.
fn levers(facts: &Facts, terms: &Terms, now: &Schedule) -> Vec<v1::PlanLever> {
    if now.last_ms() == 0 {
        return Vec::new();
    }
    let mut tried: Vec<(String, Terms)> = Vec::new();
    let mut lever = |text: &str, change: &dyn Fn(&mut Terms)| {
        let mut other = terms.clone();
        change(&mut other);
        tried.push((text.to_owned(), other));
    };
    lever(
        "each tenant's names share certificates whatever their domain (sharing = tenant; public for ever)",
        &|t| {
            t.sharing = Some(v1::Sharing::Tenant);
        },
    );
    lever("100 names on a certificate (the CA's profile has to allow it; as many hang on one key)", &|t| {
        t.names_per_certificate_max = NAMES_MAX;
    });
    lever("the CA raises the account's limit on new orders tenfold (ask it weeks before)", &|t| {
        t.limits.orders.count = t.limits.orders.count.saturating_mul(10);
    });
    lever("the CA raises the limit of the registered domains concerned (ask it weeks before)", &|t| {
        t.limits.registered_domain = Rate::NONE;
        t.limits.domains.clear();
    });
    lever("no budget for single tenants (tenant_1h = 0, tenant_24h = 0)", &|t| {
        (t.limits.tenant_1h, t.limits.tenant_24h) = (0, 0);
        t.limits.tenants.clear();
    });
    // As many as both CAs let through, as if each had half of the names.
    lever("a second issuer at another CA ([[issuer]]): half of the orders go there", &|t| {
        let twice = |rate: Rate| Rate { count: rate.count.saturating_mul(2), ..rate };
        t.limits.orders = twice(t.limits.orders);
        t.limits.registered_domain = twice(t.limits.registered_domain);
        t.limits.domains.values_mut().for_each(|rate| *rate = twice(*rate));
    });
    let outcome = |(text, terms): (String, Terms)| {
        let shared = facts_under(facts, &terms);
        let schedule = Schedule::of(&shared, &plans(&shared, terms.names_per_certificate_max), &terms);
        let helps = schedule.last_ms() < now.last_ms() || schedule.slots.len() < now.slots.len();
        helps.then(|| v1::PlanLever {
            text,
            orders_now: wide(schedule.slots.len()),
            seconds: seconds(schedule.last_ms()),
        })
    };
    let mut levers: Vec<v1::PlanLever> = tried.into_iter().filter_map(outcome).collect();
    levers.push(v1::PlanLever {
        text: "adopt the certificates that the names have today (portico cert upload): each is served with it at once, and has \
               until its end for one of its own"
            .to_owned(),
        orders_now: wide(now.slots.len()),
        seconds: 0,
    });
    levers.sort_by_key(|lever| (lever.seconds, lever.orders_now));
    levers
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn seconds(ms: i64) -> u64 {
    u64::try_from(ms / 1000).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use portico_cert_store::DomainId;

    use super::super::ledger::Level;
    use super::*;
    use crate::acme::ChallengeMethod;
    use crate::store::group::OrderableDomain;

    const NOW: i64 = 1_000_000;

    fn facts(names: &[(TenantId, String)]) -> Facts {
        let mut facts = Facts { now_ms: NOW, ..Facts::default() };
        for (tenant, name) in names {
            let id = DomainId::generate();
            let spec = serde_json::from_value(serde_json::json!({ "hostname": name })).unwrap();
            facts.domains.push(OrderableDomain {
                id,
                tenant: *tenant,
                name: name.clone(),
                spec,
                sharing: v1::Sharing::RegisteredDomain,
                tenant_backups: None,
                shared_group: None,
                cells: vec![CellId::parse("default").unwrap()],
                challenge_label: String::new(),
                created_at: 0,
            });
            let methods = vec![ChallengeMethod::Http01];
            facts.names.insert(id, NameState { methods, ready_at: Some(0), ..NameState::default() });
        }
        facts
    }

    fn terms() -> Terms {
        spent_under(Limits::default(), 0)
    }

    /// With so many new orders of the account spent.
    fn spent_under(limits: Limits, orders: i64) -> Terms {
        let (ca, account) = ("https://ca.test/dir".to_owned(), "le".to_owned());
        let mut spent = Spent { levels: Levels::default(), limits: limits.clone(), ca, account };
        let key = BucketKey::new(LimitName::Orders, spent.at(), "");
        let arrival_ms = NOW + orders * limits.orders.interval_ms();
        let bucket = Bucket { arrival_ms, seen_ms: NOW };
        spent.levels.0.insert(key, Level { bucket, reserved: 0 });
        Terms { names_per_certificate_max: 25, limits, spent: Arc::new(spent), sharing: None, cells: None }
    }

    fn asked(name: &str) -> Question {
        let name = NamePattern::parse(name).unwrap();
        let explain = Some(Asked { name, unproved: Vec::new(), hindrance: None });
        Question { explain, ..Question::default() }
    }

    fn eta_of(report: &v1::PlanReport, percent: u8) -> u64 {
        report.eta.iter().find(|eta| eta.percent == percent).unwrap().seconds
    }

    /// 10,000 shops with apex and `www`: the figures that the CA's limits dictate (300 at once, less the reserve of
    /// 30 that new names leave to those which are served; 100 an hour).
    #[test]
    fn an_imports_eta_is_what_the_accounts_limit_dictates_and_levers_shorten_it() {
        let tenants: Vec<TenantId> = (0..1000).map(|_| TenantId::generate()).collect();
        let name = |n: usize| {
            let tenant = tenants[n % tenants.len()];
            ["", "www."].map(|host| (tenant, format!("{host}shop{n}.test")))
        };
        let facts = facts(&(0..10_000).flat_map(name).collect::<Vec<_>>());
        let report = report(&facts, &terms(), &Question::default());
        assert_eq!((report.names, report.groups, report.orders_now), (20_000, 10_000, 10_000));
        assert_eq!(eta_of(&report, 100) / 3600, 97);
        assert!(eta_of(&report, 50) < eta_of(&report, 99));
        assert_eq!(report.held_by[0].orders, 9_730);
        let shared = report.levers.iter().find(|lever| lever.text.contains("sharing = tenant")).unwrap();
        assert_eq!((shared.orders_now, shared.seconds / 3600), (1_000, 7));
        assert!(
            report.levers.iter().any(|l| l.text.contains("tenfold") && l.seconds / 3600 == 7),
            "{report:?}"
        );
        assert!(report.handshake_bytes_max < report.handshake_bytes_budget);
    }

    /// Most tenants bring a shop with its `www`; some bring a hundred domains, and one a platform's subdomains.
    #[test]
    fn a_heavy_tail_is_told_apart_from_the_middle_with_the_levers_that_help_it() {
        let mut names = Vec::new();
        for n in 0..800 {
            let tenant = TenantId::generate();
            names.extend(["", "www."].map(|host| (tenant, format!("{host}shop{n}.test"))));
        }
        for large in 0..8 {
            let tenant = TenantId::generate();
            names.extend((0..50).map(|n| (tenant, format!("brand{large}-{n}.test"))));
        }
        let platform = TenantId::generate();
        names.extend((0..1500).map(|n| (platform, format!("c{n}.platform.test"))));
        let report = report(&facts(&names), &terms(), &Question::default());
        assert_eq!(report.orders_now, 800 + 8 * 50 + 60);
        let (half, all) = (eta_of(&report, 50), eta_of(&report, 100));
        assert!(half * 2 < all && eta_of(&report, 99) <= all, "{:?}", report.eta);
        // The platform's subdomains are the tail: what helps the account does not help them. Of the ten beyond the domain's fifty
        // at once, the first two have room there before the account has.
        let hold = &report.held_by[0];
        assert_eq!((hold.limit.as_str(), hold.orders), (LimitName::RegisteredDomain.text(), 8));
        let lever = |words: &str| report.levers.iter().find(|lever| lever.text.contains(words));
        assert!(lever("tenfold").is_none(), "{:#?}", report.levers);
        for words in ["second issuer", "registered domains concerned", "100 names"] {
            assert!(lever(words).is_some_and(|lever| lever.seconds < all), "{words}: {:#?}", report.levers);
        }
        let shared = lever("sharing = tenant").unwrap();
        assert_eq!(
            (shared.orders_now, shared.seconds),
            (800 + 8 * 2 + 60, all),
            "fewer orders, the same tail"
        );
        let adopted = lever("adopt").unwrap();
        assert_eq!((adopted.seconds, adopted.orders_now), (0, report.orders_now));
    }

    #[test]
    fn a_further_cell_is_counted_by_its_set_alone_and_too_many_are_refused_with_the_number() {
        let tenant = TenantId::generate();
        let shops: Vec<_> = (0..270).map(|n| (tenant, format!("shop{n}.test"))).collect();
        let facts = facts(&shops);
        let limits = Limits { tenant_1h: 0, tenant_24h: 0, ..Limits::default() };
        let in_cells = |cells| {
            let terms = Terms { cells: Some(cells), ..spent_under(limits.clone(), 0) };
            report(&facts, &terms, &Question::default())
        };
        let three = in_cells(3);
        assert_eq!((three.orders_now, eta_of(&three, 100)), (3 * 270, 0), "{:?}", three.held_by);
        let told = &three.cells[0];
        assert_eq!((told.is_borne, told.cells_max, told.cells.len(), told.groups), (true, 5, 3, 270));
        assert!(told.text.contains("5 in 7 days; 2 more keys"), "{}", told.text);
        let seven = in_cells(7);
        assert_eq!(seven.orders_now, 5 * 270, "what is refused is not ordered");
        assert!(!seven.cells[0].is_borne && seven.cells[0].text.starts_with("refused: 7"), "{seven:?}");
    }

    #[test]
    fn one_registered_domain_holds_the_tail_and_names_it() {
        let tenant = TenantId::generate();
        let names: Vec<_> = (0..2_600).map(|n| (tenant, format!("customer-{n}.platform.test"))).collect();
        let facts = facts(&names);
        let report = report(&facts, &terms(), &asked("customer-7.platform.test"));
        assert_eq!(report.orders_now, 104);
        let interval = 7 * 24 * 3600 / 50;
        assert_eq!(eta_of(&report, 50), 2 * interval, "52 of 104 orders; 50 go at once, then one each 3.4 h");
        assert_eq!(eta_of(&report, 100), 54 * interval);
        assert_eq!(report.held_by[0].limit, LimitName::RegisteredDomain.text());
        assert_eq!(report.names_per_key_max, 25);
        assert!(report.explanation.unwrap().contains("with 24 other names"));
        let wider = Terms { names_per_certificate_max: 100, ..terms() };
        let wider = super::report(&facts, &wider, &Question::default());
        assert_eq!((wider.orders_now, eta_of(&wider, 100)), (26, 0));
        assert!(wider.levers.is_empty() && wider.groups_over_budget == 26, "{wider:?}");
    }

    #[test]
    fn a_tenants_budget_of_a_day_holds_and_its_lever_lets_go() {
        let tenant = TenantId::generate();
        let facts = facts(&(0..25).map(|n| (tenant, format!("shop{n}.test"))).collect::<Vec<_>>());
        let limits = Limits { tenant_24h: 10, ..Limits::default() };
        let report = report(&facts, &spent_under(limits, 0), &Question::default());
        assert_eq!(eta_of(&report, 100), 15 * 24 * 3600 / 10);
        assert_eq!(
            (report.held_by[0].limit.as_str(), report.held_by[0].orders),
            (LimitName::TenantDay.text(), 15)
        );
        assert!(report.levers.iter().any(|l| l.text.contains("tenant_24h") && l.seconds == 0), "{report:?}");
    }

    #[test]
    fn a_name_is_told_the_reason_that_holds_for_it() {
        let (tenant, other) = (TenantId::generate(), TenantId::generate());
        let rose = [other];
        let names = ["shop.test", "*.shop.test", "dead.test"].map(|name| (tenant, name.to_owned()));
        let mut facts = facts(&names);
        let dead = facts.domains[2].id;
        facts.names.insert(dead, NameState::default());
        let tenants = HashMap::from([(tenant, "tulip".to_owned()), (other, "rose".to_owned())]);
        let told = |name: &str, unproved: &[TenantId], hindrance: Option<&str>| {
            let name = NamePattern::parse(name).unwrap();
            let asked = Asked { name, unproved: unproved.to_vec(), hindrance: hindrance.map(str::to_owned) };
            let question = Question { tenants: tenants.clone(), explain: Some(asked), ..Question::default() };
            report(&facts, &terms(), &question).explanation
        };
        let words = |name, unproved, hindrance| told(name, unproved, hindrance).unwrap_or_default();
        assert!(
            words("shop.test", &[], None)
                .contains("names of shop.test, tenant tulip; to be ordered now; one key for 2")
        );
        assert!(words("shop.test", &[], Some("it rains")).ends_with("not ordered as long as it rains"));
        assert!(words("dead.test", &[], Some("it rains")).contains("proved, but it rains"));
        let unproved = words("new.test", &rose, None);
        assert!(
            unproved.contains("tenant rose claims it and has not proved") && unproved.contains("domain show")
        );
        let covered = words("www.shop.test", &[], None);
        assert!(
            covered.starts_with("nobody brings www.shop.test itself; the wildcard *.shop.test"),
            "{covered}"
        );
        assert!(words("www.shop.test", &rose, None).contains("meanwhile the wildcard *.shop.test"));
        assert_eq!(told("a.www.shop.test", &[], None), None, "a wildcard covers one label");
        assert_eq!(told("nobody.test", &[], None), None);
    }

    #[test]
    fn another_sharing_in_a_what_if_is_nobodys_choice() {
        let tenant = TenantId::generate();
        let facts = facts(&[(tenant, "a.test".to_owned()), (tenant, "b.test".to_owned())]);
        let terms = Terms { sharing: Some(v1::Sharing::Tenant), ..terms() };
        let tenants = HashMap::from([(tenant, "tulip".to_owned())]);
        let question = Question { tenants, groups_listed: 1, unproved: 7, ..Question::default() };
        let report = report(&facts, &terms, &question);
        let basis = &report.largest[0].basis;
        assert!(basis.contains("tenant tulip, by sharing = tenant") && !basis.contains("chose"), "{basis}");
        assert_eq!((report.unproved, report.waiting), (7, 0));
    }

    #[test]
    fn what_is_spent_and_what_waits_counts() {
        let tenant = TenantId::generate();
        let mut facts = facts(&[(tenant, "a.test".to_owned()), (tenant, "b.test".to_owned())]);
        facts.names.clear();
        let report = report(&facts, &terms(), &Question::default());
        assert_eq!((report.names, report.waiting, report.orders_now), (0, 2, 0));
        assert_eq!(report.eta, []);
        let spent = spent_under(Limits::default(), 299);
        assert_eq!(super::report(&facts, &spent, &Question::default()).limits.orders_left, 1);
        let mut wider = spent;
        wider.limits.orders = Rate::per(3000, 3 * HOUR_MS);
        let left = super::report(&facts, &wider, &Question::default()).limits.orders_left;
        assert_eq!(left, 2701, "under another limit as much is spent");
    }
}
