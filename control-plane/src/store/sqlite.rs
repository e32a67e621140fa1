//! SQLite behind the store: one file, one process.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

use super::{Connection, DATABASE_FILE, READERS, StoreError, WRITER_TIMEOUT};

/// How long a connection waits for another process that holds the file (a backup, a rotation of keys).
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The connections. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Sqlite {
    pub(super) writer: SqlitePool,
    readers: SqlitePool,
}

impl Sqlite {
    pub(super) async fn open(folder: &Path) -> Result<Self, StoreError> {
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
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(WRITER_TIMEOUT)
            .connect_lazy_with(options.pragma("query_only", "on"));
        Ok(Self { writer, readers })
    }

    pub(super) async fn begin(&self) -> Result<Connection, sqlx::Error> {
        Ok(Connection::Sqlite(self.writer.begin_with("BEGIN IMMEDIATE").await?))
    }

    pub(super) async fn read(&self) -> Result<Connection, sqlx::Error> {
        Ok(Connection::Sqlite(self.readers.begin().await?))
    }

    pub(super) async fn copy_to(&self, target: &Path) -> Result<(), sqlx::Error> {
        // Not from a reader: VACUUM INTO is refused inside a transaction and under query_only.
        let mut connection = self.writer.acquire().await?;
        sqlx::query("VACUUM INTO ?")
            .bind(target.to_string_lossy().into_owned())
            .execute(&mut *connection)
            .await?;
        Ok(())
    }

    pub(super) async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}
