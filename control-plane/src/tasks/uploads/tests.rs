use std::path::Path;

use portico_api::distribution::ResourceKind;
use portico_api::v1::{DomainSpec, TenantSpec};
use portico_cert_store::{CredentialId, Custody, LineageId, NamePattern, TenantId};
use serde_json::json;

use super::*;
use crate::app::claim::new_labels;
use crate::store::credential::NewCredential;
use crate::store::domain::{self, DomainRow};
use crate::store::tenant::{self, TenantRow};

/// Some thousand, as a host may have of its customers.
const UPLOADS: usize = 3000;
const END: i64 = 90 * DAY_MS;

async fn add_tenant(tx: &mut WriteTx) -> TenantId {
    let id = TenantId::generate();
    let spec: TenantSpec = serde_json::from_value(json!({ "name": id })).unwrap();
    let row = TenantRow { id, spec, suspension: None, revision: 1, created_at: 0 };
    tenant::insert(tx, &row).await.unwrap();
    id
}

async fn add_domain(tx: &mut WriteTx, tenant_id: TenantId, name: &str) -> DomainRow {
    let spec: DomainSpec = serde_json::from_value(json!({ "hostname": name })).unwrap();
    let row = DomainRow {
        id: DomainId::generate(),
        tenant_id,
        name: NamePattern::parse(name).unwrap(),
        spec,
        served: true,
        labels: new_labels(),
        suspension: None,
        acme_thumbprint: None,
        check_at: None,
        check_failures: 0,
        revision: 1,
        created_at: 0,
        deleted_at: None,
    };
    domain::insert(tx, &row).await.unwrap();
    domain::publish(tx, &row).await.unwrap();
    row
}

fn credential(lineage: LineageId, tenant: TenantId, number: usize) -> NewCredential {
    let mut fingerprint = [0; 32];
    fingerprint[..8].copy_from_slice(&number.to_be_bytes());
    let renew_at = END / 3 * 2;
    let ends = timing::Ends { not_before: 0, not_after: END, renew_at };
    NewCredential {
        id: CredentialId::generate(),
        lineage,
        custody: Custody::Uploaded,
        issuer: "test".to_owned(),
        names: Vec::new(),
        chain_pem: "x".repeat(4000),
        sealed_key: vec![1; 200],
        cell_key_epoch: 1,
        key_tenant: tenant.to_string(),
        spki_sha256: fingerprint,
        fingerprint_sha256: fingerprint,
        not_before: 0,
        not_after: END,
        renew_at,
        account: None,
        is_rsa: false,
        tell_at: timing::tell_at(&ends, 0),
        adopted: false,
    }
}

/// So many uploads of one tenant, and one name of another.
async fn filled(folder: &Path, uploads: usize) -> (Store, Vec<DomainRow>, DomainRow, TenantId) {
    let store = Store::open(folder).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    let (tenant, other) = (add_tenant(&mut tx).await, add_tenant(&mut tx).await);
    let mut rows = Vec::new();
    for number in 0..uploads {
        let row = add_domain(&mut tx, tenant, &format!("shop{number}.example")).await;
        let names = BTreeMap::from([(row.name.to_string(), row.id)]);
        let group = uploaded::insert_group(&mut tx, tenant, &names, 0).await.unwrap();
        let cell = CellId::parse("default").unwrap();
        let lineage = uploaded::ensure_lineage(&mut tx, group, &cell, 0).await.unwrap();
        uploaded::publish(&mut tx, &credential(lineage, tenant, number), &names, 0).await.unwrap();
        rows.push(row);
    }
    let elsewhere = add_domain(&mut tx, other, "elsewhere.example").await;
    tx.commit().await.unwrap();
    (store, rows, elsewhere, tenant)
}

#[tokio::test]
async fn a_commit_elsewhere_loads_no_upload() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut rows, elsewhere, tenant) = filled(folder.path(), UPLOADS).await;
    let mut seen = None;
    assert_eq!(look(&store, 1000, &mut seen).await.unwrap(), UPLOADS, "after a start all are looked at");
    assert_eq!(look(&store, 1000, &mut seen).await.unwrap(), 0);
    let mut tx = store.begin().await.unwrap();
    domain::publish(&mut tx, &elsewhere).await.unwrap();
    change::record(&mut tx, ResourceKind::Fleet, "fleet", None).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(look(&store, 1000, &mut seen).await.unwrap(), 0);
    // One of its own names goes.
    let mut tx = store.begin().await.unwrap();
    (rows[7].served, rows[7].deleted_at) = (false, Some(1000));
    domain::update(&mut tx, &mut rows[7], 1000).await.unwrap();
    domain::publish(&mut tx, &rows[7]).await.unwrap();
    tx.commit().await.unwrap();
    let before = uploaded::bytes_of(&mut store.read().await.unwrap(), tenant).await.unwrap();
    assert_eq!(look(&store, 1000, &mut seen).await.unwrap(), 1);
    let after = uploaded::bytes_of(&mut store.read().await.unwrap(), tenant).await.unwrap();
    assert_eq!((before.live - after.live, before.kept), (4200, after.kept), "its upload went with it");
    assert_eq!(look(&store, 1000, &mut seen).await.unwrap(), 0);
}

#[tokio::test]
async fn an_end_is_told_when_its_time_has_come_and_once() {
    let folder = tempfile::tempdir().unwrap();
    let few = 20;
    let (store, ..) = filled(folder.path(), few).await;
    let mut seen = None;
    look(&store, 1000, &mut seen).await.unwrap();
    let kinds = async || {
        let listed = event::list(&mut store.read().await.unwrap(), 0, None, 100_000).await.unwrap();
        let count = |kind: &str| listed.iter().filter(|event| event.kind == kind).count();
        (count("certificate.ends_soon"), count("certificate.expired"))
    };
    assert_eq!(kinds().await, (0, 0));
    for (day, told) in [(61, (few, 0)), (82, (2 * few, 0)), (91, (2 * few, few))] {
        assert_eq!(look(&store, day * DAY_MS, &mut seen).await.unwrap(), few, "day {day}");
        assert_eq!(kinds().await, told, "day {day}");
        assert_eq!(look(&store, day * DAY_MS, &mut seen).await.unwrap(), 0, "day {day}, once more");
    }
}
