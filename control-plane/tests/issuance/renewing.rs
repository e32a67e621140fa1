//! Renewal by the CA's own suggestion (RFC 9773), and without one.

use std::collections::BTreeMap;
use std::time::Duration;

use portico_acme_ca::AriExemption;
use portico_control_plane::config::Config;
use portico_control_plane::store::sql;
use serde_json::{Value, json};

use crate::issuing::until_renewed;
use crate::lab::{Lab, Options};

const DAY_MS: i64 = 86_400_000;

/// What is known of a live certificate's renewal.
#[derive(Debug)]
struct Suggested {
    not_before: i64,
    not_after: i64,
    renew_at: i64,
    window: Option<(i64, i64)>,
    url: Option<String>,
    note: Option<String>,
}

async fn suggestions(lab: &Lab) -> Vec<Suggested> {
    let mut read = lab.running.parts.store.read().await.unwrap();
    let rows = sql::query("SELECT * FROM credentials WHERE state = 'live' ORDER BY names");
    let rows = rows.fetch_all(&mut read).await.unwrap();
    let one = |row: &sql::Row| Suggested {
        not_before: row.try_get("not_before").unwrap(),
        not_after: row.try_get("not_after").unwrap(),
        renew_at: row.try_get("renew_at").unwrap(),
        window: row
            .try_get::<Option<i64>>("window_start")
            .unwrap()
            .zip(row.try_get::<Option<i64>>("window_end").unwrap()),
        url: row.try_get("explanation_url").unwrap(),
        note: row.try_get("window_note").unwrap(),
    };
    rows.iter().map(one).collect()
}

async fn until_suggested(lab: &Lab, good: impl Fn(&Suggested) -> bool) -> Vec<Suggested> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let found = suggestions(lab).await;
        if !found.is_empty() && found.iter().all(&good) {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "never: {found:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What the CA's log says of each newOrder: whether it replaced a certificate, and what came of it.
async fn orders_at_ca(lab: &Lab) -> Vec<(bool, String)> {
    let stats = lab.world.stats().await;
    let entry = |entry: &Value| {
        (entry.get("replaces").is_some_and(Value::is_string), entry["result"].as_str().unwrap().to_owned())
    };
    stats["new_orders"].as_array().unwrap().iter().map(entry).collect()
}

async fn one_certificate(lab: &Lab) -> crate::lab::Live {
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test", "www.shop.test"]).await;
    lab.until_covered(2).await.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_within_the_cas_window_free_of_its_limits() {
    // Nothing but the first order would pass: a renewal that the CA does not exempt is refused for its exact set.
    let ca = |args: &mut portico_acme_ca::CaArgs| {
        args.ari_exemption = AriExemption::InWindow;
        args.limit =
            ["new-orders=1/900d", "certificates-per-exact-set=1/200d", "certificates-per-domain=1/200d"]
                .map(|limit| limit.parse().unwrap())
                .to_vec();
    };
    let lab = Lab::start(&Options { ca, ..Options::default() }).await;
    let mut live = one_certificate(&lab).await;
    for _ in 0..2 {
        let known = until_suggested(&lab, |known| known.window.is_some()).await.remove(0);
        let (start, end) = known.window.unwrap();
        assert!(known.renew_at >= start && known.renew_at < end, "{known:?}");
        assert!(start > known.not_before + 58 * DAY_MS && end < known.not_after - 28 * DAY_MS, "{known:?}");
        lab.world.advance_to(known.renew_at).await;
        live = until_renewed(&lab, &live).await;
    }
    let at_ca = orders_at_ca(&lab).await;
    let created = |replaces| (replaces, "created".to_owned());
    assert_eq!(at_ca, [created(false), created(true), created(true)]);
    // Orders that are over for 30 days may be forgotten by now, so only the last is looked at.
    let accepted = lab
        .rows("SELECT CAST(replaces_accepted AS TEXT) FROM orders ORDER BY created_at DESC LIMIT 1")
        .await
        .concat();
    assert_eq!(accepted, ["1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_in_the_past_is_followed_at_once_and_told() {
    let lab = Lab::start(&Options::default()).await;
    let first = one_certificate(&lab).await;
    until_suggested(&lab, |known| known.window.is_some()).await;
    lab.world.advance(1).await;
    let url = "https://ca.test/incident-7";
    lab.world.set_windows(json!({ "explanation_url": url })).await;
    // Past the day that the longest wait between two questions takes.
    lab.world.advance(1).await;
    let second = until_renewed(&lab, &first).await;
    assert!(second.not_after > first.not_after);
    let told = lab.rows("SELECT text FROM events WHERE kind = 'certificate.window_moved'").await.concat();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains(url) && told[0].contains("shop.test, www.shop.test"), "{told:?}");
    let known = until_suggested(&lab, |known| known.window.is_some()).await.remove(0);
    assert!(
        known.window.unwrap().0 > lab.world.clock.now_ms(),
        "the new one has a window of its own: {known:?}"
    );
    assert_eq!(lab.world.stats().await["orders"]["created"], 2, "one replacement and no more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_leaves_the_share_of_the_lifetime_in_force() {
    let lab = Lab::start(&Options::default()).await;
    one_certificate(&lab).await;
    let by_ca = until_suggested(&lab, |known| known.window.is_some()).await.remove(0);
    for (start, end, why) in [
        ("2026-11-02T00:00:00Z", "2026-11-01T00:00:00Z", "ends before it begins"),
        ("1999-01-01T00:00:00Z", "1999-02-01T00:00:00Z", "before the certificate"),
        ("2999-01-01T00:00:00Z", "2999-02-01T00:00:00Z", "after the certificate's end"),
        ("soon", "later", "is no time"),
    ] {
        lab.world.set_windows(json!({ "start": start, "end": end })).await;
        lab.world.advance(1).await;
        let is_told = |known: &Suggested| known.note.as_ref().is_some_and(|note| note.contains(why));
        let known = until_suggested(&lab, is_told).await.remove(0);
        assert_eq!((known.window, known.url), (None, None));
        let share = (known.renew_at - known.not_before) * 1000 / (known.not_after - known.not_before);
        assert!((616..=667).contains(&share), "{share}");
    }
    assert_eq!(lab.world.stats().await["orders"]["created"], 1, "nothing was renewed for it");
    // A CA in trouble takes nothing back, and one that has come to itself is followed again.
    let ca = by_ca.window.unwrap();
    let text = portico_control_plane::clock::rfc3339;
    lab.world.set_windows(json!({ "start": text(ca.0), "end": text(ca.1) })).await;
    lab.world.advance(1).await;
    until_suggested(&lab, |known| known.window == Some((ca.0 / 1000 * 1000, ca.1 / 1000 * 1000))).await;
    lab.world.faults(json!({ "kind": "unavailable", "endpoint": "renewalInfo", "count": 1 })).await;
    lab.world.advance(1).await;
    let known = until_suggested(&lab, |known| known.note.is_some()).await.remove(0);
    assert!(known.window.is_some() && known.note.unwrap().contains("503"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ca_without_renewal_information_is_renewed_at_by_share() {
    let lab = Lab::start(&Options { ca: |args| args.no_ari = true, ..Options::default() }).await;
    let first = one_certificate(&lab).await;
    let known = until_suggested(&lab, |known| known.note.is_some()).await.remove(0);
    assert_eq!((known.window, known.note.as_deref()), (None, Some("the CA has no renewal information")));
    lab.world.advance_to(known.renew_at).await;
    until_renewed(&lab, &first).await;
    let created = (false, "created".to_owned());
    assert_eq!(orders_at_ca(&lab).await, [created.clone(), created]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_replacement_is_ordered_once_without() {
    let lab = Lab::start(&Options::default()).await;
    let first = one_certificate(&lab).await;
    until_suggested(&lab, |known| known.window.is_some()).await;
    lab.world.advance(1).await;
    lab.world.set_windows(json!({ "already_replaced": true })).await;
    lab.world.advance(1).await;
    until_renewed(&lab, &first).await;
    let at_ca = orders_at_ca(&lab).await;
    let of = |replaces, result: &str| (replaces, result.to_owned());
    assert_eq!(at_ca, [of(false, "created"), of(true, "alreadyReplaced"), of(false, "created")]);
    let orders = lab.rows("SELECT state FROM orders").await.concat();
    assert_eq!(orders, ["issued", "issued"], "it is the same order of ours");
    assert_eq!(
        lab.rows("SELECT CAST(id AS TEXT) FROM order_requests").await.len(),
        2,
        "the refusal made nothing"
    );
}

/// From now on a certificate of the CA lives for so long.
async fn lifetime(lab: &Lab, days: u64) {
    lab.world.set_profile(json!({ "name": "classic", "validity_seconds": days * 86_400 })).await;
}

/// P9: what ends later is better, until it is due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_gives_way_to_a_shorter_one_when_it_is_due_and_not_before() {
    let lab = Lab::start(&Options::default()).await;
    let first = one_certificate(&lab).await;
    let known = until_suggested(&lab, |known| known.window.is_some()).await.remove(0);
    lifetime(&lab, 10).await;
    lab.world.faults(json!({ "kind": "close", "endpoint": "certificate", "count": 100_000 })).await;
    lab.world.advance_to(known.renew_at).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while lab.rows("SELECT id FROM orders WHERE state = 'finalizing'").await.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "no order is finalizing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The CA is asked for the window of the old one, too, now: what it says comes before what is written below.
    let asked = async || {
        let mut read = lab.running.parts.store.read().await.unwrap();
        let text = "SELECT COUNT(*) FROM credentials WHERE state = 'live' AND window_next_at > ?";
        sql::query_scalar::<i64>(text).bind(lab.world.clock.now_ms()).fetch_one(&mut read).await.unwrap() == 1
    };
    while !asked().await {
        assert!(tokio::time::Instant::now() < deadline, "the CA was not asked again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // As for an order that was made early, and one that is late because its CA was away.
    let due = async |at: i64| {
        let mut tx = lab.begin().await;
        sql::query("UPDATE credentials SET renew_at = ? WHERE state = 'live'")
            .bind(at)
            .execute(&mut tx)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        lab.hurry().await;
    };
    due(known.not_after).await;
    lab.world.no_faults().await;
    let waits =
        async || lab.rows("SELECT COALESCE(error, '') FROM orders WHERE state = 'finalizing'").await.concat();
    while !waits().await.iter().any(|text| text.contains("ends later than the new one")) {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", waits().await);
        lab.hurry().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(lab.live_credentials().await[0].id, first.id);
    due(0).await;
    let second = until_renewed(&lab, &first).await;
    assert!(second.not_after < first.not_after, "{second:?}");
    assert_eq!(lab.world.stats().await["orders"]["created"], 2, "the order that waited was no other");
    // A CA that is about to revoke is followed at once, whatever it gives.
    until_suggested(&lab, |known| known.window.is_some()).await;
    lifetime(&lab, 3).await;
    lab.world.advance(1).await;
    lab.world.set_windows(json!({ "explanation_url": "https://ca.test/incident" })).await;
    lab.world.advance(1).await;
    let third = until_renewed(&lab, &second).await;
    assert!(third.not_after < second.not_after, "{third:?}");
    let told =
        lab.rows("SELECT kind FROM events WHERE kind IN ('issuer.away', 'certificate.renewal_failed')").await;
    assert!(told.is_empty(), "nobody has failed: {told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_160_hours_are_renewed_in_time() {
    let lab = Lab::start(&Options { issuer: r#"profile = "shortlived""#, ..Options::default() }).await;
    let mut live = one_certificate(&lab).await;
    for _ in 0..3 {
        let known = until_suggested(&lab, |known| known.window.is_some()).await.remove(0);
        let lifetime = known.not_after - known.not_before;
        assert!((lifetime - 160 * 3_600_000).abs() <= 1000, "{known:?}");
        let left = known.not_after - known.renew_at;
        assert!(left > lifetime * 2 / 5 && left < lifetime * 3 / 5, "{known:?}");
        lab.world.advance_to(known.renew_at).await;
        live = until_renewed(&lab, &live).await;
    }
    let created = |replaces| (replaces, "created".to_owned());
    assert_eq!(orders_at_ca(&lab).await, [created(false), created(true), created(true), created(true)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_account_is_not_said_to_be_replaced() {
    let lab = Lab::start(&Options::default()).await;
    let first = one_certificate(&lab).await;
    let known = until_suggested(&lab, |known| known.window.is_some()).await.remove(0);
    let mut tx = lab.begin().await;
    sql::query("UPDATE credentials SET account = 'https://ca.test/another'").execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    lab.world.advance_to(known.renew_at).await;
    until_renewed(&lab, &first).await;
    assert!(orders_at_ca(&lab).await.iter().all(|(replaces, _)| !replaces));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_regrouping_rides_a_renewal_free_of_limits() {
    // Two orders, and then none that is not exempt.
    let ca = |args: &mut portico_acme_ca::CaArgs| {
        args.ari_exemption = AriExemption::InWindow;
        args.limit = vec!["new-orders=2/900d".parse().unwrap()];
    };
    let lab = Lab::start(&Options { ca, ..Options::default() }).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    lab.domains(tenant, &["shop.test", "www.shop.test", "rose.test"]).await;
    assert_eq!(lab.until_covered(3).await.len(), 2);
    let known = until_suggested(&lab, |known| known.window.is_some()).await;
    let mut tx = lab.begin().await;
    sql::query("UPDATE tenants SET spec = json_set(spec, '$.sharing', 'tenant') WHERE id = ?")
        .bind(tenant.to_string())
        .execute(&mut tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while lab.rows("SELECT id FROM groups WHERE retired_at IS NULL").await.len() != 1 {
        assert!(tokio::time::Instant::now() < deadline, "the groups are not merged");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(lab.world.stats().await["orders"]["created"], 2, "the merger waits for a renewal");
    let first_due = known.iter().map(|known| known.renew_at).min().unwrap();
    lab.world.advance_to(first_due).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let merged = loop {
        let live = lab.live_credentials().await;
        if let [one] = live.as_slice()
            && one.names.len() == 3
        {
            break one.clone();
        }
        let orders = lab.rows("SELECT names, state, COALESCE(error, '') FROM orders").await;
        assert!(tokio::time::Instant::now() < deadline, "{known:#?} {live:#?} {orders:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(merged.names.len(), 3);
    let at_ca = orders_at_ca(&lab).await;
    assert_eq!(at_ca.iter().map(|(replaces, _)| *replaces).collect::<Vec<_>>(), [false, false, true]);
    let stats = lab.world.stats().await;
    assert_eq!((&stats["orders"]["replacing"], &stats["rate_limited"]), (&json!(1), &json!({})));
    let counted = lab.rows("SELECT CAST(renewal AS TEXT) FROM order_requests ORDER BY id DESC LIMIT 1").await;
    assert_eq!(
        counted.concat(),
        ["0"],
        "a CA may count the names that the certificate before did not have, so we do"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_that_is_late_is_told_once_to_its_tenant_and_once_to_the_operator() {
    let lab = Lab::start(&Options::default()).await;
    one_certificate(&lab).await;
    until_suggested(&lab, |known| known.window.is_some()).await;
    lab.world.faults(json!({ "kind": "unavailable", "endpoint": "newOrder", "count": 1000 })).await;
    // Day 69: of the 30 days between renewal and end more than a quarter is gone.
    lab.world.advance(69).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let told =
            lab.rows("SELECT kind, COALESCE(tenant_id, ''), text FROM events WHERE kind LIKE '%late'").await;
        let mut kinds: Vec<&str> = told.iter().map(|event| event[0].as_str()).collect();
        kinds.sort_unstable();
        // The edge of this test renews nothing, so its identity is late too.
        if kinds == ["certificate.renewal_late", "edge.identity_late", "renewals.late"] {
            let of_tenant = told.iter().find(|event| event[0] == "certificate.renewal_late").unwrap();
            assert!(
                !of_tenant[1].is_empty() && of_tenant[2].contains("shop.test, www.shop.test"),
                "{told:?}"
            );
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{told:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let late = lab.rows("SELECT id FROM credentials WHERE late_told_at IS NOT NULL").await;
    assert_eq!(late.len(), 1);
    // A new process looks at all anew. What its tenant is told again, here by force, is written with what the operator is told.
    let mut tx = lab.begin().await;
    sql::query("UPDATE credentials SET late_told_at = NULL").execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    let Lab { world, running, .. } = lab;
    let distribution = running.distribution.address.to_string();
    running.shutdown().await.unwrap();
    let config = Config::read(&world.configure(&Options::default(), &distribution)).unwrap();
    let running = portico_control_plane::start_at(config, world.clock.clone()).await.unwrap();
    let lab = Lab { world, running, edges: BTreeMap::new() };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let told =
        async || lab.rows("SELECT kind FROM events WHERE kind LIKE '%late' ORDER BY kind").await.concat();
    while told().await.iter().filter(|kind| *kind == "certificate.renewal_late").count() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", told().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let again = "certificate.renewal_late";
    assert_eq!(told().await, [again, again, "edge.identity_late", "renewals.late"]);
}
