//! WebSocket over HTTP/2, and with a client that others have written.

use std::cell::Cell;
use std::io::{Read as _, Write as _};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use portico_edge::io::Backend;
use portico_edge::limits::{self, Deadlines};
use portico_edge::live::{Suspension, SuspensionMode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::client::{Http2Sender, http2, https, runtime};
use crate::harness::{Setup, TestEdge, on_each_backend, proxy_to, wait_until};
use crate::origin::{Message, Origin, Reply, ok};

const HOST: &str = "shop.example";

fn accept_of(message: &Message) -> String {
    let text =
        format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", message.header("sec-websocket-key").unwrap());
    BASE64_STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

/// Sends everything back in capitals, without a look at frames.
fn shouting() -> Origin {
    Origin::start(|message| {
        let path = message.request_line.split(' ').nth(1).unwrap_or_default().to_owned();
        if path == "/plain" || message.header("upgrade") != Some("websocket") {
            return Reply::Keep(ok("plain"));
        }
        if path == "/refuse" {
            return Reply::Close(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno".to_vec());
        }
        if let Some(bytes) = path.strip_prefix("/refuse-at-length-") {
            let head = format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {bytes}\r\n\r\n").into_bytes();
            return Reply::Close([head, vec![b'x'; bytes.parse().unwrap()]].concat());
        }
        let last_word = path == "/last-word";
        let accept = if path == "/lie" { "bm9ib2R5".to_owned() } else { accept_of(message) };
        Reply::Take(Box::new(move |mut stream| {
            let head = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\nhello"
            );
            stream.write_all(head.as_bytes()).unwrap();
            if last_word {
                // Only when the client has said all that it has to say.
                let mut heard = Vec::new();
                stream.read_to_end(&mut heard).unwrap();
                stream.write_all(&heard.to_ascii_uppercase()).unwrap();
                return;
            }
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..count].to_ascii_uppercase()).is_err() {
                    return;
                }
            }
        }))
    })
}

fn edge_to(backend: Backend, origin: &Origin) -> TestEdge {
    let mut edge = TestEdge::with(backend, Setup::default());
    let route = proxy_to(&origin.url());
    edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![route.clone()]);
    edge
}

async fn connect(
    sender: &mut Http2Sender<Empty<Bytes>>,
    path: &str,
    protocol: &'static str,
) -> Response<Incoming> {
    let request = Request::builder().method(Method::CONNECT).uri(format!("https://{HOST}{path}"));
    let request = request.header("sec-websocket-version", "13").header("sec-websocket-protocol", "chat");
    let mut request = request.body(Empty::new()).unwrap();
    request.extensions_mut().insert(hyper::ext::Protocol::from_static(protocol));
    sender.ready().await.unwrap();
    sender.send_request(request).await.unwrap()
}

#[test]
fn a_stream_of_http2_becomes_a_tunnel() {
    on_each_backend(|backend| {
        let origin = shouting();
        let edge = edge_to(backend, &origin);
        runtime().block_on(async {
            let mut sender = http2::<Empty<Bytes>>(edge.https, Some(HOST)).await.unwrap();
            // The server's settings say that it may be asked; an exchange brings them for sure.
            let get = Request::get(format!("https://{HOST}/")).body(Empty::new()).unwrap();
            assert_eq!(sender.send_request(get).await.unwrap().status(), 200);
            let answer = connect(&mut sender, "/", "websocket").await;
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["sec-websocket-protocol"], "chat");
            for gone in ["upgrade", "connection", "sec-websocket-accept"] {
                assert!(!answer.headers().contains_key(gone), "{gone}");
            }
            let mut tunnel = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
            let mut buffer = [0; 5];
            tunnel.read_exact(&mut buffer).await.unwrap();
            assert_eq!(&buffer, b"hello", "what the origin sent behind its 101");
            for word in ["about", "other"] {
                tunnel.write_all(word.as_bytes()).await.unwrap();
                tunnel.flush().await.unwrap();
                tunnel.read_exact(&mut buffer).await.unwrap();
                assert_eq!(buffer, word.to_ascii_uppercase().as_bytes());
            }
            let get = Request::get(format!("https://{HOST}/")).body(Empty::new()).unwrap();
            assert_eq!(sender.send_request(get).await.unwrap().status(), 200, "beside the tunnel");
            tunnel.shutdown().await.unwrap();
            let mut rest = Vec::new();
            tunnel.read_to_end(&mut rest).await.unwrap();
            assert!(rest.is_empty());
        });
        let message = &origin.messages()[1];
        assert_eq!(message.request_line, "GET / HTTP/1.1");
        assert_eq!(message.header("upgrade"), Some("websocket"));
        assert_eq!(message.header("x-forwarded-proto"), Some("https"));
    });
}

/// The tunnel of a connection's first stream but one, which says hello.
async fn tunnel(edge: &TestEdge, path: &str) -> TokioIo<hyper::upgrade::Upgraded> {
    let mut sender = http2::<Empty<Bytes>>(edge.https, Some(HOST)).await.unwrap();
    let get = Request::get(format!("https://{HOST}/")).body(Empty::new()).unwrap();
    assert_eq!(sender.send_request(get).await.unwrap().status(), 200);
    let answer = connect(&mut sender, path, "websocket").await;
    assert_eq!(answer.status(), 200);
    let mut tunnel = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    let mut hello = [0; 5];
    tunnel.read_exact(&mut hello).await.unwrap();
    tunnel
}

#[test]
fn the_origins_last_word_reaches_a_client_that_has_ended_its_half() {
    on_each_backend(|backend| {
        let origin = shouting();
        let edge = edge_to(backend, &origin);
        runtime().block_on(async {
            // Chromium sends its Close with END_STREAM, and takes a tunnel without the origin's Close for a broken one.
            let mut tunnel = tunnel(&edge, "/last-word").await;
            tunnel.write_all(b"close").await.unwrap();
            tunnel.shutdown().await.unwrap();
            let mut rest = Vec::new();
            tunnel.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"CLOSE");
        });
    });
}

#[test]
fn an_origin_that_stays_when_its_client_has_ended_is_left() {
    on_each_backend(|backend| {
        let (keep, _kept) = channel();
        let keep = Mutex::new(keep);
        let origin = Origin::start(move |message| {
            if message.header("upgrade").is_none() {
                return Reply::Keep(ok("plain"));
            }
            let accept = accept_of(message);
            let keep = keep.lock().unwrap().clone();
            Reply::Take(Box::new(move |mut stream| {
                let head = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: {accept}\r\n\r\nhello"
                );
                stream.write_all(head.as_bytes()).unwrap();
                let mut buffer = [0; 16];
                while let Ok(1..) = stream.read(&mut buffer) {}
                // It has heard the end, says nothing and does not close.
                keep.send(stream).unwrap();
            }))
        });
        let deadlines = Deadlines { tunnel_half_closed: Duration::from_millis(100), ..Deadlines::default() };
        let mut edge = TestEdge::with(backend, Setup { deadlines, ..Setup::default() });
        let route = proxy_to(&origin.url());
        edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![route.clone()]);
        runtime().block_on(async {
            let mut tunnel = tunnel(&edge, "/").await;
            tunnel.shutdown().await.unwrap();
            let mut rest = Vec::new();
            let read = tunnel.read_to_end(&mut rest);
            tokio::time::timeout(crate::harness::PATIENCE, read).await.expect("it ends").unwrap();
            assert!(rest.is_empty());
        });
    });
}

const UPLOAD_BYTES: u64 = 8 * 1024 * 1024;

/// Speaks without end, and meanwhile listens: tells when it has heard [`UPLOAD_BYTES`], and what it has said when nobody
/// takes more of it.
fn speaking(heard: Sender<u64>, said: Arc<AtomicU64>, over: Sender<()>) -> Origin {
    let told = Mutex::new((heard, over));
    Origin::start(move |message| {
        if message.header("upgrade").is_none() {
            return Reply::Keep(ok("plain"));
        }
        let (accept, said) = (accept_of(message), Arc::clone(&said));
        let (heard, over) = told.lock().unwrap().clone();
        Reply::Take(Box::new(move |mut stream| {
            let head = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n\r\nhello"
            );
            stream.write_all(head.as_bytes()).unwrap();
            let mut mouth = stream.try_clone().unwrap();
            std::thread::spawn(move || {
                while mouth.write_all(&[7; 16 * 1024]).is_ok() {
                    said.fetch_add(16 * 1024, Ordering::Relaxed);
                }
                let _ = over.send(());
            });
            let mut listened = stream.take(UPLOAD_BYTES);
            let _ = heard.send(std::io::copy(&mut listened, &mut std::io::sink()).unwrap_or(0));
            // Stays open for as long as the client does.
            let _ = listened.into_inner().read(&mut [0; 1]);
        }))
    })
}

fn ask_for_tunnel(edge: &TestEdge) -> crate::client::Https {
    let mut client = https(edge.https, HOST);
    client.send(format!(
        "GET / HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ));
    client
}

/// No side is cut for what it does not take.
fn patient() -> Setup {
    let hour = Duration::from_secs(3600);
    let deadlines = Deadlines { write_stall: hour, origin_write_stall: hour, ..Deadlines::default() };
    Setup { deadlines, ..Setup::default() }
}

#[test]
fn a_client_that_writes_much_before_it_reads_is_heard() {
    on_each_backend(|backend| {
        let (heard, hears) = channel();
        let origin = speaking(heard, Arc::default(), channel().0);
        let mut edge = TestEdge::with(backend, patient());
        let route = proxy_to(&origin.url());
        edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![route.clone()]);
        let piece = vec![b'x'; 64 * 1024];
        let pieces = UPLOAD_BYTES / piece.len() as u64;
        let mut client = ask_for_tunnel(&edge);
        assert_eq!(client.answer().status, 101);
        for _ in 0..pieces {
            client.send(&piece);
        }
        assert_eq!(hears.recv_timeout(crate::harness::PATIENCE), Ok(UPLOAD_BYTES), "over HTTP/1.1");
        runtime().block_on(async {
            let mut tunnel = tunnel(&edge, "/").await;
            let upload = async {
                for _ in 0..pieces {
                    tunnel.write_all(&piece).await.unwrap();
                }
                tunnel.flush().await.unwrap();
                tokio::task::spawn_blocking(move || hears.recv_timeout(crate::harness::PATIENCE))
                    .await
                    .unwrap()
            };
            let told = tokio::time::timeout(crate::harness::PATIENCE, upload).await.expect("all is taken");
            assert_eq!(told, Ok(UPLOAD_BYTES), "over HTTP/2");
        });
    });
}

#[test]
fn a_suspension_ends_a_tunnel_whose_client_reads_nothing() {
    on_each_backend(|backend| {
        let (over, ended) = channel();
        let said = Arc::<AtomicU64>::default();
        let origin = speaking(channel().0, Arc::clone(&said), over);
        let mut edge = TestEdge::with(backend, patient());
        let route = proxy_to(&origin.url());
        let served =
            edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![route.clone()]);
        let mut client = ask_for_tunnel(&edge);
        assert_eq!(client.answer().status, 101);
        let before = Cell::new(0);
        wait_until("what the client does not read holds the origin up", || {
            std::thread::sleep(Duration::from_millis(200));
            let now = said.load(Ordering::Relaxed);
            now > 0 && before.replace(now) == now
        });
        let page = Suspension { mode: SuspensionMode::Page, reason: "".into(), until_unix_ms: 0 };
        edge.bench.publisher.suspend(served.tenant, None, Some(page), 100).unwrap();
        // Sooner than a client is cut that does not read.
        assert_eq!(ended.recv_timeout(limits::WRITE_STALL_DEADLINE / 2), Ok(()));
        drop(client);
    });
}

/// One of each version, opened before a drain, says something in it and ends; the drain waits for both.
#[test]
fn tunnels_go_on_during_a_drain() {
    on_each_backend(|backend| {
        let origin = shouting();
        let edge = edge_to(backend, &origin);
        let mut client = ask_for_tunnel(&edge);
        assert_eq!(client.answer().status, 101);
        assert_eq!(client.exactly(5).unwrap(), b"hello");
        runtime().block_on(async {
            let mut tunnel = tunnel(&edge, "/").await;
            edge.switch.begin();
            for word in ["about", "other"] {
                tunnel.write_all(word.as_bytes()).await.unwrap();
                tunnel.flush().await.unwrap();
                let mut buffer = [0; 5];
                tunnel.read_exact(&mut buffer).await.unwrap();
                assert_eq!(buffer, word.to_ascii_uppercase().as_bytes());
                assert_eq!(client.send(word).exactly(5).unwrap(), word.to_ascii_uppercase().as_bytes());
            }
            assert!(edge.workers.iter().any(|worker| !worker.is_finished()), "it waits");
            tunnel.shutdown().await.unwrap();
            assert_eq!(tunnel.read_to_end(&mut Vec::new()).await.unwrap(), 0);
        });
        drop(client);
        wait_until("the drain is over", || edge.workers.iter().all(std::thread::JoinHandle::is_finished));
    });
}

#[test]
fn what_is_no_tunnel_is_told_so() {
    on_each_backend(|backend| {
        let origin = shouting();
        let edge = edge_to(backend, &origin);
        let at_length = |more| format!("/refuse-at-length-{}", limits::TUNNEL_REFUSAL_BYTES_MAX + more);
        runtime().block_on(async {
            let mut sender = http2::<Empty<Bytes>>(edge.https, Some(HOST)).await.unwrap();
            let get = Request::get(format!("https://{HOST}/")).body(Empty::new()).unwrap();
            assert_eq!(sender.send_request(get).await.unwrap().status(), 200);
            for (path, protocol, status) in [
                ("/refuse", "websocket", 403),
                (&at_length(0), "websocket", 403),
                (&at_length(1), "websocket", 502),
                // An answer to GET is none to CONNECT: 2xx would say that there is a tunnel.
                ("/plain", "websocket", 502),
                ("/lie", "websocket", 502),
                ("/", "connect-udp", 405),
            ] {
                assert_eq!(connect(&mut sender, path, protocol).await.status(), status, "{path} {protocol}");
            }
        });
    });
}

#[test]
fn tunnels_of_one_connection_are_bounded_and_give_their_place_back() {
    on_each_backend(|backend| {
        let origin = shouting();
        let edge = edge_to(backend, &origin);
        runtime().block_on(async {
            let mut sender = http2::<Empty<Bytes>>(edge.https, Some(HOST)).await.unwrap();
            let get = Request::get(format!("https://{HOST}/")).body(Empty::new()).unwrap();
            assert_eq!(sender.send_request(get).await.unwrap().status(), 200);
            let mut tunnels = Vec::new();
            for _ in 0..limits::H2_TUNNELS_MAX {
                let answer = connect(&mut sender, "/", "websocket").await;
                assert_eq!(answer.status(), 200);
                tunnels.push(hyper::upgrade::on(answer).await.unwrap());
            }
            assert_eq!(connect(&mut sender, "/", "websocket").await.status(), 429);
            drop(tunnels);
            let deadline = portico_edge::clock::now() + crate::harness::PATIENCE;
            while connect(&mut sender, "/", "websocket").await.status() != 200 {
                assert!(portico_edge::clock::now() < deadline, "never is there room again");
            }
        });
        wait_until("the refused ones are logged", || {
            edge.log_lines(1).iter().any(|line| line["reason"] == "too_many_tunnels")
        });
    });
}

#[test]
fn a_tunnel_in_which_nobody_says_anything_ends_on_both_sides() {
    on_each_backend(|backend| {
        let (told, ended) = channel();
        let told = Mutex::new(told);
        let origin = Origin::start(move |message| {
            let (accept, told) = (accept_of(message), told.lock().unwrap().clone());
            Reply::Take(Box::new(move |mut stream| {
                let head = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: {accept}\r\n\r\n"
                );
                stream.write_all(head.as_bytes()).unwrap();
                told.send(stream.read_to_end(&mut Vec::new()).unwrap()).unwrap();
            }))
        });
        let deadlines = Deadlines { tunnel_idle: crate::endings::SHORT, ..Deadlines::default() };
        let mut edge = TestEdge::with(backend, Setup { deadlines, ..Setup::default() });
        let route = proxy_to(&origin.url());
        edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![route.clone()]);
        let mut client = ask_for_tunnel(&edge);
        assert_eq!(client.answer().status, 101);
        assert!(client.closes());
        assert_eq!(ended.recv_timeout(crate::harness::PATIENCE), Ok(0), "the origin's side too");
    });
}

const CLIENT: &str = r#"
import asyncio, ssl, sys, websockets
async def main():
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with websockets.connect("wss://shop.example/chat", host="127.0.0.1", port=int(sys.argv[1]), ssl=context) as socket:
        for word in ["one", "two" * 5000]:
            await socket.send(word)
            assert await socket.recv() == word
asyncio.run(main())
print("done")
"#;

/// Echoes one client's frames, unmasked: RFC 6455 section 5.2.
fn echo_frames(mut stream: std::net::TcpStream) -> std::io::Result<()> {
    loop {
        let mut start = [0; 2];
        stream.read_exact(&mut start)?;
        let length = match start[1] & 0x7f {
            126 => {
                let mut bytes = [0; 2];
                stream.read_exact(&mut bytes)?;
                usize::from(u16::from_be_bytes(bytes))
            }
            length => usize::from(length),
        };
        let mut mask = [0; 4];
        stream.read_exact(&mut mask)?;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        for (byte, key) in payload.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= key;
        }
        let mut frame = vec![start[0]];
        match u8::try_from(length) {
            Ok(short @ ..126) => frame.push(short),
            _ => {
                frame.push(126);
                frame.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
        }
        frame.extend(payload);
        stream.write_all(&frame)?;
    }
}

#[test]
fn a_client_that_others_have_written_talks_through_the_edge() {
    let has_client = Command::new("python3").args(["-c", "import websockets"]).output();
    if !has_client.is_ok_and(|output| output.status.success()) {
        portico_skipping::skipped("python3 has no websockets");
        return;
    }
    on_each_backend(|backend| {
        let origin = Origin::start(|message| {
            let accept = accept_of(message);
            Reply::Take(Box::new(move |mut stream| {
                let head = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: {accept}\r\n\r\n"
                );
                stream.write_all(head.as_bytes()).unwrap();
                let _ = echo_frames(stream);
            }))
        });
        let edge = edge_to(backend, &origin);
        assert_eq!(https(edge.https, HOST).get("nobody.example", "/").status, 421);
        let port = edge.https.port().to_string();
        let output = Command::new("python3").args(["-c", CLIENT, &port]).output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).trim(),
            "done",
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    });
}

#[test]
fn an_upgrade_with_a_body_is_refused() {
    on_each_backend(|backend| {
        let origin = shouting();
        let edge = edge_to(backend, &origin);
        let upgrade = format!(
            "GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        );
        let bodies = [
            "Content-Length: 3\r\n\r\nabc",
            "Content-Length: 3\r\n\r\nabcGET /hidden HTTP/1.1\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ];
        for (number, body) in bodies.into_iter().enumerate() {
            let mut client = https(edge.https, HOST);
            client.send(format!("{upgrade}{body}"));
            assert_eq!(client.answer().status, 400, "{body:?}");
            assert!(client.closes(), "{body:?}");
            assert_eq!(edge.log_lines(number + 1)[number]["reason"], "upgrade_with_body");
        }
        assert!(origin.messages().is_empty(), "{:?}", origin.messages());
        let mut client = https(edge.https, HOST);
        client.send(format!("{upgrade}Content-Length: 0\r\n\r\n"));
        assert_eq!(client.answer().status, 101, "no body is none");
    });
}
