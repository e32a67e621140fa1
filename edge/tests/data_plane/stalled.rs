//! A client that stops reading one stream of HTTP/2 or 3 holds neither the stream nor the origin's connection.

use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use portico_edge::limits::Deadlines;
use tokio::task::LocalSet;

use crate::client::{collect, http2, runtime};
use crate::harness::{PATIENCE, Setup, TestEdge, on_each_backend, proxy_to};
use crate::http3_client::Http3;
use crate::origin::{Origin, Reply, ok};

const HOST: &str = "shop.example";

#[test]
fn a_stream_whose_client_stops_reading_ends_and_the_others_go_on() {
    on_each_backend(|backend| {
        let (lost, sees_the_loss) = std::sync::mpsc::channel();
        let lost = std::sync::Mutex::new(lost);
        let origin = Origin::start(move |message| {
            if message.request_line.contains("/small") {
                return Reply::Keep(ok("small"));
            }
            let lost = lost.lock().unwrap().clone();
            Reply::Take(Box::new(move |mut stream| {
                // Far more than all buffers on the way hold: it blocks until the edge gives the connection up.
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1_u64 << 30);
                let mut result = stream.write_all(head.as_bytes());
                for _ in 0..1 << 10 {
                    result = result.and_then(|()| stream.write_all(&vec![0; 1 << 20]));
                }
                let _ = lost.send(result.is_err());
            }))
        });
        let deadlines = Deadlines { write_stall: Duration::from_millis(500), ..Deadlines::default() };
        let mut edge = TestEdge::with(backend, Setup { deadlines, ..Setup::default() });
        let url = origin.url();
        edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![proxy_to(&url)]);
        let stalled = edge.metric("portico_edge_streams_stalled_total");
        runtime().block_on(async {
            let mut sender = http2::<Empty<Bytes>>(edge.https, Some(HOST)).await.unwrap();
            let request =
                |path: &str| http::Request::get(format!("https://{HOST}{path}")).body(Empty::new()).unwrap();
            let big = sender.send_request(request("/big")).await.unwrap();
            assert_eq!(big.status(), 200);
            // The body is held and not read: its window closes. Other streams keep the connection busy.
            let begun = portico_edge::clock::now();
            while edge.metric("portico_edge_streams_stalled_total") <= stalled {
                assert!(begun.elapsed() < PATIENCE, "the stream is never given up");
                let small = sender.send_request(request("/small")).await.unwrap();
                assert_eq!(collect(small).await.unwrap().text(), "small");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(begun.elapsed() >= Duration::from_millis(500), "not before its time");
            assert!(big.into_body().collect().await.is_err(), "a cut answer is not a whole one");
            let small = sender.send_request(request("/small")).await.unwrap();
            assert_eq!(collect(small).await.unwrap().text(), "small", "the connection goes on");
        });
        assert!(sees_the_loss.recv_timeout(PATIENCE).unwrap(), "the origin's connection is given up too");
        let lines = edge.log_lines(3);
        let cut = lines.iter().find(|line| line["target"] == "/big").unwrap();
        assert_eq!((&cut["reason"], &cut["complete"]), (&"client_stalled".into(), &false.into()));
    });
}

#[test]
fn the_log_says_why_an_answer_over_http3_was_cut_that_nobody_read() {
    on_each_backend(|backend| {
        // More than a client's window.
        let big = "x".repeat(8 * 1024 * 1024);
        let origin = Origin::start(move |_| Reply::Keep(ok(&big)));
        let deadlines = Deadlines { write_stall: Duration::from_millis(500), ..Deadlines::default() };
        let mut edge = TestEdge::with(backend, Setup { http3: true, deadlines, ..Setup::default() });
        let url = origin.url();
        edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![proxy_to(&url)]);
        let stalled = edge.metric("portico_edge_streams_stalled_total");
        LocalSet::new().block_on(&runtime(), async {
            let mut client = Http3::connect(edge.https, Some(HOST)).await.unwrap();
            let request = http::Request::get(format!("https://{HOST}/")).body(()).unwrap();
            let mut stream: h3::client::RequestStream<_, Bytes> =
                client.sender.send_request(request).await.unwrap();
            stream.finish().await.unwrap();
            assert_eq!(stream.recv_response().await.unwrap().status(), 200);
            let begun = portico_edge::clock::now();
            while edge.metric("portico_edge_streams_stalled_total") <= stalled {
                assert!(begun.elapsed() < PATIENCE, "the stream is never given up");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            client.close();
        });
        let cut = edge.log_lines(1).pop().unwrap();
        assert_eq!((&cut["reason"], &cut["complete"]), (&"client_stalled".into(), &false.into()), "{cut}");
    });
}

#[test]
fn a_client_that_reads_slowly_gets_the_whole_answer() {
    on_each_backend(|backend| {
        let big = "x".repeat(1024 * 1024);
        let origin = Origin::start(move |_| Reply::Keep(ok(&big)));
        let deadlines = Deadlines { write_stall: Duration::from_millis(500), ..Deadlines::default() };
        let mut edge = TestEdge::with(backend, Setup { deadlines, ..Setup::default() });
        let url = origin.url();
        edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![proxy_to(&url)]);
        runtime().block_on(async {
            let mut sender = http2::<Empty<Bytes>>(edge.https, Some(HOST)).await.unwrap();
            let request = http::Request::get(format!("https://{HOST}/")).body(Empty::new()).unwrap();
            let mut body = sender.send_request(request).await.unwrap().into_body();
            let (mut bytes, begun) = (0, portico_edge::clock::now());
            while let Some(frame) = body.frame().await {
                bytes += frame.unwrap().data_ref().map_or(0, Bytes::len);
                // Three times the deadline in all, each pause far below it.
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            assert_eq!(bytes, 1024 * 1024);
            assert!(begun.elapsed() > Duration::from_millis(1000), "{:?}", begun.elapsed());
        });
    });
}
