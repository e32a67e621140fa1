//! New connections to origins: resolve, ask the guard, connect to exactly that address, ask the guard again.

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use portico_prober::egress::EgressRefused;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use super::{
    Names, OriginError, OriginTls,
    last_word::{LastWord, Said},
    sockets::OriginSockets,
    through::Through,
    trust::{Offer, server_name},
};
use crate::{
    clock,
    egress::EgressGuard,
    io::{Backend, Stream},
    limits,
    live::{NoIdentity, Origin, OriginHost, OriginIdentity, OriginScheme, TenantState},
    metrics::Metrics,
    proxy_protocol::{self, Ends},
};

/// One thread's way to open connections.
#[derive(Debug)]
pub struct Connector {
    names: Names,
    guard: EgressGuard,
    tls: OriginTls,
    backend: Backend,
    metrics: Arc<Metrics>,
    sockets: Arc<OriginSockets>,
}

/// Where a connection leads, and as whom it is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub origin: &'a Origin,
    pub identity: &'a Identity,
    /// Where origins are told of clients.
    pub client: Option<Ends>,
    /// How many this thread has to the origin.
    pub sockets: &'a Rc<Cell<u64>>,
}

/// The client certificate of a connection, if it has one.
pub(super) type Identity = Result<Option<Arc<OriginIdentity>>, NoIdentity>;

/// A connected stream to an origin of either scheme.
pub(super) trait OriginStream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> OriginStream for S {}

/// A connection that is made, TLS included where the origin has it.
pub(super) struct Opened {
    pub stream: Box<dyn OriginStream>,
    pub address: SocketAddr,
    /// What the origin says when it ends it; never anything without TLS.
    pub said: Said,
    /// HTTP/2 is to be spoken.
    pub http2: bool,
    /// For origins by name: all its addresses, and until when that holds.
    pub resolved: Option<Resolved>,
}

/// An answer of the DNS.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// In the order to try them.
    pub addresses: Vec<IpAddr>,
    pub until: Instant,
}

impl Connector {
    pub fn new(
        names: Names,
        guard: EgressGuard,
        tls: OriginTls,
        backend: Backend,
        metrics: Arc<Metrics>,
        sockets: Arc<OriginSockets>,
    ) -> Self {
        Self { names, guard, tls, backend, metrics, sockets }
    }

    /// A connected stream over which what `offer` allows can be spoken.
    pub(super) async fn open(
        &self,
        tenant: &TenantState,
        target: Target<'_>,
        offer: Offer,
        deadline: Duration,
    ) -> Result<Opened, OriginError> {
        let begun = clock::now();
        let opening = Box::pin(self.open_unbounded(tenant, target, offer, deadline));
        let opened = tokio::time::timeout(deadline, opening).await;
        let opened = opened.unwrap_or(Err(OriginError::ConnectTimeout))?;
        self.metrics.origin_connect_seconds.record(clock::now().duration_since(begun).as_secs_f64());
        Ok(opened)
    }

    async fn open_unbounded(
        &self,
        tenant: &TenantState,
        Target { origin, identity, client, sockets }: Target<'_>,
        offer: Offer,
        deadline: Duration,
    ) -> Result<Opened, OriginError> {
        let identity = identity.as_ref().map_err(|NoIdentity| OriginError::NoIdentity)?.as_deref();
        let resolved = match &origin.host {
            OriginHost::Address(_) => None,
            OriginHost::Name(name) => Some(self.resolve(name).await?),
        };
        let addresses = match (&origin.host, &resolved) {
            (OriginHost::Address(ip), _) => std::slice::from_ref(ip),
            (OriginHost::Name(_), resolved) => resolved.as_ref().map_or(&[][..], |found| &found.addresses),
        };
        let place = self.sockets.take(tenant, sockets).ok_or(OriginError::NoSockets)?;
        let (stream, address) = self.connect_first(tenant, addresses, origin.port, deadline).await?;
        let mut stream = Through::new(stream, place);
        self.metrics.origin_connects.increment(1);
        if let Some(version) = origin.proxy_protocol {
            stream.write_all(&proxy_protocol::header(version, client)).await.map_err(OriginError::Connect)?;
        }
        match origin.scheme {
            OriginScheme::Http => {
                let http2 = offer == Offer::Http2;
                Ok(Opened { stream: Box::new(stream), address, said: Said::default(), http2, resolved })
            }
            OriginScheme::Https => {
                let connector = TlsConnector::from(self.tls.config(origin, identity, offer));
                let connected = connector.connect(server_name(origin)?, stream).await;
                let stream = connected.map_err(OriginError::of_handshake)?;
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                if offer == Offer::Http2 && !http2 {
                    return Err(OriginError::NotHttp2);
                }
                let (stream, said) = LastWord::new(stream);
                Ok(Opened { stream: Box::new(stream), address, said, http2, resolved })
            }
        }
    }

    /// The guard's word as of now; a refusal that follows from it is counted by whoever then tries to connect.
    pub(super) fn may_reach(&self, tenant: &TenantState, address: SocketAddr) -> bool {
        self.guard.check(tenant, address).is_ok()
    }

    pub(super) async fn resolve(&self, name: &str) -> Result<Resolved, OriginError> {
        self.names.resolve(name).await.map_err(OriginError::Resolve)
    }

    /// The first address that the guard lets pass and that answers. Each has its share of the time, so that a dead one does
    /// not take what the next would need.
    async fn connect_first(
        &self,
        tenant: &TenantState,
        addresses: &[IpAddr],
        port: u16,
        deadline: Duration,
    ) -> Result<(Stream, SocketAddr), OriginError> {
        let addresses = &addresses[..addresses.len().min(limits::ORIGIN_ADDRESSES_MAX)];
        let share = deadline / u32::try_from(addresses.len()).unwrap_or(1).max(1);
        let mut last = OriginError::Resolve("no address".to_owned());
        for ip in addresses {
            let address = SocketAddr::new(*ip, port);
            if let Err(refused) = self.guard.check(tenant, address) {
                last = self.refused(refused);
                continue;
            }
            match tokio::time::timeout(share, crate::io::connect(address, self.backend)).await {
                Ok(Ok(stream)) => return self.confirm(tenant, stream, address),
                Ok(Err(error)) => last = OriginError::Connect(error),
                Err(_) => last = OriginError::ConnectTimeout,
            }
        }
        Err(last)
    }

    /// The kernel's word on where we are connected to. It can only differ by a rule of the host's firewall; then too no
    /// byte is to be sent there.
    fn confirm(
        &self,
        tenant: &TenantState,
        stream: Stream,
        asked: SocketAddr,
    ) -> Result<(Stream, SocketAddr), OriginError> {
        let connected = stream.peer_address().map_err(OriginError::Connect)?;
        if connected != asked
            && let Err(refused) = self.guard.check(tenant, connected)
        {
            return Err(self.refused(refused));
        }
        Ok((stream, connected))
    }

    fn refused(&self, refused: EgressRefused) -> OriginError {
        self.metrics.egress_refused.increment(1);
        OriginError::Egress(refused)
    }
}
