//! TLS for QUIC: the same choice by ClientHello as over TCP.
//!
//! quinn makes a TLS session before it has seen the ClientHello, so each session gets a resolver of its own, which makes
//! the choice when the hello is there and remembers what it has shown. rustls can only say `access_denied` when a
//! resolver has nothing; the session's error is therefore replaced by the alert that is meant.

use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use quinn_proto::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use quinn_proto::crypto::{
    ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig, Session, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side, TransportError, TransportErrorCode};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{AlertDescription, SignatureAlgorithm, SignatureScheme};

use crate::clock;
use crate::metrics::HandshakeEnd;
use crate::server::Edge;
use crate::tls::{Asking, HelloFacts, Selection, Shown, select};

pub(super) struct SelectingCrypto {
    edge: Arc<Edge>,
    /// For what comes before a session: initial keys and Retry.
    initial: QuicServerConfig,
}

/// What a finished handshake has shown.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) shown: Shown,
    pub(super) resumed: bool,
}

/// What one session's resolver has decided, and what came of it.
#[derive(Debug, Default)]
struct Choice {
    shown: OnceLock<Result<Shown, AlertDescription>>,
    /// The key has signed: a full handshake. A resumed one proves itself by its ticket (RFC 8446 section 2.2).
    signed: AtomicBool,
}

/// Notes that the key is used; quinn does not say how a handshake went.
struct NotingKey {
    key: Arc<dyn SigningKey>,
    choice: Arc<Choice>,
}

struct Selecting {
    edge: Arc<Edge>,
    choice: Arc<Choice>,
    asking: Arc<Asking>,
}

struct SelectedSession {
    inner: Box<dyn Session>,
    choice: Arc<Choice>,
}

impl SelectingCrypto {
    pub(super) fn new(edge: Arc<Edge>) -> Result<Self, NoInitialCipherSuite> {
        let (config, _) = session_config(&edge);
        let initial = QuicServerConfig::try_from(config)?;
        Ok(Self { edge, initial })
    }
}

/// A configuration for one session, and what will be chosen in it.
fn session_config(edge: &Arc<Edge>) -> (Arc<rustls::ServerConfig>, Arc<Choice>) {
    let choice = Arc::new(Choice::default());
    let asking = Asking::nothing(Arc::clone(edge.tls.tickets()));
    let (of_resolver, edge_of_resolver) = (Arc::clone(&asking), Arc::clone(edge));
    let resolver = Selecting { edge: edge_of_resolver, choice: Arc::clone(&choice), asking: of_resolver };
    (edge.tls.resolving(Arc::new(resolver), &asking), choice)
}

/// How a handshake that failed is counted.
pub(super) fn end_of(error: &quinn::ConnectionError) -> HandshakeEnd {
    let refused = TransportErrorCode::crypto(u8::from(AlertDescription::UnrecognisedName));
    match error {
        quinn::ConnectionError::TransportError(error) if error.code == refused => HandshakeEnd::UnknownName,
        quinn::ConnectionError::TransportError(error) if is_about_clients(error.code) => {
            HandshakeEnd::ClientCertificate
        }
        quinn::ConnectionError::TimedOut => HandshakeEnd::TimedOut,
        quinn::ConnectionError::VersionMismatch
        | quinn::ConnectionError::TransportError(_)
        | quinn::ConnectionError::ConnectionClosed(_)
        | quinn::ConnectionError::ApplicationClosed(_)
        | quinn::ConnectionError::Reset
        | quinn::ConnectionError::LocallyClosed
        | quinn::ConnectionError::CidsExhausted => HandshakeEnd::Failed,
    }
}

/// Alerts that rustls sends when it refuses a certificate: here, a client's.
fn is_about_clients(code: TransportErrorCode) -> bool {
    [
        AlertDescription::CertificateRequired,
        AlertDescription::UnknownCA,
        AlertDescription::BadCertificate,
        AlertDescription::CertificateExpired,
        AlertDescription::UnsupportedCertificate,
        AlertDescription::CertificateUnknown,
    ]
    .into_iter()
    .any(|alert| code == TransportErrorCode::crypto(u8::from(alert)))
}

impl ServerConfig for SelectingCrypto {
    fn initial_keys(&self, version: u32, id: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.initial.initial_keys(version, id)
    }

    fn retry_tag(&self, version: u32, original_id: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.initial.retry_tag(version, original_id, packet)
    }

    fn start_session(self: Arc<Self>, version: u32, parameters: &TransportParameters) -> Box<dyn Session> {
        let (config, choice) = session_config(&self.edge);
        let config = QuicServerConfig::try_from(config)
            .expect("the suite of initial packets was there when this endpoint was made");
        let inner = Arc::new(config).start_session(version, parameters);
        Box::new(SelectedSession { inner, choice })
    }
}

impl ResolvesServerCert for Selecting {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let facts = HelloFacts::of(&hello);
        let live = &self.edge.live;
        let selection = select(&facts, live, &self.edge.tls, clock::unix_time());
        let (choice, key) = match selection {
            Selection::Serve { key, shown } if shown.is_default || shown.policy.http3 => {
                if let Some(auth) = &shown.client_auth {
                    self.asking.ask(Arc::clone(auth));
                }
                (Ok(*shown), Some(key))
            }
            // Over TCP these would be served: what is missing is the protocol.
            Selection::Serve { .. } | Selection::Challenge { .. } => {
                (Err(AlertDescription::NoApplicationProtocol), None)
            }
            Selection::Refuse { alert, .. } => (Err(alert), None),
        };
        // A second ClientHello, after a HelloRetryRequest, may be chosen for anew; the first choice stands.
        let _chosen = self.choice.shown.set(choice);
        key.map(|key| {
            let noting = NotingKey { key: Arc::clone(&key.key), choice: Arc::clone(&self.choice) };
            let mut noted = CertifiedKey::new(key.cert.clone(), Arc::new(noting));
            noted.ocsp.clone_from(&key.ocsp);
            Arc::new(noted)
        })
    }
}

impl SigningKey for NotingKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        self.choice.signed.store(true, Ordering::Relaxed);
        self.key.choose_scheme(offered)
    }

    fn public_key(&self) -> Option<rustls::pki_types::SubjectPublicKeyInfoDer<'_>> {
        self.key.public_key()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.key.algorithm()
    }
}

impl Session for SelectedSession {
    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.inner.handshake_data()?;
        let shown = self.choice.shown.get()?.as_ref().ok()?.clone();
        let resumed = !self.choice.signed.load(Ordering::Relaxed);
        Some(Box::new(Finished { shown, resumed }))
    }

    fn read_handshake(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        self.inner.read_handshake(bytes).map_err(|mut error| {
            if let Some(Err(alert)) = self.choice.shown.get() {
                error.code = TransportErrorCode::crypto(u8::from(*alert));
            }
            error
        })
    }

    fn initial_keys(&self, id: &ConnectionId, side: Side) -> Keys {
        self.inner.initial_keys(id, side)
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.inner.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.inner.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.inner.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.inner.transport_parameters()
    }

    fn write_handshake(&mut self, buffer: &mut Vec<u8>) -> Option<Keys> {
        self.inner.write_handshake(buffer)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.inner.next_1rtt_keys()
    }

    fn is_valid_retry(&self, original_id: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.inner.is_valid_retry(original_id, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.inner.export_keying_material(output, label, context)
    }
}

impl fmt::Debug for NotingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotingKey").finish_non_exhaustive()
    }
}

impl fmt::Debug for Selecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Selecting").finish_non_exhaustive()
    }
}
