//! What one visitor's odd request makes of a page that others get: nothing (THREATS G4).

use portico_api::distribution as wire;
use portico_attacker::frame::{self, HEADERS, RST_STREAM, SETTINGS};

use super::asking::{Gate, wait_for_waiters};
use super::{HOST, Shop, ask, cached, get_by, is_hit, method, reply, status, target};
use crate::client::{any_version, https, try_https};
use crate::harness::{Setup, TestEdge, on_each_backend, wait_until};
use crate::origin::{Message, Origin};

const FRESH: &str = "Cache-Control: max-age=60";

/// The origin does not see such a field, so its answer is not for those who have it.
#[test]
fn a_field_that_connection_names_tells_no_variants_apart() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| {
            let language = message.header("accept-language").unwrap_or("any");
            reply(200, &[FRESH, "Vary: Accept-Language"], language)
        });
        let german = ("accept-language", "de");
        let attack = shop.ask("GET", "/", &[german, ("connection", "keep-alive, Accept-Language")]);
        assert_eq!(attack.text(), "any");
        let victim = shop.ask("GET", "/", &[german]);
        assert_eq!((victim.text().as_str(), is_hit(&victim)), ("de", false));
        let other = shop.get("/");
        assert_eq!((other.text().as_str(), is_hit(&other)), ("any", true), "it is for those who have none");
    });
}

fn with_http3() -> Setup {
    Setup { http3: true, ..Setup::default() }
}

#[test]
fn a_target_without_a_path_is_the_same_for_all_who_read_it() {
    on_each_backend(|backend| {
        let shop = Shop::with(backend, wire::CachePolicy::default(), with_http3(), |message| {
            reply(200, &[FRESH], target(message))
        });
        for (number, protocol) in ["h1", "h2", "h3"].into_iter().enumerate() {
            let query = format!("?q={protocol}");
            let attack = match protocol {
                "h1" => https(shop.edge.https, HOST).get(HOST, &format!("https://{HOST}{query}")),
                _ => get_by(&shop.edge, protocol, &query),
            };
            assert_eq!(attack.text(), format!("/{query}"), "{protocol}");
            let victim = shop.get(&format!("/{query}"));
            assert_eq!((victim.text(), is_hit(&victim)), (format!("/{query}"), true), "{protocol}");
            let lines = shop.edge.log_lines(2 * number + 2);
            assert_eq!(lines[2 * number]["target"], "/?q=REDACTED", "{protocol}");
        }
        // A fragment is no part of a request; `http` takes it away.
        assert_eq!(https(shop.edge.https, HOST).get(HOST, &format!("https://{HOST}#top")).text(), "/");
        assert!(shop.origin.faults().is_empty(), "{:?}", shop.origin.faults());
    });
}

#[test]
fn what_is_no_target_goes_to_no_origin() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |_| reply(200, &[FRESH], "page"));
        for given in ["*", "?q=1", "page", HOST, "shop.example:443"] {
            assert_eq!(https(shop.edge.https, HOST).get(HOST, given).status, 400, "{given}");
        }
        for path in ["page", "*", "https://shop.example/", ";x"] {
            let mut client = try_https(shop.edge.https, Some(HOST), any_version(&["h2"])).unwrap();
            let pseudo = [(":method", "GET"), (":scheme", "https"), (":authority", HOST), (":path", path)];
            let block: Vec<u8> =
                pseudo.iter().flat_map(|(name, value)| frame::literal(name, value.as_bytes())).collect();
            let head = frame::frame(HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, &block);
            client.send([frame::PREFACE, &frame::frame(SETTINGS, 0, 0, &[]), &head].concat());
            let answer = std::iter::from_fn(|| client.frame().ok()).find(|frame| frame.stream == 1).unwrap();
            // Malformed; or `:status: 400` of the static table (RFC 7541 appendix A).
            let is_refused =
                answer.kind == RST_STREAM || (answer.kind == HEADERS && answer.payload[0] == 0x8c);
            assert!(is_refused, "{path}: {answer:?}");
        }
        assert!(shop.origin.messages().is_empty());
        assert_eq!(shop.ask("OPTIONS", "*", &[]).status, 404, "a target, and of no route");
    });
}

fn all_fields(message: &Message) -> String {
    message.headers.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
}

/// CGI, WSGI and PHP make one of `-` and `_`, some of everything that is no letter.
#[test]
fn no_field_in_another_spelling_decides_what_others_get() {
    on_each_backend(|backend| {
        let shop =
            Shop::new(backend, |message| reply(200, &[FRESH, "Vary: Accept-Language"], &all_fields(message)));
        let spellings = [
            "X_Host",
            "X-Original_Host",
            "X_Http_Method",
            "X_METHOD_OVERRIDE",
            "Accept_Language",
            "X.Host",
            "X_Anything",
        ];
        for (number, name) in spellings.iter().enumerate() {
            let path = format!("/{number}");
            shop.ask("GET", &path, &[(name, "evil-gadget")]);
            let victim = shop.get(&path);
            assert!(is_hit(&victim) && !victim.text().contains("evil-gadget"), "{name}: {}", victim.text());
        }
        let posted = shop.ask("POST", "/", &[("X_Anything", "mine"), ("content-length", "0")]);
        assert!(posted.text().contains("mine"), "no answer to it is kept");
    });
}

#[test]
fn what_the_route_itself_sets_is_no_visitors() {
    on_each_backend(|backend| {
        let origin = Origin::start(|message| reply(200, &[FRESH], &all_fields(message)));
        let mut edge = TestEdge::start(backend);
        edge.serve_with(&[HOST], &[origin.grant()], |body| {
            let set = |name: &str| wire::HeaderField { name: name.into(), value: "the-tenants".into() };
            let changes =
                wire::HeaderChanges { set: vec![set("x_tenant"), set("x-host")], ..Default::default() };
            let rule = wire::Rule {
                level: 1,
                path: Some(wire::rule::Path::Prefix("/".into())),
                request_headers: Some(changes),
                ..wire::Rule::default()
            };
            let route = cached(&origin.url(), &wire::CachePolicy::default());
            body.routes = vec![wire::Route { path_prefix: String::new(), rule: Some(rule), ..route }];
        });
        let mut client = https(edge.https, HOST);
        let answer = ask(&mut client, "GET", "/", &[("x_tenant", "evil"), ("x-host", "evil")]);
        let text = answer.text();
        assert!(text.contains("x_tenant=the-tenants") && text.contains("x-host=the-tenants"), "{text}");
        assert!(!text.contains("evil"), "{text}");
        assert!(is_hit(&ask(&mut client, "GET", "/", &[])));
    });
}

#[test]
fn a_field_on_three_lines_is_another_variant_than_on_one() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| {
            // As the first line says, like many a server.
            reply(
                200,
                &[FRESH, "Vary: Accept-Language"],
                message.header("accept-language").unwrap_or_default(),
            )
        });
        let name = "accept-language";
        let attack = [(name, "xx"), (name, "de-DE"), (name, "de;q=0.9")];
        assert_eq!(shop.ask("GET", "/", &attack).text(), "xx");
        let victim = shop.ask("GET", "/", &[(name, "xx,de-DE,de;q=0.9")]);
        assert_eq!((victim.text().as_str(), is_hit(&victim)), ("xx,de-DE,de;q=0.9", false));
        assert!(is_hit(&shop.ask("GET", "/", &attack)));
    });
}

/// Origins answer an odd field with 400, 403 or 431 of their own.
const ODD: (&str, &str) = ("x-odd", "1");

#[test]
fn one_odd_request_does_not_take_a_page_out_of_the_cache() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| match (message.header("x-odd"), target(message)) {
            (Some(_), _) => reply(400, &[], "odd"),
            (None, "/new") => reply(200, &[FRESH], "page"),
            (None, _) if message.header("if-none-match").is_some() => reply(304, &["ETag: \"a\""], ""),
            (None, _) => reply(200, &[FRESH, "Age: 60", "ETag: \"a\""], "page"),
        });
        // One that is stale from the first moment.
        assert_eq!(shop.get("/stale").text(), "page");
        for path in ["/stale", "/new"] {
            let odd = shop.ask("GET", path, &[ODD]);
            assert_eq!((odd.status, status(&odd).contains("detail=status")), (400, true), "{odd:?}");
        }
        let answer = shop.get("/stale");
        assert_eq!((answer.text().as_str(), status(&answer)), ("page", "portico; fwd=stale; fwd-status=304"));
        assert_eq!(shop.get("/new").text(), "page");
        assert!(is_hit(&shop.get("/new")), "nobody has kept it out of the cache");
    });
}

#[test]
fn those_who_wait_for_an_odd_request_ask_once() {
    on_each_backend(|backend| {
        let (open, gate) = Gate::new();
        let shop = Shop::new(backend, move |message| {
            if message.header("x-odd").is_some() {
                gate.pass();
                return reply(403, &[], "odd");
            }
            reply(200, &[FRESH], "page")
        });
        let mut odd = shop.connect();
        odd.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Odd: 1\r\n\r\n"));
        wait_until("the origin is asked", || shop.origin.messages().len() == 1);
        let visitors: Vec<_> = (0..8)
            .map(|_| {
                let mut client = shop.connect();
                std::thread::spawn(move || ask(&mut client, "GET", "/", &[]))
            })
            .collect();
        wait_for_waiters(&shop, 8);
        open.send(()).unwrap();
        assert_eq!(odd.answer().status, 403);
        for visitor in visitors {
            assert_eq!(visitor.join().unwrap().text(), "page");
        }
        assert_eq!(shop.origin.messages().len(), 2);
    });
}

/// A naive origin answers any method with 200.
#[test]
fn a_method_that_nobody_knows_is_no_purge() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| match (method(message), target(message)) {
            ("GET", _) if message.header("if-none-match").is_some() => {
                reply(304, &["ETag: \"a\"", FRESH], "")
            }
            ("GET", "/stands-in") => {
                reply(200, &["Cache-Control: max-age=60, stale-while-revalidate=60", "ETag: \"a\""], "page")
            }
            _ => reply(200, &[FRESH, "ETag: \"a\""], "page"),
        });
        let revalidated = "portico; fwd=stale; fwd-status=304";
        for (method, path, expected) in [
            ("PURGE", "/a", revalidated),
            ("FOO", "/stands-in", "portico; hit; ttl=0; detail=stale-while-revalidate"),
            ("SEARCH", "/searched", "portico; hit; ttl=60"),
            ("MOVE", "/moved", "portico; fwd=uri-miss; stored"),
            ("POST", "/posted", "portico; fwd=uri-miss; stored"),
        ] {
            shop.get(path);
            wait_until("it is kept", || is_hit(&shop.get(path)));
            assert_eq!(shop.ask(method, path, &[("content-length", "0")]).status, 200, "{method}");
            let answer = shop.get(path);
            let told = status(&answer).replace("ttl=59", "ttl=60");
            assert_eq!((answer.text().as_str(), told.as_str()), ("page", expected), "{method}");
        }
    });
}
