//! Durable state: one SQLite file, and the only SQL of the control plane.
//!
//! One writer at a time ([`Store::begin`], `BEGIN IMMEDIATE`), several readers that each see one consistent state
//! ([`Store::read`]). A commit is on disk before it is acknowledged (WAL with `synchronous=FULL`): what the API answered
//! survives a kill at any point. Each submodule owns some tables and is made of plain functions over a connection, so
//! that a caller puts as many of them as it likes into one transaction.
//!
//! A change of a distributed resource is noted by [`change::record`] in the same transaction; [`Store::changes`] then
//! wakes whoever follows. That is a hint, the table is the truth.
//!
//! Deliberately absent: a trait over databases. PostgreSQL joins behind these same functions.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use tokio::sync::watch;

use self::sql::QueryBuilder;

pub mod account;
pub mod audit;
pub mod cell;
pub mod change;
pub mod compromise;
pub mod condition;
pub mod credential;
pub mod domain;
pub mod edge;
pub mod event;
pub mod fan_out;
pub mod figures;
pub mod group;
pub mod idempotency;
pub mod integrity;
pub mod issuance;
pub mod issuer;
pub mod ledger;
pub mod meta;
mod migrations;
pub mod order;
pub mod origin_identity;
pub mod presence;
pub mod projection_rows;
pub mod proof;
pub mod publication;
pub mod purge;
pub mod rekey;
pub mod renewal_info;
pub mod renewals;
pub mod replacement;
pub mod retry;
pub mod sealing_key;
pub mod shared_group;
pub mod sql;
#[cfg(test)]
mod statements;
pub mod tenant;
pub mod token;
pub mod uploaded;
pub mod usage;
pub mod webhook;

/// The database inside the data folder.
pub const DATABASE_FILE: &str = "portico.db";
/// Connections that read side by side.
const READERS: u32 = 6;
/// How long a connection waits for another process that holds the file (a backup, a rotation of keys).
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a caller waits for its turn to write before it is told that the store is busy.
const WRITER_TIMEOUT: Duration = Duration::from_secs(30);

/// What the functions of the submodules read from and write to: any transaction dereferences to it.
pub use self::sql::Connection;

/// The database, opened. Clones share the connections.
#[derive(Clone, Debug)]
pub struct Store {
    writer: SqlitePool,
    readers: SqlitePool,
    latest: watch::Sender<u64>,
    path: PathBuf,
}

/// The writer's transaction. Dropped without [`WriteTx::commit`], nothing of it happened.
#[derive(Debug)]
pub struct WriteTx {
    connection: Connection,
    recorded: Option<u64>,
    latest: watch::Sender<u64>,
}

/// A reader's transaction: every query in it sees the same state.
#[derive(Debug)]
pub struct ReadTx(Connection);

/// Why the store could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database at {path} cannot be opened; check that the folder exists and belongs to this user")]
    Open { path: PathBuf, source: sqlx::Error },
    #[error("the database cannot be brought to this version's tables; was it written by a newer release?")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("the database refused a statement")]
    Database(#[from] sqlx::Error),
    /// A row that this release cannot read. `what` names table and id, never contents.
    #[error("the database holds a row that cannot be read: {what}")]
    Unreadable { what: String },
}

impl StoreError {
    /// The store's queue was full for too long; the same request may succeed later.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Database(sqlx::Error::PoolTimedOut))
    }
}

impl Store {
    /// Opens (or makes) the database in `folder` and brings its tables up to date.
    ///
    /// # Errors
    /// [`StoreError::Open`] when the file cannot be opened, [`StoreError::Migrate`] when its tables do not fit.
    pub async fn open(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(DATABASE_FILE);
        let opened = |source| StoreError::Open { path: path.clone(), source };
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            // FULL, not sqlx's or SQLite's choice: an acknowledged write must survive loss of power too (P7).
            .synchronous(SqliteSynchronous::Full)
            // What is overwritten or deleted is gone from the file: a key that was destroyed must not be in its free pages.
            .pragma("secure_delete", "on")
            .busy_timeout(BUSY_TIMEOUT);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(WRITER_TIMEOUT)
            .connect_with(options.clone())
            .await
            .map_err(opened)?;
        migrations::run(&writer).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(WRITER_TIMEOUT)
            .connect_with(options.pragma("query_only", "on"))
            .await
            .map_err(opened)?;
        let store = Self { writer, readers, latest: watch::Sender::new(0), path };
        let last = change::last_sequence(&mut *store.read().await?).await?;
        store.latest.send_replace(last);
        Ok(store)
    }

    /// Waits for its turn and begins to write; writers queue in order.
    ///
    /// # Errors
    /// The database's, or a time-out after 30 s in the queue.
    pub async fn begin(&self) -> Result<WriteTx, StoreError> {
        let connection = Connection::Sqlite(self.writer.begin_with("BEGIN IMMEDIATE").await?);
        Ok(WriteTx { connection, recorded: None, latest: self.latest.clone() })
    }

    /// Begins to read one consistent state.
    ///
    /// # Errors
    /// The database's, or a time-out after 30 s without a free reader.
    pub async fn read(&self) -> Result<ReadTx, StoreError> {
        Ok(ReadTx(Connection::Sqlite(self.readers.begin().await?)))
    }

    /// The newest committed sequence of `changes`; wakes on each commit that recorded one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a compacted, consistent copy of the database to `target`, which must not exist, while others go on.
    ///
    /// # Errors
    /// The database's; a target that exists is one.
    pub async fn copy_to(&self, target: &Path) -> Result<(), StoreError> {
        // Not from a reader: VACUUM INTO is refused inside a transaction and under query_only.
        let mut connection = self.writer.acquire().await?;
        sqlx::query("VACUUM INTO ?")
            .bind(target.to_string_lossy().into_owned())
            .execute(&mut *connection)
            .await?;
        Ok(())
    }

    /// Closes every connection; the last one folds the log into the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

impl WriteTx {
    /// Makes everything of this transaction durable, then wakes the followers of `changes`.
    ///
    /// # Errors
    /// The database's; then nothing of it happened.
    pub async fn commit(self) -> Result<(), StoreError> {
        self.connection.commit().await?;
        if let Some(sequence) = self.recorded {
            self.latest.send_if_modified(|latest| {
                let newer = sequence > *latest;
                *latest = (*latest).max(sequence);
                newer
            });
        }
        Ok(())
    }
}

impl Deref for WriteTx {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for WriteTx {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

impl Deref for ReadTx {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl DerefMut for ReadTx {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.0
    }
}

/// Writes the inside of an `IN (...)`.
pub(crate) fn push_ids<'query>(
    query: &'query mut QueryBuilder,
    ids: &[impl std::fmt::Display],
) -> &'query mut QueryBuilder {
    query.push_list(ids.iter().map(ToString::to_string))
}

/// Reads a JSON column; `what` names the row in the error.
pub(crate) fn from_json<T: serde::de::DeserializeOwned>(text: &str, what: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|_| StoreError::Unreadable { what: what.to_owned() })
}

/// Reads an id column; `what` names the table in the error.
pub(crate) fn from_id<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, StoreError> {
    text.parse().map_err(|_| StoreError::Unreadable { what: format!("{what}: malformed id") })
}

/// Writes a JSON column.
pub(crate) fn to_json<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|_| StoreError::Unreadable { what: "a document without JSON form".to_owned() })
}

/// Writes an enum whose JSON form is one string.
pub(crate) fn to_word<T: serde::Serialize>(value: &T) -> Result<String, StoreError> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => Ok(word),
        _ => Err(StoreError::Unreadable { what: "a word that is not one".to_owned() }),
    }
}

/// Reads an enum whose JSON form is one string; `what` names the table in the error.
pub(crate) fn from_word<T: serde::de::DeserializeOwned>(word: &str, what: &str) -> Result<T, StoreError> {
    serde_json::from_value(serde_json::Value::String(word.to_owned()))
        .map_err(|_| StoreError::Unreadable { what: format!("{what}: unknown word") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use portico_api::distribution::ResourceKind;

    async fn pragma(connection: &mut Connection, name: &'static str) -> i64 {
        sql::query_scalar(name).fetch_one(connection).await.unwrap()
    }

    #[tokio::test]
    async fn every_connection_waits_for_the_disk_and_minds_foreign_keys() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        let mut tx = store.begin().await.unwrap();
        assert_eq!(pragma(&mut tx, "PRAGMA synchronous").await, 2, "2 is FULL");
        assert_eq!(pragma(&mut tx, "PRAGMA foreign_keys").await, 1);
        let mode: String = sql::query_scalar("PRAGMA journal_mode").fetch_one(&mut tx).await.unwrap();
        assert_eq!(mode, "wal");
        let mut read = store.read().await.unwrap();
        assert_eq!(pragma(&mut read, "PRAGMA synchronous").await, 2);
        assert_eq!(pragma(&mut read, "PRAGMA query_only").await, 1);
    }

    #[tokio::test]
    async fn a_dropped_transaction_leaves_nothing_and_wakes_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        let changes = store.changes();
        let mut tx = store.begin().await.unwrap();
        change::record(&mut tx, ResourceKind::Fleet, "fleet", None).await.unwrap();
        drop(tx);
        assert_eq!(*changes.borrow(), 0);
        let mut read = store.read().await.unwrap();
        assert_eq!(change::last_sequence(&mut read).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_reader_sees_one_state_while_a_writer_commits() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).await.unwrap();
        let mut read = store.read().await.unwrap();
        assert_eq!(change::last_sequence(&mut read).await.unwrap(), 0);
        let mut changes = store.changes();
        let mut tx = store.begin().await.unwrap();
        let sequence = change::record(&mut tx, ResourceKind::Fleet, "fleet", None).await.unwrap();
        tx.commit().await.unwrap();
        changes.changed().await.unwrap();
        assert_eq!(*changes.borrow(), sequence);
        assert_eq!(change::last_sequence(&mut read).await.unwrap(), 0);
        let mut read = store.read().await.unwrap();
        assert_eq!(change::last_sequence(&mut read).await.unwrap(), sequence);
    }
}
