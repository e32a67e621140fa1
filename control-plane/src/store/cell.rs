//! Cells and their data keys.
//!
//! A key here is sealed by the control plane's [`Sealer`] and opens nothing but its own cell's credentials; no function
//! of this module takes a key of one cell to another.

use portico_cert_store::{CellId, CellKey, LineageId};

use super::{Connection, StoreError, WriteTx, from_id, sql};
use crate::sealer::{Sealer, SealerError};

/// The cell of tenants and tokens that name none.
pub const DEFAULT_CELL: &str = "default";

const PURPOSE: &str = "cell key";

/// The cells that serve a domain: its own list, else its tenant's, else the default cell. Sorted, each once.
pub fn of_domain(own: &[CellId], tenant: &[CellId]) -> Vec<CellId> {
    let mut cells = if own.is_empty() { tenant.to_vec() } else { own.to_vec() };
    if cells.is_empty() {
        cells.push(
            CellId::parse(DEFAULT_CELL).expect("the default cell's name is within the rules for cells"),
        );
    }
    cells.sort();
    cells.dedup();
    cells
}

/// The first of these cells that does not exist: no join token was ever made for it and no edge joined it. With it those
/// that do, by name.
///
/// # Errors
/// The database's, or a row that cannot be read.
pub async fn unknown(
    connection: &mut Connection,
    wanted: &[CellId],
) -> Result<Option<(CellId, Vec<CellId>)>, StoreError> {
    if wanted.is_empty() {
        return Ok(None);
    }
    let rows: Vec<String> =
        sql::query_scalar("SELECT id FROM cells ORDER BY id").fetch_all(connection).await?;
    let known: Vec<CellId> = rows.iter().map(|id| from_id(id, "cells")).collect::<Result<_, _>>()?;
    let unknown = wanted.iter().find(|cell| !known.contains(cell)).cloned();
    Ok(unknown.map(|unknown| (unknown, known)))
}

/// Makes sure that the cell exists and has a data key.
///
/// # Errors
/// The database's.
pub async fn ensure(tx: &mut WriteTx, sealer: &Sealer, cell: &CellId, now_ms: i64) -> Result<(), StoreError> {
    sql::query("INSERT INTO cells (id, created_at) VALUES (?, ?) ON CONFLICT (id) DO NOTHING")
        .bind(cell.as_str())
        .bind(now_ms)
        .execute(tx)
        .await?;
    if newest_epoch(tx, cell).await?.is_none() {
        insert_key(tx, sealer, &CellKey::generate(cell.clone(), 1), now_ms).await?;
    }
    Ok(())
}

/// The key that seals now; the cell is made when it is named for the first time.
///
/// # Errors
/// The database's, or the sealer's when the stored key cannot be opened.
pub async fn current_key(
    tx: &mut WriteTx,
    sealer: &Sealer,
    cell: &CellId,
    now_ms: i64,
) -> Result<CellKey, SealerError> {
    ensure(tx, sealer, cell, now_ms).await?;
    let epoch = newest_epoch(tx, cell).await?.unwrap_or(1);
    key(tx, sealer, cell, epoch).await?.ok_or(SealerError::Open { purpose: PURPOSE })
}

/// The key of one epoch; `None` when there is none.
///
/// # Errors
/// As [`current_key`].
pub async fn key(
    connection: &mut Connection,
    sealer: &Sealer,
    cell: &CellId,
    epoch: u32,
) -> Result<Option<CellKey>, SealerError> {
    let sealed: Option<Vec<u8>> =
        sql::query_scalar("SELECT sealed FROM cell_keys WHERE cell = ? AND epoch = ?")
            .bind(cell.as_str())
            .bind(epoch)
            .fetch_optional(connection)
            .await
            .map_err(StoreError::from)?;
    sealed.map(|sealed| open(sealer, cell, epoch, &sealed)).transpose()
}

/// The keys that an edge of the cell needs: the newest, and each that still seals a live credential or an origin identity.
///
/// # Errors
/// As [`current_key`].
pub async fn keys_in_use(
    connection: &mut Connection,
    sealer: &Sealer,
    cell: &CellId,
) -> Result<Vec<CellKey>, SealerError> {
    let rows = sql::query(
        "SELECT epoch, sealed FROM cell_keys k WHERE cell = ?1 AND \
         (epoch = (SELECT MAX(epoch) FROM cell_keys WHERE cell = ?1) OR EXISTS \
          (SELECT 1 FROM lineages l JOIN credentials c ON c.id = l.live_credential \
           WHERE l.cell = ?1 AND l.retired_at IS NULL AND c.key_at_edge = 0 AND c.cell_key_epoch = k.epoch) OR EXISTS \
          (SELECT 1 FROM origin_identities i WHERE i.cell = ?1 AND i.cell_key_epoch = k.epoch)) \
         ORDER BY epoch",
    )
    .bind(cell.as_str())
    .fetch_all(connection)
    .await
    .map_err(StoreError::from)?;
    rows.iter()
        .map(|row| {
            let epoch: u32 = row.try_get("epoch").map_err(StoreError::from)?;
            let sealed: Vec<u8> = row.try_get("sealed").map_err(StoreError::from)?;
            open(sealer, cell, epoch, &sealed)
        })
        .collect()
}

/// Starts a new epoch, so that whoever held the keys so far cannot open what is sealed from now on. Answers the epoch.
///
/// # Errors
/// The database's.
pub async fn next_epoch(
    tx: &mut WriteTx,
    sealer: &Sealer,
    cell: &CellId,
    now_ms: i64,
) -> Result<u32, StoreError> {
    let epoch = newest_epoch(tx, cell).await?.map_or(1, |epoch| epoch + 1);
    insert_key(tx, sealer, &CellKey::generate(cell.clone(), epoch), now_ms).await?;
    Ok(epoch)
}

/// Lineages whose live credential is sealed under an epoch before `epoch`: what an edge removed at its start could read.
///
/// # Errors
/// The database's.
pub async fn sealed_before(
    connection: &mut Connection,
    cell: &CellId,
    epoch: u32,
) -> Result<Vec<LineageId>, StoreError> {
    let ids: Vec<String> = sql::query_scalar(
        "SELECT l.id FROM lineages l JOIN credentials c ON c.id = l.live_credential \
         WHERE l.cell = ? AND l.retired_at IS NULL AND c.cell_key_epoch < ? ORDER BY l.id",
    )
    .bind(cell.as_str())
    .bind(epoch)
    .fetch_all(connection)
    .await?;
    ids.iter().map(|id| from_id(id, "lineages")).collect()
}

/// Makes those lineages due for a new key now; of uploaded ones their tenants have to bring it. How fast they get one is the issuance's affair: its limits hold for them
/// as for any renewal.
///
/// # Errors
/// The database's.
pub async fn renew_sealed_before(
    tx: &mut WriteTx,
    cell: &CellId,
    epoch: u32,
    now_ms: i64,
) -> Result<(), StoreError> {
    sql::query(
        "UPDATE credentials SET renew_at = ?1 WHERE renew_at > ?1 AND cell_key_epoch < ?2 AND id IN \
         (SELECT live_credential FROM lineages WHERE cell = ?3 AND retired_at IS NULL AND custody = 'cell')",
    )
    .bind(now_ms)
    .bind(epoch)
    .bind(cell.as_str())
    .execute(tx)
    .await?;
    Ok(())
}

/// The epoch that seals now; `None`: the cell has no key yet.
///
/// # Errors
/// The database's.
pub async fn newest_epoch(connection: &mut Connection, cell: &CellId) -> Result<Option<u32>, StoreError> {
    Ok(sql::query_scalar("SELECT MAX(epoch) FROM cell_keys WHERE cell = ?")
        .bind(cell.as_str())
        .fetch_one(connection)
        .await?)
}

async fn insert_key(tx: &mut WriteTx, sealer: &Sealer, key: &CellKey, now_ms: i64) -> Result<(), StoreError> {
    let sealed = sealer.seal(PURPOSE, &row_name(key.cell(), key.epoch()), key.secret_bytes());
    sql::query("INSERT INTO cell_keys (cell, epoch, sealed, created_at) VALUES (?, ?, ?, ?)")
        .bind(key.cell().as_str())
        .bind(key.epoch())
        .bind(sealed)
        .bind(now_ms)
        .execute(tx)
        .await?;
    Ok(())
}

fn open(sealer: &Sealer, cell: &CellId, epoch: u32, sealed: &[u8]) -> Result<CellKey, SealerError> {
    let secret = sealer.open(PURPOSE, &row_name(cell, epoch), sealed)?;
    let secret: &[u8; 32] =
        secret.as_slice().try_into().map_err(|_| SealerError::Open { purpose: PURPOSE })?;
    Ok(CellKey::from_bytes(cell.clone(), epoch, secret))
}

fn row_name(cell: &CellId, epoch: u32) -> String {
    format!("{cell}/{epoch}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sealer::KeyEncryptionKey;
    use crate::store::Store;

    #[test]
    fn a_domains_own_cells_go_before_its_tenants_and_those_before_the_default() {
        let cells = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<CellId>>();
        assert_eq!(of_domain(&cells(&["b", "a", "b"]), &cells(&["c"])), cells(&["a", "b"]));
        assert_eq!(of_domain(&[], &cells(&["d", "c"])), cells(&["c", "d"]));
        assert_eq!(of_domain(&[], &[]), cells(&[DEFAULT_CELL]));
    }

    #[tokio::test]
    async fn each_cell_and_epoch_has_its_own_key_and_the_newest_seals() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(folder.path()).await.unwrap();
        let sealer = Sealer::load(&store, &KeyEncryptionKey::from_bytes([7; 32]), 0).await.unwrap();
        let (one, two) = (CellId::parse("one").unwrap(), CellId::parse("two").unwrap());
        let mut tx = store.begin().await.unwrap();
        let first = current_key(&mut tx, &sealer, &one, 0).await.unwrap();
        let again = current_key(&mut tx, &sealer, &one, 0).await.unwrap();
        let other = current_key(&mut tx, &sealer, &two, 0).await.unwrap();
        assert_eq!(first.secret_bytes(), again.secret_bytes());
        assert_ne!(first.secret_bytes(), other.secret_bytes());
        assert_eq!(next_epoch(&mut tx, &sealer, &one, 0).await.unwrap(), 2);
        let newer = current_key(&mut tx, &sealer, &one, 0).await.unwrap();
        assert_eq!(newer.epoch(), 2);
        assert_ne!(first.secret_bytes(), newer.secret_bytes());
        // No credential is sealed under epoch 1: an edge does not need that key.
        let in_use = keys_in_use(&mut tx, &sealer, &one).await.unwrap();
        assert_eq!(in_use.iter().map(CellKey::epoch).collect::<Vec<_>>(), [2]);
        tx.commit().await.unwrap();
    }

    #[tokio::test]
    async fn a_cells_key_moved_to_another_row_does_not_open() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(folder.path()).await.unwrap();
        let sealer = Sealer::load(&store, &KeyEncryptionKey::from_bytes([7; 32]), 0).await.unwrap();
        let (one, two) = (CellId::parse("one").unwrap(), CellId::parse("two").unwrap());
        let mut tx = store.begin().await.unwrap();
        ensure(&mut tx, &sealer, &one, 0).await.unwrap();
        ensure(&mut tx, &sealer, &two, 0).await.unwrap();
        sql::query(
            "UPDATE cell_keys SET sealed = (SELECT sealed FROM cell_keys WHERE cell = 'one') WHERE cell = 'two'",
        )
        .execute(&mut tx)
        .await
        .unwrap();
        assert!(matches!(key(&mut tx, &sealer, &two, 1).await, Err(SealerError::Open { .. })));
    }
}
