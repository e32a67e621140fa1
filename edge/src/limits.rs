//! Every bound of the data plane that somebody outside can reach, in one table (promise P13). A value that an operator must tune is a field of the config
//! and only has its default here; the rest are constants with their reason.

use std::time::Duration;

/// The limits in time, as one edge uses them: the table below, unless a test wants to see them run out.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    pub handshake: Duration,
    pub header: Duration,
    pub idle: Duration,
    pub doze_after: Duration,
    pub write_stall: Duration,
    pub body_stall: Duration,
    pub drain_patience: Duration,
    pub linger: Duration,
    pub linger_draining: Duration,
    pub leftover: Duration,
    pub goodbye: Duration,
    pub connection_age: Duration,
    pub origin_connect: Duration,
    pub origin_write_stall: Duration,
    pub origin_first_byte: Duration,
    pub origin_body_stall: Duration,
    pub origin_ejection: Duration,
    pub origin_slow_start: Duration,
    pub tunnel_half_closed: Duration,
    pub origin_h2_ping_interval: Duration,
    pub origin_h2_ping: Duration,
    pub health_answer: Duration,
    pub tunnel_idle: Duration,
    pub dns_answer: Duration,
    pub cache_wait: Duration,
    pub cache_spare: Duration,
    pub access_log_finish: Duration,
    pub h3_close_linger: Duration,
    pub take_over: Duration,
    pub take_over_step: Duration,
    pub catch_up: Duration,
    pub evictable_after: Duration,
    pub surface_age: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            handshake: HANDSHAKE_DEADLINE,
            header: HEADER_DEADLINE,
            idle: IDLE_DEADLINE,
            doze_after: DOZE_AFTER,
            write_stall: WRITE_STALL_DEADLINE,
            body_stall: BODY_STALL_DEADLINE,
            drain_patience: DRAIN_PATIENCE,
            linger: LINGER_DEADLINE,
            linger_draining: LINGER_DEADLINE_DRAINING,
            leftover: LEFTOVER_DEADLINE,
            goodbye: CLOSE_DEADLINE,
            connection_age: CONNECTION_AGE_MAX,
            origin_connect: ORIGIN_CONNECT_DEADLINE,
            origin_write_stall: ORIGIN_WRITE_STALL_DEADLINE,
            origin_first_byte: ORIGIN_FIRST_BYTE_DEADLINE,
            origin_body_stall: ORIGIN_BODY_STALL_DEADLINE,
            origin_ejection: EJECTION_FIRST,
            origin_slow_start: SLOW_START,
            tunnel_half_closed: TUNNEL_HALF_CLOSED_DEADLINE,
            origin_h2_ping_interval: ORIGIN_H2_PING_INTERVAL,
            origin_h2_ping: ORIGIN_H2_PING_DEADLINE,
            health_answer: HEALTH_DEADLINE,
            tunnel_idle: TUNNEL_IDLE_DEADLINE,
            dns_answer: DNS_DEADLINE,
            cache_wait: CACHE_WAIT,
            cache_spare: CACHE_SPARE,
            access_log_finish: ACCESS_LOG_FINISH_DEADLINE,
            h3_close_linger: H3_CLOSE_LINGER,
            take_over: TAKE_OVER_DEADLINE,
            take_over_step: TAKE_OVER_STEP_DEADLINE,
            catch_up: CATCH_UP_DEADLINE,
            evictable_after: EVICTABLE_AFTER,
            surface_age: SURFACE_AGE_MAX,
        }
    }
}

/// Bytes read from a client before its ClientHello is complete. Post-quantum hellos are near 2 KiB; a TLS record is 16 KiB.
pub const CLIENT_HELLO_BYTES_MAX: usize = 16 * 1024 + 5;
/// Sessions of names that take early data: a name has its own in one of so many shards, each with so many at most, of so many
/// bytes at most. All together 32 MiB, and half as much again for what finds them; a handshake each fills them.
pub const SESSION_SHARDS: usize = 64;
pub const SESSIONS_PER_SHARD_MAX: usize = 1024;
pub const SESSION_BYTES_MAX: usize = 512;
/// Certificates that are kept compressed for the whole process, each with its plain form and about 2 KiB, and those that were
/// seen once, which take 100 bytes.
pub const CERTIFICATE_COMPRESSIONS_MAX: usize = 16 * 1024;
/// From accept to the end of the handshake, ClientHello included.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes behind the fixed part of a PROXY header of version 2: addresses, and values that are read over. The longest that
/// balancers send carry a client certificate's names.
pub const PROXY_HEADER_BYTES_MAX: usize = 2048;

/// Bytes of one request head on HTTP/1 and of a decoded header list on HTTP/2.
pub const HEADER_BYTES_MAX: usize = 32 * 1024;
/// Fields in one request head.
pub const HEADER_FIELDS_MAX: usize = 128;
/// A client's certificate: it goes to the origin with each request, half as long again. And what else of its chain it sends:
/// all goes into its tickets.
pub const CLIENT_CERTIFICATE_BYTES_MAX: usize = 6 * 1024;
pub const CLIENT_INTERMEDIATES_BYTES_MAX: usize = 12 * 1024;
/// From the first byte of a request head to its last.
pub const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// How long a drain lets a new connection bring its first request.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(1);
/// Input that is read and thrown away behind a refused request, so that the answer is not lost in a reset, and for how long.
pub const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;
pub const LINGER_DEADLINE: Duration = Duration::from_secs(5);
/// The same while the edge drains.
pub const LINGER_DEADLINE_DRAINING: Duration = Duration::from_millis(500);
/// How long the rest of a body is read and thrown away behind its answer over HTTP/2 and 3, up to the longest body that there
/// may be: a browser whose stream is reset while it sends waits for ever.
pub const LEFTOVER_DEADLINE: Duration = Duration::from_secs(60);
/// For a goodbye (close_notify, FIN) that the peer may not take.
pub const CLOSE_DEADLINE: Duration = Duration::from_secs(2);
/// Longest request target.
pub const TARGET_BYTES_MAX: usize = 16 * 1024;
/// A connection without an exchange is closed after this.
pub const IDLE_DEADLINE: Duration = Duration::from_secs(60);
/// An HTTP/1.1 connection without an exchange holds no buffers after this. Clients that go on do so sooner, mostly.
pub const DOZE_AFTER: Duration = Duration::from_secs(1);
/// A client that takes no byte of an answer for this long is cut.
pub const WRITE_STALL_DEADLINE: Duration = Duration::from_secs(30);
/// A request body that brings no byte for this long ends its exchange.
pub const BODY_STALL_DEADLINE: Duration = Duration::from_secs(30);
/// What a second of waiting for a body is worth: on a full edge, a client that sends less goes like an idle one. Apache's
/// reqtimeout asks for 500 at all times, and so cuts streams of small messages.
pub const BODY_BYTES_PER_SECOND_WORTH: u32 = 240;
/// Longest request body; streamed, never held.
pub const REQUEST_BODY_BYTES_MAX: u64 = 100 * 1024 * 1024;
/// Then the connection is closed, so that load spreads over restarted edges and leaks stay bounded.
pub const EXCHANGES_PER_CONNECTION_MAX: u64 = 10_000;
/// The same by age.
pub const CONNECTION_AGE_MAX: Duration = Duration::from_secs(3600);

/// Bytes that may wait in a chunked body's size line; extensions beyond it are an attack (RFC 9112 section 7.1.1).
pub const CHUNK_LINE_BYTES_MAX: usize = 1024;

/// Concurrent streams of one HTTP/2 connection.
pub const H2_STREAMS_MAX: u32 = 100;
/// Resets by the client that wait to be seen by the server (rapid reset, CVE-2023-44487).
pub const H2_PENDING_RESETS_MAX: usize = 20;
/// Resets that the client's own errors make us send (made-you-reset, CVE-2025-8671); hyper's default is 1,024.
pub const H2_LOCAL_RESETS_MAX: usize = 50;
/// Unsent answer bytes that h2 holds for one stream (its default is 400 KiB).
pub const H2_SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Of all answers of one HTTP/2 or HTTP/3 connection, bytes that were read from origins and that the client has not taken.
/// Beyond it an answer of which nothing is held may have 4 KiB more, so that none waits for the others' readers: with
/// [`H2_STREAMS_MAX`] answers about 600 KiB in all.
pub const CONNECTION_ANSWER_BYTES_MAX: usize = 192 * 1024;
/// Heads of requests that are open at once on such a connection, with what their fields take in tables (96 bytes each). A
/// browser's 100 requests with 30 cookies are near 600 KiB.
pub const CONNECTION_HEAD_BYTES_MAX: usize = 768 * 1024;
/// Heads that are decoded before the first of them is looked at: more than [`H2_PENDING_RESETS_MAX`], whose guard is among them.
pub const H2_HEADS_AT_ONCE: usize = 32;
/// The same by their bytes on the wire: with 50 connections that send nothing but the largest heads, a worker comes back to
/// each other one after some 5 ms.
pub const H2_HEAD_BYTES_AT_ONCE: usize = 16 * 1024;
/// Heads beyond [`HEADER_BYTES_MAX`], each answered 431, before an HTTP/2 or HTTP/3 connection is closed: its settings say how
/// large they may be. A browser that has got too many cookies comes again.
pub const HEADS_TOO_LARGE_MAX: u32 = 16;
/// Receive windows: what a client may send before we have passed it on.
pub const H2_STREAM_WINDOW_BYTES: u32 = 128 * 1024;
pub const H2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
pub const H2_HEADER_TABLE_BYTES: u32 = 4096;
pub const H2_FRAME_BYTES_MAX: u32 = 16 * 1024;
/// Frames of an HTTP/2 client that bring neither a request nor body bytes (SETTINGS, PING, WINDOW_UPDATE, RST_STREAM and the
/// like): how many it may have ahead, and how many more each second. Requests and answer bytes pay for further ones.
pub const H2_CONTROL_FRAMES_BURST: u32 = 1000;
pub const H2_CONTROL_FRAMES_PER_SECOND: u32 = 50;
/// What a request pays for: its end, its reset, its window.
pub const H2_CONTROL_FRAMES_PER_REQUEST: u32 = 4;
/// Answer bytes that pay for one frame; clients widen a window after 4 KiB at the earliest.
pub const H2_BYTES_PER_CONTROL_FRAME: u32 = 1024;
/// Streams of one HTTP/2 connection that are tunnels (RFC 8441), each with a connection to its origin and 32 KiB.
pub const H2_TUNNELS_MAX: u32 = 16;
/// How long a drain waits for requests of HTTP/2 that have crossed its GOAWAY.
pub const H2_LATE_REQUESTS: Duration = Duration::from_millis(50);
/// Requests that a client of HTTP/2 or 3 may give up within the window before its connection is closed.
pub const GIVEN_UP_MAX: u32 = 100;
pub const GIVEN_UP_WINDOW: Duration = Duration::from_secs(10);

/// Connect to an origin, TLS included.
pub const ORIGIN_CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// An origin that takes no more of a request's body, while there is more, for this long ends the exchange.
pub const ORIGIN_WRITE_STALL_DEADLINE: Duration = Duration::from_secs(60);
/// From when the origin was given all of the request, its body included, to the first byte of its answer.
pub const ORIGIN_FIRST_BYTE_DEADLINE: Duration = Duration::from_secs(60);
/// Between two pieces of an origin's body.
pub const ORIGIN_BODY_STALL_DEADLINE: Duration = Duration::from_secs(60);
/// Requests under way to one origin from one worker, where no circuit breaker says less: a stuck origin must not take all
/// descriptors.
pub const ORIGIN_IN_FLIGHT_PER_WORKER_MAX: u32 = 4096;
/// Origins that a worker knows at a time, and when it forgets one that has no connection.
pub const ENDPOINTS_PER_WORKER_MAX: usize = 20_000;
pub const ENDPOINT_FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// Failures in a row that put an origin out (where there is another), for how long the first time, and at most.
pub const EJECT_AFTER_FAILURES: u32 = 5;
pub const EJECTION_FIRST: Duration = Duration::from_secs(10);
pub const EJECTION_MAX: Duration = Duration::from_secs(300);
/// How long an origin that is back takes to have its whole share again.
pub const SLOW_START: Duration = Duration::from_secs(30);
/// Requests that earn one retry (20 %), and retries that may be ahead: as many as kept connections may die at once.
pub const RETRY_COST: u32 = 5;
pub const RETRY_RESERVE: u32 = 32;
/// Origins with a health check or a circuit breaker, over all workers.
pub const WATCHED_ORIGINS_MAX: usize = 10_000;
/// Health checks: how often the checker looks for due ones, how many run at once, the time for one, and after how long
/// without a request (or three intervals) an origin is checked no more.
pub const HEALTH_TICK: Duration = Duration::from_millis(100);
pub const HEALTH_CHECKS_AT_ONCE: usize = 64;
pub const HEALTH_DEADLINE: Duration = Duration::from_secs(5);
pub const HEALTH_UNUSED_AFTER: Duration = Duration::from_secs(60);
/// HTTP/2 to origins: connections of one worker for one key (another is made where all are full), streams on one, and what
/// an origin may send ahead on a stream. Requests beyond all of these wait for as long as a connect may take.
pub const ORIGIN_H2_CONNECTIONS_PER_KEY_MAX: usize = 16;
pub const ORIGIN_H2_STREAMS_MAX: usize = 64;
/// Streams before the origin has said how many it takes: what is beyond that would be refused and cost a retry.
pub const ORIGIN_H2_STREAMS_BEFORE_SETTINGS: usize = 2;
pub const ORIGIN_H2_STREAM_WINDOW_BYTES: u32 = 128 * 1024;
/// A dead HTTP/2 connection with streams on it is found by a ping.
pub const ORIGIN_H2_PING_INTERVAL: Duration = Duration::from_secs(20);
pub const ORIGIN_H2_PING_DEADLINE: Duration = Duration::from_secs(10);
/// Lines of the process's log that others can bring about (an origin that fails, a client whose certificate is refused): one
/// each so often of one kind, so many at once, and none about the same origin again so soon.
pub const TOLD_EVERY: Duration = Duration::from_secs(1);
pub const TOLD_AT_ONCE: u64 = 20;
pub const ORIGIN_TOLD_PAUSE: Duration = Duration::from_secs(10);
/// Names with kept connections that are looked up again in one sweep of a worker.
pub const RESOLVED_AGAIN_PER_SWEEP: usize = 64;
/// Idle connections kept to one (tenant, origin) by one worker, and by the worker in all.
pub const ORIGIN_IDLE_PER_KEY_MAX: usize = 32;
pub const ORIGIN_IDLE_PER_WORKER_MAX: usize = 1024;
/// Shorter than the 60-75 s that common servers keep a connection, so that we close first.
pub const ORIGIN_IDLE_DEADLINE: Duration = Duration::from_secs(30);
pub const ORIGIN_HEADER_BYTES_MAX: usize = 32 * 1024;
pub const ORIGIN_HEADER_FIELDS_MAX: usize = 256;
/// Interim answers (1xx) to one request. Early hints come once or twice, and 102 as often as a long job needs it.
pub const ORIGIN_INTERIM_ANSWERS_MAX: u32 = 16;
/// What an origin says that refuses an upgrade, bytes: it is held whole.
pub const TUNNEL_REFUSAL_BYTES_MAX: usize = 64 * 1024;
/// An upgraded connection may be silent in both directions for this long.
pub const TUNNEL_IDLE_DEADLINE: Duration = Duration::from_secs(300);
/// And for this long when one side has ended its half: the other's last words are a matter of a round trip.
pub const TUNNEL_HALF_CLOSED_DEADLINE: Duration = Duration::from_secs(10);
/// Addresses tried for one connect.
pub const ORIGIN_ADDRESSES_MAX: usize = 4;
/// Bounds on how long an answer of the DNS is kept, whatever its TTL says.
pub const DNS_TTL_MIN: Duration = Duration::from_secs(5);
pub const DNS_TTL_MAX: Duration = Duration::from_secs(300);
/// Names whose addresses are kept, each with an answer for either kind of address.
pub const DNS_CACHE_NAMES: u64 = 10_000;
pub const DNS_DEADLINE: Duration = Duration::from_secs(5);
/// Addresses of one name that are remembered; the first ones are tried.
pub const DNS_ADDRESSES_MAX: usize = 64;

/// Memory for kept answers, where the edge's file does not say it.
pub const CACHE_BYTES: u64 = 256 * 1024 * 1024;
/// No answer takes more than this share of it.
pub const CACHE_OBJECT_SHARE: u64 = 8;
/// How often, and how long each time, a request waits for another one for the same thing before it goes alone.
pub const CACHE_WAITS_MAX: u32 = 3;
pub const CACHE_WAIT: Duration = Duration::from_secs(5);
/// An origin that has failed is not asked again so soon where a stale answer may stand in.
pub const CACHE_SPARE: Duration = Duration::from_secs(5);
/// Requests to origins that no client of their own waits for, over all workers.
pub const CACHE_BACKGROUND_MAX: usize = 1024;
/// So many at most because their clients have gone while others wait; the rest is for revalidations.
pub const CACHE_ORPHANS_MAX: usize = 512;

/// Variants of one resource; the oldest goes.
pub const CACHE_VARIANTS_MAX: usize = 16;
/// What of a request may tell variants apart: fields, and bytes of their values. An answer with more is not kept.
pub const CACHE_VARY_FIELDS_MAX: usize = 16;
pub const CACHE_VARY_BYTES_MAX: usize = 4096;
/// Tags by which an answer may be purged, and bytes of one; others are not known.
pub const CACHE_TAGS_MAX: usize = 256;
pub const CACHE_TAG_BYTES_MAX: usize = 1024;
/// Answers on their way into the cache, or out of it but still being read, of one tenant: this share of it.
pub const CACHE_LOOSE_SHARE: u64 = 4;
/// Evictions for one reservation; a large object may have to push out many small ones, but not without end.
pub const CACHE_EVICTIONS_MAX: usize = 16_384;

/// Answers that one worker compresses at a time, of one tenant at most as many as it leaves free; beyond that they go as they
/// are. One of them holds 2.0 MiB with brotli, 1.2 with
/// zstd, 0.3 with gzip (measured).
pub const CODINGS_PER_WORKER_MAX: usize = 64;
/// An origin that sends nothing for so long pauses: what was compressed so far is sent.
pub const CODING_FLUSH_AFTER: Duration = Duration::from_millis(10);

/// Proxies before us that a request's way is followed back over; what is beyond that is not looked at.
pub const TRUSTED_PROXIES_DEPTH_MAX: usize = 16;
/// Longest name that a trusted proxy may give a request.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// Bytes of one exchange that are added to its domain's figures at once, at the latest.
pub const COUNTED_AFTER_BYTES: u64 = 256 * 1024;

/// Times that a request may already have passed through a CDN of our name (RFC 8586) before we refuse it.
pub const CDN_LOOP_DEPTH_MAX: usize = 3;

/// Lines that wait for the access-log writer; then they are dropped and counted.
pub const ACCESS_LOG_QUEUE: usize = 8192;
/// Bytes of one text field in the access log.
pub const ACCESS_LOG_FIELD_BYTES_MAX: usize = 4096;
/// How long the last lines may take at the end; a pipe that nobody reads must not keep the edge from ending.
pub const ACCESS_LOG_FINISH_DEADLINE: Duration = Duration::from_secs(2);
/// How long whoever orders the file to be opened again waits for it.
pub const ACCESS_LOG_REOPEN_DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of lines that are written with one call, by one line more at most; what a full disk does not take is held.
pub const ACCESS_LOG_BATCH_BYTES: usize = 64 * 1024;
/// How often the writer looks whether another file stands at its path, tries again what a disk did not take, and what a
/// terminal did not.
pub const ACCESS_LOG_LOOK_EVERY: Duration = Duration::from_secs(1);
pub const ACCESS_LOG_RETRY_EVERY: Duration = Duration::from_secs(1);
pub const ACCESS_LOG_BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Spans that wait to be sent, and their bytes; then they are dropped and counted. A span has about 1 KiB.
pub const SPANS_QUEUE: usize = 4096;
pub const SPANS_QUEUE_BYTES: usize = 8 * 1024 * 1024;
/// Spans that go with one call, and their bytes: collectors take 4 MiB (gRPC's own bound).
pub const SPANS_BATCH: usize = 512;
pub const SPANS_BATCH_BYTES: usize = 3 * 1024 * 1024;
/// Exchanges that are recorded in a second, where the edge's file does not say it: whoever asks may set the flag.
pub const SPANS_PER_SECOND: u64 = 1000;
/// The part of that rate, one in so many, which each tenant has for itself however much others' callers ask for.
pub const SPANS_TENANT_PART: u64 = 32;
/// Bytes of one text in a span.
pub const SPAN_TEXT_BYTES_MAX: usize = 1024;
/// For how long a batch is tried that the collector does not take; then it is dropped and counted.
pub const SPANS_TRIED_FOR: Duration = Duration::from_secs(120);
/// How long a batch waits for more spans, a call may take, and its connection; between two tries; and the last one.
pub const SPANS_GATHER: Duration = Duration::from_secs(1);
pub const SPANS_DEADLINE: Duration = Duration::from_secs(10);
pub const SPANS_CONNECT_DEADLINE: Duration = Duration::from_secs(5);
pub const SPANS_PAUSE_MIN: Duration = Duration::from_millis(500);
pub const SPANS_PAUSE_MAX: Duration = Duration::from_secs(30);
pub const SPANS_FINISH_DEADLINE: Duration = Duration::from_secs(2);

/// Pause before a worker that ended by a panic or an error is started again: at first, and at most while it fails again and
/// again (no descriptors, mostly).
pub const WORKER_RESTART_PAUSE: Duration = Duration::from_millis(100);
pub const WORKER_RESTART_PAUSE_MAX: Duration = Duration::from_secs(5);
/// After a failed accept (no descriptors, mostly): as long as a burst needs to pass, so that the loop never spins.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Share of the descriptor limit that clients may take; the rest is for origins, files and the control stream.
pub const CONNECTIONS_SHARE_PERCENT: u64 = 80;
/// Descriptors that one proxied connection costs: the client's and the origin's.
pub const DESCRIPTORS_PER_CONNECTION: u64 = 2;
/// A tenant's origins may have so many times as many sockets as are free, and one of them as many as are free; there are as
/// many as client connections may be. One origin alone may have half of them, a tenant alone two thirds.
pub const ORIGIN_SOCKETS_PER_FREE: u64 = 2;
/// A full edge ends a connection without an exchange for a newcomer after this, and looks for it among so many at a time.
pub const EVICTABLE_AFTER: Duration = Duration::from_millis(250);
pub const SEATS_LOOKED_AT: usize = 64;
/// Connections taken from one listener before other tasks run.
pub const ACCEPTS_PER_TURN: usize = 16;
/// Pending connections of a listener in the kernel.
pub const LISTEN_BACKLOG: i32 = 4096;
/// Tries to take an address that a killed predecessor may still hold, and the pause between them: 3 s in all.
pub const LISTEN_ATTEMPTS: u32 = 60;
pub const LISTEN_PAUSE: Duration = Duration::from_millis(50);
/// Of the edge's bound on its resident memory: from this share on it is short of memory, until it is below the other. The last
/// tenth is for exchanges that have begun, and for what comes between two looks.
pub const MEMORY_SHORT_PERCENT: u64 = 90;
pub const MEMORY_WELL_PERCENT: u64 = 80;
/// How often it looks, and how often from a share of the bound on from which attackers could fill the rest in less.
pub const MEMORY_LOOK_EVERY: Duration = Duration::from_millis(250);
pub const MEMORY_NEAR_PERCENT: u64 = 60;
pub const MEMORY_LOOK_EVERY_NEAR: Duration = Duration::from_millis(25);
/// Looks in a row, 5 s of them, that find it short although it is below the upper share again, or although too little is left
/// that could end: then the bound is what is wrong.
pub const MEMORY_LOOKS_IN_VAIN_MAX: u32 = 200;
/// What a connection and what an exchange with an origin hold at most beside one another, taken generously: an exchange has
/// taken a quarter of it, a connection with buffers both ways half.
pub const MEMORY_HELD_BY_EACH_MAX: u64 = 256 * 1024;
/// What an exchange with an origin may take, bytes (44 to 55 KiB were measured where a client takes nothing of its answer).
pub const MEMORY_OF_EXCHANGE_BYTES: u64 = 56 * 1024;
/// What a connection may make the edge hold that has as many exchanges under way as it may: each takes a connection to an origin,
/// besides what the client's own may hold.
pub const MEMORY_OF_CONNECTION_BYTES: u64 = CONNECTION_ANSWER_BYTES_MAX as u64
    + CONNECTION_HEAD_BYTES_MAX as u64
    + H2_STREAMS_MAX as u64 * MEMORY_OF_EXCHANGE_BYTES;
/// Exchanges with origins that a tenant may have under way for each that there is room for: two thirds of all, alone.
pub const EXCHANGES_PER_FREE: u64 = 2;
/// How long an exchange may be under way before what it takes shows.
pub const MEMORY_GROWS_WITHIN: Duration = Duration::from_secs(1);
/// Where the edge's file says nothing, its bound is this share of the control group's. The rest is for what the kernel holds for
/// its sockets, and for files.
pub const MEMORY_OF_CGROUP_PERCENT: u64 = 75;
/// Smallest bound: an edge takes some 30 MB before anybody asks it for anything, and twice as many in use.
pub const MEMORY_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// When whoever is refused for want of memory may come again: exchanges end within seconds, mostly.
pub const MEMORY_RETRY_AFTER: Duration = Duration::from_secs(2);
/// Between two lines of the log about it.
pub const MEMORY_TOLD_PAUSE: Duration = Duration::from_secs(10);
/// Before a drained listener is closed: time for the kernel to finish handshakes whose clients already send, and how often.
pub const ACCEPT_SETTLE: Duration = Duration::from_millis(20);
pub const ACCEPT_SETTLE_ROUNDS: u32 = 10;

/// What one client address (IPv4, or an IPv6 /64) may take where the edge's file does not say it. Thousands of people may
/// share one address behind a carrier's NAT; a browser opens 2 to 6 connections to a site and asks for some hundred things.
pub const SOURCE_HANDSHAKES_PER_SECOND: u64 = 200;
pub const SOURCE_HANDSHAKES_BURST: u64 = 2000;
pub const SOURCE_REQUESTS_PER_SECOND: u64 = 2000;
pub const SOURCE_REQUESTS_BURST: u64 = 10_000;
pub const SOURCE_CONNECTIONS_MAX: u32 = 4000;
/// What a handshake costs beside its one unit where the key is dearer than ECDSA P-256, whose full handshakes are the unit. An
/// edge's CPU time for one with P-384, RSA 2048, 3072 and 4096 was measured as 1.4, 2.3, 5.2 and 8.6 times theirs, on a
/// processor with instructions for RSA (AVX-512 IFMA); many have none and take twice as long.
pub const SOURCE_P384_MORE: u64 = 1;
pub const SOURCE_RSA2048_MORE: u64 = 3;
pub const SOURCE_RSA3072_MORE: u64 = 9;
pub const SOURCE_RSA4096_MORE: u64 = 19;
/// What a resumed handshake gets back of the price of a full one: it signs nothing, and still costs a key exchange.
pub const SOURCE_RESUMED_BACK: (u64, u64) = (3, 4);
/// Addresses that are known at a time, 32 bytes each.
pub const SOURCES_MAX: usize = 65_536;
/// Between two lines of the log about addresses that are refused.
pub const SOURCE_LOG_PAUSE: Duration = Duration::from_secs(10);
/// What the edge's file may ask for.
pub const SOURCE_RATE_MAX: u64 = 1_000_000;

/// What a tenant whose requests or bandwidth are limited may take at once after a pause: so many seconds of its requests,
/// a quarter of a second of its bytes and not less than one small page.
pub const TENANT_REQUESTS_BURST_SECONDS: u64 = 2;
pub const TENANT_BANDWIDTH_BURST_MIN: u64 = 16 * 1024;
/// Whose first byte would come later than this gets a refusal now.
pub const TENANT_BANDWIDTH_WAIT_MAX: Duration = Duration::from_secs(10);

/// Connections of the admin socket, and of the metrics port: people, scrapers, a balancer's health checks. Each may live for so
/// long: one that takes no answers holds no place for ever.
pub const SURFACE_CONNECTIONS_MAX: usize = 64;
pub const SURFACE_AGE_MAX: Duration = Duration::from_secs(60);
/// Bytes of one call on the admin socket; a chain with its key is far below.
pub const ADMIN_BODY_BYTES_MAX: usize = 1024 * 1024;
/// Names that one look at the busiest ones shows.
pub const ADMIN_USAGE_ROWS_MAX: usize = 100;
/// Parsed keys held ready, by weight; 64 MiB is about 50,000 of them.
pub const KEY_CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// Standalone files.
pub const CERTIFICATE_FILE_BYTES_MAX: u64 = 256 * 1024;

/// Concurrent request streams of one HTTP/3 connection, and streams of a client's own (control, QPACK, reserved).
pub const H3_STREAMS_MAX: u32 = 100;
pub const H3_CONTROL_STREAMS_MAX: u32 = 8;
/// Between the first GOAWAY and the last: three round trips, within these bounds. Clients on busy machines take a good part of
/// a second to read the first one; what they send meanwhile would be refused.
pub const H3_GOAWAY_WAIT_MIN: Duration = Duration::from_secs(1);
pub const H3_GOAWAY_WAIT_MAX: Duration = Duration::from_secs(2);
/// After the last answer of a connection that is to end: the client's time to close it first.
pub const H3_CLOSE_LINGER: Duration = Duration::from_secs(3);
/// Answer bytes that one connection's client has not acknowledged: at first, and at most on a path that carries as much.
pub const QUIC_SEND_WINDOW_FIRST_BYTES: u64 = 128 * 1024;
pub const QUIC_SEND_WINDOW_BYTES: u64 = 1024 * 1024;
/// What a client may send ahead on one connection: at first, and at most when it has sent as much that was read.
pub const QUIC_RECEIVE_WINDOW_FIRST_BYTES: u32 = 256 * 1024;
pub const QUIC_RECEIVE_WINDOW_BYTES: u32 = H2_CONNECTION_WINDOW_BYTES;
/// Frames of a QUIC client that are neither padding nor a stream's: how many it may have ahead, and how many more each second.
/// Requests and the packets that we send pay for further ones.
pub const QUIC_FRAMES_BURST: u32 = 1000;
pub const QUIC_FRAMES_PER_SECOND: u32 = 50;
/// What a request pays for: its end, its reset, its windows, and acknowledgements of what is said about it.
pub const QUIC_FRAMES_PER_REQUEST: u32 = 8;
/// What a large piece of a body pays for: that both windows are full, and an acknowledgement of how they were widened.
pub const QUIC_FRAMES_PER_LARGE_PIECE: u32 = 3;
/// All frames of a handshake. Browsers cut a ClientHello into some dozens.
pub const QUIC_HANDSHAKE_FRAMES: u32 = 200;
/// Pieces of streams below this size that may be held unread, at some 100 bytes each; larger ones are bounded by the windows.
pub const QUIC_PIECES_MAX: u32 = 1000;
pub const QUIC_PIECE_BYTES: u64 = 512;
/// Bytes in large pieces of streams that may be here and not read, or come again: four times the largest window. What is read pays for
/// as much and a quarter more, for what the client sends twice; a request pays for a stream's window, which may never be read.
pub const QUIC_UNREAD_BYTES_MAX: u32 = 4 * QUIC_RECEIVE_WINDOW_BYTES;
/// Handshakes of one worker from which on clients have to show their address first (Retry, RFC 9000 section 8.1.2).
pub const QUIC_HALF_OPEN_BEFORE_RETRY: usize = 100;
/// The same of all workers together. Each takes some 8 KiB, and below 64 with all that its client may make us hold: what is
/// held for addresses that may be forged stays below 64 MiB.
pub const QUIC_HALF_OPEN_OF_ALL: usize = 1000;
/// A Retry token is good for this long.
pub const QUIC_RETRY_TOKEN_LIFE: Duration = Duration::from_secs(15);
/// Connection attempts of one worker that wait to be looked at; bytes held for one of them, and for all of all workers.
pub const QUIC_INCOMING_MAX: usize = 1024;
pub const QUIC_INCOMING_BYTES: u64 = 64 * 1024;
pub const QUIC_INCOMING_BYTES_TOTAL: u64 = 16 * 1024 * 1024;
/// Packets that may wait in a socket, bytes (net.core.rmem_max and wmem_max may allow less): while a successor takes over,
/// nobody reads for a few milliseconds.
pub const QUIC_SOCKET_BYTES: usize = 4 * 1024 * 1024;
/// CRYPTO bytes that may come out of order in a handshake.
pub const QUIC_CRYPTO_BUFFER_BYTES: usize = 16 * 1024;

/// Most of `withdraw_seconds` and of `drain_seconds`: a day is longer than any download, and what is open then (a WebSocket)
/// would not end by itself. Nothing that is added to a time can overflow by it.
pub const DRAIN_SECONDS_MAX: u64 = 86_400;
/// Predecessors that may still drain when the next successor comes.
pub const PREDECESSORS_MAX: usize = 8;
/// How long a successor may take to read its files, from the hand-over of the sockets on.
pub const TAKE_OVER_DEADLINE: Duration = Duration::from_secs(300);
/// For each answer in the last steps of a hand-over.
pub const TAKE_OVER_STEP_DEADLINE: Duration = Duration::from_secs(10);
/// How long a successor waits, before it serves, for what has changed since its files were written.
pub const CATCH_UP_DEADLINE: Duration = Duration::from_secs(2);
/// Bytes of one message of a hand-over, and descriptors of one offer: both far above what 256 workers need.
pub const TAKE_OVER_MESSAGE_BYTES_MAX: usize = 1024 * 1024;
pub const TAKE_OVER_DESCRIPTORS_MAX: usize = 8192;
