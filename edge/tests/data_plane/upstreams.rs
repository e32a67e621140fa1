//! Several origins behind one route: who gets requests, who gets none for a while, and what is tried again.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use portico_api::distribution as wire;
use portico_edge::io::Backend;
use portico_edge::limits::{self, Deadlines};

use crate::client::{collect, http2, https, runtime};
use crate::harness::{Setup, TestEdge, on_each_backend, wait_until};
use crate::origin::{Origin, Reply, ok};

const HOST: &str = "shop.example";

/// A route to these, all with the same weight, and what else a test wants of it.
pub fn proxy(urls: &[String], change: impl FnOnce(&mut wire::Proxy)) -> wire::Route {
    let origins = urls.iter().map(|url| wire::WeightedOrigin { url: url.clone(), weight: 1 });
    let mut proxy =
        wire::Proxy { origin: urls[0].clone(), origins: origins.collect(), ..wire::Proxy::default() };
    change(&mut proxy);
    wire::Route {
        path_prefix: "/".into(),
        action: Some(wire::route::Action::Proxy(proxy)),
        ..wire::Route::default()
    }
}

fn edge(
    backend: Backend,
    setup: Setup,
    origins: &[SocketAddr],
    change: impl FnOnce(&mut wire::Proxy),
) -> TestEdge {
    let mut edge = TestEdge::with(backend, setup);
    let urls: Vec<String> = origins.iter().map(|address| format!("http://{address}")).collect();
    let grants: Vec<_> = origins.iter().map(|address| ("127.0.0.0/8", address.port())).collect();
    let route = proxy(&urls, change);
    edge.serve_with(&[HOST], &grants, |domain| domain.routes = vec![route.clone()]);
    edge
}

fn quick_ejection() -> Setup {
    let deadlines = Deadlines {
        origin_ejection: Duration::from_secs(2),
        origin_slow_start: Duration::from_millis(200),
        ..Deadlines::default()
    };
    Setup { deadlines, ..Setup::default() }
}

/// Answers with `name`, or closes without an answer while `broken`.
fn breakable(name: &'static str) -> (Origin, Arc<AtomicBool>) {
    let broken = Arc::new(AtomicBool::new(false));
    let is_broken = Arc::clone(&broken);
    let origin = Origin::start(move |_| {
        if is_broken.load(Ordering::SeqCst) { Reply::Close(Vec::new()) } else { Reply::Keep(ok(name)) }
    });
    (origin, broken)
}

fn asked(origin: &Origin) -> usize {
    origin.messages().len()
}

#[test]
fn nobody_notices_that_one_of_two_origins_is_dead() {
    on_each_backend(|backend| {
        let alive = Origin::start(|message| Reply::Keep(ok(std::str::from_utf8(&message.body).unwrap())));
        let dead = portico_ports::reserve();
        let edge = edge(backend, Setup::default(), &[dead, alive.address], |_| ());
        let mut client = https(edge.https, HOST);
        for _ in 0..30 {
            assert_eq!(client.get(HOST, "/").status, 200);
            // Nothing of it had left when the connect failed, so a POST is safe as well.
            client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\nbody"));
            assert_eq!(client.answer().text(), "body");
        }
        assert_eq!(asked(&alive), 60, "each request once");
    });
}

#[test]
fn an_origin_that_fails_again_and_again_gets_no_requests_for_a_growing_time_and_then_some_again() {
    on_each_backend(|backend| {
        let (failing, broken) = breakable("failing");
        let (other, _) = breakable("other");
        broken.store(true, Ordering::SeqCst);
        let edge = edge(backend, quick_ejection(), &[failing.address, other.address], |_| ());
        let get = || https(edge.https, HOST).get(HOST, "/");
        let first = usize::try_from(limits::EJECT_AFTER_FAILURES).unwrap();
        wait_until("it is asked as often as it may fail", || {
            assert_eq!(get().status, 200, "the other answers in its place");
            asked(&failing) == first
        });
        // Out: for 2 s, less what its last failure took to be seen, not a single one.
        let end = portico_edge::clock::now() + Duration::from_millis(500);
        while portico_edge::clock::now() < end {
            assert_eq!(get().text(), "other");
        }
        assert_eq!(asked(&failing), first);
        // Back, with one failure enough this time, and out for twice as long.
        wait_until("it is tried again", || {
            assert_eq!(get().status, 200);
            asked(&failing) > first
        });
        let end = portico_edge::clock::now() + Duration::from_millis(2500);
        while portico_edge::clock::now() < end {
            assert_eq!(get().text(), "other");
        }
        assert_eq!(asked(&failing), first + 1);
        // Well again: it has its share once more.
        broken.store(false, Ordering::SeqCst);
        let before = asked(&other);
        wait_until("it has its share", || {
            assert_eq!(get().status, 200);
            asked(&failing) > first + 40
        });
        assert!(asked(&other) > before);
    });
}

/// The long way to its whole share, of which this test sees the beginning.
#[test]
fn an_origin_that_is_back_gets_few_requests_at_first() {
    on_each_backend(|backend| {
        let (failing, broken) = breakable("failing");
        let (other, _) = breakable("other");
        broken.store(true, Ordering::SeqCst);
        let deadlines = Deadlines {
            origin_ejection: Duration::from_millis(200),
            origin_slow_start: Duration::from_secs(3600),
            ..Deadlines::default()
        };
        let setup = Setup { deadlines, ..Setup::default() };
        let edge = edge(backend, setup, &[failing.address, other.address], |_| ());
        let mut client = https(edge.https, HOST);
        wait_until("it is out", || {
            assert_eq!(https(edge.https, HOST).get(HOST, "/").status, 200);
            asked(&failing) >= usize::try_from(limits::EJECT_AFTER_FAILURES).unwrap()
        });
        broken.store(false, Ordering::SeqCst);
        wait_until("it is back", || https(edge.https, HOST).get(HOST, "/").text() == "failing");
        let before = asked(&failing);
        for _ in 0..800 {
            assert_eq!(client.get(HOST, "/").status, 200);
        }
        // One in seventeen is 47; without the slow start it would be half of them.
        let of_it = asked(&failing) - before;
        assert!((1..150).contains(&of_it), "{of_it} of 800");
    });
}

#[test]
fn never_are_all_origins_out() {
    on_each_backend(|backend| {
        let origins = [breakable("a"), breakable("b")];
        for (_, broken) in &origins {
            broken.store(true, Ordering::SeqCst);
        }
        let addresses = origins.each_ref().map(|(origin, _)| origin.address);
        let edge = edge(backend, Setup::default(), &addresses, |_| ());
        let get = || https(edge.https, HOST).get(HOST, "/").status;
        for _ in 0..40 {
            assert_eq!(get(), 502);
        }
        let total: usize = origins.iter().map(|(origin, _)| asked(origin)).sum();
        assert!(total <= 40 + 2 * usize::try_from(limits::EJECT_AFTER_FAILURES).unwrap(), "{total} for 40");
        for (_, broken) in &origins {
            broken.store(false, Ordering::SeqCst);
        }
        assert_eq!(get(), 200, "both are ejected for seconds yet, and one is asked all the same");
    });
}

#[test]
fn a_slow_origin_gets_fewer_requests() {
    on_each_backend(|backend| {
        let slow = Origin::start(|_| {
            std::thread::sleep(Duration::from_millis(100));
            Reply::Keep(ok("slow"))
        });
        let fast = Origin::start(|_| Reply::Keep(ok("fast")));
        let edge = edge(backend, Setup::default(), &[slow.address, fast.address], |_| ());
        runtime().block_on(async {
            let sender = http2::<Empty<Bytes>>(edge.https, Some(HOST)).await.unwrap();
            let clients = (0..8).map(|_| {
                let mut sender = sender.clone();
                async move {
                    for _ in 0..40 {
                        let request =
                            http::Request::get(format!("https://{HOST}/")).body(Empty::new()).unwrap();
                        assert_eq!(
                            collect(sender.send_request(request).await.unwrap()).await.unwrap().status,
                            200
                        );
                    }
                }
            });
            futures_util::future::join_all(clients).await;
        });
        let (slow, fast) = (asked(&slow), asked(&fast));
        assert_eq!(slow + fast, 320);
        assert!(slow * 3 < fast, "{slow} to the slow one, {fast} to the fast one");
    });
}

#[test]
fn weights_divide_the_requests() {
    on_each_backend(|backend| {
        let (large, _) = breakable("large");
        let (small, _) = breakable("small");
        let edge = edge(backend, Setup::default(), &[large.address, small.address], |proxy| {
            proxy.origins[0].weight = 9;
        });
        let mut client = https(edge.https, HOST);
        for _ in 0..400 {
            assert_eq!(client.get(HOST, "/").status, 200);
        }
        let share = asked(&small);
        assert!((15..=80).contains(&share), "{share} of 400 where 40 are its share");
    });
}

#[test]
fn retries_end_when_their_budget_is_spent() {
    on_each_backend(|backend| {
        // Every connection serves one message and dies at the second, before a byte of an answer.
        let origin = Origin::start(|message| match message.number {
            0 => Reply::Keep(ok("first")),
            _ => Reply::Close(Vec::new()),
        });
        let edge = edge(backend, Setup::default(), &[origin.address], |_| ());
        let mut client = https(edge.https, HOST);
        let statuses: Vec<u16> = (0..300).map(|_| client.get(HOST, "/").status).collect();
        let refused = statuses.iter().filter(|&&status| status == 502).count();
        let retries = asked(&origin) - 300;
        assert!(statuses[..35].iter().all(|&status| status == 200), "{statuses:?}");
        let earned = usize::try_from(limits::RETRY_RESERVE).unwrap() + 300 / 5;
        assert!(retries <= earned && refused > 50, "{retries} retries, {refused} requests without one");
    });
}

/// Holds every request until it is opened.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn pass(&self) {
        let open = self.open.lock().unwrap();
        drop(self.opened.wait_while(open, |open| !*open).unwrap());
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

#[test]
fn an_open_circuit_breaker_answers_503_at_once_and_says_why_in_the_log_alone() {
    on_each_backend(|backend| {
        let gate = Arc::new(Gate::default());
        let held = Arc::clone(&gate);
        let origin = Origin::start(move |_| {
            held.pass();
            Reply::Keep(ok("done"))
        });
        let setup = Setup { workers: 2, ..Setup::default() };
        let edge = edge(backend, setup, &[origin.address], |proxy| {
            (proxy.in_flight_max, proxy.pending_max) = (2, 1);
        });
        let address = edge.https;
        let ask = move || std::thread::spawn(move || https(address, HOST).get(HOST, "/").status);
        let under_way = [ask(), ask()];
        wait_until("two are under way", || asked(&origin) == 2);
        // The third waits; of any others each is refused, whichever worker has it.
        let rest: Vec<_> = (0..6).map(|_| ask()).collect();
        wait_until("all but one are refused", || rest.iter().filter(|one| one.is_finished()).count() == 5);
        assert_eq!(asked(&origin), 2, "the origin is spared");
        gate.open();
        let mut statuses: Vec<u16> = rest.into_iter().map(|one| one.join().unwrap()).collect();
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 503, 503, 503, 503, 503]);
        assert!(under_way.into_iter().all(|one| one.join().unwrap() == 200));
        let refused = edge.log_lines(8).into_iter().filter(|line| line["reason"] == "breaker_open").count();
        assert_eq!(refused, 5);
        let again = https(edge.https, HOST).get(HOST, "/");
        assert_eq!((again.status, again.text().as_str()), (200, "done"), "closed again");
    });
}

#[test]
fn an_origin_that_fails_its_health_check_gets_no_requests_until_it_passes() {
    on_each_backend(|backend| {
        let start = |name: &'static str| {
            let well = Arc::new(AtomicBool::new(true));
            let checks = Arc::new(AtomicUsize::new(0));
            let (is_well, count) = (Arc::clone(&well), Arc::clone(&checks));
            let origin = Origin::start(move |message| {
                if message.request_line != "GET /up?x HTTP/1.1" {
                    return Reply::Keep(ok(name));
                }
                count.fetch_add(1, Ordering::SeqCst);
                let status = if is_well.load(Ordering::SeqCst) { "204 No Content" } else { "500 Oops" };
                Reply::Close(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").into_bytes())
            });
            (origin, well, checks)
        };
        let (one, one_well, checks) = start("one");
        let (two, _, _) = start("two");
        let setup = Setup { health_checks: true, ..quick_ejection() };
        let edge = edge(backend, setup, &[one.address, two.address], |proxy| {
            proxy.health_check = Some(wire::HealthCheck {
                path: "/up?x".into(),
                interval_seconds: 1,
                healthy_after: 1,
                unhealthy_after: 1,
            });
        });
        // Nobody has asked yet, so nobody checks.
        assert_eq!(checks.load(Ordering::SeqCst), 0);
        let share_of_one = || {
            let mut client = https(edge.https, HOST);
            (0..20).filter(|_| client.get(HOST, "/").text() == "one").count()
        };
        assert!(share_of_one() > 0);
        one_well.store(false, Ordering::SeqCst);
        let deadline = portico_edge::clock::now() + crate::harness::PATIENCE;
        while share_of_one() > 0 {
            assert!(portico_edge::clock::now() < deadline, "never out");
        }
        assert!(checks.load(Ordering::SeqCst) > 0);
        assert_eq!((0..10).map(|_| share_of_one()).sum::<usize>(), 0);
        one_well.store(true, Ordering::SeqCst);
        while share_of_one() == 0 {
            assert!(portico_edge::clock::now() < deadline, "never back");
        }
    });
}

#[test]
fn a_route_sets_the_time_that_its_origins_may_take() {
    on_each_backend(|backend| {
        let stuck = Origin::start(|_| Reply::Stall(Vec::new()));
        let pausing =
            Origin::start(|_| Reply::Stall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc".to_vec()));
        let start = portico_edge::clock::now();
        let first =
            edge(backend, Setup::default(), &[stuck.address], |proxy| proxy.first_byte_timeout_ms = 150);
        assert_eq!(https(first.https, HOST).get(HOST, "/").status, 504);
        assert_eq!(first.log_lines(1)[0]["reason"], "first_byte_timeout");
        let idle = edge(backend, Setup::default(), &[pausing.address], |proxy| proxy.idle_timeout_ms = 150);
        let mut client = https(idle.https, HOST);
        client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        client.answer_to("GET").expect_err("cut in the middle");
        assert!(portico_edge::clock::now() - start < Duration::from_secs(10), "the edge's own time is 60 s");
    });
}
