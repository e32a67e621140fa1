//! What a client gets that takes a coding.

use std::io::Write as _;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty, Full};
use portico_api::distribution as wire;
use portico_edge::limits::CODING_FLUSH_AFTER;

use super::{CODINGS, HOST, Press, compressed, decode, decode_as_far, decoded, page, reply};
use crate::client::{collect, http2, https, runtime};
use crate::harness::{Setup, on_each_backend, wait_until};
use crate::http3_client::http3;
use crate::origin::Reply;

const HTML: &str = "Content-Type: text/html; charset=utf-8";

#[test]
fn each_client_gets_what_it_takes_on_every_protocol() {
    on_each_backend(|backend| {
        let text = page(50_000);
        let sent = text.clone();
        let setup = Setup { http3: true, ..Setup::default() };
        let press = Press::with(
            backend,
            setup,
            |_| (),
            move |_| reply(200, &[HTML, "ETag: \"a\"", "Accept-Ranges: bytes", "Vary: Origin"], &sent),
        );
        for coding in CODINGS {
            for protocol in ["h1", "h2", "h3"] {
                let request = Request::get(format!("https://{HOST}/")).header("accept-encoding", coding);
                let answer = match protocol {
                    "h1" => press.get("/", coding),
                    "h2" => runtime().block_on(async {
                        let mut sender = http2::<Full<Bytes>>(press.edge.https, Some(HOST)).await.unwrap();
                        let request = request.body(Full::default()).unwrap();
                        collect(sender.send_request(request).await.unwrap()).await.unwrap()
                    }),
                    _ => http3(press.edge.https, Some(HOST), request.body(()).unwrap()).unwrap(),
                };
                assert_eq!(answer.header("content-encoding"), Some(coding), "{protocol}");
                assert!(answer.body.len() < text.len() / 4, "{} bytes", answer.body.len());
                assert!(decoded(&answer) == text, "{protocol} {coding}");
                assert_eq!(answer.header("etag"), Some("W/\"a\""));
                assert_eq!(answer.header("content-length"), None);
                assert_eq!(answer.header("accept-ranges"), None);
                let vary: Vec<_> =
                    answer.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("vary")).collect();
                assert!(vary.iter().any(|(_, value)| value == "accept-encoding"), "{vary:?}");
            }
        }
        for plain in ["identity", "deflate", "gzip;q=0", ""] {
            let answer = press.get("/", plain);
            assert_eq!(answer.header("content-encoding"), None, "{plain}");
            assert_eq!(answer.header("etag"), Some("\"a\""));
            assert_eq!(answer.header("content-length"), Some("50000"));
            assert!(answer.headers.iter().any(|(_, value)| value == "accept-encoding"), "{answer:?}");
        }
        assert_eq!(press.get("/", "br;q=0.5, gzip;q=0.9").header("content-encoding"), Some("gzip"));
    });
}

#[test]
fn a_route_says_what_is_compressed_and_how() {
    on_each_backend(|backend| {
        let policy = wire::CompressionPolicy {
            codings: vec![wire::ContentCoding::Gzip.into(), wire::ContentCoding::Br.into(), 77],
            min_bytes: 10,
            content_types: vec!["image/*".into()],
        };
        let change = move |proxy: &mut wire::Proxy| proxy.compression = Some(policy.clone());
        let press = Press::with(backend, Setup::default(), change, |message| {
            let kind = if message.request_line.contains("/text") { HTML } else { "Content-Type: image/bmp" };
            reply(200, &[kind], "0000000000000000000000000000000000000000")
        });
        let coding =
            |path: &str, taken: &str| press.get(path, taken).header("content-encoding").map(str::to_owned);
        assert_eq!(coding("/", "zstd, br, gzip").as_deref(), Some("gzip"));
        assert_eq!(coding("/", "zstd, br").as_deref(), Some("br"));
        assert_eq!(coding("/", "zstd"), None);
        assert_eq!(coding("/text", "gzip"), None);
    });
}

#[test]
fn head_is_answered_as_get_would_be() {
    on_each_backend(|backend| {
        let press = Press::new(backend, |message| {
            let text = page(5000);
            if message.request_line.starts_with("HEAD") {
                let head = format!(
                    "HTTP/1.1 200 OK\r\n{HTML}\r\nETag: \"a\"\r\nContent-Length: {}\r\n\r\n",
                    text.len()
                );
                return Reply::Keep(head.into_bytes());
            }
            reply(200, &[HTML, "ETag: \"a\""], &text)
        });
        for coding in ["zstd", "br", "gzip", "identity"] {
            let [head, get] =
                ["HEAD", "GET"].map(|method| press.ask(method, "/", &[("accept-encoding", coding)]));
            for name in ["content-encoding", "etag", "vary", "content-type", "content-length"] {
                assert_eq!(head.header(name), get.header(name), "{name} for {coding}");
            }
            assert_eq!(get.header("content-encoding").is_none(), coding == "identity");
        }
    });
}

#[test]
fn a_client_keeps_its_weak_tag_and_never_gets_the_rest_of_another_form() {
    on_each_backend(|backend| {
        let press =
            Press::new(backend, |message| match (message.header("if-none-match"), message.header("range")) {
                (Some(_), _) => Reply::Keep(b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n".to_vec()),
                (None, Some(_)) => reply(206, &[HTML, "Content-Range: bytes 0-1999/5000"], &page(2000)),
                (None, None) => reply(200, &[HTML, "ETag: \"a\""], &page(5000)),
            });
        let ask = |fields: &[(&str, &str)]| {
            press.ask("GET", "/", &[fields, &[("accept-encoding", "gzip")]].concat())
        };
        let weak = ask(&[("if-none-match", "\"b\", W/\"a\"")]);
        assert_eq!((weak.status, weak.header("etag")), (304, Some("W/\"a\"")));
        assert_eq!(weak.header("vary"), Some("accept-encoding"));
        let strong = ask(&[("if-none-match", "\"a\"")]);
        assert_eq!((strong.status, strong.header("etag")), (304, Some("\"a\"")));
        let part = ask(&[("range", "bytes=0-1999"), ("if-range", "\"a\"")]);
        assert_eq!((part.status, part.header("content-encoding")), (206, None), "of the plain form");
        for unclear in ["Sun, 09 Sep 2001 01:46:40 GMT", "W/\"a\""] {
            let whole = ask(&[("range", "bytes=0-1999"), ("if-range", unclear)]);
            assert_eq!((whole.status, whole.header("content-encoding")), (200, Some("gzip")));
            assert_eq!(decoded(&whole), page(5000));
        }
        let plain =
            press.ask("GET", "/", &[("range", "bytes=0-1"), ("if-range", "Sun, 09 Sep 2001 01:46:40 GMT")]);
        assert_eq!(plain.status, 206, "who takes no coding has no other form");
    });
}

/// Reads a body that is still coming until the decoder has made `wanted` of it.
fn read_until(client: &mut crate::client::Https, (coding, body): (&str, &mut Vec<u8>), wanted: &str) {
    while decode_as_far(coding, body).0 != wanted.as_bytes() {
        let size = usize::from_str_radix(&client.line().unwrap(), 16).unwrap();
        assert!(size > 0, "the end: {} bytes do not make it", body.len());
        body.extend(client.exactly(size).unwrap());
        client.exactly(2).unwrap();
    }
}

#[test]
fn what_an_origin_has_sent_before_a_pause_can_be_read() {
    on_each_backend(|backend| {
        for coding in CODINGS {
            let (go, gone) = mpsc::channel::<()>();
            let gone = std::sync::Arc::new(Mutex::new(gone));
            let policy = wire::CompressionPolicy {
                content_types: vec!["text/event-stream".into()],
                ..wire::CompressionPolicy::default()
            };
            let change = move |proxy: &mut wire::Proxy| proxy.compression = Some(policy.clone());
            let press = Press::with(backend, Setup::default(), change, move |_| {
                let gone = std::sync::Arc::clone(&gone);
                Reply::Take(Box::new(move |mut stream| {
                    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
                    stream.write_all(head.as_bytes()).unwrap();
                    for _ in 0..2 {
                        stream.write_all(b"f\r\ndata: an event\n\r\n").unwrap();
                        gone.lock().unwrap().recv().unwrap();
                    }
                    stream.write_all(b"0\r\n\r\n").unwrap();
                }))
            });
            let mut client = https(press.edge.https, HOST);
            client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nAccept-Encoding: {coding}\r\n\r\n"));
            assert!(client.head().unwrap().contains(&format!("content-encoding: {coding}")));
            let mut body = Vec::new();
            read_until(&mut client, (coding, &mut body), "data: an event\n");
            let begun = portico_edge::clock::now();
            go.send(()).unwrap();
            read_until(&mut client, (coding, &mut body), "data: an event\ndata: an event\n");
            assert!(begun.elapsed() >= CODING_FLUSH_AFTER, "it waited for more");
            decode(coding, &body).unwrap_err();
            go.send(()).unwrap();
            let size = usize::from_str_radix(&client.line().unwrap(), 16).unwrap();
            body.extend(client.exactly(size).unwrap());
            assert_eq!(decode(coding, &body).unwrap(), b"data: an event\ndata: an event\n");
        }
    });
}

#[test]
fn a_long_body_is_held_back_by_its_reader() {
    on_each_backend(|backend| {
        const TOTAL: usize = 64 * 1024 * 1024;
        let taken = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = std::sync::Arc::clone(&taken);
        let press = Press::new(backend, move |_| {
            let counted = std::sync::Arc::clone(&counted);
            Reply::Take(Box::new(move |mut stream| {
                let head = format!("HTTP/1.1 200 OK\r\n{HTML}\r\nContent-Length: {TOTAL}\r\n\r\n");
                stream.write_all(head.as_bytes()).unwrap();
                // Nothing that a coding could make smaller by much.
                let mut number = 1_u64;
                let mut piece = vec![0; 64 * 1024];
                for _ in 0..TOTAL / piece.len() {
                    for byte in &mut piece {
                        number ^= number << 13;
                        number ^= number >> 7;
                        number ^= number << 17;
                        *byte = b' ' + u8::try_from(number & 0x3f).unwrap();
                    }
                    if stream.write_all(&piece).is_err() {
                        return;
                    }
                    counted.fetch_add(piece.len(), std::sync::atomic::Ordering::SeqCst);
                }
            }))
        });
        let mut client = https(press.edge.https, HOST);
        client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nAccept-Encoding: gzip\r\n\r\n"));
        client.head().unwrap();
        let before = std::cell::Cell::new(usize::MAX);
        wait_until("the origin is held back", || {
            let now = taken.load(std::sync::atomic::Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(250));
            before.replace(now) == now && now > 0
        });
        let held = taken.load(std::sync::atomic::Ordering::SeqCst);
        assert!(held < 24 * 1024 * 1024, "{held} bytes were taken with nobody reading");
    });
}

#[test]
fn a_body_that_makes_few_bytes_of_many_does_not_hold_up_the_others() {
    on_each_backend(|backend| {
        const TOTAL: usize = 96 * 1024 * 1024;
        let press = Press::new(backend, |message| {
            if message.request_line.contains("/small") {
                return reply(200, &[HTML], "small");
            }
            Reply::Take(Box::new(|mut stream| {
                let head = format!("HTTP/1.1 200 OK\r\n{HTML}\r\nContent-Length: {TOTAL}\r\n\r\n");
                stream.write_all(head.as_bytes()).unwrap();
                let piece = vec![b'a'; 1024 * 1024];
                for _ in 0..TOTAL / piece.len() {
                    if stream.write_all(&piece).is_err() {
                        return;
                    }
                }
            }))
        });
        let address = press.edge.https;
        let large = std::thread::spawn(move || {
            let mut client = https(address, HOST);
            client.send(format!("GET /large HTTP/1.1\r\nHost: {HOST}\r\nAccept-Encoding: gzip\r\n\r\n"));
            client.answer()
        });
        let mut answered = 0;
        while !large.is_finished() {
            assert_eq!(press.get("/small", "gzip").text(), "small");
            answered += 1;
        }
        assert!(answered > 0);
        let answer = large.join().unwrap();
        let mut decoder = flate2::read::GzDecoder::new(&*answer.body);
        assert_eq!(std::io::copy(&mut decoder, &mut std::io::sink()).unwrap(), TOTAL as u64);
    });
}

#[test]
fn trailers_follow_and_a_broken_body_stays_broken() {
    on_each_backend(|backend| {
        let press = Press::new(backend, |message| {
            let text = page(3000);
            let head = format!(
                "HTTP/1.1 200 OK\r\n{HTML}\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{text}\r\n",
                text.len()
            );
            if message.request_line.contains("/broken") {
                Reply::Close(head.into_bytes())
            } else {
                Reply::Keep(format!("{head}0\r\nX-Sum: 6\r\n\r\n").into_bytes())
            }
        });
        for coding in CODINGS {
            runtime().block_on(async {
                let mut sender = http2::<Empty<Bytes>>(press.edge.https, Some(HOST)).await.unwrap();
                let request = |path: &str| {
                    let request = Request::get(format!("https://{HOST}{path}"));
                    request
                        .header("accept-encoding", coding)
                        .header("te", "trailers")
                        .body(Empty::new())
                        .unwrap()
                };
                let answer = sender.send_request(request("/")).await.unwrap();
                assert_eq!(answer.headers()["content-encoding"], coding);
                let body = answer.into_body().collect().await.unwrap();
                assert_eq!(body.trailers().unwrap()["x-sum"], "6");
                assert_eq!(decode(coding, &body.to_bytes()).unwrap(), page(3000).as_bytes());
                let broken = sender.send_request(request("/broken")).await.unwrap();
                broken.into_body().collect().await.unwrap_err();
            });
        }
    });
}

#[test]
fn beyond_the_limit_answers_go_as_they_are() {
    on_each_backend(|backend| {
        let press = Press::new(backend, |message| {
            if message.request_line.contains("/held") {
                let head =
                    format!("HTTP/1.1 200 OK\r\n{HTML}\r\nContent-Length: 100000\r\n\r\n{}", page(4000));
                return Reply::Stall(head.into_bytes());
            }
            reply(200, &[HTML], &page(5000))
        });
        let mut press = press;
        let other = "other.example";
        press.edge.serve_with(&[other], &[press.origin.grant()], |body| {
            body.routes = vec![compressed(&press.origin, |_| ())];
        });
        // One tenant takes no more than it leaves to the others.
        let places = portico_edge::limits::CODINGS_PER_WORKER_MAX / 2;
        runtime().block_on(async {
            let mut held = Vec::new();
            let mut senders = Vec::new();
            while held.len() < places {
                let mut sender = http2::<Empty<Bytes>>(press.edge.https, Some(HOST)).await.unwrap();
                for _ in 0..64.min(places - held.len()) {
                    let request =
                        Request::get(format!("https://{HOST}/held")).header("accept-encoding", "gzip");
                    let mut answer = sender.send_request(request.body(Empty::new()).unwrap()).await.unwrap();
                    assert_eq!(answer.headers()["content-encoding"], "gzip");
                    answer.body_mut().frame().await.unwrap().unwrap();
                    held.push(answer);
                }
                senders.push(sender);
            }
            let full = press.get("/", "gzip");
            assert_eq!((full.header("content-encoding"), full.text()), (None, page(5000)));
            assert_eq!(full.header("vary"), Some("accept-encoding"));
            let mut client = https(press.edge.https, other);
            client.send(format!("GET / HTTP/1.1\r\nHost: {other}\r\nAccept-Encoding: gzip\r\n\r\n"));
            assert_eq!(client.answer().header("content-encoding"), Some("gzip"), "another tenant's");
        });
        wait_until("there is room again", || {
            press.get("/", "gzip").header("content-encoding") == Some("gzip")
        });
    });
}
