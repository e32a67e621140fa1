//! What a standalone edge serves: certificates and routes of one operator, with no control plane behind them.
//!
//! The same tables and the same books as in fleet mode, with one tenant. Keys are sealed under a cell key that is made at
//! start and never leaves memory, so that there is one kind of credential. Names come from the certificates and from the
//! sites; a name carries every certificate that holds it, the index chooses among them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use portico_cert_store::{
    CellId, CellKey, CertificateChain, CertificateFacts, ChainInterner, Credential, CredentialId,
    CredentialParts, DomainId, Generation, GroupId, LineageId, NamePattern, PrivateKey, SealContext,
    TenantId, TlsPolicy, UnixTime, check_certified_key,
};

use super::books::TenantRecord;
use super::host::{EgressGrant, TenantState};
use super::publisher::{LivePublisher, Round};
use super::stage::{DomainItem, handshake_name};
use super::{Fault, FleetPolicy, Route, limits};

/// The writer of a standalone edge.
#[derive(Debug)]
pub struct Sites {
    publisher: LivePublisher,
    sealing: Arc<Sealing>,
    version: u64,
    sites: BTreeMap<NamePattern, Site>,
    certificates: BTreeMap<LineageId, CertificateFacts>,
    /// Which certificates name a pattern literally; a name is held by its own pattern and by its parent's wildcard.
    holders: HashMap<NamePattern, BTreeSet<LineageId>>,
    /// All names published, with their domain.
    names: BTreeMap<NamePattern, DomainId>,
}

/// How one name is served.
#[derive(Clone, Debug)]
pub struct Site {
    /// First match wins.
    pub routes: Vec<Route>,
    pub policy: TlsPolicy,
    /// 0: no header.
    pub hsts_max_age_seconds: u32,
    pub https_redirect: bool,
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
        let record = TenantRecord { version: 1, suspension_version: 0, state, domains: 0 };
        publisher.held.tenants.insert(tenant, record);
        Self {
            publisher,
            sealing: Arc::new(Sealing { interner: ChainInterner::new(), cell, cell_key, tenant }),
            version: 1,
            sites: BTreeMap::new(),
            certificates: BTreeMap::new(),
            holders: HashMap::new(),
            names: BTreeMap::new(),
        }
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
        for SealedCertificate { lineage, facts, credential } in sealed {
            self.version += 1;
            self.publisher.put_credential(&mut round, self.version, lineage, credential)?;
            names.extend(facts.names.iter().cloned());
            self.hold(lineage, facts);
        }
        for (name, site) in sites {
            check_routes(&name, &site)?;
            names.insert(name.clone());
            self.sites.insert(name, site);
        }
        self.settle(&names, now)
    }

    /// Adds or replaces the routes of a name.
    ///
    /// # Errors
    /// A [`Fault`] if there are too many routes.
    pub fn put_site(&mut self, name: NamePattern, site: Site, now: UnixTime) -> Result<(), Fault> {
        check_routes(&name, &site)?;
        self.sites.insert(name.clone(), site);
        self.settle(&BTreeSet::from([name]), now)
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
        if !self.certificates.contains_key(&lineage) {
            return Err(unknown(lineage));
        }
        self.put_certificate(lineage, chain, key, now)
    }

    /// Removes a certificate; names that no other certificate and no site has are forgotten.
    ///
    /// # Errors
    /// A [`Fault`] if there is no such certificate or it is the default.
    pub fn remove_certificate(&mut self, lineage: LineageId, now: UnixTime) -> Result<(), Fault> {
        if self.publisher.held.default_lineage == Some(lineage) {
            return Err(Fault::new(
                "StillReferenced",
                "it is the default certificate; choose another one first",
            ));
        }
        let facts = self.release(lineage).ok_or_else(|| unknown(lineage))?;
        self.settle(&self.names_near(&facts.names), now)?;
        self.publisher.remove_lineage(lineage)
    }

    /// What is served, by id.
    pub fn certificates(&self) -> &BTreeMap<LineageId, CertificateFacts> {
        &self.certificates
    }

    pub fn set_fleet(&mut self, policy: FleetPolicy, default_certificate: Option<LineageId>) {
        self.publisher.set_fleet(policy, default_certificate);
    }

    fn put_certificate(
        &mut self,
        lineage: LineageId,
        chain: CertificateChain,
        key: &PrivateKey,
        now: UnixTime,
    ) -> Result<(), Fault> {
        let SealedCertificate { facts, credential, .. } = self.sealing.seal_as(lineage, chain, key)?;
        let opened = credential
            .open(self.publisher.live.keys.cell_keys())
            .map_err(|error| Fault::new("KeyDoesNotOpen", error.to_string()))?;
        check_certified_key(Arc::new(opened), &handshake_name(&facts.names)?)
            .map_err(|error| Fault::new("HandshakeFailed", error.to_string()))?;
        let mut round = Round::new(Generation::default(), now);
        self.version += 1;
        self.publisher.put_credential(&mut round, self.version, lineage, credential)?;
        let before = self.release(lineage);
        self.hold(lineage, facts.clone());
        let mut names = self.names_near(&facts.names);
        names.extend(before.iter().flat_map(|before| self.names_near(&before.names)));
        self.settle(&names, now)
    }

    fn hold(&mut self, lineage: LineageId, facts: CertificateFacts) {
        for name in &facts.names {
            self.holders.entry(name.clone()).or_default().insert(lineage);
        }
        self.certificates.insert(lineage, facts);
    }

    fn release(&mut self, lineage: LineageId) -> Option<CertificateFacts> {
        let facts = self.certificates.remove(&lineage)?;
        for name in &facts.names {
            if let Some(holders) = self.holders.get_mut(name) {
                holders.remove(&lineage);
                if holders.is_empty() {
                    self.holders.remove(name);
                }
            }
        }
        Some(facts)
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
        for name in names {
            let lineages = self.lineages_for(name);
            if lineages.is_empty() && !self.sites.contains_key(name) {
                if let Some(domain) = self.names.remove(name) {
                    self.publisher.remove_domain(&mut round, domain);
                }
                continue;
            }
            let domain = *self.names.entry(name.clone()).or_insert_with(DomainId::generate);
            self.version += 1;
            let item = self.domain_item(domain, name, lineages);
            self.publisher.put_domain(&mut round, self.version, item)?;
        }
        self.publisher.settle_names(&mut round);
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
            |lineage: &LineageId| self.certificates.get(lineage).map(|facts| facts.not_after.as_secs());
        found.sort_by_key(|lineage| (std::cmp::Reverse(not_after(lineage)), *lineage));
        found.dedup();
        found.truncate(limits::LINEAGES_PER_NAME_MAX);
        found.into()
    }

    fn domain_item(&self, id: DomainId, name: &NamePattern, lineages: Box<[LineageId]>) -> DomainItem {
        let site = self.sites.get(name);
        let policy = site.map_or_else(default_policy, |site| site.policy);
        DomainItem {
            id,
            tenant: self.sealing.tenant,
            name: name.clone(),
            lineages,
            routes: site.map(|site| site.routes.clone()).unwrap_or_default().into(),
            policy,
            suspension: None,
            acme_thumbprint: None,
            served: true,
            hsts_max_age_seconds: site.map_or(0, |site| site.hsts_max_age_seconds),
            https_redirect: site.is_none_or(|site| site.https_redirect),
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
    facts: CertificateFacts,
    credential: Credential,
}

impl SealedCertificate {
    pub fn names(&self) -> &[NamePattern] {
        &self.facts.names
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
        let facts = chain.facts().clone();
        let (id, key_tenant) = (CredentialId::generate(), self.tenant.to_string());
        let spki_sha256 = facts.spki_sha256;
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
        Ok(SealedCertificate { lineage, facts, credential })
    }
}

fn check_routes(name: &NamePattern, site: &Site) -> Result<(), Fault> {
    if site.routes.len() > limits::ROUTES_MAX {
        let text = format!("{} routes for {name}; at most {}", site.routes.len(), limits::ROUTES_MAX);
        return Err(Fault::new("TooManyRoutes", text));
    }
    Ok(())
}

fn default_policy() -> TlsPolicy {
    TlsPolicy { minimum_version: portico_cert_store::TlsVersion::Tls12, http2: true, http3: true }
}

fn unknown(lineage: LineageId) -> Fault {
    Fault::new("UnknownCertificate", format!("there is no certificate {lineage}"))
}
