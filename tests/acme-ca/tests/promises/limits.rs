//! Each published limit, hit once: 429, Retry-After, counted, and over when its time has passed.

use http::Method;
use instant_acme::ChallengeType;
use serde_json::{Value, json};

use crate::stage::{Stage, problem_type};

#[tokio::test]
async fn new_accounts_are_limited_by_address() {
    let stage = Stage::start(|_| {}).await;
    for _ in 0..10 {
        stage.account().await;
    }
    assert_eq!(problem_type(&stage.try_account().await.err().unwrap()), "rateLimited");
    assert_eq!(stage.stats().await["rate_limited"]["new-accounts"], 1);
    stage.advance(18 * 60).await;
    stage.account().await;
}

#[tokio::test]
async fn new_orders_are_limited_by_account() {
    let stage = Stage::start(|_| {}).await;
    let account = stage.account().await;
    for index in 0..300 {
        stage.order(&account, &[&format!("s{index}.test")]).await.unwrap();
    }
    let error = stage.order(&account, &["one-more.test"]).await.err().unwrap();
    assert_eq!(problem_type(&error), "rateLimited");
    assert!(error.to_string().contains("new-orders"), "{error}");
    stage.advance(36).await;
    stage.order(&account, &["one-more.test"]).await.unwrap();
    let stats = stage.stats().await;
    assert_eq!(stats["rate_limited"]["new-orders"], 1);
    assert_eq!(stats["orders"]["created"], 301);
}

#[tokio::test]
async fn certificates_are_limited_by_exact_set_over_all_accounts() {
    let stage = Stage::start(|_| {}).await;
    let account = stage.account().await;
    let names = ["shop.test", "www.shop.test"];
    for _ in 0..5 {
        stage.obtain(&account, &names, ChallengeType::Http01).await.unwrap();
    }
    let other = stage.account().await;
    for account in [&account, &other] {
        let error = stage.order(account, &names).await.err().unwrap();
        assert_eq!(problem_type(&error), "rateLimited");
        assert!(error.to_string().contains("certificates-per-exact-set"), "{error}");
    }
    stage.order(&account, &["shop.test"]).await.unwrap();
    assert_eq!(stage.stats().await["rate_limited"]["certificates-per-exact-set"], 2);
    stage.advance(34 * 3600).await;
    stage.obtain(&account, &names, ChallengeType::Http01).await.unwrap();
}

#[tokio::test]
async fn certificates_are_limited_by_registered_domain_and_renewals_are_exempt() {
    let stage = Stage::start(|args| {
        args.limit = vec!["certificates-per-domain=3/7d".parse().unwrap()];
    })
    .await;
    let account = stage.account().await;
    for name in ["a.shop.co.uk", "b.shop.co.uk", "c.shop.co.uk"] {
        stage.obtain(&account, &[name], ChallengeType::Http01).await.unwrap();
    }
    let error = stage.order(&account, &["d.shop.co.uk"]).await.err().unwrap();
    assert_eq!(problem_type(&error), "rateLimited");
    assert!(error.to_string().contains("shop.co.uk"), "{error}");
    stage.order(&account, &["a.else.co.uk"]).await.unwrap();
    stage.obtain(&account, &["a.shop.co.uk"], ChallengeType::Http01).await.unwrap();
    assert_eq!(stage.stats().await["rate_limited"]["certificates-per-domain"], 1);
}

#[tokio::test]
async fn failed_authorizations_block_that_name_of_that_account() {
    let stage = Stage::start(|_| {}).await;
    let account = stage.account().await;
    stage.dns_call(Method::POST, "/nxdomain", &json!({ "names": ["broken.test"] })).await;
    for _ in 0..5 {
        let mut order = stage.order(&account, &["broken.test"]).await.unwrap();
        stage.authorize(&mut order, ChallengeType::Http01).await.unwrap();
    }
    let error = stage.order(&account, &["fine.test", "broken.test"]).await.err().unwrap();
    assert_eq!(problem_type(&error), "rateLimited");
    assert!(error.to_string().contains("broken.test"), "{error}");
    stage.order(&account, &["fine.test"]).await.unwrap();
    stage.order(&stage.account().await, &["broken.test"]).await.unwrap();
    stage.advance(12 * 60).await;
    stage.order(&account, &["broken.test"]).await.unwrap();
}

#[tokio::test]
async fn a_429_carries_retry_after_and_the_limits_can_be_switched_off() {
    let stage = Stage::start(|args| args.limit = vec!["new-orders=1/60s".parse().unwrap()]).await;
    let mut raw = crate::strictness::RawClient::register(&stage).await;
    let order = |name: &str| json!({ "identifiers": [{ "type": "dns", "value": name }] }).to_string();
    let url = raw.resource("newOrder");
    assert_eq!(raw.post(&url, &order("a.test")).await.status(), 201);
    let refused = raw.post(&url, &order("b.test")).await;
    assert_eq!(refused.status(), 429);
    let seconds: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((59..=60).contains(&seconds), "{seconds}");
    let document: Value = serde_json::from_slice(refused.body()).unwrap();
    assert_eq!(document["type"], "urn:ietf:params:acme:error:rateLimited");
    let log = stage.stats().await["new_orders"].clone();
    assert_eq!(log[1]["result"], "rateLimited");

    let free = Stage::start(|args| args.limits = portico_acme_ca::LimitTable::None).await;
    for _ in 0..12 {
        free.account().await;
    }
}

#[tokio::test]
async fn failures_in_a_row_pause_a_name_and_a_success_ends_the_row() {
    let stage = Stage::start(|args| {
        args.limit = vec!["consecutive-failures=2/20d".parse().unwrap()];
        args.authz_lifetime = std::time::Duration::from_secs(60);
    })
    .await;
    let account = stage.account().await;
    let fail = async || {
        stage.fault(json!({ "kind": "validation-trouble" })).await;
        let mut order = stage.order(&account, &["shop.test"]).await.unwrap();
        stage.authorize(&mut order, ChallengeType::Http01).await.unwrap();
    };
    fail().await;
    stage.obtain(&account, &["shop.test"], ChallengeType::Http01).await.unwrap();
    // Its authorization has to have ended for another to be asked for.
    stage.advance(61).await;
    fail().await;
    fail().await;
    let error = stage.order(&account, &["shop.test"]).await.err().unwrap();
    assert!(error.to_string().contains("consecutive-failures"), "{error}");
    stage.advance(10 * 86_400).await;
    stage.order(&account, &["shop.test"]).await.unwrap();
}

#[tokio::test]
async fn an_outside_account_spends_what_is_global_and_each_bucket_can_be_read() {
    let stage = Stage::start(|args| {
        args.limit = vec!["certificates-per-domain=3/7d".parse().unwrap()];
    })
    .await;
    let outside = |names: &[&str], certificates: u32| json!({ "names": names, "certificates": certificates });
    let obtained = stage.ca_call(Method::POST, "/outside", &outside(&["a.shop.test"], 2)).await.1;
    assert_eq!(obtained, json!({ "obtained": 2 }));
    let obtained = stage.ca_call(Method::POST, "/outside", &outside(&["b.shop.test"], 9)).await.1;
    assert_eq!(obtained, json!({ "obtained": 5 }), "the set's limit; renewals are exempt from the domain's");
    let account = stage.account().await;
    stage.obtain(&account, &["c.shop.test"], ChallengeType::Http01).await.unwrap();
    let error = stage.order(&account, &["d.shop.test"]).await.err().unwrap();
    assert!(error.to_string().contains("certificates-per-domain"), "{error}");
    let buckets = stage.ca_call(Method::GET, "/buckets", &Value::Null).await.1;
    let used = |limit: &str, subject: &str| {
        let found =
            buckets.as_array().unwrap().iter().find(|b| b["limit"] == limit && b["subject"] == subject);
        found.map_or(0, |bucket| bucket["used"].as_u64().unwrap())
    };
    assert_eq!(used("certificates-per-domain", "shop.test"), 3, "{buckets}");
    assert_eq!(used("certificates-per-exact-set", "b.shop.test"), 5);
    assert_eq!(used("certificates-per-exact-set", "c.shop.test"), 1);
}
