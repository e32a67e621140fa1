//! Every bound that a client can reach, reached.

use std::time::Duration;

use portico_edge::limits::{self, Deadlines};

use crate::client::{Http1, any_version, http2, https, plain, runtime, tcp, try_https};
use crate::harness::{Setup, TestEdge, on_each_backend, wait_until};

const HOST: &str = "shop.example";

fn quick(change: impl Fn(&mut Deadlines)) -> Setup {
    let mut deadlines = Deadlines::default();
    change(&mut deadlines);
    Setup { deadlines, ..Setup::default() }
}

#[test]
fn large_heads_and_many_fields_are_refused_on_http1() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve(&[HOST]);
        let ask = |lines: &str, target: &str| {
            let mut client = https(edge.https, HOST);
            let request = format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n");
            let _ = std::io::Write::write_all(&mut client.stream, request.as_bytes());
            let answer = client.answer();
            assert!(answer.status == 200 || client.closes(), "the connection ends");
            answer.status
        };
        let fields = |count: usize| "X: y\r\n".repeat(count);
        assert_eq!(ask(&fields(limits::HEADER_FIELDS_MAX - 1), "/"), 200);
        assert_eq!(ask(&fields(limits::HEADER_FIELDS_MAX), "/"), 431);
        let padded = |bytes: usize| format!("X: {}\r\n", "y".repeat(bytes));
        assert_eq!(ask(&padded(limits::HEADER_BYTES_MAX - 200), "/"), 200);
        assert_eq!(ask(&padded(limits::HEADER_BYTES_MAX), "/"), 431);
        assert_eq!(ask(&padded(40 * limits::HEADER_BYTES_MAX), "/"), 431);
        let long = format!("/{}", "a".repeat(limits::TARGET_BYTES_MAX));
        assert_eq!(ask("", &long), 414);
    });
}

#[test]
fn large_heads_are_refused_on_http2() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve(&[HOST]);
        let status = |bytes: usize| {
            runtime().block_on(async {
                type Empty = http_body_util::Empty<bytes::Bytes>;
                let mut sender = http2::<Empty>(edge.https, Some(HOST)).await.unwrap();
                let request = http::Request::get(format!("https://{HOST}/"));
                let request = request.header("x", "y".repeat(bytes)).body(Empty::new()).unwrap();
                sender.send_request(request).await.map(|response| response.status().as_u16())
            })
        };
        assert_eq!(status(1000).unwrap(), 200);
        // The HTTP library answers by itself, and tells nobody but the client.
        let series = "portico_edge_requests_refused_total{reason=\"head_beyond_limits\"}";
        let before = edge.metric(series);
        assert_eq!(status(limits::HEADER_BYTES_MAX).unwrap(), 431);
        wait_until("it is counted", || edge.metric(series) > before);
        let line = edge.log_lines(2).pop().unwrap();
        let seen = (&line["status"], &line["reason"], &line["protocol"]);
        assert_eq!(seen, (&431.into(), &"head_beyond_limits".into(), &"h2".into()), "{line}");
    });
}

fn expired(edge: &TestEdge, reason: &str) -> f64 {
    edge.metric(&format!("portico_edge_connections_expired_total{{reason=\"{reason}\"}}"))
}

#[test]
fn many_fields_are_refused_on_http2_and_pieces_of_a_cookie_are_not() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve(&[HOST]);
        let status = |name: &str, count: usize| {
            runtime().block_on(async {
                type Empty = http_body_util::Empty<bytes::Bytes>;
                let mut sender = http2::<Empty>(edge.https, Some(HOST)).await.unwrap();
                let mut request = http::Request::get(format!("https://{HOST}/"));
                for _ in 0..count {
                    request = request.header(name, "a=b");
                }
                let request = request.body(Empty::new()).unwrap();
                sender.send_request(request).await.unwrap().status().as_u16()
            })
        };
        assert_eq!(status("x", limits::HEADER_FIELDS_MAX), 200);
        assert_eq!(status("x", limits::HEADER_FIELDS_MAX + 1), 431);
        assert_eq!(status("cookie", 2 * limits::HEADER_FIELDS_MAX), 200);
    });
}

#[test]
fn a_slow_head_is_answered_408_and_an_idle_connection_outlives_it() {
    on_each_backend(|backend| {
        let short = Duration::from_millis(400);
        let mut edge = TestEdge::with(backend, quick(|deadlines| deadlines.header = short));
        edge.serve(&[HOST]);
        let mut idle = https(edge.https, HOST);
        assert_eq!(idle.get(HOST, "/").status, 200);
        let before = expired(&edge, "slow_head");
        let refusals = "portico_edge_requests_refused_total{reason=\"slow_head\"}";
        let refused_before = edge.metric(refusals);
        let mut slow = https(edge.https, HOST);
        let begun = portico_edge::clock::now();
        slow.send("GET / HTTP/1.1\r\nHost: ");
        is_told(&mut slow);
        assert!(begun.elapsed() >= short);
        let line = edge.log_lines(2).pop().unwrap();
        assert_eq!((&line["status"], &line["reason"]), (&408.into(), &"slow_head".into()), "{line}");
        // One byte of it is enough, also behind a request and without TLS.
        slow = https(edge.https, HOST);
        slow.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\nG"));
        assert_eq!(slow.answer().status, 200);
        is_told(&mut slow);
        let mut slow = plain(edge.http);
        slow.send("GET");
        is_told(&mut slow);
        wait_until("all are counted", || expired(&edge, "slow_head") >= before + 3.0);
        assert!(edge.metric(refusals) >= refused_before + 3.0);
        assert_eq!(idle.get(HOST, "/").status, 200, "waiting between requests is no slow head");
    });
}

/// That its head took too long, and that this was the last.
fn is_told<S: std::io::Read + std::io::Write>(client: &mut Http1<S>) {
    let answer = client.answer();
    assert_eq!((answer.status, answer.header("connection")), (408, Some("close")));
    assert!(answer.header("date").is_some() && client.closes());
}

#[test]
fn an_idle_connection_is_closed_on_both_protocols() {
    on_each_backend(|backend| {
        let short = Duration::from_millis(300);
        let mut edge = TestEdge::with(backend, quick(|deadlines| deadlines.idle = short));
        edge.serve(&[HOST]);
        let before = expired(&edge, "idle");
        let mut client = https(edge.https, HOST);
        assert_eq!(client.get(HOST, "/").status, 200);
        assert!(client.closes());
        let mut silent = try_https(edge.https, Some(HOST), any_version(&["h2"])).unwrap();
        silent.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
        assert!(silent.rest().is_ok(), "closed, after its settings");
        wait_until("no connection is left", || edge.edge.open_connections() == 0);
        wait_until("both are counted", || expired(&edge, "idle") >= before + 2.0);
    });
}

#[test]
fn a_handshake_that_never_ends_is_cut() {
    on_each_backend(|backend| {
        let short = Duration::from_millis(300);
        let mut edge = TestEdge::with(backend, quick(|deadlines| deadlines.handshake = short));
        edge.serve(&[HOST]);
        let series = "portico_edge_handshakes_total{result=\"timed_out\"}";
        let before = edge.metric(series);
        let mut socket = tcp(edge.https);
        std::io::Write::write_all(&mut socket, &[22, 3, 1]).unwrap();
        let mut rest = Vec::new();
        let _ = std::io::Read::read_to_end(&mut socket, &mut rest);
        wait_until("the descriptor is free again", || edge.edge.open_connections() == 0);
        wait_until("it is counted", || edge.metric(series) > before);
    });
}

#[test]
fn a_client_that_stops_reading_is_cut() {
    on_each_backend(|backend| {
        let big = "x".repeat(8 * 1024 * 1024);
        let origin =
            crate::origin::Origin::start(move |_| crate::origin::Reply::Keep(crate::origin::ok(&big)));
        let short = Duration::from_millis(400);
        let mut edge = TestEdge::with(backend, quick(|deadlines| deadlines.write_stall = short));
        let url = origin.url();
        edge.serve_with(&[HOST], &[origin.grant()], |domain| {
            domain.routes = vec![crate::harness::proxy_to(&url)]
        });
        let mut client = https(edge.https, HOST);
        let before = expired(&edge, "stalled_read");
        client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        wait_until("the connection is cut", || edge.edge.open_connections() == 0);
        wait_until("it is counted", || expired(&edge, "stalled_read") > before);
        let cut = edge.log_lines(1).pop().unwrap();
        assert_eq!((&cut["status"], &cut["complete"]), (&200.into(), &false.into()), "{cut}");
        assert_eq!(cut["reason"], "client_stalled", "{cut}");
        // What the client does not take waits in the kernel too, for minutes after a mere close.
        wait_until("the kernel keeps nothing for it", || sockets_that_close(edge.https.port()) == 0);
        drop(client);
    });
}

/// Connections to the port that are closed at our end, with bytes left to send.
fn sockets_that_close(port: u16) -> usize {
    const FIN_WAIT_1: &str = "04";
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let is_one = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words[1].ends_with(&format!(":{port:04X}")) && words[3] == FIN_WAIT_1
    };
    sockets.lines().filter(is_one).count()
}

#[test]
fn a_request_body_that_stalls_or_is_too_large_ends() {
    on_each_backend(|backend| {
        let origin = crate::origin::Origin::echoing();
        let short = Duration::from_millis(300);
        let mut edge = TestEdge::with(backend, quick(|deadlines| deadlines.body_stall = short));
        let url = origin.url();
        edge.serve_with(&[HOST], &[origin.grant()], |domain| {
            domain.routes = vec![crate::harness::proxy_to(&url)]
        });
        let limited =
            |reason: &str| edge.metric(&format!("portico_edge_limited_total{{reason=\"{reason}\"}}"));
        let before = ["request_body_stalled", "request_body_too_large"].map(limited);
        let mut client = https(edge.https, HOST);
        client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10\r\n\r\nabc"));
        assert_eq!(client.answer().status, 408);
        assert!(limited("request_body_stalled") > before[0]);
        let mut client = https(edge.https, HOST);
        let length = limits::REQUEST_BODY_BYTES_MAX + 1;
        client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n"));
        assert_eq!(client.answer().status, 413);
        assert!(limited("request_body_too_large") > before[1]);
    });
}

#[test]
fn at_the_cap_new_connections_are_closed_and_old_ones_live() {
    let _alone = crate::full::alone();
    on_each_backend(|backend| {
        // Nobody is without an exchange for long enough to be ended for another: see `full`.
        let setup = quick(|deadlines| deadlines.evictable_after = Duration::from_secs(3600));
        let mut edge = TestEdge::with(backend, Setup { connections_max: 3, ..setup });
        edge.serve_with(&[HOST], &[], |domain| domain.https_redirect_off = true);
        let mut kept: Vec<_> = (0..3).map(|_| plain(edge.http)).collect();
        for client in &mut kept {
            assert_eq!(client.get(HOST, "/").status, 200);
        }
        for _ in 0..20 {
            let mut refused = plain(edge.http);
            let _ = std::io::Write::write_all(&mut refused.stream, b"GET / HTTP/1.1\r\n");
            assert!(refused.rest().is_ok_and(|rest| rest.is_empty()));
        }
        for client in &mut kept {
            assert_eq!(client.get(HOST, "/").status, 200, "not disturbed");
        }
        drop(kept.pop());
        wait_until("a place is free", || edge.edge.open_connections() < 3);
        assert_eq!(plain(edge.http).get(HOST, "/").status, 200);
    });
}
