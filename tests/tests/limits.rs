//! Every bound of the edge is hit by a test, and by name (promise P13): a limit that nobody has ever reached is a guess.
//!
//! The test that hits a limit says so by naming its constant, or the field of `Deadlines` that the constant is the default
//! of. So a limit that is added, renamed or moved without its test fails here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the bounds stand.
const TABLES: [&str; 3] = ["edge/src/limits.rs", "edge/src/live/limits.rs", "edge/src/control/limits.rs"];

/// Not bounds on what comes from outside: how long and how often the edge itself does something, and what it asks of the
/// kernel.
const OWN_PACE: [&str; 28] = [
    "SPANS_GATHER",
    "SPANS_DEADLINE",
    "SPANS_CONNECT_DEADLINE",
    "SPANS_PAUSE_MIN",
    "SPANS_PAUSE_MAX",
    "ACCESS_LOG_LOOK_EVERY",
    "ACCESS_LOG_RETRY_EVERY",
    "ACCESS_LOG_BUSY_PAUSE",
    "H2_LATE_REQUESTS",
    "HEALTH_TICK",
    "RESOLVED_AGAIN_PER_SWEEP",
    "ACCEPTS_PER_TURN",
    "LISTEN_BACKLOG",
    "LISTEN_ATTEMPTS",
    "LISTEN_PAUSE",
    "ACCEPT_SETTLE",
    "ACCEPT_SETTLE_ROUNDS",
    "SOURCE_LOG_PAUSE",
    "QUIC_SOCKET_BYTES",
    "GOOD_STREAM",
    "STATUS_EVERY",
    "SWEEP_EVERY",
    "CAUGHT_UP_AFTER",
    "COUNTED_AFTER_BYTES",
    "USAGE_TAKEN_EVERY",
    "USAGE_SAVING_SHARE",
    "USAGE_REPORTED_EVERY",
    "USAGE_ANSWER_DEADLINE",
];

/// Bounds whose test has not been written. The list may only become shorter.
const UNTESTED: [&str; 77] = [
    "DRAIN_PATIENCE",
    "LINGER_BYTES_MAX",
    "LINGER_DEADLINE",
    "LINGER_DEADLINE_DRAINING",
    "CLOSE_DEADLINE",
    "CONNECTION_AGE_MAX",
    "H2_SEND_BUFFER_BYTES",
    "GIVEN_UP_WINDOW",
    "ORIGIN_CONNECT_DEADLINE",
    "ORIGIN_IN_FLIGHT_PER_WORKER_MAX",
    "ENDPOINTS_PER_WORKER_MAX",
    "ENDPOINT_FORGOTTEN_AFTER",
    "EJECTION_MAX",
    "RETRY_COST",
    "WATCHED_ORIGINS_MAX",
    "HEALTH_CHECKS_AT_ONCE",
    "HEALTH_DEADLINE",
    "HEALTH_UNUSED_AFTER",
    "ORIGIN_H2_CONNECTIONS_PER_KEY_MAX",
    "ORIGIN_H2_STREAMS_MAX",
    "ORIGIN_H2_STREAMS_BEFORE_SETTINGS",
    "ORIGIN_H2_STREAM_WINDOW_BYTES",
    "ORIGIN_H2_PING_INTERVAL",
    "ORIGIN_H2_PING_DEADLINE",
    "ORIGIN_IDLE_PER_KEY_MAX",
    "ORIGIN_IDLE_PER_WORKER_MAX",
    "ORIGIN_IDLE_DEADLINE",
    "ORIGIN_HEADER_FIELDS_MAX",
    "TUNNEL_IDLE_DEADLINE",
    "ORIGIN_ADDRESSES_MAX",
    "DNS_TTL_MIN",
    "DNS_TTL_MAX",
    "DNS_CACHE_NAMES",
    "DNS_DEADLINE",
    "DNS_ADDRESSES_MAX",
    "CACHE_BYTES",
    "CACHE_OBJECT_SHARE",
    "CACHE_WAITS_MAX",
    "CACHE_WAIT",
    "CACHE_SPARE",
    "CACHE_BACKGROUND_MAX",
    "ACCESS_LOG_FINISH_DEADLINE",
    "CONNECTIONS_SHARE_PERCENT",
    "DESCRIPTORS_PER_CONNECTION",
    "SOURCE_HANDSHAKES_PER_SECOND",
    "KEY_CACHE_BYTES",
    "H3_STREAMS_MAX",
    "H3_CONTROL_STREAMS_MAX",
    "H3_GOAWAY_WAIT_MIN",
    "H3_GOAWAY_WAIT_MAX",
    "H3_CLOSE_LINGER",
    "QUIC_SEND_WINDOW_BYTES",
    "QUIC_RETRY_TOKEN_LIFE",
    "QUIC_INCOMING_MAX",
    "QUIC_INCOMING_BYTES",
    "QUIC_INCOMING_BYTES_TOTAL",
    "QUIC_CRYPTO_BUFFER_BYTES",
    "PREDECESSORS_MAX",
    "TAKE_OVER_DEADLINE",
    "TAKE_OVER_STEP_DEADLINE",
    "TAKE_OVER_MESSAGE_BYTES_MAX",
    "TAKE_OVER_DESCRIPTORS_MAX",
    "SNAPSHOT_BYTES_MAX",
    "CONNECT_DEADLINE",
    "CALL_DEADLINE",
    "KEEPALIVE",
    "MESSAGE_BYTES_MAX",
    "OUTGOING_QUEUE",
    "BATCHES_QUEUE",
    "NACKS_MAX",
    "NACK_TEXT_BYTES_MAX",
    "CELL_KEY_EPOCHS_MAX",
    "CELL_KEY_FILE_BYTES_MAX",
    "IDENTITY_FILE_BYTES_MAX",
    "IDENTITY_CHAIN_MAX",
    "UNSAVED_BYTES_MAX",
    "CATCH_UP_DEADLINE",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace's folder")
}

/// All Rust files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of the workspace") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The words of all tests of the edge: of its `tests` folder, of `tests.rs` files, and of what stands behind
/// `mod tests {` in a source.
fn words_of_tests() -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    let mut add = |text: &str| {
        let is_word = |character: char| character.is_ascii_alphanumeric() || character == '_';
        words.extend(text.split(|character| !is_word(character)).map(ToOwned::to_owned));
    };
    for path in sources(&root().join("edge/tests")) {
        add(&fs::read_to_string(path).expect("a source file"));
    }
    for path in sources(&root().join("edge/src")) {
        let text = fs::read_to_string(&path).expect("a source file");
        if path.ends_with("tests.rs") {
            add(&text);
        } else if let Some((_, tests)) = text.split_once("\nmod tests {") {
            add(tests);
        }
    }
    words
}

/// The constants of a table, each with the field of `Deadlines` that it is the default of.
fn limits(table: &str) -> Vec<(String, Option<String>)> {
    let text = fs::read_to_string(root().join(table)).expect("a table of limits");
    let constant = |line: &str| {
        let name = line.strip_prefix("pub const ")?.split(':').next()?;
        let is_default = |line: &&str| line.trim().trim_end_matches(',').ends_with(&format!(": {name}"));
        let field = text.lines().find(is_default).and_then(|line| line.trim().split(':').next());
        Some((name.to_owned(), field.map(ToOwned::to_owned)))
    };
    text.lines().filter_map(constant).collect()
}

#[test]
fn every_limit_is_named_by_a_test() {
    let words = words_of_tests();
    let all: Vec<_> = TABLES.into_iter().flat_map(limits).collect();
    assert!(all.len() > 150, "found only {} limits", all.len());
    let tested = |name: &str, field: Option<&String>| {
        words.contains(name) || field.is_some_and(|field| words.contains(field))
    };
    let excused = |name: &str| OWN_PACE.contains(&name) || UNTESTED.contains(&name);
    let missing: Vec<_> = all
        .iter()
        .filter(|(name, field)| !tested(name, field.as_ref()) && !excused(name))
        .map(|(name, _)| name)
        .collect();
    assert!(missing.is_empty(), "no test names these limits; write the one that hits it:\n{missing:#?}");
    for name in OWN_PACE.iter().chain(&UNTESTED) {
        let limit = all.iter().find(|(limit, _)| limit == name);
        let (_, field) = limit.unwrap_or_else(|| panic!("{name} is no limit any more: take it off the list"));
        assert!(!tested(name, field.as_ref()), "{name} has its test: take it off the list");
    }
}
