//! Compressed forms beside what the cache keeps.

use std::io::Write as _;
use std::sync::{Arc, Barrier};

use portico_api::distribution as wire;
use portico_edge::io::Backend;

use super::{CODINGS, HOST, Press, decode, decoded, page, reply};
use crate::client::https;
use crate::harness::{Setup, on_each_backend, wait_until};
use crate::origin::Reply;

const LINES: &[&str] = &["Content-Type: text/html", "Cache-Control: max-age=600", "ETag: \"a\""];

fn press(backend: Backend, bytes: usize, setup: Setup) -> Press {
    let change = |proxy: &mut wire::Proxy| proxy.cache = Some(wire::CachePolicy::default());
    Press::with(backend, setup, change, move |_| reply(200, LINES, &page(bytes)))
}

fn is_hit(answer: &crate::client::Answer) -> bool {
    answer.header("cache-status").is_some_and(|status| status.starts_with("portico; hit"))
}

/// The form has its length when it is kept.
fn kept(press: &Press, coding: &str) -> crate::client::Answer {
    wait_until("the form is kept", || press.get("/", coding).header("content-length").is_some());
    let answer = press.get("/", coding);
    assert_eq!(answer.header("content-encoding"), Some(coding));
    answer
}

#[test]
fn a_form_is_made_once_for_each_coding_and_weighed() {
    on_each_backend(|backend| {
        let press = press(backend, 200_000, Setup { workers: 2, ..Setup::default() });
        let text = page(200_000);
        wait_until("the whole is kept", || is_hit(&press.get("/", "identity")));
        let plain = press.edge.edge.cache.bytes_of(press.served.tenant);
        let mut expected = plain;
        for coding in CODINGS {
            let barrier = Arc::new(Barrier::new(8));
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    let (barrier, press, text) = (Arc::clone(&barrier), &press, &text);
                    scope.spawn(move || {
                        barrier.wait();
                        let answer = press.get("/", coding);
                        assert!(is_hit(&answer) && decoded(&answer) == *text, "{coding}");
                    });
                }
            });
            let answer = kept(&press, coding);
            assert!(decoded(&answer) == text);
            assert_eq!(
                (answer.header("etag"), answer.header("vary")),
                (Some("W/\"a\""), Some("accept-encoding"))
            );
            assert!(answer.body.len() < 40_000);
            expected += answer.body.len() as u64;
        }
        assert_eq!(press.edge.edge.cache.bytes_of(press.served.tenant), expected);
        assert_eq!((press.origin.messages().len(), press.edge.edge.cache.forms_made()), (1, 3));
        purge(&press);
        wait_until("nothing is held", || press.edge.edge.cache.bytes() == 0);
    });
}

/// The origin stops in the middle of its answer until all have begun to read it.
#[test]
fn who_asks_for_one_coding_while_the_body_comes_shares_one_compression() {
    const CLIENTS: usize = 8;
    on_each_backend(|backend| {
        for coding in CODINGS {
            let text = page(200_000);
            let head = format!("HTTP/1.1 200 OK\r\n{}\r\nContent-Length: 200000\r\n\r\n", LINES.join("\r\n"));
            let (first, second) = (head + &text[..100_000], text[100_000..].to_owned());
            let all_read = Arc::new(Barrier::new(CLIENTS + 1));
            let change = |proxy: &mut wire::Proxy| proxy.cache = Some(wire::CachePolicy::default());
            let parts = (first, second, Arc::clone(&all_read));
            let setup = Setup { workers: 2, ..Setup::default() };
            let press = Press::with(backend, setup, change, move |_| {
                let (first, second, all_read) = parts.clone();
                Reply::Take(Box::new(move |mut stream| {
                    stream.write_all(first.as_bytes()).unwrap();
                    all_read.wait();
                    stream.write_all(second.as_bytes()).unwrap();
                }))
            });
            let got: Vec<Vec<u8>> = std::thread::scope(|scope| {
                let clients: Vec<_> =
                    (0..CLIENTS).map(|_| scope.spawn(|| read_along(&press, coding, &all_read))).collect();
                clients.into_iter().map(|client| client.join().unwrap()).collect()
            });
            let kept = kept(&press, coding);
            assert!(decoded(&kept) == text);
            assert!(got.iter().all(|body| *body == kept.body), "{coding}: each is what is kept");
            assert_eq!(
                (press.origin.messages().len(), press.edge.edge.cache.forms_made()),
                (1, 1),
                "{coding}"
            );
            let weight = press.edge.edge.cache.bytes_of(press.served.tenant);
            assert!(weight > 200_000 + kept.body.len() as u64, "it is weighed: {weight}");
            purge(&press);
            wait_until("nothing is held", || press.edge.edge.cache.bytes() == 0);
        }
    });
}

/// The body in its coding; what has come before all have read something is as far as the origin has sent it.
fn read_along(press: &Press, coding: &str, all_read: &Barrier) -> Vec<u8> {
    let mut client = https(press.edge.https, HOST);
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nAccept-Encoding: {coding}\r\n\r\n"));
    assert!(client.head().unwrap().to_lowercase().contains(&format!("content-encoding: {coding}")));
    let mut size = client.line().unwrap();
    all_read.wait();
    let mut body = Vec::new();
    loop {
        let count = usize::from_str_radix(size.trim(), 16).unwrap();
        body.extend_from_slice(&client.exactly(count + 2).unwrap()[..count]);
        if count == 0 {
            return body;
        }
        size = client.line().unwrap();
    }
}

fn purge(press: &Press) {
    let purge = wire::Purge {
        number: 1,
        tenant_id: press.served.tenant.to_string(),
        targets: vec![wire::PurgeTarget { kind: Some(wire::purge_target::Kind::Everything(true)) }],
        soft: false,
    };
    press.edge.edge.cache.purge(&purge, &press.edge.bench.live).unwrap();
}

#[test]
fn conditions_and_ranges_know_the_forms_apart() {
    on_each_backend(|backend| {
        let press = press(backend, 20_000, Setup::default());
        wait_until("the whole is kept", || is_hit(&press.get("/", "identity")));
        assert!(decoded(&kept(&press, "gzip")) == page(20_000));
        let ask = |fields: &[(&str, &str)]| {
            press.ask("GET", "/", &[fields, &[("accept-encoding", "gzip")]].concat())
        };
        let same = ask(&[("if-none-match", "W/\"a\"")]);
        assert_eq!((same.status, same.header("etag")), (304, Some("W/\"a\"")));
        let strong = ask(&[("if-none-match", "\"a\"")]);
        assert_eq!((strong.status, strong.header("etag")), (304, Some("\"a\"")));
        let part = ask(&[("range", "bytes=10-19"), ("if-range", "\"a\"")]);
        assert_eq!((part.status, part.text().as_str()), (206, &page(20_000)[10..20]));
        let whole = ask(&[("range", "bytes=10-19"), ("if-range", "W/\"a\"")]);
        assert_eq!((whole.status, whole.header("content-encoding")), (200, Some("gzip")));
        let head = press.ask("HEAD", "/", &[("accept-encoding", "gzip")]);
        assert_eq!(head.header("content-encoding"), Some("gzip"));
        assert_eq!(head.header("etag"), Some("W/\"a\""));
        let plain = press.get("/", "identity");
        assert!(plain.text() == page(20_000) && plain.header("etag") == Some("\"a\""));
        assert_eq!(press.origin.messages().len(), 1);
    });
}

#[test]
fn a_form_lives_on_when_its_whole_is_found_to_be_good_still() {
    on_each_backend(|backend| {
        let change = |proxy: &mut wire::Proxy| proxy.cache = Some(wire::CachePolicy::default());
        let press = Press::with(backend, Setup::default(), change, |message| {
            let lines = &["Content-Type: text/html", "Cache-Control: no-cache", "ETag: \"a\""];
            match message.header("if-none-match") {
                Some(_) => reply(304, lines, ""),
                None => reply(200, lines, &page(30_000)),
            }
        });
        press.get("/", "identity");
        let answer = kept(&press, "zstd");
        assert!(decoded(&answer) == page(30_000));
        assert_eq!(answer.header("cache-status"), Some("portico; fwd=stale; fwd-status=304"));
        let weight = press.edge.edge.cache.bytes_of(press.served.tenant);
        for _ in 0..5 {
            let again = press.get("/", "zstd");
            assert_eq!(again.header("content-length"), answer.header("content-length"));
        }
        assert_eq!(press.edge.edge.cache.bytes_of(press.served.tenant), weight);
        purge(&press);
        wait_until("nothing is held", || press.edge.edge.cache.bytes() == 0);
    });
}

#[test]
fn what_no_coding_makes_smaller_is_sent_as_it_is() {
    on_each_backend(|backend| {
        let change = |proxy: &mut wire::Proxy| proxy.cache = Some(wire::CachePolicy::default());
        let mut number = 1_u64;
        let noise: Vec<u8> = (0..9000)
            .map(|_| {
                number ^= number << 13;
                number ^= number >> 7;
                number ^= number << 17;
                number.to_le_bytes()[4]
            })
            .collect();
        let head = format!("HTTP/1.1 200 OK\r\n{}\r\nContent-Length: 9000\r\n\r\n", LINES.join("\r\n"));
        let sent = [head.as_bytes(), &noise].concat();
        let press = Press::with(backend, Setup::default(), change, move |_| Reply::Keep(sent.clone()));
        wait_until("the whole is kept", || is_hit(&press.get("/", "identity")));
        wait_until("it is known to be worth nothing", || {
            let answer = press.get("/", "gzip");
            let coding = answer.header("content-encoding");
            assert!(decode(coding.unwrap_or("identity"), &answer.body).unwrap() == noise);
            coding.is_none()
        });
    });
}
