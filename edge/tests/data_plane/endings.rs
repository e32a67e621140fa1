//! How long a connection may last when nobody wants anything of it any more, and how much of one client may be open.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::Empty;
use portico_edge::io::Backend;
use portico_edge::limits::{self, Deadlines};
use quinn::crypto::rustls::QuicClientConfig;
use tokio::task::LocalSet;

use crate::client::{Http2Sender, Https, any_version, http2, https, runtime, try_https};
use crate::harness::{PATIENCE, Setup, TestEdge, on_each_backend, wait_until};
use crate::http3_client::Http3;

const HOST: &str = "shop.example";
/// Longer than any test is patient.
pub const NEVER: Duration = Duration::from_secs(600);
pub const SHORT: Duration = Duration::from_millis(100);

/// An edge that ends nothing because it is idle.
fn edge(backend: Backend, change: impl Fn(&mut Deadlines)) -> TestEdge {
    let mut deadlines = Deadlines { idle: NEVER, ..Deadlines::default() };
    change(&mut deadlines);
    let mut edge = TestEdge::with(backend, Setup { deadlines, http3: true, ..Setup::default() });
    edge.serve(&[HOST]);
    edge
}

fn new_http1(edge: &TestEdge) -> Https {
    try_https(edge.https, Some(HOST), any_version(&["http/1.1"])).unwrap()
}

async fn quic(edge: &TestEdge) -> (quinn::Endpoint, quinn::Connection) {
    let crypto = QuicClientConfig::try_from(any_version(&["h3"])).unwrap();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let connection = endpoint.connect_with(config, edge.https, HOST).unwrap().await.unwrap();
    (endpoint, connection)
}

fn on_local<F: Future>(test: F) -> F::Output {
    LocalSet::new()
        .block_on(&runtime(), async { tokio::time::timeout(PATIENCE, test).await.expect("in time") })
}

async fn until_closed(sender: &Http2Sender<Empty<Bytes>>) {
    while !sender.is_closed() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn begin_drain(edge: &TestEdge) {
    edge.switch.begin();
    wait_until("no new connection is taken", || {
        std::net::TcpStream::connect_timeout(&edge.https, Duration::from_millis(200)).is_err()
    });
}

#[test]
fn a_refused_client_that_keeps_its_end_open_is_let_go() {
    on_each_backend(|backend| {
        for draining in [false, true] {
            let edge = edge(backend, |deadlines| {
                deadlines.drain_patience = NEVER;
                (deadlines.linger, deadlines.linger_draining) =
                    if draining { (NEVER, SHORT) } else { (SHORT, NEVER) };
            });
            let mut client = new_http1(&edge);
            if draining {
                begin_drain(&edge);
            }
            client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: some\r\n\r\n"));
            assert_eq!(client.answer().status, 400);
            assert!(client.closes(), "the edge has said its last");
            wait_until("the edge waits no longer", || edge.edge.open_connections() == 0);
            drop(client);
        }
    });
}

#[test]
fn a_drain_waits_for_a_first_request_as_long_as_was_said_and_no_longer() {
    on_each_backend(|backend| {
        let patient = edge(backend, |deadlines| deadlines.drain_patience = NEVER);
        let mut late = new_http1(&patient);
        begin_drain(&patient);
        let answer = late.get(HOST, "/");
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));

        let quick = edge(backend, |deadlines| deadlines.drain_patience = SHORT);
        let mut http1 = new_http1(&quick);
        on_local(async {
            let http2 = http2::<Empty<Bytes>>(quick.https, Some(HOST)).await.unwrap();
            let (_endpoint, http3) = quic(&quick).await;
            quick.switch.begin();
            http3.closed().await;
            until_closed(&http2).await;
        });
        assert!(http1.closes());
        wait_until("the worker has ended", || quick.workers.iter().all(JoinHandle::is_finished));
    });
}

#[test]
fn an_old_connection_ends_with_its_next_answer_whatever_it_speaks() {
    on_each_backend(|backend| {
        let edge = edge(backend, |deadlines| deadlines.connection_age = Duration::ZERO);
        let mut client = https(edge.https, HOST);
        let answer = client.get(HOST, "/");
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
        assert!(client.closes());
        on_local(async {
            let mut sender = http2::<Empty<Bytes>>(edge.https, Some(HOST)).await.unwrap();
            let request = http::Request::get(format!("https://{HOST}/")).body(Empty::new()).unwrap();
            assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
            until_closed(&sender).await;
            let mut client = Http3::connect(edge.https, Some(HOST)).await.unwrap();
            let request = http::Request::get(format!("https://{HOST}/")).body(()).unwrap();
            assert_eq!(client.ask(request).await.unwrap().unwrap().status, 200);
            client.connection.closed().await;
        });
    });
}

#[test]
fn a_client_of_http3_that_stays_after_goaway_is_closed() {
    on_each_backend(|backend| {
        let edge = edge(backend, |deadlines| {
            (deadlines.drain_patience, deadlines.h3_close_linger) = (Duration::ZERO, SHORT);
        });
        on_local(async {
            // It speaks no HTTP/3 at all, so nothing of GOAWAY moves it.
            let (_endpoint, connection) = quic(&edge).await;
            edge.switch.begin();
            let quinn::ConnectionError::ApplicationClosed(close) = connection.closed().await else {
                panic!("not closed by the edge");
            };
            // H3_NO_ERROR (RFC 9114 section 8.1).
            assert_eq!(close.error_code, 0x100_u32.into());
        });
        wait_until("the worker has ended", || edge.workers.iter().all(JoinHandle::is_finished));
    });
}

#[test]
fn streams_of_one_quic_connection_are_bounded() {
    on_each_backend(|backend| {
        let edge = edge(backend, |_| ());
        on_local(async {
            let (_endpoint, connection) = quic(&edge).await;
            let requests: Vec<_> =
                std::iter::from_fn(|| connection.open_bi().now_or_never()).take(1000).collect();
            assert_eq!(requests.len(), usize::try_from(limits::H3_STREAMS_MAX).unwrap());
            let others: Vec<_> =
                std::iter::from_fn(|| connection.open_uni().now_or_never()).take(1000).collect();
            assert_eq!(others.len(), usize::try_from(limits::H3_CONTROL_STREAMS_MAX).unwrap());
            assert!(requests.iter().all(Result::is_ok) && others.iter().all(Result::is_ok));
        });
    });
}
