//! Listening sockets, bound before anything is served, one member of each group per worker.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use http::HeaderValue;

pub mod quic;

use self::quic::QuicSocket;

use crate::{config::ListenerConfig, io as sockets, limits};

/// A bound socket and how it is to be served.
#[derive(Debug)]
pub struct BoundListener {
    pub socket: TcpListener,
    pub config: ListenerConfig,
    /// What tells clients of HTTP/1.1 and 2 about HTTP/3 here: at the same port, as they see it (RFC 7838).
    pub alt_svc: Option<HeaderValue>,
    /// The same address over UDP, where HTTP/3 is on.
    pub quic: Option<QuicSocket>,
}

/// A listener that could not be bound; says which and what to do.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}: {advice}")]
pub struct ListenError {
    address: SocketAddr,
    advice: String,
    source: io::Error,
}

/// Binds every listener for every worker. Port 0 takes a free port, the same for all workers.
///
/// # Errors
/// [`ListenError`] for the first address that cannot be bound.
pub fn bind_all(configs: &[ListenerConfig], workers: usize) -> Result<Vec<Vec<BoundListener>>, ListenError> {
    let mut per_worker: Vec<Vec<BoundListener>> = (0..workers).map(|_| Vec::new()).collect();
    for config in configs {
        let mut config = config.clone();
        if config.http3 && config.address.port() == 0 {
            config.address =
                quic::free_address(config.address).map_err(|error| named(config.address, error))?;
            config.public_https_port = match config.public_https_port {
                0 => config.address.port(),
                port => port,
            };
        }
        if config.address.port() != 0 {
            wait_until_free(config.address).map_err(|error| named(config.address, error))?;
        }
        let mut group = match config.http3 {
            true => {
                quic::bind_group(config.address, workers).map_err(|error| named(config.address, error))?
            }
            false => Vec::new(),
        }
        .into_iter();
        for listeners in &mut per_worker {
            let socket = sockets::bind(config.address).map_err(|error| named(config.address, error))?;
            let bound = socket.local_addr().map_err(|error| named(config.address, error))?;
            if config.address.port() == 0 && config.public_https_port == 0 {
                config.public_https_port = bound.port();
            }
            config.address = bound;
            let alt_svc = config.http3.then(|| alt_svc(config.public_https_port));
            listeners.push(BoundListener { socket, config: config.clone(), alt_svc, quic: group.next() });
        }
    }
    Ok(per_worker)
}

/// Waits a moment for a predecessor that was killed: the kernel takes its rings apart after the process is gone, and until
/// then its listeners stay bound.
fn wait_until_free(address: SocketAddr) -> io::Result<()> {
    let mut attempts = limits::LISTEN_ATTEMPTS;
    loop {
        match sockets::bound_elsewhere(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempts > 1 => attempts -= 1,
            outcome => return outcome,
        }
        std::thread::sleep(limits::LISTEN_PAUSE);
    }
}

fn alt_svc(port: u16) -> HeaderValue {
    HeaderValue::try_from(format!("h3=\":{port}\"; ma=86400")).expect("digits are a header value")
}

fn named(address: SocketAddr, source: io::Error) -> ListenError {
    let port = address.port();
    let kind = source.kind();
    let advice = if kind == io::ErrorKind::AddrInUse {
        format!("port {port} is taken by another process; stop it, or change `address` in [[listen]]")
    } else if kind == io::ErrorKind::PermissionDenied {
        format!("port {port} needs the capability CAP_NET_BIND_SERVICE, or choose a port from 1024 on")
    } else if kind == io::ErrorKind::AddrNotAvailable {
        "this machine has no such address".to_owned()
    } else {
        source.to_string()
    };
    ListenError { address, advice, source }
}

impl BoundListener {
    /// Another handle of the same socket, for a worker that starts again.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
            config: self.config.clone(),
            alt_svc: self.alt_svc.clone(),
            quic: self.quic.as_ref().map(QuicSocket::try_clone).transpose()?,
        })
    }
}
