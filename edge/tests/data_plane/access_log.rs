//! What a line of the access log says, read by others' rules, and what it never says.

use std::net::SocketAddr;

use http_body_util::Empty;
use portico_edge::config::LogFormat;
use portico_edge::privacy::{AddressDetail, Privacy, QueryValues};
use regex::Regex;

use crate::client::{collect, config, http2, https, plain, runtime, try_https};
use crate::harness::{Setup, TestEdge, on_each_backend, proxy_to, wait_until};
use crate::http3_client::http3_get;
use crate::origin::Origin;

const HOST: &str = "shop.example";

/// The combined format as those who read it describe it: a quoted field ends at the first quote without a backslash.
pub fn combined() -> Regex {
    let quoted = r#""((?:[^"\\]|\\.)*)""#;
    Regex::new(&format!(
        r"^(?<host>\S+) (?<ident>\S+) (?<user>\S+) \[(?<time>\d\d/[A-Z][a-z][a-z]/\d{{4}}:\d\d:\d\d:\d\d [+-]\d{{4}})\] {quoted} (?<status>\d{{3}}) (?<bytes>\d+|-) {quoted} {quoted}$"
    ))
    .unwrap()
}

/// Undoes the escapes of nginx.
fn plain_text(field: &str) -> Vec<u8> {
    let (mut text, mut rest) = (Vec::new(), field.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        if *first == b'\\' {
            assert_eq!(after[0], b'x', "{field}");
            text.push(u8::from_str_radix(std::str::from_utf8(&after[1..3]).unwrap(), 16).unwrap());
            rest = &after[3..];
        } else {
            text.push(*first);
            rest = after;
        }
    }
    text
}

fn text_of(edge: &TestEdge, lines: usize) -> String {
    let read = || std::fs::read_to_string(&edge.log).unwrap();
    wait_until("all lines are written", || read().matches('\n').count() >= lines);
    read()
}

fn http2_with(address: SocketAddr, fields: &[(&str, &[u8])]) -> u16 {
    runtime().block_on(async {
        let mut sender = http2::<Empty<bytes::Bytes>>(address, Some(HOST)).await.unwrap();
        let mut request = http::Request::get(format!("https://{HOST}/two?q=1"));
        for (name, value) in fields {
            request = request.header(*name, http::HeaderValue::from_bytes(value).unwrap());
        }
        let answer = sender.send_request(request.body(Empty::new()).unwrap()).await.unwrap();
        collect(answer).await.unwrap().status
    })
}

#[test]
fn combined_lines_are_read_by_the_rules_of_others_and_cannot_be_forged() {
    on_each_backend(|backend| {
        let privacy = Privacy { query_values: QueryValues::Kept, ..Privacy::default() };
        let log_format = LogFormat::VhostCombined;
        let setup = Setup { log_format, privacy, http3: true, ..Setup::default() };
        let mut edge = TestEdge::with(backend, setup);
        edge.serve(&[HOST]);
        let forged: &[u8] = b"x\" 200 0 \"-\" \"\\\" 127.0.0.9 - - \xe9\t\\x22";
        let mut client = https(edge.https, HOST);
        client.send(b"GET /one?q=%22a%0ab HTTP/1.1\r\nHost: SHOP.example\r\nUser-Agent: ");
        client.send(forged).send(b"\r\nReferer: ").send(forged).send(b"\r\n\r\n");
        assert_eq!(client.answer().status, 200);
        assert_eq!(http2_with(edge.https, &[("user-agent", forged)]), 200);
        assert_eq!(http3_get(edge.https, Some(HOST), HOST, "/three"), Ok(200));
        // No name of ours: no site.
        let mut stranger = plain(edge.http);
        stranger.send("GET / HTTP/1.0\r\nHost: ../../etc\r\n\r\n");
        assert_eq!(stranger.answer().status, 400);
        assert_eq!(plain(edge.http).get("nobody.example", "/").status, 404);
        drop(client);

        let (text, format) = (text_of(&edge, 5), combined());
        assert_eq!(text.matches('\n').count(), 5, "{text}");
        let mut seen = Vec::new();
        for line in text.lines() {
            let (site, line) = line.split_once(' ').unwrap();
            let fields = format.captures(line).unwrap_or_else(|| panic!("not the format: {line}"));
            assert_eq!((&fields["host"], &fields["ident"], &fields["user"]), ("127.0.0.1", "-", "-"));
            assert!(fields["bytes"].parse::<u64>().is_ok());
            let request = fields[5].to_owned();
            let (referer, agent) = (plain_text(&fields[8]), plain_text(&fields[9]));
            if request.starts_with("GET /one") {
                assert_eq!((referer.as_slice(), agent.as_slice()), (forged, forged));
            } else if request.starts_with("GET /two") {
                assert_eq!((referer.as_slice(), agent.as_slice()), (&b"-"[..], forged));
            }
            seen.push(format!("{site} {request} {}", &fields["status"]));
        }
        seen.sort();
        let (https, http) = (edge.https.port(), edge.http.port());
        let mut wanted = [
            format!("{HOST}:{https} GET /one?q=%22a%0ab HTTP/1.1 200"),
            format!("{HOST}:{https} GET /two?q=1 HTTP/2.0 200"),
            format!("{HOST}:{https} GET /three HTTP/3.0 200"),
            format!("-:{http} GET / HTTP/1.0 400"),
            format!("-:{http} GET / HTTP/1.1 404"),
        ];
        wanted.sort();
        assert_eq!(seen, wanted);
    });
}

#[test]
fn a_line_tells_of_the_handshake_and_of_both_bodies() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let mut edge = TestEdge::with(backend, Setup { http3: true, ..Setup::default() });
        let route = proxy_to(&origin.url());
        edge.serve_with(&[HOST, "www.shop.example"], &[origin.grant()], |domain| {
            domain.routes = vec![route.clone()];
        });
        for (round, version) in [&rustls::version::TLS12, &rustls::version::TLS13].into_iter().enumerate() {
            let config = config(&["http/1.1"], &[version]);
            for _ in 0..2 {
                let mut client = try_https(edge.https, Some(HOST), config.clone()).unwrap();
                client.send("POST /abc HTTP/1.1\r\nHost: www.shop.example\r\nContent-Length: 5\r\n\r\nhello");
                assert_eq!(client.answer().text(), "/abc");
            }
            let lines = edge.log_lines(2 * round + 2);
            let wanted = ["1.2", "1.3"][round];
            for (line, resumed) in lines[2 * round..].iter().zip([false, true]) {
                assert_eq!((&line["tls"], &line["tls_version"]), (&true.into(), &wanted.into()));
                assert_eq!(line["tls_resumed"], resumed, "{line}");
                assert_eq!((&line["sni"], &line["authority"]), (&HOST.into(), &"www.shop.example".into()));
                assert_eq!((&line["request_bytes"], &line["response_bytes"]), (&5.into(), &4.into()));
                assert!(line["first_byte_us"].as_u64() <= line["duration_us"].as_u64(), "{line}");
                assert!(line["origin_first_byte_us"].is_u64(), "{line}");
            }
            assert!(lines[2 * round]["origin_connect_us"].is_u64() || round > 0, "{lines:?}");
        }
        assert_eq!(plain(edge.http).get(HOST, "/").status, 301);
        let line = edge.log_lines(5).remove(4);
        assert!(line["tls_version"].is_null() && line["tls_resumed"].is_null() && line["sni"].is_null());
        assert_eq!(http3_get(edge.https, Some(HOST), "www.shop.example", "/"), Ok(200));
        let line = edge.log_lines(6).remove(5);
        assert_eq!((&line["protocol"], &line["sni"]), (&"h3".into(), &HOST.into()));
        assert_eq!((&line["tls_version"], &line["tls_resumed"]), (&"1.3".into(), &false.into()));
    });
}

#[test]
fn names_that_visitors_invent_below_a_wildcard_are_one_site() {
    on_each_backend(|backend| {
        let mut edge =
            TestEdge::with(backend, Setup { log_format: LogFormat::VhostCombined, ..Setup::default() });
        edge.serve(&["*.shop.example"]);
        for name in ["a.shop.example", "b.shop.example", "evil.shop.example"] {
            assert_eq!(https(edge.https, name).get(name, "/").status, 200);
        }
        let text = text_of(&edge, 3);
        let site = format!("*.shop.example:{} ", edge.https.port());
        assert!(text.lines().count() == 3 && text.lines().all(|line| line.starts_with(&site)), "{text}");
    });
}

#[test]
fn no_secret_of_a_visitor_is_written() {
    on_each_backend(|backend| {
        for log_format in [LogFormat::Json, LogFormat::Combined] {
            let mut edge = TestEdge::with(backend, Setup { log_format, ..Setup::default() });
            edge.serve(&[HOST]);
            let secrets = "Cookie: a=SECRET\r\nAuthorization: Basic SECRET\r\nProxy-Authorization: SECRET\r\n\
                Referer: https://SECRET:SECRET@else.example/?a=SECRET&SECRET#SECRET\r\n";
            let mut client = https(edge.https, HOST);
            client.send(format!("GET /?t=SECRET;u=SECRET&SECRET HTTP/1.1\r\nHost: {HOST}\r\n{secrets}\r\n"));
            assert_eq!(client.answer().status, 200);
            let mut client = https(edge.https, HOST);
            client.send(format!("GET https://user:SECRET@{HOST}/ HTTP/1.1\r\nHost: {HOST}\r\n{secrets}\r\n"));
            assert_eq!(client.answer().status, 400);
            let mut client = https(edge.https, HOST);
            client.send(format!("GET / HTTP/1.1\r\nHost: user:SECRET@{HOST}\r\n{secrets}\r\n"));
            assert_eq!(client.answer().status, 400);
            let text = text_of(&edge, 3);
            assert!(!text.contains("SECRET"), "{text}");
            assert!(text.contains("/?t=REDACTED;u=REDACTED&REDACTED"), "{text}");
            assert!(text.contains("https://else.example/?a=REDACTED&REDACTED"), "{text}");
        }
    });
}

#[test]
fn the_operator_says_how_much_of_visitors_is_written() {
    on_each_backend(|backend| {
        let privacy = Privacy {
            query_values: QueryValues::Of(["page".to_owned()].into()),
            client_address: AddressDetail::Network,
        };
        let mut edge = TestEdge::with(backend, Setup { privacy, ..Setup::default() });
        edge.serve(&[HOST]);
        assert_eq!(https(edge.https, HOST).get(HOST, "/?page=2&user=7").status, 200);
        let line = edge.log_lines(1).remove(0);
        assert_eq!(line["target"], "/?page=2&user=REDACTED");
        assert_eq!((&line["client"], &line["peer"]), (&"127.0.0.0".into(), &"127.0.0.0".into()));
        assert!(line["peer_port"].is_null());
    });
}
