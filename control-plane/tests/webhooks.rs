//! Events at their endpoints: signed, in order, at least once, and nowhere that the egress guard does not allow.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "set-up fails the test; deadlines are real time"
)]

mod stage;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use portico_control_plane::limits;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use stage::{Stage, until};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

/// A message as it arrived.
#[derive(Clone, Debug)]
struct Arrived {
    path: String,
    headers: HeaderMap,
    body: String,
}

impl Arrived {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap().to_str().unwrap()
    }

    fn message(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn sequence(&self) -> u64 {
        self.message()["data"]["sequence"].as_u64().unwrap()
    }

    /// How many of the signatures are by this secret; as a receiver would see it.
    fn signed_by(&self, secret: &str) -> usize {
        let secret = BASE64_STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let text =
            format!("{}.{}.{}", self.header("webhook-id"), self.header("webhook-timestamp"), self.body);
        let signatures = self.header("webhook-signature").split(' ');
        let is_good = |signature: &&str| {
            let tag = BASE64_STANDARD.decode(signature.strip_prefix("v1,").unwrap()).unwrap();
            hmac::verify(&key, text.as_bytes(), &tag).is_ok()
        };
        signatures.filter(is_good).count()
    }
}

/// An endpoint: what it answers next, 200 when nothing is said, and what has come.
#[derive(Clone, Default)]
struct Receiver {
    arrived: Arc<Mutex<Vec<Arrived>>>,
    answers: Arc<Mutex<VecDeque<Response<Full<Bytes>>>>>,
    /// Answers wait as long as this is set, but for so many.
    holds: Arc<std::sync::atomic::AtomicBool>,
    let_go: Arc<AtomicUsize>,
    connects: Arc<AtomicUsize>,
}

impl Receiver {
    async fn start() -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (receiver, address) = (Self::default(), listener.local_addr().unwrap());
        let of_task = receiver.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                of_task.connects.fetch_add(1, Ordering::SeqCst);
                of_task.serve(stream);
            }
        });
        (receiver, address)
    }

    fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, stream: S) {
        let receiver = self.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| receiver.take(request));
            let _ended = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }

    async fn take(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let (head, body) = request.into_parts();
        let body = String::from_utf8(body.collect().await?.to_bytes().to_vec()).unwrap();
        let arrived = Arrived { path: head.uri.to_string(), headers: head.headers, body };
        self.arrived.lock().unwrap().push(arrived);
        let is_let_go = || {
            self.let_go.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
        };
        while self.holds.load(Ordering::SeqCst) && !is_let_go() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(self.answers.lock().unwrap().pop_front().unwrap_or_default())
    }

    fn answer(&self, status: u16) {
        let answer = Response::builder().status(status).body(Full::default()).unwrap();
        self.answers.lock().unwrap().push_back(answer);
    }

    fn all(&self) -> Vec<Arrived> {
        self.arrived.lock().unwrap().clone()
    }

    async fn until(&self, count: usize) -> Vec<Arrived> {
        until(|| async { self.all() }, |all: &Vec<Arrived>| all.len() >= count).await
    }
}

/// A tenant whose endpoints may be on this machine, at this port.
async fn tenant(stage: &Stage, name: &str, port: u16) -> (String, String) {
    let (id, token) = stage.tenant(name).await;
    let grants = json!({ "egress_grants": [{ "cidr": "127.0.0.1/32", "ports": [port] }] });
    let path = format!("/v1/tenants/{id}");
    let done = stage.call("PATCH", &path, Some(&stage.operator), &[("if-match", "*")], grants).await;
    assert_eq!(done.status, 200, "{}", done.text);
    (id, token)
}

async fn webhook(stage: &Stage, tenant: &str, token: &str, request: Value) -> Value {
    let path = format!("/v1/tenants/{tenant}/webhooks");
    let made = stage.call("POST", &path, Some(token), &[], request).await;
    assert_eq!(made.status, 201, "{}", made.text);
    made.body
}

async fn shown(stage: &Stage, webhook: &Value) -> Value {
    let path = format!("/v1/webhooks/{}", webhook["id"].as_str().unwrap());
    stage.operator("GET", &path, Value::Null).await.body
}

async fn act(stage: &Stage, webhook: &Value, verb: &str, body: Value) -> Value {
    let path = format!("/v1/webhooks/{}/{verb}", webhook["id"].as_str().unwrap());
    let done = stage.operator("POST", &path, body).await;
    assert_eq!(done.status, 200, "{}", done.text);
    done.body
}

async fn domains(stage: &Stage, tenant: &str, count: usize) {
    let label = tenant.rsplit('_').next().unwrap().to_ascii_lowercase();
    let items: Vec<Value> = (0..count).map(|n| stage::spec(&format!("n{n}.{label}.example"))).collect();
    for part in items.chunks(100) {
        let path = format!("/v1/tenants/{tenant}/domains/batch");
        let done = stage.operator("POST", &path, json!({ "items": part })).await;
        assert_eq!(done.status, 200, "{}", done.text);
    }
}

#[tokio::test]
async fn a_tenants_events_arrive_signed_and_in_order_and_nobody_elses() {
    let stage = Stage::start_with(|_, _| String::new()).await;
    let (receiver, address) = Receiver::start().await;
    let (one, token) = tenant(&stage, "one", address.port()).await;
    let (two, other) = tenant(&stage, "two", address.port()).await;
    let url = format!("http://{address}/hook?of=one");
    let made =
        webhook(&stage, &one, &token, json!({ "url": url, "kinds": ["domain.created"], "label": "x" })).await;
    let secret = made["secret"].as_str().unwrap();
    domains(&stage, &one, 60).await;
    domains(&stage, &two, 5).await;
    let arrived = receiver.until(60).await;
    let sequences: Vec<u64> = arrived.iter().map(Arrived::sequence).collect();
    assert!(sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");
    for message in &arrived {
        assert_eq!((message.path.as_str(), message.signed_by(secret)), ("/hook?of=one", 1));
        let told = message.message();
        assert_eq!((&told["type"], &told["data"]["tenant_id"]), (&json!("domain.created"), &json!(one)));
        assert!(told["data"]["text"].as_str().unwrap().contains(".example was added"), "{told}");
        assert!(message.header("webhook-id").starts_with("evt_"));
        let at: i64 = message.header("webhook-timestamp").parse().unwrap();
        assert!((at - stage.clock.now_ms() / 1000).abs() < 60);
    }
    // A forged body, or another secret, is seen.
    let mut forged = arrived[0].clone();
    forged.body = forged.body.replace("added", "deleted");
    assert_eq!(forged.signed_by(secret), 0);
    let last = sequences[59];
    until(|| shown(&stage, &made), |shown: &Value| shown["delivered_to"].as_u64() >= Some(last)).await;
    assert_eq!(receiver.all().len(), 60, "nothing was sent twice");
    assert!(receiver.connects.load(Ordering::SeqCst) <= 10, "many go over one connection");

    // The operators hear of everything.
    let (all, address) = Receiver::start().await;
    let stage_allows =
        stage.operator("POST", "/v1/webhooks", json!({ "url": format!("http://{address}/"), "since": 0 }));
    let of_operators = stage_allows.await;
    assert_eq!(of_operators.status, 201, "{}", of_operators.text);
    let failing = until(|| shown(&stage, &of_operators.body), |shown: &Value| shown["failures"] != 0).await;
    assert!(failing["error"].as_str().unwrap().contains("may not be connected to"), "{failing}");
    assert_eq!(all.connects.load(Ordering::SeqCst), 0, "no [egress] allow, no connect");
    // What is not one's own does not exist.
    let path = format!("/v1/webhooks/{}", made["id"].as_str().unwrap());
    assert_eq!(stage.call("GET", &path, Some(&other), &[], Value::Null).await.status, 404);
    assert_eq!(stage.call("DELETE", &path, Some(&other), &[], Value::Null).await.status, 404);
    let listed = stage.call("GET", "/v1/webhooks", Some(&token), &[], Value::Null).await;
    assert_eq!(listed.body["items"].as_array().unwrap().len(), 1, "{}", listed.text);
    assert!(!listed.text.contains("whsec_") && !listed.text.contains("secret"), "{}", listed.text);
    assert_eq!(stage.call("DELETE", &path, Some(&token), &[], Value::Null).await.status, 204);
}

#[tokio::test]
async fn operators_hear_of_everything_where_the_configuration_lets_them() {
    let (receiver, address) = Receiver::start().await;
    let allow = format!("[egress]\nallow = [{{ cidr = \"127.0.0.1/32\", ports = [{}] }}]\n", address.port());
    let stage = Stage::start_with(|_, _| allow).await;
    let (one, _) = stage.tenant("one").await;
    let request = json!({ "url": format!("http://{address}/"), "since": 0 });
    let made = stage.operator("POST", "/v1/webhooks", request).await;
    assert_eq!(made.status, 201, "{}", made.text);
    domains(&stage, &one, 3).await;
    let arrived = receiver.until(4).await;
    let kinds: Vec<_> =
        arrived.iter().map(|message| message.message()["type"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds[0], "tenant.created");
    assert!(kinds.contains(&"domain.created".to_owned()), "{kinds:?}");
}

#[tokio::test]
async fn what_fails_is_tried_again_before_what_comes_after_it() {
    let stage = Stage::start().await;
    let (receiver, address) = Receiver::start().await;
    let (one, token) = tenant(&stage, "one", address.port()).await;
    for status in [500, 404, 307] {
        receiver.answer(status);
    }
    let made = webhook(&stage, &one, &token, json!({ "url": format!("http://{address}/") })).await;
    domains(&stage, &one, 2).await;
    for failures in 1..=3 {
        let known = until(|| shown(&stage, &made), |shown: &Value| shown["failures"] == failures).await;
        assert_eq!(known["state"], "failing");
        assert_eq!(receiver.all().len(), failures, "the next try waits");
        stage.clock.advance(Duration::from_secs(70));
    }
    let arrived = receiver.until(5).await;
    let ids: Vec<&str> = arrived.iter().map(|message| message.header("webhook-id")).collect();
    assert!(ids[..4].iter().all(|id| *id == ids[0]) && ids[4] != ids[0], "{ids:?}");
    let first: i64 = arrived[0].header("webhook-timestamp").parse().unwrap();
    let fourth: i64 = arrived[3].header("webhook-timestamp").parse().unwrap();
    assert!(fourth - first >= 210, "a try is signed with its own time");
    let known = until(|| shown(&stage, &made), |shown: &Value| shown["state"] == "active").await;
    assert_eq!((&known["failures"], &known["error"]), (&json!(0), &Value::Null), "{known}");
    let path = format!("/v1/webhooks/{}/tries?limit=10", made["id"].as_str().unwrap());
    let tries = stage.operator("GET", &path, Value::Null).await;
    let statuses: Vec<&Value> =
        tries.body["items"].as_array().unwrap().iter().map(|tried| &tried["status"]).collect();
    assert_eq!(statuses, [200, 200, 307, 404, 500], "{}", tries.text);
    assert!(tries.body["items"][2]["error"].as_str().unwrap().contains("redirects are not followed"));
}

#[tokio::test]
async fn an_endpoint_that_takes_nothing_for_days_is_disabled_and_a_replay_loses_nothing() {
    let stage = Stage::start().await;
    let (receiver, address) = Receiver::start().await;
    let (one, token) = tenant(&stage, "one", address.port()).await;
    for _ in 0..30 {
        receiver.answer(503);
    }
    let made = webhook(
        &stage,
        &one,
        &token,
        json!({ "url": format!("http://{address}/x?key=hidden"), "kinds": ["domain.created"] }),
    )
    .await;
    domains(&stage, &one, 3).await;
    let mut tried = 0;
    loop {
        let known =
            until(|| shown(&stage, &made), |shown: &Value| shown["failures"].as_u64() > Some(tried)).await;
        tried = known["failures"].as_u64().unwrap();
        if known["state"] == "disabled" {
            assert!(known["error"].as_str().unwrap().contains("503"), "{known}");
            break;
        }
        assert!(tried < 20, "{known}");
        stage.clock.advance(Duration::from_secs(12 * 3600));
    }
    assert!(tried >= 6, "three days, twice a day");
    let events = stage.call("GET", "/v1/events", Some(&token), &[], Value::Null).await;
    let told =
        events.body["items"].as_array().unwrap().iter().find(|event| event["kind"] == "webhook.disabled");
    let told = told.unwrap()["text"].as_str().unwrap();
    assert!(
        told.contains("/replay")
            && told.contains(&format!("http://{address}/x "))
            && !told.contains("hidden"),
        "{told}"
    );
    receiver.answers.lock().unwrap().clear();
    let before = receiver.all().len();
    stage.clock.advance(Duration::from_secs(86_400));
    // A webhook that is disabled stays so; what happens meanwhile waits for it.
    domains(&stage, &one, 4).await;
    let sent_on = act(&stage, &made, "replay", json!({})).await;
    assert_eq!((&sent_on["state"], &sent_on["failures"]), (&json!("active"), &json!(0)));
    let arrived = receiver.until(before + 4).await;
    let first = arrived[before].sequence();
    assert_eq!(first, arrived[0].sequence(), "it goes on with what it did not take");
    until(
        || shown(&stage, &made),
        |shown: &Value| shown["delivered_to"].as_u64() >= Some(arrived[before + 3].sequence()),
    )
    .await;
    // And all of it again, from a number on.
    act(&stage, &made, "replay", json!({ "since": first })).await;
    let arrived = receiver.until(before + 4 + 3).await;
    assert_eq!(arrived[before + 4].sequence(), arrived[before + 1].sequence());
    // 410 says that there is nobody any more.
    receiver.answer(410);
    domains(&stage, &one, 5).await;
    let known = until(|| shown(&stage, &made), |shown: &Value| shown["state"] == "disabled").await;
    assert!(known["error"].as_str().unwrap().contains("410"), "{known}");
}

#[tokio::test]
async fn events_that_are_kept_no_longer_cannot_be_replayed() {
    let stage = Stage::start().await;
    let (_, address) = Receiver::start().await;
    let (one, token) = tenant(&stage, "one", address.port()).await;
    let made = webhook(&stage, &one, &token, json!({ "url": format!("http://{address}/") })).await;
    domains(&stage, &one, 3).await;
    let mut tx = stage.running.parts.store.begin().await.unwrap();
    portico_control_plane::store::event::purge(&mut tx, stage.clock.now_ms() + 1).await.unwrap();
    tx.commit().await.unwrap();
    let path = format!("/v1/webhooks/{}/replay", made["id"].as_str().unwrap());
    let refused = stage.operator("POST", &path, json!({ "since": 0 })).await;
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (410, &json!("events_forgotten")),
        "{}",
        refused.text
    );
    assert!(refused.body["detail"].as_str().unwrap().contains("say since="), "{}", refused.text);
}

#[tokio::test]
async fn nothing_connects_where_the_guard_does_not_allow() {
    let stage = Stage::start().await;
    let (receiver, address) = Receiver::start().await;
    let (one, token) = stage.tenant("one").await;
    let port = address.port();
    stage.dns.set_a("hooks.example", &["127.0.0.1"]);
    let api = stage.running.api;
    let targets = [
        (format!("http://127.0.0.1:{port}/"), "may not be connected to"),
        (format!("https://hooks.example:{port}/"), "may not be connected to"),
        ("http://169.254.169.254/latest/meta-data/".to_owned(), "may not be connected to"),
        (format!("http://{api}/v1/tenants"), "may not be connected to"),
        ("https://nowhere.example/".to_owned(), "has no address"),
    ];
    for (url, why) in targets {
        let made = webhook(&stage, &one, &token, json!({ "url": url })).await;
        let tried = act(&stage, &made, "test", Value::Null).await;
        assert!(tried["error"].as_str().unwrap().contains(why), "{url}: {tried}");
    }
    assert_eq!(receiver.connects.load(Ordering::SeqCst), 0);
    // A grant opens what it says, and only for its tenant.
    let (two, other) = tenant(&stage, "two", port).await;
    let made = webhook(&stage, &two, &other, json!({ "url": format!("http://127.0.0.1:{port}/") })).await;
    let tried = act(&stage, &made, "test", Value::Null).await;
    assert_eq!((&tried["status"], &tried["error"]), (&json!(200), &Value::Null), "{tried}");
    let message = receiver.until(1).await.remove(0);
    assert_eq!(
        (message.signed_by(made["secret"].as_str().unwrap()), message.message()["type"].clone()),
        (1, json!("webhook.test"))
    );
    act(&stage, &made, "test", Value::Null).await;
    let again = receiver.until(2).await.remove(1);
    assert_ne!(again.header("webhook-id"), message.header("webhook-id"), "receivers drop what they have had");
    // Our own addresses are nobody's to grant.
    let (three, third) = tenant(&stage, "three", 1).await;
    let path = format!("/v1/tenants/{three}");
    let grants = json!({ "egress_grants": [{ "cidr": "127.0.0.0/8", "ports": [port] }] });
    stage.call("PATCH", &path, Some(&stage.operator), &[("if-match", "*")], grants).await;
    let made =
        webhook(&stage, &three, &third, json!({ "url": format!("http://{}:{port}/", stage::OURS) })).await;
    let tried = act(&stage, &made, "test", Value::Null).await;
    assert!(tried["error"].as_str().unwrap().contains("may not be connected to"), "{tried}");
}

#[tokio::test]
async fn a_new_secret_and_the_one_before_sign_for_a_day_and_neither_is_in_the_database() {
    let stage = Stage::start().await;
    let (receiver, address) = Receiver::start().await;
    let (one, token) = tenant(&stage, "one", address.port()).await;
    let made = webhook(&stage, &one, &token, json!({ "url": format!("http://{address}/") })).await;
    let first = made["secret"].as_str().unwrap().to_owned();
    let second = act(&stage, &made, "secret", Value::Null).await["secret"].as_str().unwrap().to_owned();
    assert_ne!(first, second);
    act(&stage, &made, "test", Value::Null).await;
    let message = receiver.until(1).await.remove(0);
    assert_eq!((message.signed_by(&first), message.signed_by(&second)), (1, 1));
    stage.clock.advance(Duration::from_secs(86_401));
    act(&stage, &made, "test", Value::Null).await;
    let message = receiver.until(2).await.remove(1);
    assert_eq!((message.signed_by(&first), message.signed_by(&second)), (0, 1));
    for secret in [&first, &second] {
        let raw = BASE64_STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        for file in std::fs::read_dir(stage.data()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            let text = secret.strip_prefix("whsec_").unwrap().as_bytes();
            assert!(!bytes.windows(raw.len()).any(|part| part == raw), "the secret is on disk");
            assert!(!bytes.windows(text.len()).any(|part| part == text), "the secret's text is on disk");
        }
    }
}

#[tokio::test]
async fn an_endpoint_over_https_has_to_show_a_certificate_that_is_trusted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let receiver = Receiver::default();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["hooks.example".to_owned()])
        .unwrap()
        .signed_by(&key, &authority)
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    let (acceptor, of_task) = (tokio_rustls::TlsAcceptor::from(Arc::new(tls)), receiver.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                of_task.serve(stream);
            }
        }
    });
    for trusts in [true, false] {
        let pem = authority.pem();
        let stage = Stage::start_with(|folder, _| {
            let file = folder.join("hooks.pem");
            std::fs::write(&file, pem).unwrap();
            if trusts { format!("[webhooks]\nroot_pem = {file:?}\n") } else { String::new() }
        })
        .await;
        stage.dns.set_a("hooks.example", &["127.0.0.1"]);
        stage.dns.set_a("other.example", &["127.0.0.1"]);
        let (one, token) = tenant(&stage, "one", port).await;
        let made =
            webhook(&stage, &one, &token, json!({ "url": format!("https://hooks.example:{port}/x") })).await;
        let tried = act(&stage, &made, "test", Value::Null).await;
        if trusts {
            assert_eq!(tried["status"], 200, "{tried}");
            assert_eq!(receiver.all()[0].header("host"), format!("hooks.example:{port}"));
            let made =
                webhook(&stage, &one, &token, json!({ "url": format!("https://other.example:{port}/x") }))
                    .await;
            let tried = act(&stage, &made, "test", Value::Null).await;
            assert!(tried["error"].as_str().unwrap().contains("TLS"), "{tried}");
        } else {
            assert!(tried["error"].is_string() && tried["status"].is_null(), "{tried}");
        }
    }
    assert_eq!(receiver.all().len(), 1);
}

#[tokio::test]
async fn a_tenant_has_so_many_webhooks_and_of_each_so_many_tries_are_kept() {
    let stage = Stage::start().await;
    let (receiver, address) = Receiver::start().await;
    let (one, token) = tenant(&stage, "one", address.port()).await;
    let made = webhook(&stage, &one, &token, json!({ "url": format!("http://{address}/") })).await;
    let unwanted = json!({ "url": format!("http://{address}/"), "kinds": ["no.such"] });
    for _ in 1..limits::WEBHOOKS_OF_TENANT_MAX {
        webhook(&stage, &one, &token, unwanted.clone()).await;
    }
    let path = format!("/v1/tenants/{one}/webhooks");
    let refused = stage.call("POST", &path, Some(&token), &[], unwanted.clone()).await;
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (409, &json!("webhooks_max_reached")),
        "{}",
        refused.text
    );
    for n in 0..=limits::WEBHOOKS_OF_OPERATORS_MAX {
        let made = stage.operator("POST", "/v1/webhooks", unwanted.clone()).await;
        assert_eq!(
            made.status,
            if n < limits::WEBHOOKS_OF_OPERATORS_MAX { 201 } else { 409 },
            "{}",
            made.text
        );
    }
    let many = limits::WEBHOOK_TRIES_KEPT as usize + 10;
    domains(&stage, &one, many).await;
    let last = receiver.until(many).await[many - 1].sequence();
    until(|| shown(&stage, &made), |shown: &Value| shown["delivered_to"].as_u64() >= Some(last)).await;
    let path = format!("/v1/webhooks/{}/tries?limit=1000", made["id"].as_str().unwrap());
    let tries = stage.operator("GET", &path, Value::Null).await.body;
    let tries = tries["items"].as_array().unwrap();
    assert_eq!(tries.len(), limits::WEBHOOK_TRIES_KEPT as usize);
    assert!(tries[0]["sequence"].as_u64() >= Some(last), "the newest comes first");
}

#[tokio::test]
async fn endpoints_of_one_tenant_that_do_not_answer_hold_few_places_and_none_for_long() {
    let stage = Stage::start().await;
    let (receiver, address) = Receiver::start().await;
    receiver.holds.store(true, Ordering::SeqCst);
    let (one, token) = tenant(&stage, "one", address.port()).await;
    let request = json!({ "url": format!("http://{address}/"), "kinds": ["domain.created"] });
    let of_tenant = limits::WEBHOOKS_OF_TENANT_IN_FLIGHT_MAX;
    let first = webhook(&stage, &one, &token, request.clone()).await;
    for _ in 0..of_tenant {
        webhook(&stage, &one, &token, request.clone()).await;
    }
    domains(&stage, &one, 1).await;
    receiver.until(of_tenant).await;
    let (two, other) = tenant(&stage, "two", address.port()).await;
    webhook(&stage, &two, &other, request).await;
    domains(&stage, &two, 1).await;
    // The look that found the other's endpoint has seen that one more of the first waits.
    let arrived = receiver.until(of_tenant + 1).await;
    let of_first =
        arrived.iter().filter(|message| message.message()["data"]["tenant_id"] == json!(one)).count();
    assert_eq!(of_first, of_tenant, "one tenant leaves places to the others");
    let given_up = until(|| shown(&stage, &first), |shown: &Value| shown["failures"] != 0).await;
    let within = format!("within {} s", limits::WEBHOOK_DEADLINE.as_secs());
    assert!(given_up["error"].as_str().unwrap().contains(&within), "{given_up}");
    receiver.until(of_tenant + 2).await;
    receiver.holds.store(false, Ordering::SeqCst);
}

#[tokio::test]
async fn all_places_together_are_bounded() {
    let stage = Stage::start().await;
    let (receiver, address) = Receiver::start().await;
    receiver.holds.store(true, Ordering::SeqCst);
    let all = limits::WEBHOOKS_IN_FLIGHT_MAX;
    let of_tenant = limits::WEBHOOKS_OF_TENANT_IN_FLIGHT_MAX;
    let mut tenants = Vec::new();
    for n in 0..=all / of_tenant {
        let (id, token) = tenant(&stage, &format!("t{n}"), address.port()).await;
        for _ in 0..of_tenant {
            let request = json!({ "url": format!("http://{address}/{n}"), "kinds": ["domain.created"] });
            webhook(&stage, &id, &token, request).await;
        }
        tenants.push(id);
    }
    for id in &tenants {
        domains(&stage, id, 1).await;
    }
    receiver.until(all).await;
    // One place is free: whatever looks for it finds all that wait.
    receiver.let_go.store(1, Ordering::SeqCst);
    assert_eq!(receiver.until(all + 1).await.len(), all + 1, "the rest waits for a place");
    receiver.holds.store(false, Ordering::SeqCst);
    receiver.until(all + of_tenant).await;
}

#[tokio::test]
async fn a_test_that_is_asked_for_again_is_sent_once_and_few_wait_at_a_time() {
    let stage = Stage::start().await;
    let (receiver, address) = Receiver::start().await;
    let (one, token) = tenant(&stage, "one", address.port()).await;
    let request = json!({ "url": format!("http://{address}/"), "kinds": ["no.such"] });
    let made = webhook(&stage, &one, &token, request).await;
    let path = format!("/v1/webhooks/{}/test", made["id"].as_str().unwrap());
    let key = [("idempotency-key", "try-1")];
    let first = stage.call("POST", &path, Some(&token), &key, Value::Null).await;
    let again = stage.call("POST", &path, Some(&token), &key, Value::Null).await;
    assert_eq!((first.status, again.status, &first.body), (200, 200, &again.body));
    assert_eq!((again.headers["idempotency-replayed"].as_bytes(), receiver.all().len()), (&b"true"[..], 1));

    receiver.holds.store(true, Ordering::SeqCst);
    let most = limits::WEBHOOKS_OF_TENANT_IN_FLIGHT_MAX;
    let held = futures_util::future::join_all((0..most).map(|_| act(&stage, &made, "test", Value::Null)));
    let one_more = async {
        receiver.until(1 + most).await;
        let refused = stage.call("POST", &path, Some(&token), &[], Value::Null).await;
        assert_eq!(
            (refused.status, &refused.body["code"]),
            (429, &json!("too_many_tests")),
            "{}",
            refused.text
        );
        receiver.holds.store(false, Ordering::SeqCst);
    };
    tokio::join!(held, one_more);
    act(&stage, &made, "test", Value::Null).await;
    assert_eq!(receiver.all().len(), most + 2, "places come back");
}

#[tokio::test]
async fn the_trail_has_no_query_of_a_webhooks_url() {
    let stage = Stage::start().await;
    let (one, token) = stage.tenant("one").await;
    let url = "https://hooks.example/in?token=swordfish";
    let made = webhook(&stage, &one, &token, json!({ "url": url })).await;
    assert_eq!(made["url"], url, "its tenant sees all of it");
    let path = format!("/v1/webhooks/{}", made["id"].as_str().unwrap());
    assert_eq!(stage.call("DELETE", &path, Some(&token), &[], Value::Null).await.status, 204);
    let trail = stage.operator("GET", "/v1/audit", Value::Null).await.text;
    assert!(trail.matches("https://hooks.example/in\"").count() == 2, "made and deleted: {trail}");
    assert!(!trail.contains("swordfish"), "{trail}");
}

#[tokio::test]
async fn an_answer_without_end_is_no_answer() {
    let stage = Stage::start().await;
    let (receiver, address) = Receiver::start().await;
    let (one, token) = tenant(&stage, "one", address.port()).await;
    let made = webhook(&stage, &one, &token, json!({ "url": format!("http://{address}/") })).await;
    let answer =
        |bytes| Response::builder().status(StatusCode::OK).body(Full::from(vec![b'x'; bytes])).unwrap();
    receiver.answers.lock().unwrap().push_back(answer(limits::WEBHOOK_ANSWER_BYTES_MAX));
    let tried = act(&stage, &made, "test", Value::Null).await;
    assert_eq!((&tried["status"], &tried["error"]), (&json!(200), &Value::Null), "{tried}");
    receiver.answers.lock().unwrap().push_back(answer(limits::WEBHOOK_ANSWER_BYTES_MAX + 1));
    let tried = act(&stage, &made, "test", Value::Null).await;
    assert!(tried["error"].as_str().unwrap().contains("more than"), "{tried}");
}
