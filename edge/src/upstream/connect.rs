//! New connections to origins: resolve, ask the guard, connect to exactly that address, ask the guard again.

use std::{
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, OnceLock},
    time::Duration,
};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use portico_prober::egress::EgressRefused;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::{
    Lease, Names, OriginError,
    pool::{Pool, PoolKey},
};
use crate::{
    egress::EgressGuard,
    io::{Backend, Stream},
    limits,
    live::{Host, Origin, OriginHost, OriginScheme, TenantState},
    metrics::Metrics,
};

/// One worker's way to origins.
#[derive(Debug)]
pub struct Origins {
    pool: Rc<Pool>,
    names: Names,
    guard: EgressGuard,
    tls: OriginTls,
    backend: Backend,
    metrics: Arc<Metrics>,
    connect_deadline: Duration,
}

/// How origins are trusted; shared by the workers.
#[derive(Debug, Clone)]
pub struct OriginTls(Arc<OnceLock<Arc<ClientConfig>>>);

/// A connected stream to an origin of either scheme.
pub(super) trait OriginStream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> OriginStream for S {}

impl Origins {
    pub fn new(
        names: Names,
        guard: EgressGuard,
        tls: OriginTls,
        backend: Backend,
        metrics: Arc<Metrics>,
        connect_deadline: Duration,
    ) -> Self {
        Self { pool: Rc::default(), names, guard, tls, backend, metrics, connect_deadline }
    }

    /// A kept connection of this tenant to this origin.
    pub(super) async fn kept(&self, host: &Host, origin: &Arc<Origin>) -> Option<Lease> {
        let key = PoolKey { tenant: host.tenant.id, origin: Arc::clone(origin) };
        let lease = self.pool.take(&key).await?;
        self.metrics.origin_reuses.increment(1);
        Some(lease)
    }

    /// A new connection, ready for its first request.
    pub(super) async fn connect(&self, host: &Host, origin: &Arc<Origin>) -> Result<Lease, OriginError> {
        let (stream, address) = self.open(&host.tenant, origin).await?;
        let (sender, connection) =
            http1_builder().handshake(TokioIo::new(stream)).await.map_err(OriginError::of_hyper)?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::trace!(%error, "a connection to an origin ended");
            }
        });
        let key = PoolKey { tenant: host.tenant.id, origin: Arc::clone(origin) };
        Ok(self.pool.lease(key, sender, address))
    }

    /// A connected stream, TLS included where the origin has it.
    pub(super) async fn open(
        &self,
        tenant: &TenantState,
        origin: &Origin,
    ) -> Result<(Box<dyn OriginStream>, SocketAddr), OriginError> {
        let opening = Box::pin(self.open_unbounded(tenant, origin));
        let opened = tokio::time::timeout(self.connect_deadline, opening).await;
        opened.unwrap_or(Err(OriginError::ConnectTimeout))
    }

    async fn open_unbounded(
        &self,
        tenant: &TenantState,
        origin: &Origin,
    ) -> Result<(Box<dyn OriginStream>, SocketAddr), OriginError> {
        let (stream, address) = self.connect_first(tenant, origin).await?;
        self.metrics.origin_connects.increment(1);
        match origin.scheme {
            OriginScheme::Http => Ok((Box::new(stream), address)),
            OriginScheme::Https => {
                let name = server_name(&origin.host)?;
                let connector = TlsConnector::from(self.tls.config());
                let stream = connector.connect(name, stream).await.map_err(OriginError::Tls)?;
                Ok((Box::new(stream), address))
            }
        }
    }

    /// The first address that the guard lets pass and that answers.
    async fn connect_first(
        &self,
        tenant: &TenantState,
        origin: &Origin,
    ) -> Result<(Stream, SocketAddr), OriginError> {
        let addresses = match &origin.host {
            OriginHost::Address(ip) => vec![*ip],
            OriginHost::Name(name) => self.names.resolve(name).await.map_err(OriginError::Resolve)?,
        };
        let mut last = OriginError::Resolve("no address".to_owned());
        for ip in addresses {
            let address = SocketAddr::new(ip, origin.port);
            if let Err(refused) = self.guard.check(tenant, address) {
                last = self.refused(refused);
                continue;
            }
            match crate::io::connect(address, self.backend).await {
                Ok(stream) => return self.confirm(tenant, stream, address),
                Err(error) => last = OriginError::Connect(error),
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

    /// Housekeeping, every few seconds.
    pub fn sweep(&self) {
        self.pool.sweep();
    }
}

impl OriginTls {
    /// Trusts the machine's own roots (`SSL_CERT_FILE` names others). They are read by a thread of their own, because a
    /// start must not wait for 150 certificates that it may never need.
    pub fn from_system() -> Self {
        let tls = Self(Arc::default());
        let reader = tls.clone();
        let started = std::thread::Builder::new().name("root-certificates".to_owned()).spawn(move || {
            reader.config();
        });
        if let Err(error) = started {
            tracing::debug!(%error, "root certificates are read at first use");
        }
        tls
    }

    /// Trusts exactly these roots.
    pub fn with_roots(roots: RootCertStore) -> Self {
        Self(Arc::new(OnceLock::from(client_config(roots))))
    }

    fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(self.0.get_or_init(|| {
            let mut roots = RootCertStore::empty();
            let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if added == 0 {
                tracing::warn!(
                    "no root certificates found on this machine: https origins will not be trusted"
                );
            }
            client_config(roots)
        }))
    }
}

/// No ALPN: HTTP/1.1 is what we speak to origins.
fn client_config(roots: RootCertStore) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has suites and groups of both versions");
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

fn server_name(host: &OriginHost) -> Result<ServerName<'static>, OriginError> {
    match host {
        OriginHost::Address(ip) => Ok(ServerName::IpAddress((*ip).into())),
        OriginHost::Name(name) => ServerName::try_from(name.to_string())
            .map_err(|error| OriginError::Tls(io::Error::new(io::ErrorKind::InvalidInput, error))),
    }
}

pub(super) fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .max_headers(limits::ORIGIN_HEADER_FIELDS_MAX)
        .max_header_size(limits::ORIGIN_HEADER_BYTES_MAX)
        .max_buf_size(limits::ORIGIN_HEADER_BYTES_MAX + 8 * 1024);
    builder
}
