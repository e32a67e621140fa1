//! The control plane's memory: the facts that the product's planner reads, orders, and the ledger.
//!
//! All that is decided here is decided by the product's own pure functions: [`reconcile`], [`ledger`], [`timing`],
//! [`renewal_info`]. What the product's tasks do between them (reserve, ask, note, eject) is modelled, since theirs go to a
//! database and to sockets; the suites over sockets hold that half.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use portico_cert_store::{CellId, CredentialId, DomainId, GroupId, LineageId, TenantId};
use portico_control_plane::acme::ChallengeMethod;
use portico_control_plane::acme::renewal_info::Suggestion;
use portico_control_plane::plan::issuers::{Health, IssuerFacts, Issuers};
use portico_control_plane::plan::ledger::{
    self, At, BucketKey, Charged, Exemption, Levels, LimitName, Limits, NoRoom,
};
use portico_control_plane::plan::reconcile::{self, DueOrder, Facts, GroupChange, OpenOrder};
use portico_control_plane::plan::renewal_info::{self, Subject, Window};
use portico_control_plane::plan::report::{self, Question, Spent, Terms};
use portico_control_plane::plan::timing::{self, Ends};
use portico_control_plane::store::group::{GroupRow, LineageRow, LiveCredential, OrderableDomain};
use rand::Rng as _;
use rand::rngs::StdRng;
use ulid::Ulid;

use crate::ca::{Certificate, CertificateNo, OrderNo};
use crate::time::{HOUR_MS, MINUTE_MS};

pub type OrderId = u64;

/// Names of a certificate, as the default configuration has it.
pub const NAMES_MAX: usize = 25;
/// The share of a lifetime after which a renewal is due where no window says so (the product's default).
const RENEWAL_SHARE: f64 = 0.667;
const ISSUER: &str = "simulated";
const AT: At<'static> = At { ca: "https://ca.test/directory", account: ISSUER };
/// Orders that run at the same time.
const IN_FLIGHT_MAX: usize = 32;
/// Looks after a change of the names until nothing settles any more: a product that looks each second looks each time.
const LOOKS_AT_GROUPS: u8 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderState {
    Planned,
    Created(OrderNo),
    Ready(OrderNo),
}

#[derive(Clone, Debug)]
pub struct Order {
    pub id: OrderId,
    pub due: DueOrder,
    pub state: OrderState,
    attempts: u32,
    next_at: i64,
}

/// A live certificate, as far as renewals go.
#[derive(Clone, Debug)]
pub struct Credential {
    pub lineage: LineageId,
    pub certificate: CertificateNo,
    pub window: Option<Window>,
    subject: Subject,
    failures: u32,
}

#[derive(Debug)]
pub struct Control {
    pub facts: Facts,
    pub limits: Limits,
    pub orders: BTreeMap<OrderId, Order>,
    pub credentials: BTreeMap<CredentialId, Credential>,
    domain_at: HashMap<DomainId, usize>,
    lineage_at: HashMap<LineageId, usize>,
    levels: Levels,
    reserved: HashMap<OrderId, Vec<(BucketKey, i64, Charged)>>,
    issued_sets: HashSet<String>,
    running: BTreeSet<OrderId>,
    running_sets: HashSet<String>,
    requests: VecDeque<(i64, Option<TenantId>)>,
    failed_in_a_row: HashMap<LineageId, u32>,
    /// Looks that still have to see whether groups change.
    looks_at_groups: u8,
    made: u64,
}

/// What a certificate that was published means for the edges.
#[derive(Debug)]
pub struct Published {
    pub credential: CredentialId,
    pub lineage: LineageId,
    pub cell: CellId,
    pub domains: Vec<DomainId>,
}

impl Default for Control {
    fn default() -> Self {
        let issuer = IssuerFacts { name: ISSUER.to_owned(), by_default: true, health: Health::Well };
        let issuers = Issuers { all: vec![issuer], ..Issuers::default() };
        Self {
            facts: Facts { issuers, ..Facts::default() },
            limits: Limits::default(),
            orders: BTreeMap::new(),
            credentials: BTreeMap::new(),
            domain_at: HashMap::new(),
            lineage_at: HashMap::new(),
            levels: Levels::default(),
            reserved: HashMap::new(),
            issued_sets: HashSet::new(),
            running: BTreeSet::new(),
            running_sets: HashSet::new(),
            requests: VecDeque::new(),
            failed_in_a_row: HashMap::new(),
            looks_at_groups: 0,
            made: 0,
        }
    }
}

impl Control {
    pub fn add(&mut self, domain: OrderableDomain) {
        self.looks_at_groups = LOOKS_AT_GROUPS;
        self.domain_at.insert(domain.id, self.facts.domains.len());
        self.facts.domains.push(domain);
    }

    pub fn delete(&mut self, domain: DomainId) {
        let Some(at) = self.domain_at.remove(&domain) else { return };
        self.looks_at_groups = LOOKS_AT_GROUPS;
        self.facts.domains.swap_remove(at);
        if let Some(moved) = self.facts.domains.get(at) {
            self.domain_at.insert(moved.id, at);
        }
        self.facts.names.remove(&domain);
    }

    pub fn domain(&self, id: DomainId) -> Option<&OrderableDomain> {
        self.domain_at.get(&id).map(|at| &self.facts.domains[*at])
    }

    /// As pre-flight notes what it found.
    pub fn looked_at(&mut self, domain: DomainId, is_good: bool, now: i64) {
        let Some(created_at) = self.domain(domain).map(|domain| domain.created_at) else { return };
        let state = self.facts.names.entry(domain).or_default();
        if is_good {
            self.looks_at_groups = LOOKS_AT_GROUPS;
            state.methods = vec![ChallengeMethod::Http01];
            state.ready_at = state.ready_at.or(Some(now));
            state.next_at = state.next_at.min(now);
        } else {
            state.methods.clear();
            state.next_at = now + next_look(now - created_at);
        }
    }

    /// Names that a lineage's certificate serves.
    pub fn served_by(&self, lineage: LineageId) -> impl Iterator<Item = DomainId> {
        let row = self.lineage_at.get(&lineage).map(|at| &self.facts.lineages[*at]);
        row.into_iter().flat_map(|row| row.serves.values().copied())
    }

    pub fn preflights_due(&self) -> Vec<DomainId> {
        reconcile::preflights_due(&self.facts)
    }

    /// Brings the derived facts up to date.
    pub fn see(&mut self, now: i64) {
        self.facts.now_ms = now;
        while self.requests.front().is_some_and(|(at, _)| *at <= now - 3 * HOUR_MS) {
            self.requests.pop_front();
        }
        let mut spent = HashMap::new();
        for (_, tenant) in &self.requests {
            *spent.entry(*tenant).or_default() += 1;
        }
        self.facts.spent = spent;
        self.facts.open_orders = self.orders.values().map(Order::summary).collect();
    }

    /// Groups as planned; answers how many changed.
    pub fn regroup(&mut self, rng: &mut StdRng) -> usize {
        if self.looks_at_groups == 0 {
            return 0;
        }
        self.looks_at_groups -= 1;
        let changes = reconcile::group_changes(&self.facts, NAMES_MAX);
        let changed = changes.len();
        let mut retired: HashSet<GroupId> = HashSet::new();
        let mut renamed: HashMap<GroupId, reconcile::Names> = HashMap::new();
        let mut new = Vec::new();
        for change in changes {
            match change {
                GroupChange::Retire { group } => drop(retired.insert(group)),
                GroupChange::Names { group, names } => drop(renamed.insert(group, names)),
                GroupChange::New { tenant, cells, alone, names, .. } => {
                    new.push(GroupRow {
                        id: GroupId::from_ulid(Ulid(rng.random())),
                        tenant,
                        cells,
                        alone,
                        names,
                    });
                }
            }
        }
        self.facts.groups.retain(|group| !retired.contains(&group.id));
        for group in &mut self.facts.groups {
            if let Some(names) = renamed.remove(&group.id) {
                group.names = names;
            }
        }
        for lineage in self.facts.lineages.iter_mut().filter(|lineage| retired.contains(&lineage.group)) {
            lineage.leaving = true;
        }
        for group in new {
            for cell in &group.cells {
                let id = LineageId::from_ulid(Ulid(rng.random()));
                self.lineage_at.insert(id, self.facts.lineages.len());
                self.facts.lineages.push(LineageRow {
                    id,
                    group: group.id,
                    cell: cell.clone(),
                    live: None,
                    serves: BTreeMap::new(),
                    leaving: false,
                });
            }
            self.facts.groups.push(group);
        }
        changed
    }

    /// Lineages that are no longer needed are gone; answers which.
    pub fn retire(&mut self) -> Vec<LineageRow> {
        if !self.facts.lineages.iter().any(|lineage| lineage.leaving) {
            return Vec::new();
        }
        let leaving = reconcile::lineages_to_retire(&self.facts);
        leaving.into_iter().filter_map(|id| self.remove_lineage(id)).collect()
    }

    fn remove_lineage(&mut self, id: LineageId) -> Option<LineageRow> {
        let at = self.lineage_at.remove(&id)?;
        let row = self.facts.lineages.swap_remove(at);
        if let Some(moved) = self.facts.lineages.get(at) {
            self.lineage_at.insert(moved.id, at);
        }
        if let Some(live) = &row.live {
            self.credentials.remove(&live.id);
            self.facts.replaced.remove(&live.id);
        }
        self.facts.retry_at.remove(&id);
        Some(row)
    }

    /// Writes down the orders that are due; answers how many.
    pub fn plan_orders(&mut self) -> usize {
        let due = reconcile::orders_due(&self.facts);
        let planned = due.len();
        for due in due {
            self.made += 1;
            if let Some(replaced) = due.replaces {
                self.facts.replaced.insert(replaced);
            }
            self.facts.retry_at.remove(&due.lineage);
            let (id, next_at) = (self.made, self.facts.now_ms);
            let order = Order { id, due, state: OrderState::Planned, attempts: 0, next_at };
            self.orders.insert(id, order);
        }
        planned
    }

    /// Orders to run now, in the product's order of tenants and deadlines; they count as running.
    pub fn start(&mut self, now: i64) -> Vec<OrderId> {
        let room = IN_FLIGHT_MAX.saturating_sub(self.running.len());
        if room == 0 {
            return Vec::new();
        }
        let mut by_tenant: BTreeMap<Option<TenantId>, Vec<&Order>> = BTreeMap::new();
        for order in self.orders.values() {
            if order.next_at <= now && !self.running.contains(&order.id) {
                by_tenant.entry(order.due.tenant).or_default().push(order);
            }
        }
        let queues = by_tenant.into_iter().map(|(tenant, mut orders)| {
            orders.sort_by_key(|order| order.due.deadline.unwrap_or(i64::MAX));
            let spent = self.facts.spent.get(&tenant).copied().unwrap_or(0);
            (usize::try_from(spent).unwrap_or(usize::MAX), orders)
        });
        let turns = reconcile::by_urgency(queues.collect(), now, |order| order.due.deadline);
        let mut started = Vec::new();
        for order in turns {
            if started.len() == room {
                break;
            }
            if self.running_sets.insert(order.due.name_set.clone()) {
                started.push(order.id);
            }
        }
        self.running.extend(&started);
        started
    }

    /// When the first order is due that is not yet: those that are due wait for one that runs.
    pub fn next_start(&self, now: i64) -> Option<i64> {
        self.orders.values().map(|order| order.next_at).filter(|at| *at > now).min()
    }

    /// Sees that all limits have room, and reserves what the order takes.
    pub fn take(&mut self, id: OrderId, now: i64) -> Result<(), NoRoom> {
        self.release(id);
        let order = &self.orders[&id];
        let names: Vec<String> = order.due.names.keys().cloned().collect();
        let issued = order.due.renewal || self.issued_sets.contains(&order.due.name_set);
        let asked = ledger::Order {
            names: &names,
            name_set: &order.due.name_set,
            exemption: Exemption::of(&names, issued, self.covered(&order.due, now)),
            keeps_alive: order.due.keeps_alive(),
            can_wait: false,
            tenant: order.due.tenant,
        };
        let (asks_anew, tenant) =
            (!order.due.renewal && !asked.exemption.is_of_all(&names), order.due.tenant);
        let needs = ledger::needs(&asked, AT, &self.limits);
        let levels: Vec<_> = needs.iter().map(|need| self.levels.of(&need.key)).collect();
        ledger::check(&needs, &levels, now)?;
        let mut reserved = Vec::new();
        for need in needs.into_iter().filter(|need| need.charged != Charged::Never) {
            self.levels.0.entry(need.key.clone()).or_default().reserved += 1;
            reserved.push((need.key, need.rate.interval_ms(), need.charged));
        }
        if asks_anew {
            self.requests.push_back((now, tenant));
        }
        self.reserved.insert(id, reserved);
        Ok(())
    }

    /// The names of the certificate that an order replaces within its window.
    fn covered(&self, due: &DueOrder, now: i64) -> Option<&[String]> {
        let replaced = self.credentials.get(&due.replaces?)?;
        let lineage = &self.facts.lineages[*self.lineage_at.get(&replaced.lineage)?];
        let is_open = replaced.window.is_some_and(|window| window.is_open(now));
        lineage.live.as_ref().filter(|_| is_open).map(|live| live.names.as_slice())
    }

    /// What an order has reserved for this is spent now.
    fn charge(&mut self, id: OrderId, charged: Charged, now: i64) {
        let Some(reserved) = self.reserved.get_mut(&id) else { return };
        for (key, interval_ms, _) in reserved.extract_if(.., |(_, _, when)| *when == charged) {
            let level = self.levels.0.entry(key).or_default();
            level.reserved -= 1;
            level.bucket = level.bucket.charged(interval_ms, now);
        }
    }

    fn release(&mut self, id: OrderId) {
        for (key, ..) in self.reserved.remove(&id).unwrap_or_default() {
            self.levels.0.entry(key).or_default().reserved -= 1;
        }
    }

    /// The CA has made the order.
    pub fn created(&mut self, id: OrderId, at_ca: OrderNo, is_ready: bool, now: i64) {
        self.charge(id, Charged::AtOrder, now);
        self.set_state(id, if is_ready { OrderState::Ready(at_ca) } else { OrderState::Created(at_ca) });
    }

    pub fn set_state(&mut self, id: OrderId, state: OrderState) {
        if let Some(order) = self.orders.get_mut(&id) {
            order.state = state;
            order.attempts = 0;
        }
    }

    /// The CA tells of a limit that others have spent.
    pub fn learn(&mut self, id: OrderId, limit: LimitName, subject: &str, until: i64, now: i64) {
        self.release(id);
        let rate = self.limits.rate(limit, subject);
        let level = self.levels.0.entry(BucketKey::new(limit, AT, subject)).or_default();
        level.bucket = level.bucket.without_room_until(rate, until, now);
        self.wait(id, until);
    }

    /// The CA will not have it that the order replaces a certificate.
    pub fn drop_replaces(&mut self, id: OrderId, now: i64) {
        self.release(id);
        if let Some(order) = self.orders.get_mut(&id) {
            order.due.replaces = None;
        }
        self.wait(id, now);
    }

    /// The order stays as it is until then.
    pub fn wait(&mut self, id: OrderId, until: i64) {
        if let Some(order) = self.orders.get_mut(&id) {
            order.next_at = until;
            order.attempts += 1;
            self.running_sets.remove(&order.due.name_set);
        }
        self.running.remove(&id);
    }

    /// After a failure that is the CA's: soon, then slower.
    pub fn try_again(&mut self, id: OrderId, now: i64) {
        let Some(order) = self.orders.get(&id) else { return };
        let seed = timing::seed_of(order.due.lineage) ^ u64::from(order.attempts);
        if order.state == OrderState::Planned {
            self.release(id);
        }
        let until = now + timing::after_transient(self.orders[&id].attempts + 1, seed);
        self.wait(id, until);
    }

    fn over(&mut self, id: OrderId) -> Option<Order> {
        let order = self.orders.remove(&id)?;
        self.running.remove(&id);
        self.running_sets.remove(&order.due.name_set);
        Some(order)
    }

    /// The order is gone at the CA through no fault of a name.
    pub fn end(&mut self, id: OrderId, now: i64) {
        self.release(id);
        let Some(order) = self.over(id) else { return };
        self.free_predecessor(&order);
        let failed = self.failed_in_a_row.entry(order.due.lineage).or_default();
        *failed += 1;
        let retry_at = now + timing::after_failures(*failed, timing::seed_of(order.due.lineage));
        self.facts.retry_at.insert(order.due.lineage, retry_at);
    }

    /// Names that failed go out; the rest is ordered again at once.
    pub fn eject(&mut self, id: OrderId, failed: &[String], now: i64) {
        for name in failed {
            for limit in [LimitName::FailedAuthorizations, LimitName::ConsecutiveFailures] {
                let rate = self.limits.rate(limit, name);
                let level = self.levels.0.entry(BucketKey::new(limit, AT, name)).or_default();
                level.bucket = level.bucket.charged(rate.interval_ms(), now);
            }
        }
        self.release(id);
        let Some(order) = self.over(id) else { return };
        self.free_predecessor(&order);
        let mut last_retry = now;
        for (_, domain) in order.due.names.iter().filter(|(name, _)| failed.contains(name)) {
            if !self.domain_at.contains_key(domain) {
                continue;
            }
            let state = self.facts.names.entry(*domain).or_default();
            self.looks_at_groups = LOOKS_AT_GROUPS;
            state.failed_before = true;
            state.part = 0;
            state.attempts += 1;
            state.methods.clear();
            let seed = timing::seed_of(order.due.lineage) ^ u64::from(state.attempts);
            let is_paused = state.attempts >= self.limits.pause_after;
            state.next_at =
                if is_paused { i64::MAX / 2 } else { now + timing::after_failures(state.attempts, seed) };
            last_retry = last_retry.max(state.next_at);
        }
        *self.failed_in_a_row.entry(order.due.lineage).or_default() += 1;
        let retry_at = if failed.len() < order.due.names.len() { now } else { last_retry };
        self.facts.retry_at.insert(order.due.lineage, retry_at);
    }

    /// An order that failed replaces nothing.
    fn free_predecessor(&mut self, order: &Order) {
        if let Some(replaced) = order.due.replaces {
            self.facts.replaced.remove(&replaced);
        }
    }

    /// Whether the product's gate would keep what is live before an order's certificate.
    pub fn holds_back(&self, id: OrderId, certificate: &Certificate, now: i64) -> bool {
        let Some(order) = self.orders.get(&id) else { return false };
        let lineage = self.lineage_at.get(&order.due.lineage).map(|at| &self.facts.lineages[*at]);
        let Some(live) = lineage.and_then(|lineage| lineage.live.as_ref()) else { return false };
        let ends = Ends { not_before: live.not_before, not_after: live.not_after, renew_at: live.renew_at };
        certificate.names.iter().all(|name| live.names.contains(name))
            && timing::is_better(&ends, certificate.not_after_ms, now)
    }

    /// The order has its certificate.
    pub fn issued(
        &mut self,
        id: OrderId,
        number: CertificateNo,
        certificate: &Certificate,
        now: i64,
        rng: &mut StdRng,
    ) -> Option<Published> {
        self.charge(id, Charged::AtOrder, now);
        self.charge(id, Charged::AtCertificate, now);
        self.release(id);
        let order = self.over(id)?;
        for name in order.due.names.keys() {
            self.levels.0.remove(&BucketKey::new(LimitName::ConsecutiveFailures, AT, name));
        }
        self.issued_sets.insert(order.due.name_set.clone());
        self.failed_in_a_row.remove(&order.due.lineage);
        self.publish(order.due.lineage, &order.due.names, number, certificate, now, rng)
    }

    /// A certificate goes live.
    pub fn publish(
        &mut self,
        id: LineageId,
        names: &reconcile::Names,
        number: CertificateNo,
        certificate: &Certificate,
        now: i64,
        rng: &mut StdRng,
    ) -> Option<Published> {
        let credential = CredentialId::from_ulid(Ulid(rng.random()));
        let serves: reconcile::Names = names
            .iter()
            .filter(|(_, domain)| self.domain_at.contains_key(domain))
            .map(|(name, domain)| (name.clone(), *domain))
            .collect();
        for domain in serves.values() {
            let state = self.facts.names.entry(*domain).or_default();
            if state.failed_before || state.part != 0 {
                self.looks_at_groups = LOOKS_AT_GROUPS;
            }
            (state.failed_before, state.part, state.attempts, state.next_at) = (false, 0, 0, 0);
        }
        let lineage = &mut self.facts.lineages[*self.lineage_at.get(&id)?];
        let (not_before, not_after) = (certificate.not_before_ms, certificate.not_after_ms);
        let live = LiveCredential {
            id: credential,
            issuer: ISSUER.to_owned(),
            names: certificate.names.iter().cloned().collect(),
            not_before,
            not_after,
            issued_at: now,
            renew_at: timing::renew_at(not_before, not_after, RENEWAL_SHARE, id),
            window_end: None,
        };
        let domains = serves.values().copied().collect();
        let cell = lineage.cell.clone();
        lineage.serves = serves;
        if let Some(before) = lineage.live.replace(live) {
            self.credentials.remove(&before.id);
            self.facts.replaced.remove(&before.id);
        }
        let subject = Subject { lineage: id, credential, not_before, not_after, created_at: now };
        let kept = Credential { lineage: id, certificate: number, window: None, subject, failures: 0 };
        self.credentials.insert(credential, kept);
        self.issued_sets.insert(reconcile::name_set(names.keys().map(String::as_str)));
        Some(Published { credential, lineage: id, cell, domains })
    }

    /// The CA's suggestion for a certificate, or none because it is away. Answers when to ask again.
    pub fn suggested(&mut self, id: CredentialId, window: Option<(i64, i64)>, now: i64) -> Option<i64> {
        let credential = self.credentials.get_mut(&id)?;
        let Some((start_ms, end_ms)) = window else {
            credential.failures += 1;
            let failures = credential.failures;
            return Some(renewal_info::next_after_failure(now, failures, None, &credential.subject));
        };
        credential.failures = 0;
        let suggestion = Suggestion { start_ms, end_ms, explanation_url: None, retry_after: None };
        let subject = credential.subject;
        credential.window = renewal_info::judge(&suggestion, &subject).ok();
        let renew_at = match credential.window {
            Some(window) => renewal_info::renew_at(window, &subject),
            None => timing::renew_at(subject.not_before, subject.not_after, RENEWAL_SHARE, subject.lineage),
        };
        let window_end = credential.window.map(|window| window.end);
        let lineage = &mut self.facts.lineages[*self.lineage_at.get(&subject.lineage)?];
        if let Some(live) = lineage.live.as_mut().filter(|live| live.id == id) {
            (live.renew_at, live.window_end) = (renew_at, window_end);
        }
        Some(renewal_info::next_poll(now, None, &subject))
    }

    /// When the plan says that the last of the names that wait has its certificate, by per cent of them, from now.
    pub fn eta(&self) -> Vec<(u8, i64)> {
        let spent = Spent {
            levels: self.levels.clone(),
            limits: self.limits.clone(),
            ca: AT.ca.to_owned(),
            account: AT.account.to_owned(),
        };
        let terms = Terms {
            names_per_certificate_max: NAMES_MAX,
            limits: self.limits.clone(),
            spent: Arc::new(spent),
            sharing: None,
            cells: None,
        };
        let report = report::report(&self.facts, &terms, &Question::default());
        let ms = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX / 1000) * 1000;
        report.eta.iter().map(|eta| (eta.percent, ms(eta.seconds))).collect()
    }

    /// What the ledger has as used of a bucket.
    pub fn used(&self, limit: LimitName, subject: &str, now: i64) -> u32 {
        let level = self.levels.of(&BucketKey::new(limit, AT, subject));
        level.bucket.used(self.limits.rate(limit, subject), now)
    }
}

impl Order {
    fn summary(&self) -> OpenOrder {
        OpenOrder {
            id: portico_cert_store::OrderId::from_ulid(Ulid(u128::from(self.id))),
            issuer: self.due.issuer.clone(),
            lineage: self.due.lineage,
            name_set: self.due.name_set.clone(),
            tenant: self.due.tenant,
            keeps_alive: self.due.keeps_alive(),
            backup: false,
            lacks_key: false,
            next_at: self.next_at,
        }
    }
}

/// As pre-flight has it: a name that was just added is looked after closely.
fn next_look(age_ms: i64) -> i64 {
    match age_ms / MINUTE_MS {
        ..10 => 15_000,
        10..60 => MINUTE_MS,
        60..1440 => 10 * MINUTE_MS,
        _ => 60 * MINUTE_MS,
    }
}
