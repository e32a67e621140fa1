//! Answers whose heads leave it open where their bodies end: made unambiguous, or not passed on.

use crate::client::https;
use crate::harness::{Setup, TestEdge, on_each_backend, proxy_to};
use crate::origin::{Origin, Reply};
use crate::routes::{HOST, PROTOCOLS, ask};

/// By the path: the head's lines, and whether there is a body.
const HEADS: [(&str, &str); 14] = [
    ("list", "Content-Length: 2, 2"),
    ("twice", "Content-Length: 2\r\nContent-Length: 2"),
    ("zeros", "Content-Length: 002"),
    ("both", "Content-Length: 7\r\nTransfer-Encoding: chunked"),
    ("differ", "Content-Length: 2\r\nContent-Length: 48"),
    ("list-differs", "Content-Length: 2, 48"),
    ("negative", "Content-Length: -1"),
    ("signed", "Content-Length: +2"),
    ("large", "Content-Length: 99999999999999999999"),
    ("gzip", "Transfer-Encoding: gzip, chunked"),
    ("two-codings", "Transfer-Encoding: chunked, chunked"),
    ("repeated", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
    ("identity", "Transfer-Encoding: identity\r\nContent-Length: 2"),
    ("nothing", "Transfer-Encoding:"),
];
const SOUND: usize = 4;

fn origin() -> Origin {
    Origin::start(|message| {
        let mut words = message.request_line.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if path == "/204" {
            return Reply::Keep(b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n".to_vec());
        }
        let (_, lines) = HEADS.iter().find(|(name, _)| path[1..] == **name).unwrap_or(&HEADS[0]);
        let body = match lines {
            _ if method == "HEAD" => "",
            lines if lines.contains("chunked") => "2\r\nok\r\n0\r\n\r\n",
            _ => "ok",
        };
        // What this origin believes to be an answer of its own.
        Reply::Close(format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n{body}").into_bytes())
    })
}

fn edge_to(backend: portico_edge::io::Backend, origin: &Origin) -> TestEdge {
    let mut edge = TestEdge::with(backend, Setup { http3: true, ..Setup::default() });
    let url = origin.url();
    edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![proxy_to(&url)]);
    edge
}

#[test]
fn an_answer_has_one_length_or_is_none() {
    on_each_backend(|backend| {
        let origin = origin();
        let edge = edge_to(backend, &origin);
        for protocol in PROTOCOLS {
            for (number, (name, _)) in HEADS.iter().enumerate() {
                for method in ["GET", "HEAD"] {
                    let case = format!("{protocol} {method} {name}");
                    let answer = ask(&edge, protocol, method, &format!("/{name}"), &[]);
                    assert_eq!(answer.status, if number < SOUND { 200 } else { 502 }, "{case}");
                    let names = |wanted: &str| {
                        let named =
                            answer.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
                        named.map(|(_, value)| value.clone()).collect::<Vec<_>>()
                    };
                    if number < SOUND {
                        let lengths: &[&str] = if *name == "both" { &[] } else { &["2"] };
                        assert_eq!(names("content-length"), lengths, "{case}");
                        assert_eq!(answer.text(), if method == "GET" { "ok" } else { "" }, "{case}");
                    }
                }
            }
        }
        let reasons: Vec<_> = edge.log_lines(1).iter().map(|line| line["reason"].clone()).collect();
        assert!(reasons.contains(&"bad_answer".into()), "{reasons:?}");
    });
}

/// What this says is for nobody, and some clients wait for it.
#[test]
fn an_answer_without_content_has_no_length() {
    on_each_backend(|backend| {
        let origin = origin();
        let edge = edge_to(backend, &origin);
        for protocol in PROTOCOLS {
            let answer = ask(&edge, protocol, "GET", "/204", &[]);
            assert_eq!((answer.status, answer.header("content-length")), (204, None), "{protocol}");
        }
    });
}

#[test]
fn a_head_with_several_lengths_does_not_take_the_requests_behind_it() {
    on_each_backend(|backend| {
        let origin = origin();
        let edge = edge_to(backend, &origin);
        let mut client = https(edge.https, HOST);
        let paths = ["differ", "twice", "negative", "list"];
        client.send(paths.map(|path| format!("HEAD /{path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).concat());
        for (path, status) in paths.into_iter().zip([502, 200, 502, 200]) {
            assert_eq!(client.answer_to("HEAD").unwrap().status, status, "{path}");
        }
    });
}
