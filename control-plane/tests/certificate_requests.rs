//! Keys that are made here for certificates which tenants order themselves, over the API: whose names, how many, for how long, and
//! that a certificate without its key finds the right one or none.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "set-up fails the test; deadlines are real time"
)]

mod stage;

use std::time::Duration;

use portico_control_plane::limits::{CERTIFICATE_REQUEST_LASTS_MS, CERTIFICATE_REQUESTS_OF_TENANT_MAX};
use portico_control_plane::store::sql;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData, SignatureAlgorithm};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use stage::{Reply, Stage, until};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The public key of a request.
struct RequestKey {
    algorithm: &'static SignatureAlgorithm,
    raw: Vec<u8>,
}

impl PublicKeyData for RequestKey {
    fn der_bytes(&self) -> &[u8] {
        &self.raw
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

/// The tenant's CA, which knows requests alone.
struct Ca(Issuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(Issuer::new(parameters, KeyPair::generate().unwrap()))
    }

    /// Signs what a request asks for, valid for so many days.
    fn sign(&self, csr_pem: &str, days: u32) -> String {
        let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes()).unwrap();
        let (rest, csr) = X509CertificationRequest::from_der(&der).unwrap();
        assert!(rest.is_empty());
        csr.verify_signature().expect("whoever asks has the key");
        assert_eq!(csr.certification_request_info.subject.iter().count(), 0, "CAs read the names only");
        let spki = &csr.certification_request_info.subject_pki;
        let raw = spki.subject_public_key.data.to_vec();
        let algorithm = match spki.algorithm.algorithm.to_id_string().as_str() {
            "1.2.840.113549.1.1.1" => &rcgen::PKCS_RSA_SHA256,
            _ => &rcgen::PKCS_ECDSA_P256_SHA256,
        };
        let mut names = Vec::new();
        for extension in csr.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(found) = extension else { continue };
            for name in &found.general_names {
                let GeneralName::DNSName(name) = name else { panic!("{name}") };
                names.push((*name).to_owned());
            }
        }
        self.issue(names, &RequestKey { algorithm, raw }, days)
    }

    fn issue(&self, names: Vec<String>, key: &impl PublicKeyData, days: u32) -> String {
        let mut parameters = CertificateParams::new(names).unwrap();
        let now = time::OffsetDateTime::now_utc();
        (parameters.not_before, parameters.not_after) = (now - DAY, now + DAY * days);
        parameters.signed_by(key, &self.0).unwrap().pem()
    }
}

async fn tenant(stage: &Stage, name: &str, hostnames: &[&str]) -> (String, String) {
    let (tenant, token) = stage.tenant(name).await;
    for hostname in hostnames {
        let domain = stage.domain(&tenant, hostname).await;
        let body = json!({ "domain_ids": [domain["id"]], "note": "test" });
        assert_eq!(stage.operator("POST", "/v1/domains/attest", body).await.status, 200);
    }
    (tenant, token)
}

async fn request(stage: &Stage, tenant: &str, token: &str, body: Value) -> Reply {
    let path = format!("/v1/tenants/{tenant}/certificate-requests");
    stage.call("POST", &path, Some(token), &[], body).await
}

async fn made(stage: &Stage, tenant: &str, token: &str, hostnames: &[&str]) -> Value {
    let reply = request(stage, tenant, token, json!({ "hostnames": hostnames })).await;
    assert_eq!(reply.status, 201, "{}", reply.text);
    reply.body
}

async fn upload(stage: &Stage, tenant: &str, token: &str, hostnames: &[&str], chain: &str) -> Reply {
    let body = json!({ "hostnames": hostnames, "chain_pem": chain, "private_ca": true });
    stage.call("POST", &format!("/v1/tenants/{tenant}/certificates"), Some(token), &[], body).await
}

async fn waiting(stage: &Stage, tenant: &str, token: &str) -> Vec<Value> {
    let path = format!("/v1/tenants/{tenant}/certificate-requests");
    let reply = stage.call("GET", &path, Some(token), &[], Value::Null).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.body["items"].as_array().unwrap().clone()
}

/// Keys that are stored in requests.
async fn keys(stage: &Stage) -> i64 {
    let mut read = stage.running.parts.store.read().await.unwrap();
    sql::query_scalar("SELECT COUNT(*) FROM certificate_requests").fetch_one(&mut read).await.unwrap()
}

async fn actions(stage: &Stage) -> Vec<String> {
    let audit = stage.operator("GET", "/v1/audit?limit=500", Value::Null).await;
    let all = audit.body["items"].as_array().unwrap();
    let of_requests = |entry: &&Value| entry["action"].as_str().unwrap().starts_with("certificate_request.");
    all.iter().filter(of_requests).map(|entry| entry["action"].as_str().unwrap().to_owned()).collect()
}

fn refusal(reply: &Reply) -> (u16, String, String) {
    let word = |name: &str| reply.body["errors"][0][name].as_str().unwrap_or_default().to_owned();
    (reply.status, word("pointer"), word("code"))
}

#[tokio::test]
async fn a_certificate_for_a_key_that_was_made_here_is_served_and_renewed_without_any_key_being_sent() {
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &["shop.example", "www.shop.example"]).await;
    let ca = Ca::new();
    let both = ["shop.example", "www.shop.example"];
    let asked = made(&stage, &one, &token, &both).await;
    assert!(!asked.to_string().contains("PRIVATE KEY"), "{asked}");
    // The same again is the one that waits; another kind of key is another.
    let again =
        request(&stage, &one, &token, json!({ "hostnames": ["www.shop.example", "shop.example"] })).await;
    assert_eq!((again.status, &again.body), (200, &asked), "{}", again.text);
    let rsa = request(&stage, &one, &token, json!({ "hostnames": both, "key_type": "rsa2048" })).await;
    assert_eq!((rsa.status, &rsa.body["key_type"]), (201, &json!("rsa2048")), "{}", rsa.text);
    assert_eq!(waiting(&stage, &one, &token).await.len(), 2);

    let chain = ca.sign(asked["csr_pem"].as_str().unwrap(), 90);
    let first = upload(&stage, &one, &token, &["shop.example"], &chain).await;
    assert_eq!(first.status, 201, "{}", first.text);
    let served = &first.body["certificates"][0];
    assert_eq!((&served["custody"], &served["spki_sha256"]), (&json!("uploaded"), &asked["spki_sha256"]));
    assert_eq!(waiting(&stage, &one, &token).await.len(), 1, "its request is over");

    // For another name of it, then a renewal by the same request: the key is the one in service.
    let second = upload(&stage, &one, &token, &both, &chain).await;
    assert_eq!(second.status, 201, "{}", second.text);
    let renewed = ca.sign(asked["csr_pem"].as_str().unwrap(), 120);
    let third = upload(&stage, &one, &token, &both, &renewed).await;
    assert_eq!(third.status, 201, "{}", third.text);
    assert_eq!(third.body["certificates"][0]["spki_sha256"], asked["spki_sha256"]);
    assert_eq!(upload(&stage, &one, &token, &both, &renewed).await.status, 200);
    let other =
        upload(&stage, &one, &token, &both, &ca.sign(rsa.body["csr_pem"].as_str().unwrap(), 90)).await;
    assert_eq!(other.status, 201, "{}", other.text);
    let create = "certificate_request.create";
    let complete = "certificate_request.complete";
    assert_eq!(actions(&stage).await, [create, create, complete, complete]);
    assert_eq!(keys(&stage).await, 0);

    // What was removed has no key any more.
    for certificate in [&third.body["certificates"][0], &other.body["certificates"][0]] {
        let path = format!(
            "/v1/certificates/{}?leave_unserved=true",
            certificate["credential_id"].as_str().unwrap()
        );
        assert_eq!(stage.call("DELETE", &path, Some(&token), &[], Value::Null).await.status, 204);
    }
    let reply = upload(&stage, &one, &token, &both, &renewed).await;
    assert_eq!(refusal(&reply), (422, "/key_pem".to_owned(), "unknown_key".to_owned()), "{}", reply.text);
}

#[tokio::test]
async fn names_of_others_and_nonsense_get_no_key() {
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &["shop.example"]).await;
    let (two, stranger) = tenant(&stage, "two", &["other.example"]).await;
    let many: Vec<String> = (0..101).map(|at| format!("a{at}.shop.example")).collect();
    for (case, body, pointer, code) in [
        (
            "another's",
            json!({ "hostnames": ["shop.example", "other.example"] }),
            "/hostnames/1",
            "unknown_domain",
        ),
        ("nobody's", json!({ "hostnames": ["nobody.example"] }), "/hostnames/0", "unknown_domain"),
        ("none", json!({ "hostnames": [] }), "/hostnames", "out_of_range"),
        ("too many", json!({ "hostnames": many }), "/hostnames", "out_of_range"),
        ("no name", json!({ "hostnames": ["a b"] }), "/hostnames/0", "domain_name_invalid"),
        ("twice", json!({ "hostnames": ["shop.example", "SHOP.example."] }), "/hostnames/1", "duplicate"),
        (
            "a kind",
            json!({ "hostnames": ["shop.example"], "key_type": "ed25519" }),
            "/key_type",
            "key_unsupported",
        ),
        (
            "no kind",
            json!({ "hostnames": ["shop.example"], "key_type": "dsa" }),
            "/key_type",
            "invalid_value",
        ),
        ("a field", json!({ "hostnames": ["shop.example"], "names": [] }), "/names", "unknown_field"),
    ] {
        let reply = request(&stage, &one, &token, body).await;
        assert_eq!(refusal(&reply), (422, pointer.to_owned(), code.to_owned()), "{case}: {}", reply.text);
    }
    assert_eq!(request(&stage, &one, &stranger, json!({ "hostnames": ["shop.example"] })).await.status, 404);

    // A request, and the key of a certificate in service, are there for their tenant alone.
    let asked = made(&stage, &one, &token, &["shop.example"]).await;
    let path = format!("/v1/certificate-requests/{}", asked["id"].as_str().unwrap());
    for method in ["GET", "DELETE"] {
        assert_eq!(
            stage.call(method, &path, Some(&stranger), &[], Value::Null).await.status,
            404,
            "{method}"
        );
    }
    let shown = stage.call("GET", &path, Some(&token), &[], Value::Null).await;
    assert_eq!((shown.status, &shown.body), (200, &asked));
    let list = format!("/v1/tenants/{one}/certificate-requests");
    assert_eq!(stage.call("GET", &list, Some(&stranger), &[], Value::Null).await.status, 404);
    let chain = Ca::new().sign(asked["csr_pem"].as_str().unwrap(), 90);
    for _ in 0..2 {
        let reply = upload(&stage, &two, &stranger, &["other.example"], &chain).await;
        assert_eq!(refusal(&reply), (422, "/key_pem".to_owned(), "unknown_key".to_owned()), "{}", reply.text);
        assert!(reply.text.contains("shadow csr"), "what to do next: {}", reply.text);
        assert_ne!(upload(&stage, &one, &token, &["shop.example"], &chain).await.status, 422);
    }
}

#[tokio::test]
async fn a_certificate_without_a_key_meets_every_check_of_one_with_it() {
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &["shop.example"]).await;
    stage.domain(&one, "unproved.example").await;
    let ca = Ca::new();
    // A name that is claimed may be asked for; it is served when it is proved.
    let asked = made(&stage, &one, &token, &["shop.example", "unproved.example"]).await;
    let csr = asked["csr_pem"].as_str().unwrap();
    let chain = ca.sign(csr, 90);
    let reply = upload(&stage, &one, &token, &["unproved.example"], &chain).await;
    assert_eq!(refusal(&reply), (422, "/hostnames/0".to_owned(), "not_proved".to_owned()), "{}", reply.text);
    let stranger = ca.issue(vec!["shop.example".to_owned()], &KeyPair::generate().unwrap(), 90);
    for (case, chain, pointer, code) in [
        ("another key", stranger.as_str(), "/key_pem", "unknown_key"),
        ("no chain", "x", "/chain_pem", "not_pem"),
        ("the request itself", csr, "/chain_pem", "not_pem"),
    ] {
        let reply = upload(&stage, &one, &token, &["shop.example"], chain).await;
        assert_eq!(refusal(&reply), (422, pointer.to_owned(), code.to_owned()), "{case}: {}", reply.text);
    }
    let body = json!({ "hostnames": ["shop.example"], "chain_pem": chain });
    let path = format!("/v1/tenants/{one}/certificates");
    let untrusted = stage.call("POST", &path, Some(&token), &[], body).await;
    assert_eq!(refusal(&untrusted), (422, "/chain_pem".to_owned(), "untrusted".to_owned()));
    assert_eq!(waiting(&stage, &one, &token).await.len(), 1, "what was refused has not used it up");

    // Reported compromised, before or after it serves.
    let report = json!({ "spki_sha256": asked["spki_sha256"], "compromised": true });
    assert_eq!(upload(&stage, &one, &token, &["shop.example"], &chain).await.status, 201);
    assert_eq!(stage.operator("POST", "/v1/rekeys", report).await.status, 201);
    let reply = upload(&stage, &one, &token, &["shop.example"], &ca.sign(csr, 120)).await;
    assert_eq!(
        refusal(&reply),
        (422, "/chain_pem".to_owned(), "key_compromised".to_owned()),
        "{}",
        reply.text
    );
    let next = made(&stage, &one, &token, &["shop.example"]).await;
    let report = json!({ "spki_sha256": next["spki_sha256"], "compromised": true });
    assert_eq!(stage.operator("POST", "/v1/rekeys", report).await.status, 201);
    let chain = ca.sign(next["csr_pem"].as_str().unwrap(), 120);
    let reply = upload(&stage, &one, &token, &["shop.example"], &chain).await;
    assert_eq!(
        refusal(&reply),
        (422, "/chain_pem".to_owned(), "key_compromised".to_owned()),
        "{}",
        reply.text
    );
}

#[tokio::test]
async fn no_key_is_made_for_names_that_are_not_the_tenants() {
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &[]).await;
    let body = json!({ "hostnames": ["shop.example"], "key_type": "rsa4096" });
    // More at once than keys may be asked for: a place is taken by none.
    let ask = || request(&stage, &one, &token, body.clone());
    let replies = tokio::join!(ask(), ask(), ask());
    for reply in [replies.0, replies.1, replies.2] {
        let expected = (422, "/hostnames/0".to_owned(), "unknown_domain".to_owned());
        assert_eq!(refusal(&reply), expected, "{}", reply.text);
    }
    let absent = portico_cert_store::TenantId::generate();
    let absent = format!("/v1/tenants/{absent}/certificate-requests");
    assert_eq!(stage.operator("POST", &absent, body).await.status, 404);
}

#[tokio::test]
async fn requests_of_a_tenant_are_bounded_and_make_room_when_they_go() {
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &[]).await;
    let (two, other) = tenant(&stage, "two", &["other.example"]).await;
    let names: Vec<String> =
        (0..=CERTIFICATE_REQUESTS_OF_TENANT_MAX).map(|at| format!("n{at}.example")).collect();
    for name in &names {
        stage.domain(&one, name).await;
    }
    let mut ids = Vec::new();
    for name in &names[1..] {
        ids.push(made(&stage, &one, &token, &[name]).await["id"].as_str().unwrap().to_owned());
    }
    let full = request(&stage, &one, &token, json!({ "hostnames": [names[0]] })).await;
    assert_eq!(
        (full.status, &full.body["code"]),
        (409, &json!("certificate_requests_full")),
        "{}",
        full.text
    );
    made(&stage, &two, &other, &["other.example"]).await;
    let first = stage
        .call(
            "GET",
            &format!("/v1/tenants/{one}/certificate-requests?limit=60"),
            Some(&token),
            &[],
            Value::Null,
        )
        .await;
    let cursor = first.body["next_cursor"].as_str().unwrap();
    let path = format!("/v1/tenants/{one}/certificate-requests?limit=60&cursor={cursor}");
    let second = stage.call("GET", &path, Some(&token), &[], Value::Null).await;
    let count = |reply: &Reply| reply.body["items"].as_array().unwrap().len();
    assert_eq!((count(&first), count(&second), &second.body["next_cursor"]), (60, 40, &Value::Null));

    let path = format!("/v1/certificate-requests/{}", ids[0]);
    for expected in [204, 404] {
        let reply = stage.call("DELETE", &path, Some(&token), &[], Value::Null).await;
        assert_eq!(reply.status, expected, "{}", reply.text);
    }
    made(&stage, &one, &token, &[&names[0]]).await;
    let kinds = actions(&stage).await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "certificate_request.delete").count(), 1);
}

#[tokio::test]
async fn a_key_that_waits_in_vain_is_destroyed_and_its_tenant_is_told() {
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &["shop.example"]).await;
    let asked = made(&stage, &one, &token, &["shop.example"]).await;
    let lasts = Duration::from_millis(CERTIFICATE_REQUEST_LASTS_MS.unsigned_abs());
    stage.clock.advance(lasts - DAY);
    assert_eq!(waiting(&stage, &one, &token).await.len(), 1);
    stage.clock.advance(DAY);
    assert_eq!(waiting(&stage, &one, &token).await.len(), 0);
    let chain = Ca::new().sign(asked["csr_pem"].as_str().unwrap(), 90);
    let reply = upload(&stage, &one, &token, &["shop.example"], &chain).await;
    assert_eq!(refusal(&reply), (422, "/key_pem".to_owned(), "unknown_key".to_owned()), "{}", reply.text);
    until(|| keys(&stage), |keys| *keys == 0).await;
    let events = stage.call("GET", "/v1/events?limit=500", Some(&token), &[], Value::Null).await;
    let told: Vec<_> = events.body["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["kind"] == "certificate_request.expired")
        .collect();
    assert_eq!(told.len(), 1, "{}", events.text);
    assert!(actions(&stage).await.contains(&"certificate_request.expire".to_owned()));
}

#[tokio::test]
async fn a_key_that_waits_is_sealed_and_its_request_repeats_its_answer() {
    let stage = Stage::start().await;
    let (one, token) = tenant(&stage, "one", &["shop.example"]).await;
    let path = format!("/v1/tenants/{one}/certificate-requests");
    let body = json!({ "hostnames": ["shop.example"] });
    let headers = [("idempotency-key", "once")];
    let first = stage.call("POST", &path, Some(&token), &headers, body.clone()).await;
    let again = stage.call("POST", &path, Some(&token), &headers, body).await;
    assert_eq!((first.status, again.status, &again.body), (201, 201, &first.body), "{}", again.text);
    let sealed: Vec<u8> = {
        let mut read = stage.running.parts.store.read().await.unwrap();
        sql::query_scalar("SELECT sealed_key FROM certificate_requests").fetch_one(&mut read).await.unwrap()
    };
    assert!(portico_cert_store::PrivateKey::from_pkcs8_der(&sealed).is_err());
    let sealer = &stage.running.parts.sealer;
    let id = first.body["id"].as_str().unwrap();
    let opened = sealer.open("certificate request", id, &sealed).unwrap();
    let key = portico_cert_store::PrivateKey::from_pkcs8_der(&opened).unwrap();
    let hash: String = key.spki_sha256().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(first.body["spki_sha256"], hash);
    assert!(sealer.open("certificate request", "another", &sealed).is_err(), "it opens for its row alone");
}
