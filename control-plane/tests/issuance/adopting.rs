//! Certificates of other ACME clients: served at once with no order, then replaced on the account that ordered them.

use std::time::Duration;

use portico_acme_ca::AriExemption;
use portico_cert_store::{DomainId, KeyType, NamePattern, PrivateKey, TenantId};
use portico_control_plane::acme::order::Wanted;
use portico_control_plane::acme::{
    Account, AccountKey, AuthorizationStatus, CaEndpoint, CaHttp, CaOrder, CaOrderStatus, ChallengeMethod,
    Pace,
};
use portico_control_plane::store::sql;
use serde_json::{Value, json};

use crate::lab::{Ca, Lab, Options, World};
use crate::rekeying;

/// Another ACME client, with an account of its own.
struct Client {
    account: Account,
    key_pem: String,
}

/// What it has got.
struct Got {
    chain_pem: String,
    key_pem: String,
}

impl Client {
    async fn register(world: &World, key_pem: String) -> Self {
        let http = ca_http(world);
        let account = Account::register(&http, &AccountKey::from_pem(&key_pem).unwrap(), None).await.unwrap();
        Self { account, key_pem }
    }

    async fn new(world: &World) -> Self {
        Self::register(world, rcgen::KeyPair::generate().unwrap().serialize_pem()).await
    }

    /// Orders a certificate, and shows control by DNS.
    async fn order(&self, world: &World, names: &[&str], key: KeyType) -> Got {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let wanted = Wanted { names: &names, replaces: None, profile: None };
        let mut order = CaOrder::create(&self.account, &wanted).await.unwrap();
        let mut chosen = Vec::new();
        for authorization in order.authorizations(true).await.unwrap() {
            assert_eq!(authorization.status, AuthorizationStatus::Pending, "{}", authorization.name);
            let dns =
                authorization.challenges.iter().find(|one| one.method == ChallengeMethod::Dns01).unwrap();
            let name = format!("_acme-challenge.{}", authorization.name);
            world
                .set_dns("/records", json!({ "name": name, "type": "TXT", "values": [dns.dns_value] }))
                .await;
            chosen.push((authorization.name, ChallengeMethod::Dns01));
        }
        order.set_ready(&chosen).await.unwrap();
        until_status(&mut order, CaOrderStatus::Ready).await;
        let key = PrivateKey::generate(key).unwrap();
        let patterns: Vec<NamePattern> = names.iter().map(|name| name.parse().unwrap()).collect();
        order.finalize(&key.csr(&patterns).unwrap()).await.unwrap();
        until_status(&mut order, CaOrderStatus::Valid).await;
        let chain_pem = order.certificate().await.unwrap().unwrap();
        Got { chain_pem, key_pem: pkcs8_pem(&key) }
    }
}

fn ca_http(world: &World) -> CaHttp {
    use rustls_pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    let anchor = rustls_pki_types::CertificateDer::from_pem_file(world.path("api-ca.pem")).unwrap();
    roots.add(anchor).unwrap();
    let pace = Pace { per_second: 1000, burst: 1000 };
    let endpoint = CaEndpoint {
        directory: world.directory().parse().unwrap(),
        roots: std::sync::Arc::new(roots),
        serialize_orders: matches!(world.ca, Ca::Pebble(_)),
        pace,
        nonce_pace: pace,
    };
    CaHttp::new(&endpoint).unwrap()
}

async fn until_status(order: &mut CaOrder, wanted: CaOrderStatus) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while order.status() != wanted {
        assert!(tokio::time::Instant::now() < deadline, "{:?}, not {wanted:?}", order.status());
        tokio::time::sleep(Duration::from_millis(20)).await;
        order.refresh().await.unwrap();
    }
}

fn pkcs8_pem(key: &PrivateKey) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    let body = BASE64_STANDARD.encode(key.secret_der());
    let lines: Vec<&str> =
        body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"))
}

/// The other client's account is ours too from now on.
async fn adopt_account(lab: &Lab, client: &Client) -> String {
    let adopted =
        lab.operator("POST", "/v1/issuers/test/accounts", json!({ "key_pem": client.key_pem })).await;
    assert_eq!(adopted.0, 201, "{}", adopted.1);
    adopted.1["url"].as_str().unwrap().to_owned()
}

fn adoption(got: &Got, names: &[&str]) -> Value {
    let domain = |name: &&str| json!({ "hostname": name, "routes": [{ "action": { "type": "static", "body": "here" } }] });
    json!({
        "domains": names.iter().map(domain).collect::<Vec<_>>(),
        "chain_pem": got.chain_pem, "key_pem": got.key_pem, "note": "it was served by the other client",
        "issuer": "test",
    })
}

async fn adopt(lab: &Lab, tenant: TenantId, body: &Value) -> (u16, Value) {
    lab.operator("POST", &format!("/v1/tenants/{tenant}/adoptions"), body.clone()).await
}

/// Every name has been looked at and could be ordered, and the planner has had its turn since: another name that came later has
/// its certificate.
async fn until_planned(lab: &Lab, names: usize) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let ready = lab.rows("SELECT domain_id FROM name_states WHERE methods <> '[]'").await;
        if ready.len() >= names {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{} of {names} are ready", ready.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let other = lab.tenant(&[], "registered_domain").await;
    lab.domains(other, &["later.test"]).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while lab
        .rows("SELECT id FROM orders WHERE state = 'issued' AND names LIKE '%later.test%'")
        .await
        .is_empty()
    {
        assert!(tokio::time::Instant::now() < deadline, "later.test has no certificate");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Orders that are not the later name's.
async fn orders(lab: &Lab) -> Vec<Vec<String>> {
    lab.rows(
        "SELECT names, state, COALESCE(error, ''), COALESCE(CAST(account_id AS TEXT), 'own'), \
         CAST(replaces_accepted AS TEXT) FROM orders WHERE names NOT LIKE '%later.test%' ORDER BY created_at",
    )
    .await
}

/// Waits until a certificate that was made here serves these names, in so many cells.
async fn until_replaced(lab: &Lab, name: &str, cells: usize) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        lab.hurry().await;
        let live = live(lab, name).await;
        if live.len() == cells && live.iter().all(|row| row[0] == "0") {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{live:?} {:#?}", orders(lab).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Of the certificates in use for a name: whether it is adopted, its account, its cell.
async fn live(lab: &Lab, name: &str) -> Vec<Vec<String>> {
    let mut read = lab.running.parts.store.read().await.unwrap();
    let rows = sql::query(
        "SELECT CAST(c.adopted AS TEXT) AS adopted, COALESCE(c.account, '-') AS account, l.cell FROM lineage_names n \
         JOIN lineages l ON l.id = n.lineage_id JOIN credentials c ON c.id = l.live_credential \
         WHERE n.name = ? AND l.retired_at IS NULL ORDER BY l.cell",
    )
    .bind(name)
    .fetch_all(&mut read)
    .await
    .unwrap();
    let text = |row: &sql::Row, column: usize| row.try_get::<String>(column).unwrap();
    rows.iter().map(|row| (0..3).map(|column| text(row, column)).collect()).collect()
}

async fn performed(lab: &Lab, name: &str) -> u64 {
    let stats = lab.world.stats().await;
    let by = stats["validations"]["by_name"][name].as_object().cloned().unwrap_or_default();
    by.values().map(|outcomes| outcomes["performed"].as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adopted_certificate_is_served_with_no_order_and_replaced_on_its_account_with_no_validation() {
    // A second order of the names passes only as a replacement within the window.
    let ca = |args: &mut portico_acme_ca::CaArgs| {
        args.ari_exemption = AriExemption::InWindow;
        args.authz_lifetime = Duration::from_secs(80 * 86_400);
        args.limit = vec!["certificates-per-exact-set=1/200d".parse().unwrap()];
    };
    let lab = Lab::start(&Options { ca, ..Options::default() }).await;
    let client = Client::new(&lab.world).await;
    let names = ["old.test", "www.old.test"];
    let got = client.order(&lab.world, &names, KeyType::EcdsaP256).await;
    assert_eq!((performed(&lab, "old.test").await, performed(&lab, "www.old.test").await), (1, 1));
    let url = adopt_account(&lab, &client).await;

    let tenant = lab.tenant(&[], "registered_domain").await;
    let mut body = adoption(&got, &names);
    body["account"] = json!(url);
    let adopted = adopt(&lab, tenant, &body).await;
    assert_eq!(adopted.0, 201, "{}", adopted.1);
    let certificate = &adopted.1["certificates"][0];
    assert_eq!(
        (&certificate["adopted"], &certificate["issuer"]),
        (&json!(true), &json!("test")),
        "{certificate}"
    );
    let lineage = certificate["lineage_id"].as_str().unwrap().to_owned();
    lab.edge("default")
        .wait("the adopted certificate", |state| state.resources.keys().any(|(_, id)| *id == lineage))
        .await;
    let again = adopt(&lab, tenant, &body).await;
    assert_eq!((again.0, &again.1["unchanged"]), (200, &json!(true)), "{}", again.1);

    until_planned(&lab, 2).await;
    assert_eq!(orders(&lab).await, Vec::<Vec<String>>::new(), "nothing is ordered before its time");
    assert_eq!(
        lab.world.stats().await["orders"]["created"],
        2,
        "the other client's, and that of the later name"
    );

    let renew_at = lab.rows("SELECT CAST(renew_at AS TEXT) FROM credentials WHERE adopted = 1").await;
    lab.world.advance_to(renew_at[0][0].parse().unwrap()).await;
    until_replaced(&lab, "old.test", 1).await;
    assert_eq!(live(&lab, "old.test").await[0][1], url, "on the account that ordered the first");
    let replacing = orders(&lab).await;
    assert_eq!(
        (replacing.len(), &*replacing[0][4]),
        (1, "1"),
        "the CA takes it as the replacement: {replacing:#?}"
    );
    assert_eq!(
        (performed(&lab, "old.test").await, performed(&lab, "www.old.test").await),
        (1, 1),
        "none anew"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_cell_has_a_key_of_its_own_with_the_next_certificate_and_one_of_them_replaces() {
    let options = Options { cells: vec!["one", "two"], ..Options::default() };
    let lab = Lab::start(&options).await;
    let client = Client::new(&lab.world).await;
    let got = client.order(&lab.world, &["old.test"], KeyType::Rsa2048).await;
    let url = adopt_account(&lab, &client).await;
    let tenant = lab.tenant(&["one", "two"], "registered_domain").await;
    // The account comes later than the certificate.
    let first = adopt(&lab, tenant, &adoption(&got, &["old.test"])).await;
    assert_eq!((first.0, first.1["certificates"].as_array().map(Vec::len)), (201, Some(2)), "{}", first.1);
    let mut body = adoption(&got, &["old.test"]);
    body["account"] = json!(url);
    let again = adopt(&lab, tenant, &body).await;
    assert_eq!(again.0, 200, "{}", again.1);
    let expected = [["1", &url, "one"], ["1", "-", "two"]].map(|row| row.map(str::to_owned).to_vec());
    assert_eq!(live(&lab, "old.test").await, expected);

    lab.world.advance(61).await;
    until_replaced(&lab, "old.test", 2).await;
    let made = orders(&lab).await;
    let how: Vec<(&str, bool)> = made.iter().map(|row| (row[4].as_str(), row[3] == "own")).collect();
    assert_eq!(how, [("1", false), ("0", true)], "a CA has each certificate replaced once: {made:#?}");
    let keys = lab.rows("SELECT hex(spki_sha256) FROM credentials WHERE adopted = 0").await;
    assert_ne!(keys[0], keys[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_adopted_is_refused_by_name_and_changes_nothing() {
    let lab = Lab::start(&Options::default()).await;
    let client = Client::new(&lab.world).await;
    let got = client.order(&lab.world, &["a.test", "b.test", "c.test"], KeyType::EcdsaP256).await;
    let (tenant, other) =
        (lab.tenant(&[], "registered_domain").await, lab.tenant(&[], "registered_domain").await);
    lab.domains(other, &["b.test"]).await;
    let before = lab.rows("SELECT id FROM domains").await;

    let mismatch = Got {
        key_pem: rcgen::KeyPair::generate().unwrap().serialize_pem(),
        chain_pem: got.chain_pem.clone(),
    };
    let mut stranger = adoption(&got, &["a.test"]);
    stranger["account"] = json!("https://ca.test/acct/1");
    let mut nowhere = adoption(&got, &["a.test"]);
    nowhere["issuer"] = json!("third");
    let mut silent = adoption(&got, &["a.test"]);
    silent["note"] = json!("");
    for (body, status, code) in [
        (adoption(&mismatch, &["a.test"]), 422, "key_mismatch"),
        (adoption(&got, &["z.test"]), 409, "nothing_adopted"),
        (adoption(&got, &["b.test"]), 409, "nothing_adopted"),
        (adoption(&got, &[]), 422, "out_of_range"),
        (stranger, 422, "unknown_account"),
        (nowhere, 422, "unknown_issuer"),
        (silent, 422, "invalid_note"),
    ] {
        let refused = adopt(&lab, tenant, &body).await;
        let told = refused.1["errors"][0]["code"].as_str().or(refused.1["code"].as_str()).unwrap();
        assert_eq!((refused.0, told), (status, code), "{}", refused.1);
        assert!(!refused.1.to_string().contains("PRIVATE"), "{}", refused.1);
    }
    let mut dry = adoption(&got, &["a.test", "b.test"]);
    dry["dry_run"] = json!(true);
    let would = adopt(&lab, tenant, &dry).await;
    assert_eq!((would.0, &would.1["domains"][0]["created"]), (200, &json!(true)), "{}", would.1);
    assert_eq!(would.1["domains"][1]["problem"]["code"], "owned_by_another");
    assert_eq!(lab.rows("SELECT id FROM domains").await, before, "nothing was written");
    assert!(lab.rows("SELECT id FROM credentials").await.is_empty());
    assert!(lab.rows("SELECT subject FROM audit WHERE action LIKE 'certificate%'").await.is_empty());

    // Of three names one is another's.
    let adopted = adopt(&lab, tenant, &adoption(&got, &["a.test", "b.test", "c.test"])).await;
    assert_eq!(adopted.0, 201, "{}", adopted.1);
    assert_eq!((live(&lab, "a.test").await.len(), live(&lab, "c.test").await.len()), (1, 1));
    assert!(!live(&lab, "b.test").await.iter().any(|row| row[0] == "1"), "the other tenant's is its own");
    let id = adopted.1["certificates"][0]["credential_id"].as_str().unwrap().to_owned();

    let kept = lab.operator("DELETE", &format!("/v1/certificates/{id}"), Value::Null).await;
    assert_eq!((kept.0, &kept.1["code"]), (409, &json!("only_certificate")), "{}", kept.1);
    let path = format!("/v1/certificates/{id}?leave_unserved=true");
    for _ in 0..2 {
        assert_eq!(lab.operator("DELETE", &path, Value::Null).await.0, 204);
    }
    let sealed = lab.rows("SELECT CAST(length(sealed_key) AS TEXT) FROM credentials WHERE adopted = 1").await;
    assert_eq!(sealed, [["0"]], "its key is forgotten");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_better_is_replaced_by_an_adoption() {
    let lab = Lab::start(&Options::default()).await;
    let client = Client::new(&lab.world).await;
    let first = client.order(&lab.world, &["old.test"], KeyType::EcdsaP256).await;
    lab.world.advance(1).await;
    // Its authorization is valid still, so nothing is to be shown.
    let newer = renewed(&client, "old.test").await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    assert_eq!(adopt(&lab, tenant, &adoption(&newer, &["old.test"])).await.0, 201);
    let older = adopt(&lab, tenant, &adoption(&first, &["old.test"])).await;
    assert_eq!((older.0, &older.1["errors"][0]["code"]), (422, &json!("ends_earlier")), "{}", older.1);

    let issued = lab.tenant(&[], "registered_domain").await;
    let domain: DomainId = lab.domains(issued, &["new.test"]).await[0];
    lab.until_condition(domain, "CertificateReady", "true").await;
    let got = client.order(&lab.world, &["new.test"], KeyType::EcdsaP256).await;
    let refused = adopt(&lab, issued, &adoption(&got, &["new.test"])).await;
    assert_eq!((refused.0, &refused.1["code"]), (409, &json!("nothing_adopted")), "{}", refused.1);
    assert!(refused.1["detail"].as_str().unwrap().contains("was issued here"), "{}", refused.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adopted_key_that_others_have_is_replaced_and_revoked_and_never_taken_again() {
    let lab = Lab::start(&Options::default()).await;
    let client = Client::new(&lab.world).await;
    let got = client.order(&lab.world, &["old.test", "other.test"], KeyType::Rsa2048).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let adopted = adopt(&lab, tenant, &adoption(&got, &["old.test"])).await;
    assert_eq!(adopted.0, 201, "{}", adopted.1);
    let id = adopted.1["certificates"][0]["credential_id"].as_str().unwrap();
    let report = rekeying::ask(&lab, json!({ "certificate": id, "compromised": true })).await;
    rekeying::until_over(&lab, &rekeying::id_of(&report)).await;
    assert_eq!(live(&lab, "old.test").await[0][0], "0");
    let told = rekeying::revocations(&lab).await;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].1, told[0].2.as_str()), (1, "key"), "keyCompromise, signed with its RSA key");
    let again = adopt(&lab, tenant, &adoption(&got, &["other.test"])).await;
    assert_eq!((again.0, &again.1["errors"][0]["code"]), (422, &json!("key_compromised")), "{}", again.1);
}

/// A CA revokes the certificate, wherever it is served. Here the second cell's next one waits for a limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adopted_key_is_replaced_in_every_cell_before_its_certificate_is_revoked() {
    let lab = Lab::start(&Options {
        cells: vec!["one", "two"],
        issuer: "limits = { exact_set = \"1/7d\" }",
        preflight: false,
        challenges: r#"["http-01"]"#,
        ..Options::default()
    })
    .await;
    let client = Client::new(&lab.world).await;
    let got = client.order(&lab.world, &["old.test"], KeyType::EcdsaP256).await;
    let other = client.order(&lab.world, &["rose.test"], KeyType::EcdsaP256).await;
    let tenant = lab.tenant(&["one", "two"], "registered_domain").await;
    let adopted = adopt(&lab, tenant, &adoption(&got, &["old.test"])).await;
    assert_eq!(adopted.0, 201, "{}", adopted.1);
    let certificates = adopted.1["certificates"].as_array().unwrap();
    assert_eq!(certificates.len(), 2, "one for each cell");
    let in_one = lab.tenant(&["one"], "registered_domain").await;
    let rose = adopt(&lab, in_one, &adoption(&other, &["rose.test"])).await;
    let report = json!({ "certificate": certificates[0]["credential_id"], "compromised": true });
    let report = rekeying::ask(&lab, report).await;
    assert_eq!(report["certificates"], 2, "{report}");
    let id = rekeying::id_of(&report);
    rekeying::until(&lab, &id, "replaced in one cell", |rekey| rekey["replaced"] == 1).await;
    // Another that is reported later has its turn.
    let later = json!({ "certificate": rose.1["certificates"][0]["credential_id"], "compromised": true });
    let later = rekeying::ask(&lab, later).await;
    rekeying::until_over(&lab, &rekeying::id_of(&later)).await;
    let told = rekeying::revocations(&lab).await;
    assert_eq!(told.len(), 1, "the second cell still serves the other: {told:?}");
    // A day after the report it is revoked all the same.
    lab.world.advance_seconds(86_400).await;
    rekeying::until(&lab, &id, "revoked in time", |rekey| rekey["revoked"] == 2).await;
    assert_eq!(rekeying::revocations(&lab).await.len(), 2);
}

/// P5: no tenant is served with a key that another has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_another_tenant_is_served_with_is_not_adopted() {
    let lab = Lab::start(&Options::default()).await;
    let client = Client::new(&lab.world).await;
    let got = client.order(&lab.world, &["old.test", "other.test"], KeyType::EcdsaP256).await;
    let one = lab.tenant(&[], "registered_domain").await;
    assert_eq!(adopt(&lab, one, &adoption(&got, &["old.test"])).await.0, 201);
    let other = lab.tenant(&[], "registered_domain").await;
    let refused = adopt(&lab, other, &adoption(&got, &["other.test"])).await;
    assert_eq!(
        (refused.0, &refused.1["errors"][0]["code"]),
        (422, &json!("key_of_another")),
        "{}",
        refused.1
    );
    assert!(refused.1["errors"][0]["message"].as_str().unwrap().contains(&one.to_string()), "{}", refused.1);
    assert!(live(&lab, "other.test").await.is_empty());
    assert_eq!(adopt(&lab, one, &adoption(&got, &["other.test"])).await.0, 201, "its own tenant may");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_a_ca_that_is_not_ours_is_replaced_and_the_operator_hears_who_can_revoke_it() {
    let lab = Lab::start(&Options::default()).await;
    let client = Client::new(&lab.world).await;
    let got = client.order(&lab.world, &["old.test"], KeyType::EcdsaP256).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let mut body = adoption(&got, &["old.test"]);
    body.as_object_mut().unwrap().remove("issuer");
    let adopted = adopt(&lab, tenant, &body).await;
    assert_eq!(adopted.0, 201, "{}", adopted.1);
    let id = adopted.1["certificates"][0]["credential_id"].as_str().unwrap();
    let report = rekeying::ask(&lab, json!({ "certificate": id, "compromised": true })).await;
    let over = rekeying::until_over(&lab, &rekeying::id_of(&report)).await;
    assert_eq!((&over["replaced"], &over["revoked"]), (&json!(1), &json!(0)), "{over}");
    let trouble = over["troubles"][0]["text"].as_str().unwrap();
    assert!(trouble.contains("no issuer of the configuration; have that CA revoke it"), "{over}");
    assert!(rekeying::revocations(&lab).await.is_empty());
    let told = lab.rows("SELECT kind, text FROM events WHERE tenant_id IS NULL ORDER BY sequence").await;
    let of =
        |kind: &str| told.iter().find(|row| row[0] == kind).unwrap_or_else(|| panic!("{kind}: {told:?}"));
    assert!(of("certificate.revocation_failed")[1].starts_with("old.test: "), "{told:?}");
    assert!(of("keys.rekeyed")[1].contains("but for 1: not revoked, and not tried"), "{told:?}");
}

async fn renewed(client: &Client, name: &str) -> Got {
    let names = [name.to_owned()];
    let wanted = Wanted { names: &names, replaces: None, profile: None };
    let mut order = CaOrder::create(&client.account, &wanted).await.unwrap();
    until_status(&mut order, CaOrderStatus::Ready).await;
    let key = PrivateKey::generate(KeyType::EcdsaP256).unwrap();
    order.finalize(&key.csr(&[name.parse().unwrap()]).unwrap()).await.unwrap();
    until_status(&mut order, CaOrderStatus::Valid).await;
    Got { chain_pem: order.certificate().await.unwrap().unwrap(), key_pem: pkcs8_pem(&key) }
}

async fn rsa_account_is_adopted(lab: &Lab) {
    let key = PrivateKey::generate(KeyType::Rsa2048).unwrap();
    let pem = pkcs8_pem(&key);
    register_rsa(&lab.world, &key).await;
    let without = lab.operator("POST", "/v1/issuers/test/accounts", json!({ "key_pem": pem })).await;
    assert_eq!((without.0, &without.1["errors"][0]["code"]), (422, &json!("rsa_key")), "{}", without.1);
    let body = json!({ "key_pem": pem, "change_key": true });
    let adopted = lab.operator("POST", "/v1/issuers/test/accounts", body.clone()).await;
    assert_eq!((adopted.0, &adopted.1["registered"]), (201, &json!(true)), "{}", adopted.1);
    assert!(
        portico_control_plane::acme::RsaAccountKey::from_pem(&pem)
            .unwrap()
            .find(&ca_http(&lab.world))
            .await
            .is_err()
    );

    // As after a crash between the CA's answer and our note of it: the call is sent again.
    let mut tx = lab.begin().await;
    let lost = "UPDATE accounts SET state = 'intended', url = NULL WHERE origin = 'adopted'";
    sql::query(lost).execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    let again = lab.operator("POST", "/v1/issuers/test/accounts", body).await;
    assert_eq!((again.0, &again.1["url"]), (201, &adopted.1["url"]), "{}", again.1);
    let accounts = lab.rows("SELECT state FROM accounts WHERE origin = 'adopted'").await;
    assert_eq!(accounts, [["registered"]]);

    let stranger = pkcs8_pem(&PrivateKey::generate(KeyType::Rsa2048).unwrap());
    let body = json!({ "key_pem": stranger, "change_key": true });
    let refused = lab.operator("POST", "/v1/issuers/test/accounts", body).await;
    assert_eq!((refused.0, &refused.1["errors"][0]["code"]), (422, &json!("no_account")), "{}", refused.1);
}

/// newAccount signed by an RSA key, as other clients send it.
async fn register_rsa(world: &World, key: &PrivateKey) {
    use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
    use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
    use x509_parser::prelude::FromDer as _;
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let pair = RsaKeyPair::from_pkcs8(key.secret_der()).unwrap();
    let public = pair.public_key().as_ref().to_vec();
    let (_, parts) = x509_parser::public_key::RSAPublicKey::from_der(&public).unwrap();
    let digits = |bytes: &[u8]| encode(&bytes[bytes.iter().take_while(|byte| **byte == 0).count()..]);
    let jwk = json!({ "kty": "RSA", "n": digits(parts.modulus), "e": digits(parts.exponent) });
    let directory = https(world, "GET", &world.directory(), None).await.1;
    let directory: Value = serde_json::from_str(&directory).unwrap();
    for _ in 0..20 {
        let nonce = https(world, "HEAD", directory["newNonce"].as_str().unwrap(), None).await.2;
        let url = directory["newAccount"].as_str().unwrap();
        let protected =
            encode(json!({ "alg": "RS256", "jwk": jwk, "nonce": nonce, "url": url }).to_string().as_bytes());
        let payload = encode(json!({ "termsOfServiceAgreed": true }).to_string().as_bytes());
        let mut signature = vec![0; pair.public_modulus_len()];
        let random = aws_lc_rs::rand::SystemRandom::new();
        pair.sign(&RSA_PKCS1_SHA256, &random, format!("{protected}.{payload}").as_bytes(), &mut signature)
            .unwrap();
        let body = json!({ "protected": protected, "payload": payload, "signature": encode(&signature) });
        let (status, text, _) = https(world, "POST", url, Some(body.to_string())).await;
        if status == 201 {
            return;
        }
        // Pebble refuses some nonces on purpose.
        assert!(text.contains("badNonce"), "{status} {text}");
    }
    panic!("no account was made");
}

/// One exchange with the CA: status, body, nonce.
async fn https(world: &World, method: &str, url: &str, body: Option<String>) -> (u16, String, String) {
    use rustls_pki_types::pem::PemObject as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_file(world.path("api-ca.pem")).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let uri: http::Uri = url.parse().unwrap();
    let (host, port) = (uri.host().unwrap().to_owned(), uri.port_u16().unwrap());
    let tcp = tokio::net::TcpStream::connect((host.as_str(), port)).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut tls = connector.connect(host.clone().try_into().unwrap(), tcp).await.unwrap();
    let body = body.unwrap_or_default();
    let head = format!(
        "{method} {} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/jose+json\r\ncontent-length: {}\r\n\
         user-agent: another client\r\nconnection: close\r\n\r\n{body}",
        uri.path(),
        body.len()
    );
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // Go closes without close_notify.
    drop(tls.read_to_string(&mut answer).await);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let nonce = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("replay-nonce").then(|| value.trim().to_owned())
    });
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned(), nonce.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_with_an_rsa_key_gets_a_new_key_that_outlives_a_lost_answer() {
    let lab = Lab::start(&Options::default()).await;
    rsa_account_is_adopted(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pebble_changes_the_key_of_an_account_that_is_adopted() {
    let Some(lab) = Lab::try_start(&Options { pebble: true, ..Options::default() }).await else { return };
    rsa_account_is_adopted(&lab).await;
}

/// Pebble knows no renewal information, and takes the authorizations of the other client's account all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pebble_validates_nothing_when_an_adopted_certificate_is_renewed() {
    let options = Options { pebble: true, preflight: false, ..Options::default() };
    let Some(lab) = Lab::try_start(&options).await else { return };
    let client = Client::new(&lab.world).await;
    let got = client.order(&lab.world, &["old.test"], KeyType::EcdsaP256).await;
    let url = adopt_account(&lab, &client).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let mut body = adoption(&got, &["old.test"]);
    body["account"] = json!(url);
    assert_eq!(adopt(&lab, tenant, &body).await.0, 201);
    until_planned(&lab, 1).await;
    assert!(orders(&lab).await.is_empty());
    // Those of the later name.
    let answered = || lab.world.stand_in.answered.load(std::sync::atomic::Ordering::Relaxed);
    let before = answered();
    let mut tx = lab.begin().await;
    sql::query("UPDATE credentials SET renew_at = 0 WHERE adopted = 1").execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    until_replaced(&lab, "old.test", 1).await;
    assert_eq!(live(&lab, "old.test").await[0][1], url);
    assert_eq!(answered(), before, "no name was looked at");
}
