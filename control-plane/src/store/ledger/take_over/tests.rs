use super::*;
use crate::plan::ledger::{HOUR_MS, Rate};
use crate::store::Store;
use crate::store::ledger::{levels, was_charged};

const NOW: i64 = 2_000_000_000_000;
const CA: &str = "https://ca.test/dir";

/// Rows as the release before wrote them.
async fn old_request(
    tx: &mut WriteTx,
    order: &str,
    state: Option<&str>,
    at: i64,
    renewal: bool,
    tenant: Option<&str>,
) {
    let id: i64 = sqlx::query_scalar(
        "INSERT INTO order_requests (issuer, order_id, tenant_id, name_set, renewal, at, in_ledger) \
         VALUES ('le', ?1, ?2, 'set of ' || ?1, ?3, ?4, 0) RETURNING id",
    )
    .bind(order)
    .bind(tenant)
    .bind(renewal)
    .bind(at)
    .fetch_one(&mut **tx)
    .await
    .unwrap();
    sqlx::query("INSERT INTO order_request_domains VALUES (?, 'le', 'shop.test', ?)")
        .bind(id)
        .bind(at)
        .execute(&mut **tx)
        .await
        .unwrap();
    if let Some(state) = state {
        sqlx::query(
            "INSERT OR IGNORE INTO orders (id, lineage_id, issuer, names, domains, name_set, state, credential_id, \
             sealed_key, cell_key_epoch, key_tenant, spki_sha256, csr, renewal, next_at, created_at, updated_at, issued_at) \
             VALUES (?1, ?1, 'le', '[]', '[]', 'set of ' || ?1, ?2, '', '', 1, '', '', '', ?3, 0, ?4, ?4, ?5)",
        )
        .bind(order)
        .bind(state)
        .bind(renewal)
        .bind(at)
        .bind((state == "issued").then_some(at + 5000))
        .execute(&mut **tx)
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn what_an_earlier_release_asked_of_a_ca_is_spent_after_the_upgrade() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    sqlx::query("PRAGMA defer_foreign_keys = on").execute(&mut *tx).await.unwrap();
    let tenant = "tn_one";
    for order in ["a", "b"] {
        old_request(&mut tx, order, Some("issued"), NOW - HOUR_MS, false, Some(tenant)).await;
    }
    // Asked twice, because the first answer was lost; still open.
    old_request(&mut tx, "open", Some("created"), NOW - 2 * HOUR_MS, false, None).await;
    old_request(&mut tx, "open", Some("created"), NOW - HOUR_MS, false, None).await;
    old_request(&mut tx, "renewal", Some("issued"), NOW - HOUR_MS, true, None).await;
    old_request(&mut tx, "old", Some("issued"), NOW - 20 * 24 * HOUR_MS, false, None).await;
    old_request(&mut tx, "failed", Some("failed"), NOW - HOUR_MS, false, None).await;
    sqlx::query("UPDATE order_requests SET certificate = 0 WHERE order_id = 'failed'")
        .execute(&mut *tx)
        .await
        .unwrap();
    sqlx::query("INSERT INTO lineages (id, group_id, cell, created_at) SELECT id, 'g', id, 0 FROM orders")
        .execute(&mut *tx)
        .await
        .unwrap();
    sqlx::query("INSERT INTO groups (id, cells, policy, alone, created_at) VALUES ('g', '[]', '{}', 0, 0)")
        .execute(&mut *tx)
        .await
        .unwrap();
    let limits = Limits { orders: Rate::per(10, 10 * HOUR_MS), tenant_1h: 1, ..Limits::default() };
    let issuer = IssuerLimits { name: "le", directory: CA, limits: &limits };
    assert_eq!(take_over(&mut tx, &[issuer], NOW).await.unwrap(), 7);
    assert_eq!(take_over(&mut tx, &[issuer], NOW).await.unwrap(), 0, "once");
    tx.commit().await.unwrap();
    let mut read = store.read().await.unwrap();
    let level = async |read: &mut crate::store::Connection, limit, subject: &str| {
        let key = key(&issuer, limit, subject);
        levels(read, &[&key]).await.unwrap().of(&key)
    };
    // One at 2 h ago is gone by an hour later; four were an hour ago, of which one has refilled, but for the answers' minute.
    let orders = level(&mut read, LimitName::Orders, "").await;
    assert_eq!(orders.bucket.arrival_ms, NOW - 2 * HOUR_MS + ANSWER_MS + 5 * HOUR_MS);
    assert_eq!(orders.bucket.used(limits.orders, NOW), 4);
    let domain = level(&mut read, LimitName::RegisteredDomain, "shop.test").await;
    assert_eq!((domain.bucket.used(limits.registered_domain, NOW), domain.reserved), (2, 1));
    let set = level(&mut read, LimitName::ExactSet, "set of renewal").await;
    assert_eq!((set.bucket.used(limits.exact_set, NOW), set.reserved), (1, 0));
    let set = level(&mut read, LimitName::ExactSet, "set of open").await;
    assert_eq!((set.bucket.used(limits.exact_set, NOW), set.reserved), (0, 1));
    let day = level(&mut read, LimitName::TenantHour, tenant).await;
    assert_eq!(day.bucket.used(Rate::per(1, HOUR_MS), NOW), 2, "two an hour ago, at one an hour");
    let key = |subject: &str| key(&issuer, LimitName::ExactSet, subject);
    assert!(was_charged(&mut read, &key("set of old")).await.unwrap(), "an order for it is a renewal");
    assert!(!was_charged(&mut read, &key("set of failed")).await.unwrap());
}

#[tokio::test]
async fn failures_and_the_account_are_taken_over_too() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    old_request(&mut tx, "gone", None, NOW - 60_000, false, None).await;
    for sql in [
        "INSERT INTO tenants (id, name, spec, revision, created_at) VALUES ('t', 't', '{}', 1, 0)",
        "INSERT INTO domains (id, tenant_id, name, spec, served, proof_label, txt_token, http_token, challenge_label, \
         revision, created_at) VALUES ('d', 't', 'dead.test', '{}', 1, 'd', 'd', 'd', 'd', 1, 0)",
        "INSERT INTO name_states (domain_id, methods, failed_before, attempts, updated_at) \
         VALUES ('d', '[]', 1, 7, 2000000000000)",
        "INSERT INTO accounts (issuer, directory, state, sealed_key, url, thumbprint, created_at, registered_at) \
         VALUES ('le', 'https://ca.test/dir', 'registered', '', 'u', 't', 0, 1999999999000)",
    ] {
        sqlx::query(sql).execute(&mut *tx).await.unwrap();
    }
    let limits = Limits::default();
    let issuer = IssuerLimits { name: "le", directory: CA, limits: &limits };
    take_over(&mut tx, &[issuer], NOW).await.unwrap();
    for (limit, subject, used) in [
        (LimitName::FailedAuthorizations, "dead.test", 5),
        (LimitName::ConsecutiveFailures, "dead.test", 7),
        (LimitName::NewAccounts, "", 1),
    ] {
        let key = key(&issuer, limit, subject);
        let level = levels(&mut tx, &[&key]).await.unwrap().of(&key);
        assert_eq!(level.bucket.used(limits.rate(limit, subject), NOW), used, "{limit:?}");
    }
}
