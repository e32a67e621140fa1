//! The tables' history: each file of `migrations/` once, in order of its number.
//!
//! Numbers: 01xx core, 02xx edges and cells, 03xx issuance, 04xx tenants' own certificates and origins. A file that has been
//! released is never edited; the checksum of an applied file is compared at each start.

use sqlx::SqlSafeStr;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::SqlitePool;

const MIGRATIONS: &[(i64, &str, &str)] = &[
    // Core.
    (101, "core", include_str!("../../migrations/0101_core.sql")),
    (103, "retries", include_str!("../../migrations/0103_retries.sql")),
    (104, "names of deleted domains", include_str!("../../migrations/0104_names_of_deleted_domains.sql")),
    (105, "error pages", include_str!("../../migrations/0105_error_pages.sql")),
    // Edges and cells.
    (201, "edges", include_str!("../../migrations/0201_edges.sql")),
    (203, "purges", include_str!("../../migrations/0203_purges.sql")),
    (204, "usage", include_str!("../../migrations/0204_usage.sql")),
    // Issuance.
    (301, "issuance", include_str!("../../migrations/0301_issuance.sql")),
    (311, "ledger", include_str!("../../migrations/0311_ledger.sql")),
    (321, "shared groups", include_str!("../../migrations/0321_shared_groups.sql")),
    (331, "accounts", include_str!("../../migrations/0331_accounts.sql")),
    (332, "issuers", include_str!("../../migrations/0332_issuers.sql")),
    // Names that leave.
    (351, "presences", include_str!("../../migrations/0351_presences.sql")),
    // Where events are sent.
    (352, "webhooks", include_str!("../../migrations/0352_webhooks.sql")),
    // Keys that are replaced, revoked, or follow to other cells.
    (371, "authorization windows", include_str!("../../migrations/0371_authorization_windows.sql")),
    (372, "rekeys", include_str!("../../migrations/0372_rekeys.sql")),
    (373, "compromised keys", include_str!("../../migrations/0373_compromised_keys.sql")),
    // Certificates of tenants' own.
    (401, "uploads", include_str!("../../migrations/0401_uploads.sql")),
    // What edges are to origins.
    (411, "origin identities", include_str!("../../migrations/0411_origin_identities.sql")),
    // What needs tables as uploads left them.
    (491, "renewal information", include_str!("../../migrations/0491_renewal_information.sql")),
];

pub(super) async fn run(writer: &SqlitePool) -> Result<(), MigrateError> {
    let all = MIGRATIONS
        .iter()
        .map(|&(number, name, sql)| {
            Migration::new(number, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
        })
        .collect();
    Migrator::with_migrations(all).run(writer).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_every_file_is_listed() {
        let numbers: Vec<i64> = MIGRATIONS.iter().map(|&(number, ..)| number).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
        let files = std::fs::read_dir(folder).unwrap().count();
        assert_eq!(files, MIGRATIONS.len(), "a file in migrations/ is not in the list");
    }

    #[tokio::test]
    async fn a_second_start_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let store = crate::store::Store::open(folder.path()).await.unwrap();
            store.close().await;
        }
    }
}
