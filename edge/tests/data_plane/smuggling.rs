//! Messages that two readers could see differently. Behind each stands a request that must never be seen by
//! anybody: the oracle is an origin with a reader of its own, strict in everything.

use std::io::Write as _;

use crate::client::{any_version, https, runtime};
use crate::harness::{Setup, TestEdge, on_each_backend, proxy_to};
use crate::origin::Origin;

mod foreign;
mod pairs;

const GOLDEN: &str = include_str!("../smuggling.golden");
const HOST: &str = "shop.example";
/// Follows every case on the wire; an origin that ever sees it has been smuggled to.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: shop.example\r\n\r\n";

fn edge_to(backend: portico_edge::io::Backend, origin: &Origin) -> TestEdge {
    let mut edge = TestEdge::with(backend, Setup::default());
    plain_edge(&mut edge, &[origin.grant()], proxy_to(&origin.url()));
    edge
}

/// The host without TLS too, so that thousands of connections cost little.
fn plain_edge(edge: &mut TestEdge, grants: &[(&str, u16)], route: portico_api::distribution::Route) {
    edge.serve_with(&[HOST], grants, |domain| {
        domain.routes = vec![route.clone()];
        domain.https_redirect_off = true;
    });
}

/// A head with these lines behind Host, then a body.
fn post(lines: &str, body: &str) -> String {
    format!("POST /case HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n{body}")
}

fn chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked\r\n", body)
}

/// Each line of the table: the status that is told, if one is, and the bytes.
fn rows() -> Vec<(usize, Option<u16>, Vec<u8>)> {
    let lines = (1..).zip(GOLDEN.lines()).filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(number, line)| {
            let (status, text) = line.split_at(4);
            let status = match status.trim_end() {
                "cut" => None,
                status => Some(status.parse().unwrap_or_else(|_| panic!("line {number}: {line}"))),
            };
            (number, status, unescaped(text))
        })
        .collect()
}

fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match (byte, if byte == b'\\' { rest.next() } else { None }) {
            (b'\\', Some(b'r')) => b'\r',
            (b'\\', Some(b'n')) => b'\n',
            (b'\\', Some(b't')) => b'\t',
            (b'\\', Some(b'0')) => 0,
            (b'\\', Some(b'x')) => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                u8::from_str_radix(str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            (b'\\', other) => other.unwrap(),
            (byte, _) => byte,
        });
    }
    bytes
}

#[test]
fn the_golden_table_is_refused_and_nothing_behind_it_is_seen() {
    let rows = rows();
    assert!(rows.len() >= 100, "only {} rows", rows.len());
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_to(backend, &origin);
        let mut wrong = Vec::new();
        for (number, status, bytes) in &rows {
            let mut client = https(edge.https, HOST);
            let _ = client.stream.write_all(&[bytes, HIDDEN.as_bytes()].concat());
            let told = client.answer_to("GET").map(|answer| answer.status).ok();
            if told != *status {
                wrong.push(format!(
                    "smuggling.golden:{number}: {} was answered {told:?}",
                    bytes.escape_ascii()
                ));
            }
            assert!(client.closes(), "smuggling.golden:{number}: nothing behind it is answered");
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert!(origin.messages().is_empty(), "{:?}", origin.messages());
        let other = edge.metric("portico_edge_requests_refused_total{reason=\"other\"}");
        assert_eq!(other, 0.0, "a reason that the metrics do not list");
    });
}

/// Odd but sound: each arrives as exactly one message, the same in method, target and body.
#[test]
fn sound_messages_arrive_as_exactly_one() {
    let table = [
        ("GET /case HTTP/1.1\r\nHost: shop.example\r\n\r\n".to_owned(), ""),
        ("\r\nGET /case HTTP/1.1\r\nHost: shop.example\r\n\r\n".to_owned(), ""),
        ("GET /case HTTP/1.1\r\nhOST:shop.example\r\nX:\t y \t\r\n\r\n".to_owned(), ""),
        (post("Content-Length: 3\r\n", "abc"), "abc"),
        (post("Content-Length: 003\r\n", "abc"), "abc"),
        (post("Content-Length: 0\r\n", ""), ""),
        (chunked("3\r\nabc\r\n0\r\n\r\n"), "abc"),
        (chunked("3;name=value\r\nabc\r\n000\r\n\r\n"), "abc"),
        (chunked("a\r\n0123456789\r\n1\r\nx\r\n0\r\nX-Trailer: y\r\n\r\n"), "0123456789x"),
        (post("tRANSFER-eNCODING: CHUNKED\r\n", "3\r\nabc\r\n0\r\n\r\n"), "abc"),
        (post("Content-Length: 3\r\nConnection: content-length\r\n", "abc"), "abc"),
        (post("Content-Length: 43\r\n", HIDDEN.get(..43).unwrap()), HIDDEN.get(..43).unwrap()),
    ];
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_to(backend, &origin);
        for (number, (case, body)) in table.iter().enumerate() {
            let mut client = https(edge.https, HOST);
            client.send(case);
            assert_eq!(client.answer().status, 200, "{case:?}");
            // Another request right behind it is a message of its own.
            assert_eq!(client.get(HOST, "/next").text(), "/next", "{case:?}");
            let messages = origin.messages();
            assert_eq!(messages.len(), 2 * (number + 1), "{case:?}");
            let message = &messages[2 * number];
            assert_eq!(message.body, body.as_bytes(), "{case:?}");
            assert_eq!(message.request_line.split(' ').nth(1), Some("/case"), "{case:?}");
        }
        assert!(origin.faults().is_empty(), "{:?}", origin.faults());
    });
}

/// One says that there is no body, the other reads one: the frames would be lost on the way (HTTP/2, 8.1.1).
#[test]
fn frames_beyond_a_length_of_nothing_are_refused() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_to(backend, &origin);
        runtime().block_on(async {
            let tcp = tokio::net::TcpStream::connect(edge.https).await.unwrap();
            let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(any_version(&["h2"])));
            let tls = connector.connect(HOST.try_into().unwrap(), tcp).await.unwrap();
            let (mut sender, connection) = h2::client::handshake(tls).await.unwrap();
            tokio::spawn(connection);
            let cases = [("0", "", true), ("0", "abc", false), ("00", "abc", false), ("000", "", true)];
            for (length, data, sound) in cases {
                let request =
                    http::Request::post(format!("https://{HOST}/case")).header("content-length", length);
                let sending = sender.send_request(request.body(()).unwrap(), false);
                let (answer, mut body) = sending.unwrap();
                // So that whoever believes the length has sent the request on by then.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                body.send_data(bytes::Bytes::from_static(data.as_bytes()), true).unwrap();
                match answer.await {
                    Ok(answer) => {
                        assert_eq!(
                            answer.status().as_u16(),
                            if sound { 200 } else { 400 },
                            "{length} {data:?}"
                        )
                    }
                    Err(error) => assert!(!sound && error.is_reset(), "{length} {data:?}: {error}"),
                }
            }
        });
        assert_eq!(origin.messages().len(), 2);
    });
}

/// Over HTTP/1.1 this white space is none of the value: an origin would see another one than we.
#[test]
fn values_with_white_space_around_them_are_malformed_where_nobody_trims_them() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let mut edge = TestEdge::with(backend, Setup { http3: true, ..Setup::default() });
        let url = origin.url();
        edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![proxy_to(&url)]);
        for protocol in ["h2", "h3"] {
            for (value, status) in
                [(" a", 400), ("a ", 400), ("\ta", 400), ("a\t", 400), (" ", 400), ("a b", 200), ("", 200)]
            {
                let answer = crate::routes::ask(&edge, protocol, "GET", "/case", &[("x-field", value)]);
                assert_eq!(answer.status, status, "{protocol} {value:?}");
            }
        }
        assert_eq!(origin.messages().len(), 4);
        let padded = crate::routes::ask(&edge, "h1", "GET", "/case", &[("x-field", " a\t ")]);
        assert_eq!(padded.status, 200);
        assert_eq!(origin.messages()[4].header("x-field"), Some("a"));
    });
}

/// The libraries of HTTP/2 and 3 take the first of several lengths, an empty one for 0, and UTF-8 for a path.
#[test]
fn lengths_and_targets_are_read_over_http2_and_3_as_over_http1() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let mut edge = TestEdge::with(backend, Setup { http3: true, ..Setup::default() });
        let url = origin.url();
        edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![proxy_to(&url)]);
        let mut lines = 0;
        for (lengths, status, reason) in [
            (&["0", "0"][..], 400, Some("repeated_content_length")),
            (&["0", "00"], 400, Some("repeated_content_length")),
            (&[""], 400, Some("content_length")),
            (&["00"], 200, None),
        ] {
            let fields: Vec<_> = lengths.iter().map(|&length| ("content-length", length)).collect();
            let answer = crate::routes::ask(&edge, "h2", "POST", "/case", &fields);
            lines += 1;
            let line = edge.log_lines(lines).pop().unwrap();
            assert_eq!((answer.status, line["reason"].as_str()), (status, reason), "{lengths:?}");
        }
        for protocol in crate::routes::PROTOCOLS {
            for (target, status) in [("/caf\u{e9}", 400), ("/?q=\u{e9}", 400), ("/caf%C3%A9", 200)] {
                let answer = crate::routes::ask(&edge, protocol, "GET", target, &[]);
                assert_eq!(answer.status, status, "{protocol} {target}");
            }
        }
        assert_eq!(origin.messages().len(), 1 + crate::routes::PROTOCOLS.len());
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_to(backend, &origin);
        let mut client = https(edge.https, HOST);
        let requests: String = (0..20)
            .map(|number| format!("POST /{number} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2\r\n\r\nxy"))
            .collect();
        client.send(requests);
        for number in 0..20 {
            assert_eq!(client.answer().text(), format!("/{number}"));
        }
    });
}
