//! The ledger against the CA's own counters: we are as fast as the CA permits, it never has to refuse us for what we spent
//! ourselves, it refuses us once for each time that others spent, and both count the same.

use std::collections::BTreeMap;
use std::time::Duration;

use portico_acme_ca::AriExemption;
use portico_control_plane::clock::NEVER_MS;
use portico_control_plane::plan::ledger::{At, LimitName, Limits};
use portico_control_plane::plan::reconcile::name_set;
use portico_control_plane::store::ledger::levels_at;
use portico_control_plane::store::{Connection, sql};
use serde_json::{Value, json};

use crate::issuing::retry_now;
use crate::lab::{Ca, Lab, Options, World, http};

/// What is spent of each bucket that is not empty, by limit and subject.
type Counters = BTreeMap<(LimitName, String), u32>;

/// The CA's, with its subjects as we call them.
async fn cas_counters(world: &World) -> Counters {
    let buckets = ca_call(world, "GET", "/buckets", &Value::Null).await;
    let counter = |bucket: &Value| {
        let subject = bucket["subject"].as_str().unwrap();
        let (limit, subject) = match bucket["limit"].as_str().unwrap() {
            "new-orders" => (LimitName::Orders, String::new()),
            "new-accounts" => (LimitName::NewAccounts, String::new()),
            "certificates-per-domain" => (LimitName::RegisteredDomain, subject.to_owned()),
            "certificates-per-exact-set" => (LimitName::ExactSet, name_set(subject.split(','))),
            "failed-authorizations" => (LimitName::FailedAuthorizations, last_word(subject)),
            "consecutive-failures" => (LimitName::ConsecutiveFailures, last_word(subject)),
            other => panic!("an unknown limit: {other}"),
        };
        ((limit, subject), u32::try_from(bucket["used"].as_u64().unwrap()).unwrap())
    };
    buckets.as_array().unwrap().iter().map(counter).collect()
}

/// "account and name"
fn last_word(text: &str) -> String {
    text.rsplit(' ').next().unwrap().to_owned()
}

/// Ours, tenants' budgets aside; nothing may be under way.
async fn our_counters(read: &mut Connection, ca: &str, limits: &Limits, now: i64) -> Counters {
    let levels = levels_at(read, At { ca, account: "test" }, now).await.unwrap();
    let mut counters = Counters::new();
    for (key, level) in levels.0.into_iter().filter(|(key, _)| !key.limit.is_of_tenant()) {
        assert_eq!(level.reserved, 0, "{key:?} is still reserved");
        let used = level.bucket.used(limits.rate(key.limit, &key.subject), now);
        counters.insert((key.limit, key.subject), used);
    }
    counters
}

/// Nothing that the CA counts is missing in the ledger.
pub async fn assert_we_count_no_less(world: &World, read: &mut Connection, limits: &Limits) {
    let ours = our_counters(read, &world.directory(), limits, world.clock.now_ms()).await;
    let theirs = cas_counters(world).await;
    assert!(theirs.contains_key(&(LimitName::Orders, String::new())), "{theirs:?}");
    for (bucket, used) in theirs {
        assert!(
            ours.get(&bucket).is_some_and(|ours| *ours >= used),
            "{bucket:?}: {used} at the CA, {ours:?}"
        );
    }
}

async fn assert_same_counters(lab: &Lab) {
    let limits = lab.running.parts.config.issuers[0].limits();
    let mut read = lab.running.parts.store.read().await.unwrap();
    let ours = our_counters(&mut read, &lab.world.directory(), &limits, lab.world.clock.now_ms()).await;
    assert_eq!(ours, cas_counters(&lab.world).await);
}

async fn ca_call(world: &World, method: &str, path: &str, body: &Value) -> Value {
    let Ca::Ours(ca) = &world.ca else { panic!("Pebble has no limits") };
    let (status, text) = http(ca.addresses.management, method, path, body).await;
    assert_eq!(status, 200, "{path}: {text}");
    serde_json::from_str(&text).unwrap()
}

/// Moves both clocks, the CA's first; what others do between is seen by the CA before our next order.
async fn advance(lab: &Lab, seconds: u64, others: Option<Value>) {
    ca_call(&lab.world, "POST", "/clock", &json!({ "advance_seconds": seconds })).await;
    if let Some(others) = others {
        let obtained = ca_call(&lab.world, "POST", "/outside", &others).await;
        assert_eq!(obtained["obtained"], others["certificates"]);
    }
    lab.world.clock.advance(Duration::from_secs(seconds));
}

/// Four at once, by the CA's limit and by ours.
pub fn one_order_each_3_h() -> Options {
    Options {
        issuer: "[issuer.limits]\norders = \"4/12h\"\nreserve = 0.0\ntenant_1h = 0",
        ca: |args| args.limit = vec!["new-orders=4/12h".parse().unwrap()],
        ..Options::default()
    }
}

/// Waits until every order that is open waits for a limit.
pub async fn until_held(lab: &Lab, orders: usize) {
    let sql = "SELECT id FROM orders WHERE state = 'planned' AND error LIKE '%the next order can go at%'";
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while lab.rows(sql).await.len() != orders {
        let all = lab.rows("SELECT names, state, COALESCE(error, '') FROM orders").await;
        assert!(tokio::time::Instant::now() < deadline, "{orders} should wait: {all:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_orders_are_as_fast_as_the_cas_limit_permits_and_never_meet_it() {
    let lab = Lab::start(&one_order_each_3_h()).await;
    let tenant = lab.tenant(&[], "alone").await;
    let names: Vec<String> = (0..10).map(|n| format!("n{n}.test")).collect();
    lab.domains(tenant, &names).await;
    for issued in 4..=10 {
        lab.until_covered(issued).await;
        until_held(&lab, 10 - issued).await;
        assert_eq!(lab.live_credentials().await.len(), issued, "the burst, then one each 3 h");
        assert_same_counters(&lab).await;
        // One interval, and not a moment more: the next order goes with it.
        advance(&lab, 3 * 3600, None).await;
    }
    let stats = lab.world.stats().await;
    assert_eq!(stats["rate_limited"], json!({}));
    assert_eq!(stats["new_orders"].as_array().unwrap().len(), 10, "no order was asked for twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_spend_of_a_domain_costs_one_refusal_each_time_and_holds_that_domain_only() {
    let lab = Lab::start(&Options {
        issuer: "[issuer.limits]\nregistered_domain = \"5/30h\"",
        ca: |args| args.limit = vec!["certificates-per-domain=5/30h".parse().unwrap()],
        ..Options::default()
    })
    .await;
    let others = |name: &str, certificates: u32| json!({ "names": [name], "certificates": certificates });
    for name in ["a.shop.test", "b.shop.test", "c.shop.test", "d.shop.test", "e.shop.test"] {
        ca_call(&lab.world, "POST", "/outside", &others(name, 1)).await;
    }
    let tenant = lab.tenant(&[], "alone").await;
    let names: Vec<String> = (0..6).map(|n| format!("n{n}.shop.test")).collect();
    let ids = lab.domains(tenant, &names).await;
    lab.domains(tenant, &["else.test"]).await;
    assert_eq!(lab.until_covered(1).await[0].names, ["else.test"]);
    // The one that was refused, and five that were not even sent.
    let condition = lab.until_condition(ids[0], "CertificateReady", "false").await;
    assert!(["CaLimit", "CaNameLimit"].contains(&condition[1].as_str()), "{condition:?}");
    until_held(&lab, 5).await;
    let refused = async || lab.world.stats().await["rate_limited"]["certificates-per-domain"].clone();
    assert_eq!(refused().await, 1);
    // One each 6 h, and no further refusal.
    for issued in 2..=3 {
        advance(&lab, 6 * 3600, None).await;
        lab.until_covered(issued).await;
    }
    assert_eq!(refused().await, 1);
    // Somebody is faster: one refusal more.
    advance(&lab, 6 * 3600, Some(others("f.shop.test", 1))).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while refused().await != 2 {
        assert!(tokio::time::Instant::now() < deadline, "our order was not refused");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Its Retry-After counts from when it is read, so no clock moves before.
    until_waiting(&lab, 4).await;
    advance(&lab, 6 * 3600, None).await;
    lab.until_covered(4).await;
    assert_eq!(refused().await, 2);
    let held = 3;
    until_waiting(&lab, held).await;
    let limits = lab.running.parts.config.issuers[0].limits();
    let mut read = lab.running.parts.store.read().await.unwrap();
    let ours = our_counters(&mut read, &lab.world.directory(), &limits, lab.world.clock.now_ms()).await;
    let bucket = (LimitName::RegisteredDomain, "shop.test".to_owned());
    assert_eq!(ours[&bucket], cas_counters(&lab.world).await[&bucket]);
    assert_eq!(ours[&bucket], 5);
}

/// A CA that exempts, of an order that replaces a certificate, only the names which that one had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replacement_with_a_name_more_waits_for_the_limits_and_meets_none() {
    let lab = Lab::start(&Options {
        // Two orders, and one more each 80 days.
        issuer: "[issuer.limits]\norders = \"2/160d\"\nreserve = 0.0\ntenant_1h = 0",
        ca: |args| {
            args.ari_exemption = AriExemption::CoveredNames;
            args.limit = vec!["new-orders=2/160d".parse().unwrap()];
        },
        ..Options::default()
    })
    .await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test", "rose.test"]).await;
    assert_eq!(lab.until_covered(2).await.len(), 2);
    until_rows(&lab, "SELECT 'all' WHERE NOT EXISTS (SELECT 1 FROM credentials WHERE window_start IS NULL)")
        .await;
    let first_due = lab.rows("SELECT CAST(MIN(renew_at) AS TEXT) FROM credentials").await.concat();
    let mut tx = lab.begin().await;
    sql::query("UPDATE tenants SET spec = json_set(spec, '$.sharing', 'tenant')")
        .execute(&mut tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    until_rows(&lab, "SELECT id FROM groups WHERE retired_at IS NOT NULL").await;
    lab.world.advance_to(first_due[0].parse().unwrap()).await;
    until_held(&lab, 1).await;
    let orders = async || lab.world.stats().await["new_orders"].as_array().unwrap().len();
    assert_eq!(orders().await, 2, "it is not even sent");
    let replaces = "SELECT id FROM orders WHERE state = 'planned' AND replaces IS NOT NULL";
    assert_eq!(lab.rows(replaces).await.len(), 1);
    advance(&lab, 21 * 86_400, None).await;
    until_rows(
        &lab,
        "SELECT id FROM credentials WHERE state = 'live' AND names LIKE '%rose.test%shop.test%'",
    )
    .await;
    assert_eq!(lab.world.stats().await["rate_limited"], json!({}));
    let limits = lab.running.parts.config.issuers[0].limits();
    let mut read = lab.running.parts.store.read().await.unwrap();
    let ours = our_counters(&mut read, &lab.world.directory(), &limits, lab.world.clock.now_ms()).await;
    for (bucket, used) in cas_counters(&lab.world).await {
        assert!(
            ours.get(&bucket).is_some_and(|ours| *ours >= used),
            "{bucket:?}: {used} at the CA, {ours:?}"
        );
    }
}

async fn until_rows(lab: &Lab, sql: &'static str) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while lab.rows(sql).await.is_empty() {
        let all = lab.rows("SELECT names, state, COALESCE(error, '') FROM orders").await;
        assert!(tokio::time::Instant::now() < deadline, "{sql}: {all:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until that many orders are planned and nothing else is under way.
async fn until_waiting(lab: &Lab, orders: usize) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let open =
            lab.rows("SELECT state FROM orders WHERE state NOT IN ('issued', 'failed')").await.concat();
        let reserved = lab.rows("SELECT holder FROM ledger_reservations").await;
        if open.len() == orders && open.iter().all(|state| state == "planned") && reserved.is_empty() {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{open:?} {reserved:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_counted_as_the_ca_counts_them_and_a_dead_name_is_not_tried_for_ever() {
    let lab = Lab::start(&Options {
        preflight: false,
        challenges: r#"["http-01"]"#,
        issuer: "[issuer.limits]\npause_after = 2\nfailed_authorizations = \"5/50h\"\norders = \"9/90h\"\ntenant_1h = 0",
        ca: |args| {
            args.limit = ["failed-authorizations=5/50h", "new-orders=9/90h"].map(|limit| limit.parse().unwrap()).into();
        },
        ..Options::default()
    })
    .await;
    lab.world.set_dns("/nxdomain", json!({ "names": ["dead.test"] })).await;
    let tenant = lab.tenant(&[], "alone").await;
    let dead = lab.domains(tenant, &["dead.test"]).await[0];
    let condition = lab.until_condition(dead, "CertificateReady", "false").await;
    assert_eq!(condition[1], "ValidationFailed", "{condition:?}");
    until_waiting(&lab, 0).await;
    assert_same_counters(&lab).await;
    // Beyond the first back-off.
    advance(&lab, 120, None).await;
    until_rows(&lab, "SELECT domain_id FROM name_states WHERE attempts = 2").await;
    let condition = lab.condition(dead, "CertificateReady").await.unwrap();
    assert!(
        condition[2].contains("failed 2 times in a row and is not tried again by itself"),
        "{condition:?}"
    );
    let next = lab.rows("SELECT CAST(next_at AS TEXT) FROM name_states").await.concat();
    assert_eq!(next, [NEVER_MS.to_string()]);
    until_waiting(&lab, 0).await;
    assert_same_counters(&lab).await;
    advance(&lab, 400 * 86_400, None).await;
    // A name that comes now is issued, so issuance has looked at everything since.
    lab.domains(tenant, &["fine.test"]).await;
    lab.until_covered(1).await;
    assert_eq!(lab.world.stats().await["new_orders"].as_array().unwrap().len(), 3);
    // Mended, and somebody asks.
    lab.world.set_dns("/records", json!({ "name": "dead.test", "type": "A", "values": ["127.0.0.1"] })).await;
    retry_now(&lab, dead).await;
    lab.until_covered(2).await;
    until_waiting(&lab, 0).await;
    assert_same_counters(&lab).await;
}
