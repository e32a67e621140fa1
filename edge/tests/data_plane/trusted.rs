//! What proxies before us say of their clients: believed from those that are listed, replaced from all others.

use std::net::SocketAddr;
use std::sync::Arc;

use portico_api::distribution as wire;
use portico_edge::http::visitor::{TrustedField, TrustedProxies};
use portico_edge::io::Backend;

use crate::client::{Answer, https, plain};
use crate::harness::{Setup, TestEdge, on_each_backend, proxy_to};
use crate::origin::{Message, Origin};

const HOST: &str = "shop.example";
const WAY: [(&str, &str); 3] = [
    ("X-Forwarded-For", "1.2.3.4, 198.51.100.7, 10.0.0.2"),
    ("X-Forwarded-Proto", "https"),
    ("X-Request-Id", "balancer-1"),
];

fn edge_behind(backend: Backend, networks: &[&str], field: TrustedField) -> (TestEdge, Origin) {
    let origin = Origin::echoing();
    let networks = networks.iter().map(|network| network.parse().unwrap()).collect();
    let trusted_proxies = Some(Arc::new(TrustedProxies { networks, field }));
    let mut edge = TestEdge::with(backend, Setup { trusted_proxies, ..Setup::default() });
    let route = proxy_to(&origin.url());
    edge.serve_with(&[HOST], &[origin.grant()], |domain: &mut wire::Domain| {
        domain.routes = vec![route.clone()];
        domain.hsts_max_age_seconds = Some(60);
    });
    (edge, origin)
}

fn ask(address: SocketAddr, path: &str, fields: &[(&str, &str)]) -> Answer {
    let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    plain(address).send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n")).answer()
}

fn only(origin: &Origin) -> Message {
    let messages = origin.messages();
    assert_eq!(messages.len(), 1, "{messages:?}");
    messages[0].clone()
}

#[test]
fn a_listed_proxy_is_believed_as_far_as_the_first_who_is_not_listed() {
    on_each_backend(|backend| {
        let (edge, origin) =
            edge_behind(backend, &["127.0.0.0/8", "10.0.0.0/8"], TrustedField::XForwardedFor);
        let answer = ask(edge.http, "/", &WAY);
        assert_eq!(answer.text(), "/", "the client speaks TLS to the proxy: it is not sent to https again");
        assert!(answer.header("strict-transport-security").is_some());
        assert_eq!(answer.header("x-request-id"), Some("balancer-1"));
        let message = only(&origin);
        assert_eq!(message.all("x-forwarded-for"), ["198.51.100.7, 10.0.0.2, 127.0.0.1"]);
        assert_eq!(message.all("x-forwarded-proto"), ["https"]);
        let forwarded = "for=198.51.100.7;host=\"shop.example\";proto=https, for=10.0.0.2, for=127.0.0.1";
        assert_eq!(message.all("forwarded"), [forwarded]);
        assert_eq!(message.all("x-request-id"), ["balancer-1"]);
        let line = &edge.log_lines(1)[0];
        assert_eq!((&line["client"], &line["peer"]), (&"198.51.100.7".into(), &"127.0.0.1".into()));
        assert_eq!(line["request_id"], "balancer-1");

        let (edge, origin) = edge_behind(backend, &["127.0.0.1/32"], TrustedField::Forwarded);
        ask(edge.http, "/", &[("Forwarded", "for=\"[2001:db8::9]\";proto=https"), WAY[0]]);
        assert_eq!(only(&origin).all("x-forwarded-for"), ["2001:db8::9, 127.0.0.1"], "the named field alone");
    });
}

#[test]
fn everybody_else_is_replaced() {
    on_each_backend(|backend| {
        let (edge, origin) = edge_behind(backend, &["192.0.2.0/24"], TrustedField::XForwardedFor);
        let answer = ask(edge.http, "/", &WAY);
        assert_eq!((answer.status, answer.header("location")), (301, Some("https://shop.example/")));
        assert_ne!(answer.header("x-request-id"), Some("balancer-1"));
        assert!(origin.messages().is_empty());

        let mut client = https(edge.https, HOST);
        let lines: String = WAY.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let answer = client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n")).answer();
        let message = only(&origin);
        assert_eq!(message.all("x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(message.all("forwarded"), ["for=127.0.0.1;host=\"shop.example\";proto=https"]);
        let id = answer.header("x-request-id").unwrap();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        assert_eq!(message.all("x-request-id"), [id], "one name for origin, client and log");
        let lines = edge.log_lines(2);
        assert_eq!((&lines[1]["request_id"], &lines[1]["client"]), (&id.into(), &"127.0.0.1".into()));
    });
}

#[test]
fn each_answer_names_its_own_request_and_a_trace_goes_on() {
    on_each_backend(|backend| {
        let origin = Origin::start(|message| {
            crate::origin::Reply::Keep(
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Request-Id: of-the-origin\r\nCache-Control: max-age=60\r\n\r\n{}",
                    message.request_line.len().min(99)
                )
                .into_bytes(),
            )
        });
        let mut edge = TestEdge::start(backend);
        let mut route = proxy_to(&origin.url());
        if let Some(wire::route::Action::Proxy(proxy)) = &mut route.action {
            proxy.cache = Some(wire::CachePolicy::default());
        }
        edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![route.clone()]);
        let mut client = https(edge.https, HOST);
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let first =
            client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nTraceparent: {trace}\r\n\r\n")).answer();
        let hit = client.get(HOST, "/");
        assert!(hit.header("cache-status").unwrap().starts_with("portico; hit"));
        let ids = [&first, &hit].map(|answer| answer.header("x-request-id").unwrap().to_owned());
        assert!(ids[0] != ids[1] && !ids.contains(&"of-the-origin".to_owned()), "{ids:?}");
        assert_eq!(only(&origin).all("traceparent"), [trace]);
        client.get(HOST, "/other");
        let begun = origin.messages()[1].header("traceparent").unwrap().to_owned();
        assert!(begun.starts_with("00-") && begun.ends_with("-00") && begun.len() == 55, "{begun}");
        assert!(client.get("nobody.example", "/").header("x-request-id").is_some(), "a page of our own too");
    });
}
