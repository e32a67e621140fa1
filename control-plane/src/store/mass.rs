//! Very many certificates at once: whatever is done with them takes the writer's turn by bounded pieces.
//!
//! `PORTICO_MASS_CERTIFICATES=100000 cargo test --release --workspace --lib -- store::mass --test-threads 1` prints what the pieces
//! take; no figure fails a test.

use std::io::Write as _;
use std::time::Duration;

use portico_api::distribution::ResourceKind;
use portico_api::v1::{RekeyId, RekeyScope};
use portico_cert_store::{CellId, CredentialId, DomainId, GroupId, LineageId, TenantId};
use tokio::time::Instant;

use super::backup::{self, Backup, Filter};
use super::rekey::{self, RekeyRow};
use super::{Connection, Store, change, event, sql};
use crate::app::compromise::take_in;

const CERTIFICATES: &str = "PORTICO_MASS_CERTIFICATES";
const NOW: i64 = 1_000_000;

fn wanted() -> usize {
    std::env::var(CERTIFICATES).map_or(2_500, |text| text.parse().unwrap())
}

/// What pieces took.
#[derive(Default)]
struct Took {
    pieces: u32,
    longest: Duration,
    whole: Duration,
}

impl Took {
    fn add(&mut self, began: Instant) {
        let took = began.elapsed();
        self.pieces += 1;
        self.whole += took;
        self.longest = self.longest.max(took);
    }
}

impl std::fmt::Debug for Took {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} times, {:?} in all, {:?} the longest", self.pieces, self.whole, self.longest)
    }
}

/// Past the capture of the test harness, which hides what a passing test prints.
fn print(what: &str, took: &impl std::fmt::Debug) {
    if std::env::var(CERTIFICATES).is_ok() {
        writeln!(std::io::stderr(), "{what}: {took:?}").unwrap();
    }
}

/// A store with as many domains of one tenant, each with a certificate of its own in cell "one". `backup`: what they are to others.
async fn filled(folder: &std::path::Path, count: usize, backup: &str) -> (Store, Vec<LineageId>) {
    let store = Store::for_tests(folder).await.unwrap();
    let tenant = TenantId::generate().to_string();
    let mut tx = store.begin().await.unwrap();
    sql::query("INSERT INTO tenants (id, name, spec, revision, created_at) VALUES (?, 'roses', '{}', 1, 0)")
        .bind(&tenant)
        .execute(&mut tx)
        .await
        .unwrap();
    let mut lineages = Vec::with_capacity(count);
    for at in 0..count {
        let lineage = LineageId::generate();
        insert(&mut tx, (at, tenant.as_str()), lineage, backup).await;
        lineages.push(lineage);
    }
    tx.commit().await.unwrap();
    (store, lineages)
}

async fn insert(connection: &mut Connection, (at, tenant): (usize, &str), lineage: LineageId, backup: &str) {
    let (name, lineage) = (format!("n{at}.test"), lineage.to_string());
    let (domain, group) = (DomainId::generate().to_string(), GroupId::generate().to_string());
    let credential = CredentialId::generate().to_string();
    // Keys come in no order.
    let key = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, name.as_bytes());
    sql::query(
        "INSERT INTO domains (id, tenant_id, name, spec, served, proof_label, txt_token, http_token, challenge_label, \
         revision, created_at) VALUES (?, ?, ?, '{}', 1, '', '', '', '', 1, 0)",
    )
    .bind(&domain)
    .bind(tenant)
    .bind(&name)
    .execute(connection)
    .await
    .unwrap();
    sql::query(
        "INSERT INTO groups (id, tenant_id, cells, policy, alone, created_at, backup_of) VALUES (?, ?, '[]', '{}', 0, 0, ?)",
    )
    .bind(&group)
    .bind(tenant)
    .bind(GroupId::generate().to_string())
    .execute(connection)
    .await
    .unwrap();
    sql::query(
        "INSERT INTO lineages (id, group_id, cell, live_credential, created_at, backup) VALUES (?, ?, 'one', ?, 0, ?)",
    )
    .bind(&lineage)
    .bind(group)
    .bind(&credential)
    .bind(backup)
    .execute(connection)
    .await
    .unwrap();
    sql::query("INSERT INTO lineage_names (lineage_id, name, domain_id) VALUES (?, ?, ?)")
        .bind(&lineage)
        .bind(&name)
        .bind(domain)
        .execute(connection)
        .await
        .unwrap();
    sql::query(
        "INSERT INTO credentials (id, lineage_id, issuer, state, names, chain_pem, sealed_key, cell_key_epoch, key_tenant, \
         spki_sha256, fingerprint_sha256, not_before, not_after, renew_at, created_at) \
         VALUES (?, ?, 'test', 'live', ?, ?, ?, 1, ?, ?, ?, 0, ?, ?, 0)",
    )
    .bind(credential)
    .bind(lineage)
    .bind(format!("[\"{name}\"]"))
    .bind("c".repeat(3_000))
    .bind(vec![1_u8; 200])
    .bind(tenant)
    .bind(key.as_ref())
    .bind(key.as_ref())
    .bind(10 * NOW)
    .bind(5 * NOW)
    .execute(connection)
    .await
    .unwrap();
}

fn report() -> RekeyRow {
    RekeyRow {
        id: RekeyId::generate(),
        scope: RekeyScope::Cell,
        subject: "one".to_owned(),
        cell: Some((CellId::parse("one").unwrap(), 2)),
        compromised: true,
        note: String::new(),
        requested_by: "test".to_owned(),
        requested_at: NOW,
        finished_at: None,
        behind: Vec::new(),
    }
}

#[tokio::test]
async fn a_report_of_a_cell_takes_its_certificates_in_by_bounded_writes() {
    let (folder, count) = (tempfile::tempdir().unwrap(), wanted());
    let (store, _) = filled(folder.path(), count, "").await;
    let row = report();
    let mut tx = store.begin().await.unwrap();
    rekey::insert(&mut tx, &row).await.unwrap();
    tx.commit().await.unwrap();

    let began = Instant::now();
    let lacking = rekey::lacking(&mut store.read().await.unwrap(), &row, None).await.unwrap();
    print("a look for what is lacking", &began.elapsed());
    assert_eq!(lacking.len(), count);
    let mut took = Took::default();
    for some in lacking.chunks(1_000) {
        let began = Instant::now();
        let mut tx = store.begin().await.unwrap();
        take_in(&mut tx, &row, some, &[], NOW).await.unwrap();
        tx.commit().await.unwrap();
        took.add(began);
    }
    print("a report takes them in", &took);
    let mut read = store.read().await.unwrap();
    assert!(rekey::lacking(&mut read, &row, None).await.unwrap().is_empty());
    assert_eq!(rekey::progress(&mut read, row.id).await.unwrap().certificates, count as u64);
    let keys: i64 =
        sql::query_scalar("SELECT COUNT(*) FROM compromised_keys").fetch_one(&mut read).await.unwrap();
    assert_eq!(keys, i64::try_from(count).unwrap());
    let told = event::list(&mut read, 0, None, 10_000).await.unwrap();
    let to_tenant = told.iter().filter(|event| event.kind == "certificate.key_compromised").count();
    assert_eq!(to_tenant, took.pieces as usize, "its tenant hears once of each piece");
}

/// The certificate of a lineage gives way to another, as a renewal does it.
async fn replace(store: &Store, lineage: LineageId) -> u64 {
    let mut tx = store.begin().await.unwrap();
    sql::query("UPDATE lineages SET live_credential = ? WHERE id = ?")
        .bind(CredentialId::generate().to_string())
        .bind(lineage.to_string())
        .execute(&mut tx)
        .await
        .unwrap();
    let at = change::record(&mut tx, ResourceKind::Credential, &lineage.to_string(), None).await.unwrap();
    tx.commit().await.unwrap();
    at
}

#[tokio::test]
async fn a_turn_over_rekeys_looks_at_what_has_changed_since_the_last() {
    let (folder, count) = (tempfile::tempdir().unwrap(), wanted());
    let (store, lineages) = filled(folder.path(), count, "").await;
    let row = RekeyRow { compromised: false, ..report() };
    let lacking = rekey::lacking(&mut store.read().await.unwrap(), &row, None).await.unwrap();
    let mut tx = store.begin().await.unwrap();
    rekey::insert(&mut tx, &row).await.unwrap();
    let began = Instant::now();
    rekey::add(&mut tx, row.id, &lacking, NOW).await.unwrap();
    tx.commit().await.unwrap();
    print("added to a rekey in one write", &began.elapsed());
    let first = replace(&store, lineages[0]).await;
    let second = replace(&store, lineages[1]).await;

    let mut read = store.read().await.unwrap();
    for (after, some) in [(None, true), (Some(0), true), (Some(first), true), (Some(second), false)] {
        let began = Instant::now();
        assert_eq!(rekey::some_replaced(&mut read, after).await.unwrap(), some, "{after:?}");
        assert!(rekey::lacking(&mut read, &row, after).await.unwrap().is_empty());
        rekey::is_unfinished(&mut read, row.id).await.unwrap();
        rekey::replaced(&mut read, row.id, NOW, 4_096).await.unwrap();
        print(&format!("a look after {after:?}"), &began.elapsed());
    }
    drop(read);
    let mut tx = store.begin().await.unwrap();
    rekey::note_replaced(&mut tx, Some(first), NOW).await.unwrap();
    assert_eq!(rekey::progress(&mut tx, row.id).await.unwrap().replaced, 1, "the second one");
    rekey::note_replaced(&mut tx, None, NOW).await.unwrap();
    assert_eq!(rekey::progress(&mut tx, row.id).await.unwrap().replaced, 2);
    // What was replaced before it is added needs no change that tells so.
    let late = RekeyRow { id: RekeyId::generate(), ..report() };
    rekey::insert(&mut tx, &late).await.unwrap();
    rekey::add(&mut tx, late.id, &lacking[..10], NOW).await.unwrap();
    assert_eq!(rekey::progress(&mut tx, late.id).await.unwrap().certificates, 10);
    let left = rekey::not_replaced(&mut tx, row.id).await.unwrap();
    let open = lacking[..10].iter().filter(|one| left.contains(one)).count() as u64;
    assert_eq!(rekey::progress(&mut tx, late.id).await.unwrap().replaced, 10 - open);
}

#[tokio::test]
async fn backups_are_switched_by_bounded_writes() {
    let (folder, count) = (tempfile::tempdir().unwrap(), wanted());
    let (store, lineages) = filled(folder.path(), count, "staged").await;
    let began = Instant::now();
    let standing = backup::standing_by(&mut store.read().await.unwrap(), &Filter::default()).await.unwrap();
    print("what stands by is read", &began.elapsed());
    assert!(standing.len() == count && standing.iter().all(|one| one.names.len() == 1));
    let mut took = Took::default();
    let (mut newest, mut switched) = (0, 0);
    for some in lineages.chunks(500) {
        let began = Instant::now();
        let mut tx = store.begin().await.unwrap();
        let (sequence, turned) = backup::set_state(&mut tx, some, Backup::Shown).await.unwrap();
        tx.commit().await.unwrap();
        took.add(began);
        (newest, switched) = (newest.max(sequence), switched + turned);
    }
    print("backups are switched", &took);
    // A change of each lineage and one of its domain.
    assert_eq!((switched, newest), (count, 2 * count as u64));
    let mut tx = store.begin().await.unwrap();
    assert_eq!(backup::set_state(&mut tx, &lineages, Backup::Shown).await.unwrap(), (0, 0), "they are");
}
