//! What one origin can take of an edge, reached.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Empty;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use portico_api::distribution as wire;
use portico_attacker::frame;
use portico_edge::io::Backend;
use portico_edge::limits::{self, Deadlines};

use crate::client::{http2, https, runtime};
use crate::endings::{NEVER, SHORT};
use crate::flood::{begun, headers};
use crate::harness::{PATIENCE, Setup, TestEdge, on_each_backend, wait_until};
use crate::origin::{Origin, Reply};
use crate::raw_http2::{self, ACK};
use crate::upstreams::proxy;

const HOST: &str = "shop.example";

fn edge(
    backend: Backend,
    (url, port): (String, u16),
    change: impl Fn(&mut Deadlines),
    protocol: wire::OriginProtocol,
) -> TestEdge {
    let mut deadlines = Deadlines::default();
    change(&mut deadlines);
    let mut edge = TestEdge::with(backend, Setup { deadlines, ..Setup::default() });
    let route = proxy(&[url], |proxy| proxy.protocol = protocol.into());
    edge.serve_with(&[HOST], &[("127.0.0.0/8", port)], |domain| domain.routes = vec![route.clone()]);
    edge
}

fn edge_to_http2(backend: Backend, origin: SocketAddr, change: impl Fn(&mut Deadlines)) -> TestEdge {
    edge(backend, (format!("http://{origin}"), origin.port()), change, wire::OriginProtocol::Http2)
}

#[test]
fn an_origin_that_does_not_end_its_handshake_is_given_up() {
    on_each_backend(|backend| {
        // The kernel connects; nobody is there to say a word of TLS.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap();
        let origin = (format!("https://{address}"), address.port());
        let quick = |deadlines: &mut Deadlines| deadlines.origin_connect = SHORT;
        let edge = edge(backend, origin, quick, wire::OriginProtocol::Auto);
        assert_eq!(https(edge.https, HOST).get(HOST, "/").status, 504);
        assert_eq!(edge.log_lines(1)[0]["reason"], "connect_timeout");
    });
}

/// So many fields as its path says, `date` among them.
fn fields(request: &Request<hyper::body::Incoming>) -> Response<Empty<Bytes>> {
    let count: usize = request.uri().path()[1..].parse().unwrap();
    let mut response = Response::new(Empty::new());
    for _ in 1..count {
        response.headers_mut().append("x", HeaderValue::from_static("y"));
    }
    response
}

fn http2_origin<F>(
    answer: impl Fn(Request<hyper::body::Incoming>, usize) -> F + Clone + Send + 'static,
) -> SocketAddr
where
    F: Future<Output = Response<Empty<Bytes>>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            for number in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                let answer = answer.clone();
                let service = service_fn(move |request| {
                    let answering = answer(request, number);
                    async move { Ok::<_, Infallible>(answering.await) }
                });
                let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .max_concurrent_streams(1000)
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(serving);
            }
        });
    });
    address
}

#[test]
fn an_answer_with_too_many_fields_is_none() {
    on_each_backend(|backend| {
        let http1 = Origin::start(|message| {
            let count: usize = message.request_line.split(['/', ' ']).nth(2).unwrap().parse().unwrap();
            let fields = "X: y\r\n".repeat(count - 1);
            Reply::Keep(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n").into_bytes())
        });
        let http2 = http2_origin(|request, _| async move { fields(&request) });
        let edges = [
            edge(backend, (http1.url(), http1.address.port()), |_| (), wire::OriginProtocol::Http1),
            edge_to_http2(backend, http2, |_| ()),
        ];
        for edge in edges {
            for (more, status) in [(0, 200), (1, 502)] {
                let path = format!("/{}", limits::ORIGIN_HEADER_FIELDS_MAX + more);
                assert_eq!(https(edge.https, HOST).get(HOST, &path).status, status, "{path}");
            }
        }
    });
}

const EARLY_HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n";

/// Sends until the edge takes no more; without an end that is a failure.
fn without_end(mut send: impl FnMut() -> std::io::Result<()>) -> bool {
    let deadline = portico_edge::clock::now() + PATIENCE;
    while portico_edge::clock::now() < deadline {
        if send().is_err() {
            return true;
        }
    }
    false
}

#[test]
fn interim_answers_have_an_end() {
    on_each_backend(|backend| {
        let (told, ended) = mpsc::channel();
        let told = Mutex::new(told);
        let few = usize::try_from(limits::ORIGIN_INTERIM_ANSWERS_MAX).unwrap();
        let origin = Origin::start(move |message| {
            if message.request_line.contains("/few") {
                return Reply::Keep([EARLY_HINTS.repeat(few), crate::origin::ok("few")].concat());
            }
            if message.request_line.contains("/one-more") {
                return Reply::Close([EARLY_HINTS.repeat(few + 1), crate::origin::ok("many")].concat());
            }
            let told = told.lock().unwrap().clone();
            Reply::Take(Box::new(move |mut stream| {
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                let many = EARLY_HINTS.repeat(1000);
                let ends = without_end(|| std::io::Write::write_all(&mut stream, &many));
                told.send(ends).unwrap();
            }))
        });
        let edge = edge(backend, (origin.url(), origin.address.port()), |_| (), wire::OriginProtocol::Http1);
        for _ in 0..2 {
            assert_eq!(https(edge.https, HOST).get(HOST, "/few").text(), "few", "each request has its own");
        }
        for (number, path) in ["/one-more", "/many"].into_iter().enumerate() {
            assert_eq!(https(edge.https, HOST).get(HOST, path).status, 502, "{path}");
            assert_eq!(edge.log_lines(3 + number)[2 + number]["reason"], "bad_answer");
        }
        assert!(ended.recv_timeout(PATIENCE).unwrap(), "the edge reads on");
        let mut client = https(edge.https, HOST);
        client.send(format!(
            "GET /tunnel HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ));
        assert_eq!(client.answer().status, 502);
        assert!(ended.recv_timeout(PATIENCE).unwrap(), "the edge reads on");
        assert_eq!(https(edge.https, HOST).get(HOST, "/few").text(), "few");
    });
}

#[test]
fn interim_answers_over_http2_have_an_end() {
    on_each_backend(|backend| {
        let (told, ended) = mpsc::channel();
        let told = Mutex::new(told);
        let origin = raw_http2::start(move |mut connection| {
            connection.settings()?;
            // 103 by a literal value of the field :status (RFC 7541 section 6.2.2).
            let hints = |stream| frame::frame(frame::HEADERS, frame::END_HEADERS, stream, b"\x08\x03103");
            for _ in 0..3 {
                let stream = connection.next(frame::HEADERS)?.stream;
                for _ in 0..limits::ORIGIN_INTERIM_ANSWERS_MAX {
                    connection.send(hints(stream))?;
                }
                connection.ok(stream, frame::END_STREAM)?;
            }
            let many = hints(connection.next(frame::HEADERS)?.stream).repeat(1000);
            let ends = without_end(|| connection.send(&many));
            told.lock().unwrap().send(ends).unwrap();
            Ok(())
        });
        let edge = edge_to_http2(backend, origin, |_| ());
        for status in [200, 200, 200, 502] {
            assert_eq!(https(edge.https, HOST).get(HOST, "/").status, status);
        }
        assert_eq!(edge.log_lines(4)[3]["reason"], "bad_answer");
        assert!(ended.recv_timeout(PATIENCE).unwrap(), "the edge reads on");
    });
}

/// What is under way on each connection of an origin.
#[derive(Default)]
struct UnderWay {
    now: Mutex<Vec<usize>>,
    most: AtomicUsize,
    answered: AtomicUsize,
}

impl UnderWay {
    fn begin(&self, connection: usize) {
        let mut now = self.now.lock().unwrap();
        let length = now.len().max(connection + 1);
        now.resize(length, 0);
        now[connection] += 1;
        self.most.fetch_max(now[connection], Ordering::SeqCst);
    }

    fn end(&self, connection: usize) {
        self.now.lock().unwrap()[connection] -= 1;
        self.answered.fetch_add(1, Ordering::SeqCst);
    }

    fn all(&self) -> Vec<usize> {
        self.now.lock().unwrap().clone()
    }
}

#[test]
fn connections_to_an_origin_and_streams_on_each_are_bounded() {
    on_each_backend(|backend| {
        let under_way = Arc::<UnderWay>::default();
        let (open, opened) = tokio::sync::watch::channel(false);
        let seen = Arc::clone(&under_way);
        let origin = http2_origin(move |_, connection| {
            let (seen, mut opened) = (Arc::clone(&seen), opened.clone());
            async move {
                seen.begin(connection);
                opened.wait_for(|open| *open).await.unwrap();
                seen.end(connection);
                Response::new(Empty::new())
            }
        });
        let edge = edge_to_http2(backend, origin, |deadlines| deadlines.origin_connect = NEVER);
        let all = limits::ORIGIN_H2_CONNECTIONS_PER_KEY_MAX * limits::ORIGIN_H2_STREAMS_MAX;
        runtime().block_on(async {
            let mut asking = Vec::new();
            let begun = asking_all(&edge, all + 40, &mut asking);
            tokio::time::timeout(PATIENCE, begun).await.unwrap();
            let full = async {
                while under_way.all().iter().sum::<usize>() < all {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            tokio::time::timeout(PATIENCE, full).await.unwrap();
            open.send(true).unwrap();
            for one in asking {
                assert_eq!(tokio::time::timeout(PATIENCE, one).await.unwrap().unwrap(), 200);
            }
        });
        assert_eq!(under_way.all().len(), limits::ORIGIN_H2_CONNECTIONS_PER_KEY_MAX);
        assert_eq!(under_way.most.load(Ordering::SeqCst), limits::ORIGIN_H2_STREAMS_MAX);
        assert_eq!(under_way.answered.load(Ordering::SeqCst), all + 40, "those that had to wait as well");
    });
}

/// Over as many connections as that takes.
async fn asking_all(edge: &TestEdge, count: usize, asking: &mut Vec<tokio::task::JoinHandle<u16>>) {
    let each = usize::try_from(limits::H2_STREAMS_MAX).unwrap();
    while asking.len() < count {
        let sender = http2::<Empty<Bytes>>(edge.https, Some(HOST)).await.unwrap();
        for _ in 0..each.min(count - asking.len()) {
            let mut sender = sender.clone();
            asking.push(tokio::spawn(async move {
                let request = Request::get(format!("https://{HOST}/")).body(Empty::new()).unwrap();
                sender.send_request(request).await.unwrap().status().as_u16()
            }));
        }
    }
}

#[test]
fn an_origin_that_has_not_said_how_many_streams_it_takes_gets_few() {
    on_each_backend(|backend| {
        let (told, seen) = mpsc::channel();
        let told = Mutex::new(told);
        let origin = raw_http2::start(move |mut connection| {
            let few = limits::ORIGIN_H2_STREAMS_BEFORE_SETTINGS;
            let mut streams = Vec::new();
            while streams.len() < few {
                streams.push(connection.next(frame::HEADERS)?.stream);
            }
            for _ in 0..20 {
                let more = connection.before_pong(frame::HEADERS)?;
                told.lock().unwrap().send(more).unwrap();
            }
            connection.settings()?;
            while streams.len() < 5 * few {
                streams.push(connection.next(frame::HEADERS)?.stream);
            }
            for stream in streams {
                connection.ok(stream, frame::END_STREAM)?;
            }
            connection.next(frame::GOAWAY).map(drop)
        });
        let edge = edge_to_http2(backend, origin, |_| ());
        runtime().block_on(async {
            let mut asking = Vec::new();
            asking_all(&edge, 5 * limits::ORIGIN_H2_STREAMS_BEFORE_SETTINGS, &mut asking).await;
            for one in asking {
                assert_eq!(tokio::time::timeout(PATIENCE, one).await.unwrap().unwrap(), 200);
            }
        });
        let more: usize = seen.try_iter().sum();
        assert_eq!(more, 0, "more than it may be sent before it says how many it takes");
    });
}

#[test]
fn an_origin_cannot_send_ahead_of_a_client_that_does_not_read() {
    on_each_backend(|backend| {
        let (told, seen) = mpsc::channel();
        let told = Mutex::new(told);
        let origin = raw_http2::start(move |mut connection| {
            connection.settings()?;
            let stream = connection.next(frame::HEADERS)?.stream;
            connection.ok(stream, 0)?;
            // As much as ten times the window, whatever the edge says of windows.
            let piece = frame::frame(frame::DATA, 0, stream, &[b'x'; 16 * 1024]);
            for _ in 0..10 * limits::ORIGIN_H2_STREAM_WINDOW_BYTES / (16 * 1024) {
                connection.send(&piece)?;
            }
            let reset = connection.next(frame::RST_STREAM)?;
            told.lock().unwrap().send((reset.stream == stream, reset.payload)).unwrap();
            Ok(())
        });
        let edge = edge_to_http2(backend, origin, |_| ());
        // Its own window is 64 KiB, and it never says that it has read.
        let mut client = begun(&edge);
        client.send(headers(1));
        let (same, code) = seen.recv_timeout(PATIENCE).expect("the edge holds all of it");
        // FLOW_CONTROL_ERROR (RFC 9113 section 7).
        assert_eq!((same, code), (true, vec![0, 0, 0, 3]));
        drop(client);
    });
}

#[test]
fn a_dead_connection_to_an_origin_is_found_by_a_ping_and_a_slow_origin_is_not_taken_for_dead() {
    on_each_backend(|backend| {
        let pings = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&pings);
        let dead = raw_http2::start(move |mut connection| {
            connection.settings()?;
            connection.next(frame::HEADERS)?;
            loop {
                connection.next(frame::PING)?;
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        let quick = |deadlines: &mut Deadlines| {
            deadlines.origin_first_byte = NEVER;
            (deadlines.origin_h2_ping_interval, deadlines.origin_h2_ping) = (SHORT, SHORT);
        };
        let edge = edge_to_http2(backend, dead, quick);
        assert_eq!(https(edge.https, HOST).get(HOST, "/").status, 502);
        assert!(pings.load(Ordering::SeqCst) > 0);

        let slow = raw_http2::start(move |mut connection| {
            connection.settings()?;
            let stream = connection.next(frame::HEADERS)?.stream;
            for _ in 0..3 {
                let ping = connection.next(frame::PING)?;
                connection.send(frame::frame(frame::PING, ACK, 0, &ping.payload))?;
            }
            connection.ok(stream, frame::END_STREAM)?;
            connection.next(frame::GOAWAY).map(drop)
        });
        // Only a failure takes as long as this one waits for its pong.
        let edge = edge_to_http2(backend, slow, |deadlines| {
            (deadlines.origin_h2_ping_interval, deadlines.origin_h2_ping) = (SHORT, NEVER);
        });
        assert_eq!(https(edge.https, HOST).get(HOST, "/").status, 200);
        wait_until("it is over", || edge.edge.open_connections() == 0);
    });
}
