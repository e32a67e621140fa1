//! What is never kept, and never given to another (THREATS G3, G4).

use portico_api::distribution as wire;

use super::{Shop, ask, cached, is_hit, method, reply, status, target};
use crate::client::https;
use crate::harness::{Setup, TestEdge, on_each_backend};
use crate::origin::{Origin, Reply};

const FRESH: &str = "Cache-Control: max-age=60";

/// Asks twice and expects the origin to have been asked twice.
fn assert_not_kept(shop: &Shop, path: &str, fields: &[(&str, &str)]) {
    let before = shop.origin.messages().len();
    for _ in 0..2 {
        let answer = shop.ask("GET", path, fields);
        assert!(!is_hit(&answer), "{path} {fields:?}: {answer:?}");
    }
    assert_eq!(shop.origin.messages().len(), before + 2, "{path} {fields:?}");
}

#[test]
fn answers_that_forbid_it_or_are_for_one_visitor_are_not_kept() {
    on_each_backend(|backend| {
        let policy = wire::CachePolicy {
            default_ttl_seconds: 60,
            error_ttl_seconds: 60,
            stale_if_error_seconds: 60,
            ..wire::CachePolicy::default()
        };
        let table: &[(&str, u16, &[&str])] = &[
            ("/no-store", 200, &["Cache-Control: max-age=60, no-store"]),
            ("/No-Store", 200, &["Cache-Control: No-Store"]),
            ("/two", 200, &["Cache-Control: max-age=60", "Cache-Control: no-store"]),
            ("/private", 200, &["Cache-Control: Private, max-age=60"]),
            ("/private-of", 200, &["Cache-Control: max-age=60, private=\"x\""]),
            ("/cookie", 200, &[FRESH, "Set-Cookie: a=b"]),
            ("/vary-all", 200, &[FRESH, "Vary: *"]),
            ("/vary-client", 200, &[FRESH, "Vary: X-Forwarded-For"]),
            ("/part", 206, &[FRESH, "Content-Range: bytes 0-0/2"]),
            ("/bad", 400, &[FRESH]),
            ("/unauthorized", 401, &[FRESH]),
            ("/forbidden", 403, &[FRESH]),
            ("/method", 405, &[FRESH]),
            ("/large", 413, &[FRESH]),
            ("/long", 414, &[FRESH]),
            ("/misdirected", 421, &[FRESH]),
            ("/many", 429, &[FRESH]),
            ("/fields", 431, &[FRESH]),
            ("/teapot", 418, &[FRESH]),
            ("/not-implemented", 501, &[FRESH]),
        ];
        let shop = Shop::with(backend, policy, Setup::default(), move |message| {
            let (_, status, lines) = table.iter().find(|(path, ..)| *path == target(message)).unwrap();
            reply(*status, lines, "x")
        });
        for (path, ..) in table {
            assert_not_kept(&shop, path, &[]);
        }
        assert_eq!(shop.edge.edge.cache.entries(), 0);
    });
}

/// An origin's 425 is about the moment at which a request came (RFC 8470 section 5.2). Anybody can mark one as early.
#[test]
fn an_answer_to_a_request_that_came_too_early_says_nothing_of_the_page() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| match (message.header("early-data"), target(message)) {
            (Some(_), _) => reply(425, &[FRESH], ""),
            (None, "/fresh") => reply(200, &[FRESH], "page"),
            (None, _) if message.header("if-none-match").is_some() => reply(304, &["ETag: \"a\""], ""),
            (None, _) => reply(200, &["Cache-Control: no-cache", "ETag: \"a\""], "page"),
        });
        let early = |path| shop.ask("GET", path, &[("Early-Data", "1")]);
        for _ in 0..2 {
            let answer = early("/fresh");
            assert_eq!((answer.status, status(&answer)), (425, "portico; fwd=uri-miss; detail=too_early"));
        }
        assert_eq!(shop.get("/fresh").text(), "page");
        assert!(is_hit(&shop.get("/fresh")), "nobody has kept it out of the cache");
        assert!(is_hit(&early("/fresh")), "what is here comes early enough for everybody");
        // One that is asked for again each time.
        assert_eq!(shop.get("/asked-again").text(), "page");
        assert_eq!(early("/asked-again").status, 425);
        let answer = shop.get("/asked-again");
        assert_eq!((answer.text().as_str(), status(&answer)), ("page", "portico; fwd=stale; fwd-status=304"));
    });
}

#[test]
fn authorized_answers_are_kept_only_with_permission() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| match target(message) {
            "/public" => reply(200, &["Cache-Control: public, max-age=60"], "public"),
            _ => reply(200, &[FRESH], message.header("authorization").unwrap_or("anybody")),
        });
        let alice = [("authorization", "Basic alice")];
        assert_not_kept(&shop, "/mine", &alice);
        assert_eq!(shop.get("/mine").text(), "anybody");
        assert!(is_hit(&shop.get("/mine")));
        // What anybody gets is not what she gets.
        assert_eq!(shop.ask("GET", "/mine", &alice).text(), "Basic alice");
        shop.ask("GET", "/public", &alice);
        assert!(is_hit(&shop.get("/public")) && is_hit(&shop.ask("GET", "/public", &alice)));
    });
}

#[test]
fn only_get_is_kept_and_bodies_are_looked_at_by_the_origin() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| {
            if method(message) == "HEAD" {
                return Reply::Keep(
                    b"HTTP/1.1 200 X\r\nContent-Length: 5\r\nCache-Control: max-age=60\r\n\r\n".to_vec(),
                );
            }
            reply(200, &[FRESH], &format!("{}{}", method(message), String::from_utf8_lossy(&message.body)))
        });
        for wanted in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "QUERY"] {
            let answer = shop.ask(wanted, "/", &[("content-length", "0")]);
            assert_eq!((answer.text().as_str(), is_hit(&answer)), (wanted, false));
        }
        for _ in 0..2 {
            let head = shop.ask("HEAD", "/", &[]);
            assert_eq!(status(&head), "portico; fwd=bypass; detail=head", "a head alone is no answer to GET");
        }
        let mut client = shop.connect();
        client.send("GET / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(client.answer().text(), "GEThi");
        let plain = shop.get("/");
        assert_eq!((plain.text().as_str(), is_hit(&plain)), ("GET", false));
        assert!(is_hit(&shop.get("/")));
        let mut client = shop.connect();
        client.send("GET / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(client.answer().text(), "GEThi", "a body is not answered from the cache");
    });
}

#[test]
fn a_body_that_breaks_off_is_not_kept() {
    on_each_backend(|backend| {
        let head = format!("HTTP/1.1 200 X\r\n{FRESH}\r\n");
        let shop = Shop::new(backend, move |message| match target(message) {
            "/length" => Reply::Close(format!("{head}Content-Length: 10\r\n\r\nhalf").into_bytes()),
            "/chunked" => {
                Reply::Close(format!("{head}Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").into_bytes())
            }
            // Whole, for all that can be known; or not.
            _ => Reply::Close(format!("{head}\r\nhalf").into_bytes()),
        });
        for path in ["/length", "/chunked", "/to-the-end"] {
            for _ in 0..2 {
                let mut client = shop.connect();
                client.send(format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\n\r\n"));
                let answer = client.answer_to("GET");
                assert_eq!(answer.is_ok(), path == "/to-the-end", "{path}");
            }
            assert_eq!(shop.asked()[path], 2, "{path}");
        }
        assert_eq!(shop.edge.edge.cache.entries(), 0);
    });
}

/// Fields of published poisoning gadgets.
const GADGETS: &[&str] = &[
    "Base-Url",
    "CF-Connecting-IP",
    "Client-IP",
    "Destination",
    "Forwarded",
    "Front-End-Https",
    "Http-Host",
    "Origin-Host",
    "Proxy-Host",
    "Request-Uri",
    "True-Client-IP",
    "Uri",
    "Url",
    "X-Backend-Host",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "X-Custom-IP-Authorization",
    "X-Forward-For",
    "X-Forwarded",
    "X-Forwarded-By",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Path",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Proto",
    "X-Forwarded-Protocol",
    "X-Forwarded-Scheme",
    "X-Forwarded-Server",
    "X-Forwarded-Ssl",
    "X-Forwarder-For",
    "X-Host",
    "X-Http-Destinationurl",
    "X-Http-Host-Override",
    "X-Http-Method",
    "X-Http-Method-Override",
    "X-Http-Path-Override",
    "X-Method-Override",
    "X-Original-Forwarded-For",
    "X-Original-Host",
    "X-Original-Remote-Addr",
    "X-Original-Url",
    "X-Originating-IP",
    "X-Proxy-Url",
    "X-ProxyUser-Ip",
    "X-Real-IP",
    "X-Remote-Addr",
    "X-Rewrite-Url",
    "X-Wap-Profile",
    "X-Request-Id",
    "Cache-Control",
    "Pragma",
    "Proxy",
    "Range",
    "If-Range",
    "If-None-Match",
    "If-Modified-Since",
    "X-Amz-Website-Redirect-Location",
    "Ali-Cdn-Real-Ip",
    "Cdn-Real-Ip",
    "Cdn-Src-Ip",
    "Cf-Connecting-Ipv6",
    "Cf-Pseudo-Ipv4",
    "Cf-Visitor",
    "Clientip",
    "Cluster-Client-Ip",
    "Fastly-Client-Ip",
    "Fastly-Ssl",
    "Forwarded-For",
    "Forwarded-For-Ip",
    "Forwarded-Host",
    "Forwarded-Proto",
    "Http-Client-Ip",
    "Http-Url",
    "Http-X-Forwarded-For",
    "Incap-Client-Ip",
    "Method-Override",
    "Original-Url",
    "Profile",
    "Proxy-Client-Ip",
    "Proxy-Url",
    "Real-Ip",
    "Redirect",
    "Remote-Addr",
    "Remote-Host",
    "Rewrite-Url",
    "Script-Name",
    "Wap-Connection",
    "Wl-Proxy-Client-Ip",
    "X-Appengine-User-Ip",
    "X-Arr-Ssl",
    "X-Azure-Clientip",
    "X-Azure-Socketip",
    "X-Base-Url",
    "X-Cdn-Src-Ip",
    "X-Coming-From",
    "X-Envoy-External-Address",
    "X-Envoy-Original-Host",
    "X-Envoy-Original-Path",
    "X-Forwarded-Client-Ip",
    "X-Forwarded-Context",
    "X-Forwarded-For-Original",
    "X-Forwarded-Hostname",
    "X-Forwarded-Ip",
    "X-Forwarded-Method",
    "X-Forwarded-Uri",
    "X-Forwarded-Url",
    "X-Hostname",
    "X-Http-Host",
    "X-Https",
    "X-Invoke-Path",
    "X-Invoke-Status",
    "X-Matched-Path",
    "X-Middleware-Prefetch",
    "X-Middleware-Subrequest",
    "X-Now-Route-Matches",
    "X-Original-Path",
    "X-Original-Uri",
    "X-Override-Url",
    "X-Real-Host",
    "X-Remote-Ip",
    "X-Request-Uri",
    "X-Rewrite-Uri",
    "X-Scheme",
    "X-Script-Name",
    "X-Server-Name",
    "X-Sucuri-Clientip",
    "X-True-Ip",
    "X-Url-Scheme",
    "X-Virtual-Host",
    "X-Waws-Unencoded-Url",
];

/// Published gadgets: a field that an origin may answer by, and that no key holds.
#[test]
fn no_field_of_one_visitor_decides_what_others_get() {
    on_each_backend(|backend| {
        assert!(GADGETS.len() >= 120, "{}", GADGETS.len());
        let shop = Shop::new(backend, |message| {
            let seen: String =
                message.headers.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
            reply(200, &[FRESH], &seen)
        });
        for (number, name) in GADGETS.iter().enumerate() {
            let path = format!("/{number}");
            let attack = shop.ask("GET", &path, &[(name, "evil-gadget")]);
            // One that is a part of what is asked for (a range, a condition) goes on, past the cache.
            let victim = shop.get(&path);
            assert!(!victim.text().contains("evil-gadget"), "{name}: {}", victim.text());
            assert_eq!(victim.status, 200, "{name}");
            assert_eq!(is_hit(&victim), status(&attack).contains("stored"), "{name}");
        }
    });
}

#[test]
fn a_clients_wish_for_something_new_is_not_a_way_to_the_origin() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |_| reply(200, &[FRESH], "x"));
        shop.get("/");
        for fields in [
            [("cache-control", "no-cache")],
            [("cache-control", "no-store")],
            [("pragma", "no-cache")],
            [("cache-control", "max-age=0")],
        ] {
            assert!(is_hit(&shop.ask("GET", "/", &fields)), "{fields:?}");
        }
        assert_eq!(shop.origin.messages().len(), 1);
        let not_here = shop.ask("GET", "/new", &[("cache-control", "only-if-cached")]);
        assert_eq!((not_here.status, status(&not_here)), (504, "portico; detail=only-if-cached"));
        assert!(is_hit(&shop.ask("GET", "/", &[("cache-control", "only-if-cached")])));
    });
}

/// An origin behind us may be a customer's server with an ACME client of its own.
#[test]
fn a_challenge_that_was_not_there_yet_is_asked_for_again() {
    on_each_backend(|backend| {
        let policy = wire::CachePolicy {
            default_ttl_seconds: 60,
            error_ttl_seconds: 60,
            ..wire::CachePolicy::default()
        };
        let shop = Shop::with(backend, policy, Setup::default(), |_| reply(404, &[FRESH], "not yet"));
        assert_not_kept(&shop, "/.well-known/acme-challenge/aaaaaaaaaaaaaaaaaaaaaaaa", &[]);
        assert_not_kept(&shop, "/.well-known/portico/proof", &[]);
    });
}

#[test]
fn the_same_path_on_fifty_hosts_is_fifty_pages() {
    on_each_backend(|backend| {
        let origin =
            Origin::start(|message| reply(200, &[FRESH], message.header("host").unwrap_or_default()));
        let mut edge = TestEdge::start(backend);
        let names: Vec<String> = (0..50).map(|number| format!("shop{number}.example")).collect();
        // Two tenants, who share an origin.
        for half in names.chunks(25) {
            let names: Vec<&str> = half.iter().map(String::as_str).collect();
            let served = edge.serve_with(&names, &[origin.grant()], |body| {
                body.routes = vec![cached(&origin.url(), &wire::CachePolicy::default())];
            });
            assert_eq!(served.domains.len(), 25);
        }
        for round in 0..2 {
            for name in &names {
                let answer = https(edge.https, name).get(name, "/");
                assert_eq!(answer.text(), *name);
                assert_eq!(is_hit(&answer), round == 1, "{name}");
            }
        }
        assert_eq!(origin.messages().len(), 50);
    });
}

#[test]
fn two_tenants_behind_one_name_do_not_meet() {
    on_each_backend(|backend| {
        let mut shop = Shop::new(backend, |_| reply(200, &[FRESH], "first"));
        assert_eq!(shop.get("/").text(), "first");
        // The name changes hands, the path and even the origin's address stay.
        let url = shop.origin.url();
        shop.edge.bench.remove(vec![crate::fleet::tombstone(
            wire::ResourceKind::Domain,
            &shop.served.domains[0].1.to_string(),
        )]);
        let grant = shop.origin.grant();
        shop.edge.serve_with(&[super::HOST], &[grant], |body| {
            body.routes = vec![cached(&url, &wire::CachePolicy::default())];
        });
        assert!(!is_hit(&shop.get("/")));
        assert_eq!(shop.origin.messages().len(), 2);
    });
}

#[test]
fn routes_told_apart_by_a_header_do_not_share_a_page() {
    on_each_backend(|backend| {
        let (stable, beta) = (
            Origin::start(|_| reply(200, &[FRESH], "stable")),
            Origin::start(|_| reply(200, &[FRESH], "beta")),
        );
        let mut edge = TestEdge::start(backend);
        let condition = wire::HeaderCondition { name: "x-beta".into(), equals: None };
        edge.serve_with(&[super::HOST], &[stable.grant(), beta.grant()], |body| {
            let policy = wire::CachePolicy::default();
            let rule = wire::Rule {
                level: 1,
                path: Some(wire::rule::Path::Prefix("/".into())),
                headers: vec![condition.clone()],
                ..wire::Rule::default()
            };
            let first =
                wire::Route { path_prefix: String::new(), rule: Some(rule), ..cached(&beta.url(), &policy) };
            body.routes = vec![first, cached(&stable.url(), &policy)];
        });
        for _ in 0..2 {
            assert_eq!(
                ask(&mut https(edge.https, super::HOST), "GET", "/", &[("x-beta", "1")]).text(),
                "beta"
            );
            assert_eq!(ask(&mut https(edge.https, super::HOST), "GET", "/", &[]).text(), "stable");
        }
        assert_eq!((stable.messages().len(), beta.messages().len()), (1, 1));
    });
}

#[test]
fn an_unsafe_request_takes_out_what_it_changes() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| match (method(message), target(message)) {
            ("POST", "/fails") => reply(500, &[], "x"),
            ("POST", "/names") => {
                reply(201, &["Location: /new", "Content-Location: https://other.example/b"], "x")
            }
            ("GET", _) => reply(200, &[FRESH], "x"),
            _ => reply(200, &[], "x"),
        });
        let post = [("content-length", "0")];
        for path in ["/a", "/fails", "/new", "/b"] {
            shop.get(path);
            assert!(is_hit(&shop.get(path)));
        }
        shop.ask("POST", "/a", &post);
        assert!(!is_hit(&shop.get("/a")));
        shop.ask("POST", "/fails", &post);
        assert!(is_hit(&shop.get("/fails")), "nothing was changed");
        shop.ask("POST", "/names", &post);
        assert!(!is_hit(&shop.get("/new")));
        assert!(is_hit(&shop.get("/b")), "another host's");
        shop.ask("OPTIONS", "/b", &post);
        assert!(is_hit(&shop.get("/b")));
    });
}
