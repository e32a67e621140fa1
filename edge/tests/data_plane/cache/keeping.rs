//! What is kept, how long, and who gets it.

use portico_api::distribution as wire;

use super::{HOST, Shop, cached, get_by, is_hit, reply, status, target};
use crate::harness::{Setup, TestEdge, on_each_backend, wait_until};
use crate::origin::Origin;

const FRESH: &str = "Cache-Control: max-age=60";

#[test]
fn a_second_request_does_not_reach_the_origin_whatever_it_is_spoken_in() {
    on_each_backend(|backend| {
        let setup = Setup { http3: true, ..Setup::default() };
        let shop = Shop::with(backend, wire::CachePolicy::default(), setup, |message| {
            reply(200, &[FRESH, "X-A: 1", "ETag: \"a\""], target(message))
        });
        let first = shop.get("/a?b=c");
        assert_eq!((first.status, first.text().as_str()), (200, "/a?b=c"));
        assert_eq!(status(&first), "portico; fwd=uri-miss; stored");
        assert_eq!(first.header("age"), None);
        for protocol in ["h1", "h2", "h3"] {
            let again = get_by(&shop.edge, protocol, "/a?b=c");
            assert_eq!((again.status, again.text().as_str()), (200, "/a?b=c"), "{protocol}");
            assert!(is_hit(&again), "{protocol}: {again:?}");
            assert_eq!(again.header("x-a"), Some("1"));
            assert_eq!(again.header("content-length"), Some("6"));
            assert!(again.header("age").is_some() && again.header("date").is_some());
        }
        assert_eq!(shop.asked(), [("/a?b=c".to_owned(), 1)].into());
        assert!(!is_hit(&shop.get("/a?b=d")) && !is_hit(&shop.get("/a")) && !is_hit(&shop.get("/a?")));
        let lines = shop.edge.log_lines(7);
        let words: Vec<_> = lines.iter().map(|line| line["cache"].as_str().unwrap()).collect();
        assert_eq!(words, ["miss", "hit", "hit", "hit", "miss", "miss", "miss"]);
    });
}

#[test]
fn a_route_without_a_policy_keeps_nothing() {
    on_each_backend(|backend| {
        let origin = Origin::start(|_| reply(200, &[FRESH], "x"));
        let mut edge = TestEdge::start(backend);
        edge.serve_with(&["shop.example"], &[origin.grant()], |body| {
            body.routes = vec![crate::harness::proxy_to(&origin.url())];
        });
        for _ in 0..2 {
            let answer = get_by(&edge, "h1", "/");
            assert_eq!(status(&answer), "");
        }
        assert_eq!(origin.messages().len(), 2);
    });
}

#[test]
fn what_is_over_is_asked_for_again() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |_| reply(200, &["Cache-Control: max-age=1"], "x"));
        shop.get("/");
        assert!(is_hit(&shop.get("/")));
        wait_until("the second is over", || !is_hit(&shop.get("/")));
        assert_eq!(shop.origin.messages().len(), 2);
    });
}

#[test]
fn the_field_for_cdns_decides_and_is_passed_on() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| match target(message) {
            "/longer" => reply(200, &["Cache-Control: no-store", "CDN-Cache-Control: max-age=60"], "x"),
            _ => reply(200, &["Cache-Control: max-age=60", "CDN-Cache-Control: no-store"], "x"),
        });
        shop.get("/longer");
        let again = shop.get("/longer");
        assert!(is_hit(&again));
        assert_eq!(again.header("cache-control"), Some("no-store"), "for the browser");
        shop.get("/never");
        assert!(!is_hit(&shop.get("/never")));
    });
}

#[test]
fn variants_are_told_apart_by_what_the_origin_names() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| {
            let language = message.header("accept-language").unwrap_or("none").to_owned();
            reply(200, &[FRESH, "Vary: Accept-Language"], &language)
        });
        for (language, hit) in [("de", false), ("fr", false), ("de", true), ("fr", true)] {
            let answer = shop.ask("GET", "/", &[("accept-language", language)]);
            assert_eq!((answer.text().as_str(), is_hit(&answer)), (language, hit));
        }
        let third = shop.get("/");
        assert_eq!((third.text().as_str(), status(&third)), ("none", "portico; fwd=vary-miss; stored"));
    });
}

#[test]
fn codings_do_not_make_a_variant_for_each_browser() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| {
            reply(200, &[FRESH, "Vary: Accept-Encoding"], message.header("accept-encoding").unwrap_or("none"))
        });
        let first = shop.ask("GET", "/", &[("accept-encoding", "gzip, deflate, br, zstd;q=0.5")]);
        assert_eq!(first.text(), "br, gzip, zstd, deflate");
        assert!(is_hit(&shop.ask("GET", "/", &[("accept-encoding", "br,zstd,gzip,x-odd,deflate")])));
        assert!(!is_hit(&shop.ask("GET", "/", &[("accept-encoding", "gzip")])));
    });
}

#[test]
fn queries_are_one_as_the_policy_says_and_so_the_origin_sees_them() {
    on_each_backend(|backend| {
        let policy = wire::CachePolicy {
            query_sort: true,
            query_ignore: vec!["utm_*".into()],
            ..wire::CachePolicy::default()
        };
        let shop =
            Shop::with(backend, policy, Setup::default(), |message| reply(200, &[FRESH], target(message)));
        assert_eq!(shop.get("/?b=1&utm_source=x&a=2").text(), "/?a=2&b=1");
        assert!(is_hit(&shop.get("/?utm_medium=y&a=2&b=1")));
        assert_eq!(shop.get("/?utm_source=%3Cscript%3E").text(), "/");
        assert!(is_hit(&shop.get("/")));
    });
}

#[test]
fn what_says_nothing_of_its_lifetime_is_kept_as_the_policy_says() {
    on_each_backend(|backend| {
        let policy = wire::CachePolicy {
            default_ttl_seconds: 60,
            error_ttl_seconds: 60,
            ..wire::CachePolicy::default()
        };
        let shop = Shop::with(backend, policy, Setup::default(), |message| match target(message) {
            "/gone" => reply(404, &[], "gone"),
            "/broken" => reply(503, &[], "broken"),
            _ => reply(200, &[], "x"),
        });
        for (path, code) in [("/", 200), ("/gone", 404), ("/broken", 503)] {
            assert_eq!(shop.get(path).status, code);
            let again = shop.get(path);
            assert_eq!((again.status, is_hit(&again)), (code, true), "{path}");
        }
        let with_cookie = [("cookie", "session=1")];
        assert!(!is_hit(&shop.ask("GET", "/mine", &with_cookie)));
        assert!(!is_hit(&shop.get("/mine")), "made for somebody");
    });
}

/// What came from elsewhere is not an answer of the origin that the route has now.
#[test]
fn a_route_with_another_origin_answers_nothing_of_the_one_before() {
    on_each_backend(|backend| {
        let mut shop = Shop::new(backend, |_| reply(200, &[FRESH], "old"));
        let new = Origin::start(|_| reply(200, &[FRESH], "new"));
        assert_eq!(shop.get("/").text(), "old");
        assert!(is_hit(&shop.get("/")));
        let grants = [shop.origin.grant(), new.grant()];
        let mut body = crate::fleet::domain_body(HOST, &[shop.served.lineage]);
        body.routes = vec![cached(&new.url(), &wire::CachePolicy::default())];
        let (tenant, (_, id)) = (shop.served.tenant, &shop.served.domains[0]);
        let resources = vec![
            crate::harness::tenant_with(tenant, 2, &grants, None),
            crate::fleet::domain(*id, 2, tenant, &body),
        ];
        shop.edge.apply(resources);
        let answer = shop.get("/");
        assert_eq!((is_hit(&answer), answer.text().as_str()), (false, "new"));
        assert!(is_hit(&shop.get("/")));
    });
}
