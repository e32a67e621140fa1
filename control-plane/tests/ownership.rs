//! Who is served for a name: proofs against a real resolver, rivals, dangling names, resolvers that are down.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "set-up fails the test; deadlines are real time"
)]

mod stage;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use stage::{OURS, Stage, condition, record, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

#[tokio::test]
async fn a_txt_record_is_found_without_being_asked_for() {
    let stage = Stage::start().await;
    let (tenant, _) = stage.tenant("one").await;
    let domain = stage.domain(&tenant, "www.shop.example").await;
    assert_eq!(domain["status"], "pending");
    assert!(domain["next_action"]["text"].as_str().unwrap().contains(&record(&domain, "proof")));
    assert!(domain["proof"].is_null());

    stage.dns.set_txt("_portico.www.shop.example", &["v=other", &record(&domain, "proof")]);
    let proved = until(|| stage.show(&domain), |shown: &Value| !shown["proof"].is_null()).await;
    assert_eq!((&proved["proof"]["method"], &proved["proof"]["actor"]), (&json!("txt"), &json!("system")));
    assert_eq!(condition(&proved, "OwnershipProved")["status"], "true");
    assert_eq!(condition(&proved, "DnsPointsHere")["reason"], "NoAddress");
    let events = stage.operator("GET", "/v1/events", Value::Null).await.body;
    let kinds: Vec<_> =
        events["items"].as_array().unwrap().iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"domain.created") && kinds.contains(&"domain.proved"), "{kinds:?}");
}

#[tokio::test]
async fn a_cname_to_the_unguessable_target_proves_and_a_left_behind_one_does_not() {
    let stage = Stage::start().await;
    let (one, _) = stage.tenant("one").await;
    let (two, _) = stage.tenant("two").await;
    let domain = stage.domain(&one, "www.shop.example").await;
    stage.dns.set_cname("www.shop.example", &record(&domain, "proof_and_traffic"));
    let proved = stage.check(&domain).await;
    assert_eq!(proved["proof"]["method"], "cname");

    // Deleted; the CNAME dangles. Nobody gets the name by it, not even the same tenant.
    let path = format!("/v1/domains/{}", domain["id"].as_str().unwrap());
    let gone = stage.call("DELETE", &path, Some(&stage.operator), &[("if-match", "*")], Value::Null).await;
    assert_eq!(gone.status, 204, "{}", gone.text);
    for tenant in [&one, &two] {
        let again = stage.domain(tenant, "www.shop.example").await;
        assert_ne!(record(&again, "proof_and_traffic"), record(&domain, "proof_and_traffic"));
        assert_ne!(record(&again, "proof"), record(&domain, "proof"));
        let checked = stage.check(&again).await;
        assert!(checked["proof"].is_null(), "{checked}");
        assert_eq!(condition(&checked, "OwnershipProved")["status"], "false");
    }
}

#[tokio::test]
async fn a_rivals_newer_dns_proof_takes_over_and_the_losers_records_prove_nothing_any_more() {
    let stage = Stage::start().await;
    let (one, one_token) = stage.tenant("one").await;
    let (two, two_token) = stage.tenant("two").await;
    let first = stage.domain(&one, "shop.example").await;
    stage.dns.set_txt("_portico.shop.example", &[&record(&first, "proof")]);
    assert_eq!(stage.check(&first).await["proof"]["method"], "txt");

    // A claim alone changes nothing, and does not say whose the name is.
    let rival = stage.domain(&two, "shop.example").await;
    assert_eq!(condition(&rival, "OwnershipProved")["reason"], "OwnedByAnother");
    assert!(!rival.to_string().contains(&one), "{rival}");
    assert!(!stage.show(&first).await["proof"].is_null());
    // Neither does the operator's word.
    let attested = json!({ "domain_ids": [rival["id"]], "note": "on the phone" });
    let answer = stage.operator("POST", "/v1/domains/attest", attested).await;
    assert_eq!(answer.body["results"][0]["status"], 409, "{}", answer.text);

    // Both records stand; the newer proof decides, and the older record cannot take the name back.
    stage.dns.set_txt("_portico.shop.example", &[&record(&first, "proof"), &record(&rival, "proof")]);
    assert_eq!(stage.check(&rival).await["proof"]["method"], "txt");
    let loser = stage.check(&first).await;
    assert!(loser["proof"].is_null());
    assert_ne!(record(&loser, "proof"), record(&first, "proof"));
    assert!(!stage.check(&rival).await["proof"].is_null());

    // Each tenant hears of its own side only.
    let of = async |token: &str| stage.call("GET", "/v1/events", Some(token), &[], Value::Null).await.text;
    assert!(of(&one_token).await.contains("domain.displaced"));
    assert!(!of(&two_token).await.contains("domain.displaced"));
}

#[tokio::test]
async fn a_wildcard_needs_txt_at_its_base_and_leaves_others_hosts_alone() {
    let stage = Stage::start().await;
    let (one, _) = stage.tenant("one").await;
    let (two, _) = stage.tenant("two").await;
    let host = stage.domain(&two, "a.shop.example").await;
    stage.dns.set_txt("_portico.a.shop.example", &[&record(&host, "proof")]);
    assert!(!stage.check(&host).await["proof"].is_null());

    let wildcard = stage.domain(&one, "*.shop.example").await;
    assert!(!wildcard["dns"].to_string().contains("proof_and_traffic"));
    stage.dns.set_cname("shop.example", "x.edge.provider.test");
    assert!(stage.check(&wildcard).await["proof"].is_null());
    stage.dns.set_txt("_portico.shop.example", &[&record(&wildcard, "proof")]);
    assert_eq!(stage.check(&wildcard).await["proof"]["method"], "txt");
    assert!(!stage.show(&host).await["proof"].is_null(), "the wildcard captured another tenant's host");
}

#[tokio::test]
async fn attestations_serve_until_a_tenants_own_proof_goes_before_them() {
    let stage = Stage::start().await;
    let (one, one_token) = stage.tenant("one").await;
    let domain = stage.domain(&one, "shop.example").await;
    let body = json!({ "domain_ids": [domain["id"]], "note": "moved from the old platform" });
    let refused = stage.call("POST", "/v1/domains/attest", Some(&one_token), &[], body.clone()).await;
    assert_eq!(refused.status, 403);
    let answer = stage.operator("POST", "/v1/domains/attest", body).await;
    assert_eq!(answer.body["results"][0]["status"], 200, "{}", answer.text);
    let attested = stage.check(&domain).await;
    assert_eq!(attested["proof"]["method"], "attestation");
    assert!(attested["proof"]["evidence"].as_str().unwrap().contains("old platform"));
    assert_eq!(condition(&attested, "OwnershipProved")["status"], "true");

    stage.dns.set_txt("_portico.shop.example", &[&record(&domain, "proof")]);
    assert_eq!(stage.check(&domain).await["proof"]["method"], "txt");
}

#[tokio::test]
async fn a_resolver_that_is_down_takes_nothing_away_and_a_missing_record_only_complains() {
    let stage = Stage::start().await;
    let (one, _) = stage.tenant("one").await;
    let proved = stage.domain(&one, "shop.example").await;
    let pending = stage.domain(&one, "later.example").await;
    stage.dns.set_txt("_portico.shop.example", &[&record(&proved, "proof")]);
    stage.dns.set_a("shop.example", &[OURS]);
    assert_eq!(condition(&stage.check(&proved).await, "DnsPointsHere")["status"], "true");

    stage.dns.set_failing(true);
    let during = stage.check(&proved).await;
    assert_eq!(condition(&during, "OwnershipProved")["reason"], "Proved");
    assert_eq!(condition(&during, "DnsPointsHere")["status"], "unknown");
    let during = stage.check(&pending).await;
    assert_eq!(condition(&during, "OwnershipProved")["status"], "unknown");
    stage.dns.set_failing(false);

    // 34 days later the record is gone: a complaint, and nothing else.
    stage.dns.clear("_portico.shop.example");
    let asked = stage.check(&proved).await;
    assert_eq!(condition(&asked, "OwnershipProved")["reason"], "RecheckFailed");
    stage.dns.set_txt("_portico.shop.example", &[&record(&proved, "proof")]);
    assert_eq!(condition(&stage.check(&proved).await, "OwnershipProved")["reason"], "Proved");
    stage.dns.clear("_portico.shop.example");
    stage.clock.advance(Duration::from_secs(34 * 86_400));
    let complained = |shown: &Value| condition(shown, "OwnershipProved")["reason"] == "RecheckFailed";
    let after = until(|| stage.show(&proved), complained).await;
    assert!(!after["proof"].is_null(), "a failed re-check ended service");
    // A record that is back is seen within the day.
    stage.dns.set_txt("_portico.shop.example", &[&record(&proved, "proof")]);
    stage.clock.advance(Duration::from_secs(86_400));
    until(|| stage.show(&proved), |shown: &Value| !complained(shown)).await;
    // The claim that nobody proved is no longer looked at.
    let after = until(|| stage.show(&pending), |shown: &Value| shown["status"] == "failed").await;
    assert!(after["next_action"]["text"].as_str().unwrap().contains("ask for a check"), "{after}");
}

#[tokio::test]
async fn many_unproved_claims_of_one_tenant_hold_up_nobody_elses_proof() {
    let stage = Stage::start().await;
    let (one, _) = stage.tenant("one").await;
    let (two, _) = stage.tenant("two").await;
    for n in 0..20 {
        stage.domain(&one, &format!("n{n}.shop.example")).await;
    }
    let last = stage.domain(&two, "last.example").await;
    let mut read = stage.running.parts.store.read().await.unwrap();
    let due = portico_control_plane::store::domain::due(&mut read, i64::MAX, 2).await.unwrap();
    let names: Vec<_> = due.iter().map(|row| row.id.to_string()).collect();
    assert!(names.contains(&last["id"].as_str().unwrap().to_owned()), "{due:?}");
}

/// The look that began before the record was set ends after the one that found it.
#[tokio::test]
async fn a_look_that_ends_late_takes_no_newer_proof_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let stage = Stage::start_with(|_, _| http_config(port, true)).await;
    let (one, _) = stage.tenant("one").await;
    stage.dns.set_a("shop.example", &["127.0.0.1"]);
    let domain = stage.domain(&one, "shop.example").await;
    // It has found no record and now waits for the file.
    let (held, _) = listener.accept().await.unwrap();
    stage.dns.set_txt("_portico.shop.example", &[&record(&domain, "proof")]);
    assert_eq!(stage.check(&domain).await["proof"]["method"], "txt");
    drop((held, listener));
    // The reconciler has written the late one before it takes up another claim.
    let next = stage.domain(&one, "next.example").await;
    stage.dns.set_txt("_portico.next.example", &[&record(&next, "proof")]);
    until(|| stage.show(&next), |shown: &Value| !shown["proof"].is_null()).await;
    assert_eq!(condition(&stage.show(&domain).await, "OwnershipProved")["reason"], "Proved");
}

/// An HTTP server that answers every path with one text, and counts connections.
async fn server(
    address: &str,
    answer: impl Fn(&str) -> String + Send + Sync + 'static,
) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connects = Arc::new(AtomicUsize::new(0));
    let counted = connects.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let mut head = vec![0; 4096];
            let length = stream.read(&mut head).await.unwrap_or(0);
            let head = String::from_utf8_lossy(&head[..length]).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let _gone = stream.write_all(answer(&path).as_bytes()).await;
        }
    });
    (port, connects)
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

/// Answers with whatever is asked for.
fn echo_token(path: &str) -> String {
    ok(&format!("{}\n", path.rsplit('/').next().unwrap_or_default()))
}

fn http_config(port: u16, allowed: bool) -> String {
    let allow = format!("[egress]\nallow = [{{ cidr = \"127.0.0.0/8\", ports = [{port}] }}]\n");
    format!("http_port = {port}\n{}", if allowed { allow } else { String::new() })
}

/// What a tenant was told to serve, by path.
type Files = Arc<Mutex<HashMap<String, String>>>;

/// A server of the name's holder, with the files that its tenant puts there.
async fn file_server(address: &str) -> (u16, Arc<AtomicUsize>, Files) {
    let files = Files::default();
    let served = files.clone();
    let (port, connects) = server(address, move |path| match served.lock().unwrap().get(path) {
        Some(content) => ok(&format!("{content}\n")),
        None => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
    })
    .await;
    (port, connects, files)
}

/// The tenant does as it was told.
fn put_file(files: &Files, domain: &Value) {
    let file = &domain["dns"]["proof_file"];
    let (url, content) = (file["url"].as_str().unwrap(), file["content"].as_str().unwrap());
    let path = url.strip_prefix("http://").unwrap();
    let path = &path[path.find('/').unwrap()..];
    assert!(!path.contains(content), "{url} tells its content");
    assert!(domain["next_action"]["text"].as_str().unwrap().contains(&format!("serve {content} at {url}")));
    files.lock().unwrap().insert(path.to_owned(), content.to_owned());
}

/// The path holds the token, so a server that repeats what it is asked for would prove every claim of its names.
#[tokio::test]
async fn a_server_that_echoes_paths_proves_nothing() {
    let (port, connects) = server("127.0.0.1:0", echo_token).await;
    let stage = Stage::start_with(|_, _| http_config(port, true)).await;
    let (one, _) = stage.tenant("one").await;
    stage.dns.set_a("shop.example", &["127.0.0.1"]);
    let domain = stage.domain(&one, "shop.example").await;
    let checked = stage.check(&domain).await;
    assert!(connects.load(Ordering::SeqCst) >= 1, "the file was not asked for");
    assert!(checked["proof"].is_null(), "{checked}");
}

#[tokio::test]
async fn a_file_on_the_holders_server_proves() {
    let (port, connects, files) = file_server("127.0.0.1:0").await;
    let stage = Stage::start_with(|_, _| http_config(port, true)).await;
    let (one, _) = stage.tenant("one").await;
    stage.dns.set_a("shop.example", &["127.0.0.1"]);
    let domain = stage.domain(&one, "shop.example").await;
    put_file(&files, &domain);
    let proved = stage.check(&domain).await;
    assert_eq!(proved["proof"]["method"], "http", "{proved}");
    assert!(proved["proof"]["evidence"].as_str().unwrap().contains("127.0.0.1"));
    assert!(connects.load(Ordering::SeqCst) >= 1);

    // A second tenant's claim with a good file displaces nobody.
    let (two, _) = stage.tenant("two").await;
    let rival = stage.domain(&two, "shop.example").await;
    let file = &rival["dns"]["proof_file"];
    files.lock().unwrap().insert(
        file["url"].as_str().unwrap().trim_start_matches("http://shop.example").to_owned(),
        file["content"].as_str().unwrap().to_owned(),
    );
    assert!(stage.check(&rival).await["proof"].is_null());
    assert!(!stage.show(&domain).await["proof"].is_null());
}

#[tokio::test]
async fn a_name_that_dangles_towards_our_edges_is_not_claimed_by_a_file() {
    // What a tenant of ours could answer for the name, if we asked our own edges.
    let (port, connects, files) = file_server(&format!("{OURS}:0")).await;
    let stage = Stage::start_with(|_, _| http_config(port, true)).await;
    let (one, _) = stage.tenant("one").await;
    for (name, addresses) in [("dangling.example", &[OURS][..]), ("half.example", &["127.0.0.1", OURS])] {
        stage.dns.set_a(name, addresses);
        let domain = stage.domain(&one, name).await;
        put_file(&files, &domain);
        let checked = stage.check(&domain).await;
        assert!(checked["proof"].is_null(), "{name}: {checked}");
    }
    assert_eq!(connects.load(Ordering::SeqCst), 0, "our own address was asked");
}

#[tokio::test]
async fn fetches_of_files_stay_inside_the_egress_guard_and_follow_nothing() {
    let (port, connects) = server("127.0.0.1:0", echo_token).await;
    let stage = Stage::start_with(|_, _| http_config(port, false)).await;
    let (one, _) = stage.tenant("one").await;
    stage.dns.set_a("inside.example", &["127.0.0.1"]);
    stage.dns.set_a("metadata.example", &["169.254.169.254"]);
    for name in ["inside.example", "metadata.example"] {
        let domain = stage.domain(&one, name).await;
        assert!(stage.check(&domain).await["proof"].is_null(), "{name}");
    }
    assert_eq!(connects.load(Ordering::SeqCst), 0, "a denied address was connected to");

    let (port, _) = server("127.0.0.1:0", move |path| {
        format!("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{port}{path}\r\ncontent-length: 0\r\n\r\n")
    })
    .await;
    let stage = Stage::start_with(|_, _| http_config(port, true)).await;
    let (one, _) = stage.tenant("one").await;
    stage.dns.set_a("redirects.example", &["127.0.0.1"]);
    let domain = stage.domain(&one, "redirects.example").await;
    assert!(stage.check(&domain).await["proof"].is_null());
    assert_eq!(connects.load(Ordering::SeqCst), 0, "a redirect was followed");
}
