//! The house rules that a machine can hold: sizes, names, and which words may stand in which folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const FILE_LINES_MAX: usize = 1000;

/// Names that say nothing about what is in a file.
const BANNED_FILE_NAMES: [&str; 6] =
    ["utils.rs", "util.rs", "common.rs", "helpers.rs", "helper.rs", "manager.rs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace's folder")
}

/// All files of the project that git tracks or would track, relative to the root.
fn files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git runs");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let listed: Vec<PathBuf> = String::from_utf8(output.stdout)
        .expect("paths are UTF-8")
        .lines()
        .map(PathBuf::from)
        .filter(|p| root().join(p).exists())
        .collect();
    assert!(listed.len() > 50, "found only {} files: is this the checkout?", listed.len());
    listed
}

fn rust_sources() -> Vec<(PathBuf, String)> {
    files()
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == "rs"))
        .map(|p| {
            let text = fs::read_to_string(root().join(&p)).expect("a source file is UTF-8");
            (p, text)
        })
        .collect()
}

/// The lines of `text` without their comments, so that a word in prose is not a use.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(at, line)| (at + 1, line.split("//").next().unwrap_or("")))
        .filter(|(_, l)| !l.is_empty())
}

/// Fails with every place outside `allowed` folders where code holds one of `words`.
fn only_in(words: &[&str], allowed: &[&str]) {
    let mut found = Vec::new();
    for (path, text) in rust_sources() {
        if allowed.iter().any(|a| path.starts_with(a)) || path.starts_with("tests/tests/tidy.rs") {
            continue;
        }
        for (line, code) in code_lines(&text) {
            if words.iter().any(|w| code.contains(w)) {
                found.push(format!("{}:{line}: {}", path.display(), code.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{words:?} may only stand in {allowed:?}:\n{}", found.join("\n"));
}

#[test]
fn only_the_io_module_names_the_ring() {
    only_in(&["tokio_uring", "io_uring::"], &["edge/src/io/", "edge/src/io.rs"]);
}

#[test]
fn only_the_io_module_is_unsafe() {
    only_in(&["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"], &["edge/src/io/", "edge/src/io.rs"]);
}

#[test]
fn only_one_module_reads_certificates_as_text() {
    // The library's own errors repeat what stands beside them.
    only_in(
        &["pem_slice_iter", "pem_file_iter", "pem_reader_iter"],
        &["cert-store/src/pem.rs", "tests/", "loadtest/", "benches/", "edge/tests/", "control-plane/tests/"],
    );
}

#[test]
fn only_the_acme_module_names_the_acme_client() {
    only_in(&["instant_acme"], &["control-plane/src/acme/", "control-plane/src/acme.rs", "tests/"]);
}

#[test]
fn only_the_store_holds_sql() {
    only_in(
        &["sqlx", "SELECT ", "INSERT INTO", "DELETE FROM", "UPDATE "],
        &[
            "control-plane/src/store/",
            "control-plane/src/store.rs",
            "control-plane/tests/",
            "control-plane/cli/tests/",
            "tests/",
        ],
    );
}

#[test]
fn names_of_metrics_stand_in_metrics_modules() {
    let mut found = Vec::new();
    for (path, text) in rust_sources() {
        let is_product = ["edge/src/", "control-plane/src/"].iter().any(|folder| path.starts_with(folder));
        if !is_product || path.ends_with("metrics.rs") {
            continue;
        }
        for (line, code) in code_lines(&text) {
            let named = ["counter!(", "gauge!(", "histogram!("].iter().any(|word| code.contains(word));
            if named || code.contains("\"portico_") {
                found.push(format!("{}:{line}: {}", path.display(), code.trim()));
            }
        }
    }
    assert!(found.is_empty(), "a metric outside a metrics.rs:\n{}", found.join("\n"));
}

#[test]
fn metrics_that_the_papers_name_are_there() {
    let sources = rust_sources();
    let named: String = sources
        .iter()
        .filter(|(path, _)| path.ends_with("metrics.rs"))
        .map(|(_, text)| text.as_str())
        .collect();
    let mut missing = Vec::new();
    for paper in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"] {
        let text = fs::read_to_string(root().join(paper)).unwrap();
        let is_of_a_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        for word in text.split(|letter| !is_of_a_name(letter)).filter(|word| word.starts_with("portico_")) {
            let name =
                ["_bucket", "_count", "_sum"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
            if !named.contains(&format!("\"{name}\"")) {
                missing.push(format!("{paper}: {word}"));
            }
        }
    }
    assert!(missing.is_empty(), "no metrics.rs names them:\n{}", missing.join("\n"));
}

#[test]
fn only_clock_modules_read_the_wall_clock() {
    // The monotonic clock is clippy.toml's to hold; a runtime's own timers move with the runtime.
    only_in(
        &["SystemTime::now()", "OffsetDateTime::now_utc()"],
        &[
            "edge/src/clock.rs",
            "control-plane/src/clock.rs",
            "tests/",
            "loadtest/",
            "benches/",
            "control-plane/cli/src/clock.rs",
            "control-plane/prober/src/clock.rs",
            "control-plane/api/src/clock.rs",
            "cert-store/examples/",
            "cert-store/tests/",
            "edge/tests/",
            "control-plane/tests/",
            "control-plane/api/tests/",
            "control-plane/prober/tests/",
            "control-plane/cli/tests/",
        ],
    );
}

#[test]
fn files_are_short_and_named_by_concept() {
    let mut found = Vec::new();
    for (path, text) in rust_sources() {
        let lines = text.lines().count();
        let is_test = path.components().any(|c| c.as_os_str() == "tests");
        if lines > FILE_LINES_MAX && !is_test && !path.ends_with("generated.rs") {
            found.push(format!("{}: {lines} lines, at most {FILE_LINES_MAX}", path.display()));
        }
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        if BANNED_FILE_NAMES.contains(&name) {
            found.push(format!("{}: name the concept instead", path.display()));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn nothing_is_left_to_do_or_ignored() {
    let banned = ["todo!(", "unimplemented!(", "#[ignore", "dbg!("];
    let mut found = Vec::new();
    for (path, text) in rust_sources() {
        if path.starts_with("tests/tests/tidy.rs") {
            continue;
        }
        for (line, code) in code_lines(&text) {
            if banned.iter().any(|w| code.contains(w)) {
                found.push(format!("{}:{line}: {}", path.display(), code.trim()));
            }
        }
        for (line, text) in text.lines().enumerate() {
            if text.contains("TODO") || text.contains("FIXME") || text.contains("HACK") {
                found.push(format!("{}:{}: {}", path.display(), line + 1, text.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_source_file_is_part_of_a_crate() {
    let sources = rust_sources();
    let mut dead = Vec::new();
    for (path, _) in &sources {
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or("");
        let folder = path.parent().expect("a file is in a folder");
        let in_src = path.components().any(|c| c.as_os_str() == "src");
        if !in_src || matches!(stem, "lib" | "main") || folder.ends_with("bin") {
            continue;
        }
        let module =
            if stem == "mod" { folder.file_name().and_then(|n| n.to_str()).unwrap_or("") } else { stem };
        let home = if stem == "mod" { folder.parent().expect("a module has a parent") } else { folder };
        let declared = sources.iter().any(|(other, text)| {
            let parent = other.parent().expect("a file is in a folder");
            let own = parent == home || (other.with_extension("") == home);
            own && code_lines(text)
                .any(|(_, l)| l.contains(&format!("mod {module};")) || l.contains(&format!("mod {module} ")))
        });
        if !declared {
            dead.push(path.display().to_string());
        }
    }
    assert!(dead.is_empty(), "no module declares:\n{}", dead.join("\n"));
}

#[test]
fn the_top_level_holds_only_what_it_should() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "edge",
        "control-plane",
        "cert-store",
        "benches",
        "loadtest",
        "tests",
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "LICENSE",
        "clippy.toml",
        "rustfmt.toml",
        "deny.toml",
        ".ci",
        ".gitignore",
    ];
    let extra: Vec<_> = files()
        .into_iter()
        .filter_map(|p| p.components().next().map(|c| c.as_os_str().to_string_lossy().into_owned()))
        .filter(|top| !allowed.contains(&top.as_str()))
        .collect();
    assert!(extra.is_empty(), "{extra:?}");
}

#[test]
fn architecture_stays_readable() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    assert!(text.lines().count() < 300, "ARCHITECTURE.md has {} lines", text.lines().count());
    let wide: Vec<_> = (1..).zip(text.lines()).filter(|(_, line)| line.chars().count() > 140).collect();
    assert!(wide.is_empty(), "wider than 140 characters: {wide:?}");
}
