//! What issuance promises when nothing is wrong. The bodies run against our own CA here and against Pebble there.

use portico_api::distribution::{self, ResourceKind};
use portico_cert_store::{CredentialId, DomainId, SealContext, SealedKey};
use portico_control_plane::store::{figures, sql};
use prost::Message;
use serde_json::json;

use crate::lab::{Lab, Live, Options, add_domain, http, label};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_name_is_issued_by_http_and_opens_on_its_edge() {
    let lab = Lab::start(&Options::default()).await;
    one_name(&lab).await;
    let stats = lab.world.stats().await;
    assert_eq!(stats["orders"]["created"], 1);
    assert_eq!(stats["accounts"]["created"], 1);
    assert_eq!(stats["validations"]["by_challenge"]["http-01"]["performed"], 1);
}

/// All control planes of these tests are one process with one set of metrics, so what they say is read where it comes from.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn domains_orders_and_limits_are_figures() {
    let lab = Lab::start(&Options::default()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test", "www.shop.test"]).await;
    lab.until_covered(2).await;
    let mut tx = lab.begin().await;
    for (name, change) in [
        ("a.test", "UPDATE domains SET served = 0 WHERE id = ?"),
        ("b.test", "UPDATE domains SET suspension = '{}', served = 0 WHERE id = ?"),
        ("c.test", "UPDATE domains SET deleted_at = 1, served = 0 WHERE id = ?"),
        ("d.test", "UPDATE domains SET served = 1 WHERE id = ?"),
    ] {
        let id = add_domain(&mut tx, tenant, name).await;
        sql::query(change).bind(id.to_string()).execute(&mut tx).await.unwrap();
    }
    let mut counts = figures::domains(&mut tx).await.unwrap();
    counts.sort();
    let counted: Vec<(&str, u64)> = counts.iter().map(|(word, count)| (word.as_str(), *count)).collect();
    assert_eq!(counted, [("certified", 2), ("suspended", 1), ("uncertified", 1), ("unproved", 1)]);
    assert!(counted.iter().all(|(word, _)| figures::DOMAIN_STANDINGS.contains(word)));
    assert_eq!(figures::open_orders(&mut tx).await.unwrap(), []);
    drop(tx);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let (status, metrics) = http(lab.running.api, "GET", "/metrics", &serde_json::Value::Null).await;
        let missing = [
            "portico_domains{standing=\"certified\"}",
            "portico_domains{standing=\"unproved\"}",
            "portico_orders{state=\"finalizing\"}",
            "portico_order_seconds_count{issuer=\"",
            "portico_distribution_edges_behind",
        ];
        let missing = missing.into_iter().find(|series| !metrics.contains(series));
        if let (200, None) = (status, missing) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{missing:?} of {metrics}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_name_is_issued_by_tls_alpn() {
    let lab = Lab::start(&Options { challenges: r#"["tls-alpn-01"]"#, ..Options::default() }).await;
    one_name(&lab).await;
    let stats = lab.world.stats().await;
    assert_eq!(stats["validations"]["by_challenge"]["tls-alpn-01"]["performed"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_25_names_is_one_order() {
    let lab = Lab::start(&Options::default()).await;
    group_of_25(&lab).await;
    assert_eq!(lab.world.stats().await["orders"]["created"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wildcard_is_issued_through_the_delegation() {
    let lab = Lab::start(&Options::default()).await;
    wildcard(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_cell_has_its_own_key_and_costs_no_validation() {
    let lab = Lab::start(&Options { cells: vec!["master", "shadow"], ..Options::default() }).await;
    two_cells(&lab).await;
    let stats = lab.world.stats().await;
    assert_eq!(stats["validations"]["performed"], 3, "three names, two cells");
    assert_eq!(stats["orders"]["created"], 2);
    assert_eq!(stats["accounts"]["created"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_in_its_time_with_a_new_key() {
    let lab = Lab::start(&Options::default()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test", "www.shop.test"]).await;
    let first = lab.until_covered(2).await.remove(0);
    lab.world.advance(50).await;
    assert_eq!(lab.live_credentials().await[0].id, first.id, "50 of 90 days are no reason");
    lab.world.advance(11).await;
    let second = until_renewed(&lab, &first).await;
    assert_eq!(second.names, first.names);
    assert_ne!(second.spki, first.spki);
    assert!(second.not_after > first.not_after);
    let states = lab.rows("SELECT state FROM credentials ORDER BY created_at").await.concat();
    assert_eq!(states, ["replaced", "live"]);
    let renewals =
        lab.rows("SELECT CAST(renewal AS TEXT) FROM order_requests ORDER BY id DESC").await.concat();
    assert_eq!(renewals[0], "1", "it is exempt from the CA's limits");
    let edge = lab.edge("default");
    let is_second = |state: &crate::edge::State| {
        let resource = state.resource(ResourceKind::Credential, &second.lineage).unwrap();
        distribution::Credential::decode(resource.body.as_ref()).unwrap().credential_id == second.id
    };
    edge.wait("the renewed credential", is_second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_added_later_joins_and_nothing_else_is_ordered() {
    let lab = Lab::start(&Options::default()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test"]).await;
    lab.until_covered(1).await;
    let other = lab.tenant(&[], "registered_domain").await;
    lab.domains(other, &["else.test"]).await;
    lab.until_covered(2).await;
    lab.domains(tenant, &["www.shop.test"]).await;
    let live = lab.until_covered(3).await;
    assert_eq!(live.len(), 2, "{live:?}");
    assert_eq!(lab.world.stats().await["orders"]["created"], 3);
}

/// One tenant, one name: covered, distributed, and the edge can open its key.
pub async fn one_name(lab: &Lab) {
    let tenant = lab.tenant(&[], "registered_domain").await;
    let domain = lab.domains(tenant, &["shop.test"]).await[0];
    let live = lab.until_covered(1).await.remove(0);
    assert_eq!(live.names, ["shop.test"]);
    lab.until_condition(domain, "CertificateReady", "true").await;
    lab.until_condition(domain, "Deployed", "true").await;
    let edge = lab.edge("default");
    let (credential, routed) = edge.with(|state| {
        let resource = state.resource(ResourceKind::Credential, &live.lineage).unwrap();
        let domain = state.resource(ResourceKind::Domain, domain).unwrap();
        (
            distribution::Credential::decode(resource.body.as_ref()).unwrap(),
            distribution::Domain::decode(domain.body.as_ref()).unwrap(),
        )
    });
    assert_eq!(routed.lineages[0].lineage_id, live.lineage);
    let id: CredentialId = credential.credential_id.parse().unwrap();
    let context = SealContext {
        cell: &edge.identity.cell,
        epoch: credential.cell_key_epoch,
        key_tenant: &credential.key_tenant,
        credential: id,
        spki_sha256: live.spki.as_slice().try_into().unwrap(),
    };
    let sealed = SealedKey::from_bytes(credential.sealed_key.to_vec());
    let key = edge.with(|state| state.keys[&credential.cell_key_epoch].open(&sealed, &context).unwrap());
    assert_eq!(key.spki_sha256().as_slice(), live.spki);
    // No account's thumbprint: it would answer the tokens of the origin's own ACME client too.
    let cleared = |state: &crate::edge::State| {
        let resource = state.resource(ResourceKind::Domain, domain).unwrap();
        distribution::Domain::decode(resource.body.as_ref()).unwrap().acme_thumbprint.is_empty()
    };
    edge.wait("a domain without a thumbprint", cleared).await;
}

/// 25 names of one registered domain come as one batch and leave as one certificate.
pub async fn group_of_25(lab: &Lab) {
    let tenant = lab.tenant(&[], "registered_domain").await;
    let names: Vec<String> = (0..25).map(|n| format!("n{n:02}.shop.test")).collect();
    lab.domains(tenant, &names).await;
    let live = lab.until_covered(25).await;
    assert_eq!(live.len(), 1, "{live:?}");
    let mut found = live[0].names.clone();
    found.sort();
    assert_eq!(found, names);
    assert_eq!(lab.rows("SELECT id FROM orders").await.len(), 1);
}

/// The wildcard waits for its delegation, says which record to set, and is issued with its base once that stands.
pub async fn wildcard(lab: &Lab) {
    let tenant = lab.tenant(&[], "registered_domain").await;
    let ids = lab.domains(tenant, &["*.shop.test", "shop.test"]).await;
    let advice = lab.until_condition(ids[0], "ChallengeReachable", "false").await;
    let wanted = format!("set _acme-challenge.shop.test CNAME {}.acme.provider.test", label(ids[0]));
    assert!(advice[2].contains(&wanted), "{advice:?}");
    // The base went on without waiting for it.
    lab.until_covered(1).await;
    lab.delegate("shop.test", ids[0]).await;
    retry_now(lab, ids[0]).await;
    let live = lab.until_covered(2).await;
    let names: Vec<&String> = live.iter().flat_map(|live| &live.names).collect();
    assert!(names.iter().any(|name| *name == "*.shop.test"), "{names:?}");
    assert_eq!(lab.rows("SELECT label FROM challenge_records").await.len(), 0, "no value is left behind");
}

/// One name of ten cannot be validated: nine are issued together, one has a condition and a back-off.
pub async fn nine_of_ten(lab: &Lab) {
    lab.world.set_dns("/nxdomain", json!({ "names": ["n3.shop.test"] })).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let names: Vec<String> = (0..10).map(|n| format!("n{n}.shop.test")).collect();
    let ids = lab.domains(tenant, &names).await;
    let live = lab.until_covered(9).await;
    assert_eq!(live.len(), 1, "{live:?}");
    assert!(!live[0].names.contains(&"n3.shop.test".to_owned()));
    let condition = lab.until_condition(ids[3], "CertificateReady", "false").await;
    assert_eq!(condition[1], "ValidationFailed");
    assert!(condition[2].contains("n3.shop.test"), "{condition:?}");
    let events = crate::failing::events_of(lab, &ids[3].to_string()).await;
    let failed = events.iter().find(|event| event[0] == "domain.failed").expect("its owner is told");
    assert!(failed[1].contains("run `portico domain retry n3.shop.test`"), "the next step: {failed:?}");
    for id in ids.iter().filter(|id| **id != ids[3]) {
        assert_eq!(lab.condition(*id, "CertificateReady").await.unwrap()[0], "true");
    }
    // Mended and asked to try again: it is ordered alone.
    lab.world
        .set_dns("/records", json!({ "name": "n3.shop.test", "type": "A", "values": ["127.0.0.1"] }))
        .await;
    retry_now(lab, ids[3]).await;
    lab.until_condition(ids[3], "CertificateReady", "true").await;
    let alone = lab.rows("SELECT names FROM orders WHERE state = 'issued'").await.concat();
    assert!(alone.contains(&r#"["n3.shop.test"]"#.to_owned()), "{alone:?}");
}

/// Two cells, one after the other, each with its own key for the same names.
pub async fn two_cells(lab: &Lab) {
    let tenant = lab.tenant(&["master", "shadow"], "registered_domain").await;
    lab.domains(tenant, &["shop.test", "www.shop.test", "api.shop.test"]).await;
    let live = lab.until_covered(6).await;
    let cells: Vec<&str> = live.iter().map(|live| live.cell.as_str()).collect();
    assert_eq!(cells, ["master", "shadow"]);
    assert_eq!(live[0].names, live[1].names);
    assert_ne!(live[0].spki, live[1].spki);
    for (live, other) in [(&live[0], &live[1]), (&live[1], &live[0])] {
        let edge = lab.edge(&live.cell);
        edge.wait("its credential", |state| {
            state.resource(ResourceKind::Credential, &live.lineage).is_some()
        })
        .await;
        let foreign = edge.with(|state| state.resource(ResourceKind::Credential, &other.lineage).is_some());
        assert!(!foreign, "the key of {} reached {}", other.cell, live.cell);
    }
    let created = lab.rows("SELECT CAST(created_at AS TEXT) FROM orders ORDER BY created_at").await.concat();
    let issued = lab.rows("SELECT CAST(issued_at AS TEXT) FROM orders ORDER BY created_at").await.concat();
    assert!(created[1] >= issued[0], "the second order began before the first was issued");
}

pub async fn retry_now(lab: &Lab, domain: DomainId) {
    let mut tx = lab.begin().await;
    portico_control_plane::store::group::retry_name_now(&mut tx, domain, lab.world.clock.now_ms())
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

/// The names of each live certificate, with whose its key is.
async fn names_by_owner(lab: &Lab) -> Vec<Vec<String>> {
    lab.rows("SELECT names, key_tenant FROM credentials WHERE state = 'live' ORDER BY names").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_that_consent_share_one_certificate_until_one_of_them_leaves() {
    let lab = Lab::start(&Options::default()).await;
    let tenants = [lab.tenant(&[], "registered_domain").await, lab.tenant(&[], "registered_domain").await];
    let mut tx = lab.begin().await;
    for tenant in tenants {
        sql::query("INSERT INTO shared_groups VALUES (?, 'parked', 0, 0, 'token', NULL)")
            .bind(tenant.to_string())
            .execute(&mut tx)
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
    for (tenant, name) in tenants.into_iter().zip(["a.test", "b.test"]) {
        lab.domains(tenant, &[name]).await;
    }
    lab.until_covered(2).await;
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    // Each may have been ordered before the other was there; by its next renewal at the latest they are together.
    lab.world.advance(61).await;
    while names_by_owner(&lab).await != [[r#"["a.test","b.test"]"#, "operator"]] {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", names_by_owner(&lab).await);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let live = lab.live_credentials().await.remove(0);
    let edge = lab.edge("default");
    edge.wait("the shared credential", |state| {
        state.resource(ResourceKind::Credential, &live.lineage).is_some()
    })
    .await;
    let mut tx = lab.begin().await;
    sql::query("DELETE FROM shared_groups WHERE tenant_id = ?")
        .bind(tenants[0].to_string())
        .execute(&mut tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    lab.world.advance(61).await;
    let apart = [
        [r#"["a.test"]"#.to_owned(), tenants[0].to_string()],
        [r#"["b.test"]"#.to_owned(), "operator".to_owned()],
    ];
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while names_by_owner(&lab).await != apart {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", names_by_owner(&lab).await);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

pub async fn until_renewed(lab: &Lab, old: &Live) -> Live {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let live = lab.live_credentials().await;
        if let Some(new) = live.into_iter().find(|live| live.lineage == old.lineage && live.id != old.id) {
            return new;
        }
        let orders = lab.rows("SELECT names, state, COALESCE(error, '') FROM orders").await;
        assert!(tokio::time::Instant::now() < deadline, "not renewed: {orders:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
