//! Every statement of fixed text in the store is read by both databases before anybody runs it: a column that is not there, a
//! word that one of them does not know, or an answer of a type that no row is read as, fails here and not at a customer's.
//!
//! The texts are taken from the source, so that none has to be listed. Those that [`super::sql::QueryBuilder`] puts together
//! are run by the tests of their functions.

use std::path::{Path, PathBuf};

use sqlx::postgres::PgColumn;
use sqlx::{AssertSqlSafe, Column as _, Executor as _, SqlSafeStr as _, Statement as _, TypeInfo as _};

use super::{Connection, Server, Store, sql, test_server};

/// One statement and where it stands.
#[derive(Debug)]
struct Statement {
    place: String,
    text: String,
}

/// Statements of these files are for one database alone.
const OF_SQLITE: &str = "src/store/integrity.rs";
const OF_POSTGRES: &str = "src/store/postgres.rs";

#[tokio::test]
async fn every_statement_is_one_that_the_databases_know() {
    let folder = tempfile::tempdir().unwrap();
    let mut stores = vec![Store::open(folder.path()).await.unwrap()];
    if let Some(url) = test_server::new_database() {
        stores.push(Store::connect(&Server::parse(&url, None).unwrap()).await.unwrap());
    }
    let (statements, elsewhere) = statements();
    for store in &stores {
        let mut tx = store.begin().await.unwrap();
        for statement in &statements {
            let is_known = match &mut *tx {
                Connection::Sqlite(_) if statement.place.starts_with(OF_POSTGRES) => continue,
                Connection::Postgres(_) if statement.place.starts_with(OF_SQLITE) => continue,
                Connection::Sqlite(connection) => {
                    let text = AssertSqlSafe(statement.text.clone()).into_sql_str();
                    connection.prepare(text).await.map(drop)
                }
                Connection::Postgres(connection) => {
                    let text = AssertSqlSafe(sql::for_postgres(&statement.text)).into_sql_str();
                    let prepared = connection.prepare(text).await;
                    prepared.map(|prepared| {
                        prepared.columns().iter().for_each(|column| readable(column, statement))
                    })
                }
            };
            if let Err(error) = is_known {
                panic!("{}: {error}\n{}", statement.place, statement.text);
            }
        }
    }
    assert!(statements.len() > 200, "only {} statements were found", statements.len());
    assert_eq!(
        elsewhere,
        Vec::<String>::new(),
        "text that is not written where it is asked is not seen here"
    );
}

/// PostgreSQL's SUM of a BIGINT is a NUMERIC, unless it is cast.
fn readable(column: &PgColumn, statement: &Statement) {
    let kind = column.type_info().name();
    let is_readable = ["INT8", "INT4", "BOOL", "TEXT", "BYTEA"].contains(&kind);
    assert!(is_readable, "{}: {} is of type {kind}\n{}", statement.place, column.name(), statement.text);
}

#[test]
fn a_statement_is_found_as_the_compiler_reads_it() {
    let source = "
        let one = sql::query(\"SELECT \\\"a\\\" \\
                              FROM b\").fetch_one(tx);
        let two = sql::query_scalar::<Option<i64>>(
            \"SELECT '\\\\'\",
        );
        let three = sql::query(text);
    ";
    let (mut found, mut elsewhere) = (Vec::new(), Vec::new());
    find(source, "file.rs", &mut found, &mut elsewhere);
    let texts: Vec<&str> = found.iter().map(|statement| statement.text.as_str()).collect();
    assert_eq!(texts, ["SELECT \"a\" FROM b", "SELECT '\\'"]);
    assert_eq!(found[1].place, "file.rs:4");
    assert_eq!(elsewhere, ["file.rs:7"]);
}

/// Every statement of the store, and the places whose text is not written there.
fn statements() -> (Vec<Statement>, Vec<String>) {
    let (mut found, mut elsewhere) = (Vec::new(), Vec::new());
    for file in sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/store"))) {
        let source = std::fs::read_to_string(&file).unwrap();
        // Tests stand last in a file, or in one of their own.
        let (product, _) = source.split_once("#[cfg(test)]\nmod tests").unwrap_or((&source, ""));
        let name = file.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().display().to_string();
        find(product, &name, &mut found, &mut elsewhere);
    }
    (found, elsewhere)
}

/// The layer itself and tests are left out.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("sql") {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !path.ends_with("tests.rs")
            && !path.ends_with("statements.rs")
        {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn find(source: &str, file: &str, found: &mut Vec<Statement>, elsewhere: &mut Vec<String>) {
    for (at, word) in source.match_indices("sql::query") {
        let rest = source[at + word.len()..].trim_start_matches("_scalar");
        // `::<T>` of a scalar; no type in it has a parenthesis.
        let Some((_, argument)) = rest.split_once('(') else { continue };
        let place = || format!("{file}:{}", source[..at].matches('\n').count() + 1);
        match argument.trim_start().strip_prefix('"') {
            Some(literal) => found.push(Statement { place: place(), text: unescaped(literal) }),
            None => elsewhere.push(place()),
        }
    }
}

/// A string literal's text, from behind its opening quote.
fn unescaped(literal: &str) -> String {
    let mut text = String::new();
    let mut characters = literal.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' => return text,
            '\\' => match characters.next() {
                Some('\n') => while characters.next_if(|next| next.is_whitespace()).is_some() {},
                Some('n') => text.push('\n'),
                Some(escaped) => text.push(escaped),
                None => break,
            },
            other => text.push(other),
        }
    }
    panic!("a string literal without an end: {literal}");
}
