//! TLS over TCP: ClientHello first, then the certificate, then the handshake.
//!
//! The hello is read with a bound on bytes and one deadline for the whole handshake; nothing is decided before it is
//! whole. The choice itself ([`select`]) is pure and shared with QUIC: name, index, policy in, a `ServerConfig` or a
//! refusal out. No lock, no disk and no other thread is waited for on the way (promise P1).
//!
//! Deliberately absent: session storage (tickets only, so that workers share nothing) and early data (replay).

mod compression;
mod configs;
mod hello;
mod tickets;

use std::{io, sync::Arc};

use portico_cert_store::{Credential, DomainName, TlsPolicy, UnixTime};
use rustls::{AlertDescription, HandshakeKind, ServerConfig, server::Acceptor};
use tokio::io::AsyncWriteExt;
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

pub use configs::{Alpn, TlsConfigs};
pub use hello::HelloFacts;
pub use tickets::{TICKET_KEY_SECONDS, Tickets};

use crate::{
    clock,
    io::Stream,
    limits,
    live::{Live, UnknownSni},
    metrics::HandshakeEnd,
    server::Edge,
};

/// What a connection was shown; the authority rule is decided against it.
#[derive(Debug, Clone)]
pub struct Shown {
    /// As the client asked, normalised; absent when it named nobody or something that is no domain name.
    pub sni: Option<DomainName>,
    pub credential: Arc<Credential>,
    pub policy: TlsPolicy,
    /// The default certificate: every request on it is misdirected.
    pub is_default: bool,
}

/// What to do with a ClientHello.
#[derive(Debug)]
pub enum Selection {
    Serve {
        config: Arc<ServerConfig>,
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

/// Chooses for one ClientHello. `http` says which protocols the listener speaks.
pub fn select(
    hello: &HelloFacts,
    live: &Live,
    configs: &TlsConfigs,
    transport: Transport,
    now: UnixTime,
) -> Selection {
    if let Some(name) = &hello.sni {
        let now_ms = i64::try_from(now.as_secs()).unwrap_or(i64::MAX).saturating_mul(1000);
        if hello.acme_tls_only
            && let Some(key) = live.challenges.tls_alpn01(name.as_str(), now_ms)
        {
            return Selection::Challenge { config: configs.challenge(key) };
        }
        if let Some(hit) = live.sni.lookup(name, now, hello.capabilities) {
            let shown = Shown {
                sni: Some(name.clone()),
                credential: hit.credential,
                policy: hit.policy,
                is_default: false,
            };
            return serve(hello, live, configs, transport, shown);
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
    let shown = Shown { sni: None, credential, policy: TlsPolicy::default(), is_default: true };
    serve(hello, live, configs, transport, shown)
}

/// What carries the TLS messages; decides the protocols that ALPN may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Quic,
}

fn serve(
    hello: &HelloFacts,
    live: &Live,
    configs: &TlsConfigs,
    transport: Transport,
    shown: Shown,
) -> Selection {
    let key = match live.keys.certified_key(&shown.credential) {
        Ok(key) => key,
        Err(error) => {
            tracing::debug!(%error, "a credential cannot be used");
            return Selection::Refuse { alert: AlertDescription::InternalError, end: HandshakeEnd::NoKey };
        }
    };
    let alpn = match transport {
        Transport::Quic => Alpn::Http3,
        Transport::Tcp if shown.policy.http2 => Alpn::Http2,
        Transport::Tcp => Alpn::Http1,
    };
    let config = configs.serving(shown.policy, hello.prefers_chacha, alpn, key);
    Selection::Serve { config, shown: Box::new(shown) }
}

/// A finished handshake.
#[derive(Debug)]
pub struct Accepted {
    /// Boxed: it is large, and each phase of a connection takes it over.
    pub stream: Box<TlsStream<Stream>>,
    pub shown: Shown,
    pub resumed: bool,
}

/// Does the handshake of one connection, within its deadline. `None`: nothing to serve; the client got
/// its alert where it is owed one, and the end is counted.
pub async fn accept(stream: Stream, edge: &Edge) -> Option<Box<Accepted>> {
    let metrics = &edge.metrics;
    let started = clock::now();
    let handshake = Box::pin(handshake(stream, &edge.live, &edge.tls));
    let result = match tokio::time::timeout(edge.deadlines.handshake, handshake).await {
        Ok(result) => result,
        Err(_) => Err(HandshakeEnd::TimedOut),
    };
    match result {
        Ok(accepted) => {
            metrics.handshake(if accepted.resumed { HandshakeEnd::Resumed } else { HandshakeEnd::Full });
            metrics.handshake_seconds.record(clock::now().duration_since(started).as_secs_f64());
            Some(accepted)
        }
        Err(end) => {
            metrics.handshake(end);
            None
        }
    }
}

async fn handshake(
    mut stream: Stream,
    live: &Live,
    configs: &TlsConfigs,
) -> Result<Box<Accepted>, HandshakeEnd> {
    stream.set_read_budget(Some(limits::CLIENT_HELLO_BYTES_MAX));
    let mut start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.map_err(failed)?;
    // The rest of the handshake is bounded by rustls and the deadline. A client's first request may come with its last
    // handshake message, and may be large: it must not run into the hello's bound.
    start.io.set_read_budget(None);
    let hello = HelloFacts::of(&start.client_hello());
    let (config, shown) = match select(&hello, live, configs, Transport::Tcp, clock::unix_time()) {
        Selection::Serve { config, shown } => (config, shown),
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
    let stream = start.into_stream(config).await.map_err(failed)?;
    let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
    Ok(Box::new(Accepted { stream: Box::new(stream), shown: *shown, resumed }))
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of map_err")]
fn failed(error: io::Error) -> HandshakeEnd {
    tracing::trace!(%error, "a TLS handshake failed");
    HandshakeEnd::Failed
}

/// Writes a fatal alert before the handshake has begun (rustls itself could only say access_denied), then closes.
async fn refuse(mut stream: Stream, alert: AlertDescription) {
    // TLSPlaintext: type alert, version 1.2, length 2, level fatal (RFC 8446 sections 5.1 and 6).
    let record = [21, 3, 3, 0, 2, 2, u8::from(alert)];
    if stream.write_all(&record).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}
