//! Suspended hosts: nothing is served, certificates and challenges go on, open connections included.

use std::io::Write as _;

use portico_edge::live::{Suspension, SuspensionMode};

use crate::client::{http2_get, https, plain};
use crate::harness::{TestEdge, on_each_backend, proxy_to};
use crate::origin::{Origin, Reply};

#[test]
fn each_mode_answers_in_its_way_on_open_connections_too() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        let served = edge.serve(&["shop.example"]);
        let token = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA";
        let authorization = format!("{token}.thumbprint-of-an-account");
        let now_ms = portico_edge::clock::unix_ms();
        let publisher = &mut edge.bench.publisher;
        publisher
            .challenges()
            .set_http01("shop.example", token, &authorization, now_ms + 60_000, now_ms)
            .unwrap();
        let mut open = https(edge.https, "shop.example");
        assert_eq!(open.get("shop.example", "/").status, 200);
        for (mode, status) in
            [(SuspensionMode::Page, 503), (SuspensionMode::Gone, 410), (SuspensionMode::Legal, 451)]
        {
            let suspension = Suspension { mode, reason: "<unpaid>".into(), until_unix_ms: 0 };
            edge.bench.publisher.suspend(served.tenant, None, Some(suspension), 100).unwrap();
            let answer = open.get("shop.example", "/");
            assert_eq!(answer.status, status, "{mode:?} on an open connection");
            assert!(answer.text().contains("&lt;unpaid&gt;"), "{}", answer.text());
            assert_eq!(answer.header("cache-control"), Some("no-store"));
            assert_eq!(
                http2_get(edge.https, Some("shop.example"), "shop.example", "/").unwrap().status,
                status
            );
            let path = format!("/.well-known/acme-challenge/{token}");
            assert_eq!(plain(edge.http).get("shop.example", &path).text(), authorization);
        }
        let dropped = Suspension { mode: SuspensionMode::Drop, reason: "".into(), until_unix_ms: 0 };
        edge.bench.publisher.suspend(served.tenant, None, Some(dropped), 100).unwrap();
        open.send("GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n");
        assert!(open.closes(), "dropped without an answer");
        assert!(http2_get(edge.https, Some("shop.example"), "shop.example", "/").is_err());
        edge.bench.publisher.suspend(served.tenant, None, None, 100).unwrap();
        assert_eq!(https(edge.https, "shop.example").get("shop.example", "/").status, 200, "resumed");
    });
}

#[test]
fn a_suspension_that_has_ended_does_not_count() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        let served = edge.serve(&["shop.example"]);
        let until_unix_ms = portico_edge::clock::unix_ms() - 1;
        let over = Suspension { mode: SuspensionMode::Page, reason: "".into(), until_unix_ms };
        edge.bench.publisher.suspend(served.tenant, None, Some(over), 100).unwrap();
        assert_eq!(https(edge.https, "shop.example").get("shop.example", "/").status, 200);
    });
}

#[test]
fn an_answer_under_way_is_cut() {
    on_each_backend(|backend| {
        let origin = Origin::start(|_| {
            Reply::Take(Box::new(|mut stream| {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
                    .unwrap();
                let _ = std::io::Read::read(&mut stream, &mut [0; 1]);
            }))
        });
        let mut edge = TestEdge::start(backend);
        let url = origin.url();
        let served = edge.serve_with(&["shop.example"], &[origin.grant()], |domain| {
            domain.routes = vec![proxy_to(&url)];
        });
        let mut client = https(edge.https, "shop.example");
        client.send("GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n");
        client.head().unwrap();
        assert_eq!(client.line().unwrap(), "5");
        let page = Suspension { mode: SuspensionMode::Page, reason: "".into(), until_unix_ms: 0 };
        edge.bench.publisher.suspend(served.tenant, None, Some(page), 100).unwrap();
        let rest = client.rest().unwrap();
        assert!(!rest.ends_with(b"0\r\n\r\n"), "cut, not ended: {}", rest.escape_ascii());
    });
}

#[test]
fn a_domain_is_suspended_without_its_siblings() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        let served = edge.serve(&["a.example", "b.example"]);
        let page = Suspension { mode: SuspensionMode::Page, reason: "".into(), until_unix_ms: 0 };
        let domain = served.domains[0].1;
        edge.bench.publisher.suspend(served.tenant, Some(domain), Some(page), 100).unwrap();
        let mut client = https(edge.https, "a.example");
        assert_eq!(client.get("a.example", "/").status, 503);
        assert_eq!(client.get("b.example", "/").status, 200);
    });
}
