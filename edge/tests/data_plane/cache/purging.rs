//! What is purged is given to nobody from then on, and nothing else is lost.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use portico_api::distribution::{self as wire, purge_target::Kind};
use portico_edge::live::limits;

use super::{Shop, is_hit, method, reply, status, target};
use crate::client::{http2, runtime};
use crate::harness::{Setup, on_each_backend, wait_until};

const FRESH: &str = "Cache-Control: max-age=600";

fn purge(shop: &Shop, soft: bool, targets: &[Kind]) -> usize {
    let targets = targets.iter().map(|kind| wire::PurgeTarget { kind: Some(kind.clone()) }).collect();
    let tenant_id = shop.served.tenant.to_string();
    let purge = wire::Purge { number: 1, tenant_id, targets, soft };
    shop.edge.edge.cache.purge(&purge, &shop.edge.bench.live).unwrap()
}

fn shop(backend: portico_edge::io::Backend) -> Shop {
    let policy = wire::CachePolicy { query_ignore: vec!["utm_*".into()], ..wire::CachePolicy::default() };
    Shop::with(backend, policy, Setup::default(), |message| {
        let tags = format!("Cache-Tag: all, of{}", target(message).replace('/', "-"));
        reply(200, &[FRESH, &tags, "Surrogate-Key: one two", "ETag: \"a\""], target(message))
    })
}

#[test]
fn each_kind_takes_what_it_names_and_no_more() {
    on_each_backend(|backend| {
        let shop = shop(backend);
        let all = ["/", "/a", "/a/b", "/ab", "/a?x=1"];
        let table: &[(Kind, &[&str])] = &[
            (Kind::Url("https://shop.example/a".into()), &["/a"]),
            (Kind::Url("https://shop.example:443/a?utm_x=2".into()), &["/a"]),
            (Kind::Url("https://shop.example/a?x=1&utm_y=1".into()), &["/a?x=1"]),
            (Kind::Url("http://shop.example/a".into()), &[]),
            (Kind::Url("https://other.example/a".into()), &[]),
            (Kind::Url("https://SHOP.example".into()), &["/"]),
            (Kind::Prefix("https://shop.example/a".into()), &["/a", "/a/b", "/ab", "/a?x=1"]),
            (Kind::Prefix("https://shop.example/a/".into()), &["/a/b"]),
            (Kind::Tag("of-a".into()), &["/a"]),
            (Kind::Tag("two".into()), &all),
            (Kind::Tag("of".into()), &[]),
            (Kind::Host("shop.example".into()), &all),
            (Kind::Host("other.example".into()), &[]),
            (Kind::Everything(true), &all),
        ];
        for (kind, gone) in table {
            for path in all {
                shop.get(path);
                wait_until("it is kept", || is_hit(&shop.get(path)));
            }
            assert_eq!(purge(&shop, false, std::slice::from_ref(kind)), gone.len(), "{kind:?}");
            for path in all {
                assert_eq!(is_hit(&shop.get(path)), !gone.contains(&path), "{kind:?} {path}");
            }
        }
        let answer = shop.get("/");
        assert_eq!((answer.header("cache-tag"), answer.header("surrogate-key")), (None, None));
        purge(&shop, false, &[Kind::Everything(true)]);
        wait_until("all of it is free", || shop.edge.edge.cache.bytes() == 0);
    });
}

/// Clients that take no more than their windows, each of a body that they have asked for first.
#[test]
fn what_is_purged_counts_for_as_long_as_somebody_reads_it() {
    const BODY_BYTES: u64 = 4 << 20;
    const READERS: u64 = 3;
    on_each_backend(|backend| {
        let body = "x".repeat(usize::try_from(BODY_BYTES).unwrap());
        let policy = wire::CachePolicy { max_object_bytes: BODY_BYTES, ..wire::CachePolicy::default() };
        let setup = Setup { cache_bytes: 64 << 20, ..Setup::default() };
        let shop = Shop::with(backend, policy, setup, move |_| reply(200, &[FRESH], &body));
        let cache = &shop.edge.edge.cache;
        runtime().block_on(async {
            let mut sender = http2::<Full<Bytes>>(shop.edge.https, Some("shop.example")).await.unwrap();
            let mut slow = Vec::new();
            for number in 0..READERS {
                let request = Request::get(format!("https://shop.example/{number}"));
                let answer = sender.send_request(request.body(Full::default()).unwrap()).await.unwrap();
                slow.push(answer);
                wait_until("it is kept", || cache.entries() == number + 1);
            }
            purge(&shop, false, &[Kind::Everything(true)]);
            assert_eq!(cache.entries(), 0);
            assert!(cache.bytes() >= READERS * BODY_BYTES, "{} bytes are counted", cache.bytes());
            drop(slow);
        });
        wait_until("all of it is free", || cache.bytes() == 0);
    });
}

/// What visitors write has the port that the edge is reached at, and people leave it out.
#[test]
fn a_url_without_a_port_is_that_of_visitors_on_another_port() {
    on_each_backend(|backend| {
        let shop = Shop::with(
            backend,
            wire::CachePolicy::default(),
            Setup { public_https_port: 8443, ..Setup::default() },
            |message| reply(200, &[FRESH], target(message)),
        );
        let get = |port: &str| {
            let host = format!("shop.example{port}");
            shop.connect().send(format!("GET /img/x HTTP/1.1\r\nHost: {host}\r\n\r\n")).answer()
        };
        for (kind, gone) in [
            (Kind::Url("https://shop.example/img/x".into()), &[":8443", ""][..]),
            (Kind::Url("https://shop.example:8443/img/x".into()), &[":8443"]),
            (Kind::Prefix("https://shop.example/img".into()), &[":8443", ""]),
            (Kind::Prefix("https://shop.example:8443/img".into()), &[":8443"]),
            (Kind::Url("https://shop.example:9443/img/x".into()), &[]),
        ] {
            for port in [":8443", ""] {
                get(port);
                wait_until("it is kept", || is_hit(&get(port)));
            }
            assert_eq!(purge(&shop, false, std::slice::from_ref(&kind)), gone.len(), "{kind:?}");
            for port in [":8443", ""] {
                assert_eq!(is_hit(&get(port)), !gone.contains(&port), "{kind:?} {port}");
            }
        }
    });
}

#[test]
fn a_purge_finds_every_spelling_that_is_kept() {
    on_each_backend(|backend| {
        let shop = shop(backend);
        let table: [(&str, &[&str]); 4] = [
            ("https://shop.example/caf\u{e9}", &["/caf%c3%a9", "/caf%C3%A9"]),
            ("https://shop.example/%7euser", &["/~user"]),
            ("https://shop.example/{x}|y", &["/{x}|y", "/%7Bx%7D|y", "/%7bx%7d|y"]),
            ("https://shop.example/a//b", &["/a//b"]),
        ];
        for (url, paths) in table {
            for kind in [Kind::Url(url.into()), Kind::Prefix(url.into())] {
                for path in paths {
                    shop.get(path);
                    wait_until("it is kept", || is_hit(&shop.get(path)));
                }
                assert_eq!(purge(&shop, false, std::slice::from_ref(&kind)), paths.len(), "{kind:?}");
                for path in paths {
                    assert!(!is_hit(&shop.get(path)), "{kind:?} {path}");
                }
                purge(&shop, false, &[Kind::Everything(true)]);
            }
        }
        // A spelling that no client needs is not kept: a purge would not find it.
        for path in ["/%61", "/caf%C3%a9"] {
            shop.get(path);
            assert_eq!(shop.get(path).header("cache-status"), Some("portico; fwd=bypass; detail=spelling"));
        }
    });
}

#[test]
fn a_tenant_purges_nothing_of_anothers() {
    on_each_backend(|backend| {
        let shop = shop(backend);
        shop.get("/");
        let stranger = wire::Purge {
            number: 1,
            tenant_id: portico_cert_store::TenantId::generate().to_string(),
            targets: [
                Kind::Url("https://shop.example/".into()),
                Kind::Prefix("https://shop.example/".into()),
                Kind::Host("shop.example".into()),
                Kind::Tag("all".into()),
                Kind::Everything(true),
            ]
            .map(|kind| wire::PurgeTarget { kind: Some(kind) })
            .to_vec(),
            soft: false,
        };
        assert_eq!(shop.edge.edge.cache.purge(&stranger, &shop.edge.bench.live).unwrap(), 0);
        assert!(is_hit(&shop.get("/")));
        // The operator's, where it is not known what an edge has missed.
        let of_all = wire::Purge { tenant_id: String::new(), ..stranger };
        assert_eq!(shop.edge.edge.cache.purge(&of_all, &shop.edge.bench.live).unwrap(), 1);
    });
}

#[test]
fn a_soft_purge_asks_before_the_next_use() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| match message.header("if-none-match") {
            None => reply(200, &[FRESH, "ETag: \"a\"", "Cache-Tag: t"], "page"),
            Some(_) => crate::origin::Reply::Keep(
                format!("HTTP/1.1 304 X\r\n{FRESH}\r\nETag: \"a\"\r\n\r\n").into_bytes(),
            ),
        });
        shop.get("/");
        assert_eq!(purge(&shop, true, &[Kind::Tag("t".into())]), 1);
        let answer = shop.get("/");
        assert!(status(&answer).contains("fwd-status=304"), "{answer:?}");
        assert_eq!(answer.text(), "page");
        assert!(is_hit(&shop.get("/")), "it was asked about");
        assert_eq!(purge(&shop, false, &[Kind::Tag("t".into())]), 1, "a 304 without tags leaves them");
    });
}

#[test]
fn what_was_asked_for_before_a_purge_is_not_kept_after_it() {
    on_each_backend(|backend| {
        for by_request in [false, true] {
            let (open, gate) = channel::<()>();
            let gate = Arc::new(Mutex::new(gate));
            let shop = Shop::new(backend, move |message| {
                if method(message) == "GET" && message.number == 0 && !by_request
                    || (by_request && message.header("x-slow").is_some())
                {
                    let _open = gate.lock().unwrap().recv();
                    return reply(200, &[FRESH], "old");
                }
                reply(200, &[FRESH], "new")
            });
            let mut early = shop.connect();
            early.send("GET / HTTP/1.1\r\nHost: shop.example\r\nX-Slow: 1\r\n\r\n");
            wait_until("the origin is asked", || shop.origin.messages().len() == 1);
            if by_request {
                shop.ask("POST", "/", &[("content-length", "0")]);
            } else {
                purge(&shop, false, &[Kind::Host("shop.example".into())]);
            }
            open.send(()).unwrap();
            assert_eq!(early.answer().text(), "old");
            let answer = shop.get("/");
            assert_eq!((is_hit(&answer), answer.text().as_str()), (false, "new"), "{by_request}");
        }
    });
}

#[test]
fn a_purge_that_cannot_be_read_does_nothing() {
    on_each_backend(|backend| {
        let shop = shop(backend);
        shop.get("/");
        let tenant_id = shop.served.tenant.to_string();
        for kind in [
            Some(Kind::Url("/".into())),
            Some(Kind::Url("ftp://shop.example/".into())),
            Some(Kind::Prefix("https://shop.example/?a".into())),
            Some(Kind::Host("not a host".into())),
            Some(Kind::Tag(String::new())),
            Some(Kind::Everything(false)),
            Some(Kind::Tag("x".repeat(limits::PURGE_TARGET_BYTES_MAX + 1))),
            Some(Kind::Url(format!("https://shop.example/{}", "x".repeat(limits::PURGE_TARGET_BYTES_MAX)))),
            None,
        ] {
            let targets =
                [Some(Kind::Everything(true)), kind].map(|kind| wire::PurgeTarget { kind }).to_vec();
            let purge = wire::Purge { number: 1, tenant_id: tenant_id.clone(), targets, soft: false };
            assert!(shop.edge.edge.cache.purge(&purge, &shop.edge.bench.live).is_err(), "{purge:?}");
        }
        let many = |count: usize| {
            let targets = vec![wire::PurgeTarget { kind: Some(Kind::Tag("none".into())) }; count];
            let purge = wire::Purge { number: 1, tenant_id: tenant_id.clone(), targets, soft: false };
            shop.edge.edge.cache.purge(&purge, &shop.edge.bench.live)
        };
        assert_eq!(many(limits::PURGE_TARGETS_MAX).unwrap(), 0);
        assert!(many(limits::PURGE_TARGETS_MAX + 1).is_err());
        assert!(is_hit(&shop.get("/")));
    });
}

/// RFC 9211 section 2.2: it was there, and could not be used without a word of the origin.
#[test]
fn the_first_answer_after_a_soft_purge_says_that_what_was_kept_was_stale() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| match message.header("x-private") {
            None => reply(200, &[FRESH], "page"),
            Some(_) => reply(200, &["Cache-Control: private"], "page"),
        });
        assert!(status(&shop.get("/")).contains("fwd=uri-miss; stored"));
        assert_eq!(purge(&shop, true, &[Kind::Host("shop.example".into())]), 1);
        assert!(status(&shop.get("/")).contains("fwd=stale; stored"));
        assert!(is_hit(&shop.get("/")));
        assert_eq!(purge(&shop, true, &[Kind::Host("shop.example".into())]), 1);
        let answer = shop.ask("GET", "/", &[("x-private", "1")]);
        assert!(status(&answer).contains("fwd=stale") && !status(&answer).contains("stored"), "{answer:?}");
        assert_eq!(purge(&shop, false, &[Kind::Host("shop.example".into())]), 0, "gone with that answer");
        assert!(status(&shop.get("/")).contains("fwd=uri-miss"));
    });
}
