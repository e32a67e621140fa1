//! Requests whose bodies come slowly, or are taken slowly: who is waited for, and who is to blame.

use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use portico_edge::io::Backend;
use portico_edge::limits::Deadlines;

use crate::client::{collect, http2, https, runtime};
use crate::harness::{PATIENCE, Setup, TestEdge, on_each_backend};
use crate::http3_client::Http3;
use crate::origin::{Origin, Reply, ok};
use crate::upstreams::proxy;

const HOST: &str = "shop.example";
const SHORT: Duration = Duration::from_secs(1);
/// An upload in this many pieces, with this pause before each, takes more than thrice as long as an origin may.
const PIECES: usize = 20;
const PAUSE: Duration = Duration::from_millis(150);

fn edge(backend: Backend, setup: Setup, origins: &[SocketAddr]) -> TestEdge {
    let mut edge = TestEdge::with(backend, setup);
    let urls: Vec<String> = origins.iter().map(|address| format!("http://{address}")).collect();
    let grants: Vec<_> = origins.iter().map(|address| ("127.0.0.0/8", address.port())).collect();
    let route = proxy(&urls, |_| ());
    edge.serve_with(&[HOST], &grants, |domain| domain.routes = vec![route.clone()]);
    edge
}

/// Answers with `name` and the length of the body, as soon as it has all of it.
fn counting(name: &'static str) -> Origin {
    Origin::start(move |message| Reply::Keep(ok(&format!("{name} {}", message.body.len()))))
}

/// An origin that answers a GET with `name`, and does with all else as it is told, from the end of the head on.
pub fn raw(name: &'static str, serve: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let serve = serve.clone();
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") {
                    if stream.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    head.push(byte[0]);
                }
                if head.starts_with(b"GET") {
                    let _ = stream.write_all(&ok(name));
                } else {
                    serve(stream);
                }
            });
        }
    });
    address
}

fn impatient() -> Setup {
    Setup {
        http3: true,
        deadlines: Deadlines { origin_first_byte: SHORT, ..Deadlines::default() },
        ..Setup::default()
    }
}

/// Ten bytes at a time. The answer may come before the end.
fn drip(address: SocketAddr) -> u16 {
    let mut client = https(address, HOST);
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n", PIECES * 10));
    for _ in 0..PIECES {
        std::thread::sleep(PAUSE);
        if client.stream.write_all(b"0123456789").is_err() {
            break;
        }
    }
    client.answer().status
}

async fn drip_http2(address: SocketAddr) -> String {
    let mut sender = http2(address, Some(HOST)).await.unwrap();
    let pieces = Box::pin(stream::unfold(0, |sent| async move {
        tokio::time::sleep(PAUSE).await;
        let piece = Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"0123456789")));
        (sent < PIECES).then_some((piece, sent + 1))
    }));
    let request = http::Request::post(format!("https://{HOST}/")).body(StreamBody::new(pieces)).unwrap();
    collect(sender.send_request(request).await.unwrap()).await.unwrap().text()
}

async fn drip_http3(address: SocketAddr) -> String {
    let mut client = Http3::connect(address, Some(HOST)).await.unwrap();
    let request = http::Request::post(format!("https://{HOST}/")).body(()).unwrap();
    let mut stream = client.sender.send_request(request).await.unwrap();
    for _ in 0..PIECES {
        tokio::time::sleep(PAUSE).await;
        stream.send_data(Bytes::from_static(b"0123456789")).await.unwrap();
    }
    stream.finish().await.unwrap();
    let status = stream.recv_response().await.unwrap().status();
    client.close();
    status.to_string()
}

#[test]
fn an_upload_that_takes_longer_than_an_origin_may_is_not_the_origins_delay() {
    on_each_backend(|backend| {
        let origin = counting("origin");
        let edge = edge(backend, impatient(), &[origin.address]);
        assert_eq!(drip(edge.https), 200);
        let all = format!("origin {}", PIECES * 10);
        let http2 = async { tokio::time::timeout(PATIENCE, drip_http2(edge.https)).await };
        assert_eq!(runtime().block_on(http2).unwrap(), all);
        let local = tokio::task::LocalSet::new();
        let http3 = async { tokio::time::timeout(PATIENCE, drip_http3(edge.https)).await };
        assert_eq!(local.block_on(&runtime(), http3).unwrap(), "200 OK");
        for line in edge.log_lines(3) {
            assert_eq!(line["reason"], serde_json::Value::Null, "{line}");
            let answering = Duration::from_micros(line["origin_first_byte_us"].as_u64().unwrap());
            assert!(answering < PAUSE * u32::try_from(PIECES).unwrap(), "without the upload: {line}");
        }
    });
}

#[test]
fn slow_uploads_eject_no_origin() {
    on_each_backend(|backend| {
        let [one, two] = ["one", "two"].map(counting);
        let edge = edge(backend, impatient(), &[one.address, two.address]);
        let address = edge.https;
        let clients: Vec<_> = (0..24).map(|_| std::thread::spawn(move || drip(address))).collect();
        for client in clients {
            assert_eq!(client.join().unwrap(), 200);
        }
        both_are_asked(&edge, ["one 0", "two 0"]);
    });
}

/// Servers end what comes too slowly, and what is too large for them, some without a word.
#[test]
fn an_origin_that_ends_uploads_before_they_are_whole_is_not_ejected() {
    on_each_backend(|backend| {
        let strict = raw("strict", |mut stream| {
            let _ = stream.read(&mut [0; 16]);
        });
        // Waits for nothing, and says so.
        let other = raw("other", |mut stream| {
            let _ = stream.write_all(&ok("taken"));
            let _ = stream.read(&mut [0; 16]);
        });
        let edge = edge(backend, impatient(), &[strict, other]);
        let mut refused = 0;
        while refused < 20 {
            let mut client = https(edge.https, HOST);
            client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 11\r\n\r\n0123456789"));
            refused += u32::from(client.answer().status == 502);
        }
        both_are_asked(&edge, ["strict", "other"]);
    });
}

/// With as many tries that neither is missed by chance.
fn both_are_asked(edge: &TestEdge, names: [&str; 2]) {
    let answers: Vec<_> = (0..50).map(|_| https(edge.https, HOST).get(HOST, "/").text()).collect();
    for name in names {
        assert!(answers.iter().any(|answer| answer == name), "{name} gets no requests: {answers:?}");
    }
}

#[test]
fn an_origin_that_takes_no_body_is_told_from_a_client_that_sends_none() {
    on_each_backend(|backend| {
        let deaf = raw("deaf", |mut stream| {
            std::thread::sleep(PATIENCE);
            let _ = stream.read(&mut [0; 16]);
        });
        // The last for whoever goes on sending behind an answer that it does not read.
        let (origin_write_stall, body_stall, idle) = (SHORT, 2 * SHORT, 2 * SHORT);
        let deadlines = Deadlines { origin_write_stall, body_stall, idle, ..Deadlines::default() };
        let edge = edge(backend, Setup { deadlines, ..Setup::default() }, &[deaf]);
        let post =
            |length: usize| format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n");
        // More than all buffers on the way hold.
        let mut client = https(edge.https, HOST);
        client.send(post(64 << 20));
        let piece = vec![0; 1 << 20];
        let sent = (0..64).take_while(|_| client.stream.write_all(&piece).is_ok()).count();
        assert!(sent < 64, "nobody reads so much");
        assert_eq!(edge.log_lines(1)[0]["reason"], "write_stall");
        assert_eq!(edge.log_lines(1)[0]["status"], 504);

        let mut client = https(edge.https, HOST);
        client.send(post(10)).send("abc");
        assert_eq!(client.answer().status, 408);
        assert_eq!(edge.log_lines(2)[1]["reason"], "request_body_stalled");
    });
}

/// The client's time to go on counts from when its last piece was taken.
#[test]
fn an_origin_that_pauses_within_an_upload_does_not_make_the_client_late() {
    on_each_backend(|backend| {
        let deadlines = Deadlines { body_stall: SHORT, ..Deadlines::default() };
        let slow = raw("slow", |mut stream| {
            std::thread::sleep(3 * SHORT);
            let mut left = 32 << 20;
            let mut buffer = vec![0; 1 << 20];
            while left > 0 {
                match stream.read(&mut buffer) {
                    Ok(count) if count > 0 => left -= count,
                    _ => return,
                }
            }
            let _ = stream.write_all(&ok("taken"));
        });
        let edge = edge(backend, Setup { deadlines, ..Setup::default() }, &[slow]);
        let mut client = https(edge.https, HOST);
        client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n", 32 << 20));
        client.send(b"first");
        // The body's deadline is armed, and what follows fills all buffers on the way.
        std::thread::sleep(SHORT / 3);
        client.send(vec![0; (32 << 20) - 5]);
        assert_eq!(client.answer().text(), "taken");
    });
}
