//! Clients that do what they should not.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};

use super::harness::{TestEdge, answer, client_config, on_each_backend, within};
use super::origin::{self, Behaviour};

#[test]
fn malformed_requests_are_refused_alone() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, Some(origin::start(Behaviour::Echo).await));
        let mut client = edge.connect("proxied.example").await;
        let request = || Request::post("https://proxied.example/");
        let cases = [
            request().header("connection", "close"),
            request().header("transfer-encoding", "chunked"),
            request().header("te", "gzip"),
            request().header("content-length", "+3"),
            request().header("content-length", "3").header("content-length", "4"),
            // Shorter and longer than the three bytes that follow.
            request().header("content-length", "00"),
            request().header("content-length", "2"),
            request().header("content-length", "4"),
        ];
        for case in cases {
            let shown = format!("{:?}", case.headers_ref());
            let mut stream = client.sender.send_request(case.body(()).unwrap()).await.unwrap();
            // The edge may have refused it by now.
            let _sent = stream.send_data(Bytes::from_static(b"abc")).await;
            let _finished = stream.finish().await;
            match within(answer(&mut stream)).await {
                Err(_) => {}
                Ok(answer) => {
                    assert!(answer.status.is_client_error() || answer.status.is_server_error(), "{shown}")
                }
            }
        }
        let mut large = Request::get("https://proxied.example/");
        for index in 0..40 {
            large = large.header(format!("x-{index}"), "y".repeat(1000));
        }
        let mut stream = client.sender.send_request(large.body(()).unwrap()).await;
        if let Ok(stream) = &mut stream {
            let _finished = stream.finish().await;
            if let Ok(answer) = within(answer(stream)).await {
                assert_eq!(answer.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
            }
        }
        assert_eq!(client.get("one.example", "/").await.status, StatusCode::OK);
        assert_eq!(edge.process.metric("portico_edge_panics_total").await, 0.0);
    });
}

#[test]
fn a_client_that_gives_up_request_after_request_is_cut() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, None);
        let mut client = edge.connect("one.example").await;
        let closed = within(async {
            for _ in 0..10_000 {
                let request = Request::get("https://one.example/").body(()).unwrap();
                let Ok(mut stream) = client.sender.send_request(request).await else { break };
                stream.stop_stream(h3::error::Code::H3_REQUEST_CANCELLED);
                stream.stop_sending(h3::error::Code::H3_REQUEST_CANCELLED);
                tokio::task::yield_now().await;
            }
            client.connection.closed().await
        })
        .await;
        let quinn::ConnectionError::ApplicationClosed(close) = &closed else { panic!("{closed}") };
        assert_eq!(close.error_code, 0x107_u32.into(), "H3_EXCESSIVE_LOAD");
        assert_eq!(edge.connect("one.example").await.get("one.example", "/").await.status, StatusCode::OK);
    });
}

/// Frames that h3 alone would hold without a bound or fall over, then bytes of no form at all.
#[test]
fn raw_bytes_on_streams_neither_panic_nor_stop_the_edge() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, Some(origin::start(Behaviour::Echo).await));
        let head = request_head();
        let with_head = |rest: &[u8]| [&head[..], rest].concat();
        let mut streams = vec![
            // DATA of 100 bytes that ends after 3; the same with a pause before its end.
            with_head(&[0, 0x40, 100, 1, 2, 3]),
            // HEADERS that claim 2^30 bytes, first and as trailers.
            vec![1, 0x80 | 0x3f, 0xff, 0xff, 0xff, 1, 2, 3],
            with_head(&[0, 1, 7, 1, 0xbf, 0xff, 0xff, 0xff, 1]),
            // Trailers that are no field section; two of them; DATA after them.
            with_head(&[0, 1, 7, 1, 2, 0xff, 0xff]),
            with_head(&[1, 2, 0, 0, 1, 2, 0, 0]),
            with_head(&[1, 2, 0, 0, 0, 1, 7]),
            // An unknown frame without end, a reserved one, a WebTransport stream, a control frame.
            with_head(&[0x21, 0xbf, 0xff, 0xff, 0xff]),
            with_head(&[2, 0]),
            with_head(&[0x40, 0x41, 0]),
            with_head(&[4, 0]),
            vec![0],
            vec![],
        ];
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        streams.extend((0..120).map(|length| {
            let mut bytes = if length % 2 == 0 { head.clone() } else { Vec::new() };
            bytes.extend((0..length % 60).map(|_| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                random.to_be_bytes()[3]
            }));
            bytes
        }));
        for bytes in streams {
            send_raw(&edge, &bytes).await;
        }
        assert_eq!(edge.connect("one.example").await.get("one.example", "/").await.status, StatusCode::OK);
        assert_eq!(edge.process.metric("portico_edge_panics_total").await, 0.0);
    });
}

/// h3 takes the last of several; whoever looked at the same bytes before us may have believed the first.
#[test]
fn repeated_pseudo_headers_are_malformed_and_once_each_is_fine_in_any_coding() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, Some(origin::start(Behaviour::Echo).await));
        // :method POST, :scheme https, then what a case adds.
        let section = |fields: &[&[u8]]| {
            let block = [&[0, 0, 0xc0 | 20, 0xc0 | 23], &fields.concat()[..]].concat();
            [&[1, u8::try_from(block.len()).unwrap()][..], &block[..]].concat()
        };
        let path: &[u8] = &[0xc1];
        let authority: &[u8] = b"\x50\x0fproxied.example";
        // The Huffman code of RFC 7541 appendix B.
        let huffman_path: &[u8] = b"\x2c\xb9\x58\xd3\x3f\x02/a";
        let huffman_authority: &[u8] = b"\x2f\x01\xb8\x3b\x53\x39\xec\x32\x7d\x7f\x0fproxied.example";
        let sound = [
            section(&[path, authority]),
            section(&[huffman_path, huffman_authority]),
            section(&[b"\x25:path\x02/a", b"\x27\x03:authority\x0fproxied.example"]),
        ];
        for bytes in sound {
            assert_eq!(reset_code(&edge, &bytes).await, None, "{}", bytes.escape_ascii());
        }
        let malformed = [
            section(&[path, path, authority]),
            section(&[path, authority, b"\x51\x06/admin"]),
            section(&[path, authority, huffman_path]),
            section(&[huffman_path, huffman_path, authority]),
            section(&[path, authority, authority]),
            section(&[path, b"\x50\x0bone.example", huffman_authority]),
            section(&[path, authority, &[0xc0 | 17]]),
            section(&[path, authority, &[0xc0 | 23]]),
            section(&[b"\x23abc\x01y", path, authority]),
            section(&[path, authority, &[0xc0 | 25]]),
        ];
        let (refused, all) =
            ("portico_edge_requests_refused_total{reason=\"h3_malformed\"}", malformed.len());
        for bytes in malformed {
            assert_eq!(reset_code(&edge, &bytes).await, Some(0x10e), "{}", bytes.escape_ascii());
        }
        assert_eq!(edge.process.metric(refused).await, all as f64);
        // A second control stream: the connection ends.
        let raw = raw(&edge).await;
        let mut again = raw.connection.open_uni().await.unwrap();
        again.write_all(&[0, 4, 0]).await.unwrap();
        within(raw.connection.closed()).await;
        assert_eq!(
            edge.process.metric("portico_edge_requests_refused_total{reason=\"h3_protocol\"}").await,
            1.0
        );
    });
}

/// RFC 9114 section 7.1: h3 alone would take the end of a stream for the end of a body.
#[test]
fn a_request_that_ends_inside_a_frame_ends_its_connection_and_is_counted() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, Some(origin::start(Behaviour::Echo).await));
        let body = [&request_head()[..], &[0, 0x40, 100, 1, 2, 3]].concat();
        let trailers = [&request_head()[..], &[0, 1, 7, 1, 9, 0]].concat();
        let cases: [&[u8]; 4] = [&[1], &[1, 0x40, 100, 1, 2, 3], &body, &trailers];
        for bytes in cases {
            let Raw { connection, mut send, recv: _recv, _control } = raw(&edge).await;
            send.write_all(bytes).await.unwrap();
            send.finish().unwrap();
            assert_eq!(closed_with(&connection).await, 0x106, "{}", bytes.escape_ascii());
        }
        counted(&edge, "h3_truncated", cases.len()).await;
        assert_eq!(edge.connect("one.example").await.get("one.example", "/").await.status, StatusCode::OK);
    });
}

#[test]
fn requests_without_a_head_are_reset_by_what_is_wrong_with_them() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, None);
        assert_eq!(reset_code(&edge, &[]).await, Some(0x10d), "H3_REQUEST_INCOMPLETE");
        counted(&edge, "h3_incomplete", 1).await;
        let claims_much = [1, 0x80 | 0x3f, 0xff, 0xff, 0xff, 1, 2, 3];
        assert_eq!(reset_code(&edge, &claims_much).await, Some(0x107), "H3_EXCESSIVE_LOAD");
        counted(&edge, "h3_too_much", 1).await;
        // As its client wishes: no fault of ours.
        let Raw { connection, mut send, mut recv, _control } = raw(&edge).await;
        send.write_all(&request_head()[..5]).await.unwrap();
        send.reset(0x10c_u32.into()).unwrap();
        match within(recv.read_to_end(1 << 20)).await {
            Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) => {
                assert_eq!(code, 0x10c_u32.into(), "H3_REQUEST_CANCELLED");
            }
            other => panic!("{other:?}"),
        }
        connection.close(0x100_u32.into(), b"");
    });
}

#[test]
fn a_client_that_pushes_or_cancels_a_push_is_cut() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, None);
        let pushing = raw(&edge).await;
        let mut stream = pushing.connection.open_uni().await.unwrap();
        stream.write_all(&[1, 0]).await.unwrap();
        assert_eq!(closed_with(&pushing.connection).await, 0x103, "H3_STREAM_CREATION_ERROR");
        let Raw { connection, _control: mut control, send: _send, recv: _recv } = raw(&edge).await;
        control.write_all(&[3, 1, 0]).await.unwrap();
        assert_eq!(closed_with(&connection).await, 0x108, "H3_ID_ERROR");
        counted(&edge, "h3_protocol", 2).await;
    });
}

/// The HTTP library answers by itself, and tells nobody but the client.
#[test]
fn a_head_beyond_the_limit_is_answered_431_and_counted() {
    on_each_backend(async |backend| {
        let edge = TestEdge::start(backend, None);
        // `accept-encoding: gzip, deflate, br` of the static table: a byte that counts for 64 (RFC 9114 section 4.2.2).
        let fields = vec![0xc0 | 31; portico_edge::limits::HEADER_BYTES_MAX / 64 + 1];
        let block = [&request_head()[2..], &fields].concat();
        let [high, low] = (0x4000 | u16::try_from(block.len()).unwrap()).to_be_bytes();
        let Raw { connection, mut send, mut recv, _control } = raw(&edge).await;
        send.write_all(&[&[1, high, low][..], &block].concat()).await.unwrap();
        let _ = send.finish();
        let mut answer = [0; 64];
        let length = within(recv.read(&mut answer)).await.unwrap().unwrap();
        // In the code of RFC 7541, appendix B.
        let coded = [0x69, 0x90, 0xff];
        assert!(answer[..length].windows(3).any(|three| three == b"431" || three == coded), "{answer:?}");
        connection.close(0x100_u32.into(), b"");
        counted(&edge, "head_beyond_limits", 1).await;
    });
}

/// Until so many were refused for that reason.
async fn counted(edge: &TestEdge, reason: &str, count: usize) {
    let series = format!("portico_edge_requests_refused_total{{reason=\"{reason}\"}}");
    within(async {
        while edge.process.metric(&series).await != count as f64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// The code that the edge ends a connection with.
async fn closed_with(connection: &quinn::Connection) -> u64 {
    let closed = within(connection.closed()).await;
    let quinn::ConnectionError::ApplicationClosed(close) = &closed else { panic!("{closed}") };
    close.error_code.into()
}

/// A connection of its own that has begun to speak HTTP/3, and a request stream on it.
struct Raw {
    connection: quinn::Connection,
    /// Its end would be the connection's.
    _control: quinn::SendStream,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
}

async fn raw(edge: &TestEdge) -> Raw {
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connecting =
        endpoint.connect_with(client_config(&edge.roots), edge.address, "proxied.example").unwrap();
    let connection = within(connecting).await.unwrap();
    // Control stream, empty SETTINGS.
    let mut control = connection.open_uni().await.unwrap();
    control.write_all(&[0, 4, 0]).await.unwrap();
    let (send, recv) = connection.open_bi().await.unwrap();
    Raw { connection, _control: control, send, recv }
}

/// The code that a request of these bytes is reset with.
async fn reset_code(edge: &TestEdge, bytes: &[u8]) -> Option<u64> {
    let Raw { connection, mut send, mut recv, _control } = raw(edge).await;
    send.write_all(bytes).await.unwrap();
    send.finish().unwrap();
    let ended = within(recv.read_to_end(1 << 20)).await;
    connection.close(0x100_u32.into(), b"");
    match ended {
        Ok(_) => None,
        Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) => Some(code.into()),
        Err(other) => panic!("{other}"),
    }
}

/// A connection of its own: some of these bytes end it.
async fn send_raw(edge: &TestEdge, bytes: &[u8]) {
    let Raw { connection, mut send, mut recv, _control } = raw(edge).await;
    let _ = send.write_all(bytes).await;
    // Not in the packet of the last bytes: the edge has read them before it sees the end.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let _ = send.finish();
    let _ = within(recv.read_to_end(1 << 20)).await;
    // The same bytes where a control stream is expected.
    if let Ok(mut uni) = connection.open_uni().await {
        let _ = uni.write_all(bytes).await;
        let _ = uni.finish();
        let _ = within(uni.stopped()).await;
    }
    connection.close(0x100_u32.into(), b"");
}

/// POST https://proxied.example/ as a HEADERS frame, by the static table and literals (RFC 9204).
fn request_head() -> Vec<u8> {
    let mut block = vec![0, 0, 0xc0 | 20, 0xc0 | 23, 0xc0 | 1];
    // Literal field line with name reference to :authority (static 0).
    block.extend([0x50, 15]);
    block.extend(b"proxied.example");
    [&[1, u8::try_from(block.len()).unwrap()][..], &block[..]].concat()
}
