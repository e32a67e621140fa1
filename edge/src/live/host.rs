//! What an edge knows of one name and of the tenant behind it.
//!
//! A [`Host`] is immutable, except for its suspension and its counters: exchanges that hold an older version of the host
//! have to see and count the same, so all versions of one domain share a [`DomainState`]. The same holds for a
//! [`TenantState`]: there is one for each tenant, all hosts of the tenant point to it, and grants, limits and suspension
//! change inside it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use ipnet::IpNet;
use portico_api::distribution as wire;
use portico_api::rule::RequestPath;
use portico_cert_store::{DomainId, NamePattern, TenantId, TlsPolicy};
use tokio::sync::Notify;

use super::Fault;
use super::client_auth::ClientAuth;
use super::error_pages::ErrorPages;
use super::limits;
use super::origin_identity::OriginIdentity;
use super::route::Route;
use super::tenant_limits::{TenantLimits, TenantUsage};
use super::usage::Usage;

/// All that decides what happens to a request for one name.
pub struct Host {
    pub tenant: Arc<TenantState>,
    pub domain: DomainId,
    pub name: NamePattern,
    /// First match wins.
    pub routes: Arc<[Route]>,
    pub policy: TlsPolicy,
    /// What `policy` asks of clients, in full.
    pub client_auth: Option<Arc<ClientAuth>>,
    /// Safe requests are taken before the handshake has ended, over HTTP/3.
    pub early_data: bool,
    /// Set while an order of that account is open: `token.thumbprint` answers any HTTP-01 token.
    pub acme_thumbprint: Option<Box<str>>,
    /// Control of the name is proved; otherwise only challenges are answered.
    pub served: bool,
    /// Strict-Transport-Security, where the tenant wants it.
    pub hsts: Option<Box<HeaderValue>>,
    /// Port 80 redirects to https instead of using the routes.
    pub https_redirect: bool,
    /// The tenant has taken the site away for a while.
    pub maintenance: Option<Arc<Maintenance>>,
    pub(super) state: Arc<DomainState>,
}

/// What all versions of one domain's host share.
#[derive(Default)]
pub(super) struct DomainState {
    pub(super) suspension: ArcSwapOption<Suspension>,
    pub(super) usage: Usage,
}

/// What holds for all names of one tenant.
pub struct TenantState {
    pub id: TenantId,
    egress: ArcSwap<Box<[EgressGrant]>>,
    pub(super) limits: ArcSwap<TenantLimits>,
    error_pages: ArcSwap<ErrorPages>,
    pub(super) usage: TenantUsage,
    /// Shown to origins that ask for a client certificate.
    identity: ArcSwapOption<OriginIdentity>,
    suspension: ArcSwapOption<Suspension>,
    /// Told at each suspension of the tenant or of one of its domains.
    suspended: Notify,
}

/// The operator's permission to reach a range that the egress guard refuses otherwise. No port: nothing is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressGrant {
    pub net: IpNet,
    pub ports: Box<[u16]>,
}

/// What browsers are told of https for a name (RFC 6797).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hsts {
    /// 0: they forget what they were told before.
    pub max_age_seconds: u32,
    pub include_subdomains: bool,
    pub preload: bool,
}

/// Every request is answered 503, except for challenges, ours and others'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maintenance {
    /// For the page.
    pub text: Box<str>,
    pub retry_after_seconds: u32,
}

/// Service of a tenant or a domain is stopped; certificates and challenges go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspension {
    pub mode: SuspensionMode,
    /// For the page.
    pub reason: Box<str>,
    /// 0: until resumed.
    pub until_unix_ms: i64,
}

/// How a suspended name answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuspensionMode {
    /// 503 with a neutral page.
    Page,
    /// 410.
    Gone,
    /// 451 (RFC 7725).
    Legal,
    /// The connection is closed.
    Drop,
}

impl Host {
    /// The first route that matches, and what of `path` (without its query) lies below the route's own.
    pub fn route<'p>(
        &self,
        method: &Method,
        path: &'p str,
        headers: &HeaderMap,
    ) -> Option<(&Route, &'p str)> {
        let path = RequestPath::new(path);
        self.routes.iter().find_map(|route| Some((route, route.rule.matches(method, &path, headers)?)))
    }

    /// Port 80 answers no request itself: it is asked to, or could not know the client.
    pub fn redirects_to_https(&self) -> bool {
        self.https_redirect || self.requires_client_certificate()
    }

    pub fn requires_client_certificate(&self) -> bool {
        self.client_auth.as_ref().is_some_and(|auth| auth.required)
    }

    /// The suspension in force, the tenant's before the domain's own.
    pub fn suspended(&self, now_unix_ms: i64) -> Option<Arc<Suspension>> {
        let in_force = |suspension: &Arc<Suspension>| suspension.in_force(now_unix_ms);
        let tenants = self.tenant.suspension.load();
        if let Some(suspension) = tenants.as_ref().filter(|suspension| in_force(suspension)) {
            return Some(Arc::clone(suspension));
        }
        self.state.suspension.load().as_ref().filter(|suspension| in_force(suspension)).map(Arc::clone)
    }

    /// Ends when a suspension of the domain or its tenant is in force: an exchange in flight races its work against it.
    ///
    /// `now_unix_ms` is the start of the exchange: a suspension that had ended by then does not count.
    pub async fn cut(&self, now_unix_ms: i64) -> Arc<Suspension> {
        loop {
            let mut told = std::pin::pin!(self.tenant.suspended.notified());
            // Registered before the look, so that a suspension between the two is not missed.
            told.as_mut().enable();
            if let Some(suspension) = self.suspended(now_unix_ms) {
                return suspension;
            }
            told.await;
        }
    }
}

impl TenantState {
    pub fn new(id: TenantId, egress: Vec<EgressGrant>) -> Self {
        Self {
            id,
            egress: ArcSwap::from_pointee(egress.into()),
            limits: ArcSwap::default(),
            error_pages: ArcSwap::default(),
            usage: TenantUsage::default(),
            identity: ArcSwapOption::empty(),
            suspension: ArcSwapOption::empty(),
            suspended: Notify::new(),
        }
    }

    pub fn egress(&self) -> Arc<Box<[EgressGrant]>> {
        self.egress.load_full()
    }

    pub(super) fn set_egress(&self, egress: Vec<EgressGrant>) {
        self.egress.store(Arc::new(egress.into()));
    }

    pub(super) fn set_limits(&self, limits: TenantLimits) {
        self.limits.store(Arc::new(limits));
    }

    /// The tenant's own page for a status: its content type and its body.
    pub(crate) fn error_page(&self, status: StatusCode) -> Option<(HeaderValue, Bytes)> {
        self.error_pages.load().of(status)
    }

    pub(super) fn set_error_pages(&self, pages: ErrorPages) {
        self.error_pages.store(Arc::new(pages));
    }

    /// Absent: none was made for the tenant, or it has not come here yet.
    pub(crate) fn identity(&self) -> Option<Arc<OriginIdentity>> {
        self.identity.load_full()
    }

    /// Connections are made with it from now on; those that were made with another serve no further exchange.
    pub(super) fn set_identity(&self, identity: Option<Arc<OriginIdentity>>) {
        self.identity.store(identity);
    }

    pub(super) fn set_suspension(&self, suspension: Option<Suspension>) {
        self.suspension.store(suspension.map(Arc::new));
        self.suspended.notify_waiters();
    }

    /// Sets the suspension of one of the tenant's domains, in all versions of its host.
    pub(super) fn suspend_domain(&self, domain: &DomainState, suspension: Option<Suspension>) {
        domain.suspension.store(suspension.map(Arc::new));
        self.suspended.notify_waiters();
    }
}

impl Hsts {
    pub fn header(self) -> HeaderValue {
        let include_subdomains = if self.include_subdomains { "; includeSubDomains" } else { "" };
        let preload = if self.preload { "; preload" } else { "" };
        let text = format!("max-age={}{include_subdomains}{preload}", self.max_age_seconds);
        HeaderValue::try_from(text).expect("digits and fixed words are a header value")
    }
}

impl Maintenance {
    pub(crate) fn parse(from: &wire::Maintenance) -> Result<Self, Fault> {
        Self::new(&from.text, from.retry_after_seconds)
    }

    /// # Errors
    /// A [`Fault`] if the text is too long or the time is not from 1 s to a week.
    pub fn new(text: &str, retry_after_seconds: u32) -> Result<Self, Fault> {
        let bad = |why: String| Fault::new("BadMaintenance", why);
        if text.len() > limits::MAINTENANCE_TEXT_BYTES_MAX {
            let most = limits::MAINTENANCE_TEXT_BYTES_MAX;
            return Err(bad(format!("the text has {} bytes; at most {most}", text.len())));
        }
        if !(1..=limits::RETRY_AFTER_SECONDS_MAX).contains(&retry_after_seconds) {
            return Err(bad(format!("retry after {retry_after_seconds} s is not from 1 s to a week")));
        }
        Ok(Self { text: text.into(), retry_after_seconds })
    }
}

impl Suspension {
    pub fn in_force(&self, now_unix_ms: i64) -> bool {
        self.until_unix_ms == 0 || now_unix_ms < self.until_unix_ms
    }

    pub(crate) fn parse(from: &wire::Suspension) -> Result<Self, Fault> {
        let mode = match wire::suspension::Mode::try_from(from.mode) {
            Ok(wire::suspension::Mode::Page) => SuspensionMode::Page,
            Ok(wire::suspension::Mode::Gone) => SuspensionMode::Gone,
            Ok(wire::suspension::Mode::Legal) => SuspensionMode::Legal,
            Ok(wire::suspension::Mode::Drop) => SuspensionMode::Drop,
            // A mode of a newer release still has to stop service; the neutral page is the mildest way to do so.
            Err(_) => SuspensionMode::Page,
        };
        if from.reason.len() > limits::SUSPENSION_REASON_BYTES_MAX {
            return Err(Fault::new(
                "BadSuspension",
                format!(
                    "the reason has {} bytes; at most {} are shown",
                    from.reason.len(),
                    limits::SUSPENSION_REASON_BYTES_MAX
                ),
            ));
        }
        Ok(Self { mode, reason: from.reason.as_str().into(), until_unix_ms: from.until_unix_ms.max(0) })
    }
}

/// Reads a tenant's grants.
pub(super) fn parse_grants(from: &[wire::EgressGrant]) -> Result<Vec<EgressGrant>, Fault> {
    if from.len() > limits::EGRESS_GRANTS_MAX {
        let text = format!("{} egress grants; at most {}", from.len(), limits::EGRESS_GRANTS_MAX);
        return Err(Fault::new("BadEgressGrant", text));
    }
    from.iter().map(parse_grant).collect()
}

fn parse_grant(from: &wire::EgressGrant) -> Result<EgressGrant, Fault> {
    let bad = |why: String| Fault::new("BadEgressGrant", format!("egress grant `{:.64}`: {why}", from.cidr));
    let net =
        parse_network(&from.cidr).ok_or_else(|| bad("not an address range such as 10.0.0.0/8".into()))?;
    if from.ports.len() > limits::EGRESS_PORTS_MAX {
        return Err(bad(format!("{} ports; at most {}", from.ports.len(), limits::EGRESS_PORTS_MAX)));
    }
    let port = |port: &u32| match u16::try_from(*port) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(bad(format!("{port} is not a port"))),
    };
    Ok(EgressGrant { net, ports: from.ports.iter().map(port).collect::<Result<_, _>>()? })
}

/// An address range, or one address.
pub(super) fn parse_network(text: &str) -> Option<IpNet> {
    let net: IpNet = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?;
    Some(net.trunc())
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("name", &self.name)
            .field("domain", &self.domain)
            .field("tenant", &self.tenant.id)
            .field("served", &self.served)
            .field("routes", &self.routes.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for TenantState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantState").field("id", &self.id).finish_non_exhaustive()
    }
}
