//! Messages of which no request is made: what the client is told, and what the operator.

use std::time::Duration;

use portico_attacker::frame;

use crate::client::https;
use crate::flood::{begun, headers};
use crate::harness::{TestEdge, on_each_backend, proxy_to};
use crate::origin::Origin;

const HOST: &str = "shop.example";

fn edge_to(backend: portico_edge::io::Backend, origin: &Origin) -> TestEdge {
    let mut edge = TestEdge::start(backend);
    let url = origin.url();
    edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![proxy_to(&url)]);
    edge
}

fn refused(edge: &TestEdge, reason: &str) -> f64 {
    edge.metric(&format!("portico_edge_requests_refused_total{{reason=\"{reason}\"}}"))
}

fn heads() -> Vec<(String, u16, &'static str)> {
    let lines = |lines: &str| format!("POST /secret HTTP/1.1\r\nHost: {HOST}\r\n{lines}\r\n");
    let many: String = (0..200).map(|number| format!("X-{number}: y\r\n")).collect();
    let table = [
        (lines("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), 400, "length_and_encoding"),
        (lines("Content-Length: 1\r\nContent-Length: 1\r\n"), 400, "repeated_content_length"),
        (lines("Content-Length: +1\r\n"), 400, "content_length"),
        (lines("Transfer-Encoding: gzip\r\n"), 400, "transfer_encoding"),
        (lines("X: y\r\n folded\r\n"), 400, "folded_field"),
        (lines("X : y\r\n"), 400, "field_name"),
        (lines("X: a\0b\r\n"), 400, "control_byte"),
        (lines("X: y\n"), 400, "bare_line_feed"),
        (lines("Host: other.example\r\n"), 400, "repeated_host"),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned(), 400, "request_line"),
        (lines(&many), 431, "head_beyond_limits"),
    ];
    table.to_vec()
}

#[test]
fn whoever_sends_what_is_no_request_is_in_the_log_with_the_reason() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_to(backend, &origin);
        for (number, (head, status, reason)) in heads().into_iter().enumerate() {
            let before = refused(&edge, reason);
            let mut client = https(edge.https, HOST);
            client.send(&head);
            assert_eq!(client.answer().status, status, "{reason}");
            let line = edge.log_lines(number + 1).pop().unwrap();
            assert_eq!((&line["status"], &line["reason"]), (&status.into(), &reason.into()), "{line}");
            assert_eq!(line["client"], "127.0.0.1");
            assert_eq!(line["request_id"].as_str().unwrap().len(), 32);
            // What somebody wrote who does not speak the protocol is nobody's method and nobody's path.
            assert_eq!((&line["method"], &line["target"]), (&"-".into(), &"*".into()), "{line}");
            assert!(refused(&edge, reason) > before, "{reason}");
        }
        assert!(origin.messages().is_empty());
        assert_eq!(https(edge.https, HOST).get(HOST, "/fine").text(), "/fine");
    });
}

/// Whether it comes with the head, in the same read, or later.
#[test]
fn a_malformed_chunk_is_answered_and_logged_whenever_it_comes() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_to(backend, &origin);
        let head = format!("POST /chunks HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n");
        let bodies = [
            ("ZZ\r\nabc\r\n0\r\n\r\n", "chunk"),
            ("0x3\r\nabc\r\n0\r\n\r\n", "chunk"),
            ("3;a\nabc\r\n0\r\n\r\n", "bare_line_feed"),
            ("3\r\nabcd\r\n0\r\n\r\n", "chunk"),
            ("3\r\nabc\r\n0\r\nHost: a\r\n\r\n", "trailer"),
        ];
        let mut lines = 0;
        for (body, reason) in bodies {
            for together in [true, false] {
                let before = refused(&edge, reason);
                let mut client = https(edge.https, HOST);
                if together {
                    client.send(format!("{head}{body}"));
                } else {
                    client.send(&head);
                    std::thread::sleep(Duration::from_millis(50));
                    client.send(body);
                }
                assert_eq!(client.answer().status, 400, "{body:?} {together}");
                assert!(client.closes(), "nothing behind it is read");
                lines += 1;
                let line = edge.log_lines(lines).pop().unwrap();
                assert_eq!(line["status"], 400, "{line}");
                assert_eq!(line["reason"], "request_body_broken", "{line}");
                crate::harness::wait_until("it is counted", || refused(&edge, reason) > before);
            }
        }
        assert!(origin.messages().is_empty(), "no such message is one");
    });
}

/// Requests that are whole, and for nobody: each has a line of its own words.
#[test]
fn a_request_that_is_refused_whoever_it_is_for_is_counted_by_its_reason() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_to(backend, &origin);
        let host = format!("Host: {HOST}\r\n");
        let long = format!("GET /{} HTTP/1.1\r\n{host}", "a".repeat(portico_edge::limits::TARGET_BYTES_MAX));
        let cases = [
            (format!("GET /a/../b HTTP/1.1\r\n{host}"), 400, "dot_segment"),
            (format!("GET /a%00 HTTP/1.1\r\n{host}"), 400, "encoded_nul"),
            (long, 414, "target_too_long"),
            (format!("GET / HTTP/1.1\r\n{host}Expect: a-miracle\r\n"), 417, "expectation"),
            (format!("TRACE / HTTP/1.1\r\n{host}"), 405, "method"),
            ("GET / HTTP/1.1\r\n".to_owned(), 400, "authority_missing"),
            (format!("GET http://{HOST}/ HTTP/1.1\r\n{host}"), 400, "scheme_differs"),
            (format!("GET https://other.example/ HTTP/1.1\r\n{host}"), 400, "authority_differs"),
        ];
        for (number, (head, status, reason)) in cases.into_iter().enumerate() {
            let before = refused(&edge, reason);
            let mut client = https(edge.https, HOST);
            client.send(format!("{head}\r\n"));
            assert_eq!(client.answer().status, status, "{reason}");
            let line = edge.log_lines(number + 1).pop().unwrap();
            assert_eq!((&line["status"], &line["reason"]), (&status.into(), &reason.into()), "{line}");
            assert!(refused(&edge, reason) > before, "{reason}");
        }
        assert!(origin.messages().is_empty());
    });
}

/// The HTTP library resets their streams and connections, and tells nobody.
#[test]
fn what_is_no_http2_is_counted_and_in_the_log() {
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_to(backend, &origin);
        let get = headers(1);
        let with_field = |field: &[u8]| {
            frame::frame(
                frame::HEADERS,
                frame::END_HEADERS | frame::END_STREAM,
                1,
                &[&get[9..], field].concat(),
            )
        };
        let cases = [
            (with_field(b"\x00\x0aconnection\x05close"), "h2_malformed"),
            (with_field(b"\x00\x0econtent-length\x01x"), "h2_malformed"),
            (frame::frame(frame::DATA, 0, 0, b"abc"), "h2_protocol"),
            (with_field(b"\xff\xff\xff\x0f"), "h2_protocol"),
            (vec![0, 0x40, 1, frame::DATA, 0, 0, 0, 0, 1], "h2_frame_size"),
            (frame::frame(frame::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), "h2_flow_control"),
        ];
        for (number, (bytes, reason)) in cases.into_iter().enumerate() {
            let before = refused(&edge, reason);
            let mut client = begun(&edge);
            client.send(&bytes);
            let line = edge.log_lines(number + 1).pop().unwrap();
            let seen = (&line["status"], &line["reason"], &line["protocol"]);
            assert_eq!(seen, (&400.into(), &reason.into(), &"h2".into()), "{line}");
            assert_eq!((&line["method"], &line["target"]), (&"-".into(), &"*".into()), "{line}");
            crate::harness::wait_until("it is counted", || refused(&edge, reason) > before);
        }
        assert!(origin.messages().is_empty());
    });
}
