//! Certificates of a second CA that stand by, and what is shown of them.

use std::time::Duration;

use portico_api::distribution::{Credential, Domain, ResourceKind};
use prost::Message as _;
use serde_json::{Value, json};

use crate::lab::{Lab, Options, http};

/// Two CAs, and a backup for every name.
fn backed() -> Options {
    Options { second: Some(""), more: "backup_certificates = { by_default = true }", ..Options::default() }
}

async fn backups(lab: &Lab) -> Vec<Value> {
    let (status, page) = lab.operator("GET", "/v1/backups", Value::Null).await;
    assert_eq!(status, 200, "{page}");
    page["items"].as_array().unwrap().clone()
}

/// Waits until the backups are as wanted.
async fn until_backups(lab: &Lab, what: &str, holds: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let found = backups(lab).await;
        if holds(&found) {
            return found;
        }
        let orders = lab.rows("SELECT names, issuer, state, COALESCE(error, '') FROM orders").await;
        assert!(tokio::time::Instant::now() < deadline, "{what}: {found:#?} {orders:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn are(found: &[Value], count: usize, state: &str) -> bool {
    found.len() == count && found.iter().all(|backup| backup["state"] == state)
}

/// Ids of the lineages that the edge of a cell is told for a name, and those that go first.
fn told(lab: &Lab, cell: &str, name: &str) -> (Vec<String>, Vec<String>) {
    lab.edge(cell).with(|state| {
        let bodies = |kind: ResourceKind| {
            let of_kind = state.resources.iter().filter(move |((of, _), _)| *of == kind as u32);
            of_kind.map(|((_, id), resource)| (id.clone(), resource.body.clone()))
        };
        let domain = bodies(ResourceKind::Domain)
            .map(|(_, body)| Domain::decode(body).unwrap())
            .find(|domain| domain.name == name)
            .unwrap();
        let first = bodies(ResourceKind::Credential)
            .filter(|(_, body)| Credential::decode(body.clone()).unwrap().goes_first)
            .map(|(id, _)| id);
        // The others are of cells whose certificates this edge never sees.
        let own = domain.lineages.into_iter().filter(|lineage| lineage.cell_id == cell);
        (own.map(|lineage| lineage.lineage_id).collect(), first.collect())
    })
}

fn credentials_at(lab: &Lab, cell: &str) -> usize {
    lab.edge(cell).with(|state| {
        state.resources.keys().filter(|(kind, _)| *kind == ResourceKind::Credential as u32).count()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_stands_by_in_each_cell_and_one_call_switches_and_one_takes_it_back() {
    let lab = Lab::start(&Options { cells: vec!["one", "two"], ..backed() }).await;
    let tenant = lab.tenant(&["one", "two"], "registered_domain").await;
    lab.domains(tenant, &["shop.test", "www.shop.test"]).await;
    let found = until_backups(&lab, "staged", |found| are(found, 2, "staged")).await;
    for backup in &found {
        assert_eq!(backup["hostnames"], json!(["shop.test", "www.shop.test"]));
        assert_eq!((&backup["serving_issuer"], &backup["issuer"]), (&json!("test"), &json!("second")));
    }
    let keys = lab.rows("SELECT hex(spki_sha256) FROM credentials").await;
    let distinct: std::collections::HashSet<_> = keys.iter().collect();
    assert_eq!((keys.len(), distinct.len()), (4, 4), "a key for each issuer and cell");
    for cell in ["one", "two"] {
        lab.edge(cell)
            .wait("both certificates", |state| {
                let count = state
                    .resources
                    .keys()
                    .filter(|(kind, _)| *kind == ResourceKind::Credential as u32)
                    .count();
                count == 2
            })
            .await;
        let (names, first) = told(&lab, cell, "shop.test");
        assert_eq!((names.len(), first.len()), (1, 0), "no name refers to what stands by");
    }

    let scope = json!({ "issuer": "test" });
    let (status, switch) = lab.operator("POST", "/v1/backups/switch-to-backup", scope.clone()).await;
    assert_eq!(
        (status, &switch["switched"], &switch["without_backup"]),
        (200, &json!(2), &json!(0)),
        "{switch}"
    );
    assert_eq!(switch["applied"].as_array().unwrap().len(), 2, "the answer waits for the edges: {switch}");
    for cell in ["one", "two"] {
        let (names, first) = told(&lab, cell, "www.shop.test");
        assert_eq!((names.len(), first.len()), (2, 1), "what served stays beside it, to fall back to");
        assert_eq!(names[0], first[0], "best first");
    }
    assert!(are(&backups(&lab).await, 2, "shown"));
    let (_, again) = lab.operator("POST", "/v1/backups/switch-to-backup", json!({ "tenant": tenant })).await;
    assert_eq!((&again["switched"], &again["unchanged"]), (&json!(0), &json!(2)), "{again}");

    let group = found[0]["group_id"].clone();
    let (_, back) = lab.operator("POST", "/v1/backups/switch-back", json!({ "group": group })).await;
    assert_eq!(back["switched"], json!(2), "{back}");
    assert_eq!(told(&lab, "two", "shop.test").0.len(), 1);
    let actions = lab.rows("SELECT action FROM audit WHERE action LIKE 'backup.%' ORDER BY sequence").await;
    assert_eq!(actions, [["backup.switch"], ["backup.switch"], ["backup.switch_back"]]);
    let events = lab.rows("SELECT kind FROM events WHERE kind LIKE 'backup.%' ORDER BY kind").await.concat();
    assert_eq!(events, ["backup.issued", "backup.issued", "backup.switch", "backup.switch_back"]);
    // Nobody was told of backups as of certificates that serve.
    let issued = lab.rows("SELECT kind FROM events WHERE kind LIKE 'certificate.%'").await.len();
    assert_eq!(issued, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_are_renewed_and_a_shown_one_keeps_being_shown() {
    let lab = Lab::start(&backed()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test"]).await;
    until_backups(&lab, "staged", |found| are(found, 1, "staged")).await;
    lab.operator("POST", "/v1/backups/switch-to-backup", json!({ "tenant": tenant })).await;
    let before = lab.rows("SELECT id FROM credentials WHERE state = 'live' ORDER BY id").await;
    assert_eq!(before.len(), 2);
    lab.world.advance(62).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let now = lab.rows("SELECT id FROM credentials WHERE state = 'live' ORDER BY id").await;
        if now.len() == 2 && now.iter().all(|id| !before.contains(id)) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{before:?} {now:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let orders = lab
        .rows("SELECT issuer, CAST(backup AS TEXT) FROM orders WHERE renewal = 1 AND state = 'issued' ORDER BY issued_at")
        .await;
    assert_eq!(orders, [["test", "0"], ["second", "1"]], "what serves goes first");
    let second = lab.world.second_stats().await;
    let last = second["new_orders"].as_array().unwrap().last().unwrap().clone();
    assert!(last["replaces"].is_string(), "its own, as a replacement: {last}");
    assert!(are(&backups(&lab).await, 1, "shown"));
    let (names, first) = told(&lab, "default", "shop.test");
    assert_eq!((names.len(), first.len()), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_the_second_ca_will_not_have_fails_in_nothing_else() {
    let lab = Lab::start(&backed()).await;
    let second = lab.world.second.as_ref().unwrap();
    let refused = json!({ "names": ["bank.shop.test"] });
    let (status, text) = http(second.addresses.management, "POST", "/refused", &refused).await;
    assert_eq!(status, 204, "{text}");
    let tenant = lab.tenant(&[], "registered_domain").await;
    let ids = lab.domains(tenant, &["shop.test", "bank.shop.test"]).await;
    let found = until_backups(&lab, "the others", |found| are(found, 1, "staged")).await;
    assert_eq!(found[0]["hostnames"], json!(["shop.test"]));
    let serving = lab.rows("SELECT names FROM credentials WHERE issuer = 'test' AND state = 'live'").await;
    assert_eq!(serving, [["[\"bank.shop.test\",\"shop.test\"]"]], "one certificate, as before");
    let states = lab
        .rows("SELECT CAST(attempts AS TEXT), CAST(failed_before AS TEXT), issuers FROM name_states")
        .await;
    assert!(states.iter().all(|row| row.concat() == "00{}"), "{states:?}");
    for id in ids.clone() {
        let ready = lab.condition(id, "CertificateReady").await.unwrap();
        assert_eq!((ready[0].as_str(), ready[1].as_str()), ("true", "Issued"), "{ready:?}");
    }
    let asked = lab.world.second_stats().await["requests"]["newOrder"].as_u64().unwrap();
    assert_eq!(asked, 2, "with it, and without it");
    // But whoever counts on it is told.
    let why = found[0]["error"].as_str().unwrap_or_default();
    assert!(why.starts_with("bank.shop.test: "), "{found:#?}");
    let (_, drill) = lab.operator("POST", "/v1/backups/drill", json!({})).await;
    let missing =
        json!([{ "group_id": found[0]["group_id"], "cell_id": "default", "hostnames": ["bank.shop.test"] }]);
    assert_eq!((&drill["passed"], &drill["without_backup"]), (&json!(false), &json!(1)), "{drill}");
    assert_eq!((&drill["names"], &drill["without"]), (&json!(1), &missing), "{drill}");
    let (_, switch) = lab.operator("POST", "/v1/backups/switch-to-backup", json!({ "issuer": "test" })).await;
    assert_eq!((&switch["switched"], &switch["without_backup"]), (&json!(1), &json!(1)), "{switch}");
    assert_eq!(switch["without"], missing);
    assert_eq!(told(&lab, "default", "bank.shop.test").0.len(), 1, "as before");
    // It may be had again, and is asked for when somebody says so.
    let nobody = json!({ "names": [] });
    assert_eq!(http(second.addresses.management, "POST", "/refused", &nobody).await.0, 204);
    let domain = format!("/v1/domains/{}/retry", ids[1]);
    let (status, _) = lab.operator("POST", &domain, Value::Null).await;
    assert!(status < 300, "{status}");
    until_backups(&lab, "the whole", |found| {
        are(found, 1, "shown") && found[0]["hostnames"] == json!(["bank.shop.test", "shop.test"])
    })
    .await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while told(&lab, "default", "bank.shop.test").0.len() != 2 {
        assert!(tokio::time::Instant::now() < deadline, "the edge is not told of what is shown");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_wait_for_what_serves_and_leave_half_of_a_limit() {
    let options = Options { second: Some("[issuer.limits]\norders = \"4/3h\"\nreserve = 0.0"), ..backed() };
    let lab = Lab::start(&options).await;
    for n in 0..4 {
        let tenant = lab.tenant(&[], "registered_domain").await;
        lab.domains(tenant, &[format!("n{n}.test")]).await;
    }
    let two_of_four = |found: &[Value]| {
        let staged = found.iter().filter(|backup| backup["state"] == "staged").count();
        let waits = |backup: &Value| backup["error"].as_str().is_some_and(|error| error.contains("limit"));
        staged == 2 && found.iter().filter(|backup| waits(backup)).count() == 2
    };
    until_backups(&lab, "two of four", two_of_four).await;
    let asked = lab.world.second_stats().await["requests"]["newOrder"].as_u64().unwrap();
    assert_eq!(asked, 2);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while credentials_at(&lab, "default") != 6 {
        assert!(tokio::time::Instant::now() < deadline, "{} of 6", credentials_at(&lab, "default"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_names_each_edge_that_does_not_answer() {
    let lab = Lab::start(&Options { cells: vec!["one", "two"], ..backed() }).await;
    let tenant = lab.tenant(&["one", "two"], "registered_domain").await;
    lab.domains(tenant, &["shop.test"]).await;
    until_backups(&lab, "staged", |found| are(found, 2, "staged")).await;
    let (status, drill) = lab.operator("POST", "/v1/backups/drill", json!({})).await;
    assert_eq!((status, &drill["passed"], &drill["certificates"]), (200, &json!(true), &json!(2)), "{drill}");
    lab.edge("two").with(|state| state.behaviour.stalled = true);
    let (_, drill) =
        lab.operator("POST", "/v1/backups/drill", json!({ "scope": { "tenant": tenant } })).await;
    assert_eq!(drill["passed"], json!(false));
    let edges = drill["edges"].as_array().unwrap();
    for edge in edges {
        let answers = edge["cell_id"] == "one";
        assert_eq!((edge["passed"] == true, edge["error"].is_null()), (answers, answers), "{edge}");
    }
    for (scope, pointer, code) in [
        (json!({}), "/scope", "one_of"),
        (json!({ "tenant": tenant, "issuer": "test" }), "/scope", "one_of"),
        (json!({ "issuer": "letsencrypt" }), "/scope/issuer", "unknown_issuer"),
    ] {
        let (status, refused) = lab.operator("POST", "/v1/backups/drill", json!({ "scope": scope })).await;
        let error = &refused["errors"][0];
        assert_eq!(
            (status, &error["pointer"], &error["code"]),
            (422, &json!(pointer), &json!(code)),
            "{refused}"
        );
        let (status, _) = lab.operator("POST", "/v1/backups/switch-to-backup", scope).await;
        assert_eq!(status, 422);
    }
    let nobody = json!({ "tenant": portico_cert_store::TenantId::generate() });
    assert_eq!(lab.operator("POST", "/v1/backups/switch-to-backup", nobody).await.0, 404);
}

/// Others may have the key of what stands by: it is replaced by its own CA, revoked, and until then shown to nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_whose_key_was_reported_is_not_shown_and_another_takes_its_place() {
    let lab = Lab::start(&backed()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test"]).await;
    let found = until_backups(&lab, "staged", |found| are(found, 1, "staged")).await;
    let ids = || lab.rows("SELECT id FROM credentials WHERE issuer = 'second' AND state = 'live'");
    let old = ids().await.concat().remove(0);
    let second = lab.world.second.as_ref().unwrap().addresses.management;
    let fault =
        json!({ "kind": "unavailable", "endpoint": "newOrder", "count": 1_000, "retry_after_seconds": 0 });
    assert!(http(second, "POST", "/faults", &fault).await.0 < 300);
    let report = json!({ "certificate": old, "compromised": true });
    let (status, rekey) = lab.operator("POST", "/v1/rekeys", report).await;
    assert_eq!((status, &rekey["certificates"]), (201, &json!(1)), "{rekey}");
    let (_, switch) = lab.operator("POST", "/v1/backups/switch-to-backup", json!({ "issuer": "test" })).await;
    assert_eq!((&switch["switched"], &switch["without_backup"]), (&json!(0), &json!(1)), "{switch}");
    let (_, drill) = lab.operator("POST", "/v1/backups/drill", json!({})).await;
    assert_eq!((&drill["passed"], &drill["without_backup"]), (&json!(false), &json!(1)), "{drill}");
    assert!(backups(&lab).await[0]["error"].is_string(), "whoever counts on it is told");

    assert!(http(second, "DELETE", "/faults", &Value::Null).await.0 < 300);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let path = format!("/v1/rekeys/{}", rekey["id"].as_str().unwrap());
    loop {
        let (_, rekey) = lab.operator("GET", &path, Value::Null).await;
        if rekey["finished_at"].is_string() {
            break;
        }
        let orders = lab.rows("SELECT issuer, state, COALESCE(error, '') FROM orders").await;
        assert!(tokio::time::Instant::now() < deadline, "{rekey:#} {orders:?}");
        lab.hurry().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_ne!(ids().await.concat(), [old]);
    let stats = lab.world.second_stats().await;
    let revoked = stats["revocations"].as_array().unwrap();
    assert_eq!((revoked.len(), &revoked[0]["signed_by"]), (1, &json!("key")), "{revoked:?}");
    let (_, switch) = lab.operator("POST", "/v1/backups/switch-to-backup", json!({ "issuer": "test" })).await;
    assert_eq!((&switch["switched"], &switch["without_backup"]), (&json!(1), &json!(0)), "{switch}");
    let after = until_backups(&lab, "shown", |found| are(found, 1, "shown")).await;
    assert_eq!(after[0]["group_id"], found[0]["group_id"]);
}
