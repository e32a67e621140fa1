//! What a standalone edge serves: certificates and routes of one operator, with no control plane behind them.
//!
//! The same tables and the same books as in fleet mode, with one tenant. Keys are sealed under a cell key that is made at
//! start and never leaves memory, so that there is one kind of credential. Names come from the certificates and from the
//! sites; a name carries every certificate that holds it, the index chooses among them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portico_cert_store::{
    CellId, CellKey, CertificateChain, CertificateFacts, ChainInterner, Credential, CredentialId,
    CredentialParts, DomainId, Generation, GroupId, LineageId, NamePattern, PrivateKey, SealContext,
    TenantId, TlsPolicy, UnixTime, check_certified_key,
};

use super::books::{HashMap, TenantRecord};
use super::client_auth::ClientAuth;
use super::error_pages::ErrorPages;
use super::host::{EgressGrant, Hsts, Maintenance, TenantState};
use super::publisher::{LivePublisher, Round};
use super::stage::{DomainItem, handshake_name};
use super::tenant_limits::TenantLimits;
use super::{DefaultCertificate, Fault, FleetPolicy, Route, limits};

/// The writer of a standalone edge.
#[derive(Debug)]
pub struct Sites {
    publisher: LivePublisher,
    sealing: Arc<Sealing>,
    version: u64,
    sites: BTreeMap<NamePattern, Site>,
    /// Which certificates name a pattern literally; a name is held by its own pattern and by its parent's wildcard.
    holders: HashMap<NamePattern, Vec<LineageId>>,
}

/// How one name is served.
#[derive(Clone, Debug)]
pub struct Site {
    /// First match wins. Names with the same routes share them.
    pub routes: Arc<[Route]>,
    pub policy: TlsPolicy,
    /// What `policy` asks of clients, in full.
    pub client_auth: Option<Arc<ClientAuth>>,
    /// Safe requests are taken before the handshake has ended, over HTTP/3.
    pub early_data: bool,
    pub hsts: Option<Hsts>,
    pub https_redirect: bool,
    pub maintenance: Option<Maintenance>,
}

impl Sites {
    /// `grants` are the private ranges that origins may be in.
    pub fn new(mut publisher: LivePublisher, grants: Vec<EgressGrant>) -> Self {
        let cell = CellId::parse("standalone").expect("the name is within the rules for cells");
        let cell_key = CellKey::generate(cell.clone(), 1);
        let kept = CellKey::from_bytes(cell.clone(), 1, cell_key.secret_bytes());
        publisher.live.keys.cell_keys().add(kept);
        let tenant = TenantId::generate();
        let state = Arc::new(TenantState::new(tenant, grants));
        let record =
            TenantRecord { version: 1, suspension_version: 0, state, domains: 0, identities: Vec::new() };
        publisher.held.tenants.insert(tenant, record);
        Self {
            publisher,
            sealing: Arc::new(Sealing { interner: ChainInterner::new(), cell, cell_key, tenant }),
            version: 1,
            sites: BTreeMap::new(),
            holders: HashMap::default(),
        }
    }

    /// What all sites together may take.
    pub fn set_limits(&self, limits: TenantLimits) {
        if let Some(record) = self.publisher.held.tenants.get(&self.sealing.tenant) {
            record.state.set_limits(limits);
        }
    }

    /// Of all sites.
    pub fn set_error_pages(&self, pages: ErrorPages) {
        if let Some(record) = self.publisher.held.tenants.get(&self.sealing.tenant) {
            record.state.set_error_pages(pages);
        }
    }

    /// Of all sites.
    pub fn tenant(&self) -> TenantId {
        self.sealing.tenant
    }

    /// What seals keys for this edge; threads that read many files share it.
    pub fn sealing(&self) -> Arc<Sealing> {
        Arc::clone(&self.sealing)
    }

    /// Adds many certificates and sites at once, as at start. Each key was seen to be that of its certificate when it was
    /// sealed; the handshake that a single certificate has to pass is left out, because 100,000 of them take longer than a
    /// start may.
    ///
    /// # Errors
    /// A [`Fault`] of the first name that cannot be published.
    pub fn load(
        &mut self,
        sealed: Vec<SealedCertificate>,
        sites: impl IntoIterator<Item = (NamePattern, Site)>,
        now: UnixTime,
    ) -> Result<(), Fault> {
        let mut names = BTreeSet::new();
        let mut round = Round::new(Generation::default(), now);
        self.publisher.begin_bulk(&mut round);
        for SealedCertificate { lineage, names: held, credential } in sealed {
            self.version += 1;
            self.publisher.put_credential(&mut round, self.version, lineage, credential)?;
            self.hold(lineage, &held);
            names.extend(held.iter().cloned());
            round.know_names(lineage, held);
        }
        for (name, site) in sites {
            check_routes(&name, &site)?;
            names.insert(name.clone());
            self.sites.insert(name, site);
        }
        self.settle_in(&mut round, &names)?;
        self.publisher.end_bulk(&mut round);
        Ok(())
    }

    /// Adds a certificate, and says under which id it is known.
    ///
    /// # Errors
    /// A [`Fault`] if the key is not the certificate's or a handshake with it fails.
    pub fn add_certificate(
        &mut self,
        chain: CertificateChain,
        key: &PrivateKey,
        now: UnixTime,
    ) -> Result<LineageId, Fault> {
        let lineage = LineageId::generate();
        self.put_certificate(lineage, chain, key, now)?;
        Ok(lineage)
    }

    /// Puts a certificate in the place of another: one swap, no name is without a certificate in between.
    ///
    /// # Errors
    /// A [`Fault`] as for [`add_certificate`](Self::add_certificate), or if there is no such certificate; it stays then.
    pub fn replace_certificate(
        &mut self,
        lineage: LineageId,
        chain: CertificateChain,
        key: &PrivateKey,
        now: UnixTime,
    ) -> Result<(), Fault> {
        if self.credential(lineage).is_none() {
            return Err(unknown(lineage));
        }
        self.put_certificate(lineage, chain, key, now)
    }

    /// Removes a certificate; names that no other certificate and no site has are forgotten.
    ///
    /// # Errors
    /// A [`Fault`] if there is no such certificate or it is the default.
    pub fn remove_certificate(&mut self, lineage: LineageId, now: UnixTime) -> Result<(), Fault> {
        if self.publisher.held.default == Some(DefaultCertificate::Lineage(lineage)) {
            return Err(Fault::new(
                "StillReferenced",
                "it is the default certificate; choose another one first",
            ));
        }
        let names = self.release(lineage).ok_or_else(|| unknown(lineage))?;
        self.settle(&self.names_near(&names), now)?;
        self.publisher.remove_lineage(lineage)
    }

    /// What is served, by id. The leaves are read again for it: kept, their facts would be a tenth of all memory.
    pub fn certificates(&self) -> Vec<(LineageId, CertificateFacts)> {
        let held = self.publisher.held.lineages.iter();
        let held = held.filter_map(|(id, record)| Some((*id, record.credential.as_ref()?.facts())));
        let mut certificates: Vec<_> = held.collect();
        certificates.sort_by_key(|(id, _)| *id);
        certificates
    }

    pub fn certificate(&self, lineage: LineageId) -> Option<CertificateFacts> {
        self.credential(lineage).map(|credential| credential.facts())
    }

    pub fn set_fleet(&mut self, policy: FleetPolicy, default_certificate: Option<LineageId>) {
        self.publisher.set_fleet(policy, default_certificate.map(DefaultCertificate::Lineage));
        self.publisher.publish_default();
    }

    fn put_certificate(
        &mut self,
        lineage: LineageId,
        chain: CertificateChain,
        key: &PrivateKey,
        now: UnixTime,
    ) -> Result<(), Fault> {
        let SealedCertificate { names, credential, .. } = self.sealing.seal_as(lineage, chain, key)?;
        let opened = credential
            .open(self.publisher.live.keys.cell_keys())
            .map_err(|error| Fault::new("KeyDoesNotOpen", error.to_string()))?;
        check_certified_key(Arc::new(opened), &handshake_name(&names)?)
            .map_err(|error| Fault::new("HandshakeFailed", error.to_string()))?;
        let mut round = Round::new(Generation::default(), now);
        self.version += 1;
        let before = self.certificate(lineage).map(|facts| facts.names);
        self.publisher.put_credential(&mut round, self.version, lineage, credential)?;
        if let Some(before) = &before {
            self.forget(lineage, before);
        }
        self.hold(lineage, &names);
        let mut near = self.names_near(&names);
        near.extend(before.iter().flat_map(|before| self.names_near(before)));
        self.settle(&near, now)
    }

    fn credential(&self, lineage: LineageId) -> Option<&Arc<Credential>> {
        self.publisher.held.lineages.get(&lineage)?.credential.as_ref()
    }

    fn hold(&mut self, lineage: LineageId, names: &[NamePattern]) {
        for name in names {
            // Nearly always one.
            let holders = self.holders.entry(name.clone()).or_insert_with(|| Vec::with_capacity(1));
            if !holders.contains(&lineage) {
                holders.push(lineage);
            }
        }
    }

    /// Lets go of a certificate's names, and gives them.
    fn release(&mut self, lineage: LineageId) -> Option<Vec<NamePattern>> {
        let names = self.certificate(lineage)?.names;
        self.forget(lineage, &names);
        Some(names)
    }

    fn forget(&mut self, lineage: LineageId, names: &[NamePattern]) {
        for name in names {
            if let Some(holders) = self.holders.get_mut(name) {
                holders.retain(|holder| *holder != lineage);
                if holders.is_empty() {
                    self.holders.remove(name);
                }
            }
        }
    }

    /// The names of a certificate, and those of sites that its wildcards hold.
    fn names_near(&self, certificate_names: &[NamePattern]) -> BTreeSet<NamePattern> {
        let wildcards: Vec<_> = certificate_names.iter().filter(|name| name.is_wildcard()).collect();
        let covered = |name: &&NamePattern| wildcards.iter().any(|held| held.covers(name));
        // Only a wildcard reaches names beside its own; most certificates have none.
        let sites = self.sites.keys().take(if wildcards.is_empty() { 0 } else { usize::MAX }).filter(covered);
        certificate_names.iter().chain(sites).cloned().collect()
    }

    /// Brings the entries of `names` in line with certificates and sites.
    fn settle(&mut self, names: &BTreeSet<NamePattern>, now: UnixTime) -> Result<(), Fault> {
        let mut round = Round::new(Generation::default(), now);
        self.settle_in(&mut round, names)
    }

    fn settle_in(&mut self, round: &mut Round, names: &BTreeSet<NamePattern>) -> Result<(), Fault> {
        for name in names {
            let published =
                self.publisher.held.claims.get(name).and_then(|claimants| claimants.first().copied());
            let lineages = self.lineages_for(name);
            if lineages.is_empty() && !self.sites.contains_key(name) {
                if let Some(domain) = published {
                    self.publisher.remove_domain(round, domain);
                }
                continue;
            }
            let domain = published.unwrap_or_else(DomainId::generate);
            self.version += 1;
            let item = self.domain_item(domain, name, lineages);
            self.publisher.put_domain(round, self.version, item)?;
        }
        self.publisher.settle_names(round);
        Ok(())
    }

    /// The certificates that hold a name, those that expire last first.
    fn lineages_for(&self, name: &NamePattern) -> Box<[LineageId]> {
        let wildcard = match name {
            NamePattern::Exact(name) => name.parent().map(NamePattern::Wildcard),
            NamePattern::Wildcard(_) => None,
        };
        let literal = self.holders.get(name).into_iter().flatten();
        let found = literal.chain(wildcard.iter().filter_map(|name| self.holders.get(name)).flatten());
        let mut found: Vec<LineageId> = found.copied().collect();
        let not_after =
            |lineage: &LineageId| self.credential(*lineage).map(|held| held.not_after().as_secs());
        found.sort_by_key(|lineage| (std::cmp::Reverse(not_after(lineage)), *lineage));
        found.dedup();
        found.truncate(limits::LINEAGES_PER_NAME_MAX);
        found.into()
    }

    fn domain_item(&self, id: DomainId, name: &NamePattern, lineages: Box<[LineageId]>) -> DomainItem {
        let site = self.sites.get(name);
        let policy = site.map(|site| site.policy).unwrap_or_default();
        DomainItem {
            id,
            tenant: self.sealing.tenant,
            name: name.clone(),
            lineages,
            routes: site.map(|site| Arc::clone(&site.routes)).unwrap_or_default(),
            policy,
            client_auth: site.and_then(|site| site.client_auth.clone()),
            early_data: site.is_some_and(|site| site.early_data),
            suspension: None,
            acme_thumbprint: None,
            served: true,
            hsts: site.and_then(|site| site.hsts),
            https_redirect: site.is_none_or(|site| site.https_redirect),
            maintenance: site.and_then(|site| site.maintenance.clone()),
        }
    }
}

/// Seals keys under the edge's own cell key, which never leaves memory.
#[derive(Debug)]
pub struct Sealing {
    interner: ChainInterner,
    cell: CellId,
    cell_key: CellKey,
    tenant: TenantId,
}

/// A certificate whose key has been found to fit and is sealed.
#[derive(Debug)]
pub struct SealedCertificate {
    lineage: LineageId,
    names: Box<[NamePattern]>,
    credential: Credential,
}

impl SealedCertificate {
    pub fn names(&self) -> &[NamePattern] {
        &self.names
    }
}

impl Sealing {
    /// Seals a certificate's key, for [`Sites::load`].
    ///
    /// # Errors
    /// A [`Fault`] if the key is not the certificate's.
    pub fn seal(&self, chain: CertificateChain, key: &PrivateKey) -> Result<SealedCertificate, Fault> {
        self.seal_as(LineageId::generate(), chain, key)
    }

    fn seal_as(
        &self,
        lineage: LineageId,
        chain: CertificateChain,
        key: &PrivateKey,
    ) -> Result<SealedCertificate, Fault> {
        let bad = |error: &dyn std::fmt::Display| Fault::new("BadCertificate", error.to_string());
        let names = chain.facts().names.as_slice().into();
        let (id, key_tenant) = (CredentialId::generate(), self.tenant.to_string());
        let spki_sha256 = chain.facts().spki_sha256;
        if key.spki_sha256() != spki_sha256 {
            return Err(Fault::new("KeyMismatch", "the private key is not that of the certificate"));
        }
        let context =
            SealContext { cell: &self.cell, epoch: 1, key_tenant: &key_tenant, credential: id, spki_sha256 };
        let sealed_key = self.cell_key.seal(key, &context).map_err(|error| bad(&error))?;
        let parts = CredentialParts {
            id,
            lineage,
            group: GroupId::generate(),
            cell: self.cell.clone(),
            cell_key_epoch: 1,
            key_tenant: key_tenant.into(),
            spki_sha256,
            chain,
            sealed_key,
        };
        let credential = Credential::new(parts, &self.interner).map_err(|error| bad(&error))?;
        Ok(SealedCertificate { lineage, names, credential })
    }
}

fn check_routes(name: &NamePattern, site: &Site) -> Result<(), Fault> {
    if site.routes.len() > limits::ROUTES_MAX {
        let text = format!("{} routes for {name}; at most {}", site.routes.len(), limits::ROUTES_MAX);
        return Err(Fault::new("TooManyRoutes", text));
    }
    Ok(())
}

fn unknown(lineage: LineageId) -> Fault {
    Fault::new("UnknownCertificate", format!("there is no certificate {lineage}"))
}
