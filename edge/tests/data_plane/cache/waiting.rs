//! How long, and how often, one request waits for another.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use portico_api::distribution as wire;
use portico_edge::limits::{self, Deadlines};

use super::asking::{FRESH, Gate, wait_for_waiters};
use super::{Shop, ask, is_hit, reply, status, target};
use crate::endings::{NEVER, SHORT};
use crate::harness::{Setup, on_each_backend, wait_until};
use crate::origin::{Message, Reply};

fn setup(change: impl Fn(&mut Deadlines)) -> Setup {
    let mut deadlines = Deadlines::default();
    change(&mut deadlines);
    Setup { deadlines, ..Setup::default() }
}

#[test]
fn whoever_has_waited_long_enough_asks_for_itself() {
    on_each_backend(|backend| {
        let (open, gate) = Gate::new();
        let count = Arc::new(AtomicUsize::new(0));
        let setup = setup(|deadlines| deadlines.cache_wait = SHORT);
        let shop = Shop::with(backend, wire::CachePolicy::default(), setup, move |_| {
            if count.fetch_add(1, Ordering::SeqCst) == 0 {
                gate.pass();
            }
            reply(200, &[FRESH], "page")
        });
        let mut leader = shop.connect();
        leader.send("GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n");
        wait_until("the origin is asked", || shop.origin.messages().len() == 1);
        let answer = shop.get("/");
        assert_eq!(answer.text(), "page");
        assert!(status(&answer).contains("alone"), "{answer:?}");
        open.send(()).unwrap();
        assert_eq!(leader.answer().text(), "page");
    });
}

/// Each answer is kept, and none is for those who wait: they differ in what the origin names.
#[test]
fn whoever_has_waited_often_enough_asks_for_itself() {
    on_each_backend(|backend| {
        let (open, gate) = Gate::new();
        let setup = setup(|deadlines| deadlines.cache_wait = NEVER);
        let shop = Shop::with(backend, wire::CachePolicy::default(), setup, move |_| {
            gate.pass();
            // Without a length nobody reads along.
            let head =
                format!("HTTP/1.1 200 X\r\n{FRESH}\r\nVary: X-A\r\nTransfer-Encoding: chunked\r\n\r\n");
            Reply::Keep(format!("{head}4\r\npage\r\n0\r\n\r\n").into_bytes())
        });
        let often = usize::try_from(limits::CACHE_WAITS_MAX).unwrap();
        let count = often + 4;
        let clients: Vec<_> = (0..count)
            .map(|number| {
                let mut client = shop.connect();
                std::thread::spawn(move || ask(&mut client, "GET", "/", &[("x-a", &number.to_string())]))
            })
            .collect();
        for round in 1..=often {
            wait_until("one asks for all", || shop.origin.messages().len() == round);
            wait_for_waiters(&shop, count - round);
            open.send(()).unwrap();
        }
        wait_until("all others ask for themselves", || shop.origin.messages().len() == count);
        assert_eq!(shop.edge.edge.cache.waiting(), 0);
        for _ in often..count {
            open.send(()).unwrap();
        }
        for client in clients {
            assert_eq!(client.join().unwrap().text(), "page");
        }
    });
}

#[test]
fn an_origin_that_has_failed_is_left_alone_as_long_as_was_said() {
    on_each_backend(|backend| {
        for (spare, asks) in [(NEVER, 0), (Duration::ZERO, 5)] {
            let count = Arc::new(AtomicUsize::new(0));
            let setup = setup(|deadlines| deadlines.cache_spare = spare);
            let shop = Shop::with(backend, wire::CachePolicy::default(), setup, move |_| {
                match count.fetch_add(1, Ordering::SeqCst) {
                    0 => reply(200, &["Cache-Control: max-age=60, stale-if-error=600", "Age: 60"], "page"),
                    _ => reply(503, &[], "no"),
                }
            });
            shop.get("/");
            wait_until("it is kept", || shop.edge.edge.cache.entries() == 1);
            assert_eq!(shop.get("/").text(), "page", "instead of the failure");
            for _ in 0..5 {
                assert_eq!(shop.get("/").text(), "page");
            }
            assert_eq!(shop.origin.messages().len(), 2 + asks, "spared for {spare:?}");
        }
    });
}

#[test]
fn no_answer_takes_more_than_its_share_of_the_cache() {
    on_each_backend(|backend| {
        let cache_bytes = 1 << 20;
        let setup = Setup { cache_bytes, ..Setup::default() };
        let shop = Shop::with(backend, wire::CachePolicy::default(), setup, |message: &Message| {
            let (kind, length) = target(message)[1..].split_once('/').unwrap();
            let body = "x".repeat(length.parse().unwrap());
            match kind {
                "length" => reply(200, &[FRESH], &body),
                _ => Reply::Keep(
                    format!("HTTP/1.1 200 X\r\n{FRESH}\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n", length = body.len())
                        .into_bytes(),
                ),
            }
        });
        let share = cache_bytes / limits::CACHE_OBJECT_SHARE;
        for kind in ["length", "chunked"] {
            let path = format!("/{kind}/{share}");
            wait_until("it is kept", || is_hit(&shop.get(&path)));
            let path = format!("/{kind}/{}", share + 1);
            for _ in 0..5 {
                let answer = shop.get(&path);
                assert_eq!(answer.body.len() as u64, share + 1);
                assert!(!is_hit(&answer), "{path}");
            }
        }
    });
}
