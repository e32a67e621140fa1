//! How the origin is asked: once for many, with what is known already, and not at all where what is kept will do.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use portico_api::distribution as wire;

use super::{Shop, ask, is_hit, method, reply, status, target};
use crate::client::{Answer, Https};
use crate::harness::{Setup, on_each_backend, wait_until};
use crate::origin::{Message, Reply};

pub(super) const FRESH: &str = "Cache-Control: max-age=60";
/// Kept, and stale from the first moment.
const STALE: [&str; 2] = ["Cache-Control: max-age=60", "Age: 60"];

/// Holds an origin's answers back until it is told.
#[derive(Clone)]
pub(super) struct Gate(Arc<Mutex<Receiver<()>>>);

impl Gate {
    pub(super) fn new() -> (Sender<()>, Self) {
        let (open, wait) = channel();
        (open, Self(Arc::new(Mutex::new(wait))))
    }

    pub(super) fn pass(&self) {
        let _open = self.0.lock().unwrap().recv();
    }
}

/// GETs from so many clients, each on a thread.
fn crowd(shop: &Shop, count: usize, path: &'static str) -> Vec<std::thread::JoinHandle<Answer>> {
    (0..count)
        .map(|_| {
            let mut client = shop.connect();
            std::thread::spawn(move || ask(&mut client, "GET", path, &[]))
        })
        .collect()
}

pub(super) fn wait_for_waiters(shop: &Shop, count: usize) {
    wait_until("all others wait", || shop.edge.edge.cache.waiting() == count);
}

#[test]
fn many_clients_are_one_request_over_all_workers() {
    on_each_backend(|backend| {
        let (open, gate) = Gate::new();
        let setup = Setup { workers: 2, ..Setup::default() };
        let shop = Shop::with(backend, wire::CachePolicy::default(), setup, move |_| {
            gate.pass();
            reply(200, &[FRESH], "page")
        });
        let clients = crowd(&shop, 12, "/");
        wait_for_waiters(&shop, 11);
        open.send(()).unwrap();
        for client in clients {
            let answer = client.join().unwrap();
            assert_eq!((answer.status, answer.text().as_str()), (200, "page"));
        }
        assert_eq!(shop.origin.messages().len(), 1);
        assert_eq!(shop.edge.edge.cache.waiting(), 0);
    });
}

/// Takes the lead of a page that the origin does not answer yet.
fn lead(shop: &Shop, count: usize) -> Https {
    let mut leader = shop.connect();
    leader.send("GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n");
    wait_until("the origin is asked", || shop.origin.messages().len() == count);
    leader
}

/// Until the edge knows that so many clients went away without an answer.
fn wait_for_gone(shop: &Shop, count: usize) {
    let gone = |lines: Vec<serde_json::Value>| lines.iter().filter(|line| line["status"] == 499).count();
    wait_until("the edge has seen them go", || gone(shop.edge.log_lines(count)) == count);
}

#[test]
fn those_who_wait_get_what_was_asked_for_when_the_leaders_client_goes_away() {
    on_each_backend(|backend| {
        let (open, gate) = Gate::new();
        let shop = Shop::new(backend, move |_| {
            gate.pass();
            reply(200, &[FRESH], "page")
        });
        let leader = lead(&shop, 1);
        let clients = crowd(&shop, 5, "/");
        wait_for_waiters(&shop, 5);
        drop(leader);
        wait_for_gone(&shop, 1);
        assert_eq!(shop.edge.edge.cache.waiting(), 5, "nobody begins anew");
        open.send(()).unwrap();
        for client in clients {
            assert_eq!(client.join().unwrap().text(), "page");
        }
        assert_eq!(shop.origin.messages().len(), 1);
        assert!(is_hit(&shop.get("/")));
    });
}

#[test]
fn nothing_is_asked_for_that_nobody_waits_for() {
    on_each_backend(|backend| {
        let closed = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&closed);
        let shop = Shop::new(backend, move |_| {
            let closed = Arc::clone(&closed);
            Reply::Take(Box::new(move |mut stream| {
                let _end = std::io::Read::read(&mut stream, &mut [0]);
                closed.fetch_add(1, Ordering::SeqCst);
            }))
        });
        // The leader goes, and there was nobody else.
        drop(lead(&shop, 1));
        wait_until("the origin is let go", || seen.load(Ordering::SeqCst) == 1);
        // The leader goes, and so does the only one who waited.
        let leader = lead(&shop, 2);
        let mut waiter = shop.connect();
        waiter.send("GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n");
        wait_for_waiters(&shop, 1);
        drop(leader);
        wait_for_gone(&shop, 2);
        assert_eq!((seen.load(Ordering::SeqCst), shop.edge.edge.cache.waiting()), (1, 1));
        drop(waiter);
        wait_until("the origin is let go", || seen.load(Ordering::SeqCst) == 2);
        assert_eq!(shop.origin.messages().len(), 2);
    });
}

#[test]
fn an_answer_that_is_not_for_all_is_given_to_nobody_else() {
    on_each_backend(|backend| {
        let (open, gate) = Gate::new();
        let count = Arc::new(AtomicUsize::new(0));
        let shop = Shop::new(backend, move |_| {
            let number = count.fetch_add(1, Ordering::SeqCst);
            if number == 0 {
                gate.pass();
            }
            reply(200, &[FRESH, "Set-Cookie: a=b"], &number.to_string())
        });
        let clients = crowd(&shop, 6, "/");
        wait_for_waiters(&shop, 5);
        open.send(()).unwrap();
        let mut bodies: Vec<String> =
            clients.into_iter().map(|client| client.join().unwrap().text()).collect();
        bodies.sort();
        assert_eq!(bodies, ["0", "1", "2", "3", "4", "5"]);
        // From now on nobody waits for a stranger's answer.
        assert!(status(&shop.get("/")).contains("alone"));
    });
}

#[test]
fn a_slow_client_holds_up_nobody() {
    on_each_backend(|backend| {
        let body = "x".repeat(4 << 20);
        let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        let length = body.len();
        let policy = wire::CachePolicy { max_object_bytes: 8 << 20, ..wire::CachePolicy::default() };
        let setup = Setup { cache_bytes: 64 << 20, ..Setup::default() };
        let shop = Shop::with(backend, policy, setup, move |message| match target(message) {
            "/chunked" => Reply::Keep(
                format!("HTTP/1.1 200 X\r\n{FRESH}\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}")
                    .into_bytes(),
            ),
            _ => reply(200, &[FRESH], &body),
        });
        for path in ["/length", "/chunked"] {
            let mut slow = shop.connect();
            slow.send(format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\n\r\n"));
            wait_until("the origin is asked", || shop.asked().contains_key(path));
            assert_eq!(shop.get(path).body.len(), length, "{path}");
            assert_eq!(shop.asked()[path], 1, "{path}");
            assert_eq!(slow.answer().body.len(), length, "{path}");
        }
    });
}

/// Sends a part, waits, sends the rest.
fn in_two(head: String, first: &'static str, second: &'static str, gate: Gate) -> Reply {
    Reply::Take(Box::new(move |mut stream| {
        let _sent = stream.write_all(format!("{head}{first}").as_bytes());
        gate.pass();
        let _sent = stream.write_all(second.as_bytes());
    }))
}

#[test]
fn a_body_of_known_length_is_read_along() {
    on_each_backend(|backend| {
        let (open, gate) = Gate::new();
        let shop = Shop::new(backend, move |_| {
            in_two(
                format!("HTTP/1.1 200 X\r\nContent-Length: 8\r\n{FRESH}\r\n\r\n"),
                "half",
                "rest",
                gate.clone(),
            )
        });
        let mut clients = [shop.connect(), shop.connect()];
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n");
            client.head().unwrap();
            assert_eq!(client.exactly(4).unwrap(), b"half");
        }
        open.send(()).unwrap();
        for client in &mut clients {
            assert_eq!(client.exactly(4).unwrap(), b"rest");
        }
        assert_eq!(shop.origin.messages().len(), 1);
        wait_until("it is kept", || is_hit(&shop.get("/")));
    });
}

#[test]
fn what_does_not_fit_passes_through_and_is_not_held() {
    on_each_backend(|backend| {
        let body = "x".repeat(3 << 20);
        let length = body.len();
        let policy = wire::CachePolicy { max_object_bytes: 256 << 10, ..wire::CachePolicy::default() };
        let shop = Shop::with(backend, policy, Setup::default(), move |message| {
            match target(message) {
            "/chunked" => Reply::Keep(
                format!(
                    "HTTP/1.1 200 X\r\n{FRESH}\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"
                )
                .into_bytes(),
            ),
            _ => reply(200, &[FRESH], &body),
        }
        });
        for path in ["/length", "/chunked", "/chunked"] {
            let answer = shop.get(path);
            assert_eq!(answer.body.len(), length, "{path}");
            assert!(answer.body.iter().all(|byte| *byte == b'x'));
        }
        assert_eq!(shop.edge.edge.cache.entries(), 0);
        wait_until("nothing is held", || shop.edge.edge.cache.bytes() == 0);
    });
}

#[test]
fn a_stale_answer_is_asked_about_and_its_body_not_sent_again() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| match message.header("if-none-match") {
            None => reply(200, &[STALE[0], STALE[1], "ETag: \"a\"", "X-Old: 1", "X-Both: old"], "page"),
            Some("\"a\"") => Reply::Keep(
                format!("HTTP/1.1 304 X\r\nETag: \"a\"\r\n{FRESH}\r\nX-Both: new\r\n\r\n").into_bytes(),
            ),
            Some(_) => reply(500, &[], "what?"),
        });
        shop.get("/");
        // A client's own condition is about its own copy.
        let second = shop.ask("GET", "/", &[("if-none-match", "\"mine\"")]);
        assert_eq!((second.status, second.text().as_str()), (200, "page"));
        assert!(status(&second).contains("fwd-status=304"), "{second:?}");
        assert_eq!((second.header("x-old"), second.header("x-both")), (Some("1"), Some("new")));
        let third = shop.get("/");
        assert!(is_hit(&third));
        assert_eq!((third.text().as_str(), third.header("x-both")), ("page", Some("new")));
        assert_eq!((shop.origin.messages().len(), shop.origin.connections()), (2, 1));
    });
}

#[test]
fn a_304_about_something_else_is_not_believed() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| match (message.header("if-none-match"), message.number) {
            (None, 0) => reply(200, &[STALE[0], STALE[1], "ETag: \"a\""], "old"),
            (None, _) => reply(200, &[FRESH, "ETag: \"b\""], "new"),
            (Some(_), _) => {
                Reply::Keep(b"HTTP/1.1 304 X\r\nETag: \"b\"\r\nCache-Control: max-age=60\r\n\r\n".to_vec())
            }
        });
        shop.get("/");
        assert_eq!(shop.get("/").text(), "new");
        assert_eq!(shop.get("/").text(), "new");
        assert_eq!(shop.origin.messages().len(), 3);
    });
}

#[test]
fn what_must_be_asked_about_each_time_is() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| match message.header("if-none-match") {
            None => reply(200, &["Cache-Control: no-cache", "ETag: \"a\""], "page"),
            Some(_) => {
                Reply::Keep(b"HTTP/1.1 304 X\r\nETag: \"a\"\r\nCache-Control: no-cache\r\n\r\n".to_vec())
            }
        });
        for _ in 0..3 {
            assert_eq!(shop.get("/").text(), "page");
        }
        assert_eq!(shop.origin.messages().len(), 3);
    });
}

#[test]
fn a_304_that_forbids_keeping_is_obeyed() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| match message.header("if-none-match") {
            None => reply(200, &[STALE[0], STALE[1], "ETag: \"a\""], "page"),
            Some(_) => {
                Reply::Keep(b"HTTP/1.1 304 X\r\nETag: \"a\"\r\nCache-Control: no-store\r\n\r\n".to_vec())
            }
        });
        shop.get("/");
        assert_eq!(shop.get("/").text(), "page");
        assert_eq!(shop.edge.edge.cache.entries(), 0);
    });
}

#[test]
fn a_stale_page_is_given_at_once_while_a_new_one_is_fetched() {
    on_each_backend(|backend| {
        let (open, gate) = Gate::new();
        let count = Arc::new(AtomicUsize::new(0));
        let shop = Shop::new(backend, move |_| {
            if count.fetch_add(1, Ordering::SeqCst) == 0 {
                return reply(
                    200,
                    &["Cache-Control: max-age=60, stale-while-revalidate=600", "Age: 60"],
                    "old",
                );
            }
            gate.pass();
            reply(200, &[FRESH], "new")
        });
        shop.get("/");
        for _ in 0..3 {
            let answer = shop.get("/");
            assert_eq!(answer.text(), "old");
            assert!(status(&answer).contains("stale-while-revalidate"), "{answer:?}");
        }
        wait_until("the origin is asked", || shop.origin.messages().len() == 2);
        open.send(()).unwrap();
        wait_until("the new one is there", || shop.get("/").text() == "new");
        assert_eq!(shop.origin.messages().len(), 2);
    });
}

#[test]
fn a_stale_page_stands_in_for_an_origin_that_fails() {
    on_each_backend(|backend| {
        let count = Arc::new(AtomicUsize::new(0));
        let shop = Shop::new(backend, move |message: &Message| {
            if count.fetch_add(1, Ordering::SeqCst) < 3 {
                let control = match target(message) {
                    "/strict" => "Cache-Control: max-age=60, stale-if-error=600, must-revalidate",
                    _ => "Cache-Control: max-age=60, stale-if-error=600",
                };
                return reply(200, &[control, "Age: 60", "ETag: \"a\""], "page");
            }
            match target(message) {
                "/cut" => Reply::Close(Vec::new()),
                _ => reply(503, &[], "no"),
            }
        });
        for path in ["/error", "/cut", "/strict"] {
            shop.get(path);
        }
        for path in ["/error", "/cut"] {
            let answer = shop.get(path);
            assert_eq!((answer.status, answer.text().as_str()), (200, "page"), "{path}");
            assert!(status(&answer).contains("stale-if-error"), "{path}: {answer:?}");
            let asked = shop.asked()[path];
            assert_eq!(shop.get(path).text(), "page");
            assert_eq!(shop.asked()[path], asked, "an origin that has just failed is left alone");
        }
        assert_eq!(shop.get("/strict").status, 503, "the origin has forbidden it");
    });
}

#[test]
fn parts_heads_and_conditions_are_answered_from_the_whole() {
    on_each_backend(|backend| {
        let modified = "Sun, 09 Sep 2001 01:46:40 GMT";
        let lines = [
            FRESH,
            "ETag: \"a\"",
            "Last-Modified: Sun, 09 Sep 2001 01:46:40 GMT",
            "Content-Type: text/plain",
        ];
        let shop = Shop::new(backend, move |_| reply(200, &lines, "0123456789"));
        shop.get("/");
        let part =
            |range: &str, more: &[(&str, &str)]| shop.ask("GET", "/", &[&[("range", range)], more].concat());
        for (range, body, shown) in [
            ("bytes=0-3", "0123", "bytes 0-3/10"),
            ("bytes=8-", "89", "bytes 8-9/10"),
            ("bytes=-2", "89", "bytes 8-9/10"),
            ("bytes=5-100", "56789", "bytes 5-9/10"),
        ] {
            let answer = part(range, &[]);
            assert_eq!((answer.status, answer.text().as_str()), (206, body), "{range}");
            assert_eq!(answer.header("content-range"), Some(shown));
            assert!(is_hit(&answer));
        }
        let beyond = part("bytes=10-", &[]);
        assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */10")));
        assert_eq!(part("bytes=0-1,3-4", &[]).text(), "0123456789");
        assert_eq!(part("bytes=0-3", &[("if-range", "\"a\"")]).status, 206);
        assert_eq!(part("bytes=0-3", &[("if-range", "\"b\"")]).status, 200);
        assert_eq!(part("bytes=0-3", &[("if-range", modified)]).status, 206);
        let head = shop.ask("HEAD", "/", &[]);
        assert_eq!((head.status, head.header("content-length")), (200, Some("10")));
        assert!(is_hit(&head));
        for fields in [("if-none-match", "W/\"a\""), ("if-none-match", "*"), ("if-modified-since", modified)]
        {
            let answer = shop.ask("GET", "/", &[fields]);
            assert_eq!(answer.status, 304, "{fields:?}");
            assert_eq!((answer.header("etag"), answer.header("content-type")), (Some("\"a\""), None));
        }
        assert_eq!(shop.ask("GET", "/", &[("if-none-match", "\"b\"")]).status, 200);
        assert_eq!(shop.origin.messages().len(), 1);
    });
}

#[test]
fn a_part_is_asked_for_as_a_part_where_the_whole_is_not_there() {
    on_each_backend(|backend| {
        let shop = Shop::new(backend, |message| match message.header("range") {
            Some(_) => reply(206, &[FRESH, "Content-Range: bytes 0-1/4"], "ab"),
            None => reply(200, &[FRESH, "ETag: \"a\""], "abcd"),
        });
        assert_eq!(shop.ask("GET", "/", &[("range", "bytes=0-1")]).status, 206);
        assert_eq!(shop.edge.edge.cache.entries(), 0);
        // A condition is not: the whole is fetched, kept, and looked at here.
        let answer = shop.ask("GET", "/", &[("if-none-match", "\"a\"")]);
        assert_eq!(answer.status, 304);
        wait_until("it is kept", || is_hit(&shop.get("/")));
        let asked: Vec<_> = shop.origin.messages();
        assert!(
            asked.iter().all(|message| message.header("if-none-match").is_none() && method(message) == "GET")
        );
    });
}
