//! Certificates that tenants bring, over the API: what is taken, what is refused and where, how they go, and that no key is
//! ever to be read.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "set-up fails the test; deadlines are real time"
)]

mod stage;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use portico_cert_store::{CHAIN_LENGTH_MAX, EdgeId, KeyType, PrivateKey};
use portico_control_plane::limits::UPLOADED_BYTES_OF_TENANT_MAX;
use portico_control_plane::store::sql;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde_json::{Value, json};
use stage::{Reply, Stage, condition, spec, until};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// An intermediate, and what it issues; nobody is shown its root.
struct Ca {
    intermediate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// One certificate with its key, in PEM.
struct Brought {
    leaf: String,
    key: String,
}

fn pair(key_type: KeyType) -> KeyPair {
    let key = PrivateKey::generate(key_type).unwrap();
    let algorithm = match key_type {
        KeyType::Rsa2048 | KeyType::Rsa3072 | KeyType::Rsa4096 => &rcgen::PKCS_RSA_SHA256,
        KeyType::EcdsaP384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        KeyType::EcdsaP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        KeyType::Ed25519 => &rcgen::PKCS_ED25519,
    };
    let der = PrivatePkcs8KeyDer::from(key.secret_der().to_vec());
    KeyPair::from_pkcs8_der_and_sign_algo(&der, algorithm).unwrap()
}

fn authority(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters
}

impl Ca {
    fn new() -> Self {
        let (root_key, key) = (pair(KeyType::EcdsaP256), pair(KeyType::EcdsaP256));
        let root_parameters = authority("Own root");
        let parameters = authority("Own intermediate");
        let intermediate = parameters.signed_by(&key, &Issuer::new(root_parameters, root_key)).unwrap().pem();
        Self { intermediate, issuer: Issuer::new(parameters, key) }
    }

    /// Valid from yesterday on, for so many days from now.
    fn issue(&self, names: &[&str], key_type: KeyType, days: u64) -> Brought {
        self.certify(names, &pair(key_type), days)
    }

    fn certify(&self, names: &[&str], pair: &KeyPair, days: u64) -> Brought {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        let now = time::OffsetDateTime::now_utc();
        parameters.not_before = now - DAY;
        parameters.not_after = now + DAY * u32::try_from(days).unwrap();
        let leaf = parameters.signed_by(pair, &self.issuer).unwrap().pem();
        Brought { leaf, key: pair.serialize_pem() }
    }

    fn chain(&self, brought: &Brought) -> String {
        format!("{}{}", brought.leaf, self.intermediate)
    }

    fn body(&self, hostnames: &[&str], brought: &Brought) -> Value {
        json!({ "hostnames": hostnames, "chain_pem": self.chain(brought), "key_pem": brought.key, "private_ca": true })
    }
}

/// A tenant with a token, and proved domains of it.
async fn tenant(stage: &Stage, name: &str, hostnames: &[&str]) -> (String, String) {
    let (tenant, token) = stage.tenant(name).await;
    for hostname in hostnames {
        let domain = stage.domain(&tenant, hostname).await;
        attest(stage, &domain).await;
    }
    (tenant, token)
}

async fn attest(stage: &Stage, domain: &Value) {
    let body = json!({ "domain_ids": [domain["id"]], "note": "test" });
    let reply = stage.operator("POST", "/v1/domains/attest", body).await;
    assert_eq!(reply.body["results"][0]["status"], 200, "{}", reply.text);
}

async fn upload(stage: &Stage, tenant: &str, token: &str, body: &Value) -> Reply {
    let path = format!("/v1/tenants/{tenant}/certificates");
    stage.call("POST", &path, Some(token), &[], body.clone()).await
}

async fn taken(stage: &Stage, tenant: &str, token: &str, body: &Value) -> Value {
    let reply = upload(stage, tenant, token, body).await;
    assert_eq!(reply.status, 201, "{}", reply.text);
    reply.body["certificates"].clone()
}

fn id(certificate: &Value) -> String {
    certificate["credential_id"].as_str().unwrap().to_owned()
}

async fn domain(stage: &Stage, hostname: &str) -> Value {
    stage.operator("GET", &format!("/v1/domains/{hostname}"), Value::Null).await.body
}

async fn delete(stage: &Stage, token: &str, id: &str, query: &str) -> Reply {
    stage.call("DELETE", &format!("/v1/certificates/{id}{query}"), Some(token), &[], Value::Null).await
}

async fn events(stage: &Stage, token: &str) -> Vec<String> {
    let reply = stage.call("GET", "/v1/events?limit=500", Some(token), &[], Value::Null).await;
    reply.body["items"].as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap().to_owned()).collect()
}

/// The lengths of all sealed keys whose credential has this state.
async fn sealed(stage: &Stage, state: &str) -> Vec<i64> {
    let mut read = stage.running.parts.store.read().await.unwrap();
    sql::query_scalar("SELECT LENGTH(sealed_key) FROM credentials WHERE state = ?")
        .bind(state)
        .fetch_all(&mut read)
        .await
        .unwrap()
}

#[tokio::test]
async fn rsa_and_ecdsa_stand_side_by_side_are_replaced_by_their_kind_and_removed() {
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &["shop.example", "www.shop.example"]).await;
    let ca = Ca::new();
    let ecdsa = ca.issue(&["shop.example"], KeyType::EcdsaP256, 90);
    let first = taken(&stage, &one, &token, &ca.body(&["shop.example"], &ecdsa)).await;
    assert_eq!((&first[0]["custody"], &first[0]["key_type"]), (&json!("uploaded"), &json!("ecdsa-p256")));
    assert_eq!(first[0]["chain_pem"].as_str().unwrap().matches("BEGIN CERTIFICATE").count(), 2);
    let rsa = ca.issue(&["*.example", "shop.example"], KeyType::Rsa2048, 90);
    let second = taken(&stage, &one, &token, &ca.body(&["shop.example"], &rsa)).await;
    let shown = domain(&stage, "shop.example").await;
    assert_eq!(shown["certificates"].as_array().unwrap().len(), 2, "{shown}");
    assert_eq!(condition(&shown, "UploadedCertificate")["reason"], "Uploaded");
    assert_eq!(condition(&shown, "CertificateReady")["status"], "true");

    // The same again changes nothing.
    let again = upload(&stage, &one, &token, &ca.body(&["shop.example"], &rsa)).await;
    assert_eq!((again.status, &again.body["certificates"][0]), (200, &second[0]), "{}", again.text);

    // The next of its kind takes its place, in the same lineage, and the old key is forgotten.
    let next = ca.issue(&["shop.example"], KeyType::EcdsaP384, 120);
    let third = taken(&stage, &one, &token, &ca.body(&["shop.example"], &next)).await;
    assert_eq!(third[0]["lineage_id"], first[0]["lineage_id"]);
    let listed =
        stage.call("GET", "/v1/certificates?domain=shop.example", Some(&token), &[], Value::Null).await;
    let states: Vec<_> = listed.body["items"].as_array().unwrap().iter().map(|c| &c["state"]).collect();
    assert_eq!(states, ["replaced", "live", "live"], "{}", listed.text);
    assert_eq!(sealed(&stage, "replaced").await, [0]);
    assert!(sealed(&stage, "live").await.iter().all(|length| *length > 100));
}

#[tokio::test]
async fn one_for_more_names_takes_over_where_it_is_asked_to_and_goes_when_told() {
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &["shop.example", "www.shop.example"]).await;
    let ca = Ca::new();
    for kind in [KeyType::EcdsaP256, KeyType::Rsa2048] {
        let brought = ca.issue(&["shop.example"], kind, 90);
        taken(&stage, &one, &token, &ca.body(&["shop.example"], &brought)).await;
    }
    let both = ca.issue(&["shop.example", "www.shop.example"], KeyType::EcdsaP256, 200);
    taken(&stage, &one, &token, &ca.body(&["www.shop.example"], &both)).await;
    let wide = ca.issue(&["shop.example", "www.shop.example"], KeyType::EcdsaP256, 300);
    taken(&stage, &one, &token, &ca.body(&["www.shop.example", "shop.example"], &wide)).await;
    for hostname in ["shop.example", "www.shop.example"] {
        let certificates = domain(&stage, hostname).await["certificates"].clone();
        let kinds: Vec<_> = certificates.as_array().unwrap().iter().map(|c| c["key_type"].clone()).collect();
        let expected: &[&str] =
            if hostname == "shop.example" { &["ecdsa-p256", "rsa2048"] } else { &["ecdsa-p256"] };
        assert_eq!(kinds, expected, "{hostname}");
    }

    let last =
        delete(&stage, &token, &id(&domain(&stage, "www.shop.example").await["certificates"][0]), "").await;
    assert_eq!((last.status, &last.body["code"]), (409, &json!("only_certificate")), "{}", last.text);
    assert!(
        last.body["detail"].as_str().unwrap().contains("www.shop.example in cell default"),
        "{}",
        last.text
    );
    let rsa = id(&domain(&stage, "shop.example").await["certificates"][1]);
    assert_eq!(delete(&stage, &token, &rsa, "").await.status, 204);
    assert_eq!(delete(&stage, &token, &rsa, "").await.status, 204, "gone counts as removed");
    let wide = id(&domain(&stage, "shop.example").await["certificates"][0]);
    assert_eq!(delete(&stage, &token, &wide, "?leave_unserved=true").await.status, 204);
    assert_eq!(domain(&stage, "shop.example").await["certificates"], json!([]));
    assert_eq!(sealed(&stage, "live").await, [0_i64; 0]);
    assert!(sealed(&stage, "replaced").await.iter().all(|length| *length == 0));
    let events = events(&stage, &token).await;
    assert_eq!(events.iter().filter(|kind| *kind == "certificate.uploaded").count(), 4, "{events:?}");
    assert_eq!(events.iter().filter(|kind| *kind == "certificate.removed").count(), 2, "{events:?}");
    let audit = stage.operator("GET", "/v1/audit?limit=500", Value::Null).await;
    let entries = audit.body["items"].as_array().unwrap();
    let uploads: Vec<_> = entries.iter().filter(|entry| entry["action"] == "certificate.upload").collect();
    assert_eq!(uploads.len(), 4);
    assert_eq!(uploads[0]["after"]["hostnames"], json!(["shop.example"]));
    assert_eq!(entries.iter().filter(|entry| entry["action"] == "certificate.delete").count(), 2);
}

#[tokio::test]
async fn a_replaced_one_is_removed_without_its_successor() {
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &["shop.example"]).await;
    let ca = Ca::new();
    let mut made = Vec::new();
    for days in [90, 120] {
        let brought = ca.issue(&["shop.example"], KeyType::EcdsaP256, days);
        made.push(taken(&stage, &one, &token, &ca.body(&["shop.example"], &brought)).await[0].clone());
    }
    assert_eq!(made[0]["group_id"], made[1]["group_id"]);
    for query in ["", "?leave_unserved=true"] {
        let reply = delete(&stage, &token, &id(&made[0]), query).await;
        assert_eq!(reply.status, 204, "{}", reply.text);
    }
    let present = domain(&stage, "shop.example").await["certificates"].clone();
    assert_eq!(present.as_array().unwrap().iter().map(id).collect::<Vec<_>>(), [id(&made[1])]);
    assert!(sealed(&stage, "live").await.iter().all(|length| *length > 100));
    assert_eq!(sealed(&stage, "live").await.len(), 1);
    assert!(!events(&stage, &token).await.contains(&"certificate.removed".to_owned()));
    assert_eq!(delete(&stage, &token, &id(&made[1]), "?leave_unserved=true").await.status, 204);
    assert_eq!(sealed(&stage, "live").await, [0_i64; 0]);
}

#[tokio::test]
async fn a_tenants_uploads_take_no_more_than_their_bound() {
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &["shop.example", "www.shop.example"]).await;
    let ca = Ca::new();
    let body = |name: &str, days| {
        let brought = ca.issue(&[name], KeyType::EcdsaP256, days);
        ca.body(&[name], &brought)
    };
    taken(&stage, &one, &token, &body("shop.example", 90)).await;
    // As if it had been as large as all may be.
    let most = UPLOADED_BYTES_OF_TENANT_MAX.cast_signed();
    let mut tx = stage.running.parts.store.begin().await.unwrap();
    let filled =
        sql::query("UPDATE credentials SET stored_bytes = ?").bind(most).execute(&mut tx).await.unwrap();
    assert_eq!(filled.rows_affected(), 1);
    tx.commit().await.unwrap();
    let refused = upload(&stage, &one, &token, &body("www.shop.example", 90)).await;
    assert_eq!((refused.status, &refused.body["code"]), (409, &json!("uploads_full")), "{}", refused.text);
    let detail = refused.body["detail"].as_str().unwrap();
    assert!(detail.contains("tenant one") && detail.contains("portico cert rm"), "{detail}");
    assert_eq!(domain(&stage, "www.shop.example").await["certificates"], json!([]), "nothing of it is kept");
    // Its successor makes room, and what was replaced is forgotten before its time.
    taken(&stage, &one, &token, &body("shop.example", 120)).await;
    taken(&stage, &one, &token, &body("www.shop.example", 90)).await;
    assert_eq!(sealed(&stage, "replaced").await, [0_i64; 0]);
    // Another tenant's are not counted with them.
    let (two, other) = tenant(&stage, "two", &["other.example"]).await;
    taken(&stage, &two, &other, &body("other.example", 90)).await;
}

/// A pointer with its code.
type Named = (&'static str, &'static str);

#[tokio::test]
async fn what_is_wrong_with_an_upload_is_said_at_its_place() {
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &["shop.example"]).await;
    tenant(&stage, "two", &["other.example"]).await;
    stage.domain(&one, "unproved.example").await;
    let ca = Ca::new();
    let names = ["shop.example", "other.example", "unproved.example", "nobody.example"];
    let good = ca.issue(&names, KeyType::EcdsaP256, 90);
    let body = |change: &dyn Fn(&mut Value)| {
        let mut body = ca.body(&["shop.example"], &good);
        change(&mut body);
        body
    };
    let of = |hostnames: &[&str]| body(&|body| body["hostnames"] = json!(hostnames));
    let other_key = ca.issue(&["shop.example"], KeyType::EcdsaP256, 90).key;
    let reversed = format!("{}{}", ca.intermediate, good.leaf);
    let many: Vec<String> = (0..101).map(|n| format!("n{n}.example")).collect();
    let table: Vec<(&str, Value, &[Named])> = vec![
        ("no hostname", of(&[]), &[("/hostnames", "out_of_range")]),
        ("101", body(&|body| body["hostnames"] = json!(many)), &[("/hostnames", "out_of_range")]),
        ("no name", of(&["a b"]), &[("/hostnames/0", "domain_name_invalid")]),
        ("twice", of(&["shop.example", "SHOP.example."]), &[("/hostnames/1", "duplicate")]),
        (
            "each of them by itself",
            of(&["shop.example", "nobody.example", "other.example", "unproved.example"]),
            &[
                ("/hostnames/1", "unknown_domain"),
                ("/hostnames/2", "unknown_domain"),
                ("/hostnames/3", "not_proved"),
            ],
        ),
        ("untrusted", body(&|body| body["private_ca"] = json!(false)), &[("/chain_pem", "untrusted")]),
        ("reversed", body(&|body| body["chain_pem"] = json!(reversed)), &[("/chain_pem", "wrong_order")]),
        (
            "key and chain",
            body(&|body| {
                body["chain_pem"] = json!("x");
                body["key_pem"] = json!("x");
            }),
            &[("/chain_pem", "not_pem"), ("/key_pem", "not_pem")],
        ),
        ("another key", body(&|body| body["key_pem"] = json!(other_key)), &[("/key_pem", "key_mismatch")]),
        (
            "a key in the chain",
            body(&|body| body["chain_pem"] = json!(format!("{}{}", ca.chain(&good), good.key))),
            &[("/chain_pem", "key_in_chain")],
        ),
        ("a field too many", body(&|body| body["chain"] = json!("x")), &[("/chain", "unknown_field")]),
        (
            "a key as a name",
            body(&|body| body["hostnames"] = json!(good.key)),
            &[("/hostnames", "invalid_value")],
        ),
        ("a key as a field", body(&|body| body[good.key.as_str()] = json!(1)), &[("", "unknown_field")]),
    ];
    for (case, body, expected) in table {
        let reply = upload(&stage, &one, &token, &body).await;
        assert_eq!(reply.status, 422, "{case}: {}", reply.text);
        let errors = reply.body["errors"].as_array().unwrap();
        let found: Vec<_> =
            errors.iter().map(|e| (e["pointer"].as_str().unwrap(), e["code"].as_str().unwrap())).collect();
        assert_eq!(found, expected, "{case}: {}", reply.text);
        assert!(errors.iter().all(|e| !e["message"].as_str().unwrap().is_empty()), "{case}");
        assert!(!shows(&reply.text, &good.key), "{case}: {}", reply.text);
    }
    assert_eq!(domain(&stage, "shop.example").await["certificates"], json!([]));
}

#[tokio::test]
async fn a_chain_that_edges_would_refuse_is_refused_at_once() {
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &["shop.example"]).await;
    let ca = Ca::new();
    let good = ca.issue(&["shop.example"], KeyType::EcdsaP256, 90);
    let mut body = ca.body(&["shop.example"], &good);
    for (intermediates, code) in [
        (CHAIN_LENGTH_MAX, "too_many"),
        (CHAIN_LENGTH_MAX - 1, "duplicate_certificate"),
        (2, "duplicate_certificate"),
    ] {
        body["chain_pem"] = json!(good.leaf.clone() + &ca.intermediate.repeat(intermediates));
        let reply = upload(&stage, &one, &token, &body).await;
        let error = &reply.body["errors"][0];
        assert_eq!((reply.status, &error["pointer"]), (422, &json!("/chain_pem")), "{}", reply.text);
        assert_eq!(error["code"], code, "{}", reply.text);
    }
    assert_eq!(domain(&stage, "shop.example").await["certificates"], json!([]));
}

#[tokio::test]
async fn names_that_are_not_on_it_better_ones_and_other_tenants_are_left_alone() {
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &["shop.example"]).await;
    let (_, stranger) = stage.tenant("two").await;
    let ca = Ca::new();
    let good = ca.issue(&["shop.example"], KeyType::EcdsaP256, 90);
    let not_covered = ca.issue(&["www.shop.example"], KeyType::EcdsaP256, 90);
    let reply = upload(&stage, &one, &token, &ca.body(&["shop.example"], &not_covered)).await;
    assert_eq!((reply.status, &reply.body["errors"][0]["code"]), (422, &json!("name_not_covered")));
    assert!(reply.body["errors"][0]["message"].as_str().unwrap().contains("www.shop.example"));

    let present = taken(&stage, &one, &token, &ca.body(&["shop.example"], &good)).await;
    let shorter = ca.issue(&["shop.example"], KeyType::EcdsaP256, 30);
    let mut body = ca.body(&["shop.example"], &shorter);
    let reply = upload(&stage, &one, &token, &body).await;
    assert_eq!(
        (reply.status, &reply.body["errors"][0]["code"]),
        (422, &json!("ends_earlier")),
        "{}",
        reply.text
    );
    assert_eq!(id(&domain(&stage, "shop.example").await["certificates"][0]), id(&present[0]));
    body["replace_longer"] = json!(true);
    taken(&stage, &one, &token, &body).await;

    // Another tenant's certificate is not there.
    let mine = id(&domain(&stage, "shop.example").await["certificates"][0]);
    assert_eq!(delete(&stage, &stranger, &mine, "?leave_unserved=true").await.status, 404);
    assert_eq!(upload(&stage, &one, &stranger, &body).await.status, 404);
    let unknown = format!("crd_{}", "0".repeat(26));
    assert_eq!(delete(&stage, &token, &unknown, "").await.status, 404);
}

/// All that is logged in this process, at every level, by the other tests too.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_key_is_in_no_log_answer_audit_row_event_or_file() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &["shop.example"]).await;
    let ca = Ca::new();
    let mut answers = String::new();
    let mut keys = Vec::new();
    for kind in [KeyType::EcdsaP256, KeyType::Rsa2048] {
        let brought = ca.issue(&["shop.example"], kind, 90);
        let good = ca.body(&["shop.example"], &brought);
        let path = format!("/v1/tenants/{one}/certificates");
        let headers = [("idempotency-key", "k"), ("content-type", "application/json")];
        let mut bad = good.clone();
        bad["chain_pem"] = json!(brought.key);
        answers += &upload(&stage, &one, &token, &bad).await.text;
        let broken = good.to_string()[1..].replace('"', "");
        answers += &stage.raw("POST", &path, Some(&token), &headers[1..], broken.into_bytes()).await.text;
        let cut = good.to_string();
        let cut = cut[..cut.len() - 40].to_owned();
        answers += &stage.raw("POST", &path, Some(&token), &headers[1..], cut.into_bytes()).await.text;
        let key_of_kind = format!("k-{kind:?}");
        let headers = [("idempotency-key", key_of_kind.as_str())];
        let made = stage.call("POST", &path, Some(&token), &headers, good.clone()).await;
        assert_eq!(made.status, 201, "{}", made.text);
        let replayed = stage.call("POST", &path, Some(&token), &headers, good).await;
        assert_eq!(replayed.headers["idempotency-replayed"], "true");
        answers += &(made.text + &replayed.text);
        keys.push(brought.key);
    }
    for path in ["/v1/audit?limit=500", "/v1/events?limit=500", "/v1/certificates", "/v1/domains", "/metrics"]
    {
        answers += &stage.operator("GET", path, Value::Null).await.text;
    }
    assert!(answers.contains("certificate.upload"));
    let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(logged.contains("INSERT INTO credentials"), "the log has every statement");
    let folder = stage.data();
    for key in &keys {
        assert!(!shows(&answers, key), "an answer shows a key");
        assert!(!shows(&logged, key), "the log shows a key");
        let mut files = 0;
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let bytes = std::fs::read(entry.path()).unwrap_or_default();
            assert!(!shows(&String::from_utf8_lossy(&bytes), key), "{} shows a key", entry.path().display());
            let secret = secret_bytes(key);
            assert!(
                !bytes.windows(secret.len()).any(|w| w == secret),
                "{} holds a key",
                entry.path().display()
            );
            files += 1;
        }
        assert!(files > 1, "the database is read");
    }
}

/// Whether a text shows a part of a key's PEM that holds secret bytes.
fn shows(text: &str, key: &str) -> bool {
    let lines: Vec<&str> = key.lines().filter(|line| line.len() == 64 && !line.starts_with('-')).collect();
    let secret = if lines.len() > 4 { &lines[lines.len() / 2..] } else { &lines[..1] };
    secret.iter().any(|line| text.contains(&line[44..]))
}

fn secret_bytes(key: &str) -> Vec<u8> {
    let der = PrivateKey::from_pem(key.as_bytes()).unwrap().secret_der().to_vec();
    let at = if der.len() > 500 { der.len() / 2 } else { 36 };
    der[at..at + 24].to_vec()
}

#[tokio::test]
async fn each_cell_of_a_name_gets_its_own_sealed_copy_and_no_other_does() {
    let stage = Stage::start().await;
    for cell in ["a", "b"] {
        let made = stage.operator("POST", "/v1/edges/join-tokens", json!({ "cell": cell })).await;
        assert_eq!(made.status, 201, "{}", made.text);
    }
    let (one, token) = tenant(&stage, "one", &[]).await;
    for (hostname, cells) in [("shop.example", vec!["a", "b"]), ("www.shop.example", vec!["b"])] {
        let mut spec = spec(hostname);
        spec["cells"] = json!(cells);
        let made = stage.operator("POST", &format!("/v1/tenants/{one}/domains"), spec).await;
        assert_eq!(made.status, 201, "{}", made.text);
        attest(&stage, &made.body).await;
    }
    let ca = Ca::new();
    let both = ca.issue(&["shop.example", "www.shop.example"], KeyType::Rsa2048, 90);
    let made = taken(&stage, &one, &token, &ca.body(&["shop.example", "www.shop.example"], &both)).await;
    let cells: Vec<_> = made.as_array().unwrap().iter().map(|c| c["cell"].as_str().unwrap()).collect();
    assert_eq!(cells, ["a", "b"]);
    let copies: Vec<Vec<u8>> = {
        let mut read = stage.running.parts.store.read().await.unwrap();
        sql::query_scalar("SELECT sealed_key FROM credentials").fetch_all(&mut read).await.unwrap()
    };
    assert_ne!(copies[0], copies[1], "each cell has its own key");
    assert_eq!(domain(&stage, "www.shop.example").await["certificates"].as_array().unwrap().len(), 1);

    // The name leaves cell a, and the key with it; in a cell that comes later it is not.
    let patched = |cells: Value| {
        let stage = &stage;
        async move {
            let headers = [("if-match", "*")];
            let path = "/v1/domains/shop.example";
            let body = json!({ "cells": cells });
            let reply = stage.call("PATCH", path, Some(&stage.operator), &headers, body).await;
            assert_eq!(reply.status, 200, "{}", reply.text);
        }
    };
    patched(json!(["b"])).await;
    until(|| sealed(&stage, "replaced"), |lengths| lengths == &[0]).await;
    let shown = domain(&stage, "shop.example").await;
    assert_eq!(
        (shown["certificates"].as_array().unwrap().len(), &shown["certificates"][0]["cell"]),
        (1, &json!("b"))
    );
    patched(json!(["a", "b"])).await;
    let shown = domain(&stage, "shop.example").await;
    let found = condition(&shown, "UploadedCertificate");
    assert_eq!((&found["status"], &found["reason"]), (&json!("false"), &json!("NotInCell")), "{found}");
    let again = upload(&stage, &one, &token, &ca.body(&["shop.example"], &both)).await;
    assert_eq!(again.status, 201, "the key is brought for the new cell: {}", again.text);
    assert_eq!(condition(&domain(&stage, "shop.example").await, "UploadedCertificate")["reason"], "Uploaded");

    // With the last of its names it goes altogether.
    for hostname in ["shop.example", "www.shop.example"] {
        let path = format!("/v1/domains/{hostname}");
        let reply = stage.call("DELETE", &path, Some(&token), &[("if-match", "*")], Value::Null).await;
        assert_eq!(reply.status, 204, "{}", reply.text);
    }
    until(|| sealed(&stage, "live"), Vec::is_empty).await;
    assert!(sealed(&stage, "replaced").await.iter().all(|length| *length == 0));
    until(|| events(&stage, &token), |events| events.iter().any(|kind| kind == "certificate.removed")).await;
}

#[tokio::test]
async fn a_key_that_a_removed_edge_could_read_is_to_be_replaced_by_its_tenant() {
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &["shop.example"]).await;
    let (ca, key) = (Ca::new(), pair(KeyType::EcdsaP256));
    let body = |key: &KeyPair, days| ca.body(&["shop.example"], &ca.certify(&["shop.example"], key, days));
    taken(&stage, &one, &token, &body(&key, 90)).await;
    let served = body(&key, 100);
    taken(&stage, &one, &token, &served).await;
    let edge = EdgeId::generate().to_string();
    let mut tx = stage.running.parts.store.begin().await.unwrap();
    sql::query(
        "INSERT INTO edges (id, cell, hpke_public_key, certificate_serial, identity_not_after, joined_at) \
         VALUES (?, 'default', x'00', '1', 0, 0)",
    )
    .bind(&edge)
    .execute(&mut tx)
    .await
    .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(stage.operator("DELETE", &format!("/v1/edges/{edge}"), Value::Null).await.status, 204);
    let told = events(&stage, &token).await;
    assert!(told.contains(&"certificate.key_exposed".to_owned()), "{told:?}");
    assert!(!told.contains(&"certificate.ends_soon".to_owned()), "{told:?}");
    // What is there is sealed under a key that the edge has. Sealed anew it would be no other key.
    let mut without_key = body(&key, 120);
    without_key.as_object_mut().unwrap().remove("key_pem");
    let renewed = body(&key, 110);
    let refusals = [("/key_pem", &served), ("/key_pem", &renewed), ("/chain_pem", &without_key)];
    for (pointer, body) in refusals {
        let reply = upload(&stage, &one, &token, body).await;
        let error = &reply.body["errors"][0];
        let found = (reply.status, &error["pointer"], &error["code"]);
        assert_eq!(found, (422, &json!(pointer), &json!("key_exposed")), "{}", reply.text);
    }
    // It is left, also when all that can be done without its tenant is.
    let mut tx = stage.running.parts.store.begin().await.unwrap();
    sql::query("UPDATE rekeys SET finished_at = 1").execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    let left = || async {
        let rekeys = stage.operator("GET", "/v1/rekeys", Value::Null).await;
        assert!(rekeys.body["items"][0]["finished_at"].is_string(), "{}", rekeys.text);
        rekeys.body["items"][0]["uploaded"].clone()
    };
    assert_eq!(left().await, 1);
    let new = body(&pair(KeyType::EcdsaP256), 130);
    taken(&stage, &one, &token, &new).await;
    assert_eq!(left().await, 0);
    assert_eq!(upload(&stage, &one, &token, &new).await.status, 200);
    assert_eq!(upload(&stage, &one, &token, &body(&key, 140)).await.status, 422, "nor afterwards");
}

/// P5: no tenant is served with a key that another has.
#[tokio::test]
async fn a_key_that_another_tenant_is_served_with_is_not_taken() {
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &["shop.example"]).await;
    let (two, other) = tenant(&stage, "two", &["rose.example"]).await;
    let ca = Ca::new();
    let both = ca.issue(&["shop.example", "rose.example"], KeyType::EcdsaP256, 90);
    let first = taken(&stage, &one, &token, &ca.body(&["shop.example"], &both)).await;
    let refused = upload(&stage, &two, &other, &ca.body(&["rose.example"], &both)).await;
    let error = &refused.body["errors"][0];
    assert_eq!((refused.status, &error["code"]), (422, &json!("key_of_another")), "{}", refused.text);
    assert!(!refused.text.contains(&one), "it is not told whose: {}", refused.text);
    assert_eq!(domain(&stage, "rose.example").await["certificates"], json!([]));
    assert_eq!(upload(&stage, &one, &token, &ca.body(&["shop.example"], &both)).await.status, 200);
    assert_eq!(delete(&stage, &token, &id(&first[0]), "?leave_unserved=true").await.status, 204);
    taken(&stage, &two, &other, &ca.body(&["rose.example"], &both)).await;
}

#[tokio::test]
async fn nothing_is_left_in_the_end_of_what_was_removed() {
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &["shop.example"]).await;
    let ca = Ca::new();
    let mut made = Vec::new();
    for days in [90, 120] {
        let brought = ca.issue(&["shop.example"], KeyType::EcdsaP256, days);
        made.push(taken(&stage, &one, &token, &ca.body(&["shop.example"], &brought)).await[0].clone());
        if days == 90 {
            assert_eq!(delete(&stage, &token, &id(&made[0]), "?leave_unserved=true").await.status, 204);
        }
    }
    let groups = || async {
        let mut read = stage.running.parts.store.read().await.unwrap();
        let found: Vec<String> = sql::query_scalar(
            "SELECT id FROM groups WHERE id IN (SELECT group_id FROM lineages WHERE custody = 'uploaded') OR id IN (?, ?)",
        )
        .bind(made[0]["group_id"].as_str())
        .bind(made[1]["group_id"].as_str())
        .fetch_all(&mut read)
        .await
        .unwrap();
        found
    };
    assert_eq!(groups().await.len(), 2);
    stage.clock.advance(DAY * 31);
    until(groups, |groups| groups.len() == 1).await;
    assert_eq!(groups().await, [made[1]["group_id"].as_str().unwrap()]);
    assert_eq!(id(&domain(&stage, "shop.example").await["certificates"][0]), id(&made[1]));
    assert_eq!(delete(&stage, &token, &id(&made[0]), "").await.status, 404);
}

#[tokio::test]
async fn its_tenant_hears_in_time_that_it_ends() {
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &["shop.example"]).await;
    let ca = Ca::new();
    let brought = ca.issue(&["shop.example"], KeyType::EcdsaP256, 90);
    taken(&stage, &one, &token, &ca.body(&["shop.example"], &brought)).await;
    let told = |kind: &'static str, times: usize| {
        let (stage, token) = (&stage, &token);
        async move {
            let count = |events: &Vec<String>| events.iter().filter(|found| *found == kind).count() == times;
            until(|| events(stage, token), count).await;
            domain(stage, "shop.example").await
        }
    };
    stage.clock.advance(DAY * 30);
    assert_eq!(condition(&domain(&stage, "shop.example").await, "UploadedCertificate")["reason"], "Uploaded");
    stage.clock.advance(DAY * 32);
    let shown = told("certificate.ends_soon", 1).await;
    let found = condition(&shown, "UploadedCertificate");
    assert_eq!((&found["status"], &found["reason"]), (&json!("true"), &json!("EndsSoon")), "{found}");
    stage.clock.advance(DAY * 24);
    told("certificate.ends_soon", 2).await;
    stage.clock.advance(DAY * 5);
    let shown = told("certificate.expired", 1).await;
    assert_eq!(condition(&shown, "UploadedCertificate")["reason"], "Expired");
    assert_eq!(condition(&shown, "CertificateReady")["status"], "false");
    let events = events(&stage, &token).await;
    assert_eq!(
        events.iter().filter(|kind| kind.starts_with("certificate.e")).count(),
        3,
        "each once: {events:?}"
    );
}

#[tokio::test]
async fn a_key_that_was_reported_compromised_is_never_accepted_again() {
    let stage = Stage::start().await;
    let (tenant_id, token) = tenant(&stage, "roses", &["rose.test"]).await;
    let ca = Ca::new();
    let brought = ca.issue(&["rose.test"], KeyType::EcdsaP256, 90);
    let certificates = taken(&stage, &tenant_id, &token, &ca.body(&["rose.test"], &brought)).await;
    let report = json!({ "spki_sha256": certificates[0]["spki_sha256"], "compromised": true });
    let reply = stage.operator("POST", "/v1/rekeys", report).await;
    assert_eq!(reply.status, 201, "{}", reply.text);
    assert!(events(&stage, &token).await.contains(&"certificate.key_compromised".to_owned()));
    // It is all that the name has: nobody takes the site down.
    assert_eq!(domain(&stage, "rose.test").await["certificates"].as_array().unwrap().len(), 1);
    let reply = upload(&stage, &tenant_id, &token, &ca.body(&["rose.test"], &brought)).await;
    assert_eq!((reply.status, &reply.body["errors"][0]["code"]), (422, &json!("key_compromised")));
    let other = ca.issue(&["rose.test"], KeyType::EcdsaP256, 91);
    taken(&stage, &tenant_id, &token, &ca.body(&["rose.test"], &other)).await;
}
