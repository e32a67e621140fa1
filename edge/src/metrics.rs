//! Every metric of the data plane: one place for names, one struct of handles made once.
//!
//! No label comes from a client, so the number of series is bounded. Hot counters are handles: an increment is one
//! atomic addition, without a lookup.

use std::sync::OnceLock;

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use portico_api::v1::ContentCoding;

use crate::{
    cache::Outcome,
    coding, control,
    exchange::Protocol,
    http::clock::Expired,
    io,
    live::Action,
    memory::{self, Memory},
};

/// Metric names; dashboards and tests may use these and no others.
pub mod names {
    pub const IO_BACKEND: &str = "portico_edge_io_backend";
    pub const IO_OPERATIONS: &str = "portico_edge_io_operations_total";
    pub const WORKERS: &str = "portico_edge_workers";
    pub const CONNECTIONS: &str = "portico_edge_connections";
    pub const CONNECTIONS_TOTAL: &str = "portico_edge_connections_total";
    pub const CONNECTIONS_REFUSED: &str = "portico_edge_connections_refused_total";
    pub const CONNECTIONS_EVICTED: &str = "portico_edge_connections_evicted_total";
    pub const ACCEPT_ERRORS: &str = "portico_edge_accept_errors_total";
    pub const CONNECTIONS_EXPIRED: &str = "portico_edge_connections_expired_total";
    pub const EARLY_REQUESTS: &str = "portico_edge_early_requests_total";
    pub const CONNECTIONS_ABUSIVE: &str = "portico_edge_connections_abusive_total";
    pub const QUIC_RETRIES: &str = "portico_edge_quic_retries_total";
    pub const QUIC_FORWARDED: &str = "portico_edge_quic_forwarded_packets_total";
    pub const STREAMS_STALLED: &str = "portico_edge_streams_stalled_total";
    pub const HANDSHAKES: &str = "portico_edge_handshakes_total";
    pub const HANDSHAKE_SECONDS: &str = "portico_edge_handshake_seconds";
    pub const MEMORY_BYTES: &str = "portico_edge_memory_bytes";
    pub const MEMORY_BOUND: &str = "portico_edge_memory_bound_bytes";
    pub const MEMORY_SHORT: &str = "portico_edge_memory_short";
    pub const MEMORY_SHORTAGES: &str = "portico_edge_memory_shortages_total";
    pub const CERTIFICATE_COMPRESSIONS: &str = "portico_edge_certificate_compressions_total";
    pub const PROXY_HEADERS: &str = "portico_edge_proxy_headers_total";
    pub const EXCHANGES: &str = "portico_edge_exchanges_total";
    pub const EXCHANGE_SECONDS: &str = "portico_edge_exchange_seconds";
    pub const FIRST_BYTE_SECONDS: &str = "portico_edge_first_byte_seconds";
    pub const REQUESTS_REFUSED: &str = "portico_edge_requests_refused_total";
    pub const LIMITED: &str = "portico_edge_limited_total";
    pub const MISDIRECTED: &str = "portico_edge_misdirected_total";
    pub const CHALLENGES_ANSWERED: &str = "portico_edge_challenges_answered_total";
    pub const ORIGIN_CONNECTS: &str = "portico_edge_origin_connects_total";
    pub const ORIGIN_CONNECT_SECONDS: &str = "portico_edge_origin_connect_seconds";
    pub const ORIGIN_FIRST_BYTE_SECONDS: &str = "portico_edge_origin_first_byte_seconds";
    pub const ORIGIN_REUSES: &str = "portico_edge_origin_reuses_total";
    pub const ORIGIN_RETRIES: &str = "portico_edge_origin_retries_total";
    pub const ORIGIN_RETRIES_REFUSED: &str = "portico_edge_origin_retries_refused_total";
    pub const ORIGIN_EJECTIONS: &str = "portico_edge_origin_ejections_total";
    pub const ORIGINS_ALL_OUT: &str = "portico_edge_origins_all_out_total";
    pub const ORIGIN_HEALTH_CHECKS: &str = "portico_edge_origin_health_checks_total";
    pub const ORIGIN_ERRORS: &str = "portico_edge_origin_errors_total";
    pub const CACHE_REQUESTS: &str = "portico_edge_cache_requests_total";
    pub const CACHE_BYTES: &str = "portico_edge_cache_bytes";
    pub const CACHE_ENTRIES: &str = "portico_edge_cache_entries";
    pub const CACHE_EVICTIONS: &str = "portico_edge_cache_evictions_total";
    pub const CACHE_PURGED: &str = "portico_edge_cache_purged_total";
    pub const COMPRESSIONS: &str = "portico_edge_compressions_total";
    pub const EGRESS_REFUSED: &str = "portico_edge_egress_refused_total";
    pub const ACCESS_LOG_LINES: &str = "portico_edge_access_log_lines_total";
    pub const ACCESS_LOG_DROPPED: &str = "portico_edge_access_log_dropped_total";
    pub const SPANS: &str = "portico_edge_spans_total";
    pub const PANICS: &str = "portico_edge_panics_total";
    pub const NAMES: &str = "portico_edge_names";
    pub const SNI_LOOKUPS: &str = "portico_edge_sni_lookups_total";
    pub const TLS_VERSIONS: &str = "portico_edge_tls_versions_total";
    pub const KEY_EXCHANGES: &str = "portico_edge_key_exchanges_total";
    pub const EXCHANGES_IN_FLIGHT: &str = "portico_edge_exchanges_in_flight";
    pub const EXCHANGES_BY_ACTION: &str = "portico_edge_exchanges_by_action_total";
    pub const CONNECTIONS_SERVED: &str = "portico_edge_connections_served";
    pub const LAST_RELOAD_SUCCESSFUL: &str = "portico_edge_last_reload_successful";
    pub const DRAINING: &str = "portico_edge_draining";
    pub const BUILD_INFO: &str = "portico_edge_build_info";
}

/// How a TLS handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeEnd {
    Full,
    Resumed,
    Challenge,
    UnknownName,
    NoKey,
    /// The client's is missing or does not lead to an authority of the name.
    ClientCertificate,
    /// The name's tenant has as many connections as it may.
    TenantConnections,
    /// The client's address has used up what signatures it may have made.
    SourceHandshakes,
    TimedOut,
    /// What came is no TLS at all.
    NotTls,
    /// The hello is larger than its bound.
    HelloTooLarge,
    /// It breaks the protocol.
    Malformed,
    /// The client speaks no version that the name has.
    Version,
    /// No cipher suite, group or signature scheme in common.
    NothingInCommon,
    /// No application protocol in common.
    NoProtocol,
    /// The client says no, by an alert: it does not like our certificate, say.
    RefusedByClient,
    /// The client went away without a word.
    Aborted,
    Failed,
}

impl HandshakeEnd {
    const ALL: [Self; 18] = [
        Self::Full,
        Self::Resumed,
        Self::Challenge,
        Self::UnknownName,
        Self::NoKey,
        Self::ClientCertificate,
        Self::TenantConnections,
        Self::SourceHandshakes,
        Self::TimedOut,
        Self::NotTls,
        Self::HelloTooLarge,
        Self::Malformed,
        Self::Version,
        Self::NothingInCommon,
        Self::NoProtocol,
        Self::RefusedByClient,
        Self::Aborted,
        Self::Failed,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Resumed => "resumed",
            Self::Challenge => "challenge",
            Self::UnknownName => "unknown_name",
            Self::NoKey => "no_key",
            Self::ClientCertificate => "client_certificate",
            Self::TenantConnections => "tenant_connections",
            Self::SourceHandshakes => "source_handshakes",
            Self::TimedOut => "timed_out",
            Self::NotTls => "not_tls",
            Self::HelloTooLarge => "hello_too_large",
            Self::Malformed => "malformed",
            Self::Version => "version",
            Self::NothingInCommon => "nothing_in_common",
            Self::NoProtocol => "no_protocol",
            Self::RefusedByClient => "refused_by_client",
            Self::Aborted => "aborted",
            Self::Failed => "failed",
        }
    }
}

/// How the certificate for a client's name was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SniLookup {
    Exact,
    Wildcard,
    /// It has none: the default one is shown.
    Default,
    /// There is no default one either.
    Miss,
}

const SNI_LOOKUPS: [&str; 4] = ["exact", "wildcard", "default", "miss"];
const TLS_VERSIONS: [&str; 2] = ["1.2", "1.3"];
/// As the registry of TLS calls them, the preferred first.
pub(crate) const KEY_EXCHANGE_GROUPS: [&str; 4] = ["x25519mlkem768", "x25519", "secp256r1", "secp384r1"];

/// What was done for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionTaken {
    Proxy,
    Redirect,
    Static,
    /// An answer of our own, before any route: an error page, the way to https, a challenge.
    Own,
}

impl ActionTaken {
    pub(crate) fn of(action: &Action) -> Self {
        match action {
            Action::Proxy(_) => Self::Proxy,
            Action::Redirect(_) => Self::Redirect,
            Action::Static { .. } => Self::Static,
        }
    }
}

const ACTIONS: [&str; 4] = ["proxy", "redirect", "static", "own"];

/// Counts in a gauge for as long as it lives.
#[derive(Debug)]
pub(crate) struct Counted(Gauge);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// What a connection was doing whose place on a full edge a newcomer got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evicted {
    Handshake,
    Head,
    Body,
    Idle,
}

impl Evicted {
    const ALL: [Self; 4] = [Self::Handshake, Self::Head, Self::Body, Self::Idle];

    fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Head => "head",
            Self::Body => "body",
            Self::Idle => "idle",
        }
    }
}

/// What was refused because somebody takes more than their share, and whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    SourceHandshakes,
    SourceConnections,
    SourceRequests,
    TenantRequests,
    TenantExchanges,
    TenantBandwidth,
    TenantConnections,
    RequestBody,
    /// It stopped coming.
    RequestBodyStalled,
    ConnectionHeads,
    /// Of nobody in particular: the edge is short of memory.
    Memory,
}

impl Limited {
    const ALL: [Self; 11] = [
        Self::SourceHandshakes,
        Self::SourceConnections,
        Self::SourceRequests,
        Self::TenantRequests,
        Self::TenantExchanges,
        Self::TenantBandwidth,
        Self::TenantConnections,
        Self::RequestBody,
        Self::RequestBodyStalled,
        Self::ConnectionHeads,
        Self::Memory,
    ];

    /// As the access log, the edge's log and the metrics call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SourceHandshakes => "source_handshakes",
            Self::SourceConnections => "source_connections",
            Self::SourceRequests => "source_requests",
            Self::TenantRequests => "tenant_requests",
            Self::TenantExchanges => "tenant_exchanges",
            Self::TenantBandwidth => "tenant_bandwidth",
            Self::TenantConnections => "tenant_connections",
            Self::RequestBody => "request_body_too_large",
            Self::RequestBodyStalled => "request_body_stalled",
            Self::ConnectionHeads => "connection_heads",
            Self::Memory => "memory",
        }
    }
}

/// What became of a PROXY header.
#[derive(Debug, Clone, Copy)]
pub enum ProxyHeader {
    /// It named the client.
    Read,
    /// The balancer's own connection.
    Local,
    /// From a network that is not listed.
    Untrusted,
    Malformed,
    TimedOut,
}

const PROXY_HEADERS: [&str; 5] = ["read", "local", "untrusted", "malformed", "timed_out"];
const PROTOCOLS: [Protocol; 3] = [Protocol::Http1, Protocol::Http2, Protocol::Http3];
const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Why a message makes no request, or a request is refused whoever it is for: the words of `http::framing`, `http::authority`,
/// `exchange` and its parts.
const REFUSALS: &[&str] = &[
    "authority_address",
    "authority_differs",
    "authority_malformed",
    "authority_missing",
    "authority_port",
    "authority_repeated",
    "bare_line_feed",
    "body_beyond_length",
    "bytes_before_upgrade",
    "chunk",
    "content_length",
    "control_byte",
    "dot_segment",
    "encoded_nul",
    "expectation",
    "field_name",
    "field_white_space",
    "folded_field",
    "h2_compression",
    "h2_flow_control",
    "h2_frame_size",
    "h2_malformed",
    "h2_protocol",
    "h2_too_much",
    "h3_incomplete",
    "h3_malformed",
    "h3_protocol",
    "h3_too_much",
    "h3_truncated",
    "head_beyond_limits",
    "head_too_large",
    "length_and_encoding",
    "line_too_long",
    "method",
    "not_http",
    "repeated_content_length",
    "repeated_host",
    "request_line",
    "scheme_differs",
    "slow_head",
    "target",
    "target_too_long",
    "too_many_fields",
    "too_many_tunnels",
    "trailer",
    "transfer_encoding",
    "upgrade_with_body",
];

/// Why an origin gave no answer: the words of `upstream::OriginError`.
const ORIGIN_FAILURES: &[&str] = &[
    "bad_answer",
    "breaker_open",
    "client_certificate",
    "closed",
    "connect",
    "connect_timeout",
    "egress",
    "first_byte_timeout",
    "loop",
    "no_client_certificate",
    "not_http2",
    "origin_sockets",
    "protocol",
    "refused",
    "resolve",
    "tls",
    "tls_certificate",
    "tls_closed",
    "tls_expired",
    "tls_no_name",
    "tls_not_tls",
    "tls_not_yet_valid",
    "tls_refused",
    "tls_unknown_issuer",
    "tls_wrong_name",
    "write_stall",
];

/// The counters of one metric by the words of its label `reason`, all of them ours.
struct ByReason {
    words: &'static [&'static str],
    counters: Vec<Counter>,
    /// A word that is not in the list: a mistake of ours, which the tests look for.
    other: Counter,
}

impl ByReason {
    fn register(name: &'static str, words: &'static [&'static str]) -> Self {
        debug_assert!(words.is_sorted(), "it is searched by halves");
        let counters = words.iter().map(|&word| counter!(name, "reason" => word)).collect();
        Self { words, counters, other: counter!(name, "reason" => "other") }
    }

    fn count(&self, word: &str) {
        let found = self.words.binary_search(&word).ok().and_then(|place| self.counters.get(place));
        found.unwrap_or(&self.other).increment(1);
    }
}

/// How connections begin.
struct Beginnings {
    handshakes: [Counter; HandshakeEnd::ALL.len()],
    sni_lookups: [Counter; SNI_LOOKUPS.len()],
    tls_versions: [Counter; TLS_VERSIONS.len()],
    proxy_headers: [Counter; 5],
}

impl Beginnings {
    fn register() -> Self {
        Self {
            handshakes: HandshakeEnd::ALL.map(|end| counter!(names::HANDSHAKES, "result" => end.as_str())),
            sni_lookups: SNI_LOOKUPS.map(|result| counter!(names::SNI_LOOKUPS, "result" => result)),
            tls_versions: TLS_VERSIONS.map(|version| counter!(names::TLS_VERSIONS, "version" => version)),
            proxy_headers: PROXY_HEADERS.map(|result| counter!(names::PROXY_HEADERS, "result" => result)),
        }
    }
}

/// Of the process.
struct MemoryState {
    bytes: Gauge,
    bound: Gauge,
    short: Gauge,
    shortages: Counter,
}

impl MemoryState {
    fn register() -> Self {
        Self {
            bytes: gauge!(names::MEMORY_BYTES),
            bound: gauge!(names::MEMORY_BOUND),
            short: gauge!(names::MEMORY_SHORT),
            shortages: counter!(names::MEMORY_SHORTAGES),
        }
    }
}

/// What is served on them.
struct Served {
    exchanges: [[Counter; 5]; 3],
    by_action: [Counter; ACTIONS.len()],
    in_flight: [Gauge; PROTOCOLS.len()],
    connections: [Gauge; PROTOCOLS.len()],
}

impl Served {
    fn register() -> Self {
        Self {
            exchanges: PROTOCOLS.map(|protocol| {
                STATUS_CLASSES.map(
                    |class| counter!(names::EXCHANGES, "protocol" => protocol.as_str(), "class" => class),
                )
            }),
            by_action: ACTIONS.map(|action| counter!(names::EXCHANGES_BY_ACTION, "action" => action)),
            in_flight: PROTOCOLS
                .map(|protocol| gauge!(names::EXCHANGES_IN_FLIGHT, "protocol" => protocol.as_str())),
            connections: PROTOCOLS
                .map(|protocol| gauge!(names::CONNECTIONS_SERVED, "protocol" => protocol.as_str())),
        }
    }
}

/// Handles, registered once and shared by all threads.
pub struct Metrics {
    pub connections: Gauge,
    pub connections_total: Counter,
    pub connections_refused: Counter,
    connections_evicted: [Counter; Evicted::ALL.len()],
    pub accept_errors: Counter,
    connections_expired: [Counter; Expired::COUNTED.len()],
    /// Requests before the end of a handshake: acted on at once, and those that waited for it.
    pub early_served: Counter,
    pub early_waited: Counter,
    pub connections_abusive: Counter,
    pub streams_stalled: Counter,
    pub quic_retries: Counter,
    pub quic_forwarded: Counter,
    pub quic_not_forwarded: Counter,
    beginnings: Beginnings,
    pub handshake_seconds: Histogram,
    served: Served,
    pub exchange_seconds: Histogram,
    pub first_byte_seconds: Histogram,
    limited: [Counter; Limited::ALL.len()],
    refused: ByReason,
    pub misdirected: Counter,
    pub challenges_http01: Counter,
    pub origin_connects: Counter,
    pub origin_connect_seconds: Histogram,
    pub origin_first_byte_seconds: Histogram,
    pub origin_reuses: Counter,
    pub origin_retries: Counter,
    pub origin_retries_refused: Counter,
    pub origin_ejections: Counter,
    pub origins_all_out: Counter,
    origin_health_checks: [Counter; 2],
    origin_errors: ByReason,
    cache_requests: [Counter; 7],
    pub cache_bytes: Gauge,
    pub cache_entries: Gauge,
    pub cache_evictions: Counter,
    pub cache_purged: Counter,
    compressions: [Counter; 3],
    pub compressions_refused: Counter,
    pub egress_refused: Counter,
    pub access_log_lines: Counter,
    pub access_log_dropped: Counter,
    pub spans_sent: Counter,
    pub spans_dropped: Counter,
    pub exchange_panics: Counter,
    pub worker_panics: Counter,
    pub names: Gauge,
    pub draining: Gauge,
    pub last_reload_successful: Gauge,
    memory: MemoryState,
    io: [Counter; 3],
    prometheus: PrometheusHandle,
}

impl Metrics {
    /// Registers everything, in this process's one recorder.
    pub fn register() -> Self {
        let prometheus = recorder();
        describe();
        gauge!(names::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        gauge!(names::LAST_RELOAD_SUCCESSFUL).set(1.0);
        for group in KEY_EXCHANGE_GROUPS {
            drop(key_exchanges(group)); // so that it is there from the start
        }
        for algorithm in ["brotli", "zlib"] {
            counter!(names::CERTIFICATE_COMPRESSIONS, "algorithm" => algorithm).increment(0);
        }
        Self {
            connections: gauge!(names::CONNECTIONS),
            connections_total: counter!(names::CONNECTIONS_TOTAL),
            connections_refused: counter!(names::CONNECTIONS_REFUSED),
            connections_evicted: Evicted::ALL
                .map(|evicted| counter!(names::CONNECTIONS_EVICTED, "reason" => evicted.as_str())),
            accept_errors: counter!(names::ACCEPT_ERRORS),
            connections_expired: Expired::COUNTED
                .map(|expired| counter!(names::CONNECTIONS_EXPIRED, "reason" => expired.as_str())),
            early_served: counter!(names::EARLY_REQUESTS, "result" => "served"),
            early_waited: counter!(names::EARLY_REQUESTS, "result" => "waited"),
            connections_abusive: counter!(names::CONNECTIONS_ABUSIVE),
            quic_retries: counter!(names::QUIC_RETRIES),
            quic_forwarded: counter!(names::QUIC_FORWARDED, "result" => "sent"),
            quic_not_forwarded: counter!(names::QUIC_FORWARDED, "result" => "dropped"),
            streams_stalled: counter!(names::STREAMS_STALLED),
            beginnings: Beginnings::register(),
            handshake_seconds: histogram!(names::HANDSHAKE_SECONDS),
            served: Served::register(),
            exchange_seconds: histogram!(names::EXCHANGE_SECONDS),
            first_byte_seconds: histogram!(names::FIRST_BYTE_SECONDS),
            limited: Limited::ALL.map(|limit| counter!(names::LIMITED, "reason" => limit.as_str())),
            refused: ByReason::register(names::REQUESTS_REFUSED, REFUSALS),
            misdirected: counter!(names::MISDIRECTED),
            challenges_http01: counter!(names::CHALLENGES_ANSWERED, "kind" => "http-01"),
            origin_connects: counter!(names::ORIGIN_CONNECTS),
            origin_connect_seconds: histogram!(names::ORIGIN_CONNECT_SECONDS),
            origin_first_byte_seconds: histogram!(names::ORIGIN_FIRST_BYTE_SECONDS),
            origin_reuses: counter!(names::ORIGIN_REUSES),
            origin_retries: counter!(names::ORIGIN_RETRIES),
            origin_retries_refused: counter!(names::ORIGIN_RETRIES_REFUSED),
            origin_ejections: counter!(names::ORIGIN_EJECTIONS),
            origins_all_out: counter!(names::ORIGINS_ALL_OUT),
            origin_health_checks: ["unwell", "well"]
                .map(|result| counter!(names::ORIGIN_HEALTH_CHECKS, "result" => result)),
            origin_errors: ByReason::register(names::ORIGIN_ERRORS, ORIGIN_FAILURES),
            cache_requests: Outcome::ALL
                .map(|outcome| counter!(names::CACHE_REQUESTS, "result" => outcome.as_str())),
            cache_bytes: gauge!(names::CACHE_BYTES),
            cache_entries: gauge!(names::CACHE_ENTRIES),
            cache_evictions: counter!(names::CACHE_EVICTIONS),
            cache_purged: counter!(names::CACHE_PURGED),
            compressions: [ContentCoding::Br, ContentCoding::Zstd, ContentCoding::Gzip]
                .map(|coding| counter!(names::COMPRESSIONS, "result" => coding::name(coding))),
            compressions_refused: counter!(names::COMPRESSIONS, "result" => "full"),
            egress_refused: counter!(names::EGRESS_REFUSED),
            access_log_lines: counter!(names::ACCESS_LOG_LINES),
            access_log_dropped: counter!(names::ACCESS_LOG_DROPPED),
            spans_sent: counter!(names::SPANS, "result" => "sent"),
            spans_dropped: counter!(names::SPANS, "result" => "dropped"),
            exchange_panics: counter!(names::PANICS, "in" => "exchange"),
            worker_panics: counter!(names::PANICS, "in" => "worker"),
            names: gauge!(names::NAMES),
            draining: gauge!(names::DRAINING),
            last_reload_successful: gauge!(names::LAST_RELOAD_SUCCESSFUL),
            memory: MemoryState::register(),
            io: ["direct", "ring", "epoll"].map(|path| counter!(names::IO_OPERATIONS, "path" => path)),
            prometheus,
        }
    }

    pub fn handshake(&self, end: HandshakeEnd) {
        self.beginnings.handshakes[end as usize].increment(1);
    }

    /// Counts a connection that a limit in time has ended.
    pub fn expired(&self, expired: Expired) {
        if let Some(place) = Expired::COUNTED.iter().position(|&counted| counted == expired) {
            self.connections_expired[place].increment(1);
        }
    }

    /// Counts a connection whose place a newcomer got.
    pub fn evicted(&self, evicted: Evicted) {
        self.connections_evicted[evicted as usize].increment(1);
    }

    /// Counts a refusal.
    pub fn limited(&self, limit: Limited) {
        self.limited[limit as usize].increment(1);
    }

    pub fn proxy_header(&self, result: ProxyHeader) {
        self.beginnings.proxy_headers[result as usize].increment(1);
    }

    pub fn sni_lookup(&self, found: Option<SniLookup>) {
        if let Some(found) = found {
            self.beginnings.sni_lookups[found as usize].increment(1);
        }
    }

    /// Counts a handshake that has succeeded.
    pub fn tls_version(&self, version: &'static str) {
        if let Some(place) = TLS_VERSIONS.iter().position(|&known| known == version) {
            self.beginnings.tls_versions[place].increment(1);
        }
    }

    /// Counts a connection whose exchanges are served.
    pub(crate) fn serves(&self, protocol: Protocol) -> Counted {
        let gauge = &self.served.connections[protocol as usize];
        gauge.increment(1.0);
        Counted(gauge.clone())
    }

    pub fn exchange_begins(&self, protocol: Protocol) {
        self.served.in_flight[protocol as usize].increment(1.0);
    }

    /// Counts an exchange that has ended.
    pub fn exchange(&self, protocol: Protocol, status: http::StatusCode, action: ActionTaken) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.served.exchanges[protocol as usize][class].increment(1);
        self.served.by_action[action as usize].increment(1);
        self.served.in_flight[protocol as usize].decrement(1.0);
    }

    /// Counts a request that came to the cache.
    pub fn cache(&self, outcome: Outcome) {
        self.cache_requests[outcome as usize].increment(1);
    }

    /// Counts a body that is compressed.
    pub fn compression(&self, coding: ContentCoding) {
        self.compressions[coding as usize].increment(1);
    }

    /// Counts a message that makes no request; `reason` is one of our own words.
    pub fn request_refused(&self, reason: &'static str) {
        self.refused.count(reason);
    }

    /// Counts an origin's failure; `reason` is one of our own words.
    pub fn origin_error(&self, reason: &'static str) {
        self.origin_errors.count(reason);
    }

    pub fn health_check(&self, well: bool) {
        self.origin_health_checks[usize::from(well)].increment(1);
    }

    pub fn io_backend(&self, backend: io::Backend) {
        for name in ["uring", "epoll"] {
            gauge!(names::IO_BACKEND, "backend" => name).set(f64::from(u8::from(name == backend.as_str())));
        }
    }

    pub fn workers(&self, count: usize) {
        gauge!(names::WORKERS).set(u32::try_from(count).map_or(f64::MAX, f64::from));
    }

    /// Says how much memory is in use, and of how much.
    pub fn memory(&self, memory: &Memory) {
        // Nobody looks at the last bytes of a petabyte.
        let float = |bytes: u64| bytes as f64;
        self.memory.bytes.set(float(memory::resident_bytes()));
        self.memory.bound.set(float(memory.most().unwrap_or(0)));
        self.memory.short.set(f64::from(u8::from(memory.is_short())));
        self.memory.shortages.absolute(memory.shortages());
    }

    /// The text of `/metrics`.
    pub fn render(&self) -> String {
        let counts = io::operation_counts();
        for (counter, count) in self.io.iter().zip([counts.direct, counts.ring, counts.epoll]) {
            counter.absolute(count);
        }
        self.prometheus.render()
    }

    /// Folds histogram samples into buckets; without it they would pile up until the next scrape.
    pub fn upkeep(&self) {
        self.prometheus.run_upkeep();
    }
}

/// How often keys were exchanged by a group.
pub(crate) fn key_exchanges(group: &'static str) -> Counter {
    recorder(); // a counter of before it would count nothing
    counter!(names::KEY_EXCHANGES, "group" => group)
}

/// Counts a certificate that is compressed: once each, so rare.
pub(crate) fn certificate_compressed(algorithm: &'static str) {
    counter!(names::CERTIFICATE_COMPRESSIONS, "algorithm" => algorithm).increment(1);
}

/// Two edges in one process (tests) share one recorder, as the `metrics` crate has it.
fn recorder() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let handshakes = [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];
            let exchanges = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];
            let mut builder = PrometheusBuilder::new();
            for (name, buckets) in [
                (names::HANDSHAKE_SECONDS, &handshakes),
                (names::EXCHANGE_SECONDS, &exchanges),
                (names::FIRST_BYTE_SECONDS, &exchanges),
                (names::ORIGIN_CONNECT_SECONDS, &handshakes),
                (names::ORIGIN_FIRST_BYTE_SECONDS, &exchanges),
                (control::metrics::names::APPLY_SECONDS, &exchanges),
            ] {
                builder = builder
                    .set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)
                    .expect("the bucket lists are not empty");
            }
            let recorder = builder.build_recorder();
            let handle = recorder.handle();
            if metrics::set_global_recorder(recorder).is_err() {
                tracing::warn!("another metrics recorder is installed; /metrics will be empty");
            }
            handle
        })
        .clone()
}

fn describe() {
    describe_gauge!(names::IO_BACKEND, "1 for the backend that moves the bytes: uring or epoll");
    describe_counter!(
        names::IO_OPERATIONS,
        "receives, sends, accepts and connects, by how they were done: at once, or after waiting on a ring or epoll"
    );
    describe_gauge!(names::WORKERS, "worker threads");
    describe_gauge!(names::CONNECTIONS, "open client connections");
    describe_counter!(names::CONNECTIONS_TOTAL, "client connections accepted");
    describe_counter!(
        names::CONNECTIONS_REFUSED,
        "client connections closed at once because the edge is full, or short of memory"
    );
    describe_counter!(
        names::CONNECTIONS_EVICTED,
        "client connections without an exchange closed for a newcomer to a full edge or for want of memory, by what they were doing"
    );
    describe_counter!(names::ACCEPT_ERRORS, "accept(2) failures");
    describe_counter!(names::CONNECTIONS_EXPIRED, "client connections closed by a deadline, by what ran out");
    describe_counter!(
        names::EARLY_REQUESTS,
        "requests before the end of a handshake: acted on at once, or held till then"
    );
    describe_counter!(
        names::CONNECTIONS_ABUSIVE,
        "client connections closed because their frames or given-up requests made work for nothing"
    );
    describe_counter!(
        names::QUIC_RETRIES,
        "QUIC clients that had to show their address first, because many handshakes were under way"
    );
    describe_counter!(
        names::QUIC_FORWARDED,
        "QUIC packets of a draining predecessor's connections, passed on to it or dropped because it was too slow"
    );
    describe_counter!(
        names::STREAMS_STALLED,
        "HTTP/2 and HTTP/3 streams reset because the client took no byte of the answer"
    );
    describe_handshakes();
    describe_exchanges();
    describe_origins_and_cache();
}

fn describe_handshakes() {
    describe_counter!(names::HANDSHAKES, "TLS handshakes over TCP and QUIC, by how they ended");
    describe_counter!(names::SNI_LOOKUPS, "ClientHellos, by how the certificate for their name was found");
    describe_counter!(names::TLS_VERSIONS, "TLS handshakes that succeeded, by version");
    describe_counter!(
        names::KEY_EXCHANGES,
        "exchanges of keys with clients, by group; those of handshakes that failed later too"
    );
    describe_counter!(
        names::CERTIFICATE_COMPRESSIONS,
        "certificates that were compressed, each once for the process unless it was pushed out"
    );
    describe_counter!(
        names::PROXY_HEADERS,
        "connections to listeners with proxy_protocol, by what became of their header; all but read and local are refused"
    );
    describe_histogram!(names::HANDSHAKE_SECONDS, "from accept to the end of a TLS handshake");
}

fn describe_exchanges() {
    describe_counter!(names::EXCHANGES, "exchanges, by protocol and class of status");
    describe_counter!(names::EXCHANGES_BY_ACTION, "exchanges, by what the route says; own: none came to it");
    describe_gauge!(names::EXCHANGES_IN_FLIGHT, "requests whose answers have not ended, by protocol");
    describe_gauge!(names::CONNECTIONS_SERVED, "client connections behind their handshake, by protocol");
    describe_histogram!(names::EXCHANGE_SECONDS, "from a request's head to the last byte of its answer");
    describe_histogram!(
        names::FIRST_BYTE_SECONDS,
        "from a request's head until the head of its answer is ready, from cache, origin or the edge itself"
    );
    describe_counter!(
        names::REQUESTS_REFUSED,
        "messages and connections that break their protocol, and requests that are refused whoever they are for, by why"
    );
    describe_counter!(
        names::LIMITED,
        "connections and requests refused or ended because a client address or a tenant takes more than its share, by what of; memory: the edge itself is short of it"
    );
    describe_counter!(names::MISDIRECTED, "requests answered 421");
    describe_counter!(names::CHALLENGES_ANSWERED, "ACME challenges answered");
}

fn describe_origins_and_cache() {
    describe_counter!(names::ORIGIN_CONNECTS, "connections made to origins");
    describe_histogram!(
        names::ORIGIN_CONNECT_SECONDS,
        "to make a connection to an origin: DNS, TCP and TLS; failures are not in"
    );
    describe_histogram!(
        names::ORIGIN_FIRST_BYTE_SECONDS,
        "from a request to an origin, on a connection that is there, to the head of its answer"
    );
    describe_counter!(names::ORIGIN_REUSES, "requests sent on a kept origin connection");
    describe_counter!(
        names::ORIGIN_RETRIES,
        "requests sent a second time, on a new connection or to another origin"
    );
    describe_counter!(
        names::ORIGIN_RETRIES_REFUSED,
        "requests that could have been sent again but were not, because too many had been"
    );
    describe_counter!(names::ORIGIN_EJECTIONS, "origins put out for a while after failures in a row");
    describe_counter!(names::ORIGINS_ALL_OUT, "requests for which no origin was well, so that any was tried");
    describe_counter!(names::ORIGIN_HEALTH_CHECKS, "health checks of origins, by result");
    describe_counter!(names::ORIGIN_ERRORS, "origin failures, by reason");
    describe_counter!(names::CACHE_REQUESTS, "requests of routes with a cache, by what it did");
    describe_gauge!(
        names::CACHE_BYTES,
        "bytes that kept answers take, those included that are still being read"
    );
    describe_gauge!(names::CACHE_ENTRIES, "kept answers");
    describe_counter!(
        names::CACHE_EVICTIONS,
        "kept answers that others have pushed out, or that went for want of memory"
    );
    describe_counter!(names::CACHE_PURGED, "kept answers that were purged, or made stale by a soft purge");
    describe_counter!(
        names::COMPRESSIONS,
        "bodies that were compressed, by coding; full: sent plain because too many were under way"
    );
    describe_counter!(names::EGRESS_REFUSED, "connects refused by the egress guard");
    describe_counter!(names::ACCESS_LOG_LINES, "access-log lines written");
    describe_counter!(
        names::ACCESS_LOG_DROPPED,
        "access-log lines dropped because the writer was behind, or its disk full"
    );
    describe_counter!(
        names::SPANS,
        "spans, by what became of them: sent, or dropped for the rate or because the collector does not take them"
    );
    describe_counter!(names::PANICS, "panics: each is a bug of ours");
    describe_gauge!(names::NAMES, "names served");
    describe_gauge!(names::DRAINING, "1 while the edge drains");
    describe_gauge!(
        names::LAST_RELOAD_SUCCESSFUL,
        "0 when the successor that was asked for last did not begin to serve, so that this edge serves on"
    );
    describe_gauge!(names::MEMORY_BYTES, "resident memory of the process");
    describe_gauge!(names::MEMORY_BOUND, "its bound; 0: none");
    describe_gauge!(names::MEMORY_SHORT, "1 while the edge is short of memory and begins nothing new");
    describe_counter!(names::MEMORY_SHORTAGES, "times that memory became short");
    describe_gauge!(names::BUILD_INFO, "1, with the version");
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Metrics").finish_non_exhaustive()
    }
}
