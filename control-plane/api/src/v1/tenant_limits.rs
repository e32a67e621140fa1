//! What one tenant may take of each edge.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Bounds on what one tenant's visitors take, on each edge on its own. What is absent is as the fleet has it, and unbounded
/// where the fleet says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantLimits {
    /// 1 to 1,000,000, and twice that at once after a pause (the burst); beyond: 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<u32>,
    /// Requests under way at once and open tunnels, 1 to 1,000,000; beyond: 503.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchanges: Option<u32>,
    /// Of answers' bodies, 16,384 to 1,099,511,627,776: answers come more slowly. Who would wait for more than 10 s before
    /// the first byte gets 503.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// Of one request, 1 to 1,099,511,627,776; 104,857,600 where nobody says anything; beyond: 413.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_body_bytes: Option<u64>,
    /// Connections over TLS and QUIC that are open at once, 1 to 1,000,000; whose each is the name says that its client asked
    /// for. Beyond: over TCP the alert `internal_error`, over QUIC H3_EXCESSIVE_LOAD. Plain HTTP says no name and is not
    /// counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
    /// Of the edge's response cache, 1 to 1,099,511,627,776: beyond, the tenant's own oldest answers go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<u64>,
}

/// See [`TenantLimits::requests_per_second`].
pub const TENANT_REQUESTS_PER_SECOND_MAX: u32 = 1_000_000;
/// See [`TenantLimits::exchanges`].
pub const TENANT_EXCHANGES_MAX: u32 = 1_000_000;
/// See [`TenantLimits::connections`].
pub const TENANT_CONNECTIONS_MAX: u32 = 1_000_000;
/// See [`TenantLimits::bytes_per_second`]. Below, a page of one piece would take seconds.
pub const TENANT_BYTES_PER_SECOND_MIN: u64 = 16 * 1024;
/// Of bandwidth, of one request's body and of the cache.
pub const TENANT_BYTES_MAX: u64 = 1 << 40;

impl TenantLimits {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong: the field's name and why.
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        let fields = [
            (
                "requests_per_second",
                self.requests_per_second.map(u64::from),
                1,
                TENANT_REQUESTS_PER_SECOND_MAX.into(),
            ),
            ("exchanges", self.exchanges.map(u64::from), 1, TENANT_EXCHANGES_MAX.into()),
            ("bytes_per_second", self.bytes_per_second, TENANT_BYTES_PER_SECOND_MIN, TENANT_BYTES_MAX),
            ("request_body_bytes", self.request_body_bytes, 1, TENANT_BYTES_MAX),
            ("connections", self.connections.map(u64::from), 1, TENANT_CONNECTIONS_MAX.into()),
            ("cache_bytes", self.cache_bytes, 1, TENANT_BYTES_MAX),
        ];
        let is_wrong =
            |value: Option<u64>, min, max| value.is_some_and(|value| !(min..=max).contains(&value));
        let wrong = fields.into_iter().filter(|&(_, value, min, max)| is_wrong(value, min, max));
        wrong.map(|(name, _, min, max)| (name, format!("must be from {min} to {max}"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_has_bounds() {
        let good = [
            TenantLimits::default(),
            TenantLimits {
                requests_per_second: Some(1),
                exchanges: Some(1),
                bytes_per_second: Some(TENANT_BYTES_PER_SECOND_MIN),
                request_body_bytes: Some(1),
                connections: Some(1),
                cache_bytes: Some(1),
            },
            TenantLimits {
                requests_per_second: Some(TENANT_REQUESTS_PER_SECOND_MAX),
                exchanges: Some(TENANT_EXCHANGES_MAX),
                bytes_per_second: Some(TENANT_BYTES_MAX),
                request_body_bytes: Some(TENANT_BYTES_MAX),
                connections: Some(TENANT_CONNECTIONS_MAX),
                cache_bytes: Some(TENANT_BYTES_MAX),
            },
        ];
        assert!(good.iter().all(|limits| limits.faults().is_empty()));
        let none = TenantLimits {
            requests_per_second: Some(0),
            exchanges: Some(0),
            bytes_per_second: Some(TENANT_BYTES_PER_SECOND_MIN - 1),
            request_body_bytes: Some(0),
            connections: Some(0),
            cache_bytes: Some(0),
        };
        let more = TenantLimits {
            requests_per_second: Some(TENANT_REQUESTS_PER_SECOND_MAX + 1),
            exchanges: Some(TENANT_EXCHANGES_MAX + 1),
            bytes_per_second: Some(TENANT_BYTES_MAX + 1),
            request_body_bytes: Some(TENANT_BYTES_MAX + 1),
            connections: Some(TENANT_CONNECTIONS_MAX + 1),
            cache_bytes: Some(TENANT_BYTES_MAX + 1),
        };
        for limits in [none, more] {
            let names: Vec<_> = limits.faults().into_iter().map(|(name, _)| name).collect();
            let all = [
                "requests_per_second",
                "exchanges",
                "bytes_per_second",
                "request_body_bytes",
                "connections",
                "cache_bytes",
            ];
            assert_eq!(names, all);
        }
    }
}
