//! Keys in several cells: which follow one another, and how many are borne.

use std::time::Duration;

use portico_acme_ca::CaArgs;
use serde_json::{Value, json};

use crate::lab::{Lab, Options};

const HOUR_MS: i64 = 3_600_000;

/// Three cells, at a CA that takes an authorization again for seven hours: nobody told us so but its bodies.
fn three_cells() -> Options {
    Options {
        cells: vec!["one", "two", "three"],
        preflight: false,
        ca: |args: &mut CaArgs| args.authz_lifetime = Duration::from_secs(7 * 3600),
        ..Options::default()
    }
}

async fn validated(lab: &Lab) -> Value {
    lab.world.stats().await["validations"]["performed"].clone()
}

/// Orders that are over are forgotten after a time, their certificates are not.
async fn until_issued(lab: &Lab, certificates: usize) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while lab.rows("SELECT id FROM credentials").await.len() < certificates {
        let states = lab.rows("SELECT state, COALESCE(error, '') FROM orders").await;
        assert!(tokio::time::Instant::now() < deadline, "not {certificates}: {states:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn further_cells_follow_while_the_ca_takes_the_authorizations_again() {
    let lab = Lab::start(&three_cells()).await;
    let tenant = lab.tenant(&["one", "two", "three"], "registered_domain").await;
    lab.domains(tenant, &["shop.test", "www.shop.test"]).await;
    let first = lab.until_covered(6).await;
    assert_eq!(validated(&lab).await, 2, "two names, three cells");
    let now = lab.world.clock.now_ms();
    let windows = lab.rows("SELECT CAST(authorized_until AS TEXT) FROM credentials").await.concat();
    assert_eq!(windows.len(), 3);
    for until in windows {
        let left = until.parse::<i64>().unwrap() - now;
        assert!((6 * HOUR_MS..=7 * HOUR_MS).contains(&left), "{left} ms, as the CA's bodies say");
    }
    // Each cell's renewal has a moment of its own; when the first has come, the others go along.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while lab.rows("SELECT id FROM credentials WHERE window_start > 0").await.len() < 3 {
        assert!(tokio::time::Instant::now() < deadline, "the CA was not asked for its windows");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let due = lab.rows("SELECT CAST(MIN(renew_at) AS TEXT) FROM credentials").await.concat();
    lab.world.advance_to(due[0].parse().unwrap()).await;
    until_issued(&lab, 6).await;
    assert_eq!(validated(&lab).await, 4, "validated once more, for three renewals");
    let live = lab.live_credentials().await;
    assert!(live.iter().all(|live| first.iter().all(|old| old.spki != live.spki)), "each with a new key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_cells_than_the_limits_bear_are_refused_with_the_number() {
    let options = Options { issuer: "limits = { exact_set = \"2/7d\" }", ..three_cells() };
    let lab = Lab::start(&options).await;
    let cells = json!(["one", "two", "three"]);
    let (status, problem) =
        lab.operator("POST", "/v1/tenants", json!({ "name": "roses", "cells": cells })).await;
    assert_eq!(status, 422, "{problem}");
    let error = &problem["errors"][0];
    assert_eq!((&error["pointer"], &error["code"]), (&json!("/cells"), &json!("too_many_for_ca")));
    let text = error["message"].as_str().unwrap();
    assert!(text.contains("names 3 cells") && text.contains("at most 2"), "{text}");
    assert!(text.contains("2 in 7 days"), "{text}");
    let import = json!({ "tenants": [{ "tenant": { "name": "roses", "cells": cells }, "domains": [{ "hostname": "rose.test" }] }] });
    let (_, answer) = lab.operator("POST", "/v1/imports", import).await;
    assert!(answer.to_string().contains("too_many_for_ca"), "{answer}");
    let (status, _) =
        lab.operator("POST", "/v1/tenants", json!({ "name": "roses", "cells": ["one", "two"] })).await;
    assert_eq!(status, 201);

    // From before the limit was so strict: two cells get their certificate, the third none.
    let tenant = lab.tenant(&["one", "two", "three"], "registered_domain").await;
    lab.domains(tenant, &["shop.test"]).await;
    lab.until_covered(2).await;
    let after = lab.tenant(&["three"], "registered_domain").await;
    lab.domains(after, &["later.test"]).await;
    lab.until_covered(3).await;
    let of_shop = lab.rows(r#"SELECT id FROM orders WHERE names = '["shop.test"]'"#).await;
    assert_eq!(of_shop.len(), 2, "no order is made that would wait for days");
    let (status, plan) = lab.operator("GET", "/v1/plan", Value::Null).await;
    assert_eq!((status, &plan["orders_now"]), (200, &json!(0)), "{plan}");
    let told = &plan["cells"][0];
    assert_eq!((&told["is_borne"], &told["cells_max"]), (&json!(false), &json!(2)), "{plan}");
    let (_, plan) = lab.operator("GET", "/v1/plan?cells=2", Value::Null).await;
    assert!(plan["cells"].as_array().unwrap().iter().all(|told| told["is_borne"] == true), "{plan}");
    let (status, _) = lab.operator("GET", "/v1/plan?cells=9", Value::Null).await;
    assert_eq!(status, 400);
}
