//! A transaction under way, of whichever database.

use sqlx::{Sqlite, Transaction};

/// What the store's functions read from and write to. Dropped without [`Connection::commit`], nothing of it happened.
#[derive(Debug)]
pub enum Connection {
    Sqlite(Transaction<'static, Sqlite>),
}

impl Connection {
    /// Makes everything of this transaction durable.
    ///
    /// # Errors
    /// The database's; then nothing of it happened.
    pub(in crate::store) async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(tx) => tx.commit().await,
        }
    }
}
