//! Trailers: what may stand in a head alone does not come in by the back door.

use bytes::{Buf as _, Bytes};
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::Frame;
use portico_api::distribution as wire;
use portico_edge::io::Backend;

use crate::client::{http2, https, runtime};
use crate::harness::{PATIENCE, Setup, TestEdge, on_each_backend, proxy_to};
use crate::http2_origin::trailer_recorder;
use crate::http3_client::Http3;
use crate::origin::{Origin, Reply, ok};
use crate::upstreams::proxy;

const HOST: &str = "shop.example";

/// What a client would like an origin to believe, and two fields that are its own.
const SAID: [(&str, &str); 9] = [
    ("client-cert", ":AAAA:"),
    ("client_cert", ":AAAA:"),
    ("x-real-ip", "1.1.1.1"),
    ("x_real_ip", "1.1.1.1"),
    ("x-forwarded-for", "1.1.1.1"),
    ("authorization", "Basic x"),
    ("x-level", "admin"),
    ("x-checksum", "1"),
    ("x_kept", "1"),
];
const OWN: [&str; 2] = ["x-checksum", "x_kept"];

fn edge_to(backend: Backend, origin: (String, u16), protocol: wire::OriginProtocol) -> TestEdge {
    let mut edge = TestEdge::with(backend, Setup { http3: true, ..Setup::default() });
    let remove = vec!["x-level".to_owned()];
    let rule = wire::Rule {
        level: 1,
        path: Some(wire::rule::Path::Prefix("/".into())),
        request_headers: Some(wire::HeaderChanges { remove, ..wire::HeaderChanges::default() }),
        ..wire::Rule::default()
    };
    let route = proxy(&[origin.0], |proxy| proxy.protocol = protocol.into());
    let route = wire::Route { path_prefix: String::new(), rule: Some(rule), ..route };
    edge.serve_with(&[HOST], &[("127.0.0.0/8", origin.1)], |domain| domain.routes = vec![route.clone()]);
    edge
}

fn said() -> HeaderMap {
    let field = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    SAID.into_iter().map(field).collect()
}

fn announced() -> String {
    SAID.map(|(name, _)| name).join(", ")
}

/// POST /PROTOCOL with these trailers.
fn post(edge: &TestEdge, protocol: &str) -> u16 {
    let request = Request::post(format!("https://{HOST}/{protocol}")).header("trailer", announced());
    match protocol {
        "h1" => {
            let lines: String = SAID.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let mut client = https(edge.https, HOST);
            client.send(format!(
                "POST /h1 HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nTrailer: {}\r\n\r\n\
                 3\r\nabc\r\n0\r\n{lines}\r\n",
                announced()
            ));
            client.answer().status
        }
        "h2" => runtime().block_on(async {
            let frames = [Frame::data(Bytes::from_static(b"abc")), Frame::trailers(said())];
            let body = StreamBody::new(stream::iter(frames.map(Ok::<_, std::io::Error>)));
            let mut sender = http2(edge.https, Some(HOST)).await.unwrap();
            sender.send_request(request.body(body).unwrap()).await.unwrap().status().as_u16()
        }),
        _ => on_h3(async {
            let mut client = Http3::connect(edge.https, Some(HOST)).await.unwrap();
            let mut stream = client.sender.send_request(request.body(()).unwrap()).await.unwrap();
            stream.send_data(Bytes::from_static(b"abc")).await.unwrap();
            stream.send_trailers(said()).await.unwrap();
            stream.finish().await.unwrap();
            let status = stream.recv_response().await.unwrap().status().as_u16();
            client.close();
            client.endpoint.wait_idle().await;
            status
        }),
    }
}

fn on_h3<T>(talk: impl Future<Output = T>) -> T {
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime(), async { tokio::time::timeout(PATIENCE, talk).await.unwrap() })
}

#[test]
fn a_forged_identity_does_not_pass_in_trailers() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_to(backend, (origin.url(), origin.address.port()), wire::OriginProtocol::Http1);
        for (number, protocol) in ["h1", "h2", "h3"].into_iter().enumerate() {
            assert_eq!(post(&edge, protocol), 200, "{protocol}");
            let message = &origin.messages()[number];
            assert_eq!(message.body, b"abc", "{protocol}");
            let mut names: Vec<_> = message.trailers.iter().map(|(name, _)| name.as_str()).collect();
            names.sort_unstable();
            assert_eq!(names, OWN, "{protocol}");
            let announced = message.header("trailer").unwrap_or_default();
            assert_eq!(announced.replace("x-level, ", ""), OWN.join(", "), "{protocol}");
        }
        assert!(origin.faults().is_empty(), "{:?}", origin.faults());
    });
}

#[test]
fn nor_in_those_of_an_origin_that_speaks_http2() {
    on_each_backend(|backend| {
        let (address, recorded) = trailer_recorder();
        let origin = (format!("http://{address}"), address.port());
        let edge = edge_to(backend, origin, wire::OriginProtocol::Http2);
        for protocol in ["h1", "h2", "h3"] {
            assert_eq!(post(&edge, protocol), 200, "{protocol}");
            let mut names = recorded.recv_timeout(PATIENCE).unwrap();
            names.sort_unstable();
            assert_eq!(names, OWN, "{protocol}");
        }
    });
}

/// Over HTTP/2 and 3 some of these would make the whole answer malformed, others be believed.
#[test]
fn an_origins_trailers_bring_nothing_that_belongs_in_a_head() {
    on_each_backend(|backend| {
        let origin = Origin::start(|message| match message.request_line.contains("/plain") {
            true => Reply::Keep(ok("plain")),
            false => Reply::Keep(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\
                  Trailer: x-sum, set-cookie, content-length, transfer-encoding\r\n\r\n\
                  2\r\nok\r\n0\r\nX-Sum: 1\r\nSet-Cookie: t=1\r\nContent-Length: 5\r\n\
                  Transfer-Encoding: chunked\r\nConnection: close\r\nX-Request-Id: mine\r\n\r\n"
                    .to_vec(),
            ),
        });
        let mut edge = TestEdge::with(backend, Setup { http3: true, ..Setup::default() });
        let url = origin.url();
        edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![proxy_to(&url)]);
        let expected: HeaderMap =
            [(HeaderName::from_static("x-sum"), HeaderValue::from_static("1"))].into_iter().collect();
        let request = || Request::get(format!("https://{HOST}/trailers")).header("te", "trailers");

        let trailers = runtime().block_on(async {
            let mut sender = http2::<Empty<Bytes>>(edge.https, Some(HOST)).await.unwrap();
            let answer = sender.send_request(request().body(Empty::new()).unwrap()).await.unwrap();
            assert_eq!(answer.headers()["trailer"], "x-sum");
            answer.into_body().collect().await.unwrap().trailers().cloned()
        });
        assert_eq!(trailers.as_ref(), Some(&expected));

        let trailers = on_h3(async {
            let mut client = Http3::connect(edge.https, Some(HOST)).await.unwrap();
            let mut stream = client.sender.send_request(request().body(()).unwrap()).await.unwrap();
            stream.finish().await.unwrap();
            assert_eq!(stream.recv_response().await.unwrap().headers()["trailer"], "x-sum");
            while let Some(mut data) = stream.recv_data().await.unwrap() {
                data.advance(data.remaining());
            }
            let trailers = stream.recv_trailers().await.unwrap();
            client.close();
            client.endpoint.wait_idle().await;
            trailers
        });
        assert_eq!(trailers.as_ref(), Some(&expected));

        let mut client = https(edge.https, HOST);
        client.send(format!(
            "GET /trailers HTTP/1.1\r\nHost: {HOST}\r\nTE: trailers\r\nConnection: TE\r\n\r\n"
        ));
        let head = client.head().unwrap().to_ascii_lowercase();
        assert!(head.contains("trailer: x-sum\r\n"), "{head}");
        let end = b"2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n";
        assert_eq!(
            client.exactly(end.len()).unwrap().escape_ascii().to_string(),
            end.escape_ascii().to_string()
        );
        assert_eq!(client.get(HOST, "/plain").text(), "plain");
    });
}
