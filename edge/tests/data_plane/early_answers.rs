//! Answers that come before the request's body is whole: the client goes on sending for a while, and must not lose them.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use bytes::Bytes;
use portico_api::distribution as wire;
use portico_attacker::frame::{self, DATA, END_STREAM, Frame, HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE};
use portico_edge::limits::{self, Deadlines};

use crate::client::{Https, any_version, https, runtime, try_https};
use crate::harness::{PATIENCE, Setup, TestEdge, on_each_backend, proxy_to};
use crate::http3_client::Http3;

const HOST: &str = "shop.example";
const UNKNOWN: &str = "nobody.example";
const PROXIED: &str = "proxied.example";

/// Serves one static page, which takes no POST.
fn edge(backend: portico_edge::io::Backend, leftover: Duration) -> TestEdge {
    let deadlines = Deadlines { leftover, ..Deadlines::default() };
    let mut edge = TestEdge::with(backend, Setup { http3: true, deadlines, ..Setup::default() });
    edge.serve(&[HOST]);
    edge
}

fn next(client: &mut Https) -> Frame {
    client.frame().unwrap()
}

/// A POST whose answer has come, and whose body has only begun.
fn answered_early(edge: &TestEdge) -> (Https, u32) {
    let mut client = try_https(edge.https, Some(HOST), any_version(&["h2"])).unwrap();
    client.send([frame::PREFACE, &frame::frame(SETTINGS, 0, 0, &[])].concat());
    // The windows of the edge's settings count for those who have seen them.
    client.send(frame::frame(SETTINGS, 1, 0, &[]));
    let stream = frame::stream(0);
    client.send(frame::post(stream, HOST)).send(frame::frame(DATA, 0, stream, b"it begins"));
    let answer = std::iter::from_fn(|| Some(next(&mut client))).find(|frame| frame.kind == HEADERS).unwrap();
    // 405 is not in the static table: a literal with the name of `:status`.
    assert!(answer.payload.len() > 3, "a head");
    (client, stream)
}

/// What the edge says of the stream while the client sends so much, as it may.
fn send_on(client: &mut Https, stream: u32, bytes: usize) -> Option<Frame> {
    let piece = vec![0; limits::H2_FRAME_BYTES_MAX as usize];
    let mut window = limits::H2_STREAM_WINDOW_BYTES as usize - 9;
    let mut left = bytes;
    while left > 0 {
        while window < piece.len().min(left) {
            let frame = next(client);
            if frame.kind == RST_STREAM {
                return Some(frame);
            }
            if (frame.kind, frame.stream) == (WINDOW_UPDATE, stream) {
                window += u32::from_be_bytes(frame.payload[..4].try_into().unwrap()) as usize;
            }
        }
        let now = piece.len().min(left);
        left -= now;
        window -= now;
        let flags = if left == 0 { END_STREAM } else { 0 };
        client.send(frame::frame(DATA, flags, stream, &piece[..now]));
    }
    None
}

#[test]
fn an_early_answer_over_http2_is_not_followed_by_a_reset_while_the_client_sends() {
    on_each_backend(|backend| {
        let edge = edge(backend, PATIENCE);
        let (mut client, stream) = answered_early(&edge);
        let sent = send_on(&mut client, stream, 2 * limits::H2_CONNECTION_WINDOW_BYTES as usize);
        assert!(sent.is_none(), "the body is taken to its end");
        client.send(frame::frame(frame::PING, 0, 0, &[7; 8]));
        let pong = loop {
            let frame = next(&mut client);
            assert_ne!(frame.kind, RST_STREAM);
            if frame.kind == frame::PING && frame.flags & 1 == 1 {
                break frame;
            }
        };
        assert_eq!(pong.payload, [7; 8]);
    });
}

#[test]
fn what_is_read_behind_an_early_answer_is_bounded() {
    on_each_backend(|backend| {
        let by_bytes = edge(backend, PATIENCE);
        let most = usize::try_from(limits::REQUEST_BODY_BYTES_MAX).unwrap();
        let (mut client, stream) = answered_early(&by_bytes);
        let reset = send_on(&mut client, stream, most + (1 << 20)).expect("enough is enough");
        assert_eq!((reset.stream, &*reset.payload), (stream, &[0, 0, 0, 0][..]), "NO_ERROR");

        let by_time = edge(backend, Duration::from_millis(200));
        let (mut client, stream) = answered_early(&by_time);
        let reset = std::iter::from_fn(|| Some(next(&mut client))).find(|frame| frame.kind == RST_STREAM);
        let reset = reset.unwrap();
        assert_eq!((reset.stream, &*reset.payload), (stream, &[0, 0, 0, 0][..]), "NO_ERROR");
    });
}

#[test]
fn an_early_answer_over_http3_is_not_followed_by_a_stop_while_the_client_sends() {
    on_each_backend(|backend| {
        let edge = edge(backend, PATIENCE);
        let local = tokio::task::LocalSet::new();
        let talking = async {
            let mut client = Http3::connect(edge.https, Some(HOST)).await.unwrap();
            for host in [HOST, UNKNOWN] {
                let request = http::Request::post(format!("https://{host}/")).body(()).unwrap();
                let mut stream = client.sender.send_request(request).await.unwrap();
                stream.send_data(Bytes::from_static(b"it begins")).await.unwrap();
                let status = stream.recv_response().await.unwrap().status();
                assert!(status.is_client_error(), "{status}");
                while stream.recv_data().await.unwrap().is_some() {}
                let piece = Bytes::from(vec![0; 64 * 1024]);
                for _ in 0..limits::LINGER_BYTES_MAX / 2 / piece.len() {
                    stream.send_data(piece.clone()).await.unwrap();
                }
                stream.finish().await.unwrap();
            }
            client.close();
        };
        let talking = async { tokio::time::timeout(PATIENCE, talking).await };
        local.block_on(&runtime(), talking).unwrap();
    });
}

#[test]
fn an_early_answer_over_http1_is_read_whole_by_a_client_that_sends_first() {
    on_each_backend(|backend| {
        let edge = edge(backend, PATIENCE);
        let mut client = https(edge.https, HOST);
        let length = limits::LINGER_BYTES_MAX / 2;
        client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n"));
        client.send(vec![0; length]);
        assert_eq!(client.answer().status, 405);
        assert!(client.closes());
    });
}

/// curl 7.88 (Debian 12) throws away an answer that it has not read when its stream is reset.
#[test]
fn curl_reads_every_early_answer_to_an_upload_of_30_megabytes() {
    let mut edge = edge(portico_edge::io::Backend::Epoll, limits::LEFTOVER_DEADLINE);
    // As nginx does with a body beyond client_max_body_size: it answers, and reads on for a while.
    let origin = crate::uploads::raw("proxied", |mut stream| {
        let answer = b"HTTP/1.1 413 X\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge";
        if stream.write_all(answer).is_ok() {
            let mut buffer = vec![0; 64 * 1024];
            // To the end: to close with something unread would be a reset, which takes back an answer that is not read yet.
            while let Ok(1..) = stream.read(&mut buffer) {}
        }
    });
    edge.serve_with(&[PROXIED], &[("127.0.0.0/8", origin.port())], |domain| {
        let route = proxy_to(&format!("http://{origin}"));
        domain.routes = vec![wire::Route { path_prefix: "/large".into(), ..route }];
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    std::fs::write(&file, vec![7; 30_000_000]).unwrap();
    let port = edge.https.port();
    let cases = [(HOST, "/", "405"), (PROXIED, "/", "404"), (PROXIED, "/large", "413")];
    for ((host, path, status), version) in
        cases.into_iter().flat_map(|case| [(case, "--http2"), (case, "--http1.1")])
    {
        for run in 0..10 {
            let mut command = std::process::Command::new("curl");
            command
                .args(["-sSk", version, "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "60"])
                .args(["--connect-to", &format!("{host}:{port}:127.0.0.1:{port}")])
                .args(["-H", "Expect:", "--data-binary", &format!("@{}", file.display())])
                .arg(format!("https://{host}:{port}{path}"));
            let output = match command.output() {
                Ok(output) => output,
                Err(error) => return portico_skipping::skipped(&format!("curl: {error}")),
            };
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(said, status, "{host}{path} {version} {run}: {output:?}");
        }
    }
}
