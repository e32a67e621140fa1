//! Durable state, and the only SQL of the control plane: one SQLite file, or a PostgreSQL database that several control
//! planes share.
//!
//! One writer at a time ([`Store::begin`]), several readers that each see one consistent state ([`Store::read`]). A commit
//! is on disk before it is acknowledged: what the API answered survives a kill at any point. Each submodule owns some
//! tables and is made of plain functions over a connection, so that a caller puts as many of them as it likes into one
//! transaction. They are written once ([`sql`]); [`postgres`] and [`sqlite`] are all that differs.
//!
//! A change of a distributed resource is noted by [`change::record`] in the same transaction; [`Store::changes`] then
//! wakes whoever follows. That is a hint, the table is the truth.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::watch;

use self::lease::Term;
use self::postgres::Postgres;
use self::sql::QueryBuilder;
use self::sqlite::Sqlite;

pub mod account;
pub mod adopted;
pub mod audit;
pub mod backup;
pub mod cell;
pub mod certificate_request;
pub mod change;
pub mod compromise;
pub mod condition;
pub mod credential;
pub mod domain;
pub mod edge;
pub mod edge_key;
pub mod event;
pub mod fan_out;
pub mod figures;
pub mod group;
pub mod idempotency;
pub mod integrity;
pub mod issuance;
pub mod issuer;
pub mod lease;
pub mod ledger;
#[cfg(test)]
mod mass;
pub mod meta;
mod migrations;
pub mod order;
pub mod origin_identity;
mod postgres;
pub mod presence;
pub mod projection_rows;
pub mod proof;
pub mod publication;
pub mod purge;
pub mod rekey;
pub mod relay;
pub mod renewal_info;
pub mod renewals;
pub mod replacement;
pub mod responder;
pub mod retry;
pub mod sealing_key;
pub mod shared_group;
pub mod sql;
mod sqlite;
#[cfg(test)]
mod statements;
pub mod tenant;
pub mod token;
pub mod uploaded;
pub mod usage;
pub mod waits;
pub mod webhook;

/// The database inside the data folder.
pub const DATABASE_FILE: &str = "portico.db";
/// Connections that read side by side.
const READERS: u32 = 6;
/// The tables are looked at this often for what other replicas have written.
const POLL: Duration = Duration::from_secs(1);
/// Which database this is; another one after it was put back from a dump.
const META_ORIGIN: &str = "database_origin";
/// Far below what an edge may be ahead of us (`distribution/sync.rs`).
const EPOCH_STEP_MAX: u64 = 1_000;
/// The most ids of one query; SQLite's own bound is 32,766 parameters.
const IDS_PER_QUERY: usize = 500;
/// How long a caller waits for its turn to write before it is told that the store is busy.
const WRITER_TIMEOUT: Duration = Duration::from_secs(30);

/// What the functions of the submodules read from and write to: any transaction dereferences to it.
pub use self::sql::Connection;

pub use self::postgres::Server;

/// The database, opened. Clones share the connections.
#[derive(Clone, Debug)]
pub struct Store {
    database: Database,
    latest: watch::Sender<u64>,
    /// Another replica has written something.
    woken: watch::Sender<()>,
    /// What is written is bound to it.
    term: Option<Term>,
}

#[derive(Clone, Debug)]
enum Database {
    Sqlite(Sqlite),
    Postgres(Postgres),
}

/// The writer's transaction. Dropped without [`WriteTx::commit`], nothing of it happened.
#[derive(Debug)]
pub struct WriteTx {
    connection: Connection,
    recorded: Option<u64>,
    wakes_others: bool,
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
    #[error("the database {server} cannot be used: {advice}")]
    Connect { server: String, advice: &'static str, source: sqlx::Error },
    #[error("the database {server} cannot be used: {why}")]
    Unsuited { server: String, why: String },
    #[error("a PostgreSQL database is copied with its own tools, as pg_dump")]
    NotOurs,
    /// Another replica has taken the work over, or may have.
    #[error("this replica no longer does this work: {work}")]
    TermOver { work: &'static str },
    #[error("the database cannot be brought to this version's tables; was it written by a newer release?")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("the database refused a statement")]
    Database(#[from] sqlx::Error),
    /// A row that this release cannot read. `what` names table and id, never contents.
    #[error("the database holds a row that cannot be read: {what}")]
    Unreadable { what: String },
}

impl StoreError {
    /// The store's queue was full for too long, or its server is away for now; the same request may succeed later.
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::PoolTimedOut) => true,
            Self::Database(error) => postgres::is_away(error),
            Self::Open { .. }
            | Self::Connect { .. }
            | Self::Unsuited { .. }
            | Self::NotOurs
            | Self::TermOver { .. }
            | Self::Migrate(_)
            | Self::Unreadable { .. } => false,
        }
    }
}

impl Store {
    /// Opens (or makes) the database in `folder` and brings its tables up to date.
    ///
    /// # Errors
    /// [`StoreError::Open`] when the file cannot be opened, [`StoreError::Migrate`] when its tables do not fit.
    pub async fn open(folder: &Path) -> Result<Self, StoreError> {
        let database = Sqlite::open(folder).await?;
        migrations::all(str::to_owned).run(&database.writer).await?;
        Self::of(Database::Sqlite(database)).await
    }

    /// Opens a database that other control planes may use as well, and brings its tables up to date.
    ///
    /// # Errors
    /// [`StoreError::Connect`] when it cannot be reached, [`StoreError::Unsuited`] when it is none to work with, or control
    /// planes of an earlier release work on it, [`StoreError::Migrate`] when its tables do not fit.
    pub async fn connect(server: &Server) -> Result<Self, StoreError> {
        let database = Postgres::connect(server).await?;
        database.refuse_earlier_release(server, migrations::count()).await?;
        migrations::all(migrations::for_postgres).run(&database.writer).await?;
        let store = Self::of(Database::Postgres(database)).await?;
        store.note_origin().await?;
        tokio::spawn(store.clone().follow());
        Ok(store)
    }

    /// A database that was put back from a dump, or whose server was replaced, may lack what edges have followed: generations of
    /// a higher epoch are new to all of them.
    async fn note_origin(&self) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        let origin = postgres::origin(&mut tx).await?;
        let known = meta::find(&mut tx, META_ORIGIN).await?;
        if known.as_ref() == Some(&origin) {
            return Ok(());
        }
        meta::put(&mut tx, META_ORIGIN, &origin).await?;
        if known.is_some() {
            // By how much is left to chance: the same dump may be put back twice.
            let by = 1 + u64::try_from(ulid::Ulid::new().random() % u128::from(EPOCH_STEP_MAX)).unwrap_or(0);
            let raised = meta::epoch(&mut tx).await? + by;
            let epoch = meta::raise_epoch(&mut tx, raised).await?;
            let text = format!(
                "the database was put back from a dump, or its server was replaced; the epoch is now {epoch} and every edge \
                 gets a snapshot"
            );
            tracing::warn!(epoch, "{text}");
            let now_ms = tx.now_ms().await?;
            event::append(&mut tx, "fleet.epoch_raised", None, publication::FLEET_ID, &text, now_ms).await?;
        }
        tx.commit().await
    }

    async fn of(database: Database) -> Result<Self, StoreError> {
        let store =
            Self { database, latest: watch::Sender::new(0), woken: watch::Sender::new(()), term: None };
        let last = change::last_sequence(&mut *store.read().await?).await?;
        store.latest.send_replace(last);
        Ok(store)
    }

    /// Whether other control planes may use this database, too.
    pub fn is_shared(&self) -> bool {
        matches!(self.database, Database::Postgres(_))
    }

    /// The same database for the work of a term: what is written then is refused when the term is over.
    #[must_use]
    pub fn within(&self, term: Term) -> Self {
        Self { term: Some(term), ..self.clone() }
    }

    /// The term of [`Self::within`].
    pub fn term(&self) -> Option<&Term> {
        self.term.as_ref()
    }

    /// Whether what no transaction takes back may still be done, by our own clock: to be asked right before.
    ///
    /// # Errors
    /// [`StoreError::TermOver`].
    pub fn assert_in_term(&self) -> Result<(), StoreError> {
        if let Some(term) = self.term.as_ref().filter(|term| !term.stands()) {
            return Err(StoreError::TermOver { work: term.work() });
        }
        Ok(())
    }

    /// Waits for its turn and begins to write; writers queue in order.
    ///
    /// # Errors
    /// The database's, or a time-out after 30 s in the queue; [`StoreError::TermOver`].
    pub async fn begin(&self) -> Result<WriteTx, StoreError> {
        let mut connection = match &self.database {
            Database::Sqlite(database) => database.begin().await?,
            Database::Postgres(database) => database.begin().await?,
        };
        if let Some(term) = &self.term {
            lease::check(&mut connection, term).await?;
        }
        Ok(self.writing(connection))
    }

    /// Begins to renew a term, and nothing else ([`lease::renew`]); where there are terms, in no queue of writers.
    ///
    /// # Errors
    /// The database's.
    pub async fn begin_renewal(&self) -> Result<WriteTx, StoreError> {
        Ok(self.writing(match &self.database {
            Database::Sqlite(database) => database.begin().await?,
            Database::Postgres(database) => database.begin_renewal().await?,
        }))
    }

    fn writing(&self, connection: Connection) -> WriteTx {
        WriteTx { connection, recorded: None, wakes_others: false, latest: self.latest.clone() }
    }

    /// Begins to read one consistent state.
    ///
    /// # Errors
    /// The database's, or a time-out after 30 s without a free reader.
    pub async fn read(&self) -> Result<ReadTx, StoreError> {
        Ok(ReadTx(match &self.database {
            Database::Sqlite(database) => database.read().await?,
            Database::Postgres(database) => database.read().await?,
        }))
    }

    /// Follows what other replicas commit, by their hints and each second without.
    async fn follow(self) {
        let Database::Postgres(database) = &self.database else { return };
        let mut listener = None;
        while !database.is_closed() {
            if listener.is_none() {
                listener = database.listen().await;
            }
            match &mut listener {
                Some(hints) => match tokio::time::timeout(POLL, hints.try_recv()).await {
                    // One look is enough for all that have come.
                    Ok(Ok(_)) => while matches!(hints.try_recv().now_or_never(), Some(Ok(Some(_)))) {},
                    Ok(Err(_)) => listener = None,
                    Err(_) => {}
                },
                None => tokio::time::sleep(POLL).await,
            }
            self.woken.send_replace(());
            let last = async { change::last_sequence(&mut *self.read().await?).await };
            // Away for now: whoever reads is told.
            let Ok(last) = last.await else { continue };
            advance(&self.latest, last);
        }
    }

    /// The newest committed sequence of `changes`; wakes on each commit that recorded one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    /// Wakes, at least each second, when another replica may have written something. Never on a database of our own.
    pub fn woken(&self) -> watch::Receiver<()> {
        self.woken.subscribe()
    }

    /// Writes a compacted, consistent copy of a database of our own to `target`, which must not exist, while others go on.
    ///
    /// # Errors
    /// The database's; a target that exists is one, and a database that is shared.
    pub async fn copy_to(&self, target: &Path) -> Result<(), StoreError> {
        match &self.database {
            Database::Sqlite(database) => Ok(database.copy_to(target).await?),
            Database::Postgres(_) => Err(StoreError::NotOurs),
        }
    }

    /// Closes every connection; the last one of a database of our own folds the log into the file.
    pub async fn close(&self) {
        match &self.database {
            Database::Sqlite(database) => database.close().await,
            Database::Postgres(database) => database.close().await,
        }
    }
}

impl WriteTx {
    /// Makes everything of this transaction durable, then wakes the followers of `changes`.
    ///
    /// # Errors
    /// The database's; then nothing of it happened.
    pub async fn commit(mut self) -> Result<(), StoreError> {
        if self.recorded.is_some() || self.wakes_others {
            postgres::wake_others(&mut self.connection).await?;
        }
        self.connection.commit().await?;
        if let Some(sequence) = self.recorded {
            advance(&self.latest, sequence);
        }
        Ok(())
    }

    /// Other replicas are to look at once when this is committed.
    pub fn wake_others(&mut self) {
        self.wakes_others = true;
    }
}

fn advance(latest: &watch::Sender<u64>, sequence: u64) {
    latest.send_if_modified(|latest| {
        let newer = sequence > *latest;
        *latest = (*latest).max(sequence);
        newer
    });
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

/// Writes the inside of an `IN (...)`; there may be none.
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
pub(crate) fn to_json<T: serde::Serialize + ?Sized>(value: &T) -> Result<String, StoreError> {
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

/// PostgreSQL for the unit tests that the environment wants on it.
#[cfg(test)]
#[path = "../../tests/stage/postgres.rs"]
mod test_server;

#[cfg(test)]
impl Store {
    /// An empty database in `folder`, or on PostgreSQL where the environment asks for it.
    pub(crate) async fn for_tests(folder: &Path) -> Result<Self, StoreError> {
        // Whoever opens the same folder again gets the same database.
        let known = folder.join("test-database");
        let url = match std::fs::read_to_string(&known) {
            Ok(url) => Some(url),
            Err(_) => test_server::is_chosen().then(test_server::new_database).flatten(),
        };
        match url {
            Some(url) => {
                std::fs::write(known, &url).unwrap();
                Self::connect(&Server::parse(&url, None).unwrap()).await
            }
            None => Self::open(folder).await,
        }
    }
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
        let store = Store::for_tests(folder.path()).await.unwrap();
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
        let store = Store::for_tests(folder.path()).await.unwrap();
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
