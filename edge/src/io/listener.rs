//! Listening sockets: one per worker and address, in one SO_REUSEPORT group, so that the kernel spreads connections and
//! workers share nothing.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    task::{Context, Poll, ready},
};

use rustix::net::{Shutdown, SocketFlags};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    Backend, Stream,
    counts::{Path, count},
    ring::Readiness,
    stream::wait,
};
use crate::limits;

/// A bound socket in the hands of the worker that accepts from it.
#[derive(Debug)]
pub struct Listener {
    inner: Inner,
    address: SocketAddr,
}

#[derive(Debug)]
enum Inner {
    Ring(RingListener),
    Epoll(tokio::net::TcpListener),
}

struct RingListener {
    fd: Rc<OwnedFd>,
    readable: Option<Readiness>,
}

/// Says whether somebody already listens on `address`. SO_REUSEPORT alone would let a second edge of the same user join
/// the group in silence and take half of the connections.
///
/// # Errors
/// `AddrInUse`, or whatever else forbids a bind.
pub fn bound_elsewhere(address: SocketAddr) -> io::Result<()> {
    let socket = plain_socket(address)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}

/// Binds one member of the group; may be called for the same address once per worker.
///
/// # Errors
/// When the address cannot be bound.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = plain_socket(address)?;
    socket.set_reuse_port(true)?;
    // Inherited by every accepted socket: no system call per connection.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(limits::LISTEN_BACKLOG)?;
    Ok(socket.into())
}

fn plain_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // "[::]:443" and "0.0.0.0:443" are two listeners, so that an IPv4 peer never shows as ::ffff:a.b.c.d.
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

impl Listener {
    /// Takes a bound socket onto this worker's runtime.
    ///
    /// # Errors
    /// When epoll refuses the descriptor.
    pub fn new(socket: TcpListener, backend: Backend) -> io::Result<Self> {
        let address = socket.local_addr()?;
        let inner = match backend {
            Backend::Uring { .. } => {
                Inner::Ring(RingListener { fd: Rc::new(OwnedFd::from(socket)), readable: None })
            }
            Backend::Epoll => Inner::Epoll(tokio::net::TcpListener::from_std(socket)?),
        };
        Ok(Self { inner, address })
    }

    /// The bound address (with the real port where 0 was asked for).
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection. Safe to drop and call again: no accepted socket is ever in the future's hands.
    ///
    /// # Errors
    /// As accept(2); `EMFILE` and the like are for the caller to wait out.
    pub async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)> {
        std::future::poll_fn(|context| self.poll_accept(context)).await
    }

    /// What waits in the queue now, whatever the runtime has been told of it so far; `None` when it is empty.
    ///
    /// # Errors
    /// As accept(2).
    pub fn accept_now(&mut self) -> io::Result<Option<(Stream, SocketAddr)>> {
        let accepted = match &self.inner {
            Inner::Ring(listener) => accept_from(&listener.fd),
            Inner::Epoll(listener) => accept_from(listener),
        };
        let (fd, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        count(Path::Direct);
        let stream = match &self.inner {
            Inner::Ring(_) => Stream::ring(fd),
            Inner::Epoll(_) => Stream::epoll(tokio::net::TcpStream::from_std(fd.into())?),
        };
        Ok(Some((stream, peer)))
    }

    /// Ends the socket itself, whoever else holds it: from now on connecting is refused. Merely dropping a listener leaves
    /// the socket to its other holders: a worker that starts again, a successor, the service manager.
    pub fn close(self) {
        let _ = match &self.inner {
            // A poll in flight completes by it, and lets its share of the descriptor go.
            Inner::Ring(listener) => rustix::net::shutdown(&listener.fd, Shutdown::Both),
            Inner::Epoll(listener) => rustix::net::shutdown(listener, Shutdown::Both),
        };
    }

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<(Stream, SocketAddr)>> {
        match &mut self.inner {
            Inner::Ring(listener) => listener.poll_accept(context),
            Inner::Epoll(listener) => {
                let (tcp, peer) = ready!(listener.poll_accept(context))?;
                count(Path::Epoll);
                Poll::Ready(Ok((Stream::epoll(tcp), peer)))
            }
        }
    }
}

impl RingListener {
    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<(Stream, SocketAddr)>> {
        let mut path = Path::Direct;
        loop {
            if self.readable.is_some() {
                ready!(wait(&mut self.readable, context))?;
                path = Path::Ring;
            }
            match accept_from(&self.fd) {
                Ok((fd, peer)) => {
                    count(path);
                    return Poll::Ready(Ok((Stream::ring(fd), peer)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = Some(Readiness::readable(&self.fd));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

/// accept4(2), tried again where the failure is not the listener's.
fn accept_from(listener: impl AsFd) -> io::Result<(OwnedFd, SocketAddr)> {
    loop {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match rustix::net::acceptfrom_with(&listener, flags) {
            Ok((fd, peer)) => {
                // No address: the peer went away between connecting and now.
                if let Some(peer) = peer.and_then(|peer| SocketAddr::try_from(peer).ok()) {
                    return Ok((fd, peer));
                }
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

impl std::fmt::Debug for RingListener {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RingListener").field("fd", &self.fd).finish_non_exhaustive()
    }
}
