//! The writer's own books: what is held, at which version, and who refers to whom. Only [`super::LivePublisher`] has them;
//! workers never see them.
//!
//! Sketch at a million domains: about 250 bytes each in the three maps, beside the host itself.

use std::sync::Arc;

use foldhash::fast::RandomState;

use portico_api::distribution::{
    REMOVAL_ALWAYS_ALLOWED, REMOVAL_PERCENT_MAX, Resource, ResourceKind, Tombstone,
};
use portico_cert_store::{Credential, DomainId, LineageId, NamePattern, TenantId};

use super::admit::{Batch, BatchKind};
use super::host::{Host, TenantState};
use super::origin_identity::OriginIdentity;
use super::stage::{Item, Staged};
use super::{DefaultCertificate, Fault};

/// Seeded per process, and a third of the default hasher's time: a start puts every name into several of these.
pub(super) type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;
pub(super) type HashSet<T> = std::collections::HashSet<T, RandomState>;

#[derive(Default)]
pub(super) struct Held {
    pub(super) tenants: HashMap<TenantId, TenantRecord>,
    pub(super) domains: HashMap<DomainId, DomainRecord>,
    /// Several tenants may claim a name, one of them proved.
    pub(super) claims: HashMap<NamePattern, Vec<DomainId>>,
    pub(super) lineages: HashMap<LineageId, LineageRecord>,
    /// Kinds that this edge does not know.
    pub(super) unknown: HashMap<(u32, String), u64>,
    /// By which the tenants' origins know us.
    pub(super) identities: HashMap<LineageId, IdentityRecord>,
    pub(super) fleet_version: Option<u64>,
    pub(super) default: Option<DefaultCertificate>,
}

pub(super) struct TenantRecord {
    pub(super) version: u64,
    pub(super) suspension_version: u64,
    pub(super) state: Arc<TenantState>,
    pub(super) domains: usize,
    /// Nearly always one; two while one takes the other's place.
    pub(super) identities: Vec<LineageId>,
}

pub(super) struct IdentityRecord {
    pub(super) version: u64,
    pub(super) tenant: TenantId,
    pub(super) identity: Arc<OriginIdentity>,
}

pub(super) struct DomainRecord {
    pub(super) version: u64,
    pub(super) suspension_version: u64,
    pub(super) host: Arc<Host>,
    pub(super) lineages: Box<[LineageId]>,
    /// What the SNI index has for this domain's name, while the name is this domain's.
    pub(super) published: Vec<LineageId>,
}

/// A lineage that is here, or that a domain refers to before it is.
#[derive(Default)]
pub(super) struct LineageRecord {
    pub(super) version: u64,
    pub(super) credential: Option<Arc<Credential>>,
    pub(super) referrers: Vec<DomainId>,
}

impl Held {
    /// The version at which a resource is held.
    pub(super) fn version_of(&self, resource: &Resource) -> Option<u64> {
        match kind_of(resource.kind) {
            Some(ResourceKind::Tenant) => {
                self.tenants.get(&resource.id.parse().ok()?).map(|held| held.version)
            }
            Some(ResourceKind::Domain) => {
                self.domains.get(&resource.id.parse().ok()?).map(|held| held.version)
            }
            Some(ResourceKind::Credential) => {
                let held = self.lineages.get(&resource.id.parse().ok()?)?;
                held.credential.as_ref().map(|_| held.version)
            }
            Some(ResourceKind::OriginIdentity) => {
                self.identities.get(&resource.id.parse().ok()?).map(|held| held.version)
            }
            Some(ResourceKind::Fleet) => self.fleet_version,
            Some(ResourceKind::Unspecified) | None => {
                self.unknown.get(&(resource.kind, resource.id.clone())).copied()
            }
        }
    }

    /// Versions only rise within an epoch.
    pub(super) fn check_version(&self, resource: &Resource, epoch_begins: bool) -> Result<(), Fault> {
        match self.version_of(resource) {
            Some(held) if !epoch_begins && resource.version <= held => {
                let text = format!("version {} is not above the held one, {held}", resource.version);
                Err(Fault::new("VersionNotAbove", text))
            }
            _ => Ok(()),
        }
    }

    /// More than 5 % of all names (and more than 32) removed at once is taken only with the sign-off.
    pub(super) fn check_removals(&self, staged: &Staged) -> Result<(), Fault> {
        let batch = &staged.batch;
        let leaving = self.names_leaving(staged);
        let (removed, held) = (leaving as u64, self.claims.len() as u64);
        let too_many = removed > REMOVAL_ALWAYS_ALLOWED && removed * 100 > held * REMOVAL_PERCENT_MAX;
        if too_many && !batch.removals_signed_off {
            let text =
                format!("it removes {removed} of {held} names; more than 5 % needs the operator's sign-off");
            return Err(Fault::new("RemovalsNotSignedOff", text));
        }
        Ok(())
    }

    fn names_leaving(&self, staged: &Staged) -> usize {
        let arriving: HashSet<&NamePattern> = staged
            .items
            .iter()
            .filter_map(|item| match item {
                Ok(Item::Domain(domain)) => Some(&domain.name),
                _ => None,
            })
            .collect();
        let goes = |name: &NamePattern, claimants: &[DomainId], leaves: &dyn Fn(&DomainId) -> bool| {
            !arriving.contains(name) && claimants.iter().all(leaves)
        };
        match staged.batch.kind {
            BatchKind::Snapshot => {
                let staying: HashSet<DomainId> =
                    ids_of(&staged.batch.resources, ResourceKind::Domain).collect();
                let leaves = |domain: &DomainId| !staying.contains(domain);
                self.claims.iter().filter(|(name, claimants)| goes(name, claimants, &leaves)).count()
            }
            BatchKind::Delta { .. } | BatchKind::LastGood => {
                let leaving: HashSet<DomainId> = tombstones_of(&staged.batch.tombstones).collect();
                let leaves = |domain: &DomainId| leaving.contains(domain);
                let names: HashSet<&NamePattern> = leaving
                    .iter()
                    .filter_map(|id| self.domains.get(id))
                    .map(|record| &record.host.name)
                    .collect();
                names
                    .into_iter()
                    .filter(|name| {
                        self.claims.get(*name).is_some_and(|claimants| goes(name, claimants, &leaves))
                    })
                    .count()
            }
        }
    }

    /// Tombstones for all that is held and not in a snapshot. The fleet's policy is never removed, only replaced.
    pub(super) fn absent_from(&self, batch: &Batch) -> Vec<Tombstone> {
        let present: HashSet<(u32, &str)> =
            batch.resources.iter().map(|resource| (resource.kind, resource.id.as_str())).collect();
        let tenants = self.tenants.keys().map(|id| (ResourceKind::Tenant as u32, id.to_string()));
        let domains = self.domains.keys().map(|id| (ResourceKind::Domain as u32, id.to_string()));
        let lineages = self.lineages.iter().filter(|(_, record)| record.credential.is_some());
        let lineages = lineages.map(|(id, _)| (ResourceKind::Credential as u32, id.to_string()));
        let identities =
            self.identities.keys().map(|id| (ResourceKind::OriginIdentity as u32, id.to_string()));
        let unknown = self.unknown.keys().cloned();
        tenants
            .chain(domains)
            .chain(lineages)
            .chain(identities)
            .chain(unknown)
            .filter(|(kind, id)| !present.contains(&(*kind, id.as_str())))
            .map(|(kind, id)| Tombstone { kind, id })
            .collect()
    }

    /// A new version of a lineage has to hold each name that still points to it: otherwise a name would go dark.
    pub(super) fn check_names_kept(
        &self,
        lineage: LineageId,
        names: &[NamePattern],
        pending: &HashMap<DomainId, Box<[LineageId]>>,
    ) -> Result<(), Fault> {
        let Some(record) = self.lineages.get(&lineage).filter(|record| record.credential.is_some()) else {
            return Ok(());
        };
        for referrer in &record.referrers {
            let Some(domain) = self.domains.get(referrer) else { continue };
            let stays = pending.get(referrer).unwrap_or(&domain.lineages).contains(&lineage);
            let was_served = domain.published.contains(&lineage);
            let name = &domain.host.name;
            if stays && was_served && !names.iter().any(|held| held.covers(name)) {
                let text =
                    format!("the certificate does not hold `{name}`, which is served with this lineage");
                return Err(Fault::new("NameNotCovered", text));
            }
        }
        Ok(())
    }

    /// Moves a domain's references.
    pub(super) fn refer(&mut self, domain: DomainId, from: &[LineageId], to: &[LineageId]) {
        for lineage in to.iter().filter(|lineage| !from.contains(lineage)) {
            let referrers = &mut self.lineages.entry(*lineage).or_default().referrers;
            if referrers.is_empty() {
                // Nearly always the only one; a group's list grows by itself.
                referrers.reserve_exact(1);
            }
            referrers.push(domain);
        }
        for lineage in from.iter().filter(|lineage| !to.contains(lineage)) {
            let Some(record) = self.lineages.get_mut(lineage) else { continue };
            record.referrers.retain(|referrer| *referrer != domain);
            if record.referrers.is_empty() && record.credential.is_none() {
                self.lineages.remove(lineage);
            }
        }
    }

    /// # Errors
    /// A [`Fault`] if the tenant is not here, or the identity is another tenant's.
    pub(super) fn put_identity(&mut self, id: LineageId, record: IdentityRecord) -> Result<(), Fault> {
        let tenant = record.tenant;
        let Some(of) = self.tenants.get_mut(&tenant) else {
            return Err(Fault::new("UnknownTenant", format!("{tenant} is not on this edge")));
        };
        if self.identities.get(&id).is_some_and(|held| held.tenant != tenant) {
            let text = "an identity's tenant never changes; a new identity has a new id";
            return Err(Fault::new("IdentityChanged", text));
        }
        if !of.identities.contains(&id) {
            of.identities.push(id);
        }
        self.identities.insert(id, record);
        self.show_identity(tenant);
        Ok(())
    }

    pub(super) fn remove_identity(&mut self, id: LineageId) {
        let Some(record) = self.identities.remove(&id) else { return };
        if let Some(tenant) = self.tenants.get_mut(&record.tenant) {
            tenant.identities.retain(|other| *other != id);
        }
        self.show_identity(record.tenant);
    }

    /// In force is the one that changed last of those that are here.
    fn show_identity(&self, tenant: TenantId) {
        let Some(tenant) = self.tenants.get(&tenant) else { return };
        let held = tenant.identities.iter().filter_map(|id| Some((self.identities.get(id)?, *id)));
        let newest = held.max_by_key(|(record, id)| (record.version, *id));
        tenant.state.set_identity(newest.map(|(record, _)| Arc::clone(&record.identity)));
    }

    /// Only the owner's domain is published under a name.
    pub(super) fn forget_published(&mut self, name: &NamePattern, owner: DomainId) {
        for claimant in self.claims.get(name).into_iter().flatten().filter(|claimant| **claimant != owner) {
            if let Some(record) = self.domains.get_mut(claimant) {
                record.published.clear();
            }
        }
    }

    /// Whose the name is: a proved domain before a claim, then the one that changed last (P6: the newest proof).
    pub(super) fn owner_of(&self, name: &NamePattern) -> Option<DomainId> {
        let claimants = self.claims.get(name)?;
        let rank =
            |id: &&DomainId| self.domains.get(*id).map(|record| (record.host.served, record.version, **id));
        claimants.iter().max_by_key(rank).copied()
    }
}

pub(super) fn kind_of(kind: u32) -> Option<ResourceKind> {
    i32::try_from(kind).ok().and_then(|kind| ResourceKind::try_from(kind).ok())
}

fn ids_of<'a>(resources: &'a [Resource], kind: ResourceKind) -> impl Iterator<Item = DomainId> + 'a {
    resources
        .iter()
        .filter(move |resource| kind_of(resource.kind) == Some(kind))
        .filter_map(|r| r.id.parse().ok())
}

fn tombstones_of(tombstones: &[Tombstone]) -> impl Iterator<Item = DomainId> + '_ {
    tombstones
        .iter()
        .filter(|tombstone| kind_of(tombstone.kind) == Some(ResourceKind::Domain))
        .filter_map(|tombstone| tombstone.id.parse().ok())
}
