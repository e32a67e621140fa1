//! Requests that come before their connection's handshake has ended (0-RTT; RFC 8446 section 2.3, RFC 8470).
//!
//! Only what changes nothing may be acted on: GET, HEAD and OPTIONS without a body go on at once, marked for the origin;
//! all others wait for the end of the handshake, which proves that they were not recorded and sent again.

use std::cell::Cell;

use http::{HeaderName, HeaderValue, Method, request::Parts};
use http_body::Body as _;
use tokio::sync::Notify;

use super::{ConnectionContext, Dropped};
use crate::http::body::RequestBody;
use crate::live::Host;

/// RFC 8470 section 5.1.
pub(crate) const EARLY_DATA: HeaderName = HeaderName::from_static("early-data");

/// The end of a connection's handshake, for who has begun before it.
#[derive(Debug, Default)]
pub struct Handshaking {
    ended: Cell<Option<bool>>,
    changed: Notify,
}

impl Handshaking {
    /// `whole`: the client has proved itself; else the connection is lost.
    pub(crate) fn end(&self, whole: bool) {
        self.ended.set(Some(whole));
        self.changed.notify_waiters();
    }

    fn is_under_way(&self) -> bool {
        self.ended.get().is_none()
    }

    /// Whether it has come to a good end.
    async fn ended(&self) -> bool {
        loop {
            let changed = self.changed.notified();
            if let Some(whole) = self.ended.get() {
                return whole;
            }
            changed.await;
        }
    }
}

/// Whether a request is early and may be acted on all the same. One that may not has waited when this returns, and is early no
/// more.
///
/// # Errors
/// [`Dropped`], where the handshake has failed: then nobody has asked.
pub(super) async fn may_go_on(
    parts: &Parts,
    body: &RequestBody,
    context: &ConnectionContext,
    host: &Host,
) -> Result<bool, Dropped> {
    if !context.early.as_ref().is_some_and(|early| early.is_under_way()) {
        return Ok(false);
    }
    let is_harmless =
        matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) && body.is_end_stream();
    let metrics = &context.worker.edge.metrics;
    // The connection may be another name's.
    if host.early_data && is_harmless {
        metrics.early_served.increment(1);
        return Ok(true);
    }
    metrics.early_waited.increment(1);
    wait(context).await?;
    Ok(false)
}

/// For the end of the handshake.
///
/// # Errors
/// [`Dropped`], where it has failed.
pub(super) async fn wait(context: &ConnectionContext) -> Result<(), Dropped> {
    match &context.early {
        Some(early) if !early.ended().await => Err(Dropped),
        Some(_) | None => Ok(()),
    }
}

/// Tells the next server of it.
pub(super) fn mark(parts: &mut Parts) {
    parts.headers.insert(EARLY_DATA, HeaderValue::from_static("1"));
}
