//! Faults on demand: each is delivered as often as asked, counted, and then over.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use instant_acme::{ChallengeType, Error, OrderStatus};
use serde_json::json;

use crate::stage::{Stage, problem_type};
use crate::strictness::RawClient;

#[tokio::test]
async fn bad_nonces_are_delivered_and_retried_by_the_client() {
    let stage = Stage::start(|_| {}).await;
    let account = stage.account().await;
    stage.fault(json!({ "kind": "bad-nonce", "endpoint": "newOrder", "count": 2 })).await;
    stage.order(&account, &["shop.test"]).await.unwrap();
    let stats = stage.stats().await;
    assert_eq!(stats["faults"]["bad-nonce"], 2);
    assert_eq!(stats["problems"]["badNonce"], 2);
    assert_eq!(stats["orders"]["created"], 1);
}

#[tokio::test]
async fn refusals_carry_retry_after_and_end_after_their_count() {
    let stage = Stage::start(|_| {}).await;
    let mut raw = RawClient::register(&stage).await;
    let url = raw.resource("newOrder");
    let body = json!({ "identifiers": [{ "type": "dns", "value": "shop.test" }] }).to_string();
    stage
        .fault(json!([
            { "kind": "rate-limited", "endpoint": "newOrder", "retry_after_seconds": 120 },
            { "kind": "unavailable", "endpoint": "newOrder", "retry_after_seconds": 7 },
            { "kind": "unavailable-html", "endpoint": "newOrder", "retry_after_seconds": 9 },
        ]))
        .await;
    for (status, seconds, content) in [
        (429, "120", "application/problem+json"),
        (503, "7", "application/problem+json"),
        (503, "9", "text/html"),
    ] {
        let response = raw.post(&url, &body).await;
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["retry-after"], seconds);
        assert!(response.headers()["content-type"].to_str().unwrap().starts_with(content));
        assert!(response.headers().contains_key("replay-nonce"), "on all answers");
    }
    assert_eq!(raw.post(&url, &body).await.status(), 201);
    let stats = stage.stats().await;
    assert_eq!(stats["rate_limited"]["fault"], 1);
    assert_eq!(stats["orders"]["created"], 1);
}

#[tokio::test]
async fn garbage_slow_answers_and_closed_connections() {
    let stage = Stage::start(|_| {}).await;
    let account = stage.account().await;
    stage.fault(json!({ "kind": "garbage", "endpoint": "newOrder" })).await;
    assert!(matches!(stage.order(&account, &["shop.test"]).await.err().unwrap(), Error::Json(_)));
    stage.fault(json!({ "kind": "close", "endpoint": "newOrder" })).await;
    assert!(matches!(stage.order(&account, &["shop.test"]).await.err().unwrap(), Error::Other(_)));
    stage.fault(json!({ "kind": "slow", "endpoint": "newOrder", "delay_ms": 300 })).await;
    let started = started();
    stage.order(&account, &["shop.test"]).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(300));
    let stats = stage.stats().await;
    assert_eq!(stats["orders"]["created"], 1, "the faulty requests ordered nothing");
    assert_eq!(stats["faults"], json!({ "garbage": 1, "close": 1, "slow": 1 }));
}

#[expect(clippy::disallowed_methods, reason = "measures an answer that is slow on purpose")]
fn started() -> Instant {
    Instant::now()
}

#[tokio::test]
async fn an_order_stays_processing_for_the_polls_asked_for() {
    let stage = Stage::start(|_| {}).await;
    let mut raw = RawClient::register(&stage).await;
    stage.fault(json!({ "kind": "processing", "polls": 2 })).await;
    let order = raw.ready_order(&stage, "shop.test").await;
    let response = raw.finalize(&order, &["shop.test"]).await;
    assert_eq!(raw.status_of(&response), "processing");
    assert_eq!(response.headers()["retry-after"], "1");
    let first = raw.post(&order, "").await;
    assert_eq!(raw.status_of(&first), "processing");
    let second = raw.post(&order, "").await;
    assert_eq!(raw.status_of(&second), "valid");
}

#[tokio::test]
async fn wrong_chains_keys_names_and_dates_are_served_on_demand() {
    let stage = Stage::start(|_| {}).await;
    let account = stage.account().await;
    let names = ["shop.test"];
    for kind in ["wrong-chain", "wrong-key", "wrong-names", "expired"] {
        stage.fault(json!({ "kind": kind })).await;
        let issued = stage.obtain(&account, &names, ChallengeType::Http01).await.unwrap();
        let refusal = issued.check(&stage.ca.root_pem, &names);
        assert!(refusal.is_err(), "{kind} looked right");
    }
    let issued = stage.obtain(&account, &names, ChallengeType::Http01).await.unwrap();
    issued.check(&stage.ca.root_pem, &names).unwrap();
}

#[tokio::test]
async fn wrong_management_requests_are_refused_with_a_reason() {
    let stage = Stage::start(|_| {}).await;
    let (status, answer) = stage.ca_call(Method::POST, "/faults", &json!({ "kind": "slow" })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer["error"].as_str().unwrap().contains("delay_ms"));
    for (path, body) in [
        ("/faults", json!({ "kind": "typo" })),
        ("/clock", json!({ "advance_seconds": -1 })),
        ("/clock", json!({ "advance": 1 })),
        ("/clock", json!({ "advance_seconds": 1_000_000_000_000_u64 })),
    ] {
        let (status, _) = stage.ca_call(Method::POST, path, &body).await;
        assert!(status.is_client_error(), "{path} {body}: {status}");
    }
    stage.fault(json!({ "kind": "garbage", "count": 5 })).await;
    assert_eq!(stage.ca_call(Method::DELETE, "/faults", &json!(null)).await.0, StatusCode::NO_CONTENT);
    assert_eq!(stage.ca_call(Method::GET, "/faults", &json!(null)).await.1, json!([]));
    assert_eq!(stage.ca_call(Method::GET, "/healthz", &json!(null)).await.0, StatusCode::OK);
    let roots = stage.ca_call(Method::GET, "/roots", &json!(null)).await.1;
    assert_eq!(roots["root"], stage.ca.root_pem);
}

#[tokio::test]
async fn processing_is_waited_for_by_the_client() {
    let stage = Stage::start(|args| args.processing_polls = 1).await;
    let account = stage.account().await;
    let mut order = stage.order(&account, &["shop.test"]).await.unwrap();
    stage.authorize(&mut order, ChallengeType::Http01).await.unwrap();
    let issued = stage.finish(&mut order, &["shop.test"]).await.unwrap();
    issued.check(&stage.ca.root_pem, &["shop.test"]).unwrap();
    assert_eq!(order.refresh().await.unwrap().status, OrderStatus::Valid);
    let error = stage.finish(&mut order, &["shop.test"]).await.err().unwrap();
    assert_eq!(problem_type(&error), "orderNotReady");
}
