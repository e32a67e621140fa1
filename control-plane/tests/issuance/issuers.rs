//! Several issuers, and how we are known at each.

use std::os::unix::fs::PermissionsExt as _;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use portico_acme_ca::ExternalAccount;

use crate::issuing;
use crate::lab::{Lab, Options, World};

const SECRET: &[u8; 32] = b"a secret that the CA gave us out";

/// A CA that takes no account without an external one.
fn bound() -> Options {
    Options {
        issuer: "external_account = { key_id = \"kid-1\", hmac_key_file = \"@/hmac\" }",
        ca: |args| {
            args.external_account =
                vec![ExternalAccount { key_id: "kid-1".to_owned(), hmac_key: SECRET.to_vec() }];
        },
        ..Options::default()
    }
}

fn write_secret(world: &World, secret: &[u8]) {
    let file = world.path("hmac");
    std::fs::write(&file, BASE64_URL_SAFE_NO_PAD.encode(secret)).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_is_bound_to_an_external_one_and_its_secret_is_sealed_before_it_is_used() {
    let lab = Lab::start(&bound()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let domain = lab.domains(tenant, &["shop.test"]).await[0];
    let before = lab.until_condition(domain, "CertificateReady", "false").await.join(" ");
    assert!(before.contains("hmac") && before.contains("external account"), "{before}");
    assert_eq!(lab.world.stats().await["accounts"]["created"], 0, "nothing was asked without the secret");

    // A wrong one is refused, and stored all the same: it is what the operator gave.
    write_secret(&lab.world, &[1; 32]);
    lab.until_text(domain, "signature does not verify").await;
    write_secret(&lab.world, SECRET);
    let live = lab.until_covered_soon(1).await;
    assert_eq!(live[0].names, ["shop.test"]);
    assert_eq!(lab.world.stats().await["accounts"]["created"], 1);
    let accounts = lab.rows("SELECT issuer, origin, state FROM accounts").await;
    assert_eq!(accounts, [["test", "made", "registered"]]);
    for file in ["portico.db", "portico.db-wal"] {
        let bytes = std::fs::read(lab.world.path("data").join(file)).unwrap_or_default();
        let text = BASE64_URL_SAFE_NO_PAD.encode(SECRET);
        for secret in [&SECRET[..], text.as_bytes()] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret), "{file} holds the secret");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pebble_binds_an_account_to_an_external_one() {
    let options = Options { pebble: true, ca: |_| {}, ..bound() };
    let Some(lab) = Lab::try_start_with(&options, |world| write_secret(world, SECRET)).await else { return };
    issuing::one_name(&lab).await;
}
