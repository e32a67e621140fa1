//! QUIC: one quinn endpoint per worker, all on one address.
//!
//! The kernel deals packets to the sockets of the group by connection id: the first byte of each id that we give out says
//! whose connection it is, and a small program in the kernel reads it. So a client whose address changes still reaches
//! the worker that has its keys. Initial packets carry an id of the client's choice and spread evenly.
//!
//! Deliberately absent: QUIC on the ring. quinn wants sockets that are Send, and batches system calls by GSO already.

mod connection_id;
mod crypto;

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use quinn::{EndpointConfig, IdleTimeout, ServerConfig, TokioRuntime, TransportConfig, VarInt};
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};

use self::connection_id::WorkerIds;
use self::crypto::{Finished, SelectingCrypto};
use super::BoundListener;
use crate::exchange::{ConnectionContext, Protocol};
use crate::http::clock::ConnectionClock;
use crate::http::drive::Ended;
use crate::http::h3;
use crate::io::{bound_elsewhere, steer_by_connection_id};
use crate::metrics::HandshakeEnd;
use crate::worker::{Place, Worker};
use crate::{clock, limits};

/// One worker's member of a group.
#[derive(Debug)]
pub struct QuicSocket {
    socket: UdpSocket,
    index: usize,
    workers: usize,
    keys: Arc<QuicKeys>,
}

/// Secrets that all workers have in common: a token or a reset of one is good at another, as after a restart.
struct QuicKeys {
    reset: aws_lc_rs::hmac::Key,
    token: Arc<dyn quinn::crypto::HandshakeTokenKey>,
}

/// Most workers that an id's first byte can tell apart.
pub const WORKERS_MAX: usize = 256;

/// Binds one member for each worker, in the order of workers: their place in the group is their index.
///
/// # Errors
/// When the address is taken, or the kernel refuses the program.
pub fn bind_group(address: SocketAddr, workers: usize) -> io::Result<Vec<QuicSocket>> {
    if workers > WORKERS_MAX {
        let text = format!("{workers} workers; HTTP/3 knows at most {WORKERS_MAX} apart");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    // A second edge of the same user would join the group in silence and take its packets.
    plain_socket(address)?.bind(&address.into())?;
    let keys = Arc::new(QuicKeys::generate()?);
    let mut sockets = Vec::with_capacity(workers);
    for index in 0..workers {
        let socket = bind(address)?;
        sockets.push(QuicSocket { socket, index, workers, keys: Arc::clone(&keys) });
    }
    if let (Some(first), true) = (sockets.first(), workers > 1) {
        steer_by_connection_id(&first.socket, workers)?;
    }
    Ok(sockets)
}

/// An address whose port is free over TCP and UDP alike.
pub(super) fn free_address(address: SocketAddr) -> io::Result<SocketAddr> {
    const TRIES: usize = 32;
    let mut tried = Err(io::ErrorKind::AddrInUse.into());
    for _ in 0..TRIES {
        let udp = plain_socket(address)?;
        udp.bind(&address.into())?;
        let found = udp.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        tried = bound_elsewhere(found).map(|()| found);
        if tried.is_ok() {
            break;
        }
    }
    tried
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = plain_socket(address)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn plain_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(SocketProtocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// Takes connections until the drain, then waits for the last one.
pub(crate) async fn serve(worker: Rc<Worker>, quic: QuicSocket, bound: Rc<BoundListener>) {
    let endpoint = match endpoint(&worker, quic) {
        Ok(endpoint) => endpoint,
        Err(error) => {
            tracing::error!(%error, address = %bound.config.address, "HTTP/3 is not served here");
            return;
        }
    };
    let half_open = Rc::new(Cell::new(0));
    let mut draining = std::pin::pin!(worker.drain.begun());
    loop {
        let incoming = tokio::select! {
            biased;
            () = &mut draining => break,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { break };
        let must_show_address = half_open.get() >= limits::QUIC_HALF_OPEN_BEFORE_RETRY;
        if must_show_address && !incoming.remote_address_validated() && incoming.may_retry() {
            // It may retry: that was asked.
            let _retried = incoming.retry();
            worker.edge.metrics.quic_retries.increment(1);
            continue;
        }
        let Some(place) = worker.place() else {
            incoming.refuse();
            continue;
        };
        tokio::task::spawn_local(accept(
            Rc::clone(&worker),
            incoming,
            Rc::clone(&bound),
            place,
            // Counted now: a burst is taken before the first of its tasks runs.
            HalfOpen::begun(&half_open),
        ));
    }
    endpoint.set_server_config(None);
    endpoint.wait_idle().await;
}

async fn accept(
    worker: Rc<Worker>,
    incoming: quinn::Incoming,
    bound: Rc<BoundListener>,
    place: Place,
    half_open: HalfOpen,
) {
    let handshake = handshake(&worker, incoming, &bound);
    let accepted = Box::pin(handshake).await;
    drop(half_open);
    if let Some((connection, context)) = accepted {
        let ended = Box::pin(h3::serve(connection, context)).await;
        if matches!(ended, Ended::Expired(_)) {
            worker.edge.metrics.connections_expired.increment(1);
        }
    }
    drop(place);
}

/// A handshake under way, also when its task panics.
struct HalfOpen(Rc<Cell<usize>>);

impl HalfOpen {
    fn begun(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn handshake(
    worker: &Rc<Worker>,
    incoming: quinn::Incoming,
    bound: &BoundListener,
) -> Option<(quinn::Connection, Rc<ConnectionContext>)> {
    let metrics = &worker.edge.metrics;
    let started = clock::now();
    let address = bound.config.address;
    let local = SocketAddr::new(incoming.local_ip().unwrap_or(address.ip()), address.port());
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(error) => {
            tracing::trace!(%error, "a QUIC handshake did not begin");
            metrics.handshake(HandshakeEnd::Failed);
            return None;
        }
    };
    let connection = match tokio::time::timeout(worker.edge.deadlines.handshake, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::trace!(%error, "a QUIC handshake failed");
            metrics.handshake(crypto::end_of(&error));
            return None;
        }
        Err(_) => {
            metrics.handshake(HandshakeEnd::TimedOut);
            return None;
        }
    };
    let finished = connection.handshake_data().and_then(|data| data.downcast::<Finished>().ok())?;
    let Finished { shown, resumed } = *finished;
    metrics.handshake(if resumed { HandshakeEnd::Resumed } else { HandshakeEnd::Full });
    metrics.handshake_seconds.record(clock::now().duration_since(started).as_secs_f64());
    let context = Rc::new(ConnectionContext {
        worker: Rc::clone(worker),
        peer: connection.remote_address(),
        local,
        protocol: Protocol::Http3,
        shown: Some(shown),
        public_https_port: bound.config.public_https_port,
        alt_svc: None,
        clock: Rc::new(ConnectionClock::new(worker.edge.deadlines)),
    });
    Some((connection, context))
}

fn endpoint(worker: &Rc<Worker>, quic: QuicSocket) -> io::Result<quinn::Endpoint> {
    let QuicSocket { socket, index, workers, keys } = quic;
    let mut config = EndpointConfig::new(Arc::new(keys.reset.clone()));
    config.cid_generator(move || Box::new(WorkerIds::new(index, workers)));
    let crypto = SelectingCrypto::new(Arc::clone(&worker.edge)).map_err(io::Error::other)?;
    let mut server = ServerConfig::new(Arc::new(crypto), Arc::clone(&keys.token));
    server
        .transport_config(Arc::new(transport(worker.edge.deadlines.idle)))
        .retry_token_lifetime(limits::QUIC_RETRY_TOKEN_LIFE)
        .max_incoming(limits::QUIC_INCOMING_MAX)
        .incoming_buffer_size(limits::QUIC_INCOMING_BYTES)
        .incoming_buffer_size_total(limits::QUIC_INCOMING_BYTES_TOTAL);
    quinn::Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))
}

fn transport(idle: Duration) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(limits::H3_STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(limits::H3_CONTROL_STREAMS_MAX))
        .stream_receive_window(VarInt::from_u32(limits::H2_STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(limits::H2_CONNECTION_WINDOW_BYTES))
        .send_window(limits::QUIC_SEND_WINDOW_BYTES)
        .crypto_buffer_size(limits::QUIC_CRYPTO_BUFFER_BYTES)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(idle_timeout(idle));
    transport
}

fn idle_timeout(idle: Duration) -> Option<IdleTimeout> {
    const SLACK: Duration = Duration::from_secs(5);
    // Our own clock ends an idle connection politely; this one is for a client that is gone.
    IdleTimeout::try_from(idle + SLACK).ok()
}

impl QuicSocket {
    /// Another handle of the same socket, for a worker that starts again.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let keys = Arc::clone(&self.keys);
        Ok(Self { socket: self.socket.try_clone()?, index: self.index, workers: self.workers, keys })
    }
}

impl QuicKeys {
    fn generate() -> io::Result<Self> {
        let mut secret = zeroize::Zeroizing::new([0; 64]);
        aws_lc_rs::rand::fill(secret.as_mut_slice())
            .map_err(|_| io::Error::other("the operating system gives no random bytes"))?;
        let reset = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &secret[..32]);
        let token = aws_lc_rs::hkdf::Salt::new(aws_lc_rs::hkdf::HKDF_SHA256, &[]).extract(&secret[32..]);
        Ok(Self { reset, token: Arc::new(token) })
    }
}

impl std::fmt::Debug for QuicKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QuicKeys")
    }
}
