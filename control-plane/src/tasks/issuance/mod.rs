//! Issuance: every served name gets a certificate, and keeps having one.
//!
//! One loop, no input: read the facts, plan ([`crate::plan::reconcile`]), act, record; again at each change and at least
//! each second. It starts pre-flights and runs orders, both bounded, tenants in turn. All memory is in the store, so a
//! restart is only another turn of the loop.
//!
//! - [`preflight`], [`reach`], [`self_fetch`], [`tls_alpn`]: would the CA find what we put up?
//! - [`order`]: one order from intent to certificate. [`mod@edge_key`]: its key, where an edge makes it.
//! - [`challenge`], [`publish`]: its two ends. [`removal`]: what it leaves in zones that others serve.
//! - [`slots`]: which orders run. [`fan_out`]: those that follow in other cells.
//! - [`issuer`]: CA, pace. [`account`]: its accounts. [`adoption`]: those of other clients. [`spending`]: what an order spends of
//!   the CA's limits.
//! - [`health`]: what its orders tell of an issuer, and those that leave it.
//! - [`rekey`]: keys that are replaced before their time. [`revoke`]: what others may have the key of.
//! - [`backups`]: what stands by.
//! - [`renewal_info`]: when each CA suggests to renew its certificates.
//! - [`leavers`]: which names no longer lead here.
//! - [`watch`]: what is renewed too late.

mod account;
pub(crate) mod adoption;
mod backups;
mod challenge;
mod edge_key;
mod fail_point;
mod fan_out;
mod health;
mod issuer;
mod leavers;
mod order;
mod preflight;
mod publish;
mod reach;
mod rekey;
mod removal;
mod renewal_info;
mod responders;
mod revoke;
mod self_fetch;
mod slots;
mod spending;
mod stopped;
mod tls_alpn;
mod turns;
mod watch;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use portico_cert_store::{
    CellKey, CredentialId, Custody, DomainId, GroupId, KeyType, LineageId, NamePattern, OrderId, PrivateKey,
    SealContext, TenantId,
};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

pub use fail_point::{ALL as FAIL_POINTS, arm as arm_fail_point};
pub(crate) use leavers::{LEFT, RETIRED};

use crate::Parts;
use crate::acme::CertificateId;
use crate::clock::{self, DAY_MS, HOUR_MS};
use crate::config::IssuerConfig;
use crate::distribution::Fleet;
use crate::dns::lookup::Lookup;
use crate::dns::responder::{self, ChallengeZone};
use crate::dns::writer::Writers;
use crate::plan::backups::Backups;
use crate::plan::cells;
use crate::plan::issuers::{IssuerFacts, Issuers, Standing};
use crate::plan::reconcile::{self, DueOrder, Facts, GroupChange, Retired};
use crate::store::account::{AccountId, AccountOrigin};
use crate::store::group::{self, GroupRow, OrderableDomain};
use crate::store::lease::Term;
use crate::store::ledger;
use crate::store::order::{OrderRow, OrderState};
use crate::store::replacement::Replaces;
use crate::store::{self, StoreError, WriteTx, cell, credential, presence};
use crate::tasks::terms;
use issuer::Issuer;
use slots::Slots;

/// What replicas call this work among themselves.
pub(super) const WORK: &str = "issuance";
/// Orders that one transaction writes, each with a key and a signature (about 0.1 ms): others write in between.
const ORDERS_PLANNED_AT_ONCE: usize = 64;
const PREFLIGHTS_IN_FLIGHT_MAX: usize = 64;
/// Of them, of one tenant: how long one takes is the tenant's name servers' and origins' to say, and the others' must go on
/// meanwhile.
const PREFLIGHTS_OF_TENANT_MAX: usize = 48;
/// Names of one tenant that are looked at in one turn: as many as a certificate has by default.
const PREFLIGHT_BUNDLE: usize = 25;
/// Renewals whose names are looked at before at the same time.
const RENEWAL_LOOKS_MAX: usize = 4;
/// The keys that certificates are ordered for.
const ORDERED_KEY: KeyType = KeyType::EcdsaP256;
/// The loop looks at everything at least this often: wakes are hints.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// And at most this often, and for a quarter of the time at most.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(50);
/// What was asked and ended orders are kept for.
const KEEP_MS: i64 = 30 * DAY_MS;

/// What all of issuance shares.
#[derive(Debug)]
struct Issuance {
    parts: Parts,
    fleet: Fleet,
    lookup: Lookup,
    zone: Option<ChallengeZone>,
    writers: Arc<Writers>,
    /// Some order is over that may have left records.
    left: Notify,
    issuers: Vec<Issuer>,
    /// Renewals whose names are looked at at this moment.
    renewal_looks: Semaphore,
}

/// Issuance, set up: its addresses are bound.
#[derive(Debug)]
pub struct Issuing {
    /// UDP and TCP address of the challenge zone's responder, where one is configured.
    pub responder: Option<SocketAddr>,
    issuance: Arc<Issuance>,
}

/// Sets up what the configuration asks for.
///
/// # Errors
/// A wrong issuer, a taken responder address, a store that cannot be read.
pub async fn start(parts: Parts, fleet: Fleet) -> anyhow::Result<Issuing> {
    let mut responder_address = None;
    let zone = match (&parts.config.dns.responder, &parts.config.dns.challenge_zone) {
        (Some(address), Some(zone)) => {
            let zone = ChallengeZone::new(zone)?;
            let zone = if parts.store.is_shared() { zone.following() } else { zone };
            let responder = responder::serve(*address, zone.clone(), parts.shutdown.clone()).await?;
            tracing::info!(address = %responder.address, "the DNS responder answers");
            responder_address = Some(responder.address);
            Some(zone)
        }
        _ => None,
    };
    let issuance = Arc::new(Issuance {
        lookup: Lookup::new(&parts.config.dns)?,
        writers: Arc::new(Writers::new(&parts.config.dns)?),
        left: Notify::new(),
        renewal_looks: Semaphore::new(RENEWAL_LOOKS_MAX),
        issuers: parts.config.issuers.iter().map(Issuer::new).collect::<Result<_, _>>()?,
        parts,
        fleet,
        zone,
    });
    // With others, [`responders::follow`] does so.
    if !issuance.parts.store.is_shared() {
        challenge::load_zone(&issuance).await?;
    }
    fan_out::warn(&issuance).await?;
    Ok(Issuing { responder: responder_address, issuance })
}

impl Issuing {
    /// Issues and renews until shutdown, of replicas on one database one at a time. Orders under way are left where they are;
    /// the next start, or the next replica, resumes them.
    ///
    /// # Errors
    /// A wrong issuer, or a store that cannot be read.
    pub async fn run(self) -> anyhow::Result<()> {
        let parts = &self.issuance.parts;
        let turns = terms::hold(parts, WORK, |parts| issue(self.issuance.clone(), parts));
        if !parts.store.is_shared() {
            return turns.await;
        }
        let ended = tokio::select! {
            ended = turns => ended,
            never = responders::follow(&self.issuance) => match never {},
        };
        responders::leave(&self.issuance).await;
        ended
    }
}

/// Until shutdown, or until it is dropped.
async fn issue(issuance: Arc<Issuance>, parts: Parts) -> anyhow::Result<()> {
    let issuance = match parts.store.term() {
        Some(term) => Arc::new(issuance.within(term, &parts)?),
        None => issuance,
    };
    let mut work = Box::pin(Work::new(issuance.clone()).run());
    tokio::select! {
        () = &mut work => {}
        // They end at shutdown, as the work does; what they were asking is asked again.
        () = renewal_info::run(issuance.clone()) => work.await,
        () = removal::run(issuance.clone()) => work.await,
        () = rekey::run(issuance.clone()) => work.await,
        () = leavers::run(issuance) => work.await,
    }
    Ok(())
}

impl Issuance {
    /// The same for the work of a term: CAs are asked within it only. What an earlier term knew of them is forgotten, but no
    /// file is read again: whoever takes the work over must not fail by one that was altered since the start.
    fn within(&self, term: &Term, parts: &Parts) -> anyhow::Result<Self> {
        let issuers = self.issuers.iter().map(|issuer| issuer.within(term)).collect::<Result<_, _>>()?;
        let (fleet, lookup, zone) = (self.fleet.clone(), self.lookup.clone(), self.zone.clone());
        let (writers, left) = (self.writers.clone(), Notify::new());
        let renewal_looks = Semaphore::new(RENEWAL_LOOKS_MAX);
        Ok(Self { parts: parts.clone(), fleet, lookup, writers, left, zone, issuers, renewal_looks })
    }

    fn issuer(&self, name: &str) -> Option<&Issuer> {
        self.issuers.iter().find(|issuer| issuer.config.name == name)
    }
}

/// The loop's own state: what runs now.
struct Work {
    issuance: Arc<Issuance>,
    orders: JoinSet<()>,
    slots: Slots,
    preflights: JoinSet<DomainId>,
    looking_at: HashSet<DomainId>,
    /// As of the last look: whose turn it is.
    spent: HashMap<Option<TenantId>, u32>,
    look_took: Duration,
    pruned_at_ms: i64,
    watch: watch::Watch,
}

impl Work {
    fn new(issuance: Arc<Issuance>) -> Self {
        Self {
            issuance,
            orders: JoinSet::new(),
            slots: Slots::default(),
            preflights: JoinSet::new(),
            looking_at: HashSet::new(),
            spent: HashMap::new(),
            look_took: Duration::ZERO,
            pruned_at_ms: 0,
            watch: watch::Watch::default(),
        }
    }

    async fn run(mut self) {
        let shutdown = self.issuance.parts.shutdown.clone();
        let mut changes = self.issuance.parts.store.changes();
        let mut look_at = tokio::time::Instant::now();
        loop {
            let pause = LOOK_PAUSE_MIN.max(self.look_took * 3);
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep_until(look_at) => {
                    self.look().await;
                    look_at = tokio::time::Instant::now() + LOOK_INTERVAL.max(pause);
                    continue;
                }
                Ok(()) = changes.changed() => {}
                Some(ended) = self.orders.join_next_with_id() => {
                    self.slots.free(ended.map_or_else(|error| error.id(), |(task, ())| task));
                    self.start_orders().await;
                }
                Some(ended) = self.preflights.join_next() => {
                    if let Ok(domain) = ended {
                        self.looking_at.remove(&domain);
                    }
                }
            }
            look_at = look_at.min(tokio::time::Instant::now() + pause);
        }
    }

    async fn look(&mut self) {
        let start = clock::instant();
        if let Err(error) = self.reconcile().await {
            tracing::warn!(%error, "issuance could not look at what is to be done; it tries again");
        }
        self.start_orders().await;
        if let Err(error) = self.watch.look(&self.issuance).await {
            tracing::warn!(%error, "what is late could not be looked at");
        }
        self.look_took = start.elapsed();
    }

    async fn reconcile(&mut self) -> Result<(), StoreError> {
        let issuance = self.issuance.clone();
        if issuance.issuers.is_empty() {
            return Ok(());
        }
        let mut facts = read_facts(&issuance.parts).await?;
        for issuer in &facts.issuers.all {
            crate::metrics::issuer_away(&issuer.name, issuer.health.standing(facts.now_ms) != Standing::Well);
        }
        let (staged, shown, wanted) = crate::plan::backups::count(&facts);
        for (state, count) in [("staged", staged), ("shown", shown), ("wanted", wanted)] {
            crate::metrics::backup_certificates(state, count);
        }
        self.start_preflights(&facts);
        let changes = reconcile::group_changes(&facts, issuance.parts.config.names_per_certificate_max());
        if !changes.is_empty() {
            write_groups(&issuance, &facts, changes).await?;
            facts = read_facts(&issuance.parts).await?;
        }
        let leaving = reconcile::lineages_to_retire(&facts);
        if !leaving.is_empty() {
            let mut tx = issuance.parts.store.begin().await?;
            for lineage in leaving {
                credential::retire_lineage(&mut tx, lineage, facts.now_ms).await?;
            }
            tx.commit().await?;
        }
        self.spent.clone_from(&facts.spent);
        if issuance.move_orders(&facts, &self.slots).await? {
            facts = read_facts(&issuance.parts).await?;
        }
        let due = reconcile::orders_due(&facts);
        for due in due.chunks(ORDERS_PLANNED_AT_ONCE) {
            plan_orders(&issuance, due).await?;
            self.start_orders().await;
        }
        if issuance.arrange_backups(&facts, &self.slots).await? {
            // At the next look: what serves was planned by the facts as they are.
            return self.prune(facts.now_ms).await;
        }
        let standing_by = crate::plan::backups::orders_due(&facts);
        if !standing_by.is_empty() {
            plan_orders(&issuance, &standing_by).await?;
        }
        self.prune(facts.now_ms).await
    }

    async fn prune(&mut self, now_ms: i64) -> Result<(), StoreError> {
        if clock::is_within(HOUR_MS, self.pruned_at_ms, now_ms) {
            return Ok(());
        }
        self.pruned_at_ms = now_ms;
        let mut tx = self.issuance.parts.store.begin().await?;
        store::order::prune(&mut tx, now_ms - KEEP_MS).await?;
        ledger::prune(&mut tx, now_ms).await?;
        store::backup::prune(&mut tx, now_ms - KEEP_MS).await?;
        tx.commit().await
    }

    fn start_preflights(&mut self, facts: &Facts) {
        let due: HashSet<DomainId> = reconcile::preflights_due(facts).into_iter().collect();
        let mut by_tenant: BTreeMap<TenantId, Vec<&OrderableDomain>> = BTreeMap::new();
        for domain in facts.domains.iter().filter(|d| due.contains(&d.id) && !self.looking_at.contains(&d.id))
        {
            by_tenant.entry(domain.tenant).or_default().push(domain);
        }
        let room = PREFLIGHTS_IN_FLIGHT_MAX.saturating_sub(self.preflights.len());
        let mut looking: HashMap<TenantId, usize> = HashMap::new();
        for domain in facts.domains.iter().filter(|domain| self.looking_at.contains(&domain.id)) {
            *looking.entry(domain.tenant).or_default() += 1;
        }
        // A tenant's names in bundles, so that those of one certificate are ready at about the same time. A bundle counts
        // as one turn; a tenant that has one under way has had it.
        let bundles = by_tenant.iter().map(|(tenant, domains)| {
            let looking = looking.get(tenant).copied().unwrap_or(0);
            let most = PREFLIGHTS_OF_TENANT_MAX.saturating_sub(looking).min(domains.len());
            (looking.div_ceil(PREFLIGHT_BUNDLE), domains[..most].chunks(PREFLIGHT_BUNDLE).collect())
        });
        let turns: Vec<&[&OrderableDomain]> = reconcile::fair(bundles.collect());
        for &domain in turns.into_iter().flatten().take(room) {
            self.looking_at.insert(domain.id);
            let (issuance, domain) = (self.issuance.clone(), domain.clone());
            self.preflights.spawn(async move {
                if let Err(error) = preflight::run(&issuance, &domain).await {
                    tracing::warn!(%error, name = domain.name, "a pre-flight could not be noted");
                }
                domain.id
            });
        }
    }

    /// Runs what is open and due, as far as there are slots.
    async fn start_orders(&mut self) {
        if !self.slots.has_room() {
            return;
        }
        let now = self.issuance.parts.clock.now_ms();
        let due = async { store::order::due(&mut *self.issuance.parts.store.read().await?, now).await };
        let mut due = match due.await {
            Ok(due) => due,
            Err(error) => {
                tracing::warn!(%error, "orders that are due could not be read");
                return;
            }
        };
        due.retain(|row| {
            let issuer = self.issuance.issuer(&row.issuer);
            let held = issuer.is_some_and(|issuer| issuer.is_held(now));
            !held && !self.slots.runs(row.id)
        });
        // Backups have what the others leave.
        let (backups, serving): (Vec<_>, Vec<_>) = due.into_iter().partition(|row| row.backup);
        for due in [serving, backups] {
            self.start(due, now);
        }
        crate::metrics::orders_running(self.slots.count());
    }

    fn start(&mut self, due: Vec<OrderRow>, now: i64) {
        for row in self.slots.fill(due, &self.spent, now) {
            let (issuance, id) = (self.issuance.clone(), row.id);
            let task = self.orders.spawn(async move {
                if let Err(error) = order::run(&issuance, id).await {
                    tracing::warn!(%error, order = %id, "an order could not be carried on; it is taken up again");
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
            });
            self.slots.take(task.id(), &row);
        }
    }
}

/// All that issuance plans by, as it stands.
///
/// # Errors
/// The store's.
pub(crate) async fn read_facts(parts: &Parts) -> Result<Facts, StoreError> {
    let now_ms = parts.clock.now_ms();
    let mut read = parts.store.read().await?;
    let mut health = store::issuer::all(&mut read).await?;
    let issuers = parts.config.issuers.iter().map(|issuer| IssuerFacts {
        name: issuer.name.clone(),
        by_default: issuer.by_default,
        health: health.remove(&issuer.name).unwrap_or_default(),
    });
    let mut lineages = group::lineages(&mut read).await?;
    let mut backups = store::backup::groups(&mut read).await?;
    let standing_by = backups.iter_mut().flat_map(|backup| &mut backup.lineages);
    let live = lineages.iter_mut().filter_map(|lineage| lineage.live.as_mut());
    let live = live.chain(standing_by.filter_map(|lineage| lineage.live.as_mut()));
    rekey::hasten(live, &store::rekey::wanted(&mut read).await?);
    let retry_at: HashMap<LineageId, i64> = store::order::retry_times(&mut read).await?.into_iter().collect();
    Ok(Facts {
        now_ms,
        domains: group::orderable_domains(&mut read).await?,
        names: group::name_states(&mut read).await?,
        groups: group::live_groups(&mut read).await?,
        lineages,
        open_orders: store::order::open_summaries(&mut read).await?,
        retry_at,
        replaced: store::replacement::replaced_credentials(&mut read).await?.into_iter().collect(),
        spent: store::order::requests_by_tenant(&mut read, now_ms - 3 * HOUR_MS).await?.into_iter().collect(),
        issuers: Issuers { all: issuers.collect(), of_tenant: store::issuer::preferences(&mut read).await? },
        authorized_until: store::fan_out::windows(&mut read, now_ms).await?,
        cells_max: cells_max(&parts.config.issuers),
        retired: Retired {
            names: presence::retired(&mut read).await?,
            leave_within_ms: parts.config.leavers.rules().leave_within_ms,
        },
        backups: Backups {
            by_default: parts.config.backup_certificates.by_default,
            groups: backups,
            left_out: store::backup::failures(&mut read, now_ms).await?,
        },
    })
}

fn cells_max(issuers: &[IssuerConfig]) -> HashMap<String, usize> {
    let any = [cells::ANY_NAME.to_owned()];
    let most = |issuer: &IssuerConfig| (issuer.name.clone(), cells::borne(&issuer.limits(), &any).cells);
    issuers.iter().map(most).collect()
}

/// Carries out what the plan says of groups, and gives each its lineages.
async fn write_groups(
    issuance: &Issuance,
    facts: &Facts,
    changes: Vec<GroupChange>,
) -> Result<(), StoreError> {
    let now = facts.now_ms;
    let mut tx = issuance.parts.store.begin().await?;
    for change in changes {
        match change {
            GroupChange::Retire { group } => group::retire(&mut tx, group, now).await?,
            GroupChange::Names { group, names } => group::put_names(&mut tx, group, &names).await?,
            GroupChange::New { tenant, cells, policy, alone, names } => {
                let row = GroupRow { id: GroupId::generate(), tenant, cells, alone, names };
                group::insert(&mut tx, &row, &store::to_json(&policy)?, now).await?;
                for cell in &row.cells {
                    group::ensure_lineage(&mut tx, row.id, cell, now).await?;
                }
            }
        }
    }
    tx.commit().await
}

/// Makes keys and requests, but where edges do, and writes the orders down; nothing is sent yet.
async fn plan_orders(issuance: &Issuance, due: &[DueOrder]) -> Result<(), StoreError> {
    let now = issuance.parts.clock.now_ms();
    let mut tx = issuance.parts.store.begin().await?;
    for due in due {
        let Some(issuer) = issuance.issuer(&due.issuer) else { continue };
        match plan_order(&mut tx, issuance, issuer, due, now).await {
            Ok(row) => store::order::insert(&mut tx, &row, now).await?,
            Err(error) => {
                tracing::error!(%error, names = ?due.names.keys(), "an order could not be prepared")
            }
        }
    }
    tx.commit().await?;
    fail_point::reach("order.planned");
    Ok(())
}

async fn plan_order(
    tx: &mut WriteTx,
    issuance: &Issuance,
    issuer: &Issuer,
    due: &DueOrder,
    now: i64,
) -> anyhow::Result<OrderRow> {
    let cell_key = cell::current_key(tx, &issuance.parts.sealer, &due.cell, now).await?;
    let credential = CredentialId::generate();
    let key_tenant = due.tenant.map_or_else(|| "operator".to_owned(), |tenant| tenant.to_string());
    let made = match store::edge_key::custody(tx, &due.cell).await? {
        Custody::Edge => None,
        Custody::Cell | Custody::Uploaded => Some(make_key(due, &cell_key, credential, &key_tenant)?),
    };
    let key_at_edge = made.is_none();
    let MadeKey { sealed_key, spki_sha256, csr } = made.unwrap_or_default();
    let (replaces, account) = replaces(tx, issuer, due).await?.unzip();
    Ok(OrderRow {
        id: OrderId::generate(),
        lineage: due.lineage,
        tenant: due.tenant,
        issuer: issuer.config.name.clone(),
        account: account.flatten(),
        names: due.names.keys().cloned().collect(),
        domains: due.names.values().copied().collect(),
        name_set: due.name_set.clone(),
        state: OrderState::Planned,
        credential,
        key_at_edge,
        sealed_key,
        cell_key_epoch: cell_key.epoch(),
        spki_sha256,
        csr,
        key_tenant,
        renewal: due.renewal,
        backup: due.backup,
        replaces,
        replaces_accepted: false,
        deadline: due.deadline,
        window_until: due.window_until,
        attempts: 0,
        next_at: now,
        error: None,
    })
}

/// A key for an order, sealed, with what is known of it.
#[derive(Default)]
struct MadeKey {
    sealed_key: Vec<u8>,
    spki_sha256: Vec<u8>,
    csr: Vec<u8>,
}

fn make_key(
    due: &DueOrder,
    cell_key: &CellKey,
    credential: CredentialId,
    key_tenant: &str,
) -> anyhow::Result<MadeKey> {
    let key = PrivateKey::generate(ORDERED_KEY)?;
    let names: Vec<NamePattern> =
        due.names.keys().map(|name| NamePattern::parse(name)).collect::<Result<_, _>>()?;
    let spki_sha256 = key.spki_sha256();
    let (cell, epoch) = (&due.cell, cell_key.epoch());
    let context = SealContext { cell, epoch, key_tenant, credential, spki_sha256 };
    Ok(MadeKey {
        sealed_key: cell_key.seal(&key, &context)?.as_bytes().to_vec(),
        spki_sha256: spki_sha256.to_vec(),
        csr: key.csr(&names)?,
    })
}

/// The certificate that an order replaces, as its CA calls it, and the account that ordered it, the issuer's own aside: only
/// that one may say so.
async fn replaces(
    tx: &mut WriteTx,
    issuer: &Issuer,
    due: &DueOrder,
) -> Result<Option<(Replaces, Option<AccountId>)>, StoreError> {
    let Some(credential) = due.replaces else { return Ok(None) };
    let Some(origin) = store::renewal_info::origin_of(tx, credential).await? else { return Ok(None) };
    let Some(url) = origin.account.filter(|_| origin.issuer == issuer.config.name) else { return Ok(None) };
    let account = store::account::of_url(tx, &issuer.config.name, &url).await?;
    let Some(account) = account.filter(|row| row.directory == issuer.config.directory) else {
        return Ok(None);
    };
    let adopted = (account.origin == AccountOrigin::Adopted).then_some(account.id);
    let id = CertificateId::of_chain(&origin.chain_pem);
    Ok(id.map(|id| (Replaces { credential, certificate: id.as_str().to_owned() }, adopted)))
}
