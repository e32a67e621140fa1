//! The drill: back up while the API serves, lose the folder, restore, and find everything again; no key in the backup.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "set-up fails the test; deadlines are real time"
)]

mod stage;

use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use portico_cert_store::{KeyType, PrivateKey};
use portico_control_plane::backup::{backup, restore};
use portico_control_plane::clock::Clock;
use portico_control_plane::start_at;
use portico_control_plane::store::account::{self, AccountOrigin};
use portico_control_plane::store::meta;
use serde_json::Value;
use stage::Stage;

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test]
async fn a_lost_folder_comes_back_from_its_backup() {
    let mut stage = Stage::start().await;
    let (tenant, own) = stage.tenant("one").await;
    for number in 0..20 {
        stage.domain(&tenant, &format!("n{number}.example")).await;
    }
    let parts = &stage.running.parts;
    let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
    let mut tx = parts.store.begin().await.unwrap();
    let sealed = parts.sealer.seal("account-key", "test", key.secret_der());
    let directory = "https://ca.example/dir";
    account::insert(&mut tx, "test", directory, AccountOrigin::Made, &sealed, 1).await.unwrap();
    tx.commit().await.unwrap();
    let epoch = meta::epoch(&mut parts.store.read().await.unwrap()).await.unwrap();

    let file = stage.folder.path().join("backup");
    let config = (*parts.config).clone();
    backup(&config, &file).await.unwrap();
    // The scalar of a P-256 key in PKCS#8 follows the SEC1 version and the tag and length of its octets.
    let der = key.secret_der();
    let at = der.windows(5).position(|window| window == [2, 1, 1, 4, 32]).unwrap() + 5;
    let scalar = &der[at..at + 32];
    let hex: String = scalar.iter().map(|byte| format!("{byte:02x}")).collect();
    let kek = std::fs::read_to_string(stage.folder.path().join("kek")).unwrap();
    assert_no_key(&file, scalar, &hex, &kek);
    assert_no_key(&stage.data().join("portico.db-wal"), scalar, &hex, &kek);

    stage.running.shutdown().await.unwrap();
    std::fs::remove_dir_all(config.data.clone()).unwrap();
    let restored = restore(&config, &file, &Clock::default()).await.unwrap();
    assert!(restored.epoch > epoch);

    stage.running = start_at(config, stage.clock.clone()).await.unwrap();
    let listed = stage.call("GET", "/v1/domains", Some(&own), &[], Value::Null).await;
    assert_eq!(listed.body["items"].as_array().unwrap().len(), 20, "{}", listed.text);
    let audit = stage.operator("GET", "/v1/audit", Value::Null).await;
    // Two tokens (the operator's own at the first start is one), one tenant, 20 domains.
    assert_eq!(audit.body["items"].as_array().unwrap().len(), 23);
    let parts = &stage.running.parts;
    let mut read = parts.store.read().await.unwrap();
    let row = account::own(&mut read, "test", directory).await.unwrap().unwrap();
    let opened = parts.sealer.open("account-key", "test", &row.sealed_key).unwrap();
    assert_eq!(opened.as_slice(), key.secret_der());
    assert_eq!(meta::epoch(&mut read).await.unwrap(), restored.epoch);
}

fn assert_no_key(file: &Path, scalar: &[u8], hex: &str, kek: &str) {
    let bytes = std::fs::read(file).unwrap();
    assert!(bytes.len() > 10_000, "{} is too small to prove anything", file.display());
    for needle in [
        scalar,
        hex.as_bytes(),
        BASE64_STANDARD_NO_PAD.encode(&scalar[..30]).as_bytes(),
        kek.trim().as_bytes(),
    ] {
        assert!(!holds(&bytes, needle), "{} holds a key", file.display());
    }
    assert!(!holds(&bytes, &[0xab; 32]), "{} holds the raw key-encryption key", file.display());
}
