//! What clients can make quinn hold, with its state machines in memory: no socket, and time is an argument.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicU64, Ordering},
    time::{Instant, SystemTime},
};

use bytes::BytesMut;
use quinn_proto::{
    ClientConfig, Connection, ConnectionError, ConnectionHandle, DatagramEvent, Dir, Endpoint, Event,
    Incoming, TimeSource, TransportErrorCode,
    congestion::NewRenoConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::*;
use crate::clock;

const NAME: &str = "shop.example";
const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 443);
const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 2), 5000);

/// Both sides.
struct Pair {
    server: Endpoint,
    client: Endpoint,
    config: ClientConfig,
    now: Instant,
    /// Of the server's wall clock, seconds.
    later: Arc<Later>,
}

struct Later(AtomicU64);

impl TimeSource for Later {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + self.0.load(Ordering::SeqCst))
    }
}

/// One client's connection and what it says first.
struct Begun {
    handle: ConnectionHandle,
    connection: Connection,
    datagrams: Vec<Vec<u8>>,
}

impl Pair {
    fn new() -> Self {
        Self::offering(vec![b"h3".to_vec()])
    }

    fn offering(protocols: Vec<Vec<u8>>) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![NAME.to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("a certificate").der().clone();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .expect("it is that of the key");
        server.alpn_protocols = vec![b"h3".to_vec()];
        let crypto = Arc::new(QuicServerConfig::try_from(server).expect("QUIC's cipher suite"));
        let process = QuicProcess::generate().expect("random bytes");
        let later = Arc::new(Later(AtomicU64::new(0)));
        let mut server = server_config(crypto, Arc::clone(&process.token), Duration::from_secs(60));
        server.time_source(Arc::clone(&later) as _);

        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate).expect("a certificate");
        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = protocols;
        let mut config =
            ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).expect("QUIC's cipher suite")));
        config.transport_config(Arc::new(eager()));

        let endpoint = |server| Endpoint::new(Arc::default(), server, false, None);
        Self {
            server: endpoint(Some(Arc::new(server))),
            client: endpoint(None),
            config,
            now: clock::now(),
            later,
        }
    }

    fn begin(&mut self) -> Begun {
        let connecting = self.client.connect(self.now, self.config.clone(), SERVER.into(), NAME);
        let (handle, mut connection) = connecting.expect("a client's endpoint");
        let datagrams = said(&mut connection, self.now);
        Begun { handle, connection, datagrams }
    }

    fn hear(&mut self, datagram: &[u8]) -> Option<DatagramEvent> {
        self.server.handle(self.now, CLIENT.into(), None, None, BytesMut::from(datagram), &mut Vec::new())
    }

    /// # Errors
    /// Whether the client is told that it is refused.
    fn hear_first(&mut self, begun: &Begun) -> Result<Incoming, bool> {
        match self.hear(&begun.datagrams[0]) {
            Some(DatagramEvent::NewConnection(incoming)) => Ok(incoming),
            Some(DatagramEvent::Response(_)) => Err(true),
            Some(DatagramEvent::ConnectionEvent(..)) | None => Err(false),
        }
    }
}

/// A client that sends all at once, and lets the server do so.
fn eager() -> TransportConfig {
    let mut congestion = NewRenoConfig::default();
    congestion.initial_window(100 << 20);
    let mut transport = TransportConfig::default();
    transport
        .congestion_controller_factory(Arc::new(congestion))
        .stream_receive_window(VarInt::from_u32(1 << 30))
        .receive_window(VarInt::from_u32(1 << 30));
    transport
}

fn said(connection: &mut Connection, now: Instant) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let mut datagram = Vec::new();
        if connection.poll_transmit(now, 1, &mut datagram).is_none() {
            return all;
        }
        all.push(datagram);
    }
}

#[test]
fn attempts_that_wait_to_be_looked_at_are_bounded() {
    let mut pair = Pair::new();
    let mut waiting = Vec::new();
    for _ in 0..limits::QUIC_INCOMING_MAX {
        let begun = pair.begin();
        waiting.push(pair.hear_first(&begun).expect("there is room"));
    }
    let late = pair.begin();
    assert!(!pair.hear_first(&late).expect_err("there is none"), "not even a refusal is computed for it");
    pair.server.ignore(waiting.pop().expect("many wait"));
    let next = pair.begin();
    waiting.push(pair.hear_first(&next).expect("room again"));
    waiting.into_iter().for_each(|incoming| pair.server.ignore(incoming));
}

#[test]
fn bytes_of_an_attempt_and_of_all_attempts_are_bounded() {
    let mut pair = Pair::new();
    let mut waiting = Vec::new();
    let (mut held, mut most) = (0, 0);
    let enough = 2 * limits::QUIC_INCOMING_BYTES_TOTAL / limits::QUIC_INCOMING_BYTES;
    for _ in 0..enough {
        let begun = pair.begin();
        let datagram = &begun.datagrams[0];
        waiting.push(pair.hear_first(&begun).expect("there is room for its head"));
        for _ in 0..2 * limits::QUIC_INCOMING_BYTES / datagram.len() as u64 {
            assert!(pair.hear(datagram).is_none());
        }
        let before = std::mem::replace(&mut held, pair.server.incoming_buffer_bytes());
        most = most.max(held - before);
    }
    let is_full = |bytes: u64, bound: u64| bytes <= bound && bytes > bound - 2000;
    assert!(is_full(most, limits::QUIC_INCOMING_BYTES), "{most} of one");
    assert!(is_full(held, limits::QUIC_INCOMING_BYTES_TOTAL), "{held} of all");
    waiting.into_iter().for_each(|incoming| pair.server.ignore(incoming));
}

#[test]
fn a_retry_token_is_good_for_its_life_and_no_longer() {
    let life = limits::QUIC_RETRY_TOKEN_LIFE.as_secs();
    for (age, is_good) in [(0, true), (life, true), (life + 1, false)] {
        let mut pair = Pair::new();
        let mut begun = pair.begin();
        let incoming = pair.hear_first(&begun).expect("a first packet");
        assert!(!incoming.remote_address_validated());
        let mut retry = Vec::new();
        assert!(pair.server.retry(incoming, &mut retry).is_ok());
        let told = pair.client.handle(
            pair.now,
            SERVER.into(),
            None,
            None,
            BytesMut::from(&retry[..]),
            &mut Vec::new(),
        );
        let Some(DatagramEvent::ConnectionEvent(handle, event)) = told else {
            panic!("the Retry is of no use")
        };
        assert_eq!(handle, begun.handle);
        begun.connection.handle_event(event);
        begun.datagrams = said(&mut begun.connection, pair.now);
        pair.later.0.fetch_add(age, Ordering::SeqCst);
        match pair.hear_first(&begun) {
            Ok(incoming) => {
                assert!(is_good && incoming.remote_address_validated(), "after {age} s");
                pair.server.ignore(incoming);
            }
            Err(is_told) => assert!(!is_good && is_told, "after {age} s"),
        }
    }
}

/// A hello of 40 KiB whose beginning does not come.
#[test]
fn handshake_bytes_that_cannot_be_used_yet_are_bounded() {
    let protocols = (0..200_u8).map(|number| vec![number; 200]).collect();
    let mut pair = Pair::offering(protocols);
    let mut begun = pair.begin();
    assert!(begun.datagrams.len() > 30, "{}", begun.datagrams.len());
    begun.datagrams.remove(0);
    let incoming = pair.hear_first(&begun).expect("a first packet");
    let Ok((_, mut connection)) = pair.server.accept(incoming, pair.now, &mut Vec::new(), None) else {
        panic!("not accepted")
    };
    let mut held = 0;
    let lost = begun.datagrams[1..].iter().find_map(|datagram| {
        held += 1;
        let Some(DatagramEvent::ConnectionEvent(_, event)) = pair.hear(datagram) else {
            panic!("whose is it?")
        };
        connection.handle_event(event);
        connection.poll()
    });
    let Some(Event::ConnectionLost { reason: ConnectionError::TransportError(error) }) = lost else {
        panic!("all of it is held")
    };
    assert_eq!(error.code, TransportErrorCode::CRYPTO_BUFFER_EXCEEDED);
    let bytes = (held + 1) * 1200;
    let bound = limits::QUIC_CRYPTO_BUFFER_BYTES;
    assert!(bytes > bound - 2400 && bytes < bound + 2400, "{bytes}");
}

#[test]
fn answer_bytes_that_a_client_does_not_acknowledge_are_bounded() {
    let mut pair = Pair::new();
    let mut begun = pair.begin();
    let incoming = pair.hear_first(&begun).expect("a first packet");
    let Ok((handle, mut connection)) = pair.server.accept(incoming, pair.now, &mut Vec::new(), None) else {
        panic!("not accepted")
    };
    begun.datagrams.remove(0);
    for _ in 0..10 {
        for datagram in begun.datagrams.drain(..) {
            let event = pair.server.handle(
                pair.now,
                CLIENT.into(),
                None,
                None,
                BytesMut::from(&datagram[..]),
                &mut Vec::new(),
            );
            if let Some(DatagramEvent::ConnectionEvent(_, event)) = event {
                connection.handle_event(event);
            }
        }
        tell(&mut pair.server, handle, &mut connection);
        for datagram in said(&mut connection, pair.now) {
            let told = BytesMut::from(&datagram[..]);
            let event = pair.client.handle(pair.now, SERVER.into(), None, None, told, &mut Vec::new());
            if let Some(DatagramEvent::ConnectionEvent(_, event)) = event {
                begun.connection.handle_event(event);
            }
        }
        tell(&mut pair.client, begun.handle, &mut begun.connection);
        begun.datagrams = said(&mut begun.connection, pair.now);
    }
    assert!(!connection.is_handshaking() && !begun.connection.is_handshaking());
    // From now on the client says nothing.
    let stream = connection.streams().open(Dir::Uni).expect("clients allow some");
    let mut written = 0;
    while let Ok(count) = connection.send_stream(stream).write(&[7; 10_000]) {
        written += count as u64;
        assert!(written < 100 * limits::QUIC_SEND_WINDOW_BYTES, "without end");
        let _sent = said(&mut connection, pair.now);
    }
    // It has acknowledged nothing that would let the window grow.
    assert_eq!(written, limits::QUIC_SEND_WINDOW_FIRST_BYTES);
}

fn tell(endpoint: &mut Endpoint, handle: ConnectionHandle, connection: &mut Connection) {
    while let Some(event) = connection.poll_endpoint_events() {
        if let Some(event) = endpoint.handle_event(handle, event) {
            connection.handle_event(event);
        }
    }
}

#[test]
fn all_workers_together_hold_few_handshakes_of_addresses_that_may_be_forged() {
    assert_eq!(retry_from(1), limits::QUIC_HALF_OPEN_BEFORE_RETRY);
    for workers in 1..=SLOTS_MAX {
        let all = workers * retry_from(workers);
        assert!(
            retry_from(workers) > 0 && all <= limits::QUIC_HALF_OPEN_OF_ALL,
            "{all} of {workers} workers"
        );
    }
}
