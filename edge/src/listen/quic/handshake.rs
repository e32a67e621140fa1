//! The handshake of one QUIC connection, to its end or to where early data can be read.

use std::any::Any;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use ::h3::error::Code;
use portico_cert_store::KeyType;
use quinn::VarInt;
use rustls::pki_types::CertificateDer;

use super::Slot;
use super::crypto::{self, Finished};
use super::frame_budget::{Budgeted, FrameBudget};
use crate::clock;
use crate::exchange::{ConnectionContext, Handshaking, Protocol};
use crate::http::budget::ConnectionBudget;
use crate::http::clock::ConnectionClock;
use crate::metrics::{HandshakeEnd, Limited, Metrics};
use crate::sources::{Refused, Source};
use crate::tls::{ClientIdentity, Handshake};
use crate::worker::Worker;

/// A handshake under way, also when its task panics.
pub(super) struct HalfOpen(Rc<Slot>);

impl HalfOpen {
    pub(super) fn begun(slot: &Rc<Slot>) -> Self {
        slot.half_open.set(slot.half_open.get() + 1);
        Self(Rc::clone(slot))
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        self.0.half_open.set(self.0.half_open.get() - 1);
    }
}

/// A client whose address is its own, with the handshake that it has paid for.
pub(super) fn begun(worker: &Worker, client: IpAddr) -> Result<Source, Refused> {
    let source = worker.edge.sources.connect(client)?;
    source.take_handshake()?;
    Ok(source)
}

/// A connection that may be used. Where its client's early data is taken, the handshake goes on beside it.
pub(super) async fn handshake(
    slot: &Rc<Slot>,
    incoming: quinn::Incoming,
    (source, half_open): (Option<Source>, HalfOpen),
) -> Option<(quinn::Connection, Arc<FrameBudget>, Rc<ConnectionContext>)> {
    let (worker, bound) = (&slot.worker, &slot.bound);
    let metrics = &worker.edge.metrics;
    let started = clock::now();
    let address = bound.config.address;
    let local = SocketAddr::new(incoming.local_ip().unwrap_or(address.ip()), address.port());
    let server = slot.server_for(incoming.remote_address().ip());
    let deadline = worker.edge.deadlines.handshake;
    let beginning = begin(incoming, server, source.as_ref());
    let (connection, rest) = match tokio::time::timeout(deadline, beginning).await {
        Ok(Ok(begun)) => begun,
        Ok(Err(error)) => {
            tracing::trace!(%error, "a QUIC handshake failed");
            let end = crypto::end_of(&error);
            if matches!(end, HandshakeEnd::ClientCertificate) {
                worker.edge.tls.tell_refused(None, &error);
            }
            metrics.handshake(end);
            return None;
        }
        Err(_) => {
            metrics.handshake(HandshakeEnd::TimedOut);
            return None;
        }
    };
    let (finished, budget) = finished(connection.handshake_data()?)?;
    let Finished { mut shown, sni, resumed, .. } = finished;
    budget.begins();
    let chain = connection.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'_>>>().ok());
    shown.client = chain.and_then(|chain| ClientIdentity::of(&chain)).map(Arc::new);
    let early = match rest {
        Some(rest) => Some(goes_on(worker, (connection.clone(), rest), (started, half_open))),
        None => {
            ended(metrics, resumed, started);
            None
        }
    };
    let peer = connection.remote_address();
    // It is the client's own: shown by the handshake, or by the one that made the session of the early data.
    let key = shown.credential.key_type();
    let paid =
        || begun(worker, peer.ip()).and_then(|source| pay_signature(&source, key, resumed).map(|()| source));
    let Ok(source) = source.map_or_else(paid, Ok) else {
        connection.close(code(Code::H3_EXCESSIVE_LOAD), b"");
        return None;
    };
    // As late as this for the same reason: the address is the client's own.
    if !shown.count(&worker.edge.live) {
        metrics.limited(Limited::TenantConnections);
        connection.close(code(Code::H3_EXCESSIVE_LOAD), b"");
        return None;
    }
    if resumed {
        source.handshake_was_resumed();
    }
    let context = Rc::new(ConnectionContext {
        worker: Rc::clone(worker),
        peer,
        local,
        protocol: Protocol::Http3,
        shown: Some(shown),
        // RFC 9001 section 4.2.
        handshake: Some(Handshake { sni, version: "1.3", resumed }),
        public_https_port: bound.config.public_https_port,
        alt_svc: None,
        clock: Rc::new(ConnectionClock::new(worker.edge.deadlines)),
        budget: ConnectionBudget::default(),
        source,
        trusted: bound.config.trusted_proxies.clone(),
        early,
    });
    Some((connection, budget, context))
}

/// What the session says, and what its frames may cost.
fn finished(data: Box<dyn Any>) -> Option<(Finished, Arc<FrameBudget>)> {
    let Budgeted { data, budget } = *data.downcast::<Budgeted>().ok()?;
    data.downcast::<Finished>().ok().map(|finished| (*finished, budget))
}

fn pay_signature(source: &Source, key: KeyType, resumed: bool) -> Result<(), Refused> {
    if resumed { Ok(()) } else { source.take_signature(key) }
}

/// To the end of the handshake, or only so far that early data can be read; then with the rest of it. A known client pays for
/// the signature when it has been made, whether it goes on or not.
async fn begin(
    incoming: quinn::Incoming,
    server: Arc<quinn::ServerConfig>,
    source: Option<&Source>,
) -> Result<(quinn::Connection, Option<quinn::ZeroRttAccepted>), quinn::ConnectionError> {
    let mut connecting = incoming.accept_with(server)?;
    let finished = finished(connecting.handshake_data().await?).map(|(finished, _)| finished);
    if let (Some(source), Some(Finished { shown, resumed, .. })) = (source, &finished) {
        pay_signature(source, shown.credential.key_type(), *resumed)
            .map_err(|_| quinn::ConnectionError::LocallyClosed)?;
    }
    if !finished.is_some_and(|finished| finished.early) {
        return Ok((connecting.await?, None));
    }
    match connecting.into_0rtt() {
        Ok((connection, rest)) => Ok((connection, Some(rest))),
        Err(connecting) => Ok((connecting.await?, None)),
    }
}

/// Sees a handshake to its end whose connection is in use already.
fn goes_on(
    worker: &Rc<Worker>,
    (connection, rest): (quinn::Connection, quinn::ZeroRttAccepted),
    (started, half_open): (Instant, HalfOpen),
) -> Rc<Handshaking> {
    let (worker, early) = (Rc::clone(worker), Rc::<Handshaking>::default());
    let told = Rc::clone(&early);
    tokio::task::spawn_local(async move {
        let metrics = &worker.edge.metrics;
        let deadline = started + worker.edge.deadlines.handshake;
        let in_time = tokio::time::timeout_at(deadline.into(), rest).await.is_ok();
        drop(half_open);
        // quinn says only that it is over.
        let whole = match connection.close_reason() {
            None if in_time => {
                ended(metrics, true, started);
                true
            }
            None => {
                metrics.handshake(HandshakeEnd::TimedOut);
                connection.close(code(Code::H3_NO_ERROR), b"");
                false
            }
            Some(error) => {
                metrics.handshake(crypto::end_of(&error));
                false
            }
        };
        told.end(whole);
    });
    early
}

fn ended(metrics: &Metrics, resumed: bool, started: Instant) {
    metrics.handshake(if resumed { HandshakeEnd::Resumed } else { HandshakeEnd::Full });
    metrics.tls_version("1.3"); // RFC 9001 section 4.2
    metrics.handshake_seconds.record(clock::now().duration_since(started).as_secs_f64());
}

fn code(code: Code) -> VarInt {
    u32::try_from(code.value()).map_or(VarInt::from_u32(0), VarInt::from_u32)
}
