//! Every bound of the edge, and those of the control plane's table, is hit by a test, and by name (promise P13): a limit that nobody has ever reached is a guess.
//!
//! The test that hits a limit says so by naming its constant, or the field of `Deadlines` that the constant is the default
//! of. So a limit that is added, renamed or moved without its test fails here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the bounds stand.
const TABLES: [&str; 4] = [
    "edge/src/limits.rs",
    "edge/src/live/limits.rs",
    "edge/src/control/limits.rs",
    "control-plane/src/limits.rs",
];

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
const UNTESTED: [&str; 1] = ["H2_SEND_BUFFER_BYTES"];

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

/// The words of all tests of both services: of their `tests` folders, of `tests.rs` files, and of what stands behind
/// `mod tests {` in a source.
fn words_of_tests() -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    let mut add = |text: &str| {
        let is_word = |character: char| character.is_ascii_alphanumeric() || character == '_';
        words.extend(text.split(|character| !is_word(character)).map(ToOwned::to_owned));
    };
    for path in ["edge/tests", "control-plane/tests"].iter().flat_map(|folder| sources(&root().join(folder)))
    {
        add(&fs::read_to_string(path).expect("a source file"));
    }
    for path in ["edge/src", "control-plane/src"].iter().flat_map(|folder| sources(&root().join(folder))) {
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
        let is_default = |part: &&str| part.trim().ends_with(&format!(": {name}"));
        let field =
            text.split([',', '{', '}']).find(is_default).and_then(|part| part.trim().split(':').next());
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
