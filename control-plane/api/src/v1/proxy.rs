//! Proxying: where requests go, how origins are trusted, watched and spared.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{CachePolicy, CompressionPolicy};

/// Passes requests on. Exactly one of `origin` and `origins` is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Proxy {
    /// `http://host[:port]` or `https://host[:port]`, no path, no credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Several, 1 to 16; each request goes to one that is well and has the least to do for its weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub origins: Vec<WeightedOrigin>,
    /// Sent to the origin as Host; the request's own authority when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_header: Option<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub protocol: OriginProtocol,
    /// Begins each connection to an origin with the client's address; then none is kept for another request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// For https origins; without it they are verified for their own host by the edge's system roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<OriginTls>,
    /// Without it an origin is only judged by how it answers visitors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<ProxyTimeouts>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<CircuitBreaker>,
    /// Without it nothing of the route is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CachePolicy>,
    /// Without it edges compress nothing of the route; what its origin has compressed passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<CompressionPolicy>,
}

/// One of several origins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedOrigin {
    /// As `origin`.
    pub url: String,
    /// 1 to 1000: its share of the requests, beside the others' weights.
    #[serde(default = "one")]
    pub weight: u32,
}

/// What is spoken to origins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OriginProtocol {
    /// https: HTTP/2 where the origin chooses it (ALPN), else HTTP/1.1; http: HTTP/1.1.
    #[default]
    Auto,
    Http1,
    /// Also without TLS, by prior knowledge; for gRPC.
    Http2,
}

/// Tells who the client is before anything else is said, TLS included; the origin must expect it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProxyProtocol {
    /// As a line of text.
    V1,
    V2,
}

/// How https origins are verified; that they are cannot be turned off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OriginTls {
    /// The name in the TLS handshake and on the origin's certificate; the origin's host when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// PEM, 1 to 16 certificates: only what these have signed is trusted, in the place of the system roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// Origins that ask for a client certificate are shown the tenant's own. Let them trust the tenant's origin authority first
    /// (`/v1/tenants/{id}/origin-authority`); all origins must be https.
    #[serde(default, skip_serializing_if = "is_default")]
    pub client_certificate: bool,
}

/// Each edge asks each origin of a route that is in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// Asked with GET; 200 to 399 is well.
    #[serde(default = "root")]
    pub path: String,
    /// 1 to 3600.
    #[serde(default = "ten")]
    pub interval_seconds: u32,
    /// This many good answers in a row make an origin well again, 1 to 10.
    #[serde(default = "two")]
    pub healthy_after: u32,
    /// This many bad ones in a row make it unwell, 1 to 10.
    #[serde(default = "three")]
    pub unhealthy_after: u32,
}

/// How long an origin may take; the edge's own times where absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxyTimeouts {
    /// To a connection, TLS included: 10 to 60,000; the edge's is 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<u32>,
    /// From the request's end, its body included, to the answer's first byte: 10 to 600,000; the edge's is 60,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<u32>,
    /// Between two pieces of the answer: 10 to 600,000; the edge's is 60,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u32>,
}

/// What one origin is spared, at each edge: more than this is answered 503 at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CircuitBreaker {
    /// Requests under way to one origin, 1 to 100,000.
    pub in_flight_max: u32,
    /// Requests that wait for one of those to end, 0 to 10,000; they wait as long as a connect may take.
    #[serde(default)]
    pub pending_max: u32,
}

impl Proxy {
    /// To one origin, all else as it is without being said.
    pub fn to(origin: impl Into<String>) -> Self {
        Self { origin: Some(origin.into()), ..Self::default() }
    }

    /// All origins with their weights.
    pub fn targets(&self) -> Vec<WeightedOrigin> {
        let only = self.origin.iter().map(|url| WeightedOrigin { url: url.clone(), weight: 1 });
        only.chain(self.origins.iter().cloned()).collect()
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn root() -> String {
    "/".to_owned()
}

fn one() -> u32 {
    1
}

fn two() -> u32 {
    2
}

fn three() -> u32 {
    3
}

fn ten() -> u32 {
    10
}
