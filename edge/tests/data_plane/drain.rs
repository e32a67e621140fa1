//! Ending without losing a request.

use std::sync::mpsc;
use std::time::Duration;

use crate::client::{any_version, collect, http2, https, plain, runtime, try_https};
use crate::flood;
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

/// Clients answer a PING before they send what they have queued.
#[test]
fn an_http2_request_behind_the_answer_to_the_last_ping_is_served() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        edge.serve(&[HOST]);
        let mut client = flood::begun(&edge);
        client.send(flood::headers(1));
        let until = |client: &mut crate::client::Https, is_it: &dyn Fn(&[u8], &[u8]) -> bool| loop {
            let head = client.exactly(9).unwrap();
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let payload = client.exactly(length).unwrap();
            assert!(head[3] != 7 || payload[..4] == [0x7f, 0xff, 0xff, 0xff], "the last GOAWAY came first");
            if is_it(&head, &payload) {
                return payload;
            }
        };
        let ends =
            |stream: u8| move |head: &[u8], _: &[u8]| head[3] == 0 && head[4] & 1 == 1 && head[8] == stream;
        until(&mut client, &ends(1));
        edge.switch.begin();
        let ping = until(&mut client, &|head, _| head[3] == 6 && head[4] & 1 == 0);
        client.send([flood::frame(6, 1, 0, &ping), flood::headers(3)].concat());
        until(&mut client, &ends(3));
        wait_until("the worker has ended", || edge.workers.iter().all(std::thread::JoinHandle::is_finished));
    });
}
