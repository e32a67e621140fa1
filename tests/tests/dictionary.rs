//! The README's dictionary holds every word that the edge gives as a reason and every metric, each once, and nothing else.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const README: &str = include_str!("../../README.md");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The words in a section's tables, each with a line of text behind it.
fn dictionary(heading: &str) -> BTreeSet<String> {
    let (_, rest) = README.split_once(format!("\n### {heading}\n").as_str()).expect("the section is there");
    let section = rest.split("\n#").next().expect("it has a beginning");
    let mut words = BTreeSet::new();
    for row in section.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (word, text) = row.split_once("` | ").expect("a row has two columns");
        assert!(text.trim_end_matches(" |").len() > 3, "{word}: what does it mean?");
        assert!(words.insert(word.to_owned()), "{word} is there twice");
    }
    words
}

/// What is to be compiled of a file, without its tests and comments.
fn code(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("a source file is UTF-8");
    let code = text.split("#[cfg(test)]").next().expect("it has a beginning");
    code.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned()).collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("its entries are read").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
    found
}

/// Texts of the line that are one word of ours.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let is_ours = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'_';
    let texts = line.split('"').skip(1).step_by(2);
    texts.filter(move |text| text.len() > 2 && text.bytes().all(is_ours))
}

/// The words in the lines from the one that begins with `first` to the one that is `last`.
fn block(lines: &[String], first: &str, last: &str) -> BTreeSet<String> {
    let from = lines.iter().skip_while(|line| !line.starts_with(first));
    let found: BTreeSet<_> = from
        .take_while(|line| line.as_str() != last)
        .flat_map(|line| words(line))
        .map(str::to_owned)
        .collect();
    assert!(!found.is_empty(), "{first} is not where it was");
    found
}

/// What stands where a reason is given: wherever an answer of our own is made, and in the modules whose words are reasons.
fn reasons() -> BTreeSet<String> {
    const ANYWHERE: [&str; 3] = ["page(", ".broken(", "const CLIENT_STALLED"];
    const IN_THEIR_MODULES: [&str; 9] = [
        "Err(\"",
        "bad(\"",
        "StatusCode::",
        "Some(\"",
        "reason: \"",
        "reason = \"",
        "=> \"",
        "const SUSPENDED",
        "const MAINTENANCE",
    ];
    let edge = root().join("edge/src");
    let mut found = BTreeSet::new();
    for path in sources(&edge) {
        let theirs = ["exchange", "exchange.rs", "http/framing.rs", "http/authority.rs", "upstream/error.rs"];
        let is_theirs = theirs.iter().any(|module| path.starts_with(edge.join(module)));
        for line in code(&path) {
            let is_given = ANYWHERE.iter().any(|mark| line.contains(mark))
                || (is_theirs && IN_THEIR_MODULES.iter().any(|mark| line.contains(mark)));
            if is_given {
                found.extend(words(&line).map(str::to_owned));
            }
        }
    }
    let metrics = code(&edge.join("metrics.rs"));
    found.extend(block(&metrics, "const REFUSALS", "];"));
    found.extend(block(&metrics, "const ORIGIN_FAILURES", "];"));
    found.extend(block(&metrics, "impl Limited {", "}"));
    found
}

fn metrics() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for folder in ["edge/src", "control-plane/src"] {
        for path in sources(&root().join(folder)).iter().filter(|path| path.ends_with("metrics.rs")) {
            let lines = code(path);
            let named = lines.iter().flat_map(|line| words(line)).filter(|word| word.starts_with("portico_"));
            found.extend(named.map(str::to_owned));
        }
    }
    found
}

fn is_whole(heading: &str, in_code: &BTreeSet<String>) {
    let in_readme = dictionary(heading);
    let missing: Vec<_> = in_code.difference(&in_readme).collect();
    let gone: Vec<_> = in_readme.difference(in_code).collect();
    assert!(missing.is_empty(), "README.md, \"{heading}\", lacks a row for: {missing:?}");
    assert!(gone.is_empty(), "README.md, \"{heading}\", has what the code has not: {gone:?}");
}

#[test]
fn every_reason_is_in_the_readme() {
    let found = reasons();
    assert!(found.len() > 90, "only {} found: are they given elsewhere now? {found:?}", found.len());
    is_whole("Reasons", &found);
}

#[test]
fn every_metric_is_in_the_readme() {
    let found = metrics();
    assert!(found.len() > 110, "only {} found: {found:?}", found.len());
    is_whole("Metrics", &found);
}
