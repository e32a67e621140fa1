//! QUIC under many handshakes that go nowhere.

use std::collections::HashSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use portico_api::distribution as wire;
use portico_edge::io::Backend;
use portico_edge::limits;
use portico_edge::listen::{BoundListener, quic};
use quinn::crypto::rustls::QuicClientConfig;

use crate::client::{any_version, http2_get, https, plain, runtime};
use crate::harness::{Setup, TestEdge, on_each_backend, wait_until};
use crate::http3_client::http3_get;

const HOST: &str = "shop.example";

/// Between a client and the edge, from one address; sees what goes by, and may keep the edge's answers to itself, as for a
/// client that has forged its address.
struct Relay {
    address: SocketAddr,
    to_edge: Arc<AtomicUsize>,
    from_edge: Arc<AtomicUsize>,
    retries: Arc<AtomicUsize>,
    sources: Arc<Mutex<HashSet<SocketAddr>>>,
    ended: Arc<AtomicBool>,
}

impl Relay {
    fn start(edge: SocketAddr, answers_pass: bool) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        let back = UdpSocket::bind("127.0.0.1:0").unwrap();
        back.connect(edge).unwrap();
        for socket in [&front, &back] {
            socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        }
        let relay = Self {
            address: front.local_addr().unwrap(),
            to_edge: Arc::default(),
            from_edge: Arc::default(),
            retries: Arc::default(),
            sources: Arc::default(),
            ended: Arc::default(),
        };
        let last: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
        let (reads, writes) = (front.try_clone().unwrap(), back.try_clone().unwrap());
        let (count, seen, ended) = (Arc::clone(&relay.to_edge), Arc::clone(&last), Arc::clone(&relay.ended));
        let sources = Arc::clone(&relay.sources);
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while !ended.load(Ordering::SeqCst) {
                let Ok((length, from)) = reads.recv_from(&mut buffer) else { continue };
                *seen.lock().unwrap() = Some(from);
                sources.lock().unwrap().insert(from);
                count.fetch_add(length, Ordering::SeqCst);
                let _ = writes.send(&buffer[..length]);
            }
        });
        let (count, retries, ended) =
            (Arc::clone(&relay.from_edge), Arc::clone(&relay.retries), Arc::clone(&relay.ended));
        std::thread::spawn(move || {
            let mut buffer = [0; 65536];
            while !ended.load(Ordering::SeqCst) {
                let Ok(length) = back.recv(&mut buffer) else { continue };
                count.fetch_add(length, Ordering::SeqCst);
                // A long header of type Retry (RFC 9000 section 17.2.5).
                if buffer[0] & 0xf0 == 0xf0 {
                    retries.fetch_add(1, Ordering::SeqCst);
                }
                if let (true, Some(client)) = (answers_pass, *last.lock().unwrap()) {
                    let _ = front.send_to(&buffer[..length], client);
                }
            }
        });
        relay
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
    }
}

fn edge(backend: Backend) -> TestEdge {
    let mut edge = TestEdge::with(backend, Setup { http3: true, ..Setup::default() });
    edge.serve(&[HOST]);
    edge
}

fn client_config(tls: rustls::ClientConfig) -> quinn::ClientConfig {
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}

#[test]
fn under_many_half_open_handshakes_clients_show_their_address_and_nobody_is_flooded() {
    on_each_backend(|backend| {
        let edge = edge(backend);
        let runtime = runtime();
        let silent = Relay::start(edge.https, false);
        let (endpoint, begun) = runtime.block_on(async {
            let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
            let begin =
                |_| endpoint.connect_with(client_config(any_version(&["h3"])), silent.address, HOST).unwrap();
            let begun: Vec<_> = (0..limits::QUIC_HALF_OPEN_BEFORE_RETRY + 20).map(begin).collect();
            (endpoint, begun)
        });
        // Keeps the clients repeating themselves while the test looks on.
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let repeating = std::thread::spawn(move || {
            while stopped.recv_timeout(Duration::from_millis(1)).is_err() {
                runtime.block_on(async { tokio::time::sleep(Duration::from_millis(20)).await });
            }
            drop((begun, endpoint));
        });
        wait_until("Retry is asked of those who come late", || silent.retries.load(Ordering::SeqCst) > 0);
        assert!(edge.metric("portico_edge_quic_retries_total") > 0.0);

        // A client that is there answers the Retry and is served.
        let honest = Relay::start(edge.https, true);
        assert_eq!(http3_get(honest.address, Some(HOST), HOST, "/"), Ok(200));
        assert!(honest.retries.load(Ordering::SeqCst) > 0, "it too had to show its address");

        // RFC 9000 section 8.1: three times what came, until an address is shown.
        let (sent, got) = (silent.from_edge.load(Ordering::SeqCst), silent.to_edge.load(Ordering::SeqCst));
        assert!(sent <= 3 * got, "{sent} bytes sent for {got}");
        assert_eq!(silent.sources.lock().unwrap().len(), 1);
        stop.send(()).unwrap();
        repeating.join().unwrap();
    });
}

/// The second worker's endpoint cannot begin: its socket is none of UDP.
fn without_an_endpoint(bound: &mut [Vec<BoundListener>]) {
    let process = Arc::new(quic::QuicProcess::generate().unwrap());
    let (socket, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let socket = UdpSocket::from(std::os::fd::OwnedFd::from(socket));
    bound[1][0].quic = quic::adopt_group(vec![socket], &process, quic::Predecessors::default()).unwrap();
}

#[test]
fn http3_that_is_not_served_is_not_advertised_and_clients_forget_it() {
    on_each_backend(|backend| {
        let setup = Setup { http3: true, workers: 2, spoil: without_an_endpoint, ..Setup::default() };
        let mut edge = TestEdge::with(backend, setup);
        edge.serve(&[HOST]);
        let told = || https(edge.https, HOST).get(HOST, "/").header("alt-svc").map(str::to_owned);
        wait_until("the endpoint has failed", || told().as_deref() == Some("clear"));
        // Whichever worker answers.
        for _ in 0..20 {
            assert_eq!(told().as_deref(), Some("clear"));
        }
    });
}

#[test]
fn a_name_whose_http3_is_switched_off_tells_its_clients_so() {
    on_each_backend(|backend| {
        for http3 in [true, false] {
            let mut edge = TestEdge::with(backend, Setup { http3, ..Setup::default() });
            edge.serve_with(&[HOST, "without.example"], &[], |domain| {
                let http3_off = domain.name == "without.example";
                domain.tls = Some(wire::TlsPolicy { http3_off, ..wire::TlsPolicy::default() });
            });
            for (name, told) in [(HOST, "h3=\":443\"; ma=86400"), ("without.example", "clear")] {
                // A listener that never had it has told nobody.
                let told = http3.then_some(told);
                let over_h1 = https(edge.https, name).get(name, "/");
                let over_h2 = http2_get(edge.https, Some(name), name, "/").unwrap();
                for answer in [over_h1, over_h2] {
                    assert_eq!((answer.status, answer.header("alt-svc")), (200, told), "{name}");
                }
            }
        }
    });
}

#[test]
fn http3_is_advertised_over_tls_at_the_public_port_and_nowhere_else() {
    on_each_backend(|backend| {
        for http3 in [true, false] {
            let setup = Setup { http3, public_https_port: 8443, ..Setup::default() };
            let mut edge = TestEdge::with(backend, setup);
            edge.serve_with(&[HOST, "plain.example"], &[], |domain| {
                domain.https_redirect_off = domain.name == "plain.example";
            });
            let over_tls = https(edge.https, HOST).get(HOST, "/");
            assert_eq!(over_tls.status, 200);
            assert_eq!(over_tls.header("alt-svc"), http3.then_some("h3=\":8443\"; ma=86400"));
            // An answer for a name that this connection's certificate is not for says nothing of that name.
            let misdirected = https(edge.https, HOST).get("stranger.example", "/");
            assert_eq!((misdirected.status, misdirected.header("alt-svc")), (421, None));
            for (host, status) in [(HOST, 301), ("plain.example", 200)] {
                let over_tcp = plain(edge.http).get(host, "/");
                assert_eq!((over_tcp.status, over_tcp.header("alt-svc")), (status, None), "{host}");
            }
        }
    });
}
