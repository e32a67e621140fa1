//! The middle step: each resource of an admitted batch is parsed and checked, and no state is touched.
//!
//! This is where the work is (a certificate costs a parse, a key opened and a handshake), so it takes all that it needs as
//! an argument and can run on another thread. A panic in here is a bug of ours; it is held to the one resource that
//! caused it, since an edge that falls over at one tenant's certificate would fall over again after its restart.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use portico_api::distribution as wire;
use portico_cert_store::{
    CellId, CellKeys, CertificateChain, ChainInterner, Credential, CredentialId, CredentialParts, Custody,
    DomainId, DomainName, GroupId, IdError, KeptParts, LineageId, NamePattern, SealContext, SealedKey,
    TenantId, TlsPolicy, TlsVersion, UnixTime, check_certified_key,
};
use rustls_pki_types::CertificateDer;

use super::admit::{Admitted, Batch};
use super::client_auth::ClientAuth;
use super::error_pages::ErrorPages;
use super::host::{
    DomainState, EgressGrant, Host, Hsts, Maintenance, Suspension, TenantState, parse_grants, parse_network,
};
use super::origin_identity::OriginIdentity;
use super::publisher::OPERATOR;
use super::route::Route;
use super::tenant_limits::TenantLimits;
use super::{DefaultCertificate, Fault, FleetPolicy, UnknownSni, full_text, limits};
use crate::control::{OWN_EPOCH, OwnKeys, not_here};

/// What staging needs beside the batch.
#[derive(Clone, Debug)]
pub struct StagingContext {
    pub cell: CellId,
    pub cell_keys: CellKeys,
    pub interner: Arc<ChainInterner>,
    pub now: UnixTime,
    pub checks: Checks,
    /// `None`: this edge has no keys of its own. Their files are read here, which is not the thread that serves.
    pub own_keys: Option<OwnKeys>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checks {
    /// Open the key and do a handshake (P9).
    Handshake,
    /// It served before: from this edge's own disk, where a checksum has guarded it since. Expired certificates are taken
    /// too, and of a leaf only what the index needs is read.
    ServedBefore,
}

/// A batch, parsed, with the fault of each resource that has one.
#[derive(Debug)]
pub struct Staged {
    pub(super) batch: Batch,
    pub(super) now: UnixTime,
    /// In the order of `batch.resources`.
    pub(super) items: Vec<Result<Item, Fault>>,
}

#[derive(Debug)]
pub(super) enum Item {
    Tenant {
        id: TenantId,
        egress: Vec<EgressGrant>,
        suspension: Option<Suspension>,
        limits: TenantLimits,
        error_pages: ErrorPages,
    },
    Domain(Box<DomainItem>),
    Credential {
        lineage: LineageId,
        credential: Box<Credential>,
        names: Box<[NamePattern]>,
    },
    OriginIdentity {
        tenant: TenantId,
        identity: Arc<OriginIdentity>,
    },
    Fleet {
        policy: FleetPolicy,
        default: Option<DefaultCertificate>,
    },
    /// A kind of a newer release: kept on disk, acked, ignored.
    Unknown,
    /// Held at this version already.
    Unchanged,
}

#[derive(Debug)]
pub(super) struct DomainItem {
    pub(super) id: DomainId,
    pub(super) tenant: TenantId,
    pub(super) name: NamePattern,
    /// Of this edge's cell, best first.
    pub(super) lineages: Box<[LineageId]>,
    pub(super) routes: Arc<[Route]>,
    pub(super) policy: TlsPolicy,
    pub(super) client_auth: Option<Arc<ClientAuth>>,
    pub(super) early_data: bool,
    pub(super) suspension: Option<Suspension>,
    pub(super) acme_thumbprint: Option<Box<str>>,
    pub(super) served: bool,
    pub(super) hsts: Option<Hsts>,
    pub(super) https_redirect: bool,
    pub(super) maintenance: Option<Maintenance>,
}

/// From this many resources on, an edge that serves nothing yet uses all its cores; nobody else wants them.
const PARALLEL_FROM: usize = 256;
/// Threads at most.
const THREADS_MAX: usize = 64;

/// Parses and checks the resources of a batch.
pub fn stage(admitted: Admitted, context: &StagingContext) -> Staged {
    let Admitted { batch, unchanged, idle } = admitted;
    let threads = if idle && batch.resources.len() >= PARALLEL_FROM {
        std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX)
    } else {
        // While workers serve, one core is theirs to lose at most.
        1
    };
    let items = if threads == 1 {
        stage_part(&batch.resources, &unchanged, context)
    } else {
        stage_in_parallel(&batch.resources, &unchanged, context, threads)
    };
    Staged { batch, now: context.now, items }
}

fn stage_in_parallel(
    resources: &[wire::Resource],
    unchanged: &[bool],
    context: &StagingContext,
    threads: usize,
) -> Vec<Result<Item, Fault>> {
    let size = resources.len().div_ceil(threads);
    std::thread::scope(|scope| {
        let parts: Vec<_> = resources
            .chunks(size)
            .zip(unchanged.chunks(size))
            .map(|(resources, unchanged)| scope.spawn(move || stage_part(resources, unchanged, context)))
            .collect();
        let mut items = Vec::with_capacity(resources.len());
        for part in parts {
            items.extend(part.join().expect("a part holds its panics itself"));
        }
        items
    })
}

fn stage_part(
    resources: &[wire::Resource],
    unchanged: &[bool],
    context: &StagingContext,
) -> Vec<Result<Item, Fault>> {
    let staged = |(resource, unchanged): (&wire::Resource, &bool)| {
        if *unchanged {
            return Ok(Item::Unchanged);
        }
        catch_unwind(AssertUnwindSafe(|| parse_resource(resource, context))).unwrap_or_else(|_| {
            Err(Fault::new("InternalFault", "this edge failed at the resource; a bug of the edge"))
        })
    };
    resources.iter().zip(unchanged).map(staged).collect()
}

impl Item {
    /// The order of publishing: what is referred to comes first.
    pub(super) fn rank(&self) -> usize {
        match self {
            Self::Tenant { .. } => 0,
            Self::Credential { .. } | Self::OriginIdentity { .. } => 1,
            Self::Domain(_) => 2,
            Self::Fleet { .. } | Self::Unknown | Self::Unchanged => 3,
        }
    }
}

impl DomainItem {
    pub(super) fn into_host(
        self,
        tenant: &Arc<TenantState>,
        state: Arc<DomainState>,
    ) -> (Host, Box<[LineageId]>) {
        let host = Host {
            tenant: Arc::clone(tenant),
            domain: self.id,
            name: self.name,
            routes: self.routes,
            policy: self.policy,
            client_auth: self.client_auth,
            early_data: self.early_data,
            acme_thumbprint: self.acme_thumbprint,
            served: self.served,
            hsts: self.hsts.map(|hsts| Box::new(hsts.header())),
            https_redirect: self.https_redirect,
            maintenance: self.maintenance.map(Arc::new),
            state,
        };
        (host, self.lineages)
    }
}

fn parse_resource(resource: &wire::Resource, context: &StagingContext) -> Result<Item, Fault> {
    let kind = i32::try_from(resource.kind).ok().and_then(|kind| wire::ResourceKind::try_from(kind).ok());
    match kind {
        Some(wire::ResourceKind::Tenant) => parse_tenant(resource),
        Some(wire::ResourceKind::Domain) => parse_domain(resource, &context.cell),
        Some(wire::ResourceKind::Credential) => parse_credential(resource, context),
        Some(wire::ResourceKind::OriginIdentity) => Ok(Item::OriginIdentity {
            tenant: parse_id(&resource.tenant_id)?,
            identity: Arc::new(OriginIdentity::parse(resource, context)?),
        }),
        Some(wire::ResourceKind::Fleet) => parse_fleet(resource),
        Some(wire::ResourceKind::Unspecified) | None => Ok(Item::Unknown),
    }
}

fn parse_tenant(resource: &wire::Resource) -> Result<Item, Fault> {
    let body: wire::Tenant = decode(resource)?;
    Ok(Item::Tenant {
        id: parse_id(&resource.id)?,
        egress: parse_grants(&body.egress_grants)?,
        suspension: body.suspension.as_ref().map(Suspension::parse).transpose()?,
        limits: TenantLimits::parse(body.limits)?,
        error_pages: ErrorPages::parse(&body.error_pages)?,
    })
}

fn parse_domain(resource: &wire::Resource, cell: &CellId) -> Result<Item, Fault> {
    let body: wire::Domain = decode(resource)?;
    let name = NamePattern::parse(&body.name).map_err(|error| Fault::new("BadName", error.to_string()))?;
    if name.to_string() != body.name {
        return Err(Fault::new("BadName", format!("`{:.100}` is not in the form of A-labels", body.name)));
    }
    if body.routes.len() > limits::ROUTES_MAX {
        let text = format!("{} routes; at most {}", body.routes.len(), limits::ROUTES_MAX);
        return Err(Fault::new("TooManyRoutes", text));
    }
    let (policy, client_auth) = parse_policy(body.tls.as_ref())?;
    Ok(Item::Domain(Box::new(DomainItem {
        id: parse_id(&resource.id)?,
        tenant: parse_id(&resource.tenant_id)?,
        name,
        lineages: parse_lineages(&body.lineages, cell)?,
        routes: body.routes.iter().map(Route::parse).collect::<Result<_, _>>()?,
        policy,
        client_auth,
        early_data: body.tls.as_ref().is_some_and(|tls| tls.early_data),
        suspension: body.suspension.as_ref().map(Suspension::parse).transpose()?,
        acme_thumbprint: parse_thumbprint(&body.acme_thumbprint)?,
        served: body.served,
        hsts: body.hsts_max_age_seconds.map(|max_age_seconds| Hsts {
            max_age_seconds,
            include_subdomains: body.hsts_include_subdomains,
            preload: body.hsts_preload,
        }),
        https_redirect: !body.https_redirect_off,
        maintenance: body.maintenance.as_ref().map(Maintenance::parse).transpose()?,
    })))
}

fn parse_lineages(references: &[wire::LineageRef], cell: &CellId) -> Result<Box<[LineageId]>, Fault> {
    let bad = |text: String| Fault::new("BadLineages", text);
    if references.len() > limits::LINEAGE_REFERENCES_MAX {
        return Err(bad(format!(
            "{} lineages; at most {}",
            references.len(),
            limits::LINEAGE_REFERENCES_MAX
        )));
    }
    let own: Vec<LineageId> = references
        .iter()
        .filter(|reference| reference.cell_id == cell.as_str())
        .map(|reference| parse_id(&reference.lineage_id))
        .collect::<Result<_, _>>()?;
    if own.len() > limits::LINEAGES_PER_NAME_MAX {
        return Err(bad(format!(
            "{} lineages in this cell; at most {}",
            own.len(),
            limits::LINEAGES_PER_NAME_MAX
        )));
    }
    if own.iter().collect::<HashSet<_>>().len() != own.len() {
        return Err(bad("a lineage is there twice".to_owned()));
    }
    Ok(own.into())
}

type Policy = (TlsPolicy, Option<Arc<ClientAuth>>);

fn parse_policy(policy: Option<&wire::TlsPolicy>) -> Result<Policy, Fault> {
    let Some(policy) = policy else { return Ok((TlsPolicy::default(), None)) };
    let asked = policy.client_certificates.as_ref();
    let minimum_version = match (wire::TlsVersion::try_from(policy.minimum_version), asked) {
        (Ok(wire::TlsVersion::Below), Some(asked)) => wire::TlsVersion::try_from(asked.minimum_version),
        (version, _) => version,
    };
    let minimum_version = match minimum_version {
        Ok(wire::TlsVersion::Default | wire::TlsVersion::TlsVersion12) => TlsVersion::Tls12,
        Ok(wire::TlsVersion::TlsVersion13) => TlsVersion::Tls13,
        // A stricter version of a newer release must not be weakened to one that we know.
        Ok(wire::TlsVersion::Below) | Err(_) => {
            return Err(Fault::new("BadTlsPolicy", "a minimum TLS version that this edge does not know"));
        }
    };
    let client_auth = asked.map(ClientAuth::parse).transpose()?.map(Arc::new);
    let policy = TlsPolicy {
        minimum_version,
        http2: !policy.http2_off,
        http3: !policy.http3_off,
        client_certificates: client_auth.as_ref().map(|auth| auth.policy()),
    };
    Ok((policy, client_auth))
}

fn parse_thumbprint(text: &str) -> Result<Option<Box<str>>, Fault> {
    let fits = text.len() <= limits::THUMBPRINT_BYTES_MAX
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    match fits {
        true if text.is_empty() => Ok(None),
        true => Ok(Some(text.into())),
        false => Err(Fault::new("BadThumbprint", "the ACME thumbprint is not base64url")),
    }
}

fn parse_credential(resource: &wire::Resource, context: &StagingContext) -> Result<Item, Fault> {
    let mut body: wire::Credential = decode(resource)?;
    let lineage: LineageId = parse_id(&resource.id)?;
    let is_own = !body.edge_cell_id.is_empty();
    let cell = if is_own { &body.edge_cell_id } else { &body.cell_id };
    if cell != context.cell.as_str() {
        let text = format!("the key is that of cell `{cell:.32}`, this edge is in `{}`", context.cell);
        return Err(Fault::new("OtherCell", text));
    }
    // The key's owner is part of the seal; it also has to be the resource's own tenant, or the operator.
    if body.key_tenant != OPERATOR && body.key_tenant != resource.tenant_id {
        return Err(Fault::new("ForeignKey", "the key belongs to another tenant than the resource"));
    }
    let spki_sha256: [u8; 32] = body.spki_sha256.as_ref().try_into().map_err(|_| {
        Fault::new("BadCredential", format!("the key's hash has {} bytes, not 32", body.spki_sha256.len()))
    })?;
    if is_own {
        body = with_own_key(body, spki_sha256, context)?;
    }
    let (credential, names) = build_credential(lineage, &body, spki_sha256, context)?;
    if context.checks == Checks::Handshake {
        check_served(&credential, context)?;
    }
    Ok(Item::Credential { lineage, credential: Box::new(credential), names })
}

/// The same with the key of this edge's own, sealed by a data key of this process.
fn with_own_key(
    body: wire::Credential,
    spki_sha256: [u8; 32],
    context: &StagingContext,
) -> Result<wire::Credential, Fault> {
    if !body.cell_id.is_empty() || !body.sealed_key.is_empty() || body.uploaded {
        return Err(Fault::new(
            "BadCredential",
            "it says of its key that it is here, and that it is another",
        ));
    }
    let sealing = SealContext {
        cell: &context.cell,
        epoch: OWN_EPOCH,
        key_tenant: &body.key_tenant,
        credential: parse_id::<CredentialId>(&body.credential_id)?,
        spki_sha256,
    };
    let own_keys = context.own_keys.as_ref().ok_or_else(|| not_here(&context.cell))?;
    let sealed_key = own_keys.sealed(&sealing)?.as_bytes().to_vec().into();
    Ok(wire::Credential { sealed_key, cell_key_epoch: OWN_EPOCH, ..body })
}

fn build_credential(
    lineage: LineageId,
    body: &wire::Credential,
    spki_sha256: [u8; 32],
    context: &StagingContext,
) -> Result<(Credential, Box<[NamePattern]>), Fault> {
    let bad = |error: &dyn std::fmt::Display| Fault::new("BadCertificate", error.to_string());
    if body.chain_der.len() > limits::CHAIN_CERTIFICATES_MAX {
        let (found, most) = (body.chain_der.len(), limits::CHAIN_CERTIFICATES_MAX);
        return Err(bad(&format!("the chain has {found} certificates; at most {most}")));
    }
    if context.checks == Checks::ServedBefore {
        return take_back(lineage, body, spki_sha256, context);
    }
    let chain = body.chain_der.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let chain = CertificateChain::parse_der(chain).map_err(|error| bad(&error))?;
    let names = chain.facts().names.as_slice().into();
    let parts = CredentialParts {
        id: parse_id::<CredentialId>(&body.credential_id)?,
        lineage,
        group: parse_id::<GroupId>(&body.group_id)?,
        cell: context.cell.clone(),
        cell_key_epoch: body.cell_key_epoch,
        key_tenant: body.key_tenant.as_str().into(),
        chain,
        spki_sha256,
        sealed_key: SealedKey::from_bytes(body.sealed_key.to_vec()),
    };
    let credential = Credential::new(parts, &context.interner).map_err(|error| bad(&error))?;
    Ok((credential.in_custody(custody(body)).going_first(body.goes_first), names))
}

/// The short way of a credential that this edge has served before.
fn take_back(
    lineage: LineageId,
    body: &wire::Credential,
    spki_sha256: [u8; 32],
    context: &StagingContext,
) -> Result<(Credential, Box<[NamePattern]>), Fault> {
    let chain: Vec<&[u8]> = body.chain_der.iter().map(AsRef::as_ref).collect();
    let kept = KeptParts {
        id: parse_id(&body.credential_id)?,
        lineage,
        group: parse_id(&body.group_id)?,
        cell: &context.cell,
        cell_key_epoch: body.cell_key_epoch,
        key_tenant: &body.key_tenant,
        spki_sha256,
        chain: &chain,
        sealed_key: &body.sealed_key,
    };
    let (credential, names) = Credential::take_back(kept, &context.interner)
        .map_err(|error| Fault::new("BadCertificate", error.to_string()))?;
    Ok((credential.in_custody(custody(body)).going_first(body.goes_first), names.into()))
}

fn custody(body: &wire::Credential) -> Custody {
    match body.uploaded {
        true => Custody::Uploaded,
        false if body.edge_cell_id.is_empty() => Custody::Cell,
        false => Custody::Edge,
    }
}

/// The last gate before a credential goes live (P9): its key opens, and a client completes a handshake with it. The
/// dates are looked at when it is published, since an expired one is still better than none.
fn check_served(credential: &Credential, context: &StagingContext) -> Result<(), Fault> {
    let key = credential
        .open(&context.cell_keys)
        .map_err(|error| Fault::new("KeyDoesNotOpen", full_text(&error)))?;
    let facts = credential.facts();
    let name = handshake_name(&facts.names)?;
    check_certified_key(Arc::new(key), &name)
        .map_err(|error| Fault::new("HandshakeFailed", error.to_string()))
}

/// A name that a client may ask this certificate for.
pub(super) fn handshake_name(names: &[NamePattern]) -> Result<DomainName, Fault> {
    match names.first() {
        Some(NamePattern::Exact(name)) => Ok(name.clone()),
        Some(NamePattern::Wildcard(base)) => DomainName::parse(&format!("w.{base}"))
            .map_err(|error| Fault::new("BadCertificate", format!("a name below the wildcard: {error}"))),
        None => Err(Fault::new("BadCertificate", "it holds no name")),
    }
}

fn parse_fleet(resource: &wire::Resource) -> Result<Item, Fault> {
    let body: wire::Fleet = decode(resource)?;
    let denied = body.denied_cidrs.len().max(body.denied_sockets.len());
    if denied > limits::DENIED_NETWORKS_MAX {
        let text = format!("{denied} denied networks or sockets; at most {}", limits::DENIED_NETWORKS_MAX);
        return Err(Fault::new("BadFleet", text));
    }
    let network = |text: &String| {
        parse_network(text).ok_or_else(|| {
            Fault::new("BadFleet", format!("`{:.64}` is not an address range", text.escape_debug()))
        })
    };
    let denied_networks = body.denied_cidrs.iter().map(network).collect::<Result<_, _>>()?;
    let socket = |text: &String| {
        text.parse()
            .map_err(|_| Fault::new("BadFleet", format!("`{:.64}` is not address:port", text.escape_debug())))
    };
    let denied_sockets = body.denied_sockets.iter().map(socket).collect::<Result<_, _>>()?;
    let unknown_sni = match wire::UnknownSni::try_from(body.unknown_sni) {
        Ok(wire::UnknownSni::Refuse) => UnknownSni::Refuse,
        Ok(wire::UnknownSni::Default) => UnknownSni::Default,
        Err(_) => {
            return Err(Fault::new("BadFleet", "an answer to unknown names that this edge does not know"));
        }
    };
    let default = match body.default_domain_id.as_str() {
        "" => None,
        id => Some(DefaultCertificate::Domain(parse_id(id)?)),
    };
    let tenant_limits = TenantLimits::parse(body.tenant_limits)?;
    let policy = FleetPolicy { unknown_sni, denied_networks, denied_sockets, tenant_limits };
    Ok(Item::Fleet { policy, default })
}

pub(super) fn decode<M: prost::Message + Default>(resource: &wire::Resource) -> Result<M, Fault> {
    M::decode(resource.body.clone()).map_err(|error| Fault::new("DoesNotDecode", error.to_string()))
}

pub(super) fn parse_id<I: std::str::FromStr<Err = IdError>>(text: &str) -> Result<I, Fault> {
    text.parse().map_err(|error: IdError| Fault::new("BadId", error.to_string()))
}
