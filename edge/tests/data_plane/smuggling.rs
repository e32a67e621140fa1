//! Messages that two readers could see differently. Behind each stands a request that must never be seen by
//! anybody: the oracle is an origin with a reader of its own, strict in everything.

use std::io::Write as _;

use crate::client::{any_version, https, runtime};
use crate::harness::{Setup, TestEdge, on_each_backend, proxy_to};
use crate::origin::Origin;

const HOST: &str = "shop.example";
/// Follows every case on the wire; an origin that ever sees it has been smuggled to.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: shop.example\r\n\r\n";

fn edge_to(backend: portico_edge::io::Backend, origin: &Origin) -> TestEdge {
    let mut edge = TestEdge::with(backend, Setup::default());
    let url = origin.url();
    edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![proxy_to(&url)]);
    edge
}

/// A head with these lines behind Host, then a body.
fn post(lines: &str, body: &str) -> String {
    format!("POST /case HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n{body}")
}

fn chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked\r\n", body)
}

fn ambiguous_lengths() -> Vec<String> {
    let te = [
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding:",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        " Transfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: \u{b}chunked",
        "Transfer-Encoding: chunked\u{0}",
        "Transfer_Encoding\u{0}: chunked",
        "Transfer-Encoding: chun\rked",
    ];
    let cl = [
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 5",
        "Content-Length: 5, 6",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length: 5;",
        "Content-Length: five",
        "Content-Length:",
        "Content-Length: 99999999999999999999",
        "Content-Length : 5",
        "Content-Length\u{0}: 5",
        "Content-Length: 5\u{0}",
        "Content-Length: 5\r",
        "Content-Length: 5\r\n\t6",
        "Content-Length: 5.0",
        "Content-Length: 1e1",
    ];
    let both = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: Chunked\r\nX: y\r\nContent-Length: 6",
    ];
    let lines = te.iter().chain(&cl).chain(&both);
    lines.map(|lines| post(&format!("{lines}\r\n"), "0\r\n\r\n")).collect()
}

fn ambiguous_heads() -> Vec<String> {
    let cases: Vec<String> = [
        "GET /case HTTP/1.1\nHost: shop.example\r\n\r\n",
        "GET /case HTTP/1.1\r\nHost: shop.example\n\r\n",
        "GET /case HTTP/1.1\r\nHost: shop.example\r\nX: y\n\n",
        "GET /case HTTP/1.1\rHost: shop.example\r\n\r\n",
        "GET  /case HTTP/1.1\r\nHost: shop.example\r\n\r\n",
        "GET\t/case HTTP/1.1\r\nHost: shop.example\r\n\r\n",
        "GET /case  HTTP/1.1\r\nHost: shop.example\r\n\r\n",
        "GET /ca se HTTP/1.1\r\nHost: shop.example\r\n\r\n",
        "GET /case HTTP/1.1 \r\nHost: shop.example\r\n\r\n",
        "GET /case HTTP/1.2\r\nHost: shop.example\r\n\r\n",
        "GET /case HTTP/01.1\r\nHost: shop.example\r\n\r\n",
        "GET /case http/1.1\r\nHost: shop.example\r\n\r\n",
        "GET /case\r\nHost: shop.example\r\n\r\n",
        " GET /case HTTP/1.1\r\nHost: shop.example\r\n\r\n",
        "GET /ca\u{0}se HTTP/1.1\r\nHost: shop.example\r\n\r\n",
        "GET /case#x HTTP/1.1\r\nHost: shop.example\r\nHost: a\r\n\r\n",
        "GET /case HTTP/1.1\r\nHost: shop.example\r\nHost: shop.example\r\n\r\n",
        "GET /case HTTP/1.1\r\nHost: shop.example\r\nhost: other.example\r\n\r\n",
        "GET /case HTTP/1.1\r\nHost : shop.example\r\n\r\n",
        "GET /case HTTP/1.1\r\nHost: shop.example, other\r\n\r\n",
        "GET /case HTTP/1.1\r\nHost: user@shop.example\r\n\r\n",
        "GET /case HTTP/1.1\r\nHost: shop.example#\r\n\r\n",
        "GET /case HTTP/1.1\r\nHost: shop.example/x\r\n\r\n",
        "GET /case HTTP/1.1\r\nHost:\r\n\r\n",
        "GET /case HTTP/1.1\r\nX: y\r\n\r\n",
        "GET /case HTTP/1.1\r\nHost: shop.example\r\nno colon\r\n\r\n",
        "GET /case HTTP/1.1\r\nHost: shop.example\r\n: empty\r\n\r\n",
        "GET /case HTTP/1.1\r\nHost: shop.example\r\nX(: y\r\n\r\n",
        "GET /case HTTP/1.1\r\nHost: shop.example\r\nX: a\u{0}b\r\n\r\n",
        "GET https://other.example/case HTTP/1.1\r\nHost: shop.example\r\n\r\n",
        "GET http://shop.example/case HTTP/1.1\r\nHost: shop.example\r\n\r\n",
        "GET case HTTP/1.1\r\nHost: shop.example\r\n\r\n",
        "GET //case HTTP/1.1\r\nHost: [shop.example]\r\n\r\n",
        "POST /case HTTP/1.0\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /case HTTP/1.1\r\nHost: shop.example\r\nExpect: 100-continue, x\r\n\r\n",
        "GET /case HTTP/1.1\r\nHost: shop.example\r\nExpect:\t\u{b}100-continue\r\n\r\n",
        "G\u{0}T /case HTTP/1.1\r\nHost: shop.example\r\n\r\n",
        "\u{0}GET /case HTTP/1.1\r\nHost: shop.example\r\n\r\n",
    ]
    .map(str::to_owned)
    .into();
    cases
}

/// The head is sound here; the fault comes in the body, so the connection can only be closed.
fn ambiguous_bodies() -> Vec<String> {
    let mut cases: Vec<String> = [
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        " 3\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\r\nab\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        "00000000000000003\r\nabc\r\n0\r\n\r\n",
        "ffffffffffffffff1\r\nabc\r\n0\r\n\r\n",
        "3\u{0}\r\nabc\r\n0\r\n\r\n",
        "3;a\rb\r\nabc\r\n0\r\n\r\n",
        "3\t;a\r\nabc\r\n0\r\n\r\n",
        "0\r\nContent-Length: 5\r\n\r\n",
        "0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "0\r\nHost: x\r\n\r\n",
        "0\r\n X: y\r\n\r\n",
        "0\r\nX : y\r\n\r\n",
        "0\r\nX: y\n\r\n",
        "0\n\r\n",
    ]
    .map(chunked)
    .into();
    cases.push(format!(
        "GET /case HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nearly"
    ));
    cases.push(chunked(&format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(2000))));
    cases
}

#[test]
fn the_corpus_is_refused_and_nothing_behind_it_is_seen() {
    let (lengths, heads, bodies) = (ambiguous_lengths(), ambiguous_heads(), ambiguous_bodies());
    let all = lengths.len() + heads.len() + bodies.len();
    assert!(all >= 100, "only {all} cases");
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_to(backend, &origin);
        for case in lengths.iter().chain(&heads) {
            let mut client = https(edge.https, HOST);
            let _ = client.stream.write_all(format!("{case}{HIDDEN}").as_bytes());
            let answer = client.answer_to("GET").unwrap_or_else(|error| panic!("{case:?}: {error}"));
            assert!((400..500).contains(&answer.status), "{case:?} gave {}", answer.status);
            assert!(client.closes(), "{case:?}: nothing behind it is answered");
        }
        assert!(origin.messages().is_empty(), "{:?}", origin.messages());
        for case in &bodies {
            let mut client = https(edge.https, HOST);
            let _ = client.stream.write_all(format!("{case}{HIDDEN}").as_bytes());
            // 400 if there was no answer yet, or just the end.
            let rest = String::from_utf8(client.rest().unwrap_or_default()).unwrap();
            assert!(!rest.contains(" 200 "), "{case:?} gave {rest}");
        }
        for message in origin.messages() {
            assert!(!message.request_line.contains("hidden"), "smuggled: {message:?}");
        }
        let _ = edge;
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
