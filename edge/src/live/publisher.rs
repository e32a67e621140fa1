//! The one writer of the published tables.
//!
//! Within a batch the order is: tenants, credentials, domains, fleet; then removals of domains, credentials and tenants.
//! So a name never points to what is not there yet, and what is referenced is never removed (P4). Versions of a resource
//! only rise within an epoch.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use portico_api::distribution::{Nack, Resource, ResourceKind, Tombstone};
use portico_cert_store::{
    CellKeys, Credential, Custody, DomainId, Generation, KeyCache, LineageId, NamePattern,
    NameTablePublisher, SniEntryInput, SniPublisher, TenantId, UnixTime,
};

use super::admit::{Admitted, Batch, BatchKind, Rejected, check_envelope};
use super::books::{DomainRecord, HashMap, Held, IdentityRecord, TenantRecord, kind_of};
use super::host::{Host, Suspension, TenantState};
use super::stage::{DomainItem, Item, Staged};
use super::{DefaultCertificate, Fault, FleetPolicy, Live, UsedHosts};
use crate::challenge::ChallengePublisher;

/// The owner of keys that certificates of several tenants use.
pub(super) const OPERATOR: &str = "operator";

/// Writes into the tables of one [`Live`].
pub struct LivePublisher {
    pub(super) live: Arc<Live>,
    hosts: NameTablePublisher<Host>,
    sni: SniPublisher,
    challenges: ChallengePublisher,
    applied: Generation,
    pub(super) held: Held,
}

/// What a batch has changed.
#[derive(Debug)]
pub struct Published {
    pub generation: Generation,
    /// Resources that were refused alone; their previous versions stay.
    pub nacks: Vec<Nack>,
    /// Resources that are now held at the version of the batch.
    pub accepted: Vec<Resource>,
    /// Tombstones of the batch that took effect.
    pub removed: Vec<Tombstone>,
    /// After a snapshot: held, but not with the snapshot's bytes (kind, id). What is on disk has to be kept for them.
    pub carried: Vec<(u32, String)>,
}

/// One run of `publish`.
pub(super) struct Round {
    /// A higher epoch begins: versions of the old one say nothing.
    epoch_begins: bool,
    snapshot: bool,
    now: UnixTime,
    /// Names whose entries have to be looked at again; true where more than certificates has changed.
    touched: HashMap<NamePattern, bool>,
    /// What certificates hold: reading a leaf again costs some microseconds.
    names_of: HashMap<LineageId, Box<[NamePattern]>>,
    /// Into empty tables everything goes at once, in a fraction of the time of a change for each name.
    bulk: Option<Bulk>,
    out: Published,
}

/// What is to be published together.
#[derive(Default)]
struct Bulk {
    hosts: Vec<(NamePattern, Arc<Host>)>,
    /// By the domain that owns the name; its lineages are in the books.
    names: Vec<(NamePattern, DomainId)>,
}

impl LivePublisher {
    pub(super) fn new(expected_names: usize, key_cache_bytes: u64, cell_keys: CellKeys) -> (Arc<Live>, Self) {
        let sni = SniPublisher::new(expected_names);
        let hosts = NameTablePublisher::new(expected_names);
        let challenges = ChallengePublisher::new();
        let live = Arc::new(Live {
            sni: sni.reader(),
            keys: KeyCache::new(key_cache_bytes, cell_keys),
            hosts: hosts.reader(),
            challenges: challenges.reader(),
            fleet: ArcSwap::from_pointee(FleetPolicy::default()),
            applied: ArcSwap::from_pointee(Generation::default()),
            used: UsedHosts::default(),
        });
        let publisher = Self {
            live: Arc::clone(&live),
            hosts,
            sni,
            challenges,
            applied: Generation::default(),
            held: Held::default(),
        };
        (live, publisher)
    }

    /// The generation whose batch was published last.
    pub fn applied(&self) -> Generation {
        self.applied
    }

    /// Names that some domain brings, served or not.
    pub fn names(&self) -> usize {
        self.held.claims.len()
    }

    /// Credentials held.
    pub fn credentials(&self) -> usize {
        self.held.lineages.values().filter(|record| record.credential.is_some()).count()
    }

    /// The public keys (SHA-256) of credentials held whose keys are this edge's own.
    pub fn own_keys_in_use(&self) -> HashSet<[u8; 32]> {
        let held = self.held.lineages.values().filter_map(|record| record.credential.as_ref());
        held.filter(|held| held.custody() == Custody::Edge).map(|held| held.spki_sha256()).collect()
    }

    pub fn challenges(&mut self) -> &mut ChallengePublisher {
        &mut self.challenges
    }

    /// Looks at the envelope of a batch and marks what is held already.
    ///
    /// # Errors
    /// [`Rejected`] if the batch has to be refused whole; nothing was changed.
    pub fn admit(&self, batch: Batch) -> Result<Admitted, Rejected> {
        if let Err(fault) = check_envelope(&batch, self.applied) {
            return Err(Rejected { generation: batch.generation, fault });
        }
        let epoch_begins = batch.generation.epoch > self.applied.epoch;
        let unchanged = batch
            .resources
            .iter()
            .map(|resource| !epoch_begins && self.held.version_of(resource) == Some(resource.version))
            .collect();
        Ok(Admitted { batch, unchanged, idle: self.held.domains.is_empty() })
    }

    /// Makes a staged batch visible.
    ///
    /// # Errors
    /// [`Rejected`] if it removes too many names without the sign-off; nothing was changed.
    pub fn publish(&mut self, staged: Staged) -> Result<Published, Rejected> {
        let generation = staged.batch.generation;
        self.held.check_removals(&staged).map_err(|fault| Rejected { generation, fault })?;
        let mut round = Round::new(generation, staged.now);
        round.epoch_begins = generation.epoch > self.applied.epoch;
        round.snapshot = staged.batch.kind == BatchKind::Snapshot;
        self.begin_bulk(&mut round);
        let absent = if round.snapshot { self.held.absent_from(&staged.batch) } else { Vec::new() };
        let tombstones = staged.batch.tombstones;
        let leaving = tombstones.iter().chain(&absent);
        let references = pending_references(&staged.items, leaving);
        self.put_all(&mut round, staged.batch.resources, staged.items, &references);
        self.end_bulk(&mut round);
        // Before a lineage goes that was the default's until now.
        self.publish_default();
        self.remove_all(&mut round, tombstones);
        self.remove_all(&mut round, absent);
        self.publish_default();
        self.applied = generation;
        self.live.applied.store(Arc::new(generation));
        Ok(round.out)
    }

    /// Where nothing is published yet, nothing has to be changed in place.
    pub(super) fn begin_bulk(&self, round: &mut Round) {
        if self.held.domains.is_empty() {
            round.bulk = Some(Bulk::default());
        }
    }

    /// Publishes what has been collected, with every credential in the books.
    pub(super) fn end_bulk(&mut self, round: &mut Round) {
        let Some(Bulk { hosts, names }) = round.bulk.take() else { return };
        // The hosts first: a handshake that finds the name finds its routes too.
        self.hosts.replace_all(hosts);
        let domains = &self.held.domains;
        let entries = names.into_iter().filter_map(|(name, owner)| {
            let record = domains.get(&owner)?;
            let (tenant, policy) = (record.host.tenant.id, record.host.policy);
            Some((name, SniEntryInput { tenant, domain: owner, policy, lineages: &record.published }))
        });
        let credentials = self.held.lineages.values().filter_map(|record| record.credential.clone());
        if let Err(error) = self.sni.replace_all(credentials, entries) {
            // Staging allows no more lineages than the index does.
            tracing::error!(%error, "nothing was published");
        }
    }

    /// Stops or resumes service at once, ahead of the resource that carries the same change.
    ///
    /// # Errors
    /// A [`Fault`] if the tenant or domain is not here.
    pub fn suspend(
        &mut self,
        tenant: TenantId,
        domain: Option<DomainId>,
        suspension: Option<Suspension>,
        version: u64,
    ) -> Result<(), Fault> {
        let unknown =
            |what: &dyn fmt::Display| Fault::new("UnknownSubject", format!("{what} is not on this edge"));
        let Some(tenant_record) = self.held.tenants.get_mut(&tenant) else { return Err(unknown(&tenant)) };
        let Some(domain) = domain else {
            if version >= tenant_record.suspension_version {
                tenant_record.suspension_version = version;
                tenant_record.state.set_suspension(suspension);
            }
            return Ok(());
        };
        match self.held.domains.get_mut(&domain) {
            Some(record) if record.host.tenant.id == tenant => {
                if version >= record.suspension_version {
                    record.suspension_version = version;
                    tenant_record.state.suspend_domain(&record.host.state, suspension);
                }
                Ok(())
            }
            _ => Err(unknown(&domain)),
        }
    }

    fn put_all(
        &mut self,
        round: &mut Round,
        resources: Vec<Resource>,
        items: Vec<Result<Item, Fault>>,
        references: &HashMap<DomainId, Box<[LineageId]>>,
    ) {
        let mut by_rank: [Vec<(Resource, Item)>; 4] = Default::default();
        for (resource, item) in resources.into_iter().zip(items) {
            match item {
                Ok(item) => by_rank[item.rank()].push((resource, item)),
                Err(fault) => round.nack(&resource, fault),
            }
        }
        for (resource, item) in by_rank.into_iter().flatten() {
            let put = if matches!(item, Item::Unchanged) {
                Ok(())
            } else {
                self.held
                    .check_version(&resource, round.epoch_begins)
                    .and_then(|()| self.put(round, &resource, item, references))
            };
            match put {
                Ok(()) => round.out.accepted.push(resource),
                Err(fault) => round.nack(&resource, fault),
            }
        }
        self.settle_names(round);
    }

    pub(super) fn put(
        &mut self,
        round: &mut Round,
        resource: &Resource,
        item: Item,
        references: &HashMap<DomainId, Box<[LineageId]>>,
    ) -> Result<(), Fault> {
        match item {
            Item::Tenant { id, egress, suspension, limits, error_pages } => {
                let record = self.held.tenants.entry(id).or_insert_with(|| TenantRecord {
                    version: 0,
                    suspension_version: 0,
                    state: Arc::new(TenantState::new(id, Vec::new())),
                    domains: 0,
                    identities: Vec::new(),
                });
                record.version = resource.version;
                record.state.set_egress(egress);
                record.state.set_limits(limits);
                record.state.set_error_pages(error_pages);
                if round.epoch_begins || resource.version >= record.suspension_version {
                    record.suspension_version = resource.version;
                    record.state.set_suspension(suspension);
                }
                Ok(())
            }
            Item::Credential { lineage, credential, names } => {
                self.held.check_names_kept(lineage, &names, references)?;
                self.put_credential(round, resource.version, lineage, *credential)?;
                round.names_of.insert(lineage, names);
                Ok(())
            }
            Item::Domain(item) => self.put_domain(round, resource.version, *item),
            Item::OriginIdentity { tenant, identity } => {
                let lineage = resource.id.parse().map_err(bad_id)?;
                let record = IdentityRecord { version: resource.version, tenant, identity };
                self.held.put_identity(lineage, record)
            }
            Item::Fleet { policy, default } => {
                self.held.fleet_version = Some(resource.version);
                self.set_fleet(policy, default);
                Ok(())
            }
            Item::Unknown => {
                self.held.unknown.insert((resource.kind, resource.id.clone()), resource.version);
                Ok(())
            }
            Item::Unchanged => Ok(()),
        }
    }

    pub(super) fn put_credential(
        &mut self,
        round: &mut Round,
        version: u64,
        lineage: LineageId,
        credential: Credential,
    ) -> Result<(), Fault> {
        let replaced = self.held.lineages.get(&lineage).and_then(|record| record.credential.clone());
        let better = replaced.as_ref().is_some_and(|replaced| replaced.is_valid_at(round.now));
        if better && !credential.is_valid_at(round.now) {
            let (from, to) = (credential.not_before().as_secs(), credential.not_after().as_secs());
            let text = format!(
                "valid from {from} to {to} (unix seconds), not now, and it would replace one that is"
            );
            return Err(Fault::new("BadDates", text));
        }
        let credential = Arc::new(credential);
        if round.bulk.is_none() {
            self.sni.publish_shared(Arc::clone(&credential));
        }
        let record = self.held.lineages.entry(lineage).or_default();
        record.version = version;
        record.credential = Some(credential);
        for referrer in &record.referrers {
            if let Some(domain) = self.held.domains.get(referrer) {
                round.touched.entry(domain.host.name.clone()).or_insert(false);
            }
        }
        if let Some(replaced) = replaced {
            self.live.keys.evict(replaced.id());
        }
        Ok(())
    }

    pub(super) fn put_domain(
        &mut self,
        round: &mut Round,
        version: u64,
        item: DomainItem,
    ) -> Result<(), Fault> {
        let Some(tenant) = self.held.tenants.get_mut(&item.tenant) else {
            return Err(Fault::new("UnknownTenant", format!("{} is not on this edge", item.tenant)));
        };
        let previous = self.held.domains.get(&item.id);
        if let Some(previous) = previous {
            if previous.host.tenant.id != item.tenant || previous.host.name != item.name {
                let text = "a domain's tenant and name never change; a new domain has a new id";
                return Err(Fault::new("DomainChanged", text));
            }
        } else {
            tenant.domains += 1;
        }
        let domain = previous.map_or_else(Default::default, |record| Arc::clone(&record.host.state));
        let mut suspension_version = previous.map_or(0, |record| record.suspension_version);
        if round.epoch_begins || version >= suspension_version {
            suspension_version = version;
            // Said aloud only where there is something to say: a snapshot of a million domains wakes nobody.
            if item.suspension.is_some() || domain.suspension.load().is_some() {
                tenant.state.suspend_domain(&domain, item.suspension.clone());
            }
        }
        let state = Arc::clone(&tenant.state);
        let (id, name) = (item.id, item.name.clone());
        let (host, lineages) = item.into_host(&state, domain);
        let previous = self.held.domains.remove(&id);
        let (old_lineages, published) =
            previous.map(|record| (record.lineages, record.published)).unwrap_or_default();
        self.held.refer(id, &old_lineages, &lineages);
        let record = DomainRecord { version, suspension_version, host: Arc::new(host), lineages, published };
        self.held.domains.insert(id, record);
        // Nearly always one.
        let claims = self.held.claims.entry(name.clone()).or_insert_with(|| Vec::with_capacity(1));
        if !claims.contains(&id) {
            claims.push(id);
        }
        round.touched.insert(name, true);
        Ok(())
    }

    /// Brings the entries of all names that were touched in line with the books.
    pub(super) fn settle_names(&mut self, round: &mut Round) {
        for (name, host_changed) in std::mem::take(&mut round.touched) {
            let Some(owner) = self.held.owner_of(&name) else {
                self.sni.remove_name(&name);
                self.hosts.remove(&name);
                continue;
            };
            if host_changed {
                self.held.forget_published(&name, owner);
            }
            self.settle_name(round, &name, owner, host_changed);
        }
    }

    fn settle_name(&mut self, round: &mut Round, name: &NamePattern, owner: DomainId, host_changed: bool) {
        let usable = self.usable_lineages(round, owner);
        let Some(record) = self.held.domains.get_mut(&owner) else { return };
        // A renewal is one swap in its slot; the entries of its names stay as they are.
        if !host_changed && usable == record.published {
            return;
        }
        let host = &record.host;
        if let Some(bulk) = &mut round.bulk {
            bulk.hosts.push((name.clone(), Arc::clone(host)));
            if !usable.is_empty() {
                bulk.names.push((name.clone(), owner));
            }
            record.published = usable;
            return;
        }
        let entry =
            SniEntryInput { tenant: host.tenant.id, domain: owner, policy: host.policy, lineages: &usable };
        // The host first: a handshake that finds the name finds its routes too.
        self.hosts.insert(name.clone(), Arc::clone(host));
        if usable.is_empty() {
            self.sni.remove_name(name);
        } else if let Err(error) = self.sni.publish_name(name.clone(), &entry) {
            // Staging allows no more lineages than the index does.
            tracing::error!(%name, %error, "a name keeps its previous certificates");
            return;
        }
        record.published = usable;
    }

    /// The lineages of a domain that are here, hold its name and whose key is its tenant's or the operator's.
    fn usable_lineages(&self, round: &mut Round, domain: DomainId) -> Vec<LineageId> {
        let Some(record) = self.held.domains.get(&domain) else { return Vec::new() };
        // Without a proof of control nothing but challenges is answered for the name.
        let lineages = if record.host.served { &*record.lineages } else { &[] };
        let tenant = record.host.tenant.id;
        let mut usable = Vec::with_capacity(lineages.len());
        for lineage in lineages {
            let held = self.held.lineages.get(lineage).and_then(|record| record.credential.as_ref());
            let Some(credential) = held else { continue };
            let own = credential.key_tenant() == OPERATOR || credential.key_tenant() == tenant.to_string();
            let names = round.names_of.entry(*lineage).or_insert_with(|| credential.facts().names.into());
            if own && names.iter().any(|held| held.covers(&record.host.name)) {
                usable.push(*lineage);
            }
        }
        usable
    }

    /// The default is chosen here and shown by [`Self::publish_default`].
    pub(super) fn set_fleet(&mut self, policy: FleetPolicy, default: Option<DefaultCertificate>) {
        self.held.default = default;
        self.live.fleet.store(Arc::new(policy));
    }

    /// Shows what the choice stands for by now.
    pub(super) fn publish_default(&mut self) {
        let lineage = self.held.default.and_then(|default| match default {
            DefaultCertificate::Lineage(lineage) => Some(lineage),
            DefaultCertificate::Domain(domain) => self.held.domains.get(&domain)?.published.first().copied(),
        });
        self.sni.set_default(lineage);
    }

    /// Removes in the order domains, credentials, tenants, whatever the order of the tombstones.
    fn remove_all(&mut self, round: &mut Round, tombstones: Vec<Tombstone>) {
        let mut by_rank: [Vec<Tombstone>; 3] = Default::default();
        for tombstone in tombstones {
            let rank = match kind_of(tombstone.kind) {
                Some(ResourceKind::Domain) => 0,
                Some(ResourceKind::Tenant) => 2,
                Some(
                    ResourceKind::Credential
                    | ResourceKind::OriginIdentity
                    | ResourceKind::Fleet
                    | ResourceKind::Unspecified,
                )
                | None => 1,
            };
            by_rank[rank].push(tombstone);
        }
        for tombstones in by_rank {
            for tombstone in tombstones {
                match self.remove(round, &tombstone) {
                    Ok(()) => round.out.removed.push(tombstone),
                    Err(fault) => round.keep(tombstone, fault),
                }
            }
            self.settle_names(round);
        }
    }

    fn remove(&mut self, round: &mut Round, tombstone: &Tombstone) -> Result<(), Fault> {
        match kind_of(tombstone.kind) {
            Some(ResourceKind::Domain) => {
                self.remove_domain(round, tombstone.id.parse().map_err(bad_id)?);
                Ok(())
            }
            Some(ResourceKind::Credential) => self.remove_lineage(tombstone.id.parse().map_err(bad_id)?),
            Some(ResourceKind::OriginIdentity) => {
                self.held.remove_identity(tombstone.id.parse().map_err(bad_id)?);
                Ok(())
            }
            Some(ResourceKind::Tenant) => {
                let id: TenantId = tombstone.id.parse().map_err(bad_id)?;
                match self.held.tenants.get(&id).map_or(0, |record| record.domains) {
                    0 => {
                        let gone = self.held.tenants.remove(&id).map(|record| record.identities);
                        for identity in gone.into_iter().flatten() {
                            self.held.identities.remove(&identity);
                        }
                        Ok(())
                    }
                    domains => {
                        Err(Fault::new("StillReferenced", format!("the tenant has {domains} domains here")))
                    }
                }
            }
            Some(ResourceKind::Fleet) => {
                Err(Fault::new("NotRemovable", "the fleet's policy is replaced, never removed"))
            }
            Some(ResourceKind::Unspecified) | None => {
                self.held.unknown.remove(&(tombstone.kind, tombstone.id.clone()));
                Ok(())
            }
        }
    }

    pub(super) fn remove_domain(&mut self, round: &mut Round, id: DomainId) {
        let Some(record) = self.held.domains.remove(&id) else { return };
        self.held.refer(id, &record.lineages, &[]);
        if let Some(tenant) = self.held.tenants.get_mut(&record.host.tenant.id) {
            tenant.domains -= 1;
        }
        let name = record.host.name.clone();
        if let Some(claimants) = self.held.claims.get_mut(&name) {
            claimants.retain(|claimant| *claimant != id);
            if claimants.is_empty() {
                self.held.claims.remove(&name);
            }
        }
        round.touched.insert(name, true);
    }

    pub(super) fn remove_lineage(&mut self, id: LineageId) -> Result<(), Fault> {
        let Some(record) = self.held.lineages.get(&id) else { return Ok(()) };
        if !record.referrers.is_empty() && record.credential.is_some() {
            let text = format!("{} domains point to the lineage", record.referrers.len());
            return Err(Fault::new("StillReferenced", text));
        }
        if self.held.default == Some(DefaultCertificate::Lineage(id)) {
            return Err(Fault::new("StillReferenced", "it is the default certificate"));
        }
        if let Some(record) = self.held.lineages.remove(&id) {
            self.sni.remove_lineage(id);
            if let Some(credential) = record.credential {
                self.live.keys.evict(credential.id());
            }
        }
        Ok(())
    }
}

impl Round {
    pub(super) fn new(generation: Generation, now: UnixTime) -> Self {
        Self {
            epoch_begins: false,
            snapshot: false,
            now,
            touched: HashMap::default(),
            names_of: HashMap::default(),
            bulk: None,
            out: Published {
                generation,
                nacks: Vec::new(),
                accepted: Vec::new(),
                removed: Vec::new(),
                carried: Vec::new(),
            },
        }
    }

    /// Saves reading the leaf again.
    pub(super) fn know_names(&mut self, lineage: LineageId, names: Box<[NamePattern]>) {
        self.names_of.insert(lineage, names);
    }

    /// Refuses one resource. In a snapshot its previous version, if any, stays and has to stay on disk.
    fn nack(&mut self, resource: &Resource, fault: Fault) {
        if self.snapshot {
            self.out.carried.push((resource.kind, resource.id.clone()));
        }
        self.out.nacks.push(Nack {
            kind: resource.kind,
            id: resource.id.clone(),
            version: resource.version,
            code: fault.code.to_owned(),
            text: fault.text,
        });
    }

    /// Refuses one removal.
    fn keep(&mut self, tombstone: Tombstone, fault: Fault) {
        let Tombstone { kind, id } = tombstone;
        if self.snapshot {
            self.out.carried.push((kind, id.clone()));
        }
        self.out.nacks.push(Nack { kind, id, version: 0, code: fault.code.to_owned(), text: fault.text });
    }
}

fn bad_id(error: portico_cert_store::IdError) -> Fault {
    Fault::new("BadId", error.to_string())
}

/// What domains point to when the batch is through; those that leave with it point to nothing.
fn pending_references<'a>(
    items: &[Result<Item, Fault>],
    leaving: impl Iterator<Item = &'a Tombstone>,
) -> HashMap<DomainId, Box<[LineageId]>> {
    let staying = items.iter().filter_map(|item| match item {
        Ok(Item::Domain(domain)) => Some((domain.id, domain.lineages.clone())),
        _ => None,
    });
    let leaving = leaving.filter(|tombstone| kind_of(tombstone.kind) == Some(ResourceKind::Domain));
    let leaving = leaving.filter_map(|tombstone| Some((tombstone.id.parse().ok()?, Box::default())));
    leaving.chain(staying).collect()
}

impl fmt::Debug for LivePublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LivePublisher")
            .field("applied", &self.applied)
            .field("names", &self.names())
            .finish_non_exhaustive()
    }
}
