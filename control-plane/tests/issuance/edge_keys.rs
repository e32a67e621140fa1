//! Keys that the one edge of a cell makes and keeps.

use std::sync::Arc;
use std::time::Duration;

use portico_api::distribution::{self, ResourceKind};
use portico_cert_store::Generation;
use prost::Message as _;
use serde_json::{Value, json};
use tonic::Code;

use crate::edge::{Identity, State, TestEdge};
use crate::issuing::until_renewed;
use crate::lab::{Lab, Live, Options, cell_id};
use crate::rekeying::{ask, id_of, revocations, until_over};

fn options(cells: Vec<&'static str>) -> Options {
    Options { cells, preflight: false, challenges: r#"["http-01"]"#, ..Options::default() }
}

/// A lab whose cell "lone" has an edge that keeps its keys.
async fn with_lone_edge(cells: Vec<&'static str>) -> Lab {
    let lab = Lab::start(&options(cells)).await;
    let (status, cell) = put(&lab, "lone", "edge").await;
    assert_eq!((status, &cell["custody"], &cell["edges"]), (200, &json!("edge"), &json!(1)), "{cell}");
    lab
}

async fn put(lab: &Lab, cell: &str, custody: &str) -> (u16, Value) {
    lab.operator("PUT", &format!("/v1/cells/{cell}"), json!({ "custody": custody })).await
}

async fn orders_at_ca(lab: &Lab) -> Value {
    lab.world.stats().await["orders"]["created"].clone()
}

/// The public keys (SHA-256) that an edge has made.
fn made_by(edge: &TestEdge) -> Vec<Vec<u8>> {
    edge.with(|state| state.own_keys.values().map(|(key, _)| key.spki_sha256().to_vec()).collect())
}

/// The secret numbers of an edge's keys: 32 bytes behind the header of an octet string, in PKCS#8 of P-256.
fn scalars(edge: &TestEdge) -> Vec<Vec<u8>> {
    let scalar = |der: &[u8]| {
        let at = der.windows(2).position(|two| two == [0x04, 0x20]).unwrap() + 2;
        der[at..at + 32].to_vec()
    };
    edge.with(|state| state.own_keys.values().map(|(key, _)| scalar(key.secret_der())).collect())
}

fn holds(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}

async fn until_order_says(lab: &Lab, words: &str) -> String {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let texts = lab.rows("SELECT COALESCE(error, '') FROM orders").await.concat();
        if let Some(text) = texts.iter().find(|text| text.contains(words)) {
            return text.clone();
        }
        assert!(tokio::time::Instant::now() < deadline, "{texts:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn of_cell<'a>(live: &'a [Live], cell: &str) -> &'a Live {
    live.iter().find(|live| live.cell == cell).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edges_own_key_is_certified_and_never_leaves_it() {
    let lab = with_lone_edge(vec!["shared", "lone"]).await;
    let edge = lab.edges["lone"].clone();
    edge.with(|state| state.keep_bytes = true);
    let tenant = lab.tenant(&["shared", "lone"], "registered_domain").await;
    lab.domains(tenant, &["shop.test"]).await;
    let live = lab.until_covered(2).await;
    let (lone, shared) = (of_cell(&live, "lone"), of_cell(&live, "shared"));
    assert_ne!(lone.spki, shared.spki);
    assert_eq!(made_by(&edge), std::slice::from_ref(&lone.spki));

    let kept = "SELECT CAST(LENGTH(sealed_key) AS TEXT) FROM credentials WHERE key_at_edge = 1 \
                UNION ALL SELECT CAST(LENGTH(sealed_key) AS TEXT) FROM orders WHERE key_at_edge = 1";
    assert_eq!(lab.rows(kept).await.concat(), ["0", "0"]);
    let is_here = |state: &State| state.resource(ResourceKind::Credential, &lone.lineage).is_some();
    edge.wait("the credential", is_here).await;
    let body = edge.with(|state| {
        let resource = state.resource(ResourceKind::Credential, &lone.lineage).unwrap();
        distribution::Credential::decode(resource.body.as_ref()).unwrap()
    });
    assert_eq!((body.cell_id.as_str(), body.edge_cell_id.as_str(), body.sealed_key.len()), ("", "lone", 0));
    assert_eq!(body.spki_sha256, lone.spki);
    let scalar = scalars(&edge).remove(0);
    assert!(edge.with(|state| holds(&state.bytes, &lone.spki) && !holds(&state.bytes, &scalar)));
    if lab.world.database.is_none() {
        for file in std::fs::read_dir(lab.world.path("data")).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap_or_default();
            assert!(!holds(&bytes, &scalar));
        }
    }
    let (_, shown) = lab.operator("GET", &format!("/v1/certificates/{}", lone.id), Value::Null).await;
    assert_eq!((&shown["custody"], shown["renewal"].is_object()), (&json!("edge"), true), "{shown}");
    let (_, cell) = lab.operator("GET", "/v1/cells/lone", Value::Null).await;
    assert_eq!((&cell["certificates"], &cell["keys_on_edge"]), (&json!(1), &json!(1)), "{cell}");

    // A renewal is for a key of its own.
    let rekey = ask(&lab, json!({ "certificate": lone.id })).await;
    let renewed = until_renewed(&lab, lone).await;
    assert!(renewed.spki != lone.spki && made_by(&edge).contains(&renewed.spki));
    until_over(&lab, &id_of(&rekey)).await;
    let replaces = lab.rows("SELECT COALESCE(error, '') FROM orders WHERE state = 'failed'").await;
    assert!(replaces.is_empty(), "{replaces:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_waits_for_its_edge_without_the_ca_and_goes_on_when_it_is_back() {
    let lab = with_lone_edge(vec!["lone"]).await;
    let edge = lab.edges["lone"].clone();
    let (identity, state) = (edge.identity.clone(), edge.leave());
    let tenant = lab.tenant(&["lone"], "registered_domain").await;
    let domain = lab.domains(tenant, &["shop.test"]).await[0];
    let text = until_order_says(&lab, "cannot be asked now").await;
    assert!(text.contains("cell lone") && text.contains("away"), "{text}");
    lab.until_text(domain, "cannot be asked now").await;
    let stats = lab.world.stats().await;
    assert_eq!(
        (&stats["orders"]["created"], &stats["accounts"]["created"]),
        (&json!(0), &json!(0)),
        "the CA has heard of nothing"
    );
    let spent = lab.rows("SELECT CAST(COUNT(*) AS TEXT) FROM order_requests").await.concat();
    assert_eq!(spent, ["0"], "nothing is taken of its limits");
    let tries = lab.rows("SELECT CAST(attempts AS TEXT) FROM orders").await.concat();
    assert_eq!(tries.len(), 1, "one order waits: {tries:?}");
    // Far in the future: it is the edge that brings it on.
    let mut tx = lab.begin().await;
    portico_control_plane::store::sql::query("UPDATE orders SET next_at = next_at + 3600000")
        .execute(&mut tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let back = Arc::new(TestEdge::resume(lab.running.distribution.address, identity, state).await);
    lab.world.stand_in.set_edges(vec![back.clone()]);
    let live = lab.until_covered(1).await;
    assert_eq!(made_by(&back), std::slice::from_ref(&live[0].spki));
    assert_eq!(orders_at_ca(&lab).await, 1);
}

/// Its cell comes first, and would hold up the others for as long as its edge is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_that_is_away_holds_up_no_other_cell() {
    let lab = with_lone_edge(vec!["lone", "shared"]).await;
    let edge = lab.edges["lone"].clone();
    let (identity, state) = (edge.identity.clone(), edge.leave());
    lab.world.stand_in.set_edges(vec![lab.edges["shared"].clone()]);
    let tenant = lab.tenant(&["lone", "shared"], "registered_domain").await;
    lab.domains(tenant, &["shop.test"]).await;
    let live = lab.until_covered(1).await;
    assert_eq!(live[0].cell, "shared");
    let waiting = lab.rows("SELECT state FROM orders WHERE key_at_edge = 1").await.concat();
    assert_eq!((waiting, orders_at_ca(&lab).await), (vec!["planned".to_owned()], json!(1)));
    let back = Arc::new(TestEdge::resume(lab.running.distribution.address, identity, state).await);
    lab.world.stand_in.set_edges(vec![lab.edges["shared"].clone(), back]);
    lab.until_covered_soon(2).await;
    assert_eq!(orders_at_ca(&lab).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_whose_edge_keeps_its_keys_has_no_second_one() {
    let lab = Lab::start(&options(vec!["shared"])).await;
    let (status, cell) = put(&lab, "lone", "edge").await;
    assert_eq!((status, &cell["edges"]), (200, &json!(0)), "it comes to be by that: {cell}");
    let token =
        async |cell: &str| lab.operator("POST", "/v1/edges/join-tokens", json!({ "cell": cell })).await;
    let text = |answer: &(u16, Value)| answer.1["token"].as_str().unwrap().to_owned();
    let (first, second) = (token("lone").await, token("lone").await);
    let address = lab.running.distribution.address;
    let one = Identity::join(address, &text(&first)).await.unwrap();
    let refused = Identity::join(address, &text(&second)).await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("no second one can join"), "{refused}");
    let (status, problem) = token("lone").await;
    assert_eq!((status, &problem["code"]), (409, &json!("cell_taken")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains(&format!("edge rm {}", one.edge)), "{problem}");
    let (status, _) = lab.operator("DELETE", &format!("/v1/edges/{}", one.edge), Value::Null).await;
    assert_eq!(status, 204);
    Identity::join(address, &text(&second)).await.expect("the token was not spent");

    Identity::join(address, &text(&token("shared").await)).await.unwrap();
    let (status, problem) = put(&lab, "shared", "edge").await;
    assert_eq!((status, &problem["code"]), (409, &json!("several_edges")), "{problem}");
    for (body, pointer) in [
        (json!({ "custody": "uploaded" }), "/custody"),
        (json!({}), "/custody"),
        (json!({ "custody": "edge", "cell": "x" }), "/cell"),
    ] {
        let (status, problem) = lab.operator("PUT", "/v1/cells/shared", body).await;
        assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!(pointer)), "{problem}");
    }
    let (status, problem) = put(&lab, "No-Name!", "edge").await;
    assert_eq!((status, &problem["code"]), (422, &json!("cell_name_invalid")), "{problem}");
    let (status, _) = lab.operator("GET", "/v1/cells/nowhere", Value::Null).await;
    assert_eq!(status, 404);
    let (_, list) = lab.operator("GET", "/v1/cells", Value::Null).await;
    let custody: Vec<_> =
        list["items"].as_array().unwrap().iter().map(|cell| (&cell["id"], &cell["custody"])).collect();
    assert!(custody.contains(&(&json!("lone"), &json!("edge"))), "{list}");
    assert!(custody.contains(&(&json!("shared"), &json!("cell"))), "{list}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_edge_had_alone_is_ordered_anew_for_the_one_in_its_place() {
    let lab = with_lone_edge(vec!["lone"]).await;
    let tenant = lab.tenant(&["lone"], "registered_domain").await;
    lab.domains(tenant, &["shop.test"]).await;
    let old = lab.until_covered(1).await.remove(0);
    // The cell's next edge could not serve by a key that stays where it is.
    let (_, cell) = put(&lab, "lone", "cell").await;
    assert!(cell["remark"].as_str().unwrap().contains("portico cell rekey lone"), "{cell}");
    let (status, _) = lab.operator("POST", "/v1/edges/join-tokens", json!({ "cell": "lone" })).await;
    assert_eq!(status, 409, "its certificates have keys on the edge yet");
    put(&lab, "lone", "edge").await;

    let edge = lab.edge("lone").identity.edge.to_string();
    let (status, _) = lab.operator("DELETE", &format!("/v1/edges/{edge}"), Value::Null).await;
    assert_eq!(status, 204);
    let (_, list) = lab.operator("GET", "/v1/rekeys", Value::Null).await;
    let rekey = &list["items"][0];
    assert_eq!((&rekey["certificates"], &rekey["forecast"]["orders"]), (&json!(1), &json!(1)), "{list}");
    until_order_says(&lab, "no edge has joined it").await;
    assert_eq!(orders_at_ca(&lab).await, 1, "the CA is not asked for what nobody could serve");

    let token = lab.running.distribution.create_join_token(&cell_id("lone"), 600).await.unwrap().token;
    let address = lab.running.distribution.address;
    let identity = Identity::join(address, &token).await.unwrap();
    let next = Arc::new(TestEdge::connect(address, identity, Generation::default()).await);
    lab.world.stand_in.set_edges(vec![next.clone()]);
    let renewed = until_renewed(&lab, &old).await;
    assert_eq!(made_by(&next), std::slice::from_ref(&renewed.spki));
    until_over(&lab, &id_of(rekey)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_account_revokes_what_an_edge_has_the_key_of() {
    let lab = with_lone_edge(vec!["lone"]).await;
    let tenant = lab.tenant(&["lone"], "registered_domain").await;
    lab.domains(tenant, &["shop.test"]).await;
    let old = lab.until_covered(1).await.remove(0);
    let edge = lab.edge("lone").identity.edge.to_string();
    let rekey = ask(&lab, json!({ "edge": edge, "compromised": true })).await;
    assert_eq!(rekey["certificates"], 1, "{rekey}");
    let over = until_over(&lab, &id_of(&rekey)).await;
    assert_eq!((&over["revoked"], &over["retired"]), (&json!(1), &json!(1)), "{over}");
    let told = revocations(&lab).await;
    let signed: Vec<_> = told.iter().map(|(_, reason, by, _)| (*reason, by.as_str())).collect();
    assert_eq!(signed, [(1, "account")], "{told:?}");
    let new = lab.live_credentials().await.remove(0);
    assert!(new.spki != old.spki && made_by(lab.edge("lone")).contains(&new.spki));
}
