//! The tenants' API over a real socket: who may what, what wrong input gets, and what a repeated call gets.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "set-up fails the test; deadlines are real time"
)]

mod stage;

use std::path::Path;
use std::time::{Duration, Instant};

use portico_control_plane::limits::CONSENT_NOTE_BYTES_MAX;
use portico_control_plane::store::sql;
use serde_json::{Value, json};
use stage::{Stage, spec, until};

#[test]
fn the_committed_openapi_document_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/v1.json");
    let made = serde_json::to_string_pretty(&portico_control_plane::http::openapi()).unwrap() + "\n";
    if std::env::var_os("PORTICO_REGENERATE").is_some() {
        std::fs::write(path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == made, "openapi/v1.json is not current; run this test with PORTICO_REGENERATE=1");
}

/// Every (method, path template) of the document.
fn calls() -> Vec<(String, String)> {
    let document = serde_json::to_value(portico_control_plane::http::openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let calls: Vec<_> = paths
        .iter()
        .flat_map(|(path, item)| {
            let methods = ["get", "post", "patch", "delete", "put"];
            methods
                .into_iter()
                .filter(|method| item.get(method).is_some())
                .map(|method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    assert!(calls.len() >= 25, "{calls:?}");
    calls
}

/// Whether the document names this status for the call.
fn is_documented(method: &str, path: &str, status: u16) -> bool {
    let document = serde_json::to_value(portico_control_plane::http::openapi()).unwrap();
    document["paths"][path][method.to_lowercase()]["responses"][status.to_string()].is_object()
}

/// A body that the call would take from whoever may make it.
fn body(method: &str, path: &str, tenant: &str, domain: &str) -> Value {
    match (method, path) {
        ("GET" | "DELETE", _) => Value::Null,
        (_, "/v1/tenants") => json!({ "name": "third" }),
        (_, "/v1/tokens") => json!({ "label": "x", "tenant_id": tenant }),
        (_, "/v1/tenants/{id}/domains") => spec("new.example"),
        (_, "/v1/tenants/{id}/domains/batch") => json!({ "items": [spec("new.example")] }),
        (_, "/v1/tenants/{id}/certificates") => {
            json!({ "hostnames": ["shop.example"], "chain_pem": "x", "key_pem": "x" })
        }
        (_, "/v1/tenants/{id}/certificate-requests") => json!({ "hostnames": ["shop.example"] }),
        (_, "/v1/webhooks" | "/v1/tenants/{id}/webhooks") => json!({ "url": "https://hooks.example/" }),
        (_, "/v1/webhooks/{id}/replay") => json!({ "since": 0 }),
        (_, "/v1/tenants/{id}/adoptions") => {
            json!({ "domains": [spec("new.example")], "chain_pem": "x", "key_pem": "x", "note": "x" })
        }
        (_, "/v1/tenants/{id}/purges") => json!({ "everything": true }),
        (_, "/v1/domains/attest") => json!({ "domain_ids": [domain], "note": "x" }),
        (_, "/v1/imports") => {
            json!({ "tenants": [{ "tenant": { "name": "third" }, "domains": [spec("new.example")] }] })
        }
        (_, "/v1/issuers/{name}/accounts") => json!({ "key_pem": "x" }),
        (_, "/v1/backups/switch-to-backup" | "/v1/backups/switch-back") => json!({ "tenant": tenant }),
        (_, "/v1/backups/drill") => json!({}),
        (_, "/v1/removals/sign-off") => json!({ "held": 0 }),
        (_, "/v1/edges/join-tokens") => json!({ "cell": "default" }),
        (_, "/v1/tenants/{id}/shared-group") => json!({ "group": "parked" }),
        (_, "/v1/tenants/{id}/shared-group/consent") => json!({ "group": "parked", "note": "x" }),
        (_, "/v1/default-certificate") => json!({ "hostname": "shop.example" }),
        (_, "/v1/cells/{cell}") => json!({ "custody": "edge" }),
        ("PATCH", _) => json!({ "cells": ["default"] }),
        (_, path) if path.ends_with("/suspend") => json!({ "mode": "legal" }),
        _ => Value::Null,
    }
}

/// What a stranger must not change.
async fn rows(stage: &Stage) -> String {
    let mut read = stage.running.parts.store.read().await.unwrap();
    let mut all = String::new();
    for query in [
        "SELECT group_concat(id || name || spec || coalesce(suspension, '') || revision) FROM tenants",
        "SELECT group_concat(id || name || spec || served || txt_token || proof_label || coalesce(suspension, '') || \
         revision || coalesce(deleted_at, '')) FROM domains",
        "SELECT group_concat(id || label || coalesce(revoked_at, '')) FROM tokens",
        "SELECT group_concat(id || names) FROM certificate_requests",
        "SELECT group_concat(sequence || action || subject) FROM audit",
        "SELECT group_concat(kind || subject) FROM events",
        "SELECT group_concat(actor || key) FROM idempotency",
        "SELECT group_concat(domain_id || method || coalesce(ended_at, '')) FROM proofs",
        "SELECT group_concat(id) FROM edges",
        "SELECT group_concat(id) FROM join_tokens",
        "SELECT group_concat(number || tenant_id) FROM purges",
        "SELECT group_concat(tenant_id || role || hex(certificate)) FROM origin_authorities",
        "SELECT group_concat(tenant_id || group_name || coalesce(consented_at, '')) FROM shared_groups",
        "SELECT group_concat(id || url || hex(sealed_secret)) FROM webhooks",
    ] {
        let row: Option<String> = sql::query_scalar(query).fetch_one(&mut read).await.unwrap();
        all += &row.unwrap_or_default();
        all += "\n";
    }
    all
}

/// Has the operator make something; answers its id.
async fn made(stage: &Stage, path: &str, wanted: Value) -> String {
    stage.operator("POST", path, wanted).await.body["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn every_call_needs_a_token_and_another_tenants_objects_do_not_exist() {
    let stage = Stage::start().await;
    let (one, _) = stage.tenant("one").await;
    let (_, stranger) = stage.tenant("two").await;
    let domain = stage.domain(&one, "shop.example").await["id"].as_str().unwrap().to_owned();
    let token = stage.operator("GET", "/v1/tokens", Value::Null).await.body["items"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    // With a filter that nothing passes: nothing is sent meanwhile.
    let wanted = json!({ "url": "https://hooks.example/", "kinds": ["no.such"] });
    let webhook = made(&stage, &format!("/v1/tenants/{one}/webhooks"), wanted).await;
    let wanted = json!({ "hostnames": ["shop.example"] });
    let request = made(&stage, &format!("/v1/tenants/{one}/certificate-requests"), wanted).await;
    // The reconciler's first look is part of what is there before.
    let shown = json!({ "id": domain });
    until(
        || stage.show(&shown),
        |shown| stage::condition(shown, "OwnershipProved")["reason"] != "NotChecked",
    )
    .await;
    let before = rows(&stage).await;
    let listed = ["domains", "certificates", "backups", "events", "tenants", "usage", "budget", "webhooks"];
    for (method, template) in calls() {
        let id = if template.starts_with("/v1/tokens") {
            &token
        } else if template.starts_with("/v1/webhooks") {
            &webhook
        } else if template.starts_with("/v1/certificate-requests") {
            &request
        } else if template.starts_with("/v1/tenants") {
            &one
        } else {
            &domain
        };
        let path = template.replace("{id}", id).replace("{domain}", &domain);
        let body = body(&method, &template, &one, &domain);
        let headers = [("if-match", "*"), ("idempotency-key", "k")];
        for wrong in [None, Some("ptk_x_y"), Some("Basic"), Some(&*format!("ptk_{token}_{}", "0".repeat(64)))]
        {
            let reply = stage.call(&method, &path, wrong, &headers, body.clone()).await;
            assert_eq!(reply.status, 401, "{method} {template} with {wrong:?}: {}", reply.text);
            assert!(is_documented(&method, &template, 401), "{method} {template}: 401");
            assert_eq!(reply.body["code"], "unauthorized");
        }
        let reply = stage.call(&method, &path, Some(&stranger), &headers, body).await;
        let expected: &[u16] = match template.as_str() {
            path if listed.contains(&&path["/v1/".len()..]) && method == "GET" => &[200],
            // An import refuses the part, not the call.
            "/v1/imports" => &[200],
            path if path.contains('{') => &[404],
            _ => &[403],
        };
        assert!(expected.contains(&reply.status), "{method} {template}: {} {}", reply.status, reply.text);
        assert!(is_documented(&method, &template, reply.status), "{method} {template}: {}", reply.status);
        assert!(!reply.text.contains(&one), "{method} {template} tells of the other tenant: {}", reply.text);
        let of_own = ["/v1/events", "/v1/tenants", "/v1/imports", "/v1/budget"];
        if reply.status == 200 && !of_own.contains(&&*template) {
            assert_eq!(reply.body["items"], json!([]), "{method} {template}");
        }
    }
    let by_name = stage.call("GET", "/v1/domains/shop.example", Some(&stranger), &[], Value::Null).await;
    assert_eq!(by_name.status, 404);
    let of_other =
        stage.call("GET", &format!("/v1/domains?tenant={one}"), Some(&stranger), &[], Value::Null).await;
    assert_eq!(of_other.body["items"], json!([]));
    assert_eq!(rows(&stage).await, before, "a stranger's calls changed something");
}

#[tokio::test]
async fn reserved_names_and_names_of_own_zones_are_refused_with_the_reason() {
    let stage = Stage::start().await;
    let (tenant, _) = stage.tenant("one").await;
    let path = format!("/v1/tenants/{tenant}/domains");
    for (name, words) in [("shop.internal", "private networks"), ("x.edge.provider.test", "cname_zone")] {
        let reply = stage.operator("POST", &path, json!({ "hostname": name })).await;
        assert_eq!((reply.status, &reply.body["code"]), (422, &json!("name_reserved")), "{}", reply.text);
        assert!(reply.body["errors"][0]["message"].as_str().unwrap().contains(words), "{}", reply.text);
    }
}

#[tokio::test]
async fn wrong_input_gets_a_problem_that_names_the_place() {
    let stage = Stage::start().await;
    let (one, _) = stage.tenant("one").await;
    let path = format!("/v1/tenants/{one}/domains");
    let json_type = [("content-type", "application/json")];
    let operator = Some(&*stage.operator);

    let reply = stage
        .raw("POST", &path, operator, &json_type, b"{\"hostname\": \"a.example\",\n oops}".to_vec())
        .await;
    assert_eq!((reply.status, &reply.body["code"]), (400, &json!("malformed_json")), "{}", reply.text);
    assert!(reply.body["detail"].as_str().unwrap().starts_with("line 2, column 2"), "{}", reply.text);
    assert_eq!(reply.headers["content-type"], "application/problem+json");
    assert_eq!(reply.body["request_id"], reply.headers["x-request-id"].to_str().unwrap());
    assert_eq!(reply.body["type"], "/errors/malformed_json");

    for (body, status, code, pointer) in [
        (json!({ "hostname": "a.example", "rotues": [] }), 422, "unknown_field", "/rotues"),
        (json!({}), 422, "missing_field", "/hostname"),
        (json!({ "hostname": "127.0.0.1" }), 422, "domain_name_invalid", "/hostname"),
        (json!({ "hostname": "co.uk" }), 422, "domain_name_invalid", "/hostname"),
        (
            json!({ "hostname": format!("{}.example", "a".repeat(300)) }),
            422,
            "domain_name_invalid",
            "/hostname",
        ),
        (
            json!({ "hostname": "a.example", "routes": [{ "action": { "type": "proxy", "origin": "http://127.0.0.1" } }] }),
            422,
            "origin_denied",
            "/routes/0/action/origin",
        ),
    ] {
        let reply = stage.operator("POST", &path, body.clone()).await;
        assert_eq!((reply.status, &reply.body["code"]), (status, &json!(code)), "{body}: {}", reply.text);
        assert_eq!(reply.body["errors"][0]["pointer"], pointer, "{body}");
    }

    let large = stage.raw("POST", &path, operator, &json_type, vec![b' '; (2 << 20) + 1]).await;
    assert_eq!((large.status, &large.body["code"]), (413, &json!("body_too_large")));
    let packed = stage
        .raw("POST", &path, operator, &[json_type[0], ("content-encoding", "gzip")], b"x".to_vec())
        .await;
    assert_eq!(packed.status, 415, "{}", packed.text);
    assert_eq!(
        stage.raw("POST", &path, operator, &[("content-type", "text/xml")], b"<a/>".to_vec()).await.status,
        415
    );
    assert_eq!(stage.operator("GET", "/v1/nothing", Value::Null).await.status, 404);
    assert_eq!(stage.operator("PUT", "/v1/tenants", json!({})).await.status, 405);
    assert_eq!(stage.operator("GET", "/v1/domains?limit=0", Value::Null).await.body["code"], "limit_invalid");
    assert_eq!(
        stage.operator("GET", "/v1/domains?cursor=zzz", Value::Null).await.body["code"],
        "cursor_invalid"
    );
    assert_eq!(
        stage.operator("GET", "/v1/domains?status=fine", Value::Null).await.body["code"],
        "status_invalid"
    );
    for (query, part) in
        [("limit=many", "limit"), ("stauts=active", "`stauts`"), ("ids=", "ids"), ("ids=x", "ids")]
    {
        let reply = stage.operator("GET", &format!("/v1/domains?{query}"), Value::Null).await;
        let detail = reply.body["detail"].as_str().unwrap_or_default();
        assert!(reply.status == 400 && detail.contains(part), "{query}: {}", reply.text);
    }
    let bytes = stage.operator("GET", "/v1/domains/%FF", Value::Null).await;
    assert_eq!((bytes.status, &bytes.body["code"]), (400, &json!("bad_request")), "{}", bytes.text);
    let token = json!({ "cell": "default", "ttl_seconds": 1 });
    assert_eq!(
        stage.operator("POST", "/v1/edges/join-tokens", token).await.body["errors"][0]["pointer"],
        "/ttl_seconds"
    );
}

#[tokio::test]
async fn the_default_certificate_is_that_of_a_served_domain_or_none() {
    let stage = Stage::start().await;
    let (one, _) = stage.tenant("one").await;
    stage.domain(&one, "claimed.example").await;
    let path = "/v1/default-certificate";
    for (name, code) in
        [("claimed.example", "not_served"), ("nobody.example", "not_served"), ("a..b", "invalid")]
    {
        let reply = stage.operator("PUT", path, json!({ "hostname": name })).await;
        let error = &reply.body["errors"][0];
        assert_eq!((reply.status, &error["pointer"]), (422, &json!("/hostname")), "{}", reply.text);
        assert_eq!(error["code"], code, "{}", reply.text);
    }
    assert_eq!(stage.operator("GET", path, Value::Null).await.status, 404);
    assert_eq!(stage.operator("DELETE", path, Value::Null).await.status, 204);
}

#[tokio::test]
async fn a_repeated_call_gets_the_first_answer_and_another_call_under_its_key_is_refused() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let path = format!("/v1/tenants/{one}/domains");
    let key = [("idempotency-key", "7f")];
    let first = stage.call("POST", &path, Some(&own), &key, spec("a.example")).await;
    assert_eq!(first.status, 201);
    let again = stage.call("POST", &path, Some(&own), &key, spec("a.example")).await;
    assert_eq!((again.status, &again.text), (201, &first.text));
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(again.headers["etag"], first.headers["etag"]);
    let other = stage.call("POST", &path, Some(&own), &key, spec("b.example")).await;
    assert_eq!((other.status, &other.body["code"]), (409, &json!("idempotency_key_reused")));
    // Another caller's key is another key.
    let operator = stage.call("POST", &path, Some(&stage.operator), &key, spec("b.example")).await;
    assert_eq!(operator.status, 201);
    // A day later it is forgotten: the same call then finds what is there.
    stage.clock.advance(Duration::from_secs(25 * 3600));
    let later = stage.call("POST", &path, Some(&own), &key, spec("a.example")).await;
    assert_eq!((later.status, &later.body["id"]), (200, &first.body["id"]));

    // Without a key: the same again is 200, other wishes are 409.
    let same = stage.call("POST", &path, Some(&own), &[], spec("A.Example.")).await;
    assert_eq!(same.status, 409, "another body: {}", same.text);
    let changed = json!({ "hostname": "a.example", "alone": true });
    assert_eq!(stage.call("POST", &path, Some(&own), &[], changed).await.body["code"], "domain_exists");
}

#[tokio::test]
async fn nobodys_change_is_overwritten() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let domain = stage.domain(&one, "shop.example").await;
    let path = format!("/v1/domains/{}", domain["id"].as_str().unwrap());
    let patch = json!({ "hsts_max_age_seconds": 60, "routes": null });
    let without = stage.call("PATCH", &path, Some(&own), &[], patch.clone()).await;
    assert_eq!((without.status, &without.body["code"]), (428, &json!("if_match_required")));
    assert!(without.body["detail"].as_str().unwrap().contains("GET the object"), "{}", without.text);
    let stale = stage.call("PATCH", &path, Some(&own), &[("if-match", "\"99\"")], patch.clone()).await;
    assert_eq!((stale.status, &stale.body["code"]), (412, &json!("revision_mismatch")));
    let seen = stage.call("GET", &path, Some(&own), &[], Value::Null).await;
    let etag = seen.headers["etag"].to_str().unwrap().to_owned();
    let done = stage.call("PATCH", &path, Some(&own), &[("if-match", &etag)], patch.clone()).await;
    assert_eq!((done.status, &done.body["hsts_max_age_seconds"]), (200, &json!(60)), "{}", done.text);
    assert!(done.body["routes"].is_null());
    assert_eq!(
        stage.call("PATCH", &path, Some(&own), &[("if-match", &etag)], patch.clone()).await.status,
        412
    );
    // What changes nothing is no change.
    for nothing in [json!({}), patch] {
        let same = stage.call("PATCH", &path, Some(&own), &[("if-match", "*")], nothing).await;
        assert_eq!((same.status, &same.body["revision"]), (200, &done.body["revision"]), "{}", same.text);
        assert_eq!(same.headers["etag"], done.headers["etag"]);
    }

    let renamed = json!({ "hostname": "other.example" });
    let renamed = stage.call("PATCH", &path, Some(&own), &[("if-match", "*")], renamed).await;
    assert_eq!((renamed.status, &renamed.body["errors"][0]["code"]), (422, &json!("immutable")));
    let unknown = stage.call("PATCH", &path, Some(&own), &[("if-match", "*")], json!({ "hots": 1 })).await;
    assert_eq!(unknown.body["errors"][0]["pointer"], "/hots", "{}", unknown.text);

    assert_eq!(stage.call("DELETE", &path, Some(&own), &[], Value::Null).await.status, 428);
    for _ in 0..2 {
        let gone = stage.call("DELETE", &path, Some(&own), &[("if-match", "*")], Value::Null).await;
        assert_eq!(gone.status, 204, "gone is deleted");
    }
    assert_eq!(stage.call("GET", &path, Some(&own), &[], Value::Null).await.status, 404);
}

#[tokio::test]
async fn an_array_for_an_object_and_a_field_twice_change_nothing() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let domain = stage.domain(&one, "shop.example").await;
    let (domain_path, tenant_path) =
        (format!("/v1/domains/{}", domain["id"].as_str().unwrap()), format!("/v1/tenants/{one}"));
    let headers = [("content-type", "application/merge-patch+json"), ("if-match", "*")];
    for (path, token, patch, pointer, code) in [
        (&domain_path, &own, r#"{"maintenance":["soon",60]}"#, "/maintenance", "invalid_value"),
        (
            &domain_path,
            &own,
            r#"{"routes":[{"action":{"type":"proxy","origins":[["http://a.example",3]]}}]}"#,
            "/routes/0/action/origins/0",
            "invalid_value",
        ),
        (&domain_path, &own, r#"{"http2":true,"http2":false}"#, "/http2", "duplicate_field"),
        (&tenant_path, &stage.operator, r#"{"limits":[7,8]}"#, "/limits", "invalid_value"),
    ] {
        let refused = stage.raw("PATCH", path, Some(token), &headers, patch.as_bytes().to_vec()).await;
        let error = &refused.body["errors"][0];
        assert_eq!(
            (refused.status, &error["pointer"], &error["code"]),
            (422, &json!(pointer), &json!(code)),
            "{patch}: {}",
            refused.text
        );
    }
    let still = stage.call("GET", &domain_path, Some(&own), &[], Value::Null).await;
    assert!(still.body["maintenance"].is_null() && still.body["http2"] == true, "{}", still.text);
}

fn asking(wish: Value) -> Value {
    json!({ "client_certificates": wish })
}

#[tokio::test]
async fn a_tenant_sets_rules_and_maintenance_itself_and_a_wrong_one_changes_nothing() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let domain = stage.domain(&one, "shop.example").await;
    let path = format!("/v1/domains/{}", domain["id"].as_str().unwrap());
    let patch =
        async |change: Value| stage.call("PATCH", &path, Some(&own), &[("if-match", "*")], change).await;
    let routes = json!([
        {
            "path_prefix": "/api", "methods": ["POST"], "headers": [{ "name": "x-beta", "equals": "on" }],
            "replace_prefix": "/v2",
            "request_headers": { "set": { "x-from": "edge" }, "remove": ["cookie"] },
            "response_headers": { "remove": ["server"] },
            "action": { "type": "proxy", "origin": "https://origin.example" },
        },
        {
            "path_prefix": "/", "exact": true,
            "action": { "type": "redirect", "to": "https://b.example", "status": 308, "keep_path": false, "keep_query": true },
        },
        { "path_prefix": "/", "action": { "type": "static", "status": 204, "content_type": "text/plain", "body": "" } },
    ]);
    let done = patch(json!({ "routes": routes })).await;
    assert_eq!(
        (done.status, &done.body["routes"]),
        (200, &routes),
        "given back as it was given: {}",
        done.text
    );

    let mut late = routes.clone();
    late.as_array_mut().unwrap().push(json!({ "path_prefix": "/x", "action": routes[2]["action"] }));
    let mut forbidden = routes.clone();
    forbidden[0]["request_headers"]["set"]["x-forwarded-for"] = json!("1.2.3.4");
    for (change, pointer, code) in [
        (json!({ "routes": late }), "/routes/3/path_prefix", "unreachable"),
        (json!({ "routes": forbidden }), "/routes/0/request_headers/set/x-forwarded-for", "header_refused"),
        (json!({ "hsts_preload": true }), "/hsts_preload", "incomplete"),
        (json!({ "early_data": true, "http3": false }), "/early_data", "conflict"),
        (
            json!({ "maintenance": { "retry_after_seconds": 0 } }),
            "/maintenance/retry_after_seconds",
            "out_of_range",
        ),
        (json!({ "maintenance": { "txt": "x" } }), "/maintenance/txt", "unknown_field"),
        (
            asking(json!({ "mode": "require", "ca_pem": "x" })),
            "/client_certificates/ca_pem",
            "invalid_certificate",
        ),
        (asking(json!({ "mode": "require" })), "/client_certificates/ca_pem", "missing_field"),
        (asking(json!({ "mode": "no", "ca_pem": "x" })), "/client_certificates/mode", "invalid_value"),
    ] {
        let refused = patch(change.clone()).await;
        let error = &refused.body["errors"][0];
        assert_eq!(
            (refused.status, &error["pointer"], &error["code"]),
            (422, &json!(pointer), &json!(code)),
            "{change}"
        );
    }
    assert_eq!(stage.show(&domain).await["routes"], routes);

    let closed = patch(json!({ "maintenance": { "text": "back at noon" } })).await;
    let expected = json!({ "text": "back at noon", "retry_after_seconds": 300 });
    assert_eq!((closed.status, &closed.body["maintenance"]), (200, &expected), "{}", closed.text);
    let open = patch(json!({ "maintenance": null })).await;
    assert!(open.status == 200 && open.body["maintenance"].is_null(), "{}", open.text);
}

#[tokio::test]
async fn a_redirect_to_itself_is_refused_and_a_domain_without_routes_is_not() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let at = format!("/v1/tenants/{one}/domains");
    let add = async |host: &str, routes: Value| {
        let body = json!({ "hostname": host, "routes": routes });
        stage.call("POST", &at, Some(&own), &[], body).await
    };
    let redirect = |path: &str, to: &str, keep_path: bool| json!([{ "path_prefix": path, "action": { "type": "redirect", "to": to, "keep_path": keep_path } }]);
    for routes in [
        redirect("/", "https://loop.example", true),
        redirect("/", "https://LOOP.example:443/", false),
        redirect("/", "http://loop.example/x", true),
        redirect("/old", "https://loop.example/old/new", false),
    ] {
        let refused = add("loop.example", routes.clone()).await;
        assert_eq!(refused.status, 422, "{routes}: {}", refused.text);
        assert_eq!(refused.body["errors"][0]["pointer"], "/routes/0/action/to");
        assert_eq!(refused.body["errors"][0]["code"], "circular");
    }
    for (host, routes) in [
        ("a.example", redirect("/old", "https://a.example/new", false)),
        ("b.example", redirect("/", "https://b.example:8443", true)),
        ("c.example", redirect("/", "https://www.c.example", true)),
        ("d.example", json!([])),
    ] {
        assert_eq!(add(host, routes.clone()).await.status, 201, "{host} {routes}");
    }
    let made = add("e.example", json!([])).await;
    let path = format!("/v1/domains/{}", made.body["id"].as_str().unwrap());
    let wrong = json!({ "routes": redirect("/", "https://e.example", true) });
    let refused = stage.call("PATCH", &path, Some(&own), &[("if-match", "*")], wrong).await;
    assert_eq!((refused.status, &refused.body["errors"][0]["code"]), (422, &json!("circular")));
}

/// Its grant was withdrawn: an old route's origin is refused at the next change, but it is not what the change is about.
#[tokio::test]
async fn a_wrong_new_route_is_named_before_an_old_one_whose_grant_is_gone() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let tenant = format!("/v1/tenants/{one}");
    let grant = async |grants: Value| {
        let body = json!({ "egress_grants": grants });
        let set = stage.call("PATCH", &tenant, Some(&stage.operator), &[("if-match", "*")], body).await;
        assert_eq!(set.status, 200, "{}", set.text);
    };
    grant(json!([{ "cidr": "10.1.0.0/16", "ports": [8080] }])).await;
    let old =
        json!({ "path_prefix": "/old", "action": { "type": "proxy", "origin": "http://10.1.0.1:8080" } });
    let body = json!({ "hostname": "a.example", "routes": [old] });
    let made = stage.call("POST", &format!("{tenant}/domains"), Some(&own), &[], body).await;
    assert_eq!(made.status, 201, "{}", made.text);
    grant(json!([])).await;
    let new = json!({ "action": { "type": "proxy", "origin": "ftp://x" } });
    let path = format!("/v1/domains/{}", made.body["id"].as_str().unwrap());
    let body = json!({ "routes": [old, new] });
    let refused = stage.call("PATCH", &path, Some(&own), &[("if-match", "*")], body).await;
    assert_eq!(refused.status, 422, "{}", refused.text);
    let pointers: Vec<_> =
        refused.body["errors"].as_array().unwrap().iter().map(|error| error["pointer"].clone()).collect();
    assert_eq!(pointers, ["/routes/1/action/origin", "/routes/0/action/origin"], "{}", refused.text);
}

#[tokio::test]
async fn batches_answer_for_each_item_and_atomic_ones_do_all_or_nothing() {
    let stage = Stage::start().await;
    let (one, _) = stage.tenant("one").await;
    let path = format!("/v1/tenants/{one}/domains/batch");
    let items = json!([spec("a.example"), spec("bad name"), spec("a.example"), spec("b.example")]);
    let atomic = stage.operator("POST", &path, json!({ "items": items, "atomic": true })).await;
    let status = |reply: &stage::Reply| {
        let results = reply.body["results"].as_array().unwrap();
        results.iter().map(|result| result["status"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(status(&atomic), [424, 422, 424, 424], "{}", atomic.text);
    assert_eq!(stage.operator("GET", "/v1/domains", Value::Null).await.body["items"], json!([]));

    let loose = stage.operator("POST", &path, json!({ "items": items })).await;
    assert_eq!(status(&loose), [201, 422, 200, 201], "{}", loose.text);
    assert_eq!(loose.body["results"][1]["problem"]["code"], "domain_name_invalid");
    let many: Vec<Value> = (0..1001).map(|number| spec(&format!("n{number}.example"))).collect();
    assert_eq!(stage.operator("POST", &path, json!({ "items": many })).await.status, 422);
}

#[tokio::test]
async fn lists_go_on_from_a_cursor_and_filter() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let (two, _) = stage.tenant("two").await;
    let items: Vec<Value> = (0..25).map(|number| spec(&format!("n{number}.shop.example"))).collect();
    stage.operator("POST", &format!("/v1/tenants/{one}/domains/batch"), json!({ "items": items })).await;
    stage.domain(&two, "percent.example").await;
    for filter in ["", "status=pending&"] {
        let (mut names, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let path = format!("/v1/domains?{filter}limit=10{cursor}");
            let page = stage.call("GET", &path, Some(&own), &[], Value::Null).await.body;
            let items = page["items"].as_array().unwrap();
            names.extend(items.iter().map(|item| item["hostname"].as_str().unwrap().to_owned()));
            pages += 1;
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!((names.len(), pages), (25, 3), "{filter}");
        names.dedup();
        assert_eq!(names.len(), 25, "a domain came twice");
    }
    let count = async |path: &str| {
        stage.operator("GET", path, Value::Null).await.body["items"].as_array().unwrap().len()
    };
    assert_eq!(count("/v1/domains").await, 26);
    assert_eq!(count(&format!("/v1/domains?tenant={two}")).await, 1);
    assert_eq!(count("/v1/domains?q=N2.shop").await, 1);
    // By id: only those asked for, and of those only the caller's.
    let all = stage.operator("GET", "/v1/domains", Value::Null).await.body;
    let id = |index: usize| all["items"][index]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/domains?ids={},{}", id(3), id(25));
    assert_eq!(count(&path).await, 2);
    let seen = stage.call("GET", &path, Some(&own), &[], Value::Null).await.body;
    assert_eq!((&seen["items"][0]["id"], seen["items"].as_array().unwrap().len()), (&json!(id(3)), 1));
    assert_eq!(count("/v1/domains?q=%25").await, 0, "a percent sign is no wildcard");
    assert_eq!(count("/v1/domains?status=active").await, 0);
    assert_eq!(count("/v1/tenants?name=two").await, 1);
    assert_eq!(count("/v1/tenants?limit=1").await, 1);
}

#[tokio::test]
async fn a_tenant_has_only_so_many_claims() {
    let stage = Stage::start().await;
    let made = stage.operator("POST", "/v1/tenants", json!({ "name": "small", "domains_max": 2 })).await;
    let small = made.body["id"].as_str().unwrap().to_owned();
    for (name, status) in [("a.example", 201), ("b.example", 201), ("c.example", 409)] {
        let reply = stage.operator("POST", &format!("/v1/tenants/{small}/domains"), spec(name)).await;
        assert_eq!(reply.status, status, "{}", reply.text);
    }
    let (one, own) = stage.tenant("one").await;
    let items: Vec<Value> = (0..101).map(|number| spec(&format!("n{number}.example"))).collect();
    let path = format!("/v1/tenants/{one}/domains/batch");
    let reply = stage.call("POST", &path, Some(&own), &[], json!({ "items": items })).await;
    assert_eq!(reply.body["results"][99]["status"], 201);
    assert_eq!(reply.body["results"][100]["problem"]["code"], "pending_claims_max_reached");
}

#[tokio::test]
async fn a_tenant_has_error_pages_of_its_own() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let (_, other) = stage.tenant("two").await;
    let at = format!("/v1/tenants/{one}");
    let patch = async |token: &str, pages: Value| {
        stage.call("PATCH", &at, Some(token), &[("if-match", "*")], json!({ "error_pages": pages })).await
    };
    let html = |body: &str| json!({ "content_type": "text/html; charset=utf-8", "body": body });
    let set = patch(&stage.operator, json!({ "503": { "body": "<h1>Busy</h1>" } })).await;
    assert_eq!(set.status, 200, "{}", set.text);
    assert_eq!(set.body["error_pages"], json!({ "503": html("<h1>Busy</h1>") }));
    let sorry = json!({ "content_type": "application/json", "body": "{\"sorry\": true}" });
    let set = patch(&own, json!({ "502": sorry })).await;
    let both = json!({ "502": sorry, "503": html("<h1>Busy</h1>") });
    assert_eq!((set.status, &set.body["error_pages"]), (200, &both), "{}", set.text);

    let (large, half) = ("x".repeat(65_537), "x".repeat(65_536));
    for (pages, pointer) in [
        (json!({ "503": { "body": large } }), "/error_pages/503/body"),
        (json!({ "503": { "body": "" } }), "/error_pages/503/body"),
        (json!({ "502": { "content_type": "application/json", "body": "{" } }), "/error_pages/502/body"),
        (json!({ "503": { "content_type": "text/css", "body": "x" } }), "/error_pages/503/content_type"),
        (json!({ "503": { "content_type": null } , "504": {} }), "/error_pages/504/body"),
        (json!({ "503": "busy" }), "/error_pages/503"),
        (json!({ "500": { "body": "x" } }), "/error_pages/500"),
        (json!({ "404": { "body": half }, "503": { "body": half } }), "/error_pages"),
    ] {
        for token in [&stage.operator, &own] {
            let refused = patch(token, pages.clone()).await;
            assert_eq!(refused.status, 422, "{}", refused.text);
            assert_eq!(refused.body["errors"][0]["pointer"], pointer, "{}", refused.text);
        }
    }
    assert_eq!(patch(&other, json!(null)).await.status, 404);
    // A tenant decides its pages, and nothing beside them.
    for more in ["limits", "domains_max", "no_such_field"] {
        let body = json!({ "error_pages": {}, more: null });
        let refused = stage.call("PATCH", &at, Some(&own), &[("if-match", "*")], body).await;
        assert_eq!(
            (refused.status, &refused.body["code"]),
            (403, &json!("operator_only")),
            "{}",
            refused.text
        );
    }
    let shown = stage.call("GET", &at, Some(&own), &[], Value::Null).await;
    assert_eq!(shown.body["error_pages"], both, "unchanged");
    // Its pages are not a wish that a second creation could miss.
    let again = json!({ "name": "one", "error_pages": both });
    assert_eq!(stage.operator("POST", "/v1/tenants", again).await.status, 200);

    let left = patch(&own, json!({ "503": null })).await;
    assert_eq!(left.body["error_pages"], json!({ "502": sorry }), "{}", left.text);
    let none = patch(&own, Value::Null).await;
    assert_eq!((none.status, none.body.get("error_pages")), (200, None));
    let wrong = json!({ "name": "three", "error_pages": { "503": { "body": "" } } });
    let refused = stage.operator("POST", "/v1/tenants", wrong).await;
    assert_eq!(refused.body["errors"][0]["pointer"], "/error_pages/503/body", "{}", refused.text);
}

/// 4 MiB of them are 32 tenants with all that one may have.
#[tokio::test]
async fn large_error_pages_make_a_list_of_tenants_short_and_lose_none() {
    let stage = Stage::start().await;
    let page = json!({ "body": "x".repeat(65_536) });
    for n in 0..40 {
        let spec = json!({ "name": format!("t{n}"), "error_pages": { "502": page, "503": page } });
        let made = stage.operator("POST", "/v1/tenants", spec).await;
        assert_eq!(made.status, 201, "{}", made.text);
    }
    let (mut names, mut pages, mut cursor) = (Vec::new(), 0, String::new());
    loop {
        let listed = stage.operator("GET", &format!("/v1/tenants?limit=200{cursor}"), Value::Null).await;
        let items = listed.body["items"].as_array().unwrap();
        assert!((1..=32).contains(&items.len()), "{}", items.len());
        names.extend(items.iter().map(|tenant| tenant["name"].as_str().unwrap().to_owned()));
        pages += 1;
        let Some(next) = listed.body["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!((names.len(), pages), (40, 2));
    assert!((0..40).all(|n| names.contains(&format!("t{n}"))), "{names:?}");
}

#[tokio::test]
async fn an_operator_limits_what_a_tenant_takes_of_each_edge_and_a_tenant_does_not() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let at = format!("/v1/tenants/{one}");
    let patch = async |token: &str, limits: Value| {
        stage.call("PATCH", &at, Some(token), &[("if-match", "*")], json!({ "limits": limits })).await
    };
    let set =
        patch(&stage.operator, json!({ "requests_per_second": 100, "bytes_per_second": 1_000_000 })).await;
    assert_eq!(set.status, 200, "{}", set.text);
    assert_eq!(set.body["limits"], json!({ "requests_per_second": 100, "bytes_per_second": 1_000_000 }));
    let taken_back = patch(&stage.operator, json!({ "requests_per_second": null, "exchanges": 7 })).await;
    assert_eq!(taken_back.body["limits"], json!({ "bytes_per_second": 1_000_000, "exchanges": 7 }));
    for (limits, pointer) in [
        (json!({ "exchanges": 0 }), "/limits/exchanges"),
        (json!({ "bytes_per_second": 1000 }), "/limits/bytes_per_second"),
        (json!({ "request_body_bytes": 1_u64 << 41 }), "/limits/request_body_bytes"),
        (json!({ "connections": 0 }), "/limits/connections"),
        (json!({ "cache_bytes": 0 }), "/limits/cache_bytes"),
        (json!({ "requests_per_second": "many" }), "/limits/requests_per_second"),
        (json!({ "requests": 1 }), "/limits/requests"),
    ] {
        let refused = patch(&stage.operator, limits).await;
        assert_eq!(refused.status, 422, "{}", refused.text);
        assert_eq!(refused.body["errors"][0]["pointer"], pointer, "{}", refused.text);
    }
    assert_eq!(patch(&own, json!({ "exchanges": 1_000_000 })).await.status, 403);
    let shown = stage.call("GET", &at, Some(&own), &[], Value::Null).await;
    assert_eq!(shown.body["limits"], json!({ "bytes_per_second": 1_000_000, "exchanges": 7 }), "unchanged");
    let none = patch(&stage.operator, Value::Null).await;
    assert_eq!((none.status, none.body.get("limits")), (200, None));
    let spec = json!({ "name": "two", "limits": { "exchanges": 0 } });
    let refused = stage.operator("POST", "/v1/tenants", spec).await;
    assert_eq!((refused.status, &refused.body["errors"][0]["pointer"]), (422, &json!("/limits/exchanges")));
}

#[tokio::test]
async fn suspensions_are_durable_end_by_themselves_and_are_seen_in_the_status() {
    let stage = Stage::start().await;
    let (one, _) = stage.tenant("one").await;
    let domain = stage.domain(&one, "shop.example").await;
    let at = format!("/v1/domains/{}", domain["id"].as_str().unwrap());
    let answer =
        stage.operator("POST", &format!("{at}/suspend"), json!({ "mode": "legal", "reason": "court" })).await;
    assert_eq!((answer.status, answer.body), (200, json!({ "acked": [], "not_acked": [] })));
    assert_eq!(stage.show(&domain).await["status"], "suspended");
    assert_eq!(stage.operator("POST", &format!("{at}/resume"), Value::Null).await.status, 200);
    assert_eq!(stage.show(&domain).await["status"], "pending");

    let until = json!({ "mode": "page", "until": "2100-01-01T00:00:00Z" });
    stage.operator("POST", &format!("/v1/tenants/{one}/suspend"), until).await;
    assert_eq!(stage.show(&domain).await["suspension"]["mode"], "page");
    stage.clock.advance(Duration::from_secs(80 * 366 * 86_400));
    assert_eq!(stage.show(&domain).await["suspension"], Value::Null);
}

#[tokio::test]
async fn a_proxy_route_says_what_is_compressed_and_who_its_origin_is_told_of() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let domain = stage.domain(&one, "shop.example").await;
    let at = format!("/v1/domains/{}", domain["id"].as_str().unwrap());
    let patch = async |field: &str, value: Value| {
        let mut action = json!({ "type": "proxy", "origin": "http://origin.example" });
        action[field] = value;
        let body = json!({ "routes": [{ "action": action }] });
        stage.call("PATCH", &at, Some(&own), &[("if-match", "*")], body).await
    };
    let policy = json!({ "codings": ["br", "gzip"], "min_bytes": 200, "content_types": ["text/*"] });
    let taken = patch("compression", policy.clone()).await;
    let action = &taken.body["routes"][0]["action"];
    assert_eq!((taken.status, &action["compression"]), (200, &policy), "{}", taken.text);
    let taken = patch("proxy_protocol", json!("v2")).await;
    let action = &taken.body["routes"][0]["action"];
    assert_eq!((taken.status, &action["proxy_protocol"]), (200, &json!("v2")), "{}", taken.text);
    for (policy, pointer) in [
        (json!({ "codings": ["br", "br"] }), "codings/1"),
        (json!({ "min_bytes": 1_048_577 }), "min_bytes"),
        (json!({ "content_types": ["text/html", "text"] }), "content_types/1"),
    ] {
        let refused = patch("compression", policy.clone()).await;
        let wanted = json!(format!("/routes/0/action/compression/{pointer}"));
        assert_eq!((refused.status, &refused.body["errors"][0]["pointer"]), (422, &wanted), "{policy}");
    }
    for (field, value) in [("compression", json!({ "level": 9 })), ("proxy_protocol", json!("v3"))] {
        assert_eq!(patch(field, value.clone()).await.status, 422, "{value}");
    }
}

#[tokio::test]
async fn a_tenant_asks_for_a_cache_and_a_wrong_policy_is_pointed_at() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let domain = stage.domain(&one, "shop.example").await;
    let at = format!("/v1/domains/{}", domain["id"].as_str().unwrap());
    let with = |cache: Value| json!({ "routes": [{ "action": { "type": "proxy", "origin": "http://origin.example", "cache": cache } }] });
    let patch =
        async |cache: Value| stage.call("PATCH", &at, Some(&own), &[("if-match", "*")], with(cache)).await;
    let policy = json!({ "default_ttl_seconds": 60, "query": { "ignore": ["utm_*"] } });
    let kept = patch(policy.clone()).await;
    assert_eq!((kept.status, &kept.body["routes"][0]["action"]["cache"]), (200, &policy), "{}", kept.text);
    for (cache, pointer) in [
        (json!({ "default_ttl_seconds": 31_536_001 }), "default_ttl_seconds"),
        (json!({ "error_ttl_seconds": 3_601 }), "error_ttl_seconds"),
        (json!({ "stale_if_error_seconds": 31_536_001 }), "stale_if_error_seconds"),
        (json!({ "max_object_bytes": 1 }), "max_object_bytes"),
        (json!({ "query": { "ignore": ["a", "b="] } }), "query/ignore/1"),
    ] {
        let refused = patch(cache.clone()).await;
        let wanted = format!("/routes/0/action/cache/{pointer}");
        assert_eq!(
            (refused.status, &refused.body["errors"][0]["pointer"]),
            (422, &json!(wanted)),
            "{cache}: {}",
            refused.text
        );
    }
}

#[tokio::test]
async fn a_cache_is_purged_by_its_tenant_alone_and_only_of_its_own_hosts() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let (two, stranger) = stage.tenant("two").await;
    stage.domain(&one, "shop.example").await;
    stage.domain(&two, "theirs.example").await;
    stage.domain(&one, "*.wild.example").await;
    let purges = format!("/v1/tenants/{one}/purges");
    let purge = async |token: &str, body: Value| stage.call("POST", &purges, Some(token), &[], body).await;
    let done =
        purge(&own, json!({ "urls": ["https://shop.example/a?b"], "tags": ["x"], "soft": true })).await;
    assert_eq!((done.status, done.body), (200, json!({ "number": 1, "done": [], "pending": [] })));
    assert_eq!(purge(&stage.operator, json!({ "everything": true })).await.body["number"], 2);
    assert_eq!(purge(&stranger, json!({ "everything": true })).await.status, 404);
    assert_eq!(
        stage
            .call(
                "POST",
                &format!("/v1/tenants/{two}/purges"),
                Some(&own),
                &[],
                json!({ "everything": true })
            )
            .await
            .status,
        404
    );
    for (body, pointer) in [
        (json!({}), ""),
        (json!({ "urls": vec!["https://shop.example/"; 101] }), ""),
        (json!({ "urls": ["/a"] }), "/urls/0"),
        (json!({ "urls": ["https://shop.example/#a"] }), "/urls/0"),
        (json!({ "prefixes": ["https://shop.example/a", "https://shop.example/?b"] }), "/prefixes/1"),
        (json!({ "hosts": ["a b"] }), "/hosts/0"),
        (json!({ "hosts": ["shop.example", "shop.example:8443"] }), "/hosts/1"),
        (json!({ "urls": ["https://other.example/"] }), "/urls/0"),
        (json!({ "prefixes": ["https://shop.example/a", "https://sub.shop.example/"] }), "/prefixes/1"),
        (json!({ "hosts": ["theirs.example"] }), "/hosts/0"),
        (json!({ "tags": ["a,b"] }), "/tags/0"),
        (json!({ "everything": true, "more": 1 }), "/more"),
    ] {
        let refused = purge(&own, body.clone()).await;
        assert_eq!(
            (refused.status, &refused.body["errors"][0]["pointer"]),
            (422, &json!(pointer)),
            "{body}: {}",
            refused.text
        );
    }
    assert_eq!(
        purge(&own, json!({ "everything": true })).await.body["number"],
        3,
        "what was refused has no number"
    );
    let stranger = purge(&own, json!({ "hosts": ["theirs.example"] })).await;
    assert_eq!(stranger.body["code"], "unknown_host", "{}", stranger.text);
    let below = purge(&own, json!({ "urls": ["https://a.wild.example:8443/x"] })).await;
    assert_eq!(below.status, 200, "{}", below.text);
}

#[tokio::test]
async fn a_suspended_name_is_not_served_again_by_deleting_and_claiming_it() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let domain = stage.domain(&one, "shop.example").await;
    let at = format!("/v1/domains/{}", domain["id"].as_str().unwrap());
    stage.operator("POST", &format!("{at}/suspend"), json!({ "mode": "legal", "reason": "court" })).await;
    let delete =
        async |token: &str| stage.call("DELETE", &at, Some(token), &[("if-match", "*")], Value::Null).await;
    let refused = delete(&own).await;
    assert_eq!((refused.status, &refused.body["code"]), (409, &json!("suspended")), "{}", refused.text);
    assert_eq!(stage.show(&domain).await["status"], "suspended");
    assert_eq!(delete(&stage.operator).await.status, 204, "an operator may");

    // One whose suspension is over is the tenant's own again.
    let domain = stage.domain(&one, "later.example").await;
    let at = format!("/v1/domains/{}", domain["id"].as_str().unwrap());
    let until = json!({ "mode": "page", "until": "2100-01-01T00:00:00Z" });
    stage.operator("POST", &format!("{at}/suspend"), until).await;
    stage.clock.advance(Duration::from_secs(80 * 366 * 86_400));
    let gone = stage.call("DELETE", &at, Some(&own), &[("if-match", "*")], Value::Null).await;
    assert_eq!(gone.status, 204, "{}", gone.text);
}

#[tokio::test]
async fn a_tenant_puts_its_names_into_no_cell_that_it_was_not_given() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let claim = async |name: &str, cells: Value| {
        let mut wanted = spec(name);
        wanted["cells"] = cells;
        stage.call("POST", &format!("/v1/tenants/{one}/domains"), Some(&own), &[], wanted).await
    };
    let refused = claim("a.example", json!(["default", "others-own"])).await;
    assert_eq!((refused.status, &refused.body["errors"][0]["code"]), (422, &json!("foreign_cell")));
    let made = claim("a.example", json!(["default"])).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let at = format!("/v1/domains/{}", made.body["id"].as_str().unwrap());
    let patch = async |token: &str, cells: Value| {
        stage.call("PATCH", &at, Some(token), &[("if-match", "*")], json!({ "cells": cells })).await.status
    };
    assert_eq!(patch(&own, json!(["others-own"])).await, 422);
    stage.operator("POST", "/v1/edges/join-tokens", json!({ "cell": "others-own" })).await;
    assert_eq!(patch(&stage.operator, json!(["others-own"])).await, 200, "an operator may");
    // What an operator set stays when the tenant changes something else.
    let other = json!({ "alone": true });
    let kept = stage.call("PATCH", &at, Some(&own), &[("if-match", "*")], other).await;
    assert_eq!((kept.status, &kept.body["cells"]), (200, &json!(["others-own"])), "{}", kept.text);
}

/// Two issuers, of which the fleet has the first alone.
async fn with_issuers() -> Stage {
    Stage::start_with(|_, _| {
        let issuer = |name: &str| {
            format!("[[issuer]]\nname = \"{name}\"\ndirectory = \"https://127.0.0.1:9/{name}\"\n")
        };
        issuer("first") + &issuer("second") + "by_default = false\n"
    })
    .await
}

#[tokio::test]
async fn a_wish_for_a_backup_certificate_needs_a_second_issuer() {
    let stage = with_issuers().await;
    let (one, own) = stage.tenant("one").await;
    let path = format!("/v1/tenants/{one}");
    let patch = async |body: Value| {
        stage.call("PATCH", &path, Some(&stage.operator), &[("if-match", "*")], body).await
    };
    let refused = |answer: &stage::Reply, pointer: &str| {
        let error = &answer.body["errors"][0];
        assert_eq!(answer.status, 422, "{}", answer.text);
        assert_eq!((&error["pointer"], &error["code"]), (&json!(pointer), &json!("no_other_issuer")));
        assert!(answer.text.contains("has first alone"), "{}", answer.text);
    };
    refused(&patch(json!({ "backup_certificates": true })).await, "/backup_certificates");
    let body = json!({ "name": "two", "backup_certificates": true });
    refused(&stage.operator("POST", "/v1/tenants", body).await, "/backup_certificates");
    let wish = || {
        let mut wish = spec("a.example");
        wish["backup_certificate"] = json!(true);
        wish
    };
    let domains = format!("{path}/domains");
    refused(&stage.call("POST", &domains, Some(&own), &[], wish()).await, "/backup_certificate");

    let both = patch(json!({ "issuers": ["second", "first"], "backup_certificates": true })).await;
    assert_eq!((both.status, &both.body["backup_certificates"]), (200, &json!(true)), "{}", both.text);
    let made = stage.call("POST", &domains, Some(&own), &[], wish()).await;
    assert_eq!((made.status, &made.body["backup_certificate"]), (201, &json!(true)), "{}", made.text);
    refused(&patch(json!({ "issuers": ["first"] })).await, "/backup_certificates");
    let none = patch(json!({ "issuers": ["first"], "backup_certificates": null })).await;
    assert_eq!(none.status, 200, "a domain's wish waits for a second issuer: {}", none.text);
}

#[tokio::test]
async fn a_tenant_names_issuers_that_there_are() {
    let stage = with_issuers().await;
    let (one, own) = stage.tenant("one").await;
    let path = format!("/v1/tenants/{one}");
    let patch = async |issuers: Value| {
        let body = json!({ "issuers": issuers });
        stage.call("PATCH", &path, Some(&stage.operator), &[("if-match", "*")], body).await
    };
    let good = patch(json!(["second", "first"])).await;
    assert_eq!((good.status, &good.body["issuers"]), (200, &json!(["second", "first"])), "{}", good.text);
    for (issuers, pointer, code) in [
        (json!(["first", "letsencrypt"]), "/issuers/1", "unknown_issuer"),
        (json!(["first", "second", "first"]), "/issuers/2", "twice"),
    ] {
        let refused = patch(issuers.clone()).await;
        let error = &refused.body["errors"][0];
        assert_eq!(refused.status, 422, "{}", refused.text);
        assert_eq!((&error["pointer"], &error["code"]), (&json!(pointer), &json!(code)), "{}", refused.text);
        let body = json!({ "name": "two", "issuers": issuers });
        let made = stage.operator("POST", "/v1/tenants", body.clone()).await;
        assert_eq!(made.body["errors"][0]["pointer"], pointer, "{}", made.text);
        let import = json!({ "tenants": [{ "tenant": body, "domains": [spec("a.example")] }] });
        let imported = stage.operator("POST", "/v1/imports", import).await;
        assert!(imported.text.contains(code), "{}", imported.text);
    }
    let unknown = patch(json!(["letsencrypt"])).await;
    assert!(unknown.text.contains("there are: first, second"), "{}", unknown.text);
    assert_eq!(stage.call("GET", "/v1/issuers", Some(&own), &[], Value::Null).await.status, 403);
    let issuers = stage.operator("GET", "/v1/issuers", Value::Null).await;
    let shown = |n: usize| {
        let issuer = &issuers.body["items"][n];
        (issuer["name"].clone(), issuer["state"].clone(), issuer["by_default"].clone())
    };
    assert_eq!(shown(0), (json!("first"), json!("well"), json!(true)), "{}", issuers.text);
    assert_eq!(shown(1), (json!("second"), json!("well"), json!(false)));
    assert_eq!(patch(json!(null)).await.body.get("issuers"), None);

    let adopt = async |pem: &str| {
        stage.operator("POST", "/v1/issuers/first/accounts", json!({ "key_pem": pem })).await
    };
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
    for (pem, words) in [("no key", "holds no private key"), (other.as_str(), "only P-256 keys")] {
        let refused = adopt(pem).await;
        assert_eq!((refused.status, &refused.body["errors"][0]["pointer"]), (422, &json!("/key_pem")));
        assert!(refused.text.contains(words), "{}", refused.text);
    }
    assert_eq!(adopt(&key).await.status, 503, "nobody answers there");
    let nowhere = stage.operator("POST", "/v1/issuers/third/accounts", json!({ "key_pem": key })).await;
    assert_eq!(nowhere.status, 404, "{}", nowhere.text);
}

/// For it a certificate would be ordered that no edge ever serves.
#[tokio::test]
async fn a_misspelt_cell_is_refused_with_those_that_exist() {
    let stage = Stage::start().await;
    let (one, _) = stage.tenant("one").await;
    let at = format!("/v1/tenants/{one}/domains");
    let domain = stage.operator("POST", &at, spec("a.example")).await.body["id"].as_str().unwrap().to_owned();
    let with_cell = |cell: &str| {
        let mut wanted = spec("b.example");
        wanted["cells"] = json!([cell]);
        let import = json!({ "tenants": [{ "tenant": { "name": "one" }, "domains": [wanted.clone()] }] });
        [
            ("POST", at.clone(), wanted),
            ("PATCH", format!("/v1/domains/{domain}"), json!({ "cells": [cell] })),
            ("POST", "/v1/tenants".to_owned(), json!({ "name": "three", "cells": [cell] })),
            ("PATCH", format!("/v1/tenants/{one}"), json!({ "cells": [cell] })),
            ("POST", "/v1/imports".to_owned(), import),
        ]
    };
    let call = async |(method, path, body): (&str, String, Value)| {
        stage.call(method, &path, Some(&stage.operator), &[("if-match", "*")], body).await
    };
    for wanted in with_cell("wset") {
        let (path, refused) = (wanted.1.clone(), call(wanted).await);
        let mut problem = &refused.body;
        if path == "/v1/imports" {
            problem = &refused.body["tenants"][0]["results"][0]["problem"];
        }
        assert_eq!(problem["errors"][0]["code"], "unknown_cell", "{path}: {}", refused.text);
        assert_eq!(problem["errors"][0]["pointer"], "/cells", "{path}: {}", refused.text);
        let message = problem["errors"][0]["message"].as_str().unwrap();
        assert!(message.contains("there is default;"), "{path}: {message}");
    }
    stage.operator("POST", "/v1/edges/join-tokens", json!({ "cell": "west" })).await;
    for wanted in with_cell("west") {
        let (path, taken) = (wanted.1.clone(), call(wanted).await);
        assert!(matches!(taken.status, 200 | 201), "{path}: {}", taken.text);
    }
}

/// The settings of a CA that nobody answers for, and no pre-flight.
fn absent_ca(folder: &Path) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let root = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
    std::fs::write(folder.join("root.pem"), root.pem()).unwrap();
    let root = folder.join("root.pem");
    format!(
        "[preflight]\nenabled = false\n[[issuer]]\nname = \"gone\"\ndirectory = \"https://127.0.0.1:1/directory\"\n\
         root_pem = {root:?}\nroots_pem = {root:?}\n"
    )
}

/// Over the real store, with a CA that is not there: the plan asks nobody.
#[tokio::test]
async fn the_plan_tells_groups_orders_and_what_other_terms_would_change() {
    let stage = Stage::start_with(|folder, _| absent_ca(folder)).await;
    let (one, own) = stage.tenant("one").await;
    let names = ["a.example", "www.a.example", "b.example", "c.example"];
    let mut ids = Vec::new();
    for name in &names[..3] {
        ids.push(stage.domain(&one, name).await["id"].clone());
    }
    stage.domain(&one, names[3]).await;
    let plan = async |query: &str| stage.operator("GET", &format!("/v1/plan{query}"), Value::Null).await;
    assert_eq!(plan("").await.body["names"], 0, "no name is proved");
    stage.operator("POST", "/v1/domains/attest", json!({ "domain_ids": ids, "note": "x" })).await;
    let planned = until(|| plan(""), |reply| reply.body["names"] == 3).await.body;
    let of = |plan: &Value| {
        (plan["groups"].clone(), plan["orders_now"].clone(), plan["names_per_key_max"].clone())
    };
    assert_eq!(of(&planned), (json!(2), json!(2), json!(2)), "{planned}");
    assert_eq!(
        (&planned["limits"]["orders_left"], &planned["limits"]["orders_3h"]),
        (&json!(300), &json!(300))
    );
    assert_eq!(planned["eta"].as_array().unwrap().last().unwrap()["seconds"], 0);
    let shared = plan("?sharing=tenant&explain=b.example").await.body;
    assert_eq!(of(&shared), (json!(1), json!(1), json!(3)), "{shared}");
    assert!(shared["explanation"].as_str().unwrap().contains("with 2 other names"), "{shared}");
    let tight = plan("?names_per_certificate_max=1&orders_3h=1").await.body;
    assert_eq!(of(&tight), (json!(3), json!(3), json!(1)), "{tight}");
    assert_eq!(tight["eta"].as_array().unwrap().last().unwrap()["seconds"], 6 * 3600, "{tight}");
    // A third of one order an hour is not "no limit".
    assert_eq!(tight["limits"]["tenant_1h"], 1, "{tight}");
    assert_eq!((&planned["waiting"], &planned["unproved"]), (&json!(0), &json!(1)), "{planned}");
    assert!(planned["largest"][0]["basis"].as_str().unwrap().ends_with("tenant one"), "{planned}");
    assert_eq!(plan("?groups=1").await.body["largest"].as_array().unwrap().len(), 1);
    let unproved = plan("?explain=c.example").await.body;
    assert!(unproved["explanation"].as_str().unwrap().contains("tenant one claims it"), "{unproved}");
    assert_eq!(plan("?explain=nobody.example").await.status, 404);
    let wrong =
        ["?names_per_certificate_max=0", "?explain=-", "?sharing=all", "?orders_3h=0", "?groups=10001"];
    for wrong in wrong {
        assert_eq!(plan(wrong).await.status, 400, "{wrong}");
    }
    assert_eq!(stage.call("GET", "/v1/plan", Some(&own), &[], Value::Null).await.status, 403);
    let renewals = stage.operator("GET", "/v1/renewals", Value::Null).await;
    assert_eq!(
        (renewals.status, &renewals.body["live"], &renewals.body["late"]),
        (200, &json!(0), &json!(0))
    );
    assert_eq!(stage.call("GET", "/v1/renewals", Some(&own), &[], Value::Null).await.status, 403);
}

/// With a CA that is not there: nothing is spent, and the forecast is what the limits let through.
#[tokio::test]
async fn the_budget_shows_the_operator_all_and_a_tenant_its_own() {
    let limits = "[issuer.limits]\norders = \"2/4h\"\nreserve = 0.5\n";
    let stage = Stage::start_with(|folder, _| absent_ca(folder) + limits).await;
    let (one, own) = stage.tenant("one").await;
    let (_, stranger) = stage.tenant("two").await;
    let mut ids = Vec::new();
    for name in ["a.example", "b.example", "c.example"] {
        ids.push(stage.domain(&one, name).await["id"].clone());
    }
    stage.operator("POST", "/v1/domains/attest", json!({ "domain_ids": ids, "note": "x" })).await;
    let budget = async |token: &str, query: &str| {
        stage.call("GET", &format!("/v1/budget{query}"), Some(token), &[], Value::Null).await
    };
    let bucket = |reply: &stage::Reply, limit: &str| {
        let buckets = reply.body["issuers"][0]["buckets"].as_array().unwrap().clone();
        buckets.into_iter().find(|bucket| bucket["limit"] == limit)
    };
    let all =
        until(|| budget(&stage.operator, ""), |reply| reply.body["issuers"][0]["orders_needed"] == 3).await;
    // One is kept: the first goes now, each further one when one more has refilled.
    let through = all.body["issuers"][0]["through_at"].as_str().unwrap().to_owned();
    let through = portico_control_plane::clock::parse_rfc3339(&through).unwrap() - stage.clock.now_ms();
    assert!((13_800_000..=14_400_000).contains(&through), "4 h from the call, not {through} ms");
    let orders = bucket(&all, "orders").unwrap();
    let figures =
        ["count", "period_seconds", "used", "kept", "free"].map(|key| orders[key].as_u64().unwrap());
    assert_eq!(figures, [2, 14_400, 0, 1, 1], "{orders}");
    assert_eq!(orders["shared_with_others"], false);
    // Of a name: its domain's, its certificate's, its failures', though nothing is spent.
    let named = budget(&own, "?name=a.example").await;
    let domain = bucket(&named, "registered_domain").unwrap();
    assert_eq!((&domain["subject"], &domain["count"]), (&json!("a.example"), &json!(50)));
    assert_eq!((&domain["free"], &domain["shared_with_others"]), (&json!(50), &json!(true)));
    for limit in ["exact_set", "failed_authorizations", "consecutive_failures"] {
        assert_eq!(bucket(&named, limit).unwrap()["subject"], "a.example", "{limit}");
    }
    // A tenant's own budget, and no account's.
    let mine = budget(&own, "").await;
    assert_eq!(bucket(&mine, "tenant_1h").unwrap()["subject"], json!(one), "{}", mine.text);
    assert_eq!(
        (bucket(&mine, "orders"), bucket(&mine, "tenant_24h")),
        (None, None),
        "no limit of a day is set"
    );
    assert_eq!(budget(&stranger, "?name=a.example").await.status, 404);
    assert!(!budget(&stranger, "").await.text.contains("a.example"));
    assert_eq!(budget(&stage.operator, "?name=elsewhere.example").await.status, 200);
    assert_eq!(budget(&stage.operator, "?issuer=other").await.status, 404);
    assert_eq!(budget(&stage.operator, "?name=-").await.status, 400);
}

#[tokio::test]
async fn remembered_keys_of_one_tenant_do_not_fill_the_disk() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let path = format!("/v1/tenants/{one}/domains");
    let send = async |token: &str, key: &str| {
        stage.call("POST", &path, Some(token), &[("idempotency-key", key)], spec("shop.example")).await
    };
    assert_eq!(send(&own, "first").await.status, 201);
    let id = own.split('_').nth(1).unwrap();
    let mut tx = stage.running.parts.store.begin().await.unwrap();
    sql::query(
        "INSERT INTO idempotency (actor, key, fingerprint, status, body, created_at) \
         VALUES (?, 'large', x'', 200, zeroblob(32 * 1024 * 1024), ?)",
    )
    .bind(id)
    .bind(stage.clock.now_ms())
    .execute(&mut tx)
    .await
    .unwrap();
    tx.commit().await.unwrap();
    let refused = send(&own, "second").await;
    assert_eq!((refused.status, &refused.body["code"]), (429, &json!("idempotency_keys_used_up")));
    assert_eq!(send(&own, "first").await.status, 201, "what is remembered is still answered");
    assert_eq!(stage.call("POST", &path, Some(&own), &[], spec("shop.example")).await.status, 200);
    assert_eq!(send(&stage.operator.clone(), "second").await.status, 200);
}

#[tokio::test]
async fn waiting_ends_at_the_timeout_with_the_domain_as_it_stands() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    stage.domain(&one, "shop.example").await;
    let began = Instant::now();
    let reply = stage
        .call("GET", "/v1/domains/shop.example?wait=active&timeout=1s", Some(&own), &[], Value::Null)
        .await;
    assert_eq!((reply.status, &reply.body["status"]), (200, &json!("pending")));
    assert!(began.elapsed() >= Duration::from_millis(900) && began.elapsed() < Duration::from_secs(10));
    for wrong in ["wait=ready", "wait=active&timeout=1h", "wait=active&timeout=301s"] {
        let reply = stage
            .call("GET", &format!("/v1/domains/shop.example?{wrong}"), Some(&own), &[], Value::Null)
            .await;
        assert_eq!(reply.status, 400, "{wrong}");
    }
}

#[tokio::test]
async fn tokens_end_at_once_and_the_last_operators_stays() {
    let stage = Stage::start().await;
    let (_, own) = stage.tenant("one").await;
    let id = own.split('_').nth(1).unwrap();
    assert_eq!(stage.call("GET", "/v1/domains", Some(&own), &[], Value::Null).await.status, 200);
    for _ in 0..2 {
        assert_eq!(stage.operator("DELETE", &format!("/v1/tokens/{id}"), Value::Null).await.status, 204);
    }
    assert_eq!(stage.call("GET", "/v1/domains", Some(&own), &[], Value::Null).await.status, 401);
    let last = stage.operator.split('_').nth(1).unwrap().to_owned();
    assert_eq!(
        stage.operator("DELETE", &format!("/v1/tokens/{last}"), Value::Null).await.body["code"],
        "last_operator_token"
    );
    // Secrets are nowhere in the database.
    let secret = own.split('_').nth(2).unwrap();
    for entry in std::fs::read_dir(stage.data()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
    }
}

#[tokio::test]
async fn every_write_is_in_the_audit_trail_with_its_author_and_the_chain_holds() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let path = format!("/v1/tenants/{one}/domains");
    let headers = [("x-request-id", "mine-1")];
    let made = stage.call("POST", &path, Some(&own), &headers, spec("a.example")).await;
    assert_eq!(made.headers["x-request-id"], "mine-1");
    let odd = stage.call("POST", &path, Some(&own), &[("x-request-id", "a b")], spec("b.example")).await;
    assert!(odd.headers["x-request-id"].to_str().unwrap().starts_with("req_"));

    let trail = stage.operator("GET", "/v1/audit", Value::Null).await.body;
    let entries = trail["items"].as_array().unwrap();
    let actions: Vec<_> = entries.iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["token.create", "tenant.create", "token.create", "domain.create", "domain.create"]);
    // The operator's first token was made by the first start, before anybody could call.
    let first = stage.operator.split('_').nth(1).unwrap();
    assert_eq!((&entries[0]["actor"], &entries[0]["subject"]), (&json!("system"), &json!(first)));
    assert_eq!(entries[3]["actor"], own.split('_').nth(1).unwrap());
    assert_eq!((&entries[3]["request_id"], &entries[3]["subject"]), (&json!("mine-1"), &made.body["id"]));
    assert_eq!(entries[3]["after"]["hostname"], "a.example");
}

#[tokio::test]
async fn a_tampered_audit_entry_and_a_cut_end_are_found_over_the_api() {
    let stage = Stage::start().await;
    stage.tenant("one").await;
    let verify =
        async |query: &str| stage.operator("GET", &format!("/v1/audit/verify{query}"), Value::Null).await;
    let whole = verify("").await.body;
    assert_eq!(
        (&whole["complete"], &whole["checked"], &whole["altered"]),
        (&json!(true), &json!(3), &Value::Null)
    );
    let mark = whole["mark"].as_str().unwrap();
    assert_eq!(verify(&format!("?from={mark}")).await.body["checked"], 0);
    assert_eq!(verify("?from=3:xyz").await.status, 400);

    // By hand, as somebody with the file would.
    let tamper = async |sql: &'static str| {
        let mut tx = stage.running.parts.store.begin().await.unwrap();
        sql::query(sql).execute(&mut tx).await.unwrap();
        tx.commit().await.unwrap();
    };
    tamper("DELETE FROM audit WHERE sequence = 3").await;
    assert_eq!(verify("").await.body["altered"], Value::Null, "the chain alone does not show a cut end");
    assert_eq!(verify(&format!("?from={mark}")).await.body["altered"], 3);
    tamper("UPDATE audit SET actor = 'somebody' WHERE sequence = 2").await;
    let altered = verify("").await.body;
    assert_eq!(
        (&altered["altered"], &altered["checked"], &altered["mark"]),
        (&json!(2), &json!(1), &Value::Null)
    );
}

#[tokio::test]
async fn names_deleted_by_the_dozen_stay_until_an_operator_signs_the_removal_off() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let items: Vec<Value> = (0..40).map(|number| spec(&format!("n{number}.example"))).collect();
    let path = format!("/v1/tenants/{one}/domains/batch");
    let made = stage.operator("POST", &path, json!({ "items": items })).await;
    let ids: Vec<&str> = made.body["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["id"].as_str().unwrap())
        .collect();
    let attested = json!({ "domain_ids": ids, "note": "ours" });
    assert_eq!(stage.operator("POST", "/v1/domains/attest", attested).await.status, 200);
    stage.running.distribution.publish_now().await.unwrap();
    let mut kept = 0;
    for id in &ids {
        let path = format!("/v1/domains/{id}");
        let gone = stage.call("DELETE", &path, Some(&own), &[("if-match", "*")], Value::Null).await;
        assert!(gone.status == 204 || gone.status == 202, "{}", gone.text);
        kept += usize::from(gone.status == 202);
        assert_eq!(gone.body["domain_id"].as_str(), (gone.status == 202).then_some(*id), "{}", gone.text);
    }
    let again = format!("/v1/domains/{}", ids[39]);
    let again = stage.call("DELETE", &again, Some(&own), &[("if-match", "*")], Value::Null).await;
    assert_eq!(again.status, 202, "it is still served: {}", again.text);

    let held = async || {
        let page = stage.operator("GET", "/v1/removals?limit=3", Value::Null).await.body;
        let rest = match page["next_cursor"].as_str() {
            Some(next) => {
                stage.operator("GET", &format!("/v1/removals?cursor={next}"), Value::Null).await.body
            }
            None => json!({ "items": [] }),
        };
        [page["items"].as_array().unwrap().clone(), rest["items"].as_array().unwrap().clone()].concat()
    };
    let waiting = held().await;
    assert_eq!(waiting.len(), kept, "each deletion told whether its name is still served");
    assert!((1..=8).contains(&waiting.len()), "32 may always go: {waiting:?}");
    assert_eq!((&waiting[0]["tenant_id"], waiting[0]["hostname"].is_string()), (&json!(one), true));
    let events = stage.operator("GET", "/v1/events?limit=1000", Value::Null).await.body;
    let event =
        events["items"].as_array().unwrap().iter().find(|event| event["kind"] == "removals.held").unwrap();
    assert!(event["text"].as_str().unwrap().contains("portico removal list"), "{event}");

    // Who looked at another number has not seen what would go.
    let sign_off = "/v1/removals/sign-off";
    let other = stage.operator("POST", sign_off, json!({ "held": waiting.len() + 1 })).await;
    assert_eq!((other.status, &other.body["code"]), (409, &json!("removals_changed")), "{}", other.text);
    assert_eq!(held().await, waiting);
    let body = json!({ "held": waiting.len() });
    let tenants = stage.call("POST", sign_off, Some(&own), &[], body.clone()).await;
    assert_eq!(tenants.status, 403, "{}", tenants.text);
    let key = [("idempotency-key", "k")];
    for _ in 0..2 {
        let done = stage.call("POST", sign_off, Some(&stage.operator), &key, body.clone()).await;
        assert_eq!((done.status, &done.body["released"]), (200, &json!(waiting.len())), "{}", done.text);
    }
    let again = stage.operator("POST", sign_off, body).await;
    assert_eq!((again.status, &again.body["released"]), (200, &json!(0)), "{}", again.text);
    assert_eq!(held().await, Vec::<Value>::new());
    stage.running.distribution.publish_now().await.unwrap();
    assert_eq!(stage.running.distribution.names(&"default".parse().unwrap()), 0, "all have left");
    let trail = stage.operator("GET", "/v1/audit?limit=1000", Value::Null).await.body;
    let entries = trail["items"].as_array().unwrap();
    let signed = entries.iter().filter(|entry| entry["action"] == "removals.sign_off").collect::<Vec<_>>();
    assert_eq!(signed.len(), 2, "{signed:?}");
    assert_eq!((&signed[0]["before"], &signed[0]["after"]), (&json!(waiting.len()), &json!(waiting.len())));
}

#[tokio::test]
async fn a_repeated_token_creation_makes_no_second_token_and_names_the_first() {
    let stage = Stage::start().await;
    let operator = Some(&*stage.operator);
    let key = [("idempotency-key", "k1")];
    let body = json!({ "label": "robot" });
    let first = stage.call("POST", "/v1/tokens", operator, &key, body.clone()).await;
    assert_eq!(first.status, 201, "{}", first.text);
    let (id, token) = (first.body["id"].as_str().unwrap(), first.body["token"].as_str().unwrap());
    let count = async || {
        stage.operator("GET", "/v1/tokens", Value::Null).await.body["items"].as_array().unwrap().len()
    };
    let before = count().await;
    let again = stage.call("POST", "/v1/tokens", operator, &key, body.clone()).await;
    assert_eq!((again.status, &again.body["code"]), (409, &json!("secret_shown_once")), "{}", again.text);
    let detail = again.body["detail"].as_str().unwrap();
    assert!(detail.contains(&format!("DELETE /v1/tokens/{id}")), "{detail}");
    assert!(!again.text.contains(token.rsplit('_').next().unwrap()));
    assert_eq!(again.headers["content-type"], "application/problem+json");
    assert_eq!(count().await, before);

    let body = json!({ "cell": "default" });
    let path = "/v1/edges/join-tokens";
    let key = [("idempotency-key", "k2")];
    let first = stage.call("POST", path, operator, &key, body.clone()).await;
    assert_eq!(first.status, 201, "{}", first.text);
    let again = stage.call("POST", path, operator, &key, body).await;
    assert_eq!((again.status, &again.body["code"]), (409, &json!("secret_shown_once")), "{}", again.text);
    let mut read = stage.running.parts.store.read().await.unwrap();
    let made: i64 = sql::query_scalar("SELECT COUNT(*) FROM join_tokens").fetch_one(&mut read).await.unwrap();
    assert_eq!(made, 1);
}

#[tokio::test]
async fn a_join_token_or_a_removal_of_an_edge_is_never_without_its_audit_entry() {
    let stage = Stage::start().await;
    let store = &stage.running.parts.store;
    // The trail refuses to be written: then nothing else of the call may have happened.
    let mut tx = store.begin().await.unwrap();
    for statement in [
        "CREATE TRIGGER refuse BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no trail'); END",
        "INSERT INTO edges (id, cell, hpke_public_key, certificate_serial, identity_not_after, joined_at) \
         VALUES ('edge_01J0000000000000000000000A', 'default', X'00', '1', 0, 0)",
    ] {
        sql::query(statement).execute(&mut tx).await.unwrap();
    }
    tx.commit().await.unwrap();
    let join =
        async || stage.operator("POST", "/v1/edges/join-tokens", json!({ "cell": "new" })).await.status;
    let remove = async || {
        stage.operator("DELETE", "/v1/edges/edge_01J0000000000000000000000A", Value::Null).await.status
    };
    let left = async |query: &'static str| -> i64 {
        sql::query_scalar(query).fetch_one(&mut store.read().await.unwrap()).await.unwrap()
    };
    assert_eq!((join().await, remove().await), (500, 500));
    assert_eq!(left("SELECT COUNT(*) FROM join_tokens").await, 0);
    assert_eq!(left("SELECT COUNT(*) FROM cells WHERE id = 'new'").await, 0);
    assert_eq!(left("SELECT COUNT(*) FROM edges WHERE removed_at IS NULL").await, 1);

    let mut tx = store.begin().await.unwrap();
    sql::query("DROP TRIGGER refuse").execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!((join().await, remove().await), (201, 204));
    let actions = "SELECT COUNT(*) FROM audit WHERE action IN ('edge.create_join_token', 'edge.delete')";
    assert_eq!(left(actions).await, 2);
}

#[tokio::test]
async fn a_failed_name_is_tried_again_when_its_owner_asks_but_not_at_every_call() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let domain = stage.domain(&one, "shop.example").await;
    let id = domain["id"].as_str().unwrap();
    let path = format!("/v1/domains/{id}/retry");
    let retry = async || stage.call("POST", &path, Some(&own), &[], Value::Null).await;
    let unproved = retry().await;
    assert_eq!((unproved.status, &unproved.body["code"]), (409, &json!("not_proved")), "{}", unproved.text);
    stage.operator("POST", "/v1/domains/attest", json!({ "domain_ids": [id], "note": "ours" })).await;
    let store = &stage.running.parts.store;
    let waits = async || -> bool {
        sql::query_scalar("SELECT next_at > 0 FROM name_states WHERE domain_id = ?")
            .bind(id)
            .fetch_one(&mut store.read().await.unwrap())
            .await
            .unwrap()
    };
    order_failed(&stage, id).await;
    let granted = retry().await;
    assert_eq!((granted.status, waits().await), (200, false), "{}", granted.text);
    assert_eq!(retry().await.status, 200, "nothing waits: nothing is asked of the CA");
    order_failed(&stage, id).await;
    let refused = retry().await;
    assert_eq!((refused.status, &refused.body["code"]), (429, &json!("retry_too_soon")), "{}", refused.text);
    let seconds: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((700..=720).contains(&seconds), "{seconds}");
    let check = format!("/v1/domains/{id}/check");
    assert_eq!(stage.call("POST", &check, Some(&own), &[], Value::Null).await.status, 200);
    assert!(waits().await, "a check is no way round");
    stage.clock.advance(Duration::from_secs(721));
    assert_eq!((retry().await.status, waits().await), (200, false));

    // Over all its names a tenant has ten calls an hour; an operator has more.
    let mut last = String::new();
    for number in 0..9 {
        let other = stage.domain(&one, &format!("n{number}.example")).await;
        last = other["id"].as_str().unwrap().to_owned();
        stage.operator("POST", "/v1/domains/attest", json!({ "domain_ids": [last], "note": "ours" })).await;
        order_failed(&stage, &last).await;
        let reply =
            stage.call("POST", &format!("/v1/domains/{last}/retry"), Some(&own), &[], Value::Null).await;
        assert_eq!(reply.status, if number < 8 { 200 } else { 429 }, "{number}: {}", reply.text);
    }
    let by_operator = stage.operator("POST", &format!("/v1/domains/{last}/retry"), Value::Null).await;
    assert_eq!(by_operator.status, 200, "{}", by_operator.text);
}

#[tokio::test]
async fn a_strangers_claim_does_not_use_up_the_owners_retry() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let (two, strangers) = stage.tenant("two").await;
    let (domain, claim) =
        (stage.domain(&one, "shop.example").await, stage.domain(&two, "shop.example").await);
    let (id, claim) = (domain["id"].as_str().unwrap(), claim["id"].as_str().unwrap());
    stage.operator("POST", "/v1/domains/attest", json!({ "domain_ids": [id], "note": "ours" })).await;
    // Both wait: the owner's order failed, and a claim of such a name waits as long.
    for id in [id, claim] {
        order_failed(&stage, id).await;
    }
    let post = async |path: &str, token: &str| stage.call("POST", path, Some(token), &[], Value::Null).await;
    let checked = post(&format!("/v1/domains/{claim}/check"), &strangers).await;
    assert_eq!(checked.status, 200, "{}", checked.text);
    let retried = post(&format!("/v1/domains/{id}/retry"), &own).await;
    assert_eq!(retried.status, 200, "{}", retried.text);
}

/// As issuance leaves a name after a fourth failure: a day's wait.
async fn order_failed(stage: &Stage, id: &str) {
    let mut tx = stage.running.parts.store.begin().await.unwrap();
    sql::query(
        "INSERT OR REPLACE INTO name_states (domain_id, methods, failed_before, attempts, next_at, error, updated_at) \
         VALUES (?, '[\"http-01\"]', 1, 4, ?, 'the CA said no', 0)",
    )
    .bind(id)
    .bind(stage.clock.now_ms() + 86_400_000)
    .execute(&mut tx)
    .await
    .unwrap();
    tx.commit().await.unwrap();
}

/// Attempts, and when the next one may be.
fn back_off(row: &sql::Row) -> (i64, i64) {
    (row.try_get(0).unwrap(), row.try_get(1).unwrap())
}

#[tokio::test]
async fn a_failed_name_that_is_deleted_and_claimed_anew_waits_as_long() {
    let stage = Stage::start().await;
    let (one, _) = stage.tenant("one").await;
    let (two, two_token) = stage.tenant("two").await;
    let store = &stage.running.parts.store;
    let next_at = stage.clock.now_ms() + 86_400_000;
    let first = stage.domain(&one, "shop.example").await;
    let id = first["id"].as_str().unwrap();
    stage.operator("POST", "/v1/domains/attest", json!({ "domain_ids": [id], "note": "ours" })).await;
    let mut tx = store.begin().await.unwrap();
    sql::query(
        "INSERT INTO name_states (domain_id, methods, ready_at, failed_before, attempts, next_at, error, updated_at) \
         VALUES (?, '[\"http-01\"]', 1, 1, 4, ?, 'the CA said no', 0)",
    )
    .bind(id)
    .bind(next_at)
    .execute(&mut tx)
    .await
    .unwrap();
    tx.commit().await.unwrap();
    let retry = format!("/v1/domains/{id}/retry");
    assert_eq!(stage.operator("POST", &retry, Value::Null).await.status, 200);
    let mut tx = store.begin().await.unwrap();
    sql::query("UPDATE name_states SET next_at = ?").bind(next_at).execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();

    let at = format!("/v1/domains/{id}");
    stage.call("DELETE", &at, Some(&stage.operator), &[("if-match", "*")], Value::Null).await;
    let anew = stage.domain(&two, "shop.example").await;
    let anew = anew["id"].as_str().unwrap();
    let kept =
        sql::query("SELECT attempts, next_at, failed_before, methods FROM name_states WHERE domain_id = ?")
            .bind(anew)
            .fetch_one(&mut store.read().await.unwrap())
            .await
            .unwrap();
    assert_eq!(back_off(&kept), (4, next_at));
    assert_eq!((kept.try_get::<bool>(2).unwrap(), kept.try_get::<&str>(3).unwrap()), (true, "[]"));
    // Nor does it bring a new "retry now".
    stage.operator("POST", "/v1/domains/attest", json!({ "domain_ids": [anew], "note": "ours" })).await;
    let retry = format!("/v1/domains/{anew}/retry");
    let refused = stage.call("POST", &retry, Some(&two_token), &[], Value::Null).await;
    assert_eq!((refused.status, &refused.body["code"]), (429, &json!("retry_too_soon")), "{}", refused.text);

    // A refusal of the whole order counts as well as one of the name.
    let refused = stage.domain(&one, "refused.example").await;
    let id = refused["id"].as_str().unwrap();
    let mut tx = store.begin().await.unwrap();
    for statement in [
        "INSERT INTO groups (id, cells, policy, alone, created_at) VALUES ('g', '[]', '{}', 0, 0)",
        "INSERT INTO group_names (group_id, name, domain_id) VALUES ('g', 'refused.example', ?1)",
        "INSERT INTO lineages (id, group_id, cell, created_at) VALUES ('l', 'g', 'default', 0)",
        "INSERT INTO orders (id, lineage_id, issuer, names, domains, name_set, state, credential_id, sealed_key, \
         cell_key_epoch, key_tenant, spki_sha256, csr, renewal, next_at, created_at, updated_at) VALUES \
         ('o', 'l', 'x', '[]', '[]', 's', 'failed', 'c', x'', 1, 'operator', x'', x'', 0, ?2, 1, 1)",
    ] {
        sql::query(statement).bind(id).bind(next_at).execute(&mut tx).await.unwrap();
    }
    tx.commit().await.unwrap();
    let at = format!("/v1/domains/{id}");
    stage.call("DELETE", &at, Some(&stage.operator), &[("if-match", "*")], Value::Null).await;
    let anew = stage.domain(&one, "refused.example").await;
    let kept = sql::query("SELECT attempts, next_at FROM name_states WHERE domain_id = ?")
        .bind(anew["id"].as_str().unwrap())
        .fetch_one(&mut store.read().await.unwrap())
        .await
        .unwrap();
    assert_eq!(back_off(&kept), (1, next_at));

    // A name that never failed begins at once.
    let other = stage.domain(&two, "other.example").await;
    let states: i64 = sql::query_scalar("SELECT COUNT(*) FROM name_states WHERE domain_id = ?")
        .bind(other["id"].as_str().unwrap())
        .fetch_one(&mut store.read().await.unwrap())
        .await
        .unwrap();
    assert_eq!(states, 0);
}

#[tokio::test]
async fn an_import_with_a_faulty_row_leaves_no_tenant_behind() {
    let stage = Stage::start().await;
    let (one, _) = stage.tenant("one").await;
    let import = |last: &str| {
        json!({ "tenants": [
            { "tenant": { "name": "one" }, "domains": [spec("a.example")] },
            { "tenant": { "name": "new" }, "domains": [spec("b.example"), spec(last)] },
        ] })
    };
    let count = async |path: &str| {
        stage.operator("GET", path, Value::Null).await.body["items"].as_array().unwrap().len()
    };
    let faulty = stage.operator("POST", "/v1/imports", import("co.uk")).await;
    assert_eq!((faulty.status, &faulty.body["applied"]), (200, &json!(false)), "{}", faulty.text);
    assert_eq!(faulty.body["tenants"][0]["results"][0]["problem"]["code"], "import_not_applied");
    assert_eq!(faulty.body["tenants"][1]["results"][1]["problem"]["code"], "domain_name_invalid");
    assert_eq!((count("/v1/tenants").await, count("/v1/domains").await), (1, 0));
    let bad_tenant = json!({ "tenants": [
        { "tenant": { "name": "new" }, "domains": [spec("b.example")] },
        { "tenant": { "name": "" }, "domains": [spec("c.example")] },
    ] });
    let refused = stage.operator("POST", "/v1/imports", bad_tenant).await;
    assert_eq!((refused.status, &refused.body["applied"]), (200, &json!(false)), "{}", refused.text);
    assert!(refused.body["tenants"][1]["problem"].is_object(), "{}", refused.text);
    assert_eq!((count("/v1/tenants").await, count("/v1/domains").await), (1, 0));

    let done = stage.operator("POST", "/v1/imports", import("c.example")).await;
    assert_eq!((done.status, &done.body["applied"]), (200, &json!(true)), "{}", done.text);
    assert_eq!(
        (&done.body["tenants"][0]["id"], &done.body["tenants"][0]["created"]),
        (&json!(one), &json!(false))
    );
    assert_eq!(done.body["tenants"][1]["created"], true);
    assert_eq!((count("/v1/tenants").await, count("/v1/domains").await), (2, 3));
    let again = stage.operator("POST", "/v1/imports", import("c.example")).await;
    assert_eq!(again.body["tenants"][1]["results"][1]["status"], 200, "{}", again.text);
    let many: Vec<Value> =
        (0..5001).map(|number| json!({ "hostname": format!("n{number}.example") })).collect();
    let many = json!({ "tenants": [{ "tenant": { "name": "new" }, "domains": many }] });
    let many = stage.operator("POST", "/v1/imports", many).await;
    assert_eq!((many.status, &many.body["errors"][0]["pointer"]), (422, &json!("/tenants")), "{}", many.text);
    // Nor as many tenants as fit into a body.
    let mut many = vec![json!({ "tenant": { "name": "new" }, "domains": [] }); 5000];
    many.push(json!({ "tenant": { "name": "new" }, "domains": [spec("d.example")] }));
    let many = stage.operator("POST", "/v1/imports", json!({ "tenants": many })).await;
    assert_eq!((many.status, &many.body["errors"][0]["pointer"]), (422, &json!("/tenants")), "{}", many.text);
}

#[tokio::test]
async fn a_tenant_that_sends_refused_imports_without_end_is_slowed_and_nobody_else_is() {
    let stage = Stage::start().await;
    let (one, own) = stage.tenant("one").await;
    let (_, other) = stage.tenant("two").await;
    let domains: Vec<Value> =
        (0..5000).map(|number| json!({ "hostname": format!("n{number}.example") })).collect();
    // Not its own: nothing is stored, and nothing is in the trail.
    let import = json!({ "tenants": [{ "tenant": { "name": "elsewhere" }, "domains": domains }] });
    let send = async |token: &str| stage.call("POST", "/v1/imports", Some(token), &[], import.clone()).await;
    let refused = send(&own).await;
    assert_eq!((refused.status, &refused.body["applied"]), (200, &json!(false)), "{}", refused.text);
    let slowed = send(&own).await;
    assert_eq!((slowed.status, &slowed.body["code"]), (429, &json!("too_many_writes")), "{}", slowed.text);
    let seconds: u64 = slowed.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=160).contains(&seconds), "{seconds}");
    assert_eq!(send(&other).await.status, 200);
    let path = format!("/v1/tenants/{one}/domains");
    let small = stage.call("POST", &path, Some(&own), &[], spec("shop.example")).await;
    assert_eq!(small.status, 201, "small writes go on: {}", small.text);
}

#[tokio::test]
async fn a_tenant_named_twice_in_an_import_has_one_quota() {
    let stage = Stage::start().await;
    stage.operator("POST", "/v1/tenants", json!({ "name": "small", "domains_max": 2 })).await;
    let part = |names: &[&str]| {
        let domains: Vec<Value> = names.iter().map(|name| spec(name)).collect();
        json!({ "tenant": { "name": "small" }, "domains": domains })
    };
    let import = |second: &[&str]| json!({ "tenants": [part(&["a.example"]), part(second)] });
    let refused = stage.operator("POST", "/v1/imports", import(&["b.example", "c.example"])).await;
    assert_eq!(refused.body["applied"], json!(false), "{}", refused.text);
    let code = &refused.body["tenants"][1]["results"][1]["problem"]["code"];
    assert_eq!(code, "domains_max_reached", "{}", refused.text);
    let done = stage.operator("POST", "/v1/imports", import(&["b.example"])).await;
    assert_eq!(done.body["applied"], json!(true), "{}", done.text);
}

#[tokio::test]
async fn life_signs_need_no_token_and_metrics_name_no_host() {
    let stage = Stage::start().await;
    let (one, _) = stage.tenant("one").await;
    stage.domain(&one, "secret-host.example").await;
    for path in ["/healthz", "/readyz", "/v1/openapi.json", "/metrics"] {
        assert_eq!(stage.call("GET", path, None, &[], Value::Null).await.status, 200, "{path}");
    }
    let metrics = stage.call("GET", "/metrics", None, &[], Value::Null).await.text;
    assert!(metrics.contains("portico_control_plane_api_requests_total"), "{metrics}");
    assert!(!metrics.contains("secret-host") && !metrics.contains(&one));
}

#[tokio::test]
async fn a_preview_gives_lines_that_can_be_pasted() {
    let stage = Stage::start_with(|_, _| "https_port = 8443\n".to_owned()).await;
    let (one, _) = stage.tenant("one").await;
    let domain = stage.domain(&one, "shop.example").await;
    let path = format!("/v1/domains/{}/preview", domain["id"].as_str().unwrap());
    let preview = stage.operator("GET", &path, Value::Null).await.body;
    assert_eq!(preview["hosts_lines"], json!(["127.0.0.11 shop.example"]));
    assert_eq!(
        preview["curl_lines"],
        json!(["curl --resolve shop.example:8443:127.0.0.11 https://shop.example:8443/"])
    );
}

#[tokio::test]
async fn names_of_tenants_share_only_what_the_operator_offers_and_each_tenant_consents_to() {
    let stage = Stage::start_with(|folder, _| absent_ca(folder)).await;
    let (one, own) = stage.tenant("one").await;
    let (two, other) = stage.tenant("two").await;
    let path = |tenant: &str, tail: &str| format!("/v1/tenants/{tenant}/shared-group{tail}");
    let call = async |method: &str, path: &str, token: &str, body: Value| {
        let reply = stage.call(method, path, Some(token), &[], body).await;
        (reply.status, reply.body)
    };
    let (status, body) = call("GET", &path(&one, ""), &own, Value::Null).await;
    assert_eq!((status, &body["code"]), (404, &json!("no_shared_group")), "{body}");
    let (status, _) = call("PUT", &path(&one, ""), &own, json!({ "group": "parked" })).await;
    assert_eq!(status, 403, "only an operator offers");
    let wrong = stage.operator("PUT", &path(&one, ""), json!({ "group": "Parked!" })).await;
    assert_eq!(
        (wrong.status, &wrong.body["errors"][0]["pointer"]),
        (422, &json!("/group")),
        "{}",
        wrong.text
    );
    for tenant in [&one, &two] {
        let offered = stage.operator("PUT", &path(tenant, ""), json!({ "group": "parked" })).await;
        assert_eq!((offered.status, &offered.body["consent"]), (200, &Value::Null), "{}", offered.text);
        assert!(offered.body["meaning"].as_str().unwrap().contains("for ever"), "{}", offered.text);
    }
    let mut ids = Vec::new();
    for (tenant, name) in [(&one, "a.example"), (&two, "b.example")] {
        ids.push(stage.domain(tenant, name).await["id"].clone());
    }
    stage.operator("POST", "/v1/domains/attest", json!({ "domain_ids": ids, "note": "x" })).await;
    let plan = async || stage.operator("GET", "/v1/plan?explain=a.example", Value::Null).await;
    let planned = until(plan, |reply| reply.body["names"] == 2).await.body;
    assert_eq!((&planned["groups"], &planned["tenants_per_key_max"]), (&json!(2), &json!(1)), "{planned}");

    let consent = path(&one, "/consent");
    let (status, body) = call("POST", &consent, &own, json!({ "group": "another" })).await;
    assert_eq!((status, &body["code"]), (409, &json!("other_group_offered")), "{body}");
    assert_eq!(call("POST", &consent, &other, json!({ "group": "parked" })).await.0, 404, "another's");
    let (status, body) = call("POST", &consent, &own, json!({ "group": "parked" })).await;
    assert_eq!((status, &body["tenants"]), (200, &json!(1)), "{body}");
    let silent = stage.operator("POST", &path(&two, "/consent"), json!({ "group": "parked" })).await;
    assert_eq!(
        (silent.status, &silent.body["errors"][0]["pointer"]),
        (422, &json!("/note")),
        "{}",
        silent.text
    );
    let long = "x".repeat(CONSENT_NOTE_BYTES_MAX + 1);
    for (note, status) in [(long.as_str(), 422), ("by contract of 2026-08-01", 200)] {
        let body = json!({ "group": "parked", "note": note });
        let said = stage.operator("POST", &path(&two, "/consent"), body).await;
        assert_eq!(said.status, status, "{}", said.text);
    }
    let shared = until(plan, |reply| reply.body["groups"] == 1).await.body;
    assert_eq!(shared["tenants_per_key_max"], 2, "{shared}");
    let words = shared["explanation"].as_str().unwrap();
    assert!(words.contains("with 1 other name (b.example)") && words.contains("`parked`"), "{words}");
    assert!(words.contains("one key for 2 names of 2 tenants"), "{words}");
    let audit = stage.operator("GET", "/v1/audit?limit=500", Value::Null).await;
    let entries = audit.body["items"].as_array().unwrap();
    let consents: Vec<_> =
        entries.iter().filter(|entry| entry["action"] == "tenant.consent_to_sharing").collect();
    assert_eq!(consents.len(), 2);
    assert_eq!(consents[1]["after"]["note"], "by contract of 2026-08-01");

    // Another offer is not what was consented to, and whoever leaves is apart.
    stage.operator("PUT", &path(&two, ""), json!({ "group": "elsewhere" })).await;
    until(plan, |reply| reply.body["groups"] == 2).await;
    assert_eq!(call("DELETE", &path(&one, ""), &own, Value::Null).await.0, 204);
    assert_eq!(call("DELETE", &path(&one, ""), &own, Value::Null).await.0, 204, "gone counts as left");
    assert_eq!(call("GET", &path(&one, ""), &own, Value::Null).await.0, 404);
}
