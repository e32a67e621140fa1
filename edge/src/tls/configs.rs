//! Server configurations: a few bases made at start, one small clone per connection that carries the chosen key.
//!
//! A clone is about 0.3 KB (a default configuration with its session cache: 32 KB). Where clients are asked for
//! certificates, a configuration is made for the connection, because a clone cannot get another verifier. AES-128-GCM comes first and the
//! server's order counts: SHA-384, which AES-256-GCM brings along, has no hardware path and costs a fifth of a handshake.
//! Only a client that leads with ChaCha20 gets ChaCha20, because it has no AES instructions.
//!
//! rustls takes the first of the client's groups that it has; so a client that names X25519MLKEM768 gets a configuration
//! without another for TLS 1.3. If it has sent no share for it, that costs a round trip (HelloRetryRequest): what is recorded
//! today can be opened by whoever can break X25519 one day. Browsers, OpenSSL 3.5 and Go, who name it, send that share at once.

use std::{fmt, net::IpAddr, sync::Arc};

use portico_cert_store::{DomainId, DomainName, TlsVersion};
use rustls::{
    ServerConfig, SupportedCipherSuite,
    compress::{CertCompressor, CompressionCache},
    crypto::{CryptoProvider, aws_lc_rs},
    server::{
        ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, danger::ClientCertVerifier,
    },
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};

use super::{
    Asking, CertificateCompressions, HelloFacts, Shown, Tickets, groups,
    sessions::{Sessions, SessionsOf},
};
use crate::{
    clock, limits,
    rate::{Meter, Rate},
};

/// The protocols that ALPN may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alpn {
    /// h2, then http/1.1.
    Http2,
    /// http/1.1 alone.
    Http1,
    /// h3, over QUIC.
    Http3,
    /// Of a CA that validates.
    AcmeTls,
}

/// All base configurations; shared by the workers.
pub struct TlsConfigs {
    /// By the kind of client, see [`kind`].
    providers: [Arc<CryptoProvider>; 4],
    /// \[minimum version 1.3\]\[kind of client\]\[ALPN\]
    bases: [[[ServerConfig; 2]; 4]; 2],
    /// For QUIC: \[kind of client\]
    quic: [ServerConfig; 4],
    challenge: ServerConfig,
    tickets: Arc<Tickets>,
    compressions: &'static CertificateCompressions,
    compressors: Compressors,
    sessions: Arc<Sessions>,
    /// Lines about clients whose certificates are refused.
    told: Meter,
}

type Compressors = Vec<&'static dyn CertCompressor>;

impl TlsConfigs {
    /// # Errors
    /// When the operating system gives no random bytes for the first ticket key.
    pub fn new() -> Result<Self, rustls::Error> {
        let tickets = Arc::new(Tickets::new()?);
        let providers = [
            (Order::AesFirst, false),
            (Order::ChachaFirst, false),
            (Order::AesFirst, true),
            (Order::ChachaFirst, true),
        ]
        .map(|(order, knows_hybrid)| Arc::new(provider(order, knows_hybrid)));
        let nothing = Asking::nothing(Arc::clone(&tickets));
        let compressions = CertificateCompressions::leaked();
        let compressors = compressions.compressors();
        let bases = [TlsVersion::Tls12, TlsVersion::Tls13].map(|minimum| {
            providers.each_ref().map(|provider| {
                [Alpn::Http2, Alpn::Http1].map(|alpn| {
                    let mut base = base(provider, minimum, alpn, &nothing, &compressors);
                    // Without the way through what one connection asks.
                    base.ticketer = Arc::clone(&tickets) as Arc<dyn ProducesTickets>;
                    base
                })
            })
        });
        // QUIC has no TLS 1.2 (RFC 9001 section 4.2).
        let quic = providers.each_ref().map(|provider| {
            let mut base = base(provider, TlsVersion::Tls13, Alpn::Http3, &nothing, &compressors);
            base.ticketer = Arc::clone(&tickets) as Arc<dyn ProducesTickets>;
            base
        });
        let mut challenge = base(&providers[0], TlsVersion::Tls12, Alpn::AcmeTls, &nothing, &compressors);
        challenge.send_tls13_tickets = 0;
        challenge.ticketer = Arc::new(NoTickets);
        let (sessions, told) = (Arc::default(), Meter::default());
        Ok(Self { providers, bases, quic, challenge, tickets, compressions, compressors, sessions, told })
    }

    /// Says why a client's certificate is refused, now and then: the client has but an alert.
    pub(crate) fn tell_refused(&self, name: Option<&DomainName>, why: &dyn fmt::Display) {
        let rate = Rate::every(limits::TOLD_EVERY, limits::TOLD_AT_ONCE);
        if self.told.take(rate, clock::uptime()).is_ok() {
            let name = name.map(DomainName::as_str);
            tracing::warn!(name, "a client's certificate is refused: {why}");
        }
    }

    /// The configuration of one connection over TCP.
    pub fn serving(&self, shown: &Shown, hello: &HelloFacts, key: Arc<CertifiedKey>) -> Arc<ServerConfig> {
        let policy = shown.policy;
        let (kind, minimum) = (kind(hello), policy.minimum_version);
        let alpn = if policy.http2 { Alpn::Http2 } else { Alpn::Http1 };
        match &shown.client_auth {
            None => {
                let only_13 = usize::from(minimum == TlsVersion::Tls13);
                with_key(self.bases[only_13][kind][alpn as usize].clone(), key)
            }
            Some(auth) => {
                let asking = Asking::nothing(Arc::clone(&self.tickets));
                asking.ask(Arc::clone(auth));
                with_key(base(&self.providers[kind], minimum, alpn, &asking, &self.compressors), key)
            }
        }
    }

    /// The configuration of one connection over QUIC; `early` are the sessions of a name that takes early data.
    pub(crate) fn serving_quic(
        &self,
        shown: &Shown,
        hello: &HelloFacts,
        key: Arc<CertifiedKey>,
        early: Option<SessionsOf>,
    ) -> Arc<ServerConfig> {
        let kind = kind(hello);
        if let Some(auth) = &shown.client_auth {
            let asking = Asking::nothing(Arc::clone(&self.tickets));
            asking.ask(Arc::clone(auth));
            let (provider, tls13) = (&self.providers[kind], TlsVersion::Tls13);
            return with_key(base(provider, tls13, Alpn::Http3, &asking, &self.compressors), key);
        }
        let mut config = self.quic[kind].clone();
        if let Some(sessions) = early {
            // Early data goes with sessions that are kept, and thus used once; never with tickets.
            config.ticketer = Arc::new(NoTickets);
            config.session_storage = Arc::new(sessions);
            // The only bound that QUIC knows (RFC 9001 section 4.6.1); what may come is bounded by flow control.
            config.max_early_data_size = u32::MAX;
        }
        with_key(config, key)
    }

    /// The kept sessions of a name, as one client's address may use them.
    pub(crate) fn sessions_of(&self, domain: DomainId, client: IpAddr) -> SessionsOf {
        SessionsOf { domain, client, sessions: Arc::clone(&self.sessions) }
    }

    /// For packets that come before a name is known.
    pub(crate) fn before_choice(&self) -> Arc<ServerConfig> {
        Arc::new(self.quic[0].clone())
    }

    /// For a CA that validates by TLS-ALPN-01.
    pub fn challenge(&self, key: Arc<CertifiedKey>) -> Arc<ServerConfig> {
        with_key(self.challenge.clone(), key)
    }

    pub fn tickets(&self) -> &Arc<Tickets> {
        &self.tickets
    }

    /// What is kept of certificates that were sent compressed.
    pub fn compressions(&self) -> &'static CertificateCompressions {
        self.compressions
    }
}

/// The place of a client's configurations, by what its hello says.
fn kind(hello: &HelloFacts) -> usize {
    usize::from(hello.prefers_chacha) + 2 * usize::from(hello.knows_hybrid)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    AesFirst,
    ChachaFirst,
}

fn provider(order: Order, knows_hybrid: bool) -> CryptoProvider {
    use aws_lc_rs::cipher_suite as suite;
    let aes_128: [SupportedCipherSuite; 3] = [
        suite::TLS13_AES_128_GCM_SHA256,
        suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ];
    let aes_256 = [
        suite::TLS13_AES_256_GCM_SHA384,
        suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    ];
    let chacha = [
        suite::TLS13_CHACHA20_POLY1305_SHA256,
        suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ];
    let cipher_suites = match order {
        Order::AesFirst => [aes_128, aes_256, chacha].concat(),
        Order::ChachaFirst => [chacha, aes_128, aes_256].concat(),
    };
    let kx_groups = groups::counted(knows_hybrid);
    CryptoProvider { cipher_suites, kx_groups, ..aws_lc_rs::default_provider() }
}

fn base(
    provider: &Arc<CryptoProvider>,
    minimum: TlsVersion,
    alpn: Alpn,
    asking: &Arc<Asking>,
    compressors: &Compressors,
) -> ServerConfig {
    let versions: &[&rustls::SupportedProtocolVersion] = match minimum {
        TlsVersion::Tls12 => &[&TLS13, &TLS12],
        TlsVersion::Tls13 => &[&TLS13],
    };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions)
        .expect("the provider has suites and groups of both versions")
        .with_client_cert_verifier(Arc::clone(asking) as Arc<dyn ClientCertVerifier>)
        .with_cert_resolver(Arc::new(NoKey));
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.alpn_protocols = alpn.protocols().iter().map(|protocol| protocol.to_vec()).collect();
    config.cert_compressors.clone_from(compressors);
    config.cert_compression_cache = Arc::new(CompressionCache::Disabled);
    config.ticketer = Arc::clone(asking) as Arc<dyn ProducesTickets>;
    // One is enough for one more connection, and each costs an encryption and a record.
    config.send_tls13_tickets = 1;
    config
}

fn with_key(mut config: ServerConfig, key: Arc<CertifiedKey>) -> Arc<ServerConfig> {
    config.cert_resolver = Arc::new(ChosenKey(key));
    Arc::new(config)
}

impl Alpn {
    fn protocols(self) -> &'static [&'static [u8]] {
        match self {
            Self::Http2 => &[b"h2", b"http/1.1"],
            Self::Http1 => &[b"http/1.1"],
            Self::Http3 => &[b"h3"],
            Self::AcmeTls => &[b"acme-tls/1"],
        }
    }
}

/// For a CA, which comes once, and where sessions are kept.
#[derive(Debug)]
struct NoTickets;

impl ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// The key was chosen from the ClientHello already.
#[derive(Debug)]
struct ChosenKey(Arc<CertifiedKey>);

impl ResolvesServerCert for ChosenKey {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// A base is never served from.
#[derive(Debug)]
struct NoKey;

impl ResolvesServerCert for NoKey {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

impl fmt::Debug for TlsConfigs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TlsConfigs").finish_non_exhaustive()
    }
}
