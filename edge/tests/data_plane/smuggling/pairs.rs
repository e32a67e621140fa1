//! Every spelling of one thing with every spelling of the others: lengths, codings and bodies, then targets, line ends and
//! methods. What is to become of each follows from its parts, so nothing is merely "refused or not".

use std::io::{Read as _, Write as _};

use super::{HOST, edge_to};
use crate::client::{Http1, tcp};
use crate::harness::{TestEdge, on_each_backend};
use crate::origin::{Message, Origin};

/// What a line says of the body behind the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Says {
    Nothing,
    /// Its first five bytes.
    Five,
    Chunked,
    /// Nobody is to believe the message.
    Unsound,
}

const LENGTHS: &[(Says, &str)] = &[
    (Says::Nothing, ""),
    (Says::Nothing, "X-Content-Length: 7\r\n"),
    (Says::Five, "Content-Length: 5\r\n"),
    (Says::Five, "content-LENGTH:5\r\n"),
    (Says::Five, "Content-Length:  5 \t\r\n"),
    (Says::Five, "Content-Length: 0005\r\n"),
    (Says::Unsound, "Content-Length: +5\r\n"),
    (Says::Unsound, "Content-Length: -5\r\n"),
    (Says::Unsound, "Content-Length: 5, 5\r\n"),
    (Says::Unsound, "Content-Length: 5\r\nContent-Length: 5\r\n"),
    (Says::Unsound, "Content-Length: 5\r\nContent-Length: 6\r\n"),
    (Says::Unsound, "Content-Length : 5\r\n"),
    (Says::Unsound, "Content-Length: 5 5\r\n"),
    (Says::Unsound, "Content-Length: 0x5\r\n"),
    (Says::Unsound, "Content-Length:\r\n 5\r\n"),
    (Says::Unsound, "Content-Length:\r\n"),
    (Says::Unsound, "Content-Length: 5\x0b\r\n"),
    (Says::Unsound, "Content-Length: 5\n"),
];

const CODINGS: &[(Says, &str)] = &[
    (Says::Nothing, ""),
    (Says::Nothing, "X-Transfer-Encoding: chunked\r\n"),
    (Says::Chunked, "Transfer-Encoding: chunked\r\n"),
    (Says::Chunked, "transfer-ENCODING:CHUNKED\r\n"),
    (Says::Unsound, "Transfer-Encoding : chunked\r\n"),
    (Says::Unsound, "Transfer-Encoding: gzip, chunked\r\n"),
    (Says::Unsound, "Transfer-Encoding: identity\r\n"),
    (Says::Unsound, "Transfer-Encoding: xchunked\r\n"),
    (Says::Unsound, "Transfer-Encoding: chunked, chunked\r\n"),
    (Says::Unsound, "Transfer-Encoding: \"chunked\"\r\n"),
    (Says::Unsound, "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
    (Says::Unsound, "Transfer-Encoding: chunked;q=1\r\n"),
    (Says::Unsound, "Transfer-Encoding:\r\n chunked\r\n"),
    (Says::Unsound, "Transfer-Encoding: \x0bchunked\r\n"),
    (Says::Unsound, "Transfer-Encoding: chunked\0\r\n"),
    (Says::Unsound, "Transfer-Encoding: chunked\n"),
];

/// As chunks each is `abcde`, or none that anybody may read.
const BODIES: &[(bool, &str)] = &[
    (true, "5\r\nabcde\r\n0\r\n\r\n"),
    (true, "05\r\nabcde\r\n000\r\n\r\n"),
    (true, "5;a=b\r\nabcde\r\n0\r\n\r\n"),
    (true, "2\r\nab\r\n3\r\ncde\r\n0\r\nX-Trailer: y\r\n\r\n"),
    (false, "5 \r\nabcde\r\n0\r\n\r\n"),
    (false, "0x5\r\nabcde\r\n0\r\n\r\n"),
    (false, "5\nabcde\r\n0\r\n\r\n"),
    (false, "5\r\nabcde\n0\r\n\r\n"),
    (false, "5\r\nabcdef\r\n0\r\n\r\n"),
    (false, "5\r\nabcd\r\n0\r\n\r\n"),
    (false, "5;a\nb\r\nabcde\r\n0\r\n\r\n"),
    (false, "5\r\nabcde\r\n0\r\nX : y\r\n\r\n"),
    // Where nobody announces it, it is the beginning of the next method: one that servers know or do not know, and a sound one.
    (false, "ABCDE"),
];

const TARGETS: &[(bool, &str)] = &[
    (true, "/case-"),
    (true, "/a//case-"),
    (true, "/?q=case-"),
    (true, "http://shop.example/case-"),
    (false, "https://shop.example/case-"),
    (false, "http://other.example/case-"),
    (false, "http://user@shop.example/case-"),
    (false, "shop.example/case-"),
    (false, "/a/../case-"),
    (false, "/a/%2e%2e/case-"),
    (false, "/a b/case-"),
    (false, "/a\tb/case-"),
    (false, "/a\0b/case-"),
    (false, "*"),
];

const LINE_ENDS: &[(bool, &str)] =
    &[(true, "\r\n"), (false, "\n"), (false, "\r"), (false, "\r\r\n"), (false, "\n\r"), (false, "\0\r\n")];

const METHODS: &[(bool, &str)] = &[
    (true, "GET"),
    (true, "POST"),
    (true, "PURGE"),
    (false, "G ET"),
    (false, "G\tET"),
    (false, "GET\x0b"),
    (false, "G@ET"),
];

/// One message, with a number of its own in its target.
pub(super) struct Pair {
    pub(super) number: usize,
    pub(super) bytes: String,
    /// What its origin is to see: method, target and body. None: nothing.
    pub(super) wanted: Option<(&'static str, String, &'static str)>,
}

pub(super) fn all() -> Vec<Pair> {
    let mut pairs: Vec<Pair> = Vec::new();
    for (by_length, length) in LENGTHS {
        for (by_coding, coding) in CODINGS {
            for (is_sound, body) in BODIES {
                let number = pairs.len();
                let bytes =
                    format!("POST /case-{number} HTTP/1.1\r\nHost: {HOST}\r\n{length}{coding}\r\n{body}");
                let body = match (by_length, by_coding) {
                    (Says::Nothing, Says::Nothing) => Some(""),
                    (Says::Five, Says::Nothing) => Some(&body[..5]),
                    (Says::Nothing, Says::Chunked) => is_sound.then_some("abcde"),
                    _ => None,
                };
                let wanted = body.map(|body| ("POST", format!("/case-{number}"), body));
                pairs.push(Pair { number, bytes, wanted });
            }
        }
    }
    for (a, target) in TARGETS {
        for (b, end) in LINE_ENDS {
            for (c, method) in METHODS {
                let number = pairs.len();
                let target = if *target == "*" { "*".to_owned() } else { format!("{target}{number}") };
                let bytes =
                    format!("{method} {target} HTTP/1.1{end}Host: {HOST}{end}Content-Length: 0{end}{end}");
                let path = target.strip_prefix("http://shop.example").unwrap_or(&target);
                let wanted = (*a && *b && *c).then(|| (*method, path.to_owned(), ""));
                pairs.push(Pair { number, bytes, wanted });
            }
        }
    }
    pairs
}

/// What comes back for one message on a connection of its own, with another request behind it: the statuses, in order.
pub(super) fn statuses(edge: &TestEdge, pair: &Pair) -> Vec<u16> {
    let mut client = tcp(edge.http);
    let end = format!("GET /end-{} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n", pair.number);
    let _ = client.write_all(format!("{}{end}", pair.bytes).as_bytes());
    let mut answers = Vec::new();
    let ended = client.read_to_end(&mut answers);
    // A reset at the end is an end.
    assert!(ended.is_ok() || !answers.is_empty(), "{:?}: {ended:?}", pair.bytes);
    let mut answers = Http1::over(std::io::Cursor::new(answers));
    std::iter::from_fn(|| answers.answer_to("GET").ok()).map(|answer| answer.status).collect()
}

fn target(message: &Message) -> (&str, &str) {
    let mut words = message.request_line.split(' ');
    (words.next().unwrap_or_default(), words.next().unwrap_or_default())
}

#[test]
fn each_pair_is_refused_or_is_exactly_one_message_at_the_origin() {
    let pairs = all();
    let sound = pairs.iter().filter(|pair| pair.wanted.is_some()).count();
    assert!(pairs.len() > 4000 && sound > 100, "{} pairs, {sound} of them sound", pairs.len());
    on_each_backend(|backend| {
        let origin = Origin::echoing();
        let edge = edge_to(backend, &origin);
        let mut seen = 0;
        for pair in &pairs {
            let statuses = statuses(&edge, pair);
            let new = origin.messages_from(seen);
            seen += new.len();
            let shown = format!("{:?} was answered {statuses:?} and came as {new:?}", pair.bytes);
            match &pair.wanted {
                None => assert!(statuses == [400] && new.is_empty(), "{shown}"),
                Some((method, path, body)) => {
                    let first = new.first().unwrap_or_else(|| panic!("{shown}"));
                    assert_eq!(target(first), (*method, &**path), "{shown}");
                    assert_eq!(first.body, body.as_bytes(), "{shown}");
                    // What is left of a body that nobody announced is no request, and nothing behind it is one.
                    let ends = new.get(1).is_some_and(|message| target(message).1.starts_with("/end-"));
                    match new.len() {
                        1 => assert_eq!(statuses, [200, 400], "{shown}"),
                        2 => assert!(statuses == [200, 200] && ends, "{shown}"),
                        _ => panic!("{shown}"),
                    }
                }
            }
        }
        // Requests whose bodies broke off are cut at the origin too, and nothing else goes wrong there.
        let is_cut = |fault: &String| fault.starts_with("half a") || fault.ends_with("body bytes");
        assert!(origin.faults().iter().all(is_cut), "{:?}", origin.faults());
    });
}
