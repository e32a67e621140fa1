use hyper_util::rt::TokioIo;

use super::*;
use crate::upstream::{origins::http1_builder, watch::tests::numbered};

const MOMENT: Duration = Duration::from_millis(1);

fn endpoint(kept: &Rc<Kept>) -> Rc<Endpoint> {
    Rc::new(Endpoint::new((numbered(0), Ok(None)), None, Rc::clone(kept)))
}

/// A connection whose other end stands as long as the second half.
async fn connection() -> (Http1Line, tokio::io::DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(1024);
    let (sender, connection) =
        http1_builder().handshake(TokioIo::new(ours)).await.expect("no byte is needed");
    tokio::task::spawn_local(connection);
    (Http1Line { sender, gate: Rc::default() }, theirs)
}

fn on_a_worker<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

#[tokio::test]
async fn a_stuck_origin_takes_no_more_than_its_places() {
    let endpoint = endpoint(&Rc::default());
    let mut turns = Vec::new();
    for _ in 0..limits::ORIGIN_IN_FLIGHT_PER_WORKER_MAX {
        assert!(!endpoint.is_full());
        turns.push(Rc::clone(&endpoint).enter(Duration::ZERO).await.expect("there is room"));
    }
    assert!(endpoint.is_full());
    let refused = Rc::clone(&endpoint).enter(Duration::ZERO).await.err().expect("all are taken");
    assert_eq!(refused.status(), http::StatusCode::SERVICE_UNAVAILABLE);
    drop(turns.pop());
    assert!(endpoint.enter(Duration::ZERO).await.is_ok(), "a place that is left can be taken");
}

#[test]
fn ejections_grow_up_to_the_longest_and_begin_anew_after_a_calm() {
    let endpoint = endpoint(&Rc::default());
    let mut now = clock::now();
    for _ in 1..limits::EJECT_AFTER_FAILURES {
        assert_eq!(endpoint.failed(now, limits::EJECTION_FIRST), None);
    }
    let mut length = limits::EJECTION_FIRST;
    for _ in 0..40 {
        assert_eq!(endpoint.failed(now, limits::EJECTION_FIRST), Some(length));
        assert_eq!(endpoint.share(now + length - MOMENT, MOMENT), 0, "out for all of it");
        now += length;
        assert!(endpoint.share(now, MOMENT) > 0, "and no longer");
        length = (length * 2).min(limits::EJECTION_MAX);
    }
    assert_eq!(length, limits::EJECTION_MAX);
    let calm = now + limits::EJECTION_MAX + MOMENT;
    assert_eq!(endpoint.failed(calm, limits::EJECTION_FIRST), Some(limits::EJECTION_FIRST));
}

#[test]
fn an_origin_that_is_back_gets_its_share_little_by_little() {
    let endpoint = endpoint(&Rc::default());
    let slow = limits::SLOW_START;
    let mut now = clock::now();
    assert_eq!(endpoint.share(now, slow), WHOLE_SHARE, "one that was never out begins whole");
    for failures in [limits::EJECT_AFTER_FAILURES, 1] {
        let mut out = None;
        for _ in 0..failures {
            out = endpoint.failed(now, limits::EJECTION_FIRST);
        }
        let back = now + out.expect("it is ejected");
        assert_eq!(endpoint.share(back - MOMENT, slow), 0);
        let shares: Vec<u32> =
            (0..WHOLE_SHARE).map(|part| endpoint.share(back + slow * part / WHOLE_SHARE, slow)).collect();
        assert_eq!(shares, [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        // In the first round it fails in the middle, and begins anew; in the second it has all in the end.
        now = back + slow;
    }
    assert_eq!(endpoint.share(now, slow), WHOLE_SHARE);
    assert_eq!(endpoint.share(now + MOMENT, slow), WHOLE_SHARE, "for good");
}

#[test]
fn retries_are_paid_from_a_bounded_reserve_and_from_what_requests_earn() {
    let endpoint = endpoint(&Rc::default());
    let paid = || (0..10_000).take_while(|_| endpoint.pay_for_retry()).count();
    assert_eq!(paid(), limits::RETRY_RESERVE as usize);
    for _ in 1..limits::RETRY_COST {
        endpoint.earn();
        assert!(!endpoint.pay_for_retry(), "a request earns a part of a retry");
    }
    endpoint.earn();
    assert_eq!(paid(), 1);
    for _ in 0..100 * limits::RETRY_COST * limits::RETRY_RESERVE {
        endpoint.earn();
    }
    assert_eq!(paid(), limits::RETRY_RESERVE as usize, "nobody saves up for a storm");
}

#[test]
fn idle_connections_are_bounded_for_each_origin_and_for_the_worker() {
    on_a_worker(async {
        let kept = Rc::default();
        let per_origin = limits::ORIGIN_IDLE_PER_KEY_MAX;
        let all: Vec<_> =
            (0..limits::ORIGIN_IDLE_PER_WORKER_MAX / per_origin + 1).map(|_| endpoint(&kept)).collect();
        let mut far_ends = Vec::new();
        for (number, endpoint) in all.iter().enumerate() {
            for _ in 0..per_origin + 1 {
                let (line, far_end) = connection().await;
                far_ends.push(far_end);
                endpoint.keep_http1(line, SocketAddr::from(([127, 0, 0, 1], 1)));
            }
            let expected = (per_origin * (number + 1)).min(limits::ORIGIN_IDLE_PER_WORKER_MAX);
            assert_eq!(kept.count.get(), expected, "after {} origins", number + 1);
        }
        assert_eq!(all[0].http1.borrow().len(), per_origin);
        assert!(
            all.last().is_some_and(|last| last.http1.borrow().len() < per_origin),
            "no room for the last"
        );
        drop(all);
        assert_eq!(kept.count.get(), 0, "what is closed leaves its place");
    });
}

#[test]
fn an_idle_connection_is_neither_used_nor_kept_when_its_time_is_over() {
    on_a_worker(async {
        let kept = Rc::default();
        let endpoint = endpoint(&kept);
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut far_ends = Vec::new();
        let mut keep_one = async || {
            let (line, far_end) = connection().await;
            far_ends.push(far_end);
            // Its task has to run once until it can take a request.
            tokio::task::yield_now().await;
            let before = clock::now();
            endpoint.keep_http1(line, address);
            before
        };
        let before = keep_one().await;
        let allowed = limits::ORIGIN_IDLE_DEADLINE;
        endpoint.sweep(before + allowed - MOMENT, allowed);
        assert_eq!(kept.count.get(), 1);
        endpoint.sweep(clock::now() + allowed, allowed);
        assert_eq!(kept.count.get(), 0, "swept");
        keep_one().await;
        endpoint.sweep(clock::now(), Duration::ZERO);
        assert_eq!(kept.count.get(), 0, "for want of memory none is kept");
        keep_one().await;
        assert!(
            endpoint.take_http1(clock::now() + limits::ORIGIN_IDLE_DEADLINE).is_none(),
            "too old for a request"
        );
        let before = keep_one().await;
        assert!(endpoint.take_http1(before + limits::ORIGIN_IDLE_DEADLINE - MOMENT).is_some());
    });
}

#[tokio::test]
async fn an_origin_that_nobody_asks_for_is_forgotten() {
    let endpoint = endpoint(&Rc::default());
    let now = clock::now();
    endpoint.touch(now);
    assert!(!endpoint.is_forgettable(now + limits::ENDPOINT_FORGOTTEN_AFTER));
    assert!(endpoint.is_forgettable(now + limits::ENDPOINT_FORGOTTEN_AFTER + MOMENT));
    let turn = Rc::clone(&endpoint).enter(Duration::ZERO).await;
    assert!(turn.is_ok() && !endpoint.is_forgettable(now + 10 * limits::ENDPOINT_FORGOTTEN_AFTER));
}
