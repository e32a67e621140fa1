//! A transaction under way, of whichever database.

use sqlx::{Postgres, Sqlite, Transaction};

/// What the store's functions read from and write to. Dropped without [`Connection::commit`], nothing of it happened.
#[derive(Debug)]
pub enum Connection {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

impl Connection {
    /// Makes everything of this transaction durable.
    ///
    /// # Errors
    /// The database's; then nothing of it happened.
    pub(in crate::store) async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(tx) => tx.commit().await,
            Self::Postgres(tx) => tx.commit().await,
        }
    }

    /// The database's clock, Unix milliseconds: the one that all replicas share.
    ///
    /// # Errors
    /// The database's.
    pub(in crate::store) async fn now_ms(&mut self) -> Result<i64, sqlx::Error> {
        let text = match self {
            Self::Sqlite(_) => "SELECT CAST(unixepoch('subsec') * 1000 AS BIGINT)",
            Self::Postgres(_) => "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
        };
        super::query_scalar(text).fetch_one(self).await
    }
}
