//! Connections that were quiet for a while, and answers that are ready together.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use portico_edge::limits::Deadlines;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::client::{any_version, https, plain, runtime};
use crate::harness::{Setup, TestEdge, on_each_backend};

const HOST: &str = "shop.example";
const DOZE: Duration = Duration::from_millis(20);

fn sleepy(idle: Duration) -> Setup {
    let deadlines = Deadlines { doze_after: DOZE, idle, ..Deadlines::default() };
    Setup { deadlines, ..Setup::default() }
}

/// The quiet itself is what is tested.
fn be_quiet() {
    std::thread::sleep(5 * DOZE);
}

#[test]
fn a_connection_that_was_quiet_serves_on_however_the_next_bytes_come() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::with(backend, sleepy(Duration::from_secs(60)));
        edge.serve_with(&[HOST], &[], |domain| domain.https_redirect_off = true);
        let mut tls = https(edge.https, HOST);
        be_quiet(); // before its first request
        let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        for _ in 0..3 {
            assert_eq!(tls.get(HOST, "/").text(), HOST);
            be_quiet();
            for byte in request.as_bytes() {
                tls.send([*byte]);
            }
            assert_eq!(tls.answer().text(), HOST, "byte by byte");
            be_quiet();
            tls.send(request.repeat(3));
            for _ in 0..3 {
                assert_eq!(tls.answer().text(), HOST, "pipelined");
            }
            be_quiet();
            tls.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: {}\r\n\r\n", "y".repeat(20_000)));
            assert_eq!(tls.answer().text(), HOST, "larger than what is read at once");
            be_quiet();
        }
        tls.send("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
        assert_eq!(tls.answer().status, 400, "the framing is followed as ever");

        let mut open = plain(edge.http);
        assert_eq!(open.get(HOST, "/").text(), HOST);
        be_quiet();
        assert_eq!(open.get(HOST, "/").text(), HOST, "without TLS too");
    });
}

/// As after a stop of the whole process: the time is over before hyper has seen what it has read.
#[test]
fn pipelined_requests_are_all_answered_although_the_quiet_comes_between_them() {
    on_each_backend(|backend| {
        let deadlines = Deadlines { doze_after: Duration::ZERO, ..Deadlines::default() };
        let mut edge = TestEdge::with(backend, Setup { deadlines, ..Setup::default() });
        edge.serve(&[HOST]);
        let mut client = https(edge.https, HOST);
        for count in [1, 100, 300] {
            client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").repeat(count));
            for _ in 0..count {
                assert_eq!(client.answer().text(), HOST);
            }
        }
    });
}

#[test]
fn a_quiet_connection_still_ends_by_the_idle_limit_and_at_a_drain() {
    on_each_backend(|backend| {
        let mut edge = TestEdge::with(backend, sleepy(Duration::from_millis(300)));
        edge.serve(&[HOST]);
        let mut client = https(edge.https, HOST);
        assert_eq!(client.get(HOST, "/").text(), HOST);
        let begun = portico_edge::clock::now();
        assert!(client.closes());
        assert!(portico_edge::clock::now() - begun > Duration::from_millis(200));

        let mut edge = TestEdge::with(backend, sleepy(Duration::from_secs(60)));
        edge.serve(&[HOST]);
        let mut client = https(edge.https, HOST);
        assert_eq!(client.get(HOST, "/").text(), HOST);
        be_quiet();
        edge.switch.begin();
        assert!(client.closes());
    });
}

/// Counts the TLS records that come in.
struct Records {
    tcp: TcpStream,
    seen: Rc<RefCell<Seen>>,
}

#[derive(Default)]
struct Seen {
    records: usize,
    head: Vec<u8>,
    skip: usize,
}

impl Seen {
    fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.skip > 0 {
                self.skip -= 1;
                continue;
            }
            self.head.push(byte);
            if let [_, _, _, high, low] = self.head[..] {
                self.skip = usize::from(high) << 8 | usize::from(low);
                self.records += 1;
                self.head.clear();
            }
        }
    }
}

impl AsyncRead for Records {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.tcp).poll_read(context, buffer);
        self.seen.borrow_mut().feed(&buffer.filled()[before..]);
        polled
    }
}

impl AsyncWrite for Records {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

#[test]
fn answers_that_are_ready_together_are_few_tls_records() {
    const STREAMS: usize = 40;
    on_each_backend(|backend| {
        let mut edge = TestEdge::start(backend);
        // Above the size from which h2 writes a DATA frame by itself.
        let body = vec![b'x'; 1024];
        edge.serve_with(&[HOST], &[], |domain| {
            let portico_api::distribution::route::Action::StaticAnswer(fixed) =
                domain.routes[0].action.as_mut().unwrap()
            else {
                panic!("a fixed answer")
            };
            fixed.body = body.clone().into();
        });
        let local = tokio::task::LocalSet::new();
        let seen = Rc::<RefCell<Seen>>::default();
        local.block_on(&runtime(), async {
            let records =
                Records { tcp: TcpStream::connect(edge.https).await.unwrap(), seen: Rc::clone(&seen) };
            let name = ServerName::try_from(HOST).unwrap();
            let connector = tokio_rustls::TlsConnector::from(Arc::new(any_version(&["h2"])));
            let io = TokioIo::new(connector.connect(name, records).await.unwrap());
            let builder = hyper::client::conn::http2::Builder::new(LocalExecutor);
            let (sender, driver) = builder.handshake::<_, Empty<Bytes>>(io).await.unwrap();
            tokio::task::spawn_local(driver);
            let ask = || {
                let mut sender = sender.clone();
                async move {
                    let request = http::Request::get(format!("https://{HOST}/")).body(Empty::new()).unwrap();
                    let answer = sender.send_request(request).await.unwrap();
                    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), 1024);
                }
            };
            ask().await; // settings are exchanged
            let before = seen.borrow().records;
            futures_util::future::join_all((0..STREAMS).map(|_| ask())).await;
            let used = seen.borrow().records - before;
            assert!(used < STREAMS / 2, "{used} records for {STREAMS} answers");
        });
    });
}

/// The client's connection counts in this thread.
#[derive(Clone)]
struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}
