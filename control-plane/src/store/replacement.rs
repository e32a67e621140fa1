//! Which certificate an order replaces (RFC 9773 section 5).

use portico_cert_store::{CredentialId, OrderId};

use super::account::AccountId;
use super::order::{OrderState, set_state};
use super::sql::Row;
use super::{Connection, StoreError, WriteTx, from_id, sql};

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
    sql::query("UPDATE orders SET replaces_accepted = ? WHERE id = ?")
        .bind(replaces_accepted)
        .bind(id.to_string())
        .execute(tx)
        .await?;
    Ok(())
}

/// The order goes on without the certificate that it was to replace, on `account` (none: the issuer's own).
///
/// # Errors
/// The database's.
pub async fn drop_replaces(
    tx: &mut WriteTx,
    id: OrderId,
    account: Option<AccountId>,
    why: &str,
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query(
        "UPDATE orders SET replaces = NULL, replaces_credential = NULL, account_id = ?, error = ?, updated_at = ? WHERE id = ?",
    )
    .bind(account.map(|account| account.0))
    .bind(why)
    .bind(now_ms)
    .bind(id.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// Live certificates that an order replaces or has replaced: no other order can.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn replaced_credentials(connection: &mut Connection) -> Result<Vec<CredentialId>, StoreError> {
    let ids: Vec<String> = sql::query_scalar(
        "SELECT o.replaces_credential FROM orders o JOIN credentials c ON c.id = o.replaces_credential \
         WHERE o.replaces_credential IS NOT NULL AND o.state <> 'failed' AND c.state = 'live'",
    )
    .fetch_all(connection)
    .await?;
    ids.iter().map(|id| from_id(id, "orders")).collect()
}

pub(super) fn of_row(row: &Row) -> Result<Option<Replaces>, StoreError> {
    let credential: Option<String> = row.try_get("replaces_credential")?;
    let certificate: Option<String> = row.try_get("replaces")?;
    let both = credential.zip(certificate);
    both.map(|(credential, certificate)| {
        Ok(Replaces { credential: from_id(&credential, "orders")?, certificate })
    })
    .transpose()
}
