//! Which certificate an order replaces (RFC 9773 section 5).

use portico_cert_store::{CredentialId, OrderId};
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::order::{OrderState, set_state};
use super::{StoreError, WriteTx, from_id};

/// A certificate that an order replaces (RFC 9773 section 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaces {
    pub credential: CredentialId,
    /// What its CA calls it.
    pub certificate: String,
}

/// The CA has made the order, as the replacement of a certificate or not.
///
/// # Errors
/// The database's.
pub async fn set_created(
    tx: &mut WriteTx,
    id: OrderId,
    url: String,
    replaces_accepted: bool,
    now_ms: i64,
) -> Result<(), StoreError> {
    set_state(tx, id, &OrderState::Created { url }, now_ms).await?;
    sqlx::query("UPDATE orders SET replaces_accepted = ? WHERE id = ?")
        .bind(replaces_accepted)
        .bind(id.to_string())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// The order goes on without the certificate that it was to replace.
///
/// # Errors
/// The database's.
pub async fn drop_replaces(tx: &mut WriteTx, id: OrderId, why: &str, now_ms: i64) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE orders SET replaces = NULL, replaces_credential = NULL, error = ?, updated_at = ? WHERE id = ?",
    )
    .bind(why)
    .bind(now_ms)
    .bind(id.to_string())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Live certificates that an order replaces or has replaced: no other order can.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn replaced_credentials(
    connection: &mut SqliteConnection,
) -> Result<Vec<CredentialId>, StoreError> {
    let ids: Vec<String> = sqlx::query_scalar(
        "SELECT o.replaces_credential FROM orders o JOIN credentials c ON c.id = o.replaces_credential \
         WHERE o.replaces_credential IS NOT NULL AND o.state <> 'failed' AND c.state = 'live'",
    )
    .fetch_all(connection)
    .await?;
    ids.iter().map(|id| from_id(id, "orders")).collect()
}

pub(super) fn of_row(row: &SqliteRow) -> Result<Option<Replaces>, StoreError> {
    let credential: Option<String> = row.try_get("replaces_credential")?;
    let certificate: Option<String> = row.try_get("replaces")?;
    let both = credential.zip(certificate);
    both.map(|(credential, certificate)| {
        Ok(Replaces { credential: from_id(&credential, "orders")?, certificate })
    })
    .transpose()
}
