//! Listening sockets, bound before anything is served, one member of each group per worker.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::HeaderValue;

mod inherited;
pub mod quic;

pub use self::inherited::{Inherited, InheritedListener, Kept};
use self::quic::{QuicProcess, QuicSocket};

use crate::{config::ListenerConfig, io as sockets, limits};

/// A bound socket and how it is to be served.
#[derive(Debug)]
pub struct BoundListener {
    pub socket: TcpListener,
    /// With the address as bound.
    pub config: ListenerConfig,
    /// The address as the file has it: with port 0, perhaps.
    pub configured: SocketAddr,
    /// Present where HTTP/3 is on; all workers have the same one.
    pub alt_svc: Option<Arc<AltSvc>>,
    /// The same address over UDP, where HTTP/3 is on.
    pub quic: Vec<QuicSocket>,
    /// The service manager keeps the socket for whoever comes after us.
    pub of_service_manager: bool,
}

/// What clients of HTTP/1.1 and 2 are told of HTTP/3 at an address: at the same port, as they see it (RFC 7838).
#[derive(Debug)]
pub struct AltSvc {
    there: HeaderValue,
    withdrawn: AtomicBool,
}

/// A listener that could not be bound; says which and what to do.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}: {advice}")]
pub struct ListenError {
    address: SocketAddr,
    advice: String,
    source: io::Error,
}

/// Why an address has no socket, and over which of the two transports.
struct Unbound {
    transport: Transport,
    source: io::Error,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

/// Binds every listener for every worker. Port 0 takes a free port, the same for all workers.
///
/// # Errors
/// [`ListenError`] for the first address that cannot be bound.
pub fn bind_all(configs: &[ListenerConfig], workers: usize) -> Result<Vec<Vec<BoundListener>>, ListenError> {
    let first = configs.first().map_or(SocketAddr::from(([0, 0, 0, 0], 0)), |config| config.address);
    let process = QuicProcess::generate().map_err(|error| named(first, error.into()))?;
    bind_or_adopt_all(configs, workers, &mut Inherited::default(), &Arc::new(process))
}

/// The same, with the sockets that others have bound wherever there are some for an address.
///
/// # Errors
/// As [`bind_all`].
pub fn bind_or_adopt_all(
    configs: &[ListenerConfig],
    workers: usize,
    inherited: &mut Inherited,
    process: &Arc<QuicProcess>,
) -> Result<Vec<Vec<BoundListener>>, ListenError> {
    let mut per_worker: Vec<Vec<BoundListener>> = (0..workers).map(|_| Vec::new()).collect();
    for config in configs {
        let bound = match inherited.take(config) {
            Some(listener) => inherited::adopt(config, workers, listener, inherited, process),
            None => bind(config, workers, process),
        };
        let bound = bound.map_err(|error| named(config.address, error))?;
        for (worker, listener) in bound {
            per_worker[worker].push(listener);
        }
    }
    Ok(per_worker)
}

/// One socket a worker; each with the worker that it is for.
fn bind(
    config: &ListenerConfig,
    workers: usize,
    process: &Arc<QuicProcess>,
) -> Result<Vec<(usize, BoundListener)>, Unbound> {
    let configured = config.address;
    let mut config = config.clone();
    if config.http3 && config.address.port() == 0 {
        config.address = quic::free_address(config.address).map_err(Unbound::udp)?;
    } else if config.address.port() != 0 {
        wait_until_free(config.address)?;
    }
    let alt_svc = AltSvc::of(&config);
    let group = match config.http3 {
        true => quic::bind_group(config.address, workers, process).map_err(Unbound::udp)?,
        false => Vec::new(),
    };
    let mut group = group.into_iter();
    (0..workers)
        .map(|worker| {
            let socket = sockets::bind(config.address)?;
            config.address = socket.local_addr()?;
            let quic = group.next().into_iter().collect();
            let mut bound = BoundListener::new(socket, config.clone(), configured, quic);
            bound.alt_svc.clone_from(&alt_svc);
            Ok((worker, bound))
        })
        .collect()
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

fn named(address: SocketAddr, unbound: Unbound) -> ListenError {
    let Unbound { transport, source } = unbound;
    let kind = source.kind();
    let port = match transport {
        Transport::Tcp => format!("port {}", address.port()),
        Transport::Udp => format!("UDP port {} (of HTTP/3)", address.port()),
    };
    let advice = if kind == io::ErrorKind::AddrInUse {
        let without = match transport {
            Transport::Tcp => "",
            Transport::Udp => ", or remove `http3`",
        };
        format!(
            "{port} is taken by another process; stop it, or change `address` in [[listen]]{without}; from a running edge \
             of ours --take-over takes it without a pause"
        )
    } else if kind == io::ErrorKind::PermissionDenied {
        format!("{port} needs the capability CAP_NET_BIND_SERVICE, or choose a port from 1024 on")
    } else if kind == io::ErrorKind::AddrNotAvailable {
        "this machine has no such address".to_owned()
    } else {
        source.to_string()
    };
    ListenError { address, advice, source }
}

impl Unbound {
    fn udp(source: io::Error) -> Self {
        Self { transport: Transport::Udp, source }
    }
}

impl From<io::Error> for Unbound {
    fn from(source: io::Error) -> Self {
        Self { transport: Transport::Tcp, source }
    }
}

impl AltSvc {
    /// `config` with the address as bound. None: HTTP/3 is off.
    fn of(config: &ListenerConfig) -> Option<Arc<Self>> {
        let port = match config.public_https_port {
            0 => config.address.port(),
            port => port,
        };
        let there =
            HeaderValue::try_from(format!("h3=\":{port}\"; ma=86400")).expect("digits are a header value");
        config.http3.then(|| Arc::new(Self { there, withdrawn: AtomicBool::new(false) }))
    }

    /// One of the address's endpoints does not serve: the kernel would lead a share of all clients to it.
    pub(crate) fn withdraw(&self) {
        self.withdrawn.store(true, Ordering::Relaxed);
    }

    /// For an answer about a name that has HTTP/3 or not. Where there is none, clients forget what they were told before: they
    /// would try for a day, and wait each time.
    pub(crate) fn value(&self, has_http3: bool) -> HeaderValue {
        match has_http3 && !self.withdrawn.load(Ordering::Relaxed) {
            true => self.there.clone(),
            false => HeaderValue::from_static("clear"),
        }
    }
}

impl BoundListener {
    /// `config` with the address as bound.
    fn new(
        socket: TcpListener,
        mut config: ListenerConfig,
        configured: SocketAddr,
        quic: Vec<QuicSocket>,
    ) -> Self {
        if config.public_https_port == 0 {
            config.public_https_port = config.address.port();
        }
        Self { socket, config, configured, alt_svc: None, quic, of_service_manager: false }
    }

    /// Another handle of the same socket, for a worker that starts again or a process that takes over.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
            config: self.config.clone(),
            configured: self.configured,
            alt_svc: self.alt_svc.clone(),
            quic: self.quic.iter().map(QuicSocket::try_clone).collect::<io::Result<_>>()?,
            of_service_manager: self.of_service_manager,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::config::ListenerKind;

    #[test]
    fn a_taken_port_is_told_with_its_transport() {
        // The TCP port of the same number may be another process's.
        let (taken, address) = std::iter::repeat_with(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
            let address = socket.local_addr().expect("it is bound");
            (socket, address)
        })
        .find(|(_, address)| TcpListener::bind(address).is_ok())
        .expect("some port is free");
        let config = ListenerConfig {
            address,
            kind: ListenerKind::Https,
            public_https_port: address.port(),
            http3: true,
            proxy_protocol: None,
            trusted_proxies: None,
        };
        let told = bind_all(std::slice::from_ref(&config), 1).expect_err("it is taken").to_string();
        assert!(told.contains(&format!("UDP port {} (of HTTP/3) is taken", address.port())), "{told}");
        drop(taken);
        let _taken = TcpListener::bind(address).expect("it was free");
        let told = bind_all(&[config], 1).expect_err("it is taken").to_string();
        assert!(told.contains(&format!(": port {} is taken", address.port())), "{told}");
    }
}
