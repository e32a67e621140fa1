//! Requests that come before the handshake has ended, over HTTP/3.
//!
//! Between client and edge stands a relay that holds back what would end the client's handshake, until it is told to let go: so
//! it is certain what the edge does before. A client that has heard of the edge sends no more early data; so it hears nothing
//! until all is sent.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use portico_api::distribution as wire;
use portico_edge::http::h3::adapter::{Accepting, Connection};
use portico_edge::io::{Backend, IoChoice, choose};
use quinn::crypto::rustls::QuicClientConfig;
use tokio::net::UdpSocket;
use tokio::task::LocalSet;

use crate::client::{Answer, trust_all};
use crate::harness::{PATIENCE, Setup, TestEdge, proxy_to, wait_until};
use crate::http3_client::Http3;
use crate::origin::{Message, Origin, Reply, ok};

const HOST: &str = "shop.example";

/// Passes datagrams between one client and the edge.
pub struct Relay {
    pub address: SocketAddr,
    holds: Arc<AtomicBool>,
    /// Towards the client.
    mute: Arc<AtomicBool>,
    /// Of the client, in their order, while it holds.
    passed: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Relay {
    /// `from`: which address the edge sees.
    pub async fn start(edge: SocketAddr, from: &str) -> Self {
        let (near, far) =
            (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind((from, 0)).await.unwrap());
        far.connect(edge).await.unwrap();
        let relay = Self {
            address: near.local_addr().unwrap(),
            holds: Arc::default(),
            mute: Arc::default(),
            passed: Arc::default(),
        };
        let (holds, mute) = (Arc::clone(&relay.holds), Arc::clone(&relay.mute));
        let passed = Arc::clone(&relay.passed);
        tokio::task::spawn_local(async move {
            let (mut there, mut back) = ([0; 2048], [0; 2048]);
            let (mut client, mut held, mut unheard) = (None, Vec::new(), Vec::new());
            loop {
                tokio::select! {
                    Ok((length, from)) = near.recv_from(&mut there) => {
                        client = Some(from);
                        let datagram = there[..length].to_vec();
                        if !holds.load(Ordering::SeqCst) {
                            far.send(&datagram).await.unwrap();
                        } else if ends_handshake(&datagram) {
                            held.push(datagram);
                        } else {
                            passed.lock().unwrap().push(datagram.clone());
                            far.send(&datagram).await.unwrap();
                        }
                    }
                    Ok(length) = far.recv(&mut back) => unheard.push(back[..length].to_vec()),
                    () = tokio::time::sleep(Duration::from_millis(1)), if !(held.is_empty() && unheard.is_empty()) => {}
                }
                if !mute.load(Ordering::SeqCst)
                    && let Some(client) = client
                {
                    for datagram in unheard.drain(..) {
                        near.send_to(&datagram, client).await.unwrap();
                    }
                }
                if !holds.load(Ordering::SeqCst) {
                    for datagram in held.drain(..) {
                        far.send(&datagram).await.unwrap();
                    }
                }
            }
        });
        relay
    }

    fn hold(&self) {
        self.passed.lock().unwrap().clear();
        self.holds.store(true, Ordering::SeqCst);
        self.mute();
    }

    /// The client hears nothing, until [`Self::speak`].
    pub fn mute(&self) {
        self.mute.store(true, Ordering::SeqCst);
    }

    /// The client hears of the edge; what is held of its own stays so.
    pub fn speak(&self) {
        self.mute.store(false, Ordering::SeqCst);
    }

    fn let_go(&self) {
        self.holds.store(false, Ordering::SeqCst);
        self.speak();
    }
}

/// Whether a packet of the handshake's own level, or of a later one, is in it (RFC 9000 section 17).
fn ends_handshake(mut datagram: &[u8]) -> bool {
    while let Some(&first) = datagram.first() {
        if first & 0x80 == 0 {
            return true; // 1-RTT
        }
        let kind = (first >> 4) & 3;
        if kind == 2 {
            return true;
        }
        let mut at = 5;
        for _ in 0..2 {
            at += 1 + usize::from(datagram[at]); // connection ids
        }
        if kind == 0 {
            let (token, length) = variable(&datagram[at..]);
            at += length + token;
        }
        let (rest, length) = variable(&datagram[at..]);
        datagram = datagram.get(at + length + rest..).unwrap_or_default();
    }
    false
}

/// A number and its own length (RFC 9000 section 16).
fn variable(bytes: &[u8]) -> (usize, usize) {
    let length = 1 << (bytes[0] >> 6);
    let value = bytes[1..length]
        .iter()
        .fold(usize::from(bytes[0] & 0x3f), |value, byte| (value << 8) | usize::from(*byte));
    (value, length)
}

/// One client; its sessions are kept between its connections.
struct Client {
    config: quinn::ClientConfig,
    relay: Relay,
}

impl Client {
    async fn new(edge: SocketAddr) -> Self {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        // So that its hello is one datagram.
        provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        trust_all(&mut config);
        config.alpn_protocols = vec![b"h3".to_vec()];
        config.enable_early_data = true;
        let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
        Self { config, relay: Relay::start(edge, "127.0.0.1").await }
    }

    fn connecting(&self) -> (quinn::Endpoint, quinn::Connecting) {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connecting = endpoint.connect_with(self.config.clone(), self.relay.address, HOST).unwrap();
        (endpoint, connecting)
    }

    /// A whole connection, which leaves a session behind.
    async fn visit(&self) -> Answer {
        let (endpoint, connecting) = self.connecting();
        let mut client = over(endpoint, connecting.await.unwrap()).await;
        let answer = client.ask(get("/first")).await.unwrap().unwrap();
        client.close();
        client.endpoint.wait_idle().await;
        answer
    }

    /// A connection that is used before its handshake has ended; None where there is no session that allows it.
    async fn early(&self) -> Option<(Http3, quinn::ZeroRttAccepted)> {
        let (endpoint, connecting) = self.connecting();
        let (connection, accepted) = connecting.into_0rtt().ok()?;
        Some((over(endpoint, connection).await, accepted))
    }
}

async fn over(endpoint: quinn::Endpoint, connection: quinn::Connection) -> Http3 {
    let adapter = Connection::new(connection.clone(), Rc::new(Accepting::default()));
    let (mut driver, sender) = h3::client::new(adapter).await.unwrap();
    tokio::task::spawn_local(async move {
        // Its end is seen on the streams.
        let _ended = std::future::poll_fn(|context| driver.poll_close(context)).await;
    });
    Http3 { endpoint, connection, sender }
}

/// Asks while the handshake is held up: the request is at the origin before its client hears anything.
async fn ask_early(
    client: &Client,
    early: &mut Http3,
    origin: &Origin,
    request: http::Request<()>,
) -> Answer {
    let path = request.uri().path().to_owned();
    let arriving = async {
        while asked(origin, &path).is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        client.relay.speak();
    };
    let (answer, ()) = tokio::join!(early.ask(request), arriving);
    answer.unwrap().unwrap()
}

fn get(path: &str) -> http::Request<()> {
    http::Request::get(format!("https://{HOST}{path}")).body(()).unwrap()
}

fn request(method: &str, path: &str) -> http::Request<()> {
    http::Request::builder().method(method).uri(format!("https://{HOST}{path}")).body(()).unwrap()
}

fn backend() -> Backend {
    // QUIC is not on the ring.
    choose(IoChoice::Epoll).unwrap().0
}

fn edge(origin: &Origin, early_data: bool) -> (TestEdge, crate::harness::Served) {
    let mut edge = TestEdge::with(backend(), Setup { http3: true, ..Setup::default() });
    let url = origin.url();
    let served = edge.serve_with(&[HOST], &[origin.grant()], |domain| {
        domain.routes = vec![proxy_to(&url)];
        domain.tls = Some(wire::TlsPolicy { early_data, ..wire::TlsPolicy::default() });
    });
    (edge, served)
}

pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new()
        .block_on(&runtime, async { tokio::time::timeout(PATIENCE, test).await.expect("it ends") });
}

/// What the origin was asked by this path.
fn asked(origin: &Origin, path: &str) -> Vec<Message> {
    let has_path = |message: &Message| message.request_line.split(' ').nth(1) == Some(path);
    origin.messages().into_iter().filter(has_path).collect()
}

#[test]
fn a_safe_request_is_answered_before_the_handshake_has_ended_and_marked() {
    let origin = Origin::echoing();
    let (edge, _) = edge(&origin, true);
    run(async {
        let client = Client::new(edge.https).await;
        client.visit().await;
        let series = "portico_edge_early_requests_total{result=\"served\"}";
        let before = edge.metric(series);
        for method in ["GET", "HEAD", "OPTIONS"] {
            client.relay.hold();
            let (mut early, accepted) = client.early().await.expect("the session allows it");
            let path = format!("/{method}");
            let answer = ask_early(&client, &mut early, &origin, request(method, &path)).await;
            assert_eq!(answer.status, 200, "{method}");
            assert_eq!(asked(&origin, &path)[0].all("early-data"), ["1"], "{method}");
            client.relay.let_go();
            assert!(accepted.await, "the edge took the early data");
            // The handshake has ended for the client; the edge may hear of it a moment later.
            let mut number = 0;
            loop {
                number += 1;
                let path = format!("/later-{method}-{number}");
                assert_eq!(early.ask(get(&path)).await.unwrap().unwrap().status, 200);
                if asked(&origin, &path)[0].header("early-data").is_none() {
                    break;
                }
            }
            early.close();
        }
        assert!(edge.metric(series) >= before + 3.0);
    });
}

#[test]
fn any_other_request_waits_for_the_end_of_the_handshake() {
    let origin = Origin::echoing();
    let (edge, _) = edge(&origin, true);
    run(async {
        let client = Client::new(edge.https).await;
        client.visit().await;
        let series = "portico_edge_early_requests_total{result=\"waited\"}";
        client.relay.hold();
        let (mut early, accepted) = client.early().await.expect("the session allows it");
        let before = edge.metric(series);
        for (number, method) in ["POST", "PUT", "DELETE", "PATCH"].into_iter().enumerate() {
            let mut stream: h3::client::RequestStream<_, Bytes> =
                early.sender.send_request(request(method, "/change")).await.unwrap();
            stream.finish().await.unwrap();
            tokio::task::spawn_local(async move {
                // Its answer is counted at the origin.
                let _answer = stream.recv_response().await;
            });
            while edge.metric(series) < before + f64::from(u8::try_from(number).unwrap() + 1) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        // A safe one that came later is through, so those have had their time.
        assert_eq!(ask_early(&client, &mut early, &origin, get("/safe")).await.status, 200);
        assert_eq!(asked(&origin, "/change").len(), 0);
        client.relay.let_go();
        assert!(accepted.await);
        while asked(&origin, "/change").len() < 4 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(asked(&origin, "/change").iter().all(|message| message.header("early-data").is_none()));
    });
}

/// A safe request and one that changes something, sent again a hundred times by whoever has seen them (THREATS D6).
#[test]
fn a_recorded_flight_that_is_sent_again_does_nothing() {
    let origin = Origin::echoing();
    let (edge, _) = edge(&origin, true);
    run(async {
        let client = Client::new(edge.https).await;
        client.visit().await;
        client.relay.hold();
        let (mut early, accepted) = client.early().await.expect("the session allows it");
        let change = early.sender.send_request(request("POST", "/change")).await;
        let mut change: h3::client::RequestStream<_, Bytes> = change.unwrap();
        change.finish().await.unwrap();
        assert_eq!(ask_early(&client, &mut early, &origin, get("/once")).await.status, 200);
        assert_eq!(asked(&origin, "/change").len(), 0);
        let flight = client.relay.passed.lock().unwrap().clone();
        client.relay.let_go();
        assert!(accepted.await);
        assert_eq!(change.recv_response().await.unwrap().status(), 200);
        early.close();
        early.endpoint.wait_idle().await;
        let counts = || (asked(&origin, "/once").len(), asked(&origin, "/change").len());
        assert_eq!(counts(), (1, 1));
        // Until the edge answers with a handshake of its own, which nobody can end. As long as it remembers the first
        // connection it takes these for late packets of that.
        let (mut copies, mut was_answered) = (0, false);
        while copies < 100 || !was_answered {
            let replaying = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            replaying.connect(edge.https).await.unwrap();
            for datagram in &flight {
                replaying.send(datagram).await.unwrap();
            }
            copies += 1;
            was_answered |= !was_answered && answers_with_a_handshake(&replaying).await;
        }
        // Two visits later all that was to come has come.
        client.visit().await;
        client.visit().await;
        assert_eq!(counts(), (1, 1), "the origin has heard of each once");
    });
}

/// Whether the edge begins a handshake soon; it may be that it never does.
async fn answers_with_a_handshake(socket: &UdpSocket) -> bool {
    let mut room = [0; 2048];
    let answering = tokio::time::timeout(Duration::from_millis(50), socket.recv(&mut room)).await;
    matches!(answering, Ok(Ok(length)) if room[0] & 0x80 != 0 && ends_handshake(&room[..length]))
}

/// Early data comes before its sender has shown that its address is its own. So nobody can ask in another's name.
#[test]
fn a_session_counts_for_the_address_alone_that_it_was_made_with() {
    let origin = Origin::echoing();
    let (edge, _) = edge(&origin, true);
    run(async {
        let mut client = Client::new(edge.https).await;
        client.visit().await;
        client.relay = Relay::start(edge.https, "127.0.0.2").await;
        let (mut early, accepted) = client.early().await.expect("the client knows nothing of it");
        let (answer, is_accepted) = tokio::join!(early.ask(get("/moved")), accepted);
        assert!(!is_accepted, "refused, and the handshake goes on");
        assert!(answer.is_err(), "{answer:?}");
        assert_eq!(asked(&origin, "/moved").len(), 0);
        assert!(early.connection.close_reason().is_none());
        early.close();
        // A session of the new address.
        client.visit().await;
        client.relay.hold();
        let (mut early, _) = client.early().await.expect("the session allows it");
        assert_eq!(ask_early(&client, &mut early, &origin, get("/here")).await.status, 200);
    });
}

#[test]
fn early_data_is_off_unless_the_name_asks_for_it_and_ends_when_it_no_longer_does() {
    let origin = Origin::echoing();
    let (mut edge, served) = edge(&origin, false);
    run(async {
        let client = Client::new(edge.https).await;
        client.visit().await;
        assert!(client.early().await.is_none(), "no session says so");
        let mut version = 1;
        let mut set = |edge: &mut TestEdge, early_data: bool| {
            version += 1;
            let mut body = crate::fleet::domain_body(HOST, &[served.lineage]);
            body.routes = vec![proxy_to(&origin.url())];
            body.tls = Some(wire::TlsPolicy { early_data, ..wire::TlsPolicy::default() });
            edge.apply(vec![crate::fleet::domain(served.domains[0].1, version, served.tenant, &body)]);
        };
        set(&mut edge, true);
        client.visit().await;
        set(&mut edge, false);
        let (early, accepted) = client.early().await.expect("the client still thinks so");
        assert!(!accepted.await, "refused, and the handshake goes on");
        assert!(early.connection.close_reason().is_none());
        early.close();
        assert_eq!(client.visit().await.status, 200);
    });
}

#[test]
fn an_origin_that_finds_it_too_early_is_asked_again_when_it_no_longer_is() {
    let origin = Origin::start(|message| {
        let always = message.request_line.contains("/never");
        if message.header("early-data").is_some() || always {
            let fields = "Cache-Control: max-age=60\r\nContent-Length: 0\r\n\r\n";
            return Reply::Keep(format!("HTTP/1.1 425 Too Early\r\n{fields}").into_bytes());
        }
        Reply::Keep(ok("in time"))
    });
    let (edge, _) = edge(&origin, true);
    run(async {
        let client = Client::new(edge.https).await;
        client.visit().await;
        for (path, status, tries) in [("/soon", 200, 2), ("/never", 425, 2)] {
            client.relay.hold();
            let (mut early, accepted) = client.early().await.expect("the session allows it");
            let relay = &client.relay;
            let (answer, ()) = tokio::join!(early.ask(get(path)), async {
                while asked(&origin, path).is_empty() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                relay.let_go();
            });
            assert_eq!(answer.unwrap().unwrap().status, status);
            let messages = asked(&origin, path);
            assert_eq!(messages.len(), tries);
            assert_eq!(messages[0].all("early-data"), ["1"]);
            assert_eq!(messages[1].header("early-data"), None);
            assert!(accepted.await);
            early.close();
        }
    });
}

/// Whom a proxy before us has marked stays marked, in whatever words (RFC 8470 section 5.1).
#[test]
fn what_was_early_on_its_way_to_us_is_told_to_the_origin() {
    let origin = Origin::echoing();
    let (edge, _) = edge(&origin, false);
    let mut client = crate::client::https(edge.https, HOST);
    for fields in ["Early-Data: 1\r\n", "Early-Data: yes\r\nearly-data: 1\r\n"] {
        client.send(format!("GET /marked HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n"));
        assert_eq!(client.answer().status, 200);
    }
    wait_until("both are there", || asked(&origin, "/marked").len() == 2);
    for message in asked(&origin, "/marked") {
        assert_eq!(message.all("early-data"), ["1"]);
    }
}
