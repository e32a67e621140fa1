//! A full edge gives a newcomer the place of whoever has been without an exchange for longest, and of nobody else.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use portico_attacker::frame;
use portico_edge::io::Backend;
use portico_edge::limits::Deadlines;
use tokio::task::LocalSet;

use crate::client::{Https, any_version, http2_get, https, plain, runtime, tcp, try_https};
use crate::harness::{Setup, TestEdge, on_each_backend, proxy_to, wait_until};
use crate::http3_client::{Http3, http3_get};
use crate::origin::{Origin, Reply, ok};

const HOST: &str = "shop.example";
const SLOW: &str = "slow.example";

/// An edge with few places, and an origin that answers when it is told to.
struct Stage {
    edge: TestEdge,
    origin: Origin,
    answers: Arc<AtomicBool>,
    before: [f64; 4],
    _alone: MutexGuard<'static, ()>,
}

/// All edges of this process count together: whoever fills one holds this meanwhile.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const SERIES: [&str; 4] = [
    "portico_edge_connections_evicted_total{reason=\"handshake\"}",
    "portico_edge_connections_evicted_total{reason=\"head\"}",
    "portico_edge_connections_evicted_total{reason=\"idle\"}",
    "portico_edge_connections_refused_total",
];

const CUT_BODIES: &str = "portico_edge_connections_evicted_total{reason=\"body\"}";

impl Stage {
    fn new(backend: Backend, connections_max: usize) -> Self {
        let alone = alone();
        let answers = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&answers);
        let origin = Origin::start(move |_| {
            let told = Arc::clone(&told);
            Reply::Take(Box::new(move |mut stream| {
                while !told.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                stream.write_all(&ok("late")).unwrap();
            }))
        });
        let deadlines = Deadlines { evictable_after: Duration::ZERO, ..Deadlines::default() };
        let setup = Setup { connections_max, http3: true, deadlines, ..Setup::default() };
        let mut edge = TestEdge::with(backend, setup);
        edge.serve_with(&[HOST], &[], |domain| domain.https_redirect_off = true);
        let url = origin.url();
        edge.serve_with(&[SLOW], &[origin.grant()], |domain| domain.routes = vec![proxy_to(&url)]);
        let before = SERIES.map(|series| edge.metric(series));
        Self { edge, origin, answers, before, _alone: alone }
    }

    /// Evicted in a handshake, in a head, idle; and refused.
    fn counts(&self) -> [f64; 4] {
        let mut counts = SERIES.map(|series| self.edge.metric(series));
        counts.iter_mut().zip(self.before).for_each(|(count, before)| *count -= before);
        counts
    }

    /// A client whose answer is not there yet.
    fn busy(&self) -> Https {
        let before = self.origin.messages().len();
        let mut busy = https(self.edge.https, SLOW);
        busy.send(format!("GET / HTTP/1.1\r\nHost: {SLOW}\r\n\r\n"));
        wait_until("it is at the origin", || self.origin.messages().len() > before);
        busy
    }

    fn opens(&self, count: u64) {
        wait_until("it is taken", || self.edge.edge.open_connections() == count);
    }
}

#[test]
fn newcomers_get_the_places_of_half_open_slow_and_idle_connections_in_this_order() {
    on_each_backend(|backend| {
        let stage = Stage::new(backend, 5);
        let edge = &stage.edge;
        let mut busy = stage.busy();
        let mut half_open = tcp(edge.https);
        half_open.write_all(&[22, 3, 1]).unwrap();
        stage.opens(2);
        let mut slow_head = plain(edge.http);
        slow_head.send("GET / HTTP/1.1\r\nHost: ");
        stage.opens(3);
        let mut idle = https(edge.https, HOST);
        assert_eq!(idle.get(HOST, "/").status, 200);
        let mut http2 = try_https(edge.https, Some(HOST), any_version(&["h2"])).unwrap();
        http2.send([frame::PREFACE, &frame::frame(frame::SETTINGS, 0, 0, &[])].concat());
        http2.send(frame::get(1, HOST));
        // Its answer ends with the flag END_STREAM.
        loop {
            let answer = http2.frame().unwrap();
            if answer.stream == 1 && answer.flags & frame::END_STREAM != 0 {
                break;
            }
        }
        stage.opens(5);
        let expected =
            [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 2.0, 0.0]];
        let mut newcomers: Vec<_> = expected
            .into_iter()
            .map(|expected| {
                let mut newcomer = plain(edge.http);
                assert_eq!(newcomer.get(HOST, "/").status, 200);
                assert_eq!(stage.counts(), expected);
                newcomer
            })
            .collect();
        let ends = std::io::Read::read(&mut half_open, &mut [0; 1]);
        assert!(ends.is_ok_and(|count| count == 0), "the half-open handshake");
        assert!(slow_head.rest().is_ok() && idle.rest().is_ok() && http2.rest().is_ok());
        // Those that came since are idle by now, too, and QUIC has its places among the same.
        assert_eq!(http3_get(edge.https, Some(HOST), HOST, "/"), Ok(200));
        assert!(newcomers[0].closes());
        assert_eq!(newcomers[3].get(HOST, "/").status, 200);
        stage.answers.store(true, Ordering::SeqCst);
        assert_eq!(busy.answer().text(), "late", "an exchange under way is never cut");
        assert_eq!(stage.counts(), [1.0, 1.0, 3.0, 0.0]);
    });
}

/// Against clients who hold an origin's connection by a byte now and then; where there is room nobody is cut for that.
#[test]
fn a_body_of_few_bytes_gives_its_place_to_a_newcomer() {
    on_each_backend(|backend| {
        let stage = Stage::new(backend, 2);
        let edge = &stage.edge;
        let mut busy = stage.busy();
        let (before, cut_before) = (stage.origin.connections(), edge.metric(CUT_BODIES));
        let mut drips = https(edge.https, SLOW);
        drips.send(format!("POST / HTTP/1.1\r\nHost: {SLOW}\r\nContent-Length: 100\r\n\r\n"));
        drips.send("x");
        stage.opens(2);
        wait_until("it is at the origin", || stage.origin.connections() > before);
        wait_until("a newcomer has its place", || {
            http2_get(edge.https, Some(HOST), HOST, "/").is_ok_and(|answer| answer.status == 200)
        });
        assert!(drips.closes());
        assert_eq!(edge.metric(CUT_BODIES), cut_before + 1.0);
        stage.answers.store(true, Ordering::SeqCst);
        assert_eq!(busy.answer().text(), "late");
    });
}

#[test]
fn where_all_are_busy_a_newcomer_is_refused() {
    on_each_backend(|backend| {
        let stage = Stage::new(backend, 2);
        let mut busy = [stage.busy(), stage.busy()];
        assert!(plain(stage.edge.http).closes());
        assert_eq!(stage.counts(), [0.0, 0.0, 0.0, 1.0]);
        stage.answers.store(true, Ordering::SeqCst);
        for busy in &mut busy {
            assert_eq!(busy.answer().text(), "late");
        }
        assert_eq!(plain(stage.edge.http).get(HOST, "/").status, 200, "they are idle now");
    });
}

#[test]
fn an_idle_http3_connection_gives_its_place_and_a_busy_one_does_not() {
    on_each_backend(|backend| {
        let stage = Stage::new(backend, 2);
        let address = stage.edge.https;
        LocalSet::new().block_on(&runtime(), async {
            let mut busy = Http3::connect(address, Some(SLOW)).await.unwrap();
            let request = |host: &str| http::Request::get(format!("https://{host}/")).body(()).unwrap();
            let asking = tokio::task::spawn_local(async move {
                let answer = busy.ask(request(SLOW)).await;
                (busy, answer)
            });
            while stage.origin.messages().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let mut idle = Http3::connect(address, Some(HOST)).await.unwrap();
            assert_eq!(idle.ask(request(HOST)).await.unwrap().unwrap().status, 200);
            // Until the client's acknowledgement is there, its answer is under way.
            let newcomer = tokio::task::spawn_blocking(move || {
                std::iter::repeat_with(|| http2_get(address, Some(HOST), HOST, "/"))
                    .find_map(Result::ok)
                    .map(|answer| answer.status)
            });
            idle.connection.closed().await;
            assert_eq!(newcomer.await.unwrap(), Some(200));
            assert_eq!(stage.counts()[..3], [0.0, 0.0, 1.0]);
            stage.answers.store(true, Ordering::SeqCst);
            let (busy, answer) = asking.await.unwrap();
            assert_eq!(answer.unwrap().unwrap().text(), "late");
            busy.close();
        });
    });
}
