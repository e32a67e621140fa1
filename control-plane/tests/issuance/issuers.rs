//! Several issuers, and how we are known at each.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use portico_acme_ca::ExternalAccount;
use portico_control_plane::acme::{Account, AccountKey, CaEndpoint, CaHttp, Pace};
use portico_control_plane::store::sql;
use serde_json::{Value, json};

use crate::issuing::{self, retry_now, until_renewed};
use crate::lab::{Lab, Live, Options, World};

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
    let options = Options { pebble: true, ..bound() };
    let Some(lab) = Lab::try_start_with(&options, |world| write_secret(world, SECRET)).await else { return };
    issuing::one_name(&lab).await;
}

/// Two CAs; three failures are an absence, which a try may end after half an hour.
fn two() -> Options {
    Options {
        second: Some(""),
        more: "failover = { after_seconds = 0, back_after_seconds = 1800 }",
        ..Options::default()
    }
}

fn out_of_order() -> Value {
    json!({ "kind": "unavailable", "endpoint": "newOrder", "count": 1_000_000, "retry_after_seconds": 1 })
}

/// Who has issued what serves a name now.
async fn issuer_of(lab: &Lab, name: &str) -> String {
    let rows = lab
        .rows("SELECT c.names, c.issuer FROM lineages l JOIN credentials c ON c.id = l.live_credential")
        .await;
    let row = rows.into_iter().find(|row| row[0].contains(&format!("\"{name}\"")));
    row.unwrap_or_else(|| panic!("{name} has no certificate"))[1].clone()
}

/// A further tenant's name gets its certificate; answers whose.
async fn issue(lab: &Lab, name: &str) -> String {
    let tenant = lab.tenant(&[], "registered_domain").await;
    issue_for(lab, tenant, name).await
}

async fn issue_for(lab: &Lab, tenant: portico_cert_store::TenantId, name: &str) -> String {
    let before = lab.live_credentials().await.iter().map(|live| live.names.len()).sum::<usize>();
    lab.domains(tenant, &[name]).await;
    lab.until_covered_soon(before + 1).await;
    issuer_of(lab, name).await
}

fn asked(stats: &Value) -> u64 {
    stats["requests"]["newOrder"].as_u64().unwrap_or(0)
}

pub async fn told(lab: &Lab, kind: &str) -> usize {
    let rows = lab.rows("SELECT kind FROM events").await;
    rows.iter().filter(|row| row[0] == kind).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_names_leave_a_ca_that_is_out_of_order_and_return_once_it_has_issued() {
    let lab = Lab::start(&two()).await;
    assert_eq!(issue(&lab, "a.test").await, "test");
    assert_eq!(lab.world.second_stats().await["orders"]["created"], 0);

    lab.world.faults(out_of_order()).await;
    assert_eq!(issue(&lab, "b.test").await, "second");
    assert_eq!(told(&lab, "issuer.away").await, 1);
    let before = asked(&lab.world.stats().await);
    assert_eq!(issue(&lab, "c.test").await, "second");
    assert_eq!(asked(&lab.world.stats().await), before, "a CA that is away is left alone");

    // It works again, and nobody knows: no flapping.
    lab.world.no_faults().await;
    assert_eq!(issue(&lab, "d.test").await, "second");
    lab.world.advance_seconds(1801).await;
    assert_eq!(issue(&lab, "e.test").await, "test");
    assert_eq!(told(&lab, "issuer.back").await, 1);
    assert_eq!(issue(&lab, "f.test").await, "test");
    assert_eq!(lab.world.second_stats().await["orders"]["created"], 3);
    let ledger = lab
        .rows(
            "SELECT ca FROM ledger_buckets WHERE limit_name = 'registered_domain' AND charged_at IS NOT NULL",
        )
        .await;
    let second = &lab.world.second.as_ref().unwrap().addresses.directory;
    assert_eq!(ledger.iter().filter(|row| row[0] == *second).count(), 3, "each CA has its own ledger");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_that_stays_away_costs_one_order_for_each_try() {
    let lab = Lab::start(&two()).await;
    // It says so: the first refusal is enough.
    let fault = json!({ "kind": "unavailable", "endpoint": "newOrder", "count": 1_000_000, "retry_after_seconds": 120 });
    lab.world.faults(fault).await;
    assert_eq!(issue(&lab, "a.test").await, "second");
    assert_eq!(asked(&lab.world.stats().await), 1);
    for (pause, name) in [(1801, "b"), (3601, "c"), (7201, "d")] {
        lab.world.advance_seconds(pause).await;
        let before = asked(&lab.world.stats().await);
        let tenants =
            [lab.tenant(&[], "registered_domain").await, lab.tenant(&[], "registered_domain").await];
        let covered = lab.live_credentials().await.len();
        for (n, tenant) in tenants.into_iter().enumerate() {
            lab.domains(tenant, &[format!("{name}{n}.test")]).await;
        }
        lab.until_covered_soon(covered + 2).await;
        let tries = asked(&lab.world.stats().await) - before;
        assert_eq!(tries, 1, "after {pause} s");
        assert_eq!(issue(&lab, &format!("{name}-late.test")).await, "second");
    }
    assert_eq!(told(&lab, "issuer.away").await, 1, "it is one absence");
}

/// One renewal of what is live, by the schedule.
async fn renewal_is_due(lab: &Lab, live: &Live) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let rows = lab
            .rows(
                "SELECT id, CAST(renew_at AS TEXT) FROM credentials \
                 WHERE window_start IS NOT NULL OR window_note IS NOT NULL",
            )
            .await;
        if let Some(row) = rows.iter().find(|row| row[0] == live.id) {
            return lab.world.advance_to(row[1].parse().unwrap()).await;
        }
        assert!(tokio::time::Instant::now() < deadline, "the CA was not asked when to renew");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn open_orders(lab: &Lab) -> Vec<Vec<String>> {
    lab.rows("SELECT issuer, state FROM orders WHERE state NOT IN ('issued', 'failed')").await
}

async fn until_open_at(lab: &Lab, issuer: &str) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !open_orders(lab).await.iter().any(|row| row[0] == issuer) {
        assert!(tokio::time::Instant::now() < deadline, "no order at {issuer}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_waits_for_its_ca_until_its_certificate_ends_soon_and_returns_later() {
    let lab = Lab::start(&two()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test"]).await;
    let first = lab.until_covered(1).await.remove(0);
    lab.world.faults(out_of_order()).await;
    assert_eq!(issue(&lab, "new.test").await, "second", "the CA is away for new names");
    renewal_is_due(&lab, &first).await;
    until_open_at(&lab, "test").await;
    // The loop has gone on, and the renewal has not moved.
    assert_eq!(issue(&lab, "newer.test").await, "second");
    assert!(open_orders(&lab).await.iter().any(|row| row[0] == "test"), "{:?}", open_orders(&lab).await);
    assert_eq!(issuer_of(&lab, "shop.test").await, "test");

    lab.world.advance_to(first.not_after - 14 * 86_400_000).await;
    let second = until_renewed(&lab, &first).await;
    assert_eq!(issuer_of(&lab, "shop.test").await, "second");
    assert_ne!(second.spki, first.spki);
    let replaces = |stats: &Value, name: &str| {
        let entries = stats["new_orders"].as_array().unwrap().clone();
        let entry = entries.into_iter().rev().find(|entry| entry["names"][0] == name).unwrap();
        entry.get("replaces").is_some_and(Value::is_string)
    };
    assert!(!replaces(&lab.world.second_stats().await, "shop.test"), "another CA's certificate");

    lab.world.no_faults().await;
    renewal_is_due(&lab, &second).await;
    let third = until_renewed(&lab, &second).await;
    assert_eq!(issuer_of(&lab, "shop.test").await, "test");
    assert!(!replaces(&lab.world.stats().await, "shop.test"), "another CA's certificate");
    renewal_is_due(&lab, &third).await;
    until_renewed(&lab, &third).await;
    assert!(replaces(&lab.world.stats().await, "shop.test"), "its own, again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_a_ca_will_not_have_goes_to_the_next_alone() {
    let lab = Lab::start(&two()).await;
    lab.world.ca_refuses(&["bank.shop.test"]).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test", "www.shop.test", "bank.shop.test"]).await;
    lab.until_covered(3).await;
    assert_eq!(issuer_of(&lab, "bank.shop.test").await, "second");
    assert_eq!(issuer_of(&lab, "www.shop.test").await, "test");
    let second = lab.world.second_stats().await;
    assert_eq!(second["new_orders"].as_array().unwrap().len(), 1, "{second}");
    assert_eq!(second["new_orders"][0]["names"], json!(["bank.shop.test"]));
    let states =
        lab.rows("SELECT CAST(attempts AS TEXT), CAST(failed_before AS TEXT) FROM name_states").await;
    assert!(states.iter().all(|row| row.concat() == "00"), "it is no failure of the name: {states:?}");
    assert_eq!(told(&lab, "issuer.away").await, 0);
}

async fn set_caa(lab: &Lab, name: &str, ca: &str) {
    let value = format!("0 issue \"{ca}\"");
    lab.world.set_dns("/records", json!({ "name": name, "type": "CAA", "values": [value] })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_that_caa_forbids_is_never_asked() {
    let lab = Lab::start(&two()).await;
    set_caa(&lab, "strict.test", "second-ca.test").await;
    let tenant = lab.tenant(&[], "tenant").await;
    let ids = lab.domains(tenant, &["strict.test", "free.test"]).await;
    lab.until_covered(2).await;
    assert_eq!(issuer_of(&lab, "strict.test").await, "second");
    assert_eq!(issuer_of(&lab, "free.test").await, "test");
    let caa = lab.until_condition(ids[0], "CaaPermits", "true").await;
    let words = "set strict.test CAA 0 issue \"acme-ca.test\"";
    assert!(caa[2].contains("let second-ca.test issue") && caa[2].contains(words), "{caa:?}");
    assert_eq!(asked(&lab.world.stats().await), 1, "the first CA heard of one name");

    // Neither when the one that may is away: the look before another issuer's order is a new one.
    set_caa(&lab, "free.test", "acme-ca.test").await;
    lab.world.faults(out_of_order()).await;
    let free = lab.live_credentials().await.into_iter().find(|live| live.names == ["free.test"]).unwrap();
    lab.world.advance_to(free.not_after - 14 * 86_400_000).await;
    assert_eq!(issue(&lab, "new.test").await, "second", "the first is away");
    let ours = json!(["free.test"]);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let words = lab.rows("SELECT issuers FROM name_states").await.concat().join(" ");
        if words.contains("set free.test CAA 0 issue \\\"second-ca.test\\\"") {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{words}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let second = lab.world.second_stats().await;
    let heard = second["new_orders"].as_array().unwrap().iter().any(|entry| entry["names"] == ours);
    assert!(!heard, "{second}");
    lab.world.no_faults().await;
    lab.until_covered_soon(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_fail_never_move_anybody() {
    let lab = Lab::start(&Options { preflight: false, ..two() }).await;
    lab.world.set_dns("/nxdomain", json!({ "names": ["dead.test", "gone.test"] })).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let ids = lab.domains(tenant, &["dead.test", "gone.test"]).await;
    for round in 1..=4u64 {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let failed = lab.rows("SELECT CAST(attempts AS TEXT) FROM name_states").await;
            if failed.len() == 2 && failed.iter().all(|row| row[0].parse::<u64>().unwrap() >= round) {
                break;
            }
            for id in &ids {
                retry_now(&lab, *id).await;
            }
            assert!(tokio::time::Instant::now() < deadline, "{failed:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert_eq!(issue(&lab, "alive.test").await, "test");
    assert_eq!(asked(&lab.world.second_stats().await), 0);
    assert!(lab.rows("SELECT issuer FROM issuer_states").await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_the_issuers_that_it_names() {
    let lab = Lab::start(&Options { second: Some("by_default = false"), ..two() }).await;
    let tenant = lab.tenant_of(&["second", "test"]).await;
    assert_eq!(issue_for(&lab, tenant, "named.test").await, "second");
    assert_eq!(issue(&lab, "plain.test").await, "test");
    lab.world.faults(out_of_order()).await;
    let plain = lab.tenant(&[], "registered_domain").await;
    let waiting = lab.domains(plain, &["waiting.test"]).await[0];
    assert_eq!(issue_for(&lab, tenant, "more.test").await, "second");
    lab.until_text(waiting, "in trouble").await;
    assert_eq!(lab.world.second_stats().await["orders"]["created"], 2, "nobody else's names go there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_outlasts_the_certificate_sends_the_renewal_on() {
    let options =
        Options { issuer: "[issuer.limits]\nexact_set = \"1/85d\"", ca: |args| args.no_ari = true, ..two() };
    let lab = Lab::start(&options).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test"]).await;
    let first = lab.until_covered(1).await.remove(0);
    renewal_is_due(&lab, &first).await;
    until_renewed(&lab, &first).await;
    assert_eq!(issuer_of(&lab, "shop.test").await, "second");
    assert_eq!(asked(&lab.world.stats().await), 1, "our ledger has asked nobody");
    assert_eq!(told(&lab, "issuer.away").await, 0, "a limit is no absence");
}

/// What it has ordered before, it replaces: nobody else may say so to the CA.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adopted_account_replaces_what_it_has_ordered() {
    let lab = Lab::start(&Options::default()).await;
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let url = register(&lab.world, &key).await;
    let adopted = lab.operator("POST", "/v1/issuers/test/accounts", json!({ "key_pem": key })).await;
    assert_eq!((adopted.0, &adopted.1["url"], &adopted.1["origin"]), (201, &json!(url), &json!("adopted")));
    let again = lab.operator("POST", "/v1/issuers/test/accounts", json!({ "key_pem": key })).await;
    assert_eq!((again.0, &again.1["url"]), (200, &json!(url)));
    let stranger = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let refused = lab.operator("POST", "/v1/issuers/test/accounts", json!({ "key_pem": stranger })).await;
    assert_eq!((refused.0, &refused.1["errors"][0]["code"]), (422, &json!("no_account")), "{}", refused.1);

    let old = issued_on_adopted(&lab).await;
    issue(&lab, "new.test").await;
    let accounts = lab.rows("SELECT names, account FROM credentials ORDER BY names DESC").await;
    assert_eq!(accounts[0][1], url);
    assert_ne!(accounts[1][1], url, "new names go to the issuer's own account");

    renewal_is_due(&lab, &old).await;
    until_renewed(&lab, &old).await;
    let account =
        lab.rows("SELECT account FROM credentials WHERE state = 'live' AND names LIKE '%old.test%'").await;
    let orders = lab
        .rows(
            "SELECT names, state, COALESCE(error, ''), COALESCE(CAST(account_id AS TEXT), 'own') FROM orders",
        )
        .await;
    assert_eq!(account, [[url]], "{orders:#?}");
    let accepted = lab
        .rows("SELECT CAST(replaces_accepted AS TEXT) FROM orders WHERE names LIKE '%old.test%' ORDER BY created_at DESC LIMIT 1")
        .await;
    assert_eq!(accepted, [["1"]], "the CA takes it as the replacement");
}

/// Asked again, the CA says that the certificate has been replaced already: by the very order of which we did not hear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_to_an_adopted_account_costs_no_second_order() {
    let lab = Lab::start(&Options::default()).await;
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let url = register(&lab.world, &key).await;
    let adopted = lab.operator("POST", "/v1/issuers/test/accounts", json!({ "key_pem": key })).await;
    assert_eq!(adopted.0, 201, "{}", adopted.1);
    let old = issued_on_adopted(&lab).await;
    lab.world.faults(json!({ "kind": "lost", "endpoint": "newOrder" })).await;
    renewal_is_due(&lab, &old).await;
    until_renewed(&lab, &old).await;
    let stats = lab.world.stats().await;
    assert_eq!(stats["faults"]["lost"], 1);
    assert_eq!(
        (&stats["orders"]["created"], &stats["orders"]["replacing"]),
        (&json!(2), &json!(1)),
        "{stats}"
    );
    let accounts = lab.rows("SELECT account FROM credentials").await.concat();
    assert_eq!(accounts, [url.clone(), url]);
}

/// A certificate from before its account was ours: ordered on it, as the other client did.
async fn issued_on_adopted(lab: &Lab) -> Live {
    write(
        lab,
        "CREATE TRIGGER on_adopted AFTER INSERT ON orders BEGIN \
         UPDATE orders SET account_id = (SELECT id FROM accounts WHERE origin = 'adopted') WHERE id = NEW.id; END",
    )
    .await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["old.test"]).await;
    let old = lab.until_covered_soon(1).await.remove(0);
    write(lab, "DROP TRIGGER on_adopted").await;
    old
}

async fn write(lab: &Lab, text: &'static str) {
    let mut tx = lab.begin().await;
    sql::query(text).execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
}

/// What another ACME client did: an account of this key. Answers its URL.
async fn register(world: &World, key_pem: &str) -> String {
    use rustls_pki_types::pem::PemObject as _;
    let mut roots = rustls::RootCertStore::empty();
    let anchor = rustls_pki_types::CertificateDer::from_pem_file(world.path("api-ca.pem")).unwrap();
    roots.add(anchor).unwrap();
    let pace = Pace { per_second: 1000, burst: 1000 };
    let endpoint = CaEndpoint {
        directory: world.directory().parse().unwrap(),
        roots: std::sync::Arc::new(roots),
        serialize_orders: false,
        pace,
        nonce_pace: pace,
    };
    let (http, key) = (CaHttp::new(&endpoint).unwrap(), AccountKey::from_pem(key_pem).unwrap());
    Account::register(&http, &key, None).await.unwrap().url().to_owned()
}
