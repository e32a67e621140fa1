//! Requests that are as they should be.

use bytes::Bytes;
use http::{Request, StatusCode};
use portico_edge::limits;
use tokio::sync::oneshot;

use super::harness::{Client, TestEdge, answer, on_each_backend, within};
use super::origin::{self, Behaviour, LARGE_BYTES, large_byte};

#[test]
fn a_get_is_answered_and_http3_is_advertised_over_tcp() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, None);
        let mut client = edge.connect("one.example").await;
        let got = client.get("one.example", "/").await;
        assert_eq!((got.status, &got.body[..]), (StatusCode::OK, &b"one.example"[..]));
        assert_eq!(got.headers["content-length"], "11");
        assert!(got.headers.contains_key("date") && !got.headers.contains_key("connection"));
        // Another name of the same certificate, on the same connection.
        let got = client.get("two.example", "/").await;
        assert_eq!((got.status, &got.body[..]), (StatusCode::OK, &b"two.example"[..]));
        let head = Request::head("https://one.example/").body(()).unwrap();
        let got = client.exchange(head, &[]).await;
        assert_eq!(
            (got.status, got.body.len(), &got.headers["content-length"]),
            (StatusCode::OK, 0, &"11".parse().unwrap())
        );

        let text = over_tcp(&edge).await;
        let expected = format!("alt-svc: h3=\":{}\"; ma=86400", edge.address.port());
        assert!(text.to_ascii_lowercase().contains(&expected), "{text}");
        assert_eq!(edge.process.metric("portico_edge_panics_total").await, 0.0);
    });
}

async fn over_tcp(edge: &TestEdge) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(std::sync::Arc::clone(&edge.roots))
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(edge.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut stream = connector.connect("one.example".try_into().unwrap(), stream).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: one.example\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = Vec::new();
    let _ = within(stream.read_to_end(&mut text)).await;
    String::from_utf8(text).unwrap()
}

#[test]
fn many_fields_are_refused_and_pieces_of_a_cookie_are_not() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, None);
        let mut client = edge.connect("one.example").await;
        for (name, count, status) in [
            ("x", limits::HEADER_FIELDS_MAX, 200),
            ("x", limits::HEADER_FIELDS_MAX + 1, 431),
            // RFC 9114 section 4.2.1.
            ("cookie", 2 * limits::HEADER_FIELDS_MAX, 200),
        ] {
            let mut request = Request::get("https://one.example/");
            for _ in 0..count {
                request = request.header(name, "a=b");
            }
            let got = client.exchange(request.body(()).unwrap(), &[]).await;
            assert_eq!(got.status.as_u16(), status, "{count} of {name}");
        }
    });
}

#[test]
fn a_body_comes_back_whole_with_and_without_a_length() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, Some(origin::start(Behaviour::Echo).await));
        let mut client = edge.connect("proxied.example").await;
        let pieces: Vec<Bytes> = (0..64_u8).map(|index| vec![index; 17_001].into()).collect();
        let whole = pieces.concat();
        for length in [None, Some(whole.len())] {
            let mut request = Request::post("https://proxied.example/echo");
            if let Some(length) = length {
                request = request.header("content-length", length);
            }
            let got = client.exchange(request.body(()).unwrap(), &pieces).await;
            assert_eq!(got.status, StatusCode::OK);
            assert!(got.body == whole, "the body was changed on its way");
        }
        // A GET whose body has no length, and whose pieces come long after its head.
        let request = Request::get("https://proxied.example/echo").body(()).unwrap();
        let mut stream = client.sender.send_request(request).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        stream.send_data(Bytes::from_static(b"late body")).await.unwrap();
        stream.finish().await.unwrap();
        assert_eq!(within(answer(&mut stream)).await.unwrap().body, "late body");
        // Without a body there is none at the origin either.
        let got = client.get("proxied.example", "/plain?q=1").await;
        assert_eq!(
            (got.body.len(), &got.headers["x-request"]),
            (0, &"get /plain?q=1 http/1.1".parse().unwrap())
        );
    });
}

#[test]
fn a_large_answer_arrives_whole_and_a_cut_one_is_no_whole_one() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, Some(origin::start(Behaviour::Large).await));
        let mut client = edge.connect("proxied.example").await;
        let got = client.get("proxied.example", "/").await;
        assert_eq!(got.body.len(), LARGE_BYTES);
        assert!(got.body.iter().enumerate().all(|(index, byte)| *byte == large_byte(index)));
        drop(edge);

        let edge = TestEdge::start(backend, Some(origin::start(Behaviour::CutShort).await));
        let mut client = edge.connect("proxied.example").await;
        let request = Request::get("https://proxied.example/").body(()).unwrap();
        let mut stream = client.sender.send_request(request).await.unwrap();
        stream.finish().await.unwrap();
        let cut = within(answer(&mut stream)).await;
        assert!(cut.is_err(), "a body that was cut at the origin ended like a whole one");
    });
}

#[test]
fn an_early_answer_stops_the_upload_and_the_connection_goes_on() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, Some(origin::start(Behaviour::AnswerEarly).await));
        let mut client = edge.connect("proxied.example").await;
        // The edge's own early answer (a fixed answer takes no POST), then the origin's.
        for (host, status) in
            [("one.example", StatusCode::METHOD_NOT_ALLOWED), ("proxied.example", StatusCode::OK)]
        {
            for _ in 0..20 {
                let request = Request::post(format!("https://{host}/up")).body(()).unwrap();
                let stream = client.sender.send_request(request).await.unwrap();
                let (mut send, mut recv) = stream.split();
                let uploading = tokio::task::spawn_local(async move {
                    loop {
                        if let Err(error) = send.send_data(Bytes::from_static(&[7; 10_000])).await {
                            return error;
                        }
                    }
                });
                let head = within(recv.recv_response()).await.unwrap();
                assert_eq!(head.status(), status);
                while within(recv.recv_data()).await.unwrap().is_some() {}
                let stopped = within(uploading).await.unwrap();
                assert!(stopped.to_string().contains("H3_NO_ERROR"), "{stopped}");
            }
        }
        let got = client.get("one.example", "/").await;
        assert_eq!(got.status, StatusCode::OK);
        assert_eq!(edge.process.metric("portico_edge_panics_total").await, 0.0);
    });
}

#[test]
fn connections_survive_a_change_of_the_clients_port() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, None);
        for _ in 0..16 {
            let mut client = edge.connect("one.example").await;
            assert_eq!(client.get("one.example", "/").await.status, StatusCode::OK);
            // With two workers the kernel's own choice would send half of these to the wrong one.
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            client.endpoint.rebind(socket).unwrap();
            assert_eq!(client.get("one.example", "/").await.status, StatusCode::OK);
            client.connection.close(0x100_u32.into(), b"");
        }
    });
}

#[test]
fn names_that_are_not_ours_are_refused_with_their_alert() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, None);
        // unrecognized_name (RFC 6066 section 3), and for no name at all missing_extension (RFC 8446 section 9.2).
        for (name, alert) in [("stranger.example", 112), ("127.0.0.1", 109)] {
            let Err(error) = Client::open(&edge, name).await else { panic!("{name} was served") };
            let quinn::ConnectionError::ConnectionClosed(close) = &error else { panic!("{name}: {error}") };
            assert_eq!(close.error_code, quinn::TransportErrorCode::crypto(alert), "{name}");
        }
        let count = async |end: &str| {
            edge.process.metric(&format!("portico_edge_handshakes_total{{result=\"{end}\"}}")).await
        };
        // Counted behind the alert that the client has seen.
        within(async {
            while count("unknown_name").await < 2.0 {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await;
        assert_eq!(count("unknown_name").await, 2.0);
        assert_eq!(edge.connect("one.example").await.get("one.example", "/").await.status, StatusCode::OK);
    });
}

#[test]
fn each_way_to_fail_a_handshake_is_counted_as_what_it_is() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, None);
        let nobody = std::sync::Arc::new(rustls::RootCertStore::empty());
        for (end, roots, alpn) in
            [("no_protocol", &edge.roots, &b"nntp"[..]), ("refused_by_client", &nobody, &b"h3"[..])]
        {
            let series = format!("portico_edge_handshakes_total{{result=\"{end}\"}}");
            assert_eq!(edge.process.metric(&series).await, 0.0, "{end}");
            let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
            let config = super::harness::quic(super::harness::tls_config(roots, alpn));
            let connecting = endpoint.connect_with(config, edge.address, "one.example").unwrap();
            assert!(within(connecting).await.is_err(), "{end}");
            within(async {
                while edge.process.metric(&series).await != 1.0 {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            })
            .await;
        }
    });
}

#[test]
fn the_request_authority_decides_and_a_strange_one_is_misdirected() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, None);
        let mut client = edge.connect("one.example").await;
        let port = edge.address.port();
        for (authority, status) in [
            ("one.example", 200),
            ("ONE.example", 200),
            ("two.example", 200),
            (&*format!("one.example:{port}"), 200),
            ("one.example:443", 200),
            ("one.example:1", 400),
            ("stranger.example", 421),
            ("192.0.2.1", 400),
        ] {
            let got = client.get(authority, "/").await;
            assert_eq!(got.status.as_u16(), status, "{authority}");
        }
    });
}

#[test]
fn a_drain_finishes_what_is_under_way_and_takes_no_more() {
    on_each_backend(async |backend| {
        let (asked_sender, asked) = oneshot::channel();
        let (go, held) = oneshot::channel();
        let origin = origin::start(Behaviour::Hold(asked_sender, held)).await;
        let mut edge = TestEdge::start(backend, Some(origin));
        let mut client = edge.connect("proxied.example").await;
        let request = Request::get("https://proxied.example/").body(()).unwrap();
        let mut stream = client.sender.send_request(request).await.unwrap();
        stream.finish().await.unwrap();
        within(asked).await.unwrap();
        edge.process.terminate();
        // GOAWAY: the client is told to take new requests elsewhere.
        within(async {
            loop {
                let request = Request::get("https://proxied.example/late").body(()).unwrap();
                match client.sender.send_request(request).await {
                    Err(_) => break,
                    Ok(mut late) => {
                        let _finished = late.finish().await;
                        if late.recv_response().await.is_err() {
                            break;
                        }
                    }
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        go.send(()).unwrap();
        let got = within(answer(&mut stream)).await.unwrap();
        assert_eq!(&got.body[..], b"helddone");
        assert!(edge.process.ended().await.success());
    });
}

/// Data before the handshake could be replayed by whoever saw it (RFC 8446 section 8), so no ticket allows any.
#[test]
fn a_resumed_client_may_not_send_before_the_handshake_over_quic_nor_tcp() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, None);
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let config = super::harness::early_client_config(&edge.roots);
        for round in 0..3 {
            let connecting = endpoint.connect_with(config.clone(), edge.address, "one.example").unwrap();
            // quinn gives the handshake back where its ticket does not allow early data.
            let connecting = connecting.into_0rtt().err().expect("no early data is allowed");
            let connection = within(connecting).await.unwrap();
            // The edge's control stream: its ticket has come by then.
            let mut control = within(connection.accept_uni()).await.unwrap();
            within(control.read_exact(&mut [0; 1])).await.unwrap();
            connection.close(0x100_u32.into(), b"");
            let resumed = edge.process.metric("portico_edge_handshakes_total{result=\"resumed\"}").await;
            assert_eq!(resumed, f64::from(round), "there was a ticket");
        }
        let mut tls = super::harness::tls_config(&edge.roots, b"http/1.1");
        tls.enable_early_data = true;
        let tls = std::sync::Arc::new(tls);
        for _ in 0..2 {
            use std::io::{Read as _, Write as _};
            let name = "one.example".try_into().unwrap();
            let mut client = rustls::ClientConnection::new(std::sync::Arc::clone(&tls), name).unwrap();
            assert!(client.early_data().is_none(), "no early data is allowed");
            let stream = std::net::TcpStream::connect(edge.address).unwrap();
            stream.set_read_timeout(Some(super::harness::PATIENCE)).unwrap();
            let mut stream = rustls::StreamOwned::new(client, stream);
            stream.write_all(b"GET / HTTP/1.1\r\nhost: one.example\r\nconnection: close\r\n\r\n").unwrap();
            let mut text = Vec::new();
            let _ = stream.read_to_end(&mut text);
            assert!(text.starts_with(b"HTTP/1.1 200"));
        }
        // All but the first of each.
        let resumed = edge.process.metric("portico_edge_handshakes_total{result=\"resumed\"}").await;
        assert_eq!(resumed, 3.0);
    });
}

#[test]
fn a_resumed_handshake_is_counted_as_one() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, None);
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let config = super::harness::client_config(&edge.roots);
        for (full, resumed) in [(1.0, 0.0), (1.0, 1.0), (1.0, 2.0)] {
            let connecting = endpoint.connect_with(config.clone(), edge.address, "one.example").unwrap();
            let connection = within(connecting).await.unwrap();
            // The edge's control stream: its ticket has come by then.
            let mut control = within(connection.accept_uni()).await.unwrap();
            within(control.read_exact(&mut [0; 1])).await.unwrap();
            connection.close(0x100_u32.into(), b"");
            let series = |end: &str| format!("portico_edge_handshakes_total{{result=\"{end}\"}}");
            assert_eq!(edge.process.metric(&series("full")).await, full);
            assert_eq!(edge.process.metric(&series("resumed")).await, resumed);
        }
    });
}
