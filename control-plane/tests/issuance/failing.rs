//! What issuance promises when a CA, a name or our own limit says no.

use std::collections::BTreeMap;
use std::time::Duration;

use portico_control_plane::limits;
use portico_control_plane::plan::issuers::FAILURES_AT_ONCE;
use portico_control_plane::store::issuance::unfinished_orders;
use portico_control_plane::store::sql;
use serde_json::{Value, json};

use crate::issuers::told;
use crate::issuing::{nine_of_ten, retry_now, until_renewed};
use crate::lab::{Lab, Options};

/// The CA's own log: no set of names was ordered twice.
pub fn assert_one_order_per_set(stats: &Value) {
    let mut orders: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for entry in stats["new_orders"].as_array().unwrap() {
        if let Some(order) = entry["order"].as_str() {
            orders.entry(entry["names"].to_string()).or_default().push(order);
        }
    }
    for (names, mut orders) in orders {
        orders.dedup();
        assert_eq!(orders.len(), 1, "{names} was ordered {} times", orders.len());
    }
}

async fn issued_in_spite_of(faults: Value) {
    let lab = Lab::start(&Options::default()).await;
    lab.world.faults(faults.clone()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test", "www.shop.test"]).await;
    lab.until_covered(2).await;
    let stats = lab.world.stats().await;
    assert_one_order_per_set(&stats);
    assert_eq!(stats["orders"]["created"], 1, "{faults}");
    assert_eq!(stats["certificates"]["issued"], 1, "{faults}");
    assert_eq!(stats["accounts"]["created"], 1, "{faults}");
    let delivered: u64 = stats["faults"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert!(delivered > 0, "no fault was delivered: {faults}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_all_nonces_refused_is_no_obstacle() {
    issued_in_spite_of(json!({ "kind": "bad-nonce", "share": 0.5, "count": 100_000 })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_429_is_waited_out() {
    issued_in_spite_of(json!([
        { "kind": "rate-limited", "endpoint": "newOrder", "retry_after_seconds": 1 },
        { "kind": "rate-limited", "endpoint": "finalize", "retry_after_seconds": 1 },
    ]))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_503_at_each_step_is_waited_out() {
    let endpoints =
        ["directory", "newAccount", "newOrder", "authorization", "challenge", "order", "certificate"];
    let faults: Vec<Value> = endpoints
        .iter()
        .map(|endpoint| json!({ "kind": "unavailable-html", "endpoint": endpoint, "retry_after_seconds": 1 }))
        .collect();
    issued_in_spite_of(json!(faults)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_at_each_step_is_outlived() {
    let endpoints =
        ["directory", "newAccount", "newOrder", "authorization", "challenge", "finalize", "certificate"];
    let faults: Vec<Value> =
        endpoints.iter().map(|endpoint| json!({ "kind": "garbage", "endpoint": endpoint })).collect();
    issued_in_spite_of(json!(faults)).await;
}

/// The CA has done what it was asked for, and nobody heard of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_lost_cost_no_second_order() {
    let endpoints = ["newAccount", "newOrder", "authorization", "challenge", "finalize", "certificate"];
    let faults: Vec<Value> =
        endpoints.iter().map(|endpoint| json!({ "kind": "lost", "endpoint": endpoint })).collect();
    issued_in_spite_of(json!(faults)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closed_connections_and_slow_signing_are_outlived() {
    issued_in_spite_of(json!([
        { "kind": "close", "endpoint": "newOrder" },
        { "kind": "close", "endpoint": "finalize" },
        { "kind": "processing", "polls": 3 },
    ]))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_with_another_key_or_chain_never_goes_live() {
    let lab = Lab::start(&Options::default()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let mut expected = 0;
    for (fault, words) in [
        ("wrong-key", "another key"),
        ("wrong-chain", "no chain"),
        ("wrong-names", "does not cover"),
        ("missing-name", "does not cover"),
        ("expired", "expired"),
        ("not-yet-valid", "valid only from"),
        ("no-intermediate", "no chain"),
        ("expired-intermediate", "CertExpired"),
    ] {
        lab.world.faults(json!({ "kind": fault })).await;
        let names = [format!("{fault}.test"), format!("www.{fault}.test")];
        let domain = lab.domains(tenant, &names).await[0];
        let condition = lab.until_condition(domain, "CertificateReady", "false").await;
        assert_eq!(condition[1], "CertificateRefused", "{fault}: {condition:?}");
        assert!(condition[2].contains(words), "{fault}: {condition:?}");
        assert_eq!(lab.live_credentials().await.len(), expected, "{fault} went live");
        retry_now(&lab, domain).await;
        expected += 1;
        lab.until_covered(2 * expected).await;
    }
}

/// Whatever the CA answers to a renewal, what is served stays until a good certificate is there, and somebody is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_that_the_ca_gets_wrong_leaves_the_old_certificate() {
    let lab = Lab::start(&Options::default()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let domain = lab.domains(tenant, &["shop.test"]).await[0];
    let old = lab.until_covered(1).await.remove(0);
    let faults = [
        ("huge", Some("newOrder"), "larger than"),
        ("redirect", Some("newOrder"), "redirect"),
        ("wrong-key", None, "another key"),
        ("wrong-chain", None, "no chain"),
        ("wrong-names", None, "does not cover"),
        ("expired", None, "expired"),
        ("garbage", Some("certificate"), "chain"),
        ("empty", Some("certificate"), "chain"),
        ("huge", Some("certificate"), "larger than"),
        ("redirect", Some("certificate"), "redirect"),
    ];
    for (index, (fault, endpoint, words)) in faults.into_iter().enumerate() {
        let fault_set = json!({ "kind": fault, "endpoint": endpoint, "count": 1_000_000 });
        lab.world.other_faults(fault_set).await;
        if index == 0 {
            lab.world.advance(62).await;
        }
        lab.until_text(domain, words).await;
        let live = lab.live_credentials().await;
        assert_eq!((live.len(), &live[0].id), (1, &old.id), "{fault} went live");
        let ready = lab.condition(domain, "CertificateReady").await.unwrap();
        assert_eq!(ready[0], "true", "what serves is ready: {ready:?}");
    }
    lab.world.no_faults().await;
    retry_now(&lab, domain).await;
    assert_ne!(until_renewed(&lab, &old).await.spki, old.spki);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_name_does_not_hold_up_its_group() {
    let lab = Lab::start(&Options { preflight: false, ..Options::default() }).await;
    nine_of_ten(&lab).await;
    let stats = lab.world.stats().await;
    assert_eq!(stats["orders"]["created"], 3, "ten, nine, and the one alone");
    // The nine were validated once: the second order used their authorizations again.
    for n in [0, 1, 2, 4, 5, 6, 7, 8, 9] {
        let name = format!("n{n}.shop.test");
        assert_eq!(stats["validations"]["by_name"][&name]["http-01"]["performed"], 1, "{name}");
    }
}

/// Ejected, mended, issued alone: from the next renewal of its group on it is with the others again, for no order of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mended_name_comes_back_to_its_group_with_the_next_renewal() {
    let lab = Lab::start(&Options { preflight: false, ..Options::default() }).await;
    let names: Vec<String> = (0..24).map(|n| format!("n{n}.shop.test")).collect();
    lab.world.ca_refuses(&["n3.shop.test"]).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let ids = lab.domains(tenant, &names).await;
    lab.until_covered(23).await;
    lab.world.ca_refuses(&[]).await;
    retry_now(&lab, ids[3]).await;
    let mut live = lab.until_covered(24).await;
    assert_eq!(live.len(), 2, "{live:?}");
    let before = lab.world.stats().await["orders"]["created"].as_u64().unwrap();

    lab.world.advance(61).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while live.len() > 1 {
        assert!(tokio::time::Instant::now() < deadline, "{live:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        live = lab.live_credentials().await;
    }
    assert_eq!(live[0].names.len(), 24);
    let orders = lab.world.stats().await["orders"]["created"].as_u64().unwrap() - before;
    assert!(orders <= 2, "{orders} orders for one group and one name");
}

/// A name that died meanwhile is found before the CA is asked: no order and no validation fails for it, and the others are renewed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_died_leaves_its_group_before_the_renewal_is_ordered() {
    let lab = Lab::start(&Options::default()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let ids = lab.domains(tenant, &["a.shop.test", "b.shop.test", "dead.shop.test"]).await;
    let first = lab.until_covered(3).await.remove(0);
    let elsewhere = json!({ "name": "dead.shop.test", "type": "A", "values": ["127.0.0.99"] });
    lab.world.set_dns("/records", elsewhere).await;
    lab.world.advance(61).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let renewed = loop {
        let live = lab.live_credentials().await;
        if let Some(live) = live.into_iter().find(|live| live.spki != first.spki) {
            break live;
        }
        assert!(tokio::time::Instant::now() < deadline, "{}", lab.world.stats().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(renewed.names, ["a.shop.test", "b.shop.test"]);
    let stats = lab.world.stats().await;
    assert_eq!(stats["orders"]["created"], 2, "{stats}");
    assert_eq!(stats["validations"]["by_name"]["dead.shop.test"]["http-01"]["performed"], 1, "{stats}");
    let events = events_of(&lab, &ids[2].to_string()).await;
    let told = |event: &&Vec<String>| {
        event[0] == "certificate.renewal_failed" && event[1].contains("no CA could validate dead.shop.test")
    };
    assert!(events.iter().any(|event| told(&event)), "{events:?}");
}

/// The authorization is lost with it, so another order follows; the names stay together, and no pre-flight is due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_validation_that_the_ca_could_not_carry_out_is_no_names_fault() {
    let lab = Lab::start(&Options::default()).await;
    lab.world.faults(json!({ "kind": "validation-trouble" })).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let ids = lab.domains(tenant, &["shop.test", "www.shop.test"]).await;
    let condition = lab.until_condition(ids[0], "CertificateReady", "false").await;
    assert_eq!(condition[1], "CaOrderGone", "{condition:?}");
    assert!(condition[2].contains("could not be carried out"), "{condition:?}");
    for id in &ids {
        let events = events_of(&lab, &id.to_string()).await;
        assert!(!events.iter().any(|event| event[0] == "domain.failed"), "{events:?}");
        retry_now(&lab, *id).await;
    }
    lab.until_covered(2).await;
    let stats = lab.world.stats().await;
    assert_eq!(stats["certificates"]["issued"], 1, "the names were taken apart: {stats}");
}

/// Refused at newOrder already: no authorization was made, so only the CA's words say which name it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_the_ca_refuses_to_order_do_not_hold_up_their_group() {
    let lab = Lab::start(&Options::default()).await;
    for (group, refused) in [("one", &["n2"][..]), ("two", &["n1", "n3"][..])] {
        let names: Vec<String> = (0..5).map(|n| format!("n{n}.{group}.test")).collect();
        let refused: Vec<String> = refused.iter().map(|label| format!("{label}.{group}.test")).collect();
        lab.world.ca_refuses(&refused.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let before: usize = lab.live_credentials().await.iter().map(|live| live.names.len()).sum();
        let tenant = lab.tenant(&[], "registered_domain").await;
        let ids = lab.domains(tenant, &names).await;
        let live = lab.until_covered(before + 5 - refused.len()).await;
        let live: Vec<&String> =
            live.iter().flat_map(|live| &live.names).filter(|name| name.contains(group)).collect();
        assert_eq!(live, names.iter().filter(|name| !refused.contains(name)).collect::<Vec<_>>());
        for (id, name) in ids.iter().zip(&names).filter(|(_, name)| refused.contains(name)) {
            let condition = lab.until_condition(*id, "CertificateReady", "false").await;
            assert!(condition[2].contains(&format!("Cannot issue for \"{name}\"")), "{condition:?}");
            let events = events_of(&lab, &id.to_string()).await;
            assert!(events.iter().any(|e| e[0] == "domain.failed" && e[1].contains(name)), "{events:?}");
        }
    }
    let stats = lab.world.stats().await;
    assert_eq!(stats["problems"]["rejectedIdentifier"], 2, "one refused newOrder a group: {stats}");
    assert_eq!(stats["orders"]["created"], 2, "{stats}");
}

/// The CA says neither in a subproblem nor in quotes which name it is; every other name has to be issued all the same.
async fn issued_but_for(bad: &str, refusal: Value) {
    let lab = Lab::start(&Options::default()).await;
    lab.world.ca_refuses_as(refusal.clone()).await;
    let names: Vec<String> = (0..25).map(|n| format!("n{n}.shop.test")).collect();
    let tenant = lab.tenant(&[], "registered_domain").await;
    let ids = lab.domains(tenant, &names).await;
    let live = lab.until_covered(24).await;
    assert!(!live.iter().any(|live| live.names.iter().any(|name| name == bad)), "{refusal}");
    let culprit = ids[names.iter().position(|name| name == bad).unwrap()];
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !events_of(&lab, &culprit.to_string()).await.iter().any(|e| e[0] == "domain.failed") {
        assert!(tokio::time::Instant::now() < deadline, "{bad} is not told: {refusal}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stats = lab.world.stats().await;
    let asked = stats["new_orders"].as_array().unwrap().len();
    // All 25, then two halves of each part that was refused: 13, 7, 4, 2, 1.
    assert!(asked <= 11, "{asked} orders to find one name among 25: {refusal}");
    let counted = lab.rows("SELECT CAST(COUNT(*) AS TEXT) FROM order_requests").await;
    let counted: usize = counted[0][0].parse().unwrap();
    assert!(counted + 1 >= asked, "the ledger counts {counted} of {asked}, the last refusal aside");
    // The parts that are well are one pool again: the next renewal has all of them in as few certificates as fit.
    let parts = lab.rows("SELECT DISTINCT CAST(part AS TEXT) FROM name_states").await;
    assert_eq!(parts, [["0"]], "{refusal}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_names_nobody_costs_one_name_of_25_its_certificate_and_no_other() {
    issued_but_for("n7.shop.test", json!({ "names": ["n7.shop.test"], "unnamed": "rejectedIdentifier" }))
        .await;
    issued_but_for("n24.shop.test", json!({ "names": ["n24.shop.test"], "unnamed": "malformed" })).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_to_finalize_that_names_nobody_costs_no_other_name_its_certificate() {
    let refusal = json!({ "names": ["n0.shop.test"], "unnamed": "rejectedIdentifier", "at_finalize": true });
    issued_but_for("n0.shop.test", refusal).await;
}

/// The fault is the CA's, and passes: it must not take all groups apart to single names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_that_refuses_every_order_does_not_have_each_name_ordered_alone() {
    let lab = Lab::start(&Options::default()).await;
    let names: Vec<String> = (0..100).map(|n| format!("n{n}.shop.test")).collect();
    lab.world.ca_refuses_as(json!({ "names": names, "unnamed": "malformed" })).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &names).await;
    // The last of the halves has ended: nothing is open, and those that failed wait for their back-off.
    let settled = "SELECT id FROM orders WHERE state = 'failed' AND (SELECT COUNT(*) FROM orders WHERE error IS NULL) = 0 \
                   AND (SELECT COUNT(*) FROM events WHERE kind = 'certificate.order_failed') >= 4";
    until_rows(&lab, settled, 20).await;
    let stats = lab.world.stats().await;
    let asked = stats["new_orders"].as_array().unwrap().len();
    // 4 groups, and two halves of each of 16 orders; each name alone would take 196.
    assert!((20..=40).contains(&asked), "{asked} orders");
    // The CA is well again; the longest back-off, after four failures of one lineage, is a day and a tenth.
    lab.world.ca_refuses(&[]).await;
    lab.world.clock.advance(Duration::from_secs(2 * 86_400));
    lab.until_covered(100).await;
}

/// Kind and text of each event about a subject.
pub async fn events_of(lab: &Lab, subject: &str) -> Vec<Vec<String>> {
    let rows = lab.rows("SELECT kind, text, subject FROM events ORDER BY sequence").await;
    rows.into_iter().filter(|row| row[2] == subject).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_points_elsewhere_is_never_ordered_and_told_what_to_set() {
    let lab = Lab::start(&Options::default()).await;
    let elsewhere = json!({ "name": "b.shop.test", "type": "A", "values": ["192.0.2.7"] });
    lab.world.set_dns("/records", elsewhere).await;
    lab.world.set_dns("/nxdomain", json!({ "names": ["c.shop.test"] })).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let ids = lab.domains(tenant, &["a.shop.test", "b.shop.test", "c.shop.test"]).await;
    lab.until_covered(1).await;
    let points = lab.until_condition(ids[1], "DnsPointsHere", "false").await;
    assert_eq!(points[2], "b.shop.test resolves to 192.0.2.7");
    assert_eq!(lab.until_condition(ids[2], "DnsPointsHere", "false").await[1], "NoAddress");
    lab.until_condition(ids[1], "ChallengeReachable", "false").await;
    let events = events_of(&lab, &ids[1].to_string()).await;
    let told = "set the A or AAAA records of b.shop.test to 127.0.0.1";
    let told: Vec<_> =
        events.iter().filter(|e| e[0] == "domain.unreachable" && e[1].contains(told)).collect();
    assert_eq!(told.len(), 1, "the owner is told the record, once: {events:?}");
    assert_eq!(lab.condition(ids[0], "DnsPointsHere").await.unwrap()[0], "true");
    let stats = lab.world.stats().await;
    assert_eq!(stats["orders"]["created"], 1);
    assert_eq!(stats["new_orders"][0]["names"], json!(["a.shop.test"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_joins_a_group_whose_order_waits_is_not_carried_by_it() {
    let lab = Lab::start(&Options::default()).await;
    let trouble = json!({ "kind": "unavailable-html", "endpoint": "newOrder", "retry_after_seconds": 600 });
    lab.world.faults(trouble).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let first = lab.domains(tenant, &["a.shop.test"]).await[0];
    until_rows(&lab, "SELECT id FROM orders WHERE error IS NOT NULL", 1).await;
    let second = lab.domains(tenant, &["b.shop.test"]).await[0];
    until_rows(&lab, "SELECT name FROM group_names", 2).await;
    let mut read = lab.running.parts.store.read().await.unwrap();
    let orders = unfinished_orders(&mut read, &[first, second]).await.unwrap();
    let carries = |domain| {
        let of: Vec<_> = orders.iter().filter(|order| order.domain == domain).collect();
        assert_eq!(of.len(), 1, "{orders:?}");
        of[0].carries
    };
    assert!(carries(first) && !carries(second), "{orders:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_whose_caa_forbids_us_costs_no_order_and_its_owner_is_told_the_record() {
    let lab = Lab::start(&Options::default()).await;
    let caa = async |name: &str, values: &[&str]| {
        let record = json!({ "name": name, "type": "CAA", "values": values });
        lab.world.set_dns("/records", record).await;
    };
    // Two labels above the name; nearer records would go before it.
    caa("forbids.test", &["0 issue \"other-ca.test\""]).await;
    caa("permits.test", &["0 issue \"other-ca.test\"", "0 issue \"acme-ca.test\""]).await;
    caa("near.forbids.test", &["0 issue \"acme-ca.test\""]).await;
    caa("wild.test", &["0 issue \"acme-ca.test\"", "0 issuewild \";\""]).await;
    lab.world.set_dns("/faults", json!({ "name": "broken.test", "fault": "servfail" })).await;
    let tenant = lab.tenant(&[], "alone").await;
    let names = [
        "a.b.forbids.test",
        "a.permits.test",
        "a.near.forbids.test",
        "a.wild.test",
        "free.test",
        "*.wild.test",
        "a.broken.test",
    ];
    let ids = lab.domains(tenant, &names).await;
    lab.delegate("wild.test", ids[5]).await;
    lab.until_covered(4).await;
    for (id, record) in [
        (ids[0], "set forbids.test CAA 0 issue \"acme-ca.test\""),
        (ids[5], "set wild.test CAA 0 issuewild \"acme-ca.test\""),
    ] {
        let condition = lab.until_condition(id, "CaaPermits", "false").await;
        assert!(condition[2].contains(record), "{condition:?}");
        let events = events_of(&lab, &id.to_string()).await;
        let told = events.iter().filter(|e| e[0] == "domain.caa_forbids" && e[1].contains(record)).count();
        assert_eq!(told, 1, "{events:?}");
    }
    lab.until_condition(ids[6], "CaaPermits", "unknown").await;
    assert_eq!(lab.condition(ids[1], "CaaPermits").await.unwrap()[1], "Permitted");
    assert_eq!(lab.condition(ids[4], "CaaPermits").await.unwrap()[1], "NoCaa");
    let stats = lab.world.stats().await;
    assert_eq!(stats["new_orders"].as_array().unwrap().len(), 4, "{stats}");
    // Mended: it is ordered.
    caa("forbids.test", &["0 issue \"acme-ca.test\""]).await;
    retry_now(&lab, ids[0]).await;
    lab.until_covered(5).await;
}

/// More names than are looked at side by side, all of servers that never answer: another tenant's name is not kept waiting
/// for their deadlines.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_whose_name_servers_do_not_answer_holds_up_nobody_else() {
    let lab = Lab::start(&Options::default()).await;
    lab.world.set_dns("/faults", json!({ "name": "silent.test", "fault": "timeout" })).await;
    let silent = lab.tenant(&[], "alone").await;
    let names: Vec<String> = (0..150).map(|n| format!("n{n}.silent.test")).collect();
    lab.domains(silent, &names).await;
    // Not before they have taken what they can.
    lab.world.until_dns_asked(96).await;
    let begun = std::time::Instant::now();
    let tenant = lab.tenant(&[], "alone").await;
    lab.domains(tenant, &["quick.test"]).await;
    lab.until_covered(1).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_ledger_stops_before_the_cas_limit_does() {
    let issuer = "[issuer.limits]\norders = \"2/3h\"\ntenant_1h = 0";
    let lab = Lab::start(&Options { issuer, ..Options::default() }).await;
    let tenant = lab.tenant(&[], "alone").await;
    let ids = lab.domains(tenant, &["a.test", "b.test", "c.test"]).await;
    lab.until_covered(2).await;
    let mut waiting = Vec::new();
    for id in ids {
        if lab.condition(id, "CertificateReady").await.is_none_or(|condition| condition[0] != "true") {
            waiting.push(id);
        }
    }
    assert_eq!(waiting.len(), 1);
    let condition = lab.until_condition(waiting[0], "CertificateReady", "false").await;
    assert_eq!(condition[1], "CaLimit");
    assert!(condition[2].contains("the next order can go at 20"), "{condition:?}");
    let stats = lab.world.stats().await;
    assert_eq!(stats["new_orders"].as_array().unwrap().len(), 2, "the third was not sent");
    assert_eq!(stats["rate_limited"], json!({}));
    // Three hours later it goes.
    lab.world.advance(1).await;
    lab.until_covered(3).await;
}

/// One tenant's import meets its own budget; another's single name, added behind it, is issued at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_of_many_names_leaves_orders_to_the_others() {
    let issuer = "[issuer.limits]\norders = \"8/3h\"\ntenant_1h = 4\ntenant_24h = 6";
    let lab = Lab::start(&Options { issuer, ..Options::default() }).await;
    let many = lab.tenant(&[], "alone").await;
    let names: Vec<String> = (0..100).map(|n| format!("n{n}.test")).collect();
    lab.domains(many, &names).await;
    lab.until_covered(4).await;
    let single = lab.tenant(&[], "alone").await;
    let single = lab.domains(single, &["single.test"]).await[0];
    let told = lab.until_condition(single, "CertificateReady", "true").await;
    assert_eq!(told[1], "Issued");
    assert_eq!(lab.live_credentials().await.len(), 5);
    // Those that have room to wait are told, not all 96.
    let held = "SELECT message FROM conditions WHERE reason = 'TenantBudget'";
    until_rows(&lab, held, 48).await;
    let told = lab.rows(held).await;
    assert!(told[0][0].contains("budget of new orders of one tenant in an hour"), "{told:?}");
    let stats = lab.world.stats().await;
    assert_eq!(stats["new_orders"].as_array().unwrap().len(), 5, "{stats}");
    // An hour later two more go: then the day's budget is used up.
    lab.world.clock.advance(Duration::from_secs(3_700));
    lab.until_covered(7).await;
    until_rows(&lab, "SELECT message FROM conditions WHERE message LIKE '%one tenant in a day%'", 40).await;
    assert_eq!(lab.live_credentials().await.len(), 7);
}

/// Each cell's certificate is an order: what a tenant's names need in further cells is paid from its budget too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_of_many_cells_leaves_orders_to_the_others() {
    let cells = vec!["one", "two", "three"];
    let issuer = "[issuer.limits]\norders = \"8/3h\"\ntenant_1h = 4";
    let lab = Lab::start(&Options { issuer, cells: cells.clone(), ..Options::default() }).await;
    let many = lab.tenant(&cells, "alone").await;
    lab.domains(many, &["a.test", "b.test", "c.test", "d.test"]).await;
    until_rows(&lab, "SELECT message FROM conditions WHERE reason = 'TenantBudget'", 2).await;
    let stats = lab.world.stats().await;
    assert_eq!(stats["new_orders"].as_array().unwrap().len(), 4, "{stats}");
    let single = lab.tenant(&["one"], "alone").await;
    let single = lab.domains(single, &["single.test"]).await[0];
    assert_eq!(lab.until_condition(single, "CertificateReady", "true").await[1], "Issued");
    assert_eq!(lab.live_credentials().await.len(), 5);
}

async fn until_rows(lab: &Lab, sql: &'static str, least: usize) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while lab.rows(sql).await.len() < least {
        assert!(tokio::time::Instant::now() < deadline, "{} of {least}: {sql}", lab.rows(sql).await.len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A renewal in which one name fails: the others have a new certificate, the failed one keeps its old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_fails_at_renewal_keeps_its_certificate() {
    let lab = Lab::start(&Options { preflight: false, ..Options::default() }).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let ids = lab.domains(tenant, &["a.shop.test", "b.shop.test", "c.shop.test"]).await;
    let first = lab.until_covered(3).await.remove(0);
    lab.world.set_dns("/nxdomain", json!({ "names": ["b.shop.test"] })).await;
    // Beyond the 30 days for which the CA remembers that it saw the name.
    lab.world.advance(61).await;
    let second = until_renewed(&lab, &first).await;
    assert_eq!(second.names, ["a.shop.test", "c.shop.test"]);
    let live = lab.live_credentials().await;
    let kept = live.iter().find(|live| live.id == first.id).expect("the old certificate went away");
    assert_ne!(kept.lineage, first.lineage, "it serves in a lineage of its own");
    let condition = lab.condition(ids[1], "CertificateReady").await.unwrap();
    assert_eq!((condition[0].as_str(), condition[1].as_str()), ("true", "ValidationFailed"));
    let served = lab.rows("SELECT domain_id, lineage_id FROM lineage_names ORDER BY name").await;
    let expected = [
        [ids[0].to_string(), second.lineage.clone()],
        [ids[1].to_string(), kept.lineage.clone()],
        [ids[2].to_string(), second.lineage.clone()],
    ];
    assert_eq!(served, expected);
    // Mended: it is renewed alone, and the old certificate is replaced at last.
    lab.world
        .set_dns("/records", json!({ "name": "b.shop.test", "type": "A", "values": ["127.0.0.1"] }))
        .await;
    retry_now(&lab, ids[1]).await;
    let third = until_renewed(&lab, kept).await;
    assert_eq!(third.names, ["b.shop.test"]);
}

/// What new names of others leave is for the tenants with priority, and what is agreed with one of them counts for it alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_with_priority_has_what_others_leave_and_a_budget_of_its_own() {
    let issuer = "[issuer.limits]\norders = \"8/3h\"\nreserve = 0.0\npriority_reserve = 0.5\ntenant_1h = 0";
    let lab = Lab::start(&Options { issuer, ..Options::default() }).await;
    let names = |label: &str| (0..6).map(|n| format!("{label}{n}.test")).collect::<Vec<_>>();
    let usual = lab.tenant(&[], "alone").await;
    lab.domains(usual, &names("usual")).await;
    lab.until_covered(4).await;
    let waiting = "SELECT message FROM conditions WHERE reason = 'CaLimit'";
    until_rows(&lab, waiting, 2).await;

    let paying = lab.tenant(&[], "alone").await;
    let mut tx = lab.begin().await;
    sql::query("UPDATE tenants SET spec = json_set(spec, '$.order_budget', json(?)) WHERE id = ?")
        .bind(json!({ "priority": true, "per_hour": 3 }).to_string())
        .bind(paying.to_string())
        .execute(&mut tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    lab.domains(paying, &names("paying")).await;
    let live = lab.until_covered(7).await;
    let paid = live.iter().filter(|live| live.names[0].starts_with("paying")).count();
    assert_eq!((live.len(), paid), (7, 3), "{live:?}");
    until_rows(&lab, "SELECT message FROM conditions WHERE reason = 'TenantBudget'", 3).await;
}

/// RFC 8555 section 7.1.1 lets a CA move what its directory names. Nobody has to start anything again for that, and neither
/// accounts nor orders are taken for lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_that_moves_its_places_is_found_by_its_directory() {
    let lab = Lab::start(&Options::default()).await;
    let tenant = lab.tenant(&[], "alone").await;
    lab.domains(tenant, &["before.test"]).await;
    lab.until_covered(1).await;
    lab.world.move_places().await;
    lab.domains(tenant, &["after.test"]).await;
    let stats = until_issued(&lab, 2, 20).await;
    assert_one_order_per_set(&stats);
    assert_eq!(stats["accounts"]["created"], 1, "{stats}");
    let failed = lab.rows("SELECT text FROM events WHERE kind = 'certificate.order_failed'").await;
    assert!(failed.is_empty(), "{failed:?}");
}

/// Nothing is ordered when they move: whoever asks when to renew finds that out. In 20 days nothing else renews.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_that_moves_its_places_still_says_when_to_renew() {
    let lab = Lab::start(&Options::default()).await;
    let tenant = lab.tenant(&[], "alone").await;
    lab.domains(tenant, &["shop.test"]).await;
    lab.until_covered(1).await;
    lab.world.move_places().await;
    let text = portico_control_plane::clock::rfc3339;
    let now = lab.world.clock.now_ms();
    lab.world.set_windows(json!({ "start": text(now - 1_800_000), "end": text(now + 3_600_000) })).await;
    let stats = until_issued(&lab, 2, 6 * 3600).await;
    assert_eq!(stats["accounts"]["created"], 1, "{stats}");
    assert_eq!(stats["orders"]["replacing"], 1, "{stats}");
}

/// Lets time go by in steps of so many seconds, 80 at most, until the CA has issued so many certificates.
async fn until_issued(lab: &Lab, wanted: u64, step: u64) -> Value {
    for _ in 0..80 {
        let stats = lab.world.stats().await;
        if stats["certificates"]["issued"].as_u64().unwrap() >= wanted {
            return stats;
        }
        lab.world.advance_seconds(step).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("{wanted} were not issued: {}", lab.world.stats().await)
}

/// What is wrong with a CA is wrong for everybody: the operator hears of it once, not once for each name, and the CA is asked for
/// no more than shows whether it is well again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_that_signs_wrongly_for_all_is_one_alarm() {
    let lab =
        Lab::start(&Options { issuer: "[issuer.limits]\npreset = \"none\"", ..Options::default() }).await;
    let fault = json!({ "kind": "wrong-chain", "count": 1_000_000 });
    lab.world.faults(fault).await;
    let tenant = lab.tenant(&[], "alone").await;
    let names: Vec<String> = (0..200).map(|n| format!("n{n}.test")).collect();
    lab.domains(tenant, &names).await;
    until_rows(&lab, "SELECT text FROM events WHERE kind = 'issuer.away'", 1).await;
    for _ in 0..8 {
        lab.world.advance_seconds(3600).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(told(&lab, "issuer.away").await, 1);
    // Those before it was away, those that were under way then, and one for each try since.
    let failed = told(&lab, "certificate.order_failed").await;
    let most = FAILURES_AT_ONCE as usize + limits::ORDERS_OF_TENANT_IN_FLIGHT_MAX + 8;
    assert!(failed <= most, "{failed} events for one fault");

    lab.world.no_faults().await;
    // What was signed wrongly before and is fetched only after the leap would be tried again an hour behind it.
    const OPEN: &str = "SELECT id FROM orders WHERE state NOT IN ('issued', 'failed')";
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !lab.rows(OPEN).await.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "orders stay open: {:?}", lab.rows(OPEN).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    lab.world.advance_seconds(2 * 86_400).await;
    lab.until_covered(200).await;
    assert_eq!(told(&lab, "issuer.back").await, 1);
}
