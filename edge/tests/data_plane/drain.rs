//! Ending without losing a request.

use std::sync::mpsc;
use std::time::Duration;

use crate::client::{any_version, collect, http2, https, plain, runtime, try_https};
use crate::harness::{TestEdge, on_each_backend, proxy_to, wait_until};
use crate::origin::{Origin, Reply, ok};

const HOST: &str = "shop.example";

/// An origin that answers when it is told to.
fn waiting_origin() -> (Origin, mpsc::Sender<()>) {
    let (go, gone) = mpsc::channel::<()>();
    let gone = std::sync::Mutex::new(gone);
    let origin = Origin::start(move |_| {
        gone.lock().unwrap().recv().unwrap();
        Reply::Keep(ok("late"))
    });
    (origin, go)
}

fn edge_to(backend: portico_edge::io::Backend, origin: &Origin) -> TestEdge {
    let mut edge = TestEdge::start(backend);
    let url = origin.url();
    edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![proxy_to(&url)]);
    edge
}

#[test]
fn a_request_under_way_is_finished_and_its_connection_closed() {
    on_each_backend(|backend| {
        let (origin, go) = waiting_origin();
        let edge = edge_to(backend, &origin);
        let mut busy = https(edge.https, HOST);
        busy.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        let mut idle = https(edge.https, HOST);
        wait_until("the origin has the request", || origin.messages().len() == 1);
        edge.switch.begin();
        assert!(idle.closes(), "an idle connection ends at once");
        wait_until("no new connection is taken", || {
            std::net::TcpStream::connect_timeout(&edge.https, Duration::from_millis(200)).is_err()
        });
        go.send(()).unwrap();
        let answer = busy.answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, "late"));
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(busy.closes());
        wait_until("the worker has ended", || edge.workers.iter().all(std::thread::JoinHandle::is_finished));
    });
}

#[test]
fn http2_streams_under_way_are_finished() {
    on_each_backend(|backend| {
        let (origin, go) = waiting_origin();
        let edge = edge_to(backend, &origin);
        let answer = runtime().block_on(async {
            type Empty = http_body_util::Empty<bytes::Bytes>;
            let mut sender = http2::<Empty>(edge.https, Some(HOST)).await.unwrap();
            let request = http::Request::get(format!("https://{HOST}/")).body(Empty::new()).unwrap();
            let answering = sender.send_request(request);
            let answering = tokio::spawn(answering);
            while origin.messages().is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            edge.switch.begin();
            tokio::time::sleep(Duration::from_millis(50)).await; // GOAWAY goes out meanwhile
            go.send(()).unwrap();
            collect(answering.await.unwrap().unwrap()).await.unwrap()
        });
        assert_eq!((answer.status, answer.text().as_str()), (200, "late"));
        wait_until("the worker has ended", || edge.workers.iter().all(std::thread::JoinHandle::is_finished));
    });
}

#[test]
fn connections_that_wait_in_the_kernel_are_served() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve_with(&[HOST], &[], |domain| domain.https_redirect_off = true);
        let address = edge.http;
        // Some of these are accepted before the drain begins and some wait in the listener's queue.
        let clients: Vec<_> = (0..50)
            .map(|_| {
                let mut client = plain(address);
                client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
                client
            })
            .collect();
        edge.switch.begin();
        for mut client in clients {
            assert_eq!(client.answer().status, 200);
        }
    });
}

#[test]
fn a_panic_free_worker_serves_through_many_short_connections() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve(&[HOST]);
        for _ in 0..50 {
            drop(try_https(edge.https, Some(HOST), any_version(&["h2"])).unwrap());
        }
        assert_eq!(https(edge.https, HOST).get(HOST, "/").status, 200);
        wait_until("all are closed", || edge.edge.open_connections() <= 1);
    });
}
