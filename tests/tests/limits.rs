//! Every bound of the edge, and those of the control plane's table, is hit by a test, and by name (promise P13): a limit that
//! nobody has ever reached is a guess.
//!
//! The test that hits a limit says so by naming its constant, by a path that leads to this one and no other of the name; or
//! by setting the field of `Deadlines` that the constant is the default of. So a limit that is added, renamed or moved
//! without its test fails here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the bounds stand.
const TABLES: [&str; 4] = [
    "portico_edge::limits",
    "portico_edge::live::limits",
    "portico_edge::control::limits",
    "portico_control_plane::limits",
];

/// The crates of both services, and their folders.
const CRATES: [(&str, &str); 2] = [("portico_edge", "edge"), ("portico_control_plane", "control-plane")];

/// Not bounds on what comes from outside: how long and how often the edge itself does something, and what it asks of the
/// kernel.
const OWN_PACE: [&str; 33] = [
    "ACCEPT_PAUSE",
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
    "MEMORY_TOLD_PAUSE",
    "ACCEPT_SETTLE",
    "ACCEPT_SETTLE_ROUNDS",
    "SOURCE_LOG_PAUSE",
    "TOLD_EVERY",
    "TOLD_AT_ONCE",
    "ORIGIN_TOLD_PAUSE",
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

/// Bounds that stand beside what they bound, and why: nobody would look for them in a table.
const ELSEWHERE: [(&str, &str); 13] = [
    ("portico_edge::cache::coded", "FLUSHES_MAX"), // the room that a form is given is computed from it
    ("portico_edge::http::gathered_io", "HELD_BYTES_MAX"), // of our own output
    ("portico_edge::http::h3::adapter", "CONTROL_BYTES_MAX"), // of the reading of one stream, each hit by the tests beside it
    ("portico_edge::http::h3::adapter", "READ_BYTES_MAX"),
    ("portico_edge::http::h3::frames", "FRAME_BYTES_MAX"),
    ("portico_edge::http::h3::frames", "OVERHEAD_BYTES_MAX"),
    ("portico_edge::http::h3", "REQUESTS_UNDER_WAY_MAX"),
    ("portico_edge::listen::quic", "SLOTS_MAX"), // what a byte of a connection id can say
    ("portico_edge::listen::quic::hello", "RECORD_BYTES_MAX"), // the protocol's own
    ("portico_edge::live::stage", "THREADS_MAX"), // of our own work
    ("portico_edge::proxy_protocol", "LINE_BYTES_MAX"), // the protocol's own
    ("portico_edge::tls::compression", "GENERATION_MAX"), // a part of one in the table
    ("portico_edge::upstream::interim", "HEADS_MAX"), // a multiple of one in the table
];

/// How constants are called that bound something.
const SUFFIXES: [&str; 5] = ["_MAX", "_LIMIT", "_DEADLINE", "_TIMEOUT", "_QUEUE"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the workspace's folder")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("a source file")
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

/// What a test file can see: its own words, and what names at the beginning of its paths stand for.
struct TestText {
    text: String,
    /// Where `super` and `self` are.
    module: Vec<String>,
    /// From a name to the path that it was imported by.
    names: BTreeMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
}

/// The tests of both services: in their `tests` folders, in `tests.rs` files, and behind `mod tests {` in a source.
fn tests() -> Vec<TestText> {
    CRATES.iter().flat_map(|(name, folder)| tests_of(name, folder)).collect()
}

fn tests_of(name: &str, folder: &str) -> Vec<TestText> {
    let of_folder = sources(&root().join(folder).join("tests")).into_iter().map(|path| {
        let text = read(&path);
        TestText::new(vec!["a test's own".to_owned()], &text, &[&text])
    });
    let of_sources = sources(&root().join(folder).join("src")).into_iter().filter_map(|path| {
        let (module, text) = (module_of(name, folder, &path), read(&path));
        if path.ends_with("tests.rs") {
            let (_, above) = module.split_last()?;
            let above = read(&file_of(above));
            return Some(TestText::new(module, &text, &[&above, &text]));
        }
        let (above, tests) = text.split_once("\nmod tests {")?;
        let module = [module, vec!["tests".to_owned()]].concat();
        Some(TestText::new(module, tests, &[above, tests]))
    });
    of_folder.chain(of_sources).collect()
}

/// `edge/src/live/host.rs` is `portico_edge::live::host`.
fn module_of(name: &str, folder: &str, path: &Path) -> Vec<String> {
    let below = path.strip_prefix(root().join(folder).join("src")).expect("a source of the crate");
    let below = below.with_extension("");
    let names = below.iter().map(|name| name.to_str().expect("plain letters").to_owned());
    std::iter::once(name.to_owned()).chain(names.filter(|name| name != "mod" && name != "lib")).collect()
}

fn file_of(module: &[String]) -> PathBuf {
    let folder = CRATES.iter().find(|(name, _)| *name == module[0]).expect("one of ours").1;
    let path = root().join(folder).join("src").join(module[1..].join("/"));
    let beside = path.with_extension("rs");
    [beside, path.join("mod.rs"), path.join("lib.rs")]
        .into_iter()
        .find(|path| path.exists())
        .expect("a module")
}

impl TestText {
    /// `imports` are the texts whose `use` lines hold for it, those of the module above it before its own.
    fn new(module: Vec<String>, text: &str, imports: &[&str]) -> Self {
        let text = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .fold(String::new(), |text, line| text + line + "\n");
        let mut found = Self { text, module, names: BTreeMap::new(), globs: Vec::new() };
        for (depth, import) in imports.iter().rev().enumerate().rev() {
            let module = found.module[..found.module.len() - depth].to_vec();
            for statement in statements(import) {
                found.import(&module, &mut Vec::new(), statement);
            }
        }
        found
    }

    /// One tree of a `use`, below `before`.
    fn import(&mut self, module: &[String], before: &mut Vec<String>, tree: &str) {
        let tree = tree.trim();
        if let Some((path, list)) = tree.split_once('{').filter(|(path, _)| !path.contains(',')) {
            let depth = before.len();
            before.extend(segments(path));
            for part in parts(list.trim().strip_suffix('}').unwrap_or(list)) {
                self.import(module, before, part);
            }
            before.truncate(depth);
            return;
        }
        let (path, name) = tree.split_once(" as ").unwrap_or((tree, ""));
        let mut path: Vec<String> = before.iter().cloned().chain(segments(path)).collect();
        let Some(last) = path.last().cloned() else { return };
        if last == "*" {
            path.pop();
            self.globs.push(from_root(module, path));
            return;
        }
        if last == "self" {
            path.pop();
        }
        let name =
            if name.is_empty() { path.last().cloned().unwrap_or_default() } else { name.trim().to_owned() };
        self.names.insert(name, from_root(module, path));
    }

    /// Whether it names the constant of that table.
    fn names(&self, table: &str, constant: &str) -> bool {
        let table = segments(table);
        words(&self.text, constant).any(|at| {
            let path = path_before(&self.text[..at]);
            let Some(first) = path.first() else {
                let imported = self.names.get(constant).is_some_and(|path| {
                    path.split_last().is_some_and(|(name, module)| name == constant && *module == table)
                });
                return imported || self.globs.contains(&table);
            };
            let start = self.names.get(first).cloned();
            let whole = match start {
                Some(start) => start.into_iter().chain(path[1..].iter().cloned()).collect(),
                None => from_root(&self.module, path),
            };
            whole == table
        })
    }

    /// Whether it sets or reads this field of the deadlines.
    fn sets(&self, field: &str) -> bool {
        let literals = self.text.match_indices("Deadlines {").any(|(at, start)| {
            let body = &self.text[at + start.len()..];
            let body = &body[..closing_brace(body)];
            parts(body).iter().any(|part| part.split(':').next().is_some_and(|name| name.trim() == field))
        });
        literals || words(&self.text, field).any(|at| self.text[..at].ends_with("deadlines."))
    }
}

/// What stands between `use` and `;`.
fn statements(text: &str) -> impl Iterator<Item = &str> {
    let uses = text.match_indices("use ").filter(|(at, _)| {
        let line = text[..*at].rsplit('\n').next().unwrap_or_default();
        matches!(line.trim(), "" | "pub" | "pub(crate)" | "pub(super)")
    });
    uses.filter_map(|(at, start)| text[at + start.len()..].split(';').next())
}

/// The members of a list, whatever braces they have themselves.
fn parts(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0_i32, 0, Vec::new());
    for (at, letter) in list.char_indices() {
        match letter {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&list[start..]);
    found.retain(|part| !part.trim().is_empty());
    found
}

fn closing_brace(text: &str) -> usize {
    let mut depth = 1_i32;
    let end = text.char_indices().find(|(_, letter)| {
        depth += i32::from(*letter == '{') - i32::from(*letter == '}');
        depth == 0
    });
    end.map_or(text.len(), |(at, _)| at)
}

fn segments(path: &str) -> Vec<String> {
    path.trim().split("::").filter(|name| !name.is_empty()).map(|name| name.trim().to_owned()).collect()
}

/// Without `crate`, `self` and `super`.
fn from_root(module: &[String], path: Vec<String>) -> Vec<String> {
    let mut whole = match path.first().map(String::as_str) {
        Some("crate") => module[..1].to_vec(),
        Some("self" | "super") => module.to_vec(),
        _ => Vec::new(),
    };
    for name in path {
        match name.as_str() {
            "crate" | "self" => {}
            "super" => {
                whole.pop();
            }
            _ => whole.push(name),
        }
    }
    whole
}

fn is_of_word(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

/// Where a word stands.
fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(word).map(|(at, _)| at).filter(move |at| {
        !text[..*at].ends_with(is_of_word) && !text[at + word.len()..].starts_with(is_of_word)
    })
}

/// `a::b` of a text that ends in `a::b::`.
fn path_before(text: &str) -> Vec<String> {
    let start = text
        .rfind(|letter| !is_of_word(letter) && letter != ':')
        .map_or(0, |at| at + text[at..].chars().next().map_or(1, char::len_utf8));
    if text.ends_with("::") { segments(&text[start..]) } else { Vec::new() }
}

/// The constants of a table, each with the field of `Deadlines` that it is the default of.
fn limits(table: &str) -> Vec<(String, Option<String>)> {
    let text = read(&file_of(&segments(table)));
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
    let tests = tests();
    let all: Vec<_> = TABLES
        .into_iter()
        .flat_map(|table| limits(table).into_iter().map(move |limit| (table, limit)))
        .collect();
    assert!(all.len() > 150, "found only {} limits", all.len());
    let tested = |table: &str, name: &str, field: Option<&String>| {
        tests.iter().any(|test| test.names(table, name) || field.is_some_and(|field| test.sets(field)))
    };
    let missing: Vec<_> = all
        .iter()
        .filter(|(table, (name, field))| {
            !OWN_PACE.contains(&name.as_str()) && !tested(table, name, field.as_ref())
        })
        .map(|(table, (name, _))| format!("{table}::{name}"))
        .collect();
    assert!(missing.is_empty(), "no test names these limits; write the one that hits it:\n{missing:#?}");
    for name in OWN_PACE {
        let limit = all.iter().find(|(_, (limit, _))| limit == name);
        let (table, (_, field)) =
            limit.unwrap_or_else(|| panic!("{name} is no limit any more: take it off the list"));
        assert!(!tested(table, name, field.as_ref()), "{name} has its test: take it off the list");
    }
}

#[test]
fn a_bound_stands_in_a_table_or_has_its_reason() {
    let mut found = Vec::new();
    for path in sources(&root().join("edge/src")) {
        let module = module_of("portico_edge", "edge", &path).join("::");
        if TABLES.contains(&module.as_str()) {
            continue;
        }
        for line in read(&path).lines() {
            let Some((_, rest)) = line.split_once("const ").filter(|(before, _)| !before.contains("//"))
            else {
                continue;
            };
            let name = rest.split(':').next().unwrap_or_default();
            if SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) && name.chars().all(is_of_word) {
                found.push((module.clone(), name.to_owned()));
            }
        }
    }
    found.sort();
    let mut allowed = ELSEWHERE.map(|(module, name)| (module.to_owned(), name.to_owned())).to_vec();
    allowed.sort();
    assert_eq!(found, allowed, "move the new one to a table of limits, or take the old one off the list");
}

#[test]
fn a_limit_of_the_same_name_elsewhere_is_another_one() {
    let text = |imports: &str, test: &str| {
        let module = segments("portico_edge::live::host::tests");
        TestText::new(module, test, &[imports, "use super::*;"])
    };
    let imports = "use super::{Fault, limits};\nuse crate::{a::{b, c as d}, limits as of_all};\n";
    let test = text(imports, "x(limits::A_MAX); x(of_all::B_MAX); x(crate::control::limits::C_MAX)");
    for (table, constant, is_named) in [
        ("portico_edge::live::limits", "A_MAX", true),
        ("portico_edge::limits", "A_MAX", false),
        ("portico_edge::limits", "B_MAX", true),
        ("portico_edge::control::limits", "C_MAX", true),
        ("portico_edge::live::limits", "C_MAX", false),
        ("portico_edge::limits", "MAX", false),
    ] {
        assert_eq!(test.names(table, constant), is_named, "{table}::{constant}");
    }
    let test = text("use portico_edge::limits::{A_MAX, X};", "x(A_MAX)");
    assert!(
        test.names("portico_edge::limits", "A_MAX")
            && !test.names("portico_edge::live::limits", "A_MAX")
            && !test.names("portico_edge::limits", "X")
    );
}

#[test]
fn a_word_is_no_deadline() {
    let test = |text: &str| TestText::new(Vec::new(), text, &[]);
    assert!(test("Deadlines { idle: SOON, ..Deadlines::default() }").sets("idle"));
    assert!(test("Deadlines { x: y(a, b), idle }").sets("idle") && test("a(deadlines.idle)").sets("idle"));
    for text in [
        "let idle = 3;",
        "// deadlines.idle",
        "Deadlines { x: idle } idle: 3",
        "answer.header(idle)",
        "an idle one",
    ] {
        assert!(!test(text).sets("idle"), "{text}");
    }
}
