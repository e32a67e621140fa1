//! The README's table of the edge's file, held against what is read: each key stands there once, and no other.

use std::{collections::BTreeSet, path::Path};

use super::Config;

const README: &str = include_str!("../../../README.md");

/// What stands before the keys of each section and table, and a text with a key in it that does not exist.
const SECTIONS: [(&str, &str); 24] = [
    ("", "none = 1"),
    ("privacy.", "[privacy]\nnone = 1"),
    ("traces.", "[traces]\nnone = 1"),
    ("client_limits.", "[client_limits]\nnone = 1"),
    ("listen.", "[[listen]]\nnone = 1"),
    ("control.", "[control]\nnone = 1"),
    ("certificates.", "[certificates]\nnone = 1"),
    ("standalone.", "[standalone]\nnone = 1"),
    ("standalone.limits.", "[standalone]\nlimits = { none = 1 }"),
    ("standalone.error_pages.", "[standalone]\nerror_pages = { none = 1 }"),
    ("egress.", "[egress]\nnone = 1"),
    ("egress.allow.", "[egress]\nallow = [{ none = 1 }]"),
    ("tls.", "[[tls]]\nnone = 1"),
    ("route.", "[[route]]\nnone = 1"),
    ("route.headers.", "[[route]]\nheaders = [{ none = 1 }]"),
    ("route.request_headers.", "[[route]]\nrequest_headers = { none = 1 }"),
    ("route.response_headers.", "[[route]]\nresponse_headers = { none = 1 }"),
    ("route.health_check.", "[[route]]\nhealth_check = { none = 1 }"),
    ("route.timeouts.", "[[route]]\ntimeouts = { none = 1 }"),
    ("route.breaker.", "[[route]]\nbreaker = { none = 1 }"),
    ("route.cache.", "[[route]]\ncache = { none = 1 }"),
    ("route.cache.query.", "[[route]]\ncache = { query = { none = 1 } }"),
    ("route.compression.", "[[route]]\ncompression = { none = 1 }"),
    ("route.maintenance.", "[[route]]\nmaintenance = { none = 1 }"),
];

/// What the refusal of a key that does not exist says of those that do.
fn keys_of(prefix: &str, text: &str) -> Vec<String> {
    let error = Config::parse(Path::new("/edge.toml"), text).expect_err("there is no such key").to_string();
    let (_, known) = error.split_once("expected ").unwrap_or_else(|| panic!("{text:?} gave {error:?}"));
    known.split('`').skip(1).step_by(2).map(|key| format!("{prefix}{key}")).collect()
}

#[test]
fn the_readme_has_every_key_of_the_file_and_no_other() {
    let all: BTreeSet<String> = SECTIONS.iter().flat_map(|(prefix, text)| keys_of(prefix, text)).collect();
    let is_section = |key: &String| all.iter().any(|other| other.starts_with(&format!("{key}.")));
    let wanted: BTreeSet<&str> = all.iter().filter(|key| !is_section(key)).map(String::as_str).collect();
    assert!(wanted.len() > 90, "{wanted:?}");
    let (_, table) = README.split_once("### Every key of the edge's file").expect("the README has the table");
    let table = table.split_once("\n### ").map_or(table, |(table, _)| table);
    let mut shown = BTreeSet::new();
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let first = row.split('|').nth(1).unwrap_or_default();
        for key in first.split('`').skip(1).step_by(2) {
            assert!(shown.insert(key), "{key} is there twice");
        }
    }
    assert_eq!(shown, wanted);
}
