//! From what is stored to what is to be done: which names need a pre-flight, how groups change, which orders are due,
//! which lineages are no longer needed.
//!
//! Each function reads the whole state and names the difference; run again after its result is written, it names
//! nothing. One lineage of a group is ordered at a time: the second cell's order begins when the first is issued, on the
//! same account and the same names, so that the CA can reuse the authorizations of the first.

mod fan_out;
mod open;
mod predecessors;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};

use portico_api::v1;
use portico_cert_store::{
    Basis, CellId, ClientCertificates, CredentialId, DomainId, GroupId, LineageId, NamePattern, OrderId,
    Plan, PlanGroup, PlanInput, PlanLimits, PlanName, Sharing, TenantId, TlsPolicy, TlsVersion, plan,
};

use self::fan_out::followers;
use self::open::Open;
use self::predecessors::Predecessors;
use super::backups::Backups;
use super::issuers::{self, Chooser, Issuers};
use super::levelling::{self, Ahead};
use crate::acme::ChallengeMethod;
use crate::clock::{DAY_MS, HOUR_MS, MINUTE_MS};
use crate::store::group::{GroupRow, LineageRow, LiveCredential, NameState, OrderableDomain};

/// A tenant's names that became ready within this time are grouped together…
const SETTLE_MS: i64 = 300;
/// …but the first of them waits for the others no longer than this.
const SETTLE_MAX_MS: i64 = 10_000;

/// All that issuance knows, read in one transaction.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub now_ms: i64,
    /// Domains whose proof stands.
    pub domains: Vec<OrderableDomain>,
    pub names: BTreeMap<DomainId, NameState>,
    /// Not retired.
    pub groups: Vec<GroupRow>,
    /// Not retired.
    pub lineages: Vec<LineageRow>,
    pub open_orders: Vec<OpenOrder>,
    /// For a lineage whose newest order failed: when another may follow.
    pub retry_at: HashMap<LineageId, i64>,
    /// Live certificates that an order has replaced or is about to: none is replaced twice.
    pub replaced: HashSet<CredentialId>,
    /// New orders that each tenant sent within the CA's period of 3 hours.
    pub spent: HashMap<Option<TenantId>, u32>,
    pub issuers: Issuers,
    /// Of lineages whose certificate's authorizations the CA takes again: until when.
    pub authorized_until: HashMap<LineageId, i64>,
    /// Cells of one group that the limits of each issuer bear; absent: any number.
    pub cells_max: HashMap<String, usize>,
    pub backups: Backups,
    pub retired: Retired,
}

/// Names that have left their tenants' sites and are not among the domains any more.
#[derive(Clone, Debug, Default)]
pub struct Retired {
    /// When, by name.
    pub names: BTreeMap<String, i64>,
    /// So long after that a certificate without the name is ordered, unless a renewal comes before.
    pub leave_within_ms: i64,
}

/// An order that is not over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOrder {
    pub id: OrderId,
    pub issuer: String,
    pub lineage: LineageId,
    pub name_set: String,
    pub tenant: Option<TenantId>,
    /// Each of its names was served when it was planned.
    pub keeps_alive: bool,
    /// For a backup: it counts for [`super::backups`] alone.
    pub backup: bool,
    /// Its edge was asked for a key and has made none: no CA hears of it before.
    pub lacks_key: bool,
    /// Nothing is tried before.
    pub next_at: i64,
}

/// How groups are to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupChange {
    New { tenant: Option<TenantId>, cells: Vec<CellId>, policy: TlsPolicy, alone: bool, names: Names },
    Names { group: GroupId, names: Names },
    Retire { group: GroupId },
}

/// Names with their domains.
pub type Names = BTreeMap<String, DomainId>;

/// An order that should be placed now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueOrder {
    pub issuer: String,
    pub lineage: LineageId,
    pub group: GroupId,
    pub tenant: Option<TenantId>,
    pub cell: CellId,
    pub names: Names,
    pub name_set: String,
    /// The exact names of the live certificate again.
    pub renewal: bool,
    /// Where each of its names is served today: when the first of them is without a good certificate. Others wait for
    /// such an order.
    pub deadline: Option<i64>,
    /// Until when the CA takes the authorizations of the same names in another cell again.
    pub window_until: Option<i64>,
    /// For a backup.
    pub backup: bool,
    /// The certificate that it replaces, if its account is the one that ordered that.
    pub replaces: Option<CredentialId>,
}

impl DueOrder {
    pub fn keeps_alive(&self) -> bool {
        self.deadline.is_some()
    }
}

/// Domains whose pre-flight is due.
pub fn preflights_due(facts: &Facts) -> Vec<DomainId> {
    let due = |domain: &&OrderableDomain| match facts.names.get(&domain.id) {
        _ if !domain.spec.issue_certificates => false,
        None => true,
        Some(state) => state.methods.is_empty() && state.next_at <= facts.now_ms,
    };
    facts.domains.iter().filter(due).map(|domain| domain.id).collect()
}

/// What must change for the groups to be as planned.
pub fn group_changes(facts: &Facts, names_per_certificate_max: usize) -> Vec<GroupChange> {
    let settling = settling_tenants(facts);
    let mut changes = Vec::new();
    for (cells, (domains, groups)) in classes(facts) {
        let class = Class { facts, cells, settling: &settling, names_per_certificate_max };
        changes.extend(class.changes(&domains, &groups));
    }
    changes
}

/// The plan of each set of cells, for people: as [`group_changes`] has it, for tenants too whose names still settle.
pub(super) fn plans(facts: &Facts, names_per_certificate_max: usize) -> Vec<(&[CellId], Plan)> {
    let settling = HashSet::new();
    let plan = |(cells, (domains, groups)): (_, (Vec<_>, Vec<_>))| {
        let class = Class { facts, cells, settling: &settling, names_per_certificate_max };
        (cells, class.plan(&domains, &groups))
    };
    classes(facts).into_iter().map(plan).collect()
}

type Classes<'a> = BTreeMap<&'a [CellId], (Vec<&'a OrderableDomain>, Vec<&'a GroupRow>)>;

/// Domains and groups by the cells that serve them.
fn classes(facts: &Facts) -> Classes<'_> {
    let mut classes: Classes<'_> = BTreeMap::new();
    for domain in facts.domains.iter().filter(|domain| domain.spec.issue_certificates) {
        classes.entry(&domain.cells).or_default().0.push(domain);
    }
    for group in &facts.groups {
        classes.entry(&group.cells).or_default().1.push(group);
    }
    classes
}

/// Names that are to be served by the same cells.
struct Class<'a> {
    facts: &'a Facts,
    cells: &'a [CellId],
    settling: &'a HashSet<TenantId>,
    names_per_certificate_max: usize,
}

impl Class<'_> {
    fn changes(&self, domains: &[&OrderableDomain], groups: &[&GroupRow]) -> Vec<GroupChange> {
        let planned = self.plan(domains, groups);
        let by_name: HashMap<&str, &OrderableDomain> =
            domains.iter().map(|d| (d.name.as_str(), *d)).collect();
        let mut changes: Vec<GroupChange> =
            planned.retired.into_iter().map(|group| GroupChange::Retire { group }).collect();
        for group in planned.groups {
            let of = |name: &NamePattern| {
                let name = name.to_string();
                by_name.get(name.as_str()).map(|domain| (name.clone(), domain.id))
            };
            let names: Names = group.names.iter().filter_map(of).collect();
            match group.id {
                Some(id) if groups.iter().any(|g| g.id == id && g.names == names) => {}
                Some(id) => changes.push(GroupChange::Names { group: id, names }),
                None => changes.push(GroupChange::New {
                    tenant: match (&group.basis, group.tenants.as_slice()) {
                        // Also with one tenant's names alone: a key never changes its owner when others come.
                        (Basis::Operator { .. }, _) => None,
                        (_, [tenant]) => Some(*tenant),
                        _ => None,
                    },
                    cells: self.cells.to_vec(),
                    policy: group.policy,
                    alone: matches!(group.basis, Basis::Probation { .. }),
                    names,
                }),
            }
        }
        changes
    }

    fn plan(&self, domains: &[&OrderableDomain], groups: &[&GroupRow]) -> Plan {
        let grouped: HashSet<DomainId> =
            groups.iter().flat_map(|group| group.names.values().copied()).collect();
        let by_name: HashMap<&str, &OrderableDomain> =
            domains.iter().map(|d| (d.name.as_str(), *d)).collect();
        let names = domains
            .iter()
            .filter_map(|domain| self.plan_name(domain, grouped.contains(&domain.id)))
            .collect();
        // A name that another tenant has proved meanwhile is no longer this group's: a key never changes its tenant.
        // Nor is it any more where its tenant has consented to sharing, or takes that back.
        let is_still = |group: &GroupRow, name: &str, of: DomainId| {
            by_name.get(name).is_none_or(|now| {
                now.id == of && self.operators_group(now).is_some() == group.tenant.is_none()
            })
        };
        let today = |group: &&GroupRow| PlanGroup {
            id: group.id,
            names: group
                .names
                .iter()
                .filter(|(name, of)| is_still(group, name, **of))
                .filter_map(|(name, _)| NamePattern::parse(name).ok())
                .collect(),
        };
        let limits =
            PlanLimits { names_per_certificate_max: self.names_per_certificate_max, ..PlanLimits::default() };
        plan(&PlanInput { names, groups: groups.iter().map(today).collect(), limits })
    }

    /// The group with other tenants that a name is to be in; one that failed is alone, with a key of its tenant's.
    fn operators_group<'d>(&self, domain: &'d OrderableDomain) -> Option<&'d str> {
        let failed = self.facts.names.get(&domain.id).is_some_and(|state| state.failed_before);
        domain.shared_group.as_deref().filter(|_| !failed)
    }

    /// `None` for a name that cannot be on a certificate, which the API does not take.
    fn plan_name(&self, domain: &OrderableDomain, grouped: bool) -> Option<PlanName> {
        let state = self.facts.names.get(&domain.id);
        let passed = state.is_some_and(|state| state.ready_at.is_some());
        Some(PlanName {
            name: NamePattern::parse(&domain.name).ok()?,
            domain: domain.id,
            tenant: domain.tenant,
            policy: policy_class(&domain.spec),
            sharing: match (self.operators_group(domain), domain.sharing) {
                (Some(group), _) => Sharing::Operator { group: group.to_owned() },
                (None, v1::Sharing::Alone) => Sharing::Alone,
                (None, v1::Sharing::RegisteredDomain) => Sharing::RegisteredDomain,
                (None, v1::Sharing::Tenant) => Sharing::Tenant,
            },
            ready: passed && (grouped || !self.settling.contains(&domain.tenant)),
            failed_before: state.is_some_and(|state| state.failed_before),
            part: state.map_or(0, |state| state.part ^ issuers::part(&state.issuers)),
        })
    }
}

/// Names of one class may share a certificate. Sets of authorities are told apart by their text: nothing needs to be parsed.
fn policy_class(spec: &v1::DomainSpec) -> TlsPolicy {
    let authorities = |pem: &str| {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, pem.as_bytes());
        digest.as_ref().first_chunk().copied().unwrap_or_default()
    };
    TlsPolicy {
        minimum_version: match spec.minimum_tls {
            v1::MinimumTls::Tls12 => TlsVersion::Tls12,
            v1::MinimumTls::Tls13 => TlsVersion::Tls13,
        },
        http2: spec.http2,
        http3: spec.http3,
        client_certificates: spec.client_certificates.as_ref().map(|asked| ClientCertificates {
            required: asked.mode == v1::ClientCertificateMode::Require,
            authorities: authorities(&asked.ca_pem),
        }),
    }
}

/// Tenants of whose names more are expected within moments: a batch is grouped once, not name by name.
fn settling_tenants(facts: &Facts) -> HashSet<TenantId> {
    let grouped: HashSet<DomainId> =
        facts.groups.iter().flat_map(|group| group.names.values().copied()).collect();
    let mut waiting: BTreeMap<TenantId, (i64, i64, bool)> = BTreeMap::new();
    let wanted = |domain: &&OrderableDomain| domain.spec.issue_certificates && !grouped.contains(&domain.id);
    for domain in facts.domains.iter().filter(wanted) {
        let state = facts.names.get(&domain.id);
        let entry = waiting.entry(domain.tenant).or_insert((i64::MAX, i64::MIN, false));
        match state.and_then(|state| state.ready_at) {
            Some(at) => *entry = (entry.0.min(at), entry.1.max(at), entry.2),
            // Never looked at: its pre-flight is under way or about to be.
            None if state.is_none() => entry.2 = true,
            None => {}
        }
    }
    let now = facts.now_ms;
    let settling = |(first, last, unseen): (i64, i64, bool)| {
        // A time to come was written before the clock was set back.
        first <= now && now < first + SETTLE_MAX_MS && (unseen || now < last + SETTLE_MS)
    };
    waiting.into_iter().filter(|(_, times)| settling(*times)).map(|(tenant, _)| tenant).collect()
}

/// Whether a name may be ordered now: its pre-flight stands and no back-off runs.
pub(super) fn is_orderable(facts: &Facts, domain: DomainId) -> bool {
    facts.names.get(&domain).is_some_and(|state| !state.methods.is_empty() && state.next_at <= facts.now_ms)
}

/// Renewals, and as many other orders, that may be open and ready to run within [`SOON_MS`]; more are not planned before
/// some are over. Apart, because new orders may wait for the CA's limit by the thousand, and renewals are exempt from it.
const ORDERS_SOON_MAX: usize = 256;
/// Orders of one tenant that may be open, waiting ones included: a tenant whose orders all wait must not fill the room of
/// the others, nor the database.
const ORDERS_OF_TENANT_MAX: usize = 64;
/// Of them, as long as new names are among them; the rest is for orders that keep names alive.
const NEW_ORDERS_OF_TENANT_MAX: usize = 48;
const SOON_MS: i64 = MINUTE_MS;

/// Orders that are due and have room: those that keep names alive first, the most pressing of them before the others; among
/// equals, those of the tenant that was served least.
/// Groups must be as [`group_changes`] wants them.
pub fn orders_due(facts: &Facts) -> Vec<DueOrder> {
    let open = Open::of(facts);
    let mut by_group: HashMap<GroupId, Vec<&LineageRow>> = HashMap::new();
    for lineage in &facts.lineages {
        by_group.entry(lineage.group).or_default().push(lineage);
    }
    let mut by_tenant: BTreeMap<Option<TenantId>, Vec<DueOrder>> = BTreeMap::new();
    let mut predecessors = Predecessors::of(facts);
    let mut chooser = Chooser::of(facts);
    let mut early = levelling::early(ahead(facts, &by_group, open.lineages()), lately(facts), facts.now_ms);
    let followers = followers(facts, &by_group);
    early.extend(followers.early);
    // Nearly all groups have what they need: no others are looked at closely.
    let has_all = |group: &GroupRow, lineage: &LineageRow| {
        lineage.live.as_ref().is_some_and(|live| live.renew_at > facts.now_ms)
            && !holds_retired(facts, &group.names, lineage.live.as_ref())
            && !early.contains(&lineage.id)
            && lineage.serves == group.names
    };
    let wanting: Vec<(&GroupRow, &[&LineageRow])> = facts
        .groups
        .iter()
        .filter_map(|group| Some((group, by_group.get(&group.id)?.as_slice())))
        .filter(|(_, lineages)| !open.holds_up(lineages))
        .filter(|(group, lineages)| !lineages.iter().all(|lineage| has_all(group, lineage)))
        .collect();
    let domains = wanting.iter().flat_map(|(group, _)| group.names.values().copied()).collect();
    let coverage = Coverage::of_domains(facts, &domains);
    for (group, lineages) in wanting {
        // Cells in their order: the first that needs one goes first, the others follow when it is issued.
        let mut free =
            lineages.iter().copied().filter(|one| !open.has(one) && !open.would_wait(group.tenant, one));
        let due = free.find_map(|lineage| {
            let is_due = early.contains(&lineage.id) || is_due(facts, &coverage, group, lineage);
            is_due.then(|| due_order(facts, &coverage, group, lineage)).flatten()
        });
        if let Some((due, lineage)) = due
            && facts.retry_at.get(&due.lineage).is_none_or(|at| *at <= facts.now_ms)
        {
            let urgent_at = coverage.urgent_at(&lineage.cell, &due.names);
            let Some(issuer) = chooser.choose(group.tenant, &due.names, urgent_at) else { continue };
            if !is_borne(facts, issuer, lineages, lineage) {
                continue;
            }
            let (issuer, replaces) = (issuer.to_owned(), predecessors.take(lineage, &due.names));
            let window_until = followers.until.get(&lineage.id).copied();
            let due = DueOrder { issuer, replaces, window_until, ..due };
            by_tenant.entry(group.tenant).or_default().push(due);
        }
    }
    let (mut alive, mut new) = (Vec::new(), Vec::new());
    for (tenant, mut due) in by_tenant {
        // Two groups never hold the same set, but a set may still be open in a group that was retired meanwhile.
        due.retain(|order| !open.has_set(&order.name_set));
        let open = open.count(tenant);
        let (mut keeping, mut adding): (Vec<_>, Vec<_>) = due.into_iter().partition(DueOrder::keeps_alive);
        keeping.sort_by_key(|due| due.deadline);
        keeping.truncate(ORDERS_OF_TENANT_MAX.saturating_sub(open));
        // Those first whose authorizations end first.
        adding.sort_by_key(|due| due.window_until.unwrap_or(i64::MAX));
        adding.truncate(NEW_ORDERS_OF_TENANT_MAX.saturating_sub(open + keeping.len()));
        let had = spent(facts, tenant) + open;
        alive.push((had, keeping));
        new.push((had, adding));
    }
    let alive = by_urgency(alive, facts.now_ms, |due| due.deadline).into_iter().take(room(facts, true));
    let new = by_urgency(new, facts.now_ms, |due| due.window_until).into_iter().take(room(facts, false));
    alive.chain(new).collect()
}

/// Whether the CA's limits bear one more cell of a group; what has a certificate keeps one.
fn is_borne(facts: &Facts, issuer: &str, lineages: &[&LineageRow], lineage: &LineageRow) -> bool {
    let most = facts.cells_max.get(issuer).copied().unwrap_or(usize::MAX);
    lineage.live.is_some() || lineages.iter().filter(|other| other.live.is_some()).count() < most
}

/// Those of what serves: a backup's never holds one of these back, nor one that waits for its edge ([`Open`]).
fn open_orders(facts: &Facts) -> impl Iterator<Item = &OpenOrder> {
    facts.open_orders.iter().filter(|open| !open.backup && !open.lacks_key)
}

fn room(facts: &Facts, keeps_alive: bool) -> usize {
    let is_soon =
        |open: &&OpenOrder| open.keeps_alive == keeps_alive && open.next_at <= facts.now_ms + SOON_MS;
    ORDERS_SOON_MAX.saturating_sub(open_orders(facts).filter(is_soon).count())
}

pub(super) fn spent(facts: &Facts, tenant: Option<TenantId>) -> usize {
    facts.spent.get(&tenant).and_then(|spent| usize::try_from(*spent).ok()).unwrap_or(0)
}

/// Orders of the last hour, and those of the next as far as they are known.
fn lately(facts: &Facts) -> usize {
    let is_soon = |open: &&OpenOrder| open.next_at <= facts.now_ms + HOUR_MS;
    let lives = facts.lineages.iter().filter_map(|lineage| lineage.live.as_ref());
    lives.filter(|live| live.issued_at > facts.now_ms - HOUR_MS).count()
        + open_orders(facts).filter(is_soon).count()
}

/// Renewals of the same names that are not due yet and may be early. Others wait for the window in which a CA exempts them
/// from its limits.
fn ahead(
    facts: &Facts,
    by_group: &HashMap<GroupId, Vec<&LineageRow>>,
    open: &HashSet<LineageId>,
) -> Vec<Ahead> {
    let now = facts.now_ms;
    let mut ahead = Vec::new();
    for group in &facts.groups {
        let lineages = by_group.get(&group.id).map(Vec::as_slice).unwrap_or_default();
        for lineage in lineages.iter().filter(|lineage| !open.contains(&lineage.id)) {
            let Some(live) = lineage.live.as_ref().filter(|live| live.renew_at > now) else { continue };
            let one = Ahead { lineage: lineage.id, issued_at: live.issued_at, due_at: live.renew_at };
            let waits = || facts.retry_at.get(&lineage.id).is_some_and(|at| *at > now);
            let is_orderable = || group.names.values().all(|domain| is_orderable(facts, *domain));
            if one.is_of_age(now) && !waits() && same_names(&live.names, &group.names) && is_orderable() {
                ahead.push(one);
            }
        }
    }
    ahead
}

pub(super) fn same_names(held: &[String], names: &Names) -> bool {
    held.len() == names.len() && held.iter().all(|name| names.contains_key(name))
}

/// Whether a lineage's time has come, or one of its group's names has nothing in its cell that has time yet, or a name has
/// to leave its certificate.
fn is_due(facts: &Facts, coverage: &Coverage<'_>, group: &GroupRow, lineage: &LineageRow) -> bool {
    let own_due = lineage.live.as_ref().is_some_and(|live| live.renew_at <= facts.now_ms);
    let uncovered = |domain: &DomainId| {
        coverage.renew_at(&lineage.cell, *domain).is_none_or(|at| at <= facts.now_ms)
            && is_orderable(facts, *domain)
    };
    // Not its own alone: a name may be served by a lineage that leaves, such as one of an adopted certificate.
    let covering = group.names.values().filter_map(|domain| coverage.by.get(&(&lineage.cell, *domain)));
    let mut held = lineage.live.iter().chain(covering.copied());
    own_due
        || group.names.values().any(uncovered)
        || held.any(|live| holds_retired(facts, &group.names, Some(live)))
}

/// Whether a certificate that is to have these names holds another for longer than a retired one may be held.
pub(super) fn holds_retired(facts: &Facts, names: &Names, live: Option<&LiveCredential>) -> bool {
    if facts.retired.names.is_empty() {
        return false;
    }
    let over = |name: &String| {
        let retired_at = facts.retired.names.get(name).filter(|_| !names.contains_key(name));
        retired_at.is_some_and(|at| at + facts.retired.leave_within_ms <= facts.now_ms)
    };
    live.is_some_and(|live| live.names.iter().any(over))
}

fn due_order<'a>(
    facts: &Facts,
    coverage: &Coverage<'_>,
    group: &GroupRow,
    lineage: &'a LineageRow,
) -> Option<(DueOrder, &'a LineageRow)> {
    let names: Names = group
        .names
        .iter()
        .filter(|(_, domain)| is_orderable(facts, **domain))
        .map(|(name, domain)| (name.clone(), *domain))
        .collect();
    if names.is_empty() {
        return None;
    }
    let order = DueOrder {
        issuer: String::new(),
        lineage: lineage.id,
        group: group.id,
        tenant: group.tenant,
        cell: lineage.cell.clone(),
        name_set: name_set(names.keys().map(String::as_str)),
        renewal: lineage.live.as_ref().is_some_and(|live| same_names(&live.names, &names)),
        deadline: coverage.first_deadline(&lineage.cell, &names),
        window_until: None,
        backup: false,
        replaces: None,
        names,
    };
    Some((order, lineage))
}

/// Lineages of retired groups whose every name is gone or live elsewhere in their cell. A name for which nothing is issued any
/// more keeps what it has to the end.
pub fn lineages_to_retire(facts: &Facts) -> Vec<LineageId> {
    let wanted: HashMap<DomainId, &OrderableDomain> = facts.domains.iter().map(|d| (d.id, d)).collect();
    let mut staying: BTreeSet<(&CellId, DomainId)> = BTreeSet::new();
    for lineage in facts.lineages.iter().filter(|lineage| !lineage.leaving && lineage.live.is_some()) {
        staying.extend(lineage.serves.values().map(|domain| (&lineage.cell, *domain)));
    }
    let open: HashSet<LineageId> = facts.open_orders.iter().map(|open| open.lineage).collect();
    let is_over =
        |lineage: &LineageRow| lineage.live.as_ref().is_none_or(|live| live.not_after <= facts.now_ms);
    let needed = |lineage: &LineageRow, domain: &DomainId| {
        let served = |wanted: &&OrderableDomain| {
            wanted.cells.contains(&lineage.cell) && (wanted.spec.issue_certificates || !is_over(lineage))
        };
        wanted.get(domain).is_some_and(served) && !staying.contains(&(&lineage.cell, *domain))
    };
    let leaving = facts.lineages.iter().filter(|lineage| lineage.leaving && !open.contains(&lineage.id));
    leaving.filter(|l| !l.serves.values().any(|domain| needed(l, domain))).map(|lineage| lineage.id).collect()
}

/// When the certificate that covers a domain in a cell is due, the latest one counting. By domain, not by name: a name
/// that another tenant has proved is not covered by the certificate of the one who served it before.
pub(super) struct Coverage<'a> {
    by: HashMap<(&'a CellId, DomainId), &'a LiveCredential>,
}

impl<'a> Coverage<'a> {
    pub(super) fn of(facts: &'a Facts) -> Self {
        Self::over(facts, |_| true)
    }

    fn of_domains(facts: &'a Facts, domains: &HashSet<DomainId>) -> Self {
        Self::over(facts, |domain| domains.contains(&domain))
    }

    fn over(facts: &'a Facts, is_asked_about: impl Fn(DomainId) -> bool) -> Self {
        let mut by: HashMap<(&CellId, DomainId), &LiveCredential> = HashMap::new();
        for lineage in &facts.lineages {
            let Some(live) = &lineage.live else { continue };
            for domain in lineage.serves.values().filter(|domain| is_asked_about(**domain)) {
                let best = by.entry((&lineage.cell, *domain)).or_insert(live);
                if live.renew_at > best.renew_at {
                    *best = live;
                }
            }
        }
        Self { by }
    }

    pub(super) fn renew_at(&self, cell: &CellId, domain: DomainId) -> Option<i64> {
        self.by.get(&(cell, domain)).map(|live| live.renew_at)
    }

    /// From when on the first of these names goes to whoever issues; `None` where one has no certificate at all.
    pub(super) fn urgent_at(&self, cell: &CellId, names: &Names) -> Option<i64> {
        let mut first = i64::MAX;
        for domain in names.values() {
            first = first.min(self.by.get(&(cell, *domain))?.urgent_at());
        }
        Some(first)
    }

    /// When the first of these names has to have another certificate; `None` where one has none at all.
    fn first_deadline(&self, cell: &CellId, names: &Names) -> Option<i64> {
        let mut first = i64::MAX;
        for domain in names.values() {
            first = first.min(self.by.get(&(cell, *domain))?.deadline());
        }
        Some(first)
    }
}

/// Items whose deadline is over or near come first, those without one last; within each of these classes tenants have
/// their turns as [`fair`] has it. Queues are in the order of their deadlines.
pub fn by_urgency<T>(
    queues: Vec<(usize, Vec<T>)>,
    now_ms: i64,
    deadline: impl Fn(&T) -> Option<i64>,
) -> Vec<T> {
    let class = |item: &T| match deadline(item) {
        Some(at) => PRESSING_MS.iter().position(|within| at <= now_ms + within).unwrap_or(PRESSING_MS.len()),
        None => PRESSING_MS.len() + 1,
    };
    let mut classes: Vec<Vec<(usize, Vec<T>)>> = Vec::new();
    classes.resize_with(PRESSING_MS.len() + 2, Vec::new);
    for (had, queue) in queues {
        let mut of_queue: Vec<Vec<T>> = Vec::new();
        of_queue.resize_with(classes.len(), Vec::new);
        for item in queue {
            of_queue[class(&item)].push(item);
        }
        for (class, items) in classes.iter_mut().zip(of_queue) {
            class.push((had, items));
        }
    }
    classes.into_iter().flat_map(fair).collect()
}

/// What has to be done within such a time goes before what has more.
const PRESSING_MS: [i64; 3] = [HOUR_MS, DAY_MS, 7 * DAY_MS];

/// Whether what has this deadline goes before all that has none and all that has time yet.
pub fn is_pressing(deadline: Option<i64>, now_ms: i64) -> bool {
    let within = PRESSING_MS.last().copied().unwrap_or(0);
    deadline.is_some_and(|at| at <= now_ms + within)
}

/// All items of the queues, the next one always of the queue that was given least so far, what it had before included: no
/// tenant's import holds up another's single name, also where there is room for one item at a time only.
pub fn fair<T>(queues: Vec<(usize, Vec<T>)>) -> Vec<T> {
    let mut taken = Vec::with_capacity(queues.iter().map(|(_, queue)| queue.len()).sum());
    let (mut turns, mut queues): (BinaryHeap<_>, Vec<_>) = queues
        .into_iter()
        .enumerate()
        .map(|(index, (had, queue))| (Reverse((had, index)), queue.into_iter()))
        .unzip();
    while let Some(Reverse((had, index))) = turns.pop() {
        if let Some(item) = queues[index].next() {
            taken.push(item);
            turns.push(Reverse((had + 1, index)));
        }
    }
    taken
}

/// What two orders for the same names have in common, whatever the order of the names: SHA-256, hex.
pub fn name_set<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let sorted: BTreeSet<&str> = names.collect();
    let joined = sorted.into_iter().collect::<Vec<_>>().join("\n");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, joined.as_bytes());
    hex::encode(digest.as_ref())
}

/// What a name needs for DNS-01 only, or may show in any way.
pub fn usable(name: &str, method: ChallengeMethod) -> bool {
    // RFC 8555 section 7.1.3 with the CA/B rules: a wildcard is validated by DNS alone.
    !name.starts_with("*.") || method == ChallengeMethod::Dns01
}

#[cfg(test)]
mod tests;
