//! What a route matches, changes and does, over each protocol that a client may speak.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use portico_api::distribution as wire;

use crate::client::{Answer, collect, http2, https, plain, runtime};
use crate::fleet;
use crate::harness::{Served, Setup, TestEdge, on_each_backend, proxy_to};
use crate::http3_client::http3;
use crate::origin::{Origin, Reply};

pub const HOST: &str = "shop.example";
pub const PROTOCOLS: [&str; 3] = ["h1", "h2", "h3"];

fn with_http3() -> Setup {
    Setup { http3: true, ..Setup::default() }
}

/// One request on a connection of its own; header fields as `name: value`.
pub fn ask(edge: &TestEdge, protocol: &str, method: &str, target: &str, fields: &[(&str, &str)]) -> Answer {
    if protocol == "h1" {
        let mut client = https(edge.https, HOST);
        let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        client.send(format!("{method} {target} HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n"));
        return client.answer_to(method).unwrap();
    }
    let mut request = Request::builder().method(method).uri(format!("https://{HOST}{target}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    if protocol == "h3" {
        return http3(edge.https, Some(HOST), request.body(()).unwrap()).unwrap();
    }
    runtime().block_on(async {
        let mut sender = http2::<Full<Bytes>>(edge.https, Some(HOST)).await.unwrap();
        collect(sender.send_request(request.body(Full::default()).unwrap()).await.unwrap()).await.unwrap()
    })
}

fn fixed(body: &str, rule: wire::Rule) -> wire::Route {
    with_rule(fleet::fixed(body), rule)
}

fn with_rule(route: wire::Route, rule: wire::Rule) -> wire::Route {
    wire::Route { path_prefix: String::new(), rule: Some(rule), ..route }
}

fn below(path: &str) -> wire::Rule {
    wire::Rule { level: 1, path: Some(wire::rule::Path::Prefix(path.into())), ..wire::Rule::default() }
}

fn changes(set: &[(&str, &str)], remove: &[&str]) -> Option<wire::HeaderChanges> {
    let field =
        |(name, value): &(&str, &str)| wire::HeaderField { name: (*name).into(), value: (*value).into() };
    let remove = remove.iter().map(|&name| name.to_owned()).collect();
    Some(wire::HeaderChanges { set: set.iter().map(field).collect(), remove })
}

#[test]
fn the_first_rule_that_matches_by_path_method_and_headers_is_taken() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::with(backend, with_http3());
        edge.serve_with(&[HOST], &[], |domain| {
            let condition = |name: &str, equals: Option<&str>| wire::HeaderCondition {
                name: name.into(),
                equals: equals.map(str::to_owned),
            };
            let exact = wire::Rule { path: Some(wire::rule::Path::Exact("/a".into())), ..below("/") };
            let post = wire::Rule { methods: vec!["POST".into()], ..below("/a") };
            let beta = wire::Rule { headers: vec![condition("X-Beta", Some("on"))], ..below("/a") };
            let key = wire::Rule { headers: vec![condition("x-key", None)], ..below("/a") };
            domain.routes = vec![
                fixed("exact", exact),
                fixed("post", post),
                fixed("beta", beta),
                fixed("key", key),
                fixed("below", below("/a")),
                fleet::fixed("rest"),
            ];
        });
        type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str);
        let table: [Case<'_>; 12] = [
            ("GET", "/a", &[], "exact"),
            ("GET", "/a?x=y", &[], "exact"),
            ("POST", "/a/", &[], "post"),
            ("GET", "/a/", &[], "below"),
            ("GET", "/a/b", &[("x-beta", "on")], "beta"),
            ("GET", "/a/b", &[("x-beta", "off")], "below"),
            ("GET", "/a/b", &[("x-beta", "off"), ("x-beta", "on")], "beta"),
            ("GET", "/a/b", &[("x-key", ""), ("x-beta", "off")], "key"),
            ("GET", "/ab", &[("x-beta", "on")], "rest"),
            // Other spellings of the same path, as an origin may read it.
            ("GET", "/%61/b", &[], "below"),
            ("GET", "//a;v=1/b", &[], "below"),
            ("GET", "/a%2Fb", &[], "below"),
        ];
        for protocol in PROTOCOLS {
            for (method, target, fields, expected) in table {
                let answer = ask(&edge, protocol, method, target, fields);
                assert_eq!(answer.text(), expected, "{protocol} {method} {target} {fields:?}");
            }
            let head = ask(&edge, protocol, "HEAD", "/a", &[]);
            assert_eq!((head.status, head.header("content-length")), (200, Some("5")), "{protocol}");
        }
    });
}

#[test]
fn a_path_gets_its_new_prefix_and_never_leaves_it() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let mut edge = TestEdge::with(backend, with_http3());
        let url = origin.url();
        let replaced = |from: &str, to: &str| {
            let rule = wire::Rule { replace_prefix: Some(to.into()), ..below(from) };
            with_rule(proxy_to(&url), rule)
        };
        edge.serve_with(&[HOST], &[origin.grant()], |domain| {
            domain.routes =
                vec![replaced("/old", "/new/deep"), replaced("/bare", "/"), replaced("/", "/site")];
        });
        for protocol in PROTOCOLS {
            for (target, expected) in [
                ("/old", "/new/deep"),
                ("/old/x%2Fy?q=/old", "/new/deep/x%2Fy?q=/old"),
                ("/older", "/site/older"),
                ("/bare", "/"),
                ("/bare//evil.example/x", "/evil.example/x"),
                ("/", "/site/"),
            ] {
                let answer = ask(&edge, protocol, "GET", target, &[]);
                assert_eq!((answer.status, answer.text().as_str()), (200, expected), "{protocol} {target}");
            }
            let before = origin.messages().len();
            for target in [
                "/old/../x",
                "/old/%2e%2e/x",
                "/old/..%2fx",
                "/old%2f..%2f..%2fx",
                "/old/..;/x",
                "/old/%252e%252e/x",
                "/old/%c0%ae%c0%ae/x",
                "/old%2fx",
                "/old;x",
                "/old/a%00",
            ] {
                assert_eq!(ask(&edge, protocol, "GET", target, &[]).status, 400, "{protocol} {target}");
            }
            let long = format!("/bare/{}", "x".repeat(16 * 1024 - 6));
            assert_eq!(ask(&edge, protocol, "GET", &long, &[]).status, 200, "{protocol}: at the bound");
            let long = format!("/old/{}", "x".repeat(16 * 1024 - 5));
            assert_eq!(ask(&edge, protocol, "GET", &long, &[]).status, 414, "{protocol}: longer than it was");
            assert_eq!(origin.messages().len(), before + 1, "{protocol}: nothing refused went on");
        }
        assert!(origin.faults().is_empty(), "{:?}", origin.faults());
    });
}

#[test]
fn headers_are_changed_on_the_way_there_and_back() {
    on_each_backend(|backend| {
        let origin = Origin::start(|_| {
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer: secret/1.0\r\nX-Powered-By: a\r\nX-Powered-By: b\r\n\
                        Cache-Control: no-store\r\nStrict-Transport-Security: max-age=1\r\n\r\nok";
            Reply::Keep(head.into())
        });
        let mut edge = TestEdge::with(backend, with_http3());
        let url = origin.url();
        edge.serve_with(&[HOST], &[origin.grant()], |domain| {
            let rule = wire::Rule {
                request_headers: changes(
                    &[("x-key", "edge"), ("accept-encoding", "identity")],
                    &["cookie", "x-drop"],
                ),
                response_headers: changes(
                    &[("cache-control", "max-age=60"), ("x-frame-options", "DENY")],
                    &["server", "x-powered-by"],
                ),
                ..below("/")
            };
            domain.routes = vec![with_rule(proxy_to(&url), rule)];
            domain.hsts_max_age_seconds = Some(31_536_000);
            domain.hsts_include_subdomains = true;
            domain.hsts_preload = true;
        });
        let fields =
            [("x-key", "client"), ("x-key", "again"), ("cookie", "a=b"), ("x-drop", "1"), ("x-kept", "1")];
        for protocol in PROTOCOLS {
            let answer = ask(&edge, protocol, "GET", "/", &fields);
            assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{protocol}");
            assert_eq!(answer.header("cache-control"), Some("max-age=60"));
            assert_eq!(answer.header("x-frame-options"), Some("DENY"));
            assert_eq!((answer.header("server"), answer.header("x-powered-by")), (None, None));
            let hsts = "max-age=31536000; includeSubDomains; preload";
            assert_eq!(
                answer.header("strict-transport-security"),
                Some(hsts),
                "the domain's, not the origin's"
            );
            let message = origin.messages().pop().unwrap();
            assert_eq!(message.all("x-key"), ["edge"], "{protocol}");
            assert_eq!(message.all("accept-encoding"), ["identity"]);
            assert_eq!((message.header("cookie"), message.header("x-drop")), (None, None));
            assert_eq!(message.header("x-kept"), Some("1"));
        }
        // `Connection` takes away what the client itself sent, and nothing that the tenant sets.
        let fields = [("connection", "x-key, x-kept, close"), ("x-kept", "1")];
        ask(&edge, "h1", "GET", "/", &fields);
        let message = origin.messages().pop().unwrap();
        assert_eq!((message.all("x-key"), message.header("x-kept")), (vec!["edge"], None));
        assert!(origin.faults().is_empty(), "{:?}", origin.faults());
    });
}

#[test]
fn pages_of_our_own_are_not_a_tenants_to_change() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::with(backend, with_http3());
        edge.serve_with(&[HOST], &[], |domain| {
            let rule = wire::Rule {
                response_headers: changes(&[("x-own", "1"), ("cache-control", "max-age=60")], &[]),
                ..below("/")
            };
            // Nothing is granted: 502.
            domain.routes = vec![with_rule(proxy_to("http://127.0.0.1:9"), rule)];
        });
        for protocol in PROTOCOLS {
            let answer = ask(&edge, protocol, "GET", "/", &[]);
            assert_eq!((answer.status, answer.header("x-own")), (502, None), "{protocol}");
            assert_eq!(answer.header("cache-control"), Some("no-store"));
        }
    });
}

#[test]
fn redirects_keep_path_and_query_each_on_its_own() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::with(backend, with_http3());
        let to = |path: &str, keep_path, keep_query| {
            let action = wire::route::Action::Redirect(wire::Redirect {
                location: "https://new.example/base".into(),
                status: 307,
                keep_path,
                keep_query,
            });
            wire::Route { action: Some(action), ..fixed("", below(path)) }
        };
        edge.serve_with(&[HOST], &[], |domain| {
            let mut moved = to("/moved", true, None);
            if let Some(rule) = &mut moved.rule {
                rule.replace_prefix = Some("/to".into());
                rule.response_headers = changes(&[("cache-control", "max-age=60")], &[]);
            }
            domain.routes = vec![
                to("/neither", false, None),
                to("/path", true, Some(false)),
                to("/query", false, Some(true)),
                to("/both", true, None),
                moved,
            ];
        });
        for protocol in PROTOCOLS {
            for (target, expected) in [
                ("/neither/x?y=z", "https://new.example/base"),
                ("/path/x?y=z", "https://new.example/base/path/x"),
                ("/query/x?y=z", "https://new.example/base?y=z"),
                ("/query/x", "https://new.example/base"),
                ("/both/x?y=z", "https://new.example/base/both/x?y=z"),
                ("/moved/x?y=z", "https://new.example/base/to/x?y=z"),
            ] {
                let answer = ask(&edge, protocol, "POST", target, &[]);
                assert_eq!(
                    (answer.status, answer.header("location")),
                    (307, Some(expected)),
                    "{protocol} {target}"
                );
            }
            let moved = ask(&edge, protocol, "GET", "/moved", &[]);
            assert_eq!(moved.header("cache-control"), Some("max-age=60"), "{protocol}");
            assert_eq!(ask(&edge, protocol, "GET", "/moved/..%2fx", &[]).status, 400, "{protocol}");
        }
    });
}

#[test]
fn a_fixed_answer_has_the_routes_headers_and_methods() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::with(backend, with_http3());
        edge.serve_with(&[HOST], &[], |domain| {
            let preflight = wire::Rule {
                methods: vec!["OPTIONS".into()],
                response_headers: changes(&[("access-control-allow-origin", "https://app.example")], &[]),
                ..below("/api")
            };
            let action =
                wire::route::Action::StaticAnswer(wire::StaticAnswer { status: 204, ..Default::default() });
            let empty = wire::Route { action: Some(action), ..fixed("", preflight) };
            let post = wire::Rule { methods: vec!["POST".into()], ..below("/hook") };
            domain.routes = vec![empty, fixed("taken", post), fleet::fixed("rest")];
        });
        for protocol in PROTOCOLS {
            let answer = ask(&edge, protocol, "OPTIONS", "/api/x", &[]);
            assert_eq!((answer.status, answer.body.len()), (204, 0), "{protocol}");
            assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
            assert_eq!(
                (answer.header("content-type"), answer.header("content-length")),
                (None, None),
                "{protocol}"
            );
            assert_eq!(ask(&edge, protocol, "POST", "/hook", &[]).text(), "taken", "{protocol}");
            assert_eq!(ask(&edge, protocol, "GET", "/hook", &[]).text(), "rest", "{protocol}");
            assert_eq!(ask(&edge, protocol, "POST", "/", &[]).status, 405, "{protocol}");
        }
    });
}

#[test]
fn maintenance_takes_the_site_away_and_keeps_its_challenges() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::with(backend, with_http3());
        let Served { tenant, lineage, domains } = edge.serve(&[HOST]);
        let mut body = fleet::domain_body(HOST, &[lineage]);
        body.hsts_max_age_seconds = Some(60);
        let mut version = 1;
        let mut set = |edge: &mut TestEdge, maintenance: Option<wire::Maintenance>| {
            version += 1;
            let body = wire::Domain { maintenance, ..body.clone() };
            edge.apply(vec![fleet::domain(domains[0].1, version, tenant, &body)]);
        };
        let text = "back at <noon>".to_owned();
        set(&mut edge, Some(wire::Maintenance { text, retry_after_seconds: 600 }));
        for protocol in PROTOCOLS {
            let answer = ask(&edge, protocol, "POST", "/x", &[]);
            assert_eq!((answer.status, answer.header("retry-after")), (503, Some("600")), "{protocol}");
            assert!(answer.text().contains("back at &lt;noon&gt;"), "{}", answer.text());
            assert_eq!(answer.header("cache-control"), Some("no-store"));
            assert_eq!(answer.header("strict-transport-security"), Some("max-age=60"));
        }
        assert_eq!(edge.log_lines(3)[2]["reason"], "maintenance");
        // Port 80 leads to https as ever; challenges are answered, ours and the origin's own.
        assert_eq!(plain(edge.http).get(HOST, "/x").status, 301);
        let token = "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA";
        let now_ms = portico_edge::clock::unix_ms();
        let path = format!("/.well-known/acme-challenge/{token}");
        assert_eq!(plain(edge.http).get(HOST, &path).text(), HOST, "by the tenant's own route");
        let challenges = edge.bench.publisher.challenges();
        let authorization = format!("{token}.pushed");
        challenges.set_http01(HOST, token, &authorization, now_ms + 60_000, now_ms).unwrap();
        assert_eq!(plain(edge.http).get(HOST, &path).text(), authorization);
        set(&mut edge, None);
        assert_eq!(ask(&edge, "h2", "GET", "/x", &[]).text(), HOST);
    });
}
