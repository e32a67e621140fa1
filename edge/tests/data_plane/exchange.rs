//! Answers that the edge gives without an origin.

use portico_api::distribution as wire;

use crate::client::{http2_get, https, plain, runtime};
use crate::harness::{Setup, TestEdge, on_each_backend};

fn redirect(location: &str, status: u32, keep_path: bool) -> wire::Route {
    wire::Route {
        path_prefix: "/old".into(),
        action: Some(wire::route::Action::Redirect(wire::Redirect {
            location: location.into(),
            status,
            keep_path,
            keep_query: None,
        })),
        rule: None,
    }
}

#[test]
fn static_answers_and_redirects_follow_their_routes() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve_with(&["shop.example"], &[], |domain| {
            domain.routes.insert(0, redirect("https://new.example/base/", 308, true));
            domain.hsts_max_age_seconds = Some(31_536_000);
        });
        let mut client = https(edge.https, "shop.example");
        let answer = client.get("shop.example", "/");
        assert_eq!((answer.status, answer.text().as_str()), (200, "shop.example"));
        assert_eq!(answer.header("strict-transport-security"), Some("max-age=31536000"));
        edge.serve_with(&["withdrawn.example"], &[], |domain| domain.hsts_max_age_seconds = Some(0));
        let withdrawn = https(edge.https, "withdrawn.example").get("withdrawn.example", "/");
        assert_eq!(withdrawn.header("strict-transport-security"), Some("max-age=0"));
        let moved = client.get("shop.example", "/old/x?y=z");
        assert_eq!(moved.status, 308);
        assert_eq!(moved.header("location"), Some("https://new.example/base/old/x?y=z"));
        assert_eq!(client.get("shop.example", "/older").status, 200, "prefixes end at a segment");

        client.send("HEAD / HTTP/1.1\r\nHost: shop.example\r\n\r\n");
        let head = client.answer_to("HEAD").unwrap();
        assert_eq!((head.status, head.header("content-length")), (200, Some("12")));
        client.send("POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 3\r\n\r\nabc");
        let refused = client.answer();
        assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")));
        assert_eq!(client.get("shop.example", "/").status, 200, "the connection goes on");
    });
}

#[test]
fn head_over_http2_has_the_length_and_no_body() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve(&["shop.example"]);
        let answer = runtime().block_on(async {
            type Empty = http_body_util::Empty<bytes::Bytes>;
            let mut sender = crate::client::http2::<Empty>(edge.https, Some("shop.example")).await.unwrap();
            let request = http::Request::head("https://shop.example/").body(Empty::new()).unwrap();
            crate::client::collect(sender.send_request(request).await.unwrap()).await.unwrap()
        });
        assert_eq!((answer.status, answer.header("content-length"), answer.body.len()), (200, Some("12"), 0));
    });
}

#[test]
fn port_80_points_to_https() {
    on_each_backend(|backend| {
        for (port, location) in [(443, "https://shop.example/a?b"), (8443, "https://shop.example:8443/a?b")] {
            let mut edge = TestEdge::with(backend, Setup { public_https_port: port, ..Setup::default() });
            edge.serve(&["shop.example"]);
            let mut client = plain(edge.http);
            let answer = client.get("shop.example", "/a?b");
            assert_eq!((answer.status, answer.header("location")), (301, Some(location)));
            client.send("POST /a?b HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 0\r\n\r\n");
            assert_eq!(client.answer().status, 308, "a POST stays a POST");
            assert_eq!(client.get("nobody.example", "/").status, 404);
            assert_eq!(answer.header("strict-transport-security"), None, "never over plain HTTP");
        }
    });
}

#[test]
fn a_host_may_keep_port_80() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve_with(&["shop.example"], &[], |domain| domain.https_redirect_off = true);
        assert_eq!(plain(edge.http).get("shop.example", "/").text(), "shop.example");
    });
}

#[test]
fn requests_that_nobody_should_answer_are_refused() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve(&["shop.example"]);
        let table = [
            ("TRACE / HTTP/1.1\r\nHost: shop.example\r\n\r\n", 405),
            ("CONNECT shop.example:443 HTTP/1.1\r\nHost: shop.example:443\r\n\r\n", 405),
            ("GET /a/../b HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400),
            ("GET /a/%2e%2e/b HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: shop.example\r\nExpect: 200-ok\r\n\r\n", 417),
            ("GET / HTTP/1.1\r\nHost: shop.example\r\nExpect: y 100-continue\r\n\r\n", 417),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.0\r\n\r\n", 400),
            ("GET http://shop.example/ HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400),
            ("GET https://other.example/ HTTP/1.1\r\nHost: shop.example\r\n\r\n", 400),
        ];
        for (request, status) in table {
            let mut client = https(edge.https, "shop.example");
            let answer = client.send(request).answer();
            assert_eq!(answer.status, status, "{request:?}");
            assert_eq!(answer.header("allow").is_some(), status == 405, "{request:?}");
        }
        let mut client = https(edge.https, "shop.example");
        client.send("GET https://shop.example/x HTTP/1.1\r\nHost: shop.example\r\n\r\n");
        assert_eq!(client.answer().status, 200, "an absolute target that agrees is served");
    });
}

#[test]
fn challenges_are_answered_in_their_order() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve_with(&["shop.example"], &[], |domain| {
            domain.acme_thumbprint = "thumbprint-of-an-open-order-0123456789abcde".into();
        });
        edge.serve(&["plain.example"]);
        edge.serve_with(&["claim.example"], &[], |domain| domain.served = false);
        let token = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA";
        let now_ms = portico_edge::clock::unix_ms();
        let authorization = format!("{token}.pushed");
        for host in ["shop.example", "claim.example", "new.example"] {
            let challenges = edge.bench.publisher.challenges();
            challenges.set_http01(host, token, &authorization, now_ms + 60_000, now_ms).unwrap();
        }
        let ask = |host: &str, path: &str| plain(edge.http).get(host, path);
        let path = format!("/.well-known/acme-challenge/{token}");

        for host in ["shop.example", "claim.example", "new.example"] {
            let answer = ask(host, &path);
            assert_eq!((answer.status, answer.text()), (200, authorization.clone()), "{host}: pushed");
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
            assert_eq!(answer.header("cache-control"), Some("no-store"));
        }
        let other = "0123456789012345678901";
        let stateless = ask("shop.example", &format!("/.well-known/acme-challenge/{other}"));
        assert_eq!(stateless.text(), format!("{other}.thumbprint-of-an-open-order-0123456789abcde"));
        let own = ask("plain.example", &path);
        assert_eq!(
            (own.status, own.text().as_str()),
            (200, "plain.example"),
            "the tenant's own route, not a redirect"
        );

        // Not a token: like any other path.
        let like_any_other = ask("plain.example", "/elsewhere").status;
        for odd in [
            "short",
            "x/../y",
            &"a".repeat(129),
            &"a".repeat(8192),
            "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ_PCt92wr+oA",
            "?x",
        ] {
            let status = ask("shop.example", &format!("/.well-known/acme-challenge/{odd}")).status;
            let expected = if odd.contains("..") { 400 } else { like_any_other };
            assert_eq!(status, expected, "{odd:.40}");
        }
        // Over TLS there are no HTTP-01 answers.
        let over_tls = https(edge.https, "shop.example").get("shop.example", &path);
        assert_eq!(over_tls.text(), "shop.example");
        // And none for other methods.
        let mut client = plain(edge.http);
        client.send(format!("POST {path} HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(client.answer().status, 308);
    });
}

#[test]
fn each_exchange_is_one_line_in_the_log() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve(&["shop.example"]);
        let mut client = https(edge.https, "shop.example");
        client.send("GET /a\u{7f} HTTP/1.1\r\nHost: shop.example\r\n\r\n");
        assert_eq!(client.answer().status, 400);
        let mut client = https(edge.https, "shop.example");
        client.send("GET /x?y HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: caf\u{e9} \u{9b}31m\r\n\r\n");
        assert_eq!(client.answer().status, 200);
        http2_get(edge.https, Some("shop.example"), "elsewhere.example", "/").unwrap();
        let lines = edge.log_lines(3);
        // No request was made of it, and nothing of what it says is written.
        assert_eq!((&lines[0]["status"], &lines[0]["reason"]), (&400.into(), &"control_byte".into()));
        assert_eq!(lines[0]["target"], "*");
        assert_eq!(lines[1]["target"], "/x?REDACTED");
        assert_eq!(lines[1]["protocol"], "h1");
        assert_eq!(lines[1]["status"], 200);
        assert_eq!(lines[1]["response_bytes"], 12);
        assert_eq!(lines[1]["complete"], true);
        assert!(!lines[1]["user_agent"].as_str().unwrap().chars().any(char::is_control));
        assert_eq!((&lines[2]["status"], &lines[2]["reason"]), (&421.into(), &"misdirected".into()));
        assert_ne!(lines[1]["request_id"], lines[2]["request_id"]);
    });
}
