//! A control plane on loopback with its own folder, a movable clock, a DNS server whose records a test sets, and a
//! plain client that shows whole answers.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part of the stage")]

pub mod dns_stub;
pub mod postgres;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use portico_control_plane::clock::Clock;
use portico_control_plane::config::Config;
use portico_control_plane::{Running, start_at};
use serde_json::{Value, json};

use dns_stub::DnsStub;

pub struct Stage {
    pub folder: tempfile::TempDir,
    pub running: Running,
    pub clock: Clock,
    pub dns: DnsStub,
    pub operator: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Value,
    pub text: String,
}

/// The fleet's public address on every stage; nothing listens there.
pub const OURS: &str = "127.0.0.11";

impl Stage {
    pub async fn start() -> Self {
        Self::start_with(|_, _| String::new()).await
    }

    /// `more`: further lines of the configuration, from the folder and the DNS stub's address.
    pub async fn start_with(more: impl FnOnce(&Path, SocketAddr) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dns = DnsStub::start().await;
        std::fs::write(folder.path().join("kek"), "ab".repeat(32)).unwrap();
        set_mode(&folder.path().join("kek"), 0o600);
        let text = config_text(folder.path(), dns.address, &more(folder.path(), dns.address));
        let config = Config::parse(&text, Path::new("stage.toml")).unwrap();
        let clock = Clock::default();
        let running = start_at(config, clock.clone()).await.unwrap();
        let operator = std::fs::read_to_string(folder.path().join("operator")).unwrap().trim().to_owned();
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { folder, running, clock, dns, operator, client }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub async fn operator(&self, method: &str, path: &str, body: Value) -> Reply {
        let operator = self.operator.clone();
        self.call(method, path, Some(&operator), &[], body).await
    }

    pub async fn call(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        headers: &[(&str, &str)],
        body: Value,
    ) -> Reply {
        let raw = if body.is_null() { Vec::new() } else { serde_json::to_vec(&body).unwrap() };
        let json = [("content-type", "application/json")];
        let typed: Vec<_> =
            if body.is_null() { headers.to_vec() } else { json.iter().chain(headers).copied().collect() };
        self.raw(method, path, token, &typed, raw).await
    }

    pub async fn raw(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Reply {
        let mut request =
            http::Request::builder().method(method).uri(format!("http://{}{path}", self.running.api));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let answer = self.client.request(request.body(Full::from(body)).unwrap()).await.unwrap();
        let (head, body) = answer.into_parts();
        let text = String::from_utf8_lossy(&body.collect().await.unwrap().to_bytes()).into_owned();
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Reply { status: head.status.as_u16(), headers: head.headers, body, text }
    }

    /// A tenant; answers its id and a token of its own.
    pub async fn tenant(&self, name: &str) -> (String, String) {
        let made = self.operator("POST", "/v1/tenants", json!({ "name": name })).await;
        assert_eq!(made.status, 201, "{}", made.text);
        let id = made.body["id"].as_str().unwrap().to_owned();
        let made = self.operator("POST", "/v1/tokens", json!({ "tenant_id": id, "label": name })).await;
        assert_eq!(made.status, 201, "{}", made.text);
        (id, made.body["token"].as_str().unwrap().to_owned())
    }

    /// A domain with one static route; answers it as shown.
    pub async fn domain(&self, tenant: &str, hostname: &str) -> Value {
        let made = self.operator("POST", &format!("/v1/tenants/{tenant}/domains"), spec(hostname)).await;
        assert_eq!(made.status, 201, "{}", made.text);
        made.body
    }

    /// Has DNS and proofs of a domain looked at now.
    pub async fn check(&self, domain: &Value) -> Value {
        let id = domain["id"].as_str().unwrap();
        let reply = self.operator("POST", &format!("/v1/domains/{id}/check"), Value::Null).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.body
    }

    pub async fn show(&self, domain: &Value) -> Value {
        let id = domain["id"].as_str().unwrap();
        self.operator("GET", &format!("/v1/domains/{id}"), Value::Null).await.body
    }
}

pub fn config_text(folder: &Path, dns: SocketAddr, more: &str) -> String {
    let at = folder.display();
    let url = postgres::is_chosen().then(postgres::new_database).flatten();
    let database = url.map(|url| format!("database = \"{url}\"\n")).unwrap_or_default();
    format!(
        "{database}data = \"{at}/data\"\napi = \"127.0.0.1:0\"\ndistribution = \"127.0.0.1:0\"\n\
         key_encryption_key_file = \"{at}/kek\"\noperator_token_file = \"{at}/operator\"\n\
         [dns]\nresolvers = [\"{dns}\"]\ncname_zone = \"edge.provider.test\"\n\
         challenge_zone = \"acme.provider.test\"\n[fleet]\npublic_addresses = [\"{OURS}\"]\n{more}"
    )
}

pub fn spec(hostname: &str) -> Value {
    json!({ "hostname": hostname, "routes": [{ "action": { "type": "static", "body": hostname } }] })
}

/// The value of the record with this purpose.
pub fn record(domain: &Value, purpose: &str) -> String {
    let records = domain["dns"]["records"].as_array().unwrap();
    let found = records.iter().find(|record| record["purpose"] == purpose);
    found.unwrap_or_else(|| panic!("no {purpose} in {records:?}"))["value"].as_str().unwrap().to_owned()
}

pub fn condition<'a>(domain: &'a Value, kind: &str) -> &'a Value {
    let conditions = domain["conditions"].as_array().unwrap();
    conditions.iter().find(|condition| condition["type"] == kind).unwrap()
}

pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Looks again until `holds`, for at most 20 s.
pub async fn until<T, F: Future<Output = T>>(mut look: impl FnMut() -> F, holds: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let seen = look().await;
        if holds(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "it did not come to be within 20 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
