//! P7: an acknowledged API write survives kill -9 at any point. The service's own binary is killed at random moments
//! while callers write; after each restart every acknowledged write is there, once, with its audit entry.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "set-up fails the test; deadlines are real time"
)]

mod stage;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use portico_control_plane::store::{Store, audit, sql};
use serde_json::{Value, json};

const ROUNDS: u64 = 30;
const WRITERS: u64 = 4;

type Http = Client<HttpConnector, Full<Bytes>>;

/// The service in a process of its own; killed when dropped.
struct Service(Child);

impl Service {
    fn start(folder: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_portico-control-plane"))
            .arg("--config")
            .arg(folder.join("cp.toml"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// SIGKILL: nothing of the process runs after it.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

async fn send(
    http: &Http,
    api: SocketAddr,
    token: &str,
    key: &str,
    path: &str,
    body: &Value,
) -> Option<(u16, Value)> {
    let request = http::Request::post(format!("http://{api}{path}"))
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .header("idempotency-key", key)
        .body(Full::from(serde_json::to_vec(body).unwrap()))
        .unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(10), http.request(request)).await.ok()?.ok()?;
    let status = answer.status().as_u16();
    let bytes = answer.into_body().collect().await.ok()?.to_bytes();
    Some((status, serde_json::from_slice(&bytes).ok()?))
}

async fn wait_ready(http: &Http, api: SocketAddr) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let answer = http.get(format!("http://{api}/readyz").parse().unwrap()).await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            return;
        }
        assert!(Instant::now() < deadline, "the service did not start again");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Writes until the service is gone; answers (key, path, body, acknowledged id).
async fn write_until_killed(
    http: Http,
    api: SocketAddr,
    token: String,
    tenant: String,
    next: Arc<AtomicU64>,
) -> Vec<(String, Option<String>)> {
    let mut writes = Vec::new();
    loop {
        let name = format!("n{}.example", next.fetch_add(1, Ordering::Relaxed));
        let path = format!("/v1/tenants/{tenant}/domains");
        match send(&http, api, &token, &name, &path, &stage::spec(&name)).await {
            Some((201, body)) => writes.push((name, Some(body["id"].as_str().unwrap().to_owned()))),
            Some((status, body)) => panic!("{status} {body}"),
            None => {
                writes.push((name, None));
                return writes;
            }
        }
    }
}

/// Writes what the service reads at its start; gives its DNS and where its API will be.
async fn prepare(folder: &Path) -> (stage::dns_stub::DnsStub, SocketAddr) {
    let dns = stage::dns_stub::DnsStub::start().await;
    std::fs::write(folder.join("kek"), "cd".repeat(32)).unwrap();
    stage::set_mode(&folder.join("kek"), 0o600);
    let api = portico_ports::reserve();
    let text = stage::config_text(folder, dns.address, "")
        .replace("api = \"127.0.0.1:0\"", &format!("api = \"{api}\""));
    std::fs::write(folder.join("cp.toml"), text).unwrap();
    (dns, api)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_kill_nine() {
    let folder = tempfile::tempdir().unwrap();
    let (_dns, api) = prepare(folder.path()).await;

    let http: Http = Client::builder(TokioExecutor::new()).build_http();
    let next = Arc::new(AtomicU64::new(0));
    let (mut acknowledged, mut tenant, mut token) = (Vec::new(), String::new(), String::new());
    let mut cut_off = 0;
    for round in 0..ROUNDS {
        let service = Service::start(folder.path());
        wait_ready(&http, api).await;
        if round == 0 {
            token = std::fs::read_to_string(folder.path().join("operator")).unwrap().trim().to_owned();
            let body = json!({ "name": "one", "domains_max": 1_000_000 });
            let (status, made) = send(&http, api, &token, "t", "/v1/tenants", &body).await.unwrap();
            assert_eq!(status, 201, "{made}");
            tenant = made["id"].as_str().unwrap().to_owned();
        }
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                tokio::spawn(write_until_killed(
                    http.clone(),
                    api,
                    token.clone(),
                    tenant.clone(),
                    next.clone(),
                ))
            })
            .collect();
        // Not a wait for a condition: the moment of the kill is meant to be arbitrary. It differs by 7 ms a round.
        tokio::time::sleep(Duration::from_millis(20 + 7 * (round * 11 % 29))).await;
        service.kill();
        for writer in writers {
            for (name, id) in writer.await.unwrap() {
                match id {
                    Some(id) => acknowledged.push((name, id)),
                    None => cut_off += 1,
                }
            }
        }
        check(folder.path(), &acknowledged).await;
    }
    assert!(
        acknowledged.len() > 100,
        "only {} writes were acknowledged: nothing was tested",
        acknowledged.len()
    );
    println!("{} acknowledged, {cut_off} cut off, over {ROUNDS} kills", acknowledged.len());

    // The same request again, under its key: the first answer, and no second domain.
    let _service = Service::start(folder.path());
    wait_ready(&http, api).await;
    let path = format!("/v1/tenants/{tenant}/domains");
    for (name, id) in acknowledged.iter().rev().take(20) {
        let (status, body) = send(&http, api, &token, name, &path, &stage::spec(name)).await.unwrap();
        assert_eq!((status, body["id"].as_str()), (201, Some(id.as_str())), "{name}");
    }
}

/// A core file would hold every key (P10).
#[tokio::test]
async fn the_service_leaves_no_core_file_with_its_keys() {
    let folder = tempfile::tempdir().unwrap();
    let (_dns, api) = prepare(folder.path()).await;
    let service = Service::start(folder.path());
    wait_ready(&Client::builder(TokioExecutor::new()).build_http(), api).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", service.0.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let words: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{core}");
}

/// Every acknowledged domain is there once, with its audit entry and its event; no half write is.
async fn check(folder: &Path, acknowledged: &[(String, String)]) {
    let store = Store::open(&folder.join("data")).await.unwrap();
    let mut read = store.read().await.unwrap();
    let rows = sql::query("SELECT name, id FROM domains ORDER BY name").fetch_all(&mut read).await.unwrap();
    let rows: Vec<(String, String)> =
        rows.iter().map(|row| (row.try_get(0).unwrap(), row.try_get(1).unwrap())).collect();
    for (name, id) in acknowledged {
        let found: Vec<_> = rows.iter().filter(|(of, _)| of == name).collect();
        assert_eq!(found, [&(name.clone(), id.clone())], "an acknowledged write is lost or doubled");
    }
    for query in [
        "SELECT COUNT(*) FROM audit WHERE action = 'domain.create'",
        "SELECT COUNT(*) FROM events WHERE kind = 'domain.created'",
        "SELECT COUNT(*) FROM idempotency WHERE key <> 't'",
    ] {
        let count: i64 = sql::query_scalar(query).fetch_one(&mut read).await.unwrap();
        assert_eq!(usize::try_from(count).unwrap(), rows.len(), "{query}");
    }
    let followed = audit::follow(&mut read, None, 100_000).await.unwrap();
    assert!(matches!(followed, audit::Followed::Holds { is_end: true, .. }), "{followed:?}");
    drop(read);
    store.close().await;
}
