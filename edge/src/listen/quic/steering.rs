//! One UDP address, several processes: while a predecessor drains, its connections' packets reach it by way of us.
//!
//! The sockets are the same for all generations of the edge, so the kernel's group never changes and no packet is lost with
//! a socket. One process at a time reads them. A packet whose connection id carries a living predecessor's tag goes to that
//! one over a pair of unix sockets, with its addresses; answers leave by the predecessor's own handle of the socket. The
//! other way, a second set of sockets in the group and a program in the kernel that knows tags, costs no copy, but the
//! group closes ranks when a socket leaves it, so the sets would have to live for ever and a third generation would have
//! no place. The copy costs only the packets of old connections, only from clients to us, only during a drain.
//!
//! Deliberately absent: repeating what a full pair of sockets did not take. It is a lost packet, as others are.

use std::{
    fmt, io,
    io::{IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::unix::net::UnixDatagram,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit},
};
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags};
use tokio::io::Interest;

use super::connection_id::{Owner, ProcessTag};

/// Where one slot's packets come from. Shared with whoever hands the slot over.
#[derive(Debug, Default)]
pub struct Gate {
    // Held while a batch is read, so that whoever closes the gate knows that no read goes on. Otherwise uncontended.
    intake: Mutex<Intake>,
}

#[derive(Debug, Default)]
struct Intake {
    source: Source,
    reader: Option<Waker>,
}

#[derive(Debug, Default, Clone)]
enum Source {
    #[default]
    Kernel,
    /// Nobody reads; packets wait in the socket.
    Closed,
    /// A successor reads the socket and passes on what is ours.
    Successor(Arc<UnixDatagram>),
}

/// The processes that had this address before and still drain, youngest first.
#[derive(Debug, Default)]
pub struct Predecessors(Vec<Predecessor>);

/// One of them.
#[derive(Debug)]
pub struct Predecessor {
    pub tag: ProcessTag,
    /// To each of its slots.
    pub channels: Vec<Channel>,
}

/// To one slot of a predecessor.
#[derive(Debug)]
pub struct Channel {
    socket: UnixDatagram,
    /// The predecessor has ended.
    gone: AtomicBool,
}

/// A slot's socket, as quinn sees it.
pub(super) struct SteeredSocket {
    kernel: Arc<dyn AsyncUdpSocket>,
    gate: Arc<Gate>,
    /// The channel from a successor on this runtime, from the first packet on.
    forwarded: OnceLock<tokio::net::UnixDatagram>,
    predecessors: Arc<Predecessors>,
    counts: SteeringCounts,
}

/// Packets that went to a predecessor, and those that its channel had no room for.
pub(super) struct SteeringCounts {
    pub(super) forwarded: metrics::Counter,
    pub(super) dropped: metrics::Counter,
}

impl Gate {
    /// After this nothing is read any more, and nothing is lost either.
    pub fn close(&self) {
        self.set(Source::Closed);
    }

    /// Reads the socket again: the successor has not come.
    pub fn open(&self) {
        self.set(Source::Kernel);
    }

    /// Reads what a successor passes on.
    pub fn read_from(&self, successor: UnixDatagram) {
        self.set(Source::Successor(Arc::new(successor)));
    }

    fn set(&self, source: Source) {
        let mut intake = self.lock();
        intake.source = source;
        if let Some(reader) = intake.reader.take() {
            reader.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Intake> {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Channel {
    /// A channel and the end to read from.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn pair() -> io::Result<(Self, UnixDatagram)> {
        let (ours, theirs) = UnixDatagram::pair()?;
        Ok((Self::new(ours)?, theirs))
    }

    /// # Errors
    /// As fcntl(2).
    pub fn new(socket: UnixDatagram) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        // As far as net.core.wmem_max allows: room for a burst.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, CHANNEL_BYTES);
        Ok(Self { socket, gone: AtomicBool::new(false) })
    }

    pub fn socket(&self) -> &UnixDatagram {
        &self.socket
    }

    /// Whether somebody may still read it.
    pub fn is_open(&self) -> bool {
        if !self.gone.load(Ordering::Relaxed) {
            // An empty message is no packet, and the reader passes over it.
            if let Err(error) = self.send(&[], &[]) {
                self.note(&error);
            }
        }
        !self.gone.load(Ordering::Relaxed)
    }

    fn send(&self, head: &[u8], packets: &[u8]) -> io::Result<usize> {
        let parts = [IoSlice::new(head), IoSlice::new(packets)];
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(rustix::net::sendmsg(&self.socket, &parts, &mut SendAncillaryBuffer::default(), flags)?)
    }

    fn note(&self, error: &io::Error) {
        if error.kind() != io::ErrorKind::WouldBlock {
            self.gone.store(true, Ordering::Relaxed);
        }
    }
}

/// Bytes that may wait in a channel.
const CHANNEL_BYTES: usize = 1024 * 1024;

impl Predecessors {
    pub fn new(youngest_first: Vec<Predecessor>) -> Self {
        Self(youngest_first)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Predecessor> {
        self.0.iter()
    }

    /// The channel that a packet belongs into; `None`: it is for us.
    fn channel_of(&self, packet: &[u8]) -> Option<&Channel> {
        let owner = Owner::of(packet)?;
        let predecessor = self.0.iter().find(|predecessor| predecessor.tag == owner.tag)?;
        let slot = usize::from(owner.mark) % predecessor.channels.len().max(1);
        predecessor.channels.get(slot).filter(|channel| !channel.gone.load(Ordering::Relaxed))
    }
}

impl SteeredSocket {
    pub(super) fn new(
        kernel: Arc<dyn AsyncUdpSocket>,
        gate: Arc<Gate>,
        predecessors: Arc<Predecessors>,
        counts: SteeringCounts,
    ) -> Self {
        Self { kernel, gate, forwarded: OnceLock::new(), predecessors, counts }
    }

    /// Passes on what belongs to predecessors, and leaves the rest at the buffer's beginning.
    fn sort_out(&self, buffer: &mut [u8], meta: &mut RecvMeta) {
        let stride = meta.stride.max(1);
        let (mut at, mut kept) = (0, 0);
        while at < meta.len {
            let channel = self.predecessors.channel_of(&buffer[at..meta.len.min(at + stride)]);
            // Packets of one sender that arrive together are mostly of one connection: they go on together.
            let mut end = meta.len.min(at + stride);
            while end < meta.len
                && same(channel, self.predecessors.channel_of(&buffer[end..meta.len.min(end + stride)]))
            {
                end = meta.len.min(end + stride);
            }
            match channel {
                Some(channel) if self.pass_on(channel, meta, &buffer[at..end]) => {}
                _ => {
                    buffer.copy_within(at..end, kept);
                    kept += end - at;
                }
            }
            at = end;
        }
        meta.len = kept;
    }

    /// `false`: there is nobody any more, so it is ours to deal with.
    fn pass_on(&self, channel: &Channel, meta: &RecvMeta, packets: &[u8]) -> bool {
        let count = packets.len().div_ceil(meta.stride.max(1)) as u64;
        match channel.send(&encode(meta), packets) {
            Ok(_) => {
                self.counts.forwarded.increment(count);
                true
            }
            Err(error) => {
                channel.note(&error);
                if error.kind() == io::ErrorKind::WouldBlock {
                    self.counts.dropped.increment(count);
                }
                error.kind() == io::ErrorKind::WouldBlock
            }
        }
    }

    fn poll_forwarded(
        &self,
        successor: &UnixDatagram,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let channel = match self.forwarded.get() {
            Some(channel) => channel,
            None => {
                let socket = successor.try_clone()?;
                socket.set_nonblocking(true)?;
                let channel = tokio::net::UnixDatagram::from_std(socket)?;
                self.forwarded.get_or_init(|| channel)
            }
        };
        loop {
            ready!(channel.poll_recv_ready(context))?;
            let mut count = 0;
            for (buffer, meta) in buffers.iter_mut().zip(metas.iter_mut()) {
                match channel.try_io(Interest::READABLE, || receive(channel, buffer)) {
                    Ok(Some(received)) => {
                        *meta = received;
                        count += 1;
                    }
                    // Not a packet.
                    Ok(None) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
        }
    }
}

impl AsyncUdpSocket for SteeredSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.kernel).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.kernel.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut intake = self.gate.lock();
        if !intake.reader.as_ref().is_some_and(|reader| reader.will_wake(context.waker())) {
            intake.reader = Some(context.waker().clone());
        }
        match &intake.source {
            Source::Closed => Poll::Pending,
            Source::Successor(successor) => self.poll_forwarded(successor, context, buffers, metas),
            Source::Kernel => {
                let count = ready!(self.kernel.poll_recv(context, buffers, metas))?;
                if !self.predecessors.0.is_empty() {
                    for (buffer, meta) in buffers.iter_mut().zip(metas.iter_mut()).take(count) {
                        self.sort_out(buffer, meta);
                    }
                }
                Poll::Ready(Ok(count))
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.kernel.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.kernel.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.kernel.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.kernel.may_fragment()
    }
}

fn same(one: Option<&Channel>, other: Option<&Channel>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => std::ptr::eq(one, other),
        _ => false,
    }
}

/// Flags, ECN, the sender's port and scope, the length of one packet, then both addresses as IPv6 has them.
const HEAD_BYTES: usize = 44;
const SENDER_IS_V6: u8 = 1;
const HAS_OWN_ADDRESS: u8 = 2;
const OWN_ADDRESS_IS_V6: u8 = 4;

fn encode(meta: &RecvMeta) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    let scope = match meta.addr {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) => address.scope_id(),
    };
    if meta.addr.is_ipv6() {
        head[0] |= SENDER_IS_V6;
    }
    if let Some(own) = meta.dst_ip {
        head[0] |= HAS_OWN_ADDRESS | if own.is_ipv6() { OWN_ADDRESS_IS_V6 } else { 0 };
        head[28..44].copy_from_slice(&octets(own));
    }
    head[1] = meta.ecn.map_or(0, |ecn| ecn as u8);
    head[2..4].copy_from_slice(&meta.addr.port().to_be_bytes());
    head[4..8].copy_from_slice(&scope.to_be_bytes());
    // A datagram has less than 64 KiB.
    head[8..12].copy_from_slice(&u32::try_from(meta.stride).unwrap_or(u32::MAX).to_be_bytes());
    head[12..28].copy_from_slice(&octets(meta.addr.ip()));
    head
}

/// `None` for what is too short to be a packet with its head.
fn receive(channel: &tokio::net::UnixDatagram, buffer: &mut [u8]) -> io::Result<Option<RecvMeta>> {
    let mut head = [0; HEAD_BYTES];
    let mut parts = [IoSliceMut::new(&mut head), IoSliceMut::new(buffer)];
    let mut ancillary = RecvAncillaryBuffer::default();
    let received = rustix::net::recvmsg(channel, &mut parts, &mut ancillary, RecvFlags::DONTWAIT)?;
    Ok(received
        .bytes
        .checked_sub(HEAD_BYTES)
        .filter(|length| *length > 0)
        .map(|length| decode(&head, length)))
}

fn decode(head: &[u8; HEAD_BYTES], length: usize) -> RecvMeta {
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let address = |at: usize, is_v6: bool| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&head[at..at + 16]);
        if is_v6 {
            IpAddr::from(octets)
        } else {
            Ipv4Addr::new(octets[12], octets[13], octets[14], octets[15]).into()
        }
    };
    let port = u16::from_be_bytes([head[2], head[3]]);
    let addr = match address(12, head[0] & SENDER_IS_V6 != 0) {
        IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, word(4)).into(),
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, port),
    };
    RecvMeta {
        addr,
        len: length,
        stride: usize::try_from(word(8)).unwrap_or(length).max(1),
        ecn: EcnCodepoint::from_bits(head[1]),
        dst_ip: (head[0] & HAS_OWN_ADDRESS != 0).then(|| address(28, head[0] & OWN_ADDRESS_IS_V6 != 0)),
    }
}

fn octets(ip: IpAddr) -> [u8; 16] {
    let ip: Ipv6Addr = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_compatible(),
        IpAddr::V6(ip) => ip,
    };
    ip.octets()
}

impl fmt::Debug for SteeredSocket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SteeredSocket").field("gate", &self.gate).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
