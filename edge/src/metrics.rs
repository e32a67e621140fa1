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

use crate::{cache::Outcome, coding, exchange::Protocol, io};

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
    pub const DRAINING: &str = "portico_edge_draining";
    pub const BUILD_INFO: &str = "portico_edge_build_info";
}

/// How a TLS handshake ended.
#[derive(Debug, Clone, Copy)]
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
    Failed,
    TimedOut,
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
    ConnectionHeads,
}

impl Limited {
    const ALL: [Self; 9] = [
        Self::SourceHandshakes,
        Self::SourceConnections,
        Self::SourceRequests,
        Self::TenantRequests,
        Self::TenantExchanges,
        Self::TenantBandwidth,
        Self::TenantConnections,
        Self::RequestBody,
        Self::ConnectionHeads,
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
            Self::ConnectionHeads => "connection_heads",
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
const HANDSHAKE_ENDS: [&str; 9] = [
    "full",
    "resumed",
    "challenge",
    "unknown_name",
    "no_key",
    "client_certificate",
    "tenant_connections",
    "failed",
    "timed_out",
];
const PROTOCOLS: [Protocol; 3] = [Protocol::Http1, Protocol::Http2, Protocol::Http3];
const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// Handles, registered once and shared by all threads.
pub struct Metrics {
    pub connections: Gauge,
    pub connections_total: Counter,
    pub connections_refused: Counter,
    connections_evicted: [Counter; Evicted::ALL.len()],
    pub accept_errors: Counter,
    pub connections_expired: Counter,
    /// Requests before the end of a handshake: acted on at once, and those that waited for it.
    pub early_served: Counter,
    pub early_waited: Counter,
    pub connections_abusive: Counter,
    pub streams_stalled: Counter,
    pub quic_retries: Counter,
    pub quic_forwarded: Counter,
    pub quic_not_forwarded: Counter,
    handshakes: [Counter; HANDSHAKE_ENDS.len()],
    proxy_headers: [Counter; 5],
    pub handshake_seconds: Histogram,
    exchanges: [[Counter; 5]; 3],
    pub exchange_seconds: Histogram,
    pub first_byte_seconds: Histogram,
    limited: [Counter; Limited::ALL.len()],
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
    io: [Counter; 3],
    prometheus: PrometheusHandle,
}

impl Metrics {
    /// Registers everything, in this process's one recorder.
    pub fn register() -> Self {
        let prometheus = recorder();
        describe();
        gauge!(names::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
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
            connections_expired: counter!(names::CONNECTIONS_EXPIRED),
            early_served: counter!(names::EARLY_REQUESTS, "result" => "served"),
            early_waited: counter!(names::EARLY_REQUESTS, "result" => "waited"),
            connections_abusive: counter!(names::CONNECTIONS_ABUSIVE),
            quic_retries: counter!(names::QUIC_RETRIES),
            quic_forwarded: counter!(names::QUIC_FORWARDED, "result" => "sent"),
            quic_not_forwarded: counter!(names::QUIC_FORWARDED, "result" => "dropped"),
            streams_stalled: counter!(names::STREAMS_STALLED),
            handshakes: HANDSHAKE_ENDS.map(|end| counter!(names::HANDSHAKES, "result" => end)),
            proxy_headers: PROXY_HEADERS.map(|result| counter!(names::PROXY_HEADERS, "result" => result)),
            handshake_seconds: histogram!(names::HANDSHAKE_SECONDS),
            exchanges: PROTOCOLS.map(|protocol| {
                STATUS_CLASSES.map(
                    |class| counter!(names::EXCHANGES, "protocol" => protocol.as_str(), "class" => class),
                )
            }),
            exchange_seconds: histogram!(names::EXCHANGE_SECONDS),
            first_byte_seconds: histogram!(names::FIRST_BYTE_SECONDS),
            limited: Limited::ALL.map(|limit| counter!(names::LIMITED, "reason" => limit.as_str())),
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
            io: ["direct", "ring", "epoll"].map(|path| counter!(names::IO_OPERATIONS, "path" => path)),
            prometheus,
        }
    }

    pub fn handshake(&self, end: HandshakeEnd) {
        self.handshakes[end as usize].increment(1);
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
        self.proxy_headers[result as usize].increment(1);
    }

    pub fn exchange(&self, protocol: Protocol, status: http::StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, 5) - 1;
        self.exchanges[protocol as usize][class].increment(1);
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
        counter!(names::REQUESTS_REFUSED, "reason" => reason).increment(1);
    }

    /// Counts an origin's failure; `reason` is one of our own words.
    pub fn origin_error(&self, reason: &'static str) {
        counter!(names::ORIGIN_ERRORS, "reason" => reason).increment(1);
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
        "client connections closed at once because the edge is full"
    );
    describe_counter!(
        names::CONNECTIONS_EVICTED,
        "client connections without an exchange closed for a newcomer to a full edge, by what they were doing"
    );
    describe_counter!(names::ACCEPT_ERRORS, "accept(2) failures");
    describe_counter!(names::CONNECTIONS_EXPIRED, "client connections closed by a deadline");
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
    describe_counter!(names::HANDSHAKES, "TLS handshakes over TCP and QUIC, by how they ended");
    describe_counter!(
        names::CERTIFICATE_COMPRESSIONS,
        "certificates that were compressed, each once for the process unless it was pushed out"
    );
    describe_counter!(
        names::PROXY_HEADERS,
        "connections to listeners with proxy_protocol, by what became of their header; all but read and local are refused"
    );
    describe_histogram!(names::HANDSHAKE_SECONDS, "from accept to the end of a TLS handshake");
    describe_counter!(names::EXCHANGES, "exchanges, by protocol and class of status");
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
        "connections and requests refused because a client address or a tenant takes more than its share, by what of"
    );
    describe_counter!(names::MISDIRECTED, "requests answered 421");
    describe_counter!(names::CHALLENGES_ANSWERED, "ACME challenges answered");
    describe_origins_and_cache();
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
    describe_counter!(names::CACHE_EVICTIONS, "kept answers that others have pushed out");
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
    describe_gauge!(names::BUILD_INFO, "1, with the version");
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Metrics").finish_non_exhaustive()
    }
}
