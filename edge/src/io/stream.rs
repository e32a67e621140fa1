//! A connected TCP socket on either backend.

use std::{
    cell::Cell,
    fmt,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    counts::{Path, count},
    ring::Readiness,
};

/// A connected socket; `!Send`, it lives on its worker.
pub struct Stream {
    socket: Socket,
    watch: SocketWatch,
    /// Bytes that may still be read before reading fails; `None`: no limit. Bounds a ClientHello.
    read_budget: Option<usize>,
}

/// A stream as whoever does not hold it sees it, whatever lies above its socket.
#[derive(Clone, Debug, Default)]
pub struct SocketWatch(Rc<Watched>);

#[derive(Debug, Default)]
struct Watched {
    taken: Cell<u64>,
    resets: Cell<bool>,
}

enum Socket {
    Ring(RingSocket),
    Epoll(EpollSocket),
}

pub(super) struct RingSocket {
    fd: Rc<OwnedFd>,
    readable: Option<Readiness>,
    writable: Option<Readiness>,
    /// The last receive took less than it could: the next one would only say "would block", so wait first.
    probably_empty: bool,
}

struct EpollSocket {
    tcp: TcpStream,
    read_waited: bool,
    write_waited: bool,
}

impl Stream {
    /// A non-blocking, connected socket whose readiness comes through the ring.
    pub(super) fn ring(fd: OwnedFd) -> Self {
        Self::new(Socket::Ring(RingSocket::new(fd)))
    }

    pub(super) fn epoll(tcp: TcpStream) -> Self {
        Self::new(Socket::Epoll(EpollSocket { tcp, read_waited: false, write_waited: false }))
    }

    fn new(socket: Socket) -> Self {
        Self { socket, watch: SocketWatch::default(), read_budget: None }
    }

    pub fn watch(&self) -> SocketWatch {
        self.watch.clone()
    }

    /// Lets at most `bytes` more be read; reading beyond fails with `InvalidData`. `None` lifts the limit.
    pub fn set_read_budget(&mut self, bytes: Option<usize>) {
        self.read_budget = bytes;
    }

    /// The address at the other end, as the kernel has it.
    ///
    /// # Errors
    /// When the socket is no longer connected.
    pub fn peer_address(&self) -> io::Result<std::net::SocketAddr> {
        rustix::net::getpeername(self)?
            .and_then(|address| std::net::SocketAddr::try_from(address).ok())
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// The address at our end.
    ///
    /// # Errors
    /// When the kernel does not know it.
    pub fn local_address(&self) -> io::Result<std::net::SocketAddr> {
        std::net::SocketAddr::try_from(rustix::net::getsockname(self)?)
            .map_err(|_| io::ErrorKind::AddrNotAvailable.into())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.watch.0.resets.get() {
            // At worst it ends as others do.
            let _ = rustix::net::sockopt::set_socket_linger(self.as_fd(), Some(Duration::ZERO));
        }
    }
}

impl SocketWatch {
    /// How many bytes the kernel has taken for the peer so far. It takes no more than its buffer holds, so once that is full
    /// the number tells what the peer takes.
    pub fn taken_bytes(&self) -> u64 {
        self.0.taken.get()
    }

    pub(crate) fn add_taken(&self, bytes: usize) {
        self.0.taken.set(self.taken_bytes() + bytes as u64);
    }

    /// Has the connection reset when the stream is dropped. Of one that is only closed the kernel keeps all that was written,
    /// some megabytes, and goes on offering it to a peer that takes nothing, for minutes.
    pub fn reset_when_dropped(&self) {
        self.0.resets.set(true);
    }
}

impl RingSocket {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self { fd: Rc::new(fd), readable: None, writable: None, probably_empty: false }
    }

    /// Waits until a non-blocking connect has ended, well or not.
    pub(super) fn poll_connected(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.writable.is_none() {
            self.writable = Some(Readiness::writable(&self.fd));
        }
        ready!(wait(&mut self.writable, context))?;
        rustix::net::sockopt::socket_error(&self.fd)?.map_err(io::Error::from)?;
        Poll::Ready(Ok(()))
    }

    pub(super) fn into_stream(self) -> Stream {
        Stream::new(Socket::Ring(self))
    }

    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut path = Path::Direct;
        if self.probably_empty && self.readable.is_none() {
            self.readable = Some(Readiness::readable(&self.fd));
        }
        loop {
            if self.readable.is_some() {
                ready!(wait(&mut self.readable, context))?;
                path = Path::Ring;
            }
            // SAFETY: `recv` below only writes into the slice and never reads it, so no uninitialised byte is observed;
            // the slice is used for nothing else.
            let space: &mut [MaybeUninit<u8>] = unsafe { buffer.unfilled_mut() };
            let space_len = space.len();
            match rustix::net::recv(&self.fd, space, RecvFlags::DONTWAIT) {
                Ok(((received, _), _)) => {
                    let received = received.len();
                    // SAFETY: the kernel has written the first `received` bytes of the unfilled part (recv's answer).
                    unsafe { buffer.assume_init(received) };
                    buffer.advance(received);
                    self.probably_empty = received > 0 && received < space_len;
                    count(path);
                    return Poll::Ready(Ok(()));
                }
                Err(rustix::io::Errno::AGAIN) => self.readable = Some(Readiness::readable(&self.fd)),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }

    fn poll_write(&mut self, context: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut path = Path::Direct;
        loop {
            if self.writable.is_some() {
                ready!(wait(&mut self.writable, context))?;
                path = Path::Ring;
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let sent = match pieces {
                [one] => rustix::net::send(&self.fd, one, flags),
                many => rustix::net::sendmsg(&self.fd, many, &mut SendAncillaryBuffer::default(), flags),
            };
            match sent {
                Ok(sent) => {
                    count(path);
                    return Poll::Ready(Ok(sent));
                }
                Err(rustix::io::Errno::AGAIN) => self.writable = Some(Readiness::writable(&self.fd)),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }
}

/// An operation in flight keeps the descriptor open (that is what makes it safe), so a connection dropped by a deadline
/// would stay open until its peer speaks. Shutting the socket down makes it ready, the operation completes, the last
/// share of the descriptor goes.
impl Drop for RingSocket {
    fn drop(&mut self) {
        if self.readable.is_some() || self.writable.is_some() {
            let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
        }
    }
}

/// Polls an operation in its slot and clears the slot when it has completed.
pub(super) fn wait(slot: &mut Option<Readiness>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
    let Some(operation) = slot else { return Poll::Ready(Ok(())) };
    let result = ready!(Pin::new(operation).poll(context));
    *slot = None;
    Poll::Ready(result)
}

impl EpollSocket {
    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.tcp).poll_read(context, buffer);
        note(&mut self.read_waited, result.is_pending());
        result
    }

    fn poll_write(&mut self, context: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let result = match pieces {
            [one] => Pin::new(&mut self.tcp).poll_write(context, one),
            many => Pin::new(&mut self.tcp).poll_write_vectored(context, many),
        };
        note(&mut self.write_waited, result.is_pending());
        result
    }
}

fn note(waited: &mut bool, pending: bool) {
    if pending {
        *waited = true;
    } else {
        count(if std::mem::take(waited) { Path::Epoll } else { Path::Direct });
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.read_budget == Some(0) {
            let text = "the peer sent more than this phase may read";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        let before = buffer.filled().len();
        ready!(match &mut this.socket {
            Socket::Ring(socket) => socket.poll_read(context, buffer),
            Socket::Epoll(socket) => socket.poll_read(context, buffer),
        })?;
        if let Some(budget) = &mut this.read_budget {
            *budget = budget.saturating_sub(buffer.filled().len() - before);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // IOV_MAX; what is left goes with the next call.
        let pieces = &pieces[..pieces.len().min(1024)];
        let this = self.get_mut();
        let taken = ready!(match &mut this.socket {
            Socket::Ring(socket) => socket.poll_write(context, pieces),
            Socket::Epoll(socket) => socket.poll_write(context, pieces),
        })?;
        this.watch.add_taken(taken);
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // nothing is held back here
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Ring(socket) => {
                Poll::Ready(rustix::net::shutdown(&socket.fd, Shutdown::Write).map_err(io::Error::from))
            }
            Socket::Epoll(socket) => Pin::new(&mut socket.tcp).poll_shutdown(context),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Ring(socket) => socket.fd.as_fd(),
            Socket::Epoll(socket) => socket.tcp.as_fd(),
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Stream").field("fd", &self.as_fd()).finish_non_exhaustive()
    }
}
