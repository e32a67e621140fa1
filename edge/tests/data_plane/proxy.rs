//! Requests on their way to an origin and back.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use portico_edge::limits::{self, Deadlines};

use crate::client::{collect, http2, http2_get, https, runtime};
use crate::harness::{PATIENCE, Setup, TestEdge, on_each_backend, proxy_to, wait_until};
use crate::http3_client::Http3;
use crate::origin::{Origin, Reply, ok, tls_config};
use crate::routes::{PROTOCOLS, ask};
use crate::upstreams::proxy;

const HOST: &str = "shop.example";

fn edge_to(backend: portico_edge::io::Backend, origin: &Origin, setup: Setup) -> TestEdge {
    let mut edge = TestEdge::with(backend, setup);
    let url = origin.url();
    edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![proxy_to(&url)]);
    edge
}

fn impatient() -> Setup {
    let short = Duration::from_millis(300);
    let deadlines = Deadlines { origin_first_byte: short, origin_body_stall: short, ..Deadlines::default() };
    Setup { deadlines, ..Setup::default() }
}

#[test]
fn an_origin_sees_one_clean_message() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_to(backend, &origin, Setup::default());
        let mut client = https(edge.https, HOST);
        client.send(
            "GET /a?b=c HTTP/1.1\r\nHost: Shop.example:443\r\nConnection: x-hop, keep-alive\r\nX-Hop: 1\r\n\
             X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Kept: yes\r\nTE: trailers\r\nAccept: a\r\nAccept: b\r\n\r\n",
        );
        let answer = client.answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, "/a?b=c"));
        assert_eq!(answer.header("via"), Some("1.1 portico"));
        let message = origin.messages().pop().unwrap();
        assert_eq!(message.request_line, "GET /a?b=c HTTP/1.1");
        assert_eq!(message.all("host"), ["shop.example"]);
        assert_eq!(message.all("x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(message.all("x-forwarded-proto"), ["https"]);
        assert_eq!(message.all("x-forwarded-host"), ["shop.example"]);
        assert_eq!(message.all("forwarded"), ["for=127.0.0.1;host=\"shop.example\";proto=https"]);
        assert_eq!(message.all("via"), ["1.1 portico"]);
        assert_eq!(message.all("cdn-loop"), ["portico"]);
        assert_eq!(message.all("accept"), ["a", "b"]);
        assert_eq!(message.all("te"), ["trailers"]);
        assert_eq!(message.header("x-kept"), Some("yes"));
        assert_eq!(message.header("x-request-id").unwrap().len(), 32);
        for gone in ["x-hop", "connection", "content-length", "transfer-encoding"] {
            assert_eq!(message.header(gone), None, "{gone}");
        }
        assert!(origin.faults().is_empty(), "{:?}", origin.faults());
        let line = edge.log_lines(1).pop().unwrap();
        assert_eq!(line["origin"], origin.address.to_string());
    });
}

#[test]
fn a_route_may_name_another_host_to_its_origin() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let mut edge = TestEdge::with(backend, Setup { http3: true, ..Setup::default() });
        let route = proxy(&[origin.url()], |proxy| proxy.host_header = "in.example:8080".into());
        edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![route.clone()]);
        for protocol in PROTOCOLS {
            assert_eq!(ask(&edge, protocol, "GET", "/a", &[]).text(), "/a", "{protocol}");
            let message = origin.messages().pop().unwrap();
            assert_eq!(message.all("host"), ["in.example:8080"], "{protocol}");
            // The name that the visitor asked for is told beside it.
            assert_eq!(message.all("x-forwarded-host"), [HOST], "{protocol}");
            assert_eq!(message.all("forwarded"), [format!("for=127.0.0.1;host=\"{HOST}\";proto=https")]);
        }
        assert!(origin.faults().is_empty(), "{:?}", origin.faults());
    });
}

#[test]
fn a_tenants_proof_that_comes_through_us_is_answered_by_no_route() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_to(backend, &origin, Setup::default());
        let ask = |path: &str, line: &str| {
            let mut client = https(edge.https, HOST);
            client.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{line}\r\n"));
            client.answer().status
        };
        let file = "/.well-known/portico/0123456789abcdef";
        assert_eq!(ask(file, "CDN-Loop: portico\r\n"), 508);
        assert_eq!(ask(file, "CDN-Loop: other, Portico;x=y\r\n"), 508);
        assert!(origin.messages().is_empty(), "{:?}", origin.messages());
        // A visitor's request is nobody's proof, and another path may pass through several of us.
        assert_eq!(ask(file, ""), 200);
        assert_eq!(ask("/.well-known/other", "CDN-Loop: portico\r\n"), 200);
    });
}

#[test]
fn origin_connections_are_kept_and_never_shared_between_tenants() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let mut edge = TestEdge::start(backend);
        let url = origin.url();
        for name in ["a.example", "b.example"] {
            edge.serve_with(&[name], &[origin.grant()], |domain| domain.routes = vec![proxy_to(&url)]);
        }
        for number in 0..10 {
            let path = format!("/{number}");
            assert_eq!(https(edge.https, "a.example").get("a.example", &path).text(), path);
        }
        assert_eq!(origin.connections(), 1, "one connection served ten requests");
        assert_eq!(http2_get(edge.https, Some("b.example"), "b.example", "/x").unwrap().text(), "/x");
        assert_eq!(origin.connections(), 2, "another tenant has its own");
    });
}

#[test]
fn bodies_stream_both_ways_without_being_held() {
    on_each_backend(|backend| {
        // Reads nothing until it is told to: the client must be held back by the buffers between, not by memory.
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let gone = std::sync::Mutex::new(gone);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let origin = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            gone.lock().unwrap().recv().unwrap();
            let mut received = 0_usize;
            let mut buffer = vec![0; 64 * 1024];
            while received < TOTAL {
                received += stream.read(&mut buffer).unwrap();
            }
            stream.write_all(&ok("done")).unwrap();
            received
        });
        const TOTAL: usize = 48 * 1024 * 1024;
        let mut edge = TestEdge::start(backend);
        let url = format!("http://{address}");
        edge.serve_with(&[HOST], &[("127.0.0.0/8", address.port())], |domain| {
            domain.routes = vec![proxy_to(&url)]
        });
        let https_address = edge.https;
        let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = std::sync::Arc::clone(&sent);
        let client = std::thread::spawn(move || {
            let mut client = https(https_address, HOST);
            client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {TOTAL}\r\n\r\n"));
            let piece = vec![b'x'; 64 * 1024];
            for _ in 0..TOTAL / piece.len() {
                client.send(&piece);
                counted.fetch_add(piece.len(), std::sync::atomic::Ordering::SeqCst);
            }
            client.answer().text()
        });
        // It stops by itself: what has been taken stays the same over a while.
        let before = std::cell::Cell::new(usize::MAX);
        wait_until("the client is held back", || {
            let now = sent.load(std::sync::atomic::Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(250));
            before.replace(now) == now && now > 0
        });
        let taken = sent.load(std::sync::atomic::Ordering::SeqCst);
        assert!(taken < 24 * 1024 * 1024, "{taken} bytes were taken with nobody reading");
        go.send(()).unwrap();
        assert_eq!(client.join().unwrap(), "done");
        assert!(origin.join().unwrap() >= TOTAL);
    });
}

#[test]
fn a_large_answer_arrives_whole_on_both_protocols() {
    on_each_backend(|backend| {
        let body: String = (0..400_000).map(|number| char::from(b'a' + (number % 26) as u8)).collect();
        let expected = body.clone();
        let origin = Origin::start(move |_| Reply::Keep(ok(&body)));
        let edge = edge_to(backend, &origin, Setup::default());
        assert!(https(edge.https, HOST).get(HOST, "/").text() == expected);
        assert!(http2_get(edge.https, Some(HOST), HOST, "/").unwrap().text() == expected);
    });
}

#[test]
fn trailers_pass_in_both_directions() {
    on_each_backend(|backend| {
        let origin = Origin::start(|_| {
            Reply::Keep(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 6\r\n\r\n"
                    .to_vec(),
            )
        });
        let edge = edge_to(backend, &origin, Setup::default());
        let trailers = runtime().block_on(async {
            let frames = [Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"up")))];
            let body = StreamBody::new(tokio_stream::iter(frames));
            let mut sender = http2(edge.https, Some(HOST)).await.unwrap();
            let request =
                http::Request::post(format!("https://{HOST}/")).header("te", "trailers").body(body).unwrap();
            let response = sender.send_request(request).await.unwrap();
            response.into_body().collect().await.unwrap().trailers().cloned()
        });
        assert_eq!(trailers.unwrap()["x-sum"], "6");
        let message = origin.messages().pop().unwrap();
        assert_eq!(message.body, b"up");
        assert_eq!(message.header("transfer-encoding"), Some("chunked"), "a body of unknown length");
    });
}

/// More of them on one connection than may be given up.
#[test]
fn answers_that_end_with_trailers_are_whole() {
    on_each_backend(|backend| {
        let origin = Origin::start(|_| {
            Reply::Keep(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 6\r\n\r\n"
                    .to_vec(),
            )
        });
        let edge = edge_to(backend, &origin, Setup::default());
        let answers = limits::GIVEN_UP_MAX as usize + 20;
        runtime().block_on(async {
            let mut sender = http2(edge.https, Some(HOST)).await.unwrap();
            for number in 0..answers {
                let request = http::Request::get(format!("https://{HOST}/"));
                let request = request.body(http_body_util::Empty::<Bytes>::new()).unwrap();
                let response =
                    sender.send_request(request).await.unwrap_or_else(|error| panic!("{number}: {error}"));
                let body = response.into_body().collect().await.unwrap();
                assert_eq!(body.trailers().unwrap()["x-sum"], "6");
            }
        });
        let lines = edge.log_lines(answers);
        assert!(lines.iter().all(|line| line["complete"] == true), "{:?}", lines[0]);
        assert_eq!(origin.connections(), 1, "each leaves its connection to the next");
    });
}

/// With them a request is whole, and the origin's time to answer begins.
#[test]
fn requests_that_end_with_trailers_are_whole() {
    on_each_backend(|backend| {
        let origin = Origin::start(|_| Reply::Stall(Vec::new()));
        let edge = edge_to(backend, &origin, impatient());
        let status = runtime().block_on(async {
            let trailers = http::HeaderMap::from_iter([(
                http::HeaderName::from_static("x-sum"),
                http::HeaderValue::from_static("6"),
            )]);
            let frames = [Frame::data(Bytes::from_static(b"up")), Frame::trailers(trailers)];
            let body = StreamBody::new(tokio_stream::iter(frames.map(Ok::<_, std::io::Error>)));
            let mut sender = http2(edge.https, Some(HOST)).await.unwrap();
            let request = http::Request::post(format!("https://{HOST}/")).body(body).unwrap();
            sender.send_request(request).await.unwrap().status()
        });
        assert_eq!(status, 504);
        assert_eq!(edge.log_lines(1)[0]["reason"], "first_byte_timeout");
    });
}

#[test]
fn a_body_with_a_length_keeps_it_and_expect_is_answered_by_us() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_to(backend, &origin, Setup::default());
        let mut client = https(edge.https, HOST);
        client.send(format!(
            "PUT /x HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        ));
        assert!(client.head().unwrap().starts_with("HTTP/1.1 100"));
        assert_eq!(client.send("abc").answer().status, 200);
        let message = origin.messages().pop().unwrap();
        assert_eq!((message.body.as_slice(), message.header("content-length")), (&b"abc"[..], Some("3")));
        assert_eq!(message.header("expect"), None);
    });
}

#[test]
fn expect_is_answered_over_http3_when_the_body_is_wanted() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_to(backend, &origin, Setup { http3: true, ..Setup::default() });
        let asking = async {
            let mut client = Http3::connect(edge.https, Some(HOST)).await.unwrap();
            let ask = |length: u64| {
                let request = http::Request::put(format!("https://{HOST}/x"));
                let request = request.header("content-length", length).header("expect", "100-continue");
                request.body(()).unwrap()
            };
            let mut stream = client.sender.send_request(ask(3)).await.unwrap();
            assert_eq!(stream.recv_response().await.unwrap().status(), 100);
            stream.send_data(Bytes::from_static(b"abc")).await.unwrap();
            stream.finish().await.unwrap();
            assert_eq!(stream.recv_response().await.unwrap().status(), 200);
            let too_large = ask(limits::REQUEST_BODY_BYTES_MAX + 1);
            let mut stream = client.sender.send_request(too_large).await.unwrap();
            assert_eq!(stream.recv_response().await.unwrap().status(), 413, "and not asked for it");
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let asked = async { tokio::time::timeout(PATIENCE, asking).await };
        tokio::task::LocalSet::new().block_on(&runtime, asked).expect("in time");
        let [message] = &origin.messages()[..] else { panic!("{:?}", origin.messages()) };
        assert_eq!((message.body.as_slice(), message.header("expect")), (&b"abc"[..], None));
    });
}

#[test]
fn head_and_bodiless_answers_pass() {
    on_each_backend(|backend| {
        let origin = Origin::start(|message| {
            let line = message.request_line.as_str();
            Reply::Keep(if line.starts_with("HEAD") {
                b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n".to_vec()
            } else if line.contains("/204") {
                b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()
            } else {
                b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n".to_vec()
            })
        });
        let edge = edge_to(backend, &origin, Setup::default());
        let mut client = https(edge.https, HOST);
        client.send(format!("HEAD / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        assert_eq!(client.answer_to("HEAD").unwrap().header("content-length"), Some("1234"));
        assert_eq!(client.get(HOST, "/204").status, 204);
        assert_eq!(client.get(HOST, "/304").header("etag"), Some("\"x\""));
        assert_eq!(origin.connections(), 1, "none of them costs the origin's connection");
    });
}

#[test]
fn an_origin_that_refuses_stalls_or_talks_nonsense_gets_a_neutral_page() {
    on_each_backend(|backend| {
        let closed = portico_ports::reserve();
        let origin = Origin::start(|message| match message.request_line.split(' ').nth(1).unwrap() {
            "/stall" => Reply::Stall(Vec::new()),
            "/half" => Reply::Stall(b"HTTP/1.1 200 OK\r\nConte".to_vec()),
            "/nonsense" => Reply::Close(b"SSH-2.0-OpenSSH\r\n\r\n".to_vec()),
            "/close" => Reply::Close(Vec::new()),
            "/both" => Reply::Close(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n".to_vec()),
            "/101" => Reply::Close(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n".to_vec()),
            _ => Reply::Keep(ok("fine")),
        });
        let mut edge = edge_to(backend, &origin, impatient());
        edge.serve_with(&["refused.example"], &[("127.0.0.0/8", closed.port())], |domain| {
            domain.routes = vec![proxy_to(&format!("http://{closed}"))];
        });
        let answer = https(edge.https, "refused.example").get("refused.example", "/");
        assert_eq!(answer.status, 502);
        assert!(!answer.text().contains("127.0.0.1"), "no word about the origin: {}", answer.text());
        let table = [
            ("/stall", 504, "first_byte_timeout"),
            ("/half", 504, "first_byte_timeout"),
            ("/nonsense", 502, "protocol"),
            ("/close", 502, "closed"),
            ("/both", 502, "protocol"),
            ("/101", 502, ""),
        ];
        for (path, status, reason) in table {
            let answer = https(edge.https, HOST).get(HOST, path);
            assert_eq!(answer.status, status, "{path}");
            assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
            let line = edge.log_lines(1).into_iter().find(|line| line["target"] == path);
            let line = line.unwrap_or_else(|| {
                wait_until("the line is written", || {
                    edge.log_lines(1).iter().any(|line| line["target"] == path)
                });
                edge.log_lines(1).into_iter().find(|line| line["target"] == path).unwrap()
            });
            if !reason.is_empty() {
                assert_eq!(line["reason"], reason, "{path}");
            }
        }
        assert_eq!(https(edge.https, HOST).get(HOST, "/fine").text(), "fine", "and it goes on");
    });
}

#[test]
fn an_origin_that_lies_about_length_fools_nobody() {
    on_each_backend(|backend| {
        let origin = Origin::start(|message| {
            match message.request_line.split(' ').nth(1).unwrap() {
            "/short" => Reply::Close(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".to_vec()),
            "/long" => {
                Reply::Keep(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil".to_vec())
            }
            "/pause" => Reply::Stall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".to_vec()),
            path => Reply::Keep(ok(path)),
        }
        });
        let edge = edge_to(backend, &origin, impatient());
        for path in ["/short", "/pause"] {
            let mut client = https(edge.https, HOST);
            client.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
            let error = client.answer_to("GET").expect_err("the body is not whole");
            assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{path}: closed, not padded");
            assert!(http2_get(edge.https, Some(HOST), HOST, path).is_err(), "{path}: the stream is reset");
        }
        assert_eq!(https(edge.https, HOST).get(HOST, "/long").text(), "abc");
        for number in 0..3 {
            let path = format!("/after{number}");
            assert_eq!(
                https(edge.https, HOST).get(HOST, &path).text(),
                path,
                "what was too much answers nobody"
            );
        }
    });
}

#[test]
fn a_dead_kept_connection_is_tried_again_once_and_only_where_safe() {
    on_each_backend(|backend| {
        // Every connection serves one message and dies at the second, before a byte of an answer.
        let origin = Origin::start(|message| match message.number {
            0 => Reply::Keep(ok("first")),
            _ => Reply::Close(Vec::new()),
        });
        let edge = edge_to(backend, &origin, Setup::default());
        let mut client = https(edge.https, HOST);
        assert_eq!(client.get(HOST, "/").text(), "first");
        assert_eq!(client.get(HOST, "/").text(), "first", "sent again on a new connection");
        client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1\r\n\r\nx"));
        assert_eq!(client.answer().status, 502, "a POST may have been acted upon");
        let posts =
            origin.messages().iter().filter(|message| message.request_line.starts_with("POST")).count();
        assert_eq!(posts, 1, "never sent twice");
    });
}

#[test]
fn a_loop_through_the_edge_ends() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_to(backend, &origin, Setup::default());
        let mut client = https(edge.https, HOST);
        let loops = ["portico"; limits::CDN_LOOP_DEPTH_MAX].join(", ");
        client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nCDN-Loop: {loops}\r\n\r\n"));
        assert_eq!(client.answer().status, 508);
        assert!(origin.messages().is_empty());
    });
}

#[test]
fn https_origins_are_verified() {
    on_each_backend(|backend| {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
        let config = tls_config(certificate.der().clone(), &key);
        let config = std::sync::Arc::new(config);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let config = std::sync::Arc::clone(&config);
                std::thread::spawn(move || {
                    let session = rustls::ServerConnection::new(config).unwrap();
                    let mut stream = rustls::StreamOwned::new(session, socket);
                    let mut buffer = [0; 4096];
                    while stream.read(&mut buffer).is_ok_and(|count| count > 0) {
                        if stream.write_all(&ok("over TLS")).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        let route = proxy_to(&format!("https://{address}"));
        for (trusted, status) in [(true, 200), (false, 502)] {
            let mut roots = rustls::RootCertStore::empty();
            if trusted {
                roots.add(certificate.der().clone()).unwrap();
            }
            let mut edge = TestEdge::with(backend, Setup { origin_roots: roots, ..Setup::default() });
            edge.serve_with(&[HOST], &[("127.0.0.0/8", address.port())], |domain| {
                domain.routes = vec![route.clone()]
            });
            let answer = https(edge.https, HOST).get(HOST, "/");
            assert_eq!(answer.status, status, "trusted: {trusted}");
        }
    });
}

#[test]
fn a_websocket_becomes_a_tunnel_and_nothing_else_does() {
    on_each_backend(|backend| {
        let origin = Origin::start(|message| {
            if message.header("upgrade") != Some("websocket") {
                return Reply::Keep(ok(message.header("upgrade").unwrap_or("no upgrade")));
            }
            if message.request_line.contains("/refuse") {
                return Reply::Close(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno".to_vec());
            }
            Reply::Take(Box::new(|mut stream| {
                let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello";
                stream.write_all(head.as_bytes()).unwrap();
                let mut buffer = [0; 1024];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    stream.write_all(&buffer[..count].to_ascii_uppercase()).unwrap();
                }
            }))
        });
        let edge = edge_to(backend, &origin, Setup::default());
        let upgrade = |path: &str, protocol: &str| {
            format!(
                "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {protocol}\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
        };
        let mut client = https(edge.https, HOST);
        let answer = client.send(upgrade("/", "websocket")).answer();
        assert_eq!((answer.status, answer.header("upgrade")), (101, Some("websocket")));
        assert_eq!(client.exactly(5).unwrap(), b"hello", "what the origin sent behind its 101");
        for word in ["ping", "pong"] {
            client.send(word);
            assert_eq!(client.exactly(4).unwrap(), word.to_ascii_uppercase().as_bytes());
        }
        let message = &origin.messages()[0];
        assert_eq!(message.header("sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));

        let mut client = https(edge.https, HOST);
        assert_eq!(client.send(upgrade("/refuse", "websocket")).answer().status, 403);
        assert_eq!(client.get(HOST, "/").text(), "no upgrade", "the connection goes on as HTTP");
        let mut client = https(edge.https, HOST);
        assert_eq!(client.send(upgrade("/", "h2c")).answer().text(), "no upgrade", "h2c is not passed on");
        assert_eq!(client.get(HOST, "/").text(), "no upgrade");
    });
}

#[test]
fn many_streams_of_one_connection_are_served_side_by_side() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_to(backend, &origin, Setup::default());
        runtime().block_on(async {
            let sender = http2::<Full<Bytes>>(edge.https, Some(HOST)).await.unwrap();
            let requests = (0..50).map(|number| {
                let mut sender = sender.clone();
                async move {
                    let path = format!("/{number}");
                    let request =
                        http::Request::post(format!("https://{HOST}{path}")).body(Full::from("x")).unwrap();
                    let answer = collect(sender.send_request(request).await.unwrap()).await.unwrap();
                    assert_eq!((answer.status, answer.text()), (200, path));
                }
            });
            futures_util::future::join_all(requests).await;
        });
        assert!(origin.faults().is_empty(), "{:?}", origin.faults());
    });
}

/// A body without content-length under methods that seldom have one: whole at the origin, from every version.
#[test]
fn a_body_of_unknown_length_is_not_lost_under_any_method() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_to(backend, &origin, Setup::default());
        for method in ["GET", "HEAD", "DELETE", "POST"] {
            runtime().block_on(async {
                // The pieces come when the head is long at the origin: nothing of the body is known before.
                let (go, gone) = tokio::sync::oneshot::channel::<()>();
                let pieces = futures_util::stream::once(async move {
                    gone.await.unwrap();
                    Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"late body")))
                });
                let body = StreamBody::new(Box::pin(pieces));
                let mut sender = http2(edge.https, Some(HOST)).await.unwrap();
                let request = http::Request::builder()
                    .method(method)
                    .uri(format!("https://{HOST}/"))
                    .body(body)
                    .unwrap();
                let answering = sender.send_request(request);
                go.send(()).unwrap();
                assert_eq!(answering.await.unwrap().status(), 200, "{method}");
            });
            let message = origin.messages().pop().unwrap();
            assert_eq!(
                (message.header("transfer-encoding"), &message.body[..]),
                (Some("chunked"), &b"late body"[..]),
                "{method}"
            );
            let mut client = https(edge.https, HOST);
            let head = format!("{method} / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n");
            client.send(head).send("3\r\nabc\r\n0\r\n\r\n");
            assert_eq!(client.answer_to(method).unwrap().status, 200, "{method}");
            assert_eq!(origin.messages().pop().unwrap().body, b"abc", "{method}");
        }
        assert_eq!(http2_get(edge.https, Some(HOST), HOST, "/").unwrap().status, 200);
        let bare = origin.messages().pop().unwrap();
        assert_eq!((bare.header("transfer-encoding"), bare.header("content-length")), (None, None));
        assert!(origin.faults().is_empty(), "{:?}", origin.faults());
    });
}
