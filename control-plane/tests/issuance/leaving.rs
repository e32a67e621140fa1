//! Names that no longer lead here: who leaves, who only seems to, and who comes back.

use std::time::Duration;

use portico_api::v1::ProofMethod;
use portico_cert_store::{CredentialId, DomainId, LineageId, TenantId};
use portico_control_plane::store::proof::{self, ProofRow};
use portico_control_plane::store::{presence, sql};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::lab::{Lab, Live, Options, http};

const ELSEWHERE: &str = "192.0.2.7";
const LOOK_SECONDS: u64 = 21_600;
const DAY_SECONDS: u64 = 86_400;

/// Names with certificates that were seen here.
async fn seen_here(lab: &Lab, tenant: TenantId, names: &[&str]) -> Vec<DomainId> {
    let ids = lab.domains(tenant, names).await;
    lab.until_covered(names.len()).await;
    let mut tx = lab.begin().await;
    let now = lab.world.clock.now_ms();
    for id in &ids {
        presence::begin(&mut tx, *id, 0).await.unwrap();
        let proved = ProofRow {
            domain_id: *id,
            method: ProofMethod::Txt,
            proved_at: now,
            checked_at: now,
            evidence: "a TXT record".to_owned(),
            actor: "system".to_owned(),
        };
        proof::put(&mut tx, &proved).await.unwrap();
    }
    tx.commit().await.unwrap();
    for id in &ids {
        lab.until_condition(*id, "Present", "true").await;
    }
    ids
}

async fn point(lab: &Lab, name: &str, addresses: &[&str]) {
    lab.world.set_dns("/records", json!({ "name": name, "type": "A", "values": addresses })).await;
}

/// Moves the clocks over one look and waits until each of these names was looked at since.
async fn next_look(lab: &Lab, ids: &[DomainId]) {
    lab.world.advance_seconds(LOOK_SECONDS).await;
    all_looked_at(lab, ids).await;
}

async fn all_looked_at(lab: &Lab, ids: &[DomainId]) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    for id in ids {
        loop {
            let mut read = lab.running.parts.store.read().await.unwrap();
            let next: i64 = sql::query_scalar("SELECT next_look_at FROM presences WHERE domain_id = ?")
                .bind(id.to_string())
                .fetch_one(&mut read)
                .await
                .unwrap();
            drop(read);
            if next > lab.world.clock.now_ms() {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{id} is not looked at");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn reason(lab: &Lab, id: DomainId) -> String {
    lab.condition(id, "Present").await.map(|found| found[1].clone()).unwrap_or_default()
}

/// A certificate that the name had alone before it joined its group.
async fn earlier_certificate(lab: &Lab, name: &str) {
    let mut tx = lab.begin().await;
    let (lineage, credential) = (LineageId::generate().to_string(), CredentialId::generate().to_string());
    sql::query(
        "INSERT INTO lineages (id, group_id, cell, created_at, retired_at) \
         SELECT ?, group_id, 'before', created_at, created_at FROM lineages WHERE live_credential IS NOT NULL LIMIT 1",
    )
    .bind(&lineage)
    .execute(&mut tx)
    .await
    .unwrap();
    sql::query(
        "INSERT INTO credentials (id, lineage_id, issuer, state, names, chain_pem, sealed_key, cell_key_epoch, key_tenant, \
         spki_sha256, fingerprint_sha256, not_before, not_after, renew_at, created_at) \
         SELECT ?, ?, issuer, 'replaced', ?, chain_pem, sealed_key, cell_key_epoch, key_tenant, ?, fingerprint_sha256, \
         not_before, not_after, renew_at, created_at FROM credentials WHERE state = 'live' LIMIT 1",
    )
    .bind(&credential)
    .bind(&lineage)
    .bind(json!([name]).to_string())
    .bind(vec![7u8; 32])
    .execute(&mut tx)
    .await
    .unwrap();
    tx.commit().await.unwrap();
}

/// Looks on until it has left.
async fn until_left(lab: &Lab, ids: &[DomainId], leaver: DomainId) {
    for _ in 0..6 {
        next_look(lab, ids).await;
        if reason(lab, leaver).await == "Left" {
            return;
        }
    }
    panic!("{:?}", lab.condition(leaver, "Present").await);
}

async fn until_live(lab: &Lab, good: impl Fn(&[Live]) -> bool) -> Vec<Live> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let live = lab.live_credentials().await;
        if good(&live) {
            return live;
        }
        let orders = lab.rows("SELECT names, state, COALESCE(error, '') FROM orders").await;
        assert!(tokio::time::Instant::now() < deadline, "{live:#?} {orders:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn kinds(lab: &Lab) -> Vec<String> {
    let told = lab.rows(
        "SELECT kind FROM events WHERE kind IN ('domain.left', 'domain.retired', 'domain.back', 'leavers.held', \
         'certificate.key_destroyed') ORDER BY sequence",
    );
    told.await.concat()
}

/// Other names on a certificate may be other tenants'.
async fn only_the_leaver_is_named(lab: &Lab) {
    for row in lab.rows("SELECT text FROM events WHERE kind = 'certificate.key_destroyed'").await {
        assert!(row[0].contains("gone.shop.test") && !row[0].contains("www.shop.test"), "{row:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_gone_leaves_its_certificate_and_comes_back_by_itself() {
    let lab = Lab::start(&Options::default()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let names = ["shop.test", "www.shop.test", "gone.shop.test"];
    let ids = seen_here(&lab, tenant, &names).await;
    let first = lab.live_credentials().await.remove(0);
    assert_eq!(first.names.len(), 3);
    earlier_certificate(&lab, names[2]).await;
    point(&lab, names[2], &[ELSEWHERE]).await;
    next_look(&lab, &ids).await;
    assert_eq!(lab.until_condition(ids[2], "Present", "unknown").await[1], "SeenElsewhere");
    until_left(&lab, &ids, ids[2]).await;
    let told = lab.condition(ids[2], "Present").await.unwrap();
    assert!(
        told[0] == "false" && told[2].contains(ELSEWHERE) && told[2].contains("served on until"),
        "{told:?}"
    );
    let (_, shown) = lab.operator("GET", "/v1/domains/gone.shop.test", Value::Null).await;
    assert!(shown["next_action"]["text"].as_str().unwrap().contains("delete the domain"), "{shown}");
    assert_eq!(lab.live_credentials().await[0].id, first.id, "it is served on");

    // Its grace is over: nothing is ordered for it, and nothing has to be done at once for the others.
    lab.world.advance_seconds(7 * DAY_SECONDS).await;
    all_looked_at(&lab, &ids).await;
    assert_eq!(reason(&lab, ids[2]).await, "Retired");
    let (_, shown) = lab.operator("GET", "/v1/domains/gone.shop.test", Value::Null).await;
    assert_eq!(shown["status"], "left", "{shown}");
    next_look(&lab, &ids).await;
    assert_eq!(lab.world.stats().await["orders"]["created"], 1);
    assert_eq!(lab.live_credentials().await[0].names.len(), 3);

    // No renewal has come within the time: the others are ordered without it, and its key is gone with the old certificate.
    lab.world.advance_seconds(6 * DAY_SECONDS).await;
    let live = until_live(&lab, |live| live.len() == 1 && live[0].names.len() == 2).await;
    assert_eq!(live[0].names, ["shop.test", "www.shop.test"]);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let left = "SELECT CAST(COUNT(*) AS TEXT) FROM credentials WHERE length(sealed_key) > 0";
    while lab.rows(left).await.concat() != ["1"] {
        assert!(tokio::time::Instant::now() < deadline, "the key is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let of_orders = "SELECT CAST(COUNT(*) AS TEXT) FROM orders WHERE length(sealed_key) > 0";
    assert_eq!(lab.rows(of_orders).await.concat(), ["1"], "nor is it with the order that made it");
    let kept = lab.rows("SELECT credential_id FROM doomed_keys").await;
    assert!(kept.is_empty(), "{kept:?}");
    let deadline_of =
        lab.rows("SELECT CAST(deadline IS NOT NULL AS TEXT) FROM orders ORDER BY created_at").await;
    assert_eq!(
        deadline_of.concat(),
        ["0", "1"],
        "an order for names that are served may use what is reserved for those"
    );

    // Back: a certificate again, and the trail tells all of it.
    point(&lab, names[2], &["127.0.0.1"]).await;
    next_look(&lab, &ids).await;
    until_live(&lab, |live| live.iter().any(|live| live.names.iter().any(|name| name == names[2]))).await;
    assert_eq!(
        kinds(&lab).await,
        [
            "domain.left",
            "domain.retired",
            "certificate.key_destroyed",
            "certificate.key_destroyed",
            "domain.back"
        ],
        "the key of the certificate that it once had alone is gone first"
    );
    only_the_leaver_is_named(&lab).await;
    let trail = lab
        .rows("SELECT action FROM audit WHERE actor = 'system' AND request_id = 'leavers' ORDER BY sequence");
    assert_eq!(
        trail.await.concat(),
        ["domain.retire", "certificate.destroy_key", "certificate.destroy_key", "domain.return"]
    );
    assert_eq!(reason(&lab, ids[2]).await, "LeadsHere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lonely_name_goes_with_its_certificate_and_a_renewal_takes_others_leavers_along() {
    let lab = Lab::start(&Options::default()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let ids = seen_here(&lab, tenant, &["alone.test", "shop.test", "www.shop.test"]).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while lab.rows("SELECT id FROM credentials WHERE window_start IS NOT NULL").await.len() < 2 {
        assert!(tokio::time::Instant::now() < deadline, "the CA suggests no window");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let due =
        lab.rows("SELECT CAST(MIN(renew_at) AS TEXT), CAST(MAX(renew_at) AS TEXT) FROM credentials").await;
    let [first_due, last_due] = [0, 1].map(|column| due[0][column].parse::<i64>().unwrap());
    // Nine days before the renewal; a look every six hours would make the test long, so only the last of them are there.
    lab.world.advance_to(first_due - 9 * 86_400_000).await;
    all_looked_at(&lab, &ids).await;
    point(&lab, "alone.test", &[ELSEWHERE]).await;
    point(&lab, "www.shop.test", &[ELSEWHERE]).await;
    until_left(&lab, &ids, ids[0]).await;
    assert_eq!(reason(&lab, ids[2]).await, "Left");
    lab.world.advance_seconds(7 * DAY_SECONDS).await;
    // The one that stood alone is off at once, with its key; the other one waits for its certificate's renewal.
    let live = until_live(&lab, |live| live.len() == 1).await;
    assert_eq!(live[0].names.len(), 2);
    let left = "SELECT names FROM credentials WHERE length(sealed_key) = 0";
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while lab.rows(left).await.concat() != [r#"["alone.test"]"#] {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", lab.rows(left).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    lab.world.advance_to(last_due).await;
    let live = until_live(&lab, |live| live.len() == 1 && live[0].names.len() == 1).await;
    assert_eq!(live[0].names, ["shop.test"]);
    let replaces =
        lab.rows("SELECT CAST(replaces_accepted AS TEXT) FROM orders WHERE names = '[\"shop.test\"]'").await;
    assert_eq!(replaces.concat(), ["1"], "the renewal was the CA's own suggestion, and free");
}

/// Names that look as if they had left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_leaves_who_can_be_reached_or_is_validated_or_not_known() {
    let lab = Lab::start(&Options::default()).await;
    let tenant = lab.tenant(&[], "registered_domain").await;
    let names = ["cdn.test", "delegated.test", "dark.test", "never.test", "gone.test"];
    let cdn = front(&lab).await;
    let mut tx = lab.begin().await;
    sql::query("UPDATE tenants SET spec = json_set(spec, '$.egress_grants', json(?)) WHERE id = ?")
        .bind(json!([{ "cidr": "127.0.0.77/32", "ports": [lab.world.stand_in.http_port] }]).to_string())
        .bind(tenant.to_string())
        .execute(&mut tx)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    // Validated by DNS, and never pointed here.
    point(&lab, names[3], &[ELSEWHERE]).await;
    let ids = lab.domains(tenant, &names).await;
    lab.delegate(names[3], ids[3]).await;
    lab.until_covered(5).await;
    let mut tx = lab.begin().await;
    for id in &ids {
        presence::begin(&mut tx, *id, 0).await.unwrap();
    }
    tx.commit().await.unwrap();
    for id in [ids[0], ids[1], ids[2], ids[4]] {
        lab.until_condition(id, "Present", "true").await;
    }
    // A CDN is put before us, a name is validated by DNS from now on, one's servers do not answer; and one is gone.
    point(&lab, names[0], &["127.0.0.77"]).await;
    point(&lab, names[1], &[ELSEWHERE]).await;
    lab.delegate(names[1], ids[1]).await;
    lab.world.set_dns("/faults", json!({ "name": names[2], "fault": "servfail" })).await;
    point(&lab, names[4], &[ELSEWHERE]).await;
    until_left(&lab, &ids, ids[4]).await;
    lab.world.advance_seconds(8 * DAY_SECONDS).await;
    all_looked_at(&lab, &ids).await;
    assert_eq!(reason(&lab, ids[4]).await, "Retired");
    for (name, id) in names.iter().zip(&ids).take(3) {
        assert_eq!(reason(&lab, *id).await, "LeadsHere", "{name}: {:?}", lab.condition(*id, "Present").await);
    }
    let told = lab.condition(ids[0], "Present").await.unwrap();
    assert!(told[2].contains("comes to our edges"), "{told:?}");
    assert!(lab.condition(ids[3], "Present").await.is_none(), "it is not expected here");
    assert_eq!(lab.condition(ids[2], "DnsPointsHere").await.unwrap()[0], "unknown");
    assert_eq!(kinds(&lab).await.iter().filter(|kind| *kind == "domain.left").count(), 1);
    drop(cdn);
}

/// What others put before us: whatever is asked there comes to the edges.
async fn front(lab: &Lab) -> tokio::task::JoinSet<()> {
    let (port, mut tasks) = (lab.world.stand_in.http_port, tokio::task::JoinSet::new());
    let listener = TcpListener::bind(("127.0.0.77", port)).await.unwrap();
    tasks.spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _ended = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    tasks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_seem_to_leave_at_once_nobody_does_and_the_operator_is_told() {
    let lab = Lab::start(&Options::default()).await;
    let tenant = lab.tenant(&[], "tenant").await;
    let names: Vec<String> = (0..12).map(|n| format!("n{n}.test")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let ids = seen_here(&lab, tenant, &names).await;
    for name in &names {
        point(&lab, name, &[ELSEWHERE]).await;
    }
    for _ in 0..8 {
        next_look(&lab, &ids).await;
    }
    assert_eq!(kinds(&lab).await, ["leavers.held"]);
    // The fault is found. What was seen meanwhile holds no longer.
    for name in &names {
        point(&lab, name, &["127.0.0.1"]).await;
    }
    next_look(&lab, &ids).await;
    for id in &ids {
        assert_eq!(reason(&lab, *id).await, "LeadsHere");
    }
    assert_eq!(kinds(&lab).await, ["leavers.held"]);
    let metrics = http(lab.running.api, "GET", "/metrics", &Value::Null).await.1;
    assert!(metrics.contains("portico_watched_names{state=\"retired\"}"), "{metrics}");
}
