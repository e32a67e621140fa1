//! Where proxied requests go: parsed once at the border.
//!
//! An [`Origin`] holds all that tells its connections from others', because it is what pools are keyed by; how requests
//! are spread over several and how long they may take stands in the [`Upstream`] and may change without a new pool.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::HeaderValue;
use http::uri::{Authority, PathAndQuery};
use portico_api::distribution as wire;
use portico_api::rule::{CacheRule, CompressionRule, PolicyFault};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, ServerName};

use super::origin_identity::{OriginIdentity, Presents};
use super::route::parse_url;
use super::{Fault, TenantState, limits};
use crate::proxy_protocol;
use crate::upstream::ClientConfigs;

/// All that a proxy route says.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// 1 to [`limits::ORIGINS_MAX`].
    pub origins: Box<[WeightedOrigin]>,
    pub deadlines: UpstreamDeadlines,
    /// None: nothing is kept.
    pub cache: Option<CacheRule>,
    /// None: nothing is compressed.
    pub compression: Option<CompressionRule>,
    /// Tells the answers of this upstream from those of any other in the cache.
    pub fingerprint: u64,
}

/// One of the origins of a route and its share of the requests, from 1 to [`limits::ORIGIN_WEIGHT_MAX`].
#[derive(Clone, Debug)]
pub struct WeightedOrigin {
    pub origin: Arc<Origin>,
    pub weight: u32,
}

/// How long an origin may take; the edge's own times where absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UpstreamDeadlines {
    /// To a connection, TLS included.
    pub connect: Option<Duration>,
    /// From the request's end to the first byte of the answer.
    pub first_byte: Option<Duration>,
    /// Between two pieces of the answer.
    pub idle: Option<Duration>,
}

/// Where a request is sent on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    pub scheme: OriginScheme,
    pub host: OriginHost,
    pub port: u16,
    /// Sent as Host; absent: the request's own authority.
    pub host_header: Option<HeaderValue>,
    pub protocol: OriginProtocol,
    /// Each connection is one client's then.
    pub proxy_protocol: Option<proxy_protocol::Version>,
    /// In the TLS handshake and on the certificate; absent: the host.
    pub server_name: Option<ServerName<'static>>,
    /// Absent: the system's.
    pub roots: Option<Arc<OriginRoots>>,
    /// Where the origin asks for a client certificate.
    pub presents: Presents,
    pub health_check: Option<Arc<HealthCheck>>,
    pub breaker: Option<Breaker>,
}

/// The tenant has no client certificate here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NoIdentity;

/// What is spoken to an origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OriginProtocol {
    /// By ALPN over TLS, else HTTP/1.1.
    #[default]
    Auto,
    Http1,
    /// Over plain TCP by prior knowledge.
    Http2,
}

/// A route's own certificate authorities; equal where their certificates are.
#[derive(Debug)]
pub struct OriginRoots {
    der: Box<[Box<[u8]>]>,
    pub store: Arc<RootCertStore>,
    /// Made of them at the first connection.
    pub(crate) configs: OnceLock<ClientConfigs>,
}

/// How an origin is asked whether it is well.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HealthCheck {
    pub path: PathAndQuery,
    pub interval: Duration,
    pub healthy_after: u32,
    pub unhealthy_after: u32,
}

/// What an origin is spared, over all workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Breaker {
    pub in_flight_max: u32,
    pub pending_max: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OriginScheme {
    Http,
    Https,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OriginHost {
    /// Lower case A-labels, without a trailing dot; may be one label.
    Name(Box<str>),
    Address(IpAddr),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            OriginScheme::Http => "http",
            OriginScheme::Https => "https",
        };
        match &self.host {
            OriginHost::Name(name) => write!(f, "{scheme}://{name}:{}", self.port),
            OriginHost::Address(ip) => write!(f, "{scheme}://{}", SocketAddr::new(*ip, self.port)),
        }
    }
}

impl Upstream {
    /// To one origin, all else as it is without being said.
    pub fn to(origin: Origin) -> Self {
        let only = WeightedOrigin { origin: Arc::new(origin), weight: 1 };
        let (deadlines, cache, compression) = (UpstreamDeadlines::default(), None, None);
        Self { origins: [only].into(), deadlines, cache, compression, fingerprint: 0 }
    }

    /// # Errors
    /// A [`Fault`] that names what is wrong.
    pub fn parse(from: &wire::Proxy) -> Result<Self, Fault> {
        let bad = |why: String| Fault::new("BadProxy", why);
        let host_header = Some(from.host_header.as_str()).filter(|text| !text.is_empty());
        let only = [wire::WeightedOrigin { url: from.origin.clone(), weight: 1 }];
        let targets = if from.origins.is_empty() { &only[..] } else { &from.origins };
        if targets.len() > limits::ORIGINS_MAX {
            return Err(bad(format!("{} origins; at most {}", targets.len(), limits::ORIGINS_MAX)));
        }
        let protocol = match from.protocol() {
            wire::OriginProtocol::Auto => OriginProtocol::Auto,
            wire::OriginProtocol::Http1 => OriginProtocol::Http1,
            wire::OriginProtocol::Http2 => OriginProtocol::Http2,
        };
        let proxy_protocol = match from.proxy_protocol() {
            wire::ProxyProtocol::None => None,
            wire::ProxyProtocol::V1 => Some(proxy_protocol::Version::V1),
            wire::ProxyProtocol::V2 => Some(proxy_protocol::Version::V2),
        };
        let server_name = parse_server_name(&from.tls_server_name)?;
        let roots = OriginRoots::parse(&from.tls_ca_der)?.map(Arc::new);
        let presents = if from.tls_client_certificate { Presents::TenantsOwn } else { Presents::Nothing };
        let health_check = from.health_check.as_ref().map(HealthCheck::parse).transpose()?.map(Arc::new);
        let breaker = Breaker { in_flight_max: from.in_flight_max, pending_max: from.pending_max };
        let breaker = (from.in_flight_max > 0).then_some(breaker.within_bounds());
        let mut origins: Vec<WeightedOrigin> = Vec::with_capacity(targets.len());
        for target in targets {
            let plain = Origin::parse(&target.url, host_header)?;
            let origin = Origin {
                protocol,
                proxy_protocol,
                server_name: server_name.clone(),
                roots: roots.clone(),
                presents: presents.clone(),
                health_check: health_check.clone(),
                breaker,
                ..plain
            };
            if origins.iter().any(|other| *other.origin == origin) {
                return Err(bad(format!("origin `{:.200}` is listed twice", target.url.escape_debug())));
            }
            if !(1..=limits::ORIGIN_WEIGHT_MAX).contains(&target.weight) {
                return Err(bad(format!(
                    "weight {}; from 1 to {}",
                    target.weight,
                    limits::ORIGIN_WEIGHT_MAX
                )));
            }
            if origin.presents != Presents::Nothing && origin.scheme == OriginScheme::Http {
                let shown = target.url.escape_debug();
                return Err(bad(format!(
                    "`{shown:.200}` is not https: nobody there could see a client certificate"
                )));
            }
            origins.push(WeightedOrigin { origin: Arc::new(origin), weight: target.weight });
        }
        let cache = from.cache.as_ref().map(|from| CacheRule::parse(&from.into())).transpose();
        let compression =
            from.compression.as_ref().map(|from| CompressionRule::parse(&from.into())).transpose();
        Ok(Self {
            origins: origins.into(),
            deadlines: UpstreamDeadlines::parse(from),
            cache: cache.map_err(|faults| bad_policy("BadCachePolicy", "cache", &faults))?,
            compression: compression
                .map_err(|faults| bad_policy("BadCompressionPolicy", "compression", &faults))?,
            fingerprint: fingerprint(from),
        })
    }
}

impl Upstream {
    /// The same, with this client certificate for all its origins.
    #[must_use]
    pub fn presenting(mut self, identity: &Arc<OriginIdentity>) -> Self {
        for one in &mut self.origins {
            let presents = Presents::This(Arc::clone(identity));
            one.origin = Arc::new(Origin { presents, ..Origin::clone(&one.origin) });
        }
        let mut hasher = std::hash::DefaultHasher::new();
        (self.fingerprint, identity).hash(&mut hasher);
        self.fingerprint = hasher.finish();
        self
    }
}

fn bad_policy(code: &'static str, name: &str, faults: &[PolicyFault]) -> Fault {
    let text = faults.first().map(|fault| format!("{name}{}: {}", fault.below, fault.message));
    Fault::new(code, text.unwrap_or_default())
}

/// Of all that decides which content an answer has: where requests go, and as whom.
fn fingerprint(from: &wire::Proxy) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    let mut origins: Vec<&str> = from.origins.iter().map(|origin| origin.url.as_str()).collect();
    origins.sort_unstable();
    (&from.origin, origins, &from.host_header, &from.tls_server_name, from.tls_client_certificate)
        .hash(&mut hasher);
    hasher.finish()
}

impl UpstreamDeadlines {
    /// What is beyond the edge's bounds is cut to them: a route of a later release that allows more still works.
    fn parse(from: &wire::Proxy) -> Self {
        let within = |ms: u32, max: Duration| {
            (ms > 0).then(|| Duration::from_millis(ms.into()).clamp(limits::ORIGIN_TIMEOUT_MIN, max))
        };
        Self {
            connect: within(from.connect_timeout_ms, limits::ORIGIN_CONNECT_TIMEOUT_MAX),
            first_byte: within(from.first_byte_timeout_ms, limits::ORIGIN_ANSWER_TIMEOUT_MAX),
            idle: within(from.idle_timeout_ms, limits::ORIGIN_ANSWER_TIMEOUT_MAX),
        }
    }
}

impl OriginRoots {
    pub(super) fn parse(from: &[bytes::Bytes]) -> Result<Option<Self>, Fault> {
        let bad = |why: String| Fault::new("BadOriginCa", why);
        if from.is_empty() {
            return Ok(None);
        }
        if from.len() > limits::ORIGIN_ROOTS_MAX {
            return Err(bad(format!("{} certificates; at most {}", from.len(), limits::ORIGIN_ROOTS_MAX)));
        }
        let mut store = RootCertStore::empty();
        for der in from {
            store
                .add(CertificateDer::from(&der[..]))
                .map_err(|error| bad(format!("a CA certificate of an origin: {error}")))?;
        }
        Ok(Some(Self {
            der: from.iter().map(|der| der[..].into()).collect(),
            store: Arc::new(store),
            configs: OnceLock::new(),
        }))
    }
}

impl PartialEq for OriginRoots {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for OriginRoots {}

impl Hash for OriginRoots {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The rest differs rarely, and then equality tells.
        self.der.first().map(|der| &der[der.len().saturating_sub(32)..]).hash(state);
    }
}

impl HealthCheck {
    fn parse(from: &wire::HealthCheck) -> Result<Self, Fault> {
        let bad = |why: &str| Fault::new("BadHealthCheck", format!("health_check: {why}"));
        let fits = from.path.starts_with('/') && from.path.len() <= limits::PATH_PREFIX_BYTES_MAX;
        let path = from
            .path
            .parse()
            .ok()
            .filter(|_| fits)
            .ok_or_else(|| bad("path must begin with `/` and be of visible ASCII"))?;
        let count = |count: u32| (1..=limits::HEALTH_THRESHOLD_MAX).contains(&count);
        if !count(from.healthy_after) || !count(from.unhealthy_after) {
            let most = limits::HEALTH_THRESHOLD_MAX;
            return Err(bad(&format!("healthy_after and unhealthy_after must be from 1 to {most}")));
        }
        let interval = Duration::from_secs(from.interval_seconds.into());
        if !(limits::HEALTH_INTERVAL_MIN..=limits::HEALTH_INTERVAL_MAX).contains(&interval) {
            let (least, most) =
                (limits::HEALTH_INTERVAL_MIN.as_secs(), limits::HEALTH_INTERVAL_MAX.as_secs());
            return Err(bad(&format!("interval_seconds must be from {least} to {most}")));
        }
        let (healthy_after, unhealthy_after) = (from.healthy_after, from.unhealthy_after);
        Ok(Self { path, interval, healthy_after, unhealthy_after })
    }
}

impl Breaker {
    fn within_bounds(self) -> Self {
        Self {
            in_flight_max: self.in_flight_max.min(limits::BREAKER_IN_FLIGHT_MAX),
            pending_max: self.pending_max.min(limits::BREAKER_PENDING_MAX),
        }
    }
}

impl Origin {
    /// The client certificate to make a connection with.
    ///
    /// # Errors
    /// [`NoIdentity`] where there is to be one and none is here: without it the origin might answer as to a stranger.
    pub(crate) fn identity(&self, tenant: &TenantState) -> Result<Option<Arc<OriginIdentity>>, NoIdentity> {
        match &self.presents {
            Presents::Nothing => Ok(None),
            Presents::TenantsOwn => tenant.identity().map(Some).ok_or(NoIdentity),
            Presents::This(identity) => Ok(Some(Arc::clone(identity))),
        }
    }

    /// Host and port, as a Host header of its own.
    pub fn own_authority(&self) -> HeaderValue {
        let text = match &self.host {
            OriginHost::Name(name) => format!("{name}:{}", self.port),
            OriginHost::Address(ip) => SocketAddr::new(*ip, self.port).to_string(),
        };
        HeaderValue::try_from(text).expect("names and addresses are visible ASCII")
    }

    /// Reads `http://host[:port]` or `https://host[:port]`.
    ///
    /// # Errors
    /// A [`Fault`] if there is anything else, such as a path or credentials, or the Host header is not an authority.
    pub fn parse(text: &str, host_header: Option<&str>) -> Result<Self, Fault> {
        let bad =
            |why: &str| Fault::new("BadOrigin", format!("origin `{:.200}`: {why}", text.escape_debug()));
        let url = parse_url(text).ok_or_else(|| bad("not a URL such as https://origin.example:8443"))?;
        let scheme = match url.scheme() {
            "http" => OriginScheme::Http,
            "https" => OriginScheme::Https,
            _ => return Err(bad("only http and https are spoken")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("credentials do not belong in an origin"));
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err(bad("an origin has no path; the request's own is kept"));
        }
        let host = match url.host() {
            Some(url::Host::Domain(name)) => {
                OriginHost::Name(parse_origin_name(name).ok_or_else(|| bad("not a host name"))?)
            }
            Some(url::Host::Ipv4(address)) => OriginHost::Address(address.into()),
            Some(url::Host::Ipv6(address)) => OriginHost::Address(address.into()),
            None => return Err(bad("no host")),
        };
        let port = url.port_or_known_default().filter(|port| *port != 0).ok_or_else(|| bad("no port"))?;
        let host_header = match host_header {
            Some(text) => {
                Some(parse_authority(text).ok_or_else(|| bad("the Host header is not an authority"))?)
            }
            None => None,
        };
        let (protocol, proxy_protocol) = (OriginProtocol::Auto, None);
        let (server_name, roots, presents) = (None, None, Presents::Nothing);
        let (health_check, breaker) = (None, None);
        Ok(Self {
            scheme,
            host,
            port,
            host_header,
            protocol,
            proxy_protocol,
            server_name,
            roots,
            presents,
            health_check,
            breaker,
        })
    }
}

fn parse_origin_name(name: &str) -> Option<Box<str>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label_fits = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    (name.len() <= 253 && name.split('.').all(label_fits)).then(|| name.to_ascii_lowercase().into())
}

fn parse_server_name(text: &str) -> Result<Option<ServerName<'static>>, Fault> {
    if text.is_empty() {
        return Ok(None);
    }
    let name = ServerName::try_from(text.to_ascii_lowercase()).map_err(|_| {
        Fault::new("BadServerName", format!("TLS server name `{:.200}` is no host name", text.escape_debug()))
    })?;
    Ok(Some(name))
}

fn parse_authority(text: &str) -> Option<HeaderValue> {
    let authority: Authority = text.parse().ok()?;
    let plain = !text.contains('@') && !authority.host().is_empty() && text.len() <= 300;
    if plain { HeaderValue::from_str(text).ok() } else { None }
}
