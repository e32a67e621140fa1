//! One client address has its share and no more, whatever it does; its neighbours have theirs.

use std::collections::HashSet;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use portico_cert_store::KeyType;
use portico_edge::io::Backend;
use portico_edge::limits::{SOURCE_RESUMED_BACK, SOURCE_RSA2048_MORE, SOURCE_RSA4096_MORE};
use portico_edge::rate::Rate;
use portico_edge::sources::SourceLimits;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::HandshakeKind;

use crate::client::{Https, any_version, http2_get, https_over, plain, plain_over, runtime, tcp_from};
use crate::fleet;
use crate::harness::{Setup, TestEdge, on_each_backend, wait_until};
use crate::http3_client::http3_get;

const HOST: &str = "shop.example";
const GREEDY: [u8; 4] = [127, 0, 0, 1];
const NEIGHBOUR: [u8; 4] = [127, 0, 0, 2];

/// So slow that what is taken stays taken while a test runs.
fn slow(burst: u64) -> Option<Rate> {
    Some(Rate::every(Duration::from_secs(600), burst))
}

fn edge(backend: Backend, sources: SourceLimits) -> TestEdge {
    let mut edge = TestEdge::with(backend, Setup { sources, http3: true, ..Setup::default() });
    edge.serve_with(&[HOST], &[], |domain| domain.https_redirect_off = true);
    edge
}

fn https_from(own: [u8; 4], edge: &TestEdge) -> std::io::Result<Https> {
    https_over(tcp_from(own, edge.https), Some(HOST), any_version(&["http/1.1"]))
}

fn refused(edge: &TestEdge, reason: &str) -> f64 {
    edge.metric(&format!("portico_edge_limited_total{{reason=\"{reason}\"}}"))
}

#[test]
fn an_address_has_a_share_of_the_connections() {
    on_each_backend(|backend| {
        let edge = edge(backend, SourceLimits { connections: Some(3), ..SourceLimits::none() });
        let before = refused(&edge, "source_connections");
        let mut kept: Vec<_> = (0..3).map(|_| plain(edge.http)).collect();
        for client in &mut kept {
            assert_eq!(client.get(HOST, "/").status, 200);
        }
        for _ in 0..10 {
            let mut client = plain(edge.http);
            let _ = std::io::Write::write_all(&mut client.stream, b"GET / HTTP/1.1\r\n");
            assert!(client.rest().is_ok_and(|rest| rest.is_empty()), "closed without a byte");
        }
        assert!(https_from(GREEDY, &edge).is_err(), "over TLS too");
        assert!(http3_get(edge.https, Some(HOST), HOST, "/").is_err(), "and over QUIC");
        assert!(refused(&edge, "source_connections") >= before + 12.0);
        assert_eq!(plain_over(tcp_from(NEIGHBOUR, edge.http)).get(HOST, "/").status, 200);
        for client in &mut kept {
            assert_eq!(client.get(HOST, "/").status, 200, "not disturbed");
        }
        drop(kept);
        wait_until("the places are free again", || edge.edge.open_connections() == 0);
        assert_eq!(plain(edge.http).get(HOST, "/").status, 200);
    });
}

#[test]
fn a_handshake_with_an_rsa_key_takes_more_of_the_share() {
    on_each_backend(|backend| {
        let handshakes = |http3: bool| {
            let sources =
                SourceLimits { handshakes: slow(10 * (1 + SOURCE_RSA2048_MORE)), ..SourceLimits::none() };
            let mut edge = TestEdge::with(backend, Setup { sources, http3, ..Setup::default() });
            let served = edge.serve(&[HOST]);
            let minted = fleet::mint_with_key(served.tenant, &[HOST], KeyType::Rsa2048);
            edge.apply(vec![fleet::credential(served.lineage, 2, served.tenant, &minted.body)]);
            let over_quic = |_: &i32| http3_get(edge.https, Some(HOST), HOST, "/").is_ok();
            let over_tls = |_: &i32| https_from(GREEDY, &edge).is_ok();
            let count =
                if http3 { (0..20).filter(over_quic).count() } else { (0..20).filter(over_tls).count() };
            (edge, count)
        };
        let (edge, count) = handshakes(false);
        assert_eq!(count, 10);
        // Who resumes is asked for no signature, and pays for none.
        let config = any_version(&["http/1.1"]);
        let resumed = (0..20).filter(|_| {
            let client = https_over(tcp_from(NEIGHBOUR, edge.https), Some(HOST), config.clone());
            client.is_ok_and(|mut client| client.get(HOST, "/").status == 200)
        });
        assert_eq!(resumed.count(), 20);
        assert_eq!(handshakes(true).1, 10, "over QUIC");
    });
}

/// A flood of handshakes costs its signatures, and who comes again with a session asks for none.
#[test]
fn who_resumes_is_served_beside_a_flood_of_handshakes_with_an_rsa_key() {
    on_each_backend(|backend| {
        let sources =
            SourceLimits { handshakes: slow(2 * (1 + SOURCE_RSA4096_MORE)), ..SourceLimits::none() };
        let mut edge = TestEdge::with(backend, Setup { sources, ..Setup::default() });
        let served = edge.serve(&[HOST]);
        let minted = fleet::mint_with_key(served.tenant, &[HOST], KeyType::Rsa4096);
        edge.apply(vec![fleet::credential(served.lineage, 2, served.tenant, &minted.body)]);
        let before = refused(&edge, "source_handshakes");
        let (over, floods) = (AtomicBool::new(false), AtomicUsize::new(0));
        let config = any_version(&["http/1.1"]);
        let visit = || {
            let client = https_over(tcp_from(NEIGHBOUR, edge.https), Some(HOST), config.clone());
            let mut client = client.expect("the neighbour is served");
            assert_eq!(client.get(HOST, "/").status, 200);
            client.stream.conn.handshake_kind()
        };
        assert_ne!(visit(), Some(HandshakeKind::Resumed));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !over.load(Ordering::SeqCst) {
                        let _refused = https_from(GREEDY, &edge).is_err();
                        floods.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            wait_until("the flood has begun", || floods.load(Ordering::SeqCst) > 50);
            let resumed = (0..50).filter(|_| visit() == Some(HandshakeKind::Resumed)).count();
            over.store(true, Ordering::SeqCst);
            assert_eq!(resumed, 50);
        });
        assert!(
            refused(&edge, "source_handshakes") > before + 40.0,
            "it is stopped before its signatures are made"
        );
    });
}

#[test]
fn an_address_has_a_share_of_the_handshakes_and_a_larger_one_of_resumed_ones() {
    on_each_backend(|backend| {
        let edge = edge(backend, SourceLimits { handshakes: slow(8), ..SourceLimits::none() });
        let before = refused(&edge, "source_handshakes");
        let full = (0..20).filter(|_| https_from(GREEDY, &edge).is_ok()).count();
        assert_eq!(full, 8);
        assert!(refused(&edge, "source_handshakes") >= before + 12.0);

        // A client that keeps its tickets: the first handshake is a full one.
        let config = any_version(&["http/1.1"]);
        let resumed = (0..60).filter(|_| {
            let client = https_over(tcp_from(NEIGHBOUR, edge.https), Some(HOST), config.clone());
            // Tickets come with the first answer.
            client.is_ok_and(|mut client| client.get(HOST, "/").status == 200)
        });
        // 7 of 8 are left, each costs a quarter, and a whole one has to fit.
        assert_eq!(SOURCE_RESUMED_BACK, (3, 4));
        assert_eq!(resumed.count(), 1 + 7 * 4 - 3);
    });
}

#[test]
fn an_address_has_a_share_of_the_requests_and_its_connection_lives() {
    on_each_backend(|backend| {
        let edge = edge(backend, SourceLimits { requests: slow(5), ..SourceLimits::none() });
        let before = refused(&edge, "source_requests");
        let mut client = https_from(GREEDY, &edge).unwrap();
        let answers: Vec<_> = (0..8).map(|_| client.get(HOST, "/")).collect();
        let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [200, 200, 200, 200, 200, 429, 429, 429]);
        let retry_after: u64 = answers[7].header("retry-after").unwrap().parse().unwrap();
        assert!((1..=600).contains(&retry_after), "{retry_after}");
        assert_eq!(answers[7].header("cache-control"), Some("no-store"));
        assert_eq!(http2_get(edge.https, Some(HOST), HOST, "/").unwrap().status, 429);
        assert_eq!(http3_get(edge.https, Some(HOST), HOST, "/"), Ok(429));
        assert_eq!(plain(edge.http).get(HOST, "/").status, 429);
        assert_eq!(refused(&edge, "source_requests") - before, 6.0);
        assert_eq!(https_from(NEIGHBOUR, &edge).unwrap().get(HOST, "/").status, 200);
        let lines = edge.log_lines(12);
        assert_eq!(lines.iter().filter(|line| line["reason"] == "source_requests").count(), 6);
    });
}

/// An Initial packet may come from a forged address: what it begins is nobody's handshake until the address is shown.
#[test]
fn forged_addresses_spend_nobodys_share() {
    on_each_backend(|backend| {
        let edge = edge(backend, SourceLimits { handshakes: slow(2), ..SourceLimits::none() });
        let begun = initials(&edge, 10);
        wait_until("they are under way", || edge.edge.open_connections() >= 10);
        drop(begun);
        for _ in 0..2 {
            assert_eq!(http3_get(edge.https, Some(HOST), HOST, "/"), Ok(200));
        }
        // Over its share: it has to show its address, and is refused then.
        let retries = edge.metric("portico_edge_quic_retries_total");
        let refusals = refused(&edge, "source_handshakes");
        let error = http3_get(edge.https, Some(HOST), HOST, "/").unwrap_err();
        assert!(error.contains("refused"), "{error}");
        // Tests beside this one count in the same series.
        assert!(edge.metric("portico_edge_quic_retries_total") > retries);
        assert!(refused(&edge, "source_handshakes") > refusals);
        assert!(https_from(GREEDY, &edge).is_err(), "one share for all protocols");
        assert!(https_from(NEIGHBOUR, &edge).is_ok());
    });
}

/// First packets of so many clients that will never be heard of again, each from a port of its own.
fn initials(edge: &TestEdge, count: usize) -> Vec<UdpSocket> {
    runtime().block_on(async {
        let relay = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let tls = QuicClientConfig::try_from(any_version(&["h3"])).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(tls));
        let begin = |_| endpoint.connect_with(config.clone(), relay.local_addr().unwrap(), HOST).unwrap();
        let _begun: Vec<_> = (0..count).map(begin).collect();
        let (mut seen, mut sent) = (HashSet::new(), Vec::new());
        let mut packet = [0; 2048];
        while sent.len() < count {
            let length = relay.recv(&mut packet).await.unwrap();
            // A client's own connection id tells it (RFC 9000 section 17.2); a hello may take two packets.
            let id_length = usize::from(packet[5]);
            if seen.insert(packet[6..6 + id_length].to_vec()) {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                socket.send_to(&packet[..length], edge.https).unwrap();
                sent.push(socket);
            }
        }
        sent
    })
}
