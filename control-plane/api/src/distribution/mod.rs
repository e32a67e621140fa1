//! The distribution protocol: generated messages, and the few conversions that both sides need.
//!
//! The messages come from `proto/portico/distribution/v1.proto`; a test regenerates them and compares.

#[expect(
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    unused_qualifications,
    reason = "generated code"
)]
#[rustfmt::skip] // as the generator writes it; a test compares
mod generated;

pub use generated::*;

use crate::v1;

/// The protocol version that this release speaks. Neighbouring versions work together.
pub const PROTOCOL_VERSION: u32 = 1;

/// What this release knows of `Rule`. It rises when a field is added, to it or to an action, that no edge may leave out.
pub const RULE_LEVEL: u32 = RULE_LEVEL_CLIENT_CERTIFICATE;

/// Of a rule that says no more than every edge with rules knows.
pub const RULE_LEVEL_FIRST: u32 = 1;

/// With `Proxy.tls_client_certificate`.
pub const RULE_LEVEL_CLIENT_CERTIFICATE: u32 = 2;

/// The largest encoded snapshot chunk, bytes.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = 1 << 20;

/// The largest single resource, bytes; a larger one is a fault of the envelope.
pub const RESOURCE_BYTES_MAX: usize = 512 * 1024;

/// Names of one drill: a handshake each, 0.2 ms of the thread that holds an edge's control stream.
pub const DRILL_NAMES_MAX: usize = 500;

/// Names that an edge makes a key for at once: the most of any CA's certificate.
pub const KEY_REQUEST_NAMES_MAX: usize = 100;

/// Rows of one usage report.
pub const USAGE_ROWS_MAX: usize = 2000;

/// More than this share of names removed at once needs the sign-off flag, in percent ...
pub const REMOVAL_PERCENT_MAX: u64 = 5;
/// ... unless so few names go that no fleet-wide mistake can be behind it.
pub const REMOVAL_ALWAYS_ALLOWED: u64 = 32;

/// The URI SAN scheme of an edge's identity: `portico://edge/<edge id>`.
pub const EDGE_URI_PREFIX: &str = "portico://edge/";

impl From<portico_cert_store::Generation> for Generation {
    fn from(from: portico_cert_store::Generation) -> Self {
        Self { epoch: from.epoch, sequence: from.sequence }
    }
}

impl From<Generation> for portico_cert_store::Generation {
    fn from(from: Generation) -> Self {
        Self { epoch: from.epoch, sequence: from.sequence }
    }
}

impl From<v1::TenantLimits> for TenantLimits {
    fn from(from: v1::TenantLimits) -> Self {
        Self {
            requests_per_second: from.requests_per_second.unwrap_or_default(),
            exchanges: from.exchanges.unwrap_or_default(),
            bytes_per_second: from.bytes_per_second.unwrap_or_default(),
            request_body_bytes: from.request_body_bytes.unwrap_or_default(),
            connections: from.connections.unwrap_or_default(),
            cache_bytes: from.cache_bytes.unwrap_or_default(),
        }
    }
}

impl From<TenantLimits> for v1::TenantLimits {
    fn from(from: TenantLimits) -> Self {
        Self {
            requests_per_second: Some(from.requests_per_second).filter(|said| *said > 0),
            exchanges: Some(from.exchanges).filter(|said| *said > 0),
            bytes_per_second: Some(from.bytes_per_second).filter(|said| *said > 0),
            request_body_bytes: Some(from.request_body_bytes).filter(|said| *said > 0),
            connections: Some(from.connections).filter(|said| *said > 0),
            cache_bytes: Some(from.cache_bytes).filter(|said| *said > 0),
        }
    }
}

impl ErrorPage {
    /// All of a tenant.
    pub fn all_of(pages: &v1::ErrorPages) -> Vec<Self> {
        let wire = |(status, page): (u16, &v1::ErrorPage)| Self {
            status: status.into(),
            content_type: page.content_type.as_str().to_owned(),
            body: page.body.clone(),
        };
        pages.iter().map(wire).collect()
    }
}

impl PurgeTarget {
    /// All that a request names.
    pub fn all_of(asked: v1::PurgeRequest) -> Vec<Self> {
        use purge_target::Kind;
        let v1::PurgeRequest { urls, prefixes, hosts, tags, everything, soft: _ } = asked;
        let named = urls
            .into_iter()
            .map(Kind::Url)
            .chain(prefixes.into_iter().map(Kind::Prefix))
            .chain(hosts.into_iter().map(Kind::Host))
            .chain(tags.into_iter().map(Kind::Tag))
            .chain(everything.then_some(Kind::Everything(true)));
        named.map(|kind| Self { kind: Some(kind) }).collect()
    }
}

/// All but `tls_ca_der`: reading PEM is the affair of those who have a place to say what is wrong with it.
impl From<&v1::Proxy> for Proxy {
    fn from(from: &v1::Proxy) -> Self {
        let first = from.origin.as_ref().or_else(|| from.origins.first().map(|origin| &origin.url));
        let weighted =
            |origin: &v1::WeightedOrigin| WeightedOrigin { url: origin.url.clone(), weight: origin.weight };
        let timeouts = from.timeouts.as_ref();
        let milliseconds =
            |of: fn(&v1::ProxyTimeouts) -> Option<u32>| timeouts.and_then(of).unwrap_or_default();
        let breaker = from.breaker.as_ref();
        Self {
            origin: first.cloned().unwrap_or_default(),
            host_header: from.host_header.clone().unwrap_or_default(),
            origins: from.origins.iter().map(weighted).collect(),
            protocol: match from.protocol {
                v1::OriginProtocol::Auto => OriginProtocol::Auto,
                v1::OriginProtocol::Http1 => OriginProtocol::Http1,
                v1::OriginProtocol::Http2 => OriginProtocol::Http2,
            }
            .into(),
            proxy_protocol: match from.proxy_protocol {
                None => ProxyProtocol::None,
                Some(v1::ProxyProtocol::V1) => ProxyProtocol::V1,
                Some(v1::ProxyProtocol::V2) => ProxyProtocol::V2,
            }
            .into(),
            tls_server_name: from.tls.as_ref().and_then(|tls| tls.server_name.clone()).unwrap_or_default(),
            tls_ca_der: Vec::new(),
            tls_client_certificate: from.tls.as_ref().is_some_and(|tls| tls.client_certificate),
            health_check: from.health_check.as_ref().map(|check| HealthCheck {
                path: check.path.clone(),
                interval_seconds: check.interval_seconds,
                healthy_after: check.healthy_after,
                unhealthy_after: check.unhealthy_after,
            }),
            connect_timeout_ms: milliseconds(|timeouts| timeouts.connect_ms),
            first_byte_timeout_ms: milliseconds(|timeouts| timeouts.first_byte_ms),
            idle_timeout_ms: milliseconds(|timeouts| timeouts.idle_ms),
            in_flight_max: breaker.map(|breaker| breaker.in_flight_max).unwrap_or_default(),
            pending_max: breaker.map(|breaker| breaker.pending_max).unwrap_or_default(),
            cache: from.cache.as_ref().map(CachePolicy::from),
            compression: from.compression.as_ref().map(CompressionPolicy::from),
        }
    }
}

impl From<&v1::CachePolicy> for CachePolicy {
    fn from(from: &v1::CachePolicy) -> Self {
        Self {
            default_ttl_seconds: from.default_ttl_seconds,
            error_ttl_seconds: from.error_ttl_seconds,
            stale_while_revalidate_seconds: from.stale_while_revalidate_seconds,
            stale_if_error_seconds: from.stale_if_error_seconds,
            max_object_bytes: from.max_object_bytes.unwrap_or_default(),
            query_sort: from.query.sort,
            query_ignore: from.query.ignore.clone(),
        }
    }
}

impl From<&v1::CompressionPolicy> for CompressionPolicy {
    fn from(from: &v1::CompressionPolicy) -> Self {
        let coding = |coding: &v1::ContentCoding| match coding {
            v1::ContentCoding::Br => ContentCoding::Br.into(),
            v1::ContentCoding::Zstd => ContentCoding::Zstd.into(),
            v1::ContentCoding::Gzip => ContentCoding::Gzip.into(),
        };
        Self {
            codings: from.codings.iter().map(coding).collect(),
            min_bytes: from.min_bytes.unwrap_or_default(),
            content_types: from.content_types.clone(),
        }
    }
}

impl From<&CompressionPolicy> for v1::CompressionPolicy {
    fn from(from: &CompressionPolicy) -> Self {
        let coding = |coding| match coding {
            ContentCoding::Br => Some(v1::ContentCoding::Br),
            ContentCoding::Zstd => Some(v1::ContentCoding::Zstd),
            ContentCoding::Gzip => Some(v1::ContentCoding::Gzip),
            ContentCoding::Unspecified => None,
        };
        Self {
            codings: from.codings().filter_map(coding).collect(),
            min_bytes: (from.min_bytes > 0).then_some(from.min_bytes),
            content_types: from.content_types.clone(),
        }
    }
}

impl From<&CachePolicy> for v1::CachePolicy {
    fn from(from: &CachePolicy) -> Self {
        Self {
            default_ttl_seconds: from.default_ttl_seconds,
            error_ttl_seconds: from.error_ttl_seconds,
            stale_while_revalidate_seconds: from.stale_while_revalidate_seconds,
            stale_if_error_seconds: from.stale_if_error_seconds,
            max_object_bytes: (from.max_object_bytes > 0).then_some(from.max_object_bytes),
            query: v1::QueryKey { sort: from.query_sort, ignore: from.query_ignore.clone() },
        }
    }
}
