//! Sockets that somebody else has bound: a predecessor that hands them over, or the service manager.
//!
//! A socket with its queue of connections that nobody has accepted yet is taken as it is, never closed and bound again. With
//! fewer sockets than workers, some share one; with more, a worker has several.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::OwnedFd,
    sync::Arc,
};

use socket2::{SockRef, Socket, Type};

use super::{
    AltSvc, BoundListener, Unbound,
    quic::{self, Predecessors, QuicProcess},
};
use crate::config::{ListenerConfig, ListenerKind};

/// What was bound before us and has no listener of ours yet.
#[derive(Debug, Default)]
pub struct Inherited {
    pub listeners: Vec<InheritedListener>,
    pub kept: Kept,
}

/// All the sockets of one address.
#[derive(Debug)]
pub struct InheritedListener {
    pub bound: SocketAddr,
    /// The address in the predecessor's file, and what it was; `None` from the service manager.
    pub configured: Option<(SocketAddr, ListenerKind)>,
    pub tcp: Vec<TcpListener>,
    /// In the order of their slots.
    pub udp: Vec<UdpSocket>,
    pub predecessors: Predecessors,
    pub of_service_manager: bool,
}

/// The addresses that are served on by us.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Kept {
    pub tcp: Vec<SocketAddr>,
    pub udp: Vec<SocketAddr>,
}

impl Inherited {
    /// Sorts what the service manager passes.
    ///
    /// # Errors
    /// For a descriptor that is no socket of an internet address.
    pub fn from_service_manager(descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let mut inherited = Self::default();
        for descriptor in descriptors {
            let socket = Socket::from(descriptor);
            let bound = socket.local_addr()?.as_socket().ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "the service manager passes a socket without an IP address",
                )
            })?;
            let is_datagram = socket.r#type()? == Type::DGRAM;
            let index = inherited.listeners.iter().position(|listener| listener.bound == bound);
            let index = index.unwrap_or_else(|| {
                inherited.listeners.push(InheritedListener {
                    bound,
                    configured: None,
                    tcp: Vec::new(),
                    udp: Vec::new(),
                    predecessors: Predecessors::default(),
                    of_service_manager: true,
                });
                inherited.listeners.len() - 1
            });
            let listener = &mut inherited.listeners[index];
            match is_datagram {
                true => listener.udp.push(socket.into()),
                false => listener.tcp.push(socket.into()),
            }
        }
        Ok(inherited)
    }

    /// What there is for one `[[listen]]`.
    pub(super) fn take(&mut self, config: &ListenerConfig) -> Option<InheritedListener> {
        let fits = |listener: &InheritedListener| match config.address.port() {
            // Any port will do, so the one that it had.
            0 => listener.configured == Some((config.address, config.kind)),
            _ => listener.bound == config.address,
        };
        let index = self.listeners.iter().position(|listener| !listener.tcp.is_empty() && fits(listener))?;
        Some(self.listeners.remove(index))
    }
}

/// Gives the sockets of an address to the workers.
pub(super) fn adopt(
    config: &ListenerConfig,
    workers: usize,
    listener: InheritedListener,
    inherited: &mut Inherited,
    process: &Arc<QuicProcess>,
) -> Result<Vec<(usize, BoundListener)>, Unbound> {
    let InheritedListener { bound, tcp, udp, predecessors, of_service_manager, .. } = listener;
    let (configured, mut config) = (config.address, config.clone());
    config.address = bound;
    for socket in &tcp {
        socket.set_nonblocking(true)?;
        SockRef::from(socket).set_tcp_nodelay(true)?;
    }
    inherited.kept.tcp.push(bound);
    let mut group = match (config.http3, udp.is_empty()) {
        (true, false) => {
            inherited.kept.udp.push(bound);
            quic::adopt_group(udp, process, predecessors).map_err(Unbound::udp)?
        }
        (true, true) => quic::bind_group(bound, workers, process).map_err(Unbound::udp)?,
        (false, _) => Vec::new(),
    };
    if !group.is_empty() && group.len() < workers {
        tracing::info!(address = %bound, slots = group.len(), workers, "HTTP/3 stays with as many workers as it had sockets");
    }
    let mut listeners: Vec<_> = for_each_worker(tcp, workers)?
        .into_iter()
        .map(|(worker, socket)| (worker, BoundListener::new(socket, config.clone(), configured, Vec::new())))
        .collect();
    for quic in group.drain(..) {
        let worker = quic.slot % workers;
        if let Some((_, listener)) = listeners.iter_mut().find(|(of, _)| *of == worker) {
            listener.quic.push(quic);
        }
    }
    let alt_svc = AltSvc::of(&config);
    for (_, listener) in &mut listeners {
        listener.alt_svc.clone_from(&alt_svc);
        listener.of_service_manager = of_service_manager;
    }
    Ok(listeners)
}

/// Every worker has one at least, and none is left over. Workers share where there are few: a further socket in the group
/// would be dealt connections before we serve.
fn for_each_worker(mut sockets: Vec<TcpListener>, workers: usize) -> io::Result<Vec<(usize, TcpListener)>> {
    let first = sockets.len();
    for index in first..workers {
        sockets.push(sockets[index % first].try_clone()?);
    }
    Ok(sockets.into_iter().enumerate().map(|(index, socket)| (index % workers, socket)).collect())
}
