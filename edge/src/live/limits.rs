//! Bounds on what the control plane may make an edge hold. Each is hit by a test.

use std::time::Duration;

use portico_api::rule;
/// Bounds of rules are those of the API, where the same text is read.
pub use portico_api::rule::{PATH_BYTES_MAX as PATH_PREFIX_BYTES_MAX, ROUTES_MAX};
/// Origins of one route, the weight of one, and its own CA certificates.
pub const ORIGINS_MAX: usize = 16;
pub const ORIGIN_WEIGHT_MAX: u32 = 1000;
pub const ORIGIN_ROOTS_MAX: usize = 16;
/// Sets of roots that one client identity's TLS configurations are kept for; beyond, they are made anew.
pub const ORIGIN_IDENTITY_ROOTS_MAX: usize = 16;
/// How far a route may move an origin's deadlines from those of the edge.
pub const ORIGIN_TIMEOUT_MIN: Duration = Duration::from_millis(*rule::CONNECT_MS.start() as u64);
pub const ORIGIN_CONNECT_TIMEOUT_MAX: Duration = Duration::from_millis(*rule::CONNECT_MS.end() as u64);
pub const ORIGIN_ANSWER_TIMEOUT_MAX: Duration = Duration::from_millis(*rule::ANSWER_MS.end() as u64);
/// What a health check may ask for.
pub const HEALTH_INTERVAL_MIN: Duration = Duration::from_secs(*rule::HEALTH_INTERVAL_SECONDS.start() as u64);
pub const HEALTH_INTERVAL_MAX: Duration = Duration::from_secs(*rule::HEALTH_INTERVAL_SECONDS.end() as u64);
pub const HEALTH_THRESHOLD_MAX: u32 = *rule::HEALTH_THRESHOLD.end();
/// What a circuit breaker may let through.
pub const BREAKER_IN_FLIGHT_MAX: u32 = *rule::BREAKER_IN_FLIGHT.end();
pub const BREAKER_PENDING_MAX: u32 = *rule::BREAKER_PENDING.end();
/// A redirect's location, bytes; browsers and caches cut longer ones.
pub const LOCATION_BYTES_MAX: usize = 2048;
/// A static answer's body, bytes; it lives in memory on each edge.
pub const STATIC_BODY_BYTES_MAX: usize = 64 * 1024;
/// A tenant's error pages, each of one status, and the bytes of them all.
pub const ERROR_PAGES_MAX: usize = 32;
pub const ERROR_PAGES_BYTES_MAX: usize = portico_api::v1::ERROR_PAGES_BYTES_MAX;
/// The content type of a static answer or an error page, bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 256;
/// What a page in maintenance says, bytes, and for how long clients are sent away.
pub const MAINTENANCE_TEXT_BYTES_MAX: usize = 500;
pub const RETRY_AFTER_SECONDS_MAX: u32 = 7 * 24 * 3600;
/// Why a site is suspended, bytes (shown on the page).
pub const SUSPENSION_REASON_BYTES_MAX: usize = 500;
/// An ACME account's JWK thumbprint: 43 characters for SHA-256 (RFC 7638), longer for a larger hash.
pub const THUMBPRINT_BYTES_MAX: usize = 128;
/// Grants of one tenant, and ports of one grant.
pub const EGRESS_GRANTS_MAX: usize = 64;
pub const EGRESS_PORTS_MAX: usize = 64;
/// Networks that the fleet denies to all tenants.
pub const DENIED_NETWORKS_MAX: usize = 4096;
/// Certificates of one chain. The control plane takes in none that is longer.
pub const CHAIN_CERTIFICATES_MAX: usize = portico_cert_store::CHAIN_LENGTH_MAX;
/// Slots of one name; more references are refused rather than cut.
pub const LINEAGES_PER_NAME_MAX: usize = 4;
/// References of one domain over all cells.
pub const LINEAGE_REFERENCES_MAX: usize = 64;
/// Targets of one purge, and bytes of a URL or a tag among them.
pub const PURGE_TARGETS_MAX: usize = 100;
pub const PURGE_TARGET_BYTES_MAX: usize = 4096;
/// A resource's id, bytes.
pub const RESOURCE_ID_BYTES_MAX: usize = 64;

/// Resources in one snapshot: a million names, each with a certificate of its own, and room.
pub const SNAPSHOT_RESOURCES_MAX: u64 = 4_000_000;
/// One snapshot, bytes encoded.
pub const SNAPSHOT_BYTES_MAX: usize = 2 << 30;
/// Resources and tombstones in one delta; a longer way to catch up is a snapshot.
pub const DELTA_ITEMS_MAX: usize = 100_000;

/// Challenges held at once over all hosts; a validation takes seconds.
pub const CHALLENGES_MAX: usize = 16_384;
/// HTTP-01 tokens for one host at once: several issuers, each with retries.
pub const CHALLENGES_PER_HOST_MAX: usize = 16;
/// HTTP-01 token, characters (RFC 8555 section 8.3 wants 128 bits: 22; CAs send 43).
pub const TOKEN_BYTES_MIN: usize = 22;
pub const TOKEN_BYTES_MAX: usize = 128;
/// A key authorization: token, a dot, a thumbprint.
pub const KEY_AUTHORIZATION_BYTES_MAX: usize = TOKEN_BYTES_MAX + 1 + THUMBPRINT_BYTES_MAX;
/// The longest time that a challenge lives, whatever its sender says, milliseconds.
pub const CHALLENGE_LIFE_MS_MAX: i64 = 24 * 3600 * 1000;
/// How long one lives whose deadline has passed when it comes, because its sender's clock is behind ours: longer than a CA looks.
pub const CHALLENGE_LIFE_APART_MS: i64 = 15 * 60 * 1000;
