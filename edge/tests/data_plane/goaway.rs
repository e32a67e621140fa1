//! How an HTTP/3 connection ends (RFC 9114 section 5.2), by a client that does what the edge says and no more.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use portico_edge::io::{IoChoice, choose};
use portico_edge::limits::{Deadlines, H3_GOAWAY_WAIT_MAX};
use quinn::crypto::rustls::QuicClientConfig;

use crate::client::any_version;
use crate::early_data::{Relay, run};
use crate::harness::{Setup, TestEdge, proxy_to, wait_until};
use crate::origin::{Origin, Reply, ok};

const HOST: &str = "shop.example";
const REQUEST_REJECTED: u64 = 0x10b;

/// Bytes on streams, without any library that minds GOAWAY.
struct Raw {
    endpoint: quinn::Endpoint,
    connection: quinn::Connection,
    /// Its end would be the connection's.
    _control: quinn::SendStream,
    /// The edge's control stream.
    told: quinn::RecvStream,
}

impl Raw {
    async fn connect(edge: SocketAddr) -> Self {
        let crypto = QuicClientConfig::try_from(any_version(&["h3"])).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connection = endpoint.connect_with(config, edge, HOST).unwrap().await.unwrap();
        // A control stream with empty SETTINGS.
        let mut control = connection.open_uni().await.unwrap();
        control.write_all(&[0, 4, 0]).await.unwrap();
        let told = loop {
            let mut stream = connection.accept_uni().await.unwrap();
            if number(&mut stream).await == 0 {
                break stream;
            }
        };
        Self { endpoint, connection, _control: control, told }
    }

    /// GET / on the next stream.
    async fn ask(&self) -> quinn::RecvStream {
        // By the static table (RFC 9204 appendix A): GET, https, /, and a literal :authority.
        let mut block = vec![0, 0, 0xc0 | 17, 0xc0 | 23, 0xc0 | 1, 0x50, u8::try_from(HOST.len()).unwrap()];
        block.extend(HOST.as_bytes());
        let (mut send, recv) = self.connection.open_bi().await.unwrap();
        send.write_all(&[1, u8::try_from(block.len()).unwrap()]).await.unwrap();
        send.write_all(&block).await.unwrap();
        send.finish().unwrap();
        recv
    }

    /// The next GOAWAY: the first request that is not served.
    async fn goaway(&mut self) -> u64 {
        loop {
            let (kind, length) = (number(&mut self.told).await, number(&mut self.told).await);
            if kind == 7 {
                return number(&mut self.told).await;
            }
            self.told.read_exact(&mut vec![0; usize::try_from(length).unwrap()]).await.unwrap();
        }
    }

    async fn close(self) {
        self.connection.close(0x100_u32.into(), b"");
        self.endpoint.wait_idle().await;
    }
}

/// A variable-length integer (RFC 9000 section 16).
async fn number(stream: &mut quinn::RecvStream) -> u64 {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes[..1]).await.unwrap();
    let length = 1 << (bytes[0] >> 6);
    stream.read_exact(&mut bytes[1..length]).await.unwrap();
    bytes[0] &= 0x3f;
    u64::from_be_bytes(bytes) >> (8 * (8 - length))
}

/// All bytes of an answer, or the code that it was reset with.
async fn answer(mut stream: quinn::RecvStream) -> Result<Vec<u8>, u64> {
    match stream.read_to_end(1 << 20).await {
        Ok(bytes) => Ok(bytes),
        Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) => Err(code.into()),
        Err(error) => panic!("neither answered nor rejected: {error}"),
    }
}

fn serving(deadlines: Deadlines) -> TestEdge {
    // QUIC is not on the ring.
    let epoll = choose(IoChoice::Epoll).unwrap().0;
    TestEdge::with(epoll, Setup { http3: true, deadlines, ..Setup::default() })
}

/// Whatever the client sends and whenever: it is answered, or told that it may ask elsewhere.
#[test]
fn requests_before_the_end_are_served_and_those_behind_it_rejected_to_the_last() {
    let mut edge = serving(Deadlines::default());
    edge.serve(&[HOST]);
    run(async {
        let mut client = Raw::connect(edge.https).await;
        assert!(answer(client.ask().await).await.is_ok());
        edge.switch.begin();
        assert!(client.goaway().await > 4, "what is on its way is served");
        // Its number is 4.
        let meanwhile = client.ask().await;
        let end = client.goaway().await;
        let meanwhile = answer(meanwhile).await;
        assert_eq!(meanwhile.is_ok(), end > 4, "{meanwhile:?}, and the end is at {end}");
        // Nothing is under way any more: the edge only waits for the client to close.
        for _ in 0..3 {
            assert_eq!(answer(client.ask().await).await, Err(REQUEST_REJECTED));
        }
        client.close().await;
    });
    wait_until("the worker has ended", || edge.workers.iter().all(std::thread::JoinHandle::is_finished));
}

/// The edge has written all of it, and the network has brought the client little.
#[test]
fn an_answer_that_travels_is_not_cut_by_a_drain() {
    const BODY_BYTES: usize = 100_000;
    let short = Duration::from_millis(1);
    let mut edge = serving(Deadlines { h3_close_linger: short, ..Deadlines::default() });
    let origin = Origin::start(|_| Reply::Keep(ok(&"x".repeat(BODY_BYTES))));
    let url = origin.url();
    edge.serve_with(&[HOST], &[origin.grant()], |domain| domain.routes = vec![proxy_to(&url)]);
    run(async {
        let relay = Relay::start(edge.https, "127.0.0.1").await;
        let mut client = Raw::connect(relay.address).await;
        relay.mute();
        let answering = client.ask().await;
        while std::fs::read_to_string(&edge.log).unwrap_or_default().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        edge.switch.begin();
        // An edge that does not wait for the client has closed the connection by then.
        tokio::time::sleep(H3_GOAWAY_WAIT_MAX + 500 * short).await;
        relay.speak();
        let bytes = answer(answering).await.unwrap();
        assert!(bytes.ends_with(&[b'x'; 1000]) && bytes.len() > BODY_BYTES, "{} bytes", bytes.len());
        client.goaway().await;
        assert_eq!(client.goaway().await, 4);
        client.close().await;
    });
}

/// A request can be on its way when a connection has been quiet for too long.
#[test]
fn an_idle_connection_ends_like_any_other() {
    let mut edge = serving(Deadlines { idle: Duration::from_millis(50), ..Deadlines::default() });
    edge.serve(&[HOST]);
    run(async {
        let mut client = Raw::connect(edge.https).await;
        assert!(answer(client.ask().await).await.is_ok());
        assert!(client.goaway().await > 4);
        let meanwhile = client.ask().await;
        let end = client.goaway().await;
        assert_eq!(answer(meanwhile).await.is_ok(), end > 4, "the end is at {end}");
        let closed = client.connection.closed().await;
        let quinn::ConnectionError::ApplicationClosed(close) = &closed else { panic!("{closed}") };
        assert_eq!(close.error_code, 0x100_u32.into(), "H3_NO_ERROR");
    });
}
