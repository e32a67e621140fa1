//! The edges' cache: what a route keeps, and how it is made to forget.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What edges keep of a route's answers to GET: those that say how long they are good (RFC 9111; `CDN-Cache-Control` before
/// `Cache-Control`, RFC 9213), and others only where this says so. Never kept, whatever is said here: answers with
/// `Set-Cookie`, `private` or `no-store`, to requests with `Authorization` unless they allow it, and those of a status that a
/// single visitor can bring about (400, 405, 413, 414, 431 and the like).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CachePolicy {
    /// How long an answer of 200, 203, 204, 300, 301 or 308 is good that does not say it itself, to a request without
    /// `Cookie`; at most 31,536,000. 0: it is not kept.
    #[serde(default, skip_serializing_if = "is_default")]
    pub default_ttl_seconds: u32,
    /// The same for 404, 410, 500, 502, 503 and 504; at most 3,600. What one visitor's odd request makes the origin fail with
    /// is then every visitor's answer for so long: a few seconds keep a crowd off a failing origin as well.
    #[serde(default, skip_serializing_if = "is_default")]
    pub error_ttl_seconds: u32,
    /// How long beyond that an answer is given at once while a new one is fetched, if it does not say it itself (RFC 5861);
    /// at most 31,536,000.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stale_while_revalidate_seconds: u32,
    /// How long beyond that it stands in for an origin that fails; at most 31,536,000.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stale_if_error_seconds: u32,
    /// Larger answers are passed on and not kept; 1,024 to 1,073,741,824, and an eighth of an edge's cache at most.
    /// Absent: 8,388,608.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_object_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub query: QueryKey,
}

/// Which queries are one. The origin gets the query as it is understood here: it must not answer by what does not count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QueryKey {
    /// Whatever the order of the parameters; those of one name keep theirs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sort: bool,
    /// Parameters that are left out, at most 64: a name, or its beginning and `*`, such as `utm_*`; `*` alone: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore: Vec<String>,
}

/// What edges are to forget of one tenant; at least one thing, and at most 100 in all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PurgeRequest {
    /// Absolute URLs, as visitors see them; without a port: on whichever port the edges are reached. The query counts as the
    /// route's `query` says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// What begins with one of these: absolute URLs without query, such as `https://shop.example/img/`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<String>,
    /// Everything of these hosts, on all ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// What the origin marked so by `Cache-Tag` (separated by commas) or `Surrogate-Key` (by spaces).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Everything of the tenant.
    #[serde(default, skip_serializing_if = "is_default")]
    pub everything: bool,
    /// Not forgotten but made stale: asked of the origin again before it is used, or meanwhile where the answer or the route
    /// allows stale ones.
    #[serde(default, skip_serializing_if = "is_default")]
    pub soft: bool,
}

/// A purge that is on its way; an edge that was away is told when it is back, before it is told anything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Purge {
    /// Rising.
    pub number: u64,
    /// Edges that have done it.
    pub done: Vec<PurgeDone>,
    /// Edges that have not said so within 5 s.
    pub pending: Vec<String>,
}

/// One edge's word that it has done a purge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PurgeDone {
    pub edge: String,
    /// Kept answers that were named; 0: it kept none of them.
    pub answers: u64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
