//! Validation over real sockets: HTTP-01, TLS-ALPN-01 and DNS-01, through the DNS server that was named.
//!
//! One fetch per validation, from this machine; Let's Encrypt looks from several places. CAA is not
//! looked up: that belongs to the issuance work that follows.

mod dns01;
mod http01;
mod resolver;
mod tls_alpn01;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::book::ChallengeKind;
use crate::problem::{Kind, Problem};

pub(crate) use resolver::Resolver;

/// What is to be proved.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Without `*.`.
    pub(crate) name: String,
    pub(crate) kind: ChallengeKind,
    pub(crate) token: String,
    pub(crate) key_authorization: String,
}

/// Looks from outside, as a CA does.
#[derive(Debug)]
pub(crate) struct Validator {
    resolver: Resolver,
    http_port: u16,
    tls_port: u16,
    tls_alpn: Arc<ClientConfig>,
    https: Arc<ClientConfig>,
    slots: Semaphore,
}

/// Validations at once; more wait.
const VALIDATIONS_MAX: usize = 256;
/// For a whole validation, redirects included.
const VALIDATION_DEADLINE: Duration = Duration::from_secs(20);
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

impl Validator {
    /// A validator that resolves through `dns` and connects to these ports in place of 80 and 443.
    ///
    /// # Errors
    /// Of the TLS library.
    pub(crate) fn new(dns: SocketAddr, http_port: u16, tls_port: u16) -> Result<Self, rustls::Error> {
        Ok(Self {
            resolver: Resolver::new(dns),
            http_port,
            tls_port,
            tls_alpn: tls_alpn01::client_config(&[b"acme-tls/1"])?,
            https: tls_alpn01::client_config(&[b"http/1.1"])?,
            slots: Semaphore::new(VALIDATIONS_MAX),
        })
    }

    /// Performs one validation.
    ///
    /// # Errors
    /// What the client is told: `dns`, `connection`, `tls` or `unauthorized`.
    pub(crate) async fn validate(&self, target: &Target) -> Result<(), Problem> {
        let Ok(_slot) = self.slots.acquire().await else {
            return Err(Problem::new(Kind::ServerInternal, "the CA is stopping"));
        };
        let work = async {
            match target.kind {
                ChallengeKind::Http01 => self.http01(target).await,
                ChallengeKind::TlsAlpn01 => self.tls_alpn01(target).await,
                ChallengeKind::Dns01 => self.dns01(target).await,
            }
        };
        timeout(VALIDATION_DEADLINE, work).await.unwrap_or_else(|_| {
            Err(Problem::new(Kind::Connection, format!("{}: no complete answer in time", target.name)))
        })
    }

    /// Connects to the first address of `name` that answers, IPv6 first.
    async fn connect(&self, name: &str, port: u16) -> Result<(TcpStream, IpAddr), Problem> {
        let addresses = self.resolver.addresses(name).await?;
        let mut last = String::new();
        for address in addresses.into_iter().take(4) {
            match timeout(CONNECT_DEADLINE, TcpStream::connect((address, port))).await {
                Ok(Ok(stream)) => {
                    // An unset option costs time only.
                    stream.set_nodelay(true).ok();
                    return Ok((stream, address));
                }
                Ok(Err(error)) => last = format!("{address} port {port}: {error}"),
                Err(_) => last = format!("{address} port {port}: no connection in time"),
            }
        }
        Err(Problem::new(Kind::Connection, format!("{name}: {last}")))
    }
}
