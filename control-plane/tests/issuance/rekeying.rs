//! Keys that are replaced before their time, and such as others may have.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use portico_api::distribution::{Ack, EdgeMessage, ResourceKind, edge_message};
use portico_control_plane::clock::parse_rfc3339;
use portico_control_plane::config::Config;
use serde_json::{Value, json};

use crate::edge::TestEdge;
use crate::issuing::until_renewed;
use crate::lab::{Lab, Live, Options};

const HOUR_MS: i64 = 3_600_000;

fn options() -> Options {
    Options { preflight: false, challenges: r#"["http-01"]"#, ..Options::default() }
}

pub async fn ask(lab: &Lab, body: Value) -> Value {
    let (status, rekey) = lab.operator("POST", "/v1/rekeys", body).await;
    assert!((200..300).contains(&status), "{status} {rekey}");
    rekey
}

pub async fn until(lab: &Lab, id: &str, what: &str, good: impl Fn(&Value) -> bool) -> Value {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let (status, rekey) = lab.operator("GET", &format!("/v1/rekeys/{id}"), Value::Null).await;
        assert_eq!(status, 200, "{rekey}");
        if good(&rekey) {
            return rekey;
        }
        if tokio::time::Instant::now() > deadline {
            let orders = lab.rows("SELECT names, state, COALESCE(error, '') FROM orders").await;
            panic!("not {what}: {rekey:#}; {orders:#?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub async fn until_over(lab: &Lab, id: &str) -> Value {
    until(lab, id, "over", |rekey| rekey["finished_at"].is_string()).await
}

pub fn id_of(rekey: &Value) -> String {
    rekey["id"].as_str().unwrap().to_owned()
}

/// An edge says that it is there, as edges do, whatever else it says.
fn keep_alive(edge: &Arc<TestEdge>) -> tokio::task::JoinHandle<()> {
    let edge = edge.clone();
    tokio::spawn(async move {
        loop {
            edge.say_status(&[]).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    })
}

/// An edge that took what it was sent in silence says so.
async fn speak(edge: &TestEdge) {
    let applied = edge.with(|state| {
        state.behaviour.silent = false;
        state.applied
    });
    let ack = Ack { generation: Some(applied.into()), ..Ack::default() };
    edge.outgoing.send(EdgeMessage { kind: Some(edge_message::Kind::Ack(ack)) }).await.unwrap();
}

/// Of credentials that were replaced, the length of what is kept of their keys, also in the orders that made them.
async fn keys_left(lab: &Lab) -> Vec<String> {
    lab.rows(
        "SELECT CAST(LENGTH(c.sealed_key) + COALESCE((SELECT SUM(LENGTH(o.sealed_key)) FROM orders o WHERE o.credential_id = c.id), 0) \
         AS TEXT) FROM credentials c WHERE c.state = 'replaced' ORDER BY c.id",
    )
    .await
    .concat()
}

/// The kinds of all events, in the order in which they were committed.
async fn kinds(lab: &Lab) -> Vec<String> {
    lab.rows("SELECT kind FROM events ORDER BY sequence").await.concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_a_cells_edges_could_read_gets_a_new_key() {
    let lab = Lab::start(&Options { cells: vec!["one", "two"], ..options() }).await;
    let tenant = lab.tenant(&["one", "two"], "registered_domain").await;
    lab.domains(tenant, &["shop.test", "rose.test"]).await;
    let before = lab.until_covered(4).await;
    let would = ask(&lab, json!({ "cell": "one", "dry_run": true })).await;
    assert_eq!((&would["certificates"], &would["id"]), (&json!(2), &Value::Null));
    assert_eq!(would["forecast"]["at_once"], 2, "{would}");
    assert!(lab.rows("SELECT id FROM rekeys").await.is_empty(), "a dry run does nothing");

    let edge = lab.edge("one").identity.edge.to_string();
    let rekey = ask(&lab, json!({ "edge": edge, "note": "a guest had a shell there" })).await;
    let again = ask(&lab, json!({ "edge": edge })).await;
    assert_eq!(again["id"], rekey["id"], "it goes on already");
    let over = until_over(&lab, &id_of(&rekey)).await;
    let figures = ["certificates", "replaced", "retired", "revoked", "uploaded"].map(|key| &over[key]);
    assert_eq!(figures, [&json!(2), &json!(2), &json!(2), &json!(0), &json!(0)], "{over}");
    assert_eq!((&over["forecast"]["orders"], &over["behind"]), (&json!(0), &json!([])));

    let after = lab.live_credentials().await;
    let keys = |all: &[Live], cell: &str| -> BTreeSet<Vec<u8>> {
        all.iter().filter(|live| live.cell == cell).map(|live| live.spki.clone()).collect()
    };
    assert!(keys(&after, "one").is_disjoint(&keys(&before, "one")));
    assert_eq!(keys(&after, "two"), keys(&before, "two"), "the other cell's edges never had these keys");
    assert_eq!(keys_left(&lab).await, ["0", "0"], "the old keys are forgotten");
    let epochs = lab.rows(
        "SELECT CAST(c.cell_key_epoch AS TEXT) FROM credentials c JOIN lineages l ON l.live_credential = c.id WHERE l.cell = 'one'",
    );
    assert_eq!(epochs.await.concat(), ["2", "2"], "sealed under a key that was made since");
    assert!(lab.edge("one").with(|state| state.keys.contains_key(&2)), "which its edges have");
    let told = kinds(&lab).await;
    assert!(["keys.rekey", "keys.rekeyed"].iter().all(|kind| told.iter().any(|one| one == kind)), "{told:?}");
    let (_, audit) = lab.operator("GET", "/v1/audit", Value::Null).await;
    assert!(audit.to_string().contains("rekey.create"), "{audit}");
    let (_, list) = lab.operator("GET", "/v1/rekeys", Value::Null).await;
    assert_eq!(list["items"][0]["note"], "a guest had a shell there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_kept_until_every_edge_in_reach_has_the_next_one() {
    let lab = Lab::start(&options()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test"]).await;
    let old = lab.until_covered(1).await.remove(0);
    let edge = lab.edges["default"].clone();
    let alive = keep_alive(&edge);
    edge.with(|state| state.behaviour.silent = true);
    let rekey = ask(&lab, json!({ "certificate": old.id })).await;
    let id = id_of(&rekey);
    let name = edge.identity.edge.to_string();
    let waiting = until(&lab, &id, "waiting for the edge", |rekey| rekey["behind"] == json!([name])).await;
    assert_eq!((&waiting["replaced"], &waiting["retired"]), (&json!(1), &json!(0)));
    assert_ne!(keys_left(&lab).await, ["0"]);
    speak(&edge).await;
    until_over(&lab, &id).await;
    assert_eq!(keys_left(&lab).await, ["0"]);
    alive.abort();
    let (status, problem) = lab.operator("POST", "/v1/rekeys", json!({ "certificate": old.id })).await;
    assert_eq!((status, &problem["code"]), (409, &json!("not_in_use")));
}

/// P9 keeps what ends later, but not what has to go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_key_is_taken_although_its_certificate_ends_sooner() {
    let lab = Lab::start(&options()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test"]).await;
    let old = lab.until_covered(1).await.remove(0);
    lab.world.set_profile(json!({ "name": "classic", "validity_seconds": 10 * 86_400 })).await;
    let rekey = ask(&lab, json!({ "certificate": old.id })).await;
    until_over(&lab, &id_of(&rekey)).await;
    let new = lab.live_credentials().await.remove(0);
    assert_ne!(new.spki, old.spki);
    assert!(new.not_after < old.not_after, "{new:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_limits_hold_is_told_with_its_time() {
    let lab = Lab::start(&Options { issuer: "limits = { exact_set = \"1/7d\" }", ..options() }).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test"]).await;
    let old = lab.until_covered(1).await.remove(0);
    let rekey = ask(&lab, json!({ "certificate": old.id })).await;
    let id = id_of(&rekey);
    let held = until(&lab, &id, "held", |rekey| rekey["forecast"]["held_by"][0]["orders"] == 1).await;
    let now = lab.world.clock.now_ms();
    let until_ms = parse_rfc3339(held["forecast"]["last_at"].as_str().unwrap()).unwrap() - now;
    assert!((7 * 23 * HOUR_MS..=7 * 24 * HOUR_MS).contains(&until_ms), "{held}");
    lab.world.advance_seconds(7 * 86_400).await;
    lab.hurry().await;
    until_over(&lab, &id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taking_an_edge_out_replaces_what_it_could_read_and_shows_how_far_that_is() {
    let lab = Lab::start(&options()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test"]).await;
    let old = lab.until_covered(1).await.remove(0);
    let edge = lab.edge("default").identity.edge.to_string();
    let (status, _) = lab.operator("DELETE", &format!("/v1/edges/{edge}"), Value::Null).await;
    assert_eq!(status, 204);
    let (_, list) = lab.operator("GET", "/v1/rekeys", Value::Null).await;
    let rekey = &list["items"][0];
    assert_eq!((&rekey["subject"], &rekey["certificates"]), (&json!(edge), &json!(1)), "{list}");
    // The CA's window is read again and again; it moves no key that has to go.
    let renewed = until_renewed(&lab, &old).await;
    assert_ne!(renewed.spki, old.spki);
    until_over(&lab, &id_of(rekey)).await;
    // It had nothing that came later.
    let would = ask(&lab, json!({ "edge": edge, "dry_run": true })).await;
    assert_eq!(would["certificates"], 0, "{would}");
}

/// What the CA knows of revocations: of which certificates, for which reason, signed by whom, and when.
pub async fn revocations(lab: &Lab) -> Vec<(String, i64, String, i64)> {
    let stats = lab.world.stats().await;
    let one = |entry: &Value| {
        (
            entry["fingerprint"].as_str().unwrap().to_owned(),
            entry["reason"].as_i64().unwrap(),
            entry["signed_by"].as_str().unwrap().to_owned(),
            parse_rfc3339(entry["at"].as_str().unwrap()).unwrap(),
        )
    };
    stats["revocations"].as_array().unwrap().iter().map(one).collect()
}

async fn fingerprint(lab: &Lab, id: &str) -> String {
    let (_, certificate) = lab.operator("GET", &format!("/v1/certificates/{id}"), Value::Null).await;
    certificate["fingerprint_sha256"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compromised_certificate_is_revoked_by_its_own_key_once_the_edges_have_the_next_one() {
    let lab = Lab::start(&options()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test", "www.shop.test"]).await;
    let old = lab.until_covered(2).await.remove(0);
    let leaked = fingerprint(&lab, &old.id).await;
    let report = json!({ "certificate": old.id, "compromised": true, "note": "found on a paste site" });
    let rekey = ask(&lab, report).await;
    let by = parse_rfc3339(rekey["revoked_by"].as_str().unwrap()).unwrap();
    assert_eq!(by - parse_rfc3339(rekey["requested_at"].as_str().unwrap()).unwrap(), 24 * HOUR_MS);
    let over = until_over(&lab, &id_of(&rekey)).await;
    assert_eq!((&over["revoked"], &over["retired"]), (&json!(1), &json!(1)), "{over}");
    let told = revocations(&lab).await;
    assert_eq!(told.len(), 1, "{told:?}");
    let (of, reason, signed_by, _) = &told[0];
    assert_eq!((of, *reason, signed_by.as_str()), (&leaked, 1, "key"), "keyCompromise, signed with the key");
    let live = lab.live_credentials().await.remove(0);
    assert_ne!(live.spki, old.spki);
    lab.edge("default").with(|state| {
        let resource = state.resource(ResourceKind::Credential, &live.lineage).unwrap();
        assert!(resource.version > 0);
    });
    assert_eq!(keys_left(&lab).await, ["0"]);
    let events = kinds(&lab).await;
    let at = |kind: &str| {
        events.iter().position(|one| one == kind).unwrap_or_else(|| panic!("{kind}: {events:?}"))
    };
    assert!(at("keys.compromised") < at("certificate.renewed"), "{events:?}");
    assert!(at("certificate.key_compromised") < at("certificate.revoked"), "its tenant is told of both");
    assert!(at("certificate.renewed") < at("certificate.revoked"), "{events:?}");
    let (_, audit) = lab.operator("GET", "/v1/audit", Value::Null).await;
    assert!(audit.to_string().contains("certificate.revoke"), "{audit}");
    let (_, verdict) = lab.operator("GET", "/v1/audit/verify", Value::Null).await;
    assert_eq!((&verdict["complete"], &verdict["altered"]), (&json!(true), &Value::Null), "{verdict}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_that_is_behind_delays_a_revocation_for_a_day_and_no_longer() {
    let lab = Lab::start(&options()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test"]).await;
    let old = lab.until_covered(1).await.remove(0);
    let edge = lab.edges["default"].clone();
    let alive = keep_alive(&edge);
    edge.with(|state| state.behaviour.silent = true);
    let rekey = ask(&lab, json!({ "certificate": old.id, "compromised": true })).await;
    let reported = parse_rfc3339(rekey["requested_at"].as_str().unwrap()).unwrap();
    let id = id_of(&rekey);
    until(&lab, &id, "waiting for the edge", |rekey| rekey["behind"][0].is_string()).await;
    lab.world.advance_to(reported + 23 * HOUR_MS).await;
    // A turn that sees the new time.
    until_renewal_was_asked(&lab).await;
    let told = revocations(&lab).await;
    assert!(told.is_empty(), "visitors of that edge would meet a revoked certificate: {told:?}");
    lab.world.advance_to(reported + 24 * HOUR_MS - 10 * 60_000).await;
    let revoked = until(&lab, &id, "revoked", |rekey| rekey["revoked"] == 1).await;
    assert_eq!(revoked["finished_at"], Value::Null, "the edge still lacks the new one");
    let at = revocations(&lab).await[0].3;
    assert!((reported + 23 * HOUR_MS..=reported + 24 * HOUR_MS).contains(&at), "{} ms after", at - reported);
    speak(&edge).await;
    until_over(&lab, &id).await;
    assert_eq!(revocations(&lab).await.len(), 1);
    alive.abort();
}

/// Waits until the loops of issuance have looked at the clock again: by then the CA is asked for its window.
async fn until_renewal_was_asked(lab: &Lab) {
    let asked = async || lab.world.stats().await["requests"]["renewalInfo"].as_u64().unwrap_or(0);
    let before = asked().await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while asked().await == before {
        assert!(tokio::time::Instant::now() < deadline, "the CA is not asked for its window");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What one CA does not answer holds up no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_that_does_not_answer_delays_no_revocation_at_another() {
    let lab = Lab::start(&Options { second: Some("by_default = false"), ..options() }).await;
    let one = lab.tenant(&[], "registered_domain").await;
    lab.domains(one, &["shop.test"]).await;
    let stuck = lab.until_covered(1).await.remove(0);
    let other = lab.tenant_of(&["second"]).await;
    lab.domains(other, &["rose.test"]).await;
    let both = lab.until_covered(2).await;
    let free = both.iter().find(|live| live.id != stuck.id).unwrap();
    let slow = json!({ "kind": "slow", "endpoint": "revokeCert", "delay_ms": 600_000, "count": 1_000 });
    lab.world.faults(slow).await;
    let first = ask(&lab, json!({ "certificate": stuck.id, "compromised": true })).await;
    let first = id_of(&first);
    until(&lab, &first, "replaced", |rekey| rekey["replaced"] == 1).await;
    let second = ask(&lab, json!({ "certificate": free.id, "compromised": true })).await;
    let over = until_over(&lab, &id_of(&second)).await;
    assert_eq!(over["revoked"], 1, "{over}");
    assert_eq!(lab.world.second_stats().await["revocations"].as_array().unwrap().len(), 1);
    let waiting = until(&lab, &first, "there", |_| true).await;
    assert_eq!(
        (&waiting["revoked"], &waiting["troubles"]),
        (&json!(0), &json!([])),
        "its CA says nothing yet"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compromised_cell_has_what_it_used_before_revoked_too() {
    let lab = Lab::start(&options()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test"]).await;
    let first = lab.until_covered(1).await.remove(0);
    // Renewed a month before its end: whoever has the key of the first can use it until then.
    lab.world.advance(61).await;
    let second = until_renewed(&lab, &first).await;
    let rekey = ask(&lab, json!({ "cell": "default", "compromised": true })).await;
    assert_eq!(rekey["certificates"], 2, "{rekey}");
    until_over(&lab, &id_of(&rekey)).await;
    let revoked: BTreeSet<String> = revocations(&lab).await.into_iter().map(|one| one.0).collect();
    let both = BTreeSet::from([fingerprint(&lab, &first.id).await, fingerprint(&lab, &second.id).await]);
    assert_eq!(revoked, both);
    let live = lab.live_credentials().await.remove(0);
    assert!(live.spki != first.spki && live.spki != second.spki);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_outlives_a_restart_and_an_answer_that_was_lost() {
    let options = options();
    let lab = Lab::start(&options).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test"]).await;
    let old = lab.until_covered(1).await.remove(0);
    lab.world
        .faults(json!([
            { "kind": "unavailable", "endpoint": "revokeCert", "count": 1, "retry_after_seconds": 0 },
            { "kind": "lost", "endpoint": "revokeCert", "count": 1 },
        ]))
        .await;
    let rekey = ask(&lab, json!({ "certificate": old.id, "compromised": true })).await;
    let id = id_of(&rekey);
    let failed = until(&lab, &id, "refused once", |rekey| rekey["troubles"][0].is_object()).await;
    assert!(failed["troubles"][0]["text"].as_str().unwrap().starts_with("not revoked"), "{failed}");
    let lab = restarted(lab, &options).await;
    let over = until_over(&lab, &id).await;
    assert_eq!(over["revoked"], 1, "{over}");
    assert_eq!(revocations(&lab).await.len(), 1, "once, although the CA's word was lost");
    let stats = lab.world.stats().await;
    assert_eq!(stats["problems"]["alreadyRevoked"], 1, "{}", stats["problems"]);
    assert_eq!(stats["certificates"]["issued"], 2);
}

/// Another control plane in the place of the first, with the same folder, clock and edges.
async fn restarted(lab: Lab, options: &Options) -> Lab {
    let Lab { world, running, edges } = lab;
    let distribution = running.distribution.address;
    running.shutdown().await.unwrap();
    let config = Config::read(&world.configure(options, &distribution.to_string())).unwrap();
    let running = portico_control_plane::start_at(config, world.clock.clone()).await.unwrap();
    world.forward_zone(running.responder.unwrap()).await;
    let mut again = std::collections::BTreeMap::new();
    for (cell, edge) in edges {
        world.stand_in.set_edges(Vec::new());
        let edge = Arc::into_inner(edge).expect("nobody else has it");
        let (identity, state) = edge.disconnect().await;
        again.insert(cell, Arc::new(TestEdge::resume(distribution, identity, state).await));
    }
    world.stand_in.set_edges(again.values().cloned().collect());
    Lab { world, running, edges: again }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_replaced_is_refused_with_the_reason() {
    let lab = Lab::start(&options()).await;
    let hash = "ab".repeat(32);
    for (body, status, code, words) in [
        (json!({}), 422, "one_of", "exactly one"),
        (
            json!({ "cell": "default", "spki_sha256": hash, "compromised": true }),
            422,
            "one_of",
            "exactly one",
        ),
        (json!({ "cell": "nowhere" }), 422, "unknown_cell", "no edge has joined nowhere"),
        (json!({ "spki_sha256": hash }), 422, "compromised_only", "say compromised"),
        (json!({ "spki_sha256": "xyz", "compromised": true }), 422, "invalid_value", "no SHA-256"),
        (json!({ "cell": "default", "note": "n".repeat(501) }), 422, "too_large", "at most 500"),
    ] {
        let (found, problem) = lab.operator("POST", "/v1/rekeys", body.clone()).await;
        let error = &problem["errors"][0];
        assert_eq!((found, &error["code"]), (status, &json!(code)), "{body}: {problem}");
        assert!(error["message"].as_str().unwrap().contains(words), "{problem}");
    }
    // A key that we never saw is noted: it may come with an upload.
    let report = ask(&lab, json!({ "spki_sha256": hash, "compromised": true })).await;
    assert_eq!((&report["scope"], &report["certificates"]), (&json!("key"), &json!(0)));
    assert_eq!(lab.rows("SELECT rekey_id FROM compromised_keys").await.len(), 1);
}
