use portico_api::v1::{Action, Route};
use serde_json::json;

use super::*;

fn spec(route: serde_json::Value) -> DomainSpec {
    serde_json::from_value(json!({ "hostname": "shop.example", "routes": [route] })).unwrap()
}

fn first_fault(route: serde_json::Value, grants: &[EgressGrant]) -> Option<(String, String)> {
    let policy =
        EgressPolicy::new(vec!["127.0.0.11/32".parse().unwrap()], vec!["127.0.0.1:7070".parse().unwrap()]);
    let errors = domain(&spec(route), &policy, grants);
    errors.into_iter().next().map(|error| (error.pointer, error.code))
}

fn proxy(origin: &str) -> serde_json::Value {
    json!({ "action": { "type": "proxy", "origin": origin } })
}

#[test]
fn origins_that_are_wrong_or_denied_point_at_their_field() {
    let grants = [EgressGrant { cidr: "127.0.0.0/8".into(), ports: vec![9000, 7070] }];
    for good in
        ["http://origin.example", "https://origin.example:8443", "http://origin.example/", "http://1.1.1.1"]
    {
        assert_eq!(first_fault(proxy(good), &[]), None, "{good}");
    }
    let origin = "/routes/0/action/origin".to_owned();
    for wrong in [
        "",
        "origin.example",
        "ftp://origin.example",
        "http://",
        "http://a.example/path",
        "http://a.example?x",
        "http://u:p@a.example",
        "http://a.example#f",
        "http://a.example:0",
        "http://a.example:99999",
        "http://a b",
        "http:\\\\a.example",
        "javascript:alert(1)",
        "http://a.example\r\nX: y",
    ] {
        assert_eq!(
            first_fault(proxy(wrong), &grants),
            Some((origin.clone(), "invalid_origin".into())),
            "{wrong}"
        );
    }
    for denied in [
        "http://127.0.0.1",
        "http://2130706433",
        "http://0177.0.0.1",
        "http://127.1",
        "http://0x7f000001",
        "http://[::1]",
        "http://[::ffff:7f00:1]",
        "http://169.254.169.254",
        "http://10.0.0.1",
        "http://1.1.1.1:22",
        "http://127.0.0.1.:80",
    ] {
        assert_eq!(
            first_fault(proxy(denied), &[]),
            Some((origin.clone(), "origin_denied".into())),
            "{denied}"
        );
    }
    assert_eq!(first_fault(proxy("http://127.0.0.1:9000"), &grants), None);
    let own = ["http://127.0.0.1:7070", "http://127.0.0.11:9000"];
    for denied in own {
        assert_eq!(
            first_fault(proxy(denied), &grants),
            Some((origin.clone(), "origin_own".into())),
            "{denied}"
        );
    }
}

#[test]
fn routes_are_checked_field_by_field() {
    let fixed =
        |body: &str, status: u16| json!({ "action": { "type": "static", "body": body, "status": status } });
    let to = |to: &str, status: u16| json!({ "action": { "type": "redirect", "to": to, "status": status } });
    let path = |path: &str| json!({ "path_prefix": path, "action": { "type": "static", "body": "" } });
    for (route, expected) in [
        (fixed("hello", 200), None),
        (fixed(&"x".repeat(64 * 1024), 200), None),
        (fixed(&"x".repeat(64 * 1024 + 1), 200), Some("/routes/0/action/body")),
        (fixed("", 99), Some("/routes/0/action/status")),
        (fixed("", 304), Some("/routes/0/action/status")),
        (fixed("", 600), Some("/routes/0/action/status")),
        (to("https://example.org/new", 301), None),
        (to("https://example.org", 300), Some("/routes/0/action/status")),
        (to("/new", 301), Some("/routes/0/action/to")),
        (to("https://e.example/\r\nSet-Cookie: a=b", 301), Some("/routes/0/action/to")),
        (path("/a/b"), None),
        (path("a"), Some("/routes/0/path_prefix")),
        (path(""), Some("/routes/0/path_prefix")),
        (path("/a?b"), Some("/routes/0/path_prefix")),
        (path("/a b"), Some("/routes/0/path_prefix")),
        (fixed("", 204), None),
        (fixed("x", 204), Some("/routes/0/action/body")),
        (
            json!({ "action": { "type": "redirect", "to": "https://a.example/?x", "keep_path": true } }),
            Some("/routes/0/action/to"),
        ),
        (
            json!({ "action": { "type": "redirect", "to": "https://a.example/#x", "keep_query": true } }),
            Some("/routes/0/action/to"),
        ),
        (json!({ "action": { "type": "redirect", "to": "https://a.example/?x" } }), None),
        (
            json!({ "action": { "type": "proxy", "origin": "http://a.example", "host_header": "a.example/x" } }),
            Some("/routes/0/action/host_header"),
        ),
        (
            json!({ "action": { "type": "static", "body": "", "content_type": "text/html\r\nX: y" } }),
            Some("/routes/0/action/content_type"),
        ),
    ] {
        let found = first_fault(route.clone(), &[]).map(|(pointer, _)| pointer);
        assert_eq!(found.as_deref(), expected, "{route}");
    }
}

#[test]
fn proxies_are_checked_field_by_field() {
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = rcgen::CertificateParams::new(vec!["ca.example".to_owned()]).unwrap().self_signed(&key).unwrap();
    let ca = ca.pem();
    let two = json!([{ "url": "https://a.example" }, { "url": "http://b.example", "weight": 3 }]);
    let (host, path) = ("invalid_host", "invalid_path");
    let (range, pem) = ("out_of_range", "invalid_certificate");
    for (change, expected) in [
        (json!({}), None),
        (json!({ "tls": { "server_name": "in.example", "ca_pem": ca } }), None),
        (json!({ "protocol": "http2", "health_check": { "path": "/up?x=1", "interval_seconds": 1 } }), None),
        (json!({ "timeouts": { "connect_ms": 10 }, "breaker": { "in_flight_max": 1 } }), None),
        (json!({ "origins": null }), Some(("/origin", "missing_field"))),
        (json!({ "origin": "http://c.example" }), Some(("/origin", "conflict"))),
        (json!({ "origins": [{ "url": "ftp://a" }] }), Some(("/origins/0/url", "invalid_origin"))),
        (json!({ "origins": [{ "url": "http://10.0.0.1" }] }), Some(("/origins/0/url", "origin_denied"))),
        (json!({ "origins": [{ "url": "http://a", "weight": 0 }] }), Some(("/origins/0/weight", range))),
        (
            json!({ "origins": [{ "url": "http://a" }, { "url": "http://a/" }] }),
            Some(("/origins/1/url", "duplicate")),
        ),
        (
            json!({ "origins": (0..17).map(|n| json!({ "url": format!("http://{n}.a") })).collect::<Vec<_>>() }),
            Some(("/origins", "too_many")),
        ),
        (json!({ "tls": { "server_name": "a b" } }), Some(("/tls/server_name", host))),
        (json!({ "tls": { "ca_pem": "" } }), Some(("/tls/ca_pem", pem))),
        (json!({ "tls": { "ca_pem": key.serialize_pem() } }), Some(("/tls/ca_pem", pem))),
        (json!({ "tls": { "ca_pem": ca.repeat(17) } }), Some(("/tls/ca_pem", pem))),
        (json!({ "tls": {}, "origins": [{ "url": "http://a.example" }] }), Some(("/tls", "unused"))),
        (json!({ "health_check": { "path": "up" } }), Some(("/health_check/path", path))),
        (
            json!({ "health_check": { "interval_seconds": 0 } }),
            Some(("/health_check/interval_seconds", range)),
        ),
        (json!({ "health_check": { "healthy_after": 0 } }), Some(("/health_check/healthy_after", range))),
        (
            json!({ "health_check": { "unhealthy_after": 11 } }),
            Some(("/health_check/unhealthy_after", range)),
        ),
        (json!({ "timeouts": { "connect_ms": 60_001 } }), Some(("/timeouts/connect_ms", range))),
        (json!({ "timeouts": { "first_byte_ms": 9 } }), Some(("/timeouts/first_byte_ms", range))),
        (json!({ "timeouts": { "idle_ms": 600_001 } }), Some(("/timeouts/idle_ms", range))),
        (json!({ "breaker": { "in_flight_max": 0 } }), Some(("/breaker/in_flight_max", range))),
        (
            json!({ "breaker": { "in_flight_max": 1, "pending_max": 10_001 } }),
            Some(("/breaker/pending_max", range)),
        ),
    ] {
        let mut action = json!({ "type": "proxy", "origins": two });
        for (name, value) in change.as_object().unwrap() {
            action[name] = value.clone();
        }
        action.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        let expected = expected.map(|(at, code)| (format!("/routes/0/action{at}"), code.to_owned()));
        assert_eq!(first_fault(json!({ "action": action }), &[]), expected, "{change:.300}");
    }
}

#[test]
fn rules_are_checked_field_by_field() {
    let refused = "header_refused";
    for (change, expected) in [
        (json!({ "exact": true, "methods": ["GET", "POST"], "headers": [{ "name": "X-Beta" }] }), None),
        (json!({ "replace_prefix": "/new" }), None),
        (json!({ "request_headers": { "set": { "x-key": "1" }, "remove": ["cookie"] } }), None),
        (
            json!({ "response_headers": { "set": { "cache-control": "no-cache" }, "remove": ["server"] } }),
            None,
        ),
        (json!({ "methods": ["get"] }), Some(("/methods/0", "invalid_method"))),
        (json!({ "methods": ["GET", "GET"] }), Some(("/methods/1", "duplicate"))),
        (json!({ "headers": [{ "name": "a" }, { "name": "A" }] }), Some(("/headers/1/name", "duplicate"))),
        (
            json!({ "headers": [{ "name": "x", "equals": "a\nb" }] }),
            Some(("/headers/0/equals", "invalid_header")),
        ),
        (json!({ "headers": [{ "name": "X-Forwarded-For" }] }), Some(("/headers/0/name", refused))),
        (json!({ "replace_prefix": "/a/../b" }), Some(("/replace_prefix", "invalid_path"))),
        (
            json!({ "request_headers": { "set": { "Host": "a" } } }),
            Some(("/request_headers/set/Host", refused)),
        ),
        (
            json!({ "request_headers": { "remove": ["x-ok", "Content-Length"] } }),
            Some(("/request_headers/remove/1", refused)),
        ),
        (
            json!({ "response_headers": { "set": { "Strict-Transport-Security": "max-age=0" } } }),
            Some(("/response_headers/set/Strict-Transport-Security", refused)),
        ),
        (
            json!({ "response_headers": { "set": { "X-Request-Id": "1" } } }),
            Some(("/response_headers/set/X-Request-Id", refused)),
        ),
        (
            json!({ "response_headers": { "set": { "Date": "x" } } }),
            Some(("/response_headers/set/Date", refused)),
        ),
        (
            json!({ "response_headers": { "set": { "age": "5" } } }),
            Some(("/response_headers/set/age", refused)),
        ),
        (json!({ "response_headers": { "remove": ["age"] } }), None),
        (
            json!({ "action": { "type": "static", "body": "x", "status": 204 } }),
            Some(("/action/body", "not_for_this_status")),
        ),
        (
            json!({ "response_headers": { "set": { "x/y": "1" } } }),
            Some(("/response_headers/set/x~1y", "invalid_header")),
        ),
        (
            json!({ "response_headers": { "set": { "x-a": "1\r\nset-cookie: a=b" } } }),
            Some(("/response_headers/set/x-a", "invalid_header")),
        ),
        (
            json!({ "action": { "type": "static", "body": "" }, "replace_prefix": "/new" }),
            Some(("/replace_prefix", "not_for_this_action")),
        ),
    ] {
        let mut route = json!({ "action": { "type": "proxy", "origin": "http://a.example" } });
        for (name, value) in change.as_object().unwrap() {
            route[name] = value.clone();
        }
        let expected = expected.map(|(at, code)| (format!("/routes/0{at}"), code.to_owned()));
        assert_eq!(first_fault(route, &[]), expected, "{change}");
    }
}

#[test]
fn a_route_that_no_request_reaches_is_refused() {
    let mut spec = spec(json!({ "methods": ["GET"], "action": { "type": "static", "body": "" } }));
    let more = json!([
        { "path_prefix": "/a", "action": { "type": "static", "body": "" } },
        { "path_prefix": "/a/b", "headers": [{ "name": "x" }], "action": { "type": "static", "body": "" } },
        { "path_prefix": "bad", "action": { "type": "static", "body": "" } },
        { "path_prefix": "/b", "methods": ["HEAD"], "action": { "type": "static", "body": "" } },
    ]);
    spec.routes.extend(serde_json::from_value::<Vec<Route>>(more).unwrap());
    let errors = domain(&spec, &EgressPolicy::default(), &[]);
    let found: Vec<_> = errors.iter().map(|error| (error.pointer.as_str(), error.code.as_str())).collect();
    assert_eq!(
        found,
        [
            ("/routes/3/path_prefix", "invalid_path"),
            ("/routes/2/path_prefix", "unreachable"),
            ("/routes/4/path_prefix", "unreachable")
        ]
    );
    assert!(errors[1].message.contains("/routes/1 takes all its requests"), "{}", errors[1].message);
    assert!(errors[2].message.contains("/routes/0 takes all its requests"), "{}", errors[2].message);
}

fn authority_pem() -> String {
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

#[test]
fn authorities_of_clients_that_are_none_point_at_their_field() {
    let check = |mode: &str, pem: &str, https_redirect: bool| {
        let spec: DomainSpec = serde_json::from_value(json!({
            "hostname": "shop.example", "https_redirect": https_redirect,
            "client_certificates": { "mode": mode, "ca_pem": pem },
        }))
        .unwrap();
        let errors = domain(&spec, &EgressPolicy::default(), &[]);
        errors.into_iter().map(|error| (error.pointer, error.code, error.message)).collect::<Vec<_>>()
    };
    let good = authority_pem();
    assert_eq!(check("require", &good, true), []);
    assert_eq!(check("optional", &good.repeat(16), false), []);
    let leaf = rcgen::generate_simple_self_signed(["shop.example".to_owned()]).unwrap();
    let with_key = good.clone() + &leaf.signing_key.serialize_pem();
    for (pem, hint) in [
        ("", "holds 0 certificates"),
        ("-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n", "certificate 1"),
        (leaf.cert.pem().as_str(), "is no certificate of an authority"),
        (with_key.as_str(), "private key"),
        (good.repeat(17).as_str(), "17 certificates"),
        (" ".repeat(32 * 1024 + 1).as_str(), "at most 32768"),
    ] {
        let errors = check("require", pem, true);
        let [(pointer, code, message)] = &errors[..] else { panic!("{errors:?}") };
        assert_eq!((pointer.as_str(), code.as_str()), ("/client_certificates/ca_pem", "invalid_certificate"));
        assert!(message.contains(hint), "{message}");
    }
    let errors = check("require", &good, false);
    assert_eq!(
        (errors.len(), errors[0].0.as_str(), errors[0].1.as_str()),
        (1, "/https_redirect", "conflict")
    );
}

#[test]
fn what_a_domain_tells_browsers_and_visitors_is_checked() {
    let check = |change: serde_json::Value| {
        let mut value = json!({ "hostname": "shop.example" });
        for (name, wish) in change.as_object().unwrap() {
            value[name] = wish.clone();
        }
        let spec: DomainSpec = serde_json::from_value(value).unwrap();
        let errors = domain(&spec, &EgressPolicy::default(), &[]);
        errors.into_iter().map(|error| (error.pointer, error.code)).collect::<Vec<_>>()
    };
    let one = |pointer: &str, code: &str| vec![(pointer.to_owned(), code.to_owned())];
    let year = 31_536_000;
    let all = json!({ "hsts_max_age_seconds": year, "hsts_include_subdomains": true, "hsts_preload": true });
    assert_eq!(check(all.clone()), []);
    let mut without_redirect = all;
    without_redirect["https_redirect"] = json!(false);
    assert_eq!(check(without_redirect), one("/hsts_preload", "incomplete"));
    assert_eq!(
        check(json!({ "hsts_include_subdomains": true })),
        one("/hsts_include_subdomains", "incomplete")
    );
    assert_eq!(check(json!({ "early_data": true })), []);
    assert_eq!(check(json!({ "early_data": true, "http3": false })), one("/early_data", "conflict"));
    let asked = json!({ "mode": "optional", "ca_pem": authority_pem() });
    let both = json!({ "early_data": true, "client_certificates": asked });
    assert_eq!(check(both), one("/early_data", "conflict"));
    assert_eq!(check(json!({ "hsts_max_age_seconds": 0 })), [], "takes back what browsers were told");
    let all_taken_back = json!({ "hsts_max_age_seconds": 0, "hsts_include_subdomains": true });
    assert_eq!(check(all_taken_back), one("/hsts_include_subdomains", "incomplete"));
    let too_long = json!({ "hsts_max_age_seconds": 63_072_001 });
    assert_eq!(check(too_long), one("/hsts_max_age_seconds", "out_of_range"));
    assert_eq!(check(json!({ "maintenance": {} })), []);
    assert_eq!(
        check(json!({ "maintenance": { "text": "x".repeat(500), "retry_after_seconds": 604_800 } })),
        []
    );
    assert_eq!(
        check(json!({ "maintenance": { "text": "x".repeat(501) } })),
        one("/maintenance/text", "too_large")
    );
    for seconds in [0, 604_801] {
        let asked = json!({ "maintenance": { "retry_after_seconds": seconds } });
        assert_eq!(check(asked), one("/maintenance/retry_after_seconds", "out_of_range"));
    }
}

#[test]
fn a_domain_is_bounded_as_a_whole() {
    let policy = EgressPolicy::default();
    let mut large = spec(json!({ "action": { "type": "static", "body": "" } }));
    let route = |number: usize, body: usize| Route::new(format!("/{number}"), Action::text("x".repeat(body)));
    large.routes = (0..5).map(|number| route(number, 60_000)).collect();
    assert_eq!(domain(&large, &policy, &[])[0].code, "too_large");
    large.routes = (0..101).map(|number| route(number, 0)).collect();
    assert_eq!(domain(&large, &policy, &[])[0].code, "too_many");
    large.routes = vec![route(1, 0), route(1, 0)];
    assert_eq!(domain(&large, &policy, &[])[0].pointer, "/routes/1/path_prefix");
    large.routes.clear();
    large.cells = vec!["a".parse().unwrap(), "a".parse().unwrap()];
    assert_eq!(domain(&large, &policy, &[])[0].pointer, "/cells");
    large.cells = (0..=CELLS_OF_NAME_MAX).map(|n| format!("c{n}").parse().unwrap()).collect();
    assert_eq!(domain(&large, &policy, &[])[0].code, "too_many");
}

#[test]
fn hostnames_that_cannot_be_a_tenants_are_refused_and_the_rest_is_normalised() {
    let read = |text: &str| {
        let mut spec = spec(json!({ "action": { "type": "static", "body": "" } }));
        spec.hostname = text.to_owned();
        hostname(&mut spec).map(|_| spec.hostname).map_err(|error| (error.pointer, error.code))
    };
    assert_eq!(read("WWW.Shop.Example.").unwrap(), "www.shop.example");
    assert_eq!(read("bücher.example").unwrap(), "xn--bcher-kva.example");
    assert_eq!(read("*.Shop.Example").unwrap(), "*.shop.example");
    let long = format!("{}.example", "a".repeat(300));
    for wrong in
        ["", "shop", "127.0.0.1", "[::1]", "co.uk", "*.co.uk", "a..b.example", "a b.example", "*", &long]
    {
        assert_eq!(read(wrong), Err(("/hostname".into(), "domain_name_invalid".into())), "{wrong}");
    }
}

#[test]
fn tenants_and_suspensions_are_checked() {
    let read = |value: serde_json::Value| {
        let spec: TenantSpec = serde_json::from_value(value).unwrap();
        tenant(&spec, &OwnAddresses::default(), &[])
            .into_iter()
            .map(|error| error.pointer)
            .collect::<Vec<_>>()
    };
    assert_eq!(read(json!({ "name": "acme-1" })), Vec::<String>::new());
    assert_eq!(read(json!({ "name": "Acme" })), ["/name"]);
    assert_eq!(read(json!({ "name": "a", "domains_max": 0 })), ["/domains_max"]);
    let grants = json!({ "name": "a", "egress_grants": [{ "cidr": "10.0.0.0/40", "ports": [] }] });
    assert_eq!(read(grants), ["/egress_grants/0/cidr", "/egress_grants/0/ports"]);

    let asked = |value: serde_json::Value| {
        let asked: Suspension = serde_json::from_value(value).unwrap();
        suspension(&asked, 1_700_000_000_000).into_iter().map(|error| error.pointer).collect::<Vec<_>>()
    };
    assert_eq!(asked(json!({ "mode": "legal" })), Vec::<String>::new());
    assert_eq!(asked(json!({ "mode": "page", "until": "2020-01-01T00:00:00Z" })), ["/until"]);
    assert_eq!(
        asked(json!({ "mode": "page", "until": "soon", "reason": "x".repeat(501) })),
        ["/reason", "/until"]
    );
}
