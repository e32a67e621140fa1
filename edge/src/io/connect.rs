//! Connects to an origin. The caller has already chosen and checked the address; nothing is resolved here.

use std::{io, net::SocketAddr, os::fd::OwnedFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Backend, Stream, stream::RingSocket};

/// Connects to exactly this address. Dropping the future abandons the attempt and frees its descriptor.
///
/// # Errors
/// As connect(2).
pub async fn connect(address: SocketAddr, backend: Backend) -> io::Result<Stream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match backend {
        Backend::Uring { .. } => {
            let fd = OwnedFd::from(socket);
            let outcome = rustix::net::connect(&fd, &address);
            let mut socket = RingSocket::new(fd);
            match outcome {
                Ok(()) => {}
                Err(rustix::io::Errno::INPROGRESS) => {
                    std::future::poll_fn(|context| socket.poll_connected(context)).await?;
                }
                Err(errno) => return Err(errno.into()),
            }
            Ok(socket.into_stream())
        }
        Backend::Epoll => {
            let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
            Ok(Stream::epoll(socket.connect(address).await?))
        }
    }
}
