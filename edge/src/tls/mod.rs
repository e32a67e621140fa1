//! TLS over TCP: ClientHello first, then the certificate, then the handshake.
//!
//! The hello is read with a bound on bytes and one deadline for the whole handshake; nothing is decided before it is
//! whole. The choice itself ([`select`]) is pure and shared with QUIC: name, index, policy in, a `ServerConfig` or a
//! refusal out. No lock, no disk and no other thread is waited for on the way (promise P1).
//!
//! Sessions go by tickets, so that workers share nothing; except for names that take early data, whose sessions are kept and
//! used once ([`sessions`]). Deliberately absent: early data over TCP. tokio-rustls gives a server its stream only when the
//! handshake has ended, and a request that waits for that has gained nothing.

mod asking;
mod client_identity;
mod compression;
mod configs;
pub(crate) mod failure;
mod groups;
mod hello;
mod opening;
pub(crate) mod sessions;
mod tickets;

use std::{io, sync::Arc, time::Duration};

use portico_cert_store::{Credential, DomainName, TlsPolicy, UnixTime};
use rustls::{AlertDescription, HandshakeKind, ProtocolVersion, ServerConfig, sign::CertifiedKey};
use tokio::io::AsyncWriteExt;
use tokio_rustls::server::TlsStream;

pub(crate) use asking::Asking;
pub use client_identity::{CLIENT_CERT, CLIENT_CERT_SHA256, CLIENT_CERT_SUBJECT, ClientIdentity};
pub use compression::CertificateCompressions;
pub use configs::TlsConfigs;
pub use hello::HelloFacts;
pub use tickets::{TICKET_KEY_SECONDS, TicketSecret, Tickets};

use crate::{
    clock,
    http::goodbye,
    io::Stream,
    limits,
    live::{ClientAuth, Live, TenantConnection, UnknownSni},
    metrics::{HandshakeEnd, Limited, SniLookup},
    server::Edge,
    sources::Source,
};

/// What a connection was shown; the authority rule is decided against it.
#[derive(Debug, Clone)]
pub struct Shown {
    /// As the client asked, normalised; absent when it named nobody or something that is no domain name.
    pub sni: Option<DomainName>,
    pub credential: Arc<Credential>,
    pub policy: TlsPolicy,
    /// What `policy` asks of clients, in full.
    pub client_auth: Option<Arc<ClientAuth>>,
    /// Absent: the client has shown no certificate. Known when the handshake is over.
    pub client: Option<Arc<ClientIdentity>>,
    /// How the certificate was found.
    pub found: SniLookup,
    /// The default certificate: every request on it is misdirected.
    pub is_default: bool,
    /// The connection's place among those of its name's tenant; see [`Shown::count`].
    pub counted: Option<Arc<TenantConnection>>,
}

impl Shown {
    /// Counts the connection among those of its name's tenant, for as long as this lives. False: the tenant may have no more.
    /// A connection to the default certificate is nobody's.
    pub(crate) fn count(&mut self, live: &Live) -> bool {
        let Some(host) = self.sni.as_ref().and_then(|name| live.host(name)) else { return true };
        self.counted = host.tenant.connect(&live.fleet.load().tenant_limits).map(Arc::new);
        self.counted.is_some()
    }
}

/// How a connection came to be, for who keeps account of it.
#[derive(Debug, Clone)]
pub struct Handshake {
    /// Whom the client asked for, also where the default certificate was shown; absent when that is no domain name.
    pub sni: Option<DomainName>,
    /// "1.2" or "1.3"; as the metrics have it.
    pub version: &'static str,
    /// By a session of before.
    pub resumed: bool,
}

/// What to do with a ClientHello.
#[derive(Debug)]
pub enum Selection {
    Serve {
        key: Arc<CertifiedKey>,
        shown: Box<Shown>,
    },
    /// A CA validates by TLS-ALPN-01 (RFC 8737): finish the handshake and close.
    Challenge {
        config: Arc<ServerConfig>,
    },
    Refuse {
        alert: AlertDescription,
        end: HandshakeEnd,
    },
}

impl Selection {
    /// What came of the lookup of the client's name. None: there was none, or its key cannot be used.
    pub fn lookup(&self) -> Option<SniLookup> {
        match self {
            Self::Serve { shown, .. } => Some(shown.found),
            Self::Refuse { end: HandshakeEnd::UnknownName, .. } => Some(SniLookup::Miss),
            Self::Refuse { .. } | Self::Challenge { .. } => None,
        }
    }
}

/// Chooses for one ClientHello.
pub fn select(hello: &HelloFacts, live: &Live, configs: &TlsConfigs, now: UnixTime) -> Selection {
    if let Some(name) = &hello.sni {
        let now_ms = i64::try_from(now.as_secs()).unwrap_or(i64::MAX).saturating_mul(1000);
        if hello.acme_tls_only
            && let Some(key) = live.challenges.tls_alpn01(name.as_str(), now_ms)
        {
            return Selection::Challenge { config: configs.challenge(key) };
        }
        if let Some(hit) = live.sni.lookup(name, now, hello.capabilities) {
            let mut shown = Shown {
                sni: Some(name.clone()),
                credential: hit.credential,
                policy: hit.policy,
                client_auth: None,
                client: None,
                found: if hit.by_wildcard { SniLookup::Wildcard } else { SniLookup::Exact },
                is_default: false,
                counted: None,
            };
            // Rare, so its authorities are not in the index. Where they are being changed just now, the host's word is
            // taken; an exchange looks again.
            if hit.policy.client_certificates.is_some()
                && let Some(host) = live.host(name)
            {
                shown.policy = host.policy;
                shown.client_auth.clone_from(&host.client_auth);
            }
            return serve(live, shown);
        }
    }
    let default = match live.fleet.load().unknown_sni {
        UnknownSni::Default => live.sni.default_credential(),
        UnknownSni::Refuse => None,
    };
    let Some(credential) = default else {
        // RFC 6066 section 3 for a name that is not ours; RFC 8446 section 9.2 for none at all.
        let alert = if hello.has_sni {
            AlertDescription::UnrecognisedName
        } else {
            AlertDescription::MissingExtension
        };
        return Selection::Refuse { alert, end: HandshakeEnd::UnknownName };
    };
    let policy = TlsPolicy::default();
    let shown = Shown {
        sni: None,
        credential,
        policy,
        client_auth: None,
        client: None,
        found: SniLookup::Default,
        is_default: true,
        counted: None,
    };
    serve(live, shown)
}

fn serve(live: &Live, shown: Shown) -> Selection {
    let key = match live.keys.certified_key(&shown.credential) {
        Ok(key) => key,
        Err(error) => {
            tracing::debug!(%error, "a credential cannot be used");
            return Selection::Refuse { alert: AlertDescription::InternalError, end: HandshakeEnd::NoKey };
        }
    };
    Selection::Serve { key, shown: Box::new(shown) }
}

/// A finished handshake.
#[derive(Debug)]
pub struct Accepted {
    /// Boxed: it is large, and each phase of a connection takes it over.
    pub stream: Box<TlsStream<Stream>>,
    pub shown: Shown,
    pub handshake: Handshake,
}

/// Does the handshake of one connection, within its deadline. `None`: nothing to serve; the client got
/// its alert where it is owed one, and the end is counted.
pub(crate) async fn accept(stream: Stream, source: &Source, edge: &Edge) -> Option<Box<Accepted>> {
    let metrics = &edge.metrics;
    let started = clock::now();
    let handshake = Box::pin(handshake(stream, source, edge));
    let result = match tokio::time::timeout(edge.deadlines.handshake, handshake).await {
        Ok(result) => result,
        Err(_) => Err(HandshakeEnd::TimedOut),
    };
    match result {
        Ok(accepted) => {
            metrics.handshake(if accepted.handshake.resumed {
                HandshakeEnd::Resumed
            } else {
                HandshakeEnd::Full
            });
            metrics.tls_version(accepted.handshake.version);
            metrics.handshake_seconds.record(clock::now().duration_since(started).as_secs_f64());
            Some(accepted)
        }
        Err(end) => {
            metrics.handshake(end);
            None
        }
    }
}

async fn handshake(mut stream: Stream, source: &Source, edge: &Edge) -> Result<Box<Accepted>, HandshakeEnd> {
    let (live, configs) = (&edge.live, &edge.tls);
    stream.set_read_budget(Some(limits::CLIENT_HELLO_BYTES_MAX));
    let mut start = opening::read_hello(stream).await?;
    // The rest of the handshake is bounded by rustls and the deadline. A client's first request may come with its last
    // handshake message, and may be large: it must not run into the hello's bound.
    start.io.set_read_budget(None);
    let hello = HelloFacts::of(&start.client_hello());
    let selection = select(&hello, live, configs, clock::unix_time());
    edge.metrics.sni_lookup(selection.lookup());
    let (config, mut shown) = match selection {
        Selection::Serve { key, mut shown } => {
            // Before a key has signed: that is what costs. What is said is that of a server without resources (RFC 8446
            // section 6.2); no alert says it better, and a page would have to come after the handshake.
            if !shown.count(live) {
                edge.metrics.limited(Limited::TenantConnections);
                refuse(start.io, AlertDescription::InternalError).await;
                return Err(HandshakeEnd::TenantConnections);
            }
            // Closed without a word, as a connection that comes when its address has used up its handshakes.
            source.take_signature(shown.credential.key_type()).map_err(|_| HandshakeEnd::SourceHandshakes)?;
            (configs.serving(&shown, &hello, key), shown)
        }
        Selection::Challenge { config } => {
            let mut stream = start.into_stream(config).await.map_err(failed)?;
            let _ = stream.shutdown().await; // RFC 8737 section 3: no application data
            return Err(HandshakeEnd::Challenge);
        }
        Selection::Refuse { alert, end } => {
            refuse(start.io, alert).await;
            return Err(end);
        }
    };
    let stream = match start.into_stream(config).into_fallible().await {
        Ok(stream) => stream,
        Err((error, stream)) => {
            let why = error.to_string();
            let end = failed(error);
            if matches!(end, HandshakeEnd::ClientCertificate) {
                configs.tell_refused(hello.sni.as_ref(), &why);
                linger(stream, edge.deadlines.linger).await;
            }
            return Err(end);
        }
    };
    let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
    let is_old = stream.get_ref().1.protocol_version() == Some(ProtocolVersion::TLSv1_2);
    let handshake = Handshake { sni: hello.sni, version: if is_old { "1.2" } else { "1.3" }, resumed };
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    shown.client = ClientIdentity::of(chain).map(Arc::new);
    Ok(Box::new(Accepted { stream: Box::new(stream), shown: *shown, handshake }))
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of map_err")]
fn failed(error: io::Error) -> HandshakeEnd {
    tracing::trace!(%error, "a TLS handshake failed");
    failure::end_of(&error)
}

/// With TLS 1.3 a client sends its first request before it hears that its certificate is refused. Closing on unread bytes
/// would be a reset, which can overtake the alert that tells why.
async fn linger(mut stream: Stream, within: Duration) {
    if stream.shutdown().await.is_ok() {
        Box::pin(goodbye::discard(stream, within)).await;
    }
}

/// Writes a fatal alert before the handshake has begun (rustls itself could only say access_denied), then closes.
async fn refuse(mut stream: Stream, alert: AlertDescription) {
    // TLSPlaintext: type alert, version 1.2, length 2, level fatal (RFC 8446 sections 5.1 and 6).
    let record = [21, 3, 3, 0, 2, 2, u8::from(alert)];
    if stream.write_all(&record).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}
