//! QUIC: one quinn endpoint per slot, all on one address.
//!
//! A slot is one socket of the address's group. The kernel deals packets to slots by connection id: the first byte of each
//! id that we give out says which slot its connection has, and a small program in the kernel reads it. So a client whose
//! address changes still reaches the worker that has its keys. Initial packets carry an id of the client's choice and
//! spread evenly. A process that takes over takes the slots as they are, their number too ([`steering`]).
//!
//! Deliberately absent: QUIC on the ring. quinn wants sockets that are Send, and batches system calls by GSO already.

mod connection_id;
mod crypto;
mod frame_budget;
mod frames;
mod handshake;
mod hello;
mod steering;

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use quinn::{EndpointConfig, IdleTimeout, Runtime as _, ServerConfig, TokioRuntime, TransportConfig, VarInt};
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};
use zeroize::Zeroizing;

use self::connection_id::SlotIds;
use self::crypto::SelectingCrypto;
use self::frame_budget::BudgetedCrypto;
use self::handshake::{HalfOpen, begun, handshake};
use self::steering::{SteeredSocket, SteeringCounts};
use super::BoundListener;
use crate::exchange::Protocol;
use crate::http::drive::Ended;
use crate::http::h3;
use crate::io::{bound_elsewhere, steer_by_connection_id};
use crate::limits;
use crate::sources::Source;
use crate::worker::{Place, Worker};

pub use self::connection_id::ProcessTag;
pub use self::frame_budget::FrameBudget;
pub use self::steering::{Channel, Gate, Predecessor, Predecessors};

/// One slot of a group.
#[derive(Debug)]
pub struct QuicSocket {
    socket: UdpSocket,
    pub slot: usize,
    slots: usize,
    process: Arc<QuicProcess>,
    gate: Arc<Gate>,
    predecessors: Arc<Predecessors>,
}

/// What the QUIC sockets of one process have in common.
pub struct QuicProcess {
    pub tag: ProcessTag,
    reset: aws_lc_rs::hmac::Key,
    token: Arc<dyn quinn::crypto::HandshakeTokenKey>,
    token_secret: Zeroizing<[u8; 32]>,
}

/// Most slots that an id's first byte can tell apart.
pub const SLOTS_MAX: usize = 256;

/// Binds a group of one slot for each worker: their place in the group is the order of binding.
///
/// # Errors
/// When the address is taken, or the kernel refuses the program.
pub fn bind_group(
    address: SocketAddr,
    workers: usize,
    process: &Arc<QuicProcess>,
) -> io::Result<Vec<QuicSocket>> {
    if workers > SLOTS_MAX {
        let text = format!("{workers} workers; HTTP/3 knows at most {SLOTS_MAX} apart");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    // A second edge of the same user would join the group in silence and take its packets.
    plain_socket(address)?.bind(&address.into())?;
    let sockets = (0..workers).map(|_| bind(address)).collect::<io::Result<Vec<_>>>()?;
    if let (Some(first), true) = (sockets.first(), workers > 1) {
        steer_by_connection_id(first, workers)?;
    }
    Ok(group(sockets, process, Predecessors::default()))
}

/// Takes the group of a predecessor or of the service manager as it is.
///
/// # Errors
/// When the kernel refuses the program.
pub fn adopt_group(
    sockets: Vec<UdpSocket>,
    process: &Arc<QuicProcess>,
    predecessors: Predecessors,
) -> io::Result<Vec<QuicSocket>> {
    for socket in &sockets {
        socket.set_nonblocking(true)?;
    }
    // The kernel's program is that of the group and stands; a service manager's group has none yet.
    if let (Some(first), true) = (sockets.first(), sockets.len() > 1) {
        steer_by_connection_id(first, sockets.len())?;
    }
    Ok(group(sockets, process, predecessors))
}

fn group(sockets: Vec<UdpSocket>, process: &Arc<QuicProcess>, predecessors: Predecessors) -> Vec<QuicSocket> {
    let (slots, predecessors) = (sockets.len(), Arc::new(predecessors));
    let slot = |(slot, socket)| QuicSocket {
        socket,
        slot,
        slots,
        process: Arc::clone(process),
        gate: Arc::default(),
        predecessors: Arc::clone(&predecessors),
    };
    sockets.into_iter().enumerate().map(slot).collect()
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
    let _ = socket.set_recv_buffer_size(limits::QUIC_SOCKET_BYTES);
    let _ = socket.set_send_buffer_size(limits::QUIC_SOCKET_BYTES);
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

/// What the connections of one slot have in common.
struct Slot {
    worker: Rc<Worker>,
    bound: Rc<BoundListener>,
    server: ServerConfig,
    crypto: Arc<SelectingCrypto>,
    /// Handshakes under way, and from how many on clients have to show their address first.
    half_open: Cell<usize>,
    retry_from: usize,
}

impl Slot {
    /// The configuration of one connection.
    fn server_for(&self, client: IpAddr) -> Arc<ServerConfig> {
        let mut server = self.server.clone();
        server.crypto = Arc::new(BudgetedCrypto::new(self.crypto.for_client(client)));
        Arc::new(server)
    }
}

/// Takes connections until the drain, then those that still come for a moment, and waits for the last one.
pub(crate) async fn serve(worker: Rc<Worker>, quic: QuicSocket, bound: Rc<BoundListener>) {
    let (endpoint, slot) = match endpoint(&worker, quic, &bound) {
        Ok(begun) => begun,
        Err(error) => {
            tracing::error!(%error, address = %bound.config.address, "HTTP/3 is not served here");
            if let Some(alt_svc) = &bound.alt_svc {
                alt_svc.withdraw();
            }
            return;
        }
    };
    let mut draining = std::pin::pin!(worker.drain.begun());
    loop {
        let incoming = tokio::select! {
            biased;
            () = &mut draining => break,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { break };
        take(&slot, incoming);
    }
    // A client may have had a Retry from us, or a packet of ours that it has not answered yet. Refusing it would be a lost
    // connection; with a successor only such clients still come here.
    let patience = match worker.edge.successor.get() {
        Some(_) => limits::QUIC_RETRY_TOKEN_LIFE,
        None => limits::ACCEPT_SETTLE * limits::ACCEPT_SETTLE_ROUNDS,
    };
    let settled = tokio::time::timeout(patience, async {
        while let Some(incoming) = endpoint.accept().await {
            take(&slot, incoming);
        }
    });
    tokio::select! {
        biased;
        _ = settled => {}
        // Nothing is open, and nothing new has come for a while.
        () = quiet(&endpoint) => {}
    }
    endpoint.set_server_config(None);
    endpoint.wait_idle().await;
}

/// Ends when no connection has been open for some time.
async fn quiet(endpoint: &quinn::Endpoint) {
    let mut rounds = 0;
    while rounds < limits::ACCEPT_SETTLE_ROUNDS {
        tokio::time::sleep(limits::ACCEPT_SETTLE).await;
        rounds = if endpoint.open_connections() == 0 { rounds + 1 } else { 0 };
    }
}

fn take(slot: &Rc<Slot>, incoming: quinn::Incoming) {
    let worker = &slot.worker;
    if worker.lacks_memory() {
        // Without a Retry before: whoever comes back is refused all the same.
        incoming.refuse();
        return;
    }
    let client = incoming.remote_address().ip();
    let has_room = worker.edge.sources.has_room(client);
    // On a full edge somebody loses his place for it; not for an address that nobody may have.
    let must_show_address = !has_room || worker.is_full() || slot.half_open.get() >= slot.retry_from;
    if must_show_address && !incoming.remote_address_validated() && incoming.may_retry() {
        // It may retry: that was asked.
        let _retried = incoming.retry();
        worker.edge.metrics.quic_retries.increment(1);
        return;
    }
    // Nothing is charged to an address that may be forged: whoever sent it would spend somebody else's share. It pays when
    // its handshake has ended.
    let source = match incoming.remote_address_validated() {
        true => begun(worker, client).map(Some),
        false => Ok(None),
    };
    let (Ok(source), Some(place)) = (source, worker.place()) else {
        incoming.refuse();
        return;
    };
    // Counted now: a burst is taken before the first of its tasks runs.
    let half_open = HalfOpen::begun(slot);
    tokio::task::spawn_local(accept(Rc::clone(slot), incoming, (place, source), half_open));
}

async fn accept(
    slot: Rc<Slot>,
    incoming: quinn::Incoming,
    (place, source): (Place, Option<Source>),
    half_open: HalfOpen,
) {
    let handshake = handshake(&slot, incoming, (source, half_open));
    let seat = place.seat();
    let accepted = seat.until_evicted(Box::pin(handshake)).await.flatten();
    if let Some((connection, budget, context)) = accepted {
        seat.serves(&context.clock);
        let _counted = slot.worker.edge.metrics.serves(Protocol::Http3);
        let ended = seat.until_evicted(Box::pin(h3::serve(connection, budget, context))).await;
        if let Some(Ended::Expired(expired)) = ended {
            slot.worker.edge.metrics.expired(expired);
        }
    }
    drop(place);
}

/// From how many handshakes on clients have to show their address first, on each of so many workers.
fn retry_from(workers: usize) -> usize {
    (limits::QUIC_HALF_OPEN_OF_ALL / workers.max(1)).clamp(1, limits::QUIC_HALF_OPEN_BEFORE_RETRY)
}

fn endpoint(
    worker: &Rc<Worker>,
    quic: QuicSocket,
    bound: &Rc<BoundListener>,
) -> io::Result<(quinn::Endpoint, Rc<Slot>)> {
    let QuicSocket { socket, slot, slots, process, gate, predecessors } = quic;
    let mut config = EndpointConfig::new(Arc::new(process.reset.clone()));
    let tag = process.tag;
    config.cid_generator(move || Box::new(SlotIds::new(slot, slots, tag)));
    let crypto = Arc::new(SelectingCrypto::new(Arc::clone(&worker.edge)).map_err(io::Error::other)?);
    let token = Arc::clone(&process.token);
    let mut server = server_config(Arc::clone(&crypto) as Arc<_>, token, worker.edge.deadlines.idle);
    server.incoming_buffer_size_total(limits::QUIC_INCOMING_BYTES_TOTAL / slots.max(1) as u64);
    let metrics = &worker.edge.metrics;
    let counts = SteeringCounts {
        forwarded: metrics.quic_forwarded.clone(),
        dropped: metrics.quic_not_forwarded.clone(),
    };
    let kernel = TokioRuntime.wrap_udp_socket(socket)?;
    let socket = Arc::new(SteeredSocket::new(kernel, gate, predecessors, counts));
    let runtime = Arc::new(TokioRuntime);
    let endpoint = quinn::Endpoint::new_with_abstract_socket(config, Some(server.clone()), socket, runtime)?;
    let (worker, bound, half_open) = (Rc::clone(worker), Rc::clone(bound), Cell::new(0));
    let retry_from = retry_from(slots);
    Ok((endpoint, Rc::new(Slot { worker, bound, server, crypto, half_open, retry_from })))
}

fn server_config(
    crypto: Arc<dyn quinn::crypto::ServerConfig>,
    token: Arc<dyn quinn::crypto::HandshakeTokenKey>,
    idle: Duration,
) -> ServerConfig {
    let mut server = ServerConfig::new(crypto, token);
    server
        .transport_config(Arc::new(transport(idle)))
        .retry_token_lifetime(limits::QUIC_RETRY_TOKEN_LIFE)
        .max_incoming(limits::QUIC_INCOMING_MAX)
        .incoming_buffer_size(limits::QUIC_INCOMING_BYTES)
        .incoming_buffer_size_total(limits::QUIC_INCOMING_BYTES_TOTAL);
    server
}

fn transport(idle: Duration) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(limits::H3_STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(limits::H3_CONTROL_STREAMS_MAX))
        .stream_receive_window(VarInt::from_u32(limits::H2_STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(limits::QUIC_RECEIVE_WINDOW_FIRST_BYTES))
        .send_window(limits::QUIC_SEND_WINDOW_FIRST_BYTES)
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
    /// Another handle of the same socket, for a worker that starts again or a process that takes over.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
            slot: self.slot,
            slots: self.slots,
            process: Arc::clone(&self.process),
            gate: Arc::clone(&self.gate),
            predecessors: Arc::clone(&self.predecessors),
        })
    }

    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    pub fn predecessors(&self) -> &Arc<Predecessors> {
        &self.predecessors
    }
}

impl QuicProcess {
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn generate() -> io::Result<Self> {
        let mut secret = Zeroizing::new([0; 32]);
        fill(secret.as_mut_slice())?;
        Self::succeeding(secret, &[])
    }

    /// Takes the secret of Retry tokens over: a client that has one from a predecessor may come to us with it.
    ///
    /// # Errors
    /// As [`QuicProcess::generate`].
    pub fn succeeding(token_secret: Zeroizing<[u8; 32]>, predecessors: &[ProcessTag]) -> io::Result<Self> {
        let mut reset = Zeroizing::new([0; 32]);
        fill(reset.as_mut_slice())?;
        let token =
            aws_lc_rs::hkdf::Salt::new(aws_lc_rs::hkdf::HKDF_SHA256, &[]).extract(token_secret.as_slice());
        Ok(Self {
            tag: ProcessTag::generate(predecessors)?,
            reset: aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, reset.as_slice()),
            token: Arc::new(token),
            token_secret,
        })
    }

    pub fn token_secret(&self) -> &[u8; 32] {
        &self.token_secret
    }
}

fn fill(bytes: &mut [u8]) -> io::Result<()> {
    aws_lc_rs::rand::fill(bytes).map_err(|_| io::Error::other("the operating system gives no random bytes"))
}

impl std::fmt::Debug for QuicProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuicProcess").field("tag", &self.tag).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
