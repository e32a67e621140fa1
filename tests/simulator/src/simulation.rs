//! The events of a fleet's life, one after the other.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use portico_cert_store::{CellId, CredentialId, DomainId, LineageId};
use portico_control_plane::plan::ledger::LimitName;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::ca::{Ca, CertificateNo, Exemption, Limit, OrderStatus, Profile, Refusal};
use crate::control::{Control, OrderId, OrderState, Published};
use crate::edges::{Change, Edge};
use crate::population::{Brought, CELLS, Population};
use crate::report::{Eta, Hour, LedgerAgainstCa, Outcome, Revocation, Violation};
use crate::time::{DAY_MS, HOUR_MS, MINUTE_MS, Queue, SECOND_MS};

/// How the fleet is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
pub enum Start {
    /// No name has a certificate: the account is cold.
    Cold,
    /// Each name has one, of any age, as after years.
    Established,
}

/// What is to happen.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Scenario {
    pub seed: u64,
    pub names: usize,
    pub days: i64,
    pub start: Start,
    pub exemption: Exemption,
    pub edges_per_cell: usize,
    /// The share of names that leave in 30 days; as many come.
    pub churn: f64,
    /// From the day on; the first holds from the start.
    pub profiles: Vec<(i64, Profile)>,
    /// First day and length in days: the CA answers nobody.
    pub outage: Option<(i64, i64)>,
    /// Day, and the share of certificates that are revoked a day after the CA told of it.
    pub revocation: Option<(i64, f64)>,
    /// Sites whose owners obtain certificates elsewhere, too, and use up their domain's limit now and then.
    pub sites_with_others: usize,
    /// Orders an hour that somebody places with our account's key. No ledger can know of them: it shows that a limit that is
    /// met is noticed.
    pub stolen_orders: u32,
}

const STREAM_AWAY_MS: i64 = 2 * HOUR_MS;
const PREFLIGHTS_IN_FLIGHT: usize = 64;
/// A look that found much to do is followed by the next one soon, any other within a part of an hour.
const LOOK_SOON_MS: i64 = MINUTE_MS;
const LOOK_LATE_MS: i64 = 20 * MINUTE_MS;
/// Orders of one look from which on there may be more.
const MUCH: usize = 100;
/// Between the CA's word and the revocation (CA/B baseline requirements 4.9.1.1).
const REVOKED_AFTER_MS: i64 = DAY_MS;
/// 2026-01-01.
const EPOCH_MS: i64 = 1_767_225_600_000;

#[derive(Debug)]
enum Event {
    Look,
    Start,
    /// The CA hears of an order.
    Ask(OrderId),
    Validate(OrderId),
    Sign(OrderId),
    LookedAt(DomainId),
    Suggest(CredentialId),
    Apply(usize, Change),
    Ends(LineageId, CertificateNo),
    Hour,
    Outage(bool),
    Profile(Profile),
    Announce(f64),
    Revoke(Vec<(LineageId, CertificateNo)>),
    EdgeAway(usize),
    Others,
}

/// Runs a scenario to its end.
pub fn run(scenario: &Scenario) -> Outcome {
    let mut simulation = Simulation::new(scenario);
    simulation.begin();
    let end = EPOCH_MS + scenario.days * DAY_MS;
    while let Some(event) = simulation.queue.next(end) {
        simulation.happen(event);
    }
    simulation.queue.now = end;
    simulation.end()
}

struct Simulation<'a> {
    scenario: &'a Scenario,
    rng: StdRng,
    queue: Queue<Event>,
    ca: Ca,
    control: Control,
    edges: Vec<Edge>,
    population: Population,
    dns: HashMap<DomainId, Dns>,
    /// All names that were brought and are not deleted, for churn.
    present: Vec<DomainId>,
    /// Of them, those that never had a certificate.
    without: HashSet<DomainId>,
    sites: HashMap<u64, Vec<DomainId>>,
    preflights: VecDeque<DomainId>,
    looking_at: HashSet<DomainId>,
    /// At the time in the queue; later ones that are still there do nothing.
    start_at: i64,
    look_at: i64,
    churn_due: f64,
    others: Vec<String>,
    first_issue: FirstIssue,
    revocation: Option<Revocation>,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug)]
struct Dns {
    points_from_ms: i64,
    gone: bool,
    site: u64,
}

/// How long the names of a cold start take, against what the plan says.
#[derive(Default)]
struct FirstIssue {
    planned: Vec<(u8, i64)>,
    planned_at: i64,
    waiting: HashSet<DomainId>,
    all: usize,
    done: Vec<i64>,
}

impl<'a> Simulation<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let profile = scenario.profiles.first().map_or_else(classic, |(_, profile)| *profile);
        let cells = CELLS.map(|cell| CellId::parse(cell).expect("letters are a cell's name"));
        let edges =
            cells.iter().flat_map(|cell| (0..scenario.edges_per_cell).map(|_| Edge::new(cell.clone())));
        Self {
            rng: StdRng::seed_from_u64(scenario.seed),
            queue: Queue::new(EPOCH_MS),
            ca: Ca::new(profile, scenario.exemption),
            control: Control::default(),
            edges: edges.collect(),
            population: Population::default(),
            dns: HashMap::new(),
            present: Vec::new(),
            without: HashSet::new(),
            sites: HashMap::new(),
            preflights: VecDeque::new(),
            looking_at: HashSet::new(),
            start_at: i64::MAX,
            look_at: i64::MAX,
            churn_due: 0.0,
            others: Vec::new(),
            first_issue: FirstIssue::default(),
            revocation: None,
            outcome: Outcome::new(scenario),
            scenario,
        }
    }

    fn begin(&mut self) {
        let is_settled = self.scenario.start == Start::Established;
        let brought = self.population.bring(self.scenario.names, is_settled, EPOCH_MS, &mut self.rng);
        self.outcome.names = brought.len();
        self.bring(brought);
        if is_settled {
            self.settle();
        }
        self.look_soon(EPOCH_MS);
        self.queue.at(EPOCH_MS, Event::Hour);
        for (day, profile) in self.scenario.profiles.iter().skip(1) {
            self.queue.at(EPOCH_MS + day * DAY_MS, Event::Profile(*profile));
        }
        if let Some((day, length)) = self.scenario.outage {
            self.queue.at(EPOCH_MS + day * DAY_MS, Event::Outage(true));
            self.queue.at(EPOCH_MS + (day + length) * DAY_MS, Event::Outage(false));
        }
        if let Some((day, share)) = self.scenario.revocation {
            self.queue.at(EPOCH_MS + day * DAY_MS, Event::Announce(share));
        }
        for edge in 0..self.edges.len() {
            let away = EPOCH_MS + self.rng.random_range(0..7 * DAY_MS);
            self.queue.at(away, Event::EdgeAway(edge));
        }
        let sites = self.sites.len();
        for n in 0..self.scenario.sites_with_others.min(sites) {
            self.others.push(format!("elsewhere.site{}.com", n + 1));
        }
        if !self.others.is_empty() {
            self.queue.at(EPOCH_MS + DAY_MS, Event::Others);
        }
    }

    fn bring(&mut self, brought: Vec<Brought>) {
        for Brought { domain, points_from_ms, site } in brought {
            self.dns.insert(domain.id, Dns { points_from_ms, gone: false, site });
            self.present.push(domain.id);
            self.without.insert(domain.id);
            self.sites.entry(site).or_default().push(domain.id);
            if self.scenario.start == Start::Cold && self.queue.now == EPOCH_MS {
                self.first_issue.waiting.insert(domain.id);
            }
            self.control.add(domain);
        }
    }

    /// Each name has a certificate of some age, on all its edges.
    fn settle(&mut self) {
        let now = EPOCH_MS;
        for domain in self.present.clone() {
            self.control.looked_at(domain, true, now - DAY_MS);
        }
        self.control.see(now);
        self.control.regroup(&mut self.rng);
        let names: HashMap<_, _> =
            self.control.facts.groups.iter().map(|group| (group.id, group.names.clone())).collect();
        let lineages: Vec<_> = self.control.facts.lineages.iter().map(|l| (l.id, l.group)).collect();
        // None is older than the moment at which it would have been renewed.
        let oldest = self.ca.profile.lifetime_ms * 65 / 100;
        for (lineage, group) in lineages {
            let names = &names[&group];
            let age = self.rng.random_range(0..oldest);
            let number = self.ca.issue(names.keys().cloned().collect(), now - age);
            let certificate = self.ca.certificate(number).clone();
            let published = self.control.publish(lineage, names, number, &certificate, now, &mut self.rng);
            if let Some(published) = published {
                self.announce(&published, number);
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Look => self.look(),
            Event::Start => self.start(),
            Event::Ask(order) => self.ask(order),
            Event::Validate(order) => self.validate(order),
            Event::Sign(order) => self.sign(order),
            Event::LookedAt(domain) => self.looked_at(domain),
            Event::Suggest(credential) => self.suggest(credential),
            Event::Apply(edge, change) => self.edges[edge].apply(change),
            Event::Ends(lineage, certificate) => self.certificate_ends(lineage, certificate),
            Event::Hour => self.hour(),
            Event::Outage(is_down) => self.ca.is_down = is_down,
            Event::Profile(profile) => self.ca.profile = profile,
            Event::Announce(share) => self.announce_revocation(share),
            Event::Revoke(all) => self.revoke(&all),
            Event::EdgeAway(edge) => {
                self.edges[edge].away_until_ms = self.queue.now + STREAM_AWAY_MS;
                self.queue.after(7 * DAY_MS, Event::EdgeAway(edge));
            }
            Event::Others => self.others_obtain(),
        }
    }

    fn look_soon(&mut self, at: i64) {
        if at < self.look_at {
            self.look_at = at;
            self.queue.at(at, Event::Look);
        }
    }

    /// One turn of the control plane's loop.
    fn look(&mut self) {
        let now = self.queue.now;
        if now < self.look_at {
            return;
        }
        self.look_at = i64::MAX;
        self.control.see(now);
        for domain in self.control.preflights_due() {
            if self.looking_at.insert(domain) {
                self.preflights.push_back(domain);
            }
        }
        self.start_preflights(PREFLIGHTS_IN_FLIGHT);
        self.outcome.regroupings += wide(self.control.regroup(&mut self.rng));
        for gone in self.control.retire() {
            self.tell(&gone.cell, &Change::Remove { lineage: gone.id });
        }
        self.plan_first_issue();
        let planned = self.control.plan_orders();
        self.start_soon(now);
        self.look_soon(now + if planned >= MUCH { LOOK_SOON_MS } else { LOOK_LATE_MS });
    }

    /// Once the names of a cold start are ready: when the plan says that they have their certificates.
    fn plan_first_issue(&mut self) {
        let first = &mut self.first_issue;
        if !first.planned.is_empty() || self.scenario.start != Start::Cold || !self.preflights.is_empty() {
            return;
        }
        let is_ready = |id: &DomainId| self.control.facts.names.get(id).is_some_and(|s| s.ready_at.is_some());
        first.waiting.retain(is_ready);
        first.all = first.waiting.len();
        if first.all == 0 {
            return;
        }
        first.planned_at = self.queue.now;
        first.planned = self.control.eta();
    }

    fn start_preflights(&mut self, most: usize) {
        for _ in 0..most {
            let Some(domain) = self.preflights.pop_front() else { return };
            let takes = self.rng.random_range(SECOND_MS / 2..2 * SECOND_MS);
            self.queue.after(takes, Event::LookedAt(domain));
        }
    }

    fn looked_at(&mut self, domain: DomainId) {
        self.looking_at.remove(&domain);
        let (is_good, now) = (self.points_here(domain), self.queue.now);
        self.control.looked_at(domain, is_good, now);
        if is_good {
            self.look_soon(now + LOOK_SOON_MS);
        }
        self.start_preflights(1);
    }

    fn points_here(&self, domain: DomainId) -> bool {
        let dns = self.dns.get(&domain);
        dns.is_some_and(|dns| dns.points_from_ms <= self.queue.now && !dns.gone)
    }

    fn start_soon(&mut self, at: i64) {
        let at = at.max(self.queue.now);
        if at < self.start_at {
            self.start_at = at;
            self.queue.at(at, Event::Start);
        }
    }

    fn start(&mut self) {
        let now = self.queue.now;
        if now < self.start_at {
            return;
        }
        self.start_at = i64::MAX;
        for id in self.control.start(now) {
            let takes = self.rng.random_range(100..1000);
            let event = match self.control.orders[&id].state {
                OrderState::Planned => match self.control.take(id, now) {
                    Ok(()) => Event::Ask(id),
                    Err(no_room) => {
                        self.control.wait(id, no_room.next_ms);
                        continue;
                    }
                },
                OrderState::Created(_) => Event::Validate(id),
                OrderState::Ready(_) => Event::Sign(id),
            };
            self.queue.after(takes, event);
        }
        if let Some(at) = self.control.next_start(now) {
            self.start_soon(at);
        }
    }

    fn freed(&mut self) {
        let now = self.queue.now;
        self.start_soon(now);
    }

    fn ask(&mut self, id: OrderId) {
        let now = self.queue.now;
        let Some(order) = self.control.orders.get(&id) else { return };
        let names: BTreeSet<String> = order.due.names.keys().cloned().collect();
        let replaced = order.due.replaces.and_then(|id| self.control.credentials.get(&id));
        let replaces = replaced.map(|credential| credential.certificate);
        match self.ca.new_order(&names, replaces, now) {
            Ok(at_ca) => {
                let is_ready = self.ca.status(at_ca, now) == OrderStatus::Ready;
                self.control.created(id, at_ca, is_ready, now);
                self.outcome.hour().orders += 1;
                self.outcome.hour().replacing += u32::from(replaces.is_some());
                let (takes, event) = match is_ready {
                    true => (self.rng.random_range(100..1000), Event::Sign(id)),
                    false => (self.rng.random_range(2000..10_000), Event::Validate(id)),
                };
                self.queue.after(takes, event);
                return;
            }
            Err(Refusal::Unavailable) => self.control.try_again(id, now),
            Err(Refusal::Replacement) => self.control.drop_replaces(id, now),
            Err(Refusal::Limited { limit, subject, retry_after_ms }) => {
                if !limit.is_global() || !self.is_spent_by_others(&subject) {
                    let text = format!("{limit:?} of {subject:?} for {names:?}");
                    self.outcome.violation(Violation::LimitHit, text);
                }
                let (limit, subject) = match limit {
                    Limit::Orders => (LimitName::Orders, String::new()),
                    Limit::RegisteredDomain => (LimitName::RegisteredDomain, subject),
                    Limit::ExactSet => (LimitName::ExactSet, self.control.orders[&id].due.name_set.clone()),
                    Limit::FailedAuthorizations => (LimitName::FailedAuthorizations, subject),
                    Limit::ConsecutiveFailures => (LimitName::ConsecutiveFailures, subject),
                };
                self.control.learn(id, limit, &subject, now + retry_after_ms, now);
            }
        }
        self.freed();
    }

    fn is_spent_by_others(&self, subject: &str) -> bool {
        self.others.iter().any(|name| name.ends_with(subject))
    }

    fn validate(&mut self, id: OrderId) {
        let now = self.queue.now;
        let Some(order) = self.control.orders.get(&id) else { return };
        let OrderState::Created(at_ca) = order.state else { return };
        let names = order.due.names.clone();
        if self.ca.is_down {
            self.control.try_again(id, now);
            return self.freed();
        }
        if self.ca.status(at_ca, now) == OrderStatus::Invalid {
            self.control.end(id, now);
            return self.freed();
        }
        let mut failed = Vec::new();
        for name in self.ca.pending(at_ca) {
            let is_good = names.get(&name).is_some_and(|domain| self.points_here(*domain));
            self.ca.validated(at_ca, &name, is_good, now);
            if !is_good {
                failed.push(name);
            }
        }
        if failed.is_empty() {
            self.control.set_state(id, OrderState::Ready(at_ca));
            let takes = self.rng.random_range(1000..3000);
            self.queue.after(takes, Event::Sign(id));
        } else {
            self.outcome.hour().failed += 1;
            self.control.eject(id, &failed, now);
            self.look_soon(now + LOOK_SOON_MS);
            self.freed();
        }
    }

    fn sign(&mut self, id: OrderId) {
        let now = self.queue.now;
        let Some(order) = self.control.orders.get(&id) else { return };
        let OrderState::Ready(at_ca) = order.state else { return };
        if self.ca.is_down {
            self.control.try_again(id, now);
            return self.freed();
        }
        let Some(number) = self.ca.finalize(at_ca, now) else {
            self.control.end(id, now);
            return self.freed();
        };
        let certificate = self.ca.certificate(number).clone();
        self.outcome.hour().issued += 1;
        if self.control.holds_back(id, &certificate, now) {
            let text = format!("{}: {:?}", self.outcome.day(now), certificate.names);
            self.outcome.violation(Violation::HeldBack, text);
        }
        if let Some(published) = self.control.issued(id, number, &certificate, now, &mut self.rng) {
            self.announce(&published, number);
        }
        self.freed();
    }

    /// The edges hear of a certificate, the CA will be asked for its window, and it will end one day.
    fn announce(&mut self, published: &Published, number: CertificateNo) {
        let now = self.queue.now;
        let not_after_ms = self.ca.certificate(number).not_after_ms;
        let (lineage, domains) = (published.lineage, published.domains.clone());
        for domain in &domains {
            self.without.remove(domain);
            if self.first_issue.waiting.remove(domain) {
                self.first_issue.done.push(now);
            }
        }
        self.tell(&published.cell, &Change::Publish { lineage, certificate: number, not_after_ms, domains });
        self.queue.at(now, Event::Suggest(published.credential));
        self.queue.at(not_after_ms, Event::Ends(lineage, number));
    }

    fn tell(&mut self, cell: &CellId, change: &Change) {
        let now = self.queue.now;
        for (index, edge) in self.edges.iter().enumerate().filter(|(_, edge)| edge.cell == *cell) {
            self.queue.at((now + 200).max(edge.away_until_ms), Event::Apply(index, change.clone()));
        }
    }

    fn suggest(&mut self, id: CredentialId) {
        let now = self.queue.now;
        let Some(credential) = self.control.credentials.get(&id) else { return };
        let window = (!self.ca.is_down).then(|| self.ca.window(credential.certificate, now));
        if let Some(next) = self.control.suggested(id, window, now) {
            self.queue.at(next, Event::Suggest(id));
        }
    }

    /// Whether a visitor of a name that is alive would have been shown a certificate that has just ended.
    fn certificate_ends(&mut self, lineage: LineageId, number: CertificateNo) {
        let now = self.queue.now;
        let expired = self.shown(&[(lineage, number)], |(_, end)| end <= now);
        for text in expired {
            self.outcome.violation(Violation::Expired, text);
        }
    }

    fn revoke(&mut self, all: &[(LineageId, CertificateNo)]) {
        for (_, number) in all {
            self.ca.revoke(*number);
        }
        let ca = &self.ca;
        let revoked = self.shown(all, |(number, _)| ca.certificate(number).revoked);
        for text in revoked {
            self.outcome.violation(Violation::Revoked, text);
        }
    }

    /// Live names that an edge still shows a certificate for that is bad, of those in these slots.
    fn shown(
        &self,
        slots: &[(LineageId, CertificateNo)],
        is_bad: impl Fn((CertificateNo, i64)) -> bool,
    ) -> Vec<String> {
        let mut found = Vec::new();
        for (index, edge) in self.edges.iter().enumerate() {
            for (lineage, number) in slots {
                for domain in edge.names_of(*lineage, *number) {
                    let Some(row) = self.control.domain(*domain) else { continue };
                    let is_alive = self.points_here(*domain) && row.cells.contains(&edge.cell);
                    if is_alive && edge.serves(*domain).is_none_or(&is_bad) {
                        found.push(format!(
                            "{} on edge {index} at {}",
                            row.name,
                            self.outcome.day(self.queue.now)
                        ));
                    }
                }
            }
        }
        found
    }

    fn announce_revocation(&mut self, share: f64) {
        let now = self.queue.now;
        let mut all = Vec::new();
        for credential in self.control.credentials.values() {
            if self.rng.random_bool(share) {
                self.ca.announce_revocation(credential.certificate, now);
                all.push((credential.lineage, credential.certificate));
            }
        }
        self.revocation = Some(Revocation { at_ms: now, certificates: all.len(), replaced_in_ms: None });
        self.queue.after(REVOKED_AFTER_MS, Event::Revoke(all.clone()));
        self.outcome.announced = all.into_iter().map(|(_, number)| number).collect();
    }

    fn hour(&mut self) {
        let now = self.queue.now;
        self.churn();
        let is_over =
            self.revocation.as_ref().is_some_and(|r| r.replaced_in_ms.is_none()) && self.all_replaced();
        if let Some(revocation) = self.revocation.as_mut().filter(|_| is_over) {
            revocation.replaced_in_ms = Some(now - revocation.at_ms);
        }
        let alive = self.present.iter().filter(|domain| self.points_here(**domain)).count();
        let without = self.without.iter().filter(|domain| self.points_here(**domain)).count();
        for _ in 0..self.scenario.stolen_orders {
            self.ca.order_of_a_thief(now);
        }
        self.outcome.hours.push(Hour { at_ms: now, alive, without, ..Hour::default() });
        if (now - EPOCH_MS) % DAY_MS == 0 {
            self.compare();
        }
        self.queue.after(HOUR_MS, Event::Hour);
    }

    /// Whether no name that is alive is served with a certificate any more whose revocation was announced.
    fn all_replaced(&self) -> bool {
        let announced = &self.outcome.announced;
        let mut left = self.control.credentials.values().filter(|kept| announced.contains(&kept.certificate));
        !left.any(|kept| self.control.served_by(kept.lineage).any(|domain| self.points_here(domain)))
    }

    /// Names leave, deleted or in silence, whole sites or single names; as many come.
    fn churn(&mut self) {
        #[expect(clippy::cast_precision_loss, reason = "a number of names")]
        let names = self.present.len() as f64;
        self.churn_due += names * self.scenario.churn / (30.0 * 24.0);
        while self.churn_due >= 1.0 && !self.present.is_empty() {
            let one = self.present[self.rng.random_range(0..self.present.len())];
            let leaving = match self.dns.get(&one) {
                Some(dns) if self.rng.random_bool(0.7) => {
                    self.sites.get(&dns.site).cloned().unwrap_or_default()
                }
                _ => vec![one],
            };
            let is_deleted = self.rng.random_bool(0.5);
            let mut left = 0_u32;
            for domain in leaving {
                left += u32::from(self.leave(domain, is_deleted));
            }
            let now = self.queue.now;
            let brought = self.population.one_more(now, &mut self.rng);
            self.bring(brought);
            self.churn_due -= f64::from(left.max(1));
        }
    }

    fn leave(&mut self, domain: DomainId, is_deleted: bool) -> bool {
        let Some(dns) = self.dns.get_mut(&domain) else { return false };
        let was_there = !dns.gone;
        dns.gone = true;
        if is_deleted {
            let site = dns.site;
            self.dns.remove(&domain);
            self.without.remove(&domain);
            self.present.retain(|other| *other != domain);
            if let Some(names) = self.sites.get_mut(&site) {
                names.retain(|other| *other != domain);
            }
            self.control.delete(domain);
        }
        was_there
    }

    fn others_obtain(&mut self) {
        let now = self.queue.now;
        for name in &self.others {
            let certificates = self.rng.random_range(1..4);
            self.ca.issue_to_others(name, certificates, now);
        }
        let next = self.rng.random_range(6 * HOUR_MS..DAY_MS);
        self.queue.after(next, Event::Others);
    }

    /// What the ledger has as spent, against what the CA has counted. Where others spend, only the CA knows.
    fn compare(&mut self) {
        let now = self.queue.now;
        let mut compared = LedgerAgainstCa::default();
        let both = [
            (Limit::Orders, LimitName::Orders),
            (Limit::RegisteredDomain, LimitName::RegisteredDomain),
            (Limit::FailedAuthorizations, LimitName::FailedAuthorizations),
            (Limit::ConsecutiveFailures, LimitName::ConsecutiveFailures),
        ];
        for (limit, name) in both {
            for subject in self.ca.subjects(limit) {
                if limit.is_global() && self.is_spent_by_others(&subject) {
                    continue;
                }
                let at_ca = self.ca.used(limit, &subject, now);
                let ours = self.control.used(name, &subject, now);
                compared.note(at_ca, ours);
                if ours < at_ca {
                    let text = format!("{limit:?} of {subject:?}: the CA has {at_ca}, the ledger {ours}");
                    self.outcome.violation(Violation::LedgerBehind, text);
                }
            }
        }
        self.outcome.ledger.add(compared);
    }

    fn end(mut self) -> Outcome {
        self.compare();
        self.outcome.counts = self.ca.counts;
        self.outcome.revocation = self.revocation;
        let first = self.first_issue;
        let mut done = first.done;
        done.sort_unstable();
        self.outcome.eta = first
            .planned
            .iter()
            .map(|(percent, planned_ms)| {
                let wanted = (first.all * usize::from(*percent)).div_ceil(100).max(1);
                let actual_ms = done.get(wanted - 1).map(|at| at - first.planned_at);
                Eta { percent: *percent, planned_ms: *planned_ms, actual_ms }
            })
            .collect();
        self.outcome.names_by_edge = self.edges.iter().map(|edge| edge.names()).collect();
        self.outcome.judge();
        self.outcome
    }
}

/// Let's Encrypt's default profile of 2026.
pub fn classic() -> Profile {
    Profile { lifetime_ms: 90 * DAY_MS, reuse_ms: 30 * DAY_MS }
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
