//! TLS for QUIC: the same choice by ClientHello as over TCP.
//!
//! quinn wants a session before the ClientHello is there. So a session here gathers the hello first, chooses for it, and
//! begins the real one with the configuration that was chosen: what rustls fixes when a connection begins (its verifier, its
//! suites, whether it takes early data) is then the name's own.

use std::any::Any;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use portico_cert_store::DomainName;
use quinn_proto::crypto::rustls::{NoInitialCipherSuite, QuicServerConfig};
use quinn_proto::crypto::{
    ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig, Session, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side, TransportError, TransportErrorCode};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{AlertDescription, SignatureAlgorithm, SignatureScheme};

use super::hello::Hello;
use crate::clock;
use crate::metrics::HandshakeEnd;
use crate::server::Edge;
use crate::tls::sessions::SessionsOf;
use crate::tls::{Selection, Shown, failure, select};

pub(super) struct SelectingCrypto {
    edge: Arc<Edge>,
    /// For what comes before a session is chosen: initial keys and Retry.
    initial: Arc<QuicServerConfig>,
    /// Whose connections these are, by the address of their first packet; None: anybody's, and none takes early data.
    client: Option<IpAddr>,
}

/// What a handshake has shown; it may still be under way.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) shown: Shown,
    /// Whom the client asked for.
    pub(super) sni: Option<DomainName>,
    pub(super) resumed: bool,
    /// The client's early data is taken.
    pub(super) early: bool,
}

struct SelectedSession {
    crypto: Arc<SelectingCrypto>,
    state: State,
}

enum State {
    Waiting { hello: Hello, version: u32, parameters: Box<TransportParameters> },
    Chosen(Chosen),
}

struct Chosen {
    inner: Box<dyn Session>,
    shown: Box<Shown>,
    sni: Option<DomainName>,
    signed: Arc<AtomicBool>,
}

/// Notes that the key is used; quinn does not say how a handshake went. A full handshake signs, a resumed one proves itself by
/// its ticket (RFC 8446 section 2.2).
struct NotingKey {
    key: Arc<dyn SigningKey>,
    signed: Arc<AtomicBool>,
}

impl SelectingCrypto {
    pub(super) fn new(edge: Arc<Edge>) -> Result<Self, NoInitialCipherSuite> {
        let initial = Arc::new(QuicServerConfig::try_from(edge.tls.before_choice())?);
        Ok(Self { edge, initial, client: None })
    }

    /// The same for the connection of one client, which may use sessions that were made with its address.
    pub(super) fn for_client(&self, client: IpAddr) -> Arc<Self> {
        let (edge, initial) = (Arc::clone(&self.edge), Arc::clone(&self.initial));
        Arc::new(Self { edge, initial, client: Some(client) })
    }

    /// The sessions of the name that is shown, where it takes early data.
    fn early_sessions(&self, shown: &Shown) -> Option<SessionsOf> {
        // Over HTTP/3 the end of the handshake brings the client's certificate, and requests are judged by it.
        let name = shown.sni.as_ref().filter(|_| shown.client_auth.is_none())?;
        let host = self.edge.live.host(name).filter(|host| host.early_data)?;
        Some(self.edge.tls.sessions_of(host.domain, self.client?))
    }
}

/// How a handshake that failed is counted.
pub(super) fn end_of(error: &quinn::ConnectionError) -> HandshakeEnd {
    match error {
        quinn::ConnectionError::TransportError(error) => {
            failure::end_of_quic(error.code, error.reason.is_empty())
        }
        quinn::ConnectionError::TimedOut => HandshakeEnd::TimedOut,
        quinn::ConnectionError::ConnectionClosed(_) | quinn::ConnectionError::ApplicationClosed(_) => {
            HandshakeEnd::RefusedByClient
        }
        quinn::ConnectionError::Reset => HandshakeEnd::Aborted,
        quinn::ConnectionError::LocallyClosed => HandshakeEnd::SourceHandshakes,
        quinn::ConnectionError::VersionMismatch | quinn::ConnectionError::CidsExhausted => {
            HandshakeEnd::Failed
        }
    }
}

impl ServerConfig for SelectingCrypto {
    fn initial_keys(&self, version: u32, id: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.initial.initial_keys(version, id)
    }

    fn retry_tag(&self, version: u32, original_id: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.initial.retry_tag(version, original_id, packet)
    }

    fn start_session(self: Arc<Self>, version: u32, parameters: &TransportParameters) -> Box<dyn Session> {
        let state = State::Waiting { hello: Hello::default(), version, parameters: Box::new(*parameters) };
        Box::new(SelectedSession { crypto: self, state })
    }
}

impl SelectedSession {
    /// Takes bytes of the hello; the session goes on by itself once it is whole.
    fn wait_for_hello(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        let State::Waiting { hello, version, parameters } = &mut self.state else { return Ok(false) };
        let Some(facts) = hello.take(bytes).map_err(refusal)? else { return Ok(false) };
        let Edge { live, tls, .. } = &*self.crypto.edge;
        let selection = select(&facts, live, tls, clock::unix_time());
        self.crypto.edge.metrics.sni_lookup(selection.lookup());
        let (key, shown) = match selection {
            Selection::Serve { key, shown } if shown.is_default || shown.policy.http3 => (key, shown),
            // Over TCP these would be served: what is missing is the protocol.
            Selection::Serve { .. } | Selection::Challenge { .. } => {
                return Err(refusal(AlertDescription::NoApplicationProtocol));
            }
            Selection::Refuse { alert, .. } => return Err(refusal(alert)),
        };
        let signed = Arc::<AtomicBool>::default();
        let noting = NotingKey { key: Arc::clone(&key.key), signed: Arc::clone(&signed) };
        let mut noted = CertifiedKey::new(key.cert.clone(), Arc::new(noting));
        noted.ocsp.clone_from(&key.ocsp);
        let early = self.crypto.early_sessions(&shown);
        let config = tls.serving_quic(&shown, &facts, Arc::new(noted), early);
        let config =
            QuicServerConfig::try_from(config).map_err(|_| refusal(AlertDescription::InternalError))?;
        let mut inner = Arc::new(config).start_session(*version, parameters);
        let known = inner.read_handshake(&hello.bytes())?;
        self.state = State::Chosen(Chosen { inner, shown, sni: facts.sni, signed });
        Ok(known)
    }

    fn inner(&self) -> Option<&dyn Session> {
        match &self.state {
            State::Waiting { .. } => None,
            State::Chosen(chosen) => Some(&*chosen.inner),
        }
    }

    fn inner_mut(&mut self) -> Option<&mut Box<dyn Session>> {
        match &mut self.state {
            State::Waiting { .. } => None,
            State::Chosen(chosen) => Some(&mut chosen.inner),
        }
    }
}

fn refusal(alert: AlertDescription) -> TransportError {
    TransportErrorCode::crypto(u8::from(alert)).into()
}

impl fmt::Debug for NotingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotingKey").finish_non_exhaustive()
    }
}

impl SigningKey for NotingKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        self.signed.store(true, Ordering::Relaxed);
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
        let State::Chosen(Chosen { inner, shown, sni, signed }) = &self.state else { return None };
        inner.handshake_data()?;
        // The keys are there where rustls has taken the data, and only there.
        let early = inner.early_crypto().is_some();
        let (shown, sni, resumed) = (Shown::clone(shown), sni.clone(), !signed.load(Ordering::Relaxed));
        Some(Box::new(Finished { shown, sni, resumed, early }))
    }

    fn read_handshake(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        match self.inner_mut() {
            Some(inner) => inner.read_handshake(bytes),
            None => self.wait_for_hello(bytes),
        }
    }

    fn initial_keys(&self, id: &ConnectionId, side: Side) -> Keys {
        match &self.state {
            State::Chosen(chosen) => chosen.inner.initial_keys(id, side),
            // Those of a server.
            State::Waiting { version, .. } => {
                let keys = self.crypto.initial.initial_keys(*version, id);
                keys.expect("a session begins only with a version that has keys")
            }
        }
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.inner()?.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.inner()?.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.inner()?.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.inner().is_none_or(Session::is_handshaking)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.inner().map_or(Ok(None), Session::transport_parameters)
    }

    fn write_handshake(&mut self, buffer: &mut Vec<u8>) -> Option<Keys> {
        self.inner_mut()?.write_handshake(buffer)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.inner_mut()?.next_1rtt_keys()
    }

    fn is_valid_retry(&self, original_id: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.inner().is_some_and(|inner| inner.is_valid_retry(original_id, header, payload))
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        let inner = self.inner().ok_or(ExportKeyingMaterialError)?;
        inner.export_keying_material(output, label, context)
    }
}
