//! Keys that are replaced before their time, as an operator does that.

use portico_cert_store::{CredentialId, GroupId, LineageId};
use portico_control_plane::store::sql;

use crate::plane::Plane;

/// A control plane whose default cell has one certificate in use, of a CA that it does not know.
async fn with_certificate() -> (Plane, String) {
    let plane = Plane::start().await;
    let (group, lineage) = (GroupId::generate().to_string(), LineageId::generate().to_string());
    let credential = CredentialId::generate().to_string();
    let mut tx = plane.running.parts.store.begin().await.unwrap();
    sql::query(
        "INSERT INTO groups (id, tenant_id, cells, policy, alone, created_at) VALUES (?, NULL, '[\"default\"]', '{}', 0, 0)",
    )
    .bind(&group)
    .execute(&mut tx)
    .await
    .unwrap();
    sql::query(
        "INSERT INTO lineages (id, group_id, cell, live_credential, created_at) VALUES (?, ?, 'default', ?, 0)",
    )
    .bind(&lineage)
    .bind(&group)
    .bind(&credential)
    .execute(&mut tx)
    .await
    .unwrap();
    sql::query(
        "INSERT INTO credentials (id, lineage_id, issuer, state, names, chain_pem, sealed_key, cell_key_epoch, key_tenant, \
         spki_sha256, fingerprint_sha256, not_before, not_after, renew_at, created_at) \
         VALUES (?, ?, 'gone', 'live', '[\"x.test\"]', '', ?, 1, 'operator', ?, ?, 0, ?, ?, 0)",
    )
    .bind(&credential)
    .bind(&lineage)
    .bind(vec![1_u8])
    .bind(vec![2_u8; 32])
    .bind(vec![3_u8; 32])
    .bind(i64::MAX / 2)
    .bind(i64::MAX / 2)
    .execute(&mut tx)
    .await
    .unwrap();
    tx.commit().await.unwrap();
    (plane, credential)
}

#[tokio::test]
async fn a_rekey_says_first_how_many_certificates_it_replaces() {
    let (plane, credential) = with_certificate().await;
    let asked = plane.portico(&["cell", "rekey", "default", "--note", "a guest had a shell"]).await;
    assert_eq!((asked.code, asked.stdout.as_str()), (2, ""), "{asked:?}");
    assert!(asked.stderr.contains("1 certificates would get a new key"), "{asked:?}");
    assert!(asked.stderr.contains("cell rekey default --replaces 1"), "{asked:?}");
    assert!(plane.json(&["rekey", "list"]).await.as_array().unwrap().is_empty(), "nothing was done");

    let others = plane.portico(&["cell", "rekey", "default", "--replaces", "2"]).await;
    assert_eq!(others.code, 2, "it is another number by now: {others:?}");
    let begun = plane.succeeds(&["cell", "rekey", "default", "--replaces", "1"]).await;
    assert!(begun.starts_with("rky_") && begun.contains("certificates 1, of them 0 replaced"), "{begun}");
    let list = plane.json(&["rekey", "list"]).await;
    assert_eq!((&list[0]["scope"], &list[0]["subject"]), (&"cell".into(), &"default".into()), "{list}");
    let id = list[0]["id"].as_str().unwrap();
    assert!(plane.succeeds(&["rekey", "show", id]).await.contains("goes on"));

    let asked = plane.portico(&["cert", "rekey", &credential, "--compromised"]).await;
    assert!(asked.stderr.contains("and be revoked"), "{asked:?}");
    assert!(asked.stderr.contains("--compromised --replaces 1"), "{asked:?}");
}

#[tokio::test]
async fn a_key_is_reported_by_its_hash_and_what_is_none_is_refused() {
    let plane = Plane::start().await;
    let hash = "AB".repeat(32);
    let told = plane.succeeds(&["rekey", "key", &hash, "--note", "published"]).await;
    assert!(told.contains(&format!("key {}", hash.to_lowercase())) && told.contains("compromised"), "{told}");
    let wrong = plane.portico(&["rekey", "key", "12"]).await;
    assert!(wrong.code != 0 && wrong.stderr.contains("no SHA-256"), "{wrong:?}");
    let edge = plane.portico(&["edge", "rekey", "edge_01ARZ3NDEKTSV4RRFFQ69G5FAV"]).await;
    assert!(edge.code != 0 && edge.stderr.contains("is no edge"), "{edge:?}");
    let cell = plane.portico(&["cell", "rekey", "nowhere"]).await;
    assert!(cell.code != 0 && cell.stderr.contains("no edge has joined nowhere"), "{cell:?}");
    let missing = plane.portico(&["rekey", "show", "rky_01ARZ3NDEKTSV4RRFFQ69G5FAV"]).await;
    assert_eq!(missing.code, 3, "{missing:?}");
}

#[tokio::test]
async fn a_cell_says_where_its_keys_are_made_and_what_that_leaves_as_it_was() {
    let (plane, _) = with_certificate().await;
    plane.succeeds(&["edge", "join", "--cell", "lone"]).await;
    let lone = plane.json(&["cell", "custody", "lone", "edge"]).await;
    assert_eq!((&lone["custody"], &lone["remark"]), (&"edge".into(), &serde_json::Value::Null), "{lone}");
    let fresh = plane.json(&["cell", "custody", "fresh", "edge"]).await;
    assert_eq!(
        (&fresh["id"], &fresh["edges"]),
        (&"fresh".into(), &0.into()),
        "it comes to be by that: {fresh}"
    );
    plane.succeeds(&["edge", "join"]).await;
    let told = plane.succeeds(&["cell", "custody", "default", "edge"]).await;
    assert!(told.contains("kept by its edge") && told.contains("portico cell rekey default"), "{told}");
    assert!(plane.succeeds(&["cell", "custody", "default", "cell"]).await.contains("shared"));
    let list = plane.json(&["cell", "list"]).await;
    let custody: Vec<_> =
        list.as_array().unwrap().iter().map(|cell| (&cell["id"], &cell["custody"])).collect();
    assert_eq!(custody.len(), 3, "{list}");
    assert!(custody.contains(&(&"default".into(), &"cell".into())), "{list}");
    assert!(plane.succeeds(&["cell", "list"]).await.contains("kept by its edge"));
    let missing = plane.portico(&["cell", "show", "nowhere"]).await;
    assert_eq!(missing.code, 3, "{missing:?}");
    let wrong = plane.portico(&["cell", "custody", "default", "uploaded"]).await;
    assert_eq!(wrong.code, 2, "{wrong:?}");
}
